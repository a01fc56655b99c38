"""Products of matrices and convolutions, with constants or of two that vary."""

import contextlib
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from . import _graph as graphs
from ._graph import TRANSLATIONS, Graph, Value
from ._interval import widest
from ._linear import add, mul
from ._move import linear, nodes_of
from ._rule import Affine, Const, Node, affine, ends


def contraction(graph: Graph, function: Callable, x: Value, y: Value, out: Any, terms: int) -> Node:
    """A bilinear function of a node and a constant, either way around."""
    turned = isinstance(x, Const)
    node, const = (y, x) if turned else (x, y)
    assert isinstance(node, Node)
    assert isinstance(const, Const)
    call = (lambda w: lambda v: function(w, v)) if turned else (lambda w: lambda v: function(v, w))
    value = widest(const.value)
    more: dict[str, Any] = {} if const.slack is None else {"uncertain": call(jnp.asarray(const.slack))}
    data = Affine(call(value), call(abs(value)), terms, **more)
    return graph.add(affine, [node], out.shape, out.dtype, data)


def check_precision(graph: Graph, equation: Any, dtype: Any) -> None:
    """Fewer digits than the type has are no part of the model of rounding."""
    if jnp.finfo(dtype).bits < 32:
        raise graph.unsupported("a product in half precision")


def _dot_general(graph: Graph, equation: Any, x: Value, y: Value) -> Value:
    p, out = equation.params, equation.outvars[0].aval
    check_precision(graph, equation, out.dtype)
    (cx, cy), (bx, by) = p["dimension_numbers"]
    function = functools.partial(
        lax.dot_general, dimension_numbers=p["dimension_numbers"], precision=lax.Precision.HIGHEST
    )
    if isinstance(x, Const) or isinstance(y, Const):
        const = y if isinstance(y, Const) else x
        # As many terms forward as are contracted, backward as the constant has other entries.
        contracted = math.prod(x.shape[a] for a in cx)
        size = math.prod(const.shape) // max(math.prod(x.shape[a] for a in bx), 1)
        terms = max(contracted, size // max(contracted, 1))
        if not bx and len(cx) == 1:
            return _by_parts(graph, function, x, y, out, terms, (cx[0], cy[0]))
        return contraction(graph, function, x, y, out, terms)
    # Every product of two that vary, then their sum.
    free_x = [a for a in range(len(x.shape)) if a not in (*cx, *bx)]
    free_y = [a for a in range(len(y.shape)) if a not in (*cy, *by)]
    batch, inner = [x.shape[a] for a in bx], [x.shape[a] for a in cx]
    rows, columns = [x.shape[a] for a in free_x], [y.shape[a] for a in free_y]
    shape = (*batch, *rows, *columns, *inner)
    left = lambda v: jnp.broadcast_to(
        jnp.transpose(v, (*bx, *free_x, *cx)).reshape(*batch, *rows, *[1] * len(columns), *inner), shape
    )
    right = lambda v: jnp.broadcast_to(
        jnp.transpose(v, (*by, *free_y, *cy)).reshape(*batch, *[1] * len(rows), *columns, *inner), shape
    )
    if math.prod(shape) > 10_000_000:
        raise graph.unsupported("a product of large arrays that both vary")
    terms = mul(graph, linear(graph, left, x), linear(graph, right, y), out.dtype, virtual=True)
    axes = tuple(range(len(shape) - len(inner), len(shape)))
    if not axes:
        return graph.add(affine, [terms], shape, out.dtype, Affine(lambda v: v, lambda v: v, 1, ends(lambda v: v)))
    count = math.prod(inner)
    found = graphs.rewrite_sum(graph, terms, axes)
    function = lambda v: jnp.sum(v, axis=axes)
    return found or linear(graph, function, terms, terms=count + 1, span=ends(function))


def _by_parts(graph: Graph, function: Callable, x: Value, y: Value, out: Any, terms: int, axes: Any) -> Node:
    """A contraction with what was concatenated, part by part, so that constant parts (a context beside a state) have no
    coefficients to compute."""
    node, const = (x, y) if isinstance(y, Const) else (y, x)
    joined = node.tag if isinstance(node, Node) else None
    at, other = axes if node is x else axes[::-1]
    fixed = lambda v: isinstance(v, Const) and v.slack is None
    if joined is None or joined[0] != "concatenate" or joined[1]["dimension"] != at or not any(map(fixed, joined[2])):
        return contraction(graph, function, x, y, out, terms)
    assert isinstance(const, Const)
    begin, results = 0, []
    for part in joined[2]:
        end = begin + part.shape[at]
        cut = lambda v, begin=begin, end=end: lax.slice_in_dim(jnp.asarray(v), begin, end, axis=other)
        weights = Const(cut(const.value), None if const.slack is None else cut(const.slack))
        pair = (part, weights) if node is x else (weights, part)
        if isinstance(part, Node):
            results.append(contraction(graph, function, *pair, out, terms + 1))
        else:
            (point,) = nodes_of(graph, [part])
            known = contraction(graph, function, *((point, weights) if node is x else (weights, point)), out, terms + 1)
            with jax.ensure_compile_time_eval() if not graphs.is_traced(part.value) else contextlib.nullcontext():
                value = function(*(widest(v.value) for v in pair))
                spread = graph.range_of(known)
                slack = jnp.maximum(spread.upper - value, value - spread.lower)
            results.append(Const(value, slack))
        begin = end
    # A sum of constants alone is none that varies.
    results.sort(key=lambda v: isinstance(v, Const))
    total = results[0]
    for more in results[1:]:
        total = add(graph, total, more, shape=out.shape, dtype=out.dtype)
    return total


def _conv(graph: Graph, equation: Any, x: Value, y: Value) -> Value:
    p, out = equation.params, equation.outvars[0].aval
    check_precision(graph, equation, out.dtype)
    names = ("window_strides", "padding", "lhs_dilation", "rhs_dilation", "dimension_numbers")
    options = {k: p[k] for k in (*names, "feature_group_count", "batch_group_count")}
    function = functools.partial(lax.conv_general_dilated, precision=lax.Precision.HIGHEST, **options)
    if not isinstance(x, Const) and not isinstance(y, Const):
        raise graph.unsupported("a convolution whose image and kernel both vary")
    kernel = y.shape
    spec = p["dimension_numbers"].rhs_spec
    window = math.prod(kernel[a] for a in spec[2:])
    terms = window * max(kernel[spec[0]], kernel[spec[1]])
    if isinstance(x, Const):
        terms = math.prod(x.shape)
    return contraction(graph, function, x, y, out, terms)


TRANSLATIONS |= {"dot_general": _dot_general, "conv_general_dilated": _conv}
