"""The conjunction of certificates."""

import re
from typing import Any

import equinox as eqx

from .._potential import Loss
from .._types import is_finite, kind, shown
from ._base import Certificate


class AllOf(eqx.Module):
    """Several certificates that must hold together: `a & b`, or with names and weights of one's own.

    The parts share one evaluation of the field and one set of samples. Training minimizes the weighted sum of
    their hinges; reports speak of each part by its name.

    **Arguments:**

    - `parts`: a dictionary from names to certificates.
    - `weights`: a dictionary from names to positive weights of the hinges; 1 where a name is left out.

    **Raises:** `ValueError` for a part that is no certificate, or a weight that is not positive or names no part.
    """

    parts: dict[str, Certificate]
    # Pairs, not a dictionary: JAX sorts a dictionary's keys whenever it rebuilds a PyTree, and the first part counts.
    _weights: tuple[tuple[str, float], ...] = eqx.field(static=True)

    def __init__(self, parts: Any, weights: Any = None):
        if not isinstance(parts, dict):
            raise ValueError(f"AllOf: expected a dictionary from names to certificates, got {kind(parts)}")
        for name, part in parts.items():
            if not isinstance(part, Certificate):
                raise ValueError(f"{name}: expected a Certificate, got {kind(part)}")
        weights = dict(weights or {})
        for name, weight in weights.items():
            if name not in parts or not (is_finite(weight) and weight > 0):
                raise ValueError(
                    f"weights: expected positive finite numbers for {sorted(parts)}, got {name}={weight!r}"
                )
        self.parts = dict(parts)
        self._weights = tuple((name, float(weights.get(name, 1.0))) for name in parts)

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each part's hinge, by name, in the order of the declaration."""
        return dict(self._weights)

    def __or__(self, other: Any) -> "AllOf":
        """Refused: what a union would promise is the promise of neither."""
        raise ValueError(f"|: expected two barriers, got a conjunction of {list(self.parts)} and {kind(other)}")

    def __and__(self, other: Any) -> "AllOf":
        """All of these parts and those of another certificate."""
        return conjunction(self, other)


def parts_of(certificate: Any) -> dict[str, Certificate]:
    """The parts of a certificate by name; a single certificate is its own and only part."""
    if isinstance(certificate, AllOf):
        return {name: certificate.parts[name] for name in certificate.weights}
    if isinstance(certificate, Certificate):
        return {_name(certificate): certificate}
    raise ValueError(f"certificate: expected a Certificate, got {shown(certificate)}")


def each(certificate: Any, function: Any) -> Any:
    """A certificate with a function applied to every part."""
    if isinstance(certificate, AllOf):
        return AllOf({name: function(part) for name, part in parts_of(certificate).items()}, certificate.weights)
    return function(certificate)


def weights_of(certificate: Any) -> dict[str, float]:
    """The weight of each part's hinge, by name."""
    return certificate.weights if isinstance(certificate, AllOf) else dict.fromkeys(parts_of(certificate), 1.0)


def loss_of(certificate: Any) -> Any:
    """The supervised loss of the first part that has one, or `None`."""
    losses = (getattr(part, "loss", None) for part in parts_of(certificate).values())
    return next((loss for loss in losses if isinstance(loss, Loss)), None)


def conjunction(left: Any, right: Any) -> AllOf:
    """`left & right`, equal names told apart by a number."""
    parts: dict[str, Certificate] = {}
    weights: dict[str, float] = {}
    for side in (left, right):
        for name, part in parts_of(side).items():
            free = next(n for n in (name, *(f"{name}_{i}" for i in range(2, len(parts) + 3))) if n not in parts)
            parts[free] = part
            weights[free] = weights_of(side)[name]
    return AllOf(parts, weights)


def _name(certificate: Certificate) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(certificate).__name__).lower()
