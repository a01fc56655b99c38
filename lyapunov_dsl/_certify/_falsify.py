"""The falsifier: looks for a state at which the condition fails, and returns it."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import PyTree

from .._condition import Condition
from .._rollout import time_dtype
from ._assurance import Counterexample


class Draws(eqx.Module):
    """Points to look at: an example of the batch, a time and a state for each, with a leading axis on every leaf."""

    example: Any
    t: Any
    state: PyTree


class Found(eqx.Module):
    """What a part is at every point.

    **Arguments:**

    - `value`, `rate`, `residual`: V, dV/dt and dV/dt - comparison(t, V).
    - `relative`: the residual over the size of its terms, in [-1, 1].
    - `excess`: by how much the residual is above what rounding may add to it; infinite where that cannot be told.
        The condition is violated where it is positive.
    """

    value: Any
    rate: Any
    residual: Any
    relative: Any
    excess: Any


@eqx.filter_jit
def draw(condition: Condition, starts: PyTree, key: Any, count: int) -> Draws:
    """`count` independent draws: the example uniform on the batch, t uniform on [0, T], the state uniform on H."""
    size = jax.tree.leaves(starts.state)[0].shape[0]
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), starts.state)
    which, when, where = jax.random.split(key, 3)
    system = condition.continuous
    dtype = time_dtype(starts.state)
    return Draws(
        jax.random.randint(which, (count,), 0, size),
        jax.random.uniform(when, (count,), dtype, 0, last_time(system.horizon, dtype)),
        jax.vmap(lambda k: system.region.sample(one, k))(jax.random.split(where, count)),
    )


@eqx.filter_jit
def evaluate(condition: Any, part: str, starts: PyTree, targets: PyTree, draws: Draws) -> Found:
    """What a part is at every draw."""

    def at(example: Any, t: Any, state: Any) -> Found:
        terms = _terms(condition, part, starts, targets, example)
        (value, rate, allowed), pullback = jax.vjp(terms, (t, state))
        none, one = jnp.zeros_like(rate), jnp.ones_like(rate)
        # A violation has to survive a shift of the time and of the state by as many units in the last place, too. The
        # terms are taken one by one: in the residual their shifts may cancel where their errors do not.
        shift = none
        for direction in ((none, one, none), (none, none, one)):
            (slopes,) = pullback(direction)
            for moved in jax.tree.leaves(jax.tree.map(lambda d, x: jnp.sum(jnp.abs(d * x)), slopes, (t, state))):
                shift += jnp.where(jnp.isfinite(moved), moved, 0).astype(rate.dtype)
        size = _size(rate, allowed)
        excess = rate - allowed - 64 * jnp.finfo(rate.dtype).eps * (jnp.abs(value) + size + shift)
        excess = jnp.where(jnp.isfinite(excess), excess, jnp.inf)
        return Found(value, rate, rate - allowed, (rate - allowed) / size, excess)

    return eqx.filter_vmap(at)(draws.example, draws.t, draws.state)


@eqx.filter_jit
def ascend(
    condition: Any, part: str, starts: PyTree, targets: PyTree, draws: Draws, relative: Any, steps: int
) -> tuple[Draws, Found]:
    """Projected sign-gradient ascent of the residual in (t, state), in units of the domain's half-widths; where
    `relative` says so, of the residual over the size of its terms. Returns the best point of each ascent."""
    system = condition.continuous

    def climb(example: Any, relative: Any, t: Any, state: Any) -> Any:
        widths, end = system.region.half_widths(state), last_time(system.horizon, t.dtype)

        def height(where: Any) -> Any:
            _, rate, allowed = _terms(condition, part, starts, targets, example)(where)
            return (rate - allowed) / jnp.where(relative, _size(rate, allowed), jnp.ones_like(rate))

        def move(where: Any, towards: Any, i: Any) -> Any:
            size = (0.1 * 0.93**i).astype(t.dtype)
            later = jnp.clip(where[0] + size * end / 2 * towards[0], 0, end)
            state = jax.tree.map(lambda s, w, g: s + size.astype(s.dtype) * w * g, where[1], widths, towards[1])
            return later, system.region.project(state)

        return ascent(height, (t, state), move, steps)

    t, state = eqx.filter_vmap(climb)(draws.example, relative, draws.t, draws.state)
    climbed = Draws(draws.example, t, state)
    return climbed, evaluate(condition, part, starts, targets, climbed)


def ascent(height: Any, begin: PyTree, move: Any, steps: int) -> PyTree:
    """Sign-gradient ascent: the highest point seen. `move(point, signs, i)` takes step i; NaN counts as highest."""

    def step(i: Any, carry: Any) -> Any:
        here, best, highest = carry
        value, slopes = jax.value_and_grad(height)(here)
        # NaN is worst, and the first one stays.
        better = ~(value <= highest) & ~jnp.isnan(highest)
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), here, best)
        # A slope that is not a number leads nowhere.
        towards = jax.tree.map(lambda slope: jnp.nan_to_num(jnp.sign(slope)), slopes)
        return move(here, towards, i), best, jnp.where(better, value, highest)

    lowest = jnp.full_like(jax.eval_shape(height, begin), -jnp.inf)
    return jax.lax.fori_loop(0, steps, step, (begin, begin, lowest))[1]


@eqx.filter_jit
def descend(
    condition: Condition, part: str, starts: PyTree, targets: PyTree, example: Any, states: PyTree, steps: int = 200
) -> tuple[PyTree, Any]:
    """Looks for the least V at the final time on H, for an example and from a state each: the states with the least V
    seen, and V there. First by signs, which no flat stretch holds up, then by projected gradient steps of the length of
    Barzilai and Borwein (1988), which a narrow valley does not hold up."""
    system = condition.continuous

    def one(example: Any, state: Any) -> Any:
        point, widths = _point(condition, starts, targets, example), system.region.half_widths(state)
        end = last_time(system.horizon, time_dtype(state))
        value = lambda state: condition.parts[part].value(jnp.asarray(end), state, point)

        def move(state: Any, towards: Any, i: Any) -> Any:
            moved = jax.tree.map(lambda s, w, g: s + (0.3 * 0.9**i).astype(s.dtype) * w * g, state, widths, towards)
            return system.region.project(moved)

        by_signs = ascent(lambda state: -value(state), system.region.project(state), move, steps)
        flat, unravel = ravel_pytree(by_signs)
        project = lambda flat: ravel_pytree(system.region.project(unravel(flat)))[0]
        valued = jax.value_and_grad(lambda flat: value(unravel(flat)))

        def step(i: Any, carry: Any) -> Any:
            here, slope, size, best, least = carry
            there = project(here - size * jnp.nan_to_num(slope))
            height, next_slope = valued(there)
            moved, turned = there - here, next_slope - slope
            product = moved @ turned
            size = jnp.where(product > 0, moved @ moved / jnp.where(product > 0, product, 1), 2 * size)
            lower = height < least
            return there, next_slope, size, jnp.where(lower, there, best), jnp.where(lower, height, least)

        height, slope = valued(flat)
        first = 1e-3 * jnp.linalg.norm(ravel_pytree(widths)[0]) / (jnp.linalg.norm(slope) + jnp.finfo(flat.dtype).tiny)
        best, least = jax.lax.fori_loop(0, steps, step, (flat, slope, first, flat, height))[3:]
        return unravel(best), least

    return eqx.filter_vmap(one)(example, states)


def falsify(
    condition: Any,
    part: str,
    starts: PyTree,
    targets: PyTree,
    draws: Draws,
    found: Found,
    *,
    steps: int = 60,
    ascents: int = 32,
) -> tuple[float, Counterexample | None]:
    """The worst residual of one part over draws and over ascent from the worst of them.

    **Arguments:**

    - `condition`, `part`: the condition (or what stands in for one, with the same `rates`) and the name of the
        certificate.
    - `starts`, `targets`: starts and targets of a batch, leading batch axis.
    - `draws`, `found`: where to look, and what `evaluate` found there.
    - `steps`, `ascents`: gradient steps, and from how many draws: one half of them where the residual is largest, the
        other where it is largest in relation to its terms, for it scales with V and near V = 0 it is always small.

    **Returns:** the worst residual found, and a counterexample where it is above 0 by more than rounding; a residual
    that is not finite counts as worst.
    """
    points: tuple[Draws, Found] = jax.tree.map(np.asarray, (draws, found))
    found = points[1]
    # Where a truncated loss is zero there is nothing to climb.
    flat = (found.residual == 0) & (found.rate == 0)
    half = (ascents + 1) // 2
    order = np.concatenate([_worst(np.where(flat, -np.inf, f))[:half] for f in (found.residual, found.relative)])
    begun = jax.tree.map(lambda leaf: leaf[order], points[0])
    relative = np.arange(order.size) >= order.size // 2
    climbed = ascend(condition, part, starts, targets, begun, relative, steps)
    draws, found = jax.tree.map(lambda *leaves: np.concatenate(leaves), points, climbed)
    i = _worst(found.excess)[0]
    if not found.excess[i] > 0:
        return float(found.residual.max()), None
    t, value, rate, residual = (float(a[i]) for a in (draws.t, found.value, found.rate, found.residual))
    state = jax.tree.map(lambda leaf: np.asarray(leaf[i]), draws.state)
    return residual, Counterexample(part, int(draws.example[i]), t, state, value, rate, residual)


def _worst(figures: np.ndarray) -> np.ndarray:
    """The order from the largest down, what is not a number first."""
    return np.argsort(np.where(np.isnan(figures), np.inf, figures))[::-1]


def _size(rate: Any, allowed: Any) -> Any:
    return jnp.abs(rate) + jnp.abs(allowed) + jnp.finfo(rate.dtype).tiny


def last_time(horizon: float, dtype: Any) -> Any:
    """The largest time of a dtype that is not after the horizon."""
    t = np.asarray(horizon, dtype)
    return t if float(t) <= horizon else np.asarray(np.nextafter(t, np.zeros_like(t)))


def _point(condition: Any, starts: PyTree, targets: PyTree, example: Any) -> Any:
    """The point of one example of a batch."""
    pick = lambda leaf: leaf[example] if eqx.is_array(leaf) else leaf
    start, target = jax.tree.map(pick, starts), jax.tree.map(pick, targets)
    return condition.point(start, target)


def _terms(condition: Any, part: str, starts: PyTree, targets: PyTree, example: Any) -> Any:
    """The function (t, state) -> V, dV/dt and the rate allowed there, for one example of a batch."""
    point = _point(condition, starts, targets, example)

    def terms(where: Any) -> Any:
        t, state = where
        value, rate = condition.rates(t, state, point)[part]
        return value, rate, condition.parts[part].comparison(t, value)

    return terms
