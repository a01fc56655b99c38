"""Projected gradient descent attacks (Madry et al. 2018), by the paper's protocol."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._potential import cross_entropy
from ._ball import Ball, around, check_ball, check_counts, check_inputs, direction, settle
from ._search import batches, check_keys, keys_of


def pgd(
    function: Callable,
    x: Float[Array, "batch ..."] | Float[np.ndarray, "batch ..."],
    y: Any,
    *,
    radius: Any = 8 / 255,
    step_size: Any = 2 / 255,
    steps: int = 10,
    norm: str = "inf",
    loss: Callable = cross_entropy,
    clip: tuple[Any, Any] | None = (0.0, 1.0),
    key: Any = None,
    batch_size: int | None = None,
    surrogate: Callable | None = None,
) -> Float[Array, "batch ..."]:
    """Perturbs inputs within a ball so as to raise a loss. The defaults are the paper's experiments (appendix C).

    From a random point of the ball (with `key`), `steps` times: a step of `step_size` along the sign of the gradient
    (`"inf"`) or along the normalized gradient (`"2"`), then projection onto the ball and onto `clip`.

    Beware: ten steps of 2/255 travel 20/255 at most, far from the edge of the paper's 2-norm ball of 127/255. Errors
    measured that way are what the paper reports, and a lower bound of what an attack can reach.

    **Arguments:**

    - `function`: a differentiable JAX function from a batch of inputs to a batch of predictions, such as
        `program.predict`.
    - `x`: inputs, in the unit that `radius`, `step_size` and `clip` are given in (put the normalization inside the
        function).
    - `y`: targets, leading batch axis.
    - `radius`, `step_size`, `steps`, `norm`: the ball and the steps.
    - `loss`: (prediction, target) -> scalar for one example.
    - `clip`: the range of valid inputs, or `None`.
    - `key`: a PRNG key (or one for each input) for the random start; without one it starts at x.
    - `batch_size`: how many inputs are attacked together, the last batch filled up; all by default.
    - `surrogate`: a differentiable stand-in for `function`, of which gradients are taken.

    **Returns:** perturbed inputs shaped like `x`, within `radius` of it and within `clip` where x is, without any
    rounding error. It is the last point, as in the paper; nothing makes sure that it misleads where another did.

    **Raises:** `ValueError` for another norm, or a radius, step size or number of steps that is not positive,
    or inputs that are not floating-point.
    """
    if not (radius > 0 and step_size > 0 and steps > 0):
        raise ValueError(f"expected positive radius, step_size and steps, got {radius}, {step_size}, {steps}")
    radius = check_ball(radius, norm, clip)
    x = check_inputs(x)
    if key is not None:
        check_keys(key, len(x))
    size = len(x) if batch_size is None else batch_size
    check_counts(batch_size=size)
    size, out = min(size, len(x)), np.empty_like(x)
    for rows, count in batches(np.arange(len(x)), size):
        ball, target = around(x[rows], radius, norm, clip), _take(y, rows)
        point = ball.center if key is None else _start(ball, keys_of(key, 0, rows))
        # Not a traced loop: a convolution inside one runs many times slower on a CPU.
        for _ in range(steps):
            point = _step(surrogate or function, loss, ball, target, point, jnp.asarray(step_size, x.dtype))
        out[rows[:count]] = settle(ball, point)[:count]
    return jnp.asarray(out)


def _take(y: Any, rows: np.ndarray) -> Any:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[rows], y)


@eqx.filter_jit
def _start(ball: Ball, keys: Any) -> Array:
    return ball.random(keys)


@eqx.filter_jit
def _step(function: Callable, loss: Callable, ball: Ball, y: Any, x: Array, size: Array) -> Array:
    gradient = jax.grad(lambda x: jnp.sum(jax.vmap(loss)(function(x), y)))(x)
    return ball.project(x + size * direction(gradient, ball.norm))
