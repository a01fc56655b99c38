"""Vector fields."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._constant import Constant
from .._types import check_key, check_sizes, describe, is_traced, kind


class MLPField(eqx.Module):
    """A dense field f(t, η, context) for a vector state and a vector context.

    The first layer is a sum of one map of the state and the time and one of the context, so that under `vmap` what
    depends on a state shared by a batch is computed once, and so is what depends on the context alone.

    **Arguments:**

    - `state`, `context`: lengths of the two vectors.
    - `width`, `depth`: of the hidden layers, `depth` >= 1.
    - `activation`: between the layers.
    - `key`: a PRNG key.

    **Raises:** `ValueError` for sizes that are not positive, and for a state or a context of another length.
    """

    of_state: eqx.nn.Linear
    of_context: eqx.nn.Linear
    hidden: tuple[eqx.nn.Linear, ...]
    last: eqx.nn.Linear
    activation: Callable

    def __init__(
        self, state: int, context: int, *, width: int = 128, depth: int = 2, activation: Callable = jnp.tanh, key: Any
    ):
        check_key(key)
        check_sizes(state=state, width=width, depth=depth, **({"context": context} if context != 0 else {}))
        keys = jax.random.split(key, depth + 2)
        self.of_state = eqx.nn.Linear(state + 1, width, key=keys[0])
        self.of_context = eqx.nn.Linear(context, width, use_bias=False, key=keys[1])
        self.hidden = tuple(eqx.nn.Linear(width, width, key=k) for k in keys[2:-1])
        self.last = eqx.nn.Linear(width, state, key=keys[-1])
        self.activation = activation

    def __call__(self, t: Any, state: Float[Array, " k"], context: Float[Array, " c"]) -> Float[Array, " k"]:
        """The velocity at one time, state and context."""
        sizes = {"state": self.of_state.weight.shape[-1] - 1, "context": self.of_context.weight.shape[-1]}
        for (name, size), given in zip(sizes.items(), (state, context), strict=True):
            if np.shape(given) != (size,):
                raise ValueError(
                    f"MLPField: expected a {name} float[{size}], as it was made for, got {describe(given)}"
                )
        time = jnp.reshape(jnp.asarray(t, state.dtype), (1,))
        hidden = self.activation(self.of_state(jnp.concatenate([state, time])) + self.of_context(context))
        for layer in self.hidden:
            hidden = self.activation(layer(hidden))
        return self.last(hidden)


class ConvField(eqx.Module):
    """A convolutional field for a state (C, H, W), with a context of the same height and width.

    **Arguments:**

    - `state`, `context`: channels of the two.
    - `width`: hidden channels.
    - `key`: a PRNG key.

    **Raises:** `ValueError` for sizes that are not positive whole numbers, or what is no key.
    """

    of_state: eqx.nn.Conv2d
    of_context: eqx.nn.Conv2d
    last: eqx.nn.Conv2d

    def __init__(self, state: int, context: int, *, width: int = 16, key: Any):
        check_key(key)
        check_sizes(state=state, context=context, width=width)
        k1, k2, k3 = jax.random.split(key, 3)
        self.of_state = eqx.nn.Conv2d(state + 1, width, 3, padding=1, key=k1)
        self.of_context = eqx.nn.Conv2d(context, width, 3, padding=1, use_bias=False, key=k2)
        self.last = eqx.nn.Conv2d(width, state, 3, padding=1, key=k3)

    def __call__(self, t: Any, state: Float[Array, "k h w"], context: Float[Array, "c h w"]) -> Float[Array, "k h w"]:
        """The velocity at one time, state and context."""
        time = jnp.full((1, *state.shape[1:]), t, state.dtype)
        hidden = jnp.tanh(self.of_state(jnp.concatenate([state, time])) + self.of_context(context))
        return self.last(hidden)


class InvariantField(eqx.Module):
    """f = K (g(t, η, context) - η) with g in a box: the box is forward invariant by construction.

    g is the center of the box plus its half-width times tanh of an inner field. The statement is about the flow.
    Steps of Euler and of Heun with K Δt <= 1 keep it whatever the inner field, up to rounding; `compile` therefore
    takes Heun with fixed steps of 1/(2K) by default. Other adaptive solvers keep it up to their tolerance (Tsit5 leaves the box
    by some 10 % where g jumps about within a step), and large fixed steps of others not at all (the classical
    fourth-order method at K Δt = 3).

    **Arguments:**

    - `inner`: a field (t, state, context) -> array like the state, unrestricted.
    - `half_width`: of the box around `center`, a real scalar or an array like the state.
    - `rate`: K > 0, the speed towards g in 1 / unit of time. A rate κ of decay needs K > κ.
    - `center`: of the box.

    **Raises:** `ValueError` for a half-width or a rate that is not positive, and for an inner field that cannot be called.
    """

    inner: Callable
    half_width: Constant
    rate: Constant
    center: Constant

    def __init__(self, inner: Callable, half_width: Any, rate: Any, center: Any = 0.0):
        if not callable(inner):
            raise ValueError(f"inner: expected a field (t, state, context) -> array, got {kind(inner)}")
        for name, value in {"half_width": half_width, "rate": rate}.items():
            if not is_traced(value) and not np.all(np.asarray(value) > 0):
                raise ValueError(f"{name}: expected positive numbers, got {value}")
        self.inner = inner
        self.half_width, self.rate, self.center = Constant(half_width), Constant(rate), Constant(center)

    @property
    def step_limit(self) -> float | None:
        """1/K, the largest step with which Euler and Heun keep the box; `None` where K is traced."""
        rate = self.rate()
        return None if is_traced(rate) else float(1 / np.max(np.asarray(rate)))

    def speed_bound(self, t: Any, state: Array, context: Any) -> tuple[Array, Array]:
        """The least and the greatest velocity in every coordinate, K (center ± half-width - η), whatever the inner
        field. [`lyapunov_dsl.assess`][] asks for it."""
        center, half_width, rate = (constant(state.dtype) for constant in (self.center, self.half_width, self.rate))
        return rate * (center - half_width - state), rate * (center + half_width - state)

    def __call__(self, t: Any, state: Array, context: Any) -> Array:
        """The velocity at one time, state and context."""
        dtype, inner = state.dtype, self.inner(t, state, context)
        shapes = {"half_width": self.half_width.shape, "rate": self.rate.shape, "center": self.center.shape}
        wrong = {name: shape for name, shape in shapes.items() if shape not in ((), state.shape)}
        # One number for all entries of the state would be taken without a word.
        if jnp.shape(inner) != state.shape:
            wrong = {"inner": jnp.shape(inner), **wrong}
        if wrong:
            name, shape = next(iter(wrong.items()))
            raise ValueError(
                f"{name}: expected an array like the state, of shape {state.shape}, got one of shape {shape}"
            )
        goal = self.center(dtype) + self.half_width(dtype) * jnp.tanh(inner)
        return self.rate(dtype) * (goal - state)
