"""What can be said about a trained program today, at the level at which it can honestly be said."""

import math
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PyTree

from .._certificate import Exponential
from .._condition import Condition
from .._solve import Solver
from ._assurance import Assurance, Claim, clopper_pearson, weakest
from ._diagnose import problems
from ._early import early_stops
from ._falsify import draw, evaluate, falsify
from ._paths import DECAY_SLACK, DECAY_TIMES, LOOKS, before_truncation, decays, paths, visited
from ._report import FRESH, Report, robustness


def certify(
    condition: Condition,
    solver: Solver,
    x: PyTree,
    y: PyTree,
    *,
    key: Any,
    samples: int,
    radius: Any,
    norm: str,
    confidence: float,
    prediction: PyTree,
) -> Report:
    """See [`lyapunov_dsl.assess`][]."""
    begun = eqx.filter_jit(eqx.filter_vmap(condition.system.start))(x)
    run = paths(condition, solver, begun, y)
    # Only the first are independent draws; what the trajectories visit is looked at, not counted.
    draws = [jax.tree.map(np.asarray, draw(condition, begun, key, samples)), *visited(condition, run, samples)]
    join = lambda pieces: jax.tree.map(lambda *leaves: np.concatenate(leaves), *pieces)
    claims: dict[str, Claim] = {}

    def share(name: str, statement: str, events: Any, given: str = FRESH) -> None:
        events = np.asarray(events)
        count = int(events.sum())
        interval = clopper_pearson(count, events.size, confidence)
        claims[name] = Claim(
            f"share of {statement}", Assurance.STATISTICAL, count / events.size, interval, confidence, given=given
        )

    solved = np.asarray(run.solved)
    if run.correct is not None:
        share("error", "examples decided wrongly", ~np.asarray(run.correct))
    for name, part in condition.parts.items():
        found = [evaluate(condition, name, begun, y, piece) for piece in draws]
        share(
            f"{name}.violation",
            f"(example, t, state), uniform on the batch, [0, T] and H, at which {name} is violated by more than rounding",
            np.asarray(found[0].excess) > 0,
            given="",
        )
        worst, counterexample = falsify(condition, name, begun, y, join(draws), join(found))
        statement = f"{name} holds for these examples on all of [0, T] x H; worst residual found"
        level = Assurance.EMPIRICAL if counterexample is None else Assurance.REFUTED
        claims[f"{name}.holds"] = Claim(statement, level, worst, counterexample=counterexample)
        before = " before truncation" if before_truncation(part) else ""
        share(
            f"{name}.decay",
            f"examples whose V ({name}{before}) is within {DECAY_SLACK:.0%} of the promise at t/T = {DECAY_TIMES}",
            solved & decays(condition, name, run),
        )
    share("domain.left", f"examples whose trajectory leaves H ({LOOKS} times looked at)", run.outside.any(axis=1))
    if not solved.all():
        share("unsolved", "examples that the solver could not finish", ~solved)
    refutations = [c.counterexample for c in claims.values() if c.counterexample is not None]
    badness = lambda c: math.inf if math.isnan(c.residual) else c.residual
    worst = max(refutations, key=badness, default=None)
    name = deciding(condition, norm)
    premises, ifs = {}, None
    if name is not None:
        part: Any = condition.parts[name]
        ifs = robustness(part.loss, float(part.kappa), condition.continuous.horizon, norm, run.values[name][:, 0])
    # None of the premises is proved here (only refuted or searched), so neither is a conclusion.
    if radius is not None:
        claims["robust"] = Claim(
            f"the decision is the same for every perturbation of size {float(radius):.4g} in the {norm}-norm",
            Assurance.UNDECIDED,
        )
    if radius is not None or name is not None:
        seen = " (some were seen to leave it)" if run.outside.any() else ""
        holds = [claims[f"{part}.holds"].assurance for part in (condition.parts if name is None else [name])]
        premises = {
            f"H is forward invariant for every perturbed input{seen}": Assurance.UNDECIDED,
            "the condition holds for the nominal input on all of H": weakest(*holds),
            "c bounds V(η(0)) for every perturbed input": Assurance.UNDECIDED,
            f"L_f bounds the change of the field with the input, both in the {norm}-norm": Assurance.UNDECIDED,
            "the solver decides as the exact flow does": Assurance.UNDECIDED,
        }
    curve = early_stops(condition, solver, begun, y, prediction, confidence)
    faults = problems(condition, solver, begun, y, run, draws[0])
    return Report(claims, premises, ifs, worst, curve, faults)


def deciding(condition: Condition, norm: str) -> str | None:
    """The name of the first exponential part to which the robustness rules apply: its loss decides and has a gradient
    profile."""
    for name, part in condition.parts.items():
        loss = part.loss if isinstance(part, Exponential) else None
        if loss is not None and loss.threshold() is not None and loss.gradient_profile(1.0, norm) is not None:
            return name
    return None
