"""Finds softmax, log-sum-exp and the mean under a softmax in the operations that JAX makes of them and of their derivatives.

What is found is equal in real arithmetic whatever the shift of the exponents, and the slack of the composites covers the
evaluation by shifted exponentials. Code that is not recognized is bounded operation by operation, which is looser.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import _graph as graphs
from ._graph import Graph, Value, concrete
from ._linear import add, is_zero, linear, mul, negative, sub
from ._rule import Node, Rule, affine
from ._softmax import logsumexp, narrow, softmax, softmax_mean, tie


def _tag(value: Any, name: str) -> Any:
    """The operands of a value made by a primitive, `None` for other values."""
    tag = getattr(value, "tag", None)
    return tag[2] if tag is not None and tag[0] == name else None


def _core(value: Any) -> tuple[Any, list[Any]]:
    """What a value is a copy of, and the functions that copied it, last first."""
    movers = []
    while isinstance(value, Node) and value.rule is not None:
        choice = _tag(value, "select_n")
        if value.rule is affine and value.data.terms == 0 and len(value.inputs) == 1 and _tag(value, "neg") is None:
            movers.append(value.data.apply)
            value = value.inputs[0]
        elif choice is not None and is_zero(choice[1]) and _tag(choice[0], "is_finite") == (choice[2],):
            # The largest number, or 0 where it is infinite: then the result is NaN or nothing is known of it.
            value = choice[2]
        else:
            break
    return value, movers


def _map(core: Node, movers: list[Any]) -> np.ndarray:
    """Which entry of the core every entry of the copy is."""
    with jax.ensure_compile_time_eval():
        places: Any = np.arange(core.size).reshape(core.shape)
        for move in reversed(movers):
            places = move(places)
        return np.asarray(places)


def _is_spread(core: Node, movers: list[Any], shape: tuple[int, ...], axis: int) -> bool:
    """Whether a copy repeats the core along one axis of a shape."""
    if core.size != np.prod(shape) // shape[axis]:
        return False
    places = np.arange(core.size).reshape([n for i, n in enumerate(shape) if i != axis])
    expected = np.broadcast_to(np.expand_dims(places, axis), shape)
    found = _map(core, movers)
    return found.size == expected.size and bool((found.reshape(shape) == expected).all())


def _is_same(core: Node, movers: list[Any]) -> bool:
    """Whether a copy has the entries in their order, in any shape."""
    found = _map(core, movers)
    return found.size == core.size and bool((found.reshape(-1) == np.arange(core.size)).all())


def _axis(value: Node, name: str) -> int | None:
    """The one axis of a reduction."""
    axes = value.tag[1]["axes"] if _tag(value, name) is not None else ()
    return int(axes[0]) if len(axes) == 1 else None


def _shifted(graph: Graph, value: Any) -> tuple[Node, int] | None:
    """(a, axis) of exp(a - max of a over the axis)."""
    if value in graph.marks:
        return graph.marks[value]
    found = None
    (difference,) = _tag(value, "exp") or (None,)
    a, shift = _tag(difference, "sub") or (None, None)
    if isinstance(a, Node) and isinstance(difference, Node) and a.shape == difference.shape:
        top, movers = _core(shift)
        axis = _axis(top, "reduce_max") if isinstance(top, Node) else None
        shape_fits = axis is not None and _tag(top, "reduce_max")[0] is a
        if shape_fits:
            # The shift may have fewer axes than a, as far as the operation broadcasts it.
            places = _map(top, movers)
            expected = np.expand_dims(np.arange(top.size).reshape(top.shape), axis)
            try:
                wide = np.broadcast_to(places, a.shape)
            except ValueError:
                wide = None
            if wide is not None and (wide == np.broadcast_to(expected, a.shape)).all():
                found = (a, axis)
    if isinstance(value, Node):
        graph.marks[value] = found
    return found


def _weights(graph: Graph, value: Any) -> Any:
    """(sum, movers, shifted exponentials, a, axis) where a value is a copy of their sum."""
    core, movers = _core(value)
    axis = _axis(core, "reduce_sum") if isinstance(core, Node) else None
    if axis is None:
        return None
    (terms,) = _tag(core, "reduce_sum")
    found = _shifted(graph, terms)
    return (core, movers, terms, *found) if found is not None and found[1] == axis else None


def _values(graph: Graph, value: Any, terms: Node) -> Any:
    """b where a value is b times the exponentials."""
    for one, other in (pair := _tag(value, "mul") or ()) and ((pair[0], pair[1]), (pair[1], pair[0])):
        if one is terms and other.shape == terms.shape:
            return other
    return None


def composite(graph: Graph, rule: Rule, axis: int, a: Node, *more: Value) -> Node:
    """A composite over one axis, moved to the end and back."""
    others = [v if isinstance(v, Node) else graph.point(v) for v in more]
    key = (rule.name, axis, a, *map(graph.name_of, more))
    if key in graph.marks:
        return graph.marks[key]
    last = len(a.shape) - 1
    order = [i for i in range(last + 1) if i != axis] + [axis]
    nodes = [a, *others]
    if axis != last:
        nodes = [linear(graph, lambda v: v.transpose(order), node) for node in nodes]
    reduced = rule is not softmax
    shape = nodes[0].shape[:-1] if reduced else nodes[0].shape
    node = graph.add(rule, nodes, shape, a.dtype)
    if axis != last and not reduced:
        node = linear(graph, lambda v: v.transpose(np.argsort(order)), node)
    graph.marks[key] = node
    return node


def _mean(graph: Graph, axis: int, a: Node, b: Value) -> Node:
    return composite(graph, softmax_mean, axis, a, b)


def rewrite_div(graph: Graph, x: Value, y: Node) -> Node | None:
    """exp(a - max) / Σ exp(a - max) and Σ b exp(a - max) / Σ exp(a - max)."""
    found = _weights(graph, y)
    if found is None or not isinstance(x, Node):
        return None
    core, movers, terms, a, axis = found
    if x.shape == terms.shape and _is_spread(core, movers, terms.shape, axis):
        if x is terms:
            return composite(graph, softmax, axis, a)
        b = _values(graph, x, terms)
        if b is not None:
            p = composite(graph, softmax, axis, a)
            (node,) = (v if isinstance(v, Node) else graph.point(v) for v in (b,))
            return mul(graph, node, p, x.dtype)
        return None
    numerator, others = _core(x)
    if isinstance(numerator, Node) and _axis(numerator, "reduce_sum") == axis and x.shape == y.shape:
        b = _values(graph, _tag(numerator, "reduce_sum")[0], terms)
        if b is not None and _is_same(core, movers) and _is_same(numerator, others):
            mean = _mean(graph, axis, a, b)
            return mean if mean.shape == x.shape else linear(graph, lambda v: v.reshape(x.shape), mean)
    return None


def rewrite_mul(graph: Graph, x: Node, y: Node) -> Node | None:
    """exp(a - max) · (1 / Σ exp(a - max)), and (-Σ b e · e) · Σ^-2 for the derivative of a quotient."""
    for one, other in ((x, y), (y, x)):
        inverse, movers = _core(other)
        parts = _tag(inverse, "div")
        if parts is not None and concrete(parts[0]) is not None and (concrete(parts[0]) == 1).all():
            found = _weights(graph, parts[1])
            if found is not None and found[2] is one and _is_same(found[0], found[1]):
                core, _, terms, a, axis = found
                if inverse.shape == core.shape and _is_spread(inverse, movers, terms.shape, axis):
                    return composite(graph, softmax, axis, a)
        powered = _tag(inverse, "integer_pow")
        if powered is not None and inverse.tag[1]["y"] == -2:
            found = _weights(graph, powered[0])
            if found is None:
                continue
            core, before, terms, a, axis = found
            if not _is_spread(core, [*movers, *before], terms.shape, axis):
                continue
            inner = _values(graph, one, terms)
            core_inner, spread = _core(inner)
            # The sign may stand before or behind the copying.
            turned = _tag(core_inner, "neg")
            if turned is None:
                continue
            summed, more = _core(turned[0])
            if not isinstance(summed, Node) or _axis(summed, "reduce_sum") != axis:
                continue
            b = _values(graph, _tag(summed, "reduce_sum")[0], terms)
            if b is not None and _is_spread(summed, [*spread, *more], terms.shape, axis):
                mean = _mean(graph, axis, a, b)
                shape = terms.shape
                wide = linear(graph, lambda v: jnp.broadcast_to(jnp.expand_dims(v, axis), shape), mean)
                p = composite(graph, softmax, axis, a)
                return negative(graph, mul(graph, wide, p, x.dtype))
    return None


def rewrite_sum(graph: Graph, x: Node, axes: tuple[int, ...]) -> Node | None:
    """Σ b softmax(a) and Σ b (softmax(a) + constant)."""
    if len(axes) != 1 or x.rule is None or x.rule.name != "mul":
        return None
    (axis,) = axes
    for one, other in (x.inputs, x.inputs[::-1]):
        core, movers = _core(one)
        parts = _tag(core, "add_any") or _tag(core, "add") or ()
        pairs = [(core, None)]
        if parts:
            pairs += [(p, q) for p, q in (parts, parts[::-1]) if concrete(q) is not None]
        for p, constant in pairs:
            last = axis == len(x.shape) - 1
            if not (isinstance(p, Node) and p.rule is softmax and p.shape == x.shape == core.shape and last):
                continue
            if not _is_same(core, movers):
                continue
            mean = composite(graph, softmax_mean, axis, p.inputs[0], other)
            if constant is None:
                return mean
            row = concrete(constant)
            chosen = np.flatnonzero(row)
            if row.ndim == 1 and len(chosen) == 1 and row[chosen[0]] == -1:
                return shifted(graph, mean, int(chosen[0]))
            weighted = linear(graph, lambda v: jnp.sum(v * row, axis=axis), other, terms=x.shape[axis], absolute=lambda v: jnp.sum(v * abs(row), axis=axis), span=None)
            return add(graph, mean, weighted, shape=mean.shape, dtype=mean.dtype)
    return None


def shifted(graph: Graph, node: Node, place: int) -> Node:
    """m(a, t) - t_i as m(a, t - t_i), and lse(a) - a_i as lse(a - a_i): what the differences range over is less than what the
    range of both sides allows."""
    key = ("shifted", node, place)
    if key not in graph.marks:
        *first, last = node.inputs
        mask = np.arange(last.shape[-1]) != place
        size = lambda v: (v + v[..., place : place + 1]) * mask
        less = lambda v: (v - v[..., place : place + 1]) * mask
        moved = linear(graph, less, last, terms=1, absolute=size, span=None, virtual=True)
        exact = graph.add(node.rule, [*first, moved], node.shape, node.dtype, virtual=True)  # pyright: ignore[reportArgumentType]
        if node.rule is softmax_mean:
            graph.marks[key] = graph.add(tie, [exact, *node.inputs], node.shape, node.dtype)
        else:
            entry = linear(graph, lambda v: v[..., place], last)
            value = sub(graph, node, entry, shape=node.shape, dtype=node.dtype)
            graph.marks[key] = graph.add(narrow, [value, exact, last], node.shape, node.dtype)
    return graph.marks[key]


def rewrite_sub(graph: Graph, x: Node, y: Node) -> Node | None:
    """A mean under a softmax minus one of its values; a log-sum-exp minus one of its exponents."""
    core, movers = _core(x)
    if not isinstance(core, Node) or core.rule not in (softmax_mean, logsumexp) or not _is_same(core, movers):
        return None
    source, more = _core(core.inputs[-1])
    other, less = _core(y)
    if other is not source or not isinstance(source, Node) or y.size != core.size:
        return None
    rows = _map(source, more).reshape(core.size, -1)
    (places,) = np.nonzero((rows == _map(source, less).reshape(-1, 1)).all(axis=0))
    if len(places) != 1:
        return None
    found = shifted(graph, core, int(places[0]))
    return found if found.shape == x.shape else linear(graph, lambda v: v.reshape(x.shape), found)


def rewrite_add(graph: Graph, x: Value, y: Value) -> Node | None:
    """log Σ exp(a - max) + max."""
    for one, other in ((x, y), (y, x)):
        core, movers = _core(one)
        inside = _tag(core, "log")
        if inside is None:
            continue
        found = _weights(graph, inside[0])
        if found is None:
            continue
        summed, before, _, a, axis = found
        top, more = _core(other)
        if not isinstance(top, Node) or _axis(top, "reduce_max") != axis or _tag(top, "reduce_max")[0] is not a:
            continue
        if _is_same(summed, [*movers, *before]) and _is_same(top, more):
            node = composite(graph, logsumexp, axis, a)
            shape = one.shape
            return node if node.shape == shape else linear(graph, lambda v: v.reshape(shape), node)
    return None


def rewrite_select(graph: Graph, which: Node, cases: list[Value]) -> Value | None:
    """A choice by the sign of a sum of exponentials, which is positive where it is finite."""
    condition, _ = _core(which)
    for name, index in (("ge", 1), ("gt", 1), ("lt", 0), ("le", 0)):
        pair = _tag(condition, name)
        if pair is not None and is_zero(pair[1]) and _weights(graph, pair[0]) is not None:
            graph.premises.append(_core(pair[0])[0])
            return cases[index]
    return None


def rewrite_abs(graph: Graph, x: Node) -> Node | None:
    """A sum of exponentials is its own absolute value."""
    return x if _weights(graph, x) is not None else None


for _name in ("rewrite_div", "rewrite_mul", "rewrite_sub", "rewrite_sum", "rewrite_add", "rewrite_select", "rewrite_abs"):
    setattr(graphs, _name, globals()[_name])
