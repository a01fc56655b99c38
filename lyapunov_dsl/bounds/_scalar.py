"""Functions of one number: ranges and lines above and below them.

A line may have any slope; what makes it sound is its intercept, which is the largest (smallest) difference from the function,
taken at the ends and, where the function bends toward the line, at the point of equal slope.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ._interval import Interval, eps, finite_magnitude, is_anything, magnitude, tiny, wide
from ._rule import Band, Node, Relaxation, Rule, between, elementwise, exactly, once, roundoff, steep


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
    center = 2 * shape.value(jnp.zeros((), wide()))
    slope, bias = _sigmoid_above(shape.value, shape.derivative, inverse, lower, upper)
    mirrored = lambda x: shape.value(x) - center
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
        safe = 1.0 if shape.domain == 0 else 0.0
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

    return Rule(name, span, slack or _ulps(shape.ulps), relax, band=band if parallel else None, again=once)


def planes(out: Interval, x: Interval, good: Any, below: Line, above: Line, *, ulps: int = 8) -> Relaxation:
    """Lines as planes, the range where they are no good."""
    low, high = (jnp.where(good, line[0], 0) for line in (below, above))
    bias_low = jnp.where(good, below[1], out.lower)
    bias_high = jnp.where(good, above[1], out.upper)
    found = elementwise([x], [low], bias_low, [high], bias_high)
    # The intercepts are differences of numbers of this size.
    size = jnp.where(good, magnitude(out) + jnp.maximum(jnp.abs(low), jnp.abs(high)) * magnitude(x), 0)
    # A slope so small that it is flushed to zero is off by as much.
    flushed = 4 * tiny(wide()) * jnp.where(good, magnitude(x), 0)
    return found._replace(rounding=found.rounding + (ulps + 8) * eps(wide()) * jnp.where(good, size, 0) + flushed)


def _ulps(count: int, least: float = 0.0) -> Callable[..., Any]:
    def slack(node: Node, out: Interval, *ranges: Interval) -> Any:
        return roundoff(node, count, jnp.maximum(finite_magnitude(out), least))

    return slack


def _exp_slack(node: Node, out: Interval, x: Interval) -> Any:
    """XLA makes one exponential of a product or quotient of two, whose argument is rounded: as relative errors of the result,
    half an ulp of each argument."""
    return roundoff(node, _exp.ulps + finite_magnitude(x), finite_magnitude(out))


def _middle(lower: Any, upper: Any) -> Any:
    return 0.5 * lower + 0.5 * upper


def bent(shape: Shape, sign: int = 1, at: Callable = _middle) -> Callable[[Any, Any], tuple[Line, Line]]:
    """The lines of a convex function (`sign` 1) or a concave one (-1)."""
    if sign > 0:
        return lambda lower, upper: convex(shape, lower, upper, at(lower, upper))
    turned = Shape(lambda x: -shape.value(x), lambda x: -shape.derivative(x), shape.ulps)

    def lines(lower: Any, upper: Any) -> tuple[Line, Line]:
        below, over = convex(turned, lower, upper, at(lower, upper))
        return (-over[0], -over[1]), (-below[0], -below[1])

    return lines


def _by_curvature(
    value: Callable, derivative: Callable, lower: Any, upper: Any, least: Any, most: Any
) -> tuple[Line, Line]:
    """Lines of any function whose second derivative lies between `least` and `most`: it is that close to its chord."""
    slope = chord(value, derivative, lower, upper)
    first, last = value(lower) - slope * lower, value(upper) - slope * upper
    square = (upper - lower) ** 2 / 8
    low = jnp.minimum(first, last) - jnp.maximum(most, 0) * square
    high = jnp.maximum(first, last) + jnp.maximum(-least, 0) * square
    return (slope, low), (slope, high)


_SQRT_PI = math.sqrt(math.pi)
_exp = Shape(jnp.exp, jnp.exp, 16)
_exp2 = Shape(jnp.exp2, lambda x: math.log(2) * jnp.exp2(x), 16)
_expm1 = Shape(jnp.expm1, jnp.exp, 256)
_log = Shape(jnp.log, lambda x: 1 / x, 16, 0.0)
_log1p = Shape(jnp.log1p, lambda x: 1 / (1 + x), 512, -1.0)
_sqrt = Shape(jnp.sqrt, lambda x: 0.5 / jnp.sqrt(x), 4, 0.0)
_rsqrt = Shape(lambda x: 1 / jnp.sqrt(x), lambda x: -0.5 / (x * jnp.sqrt(x)), 8, 0.0)
_tanh = Shape(jnp.tanh, lambda x: 1 / jnp.cosh(jnp.clip(x, -300, 300)) ** 2, 32)
_logistic = Shape(jax.nn.sigmoid, lambda x: jax.nn.sigmoid(x) * jax.nn.sigmoid(-x), 32)
_erf = Shape(jax.lax.erf, lambda x: 2 / _SQRT_PI * jnp.exp(-x * x), 64)
_atan = Shape(jnp.arctan, lambda x: 1 / (1 + x * x), 32)


def _exp_at(lower: Any, upper: Any) -> Any:
    # Further right the tangent would be far below 0 at the left end.
    return jnp.minimum(_middle(lower, upper), lower + 1)


def _inside(lower: Any, upper: Any) -> Any:
    # The chord's own slope: between the ends also where the derivative at one of them is infinite.
    return jnp.maximum(_middle(lower, upper), tiny(wide()))


def _tanh_point(slope: Any) -> Any:
    # arctanh of √(1 - slope), with one logarithm.
    return jnp.log((1 + jnp.sqrt(1 - slope)) / jnp.sqrt(slope))


def _logistic_point(slope: Any) -> Any:
    return 2 * _tanh_point(4 * slope)


def _erf_point(slope: Any) -> Any:
    return jnp.sqrt(jnp.maximum(-jnp.log(slope * (_SQRT_PI / 2)), 0))


def _atan_point(slope: Any) -> Any:
    return jnp.sqrt(1 / slope - 1)


def _sigmoid(name: str, shape: Shape, inverse: Callable) -> Rule:
    return monotone(
        name,
        shape,
        lambda lower, upper: sigmoid(shape, inverse, lower, upper),
        parallel=lambda lower, upper: sigmoid_band(shape, inverse, lower, upper),
    )


def _decreasing_root(lower: Any, upper: Any) -> Any:
    # The middle in the mean of the ends' magnitudes; any point inside will do.
    return jnp.sqrt(lower) * jnp.sqrt(upper)


RULES: dict[str, Rule] = {
    "exp": monotone("exp", _exp, bent(_exp, at=_exp_at), slack=_exp_slack),
    "exp2": monotone("exp2", _exp2, bent(_exp2, at=_exp_at), slack=_exp_slack),
    "expm1": monotone("expm1", _expm1, bent(_expm1, at=_exp_at)),
    "log": monotone("log", _log, bent(_log, -1, _inside)),
    "log1p": monotone("log1p", _log1p, bent(_log1p, -1)),
    "sqrt": monotone("sqrt", _sqrt, bent(_sqrt, -1, _inside)),
    "rsqrt": monotone("rsqrt", _rsqrt, bent(_rsqrt, 1, _decreasing_root), falling=True),
    "tanh": _sigmoid("tanh", _tanh, _tanh_point),
    "logistic": _sigmoid("logistic", _logistic, _logistic_point),
    "erf": _sigmoid("erf", _erf, _erf_point),
    "atan": _sigmoid("atan", _atan, _atan_point),
}


def _stairs(name: str, function: Callable) -> None:
    range_ = lambda node, x: _steps(function, x)
    RULES[name] = Rule(name, range_, exactly)


_stairs("floor", jnp.floor)
_stairs("ceil", jnp.ceil)
_stairs("sign", jnp.sign)
_stairs("round", jnp.round)
_stairs("round away from zero", lambda x: jax.lax.round(x, jax.lax.RoundingMethod.AWAY_FROM_ZERO))


def _steps(function: Callable, x: Interval) -> Interval:
    unknown = is_anything(x)
    return Interval(jnp.where(unknown, -jnp.inf, function(x.lower)), jnp.where(unknown, jnp.inf, function(x.upper)))


def _wave(peak: float) -> Rule:
    """Range and lines of the cosine of x - peak, whose values at the ends are given."""

    def reaches(x: Interval, at: float) -> Array:
        """Whether at + 2 π k lies in the range for some k, or hardly beside it."""
        slack = 16 * eps(wide()) * (1 + magnitude(x))
        turn = 2 * math.pi
        return jnp.ceil((x.lower - slack - at) / turn) <= jnp.floor((x.upper + slack - at) / turn)

    value = jnp.cos if peak == 0 else jnp.sin

    def span(node: Node, x: Interval) -> Interval:
        lower, upper, finite = ends(x)
        one, other = value(lower), value(upper)
        low = jnp.where(reaches(Interval(lower, upper), peak + math.pi), -1, jnp.minimum(one, other))
        high = jnp.where(reaches(Interval(lower, upper), peak), 1, jnp.maximum(one, other))
        return Interval(jnp.where(finite, low, -jnp.inf), jnp.where(finite, high, jnp.inf))

    derivative = (lambda x: -jnp.sin(x)) if peak == 0 else jnp.cos

    def relax(node: Node, out: Interval, x: Interval) -> Relaxation:
        lower, upper, finite = ends(x)
        # The second derivative is minus the function.
        below, above = _by_curvature(value, derivative, lower, upper, -out.upper, -out.lower)
        wide_range = (jnp.abs(out.upper) + jnp.abs(out.lower)) * (upper - lower) ** 2 / 8 > out.upper - out.lower
        return planes(out, x, finite & ~wide_range, below, above, ulps=64)

    # An absolute error: near its zeros, an argument rounded by half an ulp is far off relatively.
    return Rule("cos" if peak == 0 else "sin", span, _ulps(32, 1.0), relax, again=once)


RULES["cos"], RULES["sin"] = _wave(0.0), _wave(math.pi / 2)


def _abs_range(node: Node, x: Interval) -> Interval:
    straddles = (x.lower < 0) & (x.upper > 0)
    low = jnp.where(straddles, 0, jnp.minimum(jnp.abs(x.lower), jnp.abs(x.upper)))
    return Interval(jnp.where(is_anything(x), -jnp.inf, low), magnitude(x))


def _abs_relax(node: Node, out: Interval, x: Interval) -> Relaxation:
    lower, upper, finite = ends(x)
    shape = Shape(jnp.abs, jnp.sign, 1)
    slope = chord(jnp.abs, jnp.sign, lower, upper)
    side = jnp.where(lower + upper >= 0, 1.0, -1.0)
    return planes(out, x, finite, (side, jnp.zeros_like(side)), (slope, above(shape.value, slope, lower, upper)))


RULES["abs"] = Rule("abs", _abs_range, exactly, _abs_relax, again=steep(lambda node, x: [jnp.ones(node.shape, wide())]))


def _power(value: Any, exponent: int) -> Any:
    """x to a positive integer, without the rounding of logarithms."""
    out = value
    for _ in range(exponent - 1):
        out = out * value
    return out


def _power_range(node: Node, x: Interval) -> Interval:
    one, other = _power(x.lower, node.data), _power(x.upper, node.data)
    if node.data % 2:
        out = Interval(one, other)
    else:
        straddles = (x.lower < 0) & (x.upper > 0)
        out = Interval(jnp.where(straddles, 0, jnp.minimum(one, other)), jnp.maximum(one, other))
    unknown = is_anything(x)
    return Interval(jnp.where(unknown, -jnp.inf, out.lower), jnp.where(unknown, jnp.inf, out.upper))


def _power_relax(node: Node, out: Interval, x: Interval) -> Relaxation:
    n = node.data
    lower, upper, finite = ends(x)
    finite = finite & jnp.isfinite(out.lower) & jnp.isfinite(out.upper)
    shape = Shape(lambda v: _power(v, n), lambda v: n * (_power(v, n - 1) if n > 1 else jnp.ones_like(v)), 2 * n)
    below, above_ = convex(shape, lower, upper, _middle(lower, upper))
    if n % 2:
        # Convex right of 0, concave left of it, and in between as close to its chord as the curvature says.
        other = bent(shape, -1)(lower, upper)
        bend = n * (n - 1) * (lambda v: _power(v, n - 2) if n > 2 else jnp.ones_like(v))(jnp.stack([lower, upper]))
        mixed = _by_curvature(shape.value, shape.derivative, lower, upper, bend[0], bend[1])
        pick = lambda right, left, both: jnp.where(lower >= 0, right, jnp.where(upper <= 0, left, both))
        below, above_ = jax.tree.map(pick, (below, above_), tuple(other), tuple(mixed))
    return planes(out, x, finite, below, above_, ulps=4 * n)


def power(exponent: int) -> Rule:
    """x to an integer of at least 2."""
    slope = lambda node, x: [exponent * _power(magnitude(x), exponent - 1)]
    again = steep(slope, product=True)
    return Rule(f"integer_pow {exponent}", _power_range, _ulps(2 * exponent + 2), _power_relax, again=again)


def _reciprocal_range(node: Node, x: Interval) -> Interval:
    # Zero itself is divided by at either end.
    crosses = (x.lower <= 0) & (x.upper >= 0)
    one, other = 1 / jnp.where(crosses, 1, x.upper), 1 / jnp.where(crosses, 1, x.lower)
    return Interval(jnp.where(crosses, -jnp.inf, one), jnp.where(crosses, jnp.inf, other))


def _reciprocal_relax(node: Node, out: Interval, x: Interval) -> Relaxation:
    lower, upper, finite = ends(x)
    good = finite & ((lower > 0) | (upper < 0)) & jnp.isfinite(out.lower) & jnp.isfinite(out.upper)
    negative = upper < 0
    small = jnp.where(good, jnp.where(negative, -upper, lower), 1)
    large = jnp.where(good, jnp.where(negative, -lower, upper), 1)
    shape = Shape(lambda v: 1 / v, lambda v: -1 / (v * v), 2)
    below, over = convex(shape, small, large, jnp.sqrt(small) * jnp.sqrt(large))
    low = tuple(jnp.where(negative, o, b) for b, o in ((below[0], over[0]), (below[1], -over[1])))
    high = tuple(jnp.where(negative, b, o) for b, o in ((below[0], over[0]), (-below[1], over[1])))
    return planes(out, x, good, (low[0], low[1]), (high[0], high[1]))


reciprocal = Rule("reciprocal", _reciprocal_range, _ulps(2), _reciprocal_relax, again=once)


def fractional(exponent: float) -> Rule:
    """x >= 0 to a power that is no integer."""
    y = exponent
    value = lambda x: jnp.power(jnp.maximum(x, 0), y)
    shape = Shape(value, lambda x: y * jnp.power(jnp.maximum(x, tiny(wide())), y - 1), 64, 0.0)
    # Its own ulps grow with the logarithm of the result, as in exp(y log x).
    sign = 1 if y < 0 or y > 1 else -1
    at = _decreasing_root if y < 0 else _inside
    return monotone(f"pow {exponent}", shape, bent(shape, sign, at), falling=y < 0)
