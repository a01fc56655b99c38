"""Functions of one number, with what is known of their derivatives."""

import math
from collections.abc import Callable
from typing import NamedTuple

from flint import arb


class Curve(NamedTuple):
    """A function of one number.

    **Arguments:**

    - `f`, `slope`: the function and its derivative, on balls.
    - `slope_float`: about the derivative, of a float; nothing rests on it.
    - `bends`: where the curvature changes its sign.
    - `curvature`: the sign of the second derivative before the first bend; it changes at each.
    - `above`, `below`: the function is defined only above (below) these, where they are not `None`.
    - `monotone`: 1 or -1.
    """

    f: Callable[[arb], arb]
    slope: Callable[[arb], arb]
    slope_float: Callable[[float], float]
    bends: tuple[float, ...]
    curvature: int
    above: float | None = None
    monotone: int = 1
    below: float | None = None

    def defined(self, a: arb, b: arb) -> bool:
        """Whether the function is, on all of [a, b]; never for what is NaN."""
        return (self.above is None or a > self.above) and (self.below is None or b < self.below)


def _guarded(function: Callable[[float], float]) -> Callable[[float], float]:
    """A function of floats of which nothing rests on the value."""

    def value(x: float) -> float:
        try:
            return function(x)
        except (ArithmeticError, ValueError):
            return math.inf

    return value


# The hyperbolic sine and the inverses that bend like it are concave left of 0 and convex right of it.
MORE = {
    "sinh": Curve(arb.sinh, arb.cosh, _guarded(math.cosh), (0.0,), -1),
    "asinh": Curve(arb.asinh, lambda x: (1 + x * x).rsqrt(), _guarded(lambda x: 1 / math.hypot(1, x)), (0.0,), 1),
    "acosh": Curve(
        arb.acosh, lambda x: (x * x - 1).rsqrt(), _guarded(lambda x: 1 / math.sqrt(x * x - 1)), (), -1, above=1.0
    ),
    "atanh": Curve(
        arb.atanh, lambda x: 1 / (1 - x * x), _guarded(lambda x: 1 / (1 - x * x)), (0.0,), -1, above=-1.0, below=1.0
    ),
    "asin": Curve(
        arb.asin, lambda x: (1 - x * x).rsqrt(), _guarded(lambda x: 1 / math.sqrt(1 - x * x)), (0.0,), -1,
        above=-1.0, below=1.0,
    ),
    "acos": Curve(
        arb.acos, lambda x: -(1 - x * x).rsqrt(), _guarded(lambda x: -1 / math.sqrt(1 - x * x)), (0.0,), 1,
        above=-1.0, monotone=-1, below=1.0,
    ),
}  # fmt: skip


def chord(
    f: Callable[[arb], arb], slope: Callable[[arb], arb], turn: Callable[[arb], arb]
) -> tuple[Callable[[arb, arb], tuple[arb, arb, arb]], Callable[[arb, arb], tuple[arb, arb]]]:
    """(line, span) of a function with its first two derivatives, by its Taylor polynomial of degree 1 at the center. On what
    holds a pole Arb's values are NaN, and so is all that is made of them."""

    def line(a: arb, b: arb) -> tuple[arb, arb, arb]:
        box, middle = a.union(b), ((a + b) / 2).mid()
        steep = slope(middle).mid()
        bent = turn(box) * arb(0).union((box - middle).abs_upper() ** 2) / 2
        rest = f(middle) - steep * middle + (slope(middle) - steep) * (box - middle) + bent
        return steep, rest.lower(), rest.upper()

    def span(a: arb, b: arb) -> tuple[arb, arb]:
        # With the derivative, where it is of one sign: then the ends tell.
        found, rise = f(a.union(b)), slope(a.union(b))
        if rise > 0:
            return f(a).lower(), f(b).upper()
        if rise < 0:
            return f(b).lower(), f(a).upper()
        return found.lower(), found.upper()

    return line, span


COSH = chord(arb.cosh, arb.sinh, arb.cosh)
TAN = chord(arb.tan, lambda x: 1 + x.tan() ** 2, lambda x: 2 * x.tan() * (1 + x.tan() ** 2))
