"""Convex combinations n + z (h - n), as the gates of a recurrent cell make them: for z in [0, 1] the result lies between n and h.

Ranges of the sum alone do not say so: those of n + z (h - n) are wider than both n and h, and grow with every step.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from . import _graph as graphs
from ._graph import Graph, Value, concrete
from ._interval import Interval, intersect, magnitude, tiny, widen, zero_safe
from ._merge import factors_of
from ._move import nodes_of
from ._pattern import operands_of
from ._rule import NONE, Node, Plane, Relaxation, Rule, exactly, roundoff


def _size(z: Interval, h: Interval, n: Interval) -> Any:
    """The size of what is added up, whichever way it is written."""
    return (1 + magnitude(z)) * magnitude(n) + magnitude(z) * magnitude(h)


def _between(node: Node, z: Interval, h: Interval, n: Interval) -> Interval:
    """(1 - z) n + z h: linear in each of the three, so that the extremes are at ends of z, each of which leaves a sum of n and h."""
    ends = []
    for share in z:
        rest = 1 - share
        low = jnp.minimum(rest * n.lower, rest * n.upper) + jnp.minimum(share * h.lower, share * h.upper)
        high = jnp.maximum(rest * n.lower, rest * n.upper) + jnp.maximum(share * h.lower, share * h.upper)
        ends.append((low, high))
    (one, two), (three, four) = ends
    # Three operations in a row; the difference h - n, or a product, may be flushed to 0 before it meets a factor.
    flushed = 4 * tiny(node.dtype) * (1 + magnitude(z))
    slack = roundoff(node, 3, _size(z, h, n)) + flushed
    return widen(Interval(jnp.minimum(one, three), jnp.maximum(two, four)), slack)


def _range(node: Node, written: Interval, z: Interval, h: Interval, n: Interval) -> Interval:
    # Where an operation as it is written may overflow, real numbers say nothing of the result.
    good = jnp.isfinite(_size(z, h, n))
    for end in (*written, *z, *h, *n):
        good = good & jnp.isfinite(end)
    z, h, n = (Interval(*(jnp.where(good, end, 0) for end in x)) for x in (z, h, n))
    both = intersect(written, _between(node, z, h, n))
    return Interval(jnp.where(good, both.lower, written.lower), jnp.where(good, both.upper, written.upper))


def _relax(node: Node, out: Interval, *inputs: Interval) -> Relaxation:
    plane = Plane((lambda c: c, *[None] * (len(inputs) - 1)), NONE)
    return Relaxation(plane, plane, NONE)


def _within(node: Node, written: Interval, z: Interval, h: Interval, n: Interval, first: Any, *spreads: Any) -> Any:
    """Two evaluations of n in n + z (h - n), and of z in z h + (1 - z) n; h is used once."""
    one, _, other = (jnp.broadcast_to(s, node.shape) for s in spreads)
    return 2 * (zero_safe(one, magnitude(n)) + zero_safe(other, magnitude(z)))


def _again(node: Node, slack: Any, ranges: Sequence[Interval], spreads: Sequence[Any]) -> Any:
    return spreads[0]


# Inputs are the sum as it is written, whose planes are those of the result, and z, h and n.
combination = Rule("convex combination", _range, exactly, _relax, guides=0, again=_again, within=_within)


def _parts(x: Value, y: Value, sign: int) -> tuple[Value, Value, Value] | None:
    """(z, h, n) where x + y is n + z (h - n) or z h + (1 - z) n, or x - y is n - z (n - h)."""
    for z, d in _orders(operands_of(y, "mul")):
        parts = operands_of(d, "sub")
        if parts is None or not isinstance(z, Node):
            continue
        h, n = parts if sign > 0 else parts[::-1]
        if n is x:
            return z, h, n
    for z, h in _orders(operands_of(x, "mul")):
        for w, n in _orders(operands_of(y, "mul")):
            parts = operands_of(w, "sub")
            if sign > 0 and parts is not None and parts[1] is z and isinstance(z, Node) and _is_one(parts[0]):
                return z, h, n
    return None


def _orders(pair: Any) -> Sequence[tuple[Value, Value]]:
    return () if pair is None else (tuple(pair), tuple(pair[::-1]))


def _is_one(value: Value) -> bool:
    known = concrete(value)
    return known is not None and bool((known == 1).all())


def rewrite_combination(graph: Graph, x: Value, y: Value, written: Node, sign: int = 1) -> Node:
    """A sum (or a difference) as it is written, with the range of a convex combination where it is one."""
    if not isinstance(x, Node) or not isinstance(y, Node):
        return written
    orders = ((x, y), (y, x)) if sign > 0 else ((x, y),)
    found = next((parts for pair in orders if (parts := _parts(*pair, sign)) is not None), None)
    # Constant factors of both would be taken out of the sum, and what is left may be larger than n and h.
    if found is None or not (factors_of(graph, x).trivial or factors_of(graph, y).trivial):
        return written
    if any(v.shape != written.shape for v in found):
        return written
    return graph.add(combination, [written, *nodes_of(graph, list(found))], written.shape, written.dtype)


graphs.rewrite_combination = rewrite_combination
