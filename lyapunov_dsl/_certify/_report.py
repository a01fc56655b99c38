"""What is printed: a report and its parts."""

import dataclasses
import math
from typing import Any

import numpy as np

from .._potential import Loss, Truncated
from ._assurance import Assurance, Claim, Counterexample
from ._rules import certified_radius, check, delta

# A radius takes some 10 ms; beyond so many different V(η(0)), they are rounded up to as many levels.
_LEVELS = 64
FRESH = "that the examples are fresh independent draws; trajectories are as the solver computes them"


@dataclasses.dataclass(frozen=True)
class EarlyStop:
    """One point of the curve of error against compute.

    **Arguments:**

    - `stop`: where inference ends, as [`lyapunov_dsl.Program.predict`][] takes it: a time, a
        [`lyapunov_dsl.Confidence`][], or `None` for the horizon.
    - `name`: the same in words.
    - `error`: the share of examples decided wrongly; where the loss decides nothing, the mean loss.
    - `steps`: solver steps an example, on average (one step of an s-stage method takes s evaluations of the field).
    """

    stop: Any
    name: str
    error: Claim
    steps: float


@dataclasses.dataclass(frozen=True)
class Robustness:
    """What would follow for every example *if* the premises of the report held, V(η(0)) being the same for every
    perturbed input.

    **Arguments:**

    - `initial`: V(η(0)) of every example, before truncation, shape (batch,).
    - `deltas`: δ of Definition 5 for every example, exp(-κT) · V(η(0)), of the truncated loss where it is truncated
        ([`lyapunov_dsl.delta`][]).
    - `loss`, `kappa`, `horizon`, `norm`: what the rules need beside a Lipschitz bound.
    """

    initial: np.ndarray
    deltas: np.ndarray
    loss: Loss
    kappa: float
    horizon: float
    norm: str

    def radii(self, lipschitz: Any, *, rule: str = "comparison", lipschitz_potential: Any = None) -> np.ndarray:
        """For every example the radius up to which its decision is kept, as a function of a given Lipschitz bound.

        **Arguments:**

        - `lipschitz`: L_f >= |f(t, η, x') - f(t, η, x)| / ||x' - x||, from the norm of the report to the same norm on
            states (times the readout's Lipschitz constant).
        - `rule`: `"comparison"` or `"theorem_3"`.
        - `lipschitz_potential`: L_V, of V in the state; for Theorem 3 by default the bound that the loss has everywhere
            (2 in the ∞-norm and √2 in the 2-norm for cross entropy).

        **Returns:** radii, shape (batch,); 0 where V(η(0)) is not finite or nothing follows. Of more than 64 different
        V(η(0)), each is rounded up to one of 64 of them, which makes its radius smaller.

        **Raises:** `ValueError` for constants that are negative or not finite, another rule, and for Theorem 3 with a loss
        that has no bound of its gradient where none is given.
        """
        check(lipschitz=lipschitz)
        if rule not in ("comparison", "theorem_3"):
            raise ValueError(f"rule: expected 'comparison' or 'theorem_3', got {rule!r}")
        if rule == "theorem_3" and lipschitz_potential is None:
            lipschitz_potential = self.lipschitz_potential()
            if lipschitz_potential is None:
                raise ValueError(
                    f"lipschitz_potential: expected a number, as the gradient of {type(self.loss).__name__} is unbounded, got none"
                )
        finite = np.isfinite(self.initial)
        levels, where = np.unique(np.maximum(self.initial[finite], 0), return_inverse=True)
        if levels.size > _LEVELS:
            # By rank, so that one far away does not make the others coarse.
            few = levels[np.unique(np.linspace(0, levels.size - 1, _LEVELS).round().astype(int))]
            where, levels = np.searchsorted(few, levels)[where], few
        constants: Any = {"loss": self.loss, "kappa": self.kappa, "horizon": self.horizon, "norm": self.norm}
        of_level = [
            certified_radius(
                initial=c, lipschitz=lipschitz, rule=rule, lipschitz_potential=lipschitz_potential, **constants
            )
            for c in levels.tolist()
        ]
        radii = np.zeros(self.initial.shape)
        radii[finite] = np.asarray(of_level)[where]
        return radii

    def lipschitz_potential(self) -> float | None:
        """The bound of the gradient of the loss that holds everywhere, `None` where there is none."""
        inner = self.loss.loss if isinstance(self.loss, Truncated) else self.loss
        profile = inner.gradient_profile(float("inf"), self.norm)
        return profile[0] if profile is not None and np.isfinite(profile[0]) else None

    def __str__(self) -> str:
        typical = dataclasses.replace(self, initial=np.median(self.initial, keepdims=True))
        lines = [f"  δ of Definition 5: median {np.median(self.deltas):.4g} over {self.deltas.size} examples"]
        rules = {"comparison": "the comparison rule"}
        if self.lipschitz_potential() is not None:
            rules["theorem_3"] = "Theorem 3"
        for rule, name in rules.items():
            (radius,) = typical.radii(1.0, rule=rule)
            lines.append(f"  radius by {name}: {radius:.4g} / L_f at the median V(η(0)), L_f in the {self.norm}-norm")
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class Report:
    """What `assess` found. Printable; every claim carries its assurance.

    **Arguments:**

    - `claims`: the claims by name.
    - `premises`: the premises of the robustness rules with the assurance each has.
    - `robustness`: δ, and the radii as functions of a Lipschitz bound, *if* all premises held; `None` where no part of
        the certificate decides something. Void where a premise is `REFUTED`.
    - `counterexample`: the worst violation found over all parts, or `None`.
    - `stops`: the error against the compute, for inference that ends early.
    - `problems`: what is wrong, a sentence each; empty where nothing was noticed.
    """

    claims: dict[str, Claim]
    premises: dict[str, Assurance] = dataclasses.field(default_factory=dict)
    robustness: Robustness | None = None
    counterexample: Counterexample | None = None
    stops: tuple[EarlyStop, ...] = ()
    problems: tuple[str, ...] = ()

    def joined(self, other: "Report") -> "Report":
        """Returns the claims and problems of both, and the worse of their counterexamples."""
        found = [c for c in (self.counterexample, other.counterexample) if c is not None]
        badness = lambda c: math.inf if math.isnan(c.residual) else c.residual
        return dataclasses.replace(
            self,
            claims=self.claims | other.claims,
            counterexample=max(found, key=badness, default=None),
            problems=self.problems + other.problems,
        )

    def __str__(self) -> str:
        lines = []
        if self.problems:
            lines += ["what is wrong:", *(f"- {problem}" for problem in self.problems), ""]
        lines += ["claims:", *(f"  {claim.line()}" for claim in self.claims.values())]
        lines += [f"  given {given}" for given in dict.fromkeys(c.given for c in self.claims.values() if c.given)]
        if self.stops:
            lines += ["", f"error against compute (solver steps an example; {self.stops[0].error.statement}):"]
            width = max(len(stop.name) for stop in self.stops)
            lines += [
                f"  {stop.name:<{width}} {stop.steps:8.1f}  {stop.error.assurance.name:<12} {stop.error.figure()}"
                for stop in self.stops
            ]
        if self.premises:
            lines += ["", "premises of a robustness radius:"]
            lines += [f"  {level.name:<12} {name}" for name, level in self.premises.items()]
        if self.robustness is not None:
            void = Assurance.REFUTED in self.premises.values()
            lines += ["", f"if every premise held{' (void: one of them is refuted)' if void else ''}:"]
            lines.append(str(self.robustness))
        if self.counterexample is not None:
            lines += ["", f"counterexample: {self.counterexample}"]
        return "\n".join(lines)


def robustness(loss: Any, kappa: float, horizon: float, norm: str, initial: Any) -> Robustness:
    """δ and what the radii need, from V(η(0)) before truncation."""
    initial = np.asarray(initial, np.float64)
    level = float(loss.level()) if isinstance(loss, Truncated) else 0.0
    deltas = [delta(max(c - level, 0.0), kappa, horizon) if np.isfinite(c) else np.inf for c in initial.tolist()]
    return Robustness(initial, np.asarray(deltas), loss, kappa, horizon, norm)
