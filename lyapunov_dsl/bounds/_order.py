"""Sorting, running extremes, and any or all of several decisions."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from ._graph import TRANSLATIONS, Graph, Value
from ._interval import Interval, is_anything, wide
from ._linear import negative
from ._move import linear, nodes_of
from ._pairs import INTEGERS, maximum
from ._reduce import largest
from ._rule import NONE, Node, Plane, Relaxation, Rule, exactly, once


def _sort_range(node: Node, x: Interval) -> Interval:
    """The k-th smallest number grows with each of them."""
    low, high = jnp.sort(x.lower, axis=-1), jnp.sort(x.upper, axis=-1)
    if not node.is_float:
        return Interval(low, high)
    bad = jnp.any(is_anything(x), axis=-1, keepdims=True)
    return Interval(jnp.where(bad, -jnp.inf, low), jnp.where(bad, jnp.inf, high))


def _sort_relax(node: Node, out: Interval, x: Interval) -> Relaxation:
    """The number whose place is sure, or the range: the k-th has k others below and all the rest above it."""
    count = node.shape[-1]
    other = ~jnp.eye(count, dtype=bool)
    below = jnp.sum((x.upper[..., None, :] <= x.lower[..., :, None]) & other, axis=-1)
    above = jnp.sum((x.lower[..., None, :] >= x.upper[..., :, None]) & other, axis=-1)
    finite = jnp.all(jnp.isfinite(x.lower) & jnp.isfinite(x.upper), axis=-1, keepdims=True)
    known = (below + above == count - 1) & finite
    # Of equal points, both of which count as below the other, none has a place.
    rows = jnp.where((below[..., None, :] == jnp.arange(count)[:, None]) & known[..., None, :], 1.0, 0.0)
    rows = rows.astype(wide())
    sure = jnp.sum(rows, axis=-1) == 1
    rows = rows * sure[..., None]
    back = lambda c: jnp.einsum("f...k,...ki->f...i", c, rows, precision="highest")
    plane = lambda bias: Plane((back,), jnp.where(sure, 0, bias))
    return Relaxation(plane(out.lower), plane(out.upper), NONE)


_sorted = Rule("sort", _sort_range, exactly, _sort_relax, again=once)


def _larger(graph: Graph, x: Node, y: Node, sign: int = 1) -> Node:
    """The larger of two, or the smaller (`sign` -1)."""
    if not x.is_float:
        return graph.add(INTEGERS["max" if sign > 0 else "min"], [x, y], x.shape, x.dtype)
    if sign > 0:
        return graph.add(maximum, [x, y], x.shape, x.dtype)
    return negative(graph, graph.add(maximum, [negative(graph, x), negative(graph, y)], x.shape, x.dtype))


def sort(graph: Graph, x: Node, axis: int) -> Node:
    """The numbers along an axis in ascending order."""
    last = linear(graph, lambda v: jnp.moveaxis(v, axis, -1), x)
    return linear(graph, lambda v: jnp.moveaxis(v, -1, axis), graph.add(_sorted, [last], last.shape, x.dtype))


def _sort(graph: Graph, equation: Any, *operands: Value) -> list[Value]:
    if len(operands) > 1:
        raise graph.unsupported("several arrays sorted by one that varies")
    (x,) = nodes_of(graph, list(operands))
    return [sort(graph, x, equation.params["dimension"])]


def _place_range(node: Node, *_: Interval) -> Interval:
    least = jnp.zeros(node.shape, node.dtype)
    return Interval(least, least + jnp.asarray(node.data - 1, node.dtype))


_place = Rule("place in an order", _place_range, exactly)


def _top_k(graph: Graph, equation: Any, x: Node) -> list[Value]:
    p, axis = equation.params, equation.params.get("axis", len(x.shape) - 1)
    k, count = p["k"], x.shape[axis]
    largest = linear(
        graph, lambda v: jnp.flip(lax.slice_in_dim(v, count - k, count, axis=axis), axis), sort(graph, x, axis)
    )
    places = equation.outvars[1].aval
    return [largest, graph.add(_place, [x], places.shape, places.dtype, count)]


def _running(sign: int) -> Any:
    """The largest or smallest number so far along an axis: the largest of rows that end in copies of their last number."""

    def translate(graph: Graph, equation: Any, x: Node) -> Value:
        if not x.is_float:
            raise graph.unsupported("running extremes of integers that vary")
        axis, reverse, count = equation.params["axis"], equation.params["reverse"], x.shape[equation.params["axis"]]
        choose = np.maximum if reverse else np.minimum
        places = choose(np.arange(count)[:, None], np.arange(count))
        rows = linear(graph, lambda v: jnp.moveaxis(v, axis, -1)[..., places], x)
        rows = negative(graph, rows) if sign < 0 else rows
        found = graph.add(largest, [rows], rows.shape[:-1], x.dtype)
        found = negative(graph, found) if sign < 0 else found
        return linear(graph, lambda v: jnp.moveaxis(v, -1, axis), found)

    return translate


def _decided(name: str, function: Any) -> Rule:
    return Rule(name, lambda node, x: Interval(function(x.lower, node.data), function(x.upper, node.data)), exactly)


_some = _decided("reduce_or", lambda v, axes: jnp.any(v, axis=axes))
_every = _decided("reduce_and", lambda v, axes: jnp.all(v, axis=axes))


def _odd_range(node: Node, x: Interval) -> Interval:
    known = jnp.all(x.lower == x.upper, axis=node.data)
    odd = jnp.sum(x.lower, axis=node.data) % 2 == 1
    return Interval(known & odd, ~known | odd)


_parity = Rule("reduce_xor", _odd_range, exactly)


def _decision(rule: Rule, everything: bool = False) -> Any:
    def translate(graph: Graph, equation: Any, x: Node) -> Value:
        if x.dtype != bool:
            raise graph.unsupported("bits of integers that vary")
        axes = tuple(range(len(x.shape))) if everything else tuple(int(a) for a in equation.params["axes"])
        return graph.add(rule, [x], equation.outvars[0].aval.shape, bool, axes)

    return translate


# Of a number, whether it is itself: NaN is not, and no range but that of anything holds NaN.
_is_number = Rule("eq itself", lambda node, x: Interval(~is_anything(x), jnp.ones(node.shape, bool)), exactly)
_is_nan = Rule("ne itself", lambda node, x: Interval(jnp.zeros(node.shape, bool), is_anything(x)), exactly)


def _itself(rule: Rule, otherwise: Any) -> Any:
    def translate(graph: Graph, equation: Any, x: Value, y: Value) -> Value:
        if x is not y or not isinstance(x, Node) or not x.is_float:
            return otherwise(graph, equation, x, y)
        return graph.add(rule, [x], x.shape, bool)

    return translate


TRANSLATIONS |= {
    "eq": _itself(_is_number, TRANSLATIONS["eq"]),
    "ne": _itself(_is_nan, TRANSLATIONS["ne"]),
    "sort": _sort,
    "top_k": _top_k,
    "cummax": _running(1),
    "cummin": _running(-1),
    "reduce_or": _decision(_some),
    "reduce_and": _decision(_every),
    "reduce_xor": _decision(_parity),
    # Equinox's, of all entries and of a batch.
    "unvmap_any": _decision(_some, everything=True),
    "unvmap_all": _decision(_every, everything=True),
}
