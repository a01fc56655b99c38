"""Whether the fixed steps that training takes are short enough for the vector field."""

import warnings
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ._compile import Program
from ._measure._trajectory import Trajectory
from ._objective import EndToEnd, PathIntegral
from ._objective._base import example_keys
from ._rollout import field_term, time_dtype
from ._system import Start, System

# Of the half-width of the domain. The default noise of `Trajectory` is half of it, and hides less; where steps are not stable
# any more, states end up at opposite ends of the domain.
_FAR = 0.5
_EXAMPLES, _STEPS = 16, 64


def warn_of_coarse_steps(program: Program, x: PyTree, augment: Any) -> None:
    """Warns where the program as it is goes elsewhere by steps of half the length."""
    system = eqx.nn.inference_mode(program.system)
    if not isinstance(system, System):
        return
    limit = getattr(system.vector_field, "step_limit", None)
    some = jax.tree.map(lambda leaf: leaf[:_EXAMPLES], x)
    taken = set()
    for solver, steps, projects, what, mend in _rollouts(program):
        # A field that declares how long a step may be was asked when steps were chosen.
        if (solver, steps, projects) in taken or (limit is not None and system.horizon <= limit * steps * (1 + 1e-6)):
            continue
        taken.add((solver, steps, projects))
        apart = _apart(system, some, augment, solver, steps, projects)
        if not apart <= _FAR:
            warnings.warn(
                f"horizon: {what} takes {steps} steps of {system.horizon / steps:.3g} over the horizon {system.horizon:g}, too "
                f"long for this vector field: steps of half that length end up {apart:.2g} half-widths of the domain elsewhere, "
                f"so that training is not about the trajectories of inference; give {mend}, or a shorter horizon",
                stacklevel=3,
            )


def _rollouts(program: Program) -> list[tuple[Any, int, bool, str, str]]:
    """What takes fixed steps: the solver, how many, whether states are projected onto the domain, its name, and what to do."""
    kinds = (Trajectory, PathIntegral, EndToEnd)
    found, solvers = [], [program.solver]
    for part in jax.tree.leaves(program.objective, is_leaf=lambda node: isinstance(node, kinds)):
        if isinstance(part, Trajectory):
            mend = "it more points, a measure without a rollout such as Cube()"
            found.append((diffrax.Euler(), part.points, True, f"Trajectory(points={part.points})", mend))
        elif isinstance(part, PathIntegral):
            found.append((part.solver, part.steps, False, f"PathIntegral(steps={part.steps})", "it more steps"))
        elif isinstance(part, EndToEnd):
            solvers.append(part.solver)
    for solver in solvers:
        if solver.dt is not None:
            steps = max(1, round(program.system.horizon / solver.dt))
            found.append((solver.method, steps, False, f"Solver(dt={solver.dt:g})", "it a smaller dt"))
    return found


def _apart(system: System, x: PyTree, augment: Any, solver: Any, steps: int, projects: bool) -> float:
    """How far steps and those of half the length get apart, in half-widths of the domain: the median over examples."""
    starts = _starts(system, x, augment)
    times = jnp.linspace(0, system.horizon, 2 * steps + 1, dtype=time_dtype(starts.state))
    pair, farthest = _begin(system, starts, solver, times[:3]), 0.0
    # No loop on the device, in which a convolution on a CPU runs many times slower.
    for i in range(min(steps, _STEPS)):
        pair, distances = _further(system, starts.context, solver, projects, pair, times[2 * i : 2 * i + 3])
        farthest = np.maximum(farthest, np.asarray(distances))
    return float(np.median(np.where(np.isnan(farthest), np.inf, farthest)))


@eqx.filter_jit
def _starts(system: System, x: PyTree, augment: Any) -> Start:
    if augment is not None:
        x = eqx.filter_vmap(augment)(x, example_keys(jax.random.key(0), x))
    return eqx.filter_vmap(system.start)(x)


@eqx.filter_jit
def _begin(system: System, starts: Start, solver: Any, times: Array) -> Any:
    """The states and what the solver remembers, for both lengths of steps."""

    def one(start: Start) -> Any:
        init = lambda t1: solver.init(field_term(system, None), times[0], t1, start.state, start.context)
        return (start.state, init(times[2])), (start.state, init(times[1]))

    return eqx.filter_vmap(one)(starts)


@eqx.filter_jit
def _further(system: System, contexts: Any, solver: Any, projects: bool, pair: Any, times: Array) -> Any:
    """One step and two of half the length, and how far apart they end."""

    def one(context: Any, pair: Any) -> Any:
        def step(carry: Any, t0: Any, t1: Any) -> Any:
            state, memory = carry
            term = field_term(system, None)
            state, _, _, memory, _ = solver.step(term, t0, t1, state, context, memory, made_jump=False)
            return system.region.project(state) if projects else state, memory

        coarse, fine = pair
        coarse = step(coarse, times[0], times[2])
        fine = step(step(fine, times[0], times[1]), times[1], times[2])
        widths = system.region.half_widths(fine[0])
        apart = lambda a, b, w: jnp.max(jnp.abs(a - b) / w, initial=0).astype(times.dtype)
        distances = jax.tree.leaves(jax.tree.map(apart, coarse[0], fine[0], widths))
        return (coarse, fine), jnp.max(jnp.stack(distances))

    return eqx.filter_vmap(one)(contexts, pair)
