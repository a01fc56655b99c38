"""The Lipschitz constant of an input module that its author gives, and what was looked at of it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._interpret import evaluated
from .._types import is_finite, kind, speaks
from ._question import flattened

# Pairs of inputs, over all examples.
PAIRS = 2048
# Of the difference of two inputs, in units of the radius.
SCALES = (1.0, 0.1, 1e-3)


class Gain(NamedTuple):
    """A Lipschitz constant that is given: a premise, not a result.

    **Arguments:**

    - `value`: the constant, of start and context as one vector, in the Euclidean norm.
    - `module`: the type of the input module.
    - `pairs`: at how many pairs of inputs it was looked at.
    - `largest`: the largest quotient there.
    """

    value: float
    module: str
    pairs: int
    largest: float

    def __str__(self) -> str:
        return (
            f"given by you: start and context change by at most {self.value:.9g} times the perturbation ({self.module}.gain); "
            f"looked at for {self.pairs} pairs of inputs in the balls, where it was at most {self.largest:.4g}"
        )


def given_gain(system: Any, x: np.ndarray, radius: float) -> Gain | None:
    """The constant that an input module gives, if any, held against quotients and slopes. Call it with float64 enabled.

    **Arguments:**

    - `system`: in float64.
    - `x`: examples.
    - `radius`: of the largest balls.

    **Raises:** `ValueError` for what is no constant, for one that was inherited by a class that computes something else, and for one that
    two inputs refute.
    """
    module = system.input
    if not hasattr(module, "gain"):
        return None
    if not callable(module.gain):
        raise ValueError(f"input.gain: expected a method without arguments, got {kind(module.gain)}")
    if not speaks(module, "gain"):
        raise ValueError(
            f"input.gain: expected a method of {kind(module)} or of what it computes, got one that it inherits from a class "
            "whose __call__ it replaces"
        )
    # Once: what it says the next time is another premise.
    value = np.asarray(module.gain(), np.float64)
    if not (is_finite(value) and value >= 0):
        raise ValueError(f"input.gain: expected a finite number >= 0, got {value}")
    flat = lambda x: jnp.concatenate(flattened(system.start(x))[:2])

    def slope(x: Any) -> Any:
        forward = lambda u: jax.jvp(flat, (x,), (u,))[1]
        back = jax.vjp(flat, x)[1]
        # Power iteration, which is below the slope.
        u = jax.lax.fori_loop(0, 8, lambda _, u: back(forward(u / jnp.linalg.norm(u)))[0], jnp.ones_like(x))
        return jnp.linalg.norm(forward(u / jnp.linalg.norm(u)))

    steepest = float(np.nanmax(evaluated(jax.vmap(slope), jnp.asarray(x[:16])), initial=0.0))
    if steepest > value * (1 + 1e-6):
        raise ValueError(
            f"input.gain: expected a Lipschitz constant of start and context together, at least the slope {steepest:.6g} that was "
            f"found at an input, got {value:.6g}"
        )
    first, second = _pairs(np.random.default_rng(0), x, radius)
    both = lambda pairs: jax.lax.map(lambda pair: (flat(pair[0]), flat(pair[1])), pairs, batch_size=64)
    images = evaluated(both, (jnp.asarray(first), jnp.asarray(second)))
    apart = np.linalg.norm((first - second).reshape(len(first), -1), axis=1)
    moved = np.linalg.norm(images[0] - images[1], axis=1)
    # Values are rounded.
    lost = 1e-12 * (np.linalg.norm(images[0], axis=1) + np.linalg.norm(first.reshape(len(first), -1), axis=1))
    quotients = np.maximum(moved - lost, 0) / np.maximum(apart, np.finfo(np.float64).tiny)
    i = int(np.nanargmax(quotients))
    if quotients[i] > value * (1 + 1e-6):
        text = " and ".join(np.array2string(v[i], threshold=12, precision=9) for v in (first, second))
        raise ValueError(
            f"input.gain: expected a Lipschitz constant of start and context together, at least {quotients[i]:.6g} as between the "
            f"inputs {text}, got {value:.6g}"
        )
    return Gain(float(value), kind(module), len(first), max(float(quotients[i]), steepest))


def _pairs(rng: Any, x: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of inputs of the balls: at all distances, each with the center now and then."""
    each = max(2, -(-PAIRS // len(x)))
    some = x[rng.permutation(len(x))[: PAIRS // 2]]
    centers = np.repeat(some, each, axis=0)
    axes = tuple(range(1, x.ndim))

    def step(scale: Any) -> np.ndarray:
        u = rng.normal(size=centers.shape)
        u /= np.maximum(np.sqrt((u * u).sum(axis=axes, keepdims=True)), 1e-300)
        return u * np.reshape(scale * rng.random(len(centers)) ** (1 / x[0].size), (-1,) + (1,) * len(axes))

    first = centers + step(radius)
    # Half of the second points are anywhere in the ball, the others near the first.
    scales = np.where(rng.random(len(centers)) < 0.5, 0.0, radius * rng.choice(SCALES[1:], len(centers)))
    near = first + step(scales)
    far = centers + step(radius)
    second = np.where((scales > 0).reshape((-1,) + (1,) * len(axes)), near, far)
    return first, second
