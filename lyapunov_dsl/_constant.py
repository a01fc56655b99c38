"""Inexact constants that no optimizer can move."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ._types import is_traced

_BITS = {2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint64}


class Constant(eqx.Module):
    """A floating-point constant, held as bit patterns: that of the type which the program uses, and that of float64.

    An array of integers is traced by `jit` (so that another value does not recompile) but is neither
    differentiated nor collected by `eqx.is_inexact_array`. A rate, a domain or a normalization kept this way
    therefore stays bit for bit what it was under every Optax loop, weight decay included, without a filter
    that the user has to remember.

    A program in float32 uses 2.1 rounded to float32; a proof is about 2.1 as it was written, rounded to float64. So both are kept.

    **Arguments:**

    - `value`: a real scalar or array of any shape; integers are converted to the default float dtype.

    **Raises:** `ValueError` for a number that float64 does not hold, such as an integer of 60 binary digits.
    """

    bits: Array
    words: Array
    dtype: Any = eqx.field(static=True)

    def __init__(self, value: Any):
        # A list may hold traced numbers.
        exact = None if any(map(is_traced, jax.tree.leaves(value))) else _exactly(value)
        array = jnp.asarray(value if exact is None or _is_float(value) else exact)
        if not _is_float(array):
            array = array.astype(jnp.result_type(float))
        self.dtype = array.dtype
        self.bits = jax.lax.bitcast_convert_type(array, _BITS[array.dtype.itemsize])
        self.words = _widened(array) if exact is None else jnp.asarray(_halves(exact))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the value."""
        return self.bits.shape

    def __call__(self, dtype: Any = None) -> Array:
        """The value, converted to `dtype` (default: the dtype it was given in). In float64 it is the number that was written."""
        if dtype is not None and jax.dtypes.canonicalize_dtype(dtype) == jnp.float64:
            return jax.lax.bitcast_convert_type(self.words, jnp.float64)
        value = jax.lax.bitcast_convert_type(self.bits, self.dtype)
        return value if dtype is None else value.astype(dtype)

    def written(self) -> np.ndarray:
        """The number that was written, in float64 whatever JAX has enabled. Not of a traced constant."""
        low, high = np.moveaxis(np.asarray(self.words).astype(np.uint64), -1, 0)
        return np.asarray(high << np.uint64(32) | low, np.uint64).view(np.float64)


def _is_float(value: Any) -> bool:
    return jnp.issubdtype(value.dtype if hasattr(value, "dtype") else np.asarray(value).dtype, jnp.floating)


def _exactly(value: Any) -> np.ndarray:
    """A value in float64. Raises `ValueError` where that rounds an integer, or a number of a longer type."""
    given = np.asarray(value)
    found = np.asarray(given, np.float64)
    if given.dtype.kind in "iuO" or given.dtype.itemsize > 8:
        whole = given.dtype.kind in "iuO"
        pairs = zip(found.ravel().tolist(), given.ravel().tolist() if whole else given.ravel(), strict=True)
        if not all(f == g for f, g in pairs):
            raise ValueError(
                f"constant: expected numbers that float64 holds exactly, got {value!r}; write it as a float"
            )
    return found


def _halves(value: np.ndarray) -> np.ndarray:
    """The bits of float64 numbers as two words each, the lower one first."""
    bits = value.view(np.uint64)
    return np.stack([bits & np.uint64(0xFFFFFFFF), bits >> np.uint64(32)], -1).astype(np.uint32)


def _widened(array: Array) -> Array:
    """The same of a traced array. Where JAX has no float64 the bits of its float32 are moved, which changes no value."""
    if array.dtype == jnp.float64:
        return jax.lax.bitcast_convert_type(array, jnp.uint32)
    array = array.astype(jnp.float32)
    # A subnormal number is a multiple of the least one.
    whole = jax.lax.bitcast_convert_type(array, jnp.uint32)
    sign, exponent, fraction = (
        whole & jnp.uint32(1 << 31),
        (whole >> 23) & jnp.uint32(0xFF),
        whole & jnp.uint32(0x7FFFFF),
    )
    shift = jax.lax.clz(fraction) - jnp.uint32(8)
    small = (exponent == 0) & (fraction != 0)
    fraction = jnp.where(small, (fraction << shift) & jnp.uint32(0x7FFFFF), fraction)
    bias = jnp.uint32(1023 - 127)
    moved = jnp.where(exponent == 0xFF, jnp.uint32(0x7FF), exponent + bias)
    moved = jnp.where(exponent == 0, jnp.where(small, bias + 1 - shift, jnp.uint32(0)), moved)
    return jnp.stack([fraction << 29, sign | moved << 20 | fraction >> 3], -1)
