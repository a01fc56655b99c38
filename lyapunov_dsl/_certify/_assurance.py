"""Assurance as a type: every figure of a report says how it was obtained."""

import dataclasses
import enum
from typing import Any

import jax
import numpy as np

from .._types import number, rounded


class Assurance(enum.Enum):
    """How a claim was obtained, or that it was not. A weaker level is never shown as a stronger one."""

    CHECKED = "proved, and recomputed from its file by a second program"
    PROVED_FLOAT = "proved, with rounding accounted for"
    PROVED_REAL = "proved in real arithmetic"
    STATISTICAL = "holds with the stated confidence for the named distribution"
    EMPIRICAL = "sampled, searched or attacked: evidence, not a guarantee"
    UNDECIDED = "not decided"
    REFUTED = "false: there is a counterexample"

    @property
    def proved(self) -> bool:
        """Whether it is a proof: `CHECKED`, `PROVED_FLOAT` or `PROVED_REAL`."""
        return self in (Assurance.CHECKED, Assurance.PROVED_FLOAT, Assurance.PROVED_REAL)


@dataclasses.dataclass(frozen=True)
class Counterexample:
    """A point at which a condition fails.

    **Arguments:**

    - `part`: the name of the certificate.
    - `example`: the index of the example in the batch.
    - `t`, `state`: the time and the state.
    - `value`, `rate`, `residual`: V, dV/dt and dV/dt - comparison(t, V) there.
    """

    part: str
    example: int
    t: float
    state: Any
    value: float
    rate: float
    residual: float

    def __str__(self) -> str:
        # All digits, so that it can be evaluated again.
        state = jax.tree.map(lambda leaf: np.array2string(leaf, 1000, floatmode="unique", threshold=20), self.state)
        return (
            f"{self.part}, example {self.example}, t={number(self.t)}, V={self.value:.4g}, dV/dt={self.rate:.4g}, "
            f"residual={self.residual:.4g} at state {state}"
        )


@dataclasses.dataclass(frozen=True)
class Claim:
    """One line of a report.

    **Arguments:**

    - `statement`: what is claimed, in a sentence.
    - `assurance`: how it was obtained.
    - `value`: the figure, where there is one.
    - `interval`: a two-sided confidence interval of the figure (`STATISTICAL` only).
    - `confidence`: of the interval, for this claim alone.
    - `counterexample`: what refutes the claim (`REFUTED` only).
    - `given`: what the level rests on.
    """

    statement: str
    assurance: Assurance
    value: float | None = None
    interval: tuple[float, float] | None = None
    confidence: float | None = None
    counterexample: Counterexample | None = None
    given: str = ""

    def __str__(self) -> str:
        return self.line() + (f" (given {self.given})" if self.given else "")

    def line(self) -> str:
        """The level, the figure and the statement; without what it is given."""
        return f"{self.assurance.name:<12} {self.figure():<28} {self.statement}".rstrip()

    def figure(self) -> str:
        """The figure with its interval, empty where there is none."""
        if self.value is None:
            return ""
        # What is proved is printed exactly, the ends of an interval outward.
        text = number(self.value) if self.assurance.proved else f"{self.value:.4g}"
        if self.interval is not None:
            text += f" [{rounded(self.interval[0], -1)}, {rounded(self.interval[1], 1)}]"
            text += "" if self.confidence is None else f" {100 * self.confidence:.4g} %"
        return text


def weakest(*levels: Assurance) -> Assurance:
    """The level of "all of these hold": as strong as the weakest, and refuted where one of them is.

    A conclusion *drawn from* a refuted premise is not refuted but `UNDECIDED`.
    """
    order = list(Assurance)
    return max(levels, key=order.index)


def clopper_pearson(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact two-sided interval for a probability (Clopper and Pearson 1934).

    Valid for independent draws from one distribution with `trials` fixed beforehand, and for nothing else.

    **Arguments:**

    - `successes`, `trials`: counts, 0 <= successes <= trials, trials > 0.
    - `confidence`: 1 - α.

    **Returns:** (lower, upper).

    **Raises:** `ValueError` for counts or a confidence out of range.
    """
    if not (0 <= successes <= trials and trials > 0 and 0 < confidence < 1):
        raise ValueError(
            f"clopper_pearson: expected 0 <= successes <= trials and a confidence in (0, 1), got {successes}, {trials}, {confidence}"
        )
    from scipy.special import betaincinv  # a tenth of the time of importing this package

    tail = (1 - confidence) / 2
    lower = 0.0 if successes == 0 else float(betaincinv(successes, trials - successes + 1, tail))
    upper = 1.0 if successes == trials else float(betaincinv(successes + 1, trials - successes, 1 - tail))
    return lower, upper
