"""Largest values: of two numbers, along axes, in windows; and what goes with them."""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from . import _graph as graphs
from ._graph import TRANSLATIONS, Graph, Value, concrete
from ._interval import Interval, eps, finite_magnitude, is_anything, wide
from ._linear import negative, offset
from ._move import fit, linear, nodes_of
from ._pairs import COMPARISONS, INTEGERS, LOGIC, hull_above, is_finite, maximum
from ._rule import Const, Node, Plane, Relaxation, Rule, ends, exactly, once
from ._scalar import RULES


def _any_unknown(x: Interval) -> Any:
    return jnp.any(is_anything(x), axis=-1)


def _largest_range(node: Node, x: Interval) -> Interval:
    bad = _any_unknown(x)
    return Interval(
        jnp.where(bad, -jnp.inf, jnp.max(x.lower, axis=-1)), jnp.where(bad, jnp.inf, jnp.max(x.upper, axis=-1))
    )


def _largest_relax(node: Node, out: Interval, x: Interval) -> Relaxation:
    """Below: the entry that reaches furthest. Above: the chord between the largest one and the rest, or that entry alone."""
    count = x.lower.shape[-1]
    best = jax.nn.one_hot(jnp.argmax(x.lower + x.upper, axis=-1), count, dtype=wide())
    finite = jnp.all(jnp.isfinite(x.lower) & jnp.isfinite(x.upper), axis=-1)
    low, high = jnp.where(finite[..., None], x.lower, 0), jnp.where(finite[..., None], x.upper, 0)
    own_low, own_high = jnp.sum(best * low, axis=-1), jnp.sum(best * high, axis=-1)
    rest = jnp.max(jnp.where(best > 0, -jnp.inf, high), axis=-1)
    rest = jnp.where(jnp.isfinite(rest), rest, own_low)
    # max(x, rest) of the entry x and a number.
    mixed = (own_low < rest) & (rest < own_high)
    a = jnp.where(
        mixed, (own_high - rest) / jnp.where(mixed, own_high - own_low, 1), jnp.where(rest <= own_low, 1.0, 0.0)
    )
    b = jnp.maximum(rest - a * own_low, own_high - a * own_high)
    b = jnp.where(rest <= own_low, 0, jnp.where(rest >= own_high, rest, b))
    bias_low, bias_high = jnp.where(finite, 0, out.lower), jnp.where(finite, b, out.upper)
    zero = jnp.where(finite, 1.0, 0.0)[..., None]
    rows = lambda c: lambda v: v[..., None] * c
    size = jnp.abs(own_low) + jnp.abs(own_high) + jnp.abs(rest)
    return Relaxation(
        Plane((rows(best * zero),), bias_low),
        Plane((rows(best * a[..., None] * zero),), bias_high),
        8 * eps(wide()) * size,
    )


largest = Rule("reduce_max", _largest_range, exactly, _largest_relax, again=once)


def _winner_range(node: Node, keys: Interval, values: Interval) -> Interval:
    """A value at a largest key, or a mean of such."""
    least = jnp.max(keys.lower, axis=-1, keepdims=True)
    possible = (keys.upper >= least) | is_anything(keys)
    possible = possible | jnp.any(is_anything(keys), axis=-1, keepdims=True)
    low = jnp.min(jnp.where(possible, values.lower, jnp.inf), axis=-1)
    high = jnp.max(jnp.where(possible, values.upper, -jnp.inf), axis=-1)
    return Interval(low, high)


def _winner_relax(node: Node, out: Interval, keys: Interval, values: Interval) -> Relaxation:
    least = jnp.max(keys.lower, axis=-1, keepdims=True)
    possible = (keys.upper >= least) | is_anything(keys)
    sure = jnp.sum(possible, axis=-1) == 1
    row = jnp.where(sure[..., None] & possible, 1.0, 0.0)
    plane = lambda bias: Plane((None, lambda c: c[..., None] * row), jnp.where(sure, 0, bias))
    return Relaxation(plane(out.lower), plane(out.upper), jnp.zeros((), wide()))


winner = Rule("value at the largest key", _winner_range, exactly, _winner_relax)


def _place_range(node: Node, keys: Interval) -> Interval:
    """Where the largest key may be."""
    least = jnp.max(keys.lower, axis=-1, keepdims=True)
    possible = (keys.upper >= least) | jnp.any(is_anything(keys), axis=-1, keepdims=True)
    last = keys.lower.shape[-1] - 1
    return Interval(
        jnp.argmax(possible, axis=-1).astype(node.dtype),
        (last - jnp.argmax(possible[..., ::-1], axis=-1)).astype(node.dtype),
    )


place = Rule("argmax", _place_range, exactly)


def _last(graph: Graph, x: Node, axes: tuple[int, ...]) -> Node:
    """The axes as one, at the end."""
    rest = [a for a in range(len(x.shape)) if a not in axes]
    shape = (*(x.shape[a] for a in rest), math.prod(x.shape[a] for a in axes))
    order = (*rest, *axes)
    return linear(graph, lambda v: jnp.transpose(v, order).reshape(shape), x)


def _top(graph: Graph, x: Node, sign: int = 1) -> Node:
    """The largest (smallest) value along the last axis."""
    if not x.is_float:
        rule = INTEGERS["reduce_max" if sign > 0 else "reduce_min"]
        return graph.add(rule, [x], x.shape[:-1], x.dtype)
    if sign > 0:
        return graph.add(largest, [x], x.shape[:-1], x.dtype)
    return negative(graph, _top(graph, negative(graph, x)))


def _reduce_extreme(sign: int) -> Any:
    def translate(graph: Graph, equation: Any, x: Node) -> Value:
        return _top(graph, _last(graph, x, tuple(int(a) for a in equation.params["axes"])), sign)

    return translate


def _argmax(graph: Graph, equation: Any, x: Node, sign: int = 1) -> Value:
    flat = _last(graph, x, tuple(int(a) for a in equation.params["axes"]))
    if flat.shape[-1] == 1:
        # Of one entry the place is known.
        return Const(jnp.zeros(flat.shape[:-1], equation.params["index_dtype"]))
    if sign < 0:
        flat = negative(graph, flat)
    return graph.add(place, [flat], flat.shape[:-1], equation.params["index_dtype"])


def _windows(graph: Graph, equation: Any, x: Node) -> Node:
    """The entries of each window along a new last axis."""
    p = equation.params
    if any(d != 1 for d in (*p.get("base_dilation", ()), *p.get("window_dilation", ()))):
        raise graph.unsupported("a dilated window")
    if any(tuple(pair) != (0, 0) for pair in p["padding"]):
        raise graph.unsupported("the largest value of windows that are padded")
    size, strides = p["window_dimensions"], p["window_strides"]

    def cut(v: Any) -> Any:
        counts = [(n - s) // t + 1 for n, s, t in zip(v.shape, size, strides, strict=True)]
        parts = []
        for begin in itertools.product(*(range(n) for n in size)):
            stop = [o + (n - 1) * t + 1 for o, n, t in zip(begin, counts, strides, strict=True)]
            parts.append(lax.slice(v, begin, stop, strides))
        return jnp.stack(parts, axis=-1)

    return linear(graph, cut, x)


def _window_max(graph: Graph, equation: Any, x: Node) -> Value:
    return _top(graph, _windows(graph, equation, x))


def _window_winner(graph: Graph, equation: Any, values: Value, keys: Value) -> Value:
    """The derivative of the largest value of windows."""
    if equation.params["select_prim"].name != "ge":
        raise graph.unsupported("this choice in windows")
    parts = [_windows(graph, equation, node) for node in nodes_of(graph, [keys, values])]
    return graph.add(winner, parts, parts[0].shape[:-1], values.dtype)


def _scatter_range(node: Node, keys: Interval, values: Interval) -> Interval:
    possible, sure = _winners(keys)
    low, high = (jnp.broadcast_to(v[..., None], keys.lower.shape) for v in values)
    return Interval(
        jnp.where(sure, low, jnp.where(possible, jnp.minimum(low, 0), 0)),
        jnp.where(sure, high, jnp.where(possible, jnp.maximum(high, 0), 0)),
    )


def _winners(keys: Interval) -> tuple[Any, Any]:
    """Where the largest key may be, and where it is for sure."""
    least = jnp.max(keys.lower, axis=-1, keepdims=True)
    possible = (keys.upper >= least) | jnp.any(is_anything(keys), axis=-1, keepdims=True)
    return possible, possible & (jnp.sum(possible, axis=-1, keepdims=True) == 1)


def _scatter_relax(node: Node, out: Interval, keys: Interval, values: Interval) -> Relaxation:
    possible, sure = _winners(keys)
    shape = keys.lower.shape
    good = jnp.isfinite(values.lower) & jnp.isfinite(values.upper)
    zero = Interval(jnp.zeros_like(values.lower), jnp.zeros_like(values.upper))
    safe = Interval(jnp.where(good, values.lower, 0), jnp.where(good, values.upper, 0))
    a, _, b = hull_above(safe, zero)
    # The smaller of two is minus the larger of their negatives.
    c, _, d = hull_above(Interval(-safe.upper, -safe.lower), zero)
    mixed = possible & ~sure & good[..., None]
    row = lambda v: jnp.where(sure, 1.0, jnp.where(mixed, jnp.broadcast_to(v[..., None], shape), 0.0))
    edge = lambda v, end: jnp.where(mixed, jnp.broadcast_to(v[..., None], shape), jnp.where(sure | ~possible, 0, end))
    back = lambda rows: lambda coefficients: jnp.sum(coefficients * rows, axis=-1)
    lower, upper = row(c), row(a)
    return Relaxation(
        Plane((None, back(lower)), edge(-d, out.lower)),
        Plane((None, back(upper)), edge(b, out.upper)),
        8 * eps(wide()) * finite_magnitude(out),
    )


scatter = Rule("value put at the largest key", _scatter_range, exactly, _scatter_relax)


def _window_scatter(graph: Graph, equation: Any, values: Value, keys: Value) -> Value:
    """The transposed derivative of the largest value of windows: each value at the place of its window's largest key."""
    if equation.params["select_prim"].name != "ge":
        raise graph.unsupported("this choice in windows")
    keys, values = nodes_of(graph, [keys, values])
    windows = _windows(graph, equation, keys)
    placed = graph.add(scatter, [windows, values], windows.shape, values.dtype)
    cut = windows.data.apply
    back = lambda v: jax.linear_transpose(cut, jax.ShapeDtypeStruct(keys.shape, v.dtype))(v)[0]
    count = math.prod(equation.params["window_dimensions"])
    return linear(graph, back, placed, terms=count, span=ends(back))


def _extreme(sign: int) -> Any:
    def translate(graph: Graph, equation: Any, *operands: Value) -> Value:
        out = equation.outvars[0].aval
        for one, other in ((operands[0], operands[1]), (operands[1], operands[0])):
            known = concrete(one)
            if known is not None and (known == -sign * math.inf).all() and other.shape == out.shape:
                return other
        nodes = nodes_of(graph, fit(graph, equation, *operands))
        if not jnp.issubdtype(out.dtype, jnp.floating):
            name = "max" if sign > 0 else "min"
            return graph.add(INTEGERS[name], nodes, out.shape, out.dtype)
        if sign > 0:
            return graph.add(maximum, nodes, out.shape, out.dtype)
        return negative(graph, graph.add(maximum, [negative(graph, n) for n in nodes], out.shape, out.dtype))

    return translate


def _clamp(graph: Graph, equation: Any, low: Value, x: Value, high: Value) -> Value:
    shape = equation.outvars[0].aval.shape
    wide_ = []
    for value in (low, x, high):
        if value.shape != shape:
            if isinstance(value, Const):
                value = Const(jnp.broadcast_to(value.value, shape), value.slack)
            else:
                value = linear(graph, lambda v: jnp.broadcast_to(v, shape), value)
        wide_.append(value)
    low, x, high = nodes_of(graph, wide_)
    dtype = equation.outvars[0].aval.dtype
    if not jnp.issubdtype(dtype, jnp.floating):
        return graph.add(INTEGERS["clamp"], [low, x, high], shape, dtype)
    above = graph.add(maximum, [low, x], shape, dtype)
    return negative(graph, graph.add(maximum, [negative(graph, above), negative(graph, high)], shape, dtype))


def _elementwise(rule: Rule) -> Any:
    def translate(graph: Graph, equation: Any, *operands: Value) -> Value:
        nodes = nodes_of(graph, fit(graph, equation, *operands))
        out = equation.outvars[0].aval
        return graph.add(rule, nodes, out.shape, out.dtype)

    return translate


def _logic(rule: Rule) -> Any:
    def translate(graph: Graph, equation: Any, *operands: Value) -> Value:
        if equation.outvars[0].aval.dtype != bool:
            raise graph.unsupported("bits of integers that vary")
        return _elementwise(rule)(graph, equation, *operands)

    return translate


def _round(graph: Graph, equation: Any, x: Node) -> Value:
    away = equation.params["rounding_method"] == lax.RoundingMethod.AWAY_FROM_ZERO
    return graph.add(RULES["round away from zero" if away else "round"], [x], x.shape, x.dtype)


def _exp(graph: Graph, equation: Any, x: Node) -> Value:
    return graphs.rewrite_exp(graph, x) or graph.add(RULES["exp"], [x], x.shape, x.dtype)


def _sign(graph: Graph, equation: Any, x: Node) -> Value:
    return graph.add(RULES["sign"] if x.is_float else INTEGERS["sign"], [x], x.shape, x.dtype)


def _abs(graph: Graph, equation: Any, x: Node) -> Value:
    return graphs.rewrite_abs(graph, x) or graph.add(RULES["abs"], [x], x.shape, x.dtype)


def _erfc(graph: Graph, equation: Any, x: Node) -> Value:
    erf = graph.add(RULES["erf"], [x], x.shape, x.dtype)
    # Its evaluation is off by some units of what is at most 2.
    one = Const(jnp.ones(x.shape, x.dtype), 256 * float(jnp.finfo(x.dtype).eps))
    return offset(graph, erf, one, x.shape, x.dtype, sign=-1)


TRANSLATIONS |= {name: _elementwise(rule) for name, rule in RULES.items()}
TRANSLATIONS |= {name: _elementwise(rule) for name, rule in COMPARISONS.items()}
TRANSLATIONS |= {name: _logic(rule) for name, rule in LOGIC.items()}
TRANSLATIONS |= {
    "is_finite": _elementwise(is_finite),
    "round": _round,
    "abs": _abs,
    "sign": _sign,
    "erfc": _erfc,
    "max": _extreme(1),
    "min": _extreme(-1),
    "clamp": _clamp,
    "reduce_max": _reduce_extreme(1),
    "reduce_min": _reduce_extreme(-1),
    "argmax": _argmax,
    "argmin": lambda graph, equation, x: _argmax(graph, equation, x, -1),
    "reduce_window_max": _window_max,
    "select_and_gather_add": _window_winner,
    "select_and_scatter_add": _window_scatter,
    "exp": _exp,
}
