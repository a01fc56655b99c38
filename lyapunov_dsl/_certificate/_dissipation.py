"""Certificates under disturbances that enter linearly, of any size."""

from typing import Any

import jax
import jax.numpy as jnp

from .._constant import Constant
from .._control_affine import affine
from .._potential import Loss, as_loss
from .._types import RealScalarLike, Scalar, State
from ._base import Certificate, Point
from ._exponential import check_rate, fallen, falls


class InputToState(Certificate):
    """dV/dt <= -κ V + γ |w|² for every disturbance w, the input of a [`lyapunov_dsl.ControlAffine`][].

    The worst w is L_g V / (2 γ), and the condition is L_f V + |L_g V|² / (4 γ) <= -κ V. Then V(t) <= exp(-κt) V(0) + (γ / κ) sup |w|²
    (input-to-state stability; Sontag 1989, Sontag and Wang 1995).

    **Arguments:**

    - `loss`, `kappa`: as of [`lyapunov_dsl.Certificate.exponential`][].
    - `gain`: γ > 0.

    **Raises:** `ValueError` for numbers that are not as above; for a system without inputs when it is known.
    """

    loss: Loss
    rate: Constant
    gain: Constant

    def __init__(self, loss: Any, kappa: RealScalarLike, gain: RealScalarLike):
        check_rate("kappa", kappa)
        check_rate("gain", gain)
        self.loss, self.rate, self.gain = as_loss(loss), Constant(kappa), Constant(gain)

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
        return worst(self, t, state, point)

    def prepared(self, system: Any, start: Any) -> Certificate:
        disturbed("input_to_state", system)
        return self


class FiniteGain(Certificate):
    """dV/dt <= γ |w|² - |y|² for every disturbance w, the input of a [`lyapunov_dsl.ControlAffine`][], and y the prediction.

    The worst w is L_g V / (2 γ), and the condition is L_f V + |y|² + |L_g V|² / (4 γ) <= 0 (the Hamilton-Jacobi inequality). Then V is a
    storage function of the supply rate γ |w|² - |y|² (Willems 1972), and ∫|y|² <= γ ∫|w|² + V(0): the L2 gain is at most √γ (van der
    Schaft 1992).

    **Arguments:**

    - `loss`: V, as of [`lyapunov_dsl.Certificate.exponential`][].
    - `gain`: γ > 0, the square of the L2 gain.

    **Raises:** `ValueError` for numbers that are not as above; for a system without inputs when it is known.
    """

    loss: Loss
    gain: Constant

    def __init__(self, loss: Any, gain: RealScalarLike):
        check_rate("gain", gain)
        self.loss, self.gain = as_loss(loss), Constant(gain)

    def value(self, t: Any, state: State, point: Point) -> Scalar:
        return self.loss(point.readout(state), point.target)

    def comparison(self, t: Any, v: Any) -> Scalar:
        return jnp.zeros_like(jnp.asarray(v))

    def flow(self, t: Any, dt: Any, v: Any) -> Scalar:
        return jnp.asarray(v)

    def derivative(self, t: Any, state: State, point: Point, velocity: State) -> tuple[Scalar, Scalar]:
        v, rate = worst(self, t, state, point)
        return v, rate + jax.tree.reduce(jnp.add, jax.tree.map(lambda y: jnp.sum(y * y), point.readout(state)))

    def prepared(self, system: Any, start: Any) -> Certificate:
        disturbed("finite_gain", system)
        return self


def disturbed(name: str, system: Any) -> None:
    """Raises `ValueError` for a system whose input is not the disturbance."""
    field = affine(name, getattr(system, "vector_field", system))
    if field.controller is not None:
        raise ValueError(
            f"{name}: expected a ControlAffine without a controller, whose input is the disturbance, got one with a controller; put it "
            "into the drift"
        )


def worst(certificate: Any, t: Any, state: Any, point: Point) -> tuple[Scalar, Scalar]:
    """V, and sup_w (L_f V + L_g V w - γ |w|²)."""
    field = affine("certificate", point.field)
    v, rate, slopes = field.lie(lambda t, s: certificate.value(t, s, point), t, state, point.context)
    return v, rate + jnp.sum(slopes * slopes) / (4 * certificate.gain(v.dtype))
