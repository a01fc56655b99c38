"""Softmax and its kin over some of the entries: those that a constant mask keeps.

A value `where(mask, x, -inf)` (or -1e9) equals x where the mask keeps it and is a constant elsewhere. The exponentials of the
others are 0 beside those kept, so that a composite over all of them is one over those kept. Rows of one mask are taken
together. The rule `kept` says when this holds, and nothing is known where it does not.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from ._graph import Graph, Value
from ._interval import Interval, magnitude, tiny
from ._linear import sub
from ._move import linear, nodes_of
from ._pattern import operands_of, peel
from ._rule import NONE, Const, Node, Plane, Relaxation, Rule, once
from ._scalar import RULES
from ._softmax import softmax

# The exponential of minus this is far below the smallest number of any type.
APART = 1e3
# So many different rows of a mask are told apart.
MASKS = 256


def _kept_slack(node: Node, out: Interval, first: Interval, a: Interval, *others: Interval) -> Any:
    keep, fill = node.data
    finite = jnp.isfinite(a.lower) & jnp.isfinite(a.upper)
    good = jnp.all(finite | ~keep, axis=-1)
    lost: Any = tiny(node.dtype)
    for x in others:
        # Zero times these is 0 only where they are finite.
        good = good & jnp.all(jnp.isfinite(x.lower) & jnp.isfinite(x.upper), axis=-1)
        lost = lost * (1 + jnp.max(magnitude(x), axis=-1))
    if fill != -np.inf:
        good = good & (jnp.max(jnp.where(keep, a.lower, -jnp.inf), axis=-1) > fill + APART)
    if len(node.shape) == keep.ndim:
        # Where a masked constant is finite, its exponential is not 0 in real arithmetic.
        good, lost = good[..., None], jnp.where(keep, 0.0, 0.0 if fill == -np.inf else tiny(node.dtype))
    return jnp.broadcast_to(jnp.where(good, lost, jnp.inf), node.shape)


def _first(node: Node, out: Interval, *inputs: Interval) -> Relaxation:
    plane = Plane((lambda c: c, *[None] * (len(inputs) - 1)), NONE)
    return Relaxation(plane, plane, NONE)


kept = Rule("of those kept", lambda node, first, *_: first, _kept_slack, _first, guides=0, again=once)


def over_kept(graph: Graph, rule: Rule, nodes: Sequence[Node], keep: np.ndarray, fill: float) -> Node | None:
    """A composite over the last axis of its inputs, of which only those kept take part; `None` where the mask has too many
    different rows."""
    a, size = nodes[0], keep.shape[-1]
    lead = keep.shape[:-1]
    rows, which = np.unique(keep.reshape(-1, size), axis=0, return_inverse=True)
    if len(rows) > MASKS:
        return None
    which, parts = which.reshape(-1), []
    for i, row in enumerate(rows):
        (at,), (places,) = np.nonzero(which == i), np.nonzero(row)
        if not places.size:
            # Nothing is kept: 0/0.
            shape = (len(at), size) if rule is softmax else (len(at),)
            parts.append(graph.point(Const(jnp.full(shape, jnp.nan, a.dtype))))
            continue
        take = lambda v, at=at, places=places: v.reshape(-1, size)[np.ix_(at, places)]
        taken = [linear(graph, take, node) for node in nodes]
        if rule is softmax:
            # Of each place, the column that goes there: that of zeros behind the others where none does.
            column = np.full(size, places.size)
            column[places] = np.arange(places.size)
            put = lambda v, column=column: jnp.pad(v, ((0, 0), (0, 1)))[:, column]
            parts.append(linear(graph, put, graph.add(rule, taken, taken[0].shape, a.dtype)))
        else:
            parts.append(graph.add(rule, taken, (len(at),), a.dtype))
    back = np.argsort(np.argsort(which, kind="stable"), kind="stable")
    shape = keep.shape if rule is softmax else lead
    together = linear(graph, lambda *v: jnp.concatenate(v)[back].reshape(shape), *parts)
    return graph.add(kept, [together, *nodes], shape, a.dtype, (keep, fill))


def composite(graph: Graph, rule: Rule, axis: int, a: Node, *more: Value) -> Node:
    """A composite over one axis, moved to the end and back."""
    others = nodes_of(graph, list(more))
    mask = peel(graph, a)
    key = (rule.name, axis, a, *map(graph.name_of, more))
    if key in graph.marks:
        return graph.marks[key]
    last = len(a.shape) - 1
    order = [i for i in range(last + 1) if i != axis] + [axis]
    nodes = [mask.base if mask.vanishes else a, *others]
    if axis != last:
        nodes = [linear(graph, lambda v: v.transpose(order), node) for node in nodes]
    reduced = rule is not softmax
    shape = nodes[0].shape[:-1] if reduced else nodes[0].shape
    node = None
    if mask.vanishes:
        node = over_kept(graph, rule, nodes, mask.keep.transpose(order), mask.fill)
        if node is None:
            nodes = [a if axis == last else linear(graph, lambda v: v.transpose(order), a), *nodes[1:]]
        elif not reduced:
            graph.marks["masked softmax", node] = nodes[0], a
    node = node or graph.add(rule, nodes, shape, a.dtype)
    if axis != last and not reduced:
        node = linear(graph, lambda v: v.transpose(np.argsort(order)), node)
    graph.marks[key] = node
    return node


def _masked_slack(node: Node, out: Interval, first: Interval, shift: Interval) -> Any:
    keep, fill = node.data
    good = jnp.isfinite(shift.lower) & jnp.isfinite(shift.upper) & (shift.lower > fill + APART)
    lost = 0.0 if fill == -np.inf else tiny(node.dtype)
    return jnp.where(keep, 0.0, jnp.where(good, lost, jnp.inf))


masked = Rule("masked exponential", lambda node, first, *_: first, _masked_slack, _first, guides=0, again=once)


def masked_exponential(graph: Graph, x: Value) -> Node | None:
    """exp(a - shift), which is 0 where a is masked by what stands for minus infinity, as long as the shift is finite."""
    parts = operands_of(x, "sub")
    if parts is None:
        return None
    a, shift = parts
    mask = peel(graph, a)
    if not mask.vanishes or not isinstance(x, Node) or not isinstance(shift, Node) or a.shape != x.shape:
        return None
    if shift.shape != x.shape:
        shift = linear(graph, lambda v: jnp.broadcast_to(v, x.shape), shift)
    below = sub(graph, mask.base, shift, shape=x.shape, dtype=x.dtype)
    node = graph.add(RULES["exp"], [below], x.shape, x.dtype)
    zeroed = linear(graph, lambda v: jnp.where(mask.keep, v, 0), node)
    return graph.add(masked, [zeroed, shift], x.shape, x.dtype, (mask.keep, mask.fill))
