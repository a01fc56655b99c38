"""Proofs of a certificate over a region."""

import dataclasses
import hashlib
import time as clock
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._certify import Assurance, Claim, Counterexample
from .._certify._assurance import weakest
from .._condition import Condition
from .._domain import Domain
from .._types import exactly, number
from ._agreement import declared, differs, sampled, traced
from ._arguments import check_rest, ends_of, flat_state, frontier
from ._branch import CUT, Prover, Run, Tree
from ._claims import checked_claims, is_steady, questions_of, region_of, tubular
from ._exact import at_rest as exactly_at_rest, violates
from ._finite import unknown
from ._judge import ABOVE, BELOW, OUTSIDE, REST
from ._known import fingerprint
from ._proof import Proof, Rest, measured, portable, solved, stays
from ._question import Functions, doubtful, functions, influenced
from ._recheck import recheck, settled
from ._region import Region
from ._tube import Tube

# Boxes in which the gain of the context and the slope of V are bounded.
PARTS = 64


@dataclasses.dataclass(frozen=True)
class Verification:
    """What `prove` found of a property of one example. Printable.

    **Arguments:**

    - `status`: `CHECKED` where all claims are proved and a second program recomputed the proof, `PROVED_REAL` or `PROVED_FLOAT` where
        it did not, `REFUTED` where one is false, else `UNDECIDED`.
    - `claims`: each claim by name, with its own status.
    - `counterexample`: where the first refuted claim fails, or `None`.
    - `boxes`, `seconds`: how many boxes were bounded, and the time it took.
    - `left`: for each claim that is not decided, the boxes of (t, state) that are left: arrays low and high, float64
        [count, 1 + states].
    - `proof`: the proof, which can be saved and checked; `None` where not all is proved.
    - `advice`: what may help where boxes are left.
    - `checked`: by what it was checked, about which programs, or why it was not.
    """

    status: Assurance
    claims: dict[str, Claim]
    counterexample: Counterexample | None
    boxes: int
    seconds: float
    left: dict[str, tuple[np.ndarray, np.ndarray]]
    proof: Proof | None
    advice: str = ""
    checked: str = ""

    def __str__(self) -> str:
        lines = [f"{self.status.name} ({self.boxes} boxes, {self.seconds:.1f} s)"]
        lines += [f"  {claim}" for claim in self.claims.values()]
        if self.checked:
            lines.append(f"  {self.checked}")
        for name, (low, high) in self.left.items():
            lines.append(f"  left of {name}: {len(low)} boxes{_extent(low, high)}")
        if self.left and self.counterexample is None and self.advice:
            lines.append(f"  next: {self.advice}")
        if self.counterexample is not None:
            lines.append(f"counterexample: {self.counterexample}")
        return "\n".join(lines)


def _extent(low: np.ndarray, high: np.ndarray) -> str:
    """Where some boxes of (t, state) are, if that fits on a line."""
    ends = zip(low.min(axis=0)[1:], high.max(axis=0)[1:], strict=True)
    return "" if low.shape[1] > 5 else f", in {' x '.join(f'[{number(a)}, {number(b)}]' for a, b in ends)}"


def decide(
    condition: Condition,
    x: Any,
    y: Any,
    prover: Prover,
    *,
    claims: Sequence[str],
    part: str | None = None,
    domain: Domain | Tube | None = None,
    start: Any = None,
    level: Any = None,
    time: Any = None,
    equilibrium: Any = None,
    perturbation: Any = None,
    strict: bool = False,
) -> Verification:
    """Proves, or refutes, claims about one example and every state of a region; their options are those of the properties.

    Boxes are bounded with [`lyapunov_dsl.bounds.bound`][], cheaper methods first, and cut where that does not decide. Around
    the equilibrium, where both sides tend to 0, the second derivatives decide.
    """
    began = clock.monotonic()
    claims = checked_claims(claims, level, equilibrium, perturbation)
    rounding: Any = prover.rounding
    names = list(condition.parts)
    if part is None and len(names) > 1:
        raise ValueError(f"part: expected one of {names}, as several certificates are combined, got none")
    part = names[0] if part is None else part
    if part not in names:
        raise ValueError(f"part: expected one of {names}, got {part!r}")
    x64 = jnp.result_type(float) == jnp.float64
    with jax.enable_x64(True):
        if x is None:
            if equilibrium is None:
                raise ValueError("x: expected an example, such as a state of the right shape, got none")
            x = equilibrium
        told, first = functions(condition, part, x, y)
        before = traced(told, first)
        state = condition.continuous.start(jax.tree.map(jnp.asarray, x)).state
        rest = None if equilibrium is None else flat_state(equilibrium, state)
        tube = domain if isinstance(domain, Tube) else None
        if "stays" in claims and tube is None:
            raise ValueError("domain: expected a Tube for the claim 'stays', got none")
        if tube is not None and time is not None:
            raise ValueError(f"time: expected none with a Tube, which has times of its own, got {time!r}")
        if tube is not None and (set(claims) - {"decrease", "stays"} or tube.lower.shape[1] != first.size):
            raise ValueError(f"domain: a Tube of {first.size} states goes with 'decrease' and 'stays', got {claims}")
        # The claim about the last time needs one.
        steady = tube is None and "robust" not in claims and is_steady(told, first)
        region = tubular(tube, level) if tube is not None else region_of(condition, domain, state, level, time, steady)
        if region.faces and set(claims) != {"decrease"}:
            raise ValueError(f"claims: expected 'decrease' alone where the domain has Faces, got {claims}")
        if told.own_rate and (wrong := set(claims) & {"enclosed", "robust", "stays"}):
            raise ValueError(
                f"claims: expected a certificate about dV/dt for {sorted(wrong)}, got {part}, whose rate is another; see its documentation"
            )
        low, high = region.low[:, 1:].min(axis=0), region.high[:, 1:].max(axis=0)
        ends = ends_of(start, np.asarray(first, np.float64))
        if rest is not None and not ((low < rest) & (rest < high)).all():
            raise ValueError(f"equilibrium: expected a state inside of the domain, got {rest}")
        if rest is not None:
            check_rest(told, rest, region)
        file = frontier(prover.checkpoint)
        identity = _identity(told, first, region, rest, claims, strict, rounding, perturbation, ends)
        run = Run(prover, file, identity, prover.progress)
        radius = None if perturbation is None else exactly("perturbation", perturbation)
        record = portable(told, first.size, region, rest, strict, claims, tube, ends, radius)
        at_rest = None if rest is None else Rest(record)
        questions = questions_of(told, region, claims, strict, rounding, at_rest, radius)
        found: dict[str, Claim] = {}
        left: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        worst, trees = None, {}
        own = declared(condition, part, x, y, x64)
        samples = sampled(told, own, region, rest)
        other = differs(told, own, samples, region, condition.continuous.horizon if steady else None, claims)
        why = dict.fromkeys(questions, other) if other else _hopeless(told, first, region, claims, strict, at_rest)
        for name, (statement, judge, boxes) in questions.items():
            level_of = Assurance.PROVED_FLOAT if rounding == "float" else Assurance.PROVED_REAL
            counter, given = None, why.get(name, "")
            if given:
                # Said before anything is searched, as no search could decide it.
                found[name] = Claim(statement, Assurance.UNDECIDED, given=given)
                left |= {key: (low[None], high[None]) for key, low, high, *_ in boxes}
                continue
            if name == "definite" and rest is not None:
                # V that is 0 elsewhere is often so at states that are easily found.
                low = (z for z in samples.lowest(rest)[:16] if judge.inside(z) and violates(at_rest, name, z))
                counter = next(low, None)
            for key, least, most, *fixed in boxes if counter is None else ():
                judge.fixed = tuple(fixed)
                tree, counter = run.branch(key, judge, least, most)
                trees[key] = tree
                if counter is not None:
                    break
                if len(tree.left[0]):
                    level_of = Assurance.UNDECIDED
                    left[key] = tree.left
                if (tree.rule == REST).any() and level_of is Assurance.PROVED_FLOAT:
                    # Second derivatives speak of the exact function alone.
                    level_of = Assurance.PROVED_REAL
            example = None
            if (
                name == "decrease"
                and counter is None
                and (region.least, region.most) != (None, None)
                and _is_void([trees[key] for key, *_ in boxes])
            ):
                given = "nothing: no state of H has V between the levels"
            if name == "decrease" and tube is not None and "stays" not in claims:
                given = given or "the tube, given by you: that trajectories stay in it was not looked at, see 'stays'"
            if counter is not None:
                level_of, example = Assurance.REFUTED, _counterexample(told, part, name, counter)
                worst = worst or example
            found[name] = Claim(statement, level_of, counterexample=example, given=given)
        run.bar.close()
        if "stays" in claims:
            found["stays"] = _stays(record)
        if "robust" in claims:
            found["robust"] = _robust(record, trees, [found[name].assurance for name in questions])
        decided = {name: claim for name, claim in found.items() if claim.assurance is not Assurance.UNDECIDED}
        gone, infinite = other, ""
        if decided and not gone and traced(told, first) != before:
            gone = "the functions are others when they are traced again: they depend on what Python holds"
        if not gone and any(claim.assurance.proved for claim in decided.values()):
            infinite, boxes = unknown(told, claims, region, radius)
            left |= {"finite": boxes} if infinite else {}
        for name, claim in decided.items():
            if gone or (infinite and claim.assurance.proved):
                found[name] = Claim(claim.statement, Assurance.UNDECIDED, given=gone or infinite)
        worst = None if gone else worst
        status = weakest(*(c.assurance for c in found.values()))
        proof, said = None, ""
        if status.proved:
            proof, said = Proof(record, trees), "not checked: check=False; proof.save does it"
            if prover.check:
                status, said = recheck(proof, status, clock.monotonic() - began)
                found = {name: settled(claim, status, said) for name, claim in found.items()}
                proof = proof if status.proved else None
            if file is not None and proof is not None:
                file.unlink(missing_ok=True)
        advice = _advice(run.looked, rest, region)
    seconds = clock.monotonic() - began
    return Verification(status, found, worst, run.looked, seconds, left, proof, advice, said)


def _hopeless(
    told: Functions, first: Any, region: Region, claims: list[str], strict: bool, at_rest: Rest | None
) -> dict[str, str]:
    """Why claims cannot be decided, by name, where that is known without a search."""
    found = {}
    if "definite" in claims and at_rest is not None and not at_rest.zero():
        found["definite"] = "V is not known to be exactly 0 at the equilibrium"
    if "decrease" in claims and (
        why := doubtful(told, first) or influenced(told, region.low.min(0), region.high.max(0))
    ):
        found["decrease"] = why
    elif why := exactly_at_rest(at_rest, claims, strict, region.least):
        # Said at once, as it is the declaration that has to be changed.
        found = {**dict.fromkeys(claims, "it was not looked at, as 'decrease' cannot be decided"), "decrease": why}
    return found


def _advice(looked: int, rest: Any, region: Region) -> str:
    """What to do about boxes that are left, other than what was done."""
    if not looked:
        return ""
    found = ["a Prover of more boxes (with a checkpoint, to go on from there)", "a smaller domain"]
    if rest is None:
        found.append("equilibrium=... where the boxes that are left are about a state of rest")
    if region.least is None:
        found.append("level=(least, c) to leave out the neighborhood of a state of rest")
    return ", ".join(found)


def _is_void(trees: list[Tree]) -> bool:
    """Whether no box holds a state that a claim is about."""
    return all(set(np.unique(tree.rule)) <= {CUT, ABOVE, BELOW, OUTSIDE} for tree in trees)


def _stays(record: Any) -> Claim:
    """Whether the checker's steps stay in the tube."""
    statement = "every trajectory from the start stays in the tube"
    if isinstance(record, str):
        return Claim(statement, Assurance.UNDECIDED, given=record)
    try:
        stays(record)
    except ValueError as error:
        return Claim(statement, Assurance.UNDECIDED, given=str(error))
    return Claim(statement, Assurance.PROVED_REAL)


def _robust(record: Any, trees: dict[str, Tree], premises: list[Assurance]) -> Claim:
    """V at the last time for every context within the radius; adds the gain and the slope to the record."""
    statement = "the largest V at the last time, for every context within the radius"
    if isinstance(record, str):
        return Claim(statement, Assurance.UNDECIDED, given=record)
    if not all(premise.proved for premise in premises):
        return Claim(statement, Assurance.UNDECIDED, given="its premises, which are not proved")
    header, _ = record
    around = header["perturbation"]
    for name in ("gain", "slope"):
        around[name], trees[name] = measured(record, name, PARTS)
    given = f"‖∂f/∂context‖ <= {number(around['gain'])} in the ∞-norm, ‖∂V/∂state‖ <= {number(around['slope'])} in the 1-norm"
    try:
        final = solved(record, {name: trees[name] for name in ("gain", "slope")})
    except ValueError as error:
        return Claim(statement, Assurance.UNDECIDED, given=f"{given}; {error}")
    return Claim(statement, Assurance.PROVED_REAL, final, given=given)


def _counterexample(told: Functions, part: str, name: str, z: np.ndarray) -> Counterexample:
    residual, value = (float(v) for v in told.residual(jnp.asarray(z)))
    rate = residual + float(told.comparison(jnp.asarray(z[0]), jnp.asarray(value)))
    return Counterexample(f"{part} ({name})", 0, float(z[0]), z[1:], value, rate, residual)


def _identity(told: Functions, start: Any, region: Region, rest: Any, *more: Any) -> str:
    """What tells proofs apart: the functions with all their numbers, the region, and what is asked."""
    digest = hashlib.sha256()
    for closed in (
        jax.make_jaxpr(told.perturbed)(jnp.zeros(()), start, told.context),
        jax.make_jaxpr(told.value)(jnp.zeros(()), start),
        jax.make_jaxpr(told.rate)(jnp.zeros(()), start),
        jax.make_jaxpr(told.comparison)(jnp.zeros(()), jnp.zeros(())),
    ):
        fingerprint(digest, closed)
    for array in (told.context, region.low, region.high, *(region.ball or ())):
        digest.update(np.asarray(array).tobytes())
    digest.update(repr((region.least, region.most, None if rest is None else rest.tolist(), more)).encode())
    return digest.hexdigest()
