"""Trigonometric and hyperbolic functions and their inverses: ranges up to their poles and domains, lines, and rounding."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax.scipy.special import erf, erfinv

from ._graph import TRANSLATIONS, Graph, Value
from ._interval import Interval, eps, finite_magnitude, is_anything, magnitude, tiny, wide
from ._lines import Line, Shape, bent, chord, ends, monotone, planes, sigmoid, sigmoid_band, ulps_slack
from ._move import fit, nodes_of
from ._rule import Node, Relaxation, Rule, elementwise, once, roundoff
from ._scalar import RULES


def _anything_where(bad: Any, low: Any, high: Any) -> Interval:
    bad = bad | jnp.isnan(low) | jnp.isnan(high)
    return Interval(jnp.where(bad, -jnp.inf, low), jnp.where(bad, jnp.inf, high))


def _steepening(shape: Shape, inverse: Callable, lower: Any, upper: Any) -> tuple[Line, Line]:
    """Lines of an odd increasing function that is concave left of 0 and convex right of it, of slopes from that at 0 on;
    `inverse` of a slope is the x >= 0 that has it."""
    below, above = bent(shape)(lower, upper)
    other_below, other_above = bent(shape, -1)(lower, upper)
    slope = chord(shape.value, shape.derivative, lower, upper)
    rest = lambda x: shape.value(x) - slope * x
    at = inverse(jnp.maximum(slope, shape.derivative(jnp.zeros((), wide()))))
    # The difference from a line of that slope is largest and smallest at the ends or where the slopes are equal.
    low, high = jnp.minimum(rest(lower), rest(upper)), jnp.maximum(rest(lower), rest(upper))
    for point in (jnp.clip(at, lower, upper), jnp.clip(-at, lower, upper)):
        low, high = jnp.minimum(low, rest(point)), jnp.maximum(high, rest(point))
    pick = lambda right, left, both: jnp.where(lower >= 0, right, jnp.where(upper <= 0, left, both))
    return (
        (pick(below[0], other_below[0], slope), pick(below[1], other_below[1], low)),
        (pick(above[0], other_above[0], slope), pick(above[1], other_above[1], high)),
    )


def _growing(count: int) -> Callable[..., Any]:
    """The slack of functions made of exponentials, which round their arguments."""

    def slack(node: Node, out: Interval, x: Interval) -> Any:
        return roundoff(node, count + 2 * finite_magnitude(x), jnp.maximum(finite_magnitude(out), tiny(wide())))

    return slack


def _odd(name: str, shape: Shape, inverse: Callable, edge: float = math.inf, slack: Callable | None = None) -> Rule:
    """The rule of a function as `_steepening` takes it, which is NaN beyond an edge."""

    def span(node: Node, x: Interval) -> Interval:
        return _anything_where(
            is_anything(x) | (x.lower < -edge) | (x.upper > edge), shape.value(x.lower), shape.value(x.upper)
        )

    def relax(node: Node, out: Interval, x: Interval) -> Relaxation:
        good, lower, upper = _within(out, x)
        return planes(out, x, good, *_steepening(shape, inverse, lower, upper), ulps=shape.ulps)

    return Rule(name, span, slack or ulps_slack(shape.ulps), relax, again=once)


def _within(out: Interval, x: Interval) -> tuple[Any, Any, Any]:
    """Where both ends have finite values, and the ends there, 0 elsewhere."""
    lower, upper, finite = ends(x)
    good = finite & jnp.isfinite(out.lower) & jnp.isfinite(out.upper)
    return good, jnp.where(good, lower, 0), jnp.where(good, upper, 0)


_sinh = Shape(jnp.sinh, jnp.cosh, 32)
_cosh = Shape(jnp.cosh, jnp.sinh, 32)
_asinh = Shape(jnp.arcsinh, lambda x: 1 / jnp.hypot(1.0, x), 32)
_acosh = Shape(jnp.arccosh, lambda x: 1 / (jnp.sqrt(x - 1) * jnp.sqrt(x + 1)), 32, 1.0)
_atanh = Shape(jnp.arctanh, lambda x: 1 / ((1 - x) * (1 + x)), 256)
_asin = Shape(jnp.arcsin, lambda x: 1 / (jnp.sqrt(1 - x) * jnp.sqrt(1 + x)), 32)
_erf_inv = Shape(erfinv, lambda x: 0.5 * math.sqrt(math.pi) * jnp.exp(erfinv(x) ** 2), 256)
_root = lambda x: jnp.sqrt(jnp.maximum(x, 0))


def _asinh_point(slope: Any) -> Any:
    return _root(1 / slope**2 - 1)


RULES["sinh"] = _odd("sinh", _sinh, lambda s: jnp.arccosh(s), slack=_growing(32))
RULES["atanh"] = _odd("atanh", _atanh, lambda s: _root(1 - 1 / s), 1.0)
RULES["asin"] = _odd("asin", _asin, lambda s: _root(1 - 1 / s**2), 1.0)
RULES["erf_inv"] = _odd("erf_inv", _erf_inv, lambda s: erf(_root(jnp.log(s * (2 / math.sqrt(math.pi))))), 1.0)
RULES["asinh"] = monotone(
    "asinh",
    _asinh,
    lambda lower, upper: sigmoid(_asinh, _asinh_point, lower, upper),
    parallel=lambda lower, upper: sigmoid_band(_asinh, _asinh_point, lower, upper),
)
RULES["acosh"] = monotone("acosh", _acosh, bent(_acosh, -1))


def _cosh_range(node: Node, x: Interval) -> Interval:
    one, other = jnp.cosh(x.lower), jnp.cosh(x.upper)
    inside = (x.lower <= 0) & (x.upper >= 0)
    return _anything_where(is_anything(x), jnp.where(inside, 1, jnp.minimum(one, other)), jnp.maximum(one, other))


def _cosh_relax(node: Node, out: Interval, x: Interval) -> Relaxation:
    good, lower, upper = _within(out, x)
    return planes(out, x, good, *bent(_cosh)(lower, upper), ulps=_cosh.ulps)


RULES["cosh"] = Rule("cosh", _cosh_range, _growing(32), _cosh_relax, again=once)


def _acos_range(node: Node, x: Interval) -> Interval:
    bad = is_anything(x) | (x.lower < -1) | (x.upper > 1)
    return _anything_where(bad, jnp.arccos(x.upper), jnp.arccos(x.lower))


def _acos_relax(node: Node, out: Interval, x: Interval) -> Relaxation:
    """By those of π/2 - asin x."""
    good, lower, upper = _within(out, x)
    below, above = _steepening(_asin, lambda s: _root(1 - 1 / s**2), lower, upper)
    turned = lambda line: (-line[0], math.pi / 2 - line[1])
    return planes(out, x, good, turned(above), turned(below), ulps=64)


# Relative to the result near 0 as well, where it is that of 1 - x, which is exact; an angle up to π elsewhere.
RULES["acos"] = Rule("acos", _acos_range, ulps_slack(64), _acos_relax, again=once)


def _tan_range(node: Node, x: Interval) -> Interval:
    lower, upper, finite = ends(x)
    # Poles are at π/2 + k π; one that is hardly beside the range counts.
    slack = 16 * eps(wide()) * (1 + magnitude(Interval(lower, upper)))
    first = jnp.ceil((lower - slack - math.pi / 2) / math.pi)
    pole = (first <= jnp.floor((upper + slack - math.pi / 2) / math.pi)) | (upper - lower > 3)
    # The values at the ends tell too: the tangent rises between poles.
    low, high = jnp.tan(lower), jnp.tan(upper)
    return _anything_where(~finite | pole | (low > high), low, high)


def _tan_relax(node: Node, out: Interval, x: Interval) -> Relaxation:
    good, lower, upper = _within(out, x)
    # Where the points of equal slopes, which lie at a distance from multiples of π, are known well enough.
    size = (1 + jnp.maximum(jnp.abs(lower), jnp.abs(upper))) * (1 + magnitude(out))
    good = good & (size < eps(wide()) ** -0.25)
    turn = math.pi * jnp.round(0.5 * (lower + upper) / math.pi)
    derivative = lambda v: 1 + jnp.tan(v) ** 2
    slope = chord(jnp.tan, derivative, lower, upper)
    rest = lambda v: jnp.tan(v) - slope * v
    at = jnp.arctan(_root(slope - 1))
    points = [jnp.clip(v, lower, upper) for v in (turn + at, turn - at)]
    values = [rest(v) for v in (lower, upper, *points)]
    low, high = functools.reduce(jnp.minimum, values), functools.reduce(jnp.maximum, values)
    return planes(out, x, good, (slope, low), (slope, high), ulps=256)


RULES["tan"] = Rule("tan", _tan_range, ulps_slack(64), _tan_relax, again=once)


def _atan2_range(node: Node, y: Interval, x: Interval) -> Interval:
    """Angles of a rectangle without the origin are between those of its corners. Where it meets the negative axis, on which
    the angle jumps, they are all from -π to π."""
    corners = jnp.stack([jnp.arctan2(v, w) for v in y for w in x])
    # What is subnormal may be taken for a zero, of either sign.
    least = 4 * tiny(node.dtype)
    cut = (y.lower <= least) & (y.upper >= -least) & (x.lower <= least)
    low = jnp.where(cut, -math.pi, jnp.min(corners, axis=0))
    high = jnp.where(cut, math.pi, jnp.max(corners, axis=0))
    # Two subnormal numbers make 0 / 0 of what XLA evaluates; in real numbers the angle of the origin is 0.
    origin = cut & (x.upper >= -least) & (not node.virtual)
    return _anything_where(is_anything(y) | is_anything(x) | origin, low, high)


def _atan2_relax(node: Node, out: Interval, y: Interval, x: Interval) -> Relaxation:
    """The tangent plane at the center. The second derivative of the angle along any unit vector is at most 1/r²."""
    (yl, yu, fine), (xl, xu, good) = ends(y), ends(x)
    good = good & fine & (out.upper - out.lower < 3)
    away = lambda low, high: jnp.maximum(jnp.maximum(low, -high), 0)
    # Relative to the largest of the numbers, so that no square over- or underflows.
    size = jnp.maximum(jnp.maximum(jnp.abs(yl), jnp.abs(yu)), jnp.maximum(jnp.abs(xl), jnp.abs(xu)))
    good = good & (size > 1e-30) & (size < 1e30)
    size = jnp.where(good, size, 1)
    nearest = (away(yl, yu) / size) ** 2 + (away(xl, xu) / size) ** 2
    good = good & (nearest > 1e-6)
    yc, xc = 0.5 * (yl + yu), 0.5 * (xl + xu)
    square = (((yu - yl) / size) ** 2 + ((xu - xl) / size) ** 2) / 4
    rest = square / (2 * jnp.where(good, nearest, 1)) * (1 + 1e-5)
    length = jnp.where(good, (yc / size) ** 2 + (xc / size) ** 2, 1)
    dy, dx = xc / size / length / size, -(yc / size) / length / size
    # The plane goes through 0 at the origin, where the two terms cancel.
    angle = jnp.arctan2(yc, xc) - dy * yc - dx * xc
    rest = rest + 256 * eps(wide()) * (4 + jnp.abs(dy) * size + jnp.abs(dx) * size)
    good = good & (2 * rest < out.upper - out.lower + 1e-3)
    pick = lambda v: jnp.where(good, v, 0)
    low, high = jnp.where(good, angle - rest, out.lower), jnp.where(good, angle + rest, out.upper)
    return elementwise([y, x], [pick(dy), pick(dx)], low, [pick(dy), pick(dx)], high)


_angle = Rule("atan2", _atan2_range, ulps_slack(64), _atan2_relax, again=once)


def _apply(rule: Rule) -> Callable[..., Value]:
    def translate(graph: Graph, equation: Any, *operands: Value) -> Value:
        out = equation.outvars[0].aval
        return graph.add(rule, nodes_of(graph, fit(graph, equation, *operands)), out.shape, out.dtype)

    return translate


NAMES = ("tan", "sinh", "cosh", "asinh", "acosh", "atanh", "asin", "acos", "erf_inv")
TRANSLATIONS |= {name: _apply(RULES[name]) for name in NAMES} | {"atan2": _apply(_angle)}
