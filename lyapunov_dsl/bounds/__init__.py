"""Sound bounds of JAX functions over boxes and balls. Usable without the rest of the library."""

from ._bound import Bounds as Bounds, bound as bound
from ._graph import UnknownPrimitive as UnknownPrimitive
from ._interval import Interval as Interval
from ._norms import (
    convolution_norm as convolution_norm,
    lipschitz as lipschitz,
    spectral_norm as spectral_norm,
    stack_norm as stack_norm,
)
from ._region import Ball as Ball, Box as Box
from ._register import lines as lines, register as register, ulps as ulps
from ._rule import Rule as Rule
