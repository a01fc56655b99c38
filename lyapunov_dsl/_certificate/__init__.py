from ._all_of import AllOf as AllOf, each as each, loss_of as loss_of, parts_of as parts_of, weights_of as weights_of
from ._barrier import Barrier as Barrier
from ._base import Certificate as Certificate, Point as Point
from ._contraction import Contraction as Contraction
from ._control import ControlBarrier as ControlBarrier, ControlLyapunov as ControlLyapunov
from ._decay import Asymptotic as Asymptotic, FiniteTime as FiniteTime, Practical as Practical
from ._dissipation import FiniteGain as FiniteGain, InputToState as InputToState
from ._exponential import (
    Exponential as Exponential,
    Varying as Varying,
    decay_from_rate as decay_from_rate,
    rate_from_decay as rate_from_decay,
)
from ._reach import Reach as Reach
