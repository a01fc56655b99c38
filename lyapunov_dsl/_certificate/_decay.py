"""Decay of V other than exponential: asymptotic, in finite time, down to a level."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._constant import Constant
from .._potential import Loss, as_loss
from .._types import RealScalarLike, Scalar, State, is_finite, is_traced, shown
from ._base import Certificate, Point
from ._exponential import check_rate, fallen, falls

# Below this V counts as this in powers of it, whose slopes are infinite at 0.
FLOOR = 1e-30


class Asymptotic(Certificate):
    """dV/dt <= -α(V), with α(0) = 0 and α(v) > 0 for v > 0.

    Then V(t) is below the solution of v' = -α(v) from V(0), which tends to 0; where V is positive definite, the equilibrium is
    asymptotically stable (Lyapunov 1892; Khalil 2002, theorem 4.9).

    **Arguments:**

    - `loss`: as of [`lyapunov_dsl.Certificate.exponential`][].
    - `alpha`: α, a continuous function of a level. Its arrays, if it has any, are trained.

    **Raises:** `ValueError` for an α that is not 0 at 0, or not positive at some level in [1e-6, 1e3].
    """

    loss: Loss
    alpha: Callable

    def __init__(self, loss: Any, alpha: Any):
        if not callable(alpha):
            raise ValueError(f"alpha: expected a function of a level v with α(0) = 0, got {shown(alpha)}")
        self.loss, self.alpha = as_loss(loss), alpha
        check_class_k("alpha", alpha, increasing=False)

    def value(self, t: Any, state: State, point: Point) -> Scalar:
        return self.loss(point.readout(state), point.target)

    def comparison(self, t: Any, v: Any) -> Scalar:
        return -self.alpha(jnp.asarray(v))


class FiniteTime(Certificate):
    """dV/dt <= -c V^ρ with 0 < ρ < 1.

    Then V is 0 from the time V(0)^(1 - ρ) / (c (1 - ρ)) on (Bhat and Bernstein 2000, theorem 4.2). Near V = 0 a field that does this is not
    Lipschitz; a proof of "decrease" is about states with V above a level of one's choice, `level=(least, most)`, that is then reached by
    `time(V(0)) - time(least)`.

    **Arguments:**

    - `loss`: as of [`lyapunov_dsl.Certificate.exponential`][].
    - `c`: c > 0.
    - `rho`: ρ in (0, 1).

    **Raises:** `ValueError` for numbers that are not as above.
    """

    loss: Loss
    c: Constant
    rho: Constant

    def __init__(self, loss: Any, c: RealScalarLike, rho: RealScalarLike):
        check_rate("c", c)
        if not is_traced(rho) and not (is_finite(rho) and 0 < rho < 1):
            raise ValueError(f"rho: expected a number in (0, 1), got {rho!r}")
        self.loss, self.c, self.rho = as_loss(loss), Constant(c), Constant(rho)

    def value(self, t: Any, state: State, point: Point) -> Scalar:
        return self.loss(point.readout(state), point.target)

    def comparison(self, t: Any, v: Any) -> Scalar:
        v = jnp.asarray(v)
        return -self.c(v.dtype) * jnp.exp(self.rho(v.dtype) * jnp.log(jnp.maximum(v, FLOOR)))

    def flow(self, t: Any, dt: Any, v: Any) -> Scalar:
        v = jnp.asarray(v)
        left = 1 - self.rho(v.dtype)
        # Of V^(1 - ρ), which falls linearly.
        power = jnp.exp(left * jnp.log(jnp.maximum(v, FLOOR))) - self.c(v.dtype) * left * dt
        return jnp.where(power > 0, jnp.exp(jnp.log(jnp.where(power > 0, power, 1)) / left), 0)

    def time(self, v: Any) -> float:
        """When V is 0 at the latest, from V = v at time 0."""
        rho = float(self.rho.written())
        return math.pow(float(v), 1 - rho) / (float(self.c.written()) * (1 - rho))


class Practical(Certificate):
    """dV/dt <= -κ (V - b).

    Then V(t) <= b + exp(-κt) (V(0) - b): {V <= b} is invariant and all else tends to it (ultimate boundedness; Khalil 2002, section 4.8).

    **Arguments:**

    - `loss`: as of [`lyapunov_dsl.Certificate.exponential`][].
    - `kappa`: κ > 0 per unit of time.
    - `level`: b >= 0.

    **Raises:** `ValueError` for numbers that are not as above.
    """

    loss: Loss
    rate: Constant
    level: Constant

    def __init__(self, loss: Any, kappa: RealScalarLike, level: RealScalarLike):
        check_rate("kappa", kappa)
        if not is_traced(level) and not (is_finite(level) and level >= 0):
            raise ValueError(f"level: expected a finite number >= 0, got {level!r}")
        self.loss, self.rate, self.level = as_loss(loss), Constant(kappa), Constant(level)

    @property
    def kappa(self) -> Scalar:
        """The rate κ per unit of time."""
        return self.rate()

    def value(self, t: Any, state: State, point: Point) -> Scalar:
        return self.loss(point.readout(state), point.target)

    def comparison(self, t: Any, v: Any) -> Scalar:
        v = jnp.asarray(v)
        return falls(self.rate, v - self.level(v.dtype))

    def flow(self, t: Any, dt: Any, v: Any) -> Scalar:
        v = jnp.asarray(v)
        level = self.level(v.dtype)
        return level + fallen(self.rate, dt, v - level)


def check_class_k(name: str, alpha: Any, *, increasing: bool = True) -> None:
    """Raises `ValueError` for a function that is not 0 at 0, or not positive (and increasing) at some levels that are tried. What is
    traced is taken on trust."""
    levels = np.concatenate([[0.0], np.geomspace(1e-6, 1e3, 64)])
    found = jax.vmap(alpha)(jnp.asarray(levels, jnp.result_type(float)))
    if is_traced(found):
        return
    found = np.asarray(found, float)
    if found.shape != levels.shape:
        raise ValueError(f"{name}: expected one number for a level, got an array of shape {found.shape[1:]}")
    if found[0] != 0:
        raise ValueError(f"{name}: expected {name}(0) = 0, got {found[0]:.4g}")
    bad = ~(found[1:] > 0)
    if bad.any():
        at = levels[1:][bad][0]
        raise ValueError(f"{name}: expected {name}(v) > 0 for v > 0, got {name}({at:.4g}) = {found[1:][bad][0]:.4g}")
    if increasing and (np.diff(found) < 0).any():
        at = int(np.argmax(np.diff(found) < 0))
        raise ValueError(
            f"{name}: expected an increasing function, got one that falls from {levels[at]:.4g} to {levels[at + 1]:.4g}"
        )
