"""Potentials to be learned: V(η*) = 0 and V > 0 elsewhere by construction, for systems whose V is not given by a loss."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._constant import Constant
from .._types import Scalar, shown


def _equilibrium(equilibrium: Any, size: int) -> Constant:
    point = np.zeros(size) if equilibrium is None else np.asarray(equilibrium)
    if point.shape != (size,) or not np.isfinite(point).all():
        raise ValueError(f"equilibrium: expected {size} finite numbers, got {shown(equilibrium)}")
    return Constant(point)


def _margin(margin: Any) -> Constant:
    if not (np.ndim(margin) == 0 and np.isfinite(margin) and margin > 0):
        raise ValueError(f"margin: expected a positive finite number, got {margin!r}")
    return Constant(margin)


class QuadraticPotential(eqx.Module):
    """V(η) = |A (η - η*)|² + ε |η - η*|², with A learned.

    **Arguments:**

    - `size`: n, of the state, a vector.
    - `equilibrium`: η*, float[n]; 0 where it is left out.
    - `margin`: ε > 0.
    - `matrix`: where A starts, float[n, n]; the identity where it is left out.

    **Raises:** `ValueError` for an equilibrium or a matrix of another size, or ε <= 0.
    """

    matrix: Float[Array, "n n"]
    equilibrium: Constant
    margin: Constant

    def __init__(self, size: int, *, equilibrium: Any = None, margin: Any = 1e-3, matrix: Any = None):
        self.matrix = jnp.eye(size) if matrix is None else jnp.asarray(matrix, jnp.result_type(float))
        if self.matrix.shape != (size, size):
            raise ValueError(f"matrix: expected float[{size}, {size}], got {shown(matrix)}")
        self.equilibrium, self.margin = _equilibrium(equilibrium, size), _margin(margin)

    @property
    def form(self) -> Float[Array, "n n"]:
        """P of V = (η - η*)ᵀ P (η - η*)."""
        return self.matrix.T @ self.matrix + self.margin(self.matrix.dtype) * jnp.eye(len(self.matrix))

    def __call__(self, state: Float[Array, " n"]) -> Scalar:
        away = state - _point(self, state)
        return jnp.sum(jnp.square(self.matrix.astype(state.dtype) @ away)) + _floor(self, away)


class PositivePotential(eqx.Module):
    """V(η) = |φ(η) - φ(η*)|² + ε |η - η*|², with φ a network.

    **Arguments:**

    - `network`: φ, float[n] -> float[any]; smooth where a proof is wanted near the equilibrium.
    - `size`, `equilibrium`, `margin`: as of [`lyapunov_dsl.nn.QuadraticPotential`][].

    **Raises:** `ValueError` for a network that is not callable, an equilibrium of another size, or ε <= 0.
    """

    network: Any
    equilibrium: Constant
    margin: Constant

    def __init__(self, network: Any, size: int, *, equilibrium: Any = None, margin: Any = 1e-3):
        if not callable(network):
            raise ValueError(f"network: expected a function of the state, got {shown(network)}")
        self.network, self.equilibrium, self.margin = network, _equilibrium(equilibrium, size), _margin(margin)

    def __call__(self, state: Float[Array, " n"]) -> Scalar:
        point = _point(self, state)
        return jnp.sum(jnp.square(self.network(state) - self.network(point))) + _floor(self, state - point)


class ConvexPotential(eqx.Module):
    """V(η) = σ(g(η) - g(η*)) + ε |η - η*|², with g an input-convex network (Amos et al. 2017; Manek and Kolter 2019).

    V is strictly convex, so that its only critical point is η* and all its sublevel sets are convex. σ is 0 up to 0, square up to `smooth`
    and linear from there. Proofs are down to a level: that V is exactly 0 at η* is true of numbers, and not known of intervals.

    **Arguments:**

    - `size`, `equilibrium`, `margin`: as of [`lyapunov_dsl.nn.QuadraticPotential`][].
    - `width`, `depth`: of the hidden layers.
    - `smooth`: > 0, where σ turns from square to linear, in the unit of V.
    - `key`: a PRNG key.

    **Raises:** `ValueError` for an equilibrium of another size, or an ε or a `smooth` that is not positive and finite.
    """

    layers: list[Any]
    inner: list[Array]
    equilibrium: Constant
    margin: Constant
    smooth: Constant

    def __init__(
        self,
        size: int,
        *,
        width: int = 32,
        depth: int = 2,
        equilibrium: Any = None,
        margin: Any = 1e-3,
        smooth: Any = 0.1,
        key: Any,
    ):
        outputs = [*([width] * depth), 1]
        keys = jax.random.split(key, 2 * len(outputs))
        self.layers = [eqx.nn.Linear(size, n, key=k) for n, k in zip(outputs, keys, strict=False)]
        # Squared, these are the weights of the layer before, none of them negative.
        pairs = zip(outputs, outputs[1:], keys[len(outputs) :], strict=False)
        self.inner = [jax.random.uniform(k, (n, m), minval=0.0, maxval=(2 / m) ** 0.5) for m, n, k in pairs]
        self.equilibrium, self.margin, self.smooth = _equilibrium(equilibrium, size), _margin(margin), _margin(smooth)

    def _convex(self, state: Any) -> Any:
        first, *rest = self.layers
        hidden = jax.nn.softplus(first(state))
        for i, (layer, inner) in enumerate(zip(rest, self.inner, strict=True)):
            hidden = jnp.square(inner) @ hidden + layer(state)
            if i < len(rest) - 1:
                hidden = jax.nn.softplus(hidden)
        return hidden[0]

    def __call__(self, state: Float[Array, " n"]) -> Scalar:
        point, smooth = _point(self, state), self.smooth(state.dtype)
        above = jnp.maximum(self._convex(state) - self._convex(point), 0)
        square = jnp.minimum(above, smooth)
        return square * square / (2 * smooth) + (above - square) + _floor(self, state - point)


def _point(potential: Any, state: Any) -> Any:
    """The equilibrium. Raises `ValueError` for a state of another shape, which would be taken for many."""
    if jnp.shape(state) != potential.equilibrium.shape:
        raise ValueError(
            f"{type(potential).__name__}: expected a state of shape {potential.equilibrium.shape}, got {jnp.shape(state)}"
        )
    return potential.equilibrium(state.dtype)


def _floor(potential: Any, away: Any) -> Any:
    return potential.margin(away.dtype) * jnp.sum(jnp.square(away))
