"""The logarithm of a softmax, and the transposed derivative of a softmax, found in the operations that JAX makes of them."""

import functools
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from ._graph import Graph, Value
from ._linear import mul, negative, sub
from ._masks import composite, over_kept
from ._move import linear, nodes_of
from ._pattern import (
    axis_of,
    core_of,
    exponential_sum,
    factor_of,
    is_exponential,
    is_spread,
    operands_of,
    peel,
)
from ._rule import Node
from ._softmax import logsumexp, softmax
from ._softmax_mean import softmax_mean, told

# As many differences of exponents are looked at in one piece.
DIFFERENCES = 100_000


def log_softmax(graph: Graph, x: Node, y: Node) -> Node | None:
    """(a - max a) - log Σ exp(a - max a) is minus the log-sum-exp of a - a_j, for each j."""
    core, movers = core_of(y)
    inside = operands_of(core, "log")
    found = exponential_sum(graph, inside[0]) if inside is not None else None
    if found is None:
        return None
    summed, before, terms, a, axis = found
    if operands_of(terms, "exp") != (x,) or not is_spread(summed, [*movers, *before], x.shape, axis):
        return None
    mask = peel(graph, a)
    last = len(a.shape) - 1
    order = [i for i in range(last + 1) if i != axis] + [axis]
    base = mask.base if mask.vanishes else a
    base = base if axis == last else linear(graph, lambda v: v.transpose(order), base)
    shape, size = base.shape, base.shape[-1]
    lse = composite(graph, logsumexp, axis, a)
    value = sub(
        graph, linear(graph, lambda v: jnp.broadcast_to(v[..., None], shape), lse), base, shape=shape, dtype=a.dtype
    )
    other = value
    if math.prod(shape) * size <= DIFFERENCES:
        off = 1 - np.eye(size)
        less = lambda v: off * (v[..., None, :] - v[..., :, None])
        more = lambda v: off * (v[..., None, :] + v[..., :, None])
        apart = linear(graph, less, base, terms=1, absolute=more, span=None, virtual=True)
        if mask.vanishes:
            keep = np.broadcast_to(mask.keep.transpose(order)[..., None, :], apart.shape)
            other = over_kept(graph, logsumexp, [apart], keep, mask.fill) or value
        else:
            other = graph.add(logsumexp, [apart], shape, a.dtype, virtual=True)
    every = linear(graph, lambda v: jnp.broadcast_to(v[..., None, :], (*shape, size)), base)
    node = negative(graph, graph.add(told, [value, other, every], shape, a.dtype))
    if axis != last:
        node = linear(graph, lambda v: v.transpose(np.argsort(order)), node)
    if mask.vanishes:
        # What is masked is left as it is evaluated.
        plain = sub(graph, x, _wide(graph, y, x.shape), shape=x.shape, dtype=x.dtype)
        node = linear(graph, lambda v, w: lax.select_n(mask.keep, v, w), plain, node)
    return node


def _wide(graph: Graph, value: Node, shape: tuple[int, ...]) -> Node:
    return value if value.shape == shape else linear(graph, lambda v: jnp.broadcast_to(v, shape), value)


def softmax_gradient(graph: Graph, one: Node, other: Node) -> Node | None:
    """e (c / S - Σ (c / S²) e) with exponentials e and their sum S, which is p (c - Σ p c) for p = e / S."""
    for quotient, rest in (pair := operands_of(other, "add_any") or ()) and (pair, pair[::-1]):
        parts = operands_of(quotient, "div")
        found = exponential_sum(graph, parts[1]) if parts is not None else None
        if parts is None or found is None:
            continue
        core, movers, terms, a, axis = found
        c, shape = parts[0], terms.shape
        if not is_exponential(graph, one, terms) or c.shape != shape or not _repeats(core, movers, shape, axis):
            continue
        if _is_mean(graph, _uncovered(graph, rest, a), c, core, terms, axis):
            p, mean = composite(graph, softmax, axis, a), composite(graph, softmax_mean, axis, a, c)
            spread = linear(graph, functools.partial(_repeat, axis=axis, shape=shape), mean)
            (c,) = nodes_of(graph, [c])
            return mul(graph, p, sub(graph, c, spread, shape=shape, dtype=other.dtype), other.dtype)
    return None


def _uncovered(graph: Graph, value: Value, a: Node) -> Value:
    """A value without a mask of zeros, where that keeps all that counts."""
    cover, keep = peel(graph, value), peel(graph, a).keep
    if cover.is_zero and keep is not None and (cover.keep | ~keep).all():
        return cover.base
    return value


def _is_mean(graph: Graph, value: Value, c: Value, total: Node, terms: Node, axis: int) -> bool:
    """Whether a value is -Σ (c / S²) e for each entry along the axis."""
    core, movers = core_of(value)
    turned = operands_of(core, "neg")
    summed, more = core_of(turned[0]) if turned is not None else (None, [])
    if not isinstance(summed, Node) or axis_of(summed, "reduce_sum") != axis:
        return False
    if not is_spread(summed, [*movers, *more], terms.shape, axis):
        return False
    scaled = factor_of(graph, operands_of(summed, "reduce_sum")[0], terms)
    pair = operands_of(scaled, "mul") or ()
    for first, second in pair and (pair, pair[::-1]):
        inverse, before = core_of(second)
        power: Any = operands_of(inverse, "integer_pow")
        if first is not c or power is None or inverse.tag[1]["y"] != -2:
            continue
        found = exponential_sum(graph, power[0])
        if found is not None and found[0] is total:
            return _repeats(total, [*before, *found[1]], terms.shape, axis)
    return False


def _repeat(v: Any, axis: int, shape: tuple[int, ...]) -> Any:
    return jnp.broadcast_to(jnp.expand_dims(v, axis), shape)


def _repeats(core: Node, movers: list[Any], shape: tuple[int, ...], axis: int) -> bool:
    """Whether a copy repeats the core along an axis, once it is broadcast to a shape as an operand is."""
    try:
        return is_spread(core, [lambda v: jnp.broadcast_to(v, shape), *movers], shape, axis)
    except ValueError:
        return False
