"""Inexact constants that no optimizer can move."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

_BITS = {2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint64}


class Constant(eqx.Module):
    """A floating-point constant, held as its bit pattern.

    An array of integers is traced by `jit` (so that another value does not recompile) but is neither
    differentiated nor collected by `eqx.is_inexact_array`. A rate, a domain or a normalization kept this way
    therefore stays bit for bit what it was under every Optax loop, weight decay included, without a filter
    that the user has to remember.

    **Arguments:**

    - `value`: a real scalar or array of any shape; integers are converted to the default float dtype.
    """

    bits: Array
    dtype: Any = eqx.field(static=True)

    def __init__(self, value: Any):
        array = jnp.asarray(value)
        if not jnp.issubdtype(array.dtype, jnp.floating):
            array = array.astype(jnp.result_type(float))
        self.dtype = array.dtype
        self.bits = jax.lax.bitcast_convert_type(array, _BITS[array.dtype.itemsize])

    def __call__(self, dtype: Any = None) -> Array:
        """The value, converted to `dtype` (default: the dtype it was given in)."""
        value = jax.lax.bitcast_convert_type(self.bits, self.dtype)
        return value if dtype is None else value.astype(dtype)
