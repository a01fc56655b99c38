"""Products of several numbers, in any order, and remainders."""

from typing import Any

import jax.numpy as jnp
from jax import lax

from ._graph import TRANSLATIONS, Graph, Value
from ._interval import Interval, eps, finite_magnitude, is_anything, magnitude, tiny, wide
from ._linear import mul
from ._lines import ends, planes
from ._move import fit, linear, nodes_of
from ._rule import NONE, Const, Node, Plane, Relaxation, Rule, once, roundoff


def _product_slack(node: Node, out: Interval, whole: Interval, x: Interval) -> Any:
    """Rounding of products in any order: a part of the factors alone may overflow, or underflow and be lost. `data` is what
    multiplies the factors, and how many they are."""
    times, count = node.data
    grown = times(jnp.maximum(magnitude(x), 1)) * (1 + 2 * count * eps(wide()))
    kind = wide() if node.virtual else node.dtype
    # What is lost counts times the factors that are still to come.
    lost = 2 * count * tiny(kind) * grown
    good = grown < 0.25 * min(float(jnp.finfo(v).max) for v in (kind, wide()))
    return jnp.where(good, roundoff(node, count, finite_magnitude(out)) + lost, jnp.inf)


def _first(node: Node, out: Interval, *inputs: Interval) -> Relaxation:
    plane = Plane((lambda c: c, None), NONE)
    return Relaxation(plane, plane, NONE)


_product = Rule("product", lambda node, whole, x: whole, _product_slack, _first, guides=0, again=once)


def _check(graph: Graph, x: Node) -> None:
    if not x.is_float:
        raise graph.unsupported("a product of integers that vary")


def _reduce_prod(graph: Graph, equation: Any, x: Node) -> Value:
    _check(graph, x)
    axes = tuple(int(a) for a in equation.params["axes"])
    shape = equation.outvars[0].aval.shape
    rows = linear(graph, lambda v: jnp.moveaxis(v, axes, tuple(range(len(axes)))).reshape(-1, *shape), x)
    whole, count = rows, rows.shape[0]
    while whole.shape[0] > 1:
        # Halves times halves; what is left of an odd number stays.
        half = whole.shape[0] // 2
        one = linear(graph, lambda v, half=half: v[:half], whole)
        other = linear(graph, lambda v, half=half: v[half : 2 * half], whole)
        found = mul(graph, one, other, x.dtype, virtual=True)
        if whole.shape[0] % 2:
            found = linear(graph, lambda a, b, half=half: jnp.concatenate([a, b[2 * half :]]), found, whole)
        whole = found
    whole = linear(graph, lambda v: v[0], whole)
    return graph.add(_product, [whole, rows], shape, x.dtype, (lambda v: jnp.prod(v, axis=0), count))


def _cumprod(graph: Graph, equation: Any, x: Node) -> Value:
    _check(graph, x)
    axis, reverse, count = equation.params["axis"], equation.params["reverse"], x.shape[equation.params["axis"]]
    flip = (lambda v: jnp.flip(v, axis)) if reverse else (lambda v: v)
    whole, apart = linear(graph, flip, x), 1
    while apart < count:
        # Each times that so far back, or one.
        ones = Const(jnp.ones([apart if i == axis else n for i, n in enumerate(x.shape)], x.dtype))
        (first,) = nodes_of(graph, [ones])
        back = lambda o, v, apart=apart: jnp.concatenate([o, lax.slice_in_dim(v, 0, count - apart, axis=axis)], axis)
        whole = mul(graph, whole, linear(graph, back, first, whole), x.dtype, virtual=True)
        apart *= 2
    times = lambda v: lax.cumprod(v, axis, reverse)
    return graph.add(_product, [linear(graph, flip, whole), x], x.shape, x.dtype, (times, count))


# x - y trunc(x / y), which has the sign of x and is exact in floating point.


def _whole(x: Interval, y: Interval) -> tuple[Any, Any, Any]:
    """Where x / y is between two integers that follow one another, for one y, and the remainders of the ends."""
    one = (y.lower == y.upper) & (y.lower != 0) & jnp.isfinite(y.lower)
    size = jnp.where(one, jnp.abs(y.lower), 1)
    lower, upper, finite = ends(x)
    low, high = lax.rem(lower, size), lax.rem(upper, size)
    side = (lower >= 0) | (upper <= 0)
    same = jnp.where(side, (upper - lower < size) & (low <= high), (upper < size) & (-lower < size))
    # Of zero itself nothing is left over; on its way down a number below zero reaches it from multiples as well.
    return one & finite & same, low, high


def _rem_range(node: Node, x: Interval, y: Interval) -> Interval:
    least = jnp.maximum(jnp.maximum(y.lower, -y.upper), 0)
    # A divisor that is subnormal may be taken for 0.
    bad = is_anything(x) | is_anything(y) | jnp.isinf(x.lower) | jnp.isinf(x.upper) | (least <= 2 * tiny(node.dtype))
    size = magnitude(y)
    low = jnp.where(x.lower >= 0, 0, jnp.maximum(x.lower, -size))
    high = jnp.where(x.upper <= 0, 0, jnp.minimum(x.upper, size))
    # Numbers below the divisor are left as they are.
    small = magnitude(x) < least
    low, high = jnp.where(small, x.lower, low), jnp.where(small, x.upper, high)
    sure, first, last = _whole(x, y)
    low, high = jnp.where(sure, first, low), jnp.where(sure, last, high)
    return Interval(jnp.where(bad, -jnp.inf, low), jnp.where(bad, jnp.inf, high))


def _rem_relax(node: Node, out: Interval, x: Interval, y: Interval) -> Relaxation:
    sure, first, _ = _whole(x, y)
    lower, _, finite = ends(x)
    small = magnitude(x) < jnp.maximum(jnp.maximum(y.lower, -y.upper), 0)
    good = finite & (sure | small) & jnp.isfinite(out.lower) & jnp.isfinite(out.upper)
    bias = jnp.where(small, 0, first - lower)
    found = planes(out, x, good, (jnp.ones_like(bias), bias), (jnp.ones_like(bias), bias))
    # The divisor has no coefficients.
    more = lambda plane: plane._replace(transposes=(*plane.transposes, None))
    return Relaxation(more(found.lower), more(found.upper), found.rounding)


def _rem_slack(node: Node, out: Interval, x: Interval, y: Interval) -> Any:
    return roundoff(node, 2, finite_magnitude(out))


_remainder = Rule("rem", _rem_range, _rem_slack, _rem_relax, again=once)


def _rem(graph: Graph, equation: Any, *operands: Value) -> Value:
    out = equation.outvars[0].aval
    if not jnp.issubdtype(out.dtype, jnp.floating):
        raise graph.unsupported("a remainder of integers that vary")
    return graph.add(_remainder, nodes_of(graph, fit(graph, equation, *operands)), out.shape, out.dtype)


TRANSLATIONS |= {"reduce_prod": _reduce_prod, "cumprod": _cumprod, "rem": _rem}
