"""Regions of inputs: boxes and Euclidean balls."""

import functools
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._types import describe, is_traced
from ._interval import Interval, eps, middle, tiny, wide, zero_safe
from ._sums import reach, weigh


def _subnormal(x: Array, sign: int) -> Array:
    """An array in the widest type; numbers so small that an evaluation may take them for zero, to below (-1) or above (1)
    both. They cannot be compared with zero, as that takes them for it as well."""
    kind = {2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint64}[x.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(jax.lax.stop_gradient(x), kind)
    least = tiny(x.dtype)
    vague = (jnp.abs(x) < least) & (bits << 1 != 0)
    return jnp.where(vague, sign * least, jnp.asarray(x, wide()))


def _no_subnormal(x: Array) -> Array:
    """Numbers >= 0 with those that are subnormal, which comparisons take for 0, made the smallest that is not."""
    return jnp.maximum(_subnormal(x, 1).astype(x.dtype), x)


def _outward(value: Any, dtype: Any, way: float) -> Array:
    """Numbers in a type, those that the type does not have rounded toward `way`, an infinity."""
    if isinstance(value, jax.Array):
        near = jnp.asarray(value, dtype)
        if jnp.finfo(value.dtype).bits <= jnp.finfo(dtype).bits:
            return near
        beyond = near.astype(value.dtype) > value if way < 0 else near.astype(value.dtype) < value
        return jnp.where(beyond, jnp.nextafter(near, jnp.asarray(way, dtype)), near)
    exact = np.asarray(value)
    with np.errstate(over="ignore"):
        near = exact.astype(dtype)
    if exact.dtype == near.dtype:
        return jnp.asarray(near)
    # Python compares integers and floats without rounding.
    pairs = [(a.item(), b.item()) for a, b in zip(near.reshape(-1), exact.reshape(-1), strict=True)]
    beyond = np.reshape([a > b if way < 0 else a < b for a, b in pairs], near.shape)
    with np.errstate(over="ignore", under="ignore"):
        # Beyond the largest number is infinity, and beyond 0 a subnormal one.
        further = np.nextafter(near, np.asarray(way, dtype))
    return jnp.asarray(np.where(beyond, further, near))


def _ends(expected: str, *values: Any) -> tuple[Any, list[Any]]:
    """The floating-point type that numbers and arrays of one shape are in, and the same with lists as arrays. Arrays say what
    the type is, else NumPy's numbers, else it is the default one."""
    joined = [jnp.asarray(v) if any(isinstance(u, jax.Array) for u in jax.tree.leaves(v)) else v for v in values]
    joined = [v if isinstance(v, jax.Array | np.ndarray | np.generic) else np.asarray(v) for v in joined]
    # Integers of Python's own have no type, those of arrays do.
    typed = [isinstance(v, jax.Array | np.ndarray | np.generic) for v in values]
    good = [
        jnp.issubdtype(v.dtype, jnp.floating) or (jnp.issubdtype(v.dtype, jnp.integer) and (not own or not v.shape))
        for v, own in zip(joined, typed, strict=True)
    ]
    arrays = {v.dtype for v in values if isinstance(v, jax.Array) and not v.weak_type}
    arrays |= {v.dtype for v in values if isinstance(v, np.ndarray)}
    numbers = {v.dtype for v in values if isinstance(v, np.generic) and jnp.issubdtype(v.dtype, jnp.floating)}
    kinds = {np.dtype(jax.dtypes.canonicalize_dtype(kind)) for kind in arrays or numbers}
    if not all(good) or len({v.shape for v in joined}) > 1 or (arrays and len(kinds) > 1):
        raise ValueError(f"{expected}, got {' and '.join(describe(v) for v in values)}")
    kind = functools.reduce(jnp.promote_types, kinds) if kinds else wide()
    if not jnp.issubdtype(kind, jnp.floating):
        raise ValueError(f"{expected}, got {' and '.join(describe(v) for v in values)}")
    return kind, joined


class Box(eqx.Module):
    """All arrays between two, faces included.

    **Arguments:**

    - `lower`, `upper`: floating-point arrays of one shape and type, the type of the function's argument. An end that is a
        Python or NumPy number, or a list of them, takes the type of the other end, or else the default floating-point type,
        and is rounded outward where that type does not have it, as float32 does not have 0.1.

    **Raises:** `ValueError` for other arrays, and where `lower <= upper` does not hold (a box that is traced and empty
    gets bounds that say nothing).
    """

    lower: Array
    upper: Array

    def __init__(self, lower: Any, upper: Any):
        expected = "Box: expected floating-point arrays of one shape and type"
        dtype, (lower, upper) = _ends(expected, lower, upper)
        lower, upper = _outward(lower, dtype, -math.inf), _outward(upper, dtype, math.inf)
        if not (is_traced(lower) or is_traced(upper)) and not (np.asarray(lower) <= np.asarray(upper)).all():
            raise ValueError("Box: expected lower <= upper in every entry, and no NaN")
        self.lower, self.upper = lower, upper

    @classmethod
    def around(cls, center: Any, radius: Any) -> "Box":
        """Makes the box of all arrays within `radius` of `center` in every entry, rounded outward. Both may be Python numbers.

        **Raises:** `ValueError` for a center that is neither a floating-point array nor made of numbers.
        """
        dtype, (center,) = _ends("Box.around: expected a floating-point center", center)
        least, most = _outward(center, dtype, -math.inf), _outward(center, dtype, math.inf)
        radius = jnp.asarray(radius, dtype)
        # The radius may itself have been rounded down, as 8/255 is in float32.
        radius = _no_subnormal(radius)
        radius = jnp.where(radius > 0, jnp.nextafter(radius, jnp.inf), radius)
        lower, upper = least - radius, most + radius
        return cls(
            jnp.where(radius > 0, jnp.nextafter(lower, -jnp.inf), lower),
            jnp.where(radius > 0, jnp.nextafter(upper, jnp.inf), upper),
        )

    @property
    def like(self) -> Array:
        """An array of the shape and type of the arrays in the box."""
        return self.lower

    def ranges(self) -> Interval:
        """The range of every entry."""
        lower, upper = _subnormal(self.lower, -1), _subnormal(self.upper, 1)
        good = lower <= upper
        return Interval(jnp.where(good, lower, -jnp.inf), jnp.where(good, upper, jnp.inf))

    def extremes(self, coefficients: Array) -> tuple[Array, Array]:
        """Σ c x at least and at most, for coefficients [count, ...] of the widest type: [count], up to rounding."""
        center, half = middle(self.ranges())
        at, off = weigh([(coefficients, None)], center), reach([(coefficients, None)], half)
        return at - off, at + off


class Ball(eqx.Module):
    """All arrays within a Euclidean distance of a center.

    **Arguments:**

    - `center`: a floating-point array, of the type of the function's argument; or numbers, as for a `Box`.
    - `radius`: a real number >= 0; a radius such as 0.1, which is no binary number, is rounded upward.

    **Raises:** `ValueError` for a center that is no finite floating-point array and a radius that is negative or NaN (a ball
    whose center or radius is traced and none of this gets bounds that say nothing).
    """

    center: Array
    radius: Array

    def __init__(self, center: Any, radius: Any):
        dtype, (center,) = _ends("Ball: expected a floating-point center", center)
        if not is_traced(radius) and not (np.shape(radius) == () and float(radius) >= 0):
            raise ValueError(f"Ball: expected a radius >= 0, got {radius!r}")
        with np.errstate(over="ignore"):
            self.center = jnp.asarray(center, dtype)
        if not is_traced(self.center) and not np.isfinite(np.asarray(self.center, np.float64)).all():
            raise ValueError("Ball: expected a finite center, got one with infinite entries or NaN")
        # The ball around the center as it was written is in one around the number that it was rounded to.
        if not isinstance(center, jax.Array) and center.dtype != dtype:
            moved = np.asarray(self.center, np.float64) - np.asarray(center, np.float64)
            # Not by squares, which may vanish.
            away = math.hypot(*moved.ravel()) * (1 + 1e-6)
            radius = radius + (max(away, tiny(wide())) if away else 0.0)
        radius = _no_subnormal(jnp.asarray(radius, wide()))
        self.radius = jnp.where(radius > 0, radius * (1 + 2 * eps(radius.dtype)) + tiny(radius.dtype), radius)

    @property
    def like(self) -> Array:
        """An array of the shape and type of the arrays in the ball."""
        return self.center

    def ranges(self) -> Interval:
        """The range of every entry."""
        center = jnp.asarray(self.center, wide())
        slack = self.radius + 2 * eps(wide()) * (jnp.abs(center) + self.radius)
        slack = jnp.where(self.radius > 0, slack + tiny(self.center.dtype), 0)
        good = (self.radius >= 0) & jnp.isfinite(center)
        lower, upper = _subnormal(self.center, -1) - slack, _subnormal(self.center, 1) + slack
        return Interval(jnp.where(good, lower, -jnp.inf), jnp.where(good, upper, jnp.inf))

    def extremes(self, coefficients: Array) -> tuple[Array, Array]:
        """Σ c x at least and at most, for coefficients [count, ...] of the widest type: [count], up to rounding."""
        rows = coefficients.reshape(len(coefficients), -1)
        # Not sqrt(sum): its derivative is infinite where all of them are 0.
        largest = jnp.max(jnp.abs(rows), axis=1, keepdims=True)
        safe = jnp.where(largest > 0, largest, 1)
        squares = jnp.sum((rows / safe) ** 2, axis=1, keepdims=True)
        length = jnp.where(largest > 0, jnp.sqrt(jnp.where(largest > 0, squares, 1)), 0) * safe
        at = rows @ jnp.asarray(self.center, wide()).reshape(-1)
        off = jnp.where(self.radius >= 0, zero_safe(length[:, 0], self.radius), jnp.inf)
        # Evaluations may take subnormal numbers for 0, and so does the conversion of the center.
        off = off + 2 * tiny(self.center.dtype) * jnp.sum(jnp.abs(rows), axis=1)
        return at - off, at + off
