"""Finds softmax, log-sum-exp and the mean under a softmax in the operations that JAX makes of them and of their derivatives.

What is found is equal in real arithmetic whatever the shift of the exponents, and the slack of the composites covers the
evaluation by shifted exponentials. Code that is not recognized is bounded operation by operation, which is looser.
"""

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np

from . import _graph as graphs
from ._graph import TRANSLATIONS, Graph, Value, concrete
from ._interval import wide
from ._largest import count_of_largest
from ._linear import add, is_zero, mul, negative, sub
from ._log_softmax import log_softmax, softmax_gradient
from ._masks import composite, masked_exponential
from ._move import linear, nodes_of
from ._pattern import (
    axis_of,
    core_of,
    exponential_sum,
    factor_of,
    is_exponential,
    is_same,
    is_spread,
    is_stopped,
    operands_of,
    peel,
    places_of,
)
from ._rule import Const, Node
from ._softmax import logsumexp, softmax
from ._softmax_mean import softmax_mean, tie, told


def _mean(graph: Graph, axis: int, a: Node, b: Value) -> Node:
    return composite(graph, softmax_mean, axis, a, b)


def rewrite_div(graph: Graph, x: Value, y: Node) -> Node | None:
    """exp(a - max) / Σ exp(a - max) and Σ b exp(a - max) / Σ exp(a - max)."""
    found = exponential_sum(graph, y)
    if found is None or not isinstance(x, Node):
        return None
    core, movers, terms, a, axis = found
    if x.shape == terms.shape and is_spread(core, movers, terms.shape, axis):
        if is_exponential(graph, x, terms):
            return composite(graph, softmax, axis, a)
        b = factor_of(graph, x, terms)
        if b is not None:
            p = composite(graph, softmax, axis, a)
            (node,) = (v if isinstance(v, Node) else graph.point(v) for v in (b,))
            return mul(graph, node, p, x.dtype)
        return None
    numerator, others = core_of(x)
    if isinstance(numerator, Node) and axis_of(numerator, "reduce_sum") == axis and x.shape == y.shape:
        b = factor_of(graph, operands_of(numerator, "reduce_sum")[0], terms)
        if b is not None and is_same(core, movers) and is_same(numerator, others):
            mean = _mean(graph, axis, a, b)
            return _shaped(graph, mean, x.shape)
    return None


def rewrite_mul(graph: Graph, x: Node, y: Node) -> Node | None:
    """exp(a - max) · (1 / Σ exp(a - max)), and (-Σ b e · e) · Σ^-2 for the derivative of a quotient, and its transpose."""
    for one, other in ((x, y), (y, x)):
        if (found := softmax_gradient(graph, one, other)) is not None:
            return found
        inverse, movers = core_of(other)
        parts = operands_of(inverse, "div")
        if parts is not None and concrete(parts[0]) is not None and (concrete(parts[0]) == 1).all():
            found = exponential_sum(graph, parts[1])
            if found is not None and is_exponential(graph, one, found[2]) and is_same(found[0], found[1]):
                core, _, terms, a, axis = found
                if inverse.shape == core.shape and is_spread(inverse, movers, terms.shape, axis):
                    return composite(graph, softmax, axis, a)
        powered = operands_of(inverse, "integer_pow")
        if powered is not None and inverse.tag[1]["y"] == -2:
            found = exponential_sum(graph, powered[0])
            if found is None:
                continue
            core, before, terms, a, axis = found
            if not is_spread(core, [*movers, *before], terms.shape, axis):
                continue
            inner = factor_of(graph, one, terms)
            core_inner, spread = core_of(inner)
            # The sign may stand before or behind the copying.
            turned = operands_of(core_inner, "neg")
            if turned is None:
                continue
            summed, more = core_of(turned[0])
            if not isinstance(summed, Node) or axis_of(summed, "reduce_sum") != axis:
                continue
            b = factor_of(graph, operands_of(summed, "reduce_sum")[0], terms)
            if b is not None and is_spread(summed, [*spread, *more], terms.shape, axis):
                mean = _mean(graph, axis, a, b)
                spread_out = functools.partial(_repeat, shape=terms.shape, axis=axis)
                p = composite(graph, softmax, axis, a)
                return negative(graph, mul(graph, linear(graph, spread_out, mean), p, x.dtype))
    return None


def _repeat(v: Any, shape: tuple[int, ...], axis: int) -> Any:
    return jnp.broadcast_to(jnp.expand_dims(v, axis), shape)


def _shaped(graph: Graph, node: Node, shape: tuple[int, ...]) -> Node:
    return node if node.shape == shape else linear(graph, lambda v: v.reshape(shape), node)


def _weighted(graph: Graph, node: Node, row: np.ndarray, axis: int) -> Node:
    """Σ c v over an axis, for constants c."""
    total = lambda weights: lambda v: jnp.sum(v * weights, axis=axis)
    return linear(graph, total(row), node, terms=node.shape[axis], absolute=total(abs(row)), span=None)


def rewrite_sum(graph: Graph, x: Node, axes: tuple[int, ...]) -> Node | None:
    """Σ b softmax(a) and Σ b (softmax(a) + constant), and how many entries are the largest."""
    if (found := count_of_largest(graph, x, axes)) is not None:
        return found
    if len(axes) != 1 or x.rule is None or x.rule.name != "mul":
        return None
    (axis,) = axes
    for one, other in (x.inputs, x.inputs[::-1]):
        core, movers = core_of(_unmasked(graph, one))
        parts = operands_of(core, "add_any") or operands_of(core, "add") or ()
        pairs = [(core, None)]
        if parts:
            pairs += [(p, q) for p, q in (parts, parts[::-1]) if concrete(q) is not None]
        for p, constant in pairs:
            last = axis == len(x.shape) - 1
            if not (isinstance(p, Node) and p.shape == x.shape == core.shape and last):
                continue
            a = p.inputs[0] if p.rule is softmax else graph.marks.get(("masked softmax", p), (None, None))[1]
            if a is None or not is_same(core, movers):
                continue
            mean = composite(graph, softmax_mean, axis, a, other)
            if constant is None:
                return mean
            row = concrete(constant)
            chosen = np.flatnonzero(row)
            if row.ndim == 1 and len(chosen) == 1 and row[chosen[0]] == -1:
                return shifted(graph, mean, _one_hot(int(chosen[0]), len(row)), int(chosen[0]))
            weighted = _weighted(graph, other, row, axis)
            return add(graph, mean, weighted, shape=mean.shape, dtype=mean.dtype)
    return None


def _unmasked(graph: Graph, value: Any) -> Any:
    """The masked softmax that a value is, also where the mask is laid over it once more."""
    cover = peel(graph, value)
    mark = graph.marks.get(("masked softmax", cover.base))
    again = mark is not None and cover.is_zero and bool((cover.keep | ~peel(graph, mark[1]).keep).all())
    return cover.base if again else value


def _one_hot(place: int, size: int) -> np.ndarray:
    return (np.arange(size) == place).astype(np.float64)


def difference(graph: Graph, a: Node, own: Any, virtual: bool = True) -> Node:
    """a - a_i over the last axis, exactly 0 at i, where `own` is 1."""
    at = lambda v: jnp.sum(own * v, axis=-1, keepdims=True)
    less, size = (lambda v: (1 - own) * (v - at(v))), (lambda v: (1 - own) * (v + at(v)))
    return linear(graph, less, a, terms=1, absolute=size, span=None, virtual=virtual)


def shifted(graph: Graph, node: Node, own: Any, name: Any) -> Node:
    """m(a, t) - t_i as m(a, t - t_i), and lse(a) - a_i as lse(a - a_i): what the differences range over is less than what the
    range of both sides allows."""
    key = ("shifted", node, name)
    if key not in graph.marks:
        *first, last = node.inputs
        exact = graph.add(node.rule, [*first, difference(graph, last, own)], node.shape, node.dtype, virtual=True)  # pyright: ignore[reportArgumentType]
        if node.rule is softmax_mean:
            graph.marks[key] = graph.add(tie, [exact, *node.inputs], node.shape, node.dtype)
        else:
            graph.marks[key] = _told(graph, node, exact, last, own)
    return graph.marks[key]


def _told(graph: Graph, lse: Node, other: Node, a: Node, own: Any) -> Node:
    entry = linear(graph, lambda v: jnp.sum(own * v, axis=-1), a)
    value = sub(graph, lse, entry, shape=lse.shape, dtype=lse.dtype)
    return graph.add(told, [value, other, a], lse.shape, lse.dtype)


def _margins(graph: Graph, equation: Any, z: Node, label: Any) -> Node:
    """z - z_label, remembered as such."""
    if not isinstance(label, Const):
        raise graph.unsupported("a class that depends on the input")
    own = (jnp.arange(z.shape[-1]) == jnp.asarray(label.value)[..., None]).astype(wide())
    node = difference(graph, z, own, virtual=False)
    graph.marks[node] = ("margins", z, own)
    return node


def _lse(graph: Graph, equation: Any, d: Node) -> Node:
    """Of margins, the planes are those of lse(z) - z_label."""
    axis = len(d.shape) - 1
    node = composite(graph, logsumexp, axis, d)
    mark = graph.marks.get(d)
    if mark is None:
        return node
    _, z, own = mark
    key = ("of margins", z)
    if key not in graph.marks:
        graph.marks[key] = graph.add(logsumexp, [z], d.shape[:-1], d.dtype, virtual=True)
    return _told(graph, graph.marks[key], node, z, own)


def _softmax_mean(graph: Graph, equation: Any, d: Value, t: Value) -> Node:
    """Of margins, the weights are those of the logits."""
    d, t = nodes_of(graph, [d, t])
    mark = graph.marks.get(d)
    a = d if mark is None else mark[1]
    return composite(graph, softmax_mean, len(a.shape) - 1, a, t)


def rewrite_sub(graph: Graph, x: Node, y: Node) -> Node | None:
    """A mean under a softmax minus one of its values; a log-sum-exp minus one of its exponents; a log softmax."""
    core, movers = core_of(x)
    found = log_softmax(graph, x, y)
    if found is not None:
        return found
    if not isinstance(core, Node) or core.rule not in (softmax_mean, logsumexp) or not is_same(core, movers):
        return None
    source, more = core_of(core.inputs[-1])
    other, less = core_of(y)
    if other is not source or not isinstance(source, Node) or y.size != core.size:
        return None
    rows = places_of(source, more).reshape(core.size, -1)
    (places,) = np.nonzero((rows == places_of(source, less).reshape(-1, 1)).all(axis=0))
    if len(places) != 1:
        return None
    place = int(places[0])
    found = shifted(graph, core, _one_hot(place, rows.shape[1]), place)
    return _shaped(graph, found, x.shape)


def rewrite_add(graph: Graph, x: Value, y: Value) -> Node | None:
    """log Σ exp(a - max) + max."""
    for one, other in ((x, y), (y, x)):
        core, movers = core_of(one)
        inside = operands_of(core, "log")
        if inside is None:
            continue
        found = exponential_sum(graph, inside[0])
        if found is None:
            continue
        summed, before, terms, a, axis = found
        top, more = core_of(other, stopped=True)
        (difference,) = operands_of(terms, "exp")
        # The shift drops out of the derivative where both sides have one, or neither.
        if is_stopped(other) != is_stopped(operands_of(difference, "sub")[1]):
            continue
        if (
            not isinstance(top, Node)
            or axis_of(top, "reduce_max") != axis
            or operands_of(top, "reduce_max")[0] is not a
        ):
            continue
        if is_same(summed, [*movers, *before]) and is_same(top, more):
            node = composite(graph, logsumexp, axis, a)
            return _shaped(graph, node, one.shape)
    return None


def rewrite_select(graph: Graph, which: Node, cases: list[Value]) -> Value | None:
    """A choice by the sign of a sum of exponentials, which is positive where it is finite."""
    condition, _ = core_of(which)
    for name, index in (("ge", 1), ("gt", 1), ("lt", 0), ("le", 0)):
        pair = operands_of(condition, name)
        if pair is not None and is_zero(pair[1]) and exponential_sum(graph, pair[0]) is not None:
            graph.premises.append(core_of(pair[0])[0])
            return cases[index]
    return None


def _exp(graph: Graph, equation: Any, x: Value) -> Value:
    return masked_exponential(graph, x) or _plain_exp(graph, equation, x)


_plain_exp, TRANSLATIONS["exp"] = TRANSLATIONS["exp"], _exp


def rewrite_abs(graph: Graph, x: Node) -> Node | None:
    """A sum of exponentials is its own absolute value."""
    return x if exponential_sum(graph, x) is not None else None


for _name in (
    "rewrite_div",
    "rewrite_mul",
    "rewrite_sub",
    "rewrite_sum",
    "rewrite_add",
    "rewrite_select",
    "rewrite_abs",
):
    setattr(graphs, _name, globals()[_name])


TRANSLATIONS |= {
    "lyapunov_dsl_margins": _margins,
    "lyapunov_dsl_logsumexp": _lse,
    "lyapunov_dsl_softmax_mean": _softmax_mean,
}
