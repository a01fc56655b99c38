"""Lines above and below a function of one number.

A line may have any slope; what makes it sound is its intercept, which is the largest (smallest) difference from the function,
taken at the ends and, where the function bends toward the line, at the point of equal slope.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ._interval import Interval, eps, finite_magnitude, is_anything, magnitude, tiny, wide
from ._rule import Band, Node, Relaxation, Rule, between, elementwise, once, roundoff


class Shape(NamedTuple):
    """A smooth function of one number on the part of the line where it has one curvature or an S shape.

    **Arguments:**

    - `value`, `derivative`: of it.
    - `ulps`: how many units in the last place an implementation of it may be wrong; XLA's are measured in the tests.
    - `domain`: the least number it is defined at.
    """

    value: Callable[[Any], Any]
    derivative: Callable[[Any], Any]
    ulps: int
    domain: float = -math.inf


Line = tuple[Any, Any]


def ends(x: Interval) -> tuple[Any, Any, Any]:
    """The ends, and where both are finite; 0 stands for the others."""
    finite = jnp.isfinite(x.lower) & jnp.isfinite(x.upper)
    return jnp.where(finite, x.lower, 0), jnp.where(finite, x.upper, 0), finite


def chord(value: Callable, derivative: Callable, lower: Any, upper: Any) -> Any:
    """The slope between the ends, the derivative where they are (nearly) one point."""
    width = upper - lower
    narrow = width <= 1e3 * eps(wide()) * (jnp.abs(lower) + jnp.abs(upper)) + tiny(wide())
    return jnp.where(
        narrow,
        derivative(lower),
        (value(upper) - value(lower)) / jnp.where(narrow, 1, width),
    )


def above(value: Callable, slope: Any, *points: Any) -> Any:
    """The intercept with which a line of this slope lies above the function at all of the points."""
    biases = [value(point) - slope * point for point in points]
    out = biases[0]
    for bias in biases[1:]:
        out = jnp.maximum(out, bias)
    return out


def convex(shape: Shape, lower: Any, upper: Any, at: Any) -> tuple[Line, Line]:
    """The lines below (a tangent at `at`) and above (the chord) a convex function."""
    slope = chord(shape.value, shape.derivative, lower, upper)
    tangent = shape.derivative(at)
    return (tangent, shape.value(at) - tangent * at), (slope, above(shape.value, slope, lower, upper))


def sigmoid(shape: Shape, inverse: Callable, lower: Any, upper: Any) -> tuple[Line, Line]:
    """The lines below and above an increasing function that is convex left of 0, concave right of it and symmetric
    about (0, value(0)); `inverse` of a slope is the x > 0 that has it."""
    slope, bias = _sigmoid_above(shape.value, shape.derivative, inverse, lower, upper)
    # Not value(x) - 2 value(0), which is the same but rounds relative to 2 value(0), not to values in the tails.
    mirrored = lambda x: -shape.value(-x)
    below, offset = _sigmoid_above(mirrored, shape.derivative, inverse, -upper, -lower)
    return (below, -offset), (slope, bias)


def _sigmoid_above(value: Callable, derivative: Callable, inverse: Callable, lower: Any, upper: Any) -> Line:
    steepest = derivative(jnp.zeros((), wide()))
    # Steeper than any tangent is no slope to look for; flatter than this, the function is constant to rounding.
    flattest = steepest * eps(wide()) ** 0.6
    point = lambda slope: jax.lax.stop_gradient(inverse(jnp.clip(slope, flattest, steepest)))
    straddles = (lower < 0) & (upper > 0)
    left = jnp.where(straddles, lower, -1)
    at_left = value(left)
    # The line from the left end that touches the right branch is the steepest of its chords, so that each of these
    # steps from a chord to the point of its slope doubles the digits. Any point right of 0 is good enough for a bound.
    touch = 0.5 * jnp.abs(left)
    for _ in range(2):
        touch = point((value(touch) - at_left) / (touch - left))
    middle = 0.5 * lower + 0.5 * upper
    at = jnp.where(straddles & (touch > middle), jnp.minimum(touch, upper), middle)
    # The chord where it passes above the right branch, which it does where that is steeper than it at its end; else a tangent
    # of that branch, which is above all of it, and above the left one if it is at the left end.
    straight = chord(value, derivative, lower, upper)
    whole = (upper <= 0) | (straddles & (derivative(upper) >= straight))
    slope = jnp.where(whole, straight, derivative(at))
    slope = jnp.where(slope < flattest, 0, slope)
    return slope, above(value, slope, lower, upper, at)


def sigmoid_band(shape: Shape, inverse: Callable, lower: Any, upper: Any) -> tuple[Any, Any, Any]:
    """(slope, lower intercept, upper intercept) of lines parallel to the chord of the function that `sigmoid` is about."""
    steepest = shape.derivative(jnp.zeros((), wide()))
    flattest = steepest * eps(wide()) ** 0.6
    slope = chord(shape.value, shape.derivative, lower, upper)
    slope = jnp.where(slope < flattest, 0, slope)
    point = jax.lax.stop_gradient(inverse(jnp.clip(slope, flattest, steepest)))
    ends = [shape.value(v) - slope * v for v in (lower, upper)]
    high = jnp.maximum(*ends)
    low = jnp.minimum(*ends)
    for at in (jnp.clip(point, lower, upper), jnp.clip(-point, lower, upper)):
        rest = shape.value(at) - slope * at
        low, high = jnp.minimum(low, rest), jnp.maximum(high, rest)
    return slope, low, high


def monotone(
    name: str,
    shape: Shape,
    lines: Callable[[Any, Any], tuple[Line, Line]],
    falling: bool = False,
    parallel: Callable[[Any, Any], tuple[Any, Any, Any]] | None = None,
    slack: Callable[..., Any] | None = None,
) -> Rule:
    """The rule of a monotone function, with its lines and, where these are not good for it, its parallel lines."""

    def span(node: Node, x: Interval) -> Interval:
        first, last = (x.upper, x.lower) if falling else (x.lower, x.upper)
        out = Interval(shape.value(first), shape.value(last))
        # Outside of the domain there is no number, which is anything; so is what falls from infinity at 0, which may be -0.
        undefined = is_anything(x) | (x.lower <= shape.domain if falling else x.lower < shape.domain)
        return Interval(jnp.where(undefined, -jnp.inf, out.lower), jnp.where(undefined, jnp.inf, out.upper))

    def inside(out: Interval, x: Interval) -> tuple[Any, Any, Any]:
        lower, upper, finite = ends(x)
        # A place inside of the domain for what has no lines.
        finite = finite & (lower >= shape.domain) & jnp.isfinite(out.lower) & jnp.isfinite(out.upper)
        safe = shape.domain + 1 if math.isfinite(shape.domain) else 0.0
        return jnp.where(finite, lower, safe), jnp.where(finite, upper, safe), finite

    def relax(node: Node, out: Interval, x: Interval) -> Relaxation:
        lower, upper, finite = inside(out, x)
        return planes(out, x, finite, *lines(lower, upper), ulps=shape.ulps)

    def band(node: Node, out: Interval, x: Interval) -> Band:
        assert parallel is not None
        lower, upper, finite = inside(out, x)
        slope, low, high = parallel(lower, upper)
        found = planes(out, x, finite, (slope, low), (slope, high), ulps=shape.ulps)
        return between(found.upper.transposes, found.lower.bias, found.upper.bias, found.rounding)

    return Rule(
        name, span, slack or ulps_slack(shape.ulps), relax, band=band if parallel else None, again=once, image=True
    )


def planes(out: Interval, x: Interval, good: Any, below: Line, above: Line, *, ulps: int = 8) -> Relaxation:
    """Lines as planes, the range where they are no good or not finite."""
    for value in (*below, *above):
        good = good & jnp.isfinite(value)
    low, high = (jnp.where(good, line[0], 0) for line in (below, above))
    bias_low = jnp.where(good, below[1], out.lower)
    bias_high = jnp.where(good, above[1], out.upper)
    found = elementwise([x], [low], bias_low, [high], bias_high)
    # The intercepts are differences of numbers of this size.
    size = jnp.where(good, magnitude(out) + jnp.maximum(jnp.abs(low), jnp.abs(high)) * magnitude(x), 0)
    # A slope so small that it is flushed to zero is off by as much.
    flushed = 4 * tiny(wide()) * jnp.where(good, magnitude(x), 0)
    return found._replace(rounding=found.rounding + (ulps + 8) * eps(wide()) * jnp.where(good, size, 0) + flushed)


def ulps_slack(count: int, least: float = 0.0) -> Callable[..., Any]:
    def slack(node: Node, out: Interval, *ranges: Interval) -> Any:
        return roundoff(node, count, jnp.maximum(finite_magnitude(out), least))

    return slack


def midpoint(lower: Any, upper: Any) -> Any:
    return 0.5 * lower + 0.5 * upper


def bent(shape: Shape, sign: int = 1, at: Callable = midpoint) -> Callable[[Any, Any], tuple[Line, Line]]:
    """The lines of a convex function (`sign` 1) or a concave one (-1)."""
    if sign > 0:
        return lambda lower, upper: convex(shape, lower, upper, at(lower, upper))
    turned = Shape(lambda x: -shape.value(x), lambda x: -shape.derivative(x), shape.ulps)

    def lines(lower: Any, upper: Any) -> tuple[Line, Line]:
        below, over = convex(turned, lower, upper, at(lower, upper))
        return (-over[0], -over[1]), (-below[0], -below[1])

    return lines


def by_curvature(
    value: Callable, derivative: Callable, lower: Any, upper: Any, least: Any, most: Any
) -> tuple[Line, Line]:
    """Lines of any function whose second derivative lies between `least` and `most`: it is that close to its chord."""
    slope = chord(value, derivative, lower, upper)
    first, last = value(lower) - slope * lower, value(upper) - slope * upper
    square = (upper - lower) ** 2 / 8
    low = jnp.minimum(first, last) - jnp.maximum(most, 0) * square
    high = jnp.maximum(first, last) + jnp.maximum(-least, 0) * square
    return (slope, low), (slope, high)
