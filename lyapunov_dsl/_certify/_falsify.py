"""The falsifier: looks for a state at which the condition fails, and returns it."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._condition import Condition
from .._rollout import time_dtype
from ._assurance import Counterexample


class Draws(eqx.Module):
    """Independent points: an example of the batch, a time and a state for each, with a leading axis on every leaf."""

    example: Any
    t: Any
    state: PyTree


def draw(condition: Condition, starts: PyTree, key: Any, count: int) -> Draws:
    """`count` independent draws: the example uniform on the batch, t uniform on [0, T], the state uniform on H."""
    size = jax.tree.leaves(starts.state)[0].shape[0]
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), starts.state)
    which, when, where = jax.random.split(key, 3)
    system = condition.continuous
    return Draws(
        jax.random.randint(which, (count,), 0, size),
        jax.random.uniform(when, (count,), time_dtype(starts.state), 0, system.horizon),
        jax.vmap(lambda k: system.region.sample(one, k))(jax.random.split(where, count)),
    )


def slack(value: Any, rate: Any, comparison: Any) -> Any:
    """What rounding may add to a residual: a generous multiple of the unit roundoff of its terms."""
    return 64 * jnp.finfo(rate.dtype).eps * (jnp.abs(rate) + jnp.abs(comparison) + jnp.abs(value))


@eqx.filter_jit
def evaluate(
    condition: Condition, part: str, starts: PyTree, targets: PyTree, draws: Draws
) -> tuple[Any, Any, Any, Any]:
    """V, dV/dt, the residual and its rounding slack for one part at every draw."""

    def one(example: Any, t: Any, state: Any) -> Any:
        return _at(condition, part, starts, targets, example, t, state)

    return eqx.filter_vmap(one)(draws.example, draws.t, draws.state)


@eqx.filter_jit
def ascend(condition: Condition, part: str, starts: PyTree, targets: PyTree, draws: Draws, steps: int) -> Draws:
    """Projected sign-gradient ascent of the residual in (t, state), in units of the domain's half-widths."""
    system = condition.continuous

    def climb(example: Any, t: Any, state: Any) -> Any:
        widths = system.region.half_widths(state)

        def residual(point: Any) -> Any:
            return _at(condition, part, starts, targets, example, *point)[2]

        def step(i: Any, carry: Any) -> Any:
            (t, state), best, best_residual = carry
            size = (0.1 * 0.93**i).astype(t.dtype)
            dt, dstate = jax.grad(residual)((t, state))
            t = jnp.clip(t + size * system.horizon / 2 * jnp.sign(dt), 0, system.horizon)
            state = jax.tree.map(lambda s, w, g: s + size.astype(s.dtype) * w * jnp.sign(g), state, widths, dstate)
            here = (t, system.region.project(state))
            value = residual(here)
            better = value > best_residual
            best = jax.tree.map(lambda new, old: jnp.where(better, new, old), here, best)
            return here, best, jnp.where(better, value, best_residual)

        begin = (t, state)
        return jax.lax.fori_loop(0, steps, step, (begin, begin, residual(begin)))[1]

    t, state = eqx.filter_vmap(climb)(draws.example, draws.t, draws.state)
    return Draws(draws.example, t, state)


def falsify(
    condition: Condition,
    part: str,
    starts: PyTree,
    targets: PyTree,
    draws: Draws,
    *,
    steps: int = 60,
    ascents: int = 32,
) -> tuple[float, Counterexample | None]:
    """The worst residual of one part over draws and over ascent from the worst of them.

    **Arguments:**

    - `condition`, `part`: the condition and the name of the certificate.
    - `starts`, `targets`: starts and targets of a batch, leading batch axis.
    - `draws`: where to look.
    - `steps`, `ascents`: gradient steps, and from how many draws.

    **Returns:** the worst residual found, and a counterexample where it is above 0 by more than rounding; a residual
    that is NaN counts as worst.
    """
    residual = np.asarray(evaluate(condition, part, starts, targets, draws)[2])
    order = np.argsort(np.where(np.isnan(residual), np.inf, residual))[::-1][:ascents]
    worst = jax.tree.map(lambda leaf: leaf[order], draws)
    climbed = ascend(condition, part, starts, targets, worst, steps)
    both = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), worst, climbed)
    value, rate, residual, margin = (np.asarray(a) for a in evaluate(condition, part, starts, targets, both))
    excess = np.where(np.isnan(residual), np.inf, residual - margin)
    i = int(np.argmax(excess))
    if not excess[i] > 0:
        return float(residual[int(np.argmax(residual))]), None
    state = jax.tree.map(lambda leaf: np.asarray(leaf[i]), both.state)
    found = Counterexample(
        part, int(both.example[i]), float(both.t[i]), state, float(value[i]), float(rate[i]), float(residual[i])
    )
    return float(residual[i]), found


def _at(condition: Condition, part: str, starts: PyTree, targets: PyTree, example: Any, t: Any, state: Any) -> Any:
    pick = lambda leaf: leaf[example] if eqx.is_array(leaf) else leaf
    start, target = jax.tree.map(pick, starts), jax.tree.map(pick, targets)
    point = condition.point(start, target)
    value, rate = condition.rates(t, state, point)[part]
    allowed = condition.parts[part].comparison(t, value)
    return value, rate, rate - allowed, slack(value, rate, allowed)
