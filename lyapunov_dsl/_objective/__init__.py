from ._base import Objective as Objective, Sum as Sum
from ._end_to_end import EndToEnd as EndToEnd
from ._flow_matching import ClassCorner as ClassCorner, FlowMatching as FlowMatching
from ._monte_carlo import MonteCarlo as MonteCarlo
from ._path_integral import PathIntegral as PathIntegral
from ._robust_margin import RobustMargin as RobustMargin
from ._sublevel import Sublevel as Sublevel
