"""The interface of a training objective, and sums of objectives."""

import abc
from typing import Any

import equinox as eqx
import jax
from jaxtyping import PyTree

from .._condition import Condition
from .._system import Start
from .._types import Scalar, Struct, is_finite, kind


class Objective(eqx.Module):
    """A training loss for a condition and a batch. Abstract. Objectives add and scale: `MonteCarlo() + 0.1 *
    EndToEnd()`."""

    @abc.abstractmethod
    def check(self, condition: Condition, start: Struct) -> None:
        """Raises `ValueError` where the objective does not fit the system (`start`: shapes of one example's start)."""

    @abc.abstractmethod
    def __call__(self, condition: Condition, x: PyTree, y: PyTree, *, key: Any) -> Scalar:
        """The loss of a batch.

        **Arguments:**

        - `condition`: a [`lyapunov_dsl.Condition`][].
        - `x`, `y`: inputs and targets with a leading batch axis; `y` is `None` for systems without targets.
        - `key`: a PRNG key, split into one for each example.
        """

    def __add__(self, other: "Objective") -> "Objective":
        return Sum((self, other), (1.0, 1.0))

    def __mul__(self, scale: Any) -> "Objective":
        return Sum((self,), (scale,))

    def __rmul__(self, scale: Any) -> "Objective":
        return Sum((self,), (scale,))


class Sum(Objective):
    """A weighted sum of objectives; written `a + 0.1 * b`."""

    terms: tuple[Objective, ...]
    weights: tuple[float, ...] = eqx.field(static=True)

    def __init__(self, terms: Any, weights: Any):
        for term, weight in zip(terms, weights, strict=True):
            if not isinstance(term, Objective):
                raise ValueError(f"objective: expected an Objective, got {kind(term)}")
            if not is_finite(weight):
                raise ValueError(f"objective: expected a finite number to scale by, got {weight!r}")
        self.terms = tuple(terms)
        self.weights = tuple(float(w) for w in weights)

    def check(self, condition: Condition, start: Struct) -> None:
        for term in self.terms:
            term.check(condition, start)

    def __call__(self, condition: Condition, x: PyTree, y: PyTree, *, key: Any) -> Scalar:
        keys = jax.random.split(key, len(self.terms))
        losses = [w * term(condition, x, y, key=k) for term, w, k in zip(self.terms, self.weights, keys, strict=True)]
        return sum(losses[1:], start=losses[0])


def example_keys(key: Any, x: PyTree) -> Any:
    """One key for each example of a batch, a function of the batch's key and the example's place alone."""
    size = jax.tree.leaves(x)[0].shape[0]
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(jax.numpy.arange(size))


def starts(condition: Condition, x: PyTree, keys: Any) -> Start:
    """Eq. 1 for a batch: the input module, once per example."""
    return eqx.filter_vmap(condition.system.start)(x, keys)
