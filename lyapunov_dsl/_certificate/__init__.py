from ._all_of import AllOf as AllOf, loss_of as loss_of, parts_of as parts_of, weights_of as weights_of
from ._barrier import Barrier as Barrier
from ._base import Certificate as Certificate, Point as Point
from ._exponential import (
    Exponential as Exponential,
    decay_from_rate as decay_from_rate,
    rate_from_decay as rate_from_decay,
)
