"""Softmax and its kin over some of the entries: those that a constant mask keeps.

A value `where(mask, x, -inf)` (or -1e9) equals x where the mask keeps it and is a constant elsewhere. The exponentials of the
others are 0 beside those kept, so that a composite over all of them is one over those kept. Rows of one mask are taken
together. The rule `kept` says when this holds, and nothing is known where it does not.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from ._graph import Graph
from ._interval import Interval, magnitude, tiny
from ._move import linear
from ._rule import NONE, Const, Node, Plane, Relaxation, Rule, once
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
