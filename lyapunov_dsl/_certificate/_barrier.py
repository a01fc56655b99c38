"""Set invariance by a barrier function (Ames et al. 2016)."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from .._constant import Constant
from .._types import Scalar, State, shown
from ._base import Certificate, Point
from ._exponential import check_rate


class Barrier(Certificate):
    """d/dt h >= -α(h), so that {h >= 0} is invariant; see [`lyapunov_dsl.Certificate.barrier`][]."""

    h: Callable
    alpha: Callable

    def __init__(self, h: Any, alpha: Any = 1.0):
        if not callable(h):
            raise ValueError(f"h: expected a function of the state, got {shown(h)}")
        if not callable(alpha):
            check_rate("alpha", alpha)
            alpha = Constant(alpha)
        self.h = h
        self.alpha = alpha

    def value(self, t: Any, state: State, point: Point) -> Scalar:
        return -self.h(state)

    def comparison(self, t: Any, v: Any) -> Scalar:
        v = jnp.asarray(v)
        if isinstance(self.alpha, Constant):
            return -self.alpha(v.dtype) * v
        return self.alpha(-v)

    def flow(self, t: Any, dt: Any, v: Any) -> Scalar:
        if isinstance(self.alpha, Constant):
            v = jnp.asarray(v)
            return v * jnp.exp(-self.alpha(v.dtype) * dt)
        return super().flow(t, dt, v)
