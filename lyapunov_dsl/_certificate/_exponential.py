"""Exponential stability (paper, eq. 8-10)."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._constant import Constant
from .._potential import Loss, as_loss
from .._types import RealScalarLike, Scalar, State, is_finite, is_traced
from ._base import Certificate, Point


def check_rate(name: str, rate: Any) -> None:
    """Raises `ValueError` unless a rate is a positive finite scalar, in the default precision too (a traced one is taken on trust)."""
    if is_traced(rate):
        return
    if not (is_finite(rate) and rate > 0):
        raise ValueError(f"{name}: expected a positive finite number, got {rate!r}")
    dtype = jnp.result_type(float)
    if not float(np.finfo(dtype).tiny) <= float(rate) <= float(np.finfo(dtype).max):
        raise ValueError(f"{name}: expected a positive finite number, got {rate!r}, which {dtype} cannot hold")


def falls(rate: Constant, v: Any) -> Scalar:
    """-κ v, the comparison of an exponential decay."""
    v = jnp.asarray(v)
    return -rate(v.dtype) * v


def fallen(rate: Constant, dt: Any, v: Any) -> Scalar:
    """exp(-κ Δt) v, what is left after a time."""
    v = jnp.asarray(v)
    return v * jnp.exp(-rate(v.dtype) * dt)


class Exponential(Certificate):
    """dV/dt <= -κ V with V(η) = loss(readout(η), y) (eq. 8-10); made by [`lyapunov_dsl.Certificate.exponential`][].

    **Arguments:**

    - `loss`: a [`lyapunov_dsl.Loss`][] or a function (prediction, target) -> scalar, never negative.
    - `kappa`: the rate κ > 0 per unit of time.

    **Raises:** `ValueError` for κ that is not positive and finite, or a loss that is not callable.
    """

    loss: Loss
    rate: Constant

    def __init__(self, loss: Any, kappa: RealScalarLike):
        check_rate("kappa", kappa)
        self.loss = as_loss(loss)
        self.rate = Constant(kappa)

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


class Varying(Certificate):
    """dV/dt <= -κ(t) V, so that V(t) <= exp(-∫κ) V(0) (Grönwall's inequality); made by [`lyapunov_dsl.Certificate.exponential`][].

    **Arguments:**

    - `loss`: a [`lyapunov_dsl.Loss`][] or a function (prediction, target) -> scalar, never negative.
    - `kappa`: κ, a function of the time to a rate per unit of time, positive over the horizon. Its arrays, if it has any, are trained.

    **Raises:** `ValueError` for a loss that is not callable; when its system is known, for κ(t) that is no scalar, or not positive at
    one of 257 equal times.
    """

    loss: Loss
    kappa: Callable

    def __init__(self, loss: Any, kappa: Callable):
        self.loss, self.kappa = as_loss(loss), kappa

    def value(self, t: Any, state: State, point: Point) -> Scalar:
        return self.loss(point.readout(state), point.target)

    def comparison(self, t: Any, v: Any) -> Scalar:
        v = jnp.asarray(v)
        return -jnp.asarray(self.kappa(jnp.asarray(t, v.dtype)), v.dtype) * v

    def prepared(self, system: Any, start: Any) -> Certificate:
        times = np.linspace(0, system.horizon, 257)
        rates = np.asarray(jax.vmap(self.kappa)(jnp.asarray(times)), float)
        if rates.shape != times.shape:
            raise ValueError(
                f"kappa: expected a function of the time with one number as its result, got {rates.shape[1:]}"
            )
        if not (rates > 0).all():
            worst = int(np.argmin(np.where(np.isnan(rates), -np.inf, rates)))
            raise ValueError(
                f"kappa: expected κ(t) > 0 for all t in [0, {system.horizon:g}], got κ({times[worst]:.4g}) = {rates[worst]:.4g}"
            )
        return self


def decay_from_rate(kappa: Any, dt: Any) -> float:
    """The decay per step κ_d = 1 - exp(-κ Δt) of eq. 16 that the rate κ per unit of time means for steps of Δt.

    **Arguments:**

    - `kappa`: κ > 0, per unit of time.
    - `dt`: Δt > 0, in the unit of time.

    **Returns:** κ_d in (0, 1), without a unit.

    **Raises:** `ValueError` unless κ and Δt are positive and finite.
    """
    check_rate("kappa", kappa)
    check_rate("dt", dt)
    return -math.expm1(-float(kappa) * float(dt))


def rate_from_decay(decay: Any, dt: Any) -> float:
    """The rate κ = -log(1 - κ_d) / Δt per unit of time that the decay κ_d per step of eq. 16 means for steps of Δt.

    **Arguments:**

    - `decay`: κ_d in (0, 1), without a unit.
    - `dt`: Δt > 0, in the unit of time.

    **Returns:** κ > 0, per unit of time.

    **Raises:** `ValueError` unless 0 < κ_d < 1 and Δt is positive and finite.
    """
    if not (is_finite(decay) and 0 < decay < 1):
        raise ValueError(
            f"decay: expected the per-step decay of eq. 16 in (0, 1), got {decay!r}; a rate per unit of time is called kappa"
        )
    check_rate("dt", dt)
    return -math.log1p(-float(decay)) / float(dt)
