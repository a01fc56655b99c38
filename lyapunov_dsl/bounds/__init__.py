"""Sound bounds of JAX functions over boxes and balls. Usable without the rest of the library."""

from ._bound import Bounds as Bounds, bound as bound
from ._graph import UnknownPrimitive as UnknownPrimitive
from ._region import Ball as Ball, Box as Box
