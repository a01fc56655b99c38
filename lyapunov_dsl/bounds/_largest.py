"""Which entries are the largest (or least) ones along axes, and how many: what derivatives of maxima are made of.

JAX shares a derivative equally among the entries that are equal to the maximum. At least one is, as long as the entries that
are compared are those that the maximum was taken of, and not evaluated anew.
"""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from ._graph import TRANSLATIONS, Graph, Value
from ._interval import Interval, eps, is_anything
from ._move import nodes_of
from ._pairs import COMPARISONS
from ._pattern import core_of, operands_of, places_of
from ._rule import Affine, Node, Rule, affine, exactly


def _places(x: Interval, axes: tuple[int, ...], sign: int) -> Interval:
    """Where the largest entries are for sure, and where they may be."""
    low, high = (x.lower, x.upper) if sign > 0 else (-x.upper, -x.lower)
    unknown = jnp.any(is_anything(x), axis=axes, keepdims=True)
    possible = (high >= jnp.max(low, axis=axes, keepdims=True)) | unknown
    alone = jnp.sum(possible, axis=axes, keepdims=True) == 1
    return Interval(possible & alone & ~unknown, possible)


def _apart(spread: Any, x: Interval) -> Any:
    """Where two evaluations of an entry may differ."""
    return jnp.broadcast_to(jnp.asarray(spread) > 0, jnp.shape(x.lower))


def _among_range(node: Node, x: Interval) -> Interval:
    return _places(x, *node.data)


def _among_within(node: Node, x: Interval, spread: Any) -> Interval:
    """An entry that is evaluated anew need not be equal to any maximum."""
    found = _places(x, *node.data)
    return Interval(found.lower & ~_apart(spread, x), found.upper)


among = Rule("among the largest", _among_range, exactly, within=_among_within)


def _count_range(node: Node, x: Interval) -> Interval:
    axes, sign = node.data
    found = _places(x, axes, sign)
    unknown = jnp.any(is_anything(x), axis=axes)
    # With NaN among the entries, none is equal to the maximum.
    high = jnp.sum(found.upper, axis=axes).astype(x.lower.dtype)
    return Interval(jnp.where(unknown, -jnp.inf, 1.0), jnp.where(unknown, jnp.inf, high))


def _count_within(node: Node, x: Interval, spread: Any) -> Any:
    """There may be none."""
    axes, _ = node.data
    return jnp.where(jnp.any(_apart(spread, x), axis=axes), 1.0, 0.0)


count = Rule("number of the largest", _count_range, exactly, within=_count_within)


def _chosen(sign: int) -> Rule:
    """x == max(x, y), which is x >= y, or x == min(x, y): of x, the result, and y. Where x may be evaluated anew for the
    comparison, it may differ in its last digits."""
    beyond, equal = COMPARISONS["ge" if sign > 0 else "le"].range, COMPARISONS["eq"].range

    def span(node: Node, x: Interval, top: Interval, y: Interval) -> Interval:
        return beyond(node, x, y)

    def within(node: Node, x: Interval, top: Interval, y: Interval, spread: Any, *_: Any) -> Interval:
        apart, one, other = _apart(spread, x), beyond(node, x, y), equal(node, x, top)
        return Interval(*(jnp.where(apart, v, w) for v, w in zip(other, one, strict=True)))

    return COMPARISONS["eq"]._replace(range=span, within=within)


CHOSEN = {"max": _chosen(1), "min": _chosen(-1)}


def _is_rounded_once(x: Node) -> bool:
    """Whether two evaluations of a value that is compared are the same: a constant times a sum of many, as a mean or a variance
    is. Such a sum is evaluated once, and of products only sums take up what is not rounded."""
    product, _ = core_of(x)
    if operands_of(product, "mul") is None and operands_of(product, "div") is None:
        return False
    if product.rule is not affine or len(product.inputs) != 1:
        return False
    scaled: Affine = product.data
    if scaled.terms != 1 or scaled.plain or scaled.shift is not None or scaled.uncertain is not None:
        return False
    summed, _ = core_of(product.inputs[0])
    return isinstance(summed, Node) and summed.rule is affine and summed.data.terms > 1 and not summed.virtual


def _extreme_of(x: Node, top: Value) -> tuple[tuple[int, ...], int] | None:
    """(axes, sign) where a value is the maximum (sign 1) or the minimum of x over the axes, repeated along them."""
    core, movers = core_of(top)
    for name, sign in (("reduce_max", 1), ("reduce_min", -1)):
        if operands_of(core, name) != (x,):
            continue
        axes = tuple(int(a) for a in core.tag[1]["axes"])
        places = np.arange(core.size).reshape(core.shape)
        try:
            found = np.broadcast_to(places_of(core, movers), x.shape)
        except ValueError:
            return None
        if (found == np.broadcast_to(np.expand_dims(places, axes), x.shape)).all():
            return axes, sign
    return None


def _equal(graph: Graph, equation: Any, x: Value, y: Value) -> Value:
    out = equation.outvars[0].aval
    for one, top in ((x, y), (y, x)):
        if not isinstance(one, Node) or not one.is_float:
            continue
        for name, rule in CHOSEN.items():
            pair = operands_of(top, name)
            if pair is not None and any(v is one for v in pair):
                other = pair[1] if pair[0] is one else pair[0]
                rule = rule._replace(within=None) if _is_rounded_once(one) else rule
                return graph.add(rule, nodes_of(graph, [one, top, other]), out.shape, out.dtype)
        found = _extreme_of(one, top)
        if found is not None and one.shape == out.shape:
            return graph.add(among, [one], out.shape, out.dtype, found)
    return _plain_equal(graph, equation, x, y)


_plain_equal, TRANSLATIONS["eq"] = TRANSLATIONS["eq"], _equal


def count_of_largest(graph: Graph, x: Node, axes: tuple[int, ...]) -> Node | None:
    """The sum of the numbers 1 at the largest entries, and 0 elsewhere."""
    (source,) = operands_of(x, "convert_element_type") or (None,)
    if not isinstance(source, Node) or source.rule is not among or set(source.data[0]) != set(axes):
        return None
    # Beyond that, numbers of the type are no longer counted one by one.
    if math.prod(x.shape[a] for a in axes) * eps(x.dtype) >= 1:
        return None
    shape = tuple(n for a, n in enumerate(x.shape) if a not in axes)
    return graph.add(count, source.inputs, shape, x.dtype, source.data)
