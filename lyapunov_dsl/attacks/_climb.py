"""The ascent of Auto-PGD (Croce & Hein 2020, Algorithm 1) on one batch and any objective."""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from ._ball import Ball, direction, expand, select
from ._search import wrong

_MOMENTUM, _RISING = 0.75, 0.75


class _State(eqx.Module):
    """Where a search stands: the last two points, the best one, and what misled the function."""

    x: Array
    previous: Array
    gradient: Array
    value: Array
    best: Array
    best_gradient: Array
    best_value: Array
    step: Array
    rises: Array
    last_step: Array
    last_value: Array
    found: Array
    done: Bool[Array, "batch"]


def climb(
    function: Callable, objective: Callable, ball: Ball, y: Array, target: Array, keys: Any, steps: int, call: Any
) -> Array:
    """Algorithm 1 on a batch; `call` judges where it is not the function itself."""
    # Given, not made in the steps: a constant would lie on other devices than y, and the steps compile once more.
    zero = jnp.full_like(y, 0, ball.center.dtype)
    x = _random(ball, keys)
    state = _begin(ball, x, zero, *_evaluate(function, objective, x, y, target), call is None)
    state = _mark(state, call(state.x), y) if call else state
    last, checkpoints = 0, _checkpoints(steps)
    # Not a traced loop: a convolution inside one runs many times slower on a CPU.
    for k in range(steps):
        x = _ahead(ball, state, jnp.asarray(_MOMENTUM if k else 1.0, state.x.dtype))
        state = _step(state, x, *_evaluate(function, objective, x, y, target), call is None)
        state = _mark(state, call(state.x), y) if call else state
        if k + 1 in checkpoints:
            state = _adapt(state, jnp.asarray(_RISING * (k + 1 - last), state.x.dtype), zero)
            last = k + 1
            if np.asarray(state.done).all():
                break
    return select(state.done, state.found, state.best)


def _checkpoints(steps: int) -> set[int]:
    """⌈p_j · steps⌉ with p_0 = 0, p_1 = 0.22 and p_{j+1} = p_j + max(p_j − p_{j−1} − 0.03, 0.06)."""
    shares = [0.0, 0.22]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    # 0.57 · 100 is a little more than 57 in floats.
    return {min(math.ceil(share * steps - 1e-9), steps) for share in shares[1:]}


# By itself, so that a function is compiled once for the start and for the steps.
@eqx.filter_jit
def _evaluate(function: Callable, objective: Callable, x: Array, y: Array, target: Array) -> tuple[Array, Array, Array]:
    """The gradient, the value and whether the function is misled."""

    def total(x: Array) -> Any:
        logits = function(x)
        values = jax.vmap(objective)(logits, y, target)
        return jnp.sum(values), (values, logits)

    gradient, (values, logits) = jax.grad(total, has_aux=True)(x)
    values = jnp.where(jnp.isfinite(values), values, -jnp.inf).astype(x.dtype)
    return gradient, values, wrong(logits, y)


@eqx.filter_jit
def _random(ball: Ball, keys: Any) -> Array:
    return ball.random(keys)


@eqx.filter_jit
def _begin(ball: Ball, x: Array, zero: Array, gradient: Array, value: Array, misled: Array, own: bool) -> _State:
    return _State(
        x=x,
        previous=x,
        gradient=gradient,
        value=value,
        best=x,
        best_gradient=gradient,
        best_value=value,
        step=zero + 2 * ball.radius,
        rises=zero,
        last_step=zero + jnp.inf,
        last_value=value,
        found=x,
        done=misled if own else zero > 0,
    )


@eqx.filter_jit
def _ahead(ball: Ball, s: _State, share: Array) -> Array:
    ahead = ball.project(s.x + expand(s.step, s.x) * direction(s.gradient, ball.norm))
    return ball.project(s.x + share * (ahead - s.x) + (1 - share) * (s.x - s.previous))


@eqx.filter_jit
def _step(s: _State, x: Array, gradient: Array, value: Array, misled: Array, own: bool) -> _State:
    better = value > s.best_value
    changes: dict[str, Any] = {
        "x": x,
        "previous": s.x,
        "gradient": gradient,
        "value": value,
        "best": select(better, x, s.best),
        "best_gradient": select(better, gradient, s.best_gradient),
        "best_value": jnp.where(better, value, s.best_value),
        "rises": s.rises + (value > s.value).astype(x.dtype),
    }
    if own:
        changes |= {"found": select(misled & ~s.done, x, s.found), "done": s.done | misled}
    return _with(s, **changes)


@eqx.filter_jit
def _mark(s: _State, logits: Array, y: Array) -> _State:
    misled = wrong(logits, y)
    return _with(s, found=select(misled & ~s.done, s.x, s.found), done=s.done | misled)


@eqx.filter_jit
def _adapt(s: _State, needed: Array, zero: Array) -> _State:
    stuck = (s.step == s.last_step) & (s.best_value == s.last_value)
    halve = (s.rises < needed) | stuck
    step = jnp.where(halve, s.step / 2, s.step)
    back = {"x": select(halve, s.best, s.x), "gradient": select(halve, s.best_gradient, s.gradient)}
    back["value"] = jnp.where(halve, s.best_value, s.value)
    return _with(s, step=step, last_step=s.step, last_value=s.best_value, rises=zero, **back)


def _with(state: _State, **changes: Any) -> _State:
    return eqx.tree_at(lambda s: tuple(getattr(s, name) for name in changes), state, tuple(changes.values()))
