"""Sums, differences, products and quotients entry by entry, other types, and choices."""

import functools
import math
from typing import Any

import jax.numpy as jnp
from jax import lax

from . import _graph as graphs
from ._graph import TRANSLATIONS, Graph, Value
from ._interval import Interval, eps, wide, widest
from ._move import fit, linear, nodes_of
from ._pairs import INTEGERS, convert, counted, multiply, select
from ._rule import NONE, Affine, Const, Node, Rule, affine, ends, exactly
from ._scalar import power, reciprocal


def negative(graph: Graph, x: Node) -> Node:
    """-x."""
    data = Affine(lambda v: -v, lambda v: v, 0, lambda v: Interval(-v.upper, -v.lower), plain=True)
    return graph.add(affine, [x], x.shape, x.dtype, data)


TRANSLATIONS["neg"] = lambda graph, equation, x: negative(graph, x)


def is_zero(value: Value) -> bool:
    """Whether a value is a constant of zeros only."""
    known = graphs.concrete(value)
    return known is not None and known.dtype != bool and not known.any()


def add(graph: Graph, *values: Value, shape: Any, dtype: Any, virtual: bool = False) -> Node:
    """The sum of two values of one shape, one of them a node."""
    x, y = values if isinstance(values[0], Node) else values[::-1]
    if isinstance(y, Const):
        return offset(graph, x, y, shape, dtype, virtual)  # pyright: ignore[reportArgumentType]
    span = lambda a, b: Interval(a.lower + b.lower, a.upper + b.upper)
    total = lambda a, b: a + b
    return graph.add(affine, [x, y], shape, dtype, Affine(total, total, 1, span, plain=True), virtual)  # pyright: ignore[reportArgumentType]


def offset(graph: Graph, x: Node, y: Const, shape: Any, dtype: Any, virtual: bool = False, sign: int = 1) -> Node:
    """A constant plus (or minus) a node."""
    same = lambda v: v
    shift = (widest(y.value), NONE if y.slack is None else y.slack)
    if sign > 0:
        data = Affine(same, same, 1, lambda v: v, shift=shift, plain=True)
    else:
        data = Affine(lambda v: -v, same, 1, lambda v: Interval(-v.upper, -v.lower), shift=shift, plain=True)
    return graph.add(affine, [x], shape, dtype, data, virtual)


def _add(graph: Graph, equation: Any, *operands: Value) -> Value:
    x, y = fit(graph, equation, *operands)
    out = equation.outvars[0].aval
    if not jnp.issubdtype(out.dtype, jnp.floating):
        return graph.add(INTEGERS["add"], nodes_of(graph, [x, y]), out.shape, out.dtype)
    for one, other in ((x, y), (y, x)):
        if is_zero(one):
            return other
    found = graphs.rewrite_add(graph, x, y)
    return found or graphs.rewrite_combination(graph, x, y, add(graph, x, y, shape=out.shape, dtype=out.dtype))


def _sub(graph: Graph, equation: Any, *operands: Value) -> Value:
    x, y = fit(graph, equation, *operands)
    out = equation.outvars[0].aval
    if not jnp.issubdtype(out.dtype, jnp.floating):
        return graph.add(INTEGERS["sub"], nodes_of(graph, [x, y]), out.shape, out.dtype)
    if isinstance(x, Const):
        return offset(graph, y, x, out.shape, out.dtype, sign=-1)  # pyright: ignore[reportArgumentType]
    if isinstance(y, Const):
        return offset(graph, x, Const(-widest(y.value), y.slack), out.shape, out.dtype)
    if x is y:
        # Zero where it is finite, and evaluated once.
        graph.premises.append(x)
        return graph.add(_twice, [x], out.shape, out.dtype)
    found = graphs.rewrite_sub(graph, x, y)
    if found is not None:
        return found
    return graphs.rewrite_combination(graph, x, y, sub(graph, x, y, shape=out.shape, dtype=out.dtype), -1)


def _nothing(node: Node, x: Interval) -> Interval:
    zero = jnp.zeros(node.shape, wide())
    return Interval(zero, zero)


_twice = Rule("x - x", _nothing, exactly, within=lambda node, x, spread: 2 * spread)


def sub(graph: Graph, x: Node, y: Node, *, shape: Any, dtype: Any) -> Node:
    """The difference of two nodes of one shape."""
    span = lambda a, b: Interval(a.lower - b.upper, a.upper - b.lower)
    return graph.add(affine, [x, y], shape, dtype, Affine(lambda a, b: a - b, lambda a, b: a + b, 1, span, plain=True))


def scale(graph: Graph, x: Node, factor: Const, dtype: Any, virtual: bool = False, divide: bool = False) -> Node:
    """x times (or divided by) a constant of its shape."""
    value = widest(factor.value)
    size = jnp.abs(value)
    more: dict[str, Any] = {}
    if divide:
        apply, absolute = (lambda v: v / value), (lambda v: v / size)
        if factor.slack is not None:
            # Relative to the divisor, and infinite where that may be zero.
            left = size - factor.slack
            share = jnp.where(left > 0, factor.slack / jnp.where(left > 0, left, 1), jnp.inf)
            more["uncertain"] = lambda v: jnp.where(share > 0, share * v / size, 0)
    else:
        apply, absolute = (lambda v: v * value), (lambda v: v * size)
        if factor.slack is not None:
            more["uncertain"] = lambda v: v * factor.slack

    def span(v: Interval) -> Interval:
        one, other = apply(v.lower), apply(v.upper)
        bad = jnp.isnan(one) | jnp.isnan(other)
        low, high = jnp.minimum(one, other), jnp.maximum(one, other)
        return Interval(jnp.where(bad, -jnp.inf, low), jnp.where(bad, jnp.inf, high))

    return graph.add(affine, [x], x.shape, dtype, Affine(apply, absolute, 1, span, **more), virtual)


def _mul(graph: Graph, equation: Any, *operands: Value) -> Value:
    x, y = fit(graph, equation, *operands)
    out = equation.outvars[0].aval
    if not jnp.issubdtype(out.dtype, jnp.floating):
        raise graph.unsupported("a product of integers that vary")
    if isinstance(x, Const):
        x, y = y, x
    if isinstance(y, Const):
        return scale(graph, x, y, out.dtype)  # pyright: ignore[reportArgumentType]
    return mul(graph, x, y, out.dtype)  # pyright: ignore[reportArgumentType]


def mul(graph: Graph, x: Node, y: Node, dtype: Any, virtual: bool = False) -> Node:
    """The product of two nodes of one shape."""
    if x is y:
        return graph.add(power(2), [x], x.shape, dtype, 2, virtual)
    found = graphs.rewrite_mul(graph, x, y) or graphs.rewrite_activation(graph, x, y)
    return found or graph.add(multiply, [x, y], x.shape, dtype, None, virtual)


def _div(graph: Graph, equation: Any, *operands: Value) -> Value:
    x, y = fit(graph, equation, *operands)
    out = equation.outvars[0].aval
    if not jnp.issubdtype(out.dtype, jnp.floating):
        raise graph.unsupported("a quotient of integers that vary")
    if isinstance(y, Const):
        return scale(graph, x, y, out.dtype, divide=True)  # pyright: ignore[reportArgumentType]
    found = graphs.rewrite_div(graph, x, y)
    if found is not None:
        return found
    return _quotient(graph, x, y, out)


def _quotient(graph: Graph, x: Value, y: Node, out: Any) -> Node:
    """x / y."""
    one = graphs.concrete(x)
    if one is not None and (one == 1).all():
        return graph.add(reciprocal, [y], out.shape, out.dtype)
    inverse = graph.add(reciprocal, [y], y.shape, y.dtype, virtual=True)
    if isinstance(x, Const):
        return scale(graph, inverse, x, out.dtype)
    return graph.add(multiply, [x, inverse], out.shape, out.dtype)


def _integer_pow(graph: Graph, equation: Any, x: Node) -> Value:
    y, dtype = equation.params["y"], equation.outvars[0].aval.dtype
    if y == 0:
        graph.premises.append(x)
        return Const(jnp.ones(x.shape, dtype))
    found = x if abs(y) == 1 else graph.add(power(abs(y)), [x], x.shape, dtype, abs(y))
    if y > 0:
        return found
    graph.marks[found] = ("power", x, abs(y))
    inverse = graph.add(reciprocal, [found], x.shape, dtype)
    return inverse


def _reduce_sum(graph: Graph, equation: Any, x: Node) -> Value:
    axes = tuple(int(a) for a in equation.params["axes"])
    out = equation.outvars[0].aval
    if not jnp.issubdtype(out.dtype, jnp.floating):
        return graph.add(counted(axes), [x], out.shape, out.dtype)
    return total(graph, x, axes)


def total(graph: Graph, x: Node, axes: tuple[int, ...], virtual: bool = False) -> Node:
    """The sum over axes."""
    count = math.prod(x.shape[a] for a in axes)
    function = lambda v: jnp.sum(v, axis=axes)
    found = None if virtual else graphs.rewrite_sum(graph, x, axes)
    return found or linear(graph, function, x, terms=max(count - 1, 0), span=ends(function), virtual=virtual)


def _cumsum(graph: Graph, equation: Any, x: Node) -> Value:
    function = functools.partial(lax.cumsum, axis=equation.params["axis"], reverse=equation.params["reverse"])
    return linear(graph, function, x, terms=max(x.shape[equation.params["axis"]] - 1, 0), span=ends(function))


def _window_sum(graph: Graph, equation: Any, x: Node) -> Value:
    p = equation.params
    names = ("window_dimensions", "window_strides", "padding", "base_dilation", "window_dilation")
    window, strides, padding, base, dilation = (p[n] for n in names)
    function = lambda v: lax.reduce_window(v, 0.0, lax.add, window, strides, padding, base, dilation)
    return linear(graph, function, x, terms=max(math.prod(window) - 1, 0), span=ends(function))


def _convert(graph: Graph, equation: Any, x: Node) -> Value:
    dtype = equation.params["new_dtype"]
    if dtype == x.dtype:
        # A weak type made a strong one.
        return x
    if x.is_float and jnp.issubdtype(dtype, jnp.floating):
        if eps(dtype) <= eps(x.dtype) and float(jnp.finfo(dtype).max) >= float(jnp.finfo(x.dtype).max):
            return linear_as(graph, x, dtype, 0)
        return linear_as(graph, x, dtype, 1)
    if x.is_float:
        raise graph.unsupported("a floating-point number made an integer")
    return graph.add(convert, [x], x.shape, dtype)


def linear_as(graph: Graph, x: Node, dtype: Any, terms: int) -> Node:
    """The same numbers in another floating-point type."""
    same = lambda v: v
    return graph.add(affine, [x], x.shape, dtype, Affine(same, same, terms, ends(same)))


def _select(graph: Graph, equation: Any, which: Value, *cases: Value) -> Value:
    shape = equation.outvars[0].aval.shape
    known = [graphs.concrete(case) for case in cases]
    if all(v is not None and v.tobytes() == known[0].tobytes() for v in known) and known[0].shape == shape:
        # A constant, which compilers merge with others; 0 and -0 are two, as functions may tell them apart.
        return cases[0]
    if isinstance(which, Const):
        known = graphs.concrete(which)
        if known is not None and known.size and (known == known.flat[0]).all():
            # One case everywhere, as in a variance, which is NaN where there are too few entries.
            return cases[int(known.flat[0])]
        if which.shape == () and shape != ():
            which = Const(jnp.broadcast_to(which.value, shape))
        nodes = nodes_of(graph, list(cases))
        first = jnp.asarray(which.value)
        if not nodes[0].is_float:
            return graph.add(select, [graph.point(which), *nodes], shape, nodes[0].dtype)
        return linear(graph, lambda *v: lax.select_n(first, *v), *nodes)
    if which.shape != shape:
        which = linear(graph, lambda v: jnp.broadcast_to(v, shape), which)
    return graphs.rewrite_select(graph, which, list(cases)) or pick(graph, which, list(cases))


def pick(graph: Graph, which: Value, cases: list[Value]) -> Value:
    """One of several values of one shape, by a condition that varies."""
    nodes = nodes_of(graph, cases)
    shape = nodes[0].shape
    (condition,) = nodes_of(graph, [which])
    if condition.shape != shape:
        condition = linear(graph, lambda v: jnp.broadcast_to(v, shape), condition)
    return graph.add(select, [condition, *nodes], shape, nodes[0].dtype)


TRANSLATIONS |= {
    "add": _add,
    "add_any": _add,
    "sub": _sub,
    "mul": _mul,
    "div": _div,
    "integer_pow": _integer_pow,
    "square": lambda graph, equation, x: graph.add(power(2), [x], x.shape, x.dtype, 2),
    "reduce_sum": _reduce_sum,
    "cumsum": _cumsum,
    "reduce_window_sum": _window_sum,
    "convert_element_type": _convert,
    "select_n": _select,
}
