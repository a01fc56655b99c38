"""Rules of functions of one number: their ranges, lines and rounding."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ._interval import Interval, eps, finite_magnitude, is_anything, magnitude, tiny, wide
from ._lines import (
    Shape,
    above,
    bent,
    by_curvature,
    chord,
    convex,
    ends,
    midpoint,
    monotone,
    planes,
    sigmoid,
    sigmoid_band,
    ulps_slack,
)
from ._rule import Node, Relaxation, Rule, exactly, once, roundoff, steep


def _exp_slack(node: Node, out: Interval, x: Interval) -> Any:
    """XLA makes one exponential of a product or quotient of two, whose argument is rounded: as relative errors of the result,
    half an ulp of each argument."""
    return roundoff(node, _exp.ulps + finite_magnitude(x), finite_magnitude(out))


_SQRT_PI = math.sqrt(math.pi)
_exp = Shape(jnp.exp, jnp.exp, 16)
_exp2 = Shape(jnp.exp2, lambda x: math.log(2) * jnp.exp2(x), 16)
_expm1 = Shape(jnp.expm1, jnp.exp, 256)
_log = Shape(jnp.log, lambda x: 1 / x, 16, 0.0)
_log1p = Shape(jnp.log1p, lambda x: 1 / (1 + x), 512, -1.0)
_sqrt = Shape(jnp.sqrt, lambda x: 0.5 / jnp.sqrt(x), 4, 0.0)
_rsqrt = Shape(lambda x: 1 / jnp.sqrt(x), lambda x: -0.5 / (x * jnp.sqrt(x)), 8, 0.0)
_tanh = Shape(jnp.tanh, lambda x: 4 * jax.nn.sigmoid(2 * x) * jax.nn.sigmoid(-2 * x), 32)
_logistic = Shape(jax.nn.sigmoid, lambda x: jax.nn.sigmoid(x) * jax.nn.sigmoid(-x), 32)
_erf = Shape(jax.lax.erf, lambda x: 2 / _SQRT_PI * jnp.exp(-x * x), 64)
_atan = Shape(jnp.arctan, lambda x: 1 / (1 + x * x), 32)


def _exp_at(lower: Any, upper: Any) -> Any:
    # Further right the tangent would be far below 0 at the left end.
    return jnp.minimum(midpoint(lower, upper), lower + 1)


def _inside(lower: Any, upper: Any) -> Any:
    # The chord's own slope: between the ends also where the derivative at one of them is infinite.
    return jnp.maximum(midpoint(lower, upper), tiny(wide()))


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
        below, above = by_curvature(value, derivative, lower, upper, -out.upper, -out.lower)
        wide_range = (jnp.abs(out.upper) + jnp.abs(out.lower)) * (upper - lower) ** 2 / 8 > out.upper - out.lower
        return planes(out, x, finite & ~wide_range, below, above, ulps=64)

    # An absolute error: near its zeros, an argument rounded by half an ulp is far off relatively.
    return Rule("cos" if peak == 0 else "sin", span, ulps_slack(32, 1.0), relax, again=once)


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


RULES["abs"] = Rule(
    "abs", _abs_range, exactly, _abs_relax, again=steep(lambda node, x: [jnp.ones(node.shape, wide())]), image=True
)


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
    below, above_ = convex(shape, lower, upper, midpoint(lower, upper))
    if n % 2:
        # Convex right of 0, concave left of it, and in between as close to its chord as the curvature says.
        other = bent(shape, -1)(lower, upper)
        bend = n * (n - 1) * (lambda v: _power(v, n - 2) if n > 2 else jnp.ones_like(v))(jnp.stack([lower, upper]))
        mixed = by_curvature(shape.value, shape.derivative, lower, upper, bend[0], bend[1])
        pick = lambda right, left, both: jnp.where(lower >= 0, right, jnp.where(upper <= 0, left, both))
        below, above_ = jax.tree.map(pick, (below, above_), tuple(other), tuple(mixed))
    return planes(out, x, finite, below, above_, ulps=4 * n)


def power(exponent: int) -> Rule:
    """x to an integer of at least 2."""
    slope = lambda node, x: [exponent * _power(magnitude(x), exponent - 1)]
    again = steep(slope, product=True)
    return Rule(
        f"integer_pow {exponent}", _power_range, ulps_slack(2 * exponent + 2), _power_relax, again=again, image=True
    )


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


reciprocal = Rule("reciprocal", _reciprocal_range, ulps_slack(2), _reciprocal_relax, again=once, image=True)


def fractional(exponent: float) -> Rule:
    """x >= 0 to a power that is no integer."""
    y = exponent
    value = lambda x: jnp.power(jnp.maximum(x, 0), y)
    shape = Shape(value, lambda x: y * jnp.power(jnp.maximum(x, tiny(wide())), y - 1), 64, 0.0)
    # Its own ulps grow with the logarithm of the result, as in exp(y log x).
    sign = 1 if y < 0 or y > 1 else -1
    at = _decreasing_root if y < 0 else _inside
    return monotone(f"pow {exponent}", shape, bent(shape, sign, at), falling=y < 0)
