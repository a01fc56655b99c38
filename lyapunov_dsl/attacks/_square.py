"""The Square attack (Andriushchenko et al. 2020, "Square attack: a query-efficient black-box adversarial attack ...")."""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._types import is_finite, shown
from ._ball import Ball, check_counts, expand, lengths, select
from ._search import margins, search

_CHECK_EVERY = 20


def square(
    function: Callable,
    x: Float[Array, "batch ..."] | Float[np.ndarray, "batch ..."],
    y: Any,
    *,
    radius: Any = 8 / 255,
    norm: str = "inf",
    key: Any,
    queries: int = 5000,
    share: Any = 0.8,
    clip: tuple[Any, Any] | None = (0.0, 1.0),
    batch_size: int = 100,
    mesh: Any = None,
) -> Float[Array, "batch ..."]:
    """A random search that sees logits only (Andriushchenko et al. 2020, Algorithms 1 to 3): no gradient misleads it.

    Perturbations lie at the edge of the ball. Each query changes them within a random square window, and is kept where
    the margin of the class falls. Inputs are images float[batch, channels, height, width] or float[batch, height,
    width]; of other inputs all entries are one line, and windows are intervals.

    **Arguments:**

    - `function`: a function from a batch of inputs to logits float[batch, classes]; it need not be differentiable.
    - `x`, `y`, `radius`, `norm`, `key`, `clip`, `batch_size`, `mesh`: as for [`lyapunov_dsl.attacks.apgd_ce`][].
    - `queries`: how often the function is called for each input.
    - `share`: p, the share of the entries in the first windows; it is halved nine times on the way, at the
        paper's shares of `queries` (of 10,000 there).

    **Returns:** as for [`lyapunov_dsl.attacks.apgd_ce`][].

    **Raises:** `ValueError` as for [`lyapunov_dsl.attacks.apgd_ce`][], and for a share outside (0, 1].
    """
    check_counts(queries=queries)
    if not (is_finite(share) and 0 < share <= 1):
        raise ValueError(f"share: expected a number in (0, 1], got {shown(share)}")
    first, propose = (_stripes, _move_inf) if norm == "inf" else (_tiles, _move_2)

    def attempt(_: Any, ball: Ball, y: Array, keys: Any, call: Callable) -> Array:
        best = first(ball, keys)
        margin = margins(call(best), y)
        for k in range(1, queries):
            if k % _CHECK_EVERY == 0 and not np.asarray(margin > 0).any():
                break
            x = propose(ball, best, keys, jnp.asarray(k), *_window(ball.center.shape, share, k / queries, norm))
            best, margin = _accept(best, margin, x, call(x), y)
        return best

    options: Any = {"radius": radius, "norm": norm, "clip": clip, "key": key, "batch_size": batch_size, "mesh": mesh}
    return search(lambda classes: [attempt], function, x, y, settings=(queries, share), **options)


def _as_images(shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    if len(shape) not in (3, 4):
        return shape[0], 1, 1, math.prod(shape[1:])
    return shape[0], 1 if len(shape) == 3 else shape[1], shape[-2], shape[-1]


def _window(shape: tuple[int, ...], share: float, progress: float, norm: str) -> tuple[Array, Array]:
    """Height and width of the window after a share of the queries, with the schedule of the paper's section 5."""
    *_, height, width = _as_images(shape)
    marks = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
    area = share / 2 ** sum(progress > m for m in marks) * height * width
    least = 1 if norm == "inf" else 3
    side = min(max(round(math.sqrt(area)), least), height)
    return jnp.asarray(side), jnp.asarray(min(max(round(area / side if height == 1 else side), least), width))


def _signs(key: Any, shape: tuple[int, ...], dtype: Any) -> Array:
    return jax.random.rademacher(key, shape, dtype)


def _place(key: Any, height: int, width: int, rows: Array, columns: Array) -> tuple[Array, Array]:
    """Indices (height, 1) and (1, width) from a random corner on that leaves room for the window."""
    one, two = jax.random.split(key)
    row, column = jax.random.randint(one, (), 0, height - rows + 1), jax.random.randint(two, (), 0, width - columns + 1)
    return jnp.arange(height)[:, None] - row, jnp.arange(width)[None, :] - column


def _inside(i: Array, j: Array, rows: Array, columns: Array) -> Array:
    return (i >= 0) & (i < rows) & (j >= 0) & (j < columns)


@eqx.filter_jit
def _stripes(ball: Ball, keys: Any) -> Array:
    _, channels, _, width = _as_images(ball.center.shape)
    image = (len(ball.center), *_as_images(ball.center.shape)[1:])
    signs = jax.vmap(lambda k: _signs(k, (channels, 1, width), ball.center.dtype))(keys)
    offset = jnp.broadcast_to(signs, image).reshape(ball.center.shape)
    return ball.project(ball.center + ball.radius * offset)


@eqx.filter_jit
def _move_inf(ball: Ball, best: Array, keys: Any, k: Array, rows: Array, columns: Array) -> Array:
    _, channels, height, width = _as_images(best.shape)

    def one(key: Any) -> Array:
        place, colors = jax.random.split(jax.random.fold_in(key, k))
        window = _inside(*_place(place, height, width, rows, columns), rows, columns)
        return _signs(colors, (channels, 1, 1), best.dtype) * window.astype(best.dtype)[None]

    return ball.project(best + 2 * ball.radius * jax.vmap(one)(keys).reshape(best.shape))


def _hills(i: Array, j: Array, rows: Array, columns: Array, turned: Array, dtype: Any) -> Array:
    """η of the paper's eq. 2 with norm 1: a hill and a valley side by side, or one above the other."""
    size = max(i.shape[0], j.shape[1]) + 2
    sums = jnp.cumsum(1 / jnp.arange(1, size, dtype=dtype) ** 2)

    def hill(i: Array, j: Array, rows: Array, columns: Array) -> Array:
        away = jnp.maximum(jnp.abs(i - rows // 2), jnp.abs(j - columns // 2))
        top = jnp.maximum(rows // 2, columns // 2)
        height = sums[jnp.clip(top, 0, size - 2)] - jnp.where(away > 0, sums[jnp.clip(away - 1, 0, size - 2)], 0)
        return jnp.where(_inside(i, j, rows, columns), jnp.maximum(height, 0), jnp.zeros_like(height))

    half_rows, half_columns = rows // 2, columns // 2
    upright = hill(i, j, half_rows, columns) - hill(i - half_rows, j, rows - half_rows, columns)
    sideways = hill(i, j, rows, half_columns) - hill(i, j - half_columns, rows, columns - half_columns)
    both = jnp.where(turned, sideways, upright)
    return both / jnp.sqrt(jnp.maximum(jnp.sum(both**2), jnp.finfo(dtype).tiny))


@eqx.filter_jit
def _tiles(ball: Ball, keys: Any) -> Array:
    _, channels, height, width = _as_images(ball.center.shape)
    rows, columns = max(height // 5, 1), max(width // 5, 1)
    i, j = jnp.arange(height)[:, None], jnp.arange(width)[None, :]
    down, right = -(-height // rows), -(-width // columns)

    def one(key: Any) -> Array:
        turn, colors = jax.random.split(key)
        turned = jax.random.bernoulli(turn) | (height == 1)
        sides = (jnp.asarray(rows), jnp.asarray(columns))
        tile = _hills(i[:rows], j[:, :columns], *sides, turned, ball.center.dtype)
        signs = _signs(colors, (channels, down, right), ball.center.dtype)
        return jax.vmap(lambda s: jnp.kron(s, tile)[:height, :width])(signs)

    offset = jax.vmap(one)(keys).reshape(ball.center.shape)
    offset = offset / expand(jnp.maximum(lengths(offset, "2"), jnp.finfo(offset.dtype).tiny), offset)
    return ball.project(ball.center + ball.radius * offset)


@eqx.filter_jit
def _move_2(ball: Ball, best: Array, keys: Any, k: Array, rows: Array, columns: Array) -> Array:
    batch, channels, height, width = _as_images(best.shape)
    dtype, tiny = best.dtype, jnp.finfo(best.dtype).tiny
    norm = lambda v, axis=None: jnp.sqrt(jnp.sum(v**2, axis=axis, keepdims=axis is not None))

    def one(key: Any, offset: Array) -> Array:
        place, other, turn, colors = jax.random.split(jax.random.fold_in(key, k), 4)
        i, j = _place(place, height, width, rows, columns)
        here = _inside(i, j, rows, columns).astype(dtype)[None]
        there = _inside(*_place(other, height, width, rows, columns), rows, columns).astype(dtype)[None]
        # The window takes the budget that is left over and that of the other window, which is emptied.
        left = jnp.maximum(ball.radius**2 - norm(offset) ** 2, jnp.zeros((), dtype)) / channels
        budget = jnp.sqrt(left + norm(offset * jnp.maximum(here, there), (1, 2)) ** 2)
        hills = _hills(i, j, rows, columns, jax.random.bernoulli(turn) | (height == 1), dtype)[None]
        old = offset * here
        new = hills * _signs(colors, (channels, 1, 1), dtype) + old / jnp.maximum(norm(old, (1, 2)), tiny)
        new = new / jnp.maximum(norm(new, (1, 2)), tiny) * budget
        changed = jnp.where(here > 0, new, offset * (1 - there))
        return changed / jnp.maximum(norm(changed), tiny) * ball.radius

    offset = (best - ball.center).reshape(batch, channels, height, width)
    return ball.project(ball.center + jax.vmap(one)(keys, offset).reshape(best.shape))


@eqx.filter_jit
def _accept(best: Array, margin: Array, x: Array, logits: Array, y: Array) -> tuple[Array, Array]:
    value = margins(logits, y)
    # An example that is misled stays as it is.
    better = (margin > 0) & ~(value >= margin)
    return select(better, x, best), jnp.where(better, value, margin)
