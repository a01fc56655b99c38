"""Checks the proof in a file, and says what was proved."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from flint import ctx

from ._file import fingerprint, read
from ._flow import attracts, robust, stays
from ._limits import Meter, Refused
from ._program import Program, _stored
from ._proof import PRECISION, Proof, shown
from ._radius import FORMAT as RADIUS, Radii

VERSION = "2"
TIED = "that a system is these programs: a file is tied to one by this hash alone, and `matches` of lyapunov_dsl compares them"
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
    - `programs`: the programs that the sentences are about, each with its size.
    - `sha256`: the hash of these programs and of their numbers.
    - `given`: what the sentences rest on and is not shown here.
    """

    sentences: tuple[str, ...]
    boxes: int
    programs: tuple[str, ...]
    sha256: str
    given: tuple[str, ...]

    def __str__(self) -> str:
        lines = ["proved, in real arithmetic:", *(f"- {s}" for s in self.sentences)]
        lines += ["about the programs in the file:", *(f"- {p}" for p in self.programs), f"- SHA-256 {self.sha256}"]
        lines += ["given, and not shown here:", *(f"- {g}" for g in self.given)]
        return "\n".join([*lines, f"({self.boxes} boxes, lyapunov_checker {VERSION}, {PRECISION} bits)"])


def check(path: Any, *, seconds: float | None = None, progress: bool = False) -> Verdict:
    """Checks the proof in a file.

    **Arguments:**

    - `path`: a file that `lyapunov_dsl` wrote, or its bytes.
    - `seconds`: how long it may take; without a limit if it is left out.
    - `progress`: whether to say on the standard error, every few seconds, how far it is.

    **Returns:** what was proved, a `Verdict`.

    **Raises:** `Refused`, a `ValueError`, with the reason, where anything does not hold, whatever the file is.
    """
    before, ctx.prec = ctx.prec, PRECISION
    try:
        header, arrays = read(path)
        meter = Meter(seconds, progress)
        if header.get("format") == RADIUS:
            return _radii(header, arrays, meter)
        proof = Proof(header, arrays, meter)
        meter.total = sum(len(v) for name, v in arrays.items() if name.endswith(".rule") and v.ndim == 1)
        if not set(proof.claims) <= set(CLAIMS):
            raise Refused(f"claims: expected some of {tuple(CLAIMS)}, got others")
        for name in proof.claims:
            CLAIMS[name](proof)
        said = tuple(sentences(proof))
        about = tuple(_described(name, program) for name, program in proof.programs.items())
        return Verdict(said, proof.meter.boxes, about, identity(header, arrays), tuple(_given(proof)))
    except Exception as error:
        # Whatever goes wrong, nothing was shown. What is expected to go wrong says so itself; the rest fails closed.
        if isinstance(error, Refused):
            raise Refused(_line(str(error))) from error
        raise Refused(_line(f"the file is no proof ({type(error).__name__}: {error})")) from error
    finally:
        ctx.prec = before


def _radii(header: Any, arrays: Any, meter: Meter) -> Verdict:
    """What a file of certified radii shows."""
    radii = Radii(header, arrays, meter)
    meter.total = len(radii.examples)
    radii.check()
    about = tuple(_described(name, program) for name, program in radii.programs.items())
    given = (TIED, *radii.given())
    return Verdict(tuple(radii.sentences()), meter.boxes, about, identity(header, arrays), given)


def _line(text: str) -> str:
    """A text from a file as one line that may be printed."""
    return "".join(c if c.isprintable() else "?" for c in text)[:500]


def identity(header: Mapping[str, Any], arrays: Mapping[str, Any]) -> str:
    """Hashes the programs that a proof is about, and the context where it may vary: what the system is, and nothing else that
    the file says.

    **Arguments:**

    - `header`, `arrays`: what is in a file.

    **Returns:** a SHA-256 in hexadecimal, as the verdict prints it.
    """
    around = header.get("perturbation")
    parts = {name: fingerprint(program, arrays) for name, program in header["programs"].items()}
    text = json.dumps([parts, None if around is None else around["center"]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _described(name: str, program: Program) -> str:
    numbers = sum(_stored(op.data) for op in program.operations)
    inputs = ", ".join(str(op.size) for op in program.operations if op.name == "input")
    size = program.operations[program.output].size
    return f"{name}: {len(program.operations)} operations, {numbers} numbers; of vectors of sizes {inputs}, to {size}"


def _given(proof: Proof) -> list[str]:
    """What the sentences rest on and no file can show."""
    out = [TIED]
    if proof.own_rate:
        out.append(
            "that the program `rate` is the rate of the certificate: it is not derived from the field and V here"
        )
    if proof.u is not None:
        out.append("that V and the comparison do not depend on the context, which is constant along a trajectory")
    return out


def sentences(proof: Proof) -> list[str]:
    """What the claims mean, and what follows from them together. All numbers are exact: `repr` of a float is read back as it."""
    have = set(proof.claims)
    always = proof.steady and proof.tube is None
    span = f"[{proof.time[0]!r}, {proof.time[1]!r}]"
    forever = "all times" if always else f"all times in {span}"
    during = "" if proof.steady else f" at times in {span}"
    domain = f"the box H = {shown(proof.lower, proof.upper)}"
    if proof.ball is not None:
        domain = f"the ball H of radius {proof.ball[1]!r} about ({', '.join(map(repr, proof.ball[0]))})"
    levels = [f"V >= {proof.least!r}"] * (proof.least is not None) + [f"V <= {proof.most!r}"] * (proof.most is not None)
    region = domain + (f" where {' and '.join(levels)}" if levels else "")
    sign = "<" if proof.strict else "<="
    within = "" if proof.u is None else f", for every context within {proof.radius!r} of the nominal one in every entry"
    nominal = "" if proof.u is None else ", with the nominal context"
    but = " except at the equilibrium" if proof.strict and proof.rest is not None else ""
    # The first sentence says what H is.
    where = "H" if "decrease" in have else domain
    tube = ""
    if proof.tube is not None:
        tube = f"a tube of {len(proof.tube)} boxes in time over {span}"
    out = []
    if "decrease" in have:
        what = "the rate that the certificate is about" if proof.own_rate else "dV/dt"
        ends = f", one of the entries {proof.faces} at an end" if proof.faces else ""
        inside = f", inside of {tube}" if tube else ""
        out.append(
            f"{what} {sign} comparison(t, V) for {forever} and all states of {region}{ends}{but}{inside}{nominal}"
            + ("" if proof.holds_somewhere else "; no state is known to be one of them: nothing is said")
        )
    if "stays" in have:
        out.append(
            f"every trajectory that starts in {shown(*proof.start)} at t = {proof.time[0]!r} stays in that tube"
            f"{'' if 'decrease' in have else f', {tube}'}{nominal}"
        )
    if "robust" in have:
        out.append(
            f"from {shown(*proof.start)} at t = {proof.time[0]!r}, for every context within {proof.radius!r} of the one that was "
            f"proved about, in every entry: V, with that context, is at most {proof.final!r} at t = {proof.time[1]!r}"
        )
    if "definite" in have:
        out.append(f"V is 0 at the equilibrium {proof.rest} and above 0 elsewhere in {where}{during}")
    if "enclosed" in have:
        out.append(f"V > {proof.most!r} on the boundary of {where}{during}")
    if "invariant" in have:
        out.append(f"no trajectory that starts in {where} leaves H{during}{within}")
    if {"decrease", "enclosed"} <= have and proof.least is None and proof.tube is None:
        out.append(f"no trajectory that starts in H where V <= {proof.most!r} leaves that set{during}{nominal}")
        if attracts(proof):
            out.append("every trajectory that starts there tends to the equilibrium")
    return out
