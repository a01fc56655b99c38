"""Projected gradient descent attacks (Madry et al. 2018), by the paper's protocol."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._potential import cross_entropy
from .._types import describe


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
    - `key`: a PRNG key for the random start; without one it starts at x.

    **Returns:** perturbed inputs shaped like `x`, within `radius` of it up to rounding, and within `clip` where x is.

    **Raises:** `ValueError` for another norm, or a radius, step size or number of steps that is not positive,
    or inputs that are not floating-point.
    """
    if norm not in ("inf", "2"):
        raise ValueError(f"norm: expected 'inf' or '2', got {norm!r}")
    if not (radius > 0 and step_size > 0 and steps > 0):
        raise ValueError(f"expected positive radius, step_size and steps, got {radius}, {step_size}, {steps}")
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x: expected floating-point inputs, got {describe(x)}")
    axes = tuple(range(1, x.ndim))

    def length(v: Array) -> Array:
        return jnp.sqrt(jnp.sum(v**2, axis=axes, keepdims=True))

    def valid(offset: Array) -> Array:
        if norm == "inf":
            offset = jnp.clip(offset, -radius, radius)
        else:
            offset = offset * jnp.minimum(1, radius / jnp.maximum(length(offset), jnp.finfo(x.dtype).tiny))
        if clip is None:
            return offset
        # A value that is outside already stays within the ball, too: it may only move towards the range.
        return jnp.clip(x + offset, jnp.minimum(x, clip[0]), jnp.maximum(x, clip[1])) - x

    def total(offset: Array) -> Array:
        return jnp.sum(jax.vmap(loss)(function(x + offset), y))

    def step(_: Any, offset: Array) -> Array:
        gradient = jax.grad(total)(offset)
        direction = jnp.sign(gradient) if norm == "inf" else gradient / (length(gradient) + 1e-10)
        return valid(offset + step_size * direction)

    offset = jnp.zeros_like(x)
    if key is not None:
        direction, size = jax.random.split(key)
        if norm == "inf":
            offset = jax.random.uniform(direction, x.shape, x.dtype, -radius, radius)
        else:
            normal = jax.random.normal(direction, x.shape, x.dtype)
            share = jax.random.uniform(size, (x.shape[0],) + (1,) * len(axes), x.dtype)
            offset = normal / length(normal) * share * radius
        offset = valid(offset)
    # Not a traced loop: a convolution inside one runs many times slower on a CPU.
    advance = jax.jit(step)
    for i in range(steps):
        offset = advance(i, offset)
    return x + offset
