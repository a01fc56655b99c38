"""Fixed-step rollouts: what the path integral and the trajectory measure run instead of an adaptive solve."""

import functools as ft
from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ._system import DiscreteSystem, Start, System
from ._types import Key, State, struct_of

# A convolution inside an XLA loop runs many times slower than outside on a CPU (jax issue 12868), so short
# rollouts are unrolled there; longer ones would only trade that for minutes of compilation.
_LONGEST_UNROLLED = 32


def time_dtype(state: State) -> Any:
    """The dtype of times: that of the state, so that a field may mix the two under strict promotion."""
    return jnp.result_type(*jax.tree.leaves(state))


class _Field(eqx.Module):
    # A module and not a closure: `diffrax.BacksolveAdjoint` differentiates the arrays it finds in the term.
    system: System
    key: Key

    def __call__(self, t: Any, state: State, context: Any) -> State:
        return self.system.velocity(t, state, context, self.key)


def field_term(system: System, key: Key) -> diffrax.ODETerm:
    """The vector field of one example as a diffrax term; the context is diffrax's `args`."""
    return diffrax.ODETerm(_Field(system, key))


def rollout(
    system: System,
    start: Start,
    key: Key,
    *,
    solver: diffrax.AbstractSolver,
    steps: int,
    after: Callable[[State], State] = lambda state: state,
) -> tuple[Array, State]:
    """Equal steps of a diffrax solver over [0, horizon] for one example.

    **Arguments:**

    - `system`, `start`, `key`: the system, its start and the example's key (or `None`).
    - `solver`: any diffrax solver that can be stepped with a fixed step.
    - `steps`: how many.
    - `after`: what becomes of a state after each step, for solvers that remember nothing from one step to the next, such as Euler.

    **Returns:** times of shape (steps + 1,) and the states there, with that leading axis on every leaf. Differentiable.
    """
    dtype = time_dtype(start.state)
    times = jnp.linspace(0, system.horizon, steps + 1, dtype=dtype)
    term = field_term(system, key)
    memory = solver.init(term, times[0], times[1], start.state, start.context)

    def step(carry: Any, interval: Any) -> tuple[Any, Any]:
        state, memory = carry
        t0, t1 = interval
        state, _, _, memory, _ = solver.step(term, t0, t1, state, start.context, memory, made_jump=False)
        state = after(state)
        return (state, memory), state

    unroll = jax.default_backend() == "cpu" and steps <= _LONGEST_UNROLLED
    _, states = jax.lax.scan(step, (start.state, memory), (times[:-1], times[1:]), unroll=steps if unroll else 1)
    return times, jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), start.state, states)


def layout(system: DiscreteSystem, start: PyTree) -> tuple[tuple[bool, ...], tuple[PyTree, ...]]:
    """Which steps of a discrete system are dynamics (they keep the shape), by abstract evaluation.

    **Returns:** a flag for each step and the shapes of the state before each step and after the last one.
    """
    # Shapes are the same without dropout, which asks for a key.
    system, states = eqx.nn.inference_mode(system), [struct_of(start.state)]
    for i in range(len(system.steps)):
        # Structural mistakes surface here, with the step that made them.
        states.append(struct_of(eqx.filter_eval_shape(system.step, i, states[-1], start.context)))
    dynamic = tuple(before == after for before, after in zip(states[:-1], states[1:], strict=True))
    return dynamic, tuple(states)


def discrete_path(system: DiscreteSystem, start: Start, key: Key) -> tuple[list[State], list[Callable]]:
    """The states of one example between the dynamic steps of a discrete system, and the readout at each.

    **Returns:** the states η_0, ..., η_n for n dynamic steps, and for each the changes of shape that are still to come,
    followed by the readout.
    """
    dynamic, _ = layout(system, start)

    def readout_after(position: int) -> Callable:
        later = [i for i in range(position, len(dynamic)) if not dynamic[i]]
        change = lambda state, i: system.step(i, state, start.context, key)
        return lambda state: system.decode(ft.reduce(change, later, state), key)

    state, states, positions = start.state, [start.state], [0]
    for i, moves in enumerate(dynamic):
        state = system.step(i, state, start.context, key)
        if moves:
            states.append(state)
            positions.append(i + 1)
        else:
            # The same point in other coordinates: only the later ones are kept.
            states[-1], positions[-1] = state, i + 1
    return states, [readout_after(position) for position in positions]


class EulerInference(eqx.Module):
    """Inference by a fixed number of Euler steps, written out: x -> prediction. One example per call.

    **Arguments:**

    - `system`: a [`lyapunov_dsl.System`][].
    - `steps`: how many.
    """

    system: System
    steps: int = eqx.field(static=True)

    def step(self, n: Any, state: PyTree, context: PyTree) -> PyTree:
        """Φ_n(state, context) = state + Δt f(n Δt, state, context)."""
        dt = self.system.horizon / self.steps
        velocity = self.system.velocity(jnp.asarray(n * dt, time_dtype(state)), state, context)
        return jax.tree.map(lambda s, v: s + dt * v, state, velocity)

    def final(self, state: PyTree, context: PyTree) -> PyTree:
        """The state at the horizon from a start."""
        for n in range(self.steps):
            state = self.step(n, state, context)
        return state

    def __call__(self, x: PyTree) -> PyTree:
        start = self.system.start(x)
        return self.system.decode(self.final(start.state, start.context))

    def margins(self, x: PyTree, y: Any) -> Array:
        """z_y - z_j of all classes j, for logits z and an integer class y."""
        return margins(self(x), y)


def margins(logits: Array, y: Any) -> Array:
    """z_y - z_j of all classes j, for logits z and an integer class y."""
    return logits[y] - logits
