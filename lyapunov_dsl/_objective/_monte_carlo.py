"""Monte Carlo training (Algorithm 1): no ODE is solved and no adjoint is taken."""

import functools as ft
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from .._condition import Condition
from .._measure import Measure, Samples, components
from .._measure._trajectory import Trajectory
from .._system import DiscreteSystem, Start
from .._types import Key, Scalar, Struct, kind
from ._base import Objective, example_keys, starts


class MonteCarlo(Objective):
    """E over examples and over a measure of max(0, residual) (Algorithm 1, eq. 12 and 45).

    **Arguments:**

    - `measure`: a [`lyapunov_dsl.Measure`][] over times and states. By default the tube
        around the current trajectories: none measured better beyond noise, and it costs least (see `docs/benchmarks.md`).
    """

    measure: Measure

    def __init__(self, measure: Any = None):
        if measure is not None and not isinstance(measure, Measure):
            raise ValueError(f"measure: expected a Measure such as Trajectory() or Cube(), got {kind(measure)}")
        self.measure = Trajectory() if measure is None else measure

    def check(self, condition: Condition, start: Struct) -> None:
        if isinstance(condition.system, DiscreteSystem):
            raise ValueError(
                "MonteCarlo: expected a continuous System (it needs a vector field), got a DiscreteSystem; use PathIntegral()"
            )
        self.measure.check(condition.continuous, start.state)

    def __call__(self, condition: Condition, x: PyTree, y: PyTree, *, key: Any) -> Scalar:
        model_key, sample_key = jax.random.split(key)
        keys = example_keys(model_key, x)
        begun = starts(condition, x, keys)
        losses = []
        for i, (weight, measure) in enumerate(components(self.measure)):
            part_key = jax.random.fold_in(sample_key, i)
            if measure.per_example:
                draw = lambda start, k, m=measure: m.sample(condition.continuous, start, key=k)
                samples, axis = eqx.filter_vmap(draw)(begun, example_keys(part_key, x)), 0
            else:
                # Shared by the batch: what depends on the state alone is then computed once (in_axes=None below).
                first = jax.tree.map(lambda leaf: leaf[0] if eqx.is_array(leaf) else leaf, begun)
                samples, axis = measure.sample(condition.continuous, first, key=part_key), None
            axes = (None, eqx.if_array(0), 0, axis, 0)
            violations = eqx.filter_vmap(_violation, in_axes=axes)(condition, begun, y, samples, keys)
            losses.append(weight * jnp.mean(violations))
        return ft.reduce(jnp.add, losses)


def _violation(condition: Condition, start: Start, target: PyTree, samples: Samples, key: Key) -> Scalar:
    """The weighted mean of max(0, residual) over one example's samples."""
    point = condition.point(start, target, key)

    def one(t: Any, state: Any) -> Any:
        return condition.hinge(condition.residuals(t, state, point, key))

    return jnp.sum(samples.weight * jax.vmap(one)(samples.t, samples.state))
