"""Functions of two numbers, comparisons, and choices between values."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ._interval import Interval, eps, finite_magnitude, is_anything, magnitude, wide
from ._rule import NONE, Node, Relaxation, Rule, added, elementwise, exactly, once, roundoff, steep


def _unknown(out: Interval, *x: Interval) -> Interval:
    """Anything where an operand is anything: it may be NaN."""
    bad = is_anything(x[0])
    for more in x[1:]:
        bad = bad | is_anything(more)
    return Interval(jnp.where(bad, -jnp.inf, out.lower), jnp.where(bad, jnp.inf, out.upper))


@jax.jit
def products(x: Interval, y: Interval) -> Interval:
    """The range of a product; zero times infinity is NaN, which is anything."""
    corners = jnp.stack([x.lower * y.lower, x.lower * y.upper, x.upper * y.lower, x.upper * y.upper])
    # An infinite end and a zero inside of the other range: 0 · inf, though no corner has it.
    zero = lambda v: (v.lower <= 0) & (v.upper >= 0)
    infinite = lambda v: jnp.isinf(v.lower) | jnp.isinf(v.upper)
    bad = jnp.isnan(corners).any(axis=0) | (zero(x) & infinite(y)) | (zero(y) & infinite(x))
    low, high = jnp.min(corners, axis=0), jnp.max(corners, axis=0)
    return Interval(jnp.where(bad, -jnp.inf, low), jnp.where(bad, jnp.inf, high))


def _mul_range(node: Node, x: Interval, y: Interval) -> Interval:
    out = products(x, y)
    if node.data is None:
        return out
    # A quotient has a range of its own, which is not wider.
    return node.data(x, y, out)


def _finite(*ranges: Interval) -> Any:
    good = True
    for x in ranges:
        good = good & jnp.isfinite(x.lower) & jnp.isfinite(x.upper)
    return good


def _mul_relax(node: Node, out: Interval, x: Interval, y: Interval) -> Relaxation:
    """McCormick's planes; of the two on each side, the mean, whose error is the same at all corners."""
    good = _finite(x, y)
    xl, xu, yl, yu = (jnp.where(good, v, 0) for v in (*x, *y))
    xc, yc = 0.5 * (xl + xu), 0.5 * (yl + yu)
    low = -0.5 * (xl * yl + xu * yu)
    high = -0.5 * (xl * yu + xu * yl)
    low, high = jnp.where(good, low, out.lower), jnp.where(good, high, out.upper)
    return elementwise([x, y], [yc, xc], low, [yc, xc], high)


def _one(count: int) -> Callable[..., Any]:
    def slack(node: Node, out: Interval, *ranges: Interval) -> Any:
        return roundoff(node, count, finite_magnitude(out))

    return slack


def _mul_again(node: Node, slack: Any, ranges: Sequence[Interval], spreads: Sequence[Any]) -> Any:
    # Quotients are evaluated once.
    return (
        once(node, slack, ranges, spreads)
        if node.tag is not None and node.tag[0] == "div"
        else _factors(node, slack, ranges, spreads)
    )


_factors = steep(lambda node, x, y: (magnitude(y), magnitude(x)), product=True)
multiply = Rule("mul", _mul_range, _one(1), _mul_relax, again=_mul_again)


def _max_range(node: Node, x: Interval, y: Interval) -> Interval:
    return _unknown(Interval(jnp.maximum(x.lower, y.lower), jnp.maximum(x.upper, y.upper)), x, y)


def hull_above(x: Interval, y: Interval) -> tuple[Any, Any, Any]:
    """The plane a x + (1 - a) y + b above the larger of two numbers."""
    least, most = x.lower - y.upper, x.upper - y.lower
    mixed = (least < 0) & (most > 0)
    a = jnp.where(mixed, most / jnp.where(mixed, most - least, 1), jnp.where(most <= 0, 0.0, 1.0))
    # y + max(d, 0) <= y + a d + b at both ends of d = x - y.
    return a, 1 - a, jnp.where(mixed, jnp.maximum((1 - a) * most, -a * least), 0)


def lean_below(x: Interval, y: Interval) -> tuple[Any, Any]:
    """The plane a x + (1 - a) y below the larger of two numbers: the one of them that reaches further."""
    a = jnp.where(x.upper - y.lower >= y.upper - x.lower, 1.0, 0.0)
    return a, 1 - a


def _max_relax(node: Node, out: Interval, x: Interval, y: Interval) -> Relaxation:
    good = _finite(x, y)
    a, b, high = hull_above(x, y)
    c, d = lean_below(x, y)
    zero = lambda v: jnp.where(good, v, 0)
    return elementwise(
        [x, y], [zero(c), zero(d)], jnp.where(good, 0, out.lower), [zero(a), zero(b)], jnp.where(good, high, out.upper)
    )


# Parallel planes about the larger of two numbers are much wider than the planes of `_max_relax`, which lean on one of them.
_each = steep(lambda node, *x: [jnp.ones(node.shape, wide())] * len(x))
maximum = Rule("max", _max_range, exactly, _max_relax, band=lambda *_: None, again=_each)


# Comparisons. Where two ranges touch, both answers are possible, for < as for <=: derivatives of functions with a kink are
# selected by comparisons, and at the kink itself the other side's derivative counts as well (Clarke 1983).


def _compare(name: str, true: Callable, false: Callable) -> Rule:
    def span(node: Node, x: Interval, y: Interval) -> Interval:
        if not node.inputs[0].is_float:
            # Integers have no derivatives, and may be known.
            return Interval(*_EXACTLY[name](x, y))
        unknown = is_anything(x) | is_anything(y)
        return Interval(true(x, y) & ~unknown, ~false(x, y) | unknown)

    return Rule(name, span, exactly)


def _less(x: Interval, y: Interval) -> Any:
    return x.upper < y.lower


def _apart(x: Interval, y: Interval) -> Any:
    return (x.upper < y.lower) | (y.upper < x.lower)


def _known(x: Interval, y: Interval) -> Any:
    return (x.lower == x.upper) & (y.lower == y.upper) & (x.lower == y.lower)


# Of integers and booleans: whether a comparison is true for sure, and whether it may be.
_EXACTLY: dict[str, Callable] = {
    "lt": lambda x, y: (x.upper < y.lower, x.lower < y.upper),
    "le": lambda x, y: (x.upper <= y.lower, x.lower <= y.upper),
    "gt": lambda x, y: (x.lower > y.upper, x.upper > y.lower),
    "ge": lambda x, y: (x.lower >= y.upper, x.upper >= y.lower),
    "eq": lambda x, y: (_known(x, y), ~_apart(x, y)),
    "ne": lambda x, y: (_apart(x, y), ~_known(x, y)),
}


def _never(x: Interval, y: Interval) -> Any:
    return jnp.zeros(jnp.broadcast_shapes(jnp.shape(x.lower), jnp.shape(y.lower)), bool)


COMPARISONS = {
    "lt": _compare("lt", _less, lambda x, y: _less(y, x)),
    "le": _compare("le", _less, lambda x, y: _less(y, x)),
    "gt": _compare("gt", lambda x, y: _less(y, x), _less),
    "ge": _compare("ge", lambda x, y: _less(y, x), _less),
    "eq": _compare("eq", _never, _apart),
    "ne": _compare("ne", _apart, _never),
}

LOGIC = {
    "and": Rule("and", lambda node, x, y: Interval(x.lower & y.lower, x.upper & y.upper), exactly),
    "or": Rule("or", lambda node, x, y: Interval(x.lower | y.lower, x.upper | y.upper), exactly),
    "not": Rule("not", lambda node, x: Interval(~x.upper, ~x.lower), exactly),
    "xor": Rule("xor", lambda node, x, y: _xor(x, y), exactly),
}


def _xor(x: Interval, y: Interval) -> Interval:
    known = (x.lower == x.upper) & (y.lower == y.upper)
    return Interval(known & (x.lower ^ y.lower), ~known | (x.lower ^ y.lower))


def _is_finite_range(node: Node, x: Interval) -> Interval:
    sure = jnp.isfinite(x.lower) & jnp.isfinite(x.upper)
    return Interval(sure, jnp.ones_like(sure))


is_finite = Rule("is_finite", _is_finite_range, exactly)


def _select_range(node: Node, which: Interval, *cases: Interval) -> Interval:
    lower, upper = jnp.full(node.shape, jnp.inf, wide()), jnp.full(node.shape, -jnp.inf, wide())
    if not node.is_float:
        low = jnp.iinfo(node.dtype) if jnp.issubdtype(node.dtype, jnp.integer) else None
        lower = jnp.full(node.shape, True if low is None else low.max, node.dtype)
        upper = jnp.full(node.shape, False if low is None else low.min, node.dtype)
    for index, case in enumerate(cases):
        possible = (which.lower <= index) & (which.upper >= index)
        lower = jnp.where(possible & (case.lower < lower), case.lower, lower)
        upper = jnp.where(possible & (case.upper > upper), case.upper, upper)
    return Interval(lower, upper)


def _select_relax(node: Node, out: Interval, which: Interval, *cases: Interval) -> Relaxation:
    sure = which.lower == which.upper
    good = _finite(*cases)
    bias_low, bias_high = out.lower, out.upper
    coefficients = [jnp.where(sure & (which.lower == index), 1.0, 0.0) for index in range(len(cases))]
    below, above = coefficients, coefficients
    if len(cases) == 2:
        x, y = cases
        a, b, high_bias = hull_above(x, y)
        # The smaller of two is minus the larger of their negatives.
        c, d, low_bias = hull_above(*(Interval(-v.upper, -v.lower) for v in cases))
        mixed = ~sure & good
        above = [jnp.where(mixed, v, w) for v, w in zip((a, b), above, strict=True)]
        below = [jnp.where(mixed, v, w) for v, w in zip((c, d), below, strict=True)]
        bias_high = jnp.where(mixed, high_bias, bias_high)
        bias_low = jnp.where(mixed, -low_bias, bias_low)
    bias_low, bias_high = jnp.where(sure, 0, bias_low), jnp.where(sure, 0, bias_high)
    found = elementwise(cases, below, bias_low, above, bias_high)
    # The condition itself has no coefficients.
    first = lambda plane: plane._replace(transposes=(None, *plane.transposes))
    return Relaxation(first(found.lower), first(found.upper), found.rounding)


def _select_again(node: Node, slack: Any, ranges: Sequence[Interval], spreads: Sequence[Any]) -> Any:
    which, (first, *_) = ranges[0], spreads
    found = _each(node, slack, ranges[1:], spreads[1:])
    # The other evaluation may choose another one.
    return found if first is NONE else added(found, jnp.where(which.lower == which.upper, 0, jnp.inf))


select = Rule("select_n", _select_range, exactly, _select_relax, again=_select_again)


def _convert_range(node: Node, x: Interval) -> Interval:
    """From booleans and integers."""
    if node.is_float:
        return _real(x)
    if node.dtype == bool:
        return Interval((x.lower > 0) | (x.upper < 0), (x.lower != 0) | (x.upper != 0))
    if node.inputs[0].dtype == bool:
        return Interval(x.lower.astype(node.dtype), x.upper.astype(node.dtype))
    return _wrapped(node, x, _real(x), magnitude(_real(x)))


def _wrapped(node: Node, out: Interval, real: Interval, size: Any, terms: int = 2) -> Interval:
    """A range of integers, given also as floating-point numbers: anything where these do not fit, since then it wraps.
    The latter are sums of `terms` numbers whose absolute values sum to `size`."""
    info = jnp.iinfo(node.dtype)
    # What rounding may have hidden; sums of small integers are exact.
    room = jnp.where(size * eps(wide()) < 1, 0, terms * eps(wide()) * size)
    fits = (real.lower >= float(info.min) + room) & (real.upper <= float(info.max) - room)
    least, most = (jnp.asarray(v, node.dtype) for v in (info.min, info.max))
    return Interval(
        jnp.where(fits, out.lower.astype(node.dtype), least), jnp.where(fits, out.upper.astype(node.dtype), most)
    )


def _real(x: Interval) -> Interval:
    return Interval(x.lower.astype(wide()), x.upper.astype(wide()))


def _convert_slack(node: Node, out: Interval, x: Interval) -> Any:
    """Integers of more digits than the type has are rounded."""
    size = magnitude(out)
    return jnp.where(size * eps(node.dtype) < 2, 0, roundoff(node, 1, size))


convert = Rule("convert_element_type", _convert_range, _convert_slack)


def integer(name: str, low: Callable, high: Callable) -> Rule:
    """Arithmetic of integers, which does not round, but wraps."""

    def span(node: Node, *x: Interval) -> Interval:
        real = [_real(v) for v in x]
        size = sum(magnitude(v) for v in real)
        return _wrapped(node, Interval(low(*x), high(*x)), Interval(low(*real), high(*real)), size)

    return Rule(name, span, exactly)


def counted(axes: tuple[int, ...]) -> Rule:
    """Sums of integers: it is the sum as a whole that must not wrap around, since it is taken modulo the type's size."""

    def span(node: Node, x: Interval) -> Interval:
        add = lambda v: jnp.sum(v, axis=axes, dtype=v.dtype)
        count = math.prod(x.lower.shape[a] for a in axes)
        real = _real(x)
        found, exact = (Interval(add(v.lower), add(v.upper)) for v in (x, real))
        return _wrapped(node, found, exact, add(magnitude(real)), count + 2)

    return Rule("reduce_sum", span, exactly)


def ordered(name: str, function: Callable) -> Rule:
    """What neither rounds nor wraps, and increases in every operand."""
    return Rule(
        name, lambda node, *x: Interval(function(*(v.lower for v in x)), function(*(v.upper for v in x))), exactly
    )


INTEGERS = {
    "add": integer("add", lambda x, y: x.lower + y.lower, lambda x, y: x.upper + y.upper),
    "sub": integer("sub", lambda x, y: x.lower - y.upper, lambda x, y: x.upper - y.lower),
    "max": ordered("max", jnp.maximum),
    "min": ordered("min", jnp.minimum),
    "clamp": ordered("clamp", lambda low, x, high: jnp.minimum(jnp.maximum(x, low), high)),
    "sign": ordered("sign", jnp.sign),
    "reduce_max": ordered("reduce_max", lambda x: jnp.max(x, axis=-1)),
    "reduce_min": ordered("reduce_min", lambda x: jnp.min(x, axis=-1)),
}
