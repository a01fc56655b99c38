"""The interface of a measure over times and states."""

import abc
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .._rollout import time_dtype
from .._system import Start, System


class Samples(eqx.Module):
    """Weighted points of [0, T] x H for one example, or shared by all.

    **Arguments:**

    - `t`: times, shape (Γ,).
    - `state`: states, with a leading axis Γ on every leaf.
    - `weight`: shape (Γ,), nonnegative and summing to 1: the estimate of a mean is Σ weight · value.
    """

    t: Float[Array, " samples"]
    state: PyTree[Float[Array, "samples ..."]]
    weight: Float[Array, " samples"]


class Measure(eqx.Module):
    """A probability measure over [0, T] x H from which the Monte Carlo objective draws (Algorithm 1). Abstract.

    A subclass says whether its samples depend on the example (`per_example`) and draws them (`sample`). Samples
    that do not are drawn once and shared by the whole batch, so that what depends on the state alone is computed once.
    """

    per_example: ClassVar[bool]

    @abc.abstractmethod
    def check(self, system: System, state: PyTree) -> None:
        """Raises `ValueError` where the measure does not fit the system or a state of these shapes."""

    @abc.abstractmethod
    def sample(self, system: System, start: Start, *, key: Any) -> Samples:
        """Samples for one example. A shared measure looks at the shapes of `start` only.

        **Arguments:**

        - `system`: the system, with its domain and horizon.
        - `start`: η(0) and context of one example.
        - `key`: a PRNG key.
        """


def stratified_times(key: Any, count: int, horizon: float, dtype: Any) -> Array:
    """`count` times, one uniform in each of `count` equal parts of [0, horizon], in random order.

    Each alone is uniform on [0, horizon]; together their mean varies less than that of independent draws.
    """
    jitter, order = jax.random.split(key)
    cells = jax.random.permutation(order, jnp.arange(count, dtype=dtype))
    times = (cells + jax.random.uniform(jitter, (count,), dtype)) * (horizon / count)
    return jnp.minimum(times, jnp.asarray(horizon, dtype))  # rounding may pass the end


def uniform_weights(count: int, dtype: Any) -> Array:
    """Equal weights that sum to 1."""
    return jnp.full((count,), 1 / count, dtype)


def shared_samples(draw: Any, start: Start, count: int, horizon: float, key: Any) -> Samples:
    """`count` independent states `draw(key)` with stratified times and equal weights."""
    states, times = jax.random.split(key)
    dtype = time_dtype(start.state)
    return Samples(
        stratified_times(times, count, horizon, dtype),
        jax.vmap(draw)(jax.random.split(states, count)),
        uniform_weights(count, dtype),
    )
