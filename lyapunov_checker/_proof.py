"""A proof as it is written in a file: what is claimed, and the rules by which boxes of it are decided."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flint import arb

from ._header import read_header
from ._limits import Meter, Refused, record
from ._program import Graph, Program, read_program
from ._rules import ZERO, Form, _least, box
from ._tree import leaves

# Rules of leaves: the inequality itself; V above the upper level; V below the lower one; the second derivatives at the equilibrium;
# no point of the ball.
HOLDS, ABOVE, BELOW, REST, OUTSIDE = 1, 2, 3, 4, 5
# Bits of Arb's numbers.
PRECISION = 96


class Proof:
    """A proof as it is written in a file.

    **Arguments:**

    - `header`: what is claimed, and the programs of the system and of V.
    - `arrays`: numbers by name.
    - `meter`: what it may cost.
    """

    def __init__(self, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray], meter: Meter | None = None):
        self.arrays = arrays
        self.meter = Meter() if meter is None else meter
        # V at the last time at most, once that is shown.
        self.final = math.inf
        # Whether a leaf of `decrease` is about states between the levels.
        self.holds_somewhere = False
        self._taylor_of: dict[int, tuple[list[int], list[int]]] = {}
        self._slopes_of: dict[tuple[int, int], list[int]] = {}
        said = read_header(header)
        self.claims, self.lower, self.upper, self.time = said.claims, said.lower, said.upper, said.time
        self.least, self.most, self.rest, self.start = said.least, said.most, said.rest, said.start
        self.tube, self.faces, self.strict = said.tube, said.faces, said.strict
        self.radius, self.gain, self.slope, self.ball = said.radius, said.gain, said.slope, said.ball
        self.context = [] if said.context is None else said.context
        n = len(self.lower)
        parts = record("programs", header["programs"], ("field", "value", "comparison"), ("rate",))
        self.own_rate = "rate" in parts
        names = ["field", "value", "comparison", *(["rate"] if self.own_rate else [])]
        self.programs = {name: read_program(name, parts[name], arrays, self.meter) for name in names}
        about = {"decrease"} if self.faces else {"decrease", "definite", "invariant"}
        if (self.own_rate or self.faces) and not set(self.claims) <= about:
            raise Refused(f"claims: expected some of {sorted(about)} for a rate of its own or for faces, got others")
        g = self.graph = Graph(self.meter)
        self.t, self.state, self.v = g.input(1), g.input(n), g.input(1)
        more, here = ([g.input(len(self.context))], [g.constant(self.context)]) if self.context else ([], [])
        self.u = more[0] if more else None
        self.f = g.inline(self.programs["field"], [self.t, self.state, *here])
        # The same for every context within the radius.
        self.perturbed = g.inline(self.programs["field"], [self.t, self.state, *more])
        self.potential = g.inline(self.programs["value"], [self.t, self.state])
        self.allowed = g.inline(self.programs["comparison"], [self.t, self.v])
        if [g.size(v) for v in (self.f, self.perturbed, self.potential, self.allowed)] != [n, n, 1, 1]:
            raise Refused("programs: expected a field of the size of the state, and one number for V and comparison")
        rate = self.derivative(self.potential, {self.t: g.constant([1.0]), self.state: self.f})
        if self.own_rate:
            rate = g.inline(self.programs["rate"], [self.t, self.state])
            if g.size(rate) != 1:
                raise Refused("programs: expected one number for the rate")
        self.excess = g.combine((1, rate), (-1, g.inline(self.programs["comparison"], [self.t, self.potential])))
        self.steady = not any(_uses(p, 0) for p in self.programs.values())

    def pieces(self, name: str) -> list[tuple[str, list[float], list[float]]]:
        """The boxes of (t, state) that a claim is about, by the name of their trees."""
        if self.faces:
            sides = [self.face(*self.whole(), axis, side) for axis in self.faces for side in (self.lower, self.upper)]
            return [(f"{name}.{i}", low, high) for i, (low, high) in enumerate(sides)]
        if self.tube is None:
            low, high = self.whole()
            return [(name, low, high)]
        n = len(self.lower)
        ends = [([r[0], *r[2 : 2 + n]], [r[1], *r[2 + n :]]) for r in self.tube]
        return [(f"{name}.{i}", low, high) for i, (low, high) in enumerate(ends)]

    def derivative(self, of: int, directions: Mapping[int, int]) -> int:
        found = self.graph.derivative(of, directions)
        return self.graph.constant([0.0] * self.graph.size(of)) if found is None else found

    def at(self, low: Sequence[float], high: Sequence[float]) -> dict[int, Form]:
        """Times and states of a box."""
        fresh = itertools.count(1)
        found = {self.t: box(low[:1], high[:1], fresh), self.state: box(low[1:], high[1:], fresh)}
        if self.u is not None:
            least, most = ([outward(arb(c) + s * arb(self.radius), s) for c in self.context] for s in (-1, 1))
            found[self.u] = box(least, most, fresh)
        return found

    def values(
        self, wanted: Sequence[int], low: Sequence[float], high: Sequence[float], symbols: int | None = None
    ) -> list[Form]:
        return self.graph.values(wanted, self.at(low, high), symbols)

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
        if claim in ("gain", "slope"):
            return self.steep(claim, rule, low, high)
        if rule != HOLDS:
            return False
        settles = self.outside if claim == "enclosed" else self.inward
        return settles(int(face[0]), -1 if face[1] == "lower" else 1, low, high)

    def cover(self, name: str, low: Sequence[float], high: Sequence[float]) -> None:
        """Whether all leaves of a tree over a box are right."""
        for leaf in leaves(name, self.arrays, low, high):
            self.meter.boxes += 1
            self.meter.tick()
            if not self.decides(name, leaf.rule, leaf.low, leaf.high):
                raise Refused(f"{name}: rule {leaf.rule} does not hold in the box {shown(leaf.low, leaf.high)}")

    def decrease(self) -> None:
        """dV/dt <= comparison(t, V), or <, for all times and all states of the domain between the levels."""
        for name, low, high in self.pieces("decrease"):
            self.cover(name, low, high)

    def settles(self, rule: int, low: Sequence[float], high: Sequence[float]) -> bool:
        """Whether a leaf of `decrease` is right."""
        if rule == HOLDS:
            r, *defined = self.values([self.excess, *self._defined()], low, high)
            if not _finite(defined):
                return False
            self.holds_somewhere = True
            return bool(r.high[0] < 0) or (not self.strict and bool(r.high[0] <= 0))
        if rule == ABOVE and self.most is not None:
            (v,) = self.values([self.potential], low, high)
            return bool(v.low[0] > self.most)
        if rule == BELOW and self.least is not None:
            (v,) = self.values([self.potential], low, high)
            return bool(v.high[0] < self.least)
        if rule == OUTSIDE:
            return self.away(low, high)
        if rule != REST or not self._bent(self.excess, -1, low, high):
            return False
        self.holds_somewhere = True
        # Second derivatives have many operations; V and the field are looked at by themselves.
        return _finite(self.values(self._defined(), low, high))

    def _defined(self) -> list[int]:
        """What has to be a number wherever dV/dt is spoken of: V, and the field. The derivative of log s, for one, is defined
        where log s is not; and a rate may not depend on an entry of the field that is not defined."""
        return [self.potential] if self.own_rate else [self.potential, self.f]

    def away(self, low: Sequence[float], high: Sequence[float]) -> bool:
        """Whether a box has no point of the ball."""
        if self.ball is None:
            return False
        center, radius = self.ball
        total = ZERO
        for c, a, b in zip(center, low[1:], high[1:], strict=True):
            total = total + (arb(a) - arb(c)).max(arb(c) - arb(b)).max(ZERO) ** 2
        return bool(total > arb(radius) ** 2)

    def at_rest(self, low: Sequence[float], high: Sequence[float]) -> bool:
        """Whether the equilibrium is in a box."""
        return self.rest is not None and all(a <= v <= b for a, v, b in zip(low[1:], self.rest, high[1:], strict=True))

    def _bent(self, of: int, sign: int, low: Sequence[float], high: Sequence[float]) -> bool:
        """Whether a function is 0 with its first derivatives at the equilibrium, which is in the box, and its second
        derivatives in all of the box are definite: by Taylor's formula it has that sign there, and is 0 at the
        equilibrium only."""
        if self.rest is None or not self.at_rest(low, high):
            return False
        n = len(self.lower)
        first, second = self._taylor(of)
        # Second derivatives have many operations, and one symbol for each entry of each would take most of the time.
        symbols = 1 + n + len(self.context)
        there = self.values([of, *first], [low[0], *self.rest], [high[0], *self.rest], symbols)
        if not all(bool(f.low[0] == 0) and bool(f.high[0] == 0) for f in there):
            return False
        pairs = [(i, j) for i in range(n) for j in range(i + 1)]
        table = [[arb(0)] * n for _ in range(n)]
        for (i, j), form in zip(pairs, self.values(second, low, high, symbols), strict=True):
            table[i][j] = table[j][i] = sign * form.ball(0)
        return definite(table)

    def _taylor(self, of: int) -> tuple[list[int], list[int]]:
        """The first derivatives of a number with the state, and the second ones (i, j), j <= i."""
        if of not in self._taylor_of:
            units = self._units(self.state)
            first = [self.derivative(of, {self.state: u}) for u in units]
            second = [self.derivative(first[i], {self.state: u}) for i in range(len(first)) for u in units[: i + 1]]
            self._taylor_of[of] = first, second
        return self._taylor_of[of]

    def _units(self, of: int) -> list[int]:
        """The unit vectors of an input."""
        n = self.graph.size(of)
        return [self.graph.constant([float(i == j) for j in range(n)]) for i in range(n)]

    def _slopes(self, of: int, by: int) -> list[int]:
        """The derivative of a value along every entry of an input; made once."""
        if (of, by) not in self._slopes_of:
            self._slopes_of[of, by] = [self.derivative(of, {by: u}) for u in self._units(by)]
        return self._slopes_of[of, by]

    def definite(self) -> None:
        """V is 0 at the equilibrium and above 0 elsewhere in the domain."""
        if self.rest is None or not self.vanishes(self.potential):
            raise Refused("definite: V is not 0 at the equilibrium, or that is not in the domain")
        self.cover("definite", *self.whole())

    def vanishes(self, of: int) -> bool:
        """Whether a value is exactly 0 at the equilibrium, at all times."""
        if self.rest is None:
            return False
        (found,) = self.values([of], [self.time[0], *self.rest], [self.time[1], *self.rest])
        return all(bool(a == 0) and bool(b == 0) for a, b in zip(found.low, found.high, strict=True))

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
            for side, ends in (("lower", self.lower), ("upper", self.upper)):
                self.cover(f"{name}.{axis}.{side}", *self.face(low, high, axis, ends))

    @staticmethod
    def face(
        low: Sequence[float], high: Sequence[float], axis: int, ends: Sequence[float]
    ) -> tuple[list[float], list[float]]:
        """A box of (t, state) with one state at an end."""
        low, high = list(low), list(high)
        low[1 + axis] = high[1 + axis] = ends[axis]
        return low, high

    def enclosed(self) -> None:
        """V is above the upper level on the boundary of the domain, and may not grow there."""
        if self.most is None:
            raise Refused("enclosed: there is no upper level")
        self._faces("enclosed")
        (most,) = self.scalar([self.allowed], self.time[0], self.time[1], self.most, self.most)
        # V has to fall where it is at the level: outside nothing is known of it.
        falls = bool(most.high[0] < 0) or (self.strict and bool(most.high[0] <= 0))
        if falls and self.rest is not None:
            (v,) = self.values([self.potential], [self.time[0], *self.rest], [self.time[1], *self.rest])
            falls = bool(most.high[0] < 0) or bool(v.high[0] < self.most)
        if not falls:
            raise Refused("enclosed: V may rise where it is at the upper level")

    def outside(self, axis: int, side: int, low: list[float], high: list[float]) -> bool:
        """Whether V is above the upper level in a box of a face."""
        (v,) = self.values([self.potential], low, high)
        return self.most is not None and bool(v.low[0] > self.most)

    def invariant(self) -> None:
        """The field does not point outward on the boundary of the domain."""
        self._faces("invariant")

    def inward(self, axis: int, side: int, low: list[float], high: list[float]) -> bool:
        """Whether the field does not point outward in a box of a face, whatever the context."""
        f, *slopes = self.values([self.perturbed, *self._slopes(self.perturbed, self.state)], low, high)
        # Without a Lipschitz condition a trajectory may leave where the field is 0.
        return bool(side * f.ball(axis) <= 0) and _finite([f, *slopes])

    def steepness(self, claim: str, low: Sequence[float], high: Sequence[float]) -> arb:
        """In a box, the ∞-norm of the derivative of the field with the context, or the 1-norm of that of V with the state."""
        of, by = (self.perturbed, self.u) if claim == "gain" else (self.potential, self.state)
        if by is None:
            return ZERO
        columns = self.values(self._slopes(of, by), low, high)
        rows = [sum((abs(c.ball(i)) for c in columns), ZERO) for i in range(self.graph.size(of))]
        return -_least([-r for r in rows])

    def steep(self, claim: str, rule: int, low: Sequence[float], high: Sequence[float]) -> bool:
        """Whether a leaf of `gain` or `slope` is right."""
        if rule == ABOVE and self.most is not None:
            (v,) = self.values([self.potential], low, high)
            return bool(v.low[0] > self.most)
        return rule == HOLDS and bool(
            self.steepness(claim, low, high) <= (self.gain if claim == "gain" else self.slope)
        )

    def scalar(self, wanted: Sequence[int], first: float, last: float, low: float, high: float) -> list[Form]:
        """The values of operations on t and a level v."""
        fresh = itertools.count(1)
        return self.graph.values(wanted, {self.t: box([first], [last], fresh), self.v: box([low], [high], fresh)})


def definite(table: list[list[arb]]) -> bool:
    """Whether all symmetric matrices between are positive definite: by Gershgorin's disks, after a congruence that makes the middle
    one about the identity (any invertible one is right, and none other passes)."""
    n = len(table)
    middle = np.array([[float(v.mid()) for v in row] for row in table])
    try:
        with np.errstate(all="ignore"):
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


def _finite(forms: Sequence[Form]) -> bool:
    """Whether all entries are known to be finite numbers."""
    return all(bool(v.is_finite()) for form in forms for v in (*form.low, *form.high))


def outward(v: arb, side: int) -> float:
    """A float beyond a number."""
    return math.nextafter(float(v), side * math.inf)


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


def shown(low: Sequence[float], high: Sequence[float]) -> str:
    return " x ".join(f"[{a!r}, {b!r}]" for a, b in zip(low, high, strict=True))
