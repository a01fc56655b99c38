"""Numbers put in places of an array, or added, multiplied and compared there; the places have to be known."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from . import _graph as graphs
from ._graph import EXACT, TRANSLATIONS, Graph, Value
from ._linear import mul, negative
from ._move import linear, nodes_of
from ._order import _larger
from ._rule import Const, Node, ends


class _Places:
    """Where the updates of an equation go.

    **Arguments:**

    - `put`: from updates to an array of the operand's shape, sums where places coincide, 0 elsewhere.
    - `take`: from an array of the operand's shape to the numbers in the places.
    - `most`: how many updates go to one place at most.
    - `hit`: where there is one.
    """

    def __init__(self, graph: Graph, equation: Any, operand: Value, indices: Const, updates: Value):
        params, known = equation.params, graphs.concrete(indices)
        mode = params["mode"]
        if mode is not None and mode == lax.GatherScatterMode.PROMISE_IN_BOUNDS:
            # What is out of range has no meaning then; evaluations may clip it.
            mode = lax.GatherScatterMode.FILL_OR_DROP if known is not None else lax.GatherScatterMode.CLIP
        at, numbers = indices.value if known is None else known, params["dimension_numbers"]
        put = lambda u: lax.scatter_add(jnp.zeros(operand.shape, u.dtype), at, u, numbers, mode=mode)
        like = jax.ShapeDtypeStruct(updates.shape, graphs.wide())
        self.put, self.most = put, updates.size if isinstance(updates, Node) else int(np.size(updates.value))
        self.take = lambda v: jax.linear_transpose(put, jax.ShapeDtypeStruct(like.shape, v.dtype))(v)[0]
        if known is None:
            self.hit: Any = put(jnp.ones(like.shape)) > 0
            single = params["unique_indices"] or math.prod(indices.shape[:-1]) == 1
            self.most = 1 if single else self.most
            return
        with jax.ensure_compile_time_eval():
            counts = np.asarray(put(jnp.ones(like.shape)))
        if params["mode"] == lax.GatherScatterMode.PROMISE_IN_BOUNDS and counts.sum() < self.most:
            raise graph.unsupported("indices out of range")
        self.hit, self.most = counts > 0, int(counts.max())


def _scatter(graph: Graph, equation: Any, operand: Value, indices: Value, updates: Value) -> Value:
    if not isinstance(indices, Const):
        raise graph.unsupported("indices that depend on the input")
    if not jnp.issubdtype(operand.dtype, jnp.floating):
        raise graph.unsupported("integers that vary in places of an array")
    if 0 in updates.shape:
        return operand
    places = _Places(graph, equation, operand, indices, updates)
    x, u = nodes_of(graph, [operand, updates])
    kind = equation.primitive.name.replace("_", "-").removeprefix("scatter").removeprefix("-")
    if kind in ("add", "sub"):
        u = negative(graph, u) if kind == "sub" else u
        total = lambda v, w: v + places.put(w)
        return linear(graph, total, x, u, terms=places.most, span=ends(total))
    if places.most > 1:
        raise graph.unsupported("several numbers put in one place")
    if kind:
        taken = linear(graph, places.take, x)
        u = mul(graph, taken, u, x.dtype) if kind == "mul" else _larger(graph, taken, u, 1 if kind == "max" else -1)
    return linear(graph, lambda v, w: jnp.where(places.hit, places.put(w), v), x, u)


EXACT.add("scatter")
NAMES = ("scatter", "scatter-add", "scatter-sub", "scatter-mul", "scatter-min", "scatter-max")
TRANSLATIONS |= dict.fromkeys(NAMES, _scatter)
TRANSLATIONS |= {name.replace("-", "_"): _scatter for name in NAMES}
