"""Trajectories approach each other (Lohmiller and Slotine 1998)."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from .._constant import Constant
from .._types import RealScalarLike, Scalar, State, describe, shown
from ._base import Certificate, Point
from ._exponential import check_rate, fallen, falls


class Contraction(Certificate):
    """dV/dt <= -2 λ V with V = δᵀ M(η) δ, for the states η and tangents δ of [`lyapunov_dsl.variational`][].

    Then the distance of any two trajectories in a forward invariant set decays as exp(-λt), in the Riemannian metric M (Lohmiller and
    Slotine 1998), if the set is geodesically convex; for a constant M that is convexity.

    **Arguments:**

    - `rate`: λ > 0 per unit of time.
    - `metric`: M, a symmetric positive definite matrix float[n, n]; or a function of the state that gives a matrix A(η) float[any, n],
        whose arrays are trained, for M = AᵀA + ε I, which is positive definite whatever A is; `None` for the identity.
    - `margin`: ε > 0.

    **Raises:** `ValueError` for a rate <= 0, a matrix that is not symmetric positive definite, or a system that is not variational.
    """

    rate: Constant
    metric: Callable | None
    margin: Constant

    def __init__(self, rate: RealScalarLike, metric: Any = None, *, margin: RealScalarLike = 1e-3):
        check_rate("rate", rate)
        check_rate("margin", margin)
        self.margin = Constant(margin)
        self.rate = Constant(rate)
        if metric is not None and not callable(metric):
            matrix = np.asarray(metric)
            good = matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1] and np.isfinite(matrix).all()
            if not good or not np.array_equal(matrix, matrix.T) or not np.linalg.eigvalsh(matrix)[0] > 0:
                raise ValueError(
                    f"metric: expected a symmetric positive definite matrix or a function, got {shown(metric)}"
                )
        self.metric = metric if metric is None or callable(metric) else Matrix(Constant(metric))

    def value(self, t: Any, state: State, point: Point) -> Scalar:
        """Returns the potential V(t, η) = δᵀM(η)δ of one example, a scalar.

        **Raises:** `ValueError` where the metric is no matrix with a column for each number of the state.
        """
        tangent = ravel_pytree(state["tangent"])[0]
        if self.metric is None:
            return jnp.sum(tangent * tangent)
        if isinstance(self.metric, Matrix):
            return tangent @ self.metric(state["state"]) @ tangent
        factor: Any = self.metric(state["state"])
        # A vector would be taken for one row.
        if len(jnp.shape(factor)) != 2 or jnp.shape(factor)[1] != tangent.size:
            raise ValueError(f"metric: expected a matrix float[any, {tangent.size}], got shape {jnp.shape(factor)}")
        moved = factor @ tangent
        return jnp.sum(moved * moved) + self.margin(tangent.dtype) * jnp.sum(tangent * tangent)

    def comparison(self, t: Any, v: Any) -> Scalar:
        return 2 * falls(self.rate, v)

    def flow(self, t: Any, dt: Any, v: Any) -> Scalar:
        return fallen(self.rate, 2 * dt, v)

    def prepared(self, system: Any, start: Any) -> Certificate:
        if not (isinstance(start.state, dict) and set(start.state) == {"state", "tangent"}):
            raise ValueError(
                f"contraction: expected the states and tangents of lyapunov_dsl.variational(system), got a state {describe(start.state)}"
            )
        size = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(start.state["state"]))
        if isinstance(self.metric, Matrix) and self.metric.matrix.shape != (size, size):
            raise ValueError(f"metric: expected float[{size}, {size}], got {self.metric.matrix.shape}")
        return self


class Matrix(eqx.Module):
    """A matrix as a function of the state."""

    matrix: Constant

    def __call__(self, state: Any) -> Any:
        return self.matrix(ravel_pytree(state)[0].dtype)
