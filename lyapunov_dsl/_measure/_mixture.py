"""Mixtures of measures."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from .._system import Start, System
from .._types import is_finite, kind
from ._base import Measure, Samples


class Mixture(Measure):
    """Σ_i w_i μ_i: each part gives its own samples, weighted by w_i.

    The Monte Carlo objective takes the parts one by one, so that a shared part stays shared by the batch.

    **Arguments:**

    - `parts`: the measures μ_i.
    - `weights`: the w_i > 0, normalized to sum to 1; equal by default.

    **Raises:** `ValueError` for no parts, a part that is no measure, or weights that do not fit.
    """

    parts: tuple[Measure, ...]
    weights: tuple[float, ...] = eqx.field(static=True)
    per_example: ClassVar[bool] = True

    def __init__(self, *parts: Measure, weights: Any = None):
        if not parts or not all(isinstance(part, Measure) for part in parts):
            raise ValueError(f"Mixture: expected one or more measures, got {', '.join(map(kind, parts)) or 'none'}")
        weights = (1.0,) * len(parts) if weights is None else tuple(weights)
        if len(weights) != len(parts) or not all(is_finite(w) and w > 0 for w in weights):
            raise ValueError(f"weights: expected {len(parts)} positive finite numbers, got {weights}")
        weights = tuple(float(w) for w in weights)
        self.parts = parts
        self.weights = tuple(w / sum(weights) for w in weights)

    def check(self, system: System, state: PyTree) -> None:
        for part in self.parts:
            part.check(system, state)

    def sample(self, system: System, start: Start, *, key: Any) -> Samples:
        keys = jax.random.split(key, len(self.parts))
        drawn = [part.sample(system, start, key=k) for part, k in zip(self.parts, keys, strict=True)]
        scaled = [eqx.tree_at(lambda s: s.weight, s, s.weight * w) for s, w in zip(drawn, self.weights, strict=True)]
        return jax.tree.map(lambda *xs: jnp.concatenate(xs), *scaled)


def components(measure: Measure) -> list[tuple[float, Measure]]:
    """The simple measures of a (nested) mixture with their weights."""
    if not isinstance(measure, Mixture):
        return [(1.0, measure)]
    pairs = zip(measure.parts, measure.weights, strict=True)
    return [(w * inner, simple) for part, w in pairs for inner, simple in components(part)]
