"""Half precision inside of a network, full precision around it."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from .._system import call


class MixedPrecision(eqx.Module):
    """A module that computes in a short floating-point format: its arrays and arguments are rounded to it at every call, and
    what it returns is converted back.

    The parameters stay in the format they have, so that the optimizer adds small updates to float32 numbers; their
    gradients are converted back as well. Wrap the expensive parts alone, the encoder of an input module and the network inside a
    field, for example by

        eqx.tree_at(lambda s: (s.input.encoder, s.vector_field.inner), system, replace_fn=ld.nn.MixedPrecision)

    Then the state, the potential, its derivative along the field and the residuals of the certificate are computed in float32
    from velocities that carry the rounding error of the format (bfloat16: 2^-9, relative). A certificate is about the
    rounded field: what is reported of a program is reported of it as it is, wrapped.

    **Arguments:**

    - `module`: a callable; it is given the time, too, in the short format.
    - `dtype`: of the computation: bfloat16, which has the range of float32, or float16, whose gradients underflow
        without a scaled loss.

    **Raises:** `ValueError` for a module that is not callable, a field that promises bounds (such as
    [`lyapunov_dsl.nn.InvariantField`][]: wrap what is inside), or a dtype that is not floating-point.
    """

    module: Callable
    dtype: Any = eqx.field(static=True)

    def __init__(self, module: Any, dtype: Any = jnp.bfloat16):
        if not callable(module):
            raise ValueError(f"module: expected a callable, got {module!r}")
        if hasattr(module, "speed_bound") or hasattr(module, "step_limit"):
            raise ValueError(
                f"module: expected a network without bounds that rounding would break, got {type(module).__name__}; wrap its inner"
            )
        try:
            valid = jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
        except TypeError:
            valid = False
        if not valid:
            raise ValueError(f"dtype: expected a floating-point dtype such as jnp.bfloat16, got {dtype!r}")
        self.module, self.dtype = module, jnp.dtype(dtype)

    def __call__(self, *args: Any, key: Any = None) -> PyTree:
        """The module's value, in the widest floating-point dtype among the arguments (float32 at least)."""
        given = {leaf.dtype for leaf in jax.tree.leaves(args) if eqx.is_inexact_array(leaf)}
        wide = max({jnp.dtype(jnp.float32), *given}, key=lambda dtype: jnp.finfo(dtype).bits)
        return _cast(call(_cast(self.module, self.dtype), *_cast(args, self.dtype), key=key), wide)


def _cast(tree: PyTree, dtype: Any) -> PyTree:
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if eqx.is_inexact_array(leaf) else leaf, tree)
