"""The fast adaptive boundary attack (Croce & Hein 2020, "Minimally distorted adversarial examples ..."), targeted."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._apgd import ranked
from ._ball import Ball, check_counts, expand, lengths, select, unbounded
from ._search import search, wrong

_OVERSHOOT, _BACK, _BIAS, _BISECTIONS, _HALVINGS = 1.05, 0.9, 0.1, 8, 40


def fab(
    function: Callable,
    x: Float[Array, "batch ..."] | Float[np.ndarray, "batch ..."],
    y: Any,
    *,
    radius: Any = 8 / 255,
    norm: str = "inf",
    key: Any,
    steps: int = 100,
    targets: int = 9,
    clip: tuple[Any, Any] | None = (0.0, 1.0),
    batch_size: int = 100,
    surrogate: Callable | None = None,
    mesh: Any = None,
) -> Float[Array, "batch ..."]:
    """The targeted FAB attack (Croce & Hein 2020, Algorithm 1): it looks for the nearest point of another decision.

    Each step moves onto the linearized boundary to class t, z_t = z_y, within `clip`, with an overshoot of 1.05 and a
    bias of at most 0.1 towards the nearest such point from x; from a misleading point it goes a tenth of the way back
    to x. In the end the way from x to the nearest misleading point is bisected (in place of the paper's three secant
    steps). The classes t are the `targets` ones with the largest logits at x, and all searches start at x.

    An example counts as misled where the nearest point found lies in the ball.

    **Arguments:**

    - `function`, `x`, `y`, `radius`, `norm`, `clip`, `batch_size`, `surrogate`, `mesh`: as for [`lyapunov_dsl.attacks.apgd_ce`][].
    - `key`: changes nothing.
    - `steps`: of each search.
    - `targets`: how many other classes are searched for, at most.

    **Returns:** as for [`lyapunov_dsl.attacks.apgd_ce`][].

    **Raises:** `ValueError` as for [`lyapunov_dsl.attacks.apgd_ce`][], and for numbers of steps or targets that are not positive.
    """
    check_counts(steps=steps, targets=targets)

    def aimed(rank: int) -> Callable:
        def attempt(of: Callable, ball: Ball, y: Array, keys: Any, call: Callable) -> Array:
            # The search may leave the ball.
            space = unbounded(ball, clip)
            target = ranked(of, ball.center, y, jnp.asarray(rank))
            return _nearest(of, space, norm, y, target, steps, call)

        return attempt

    options: Any = {"radius": radius, "norm": norm, "clip": clip, "key": key, "batch_size": batch_size, "mesh": mesh}
    options |= {"follow": surrogate or function, "settings": (steps, targets)}
    return search(lambda classes: [aimed(k) for k in range(min(targets, classes - 1))], function, x, y, **options)


def _nearest(function: Callable, space: Ball, norm: str, y: Array, target: Array, steps: int, call: Callable) -> Array:
    x, best, least = space.center, space.center, jnp.full(y.shape, jnp.inf, space.center.dtype)
    for _ in range(steps):
        ahead = _ahead(function, space, norm, y, target, x)
        x, best, least = _back(space, norm, y, ahead, call(ahead), best, least)
    low, high = jnp.zeros_like(least), jnp.ones_like(least)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        misled = wrong(call(_between(space, best, middle)), y)
        low, high = jnp.where(misled, low, middle), jnp.where(misled, middle, high)
    return _between(space, best, high)


@eqx.filter_jit
def _ahead(function: Callable, space: Ball, norm: str, y: Array, target: Array, x: Array) -> Array:
    def total(x: Array) -> Any:
        logits = function(x)
        pick = lambda index: jnp.take_along_axis(logits, index[:, None].astype(y.dtype), axis=1)[:, 0]
        gap = pick(target) - pick(y)
        return jnp.sum(gap), gap

    gradient, gap = jax.grad(total, has_aux=True)(x)
    usable = jnp.isfinite(gap) & jnp.all(jnp.isfinite(gradient), axis=tuple(range(1, x.ndim)))
    gradient = select(usable, gradient, jnp.zeros_like(gradient))
    gap = jnp.where(usable, gap, jnp.zeros_like(gap)).astype(x.dtype)
    # The plane's value at x and at the center.
    at_center = gap + jnp.sum(gradient * (space.center - x), axis=tuple(range(1, x.ndim)))
    own = _onto_plane(x, gradient, gap, space, norm) - x
    first = _onto_plane(space.center, gradient, at_center, space, norm) - space.center
    one, other = lengths(own, norm), lengths(first, norm)
    bias = jnp.minimum(one / jnp.maximum(one + other, jnp.finfo(x.dtype).tiny), _BIAS)
    mixed = expand(1 - bias, x) * (x + _OVERSHOOT * own) + expand(bias, x) * (space.center + _OVERSHOOT * first)
    return jnp.clip(mixed, space.low, space.high)


def _onto_plane(point: Array, gradient: Array, value: Array, space: Ball, norm: str) -> Array:
    """The nearest point of the range with value + gradient · (z − point) = 0; if there is none, the one next to it.

    It is clip(point ∓ m · direction) with the least m that reaches the plane, found by halving the range of log m.
    """
    axes, limits = tuple(range(1, point.ndim)), jnp.finfo(point.dtype)
    largest = jnp.max(jnp.abs(gradient), axis=axes)
    unit = jnp.where(largest > 0, largest, jnp.ones_like(largest))
    slope, value = gradient / expand(unit, gradient), value / unit
    way = -expand(jnp.sign(value), slope) * (jnp.sign(slope) if norm == "inf" else slope)
    gain = jnp.sum(jnp.abs(slope * way), axis=axes)
    least = jnp.where(gain > 0, jnp.abs(value) / jnp.maximum(gain, limits.tiny), jnp.zeros_like(gain))
    room = jnp.where(way > 0, space.high - point, point - space.low) / jnp.maximum(jnp.abs(way), 1e-12)
    most = jnp.max(jnp.where((way != 0) & jnp.isfinite(room), room, jnp.zeros_like(room)), axis=axes)
    reach = lambda m: jnp.clip(point + expand(m, way) * way, space.low, space.high)

    def halve(_: Any, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = jnp.sqrt(low) * jnp.sqrt(high)
        left = jnp.abs(value) - jnp.sum(jnp.abs(slope * (reach(middle) - point)), axis=axes)
        return jnp.where(left > 0, middle, low), jnp.where(left > 0, high, middle)

    _, high = jax.lax.fori_loop(0, _HALVINGS, halve, (least, jnp.maximum(least, most)))
    return reach(high)


@eqx.filter_jit
def _back(space: Ball, norm: str, y: Array, x: Array, logits: Array, best: Array, least: Array) -> tuple:
    misled, length = wrong(logits, y), lengths(x - space.center, norm)
    nearer = misled & (length < least)
    back = select(misled, space.center + _BACK * (x - space.center), x)
    return back, select(nearer, x, best), jnp.where(nearer, length, least)


@eqx.filter_jit
def _between(space: Ball, best: Array, share: Array) -> Array:
    return jnp.clip(space.center + expand(share, best) * (best - space.center), space.low, space.high)
