"""What was proved of a set of examples: radii, and what they rest on."""

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .._certify import Assurance
from ._inference import Agreement
from ._radius import RadiusProof
from ._recheck import _run


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
    - `assurance`: `PROVED_REAL`: of the network in real numbers, with the weights as they are; `CHECKED` in what `check` returns.
    - `verdict`: what the checker said, empty where it was not asked.
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
    verdict: str = ""

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

    def check(self, *, seconds: float = 3600.0) -> "Robust":
        """Writes the proof and has `python -m lyapunov_checker` recompute it, in a process of its own.

        **Arguments:**

        - `seconds`: how long that may take.

        **Returns:** the same with the status `CHECKED`, the radii that are in the file, 0 for all other examples, and the verdict.

        **Raises:** `ValueError` where `save` does, and where the checker refuses the file.
        """
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "radii.npz"
            radius = self.save(path)
            code, said = _run(path, seconds)
        if code:
            raise ValueError(f"check: {said.strip() or f'the checker ended with the exit status {code}'}")
        return self._replace(radius=radius, assurance=Assurance.CHECKED, verdict=said.strip())

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
        lines.append(f"  {self.agreement}")
        if self.verdict:
            lines.append(f"  CHECKED, for {np.sum(self.radius > 0)} of {len(self.radius)}:")
            lines += [f"    {line}" for line in self.verdict.splitlines()]
        else:
            lines.append("  not checked by the second program, which check() asks")
        return "\n".join(lines)
