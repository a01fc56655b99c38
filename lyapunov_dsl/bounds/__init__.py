"""Sound bounds of JAX functions over boxes and balls. Usable without the rest of the library."""

from ._bound import Bounds as Bounds, bound as bound
from ._graph import UnknownPrimitive as UnknownPrimitive
from ._interval import Interval as Interval
from ._region import Ball as Ball, Box as Box
from ._register import lines as lines, register as register, ulps as ulps
from ._rule import Rule as Rule
