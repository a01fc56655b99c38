"""What a proof has to show, and what follows from it."""

import hashlib
import itertools
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flint import arb, ctx

from ._program import Graph, Program, Refused, read_program
from ._rules import Form, box
from ._tree import leaves

FORMAT = "lyapunov proof 1"
# Rules of leaves: the inequality itself; V above the upper level; V below the lower one; the second derivatives at the equilibrium;
# no point of the ball.
HOLDS, ABOVE, BELOW, REST, OUTSIDE = 1, 2, 3, 4, 5
# Bits of Arb's numbers.
PRECISION = 96


class Verdict(NamedTuple):
    """What was proved, a sentence each; and how many boxes were looked at."""

    sentences: tuple[str, ...]
    boxes: int

    def __str__(self) -> str:
        return "\n".join(["proved, in real arithmetic:", *(f"- {s}" for s in self.sentences), f"({self.boxes} boxes)"])


class Proof:
    """A proof as it is written in a file.

    **Arguments:**

    - `header`: what is claimed, and the programs of the system and of V.
    - `arrays`: numbers by name.
    """

    def __init__(self, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]):
        self.arrays, self.boxes = arrays, 0
        if header.get("format") != FORMAT:
            raise Refused(f"format: expected {FORMAT!r}, got {header.get('format')!r}")
        self.lower, self.upper = ([float(v) for v in header["domain"][side]] for side in ("lower", "upper"))
        n = len(self.lower)
        if (
            n < 1
            or len(self.upper) != n
            or not all(-np.inf < a < b < np.inf for a, b in zip(self.lower, self.upper, strict=True))
        ):
            raise Refused("domain: expected finite lower < upper, as many as there are states")
        self.time = [float(t) for t in header["time"]]
        if len(self.time) != 2 or not 0 <= self.time[0] <= self.time[1] < np.inf:
            raise Refused("time: expected 0 <= first <= last")
        self.least, self.most = (None if v is None else float(v) for v in header["level"])
        if any(v is not None and not np.isfinite(v) for v in (self.least, self.most)):
            raise Refused("level: expected finite numbers or none")
        self.rest = None if header["equilibrium"] is None else [float(v) for v in header["equilibrium"]]
        if self.rest is not None and not all(
            a < v < b for a, v, b in zip(self.lower, self.rest, self.upper, strict=True)
        ):
            raise Refused("equilibrium: expected a state inside of the domain")
        ball = header["ball"]
        self.ball = None if ball is None else ([arb(float(v)) for v in ball["center"]], arb(float(ball["radius"])))
        if self.ball is not None:
            ends = zip(self.ball[0], self.lower, self.upper, strict=True)
            if not all(bool(a <= c - self.ball[1]) and bool(c + self.ball[1] <= b) for c, a, b in ends):
                raise Refused("ball: it is not inside of the box of the domain")
        self.strict = bool(header["strict"])
        self.claims = [str(name) for name in header["claims"]]
        programs = {
            name: read_program(name, header["programs"][name], arrays) for name in ("field", "value", "comparison")
        }
        g = self.graph = Graph()
        self.t, self.state, self.v = g.input(1), g.input(n), g.input(1)
        self.f = g.inline(programs["field"], [self.t, self.state])
        self.potential = g.inline(programs["value"], [self.t, self.state])
        if g.size(self.f) != n or g.size(self.potential) != 1:
            raise Refused("programs: expected a field of the size of the state and a V of one number")
        rate = self._derivative(self.potential, {self.t: g.constant([1.0]), self.state: self.f})
        self.allowed = g.inline(programs["comparison"], [self.t, self.v])
        self.excess = g.combine((1, rate), (-1, g.inline(programs["comparison"], [self.t, self.potential])))
        self.steady = not any(_uses(p, 0) for p in programs.values())

    def _derivative(self, of: int, directions: Mapping[int, int]) -> int:
        found = self.graph.derivative(of, directions)
        return self.graph.constant([0.0] * self.graph.size(of)) if found is None else found

    def at(self, low: Sequence[float], high: Sequence[float]) -> dict[int, Form]:
        """Times and states of a box."""
        fresh = itertools.count(1)
        return {self.t: box(low[:1], high[:1], fresh), self.state: box(low[1:], high[1:], fresh)}

    def values(self, wanted: Sequence[int], low: Sequence[float], high: Sequence[float]) -> list[Form]:
        self.boxes += 1
        return self.graph.values(wanted, self.at(low, high))

    def whole(self) -> tuple[list[float], list[float]]:
        """The box of all times and states."""
        return [self.time[0], *self.lower], [self.time[1], *self.upper]

    def decides(self, name: str, rule: int, low: list[float], high: list[float]) -> bool:
        """Whether a rule is right for a leaf of a claim."""
        claim, *face = name.split(".")
        if claim == "decrease":
            return self.settles(rule, low, high)
        if claim == "definite":
            return self.positive(rule, low, high)
        if rule != HOLDS:
            return False
        settles = self.outside if claim == "enclosed" else self.inward
        return settles(int(face[0]), -1 if face[1] == "lower" else 1, low, high)

    def cover(self, name: str, low: Sequence[float], high: Sequence[float]) -> None:
        """Whether all leaves of a tree over a box are right."""
        for leaf in leaves(name, self.arrays, low, high):
            if not self.decides(name, leaf.rule, leaf.low, leaf.high):
                raise Refused(f"{name}: rule {leaf.rule} does not hold in the box {_shown(leaf.low, leaf.high)}")

    def decrease(self) -> None:
        """dV/dt <= comparison(t, V), or <, for all times and all states of the domain between the levels."""
        self.cover("decrease", *self.whole())

    def settles(self, rule: int, low: Sequence[float], high: Sequence[float]) -> bool:
        """Whether a leaf of `decrease` is right."""
        if rule == HOLDS:
            (r,) = self.values([self.excess], low, high)
            return bool(r.high[0] < 0) or (not self.strict and bool(r.high[0] <= 0))
        if rule == ABOVE and self.most is not None:
            (v,) = self.values([self.potential], low, high)
            return bool(v.low[0] > self.most)
        if rule == BELOW and self.least is not None:
            (v,) = self.values([self.potential], low, high)
            return bool(v.high[0] < self.least)
        if rule == OUTSIDE:
            return self.away(low, high)
        return rule == REST and self._bent(self.excess, -1, low, high)

    def away(self, low: Sequence[float], high: Sequence[float]) -> bool:
        """Whether a box has no point of the ball."""
        if self.ball is None:
            return False
        center, radius = self.ball
        total = arb(0)
        for c, a, b in zip(center, low[1:], high[1:], strict=True):
            total = total + (arb(a) - c).max(c - arb(b)).max(arb(0)) ** 2
        return bool(total > radius**2)

    def _bent(self, of: int, sign: int, low: Sequence[float], high: Sequence[float]) -> bool:
        """Whether a function is 0 with its first derivatives at the equilibrium, which is in the box, and its second
        derivatives in all of the box are definite: by Taylor's formula it has that sign there, and is 0 at the
        equilibrium only."""
        n = len(self.lower)
        if self.rest is None or not all(a <= v <= b for a, v, b in zip(low[1:], self.rest, high[1:], strict=True)):
            return False
        g, units = self.graph, np.eye(n).tolist()
        first = [self._derivative(of, {self.state: g.constant(u)}) for u in units]
        there = self.values([of, *first], [low[0], *self.rest], [high[0], *self.rest])
        if not all(bool(f.low[0] == 0) and bool(f.high[0] == 0) for f in there):
            return False
        pairs = [(i, j) for i in range(n) for j in range(i + 1)]
        second = [self._derivative(first[i], {self.state: g.constant(units[j])}) for i, j in pairs]
        table = [[arb(0)] * n for _ in range(n)]
        for (i, j), form in zip(pairs, self.values(second, low, high), strict=True):
            table[i][j] = table[j][i] = sign * form.ball(0)
        return definite(table)

    def definite(self) -> None:
        """V is 0 at the equilibrium and above 0 elsewhere in the domain."""
        self.cover("definite", *self.whole())

    def positive(self, rule: int, low: Sequence[float], high: Sequence[float]) -> bool:
        """Whether a leaf of `definite` is right."""
        if rule == HOLDS:
            (v,) = self.values([self.potential], low, high)
            return bool(v.low[0] > 0)
        if rule == OUTSIDE:
            return self.away(low, high)
        return rule == REST and self._bent(self.potential, 1, low, high)

    def _faces(self, name: str) -> None:
        if self.ball is not None:
            raise Refused(f"{name}: the domain is a ball and has no faces")
        low, high = self.whole()
        for axis in range(len(self.lower)):
            for side, end in (("lower", self.lower[axis]), ("upper", self.upper[axis])):
                least, most = list(low), list(high)
                least[1 + axis] = most[1 + axis] = end
                self.cover(f"{name}.{axis}.{side}", least, most)

    def enclosed(self) -> None:
        """V is above the upper level on the boundary of the domain, and may not grow there."""
        if self.most is None:
            raise Refused("enclosed: there is no upper level")
        self._faces("enclosed")
        self.boxes += 1
        fresh = itertools.count(1)
        times, level = box(self.time[:1], self.time[1:], fresh), box([self.most], [self.most], fresh)
        (most,) = self.graph.values([self.allowed], {self.t: times, self.v: level})
        if not most.high[0] <= 0:
            raise Refused("enclosed: comparison(t, v) may be above 0 at the upper level")

    def outside(self, axis: int, side: int, low: list[float], high: list[float]) -> bool:
        """Whether V is above the upper level in a box of a face."""
        (v,) = self.values([self.potential], low, high)
        return self.most is not None and bool(v.low[0] > self.most)

    def invariant(self) -> None:
        """The field does not point outward on the boundary of the domain."""
        self._faces("invariant")

    def inward(self, axis: int, side: int, low: list[float], high: list[float]) -> bool:
        """Whether the field does not point outward in a box of a face."""
        (f,) = self.values([self.graph.pick(axis, self.f)], low, high)
        return bool(side * f.ball(0) <= 0)

    def sentences(self) -> list[str]:
        """What the claims mean, and what follows from them together."""
        have = set(self.claims)
        forever = "all times" if self.steady else f"all times in [{self.time[0]:g}, {self.time[1]:g}]"
        domain = f"the box H = {_shown(self.lower, self.upper)}"
        if self.ball is not None:
            center = ", ".join(f"{float(c)!r}" for c in self.ball[0])
            domain = f"the ball H of radius {float(self.ball[1])!r} about ({center})"
        levels = [f"V >= {self.least!r}"] * (self.least is not None) + [f"V <= {self.most!r}"] * (self.most is not None)
        region = domain + (f" where {' and '.join(levels)}" if levels else "")
        sign = "<" if self.strict else "<="
        but = " except at the equilibrium" if self.strict and self.rest is not None else ""
        out = []
        if "decrease" in have:
            out.append(f"dV/dt {sign} comparison(t, V) for {forever} and all states of {region}{but}")
        if "definite" in have:
            out.append(f"V is 0 at the equilibrium {self.rest} and above 0 elsewhere in H")
        if "invariant" in have:
            out.append("no trajectory that starts in H leaves H")
        if {"decrease", "enclosed"} <= have and self.least is None:
            out.append(f"no trajectory that starts in H where V <= {self.most!r} leaves that set")
            if "definite" in have and self.strict and self.steady:
                out.append("every trajectory that starts there tends to the equilibrium")
        return out


CLAIMS = ("decrease", "definite", "enclosed", "invariant")


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
        proof = Proof(header, arrays)
        if not proof.claims or not set(proof.claims) <= set(CLAIMS):
            raise Refused(f"claims: expected some of {CLAIMS}, got {proof.claims}")
        for name in proof.claims:
            getattr(proof, name)()
        return Verdict(tuple(proof.sentences()), proof.boxes)
    except (KeyError, TypeError, IndexError, AttributeError, ValueError, ArithmeticError) as error:
        if isinstance(error, Refused):
            raise
        raise Refused(f"the file is no proof: {type(error).__name__}: {error}") from error
    finally:
        ctx.prec = before


def read(path: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What is in a file; refused where it is not what was written."""
    try:
        with np.load(Path(path), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        header = json.loads(bytes(arrays.pop("header")).decode())
        sealed = header.pop("sha256")
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
        raise Refused(f"{path}: expected a proof, got something that cannot be read ({error})") from error
    if sealed != seal(header, arrays):
        raise Refused(f"{path}: it was changed after it was written (its SHA-256 is another)")
    return header, arrays


def seal(header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of all that a proof says."""
    found = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        found.update(json.dumps([name, array.dtype.str, list(array.shape)]).encode())
        found.update(array.tobytes())
    return found.hexdigest()


def definite(table: list[list[arb]]) -> bool:
    """Whether all symmetric matrices between are positive definite: by Gershgorin's disks, after a congruence that makes the middle
    one about the identity (any invertible one is right, and none other passes)."""
    n = len(table)
    middle = np.array([[float(v.mid()) for v in row] for row in table])
    try:
        basis = np.linalg.inv(np.linalg.cholesky(middle))
    except np.linalg.LinAlgError:
        return False
    moved = [[arb(0)] * n for _ in range(n)]
    for i in range(n):
        for j in range(n):
            for k in range(n):
                for m in range(n):
                    moved[i][j] = moved[i][j] + arb(basis[i, k]) * table[k][m] * arb(basis[j, m])
    return all(bool(moved[i][i] > sum((abs(moved[i][j]) for j in range(n) if j != i), arb(0))) for i in range(n))


def _uses(program: Program, which: int) -> bool:
    """Whether the value of a program depends on one of its inputs."""
    inputs = [i for i, op in enumerate(program.operations) if op.name == "input"]
    seen, waiting = set(), [program.output]
    while waiting:
        i = waiting.pop()
        if i not in seen:
            seen.add(i)
            waiting += program.operations[i].args
    return inputs[which] in seen


def _shown(low: Sequence[float], high: Sequence[float]) -> str:
    return " x ".join(f"[{a!r}, {b!r}]" for a, b in zip(low, high, strict=True))
