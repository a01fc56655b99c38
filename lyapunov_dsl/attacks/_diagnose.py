"""What makes an attack look stronger or weaker than it is."""

import inspect
import numbers
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._potential import cross_entropy
from ._search import batches


def outputs(function: Callable, x: np.ndarray, size: int) -> np.ndarray:
    """Logits of all inputs, by calls of the function as it is."""
    found = [np.asarray(function(jnp.asarray(x[rows])))[:count] for rows, count in batches(np.arange(len(x)), size)]
    return np.concatenate(found)


# Followed across the ball, a gradient that changes the loss by less than this share of it is rounding, or leads nowhere.
LEAST_CHANGE = 1e-3


def gradients(
    function: Callable, x: np.ndarray, y: np.ndarray, radius: float, norm: str, size: int
) -> tuple[float, float]:
    """The share of inputs with a gradient that is 0 or has vanished, and with one that is not finite."""
    zero, broken = np.zeros(len(x), bool), np.zeros(len(x), bool)
    for rows, count in batches(np.arange(len(x)), size):
        found = _gradients(function, jnp.asarray(x[rows]), jnp.asarray(y[rows]), radius, norm)
        zero[rows[:count]], broken[rows[:count]] = (np.asarray(v)[:count] for v in found)
    return float(zero.mean()), float(broken.mean())


@eqx.filter_jit
def _gradients(function: Callable, x: Array, y: Array, radius: float, norm: str) -> tuple[Array, Array]:
    def total(x: Array) -> tuple[Array, Array]:
        losses = jax.vmap(cross_entropy)(function(x), y)
        return jnp.sum(losses), losses

    gradient, losses = jax.grad(total, has_aux=True)(x)
    rows = gradient.reshape(len(x), -1)
    # A compiled function leaves rounding where the gradient is zero by the formula.
    change = radius * jnp.linalg.norm(rows, ord=1 if norm == "inf" else 2, axis=1)
    vanished = jnp.all(rows == 0, axis=1) | (change < LEAST_CHANGE * jnp.abs(losses))
    return vanished, ~jnp.all(jnp.isfinite(rows), axis=1)


def short_steps(attacks: Mapping[str, Callable], radius: float) -> list[str]:
    """About attacks whose steps cannot cross the ball."""
    found = []
    for name, attack in attacks.items():
        try:
            options = inspect.signature(attack).parameters
        except (TypeError, ValueError):  # a callable without a signature
            continue
        if {"steps", "step_size"} <= options.keys():
            steps, size = options["steps"].default, options["step_size"].default
            if not all(isinstance(number, numbers.Real) for number in (steps, size)):
                continue
            if steps * size < 2 * radius * (1 - 1e-9):
                found.append(
                    f"{name}: {steps} steps of {size:.3g} travel {steps * size:.3g} at most, less than the {2 * radius:.3g} across the ball"
                )
    return found


def about_gradients(zero: float, broken: float, tolerance: float) -> list[str]:
    """About gradients that are useless at the inputs."""
    found = []
    if zero > tolerance:
        found.append(
            f"the gradient of the cross entropy is zero or has vanished at {_percent(zero)} of the inputs: gradients are masked"
        )
    if broken > 0:
        found.append(f"the gradient of the cross entropy is not finite at {_percent(broken)} of the inputs")
    return found


def about_outputs(logits: np.ndarray, again: np.ndarray) -> list[str]:
    """About outputs that are no logits, or not the same twice."""
    found = []
    if (logits >= 0).all() and (np.abs(logits.sum(axis=1) - 1) < 1e-3).all():
        found.append("the outputs look like probabilities (rows that are nonnegative and sum to 1): attack the logits")
    if not np.isfinite(logits).all():
        found.append(
            f"the outputs are not finite at {_percent((~np.isfinite(logits)).any(axis=1).mean())} of the inputs"
        )
    difference = spread(logits, again)
    if difference > 1e-4 * _size(logits):
        found.append(
            f"two calls differ by up to {difference:.3g}: the function is random, and an attack on one draw says little of the next"
        )
    return found


def about_range(x: np.ndarray, clip: Any, error: float | None) -> list[str]:
    """About inputs outside of the range."""
    if error is None:
        return []
    outside = np.mean((x < clip[0]) | (x > clip[1]))
    return [
        f"{_percent(outside)} of the values of x lie outside of clip, and clamping alone gives an error of {_percent(error)}: "
        "attack pixels, with the normalization inside the function"
    ]


def about_surrogate(decisions: float | None, difference: float | None) -> list[str]:
    """About a surrogate that is not the function."""
    if decisions is None or difference is None or (decisions == 0 and difference <= 0.01):
        return []
    return [
        f"the surrogate decides {_percent(decisions)} of the inputs otherwise than the function, and its logits differ by up to "
        f"{difference:.2g} of the largest one: attacks through it may be weaker (a coarser solver?)"
    ]


def about_masking(misled: Mapping[str, np.ndarray], direct: list[str], surrogate: bool, tolerance: float) -> list[str]:
    """About attacks without the gradient at hand that succeed where those with it fail."""
    whose = "surrogate's" if surrogate else "function's"
    if not direct:
        return [f"no attack follows the {whose} gradient"]
    followed = np.any([misled[name] for name in direct], axis=0)
    others = {name: found & ~followed for name, found in misled.items() if name not in direct}
    only = np.any([np.zeros_like(followed), *others.values()], axis=0)
    if only.sum() <= tolerance * len(only):
        return []
    shares = ", ".join(f"{name} {_percent(found.mean())}" for name, found in sorted(others.items()) if found.any())
    return [
        f"{_percent(only.mean())} of the inputs were misled without the {whose} gradient ({shares}) and by no attack that "
        f"follows it ({_percent(followed.mean())}): gradients are masked, or those attacks too short"
    ]


def compare(surrogate: np.ndarray, logits: np.ndarray) -> tuple[float, float]:
    """The share of other decisions, and the largest difference relative to the largest logit."""
    other = np.argmax(surrogate, axis=1) != np.argmax(logits, axis=1)
    return float(other.mean()), spread(surrogate, logits) / _size(logits)


def spread(one: np.ndarray, other: np.ndarray) -> float:
    """The largest difference; infinite where one of them is finite only."""
    with np.errstate(invalid="ignore"):
        difference = np.where(one == other, 0.0, np.abs(one - other))
    both = ~np.isfinite(one) & ~np.isfinite(other)
    return float(np.max(np.where(np.isnan(difference), np.where(both, 0.0, np.inf), difference)))


def _size(logits: np.ndarray) -> float:
    return max(float(np.max(np.abs(logits), initial=0.0, where=np.isfinite(logits))), 1e-30)


def _percent(share: Any) -> str:
    return f"{100 * float(share):.3g} %"
