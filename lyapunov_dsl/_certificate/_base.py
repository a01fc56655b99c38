"""The interface of a certificate: two functions, from which the library derives the rest."""

import abc
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from .._types import RealScalarLike, Scalar, State, kind

if TYPE_CHECKING:
    from ._all_of import AllOf


class Point(eqx.Module):
    """What a certificate may look at besides time and state: one example's readout, context and target.

    **Arguments:**

    - `readout`: state -> prediction. For a discrete system it includes the changes of shape still to come.
    - `context`: the context that the input module returned.
    - `target`: the target y of the example, or `None`.
    - `velocity`: (t, state) -> velocity of a continuous system, or `None`.
    - `field`: its vector field as it was declared, or `None`.
    """

    readout: Callable
    context: PyTree = None
    target: PyTree = None
    velocity: Callable | None = None
    field: Callable | None = None


class Certificate(eqx.Module):
    """What must hold along every trajectory: d/dt value <= comparison(t, value). Lower is better.

    Abstract. A subclass gives `value` and `comparison`, and `flow` where the comparison equation has a closed-form
    solution; the continuous, the discrete and the Monte Carlo path need nothing else. What asks for more than a rate along the flow
    overrides `derivative`, and `prepared` where something depends on the system. A field named `loss` that
    holds a [`lyapunov_dsl.Loss`][] gives target checks and error rates. Certificates combine with `&`, barriers also with `|`.
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

    def derivative(self, t: Any, state: State, point: Point, velocity: State) -> tuple[Scalar, Scalar]:
        """V, and the rate that is compared: dV/dt along the velocity of the system, by one jvp.

        Overridden where the condition is about something else: the best of all inputs, the worst of all disturbances.
        """
        return jax.jvp(lambda t, s: self.value(t, s, point), (t, state), (jnp.ones_like(t), velocity))

    @property
    def own_rate(self) -> bool:
        """Whether the rate is another than dV/dt along the flow, so that nothing about V along trajectories follows from it alone."""
        return type(self).derivative is not Certificate.derivative

    def prepared(self, system: Any, start: Any) -> "Certificate":
        """The certificate for a system, with what depends on the system filled in. `compile` and `prove` ask for it.

        **Arguments:**

        - `system`: a [`lyapunov_dsl.System`][] or a [`lyapunov_dsl.DiscreteSystem`][].
        - `start`: the shapes and dtypes of one example's [`lyapunov_dsl.Start`][].

        **Raises:** `ValueError` where the certificate does not fit.
        """
        return self

    def __or__(self, other: Any) -> "Certificate":
        """For barriers only: see [`lyapunov_dsl.Barrier`][]."""
        raise ValueError(
            f"|: expected two barriers, whose safe sets have a union, got {type(self).__name__} and {kind(other)}; for both at once "
            "there is &"
        )

    def __and__(self, other: Any) -> "AllOf":
        """Both certificates at once; see [`lyapunov_dsl.AllOf`][]."""
        from ._all_of import conjunction

        return conjunction(self, other)

    @staticmethod
    def exponential(loss: Any, kappa: Any) -> "Certificate":
        """Exponential stability (eq. 8, 10): dV/dt <= -κ V with V(η) = loss(readout(η), y).

        Then V(t) <= exp(-κt) V(0), or exp(-∫κ) V(0) where κ depends on time (Grönwall's inequality).

        **Arguments:**

        - `loss`: a [`lyapunov_dsl.Loss`][] such as `cross_entropy`, `squared_error` or `truncated(cross_entropy,
            0.01)`, a potential of `lyapunov_dsl.nn`, or a function (prediction, target) -> scalar that is never negative.
        - `kappa`: the rate κ > 0 per unit of time, an `int` included, or a function κ(t) > 0 of the time. For the per-step κ of eq. 16
            see [`lyapunov_dsl.rate_from_decay`][].

        **Raises:** `ValueError` for κ <= 0 or not finite, or a loss that is not callable; for κ(t) when its system is known.
        """
        from ._exponential import Exponential, Varying

        number: Any = kappa
        varies = callable(kappa) and not hasattr(kappa, "dtype")
        return Varying(loss, kappa) if varies else Exponential(loss, number)

    @staticmethod
    def asymptotic(loss: Any, alpha: Callable) -> "Certificate":
        """Asymptotic stability; see [`lyapunov_dsl.Asymptotic`][]."""
        from ._decay import Asymptotic

        return Asymptotic(loss, alpha)

    @staticmethod
    def finite_time(loss: Any, c: RealScalarLike, rho: RealScalarLike) -> "Certificate":
        """Convergence in finite time; see [`lyapunov_dsl.FiniteTime`][]."""
        from ._decay import FiniteTime

        return FiniteTime(loss, c, rho)

    @staticmethod
    def practical(loss: Any, kappa: RealScalarLike, level: RealScalarLike) -> "Certificate":
        """Stability down to a level; see [`lyapunov_dsl.Practical`][]."""
        from ._decay import Practical

        return Practical(loss, kappa, level)

    @staticmethod
    def barrier(h: Callable, alpha: Any = 1.0, *, degree: int | None = None) -> "Certificate":
        """Invariance of {h >= 0}: d/dt h >= -α(h) along the flow, with V = -h; see [`lyapunov_dsl.Barrier`][]."""
        from ._barrier import Barrier

        return Barrier(h, alpha, degree=degree)

    @staticmethod
    def control_lyapunov(loss: Any, kappa: RealScalarLike) -> "Certificate":
        """Some input makes V decay; see [`lyapunov_dsl.ControlLyapunov`][]."""
        from ._control import ControlLyapunov

        return ControlLyapunov(loss, kappa)

    @staticmethod
    def control_barrier(h: Callable, alpha: Any = 1.0, *, degree: int | None = None) -> "Certificate":
        """Some input keeps {h >= 0} invariant; see [`lyapunov_dsl.ControlBarrier`][]."""
        from ._control import ControlBarrier

        return ControlBarrier(h, alpha, degree=degree)

    @staticmethod
    def contraction(rate: RealScalarLike, metric: Any = None) -> "Certificate":
        """Trajectories approach each other; see [`lyapunov_dsl.Contraction`][]."""
        from ._contraction import Contraction

        return Contraction(rate, metric)

    @staticmethod
    def reach_avoid(
        value: Callable, target: Callable, avoid: Callable, *, rate: RealScalarLike, alpha: Any = 1.0
    ) -> "AllOf":
        """A set is reached and another avoided: a [`lyapunov_dsl.Reach`][] named "reach" and a [`lyapunov_dsl.Barrier`][] named "avoid".

        **Arguments:**

        - `value`, `target`, `rate`: of the first.
        - `avoid`: h of the second; {h < 0} is avoided.
        - `alpha`: α of the second.
        """
        from ._all_of import AllOf
        from ._barrier import Barrier
        from ._reach import Reach

        return AllOf({"reach": Reach(value, target, rate), "avoid": Barrier(avoid, alpha)})

    @staticmethod
    def input_to_state(loss: Any, kappa: RealScalarLike, gain: RealScalarLike) -> "Certificate":
        """Stability under disturbances; see [`lyapunov_dsl.InputToState`][]."""
        from ._dissipation import InputToState

        return InputToState(loss, kappa, gain)

    @staticmethod
    def finite_gain(loss: Any, gain: RealScalarLike) -> "Certificate":
        """A bounded L2 gain from disturbance to prediction; see [`lyapunov_dsl.FiniteGain`][]."""
        from ._dissipation import FiniteGain

        return FiniteGain(loss, gain)
