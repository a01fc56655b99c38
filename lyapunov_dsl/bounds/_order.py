"""Sorting, running extremes, and any or all of several decisions."""

import functools
from typing import Any

import jax.numpy as jnp
from jax import lax

from ._graph import TRANSLATIONS, Graph, Value
from ._interval import Interval, is_anything
from ._linear import negative
from ._move import linear, nodes_of
from ._pairs import INTEGERS, maximum
from ._rule import NONE, Node, Plane, Relaxation, Rule, exactly, once

# So many numbers are sorted by comparing two at a time, which planes follow.
FEW = 8


def _sort_range(node: Node, x: Interval, *_: Interval) -> Interval:
    """The k-th smallest number grows with each of them."""
    low, high = jnp.sort(x.lower, axis=-1), jnp.sort(x.upper, axis=-1)
    if not node.is_float:
        return Interval(low, high)
    bad = jnp.any(is_anything(x), axis=-1, keepdims=True)
    return Interval(jnp.where(bad, -jnp.inf, low), jnp.where(bad, jnp.inf, high))


def _sort_relax(node: Node, out: Interval, x: Interval, *more: Interval) -> Relaxation:
    """Those of the same numbers, sorted two at a time."""
    plane = Plane((None, lambda c: c), NONE)
    return Relaxation(plane, plane, NONE)


_sorted = Rule("sort", _sort_range, exactly, _sort_relax, guides=1, again=once)
_ordered = Rule("sort", _sort_range, exactly, again=once)


def _larger(graph: Graph, x: Node, y: Node, sign: int = 1) -> Node:
    """The larger of two, or the smaller (`sign` -1)."""
    if not x.is_float:
        return graph.add(INTEGERS["max" if sign > 0 else "min"], [x, y], x.shape, x.dtype)
    if sign > 0:
        return graph.add(maximum, [x, y], x.shape, x.dtype)
    return negative(graph, graph.add(maximum, [negative(graph, x), negative(graph, y)], x.shape, x.dtype))


def _entries(graph: Graph, x: Node, axis: int) -> list[Node]:
    return [linear(graph, functools.partial(_entry, axis=axis, i=i), x) for i in range(x.shape[axis])]


def _entry(v: Any, axis: int, i: int) -> Any:
    return lax.index_in_dim(v, i, axis, keepdims=False)


def sort(graph: Graph, x: Node, axis: int) -> Node:
    """The numbers along an axis in ascending order."""
    last = linear(graph, lambda v: jnp.moveaxis(v, axis, -1), x)
    count = last.shape[-1]
    if count > FEW or not x.is_float:
        found = graph.add(_ordered, [last], last.shape, x.dtype)
    else:
        rows = _entries(graph, last, len(last.shape) - 1)
        for turn in range(count):
            for i in range(turn % 2, count - 1, 2):
                rows[i], rows[i + 1] = _larger(graph, rows[i], rows[i + 1], -1), _larger(graph, rows[i], rows[i + 1])
        few = linear(graph, lambda *v: jnp.stack(v, axis=-1), *rows)
        found = graph.add(_sorted, [last, few], last.shape, x.dtype)
    return linear(graph, lambda v: jnp.moveaxis(v, -1, axis), found)


def _sort(graph: Graph, equation: Any, *operands: Value) -> list[Value]:
    if len(operands) > 1:
        raise graph.unsupported("several arrays sorted by one that varies")
    return [sort(graph, *nodes_of(graph, list(operands)), equation.params["dimension"])]


def _place_range(node: Node, *_: Interval) -> Interval:
    least = jnp.zeros(node.shape, node.dtype)
    return Interval(least, least + jnp.asarray(node.data - 1, node.dtype))


_place = Rule("place in an order", _place_range, exactly)


def _top_k(graph: Graph, equation: Any, x: Node) -> list[Value]:
    p, axis = equation.params, equation.params.get("axis", len(x.shape) - 1)
    k, count = p["k"], x.shape[axis]
    largest = linear(graph, lambda v: jnp.flip(lax.slice_in_dim(v, count - k, count, axis=axis), axis), sort(graph, x, axis))
    places = equation.outvars[1].aval
    return [largest, graph.add(_place, [x], places.shape, places.dtype, count)]


def _running(sign: int) -> Any:
    """The largest or smallest number so far along an axis."""

    def translate(graph: Graph, equation: Any, x: Node) -> Value:
        axis, reverse = equation.params["axis"], equation.params["reverse"]
        rows = _entries(graph, x, axis)
        rows = rows[::-1] if reverse else rows
        for i in range(1, len(rows)):
            rows[i] = _larger(graph, rows[i - 1], rows[i], sign)
        rows = rows[::-1] if reverse else rows
        return linear(graph, lambda *v: jnp.stack(v, axis=axis), *rows)

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


TRANSLATIONS |= {
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
