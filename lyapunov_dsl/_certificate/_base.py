"""The interface of a certificate: two functions, from which the library derives the rest."""

import abc
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from .._types import RealScalarLike, Scalar, State

if TYPE_CHECKING:
    from ._all_of import AllOf


class Point(eqx.Module):
    """What a certificate may look at besides time and state: one example's readout, context and target.

    **Arguments:**

    - `readout`: state -> prediction. For a discrete system it includes the changes of shape still to come.
    - `context`: the context that the input module returned.
    - `target`: the target y of the example, or `None`.
    """

    readout: Callable
    context: PyTree = None
    target: PyTree = None


class Certificate(eqx.Module):
    """What must hold along every trajectory: d/dt value <= comparison(t, value). Lower is better.

    Abstract. A subclass gives `value` and `comparison`, and `flow` where the comparison equation has a closed-form
    solution; the continuous, the discrete and the Monte Carlo path need nothing else. A field named `loss` that
    holds a [`lyapunov_dsl.Loss`][] gives target checks and error rates. Certificates combine with `&`.
    """

    @abc.abstractmethod
    def value(self, t: Any, state: State, point: Point) -> Scalar:
        """The potential V(t, η) of one example, a scalar."""

    @abc.abstractmethod
    def comparison(self, t: Any, v: Any) -> Scalar:
        """The largest rate dV/dt allowed at the level v."""

    def flow(self, t: Any, dt: Any, v: Any) -> Scalar:
        """The solution at t + dt of v' = comparison(t, v) from v: the discrete condition is V(t + dt) <= flow(t, dt,
        V(t)).

        By default eight steps of the classical fourth-order Runge-Kutta method; override it with the closed form
        where there is one.
        """
        h = dt / 8

        def step(i: Any, v: Any) -> Any:
            s = t + i * h
            k1 = self.comparison(s, v)
            k2 = self.comparison(s + h / 2, v + h / 2 * k1)
            k3 = self.comparison(s + h / 2, v + h / 2 * k2)
            k4 = self.comparison(s + h, v + h * k3)
            return v + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)

        return jax.lax.fori_loop(0, 8, lambda i, v: step(i.astype(v.dtype), v), jnp.asarray(v))

    def __and__(self, other: Any) -> "AllOf":
        """Both certificates at once; see [`lyapunov_dsl.AllOf`][]."""
        from ._all_of import conjunction

        return conjunction(self, other)

    @staticmethod
    def exponential(loss: Any, kappa: RealScalarLike) -> "Certificate":
        """Exponential stability (eq. 8, 10): dV/dt <= -κ V with V(η) = loss(readout(η), y).

        **Arguments:**

        - `loss`: a [`lyapunov_dsl.Loss`][] such as `cross_entropy`, `squared_error` or `truncated(cross_entropy,
            0.01)`, or a function (prediction, target) -> scalar that is never negative.
        - `kappa`: the rate κ > 0 per unit of time, an `int` included. For the per-step κ of eq. 16 see
            [`lyapunov_dsl.rate_from_decay`][].

        **Raises:** `ValueError` for κ <= 0 or not finite, or a loss that is not callable.
        """
        from ._exponential import Exponential

        return Exponential(loss, kappa)

    @staticmethod
    def barrier(h: Callable, alpha: Any = 1.0) -> "Certificate":
        """Invariance of {h >= 0}: d/dt h >= -α(h) along the flow, with V = -h.

        **Arguments:**

        - `h`: a function of the state, at least 0 where the state is safe.
        - `alpha`: a rate > 0 for the linear class-K function α h, or an increasing function with α(0) = 0.

        **Raises:** `ValueError` for a rate <= 0 or not finite, or an `h` that is not callable.
        """
        from ._barrier import Barrier

        return Barrier(h, alpha)
