"""Monte Carlo training (Algorithm 1): no ODE is solved and no adjoint is taken."""

import functools as ft
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from .._condition import Condition
from .._measure import Measure, Samples, components
from .._measure._trajectory import Trajectory
from .._system import DiscreteSystem, Start
from .._types import Key, Scalar, Struct, kind, levels
from ._base import Objective, example_keys, starts


class MonteCarlo(Objective):
    """E over examples and over a measure of max(0, residual) (Algorithm 1, eq. 12 and 45).

    With a level c it is min(residual, c - V) where V <= c, and 0 elsewhere, as [`lyapunov_dsl.prove`][] asks: outside of a region of
    attraction no V falls, and where a residual cannot be mended the state is moved out of {V <= c} (Yang et al. 2024).

    Relative residuals are divided by V, and c - V by c: of rates of decay. Toward an equilibrium they do not vanish, and nothing is gained
    by a V that is small all over.

    **Arguments:**

    - `measure`: a [`lyapunov_dsl.Measure`][] over times and states. By default the tube
        around the current trajectories: none measured better beyond noise, and it costs least (see `docs/benchmarks.md`).
    - `level`: c, or (least, c): only states with V up to c, and at least `least`.
    - `relative`: whether residuals are relative; for V >= 0. States do not count then where V is 0, or so small (1e-31 in single
        precision) that it underflows.

    **Raises:** `ValueError` for what is no measure, levels that are not in order, or relative residuals up to a level <= 0.
    """

    measure: Measure
    level: tuple[float | None, float | None] = eqx.field(static=True)
    relative: bool = eqx.field(static=True)

    def __init__(self, measure: Any = None, *, level: Any = None, relative: bool = False):
        if measure is not None and not isinstance(measure, Measure):
            raise ValueError(f"measure: expected a Measure such as Trajectory() or Cube(), got {kind(measure)}")
        self.measure = Trajectory() if measure is None else measure
        self.level, self.relative = levels(level), bool(relative)
        if self.relative and self.level[1] is not None and self.level[1] <= 0:
            raise ValueError(f"level: expected a level > 0 for relative residuals, got {level!r}")

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

        def violation(t: Any, state: Any, point: Any, key: Any) -> Any:
            residuals = condition.residuals(t, state, point, key)
            if self.relative or self.level != (None, None):
                values = condition.values(t, state, point)
                residuals = {name: self._counted(r, values[name]) for name, r in residuals.items()}
            return condition.hinge(residuals)

        return over(condition, self.measure, violation, begun, y, keys, sample_key)

    def _counted(self, r: Any, v: Any) -> Any:
        """What a residual counts at a value V."""
        least, most = self.level
        if self.relative:
            # Below this level V has lost digits to underflow, and a residual with it.
            some = v > float(jnp.finfo(v.dtype).tiny) / float(jnp.finfo(v.dtype).eps)
            r = jnp.where(some, _ratio(jnp.where(some, r, 0), jnp.where(some, v, 1)), 0)
        if most is not None:
            r = jnp.minimum(r, jnp.maximum(most - v, 0) / (most if self.relative else 1))
        return r if least is None else jnp.where(v >= least, r, 0)


@jax.custom_jvp
def _ratio(r: Any, v: Any) -> Any:
    """r / v. JAX differentiates a quotient with v⁻², which overflows where v⁻¹ does not."""
    return r / v


@_ratio.defjvp
def _ratio_jvp(primals: Any, tangents: Any) -> Any:
    (r, v), (dr, dv) = primals, tangents
    ratio = r / v
    return ratio, (dr - ratio * dv) / v


def over(
    condition: Condition, measure: Measure, loss: Callable, begun: Start, y: PyTree, keys: Any, sample_key: Any
) -> Scalar:
    """The mean of a loss (t, state, point, key) over the examples and a measure."""

    def one(condition: Condition, start: Start, target: PyTree, samples: Samples, key: Key) -> Scalar:
        """The weighted mean over one example's samples."""
        point = condition.point(start, target, key)
        return jnp.sum(samples.weight * jax.vmap(lambda t, s: loss(t, s, point, key))(samples.t, samples.state))

    losses = []
    for i, (weight, part) in enumerate(components(measure)):
        part_key = jax.random.fold_in(sample_key, i)
        if part.per_example:
            draw = lambda start, k, m=part: m.sample(condition.continuous, start, key=k)
            samples, axis = eqx.filter_vmap(draw)(begun, example_keys(part_key, keys)), 0
        else:
            # Shared by the batch: what depends on the state alone is then computed once (in_axes=None below).
            first = jax.tree.map(lambda leaf: leaf[0] if eqx.is_array(leaf) else leaf, begun)
            samples, axis = part.sample(condition.continuous, first, key=part_key), None
        axes = (None, eqx.if_array(0), 0, axis, 0)
        losses.append(weight * jnp.mean(eqx.filter_vmap(one, in_axes=axes)(condition, begun, y, samples, keys)))
    return ft.reduce(jnp.add, losses)
