"""What a program answers for a batch, compiled: predictions, trajectories, V along them, and failures.

A program is what [`lyapunov_dsl.compile`][] returns; its methods check what they are given and call these, in inference mode.
"""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ._certificate import loss_of
from ._rollout import discrete_path
from ._solve import solve
from ._system import DiscreteSystem


def _final(program: Any, x: PyTree, stop: Any) -> tuple[Any, Any, Any, Any]:
    """Start, final time and state and whether the solve succeeded, for one example of a continuous system."""
    start = program.system.start(x)
    solution = solve(program.condition.continuous, start, None, program.solver, stop=stop)
    t, state = jax.tree.map(lambda leaf: leaf[-1], (solution.ts, solution.ys))
    return start, t, state, diffrax.is_okay(solution.result)


def _layer(system: DiscreteSystem, stop: Any, count: int) -> Any:
    """The last of `count` states of a discrete system that is reached by the time `stop`."""
    return count - 1 if stop is None else jnp.floor(stop / system.horizon * (count - 1) + 1e-6).astype(int)


def _predict_one(program: Any, x: PyTree, stop: Any) -> PyTree:
    system = program.system
    if isinstance(system, DiscreteSystem):
        start = system.start(x)
        states, readouts = discrete_path(system, start, None)
        if stop is None:
            return readouts[-1](states[-1])
        outputs = [readout(state) for readout, state in zip(readouts, states, strict=True)]
        layer = _layer(system, stop, len(states))
        return jax.tree.map(lambda *leaves: jnp.stack(leaves)[layer], *outputs)
    _, _, state, good = _final(program, x, stop)
    prediction = system.decode(state)
    return jax.tree.map(lambda leaf: jnp.where(good, leaf, jnp.full_like(leaf, jnp.nan)), prediction)


@eqx.filter_jit
def predict(program: Any, x: PyTree, stop: Any) -> PyTree:
    quiet = eqx.nn.inference_mode(program)
    return eqx.filter_vmap(lambda x: _predict_one(quiet, x, stop))(x)


@eqx.filter_jit
def trajectory(program: Any, x: PyTree, saveat: Any, stop: Any) -> Any:
    quiet = eqx.nn.inference_mode(program)

    def one(x: Any) -> Any:
        return solve(quiet.system, quiet.system.start(x), None, quiet.solver, saveat=saveat, stop=stop)

    return eqx.filter_vmap(one)(x)


@eqx.filter_jit
def layers(program: Any, x: PyTree) -> list:
    quiet = eqx.nn.inference_mode(program)
    return jax.vmap(lambda x: discrete_path(quiet.system, quiet.system.start(x), None)[0])(x)


@eqx.filter_jit
def potential(program: Any, x: PyTree, y: PyTree, times: Array) -> dict[str, Array]:
    quiet = eqx.nn.inference_mode(program)

    def one(x: Any, target: Any) -> Any:
        start = quiet.system.start(x)
        ts = times.astype(jnp.result_type(*jax.tree.leaves(start.state)))
        solution = solve(quiet.system, start, None, quiet.solver, saveat=diffrax.SaveAt(ts=ts))
        point = quiet.condition.point(start, target)
        return jax.vmap(lambda t, state: quiet.condition.values(t, state, point))(ts, solution.ys)

    return eqx.filter_vmap(one)(x, y)


@eqx.filter_jit
def failures(program: Any, x: PyTree, y: PyTree, stop: Any) -> Array:
    """For every example 1 or 0 where the loss decides, else V at the end."""
    quiet = eqx.nn.inference_mode(program)
    loss = loss_of(program.certificate)

    def one(x: Any, target: Any) -> Any:
        if loss is not None:
            prediction = _predict_one(quiet, x, stop)
            correct = loss.correct(prediction, target)
            return loss(prediction, target) if correct is None else (~correct).astype(float)
        if isinstance(quiet.system, DiscreteSystem):
            path = quiet.condition.path_values(quiet.system.start(x), target, None, solver=diffrax.Euler(), steps=1)
            values = quiet.condition.weighted(path[1])
            return values[_layer(quiet.system, stop, values.shape[0])]
        start, t, state, good = _final(quiet, x, stop)
        value = quiet.condition.weighted(quiet.condition.values(t, state, quiet.condition.point(start, target)))
        return jnp.where(good, value, jnp.nan)

    return eqx.filter_vmap(one)(x, y)
