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
from ._objective import EndToEnd
from ._rollout import discrete_path
from ._solve import solve
from ._system import DiscreteSystem, System


def _final(program: Any, x: PyTree, stop: Any) -> tuple[Any, Any, Any, Any, Any]:
    """Start, final time and state, whether the solve succeeded and whether it ran out of steps, for one example of a
    continuous system."""
    start = program.system.start(x)
    solution = solve(program.condition.continuous, start, None, program.solver, stop=stop)
    t, state = jax.tree.map(lambda leaf: leaf[-1], (solution.ts, solution.ys))
    return start, t, state, diffrax.is_okay(solution.result), solution.result == diffrax.RESULTS.max_steps_reached


def _layer(system: DiscreteSystem, stop: Any, count: int) -> Any:
    """The last of `count` states of a discrete system that is reached by the time `stop`."""
    return count - 1 if stop is None else jnp.floor(stop / system.horizon * (count - 1) + 1e-6).astype(int)


def _predict_one(program: Any, x: PyTree, stop: Any) -> tuple[PyTree, Any]:
    """The prediction for one example, and whether the solver ran out of steps."""
    system = program.system
    if isinstance(system, DiscreteSystem):
        start = system.start(x)
        states, readouts = discrete_path(system, start, None)
        if stop is None:
            return readouts[-1](states[-1]), False
        outputs = [readout(state) for readout, state in zip(readouts, states, strict=True)]
        layer = _layer(system, stop, len(states))
        return jax.tree.map(lambda *leaves: jnp.stack(leaves)[layer], *outputs), False
    _, _, state, good, spent = _final(program, x, stop)
    prediction = system.decode(state)
    return jax.tree.map(lambda leaf: jnp.where(good, leaf, jnp.full_like(leaf, jnp.nan)), prediction), spent


@eqx.filter_jit
def predict(program: Any, x: PyTree, stop: Any) -> PyTree:
    quiet = eqx.nn.inference_mode(program)
    return eqx.filter_vmap(lambda x: _predict_one(quiet, x, stop)[0])(x)


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
def out_of_steps(program: Any, x: PyTree, solver: Any, stop: Any) -> Array:
    """How many examples of a batch a solver has too few steps for."""
    system = eqx.nn.inference_mode(program.system)
    result = lambda x: solve(system, system.start(x), None, solver, stop=stop).result
    return jnp.sum(eqx.filter_vmap(lambda x: result(x) == diffrax.RESULTS.max_steps_reached)(x))


def end_to_end_out_of_steps(program: Any, x: PyTree) -> str:
    """What to say of a solver that the objective trains through and that runs out of steps, empty where none does."""
    size = jax.tree.leaves(x)[0].shape[0]
    terms = [program.objective]
    for term in terms:
        terms += getattr(term, "terms", ())
        if isinstance(term, EndToEnd) and isinstance(program.system, System):
            count = int(out_of_steps(program, x, term.solver, None))
            if count:
                return (
                    f"; the solver of EndToEnd ran out of {term.solver.max_steps} steps (max_steps) on {count} of {size} examples of "
                    "that batch: give it more, or an implicit solver such as Solver(diffrax.Kvaerno5()) for a stiff field"
                )
    return ""


@eqx.filter_jit
def failures(program: Any, x: PyTree, y: PyTree, stop: Any) -> tuple[Array, Array]:
    """For every example 1 or 0 where the loss decides, else V at the end; and whether the solver ran out of steps."""
    quiet = eqx.nn.inference_mode(program)
    loss = loss_of(program.certificate)

    def one(x: Any, target: Any) -> Any:
        if loss is not None:
            prediction, spent = _predict_one(quiet, x, stop)
            correct = loss.correct(prediction, target)
            value = loss(prediction, target) if correct is None else (~correct).astype(float)
        elif isinstance(quiet.system, DiscreteSystem):
            path = quiet.condition.path_values(quiet.system.start(x), target, None, solver=diffrax.Euler(), steps=1)
            values = quiet.condition.weighted(path[1])
            value, spent = values[_layer(quiet.system, stop, values.shape[0])], False
        else:
            start, t, state, good, spent = _final(quiet, x, stop)
            value = quiet.condition.weighted(quiet.condition.values(t, state, quiet.condition.point(start, target)))
            value = jnp.where(good, value, jnp.nan)
        return value, jnp.asarray(spent)

    return eqx.filter_vmap(one)(x, y)
