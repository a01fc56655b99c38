"""Projected gradient descent attacks (Madry et al. 2018), by the paper's protocol."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._mesh import Team
from .._potential import Loss, cross_entropy
from .._types import describe, is_finite, shown, struct_of
from ._ball import Ball, around, check_ball, check_counts, check_inputs, direction, settle
from ._search import batches, check_function, check_keys, keys_of, shared, size_here, traced


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
    mesh: Any = None,
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
    - `mesh`: devices to split the batches over, as for [`lyapunov_dsl.attacks.apgd_ce`][].

    **Returns:** perturbed inputs shaped like `x`, within `radius` of it and within `clip` where x is, without any
    rounding error. It is the last point, as in the paper; nothing makes sure that it misleads where another did.

    **Raises:** `ValueError` for another norm, or a radius, step size or number of steps that is not positive, inputs that
    are not floating-point, targets that are not as many as the inputs or that the loss cannot take, functions that JAX
    cannot trace, a surrogate whose predictions are of another shape, and a mesh of another kind.
    """
    team, follow = Team(mesh), surrogate or function
    with team.together():
        check_function(function)
        radius = check_ball(radius, norm, clip)
        check_counts(steps=steps, **({} if batch_size is None else {"batch_size": batch_size}))
        if not (is_finite(step_size) and step_size > 0):
            raise ValueError(f"step_size: expected a positive number, got {shown(step_size)}")
        x, y = check_inputs(x), jax.tree.map(np.asarray, y)
        if key is not None:
            check_keys(key, len(x))
        size = size_here(batch_size, len(x), team)
        _check_targets(_prediction(function, surrogate, x, size), y, loss, len(x))

    def work(rows: np.ndarray) -> np.ndarray:
        of, some, targets = team.spare(follow), x[rows], jax.tree.map(lambda leaf: leaf[rows], y)
        out, by = np.empty_like(some), team.spare(jnp.asarray(step_size, x.dtype))
        for here, count in batches(np.arange(len(rows)), size):
            ball = around(some[here], radius, norm, clip, team)
            target = team.spread(jax.tree.map(lambda leaf, here=here: leaf[here], targets))
            point = ball.center if key is None else _start(ball, team.spread(keys_of(key, 0, rows[here])))
            # Not a traced loop: a convolution inside one runs many times slower on a CPU.
            for _ in range(steps):
                point = _step(of, loss, ball, target, point, by)
            out[here[:count]] = settle(ball, point)[:count]
        return out

    settings = (radius, step_size, steps, norm, clip, batch_size)
    return shared(team, work, x, (function, surrogate, loss), (y, key), settings)


def _prediction(function: Callable, surrogate: Callable | None, x: np.ndarray, size: int) -> Any:
    """The shapes of the predictions of a batch. Raises `ValueError` where gradients are to be taken of what JAX cannot
    trace, or of a surrogate that predicts something else than the function."""
    like = jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype)
    if surrogate is None:
        return traced("function", function, like)
    found = traced("surrogate", surrogate, like)
    try:
        own = jax.eval_shape(function, like)
    except jax.errors.JAXTypeError:
        rows, _ = next(batches(np.arange(len(x)), size))
        own = struct_of(function(jnp.asarray(x[rows])))
    if jax.tree.map(jnp.shape, found) != jax.tree.map(jnp.shape, own):
        raise ValueError(
            f"surrogate: expected predictions like those of function, {describe(own)}, got {describe(found)}"
        )
    return found


def _check_targets(prediction: Any, y: Any, loss: Callable, count: int) -> None:
    if any(leaf.shape[:1] != (count,) for leaf in jax.tree.leaves(y)):
        raise ValueError(f"y: expected targets with a leading batch axis of {count}, got {describe(y)}")
    one = lambda tree: jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), tree)
    if isinstance(loss, Loss):
        loss.check(one(prediction), one(y))
        loss.check_targets(one(prediction), y)


@eqx.filter_jit
def _start(ball: Ball, keys: Any) -> Array:
    return ball.random(keys)


@eqx.filter_jit
def _step(function: Callable, loss: Callable, ball: Ball, y: Any, x: Array, size: Array) -> Array:
    gradient = jax.grad(lambda x: jnp.sum(jax.vmap(loss)(function(x), y)))(x)
    return ball.project(x + size * direction(gradient, ball.norm))
