"""Auto-PGD (Croce & Hein 2020, "Reliable evaluation of adversarial robustness ...", Algorithm 1)."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._potential import cross_entropy
from ._ball import Ball, check_counts
from ._climb import climb
from ._search import search


def apgd_ce(
    function: Callable,
    x: Float[Array, "batch ..."] | Float[np.ndarray, "batch ..."],
    y: Any,
    *,
    radius: Any = 8 / 255,
    norm: str = "inf",
    key: Any,
    steps: int = 100,
    restarts: int = 1,
    clip: tuple[Any, Any] | None = (0.0, 1.0),
    batch_size: int = 100,
    surrogate: Callable | None = None,
    mesh: Any = None,
) -> Float[Array, "batch ..."]:
    """Auto-PGD on cross entropy (Croce & Hein 2020, Algorithm 1): gradient ascent that needs no step size.

    Steps of 2·radius with a momentum of 0.75; at checkpoints the step is halved and the search goes on from the best
    point where fewer than 0.75 of the steps raised the loss, or nothing improved since the last checkpoint.

    **Arguments:**

    - `function`: a JAX function from a batch of inputs to logits float[batch, classes].
    - `x`: inputs, in the unit of `radius` and `clip` (put the normalization inside the function).
    - `y`: classes, int[batch].
    - `radius`, `norm`: the ball, in the norm `"inf"` or `"2"` over all axes but the first.
    - `key`: a PRNG key, from which each example has its own by its row; or a batch of keys, one for each example, so that
        parts of a whole can be attacked apart.
    - `steps`, `restarts`: gradients for each example, and how often from a new random point of the ball.
    - `clip`: the range of valid inputs, or `None`.
    - `batch_size`: how many inputs are attacked together; the last batch is filled up.
    - `surrogate`: a differentiable stand-in that gradients are taken of, for example the same model through a solver of
        fixed steps. Success is still that of `function`, in each step, and `function` need not be differentiable.
    - `mesh`: a `jax.sharding.Mesh` with one axis of type Auto, over whose devices the batches are split; `batch_size` is a
        multiple of their number, and JAX can trace `function`. The devices may belong to several processes, which then all
        make the same call; each attacks a share of the inputs, and all get the whole result. It is that of one device up to
        rounding.

    **Returns:** inputs shaped like `x`, in the ball and in `clip` without any rounding error: where the function was
    wrong already, x itself; where it was misled, such a point; else the point with
    the largest loss of the first restart.

    **Raises:** `ValueError` for options that are out of range, inputs that are not floating-point or not finite,
    classes that are no integers or do not exist, for a function that returns no logits, a surrogate with another number of
    them, and a mesh of another kind.
    """
    check_counts(steps=steps, restarts=restarts)

    def attempt(of: Callable, ball: Ball, y: Array, keys: Any, call: Callable) -> Array:
        return climb(of, _cross_entropy, ball, y, y, keys, steps, call if surrogate else None)

    options: Any = {"radius": radius, "norm": norm, "clip": clip, "key": key, "batch_size": batch_size, "mesh": mesh}
    options |= {"follow": surrogate or function, "settings": (steps, restarts)}
    return search(lambda classes: [attempt] * restarts, function, x, y, **options)


def apgd_t(
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
    """Auto-PGD on the targeted difference-of-logits ratio (Croce & Hein 2020, eq. 6), which no scale of the logits masks:

    DLR(z, y, t) = (z_t − z_y) / (z_(1) − (z_(3) + z_(4)) / 2), with z_(i) the i-th largest logit, once for each of the
    `targets` classes t with the largest logits at x. Three classes have z_(1) − z_(3) below, two have 1.

    **Arguments:**

    - `function`, `x`, `y`, `radius`, `norm`, `key`, `clip`, `batch_size`, `surrogate`, `mesh`: as for
        [`lyapunov_dsl.attacks.apgd_ce`][].
    - `steps`: gradients for each example and class t.
    - `targets`: how many other classes are aimed at, at most.

    **Returns:** as for [`lyapunov_dsl.attacks.apgd_ce`][].

    **Raises:** `ValueError` as for [`lyapunov_dsl.attacks.apgd_ce`][], and for a number of targets that is not positive.
    """
    check_counts(steps=steps, targets=targets)

    def aimed(rank: int) -> Callable:
        def attempt(of: Callable, ball: Ball, y: Array, keys: Any, call: Callable) -> Array:
            target = ranked(of, ball.center, y, jnp.asarray(rank))
            return climb(of, _dlr, ball, y, target, keys, steps, call if surrogate else None)

        return attempt

    options: Any = {"radius": radius, "norm": norm, "clip": clip, "key": key, "batch_size": batch_size, "mesh": mesh}
    options |= {"follow": surrogate or function, "settings": (steps, targets)}
    return search(lambda classes: [aimed(k) for k in range(min(targets, classes - 1))], function, x, y, **options)


@eqx.filter_jit
def ranked(function: Callable, x: Array, y: Array, rank: Array) -> Array:
    """The other class with the (rank + 1)-th largest logit."""
    logits = function(x)
    others = jnp.where(jnp.arange(logits.shape[1], dtype=y.dtype)[None, :] == y[:, None], -jnp.inf, logits)
    return jnp.take(jnp.argsort(others, axis=1, descending=True), rank, axis=1)


def _cross_entropy(logits: Array, y: Array, target: Array) -> Array:
    return cross_entropy(logits, y)


def _dlr(logits: Array, y: Array, target: Array) -> Array:
    best = jnp.sort(logits, descending=True)
    if len(best) == 2:
        return logits[target] - logits[y]
    scale = best[0] - (best[2] if len(best) == 3 else (best[2] + best[3]) / 2)
    return (logits[target] - logits[y]) / (scale + 1e-12)
