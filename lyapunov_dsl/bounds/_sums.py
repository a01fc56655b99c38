"""Sums of coefficients times values, a row of coefficients each.

Coefficients [rows, *shape] are a sum of matrices, each times a number for each entry (or as it is, `None`): matrices of constants are
the same for all regions, and products with them are matrix products. Each function is compiled as a whole: outside of a `jit`,
a pass takes as long as its operations are many.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from ._interval import wide

Terms = list[tuple[Any, Any]]


def times(factor: Any, value: Any) -> Any:
    """The product, without a factor the value."""
    return value if factor is None else factor * value


def total(terms: Terms) -> Any:
    """Coefficients as one array."""
    return terms[0][0] if len(terms) == 1 and terms[0][1] is None else _total(terms)


@jax.jit
def _total(terms: Terms) -> Any:
    return functools.reduce(jnp.add, [times(a, m) for m, a in terms])


@jax.jit
def weigh(terms: Terms, value: Any) -> Any:
    """Σ c v for finite values."""
    return functools.reduce(jnp.add, [_product(m, times(a, value)) for m, a in terms])


@jax.jit
def reach(terms: Terms, value: Any) -> Any:
    """Σ |c| v for values >= 0, infinite where one is that is infinite or NaN and has a coefficient that is not 0."""
    known = jnp.isfinite(value)
    # The largest number, so that no product with it underflows.
    mark = jnp.where(known, 0, jnp.finfo(wide()).max)
    parts = [jnp.where(known, value, 0), mark]
    sizes = [(jnp.abs(m), None if a is None else jnp.abs(a)) for m, a in terms]
    size, unknown = (weigh(sizes, v) for v in parts)
    return size + jnp.where(unknown == 0, 0, jnp.inf)


def _product(m: Any, value: Any) -> Any:
    """Rows of coefficients times values."""
    flat = jnp.broadcast_to(value, m.shape[1:]).reshape(-1)
    return jnp.dot(m.reshape(len(m), -1), flat, precision="highest")
