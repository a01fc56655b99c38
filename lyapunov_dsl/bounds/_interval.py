"""Intervals, and the arithmetic of what rounding may add to them.

Ranges are kept in the widest floating-point type at hand (float64 where JAX has it enabled), whatever the type of the function
that is bounded. A range [-inf, inf] stands for anything, NaN included; no other range holds NaN.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._types import is_traced


class Interval(NamedTuple):
    """All values between `lower` and `upper`, entry by entry; of booleans: {lower} where both agree, else {False, True}.

    **Arguments:**

    - `lower`, `upper`: arrays of the shape of the values, lower <= upper, no NaN. [-inf, inf] stands for anything, NaN included.
    """

    lower: Any
    upper: Any


def wide() -> Any:
    """The type that ranges and coefficients are computed in."""
    return jnp.result_type(float)


def eps(dtype: Any) -> float:
    """Twice the unit roundoff of a type: a bound of the relative error of one operation, rounded in any direction."""
    return float(jnp.finfo(dtype).eps)


def tiny(dtype: Any) -> float:
    """Below this a result may be flushed to zero."""
    return float(jnp.finfo(dtype).tiny)


@jax.jit
def is_anything(x: Interval) -> Array:
    """Where a range may hold NaN."""
    return (x.lower == -jnp.inf) & (x.upper == jnp.inf)


@partial(jax.jit, static_argnames="dtype")
def clean(x: Interval, dtype: Any) -> Interval:
    """What rounds to no finite number of the type becomes infinite, and NaN, of either end, becomes anything."""
    largest = float(jnp.finfo(dtype).max)
    bad = jnp.isnan(x.lower) | jnp.isnan(x.upper) | (x.lower > x.upper)
    lower = jnp.where(bad | (x.lower < -largest), -jnp.inf, x.lower)
    upper = jnp.where(bad | (x.upper > largest), jnp.inf, x.upper)
    # Beyond the largest number there is infinity, which the largest number is below.
    return Interval(jnp.where(x.lower > largest, largest, lower), jnp.where(x.upper < -largest, -largest, upper))


@jax.jit
def widen(x: Interval, slack: Any) -> Interval:
    """A range with `slack` >= 0 added on both sides."""
    return Interval(x.lower - slack, x.upper + slack)


@jax.jit
def intersect(x: Interval, y: Interval) -> Interval:
    """What two sound ranges of one value have in common. Both cannot be right where that is nothing: then it is anything."""
    lower, upper = jnp.maximum(x.lower, y.lower), jnp.minimum(x.upper, y.upper)
    good = lower <= upper
    return Interval(jnp.where(good, lower, -jnp.inf), jnp.where(good, upper, jnp.inf))


@jax.jit
def magnitude(x: Interval) -> Array:
    """The largest absolute value."""
    return jnp.maximum(jnp.abs(x.lower), jnp.abs(x.upper))


@jax.jit
def finite_magnitude(x: Interval) -> Array:
    """The largest absolute value of a finite end; 0 where neither is."""
    size = lambda end: jnp.where(jnp.isfinite(end), jnp.abs(end), 0)
    return jnp.maximum(size(x.lower), size(x.upper))


@jax.jit
def middle(x: Interval) -> tuple[Array, Array]:
    """Center and half-width, the latter rounded up; 0 and infinity where the range is infinite."""
    finite = jnp.isfinite(x.lower) & jnp.isfinite(x.upper)
    lower, upper = jnp.where(finite, x.lower, 0), jnp.where(finite, x.upper, 0)
    center = 0.5 * lower + 0.5 * upper
    center = jnp.where(lower == upper, lower, center)
    half = jnp.maximum(upper - center, center - lower) * (1 + 2 * eps(center.dtype))
    # Differences of numbers that are not the same may be flushed to 0.
    half = jnp.where(lower == upper, 0, half + 2 * tiny(center.dtype))
    return center, jnp.where(finite, half, jnp.inf)


@jax.jit
def zero_safe(coefficient: Any, value: Any) -> Array:
    """The product, which is 0 where the coefficient is, also times infinity."""
    return jnp.where(coefficient == 0, 0, coefficient * jnp.where(coefficient == 0, 0, value))


def widest(value: Any) -> Any:
    """A floating-point array in the type of ranges, which is exact; NumPy's, where it is known."""
    if not jnp.issubdtype(jnp.result_type(value), jnp.floating):
        return jnp.asarray(value)
    return (jnp if is_traced(value) else np).asarray(value, wide())
