"""The variational system: states together with infinitesimal displacements of them."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from ._constant import Constant
from ._domain import Domain, Product
from ._system import Start, System
from ._types import Scalar, State, describe, is_finite


class Faces(Domain):
    """The boundary of a cube: all states whose largest entry in size is the half-width. Of a vector, or of several arrays together.

    What is homogeneous in the state need be shown there only.

    **Arguments:**

    - `half_width`: a positive real scalar.

    **Raises:** `ValueError` where it is not positive and finite.
    """

    half_width: Constant

    def __init__(self, half_width: Any = 1.0):
        if not (is_finite(half_width) and half_width > 0):
            raise ValueError(f"Faces: expected a positive finite half-width, got {half_width!r}")
        self.half_width = Constant(half_width)

    def check(self, state: Any) -> None:
        if not any(np.prod(leaf.shape) > 0 for leaf in jax.tree.leaves(state)):
            raise ValueError(f"domain: expected a state with at least one number, got {describe(state)}")

    def sample(self, state: Any, key: Any) -> State:
        flat, unravel = ravel_pytree(jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), state))
        inside, which, sign = jax.random.split(key, 3)
        s = self.half_width(flat.dtype)
        point = jax.random.uniform(inside, flat.shape, flat.dtype, -s, s)
        side = jnp.where(jax.random.bernoulli(sign), s, -s)
        return unravel(point.at[jax.random.randint(which, (), 0, flat.size)].set(side))

    def excess(self, state: State) -> Scalar:
        # What is homogeneous is as true of a multiple.
        flat = ravel_pytree(state)[0]
        return jnp.where(jnp.any(flat != 0), -1, 1).astype(flat.dtype)

    def project(self, state: State) -> State:
        flat, unravel = ravel_pytree(state)
        s, size = self.half_width(flat.dtype), jnp.abs(flat)
        near = jnp.clip(flat, -s, s)
        side = jnp.where(flat < 0, -s, s)
        inside = (jnp.arange(flat.size) == jnp.argmax(size)) & (jnp.max(size) < s)
        return unravel(jnp.where(inside, side, near))

    def half_widths(self, state: State) -> State:
        return jax.tree.map(lambda x: jnp.broadcast_to(self.half_width(x.dtype), x.shape), state)


class _Input(eqx.Module):
    module: Any

    def __call__(self, x: Any) -> Start:
        start = self.module(x)
        tangent = jax.tree.map(jnp.ones_like, start.state)
        return Start({"state": start.state, "tangent": tangent}, start.context)


class Tangents(eqx.Module):
    """The field of states and tangents."""

    field: Any

    def __call__(self, t: Any, state: Any, context: Any) -> Any:
        along = lambda s: self.field(t, s, context)
        velocity, tangent = jax.jvp(along, (state["state"],), (state["tangent"],))
        return {"state": velocity, "tangent": tangent}


class _Readout(eqx.Module):
    readout: Any

    def __call__(self, state: Any) -> Any:
        return self.readout(state["state"])


def variational(system: System) -> System:
    """The system of states η and tangents δ, dη/dt = f and dδ/dt = (∂f/∂η) δ, on the faces of a cube of tangents.

    A [`lyapunov_dsl.Contraction`][] is a certificate of it. States are dictionaries with "state" and "tangent"; predictions stay what they
    were.

    **Arguments:**

    - `system`: a [`lyapunov_dsl.System`][] whose domain is declared; its field has a derivative in the state.

    **Returns:** a [`lyapunov_dsl.System`][] on `Product({"state": H, "tangent": Faces(1)})`, of the same horizon and jumps.

    **Raises:** `ValueError` for a system without a domain.
    """
    if not isinstance(system, System) or system.domain is None:
        raise ValueError(f"variational: expected a System with a domain, got {type(system).__name__} without one")
    return System(
        _Input(system.input),
        Tangents(system.vector_field),
        _Readout(system.readout),
        domain=Product({"state": system.domain, "tangent": Faces(1.0)}),
        horizon=system.horizon,
        jumps=system.jumps,
    )
