"""Certificates of what some input inside of its limits can do, whatever the controller (Artstein 1983; Ames et al. 2019)."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp

from .._constant import Constant
from .._control_affine import affine, drift_of
from .._potential import Loss, as_loss
from .._types import RealScalarLike, Scalar, State
from ._barrier import apply, chain, checked_barrier, checked_degree, found_degree, with_degree
from ._base import Certificate, Point
from ._exponential import check_rate, fallen, falls


class ControlLyapunov(Certificate):
    """inf_u (L_f V + L_g V u) <= -κ V over the limits of the input of a [`lyapunov_dsl.ControlAffine`][].

    Then at every state some input makes V decay at the rate κ, and a controller exists that makes it decay along trajectories
    (Artstein 1983; Sontag 1989). Of the controller that the system has nothing is said.

    **Arguments:**

    - `loss`, `kappa`: as of [`lyapunov_dsl.Certificate.exponential`][].

    **Raises:** `ValueError` for what is refused there; for a system without inputs or limits when it is known.
    """

    loss: Loss
    rate: Constant

    def __init__(self, loss: Any, kappa: RealScalarLike):
        check_rate("kappa", kappa)
        self.loss, self.rate = as_loss(loss), Constant(kappa)

    @property
    def kappa(self) -> Scalar:
        """The rate κ per unit of time."""
        return self.rate()

    def value(self, t: Any, state: State, point: Point) -> Scalar:
        return self.loss(point.readout(state), point.target)

    def comparison(self, t: Any, v: Any) -> Scalar:
        return falls(self.rate, v)

    def flow(self, t: Any, dt: Any, v: Any) -> Scalar:
        return fallen(self.rate, dt, v)

    def derivative(self, t: Any, state: State, point: Point, velocity: State) -> tuple[Scalar, Scalar]:
        return best(lambda t, s: self.value(t, s, point), t, state, point)

    def prepared(self, system: Any, start: Any) -> Certificate:
        affine("control_lyapunov", getattr(system, "vector_field", system), limited=True)
        return self


class ControlBarrier(Certificate):
    """sup_u d/dt h >= -α(h) over the limits of the input of a [`lyapunov_dsl.ControlAffine`][], with V = -h.

    Then at every state some input keeps {h >= 0} invariant (Ames et al. 2019); where the input appears only in a higher derivative, the
    set in which all of [`lyapunov_dsl.ControlBarrier.chain`][] are at least 0 (Xiao and Belta 2019). Of the controller that the system
    has nothing is said.

    **Arguments:**

    - `h`, `alpha`, `degree`: as of [`lyapunov_dsl.Barrier`][].

    **Raises:** `ValueError` for what is refused there; for a system without inputs or limits when it is known.
    """

    h: Callable
    alpha: Callable
    degree: int | None = eqx.field(static=True)

    def __init__(self, h: Any, alpha: Any = 1.0, *, degree: Any = None):
        self.h, self.alpha, self.degree = *checked_barrier(h, alpha), checked_degree(degree)

    def chain(self, t: Any, state: State, point: Point) -> list[Scalar]:
        """ψ_0 = h, ..., ψ_{r-1}: a state is in the invariant set where all are at least 0."""
        return [psi(t, state) for psi in chain(self, point, drift_of(point))]

    def value(self, t: Any, state: State, point: Point) -> Scalar:
        return -chain(self, point, drift_of(point))[-1](t, state)

    def comparison(self, t: Any, v: Any) -> Scalar:
        return apply(self.alpha, -jnp.asarray(v))

    def flow(self, t: Any, dt: Any, v: Any) -> Scalar:
        return fallen(self.alpha, dt, v) if isinstance(self.alpha, Constant) else super().flow(t, dt, v)

    def derivative(self, t: Any, state: State, point: Point, velocity: State) -> tuple[Scalar, Scalar]:
        return best(lambda t, s: self.value(t, s, point), t, state, point)

    def prepared(self, system: Any, start: Any) -> Certificate:
        affine("control_barrier", getattr(system, "vector_field", system), limited=True)
        return with_degree(self, found_degree(self, system, start))


def best(value: Callable, t: Any, state: Any, point: Point) -> tuple[Scalar, Scalar]:
    """V and the least dV/dt of all inputs inside of the limits: a linear function of a box is least at a corner."""
    field = affine("certificate", point.field, limited=True)
    v, rate, slopes = field.lie(value, t, state, point.context)
    assert field.least is not None
    assert field.largest is not None
    low, high = field.least(v.dtype), field.largest(v.dtype)
    # min(a low, a high), written so that a bound of it is tight where the sign of a is not known.
    middle, half = 0.5 * low + 0.5 * high, 0.5 * high - 0.5 * low
    return v, rate + jnp.sum(middle * slopes - half * jnp.abs(slopes))
