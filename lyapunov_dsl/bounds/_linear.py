"""Operations that are linear in what varies: moving numbers, sums, and products with constants."""

import contextlib
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from . import _graph as graphs
from ._graph import EXACT, TRANSLATIONS, Graph, Value
from ._interval import Interval, eps, tiny, wide, widest
from ._pairs import INTEGERS, convert, counted, multiply, select, turned
from ._rule import NONE, Affine, Const, Node, Rule, affine, ends, exactly
from ._scalar import power, reciprocal


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


for _name in ("copy", "copy_p", "stop_gradient", "optimization_barrier", "real", "sharding_constraint"):
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


def negative(graph: Graph, x: Node) -> Node:
    """-x."""
    data = Affine(lambda v: -v, lambda v: v, 0, lambda v: Interval(-v.upper, -v.lower), plain=True)
    return graph.add(affine, [x], x.shape, x.dtype, data)


TRANSLATIONS["neg"] = lambda graph, equation, x: negative(graph, x)


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
    return graphs.rewrite_add(graph, x, y) or add(graph, x, y, shape=out.shape, dtype=out.dtype)


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
    return sub(graph, x, y, shape=out.shape, dtype=out.dtype)


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

    whole = None if virtual else _whole(graph, x, factor, divide)
    lost = None if whole is None else _lost(whole, dtype)
    if lost is not None:
        more["uncertain"] = lambda v: jnp.where((lost > 0) & (v > 0), lost * absolute(v), 0)
    node = graph.add(affine, [x], x.shape, dtype, Affine(apply, absolute, 1, span, **more), virtual)
    if whole is not None:
        graph.factors[node] = whole
    return node


def _whole(graph: Graph, x: Node, factor: Const, divide: bool) -> Any:
    """What compilers make one number of: a constant factor, or one over a divisor, and those before it."""
    known = graphs.concrete(factor)
    if known is None:
        return None
    size = np.abs(known.astype(np.float64))
    with np.errstate(divide="ignore", over="ignore", under="ignore"):
        return graph.factors.get(x, 1.0) * (1 / size if divide else size)


def _lost(whole: Any, dtype: Any) -> Any:
    """The share of a product that is lost where its factor, as one number, has become 0 or infinite."""
    least, most = tiny(dtype), float(jnp.finfo(dtype).max)
    # Divisors and factors of one number are safe up to the largest one.
    share = np.where((whole != 0) & (whole < 2 * least), 1.0, np.where(whole > most, np.inf, 0.0))
    return share if share.any() else None


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
    return _turned(graph, x, y, _quotient(graph, x, y, out))


def _quotient(graph: Graph, x: Value, y: Node, out: Any) -> Node:
    """x / y."""
    one = graphs.concrete(x)
    if one is not None and (one == 1).all():
        return graph.add(reciprocal, [y], out.shape, out.dtype)
    inverse = graph.add(reciprocal, [y], y.shape, y.dtype, virtual=True)
    if isinstance(x, Const):
        return scale(graph, inverse, x, out.dtype)
    return graph.add(multiply, [x, inverse], out.shape, out.dtype)


def _turned(graph: Graph, x: Value, y: Value, quotient: Node) -> Node:
    """A quotient of quotients, which compilers evaluate as one of products: (a/b) / (c/d) as (a d) / (b c)."""
    parts = [v.tag[2] if isinstance(v, Node) and v.tag is not None and v.tag[0] == "div" else None for v in (x, y)]
    if parts == [None, None]:
        return quotient
    (a, b), (c, d) = (p or (v, None) for p, v in zip(parts, (x, y), strict=True))
    values = [v for v in (a, d, b, c) if v is not None]
    if any(v.shape not in ((), quotient.shape) for v in values):
        return quotient
    count = 2 if d is not None else 1
    filled = [graph.point(v) if isinstance(v, Const) else v for v in values]
    return graph.add(turned, [quotient, *filled], quotient.shape, quotient.dtype, count)


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
    return linear(graph, function, x, terms=x.shape[equation.params["axis"]], span=ends(function))


def _window_sum(graph: Graph, equation: Any, x: Node) -> Value:
    p = equation.params
    names = ("window_dimensions", "window_strides", "padding", "base_dilation", "window_dilation")
    window, strides, padding, base, dilation = (p[n] for n in names)
    function = lambda v: lax.reduce_window(v, 0.0, lax.add, window, strides, padding, base, dilation)
    return linear(graph, function, x, terms=math.prod(window), span=ends(function))


def contraction(graph: Graph, function: Callable, x: Value, y: Value, out: Any, terms: int) -> Node:
    """A bilinear function of a node and a constant, either way around."""
    turned = isinstance(x, Const)
    node, const = (y, x) if turned else (x, y)
    assert isinstance(node, Node)
    assert isinstance(const, Const)
    call = (lambda w: lambda v: function(w, v)) if turned else (lambda w: lambda v: function(v, w))
    value = widest(const.value)
    more: dict[str, Any] = {} if const.slack is None else {"uncertain": call(jnp.asarray(const.slack))}
    data = Affine(call(value), call(jnp.abs(value)), terms, **more)
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
                spread = graphs.range_of(known)
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


def _convert(graph: Graph, equation: Any, x: Node) -> Value:
    dtype = equation.params["new_dtype"]
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
    if isinstance(which, Const):
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


def _index(graph: Graph, value: Value, turn: int) -> Value:
    if isinstance(value, Const):
        return Const(value.value[turn], None if value.slack is None else value.slack[turn])
    return linear(graph, lambda v: v[turn], value)


def _stack(graph: Graph, values: list[Value]) -> Value:
    if all(isinstance(v, Const) and v.slack is None for v in values):
        return Const(jnp.stack([v.value for v in values]))  # pyright: ignore[reportAttributeAccessIssue]
    return linear(graph, lambda *v: jnp.stack(v), *nodes_of(graph, values))


graphs.index, graphs.stack, graphs.choose, graphs.fit = _index, _stack, pick, fit
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
    "dot_general": _dot_general,
    "conv_general_dilated": _conv,
    "convert_element_type": _convert,
    "select_n": _select,
}
