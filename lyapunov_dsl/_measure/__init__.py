from ._base import Measure as Measure, Samples as Samples
from ._boundary import Boundary as Boundary
from ._boxes import Boxes as Boxes
from ._cube import Cube as Cube
from ._mixture import Mixture as Mixture, components as components
from ._sphere import Sphere as Sphere
from ._trajectory import Trajectory as Trajectory
