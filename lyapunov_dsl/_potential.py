"""Supervised losses as potentials (eq. 11), with what certification needs to know of each."""

import abc
import inspect
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ._constant import Constant
from ._logsumexp import logsumexp, margins
from ._types import Scalar, describe, is_finite, is_traced, shown


class Loss(eqx.Module):
    """A supervised loss L(prediction, target) >= 0 for one example, used as a potential V(η) = L(readout(η), y).

    Abstract. A plain function is accepted wherever a `Loss` is, but knows neither a decision threshold nor a
    gradient profile, so that no robustness rule applies to it.
    """

    @property
    def needs_target(self) -> bool:
        """Whether there is no loss without a target."""
        return True

    @abc.abstractmethod
    def __call__(self, prediction: PyTree, target: PyTree) -> Scalar:
        """The loss of one example."""

    @abc.abstractmethod
    def check(self, prediction: PyTree, target: PyTree) -> None:
        """Raises `ValueError` where shapes or dtypes (`jax.ShapeDtypeStruct`s) of one example do not fit."""

    @abc.abstractmethod
    def check_targets(self, prediction: PyTree, targets: PyTree) -> None:
        """Raises `ValueError` where concrete targets (leading batch axis) have values out of range."""

    @abc.abstractmethod
    def threshold(self) -> float | None:
        """The largest level c with: L < c implies the right decision. `None` where nothing is decided."""

    @abc.abstractmethod
    def correct(self, prediction: PyTree, target: PyTree) -> Array | None:
        """Whether the prediction decides for the target; ties count as wrong. `None` where nothing is decided."""

    @abc.abstractmethod
    def gradient_profile(self, level: Any, norm: str) -> tuple[float, float] | None:
        """A concave, increasing g(v) >= sup{||∇L||_* : L = v} with its derivative, in float64.

        **Arguments:**

        - `level`: v, a number.
        - `norm`: `"inf"` or `"2"`, the norm in which the *prediction* is perturbed; the gradient is measured in
            its dual (the 1-norm or the 2-norm).

        **Returns:** (g(v), g'(v)), or `None` where no profile is known.
        """


class CrossEntropy(Loss):
    """Cross entropy of logits against an integer class, a one-hot vector or a distribution over the classes.

    Evaluated as the log-sum-exp of d = z - <y, z>, M + log1p(Σ_{j≠a} exp(d_j - M)) with a = argmax d, M = d_a. For a one-hot target
    that is won, M is exactly 0 and the value keeps its relative precision down to the smallest floats, where the
    textbook form cancels to 0.

    Called with logits float[classes] and a target int[] or float[classes]; a scalar in nats. Its decision threshold is log 2, and
    its gradient p - e_y has the 1-norm 2 (1 - exp(-L)) and at most the 2-norm √2 (1 - exp(-L)).
    """

    def __call__(self, prediction: PyTree, target: PyTree) -> Scalar:
        logits, target = jnp.asarray(prediction), jnp.asarray(target)
        if jnp.issubdtype(target.dtype, jnp.integer):
            return logsumexp(margins(logits, target))
        left = logits - jnp.sum(target.astype(logits.dtype) * logits)
        # The target's own margin is 0; as a constant, so that its part of the gradient does not cancel either.
        return logsumexp(jnp.where(target == 1, jnp.zeros_like(left), left))

    def check(self, prediction: PyTree, target: PyTree) -> None:
        if not _is_array(prediction) or len(prediction.shape) != 1 or prediction.shape[0] < 2:
            raise ValueError(
                f"cross_entropy: expected the readout to return logits float[classes] with at least two classes, got {describe(prediction)}"
            )
        if not jnp.issubdtype(prediction.dtype, jnp.floating):
            raise ValueError(f"cross_entropy: expected floating-point logits, got {describe(prediction)}")
        classes = prediction.shape[0]
        integer = _is_array(target) and jnp.issubdtype(target.dtype, jnp.integer) and target.shape == ()
        one_hot = _is_array(target) and jnp.issubdtype(target.dtype, jnp.floating) and target.shape == (classes,)
        if not (integer or one_hot):
            raise ValueError(
                f"cross_entropy: expected a target that is an integer class int[] or a one-hot vector float[{classes}] "
                f"(as many as the readout has logits), got {describe(target)}"
            )

    def check_targets(self, prediction: PyTree, targets: PyTree) -> None:
        values = np.asarray(targets)
        classes = prediction.shape[0]
        if np.issubdtype(values.dtype, np.integer):
            wrong = np.flatnonzero((values < 0) | (values >= classes))
            expected = f"integer targets in [0, {classes})"
        else:
            rows = np.asarray(values, np.float64)
            wrong = np.flatnonzero(~((rows >= 0).all(axis=-1) & (np.abs(rows.sum(axis=-1) - 1) <= 1e-3)))
            expected = "target vectors that are nonnegative and sum to 1"
        if wrong.size:
            raise ValueError(f"cross_entropy: expected {expected}, got {values[wrong[0]]} at example {wrong[0]}")

    def threshold(self) -> float | None:
        # L < log 2 means that the probability of the target is above one half.
        return math.log(2)

    def correct(self, prediction: PyTree, target: PyTree) -> Array | None:
        logits, target = jnp.asarray(prediction), jnp.asarray(target)
        label = target if jnp.issubdtype(target.dtype, jnp.integer) else jnp.argmax(target)
        others = jnp.where(jnp.arange(logits.shape[-1]) == label, -jnp.inf, logits)
        return logits[label] > jnp.max(others)

    def gradient_profile(self, level: Any, norm: str) -> tuple[float, float] | None:
        # ∇L = p - e_y: the 1-norm is 2 (1 - p_y) exactly, the 2-norm at most √2 (1 - p_y), and p_y = exp(-L).
        factor = {"inf": 2.0, "2": math.sqrt(2.0)}[norm]
        return -factor * math.expm1(-level), factor * math.exp(-level)


class SquaredError(Loss):
    """The squared Euclidean distance between prediction and target, summed over all entries.

    Called with two PyTrees of arrays of the same shapes; a scalar in the squared unit of the prediction. It decides nothing,
    and its gradient has the 2-norm 2 √L.
    """

    def __call__(self, prediction: PyTree, target: PyTree) -> Scalar:
        terms = jax.tree.map(lambda p, t: jnp.sum((p - jnp.asarray(t, p.dtype)) ** 2), prediction, target)
        return jax.tree.reduce(jnp.add, terms)

    def check(self, prediction: PyTree, target: PyTree) -> None:
        same = jax.tree.structure(prediction) == jax.tree.structure(target) and all(
            p.shape == t.shape for p, t in zip(jax.tree.leaves(prediction), jax.tree.leaves(target), strict=True)
        )
        if not same:
            raise ValueError(
                f"squared_error: expected a target shaped like the prediction {describe(prediction)}, got {describe(target)}"
            )

    def check_targets(self, prediction: PyTree, targets: PyTree) -> None:
        for leaf in jax.tree.leaves(targets):
            values = np.asarray(leaf)
            if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
                example = np.argwhere(~np.isfinite(values))[0][0]
                raise ValueError(f"squared_error: expected finite targets, got {values[example]} at example {example}")

    def threshold(self) -> float | None:
        return None

    def correct(self, prediction: PyTree, target: PyTree) -> Array | None:
        return None

    def gradient_profile(self, level: Any, norm: str) -> tuple[float, float] | None:
        # The 2-norm of the gradient is 2 √L. In the 1-norm it depends on the dimension, so no profile is given.
        if norm != "2":
            return None
        return 2 * math.sqrt(level), 1 / math.sqrt(level) if level > 0 else math.inf


class Truncated(Loss):
    """max(0, L - level) of another loss L (paper, section 3.1): it reaches zero at a finite state.

    **Arguments:**

    - `loss`: the loss L.
    - `level`: the truncation level γ >= 0, in the unit of L.

    **Raises:** `ValueError` for a level that is negative or not finite.
    """

    loss: Loss
    level: Constant

    def __init__(self, loss: Any, level: Any):
        if not is_traced(level) and not (is_finite(level) and level >= 0):
            raise ValueError(f"truncated: expected a finite level >= 0, got {level!r}")
        self.loss = as_loss(loss)
        self.level = Constant(level)

    def __call__(self, prediction: PyTree, target: PyTree) -> Scalar:
        value = self.loss(prediction, target)
        return jax.nn.relu(value - self.level(value.dtype))

    def check(self, prediction: PyTree, target: PyTree) -> None:
        self.loss.check(prediction, target)

    def check_targets(self, prediction: PyTree, targets: PyTree) -> None:
        self.loss.check_targets(prediction, targets)

    def threshold(self) -> float | None:
        threshold = self.loss.threshold()
        return None if threshold is None else threshold - float(self.level())

    def correct(self, prediction: PyTree, target: PyTree) -> Array | None:
        return self.loss.correct(prediction, target)

    def gradient_profile(self, level: Any, norm: str) -> tuple[float, float] | None:
        return self.loss.gradient_profile(level + float(self.level()), norm)


class FunctionLoss(Loss):
    """A user's own function (prediction, target) -> scalar as a loss, or a potential of the prediction alone, which needs no target. It
    decides nothing and has no profile."""

    function: Callable
    alone: bool = eqx.field(static=True, default=False)

    @property
    def needs_target(self) -> bool:
        return not self.alone

    def __call__(self, prediction: PyTree, target: PyTree) -> Scalar:
        return self.function(prediction) if self.alone else self.function(prediction, target)

    def check(self, prediction: PyTree, target: PyTree) -> None:
        # `targets=None` is how some write a target that may be left out, and how others write a setting.
        optional = _positional(self.function)[1] if self.alone and target is not None else []
        if optional and optional[0].default is None:
            name = optional[0].name
            raise ValueError(
                f"loss: expected a function that needs its target or takes none, got one with an optional {name}=None and an "
                f"example with a target; make {name} required where it is the target, or keyword-only (*, {name}=None) "
                "where it is not"
            )

    def check_targets(self, prediction: PyTree, targets: PyTree) -> None:
        pass

    def threshold(self) -> float | None:
        return None

    def correct(self, prediction: PyTree, target: PyTree) -> Array | None:
        return None

    def gradient_profile(self, level: Any, norm: str) -> tuple[float, float] | None:
        return None


cross_entropy = CrossEntropy()
"""Cross entropy of logits, the loss of the paper: the one [`lyapunov_dsl.CrossEntropy`][], a function (prediction, target) -> scalar."""

squared_error = SquaredError()
"""The squared distance to a target: the one [`lyapunov_dsl.SquaredError`][], a function (prediction, target) -> scalar."""


def truncated(loss: Any, level: Any) -> Truncated:
    """The truncated loss max(0, L - level) (paper, section 3.1); see [`lyapunov_dsl.Truncated`][].

    **Arguments:**

    - `loss`: the loss L, a [`lyapunov_dsl.Loss`][] or a function (prediction, target) -> scalar.
    - `level`: the truncation level γ >= 0, in the unit of L.

    **Returns:** a [`lyapunov_dsl.Truncated`][].

    **Raises:** `ValueError` for a level that is negative or not finite, or a loss that is not callable.
    """
    return Truncated(loss, level)


def as_loss(loss: Any) -> Loss:
    """Gives a `Loss` as it is; a function wrapped into one, which decides nothing and has no gradient profile.

    The positional parameters without a default decide what a function is of: one is the prediction, and no target is
    needed; two are the prediction and the target. Parameters with a default keep it, so that V(state, scale=2.0) and
    `lambda s, P=P: s @ P @ s` are potentials of the prediction alone.

    **Arguments:**

    - `loss`: a [`lyapunov_dsl.Loss`][], a function (prediction, target) -> scalar, or one of the prediction alone, which needs no target.

    **Returns:** a [`lyapunov_dsl.Loss`][].

    **Raises:** `ValueError` for what is not callable, and for a function with another number of positional parameters
    without a default, `*args` in place of the target included.
    """
    if isinstance(loss, Loss):
        return loss
    expected = "loss: expected a Loss or a function (prediction, target) -> scalar, or (prediction) -> scalar"
    if isinstance(loss, type) or not callable(loss):
        raise ValueError(f"{expected}, got {shown(loss)}{'; give an instance of it' if isinstance(loss, type) else ''}")
    wrap = "wrap it in one that is, such as lambda prediction, target: ..."
    try:
        required, _, others = _positional(loss)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{expected}, got {shown(loss)}, whose parameters are not known; {wrap}") from error
    if others or len(required) not in (1, 2):
        raise ValueError(f"{expected}, got one of {inspect.signature(loss)}; {wrap}")
    return FunctionLoss(loss, alone=len(required) == 1)


def _positional(function: Callable) -> tuple[list[inspect.Parameter], list[inspect.Parameter], bool]:
    """The positional parameters without and with a default, and whether it is open which others a call has to give."""
    parameters = list(inspect.signature(function).parameters.values())
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p for p in positional if p.default is p.empty]
    open_ended = any(p.kind == p.VAR_POSITIONAL for p in parameters) and len(required) != 2
    needed = any(p.kind == p.KEYWORD_ONLY and p.default is p.empty for p in parameters)
    return required, [p for p in positional if p.default is not p.empty], open_ended or needed


def radius_for(loss: Any, kappa: Any, classes: int, *, horizon: Any = 1.0) -> float:
    """The half-width s of the cube that the paper samples (eq. 49): V = exp(-κT) at its corner for the right class.

    For cross entropy on logits, V at the corner (s for the right class, -s for the others) is
    log(1 + (m - 1) exp(-2 s)), so that s = ½ log((m - 1) / (exp(exp(-κT)) - 1)).

    **Arguments:**

    - `loss`: `lyapunov_dsl.cross_entropy`, plain or truncated.
    - `kappa`: the rate κ > 0, per unit of time.
    - `classes`: the number m of classes.
    - `horizon`: the final time T.

    **Returns:** s as a `float`.

    **Raises:** `ValueError` for another loss, and where the certificate could not be met on that cube: from η(0) = 0 it
    promises V(T) <= exp(-κT) log m, which has to be well above the least V on the cube, exp(-κT). With two or
    three classes it is not.
    """
    inner = loss.loss if isinstance(loss, Truncated) else loss
    if not isinstance(inner, CrossEntropy):
        raise ValueError(f"radius_for: expected cross_entropy (eq. 49 speaks of no other loss), got {loss!r}")
    if not (is_finite(kappa) and kappa > 0 and is_finite(horizon) and horizon > 0 and classes >= 2):
        raise ValueError(
            f"radius_for: expected positive kappa and horizon and at least two classes, got {kappa!r}, {horizon!r}, {classes!r}"
        )
    least = math.exp(-float(kappa) * float(horizon))
    # log(exp(v) - 1) tends to log v, which is -κT also where exp(-κT) underflows.
    corner = math.log(math.expm1(least)) if least > 0 else -float(kappa) * float(horizon)
    half_width = 0.5 * (math.log(classes - 1) - corner)
    if math.log(classes) < 4 / 3:
        raise ValueError(
            f"radius_for: eq. 49 gives half-width {half_width:.3g}, where the least V is {least:.3g}; that is not well below "
            f"the {least * math.log(classes):.3g} promised from V(0) = log {classes}, so kappa={float(kappa):g} cannot be met there. "
            f"Declare a larger domain yourself, such as Box({-2 * half_width:.3g}, {2 * half_width:.3g})"
        )
    return half_width


def _is_array(x: Any) -> bool:
    return hasattr(x, "shape") and hasattr(x, "dtype")
