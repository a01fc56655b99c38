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
    "reduce_max": _reduce_max,
    "reduce_min": lambda out, e, x: _reduce_max(out, e, x, -1.0),
    "clamp": _clamp,
    "lyapunov_dsl_logsumexp": lambda out, e, x: out.add("logsumexp", (x,), 1),
    "lyapunov_dsl_softmax_mean": lambda out, e, x, t: out.add("softmean", (x, t), 1),
}
