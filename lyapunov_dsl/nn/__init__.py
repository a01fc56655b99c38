from .._system import plain as plain
from ._continuous import (
    ResidualField as ResidualField,
    RungeKuttaStep as RungeKuttaStep,
    continuous_net as continuous_net,
)
from ._controlled import ControlledField as ControlledField, ControlledStart as ControlledStart
from ._encoder import ConvEncoder as ConvEncoder
from ._field import ConvField as ConvField, InvariantField as InvariantField, MLPField as MLPField
from ._lipschitz import (
    AOLConv2d as AOLConv2d,
    CayleyLinear as CayleyLinear,
    Lipschitz as Lipschitz,
    MaxMin as MaxMin,
    SLLLinear as SLLLinear,
    gain as gain,
)
from ._paper import PaperField as PaperField
from ._potentials import (
    ConvexPotential as ConvexPotential,
    PositivePotential as PositivePotential,
    QuadraticPotential as QuadraticPotential,
)
from ._precision import MixedPrecision as MixedPrecision
from ._resnet import ResNet18 as ResNet18, resnet18 as resnet18
