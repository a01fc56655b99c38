"""What the trajectories of a batch show."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._certificate import Exponential, loss_of
from .._condition import Condition
from .._potential import Truncated
from .._rollout import time_dtype
from .._solve import Solver, solve
from ._falsify import Draws, last_time

DECAY_TIMES = (0.25, 0.5, 0.75, 1.0)
DECAY_SLACK = 0.05
LOOKS = 33


class Paths(eqx.Module):
    """What the trajectories of a batch show at `LOOKS` equal times: states, V, how far they are outside H, whether the
    solve succeeded and (where the loss decides) whether the decision at T is right; whether the solver ran out of steps, and
    which times were reached before."""

    times: Any
    states: PyTree
    values: dict[str, Any]
    excess: Any
    solved: Any
    correct: Any
    out_of_steps: Any
    reached: Any

    @property
    def outside(self) -> np.ndarray:
        """Where a state is outside H by more than rounding, shape (batch, looks). What is not a number is in no set; a time
        that the solver had no steps left for has no state."""
        return np.asarray(self.reached) & ~(np.asarray(self.excess) <= 64 * float(jnp.finfo(self.excess.dtype).eps))


@eqx.filter_jit
def paths(condition: Condition, solver: Solver, starts: PyTree, targets: PyTree) -> Paths:
    """Solves a batch; V is that of the loss before truncation."""
    system, loss = condition.continuous, loss_of(condition.certificate)

    def one(start: Any, target: Any) -> Any:
        times = jnp.linspace(0, system.horizon, LOOKS, dtype=time_dtype(start.state))
        solution = solve(system, start, None, solver, saveat=diffrax.SaveAt(ts=times, t1=True))
        states = jax.tree.map(lambda leaf: leaf[:-1], solution.ys)
        final = jax.tree.map(lambda leaf: leaf[-1], solution.ys)
        point = condition.point(start, target)

        def at(t: Any, state: Any) -> Any:
            values = {}
            for name, part in condition.parts.items():
                whole = before_truncation(part)
                values[name] = whole(point.readout(state), target) if whole else part.value(t, state, point)
            return values, system.region.excess(state)

        finite = jax.tree.reduce(jnp.logical_and, jax.tree.map(lambda leaf: jnp.isfinite(leaf).all(), final))
        solved = (solution.result == diffrax.RESULTS.successful) & finite
        right = None if loss is None else loss.correct(point.readout(final), target)
        values, excess = jax.vmap(at)(times, states)
        spent = solution.result == diffrax.RESULTS.max_steps_reached
        # diffrax fills the times that it did not come to with infinity.
        assert solution.ts is not None
        reached = ~spent | jnp.isfinite(solution.ts[:-1])
        return Paths(times, states, values, excess, solved, None if right is None else right & solved, spent, reached)

    run = eqx.filter_vmap(one)(starts, targets)
    return eqx.tree_at(lambda run: run.times, run, run.times[0])


def before_truncation(part: Any) -> Any:
    """The loss before truncation of a part that has a truncated one, else `None`."""
    return part.loss.loss if isinstance(part, Exponential) and isinstance(part.loss, Truncated) else None


def visited(condition: Condition, run: Paths, count: int) -> list[Draws]:
    """The points (example, t, state) of the trajectories that are in H, where a condition on H has to hold first of all;
    in pieces of `count`, the last of them filled up by repetition."""
    inside = np.flatnonzero(np.asarray(run.excess) <= 0)
    example, when = np.divmod(np.resize(inside, -(-inside.size // count) * count), LOOKS)
    times = np.minimum(np.asarray(run.times), last_time(condition.continuous.horizon, run.times.dtype))
    states = jax.tree.map(np.asarray, run.states)
    pieces = [(example[i : i + count], when[i : i + count]) for i in range(0, example.size, count)]
    return [Draws(e, times[w], jax.tree.map(lambda leaf, e=e, w=w: leaf[e, w], states)) for e, w in pieces]


def decays(condition: Condition, name: str, run: Paths, slack: float = DECAY_SLACK) -> np.ndarray:
    """For every example, whether V (before truncation) keeps the promise of the comparison equation, with relative
    slack.

    The promise is flow(0, t, V(0)), for the exponential certificate V(0) exp(-κt); looked at at `DECAY_TIMES` times T.
    """
    looks = np.array([round(fraction * (LOOKS - 1)) for fraction in DECAY_TIMES])
    values, times = run.values[name], run.times[looks]
    flow = lambda t, v: condition.parts[name].flow(jnp.zeros_like(t), t, v)
    promise = jax.vmap(lambda v: jax.vmap(lambda t: flow(t, v))(times))(values[:, 0])
    kept = jnp.isfinite(promise) & (values[:, looks] <= promise + slack * jnp.abs(promise))
    return np.asarray(kept.all(axis=1))
