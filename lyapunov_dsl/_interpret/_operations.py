"""What the operations of traced programs compute, in NumPy.

Elementary functions are those of NumPy and SciPy, whose errors differ from the compiler's: tests hold both against the
allowance that the rules of bounds make for them. What is not here is evaluated by XLA, operation by operation.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, no_type_check

import jax
import numpy as np
from jax.extend.core import JaxprEqn
from numpy.typing import DTypeLike

from .._jaxprs import avals_of

# NumPy's array or one of its scalars, which operations return where there are no axes, and of which its types know less.
Array = Any
# Python's or NumPy's, as JAX's parameters have both.
Integers = Sequence[Any]
# Axes that are summed and axes that go along, of either array.
Axes = tuple[tuple[Integers, Integers], tuple[Integers, Integers]]
Operation = Callable[..., Any]  # Of arrays and parameters: an array, or a list of them.

BOOL = np.dtype(bool)
FLOATS = frozenset(map(np.dtype, ("float32", "float64")))
# What NumPy computes with as XLA does.
KNOWN = FLOATS | {BOOL} | {np.dtype(f"{kind}{size}") for kind in "iu" for size in (1, 2, 4, 8)}


def _same(x: Array) -> Array:
    return x


def _broadcast(x: Array, *, shape: Integers, broadcast_dimensions: Integers, **_: object) -> Array:
    sides = [1] * len(shape)
    for axis, size in zip(broadcast_dimensions, np.shape(x), strict=True):
        sides[axis] = size
    return np.broadcast_to(np.reshape(x, sides), shape)


def _convert(x: Array, *, new_dtype: DTypeLike, **_: object) -> Array:
    x = np.asarray(x)
    if x.dtype not in FLOATS or np.dtype(new_dtype).kind not in "iu":
        return x.astype(new_dtype, copy=False)
    # What is beyond the integers becomes the last of them, and NaN becomes 0, as XLA has it. The ends are powers of 2, which floats have.
    ends = np.iinfo(new_dtype)
    below, above = x < ends.min, x >= 2.0 ** (ends.bits - (ends.min < 0))
    found = np.where(below | above | np.isnan(x), 0, x).astype(new_dtype)
    return np.where(below, ends.min, np.where(above, ends.max, found)).astype(new_dtype, copy=False)


def _select(which: Array, *cases: Array) -> Array:
    if which.dtype == bool:
        return np.where(which, cases[-1], cases[0])
    return np.choose(which, cases, mode="clip")


def _power(x: Array, *, y: int) -> Array:
    """By products, as XLA does; NumPy's `power` may be off by more."""
    out, factor, left = None, x, abs(y)
    while left:
        if left & 1:
            out = factor if out is None else out * factor
        left >>= 1
        factor = factor * factor if left else factor
    out = np.ones_like(x) if out is None else out
    return 1 / out if y < 0 else out


def _dot(x: Array, y: Array, *, dimension_numbers: Axes, **_: object) -> Array:
    """Products of matrices, with the axes that are summed and those that go along brought together."""
    (sum_x, sum_y), (along_x, along_y) = dimension_numbers
    free_x = [a for a in range(x.ndim) if a not in (*sum_x, *along_x)]
    free_y = [a for a in range(y.ndim) if a not in (*sum_y, *along_y)]
    batch = [x.shape[a] for a in along_x]
    count, rows, columns = ([a.shape[i] for i in of] for a, of in ((x, sum_x), (x, free_x), (y, free_y)))
    left = x.transpose(*along_x, *free_x, *sum_x).reshape(*batch, math.prod(rows), math.prod(count))
    right = y.transpose(*along_y, *sum_y, *free_y).reshape(*batch, math.prod(count), math.prod(columns))
    return np.matmul(left, right).reshape([*batch, *rows, *columns])


def _pad(x: Array, value: Array, *, padding_config: Sequence[Integers]) -> Array:
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


def _slice(
    x: Array,
    *,
    start_indices: Integers,
    limit_indices: Integers,
    strides: Integers | None,
) -> Array:
    steps = strides or (1,) * len(start_indices)
    return x[tuple(slice(*v) for v in zip(start_indices, limit_indices, steps, strict=True))]


def _concatenate(*parts: Array, dimension: int) -> Array:
    return np.concatenate(parts, axis=dimension)


def _stack(*parts: Array, axis: int, **_: object) -> Array:
    return np.stack(parts, axis=axis)


def _split(x: Array, *, sizes: Integers, axis: int) -> list[Array]:
    return np.split(x, np.cumsum(sizes)[:-1], axis=axis)


def _unstack(x: Array, *, axis: int) -> list[Array]:
    return [np.take(x, i, axis=axis) for i in range(x.shape[axis])]


def _iota(*, dtype: DTypeLike, shape: Integers, dimension: int, **_: object) -> Array:
    sides = [1] * len(shape)
    sides[dimension] = shape[dimension]
    return np.broadcast_to(np.arange(shape[dimension], dtype=dtype).reshape(sides), shape)


def _rounded(x: Array, *, rounding_method: int) -> Array:
    if int(rounding_method) == 1:
        return np.rint(x)
    # Halves away from zero.
    whole = np.trunc(x)
    return np.where(np.abs(x - whole) >= 0.5, whole + np.sign(x), whole)


def _reduced(function: Callable, typed: bool = False, **more: float) -> Operation:
    """A reduction over axes. NumPy would add up integers in wider ones where it is not told the type."""

    def apply(x: Array, *, axes: Integers, **_: object) -> Array:
        return function(x, axis=tuple(axes), **({"dtype": x.dtype} if typed else {}), **more)

    return apply


def _index_of(function: Callable) -> Operation:
    def apply(x: Array, *, axes: Integers, index_dtype: DTypeLike) -> Array:
        return function(x, axis=axes[0]).astype(index_dtype)

    return apply


def _cumulated(function: Callable) -> Operation:
    def apply(x: Array, *, axis: int, reverse: bool) -> Array:
        if reverse:
            return np.flip(function(np.flip(x, axis), axis=axis, dtype=x.dtype), axis)
        return function(x, axis=axis, dtype=x.dtype)

    return apply


def _clamp(low: Array, x: Array, high: Array) -> Array:
    return np.minimum(np.maximum(x, low), high)


def _bits(x: Array, *, new_dtype: DTypeLike) -> Array:
    return np.ascontiguousarray(x).view(new_dtype).reshape(np.shape(x))


def _shifted(x: Array, by: Array) -> Array:
    size = 8 * x.dtype.itemsize
    return np.where(by < size, np.left_shift(x, np.minimum(by, size - 1)), 0).astype(x.dtype)


def _rsqrt(x: Array) -> Array:
    return 1 / np.sqrt(x)


def _squeezed(x: Array, *, dimensions: Integers) -> Array:
    return x.reshape([n for a, n in enumerate(x.shape) if a not in dimensions])


def _reshaped(x: Array, *, new_sizes: Integers, **_: object) -> Array:
    return x.reshape(new_sizes)


def _special(name: str) -> Operation:
    """A function of `scipy.special`, imported where it is first called: that takes a tenth of the time of importing this package."""

    def applied(x: Array) -> Array:
        from scipy import special

        return getattr(special, name)(x)

    return applied


# Operations whose parameters do not change what they compute.
PLAIN: dict[str, Operation] = {
    "stop_gradient": _same, "copy": _same, "copy_p": _same,
    "select_n": _select, "square": np.square, "clamp": _clamp,
    "add": np.add, "add_any": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "neg": np.negative, "abs": np.abs,
    "max": np.maximum, "min": np.minimum, "sign": np.sign, "floor": np.floor, "ceil": np.ceil,
    "sqrt": np.sqrt, "rsqrt": _rsqrt, "exp": np.exp, "exp2": np.exp2, "expm1": np.expm1, "log": np.log, "log1p": np.log1p,
    "sin": np.sin, "cos": np.cos, "tan": np.tan, "tanh": np.tanh, "sinh": np.sinh, "cosh": np.cosh,
    "asin": np.arcsin, "acos": np.arccos, "atan": np.arctan, "atan2": np.arctan2, "asinh": np.arcsinh, "acosh": np.arccosh,
    "atanh": np.arctanh, "logistic": _special("expit"), "erf": _special("erf"), "erfc": _special("erfc"), "pow": np.power,
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
    "reduce_sum": _reduced(np.sum, typed=True), "reduce_prod": _reduced(np.prod, typed=True),
    "reduce_or": _reduced(np.any), "reduce_and": _reduced(np.all),
    "reduce_max": _reduced(np.max, initial=-np.inf), "reduce_min": _reduced(np.min, initial=np.inf),
    "argmax": _index_of(np.argmax), "argmin": _index_of(np.argmin),
    "cumsum": _cumulated(np.cumsum), "cummax": _cumulated(np.maximum.accumulate), "cummin": _cumulated(np.minimum.accumulate),
}  # fmt: skip


@no_type_check
def operation(equation: JaxprEqn) -> tuple[Operation, dict[str, Any]]:
    """What an equation computes of arrays, an array, or a list of them where it has several results; and its parameters."""
    name = equation.primitive.name
    if _takes(equation):
        if name in PLAIN:
            return PLAIN[name], {}
        if name in SHAPED:
            return SHAPED[name], equation.params
    return by_xla(equation), equation.params


@no_type_check
def _takes(equation: JaxprEqn) -> bool:
    """Whether NumPy's operation is the same for these types: floats of 32 and 64 bits, integers of any kind, no reductions
    of numbers to other types."""
    name, params = equation.primitive.name, equation.params
    types = [getattr(v, "dtype", None) for v in avals_of((*equation.invars, *equation.outvars))]
    if not KNOWN.issuperset(types):
        return False
    if name in ("div", "integer_pow", "sign"):
        return FLOATS.issuperset(types)
    if name == "reshape":
        return params.get("dimensions") is None
    if name in ("dot_general", "pow", "reduce_max", "reduce_min"):
        return FLOATS.issuperset(types)
    if name == "bitcast_convert_type":
        return np.dtype(types[0]).itemsize == np.dtype(types[1]).itemsize
    if name == "select_n" and types[0] != BOOL:
        return len(equation.invars) < 32
    return True


def by_xla(equation: JaxprEqn) -> Operation:
    """An operation as JAX evaluates it, compiled by itself."""

    def apply(*args: Array, **params: Any) -> np.ndarray | list[Array]:
        with jax.enable_x64(True):
            found = equation.primitive.bind(*map(jax.numpy.asarray, args), **params)
        return [np.asarray(v) for v in found] if equation.primitive.multiple_results else np.asarray(found)

    return apply
