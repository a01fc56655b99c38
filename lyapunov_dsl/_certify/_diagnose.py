"""What is wrong with a program, in sentences: faults that make the other figures of a report hard to read."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._certificate import Exponential
from .._condition import Condition
from .._rollout import time_dtype
from .._solve import Solver
from ._falsify import Draws, descend
from ._paths import Paths, before_truncation

# Of the batch, how many are searched for their least V.
EXAMPLES = 64


def problems(
    condition: Condition, solver: Solver, starts: PyTree, targets: PyTree, run: Paths, draws: Draws
) -> tuple[str, ...]:
    """Sentences, the most fundamental first."""
    return (
        *_unsolved(solver, run),
        *_outside(condition, run, draws, starts),
        *_too_large(condition, starts, targets, run, draws),
    )


def _share(events: np.ndarray) -> str:
    return f"{100 * events.mean():.3g} % of the trajectories"


def _outside(condition: Condition, run: Paths, draws: Draws, starts: PyTree) -> list[str]:
    """States outside H, where the condition says nothing."""
    excess, times = np.asarray(run.excess), np.asarray(run.times)
    outside = run.outside
    begun, left = outside[:, 0], outside.any(axis=1)
    found = []
    if begun.any():
        found.append(
            f"states outside H: {_share(begun)} begin outside it, {_times(excess[begun, 0])}; enlarge the domain or let "
            "the input module return states in it"
        )
    later = left & ~begun
    if later.any():
        first = times[outside[later].argmax(axis=1)].min()
        speed = _speed(condition, starts, draws)
        found.append(
            f"states leave H: {_share(later)} leave it, first seen at t = {first:.3g}, {_times(excess[later])}. The condition "
            f"says nothing there. On H the field moves at {speed:.3g} half-widths of H per unit of time (median): a field that "
            "keeps H (nn.InvariantField), a slower one, or a larger domain helps"
        )
    return found


def _times(excess: np.ndarray) -> str:
    worst = np.max(np.where(np.isfinite(excess), excess, np.inf))
    return "and end in infinity or NaN" if math.isinf(worst) else f"up to {1 + worst:.3g} times its half-width"


@eqx.filter_jit
def _speeds(condition: Condition, starts: PyTree, draws: Draws) -> Any:
    """The largest velocity over all coordinates, in half-widths of H, at every draw."""
    system = condition.continuous

    def one(example: Any, t: Any, state: Any) -> Any:
        context = jax.tree.map(lambda leaf: leaf[example] if eqx.is_array(leaf) else leaf, starts.context)
        velocity, widths = system.velocity(t, state, context), system.region.half_widths(state)
        relative = jax.tree.map(lambda v, w: jnp.max(jnp.abs(v) / w), velocity, widths)
        return jnp.max(jnp.stack(jax.tree.leaves(relative)))

    return jax.vmap(one)(draws.example, draws.t, draws.state)


def _speed(condition: Condition, starts: PyTree, draws: Draws) -> float:
    return float(np.median(np.asarray(_speeds(condition, starts, draws))))


def _unsolved(solver: Solver, run: Paths) -> list[str]:
    spent = np.asarray(run.out_of_steps)
    failed = ~np.asarray(run.solved) & ~spent
    found = []
    if spent.any():
        reached = np.asarray(run.reached)[spent].sum(axis=1).min()
        times = np.asarray(run.times)
        found.append(
            f"inference fails: {_share(spent)} ran out of {solver.max_steps} steps (max_steps), the first after "
            f"t = {times[max(reached - 1, 0)]:.3g} of {times[-1]:.3g}: the field is too fast or too stiff for that; more steps or, "
            "for a stiff field, an implicit solver such as Solver(diffrax.Kvaerno5()) helps"
        )
    if failed.any():
        found.append(
            f"inference fails: {_share(failed)} could not be solved or end in NaN or Inf: the field is too fast or too stiff "
            "for the solver, or not finite"
        )
    return found


@eqx.filter_jit
def _elsewhere(condition: Condition, part: str, starts: PyTree, targets: PyTree, states: PyTree, count: int) -> Any:
    """The least V at the final time, for each of the first `count` examples, over states that were found for any."""

    def one(start: Any, target: Any) -> Any:
        point = condition.point(start, target)

        def at(state: Any) -> Any:
            end = jnp.asarray(condition.continuous.horizon, time_dtype(state))
            return condition.parts[part].value(end, state, point)

        return jnp.nanmin(jax.vmap(at)(states), initial=jnp.inf)

    first = lambda tree: jax.tree.map(lambda leaf: leaf[:count] if eqx.is_array(leaf) else leaf, tree)
    return eqx.filter_vmap(one)(first(starts), first(targets))


def _too_large(condition: Condition, starts: PyTree, targets: PyTree, run: Paths, draws: Draws) -> list[str]:
    """A rate that promises less than V can be on H."""
    sentences, horizon = [], condition.continuous.horizon
    count = min(run.excess.shape[0], EXAMPLES)
    # From the initial state and from another of H each.
    other = jax.tree.map(lambda leaf: jnp.resize(leaf, (count, *leaf.shape[1:])), draws.state)
    begun = jax.tree.map(lambda leaf: leaf[:count, 0], run.states)
    states = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), begun, other)
    for name, part in condition.parts.items():
        ends, reached = descend(condition, name, starts, targets, jnp.tile(jnp.arange(count), 2), states)
        seen = np.where(np.asarray(run.excess)[:count] <= 0, np.asarray(run.values[name])[:count], np.inf)
        begin = run.values[name][:count, 0]
        if before_truncation(part) is not None:
            level = part.loss.level(begin.dtype)  # type: ignore
            begin, seen = jax.nn.relu(begin - level), np.maximum(seen - float(level), 0)
        found = np.concatenate([np.asarray(reached, np.float64).reshape(2, count), seen.T])
        least = np.nanmin(found, axis=0, initial=math.inf)
        least = np.fmin(least, _elsewhere(condition, name, starts, targets, ends, count))
        zero, end = jnp.zeros((), begin.dtype), jnp.asarray(horizon, begin.dtype)
        promise = np.asarray(jax.vmap(part.flow, (None, None, 0))(zero, end, begin), np.float64)
        begin = np.asarray(begin, np.float64)
        # Twice, and above what the rounding of a state leaves of a V that is zero at its least: a search that stops a
        # little short makes no sentence.
        floor = np.maximum(2 * promise, 100 * float(jnp.finfo(run.excess.dtype).eps) ** 2 * begin)
        missed = np.flatnonzero(np.isfinite(begin) & (promise >= 0) & (least > floor) & np.isfinite(least))
        if missed.size == 0:
            continue
        i = missed[np.argsort(begin[missed])[missed.size // 2]]
        likewise = f"likewise for {missed.size} of {count} examples"
        sentence = (
            f"{name} seems to ask for too much: from V(0) = {begin[i]:.4g} it promises V(T) <= {promise[i]:.3g}, and the least V "
            f"found on H is {least[i]:.3g} ({likewise}). If it is, no training of the field can meet that"
        )
        if isinstance(part, Exponential):
            most = max(float(np.min(np.log(begin[missed] / least[missed]))) / horizon, 0)
            sentence += f": kappa = {float(part.kappa):g} has to come down below {most:.3g}, H to grow, or the loss to be truncated"
        sentences.append(sentence)
    return sentences
