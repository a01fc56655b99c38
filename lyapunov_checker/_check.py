"""Checks the proof in a file, and says what was proved."""

from typing import Any, NamedTuple

from flint import ctx

from ._file import read, seal
from ._flow import attracts, robust, stays
from ._program import Refused
from ._proof import PRECISION, Proof, shown
from ._radius import FORMAT as RADIUS, Radii

CLAIMS = {
    "decrease": Proof.decrease,
    "definite": Proof.definite,
    "enclosed": Proof.enclosed,
    "invariant": Proof.invariant,
    "stays": stays,
    "robust": robust,
}


class Verdict(NamedTuple):
    """What was proved. Printable.

    **Arguments:**

    - `sentences`: what follows from the proof, a sentence each, in real arithmetic.
    - `boxes`: how many boxes were looked at.
    """

    sentences: tuple[str, ...]
    boxes: int

    def __str__(self) -> str:
        return "\n".join(["proved, in real arithmetic:", *(f"- {s}" for s in self.sentences), f"({self.boxes} boxes)"])


def check(path: Any) -> Verdict:
    """Checks the proof in a file.

    **Arguments:**

    - `path`: a file that `lyapunov_dsl` wrote.

    **Returns:** what was proved, a `Verdict`.

    **Raises:** `Refused`, a `ValueError`, with the reason, where anything does not hold.
    """
    header, arrays = read(path)
    before, ctx.prec = ctx.prec, PRECISION
    try:
        if header.get("format") == RADIUS:
            radii = Radii(header, arrays)
            radii.check()
            return Verdict((*radii.sentences(), f"SHA-256 of what is proved: {seal(header, arrays)}"), radii.boxes)
        proof = Proof(header, arrays)
        if not proof.claims or not set(proof.claims) <= set(CLAIMS):
            raise Refused(f"claims: expected some of {tuple(CLAIMS)}, got {proof.claims}")
        for name in proof.claims:
            CLAIMS[name](proof)
        return Verdict(tuple(sentences(proof)), proof.boxes)
    except (KeyError, TypeError, IndexError, AttributeError, ValueError, ArithmeticError) as error:
        if isinstance(error, Refused):
            raise
        raise Refused(f"the file is no proof: {type(error).__name__}: {error}") from error
    finally:
        ctx.prec = before


def sentences(proof: Proof) -> list[str]:
    """What the claims mean, and what follows from them together."""
    have = set(proof.claims)
    forever = "all times" if proof.steady else f"all times in [{proof.time[0]:g}, {proof.time[1]:g}]"
    domain = f"the box H = {shown(proof.lower, proof.upper)}"
    if proof.ball is not None:
        center = ", ".join(f"{float(c)!r}" for c in proof.ball[0])
        domain = f"the ball H of radius {float(proof.ball[1])!r} about ({center})"
    levels = [f"V >= {proof.least!r}"] * (proof.least is not None) + [f"V <= {proof.most!r}"] * (proof.most is not None)
    region = domain + (f" where {' and '.join(levels)}" if levels else "")
    sign = "<" if proof.strict else "<="
    during = "" if proof.steady else f" at times in [{proof.time[0]!r}, {proof.time[1]!r}]"
    within = "" if proof.u is None else f", for every context within {proof.radius!r} of the nominal one in every entry"
    but = " except at the equilibrium" if proof.strict and proof.rest is not None else ""
    out = []
    if "decrease" in have:
        what = "the rate that the certificate is about" if proof.own_rate else "dV/dt"
        ends = f", one of the entries {proof.faces} at an end" if proof.faces else ""
        out.append(f"{what} {sign} comparison(t, V) for {forever} and all states of {region}{ends}{but}")
    if proof.tube is not None:
        out = [f"{sentence}, inside of a tube of {len(proof.tube)} boxes in time" for sentence in out]
    if "stays" in have:
        out.append(f"every trajectory that starts in {shown(*proof.start)} at t = {proof.time[0]!r} stays in that tube")
    if "robust" in have:
        out.append(
            f"from {shown(*proof.start)} at t = {proof.time[0]!r}, for every context within {proof.radius!r} of the one that was "
            f"proved about, in every entry: V, with that context, is at most {proof.final!r} at t = {proof.time[1]!r}"
        )
    if "definite" in have:
        out.append(f"V is 0 at the equilibrium {proof.rest} and above 0 elsewhere in H")
    if "invariant" in have:
        out.append(f"no trajectory that starts in H leaves H{during}{within}")
    if {"decrease", "enclosed"} <= have and proof.least is None and proof.tube is None:
        out.append(f"no trajectory that starts in H where V <= {proof.most!r} leaves that set{during}")
        if attracts(proof):
            out.append("every trajectory that starts there tends to the equilibrium")
    return out
