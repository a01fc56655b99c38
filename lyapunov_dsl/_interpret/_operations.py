"""What the operations of traced programs compute, in NumPy.

Elementary functions are those of NumPy and SciPy, whose errors differ from the compiler's: tests hold both against the
allowance that the rules of bounds make for them. What is not here is evaluated by XLA, operation by operation.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from scipy import special

Operation = Callable[..., Any]


def _same(x: Any) -> Any:
    return x


def _broadcast(x: Any, *, shape: Any, broadcast_dimensions: Any, **_: Any) -> Any:
    sides = [1] * len(shape)
    for axis, size in zip(broadcast_dimensions, np.shape(x), strict=True):
        sides[axis] = size
    return np.broadcast_to(np.reshape(x, sides), shape)


def _convert(x: Any, *, new_dtype: Any, **_: Any) -> Any:
    return np.asarray(x).astype(new_dtype, copy=False)


def _select(which: Any, *cases: Any) -> Any:
    if which.dtype == bool:
        return np.where(which, cases[-1], cases[0])
    return np.choose(which, cases, mode="clip")


def _power(x: Any, *, y: int) -> Any:
    """By products, as XLA does; NumPy's `power` may be off by more."""
    out, factor, left = None, x, abs(y)
    while left:
        if left & 1:
            out = factor if out is None else out * factor
        left >>= 1
        factor = factor * factor if left else factor
    out = np.ones_like(x) if out is None else out
    return 1 / out if y < 0 else out


def _dot(x: Any, y: Any, *, dimension_numbers: Any, **_: Any) -> Any:
    """Products of matrices, with the axes that are summed and those that go along brought together."""
    (sum_x, sum_y), (along_x, along_y) = dimension_numbers
    free_x = [a for a in range(x.ndim) if a not in (*sum_x, *along_x)]
    free_y = [a for a in range(y.ndim) if a not in (*sum_y, *along_y)]
    batch = [x.shape[a] for a in along_x]
    count, rows, columns = ([a.shape[i] for i in of] for a, of in ((x, sum_x), (x, free_x), (y, free_y)))
    left = x.transpose(*along_x, *free_x, *sum_x).reshape(*batch, math.prod(rows), math.prod(count))
    right = y.transpose(*along_y, *sum_y, *free_y).reshape(*batch, math.prod(count), math.prod(columns))
    return np.matmul(left, right).reshape(*batch, *rows, *columns)


def _pad(x: Any, value: Any, *, padding_config: Any) -> Any:
    shape, into, taken = [], [], []
    for size, (low, high, inner) in zip(x.shape, padding_config, strict=True):
        step, whole = inner + 1, max(size + (size - 1) * inner, 0) if size else 0
        total = low + whole + high
        places = [low + i * step for i in range(size)]
        kept = [i for i, place in enumerate(places) if 0 <= place < total]
        shape.append(total)
        taken.append(slice(kept[0], kept[-1] + 1) if kept else slice(0, 0))
        into.append(slice(places[kept[0]], places[kept[-1]] + 1, step) if kept else slice(0, 0))
    # Negative padding has left out entries at the ends.
    out = np.full(shape, value, x.dtype)
    out[tuple(into)] = x[tuple(taken)]
    return out


def _slice(x: Any, *, start_indices: Any, limit_indices: Any, strides: Any) -> Any:
    steps = strides or (1,) * len(start_indices)
    return x[tuple(slice(*v) for v in zip(start_indices, limit_indices, steps, strict=True))]


def _concatenate(*parts: Any, dimension: int) -> Any:
    return np.concatenate(parts, axis=dimension)


def _stack(*parts: Any, axis: int, **_: Any) -> Any:
    return np.stack(parts, axis=axis)


def _split(x: Any, *, sizes: Any, axis: int) -> Any:
    return np.split(x, np.cumsum(sizes)[:-1], axis=axis)


def _unstack(x: Any, *, axis: int) -> Any:
    return [np.take(x, i, axis=axis) for i in range(x.shape[axis])]


def _iota(*, dtype: Any, shape: Any, dimension: int, **_: Any) -> Any:
    sides = [1] * len(shape)
    sides[dimension] = shape[dimension]
    return np.broadcast_to(np.arange(shape[dimension], dtype=dtype).reshape(sides), shape)


def _rounded(x: Any, *, rounding_method: Any) -> Any:
    if int(rounding_method) == 1:
        return np.rint(x)
    # Halves away from zero.
    whole = np.trunc(x)
    return np.where(np.abs(x - whole) >= 0.5, whole + np.sign(x), whole)


def _reduced(function: Callable) -> Operation:
    def apply(x: Any, *, axes: Any, **_: Any) -> Any:
        # NumPy would add up integers in wider ones.
        return function(x, axis=tuple(axes), dtype=x.dtype)

    return apply


def _any_or_all(function: Callable) -> Operation:
    def apply(x: Any, *, axes: Any, **_: Any) -> Any:
        return function(x, axis=tuple(axes))

    return apply


def _largest_of(function: Callable, empty: float) -> Operation:
    def apply(x: Any, *, axes: Any, **_: Any) -> Any:
        return function(x, axis=tuple(axes), initial=empty)

    return apply


def _index_of(function: Callable) -> Operation:
    def apply(x: Any, *, axes: Any, index_dtype: Any) -> Any:
        return function(x, axis=axes[0]).astype(index_dtype)

    return apply


def _cumulated(function: Callable) -> Operation:
    def apply(x: Any, *, axis: int, reverse: bool) -> Any:
        if reverse:
            return np.flip(function(np.flip(x, axis), axis=axis, dtype=x.dtype), axis)
        return function(x, axis=axis, dtype=x.dtype)

    return apply


def _clamp(low: Any, x: Any, high: Any) -> Any:
    return np.minimum(np.maximum(x, low), high)


def _bits(x: Any, *, new_dtype: Any) -> Any:
    return np.ascontiguousarray(x).view(new_dtype).reshape(np.shape(x))


def _shifted(x: Any, by: Any) -> Any:
    size = 8 * x.dtype.itemsize
    return np.where(by < size, np.left_shift(x, np.minimum(by, size - 1)), 0).astype(x.dtype)


def _rsqrt(x: Any) -> Any:
    return 1 / np.sqrt(x)


def _squeezed(x: Any, *, dimensions: Any) -> Any:
    return x.reshape([n for a, n in enumerate(x.shape) if a not in dimensions])


def _reshaped(x: Any, *, new_sizes: Any, **_: Any) -> Any:
    return x.reshape(new_sizes)


# Operations whose parameters do not change what they compute.
PLAIN: dict[str, Operation] = {
    "stop_gradient": _same, "copy": _same, "copy_p": _same,
    "select_n": _select, "square": np.square, "clamp": _clamp,
    "add": np.add, "add_any": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "neg": np.negative, "abs": np.abs,
    "max": np.maximum, "min": np.minimum, "sign": np.sign, "floor": np.floor, "ceil": np.ceil,
    "sqrt": np.sqrt, "rsqrt": _rsqrt, "exp": np.exp, "exp2": np.exp2, "expm1": np.expm1, "log": np.log, "log1p": np.log1p,
    "sin": np.sin, "cos": np.cos, "tan": np.tan, "tanh": np.tanh, "sinh": np.sinh, "cosh": np.cosh,
    "asin": np.arcsin, "acos": np.arccos, "atan": np.arctan, "atan2": np.arctan2, "asinh": np.arcsinh, "acosh": np.arccosh,
    "atanh": np.arctanh, "logistic": special.expit, "erf": special.erf, "erfc": special.erfc, "pow": np.power,
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "not": np.invert, "is_finite": np.isfinite,
    "nextafter": np.nextafter, "shift_left": _shifted,
}  # fmt: skip
SHAPED: dict[str, Operation] = {
    "broadcast_in_dim": _broadcast, "convert_element_type": _convert, "reshape": _reshaped, "squeeze": _squeezed,
    "expand_dims": lambda x, *, dimensions: np.expand_dims(x, dimensions),
    "transpose": lambda x, *, permutation: x.transpose(permutation), "rev": lambda x, *, dimensions: np.flip(x, dimensions),
    "concatenate": _concatenate, "stack": _stack, "split": _split, "unstack": _unstack, "slice": _slice, "pad": _pad,
    "iota": _iota, "dot_general": _dot, "integer_pow": _power, "round": _rounded, "bitcast_convert_type": _bits,
    "reduce_sum": _reduced(np.sum), "reduce_prod": _reduced(np.prod), "reduce_or": _any_or_all(np.any), "reduce_and": _any_or_all(np.all),
    "reduce_max": _largest_of(np.max, -np.inf), "reduce_min": _largest_of(np.min, np.inf),
    "argmax": _index_of(np.argmax), "argmin": _index_of(np.argmin),
    "cumsum": _cumulated(np.cumsum), "cummax": _cumulated(np.maximum.accumulate), "cummin": _cumulated(np.minimum.accumulate),
}  # fmt: skip


def operation(equation: Any) -> tuple[Operation, dict[str, Any]]:
    """What an equation computes of arrays, an array, or a list of them where it has several results; and its parameters."""
    name = equation.primitive.name
    if _takes(equation):
        if name in PLAIN:
            return PLAIN[name], {}
        if name in SHAPED:
            return SHAPED[name], equation.params
    return by_xla(equation), equation.params


def _takes(equation: Any) -> bool:
    """Whether NumPy's operation is the same for these types: floats of 32 and 64 bits, integers of any kind, no reductions
    of numbers to other types."""
    name, params = equation.primitive.name, equation.params
    avals = [v.aval for v in (*equation.invars, *equation.outvars)]
    if any(not hasattr(v, "dtype") or jax.dtypes.issubdtype(v.dtype, jax.dtypes.extended) for v in avals):
        return False
    types = [np.dtype(v.dtype) for v in avals]
    if any(t.kind not in "biuf" or t.name in ("float16", "bfloat16") for t in types):
        return False
    whole = all(t.kind in "iu" for t in types)
    if name in ("div", "integer_pow", "sign") and whole:
        return False
    if name == "convert_element_type" and types[0].kind == "f" and types[-1].kind in "iu":
        return False
    if name == "reshape" and params.get("dimensions") is not None:
        return False
    if name in ("dot_general", "pow", "reduce_max", "reduce_min"):
        return all(t.kind == "f" for t in types)
    if name == "bitcast_convert_type":
        return types[0].itemsize == types[1].itemsize
    if name == "select_n" and types[0].kind != "b":
        return len(equation.invars) < 32
    return True


def by_xla(equation: Any) -> Operation:
    """An operation as JAX evaluates it, compiled by itself."""

    def apply(*args: Any, **params: Any) -> Any:
        with jax.enable_x64(True):
            found = equation.primitive.bind(*map(jax.numpy.asarray, args), **params)
        return [np.asarray(v) for v in found] if equation.primitive.multiple_results else np.asarray(found)

    return apply
