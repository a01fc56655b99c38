"""Random points of the ball: what no gradient and no search is needed for."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._ball import Ball, check_counts, select
from ._search import margins, search


def noise(
    function: Callable,
    x: Float[Array, "batch ..."] | Float[np.ndarray, "batch ..."],
    y: Any,
    *,
    radius: Any = 8 / 255,
    norm: str = "inf",
    key: Any,
    queries: int = 20,
    clip: tuple[Any, Any] | None = (0.0, 1.0),
    batch_size: int = 100,
    mesh: Any = None,
) -> Float[Array, "batch ..."]:
    """Random points of the ball; the one with the smallest margin is kept. A baseline that any attack must beat.

    **Arguments:**

    - `function`: a function from a batch of inputs to logits float[batch, classes]; it need not be differentiable.
    - `x`, `y`, `radius`, `norm`, `key`, `clip`, `batch_size`, `mesh`: as for [`lyapunov_dsl.attacks.apgd_ce`][].
    - `queries`: how many points for each input.

    **Returns:** as for [`lyapunov_dsl.attacks.apgd_ce`][].

    **Raises:** `ValueError` as for [`lyapunov_dsl.attacks.apgd_ce`][], and for a number of queries that is not positive.
    """
    check_counts(queries=queries)

    def attempt(_: Any, ball: Ball, y: Array, keys: Any, call: Callable) -> Array:
        best, lowest = ball.center, jnp.full(y.shape, jnp.inf, ball.center.dtype)
        for k in range(queries):
            x = _draw(ball, keys, jnp.asarray(k))
            best, lowest = _keep(best, lowest, x, call(x), y)
        return best

    options: Any = {"radius": radius, "norm": norm, "clip": clip, "key": key, "batch_size": batch_size, "mesh": mesh}
    return search(lambda classes: [attempt], function, x, y, settings=queries, **options)


@eqx.filter_jit
def _draw(ball: Ball, keys: Any, k: Array) -> Array:
    return ball.random(jax.vmap(lambda key: jax.random.fold_in(key, k))(keys))


@eqx.filter_jit
def _keep(best: Array, lowest: Array, x: Array, logits: Array, y: Array) -> tuple[Array, Array]:
    margin = margins(logits, y).astype(lowest.dtype)
    # NaN misleads, so that no number is better.
    margin = jnp.where(jnp.isnan(margin), -jnp.inf, margin)
    better = margin < lowest
    return select(better, x, best), jnp.where(better, margin, lowest)
