"""A set is reached."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from .._constant import Constant
from .._types import RealScalarLike, Scalar, State, shown
from ._base import Certificate, Point
from ._exponential import check_rate


class Reach(Certificate):
    """dV/dt <= -r outside of a target set.

    Where trajectories stay in a compact H, each of them enters the target by the time (V(η(0)) - min_H V) / r, as V could not go on falling
    otherwise (Prajna and Rantzer 2007). With a barrier of the set to avoid, `&`, they do so without entering that; that they stay in H is
    the claim "invariant" of [`lyapunov_dsl.prove`][], or "enclosed" of the barrier.

    **Arguments:**

    - `value`: V, a function of the state.
    - `target`: a function of the state that is above 0 in the interior of the target, and at most 0 outside.
    - `rate`: r > 0, per unit of time.
    - `slack`: how much dV/dt may exceed -r inside of the target, for each unit of `target`.

    **Raises:** `ValueError` for what is no function, and numbers that are not as above.
    """

    function: Callable
    target: Callable
    speed: Constant
    slack: Constant

    def __init__(self, value: Any, target: Any, rate: RealScalarLike, *, slack: RealScalarLike = 1e3):
        for name, function in {"value": value, "target": target}.items():
            if not callable(function):
                raise ValueError(f"{name}: expected a function of the state, got {shown(function)}")
        check_rate("rate", rate)
        check_rate("slack", slack)
        self.function, self.target = value, target
        self.speed, self.slack = Constant(rate), Constant(slack)

    def value(self, t: Any, state: State, point: Point) -> Scalar:
        return self.function(state)

    def comparison(self, t: Any, v: Any) -> Scalar:
        v = jnp.asarray(v)
        return jnp.broadcast_to(-self.speed(v.dtype), v.shape)

    def flow(self, t: Any, dt: Any, v: Any) -> Scalar:
        v = jnp.asarray(v)
        return v - self.speed(v.dtype) * dt

    def derivative(self, t: Any, state: State, point: Point, velocity: State) -> tuple[Scalar, Scalar]:
        v, rate = super().derivative(t, state, point, velocity)
        return v, rate - self.slack(v.dtype) * jnp.maximum(self.target(state), 0)
