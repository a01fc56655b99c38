"""Operations on values that vary, made of those that the checker has rules for: (program, equation, *operands) -> result."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np


def _count(shape: Any) -> int:
    return max(1, math.prod(shape))


def _reduce_max(out: Any, equation: Any, x: int, sign: float = 1.0) -> int:
    """The largest along axes, by max(a, b) = b + max(a - b, 0)."""
    shape, axes = equation.invars[0].aval.shape, equation.params["axes"]
    places = np.arange(_count(shape)).reshape(shape)
    kept = [i for i in range(len(shape)) if i not in axes]
    rows = places.transpose(*kept, *axes).reshape(math.prod(shape[i] for i in kept), -1)
    entries = [out.affine(len(rows), (x, sign * np.eye(_count(shape))[column])) for column in rows.T]
    most = entries[0]
    for other in entries[1:]:
        most = out.combine((1, most), (1, out.relu(out.combine((1, other), (-1, most)))))
    return most if sign > 0 else out.combine((-1, most))


def _power(out: Any, equation: Any, x: int) -> int:
    exponent = equation.params["y"]
    size = out.size(x)
    if exponent == 0:
        return out.constant(np.ones(size))
    base, result, left = x, None, abs(exponent)
    while left:
        if left % 2:
            result = base if result is None else out.add("multiply", (result, base), size)
        left //= 2
        if left:
            base = out.unary("square", base)
    assert result is not None
    return result if exponent > 0 else out.unary("reciprocal", result)


def _clamp(out: Any, equation: Any, low: int, x: int, high: int) -> int:
    spread = lambda v: v if out.size(v) == out.size(x) else out.affine(out.size(x), (v, np.ones((out.size(x), 1))))
    low, high = spread(low), spread(high)
    above = out.combine((1, low), (1, out.relu(out.combine((1, x), (-1, low)))))
    return out.combine((1, high), (-1, out.relu(out.combine((1, high), (-1, above)))))


def _atan2(out: Any, equation: Any, y: int, x: int) -> int:
    """2 atan(y / (r + x)) with the radius r, which is right everywhere but on the negative axis; there the divisor is 0."""
    square = lambda v: out.unary("square", v)
    radius = out.unary("sqrt", out.combine((1, square(x)), (1, square(y))))
    part = out.add("multiply", (y, out.unary("reciprocal", out.combine((1, radius), (1, x)))), out.size(x))
    return out.combine((2, out.unary("atan", part)))


def _products(out: Any, rows: list[Any], x: int) -> list[int]:
    """Products of so many rows of places as there are so far."""
    size = out.size(x)
    found = [out.affine(len(row), (x, np.eye(size)[row])) for row in rows]
    for i in range(1, len(found)):
        found[i] = out.add("multiply", (found[i - 1], found[i]), len(rows[i]))
    return found


def _reduce_prod(out: Any, equation: Any, x: int) -> int:
    shape, axes = equation.invars[0].aval.shape, equation.params["axes"]
    places = np.moveaxis(np.arange(_count(shape)).reshape(shape), axes, range(len(axes)))
    return _products(out, list(places.reshape(math.prod(shape[i] for i in axes), -1)), x)[-1]


def _cumprod(out: Any, equation: Any, x: int) -> int:
    shape, axis = equation.invars[0].aval.shape, equation.params["axis"]
    places = np.moveaxis(np.arange(_count(shape)).reshape(shape), axis, 0)
    places = places[::-1] if equation.params["reverse"] else places
    rows = places.reshape(shape[axis], -1)
    back = lambda row: np.eye(_count(shape))[row].T
    return out.affine(
        _count(shape), *((v, back(row)) for v, row in zip(_products(out, list(rows), x), rows, strict=True))
    )


def _ones(out: Any, x: int) -> int:
    return out.constant(np.ones(out.size(x)))


RULES: dict[str, Callable[..., int]] = {
    "div": lambda out, e, x, y: out.add("multiply", (x, out.unary("reciprocal", y)), out.size(x)),
    "integer_pow": _power,
    "rsqrt": lambda out, e, x: out.unary("reciprocal", out.unary("sqrt", x)),
    "log1p": lambda out, e, x: out.unary("log", out.combine((1, _ones(out, x)), (1, x))),
    "expm1": lambda out, e, x: out.combine((1, out.unary("exp", x)), (-1, _ones(out, x))),
    "abs": lambda out, e, x: out.combine((2, out.relu(x)), (-1, x)),
    "max": lambda out, e, x, y: out.combine((1, y), (1, out.relu(out.combine((1, x), (-1, y))))),
    "min": lambda out, e, x, y: out.combine((1, x), (-1, out.relu(out.combine((1, x), (-1, y))))),
    "atan2": _atan2,
    "reduce_prod": _reduce_prod,
    "cumprod": _cumprod,
    "reduce_max": _reduce_max,
    "reduce_min": lambda out, e, x: _reduce_max(out, e, x, -1.0),
    "clamp": _clamp,
    "lyapunov_dsl_logsumexp": lambda out, e, x: out.add("logsumexp", (x,), 1),
    "lyapunov_dsl_softmax_mean": lambda out, e, x, t: out.add("softmean", (x, t), 1),
}
