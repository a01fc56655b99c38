"""What was proved of a set of examples: radii, and what they rest on."""

from typing import Any, NamedTuple

import numpy as np

from .._certify import Assurance
from ._inference import Agreement
from ._radius import RadiusProof


class Premise(NamedTuple):
    """What a rule rests on, and whether it holds.

    **Arguments:**

    - `statement`: in words, with its number.
    - `holds`: whether it was proved.
    """

    statement: str
    holds: bool


class Robust(NamedTuple):
    """What was proved of a set of examples. Printable.

    **Arguments:**

    - `radius`: of the largest ball around each example in which its class is proved; 0 where none is, or where it is decided wrongly.
        [examples]
    - `rule`: that gave it, empty where none did. [examples]
    - `right`: whether `predict` is right without a perturbation. [examples]
    - `radii`: by rule, for each example. {rule: [examples]}
    - `premises`: of each rule, at its own radius or the smallest one that was tried, for each example. {rule: one list for each example}
    - `norm`: of the perturbations.
    - `evaluations`: of boxes by the bound engine, for all examples.
    - `seconds`: wall time, compilation included.
    - `agreement`: how far `predict` and the network that is proved about were apart, an [`lyapunov_dsl.Agreement`][].
    - `given`: premises that are yours, and what was looked at of them.
    - `proof`: what a file of it needs, a [`lyapunov_dsl.RadiusProof`][].
    - `assurance`: `PROVED_REAL`: of the network in real numbers, with the weights as they are.
    """

    radius: np.ndarray
    rule: list[str]
    right: np.ndarray
    radii: dict[str, np.ndarray]
    premises: dict[str, list[list[Premise]]]
    norm: str
    evaluations: int
    seconds: float
    agreement: Agreement
    given: tuple[str, ...]
    proof: RadiusProof
    assurance: Assurance = Assurance.PROVED_REAL

    def accuracy(self, radius: float) -> float:
        """The share of the examples that are decided rightly in all of a ball of this radius, as far as proved."""
        return float(np.mean(self.right & (self.radius >= radius)))

    def save(self, path: Any) -> np.ndarray:
        """Writes the radii that `lyapunov_checker` confirms by its own steps to a file, and has it check that: weights, constants, margins
        and the steps of a tube around each path.

        **Arguments:**

        - `path`: where to; the file is replaced as a whole.

        **Returns:** the radius of each example in the file, at most the one that was proved; 0 where none is in it. [examples]

        **Raises:** `ValueError` where the network uses operations that the checker does not know, where it confirms no radius, and
        where the file cannot be written.
        """
        return self.proof.save(path)

    def __str__(self) -> str:
        lines = [f"robustness, L{self.norm}: {self.assurance.name}, in real arithmetic, of Euler inference"]
        lines += [f"  {what}" for what in self.given]
        lines.append(
            f"  right without a perturbation: {100 * self.right.mean():.2f} % of {len(self.right)}, by predict"
        )
        for name in self.radii:
            used = sum(r == name for r in self.rule)
            lines.append(f"  {name}: the largest radius of {used}; median {np.median(self.radii[name]):.4g}")
            broken: dict[str, int] = {}
            for found in self.premises[name]:
                for premise in found:
                    if not premise.holds:
                        broken[premise.statement.split(":")[0]] = broken.get(premise.statement.split(":")[0], 0) + 1
            lines += [f"    UNDECIDED for {count}: {what}" for what, count in broken.items()]
        return "\n".join([*lines, f"  {self.agreement}"])
