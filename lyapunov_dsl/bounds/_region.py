"""Regions of inputs: boxes and Euclidean balls."""

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


class Box(eqx.Module):
    """All arrays between two, faces included.

    **Arguments:**

    - `lower`, `upper`: floating-point arrays of one shape and type, the type of the function's argument.

    **Raises:** `ValueError` for other arrays, and where `lower <= upper` does not hold (a box that is traced and empty
    gets bounds that say nothing).
    """

    lower: Array
    upper: Array

    def __init__(self, lower: Any, upper: Any):
        lower, upper = jnp.asarray(lower), jnp.asarray(upper)
        same = lower.shape == upper.shape and lower.dtype == upper.dtype
        if not same or not jnp.issubdtype(lower.dtype, jnp.floating):
            raise ValueError(
                f"Box: expected floating-point arrays of one shape and type, got {describe(lower)} and {describe(upper)}"
            )
        if not (is_traced(lower) or is_traced(upper)) and not bool(jnp.all(lower <= upper)):
            raise ValueError("Box: expected lower <= upper in every entry, and no NaN")
        self.lower, self.upper = lower, upper

    @classmethod
    def around(cls, center: Any, radius: Any) -> "Box":
        """All arrays within `radius` of `center` in every entry, rounded outward."""
        center = jnp.asarray(center)
        radius = jnp.asarray(radius, center.dtype)
        # The radius may itself have been rounded down, as 8/255 is in float32.
        radius = _no_subnormal(radius)
        radius = jnp.where(radius > 0, jnp.nextafter(radius, jnp.inf), radius)
        lower, upper = center - radius, center + radius
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

    - `center`: a floating-point array, of the type of the function's argument.
    - `radius`: a real number >= 0; a radius such as 0.1, which is no binary number, is rounded upward.

    **Raises:** `ValueError` for a center that is no finite floating-point array and a radius that is negative or NaN (a ball
    whose center or radius is traced and none of this gets bounds that say nothing).
    """

    center: Array
    radius: Array

    def __init__(self, center: Any, radius: Any):
        self.center = jnp.asarray(center)
        if not jnp.issubdtype(self.center.dtype, jnp.floating):
            raise ValueError(f"Ball: expected a floating-point center, got {describe(self.center)}")
        if not is_traced(self.center) and not bool(jnp.all(jnp.isfinite(self.center))):
            raise ValueError("Ball: expected a finite center, got one with infinite entries or NaN")
        if not is_traced(radius) and not (np.shape(radius) == () and float(radius) >= 0):
            raise ValueError(f"Ball: expected a radius >= 0, got {radius!r}")
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
