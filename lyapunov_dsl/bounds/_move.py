"""Operations that move numbers: reshaping, slicing, gathering, stacking, and copies."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from . import _graph as graphs
from ._graph import EXACT, TRANSLATIONS, Graph, Value
from ._interval import Interval, wide
from ._rule import Affine, Const, Node, affine, ends


def linear(graph: Graph, function: Callable, *inputs: Node, terms: int = 0, virtual: bool = False, **more: Any) -> Node:
    """A node for a linear function of nodes, applied to shapes to find its own. With `terms` 0 it moves numbers only."""
    kinds = {node.dtype for node in inputs}
    dtype = next(iter(kinds)) if len(kinds) == 1 else jnp.result_type(*kinds)
    like = [jax.ShapeDtypeStruct(n.shape, wide() if n.is_float else n.dtype) for n in inputs]
    shape = jax.eval_shape(function, *like).shape
    if terms == 0:
        more.setdefault("span", ends(function))
    data = Affine(function, more.pop("absolute", function), terms, **more)
    return graph.add(affine, inputs, shape, dtype, data, virtual)


def mover(name: str) -> Callable[[Callable], None]:
    """Registers an operation that moves numbers: (parameters) -> function of its operands."""

    def register(make: Callable) -> None:
        EXACT.add(name)

        def translate(graph: Graph, equation: Any, *operands: Value) -> Value:
            nodes = [value if isinstance(value, Node) else graph.point(value) for value in operands]
            return linear(graph, make(equation.params, equation), *nodes)

        TRANSLATIONS[name] = translate

    return register


mover("reshape")(lambda p, e: lambda x: lax.reshape(x, p["new_sizes"], p["dimensions"]))
mover("broadcast_in_dim")(lambda p, e: lambda x: lax.broadcast_in_dim(x, p["shape"], p["broadcast_dimensions"]))
mover("squeeze")(lambda p, e: lambda x: lax.squeeze(x, p["dimensions"]))
mover("expand_dims")(lambda p, e: lambda x: lax.expand_dims(x, p["dimensions"]))
mover("transpose")(lambda p, e: lambda x: lax.transpose(x, p["permutation"]))
mover("slice")(lambda p, e: lambda x: lax.slice(x, p["start_indices"], p["limit_indices"], p["strides"]))
mover("rev")(lambda p, e: lambda x: lax.rev(x, p["dimensions"]))
mover("concatenate")(lambda p, e: lambda *x: lax.concatenate(x, p["dimension"]))
mover("stack")(lambda p, e: lambda *x: jnp.stack(x, p["axis"]))
mover("tile")(lambda p, e: lambda x: jnp.tile(x, p["reps"]))
mover("pad")(lambda p, e: lambda x, value: lax.pad(x, value, p["padding_config"]))


def _same(graph: Graph, equation: Any, x: Value, *_: Value) -> Value:
    return x


def _stop_gradient(graph: Graph, equation: Any, x: Value) -> Value:
    return linear(graph, lambda v: v, x) if graph.stops and isinstance(x, Node) else x


TRANSLATIONS["stop_gradient"] = _stop_gradient
EXACT.add("stop_gradient")
for _name in ("copy", "copy_p", "optimization_barrier", "real", "sharding_constraint"):
    TRANSLATIONS[_name] = _same
    EXACT.add(_name)
EXACT |= {
    "iota",
    "neg",
    "select_n",
    "gather",
    "dynamic_slice",
    "dynamic_update_slice",
    "split",
    "unstack",
    "max",
    "min",
    "abs",
    "sign",
}


def _split(graph: Graph, equation: Any, x: Node) -> list[Value]:
    sizes, axis = equation.params["sizes"], equation.params["axis"]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    part = lambda start, size: lambda x: lax.slice_in_dim(x, start, start + size, axis=axis)
    return [linear(graph, part(start, size), x) for start, size in zip(starts, sizes, strict=True)]


def _unstack(graph: Graph, equation: Any, x: Node) -> list[Value]:
    axis = equation.params["axis"]
    part = lambda i: lambda x: lax.index_in_dim(x, i, axis=axis, keepdims=False)
    return [linear(graph, part(i), x) for i in range(x.shape[axis])]


def _gather(graph: Graph, equation: Any, x: Value, indices: Value) -> Value:
    params = equation.params
    if not isinstance(indices, Const) or not isinstance(x, Node):
        raise graph.unsupported("indices that depend on the input")
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    known = graphs.concrete(indices)
    at = indices.value if known is None else known
    last = jnp.iinfo(indices.dtype).max
    limits = np.asarray([min(x.shape[a] - sizes[a], last) for a in numbers.start_index_map], indices.dtype)
    within = (at >= 0) & (at <= limits)
    # Evaluations clip, and so do transposes then, which by themselves would drop what is out of range.
    inside = np.clip(at, 0, limits) if known is not None else jnp.clip(at, 0, limits)
    options = {"slice_sizes": sizes, "mode": lax.GatherScatterMode.CLIP}
    take = lambda v: lax.gather(v, inside, numbers, **options)
    if params["mode"] != lax.GatherScatterMode.FILL_OR_DROP or (known is not None and within.all()):
        return linear(graph, take, x)
    if known is not None:
        raise graph.unsupported("indices out of range, whose places are filled with NaN")
    # Not known before the bounds are evaluated: NaN in one place is taken for NaN in all.
    good = jnp.all(within)

    def span(v: Interval) -> Interval:
        return Interval(jnp.where(good, take(v.lower), -jnp.inf), jnp.where(good, take(v.upper), jnp.inf))

    fill = jnp.where(good, 1.0, jnp.inf)
    return linear(graph, lambda v: take(v) * fill, x, span=span)


def _dynamic_slice(graph: Graph, equation: Any, x: Value, *starts: Value) -> Value:
    values = [s.value for s in starts if isinstance(s, Const)]
    if not isinstance(x, Node) or len(values) < len(starts):
        raise graph.unsupported("indices that depend on the input")
    return linear(graph, lambda x: lax.dynamic_slice(x, values, equation.params["slice_sizes"]), x)


def _dynamic_update_slice(graph: Graph, equation: Any, x: Value, update: Value, *starts: Value) -> Value:
    values = [s.value for s in starts if isinstance(s, Const)]
    if len(values) < len(starts):
        raise graph.unsupported("indices that depend on the input")
    nodes = [v if isinstance(v, Node) else graph.point(v) for v in (x, update)]
    return linear(graph, lambda x, u: lax.dynamic_update_slice(x, u, values), *nodes)


TRANSLATIONS |= {
    "split": _split,
    "unstack": _unstack,
    "gather": _gather,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
}


def fit(graph: Graph, equation: Any, *operands: Value) -> list[Value]:
    """Operands with the shape of the result."""
    shape = equation.outvars[0].aval.shape
    out: list[Value] = []
    for value in operands:
        if value.shape == shape:
            out.append(value)
        elif isinstance(value, Node):
            out.append(linear(graph, lambda x: jnp.broadcast_to(x, shape), value))
        else:
            slack = None if value.slack is None else jnp.broadcast_to(value.slack, shape)
            out.append(Const(jnp.broadcast_to(value.value, shape), slack))
    return out


def nodes_of(graph: Graph, values: list[Value]) -> list[Node]:
    """Values with constants as nodes of known range."""
    return [value if isinstance(value, Node) else graph.point(value) for value in values]


def _index(graph: Graph, value: Value, turn: int) -> Value:
    if isinstance(value, Const):
        return Const(value.value[turn], None if value.slack is None else value.slack[turn])
    return linear(graph, lambda v: v[turn], value)


def _stack(graph: Graph, values: list[Value]) -> Value:
    if all(isinstance(v, Const) and v.slack is None for v in values):
        return Const(jnp.stack([v.value for v in values]))  # pyright: ignore[reportAttributeAccessIssue]
    return linear(graph, lambda *v: jnp.stack(v), *nodes_of(graph, values))


graphs.index, graphs.stack, graphs.fit = _index, _stack, fit
