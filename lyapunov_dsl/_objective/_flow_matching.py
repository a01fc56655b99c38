"""Simulation-free flow matching towards given states: the rival of Monte Carlo training in the same state space."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from .._condition import Condition
from .._constant import Constant
from .._measure._base import stratified_times
from .._rollout import time_dtype
from .._system import DiscreteSystem, Start
from .._types import Key, Scalar, Struct, check_sizes, describe, is_finite, kind, struct_of
from ._base import Objective, example_keys, starts


class ClassCorner(eqx.Module):
    """The goal of a class for states that are logits: `half_width` for it, -`half_width` for the others.

    **Arguments:**

    - `half_width`: how far along every axis, a positive real scalar. An `InvariantField` of rate K in a box of half-width s can
        move at the speed that is asked for up to s K / (K + 1 / T).

    **Raises:** `ValueError` for a half-width that is not positive.
    """

    half_width: Constant

    def __init__(self, half_width: Any):
        if not (is_finite(half_width) and half_width > 0):
            raise ValueError(f"half_width: expected a positive finite number, got {half_width!r}")
        self.half_width = Constant(half_width)

    def __call__(self, target: Any, state: Any) -> Any:
        """The goal of one example with a class as target."""
        corner = 2 * jax.nn.one_hot(target, state.shape[0], dtype=state.dtype) - 1
        return self.half_width(state.dtype) * corner


class FlowMatching(Objective):
    """The squared distance between the field and the velocity of straight paths (Lipman et al. 2023, with the initial
    state of the system in place of noise): no ODE is solved.

    With the goal g of an example, E over t uniform on [0, T] of |f(t, η_t, x) - (g - η(0)) / T|² / k at
    η_t = η(0) + t/T (g - η(0)) + σ z, z standard normal. The certificate has no part in it: it is here to be compared with.

    **Arguments:**

    - `goal`: a function (target, initial state) -> state, such as [`lyapunov_dsl.ClassCorner`][]. States are single
        arrays.
    - `samples`: how many times an example.
    - `noise`: σ >= 0, in the unit of the state.

    **Raises:** `ValueError` for a goal that is not callable, a number of samples that is not positive, a noise below 0;
    `check` for a discrete system and a goal that is not like the state.
    """

    goal: Callable
    noise: Constant
    samples: int = eqx.field(static=True)

    def __init__(self, goal: Any, *, samples: int = 8, noise: Any = 0.0):
        if not callable(goal):
            raise ValueError(f"goal: expected a function (target, state) -> state, got {kind(goal)}")
        check_sizes(samples=samples)
        if not (is_finite(noise) and noise >= 0):
            raise ValueError(f"noise: expected a finite number >= 0, got {noise!r}")
        self.goal, self.noise, self.samples = goal, Constant(noise), samples

    def check(self, condition: Condition, start: Struct) -> None:
        if isinstance(condition.system, DiscreteSystem):
            raise ValueError(
                "FlowMatching: expected a continuous System (it needs a vector field), got a DiscreteSystem"
            )
        if not hasattr(start.state, "shape"):
            raise ValueError(f"FlowMatching: expected a state that is one array, got {describe(start.state)}")

    def __call__(self, condition: Condition, x: PyTree, y: PyTree, *, key: Any) -> Scalar:
        model_key, sample_key = jax.random.split(key)
        keys = example_keys(model_key, x)
        begun = starts(condition, x, keys)
        one = lambda start, target, k, draw: self._mismatch(condition, start, target, k, draw)
        return jnp.mean(eqx.filter_vmap(one)(begun, y, keys, example_keys(sample_key, x)))

    def _mismatch(self, condition: Condition, start: Start, target: PyTree, key: Key, draw: Any) -> Scalar:
        system, begin = condition.continuous, start.state
        goal = self.goal(target, begin)
        if struct_of(goal) != struct_of(begin):
            raise ValueError(f"goal: expected a state {describe(begin)}, got {describe(goal)}")
        times_key, noise_key = jax.random.split(draw)
        times = stratified_times(times_key, self.samples, system.horizon, time_dtype(begin))
        noise = self.noise(begin.dtype) * jax.random.normal(noise_key, (self.samples, *begin.shape), begin.dtype)

        def at(t: Any, z: Any) -> Any:
            state = begin + (t / system.horizon).astype(begin.dtype) * (goal - begin) + z
            wanted = (goal - begin) / system.horizon
            return jnp.mean((system.velocity(t, state, start.context, key) - wanted) ** 2)

        return jnp.mean(jax.vmap(at)(times, noise))
