"""The condition: a certificate put on a system, as values, rates and residuals."""

import functools as ft
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ._certificate import AllOf, Certificate, Point, parts_of, weights_of
from ._rollout import discrete_path, rollout
from ._system import DiscreteSystem, Start, System
from ._types import Key, Scalar, State


class Condition(eqx.Module):
    """A system together with the certificate that is to hold for it. All methods see one example.

    **Arguments:**

    - `system`: a [`lyapunov_dsl.System`][] or a [`lyapunov_dsl.DiscreteSystem`][].
    - `certificate`: a [`lyapunov_dsl.Certificate`][] or a conjunction of several.
    """

    system: System | DiscreteSystem
    certificate: Certificate | AllOf

    @property
    def parts(self) -> dict[str, Certificate]:
        """The certificates by name; raises `ValueError` for what is none."""
        return parts_of(self.certificate)

    @property
    def continuous(self) -> System:
        """The system, where it is one with a vector field; raises `ValueError` for a discrete one."""
        if not isinstance(self.system, System):
            raise ValueError(f"system: expected a continuous System, got a {type(self.system).__name__}")
        return self.system

    def point(self, start: Start, target: PyTree, key: Key = None) -> Point:
        """The point of one example of a continuous system."""
        system = self.continuous
        velocity = lambda t, state: system.velocity(t, state, start.context, key)
        return Point(lambda state: system.decode(state, key), start.context, target, velocity, system.vector_field)

    def rates(self, t: Any, state: State, point: Point, key: Key = None) -> dict[str, tuple[Scalar, Scalar]]:
        """V and the rate that is compared for every part: dV/dt along the flow by one jvp in (t, state) along (1, f), unless a part
        has a rate of its own."""
        velocity = self.continuous.velocity(t, state, point.context, key)
        return {name: part.derivative(t, state, point, velocity) for name, part in self.parts.items()}

    def residuals(self, t: Any, state: State, point: Point, key: Key = None) -> dict[str, Scalar]:
        """dV/dt - comparison(t, V) for every part (eq. 10 for the exponential certificate); at most 0 where the
        condition holds."""
        rates = self.rates(t, state, point, key)
        return {name: rate - self.parts[name].comparison(t, v) for name, (v, rate) in rates.items()}

    def hinge(self, residuals: dict[str, Any]) -> Array:
        """The weighted sum of max(0, residual) over the parts (eq. 12)."""
        return self.weighted({name: jax.nn.relu(r) for name, r in residuals.items()})

    def weighted(self, values: dict[str, Any]) -> Array:
        """The sum of the parts' values by the weights of the certificate."""
        weights = weights_of(self.certificate)
        return ft.reduce(jnp.add, [weights[name] * value for name, value in values.items()])

    def values(self, t: Any, state: State, point: Point) -> dict[str, Scalar]:
        """V for every part."""
        return {name: part.value(t, state, point) for name, part in self.parts.items()}

    def path_values(
        self, start: Start, target: PyTree, key: Key, *, solver: diffrax.AbstractSolver, steps: int
    ) -> tuple[Array, dict[str, Array]]:
        """V along the path of one example: equal steps of a solver, or the layers of a discrete system.

        **Returns:** times of shape (n + 1,) and, for every part, the values there, of the same shape.
        """
        if isinstance(self.system, DiscreteSystem):
            states, readouts = discrete_path(self.system, start, key)
            dtype = jnp.result_type(*jax.tree.leaves(states[-1]))
            times = jnp.linspace(0, self.system.horizon, len(states), dtype=dtype)
            points = [Point(readout, start.context, target) for readout in readouts]
            layers = [self.values(t, state, point) for t, state, point in zip(times, states, points, strict=True)]
            return times, jax.tree.map(lambda *values: jnp.stack(values), *layers)
        times, states = rollout(self.continuous, start, key, solver=solver, steps=steps)
        point = self.point(start, target, key)
        return times, jax.vmap(lambda t, state: self.values(t, state, point))(times, states)

    def path_residuals(
        self, start: Start, target: PyTree, key: Key, *, solver: diffrax.AbstractSolver, steps: int
    ) -> dict[str, Array]:
        """The discrete residuals along the path of one example, shape (n,) for every part: those of `step_residuals`, and, for a part with
        a rate of its own, Δt times what this is above dV/dt at the beginning of each step."""
        own = [name for name, part in self.parts.items() if part.own_rate]
        if isinstance(self.system, DiscreteSystem) or not own:
            return self.step_residuals(*self.path_values(start, target, key, solver=solver, steps=steps))
        times, states = rollout(self.continuous, start, key, solver=solver, steps=steps)
        point = self.point(start, target, key)
        found = self.step_residuals(times, jax.vmap(lambda t, state: self.values(t, state, point))(times, states))

        def above(part: Certificate, t: Any, state: Any) -> Any:
            assert point.velocity is not None
            velocity = point.velocity(t, state)
            return (
                part.derivative(t, state, point, velocity)[1]
                - Certificate.derivative(part, t, state, point, velocity)[1]
            )

        before, dt = jax.tree.map(lambda leaf: leaf[:-1], (times, states)), times[1:] - times[:-1]
        for name in own:
            found[name] += dt * jax.vmap(lambda t, s, name=name: above(self.parts[name], t, s))(*before)
        return found

    def step_residuals(self, times: Array, values: dict[str, Array]) -> dict[str, Array]:
        """V(t_{i+1}) - flow(t_i, Δt, V(t_i)) along a path for every part, shape (n,) (eq. 16 for κ_d = 1 - exp(-κ
        Δt))."""
        dt = times[1:] - times[:-1]
        flow = lambda name, v: jax.vmap(self.parts[name].flow)(times[:-1], dt, v[:-1])
        return {name: v[1:] - flow(name, v) for name, v in values.items()}
