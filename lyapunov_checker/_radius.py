"""Certified radii: that a class is the same for all inputs near one, by steps that stay near the path of a center.

With Φ_n(s, c) the step of the file, s_n the centers that it gives and e_n the distances: all states of inputs x' with
|x' - x| <= ε are within e_n of s_n, where

- start(x') is within |start(x) - s_0| + L ε <= e_0, and context(x') within |context(x) - c| + L ε <= ρ of the center c;
- Φ_n(s', c') is within |Φ_n(s_n, c) - s_{n+1}| + q e_n + b ρ <= e_{n+1} of s_{n+1}, with q and b the norms of the Jacobian of Φ_n in state
  and context, at most, over a box of which all of these states, all contexts and the centers are: it is convex, so that the line
  between any two of its points lies in it;
- each margin z_y - z_j is at least that of s_N less the dual norm of its slope times e_N.

Nothing is searched: centers and distances are in the file.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from flint import arb, arb_mat

from ._limits import Meter, Refused, number, numbers, record
from ._program import Graph, read_program
from ._rules import ONE, ZERO, Form, box

FORMAT = "lyapunov radius 1"
# How often a Gram matrix is squared for its norm.
SQUARINGS = 10


class Example(NamedTuple):
    """One input with what is claimed of it.

    **Arguments:**

    - `x`, `label`, `radius`: the class of all inputs within the radius of x is the label.
    - `centers`: of states, one before each step and one after the last.
    - `errors`: how far states may be from these.
    - `context`, `reach`: the center of contexts, and how far they may be from it.
    """

    x: list[float]
    label: int
    radius: float
    centers: list[list[float]]
    errors: list[float]
    context: list[float]
    reach: float


class Radii:
    """Certified radii as they are written in a file.

    **Arguments:**

    - `header`: what is claimed, and the programs: start, context, step and readout.
    - `arrays`: numbers by name.
    - `meter`: what it may cost.
    - `examples`: whether they are in the arrays.
    """

    def __init__(
        self,
        header: Mapping[str, Any],
        arrays: Mapping[str, np.ndarray],
        meter: Meter | None = None,
        examples: bool = True,
    ):
        self.meter = Meter() if meter is None else meter
        record("header", header, ("format", "norm", "times", "gain", "programs"))
        if header.get("format") != FORMAT:
            raise Refused(f"format: expected {FORMAT!r}, got {header.get('format')!r}")
        self.norm = header["norm"]
        if self.norm not in ("2", "inf"):
            raise Refused("norm: expected '2' or 'inf', got another")
        self.times = numbers("times", header["times"])
        self.gain = None if header["gain"] is None else number("gain", header["gain"])
        if self.gain is not None and not (self.gain >= 0 and self.norm == "2"):
            raise Refused("gain: expected a number >= 0, for the 2-norm")
        names = set(record("programs", header["programs"], ("start", "step", "readout"), ("context",)))
        programs = {name: read_program(name, header["programs"][name], arrays, self.meter) for name in sorted(names)}
        self.programs = programs
        sizes = {name: [op.size for op in p.operations if op.name == "input"] for name, p in programs.items()}
        out = {name: p.operations[p.output].size for name, p in programs.items()}
        moves = "context" in names
        n, contexts = out["start"], [out["context"]] if moves else []
        inputs = sizes["start"]
        if len(inputs) != 1 or (moves and sizes["context"] != inputs):
            raise Refused("programs: expected start and context to be of x alone")
        if sizes["step"] != [1, n, *contexts] or out["step"] != n or sizes["readout"] != [n]:
            raise Refused(
                "programs: expected a step of the time, the state and the context to the state, and a readout of that"
            )
        self.inputs, self.states, self.classes = inputs[0], n, out["readout"]
        self.contexts = contexts[0] if moves else 0
        if self.classes < 2:
            raise Refused("programs: expected two classes or more")
        g = self.graph = Graph(self.meter)
        self.x, self.t, self.state = g.input(self.inputs), g.input(1), g.input(n)
        self.u = g.input(self.contexts) if moves else None
        self.start = g.inline(programs["start"], [self.x])
        self.of_x = g.inline(programs["context"], [self.x]) if moves else None
        self.step = g.inline(programs["step"], [self.t, self.state, *([self.u] if self.u is not None else [])])
        self.logits = g.inline(programs["readout"], [self.state])
        self.examples = self._read(arrays) if examples else []
        self.known: dict[tuple[int, int], list[int]] = {}

    def _read(self, arrays: Mapping[str, np.ndarray]) -> list[Example]:
        """The examples; refused where they do not fit the programs."""
        x = arrays.get("x")
        count = len(x) if x is not None and x.ndim == 2 else 0
        steps = len(self.times)
        shapes = {
            "x": (count, self.inputs),
            "radius": (count,),
            "centers": (count, steps + 1, self.states),
            "errors": (count, steps + 1),
            "contexts": (count, self.contexts),
            "reach": (count,),
        }
        for name, shape in shapes.items():
            found = arrays.get(name)
            if found is None or found.dtype != np.float64 or found.shape != shape or not np.isfinite(found).all():
                raise Refused(f"{name}: expected finite float64 numbers of shape {shape}")
        labels = arrays.get("y")
        if labels is None or labels.dtype != np.int64 or labels.shape != (count,) or not count or not steps:
            raise Refused("y: expected an integer class for each example, and one example and one step at least")
        if not ((labels >= 0) & (labels < self.classes)).all():
            raise Refused(f"y: expected classes in [0, {self.classes})")
        if not all((arrays[name] >= 0).all() for name in ("errors", "reach")) or not (arrays["radius"] > 0).all():
            raise Refused("radius, errors, reach: expected no negative numbers, and radii > 0")
        order = ("x", "y", "radius", "centers", "errors", "contexts", "reach")
        return [Example(*row) for row in zip(*(arrays[name].tolist() for name in order), strict=True)]

    def check(self) -> None:
        """Whether every example is what the file says of it."""
        for i, example in enumerate(self.examples):
            wrong = self.broken(example)
            if wrong:
                raise Refused(f"example {i}: {wrong}")

    def broken(self, example: Example) -> str:
        """What of an example does not hold; empty where all does."""
        first, reach = self.begin(example.x, example.radius, example.centers[0], example.context)
        if not bool(first <= example.errors[0]):
            return "starts may be farther from the first center than it says"
        if not bool(reach <= example.reach):
            return "contexts may be farther from their center than it says"
        region = self.around(example.centers[0], example.errors[0])
        for i in range(len(self.times)):
            after = example.centers[i + 1]
            error = self.next(i, region, example.centers[i], example.errors[i], example.context, example.reach, after)
            if not bool(error <= example.errors[i + 1]):
                return f"states may be farther from the center after step {i + 1} than it says"
            region = self.moved(i, region, example.context, example.reach, after, example.errors[i + 1])
        if not bool(self.margin(region, example.centers[-1], example.errors[-1], example.label) > 0):
            return "a margin is not above 0"
        return ""

    def begin(
        self, x: Sequence[float], radius: float, center: Sequence[float], context: Sequence[float]
    ) -> tuple[arb, arb]:
        """How far starts and contexts of the ball are from their centers, at most."""
        out = []
        for of, there in ((self.start, center), (self.of_x, context)):
            if of is None:
                out.append(ZERO)
                continue
            (found,) = self.values([of], {self.x: (x, x)})
            off = self._away(found, there)
            if self.gain is not None and self.graph.derivative(of, self._unit(self.x, 0)) is not None:
                steep = arb(self.gain)
            else:
                steep = self._slope(of, self.x, {self.x: self.around(x, radius)})
            out.append((off + steep * arb(radius)).upper())
        return out[0], out[1]

    def next(
        self, i: int, region: Any, center: Sequence[float], error: float, context: Sequence[float], reach: float,
        after: Sequence[float],
    ) -> arb:  # fmt: skip
        """How far states are from the next center, at most."""
        time = ([self.times[i]], [self.times[i]])
        at = {self.t: time, self.state: (center, center)}
        ball = {self.t: time, self.state: region}
        if self.u is not None:
            at[self.u] = (context, context)
            ball[self.u] = self.around(context, reach)
        (found,) = self.values([self.step], at)
        total = self._away(found, after) + self._slope(self.step, self.state, ball) * arb(error)
        if self.u is not None:
            total = total + self._slope(self.step, self.u, ball) * arb(reach)
        return total.upper()

    def moved(
        self, i: int, region: Any, context: Sequence[float], reach: float, center: Sequence[float], error: float
    ) -> tuple[list[float], list[float]]:
        """A box of the next center and all states: those within the distance, of those that the step can reach."""
        at = {self.t: ([self.times[i]], [self.times[i]]), self.state: region}
        if self.u is not None:
            at[self.u] = self.around(context, reach)
        (found,) = self.values([self.step], at)
        low, high = self.around(center, error)
        low = [max(a, _outward(f, -1)) if f.is_finite() else a for a, f in zip(low, found.low, strict=True)]
        high = [min(b, _outward(f, 1)) if f.is_finite() else b for b, f in zip(high, found.high, strict=True)]
        both = zip(low, high, center, strict=True)
        ends = [(min(a, c), max(b, c)) for a, b, c in both]
        return [a for a, _ in ends], [b for _, b in ends]

    def margin(self, region: Any, center: Sequence[float], error: float, label: int) -> arb:
        """The smallest margin over all states, at least."""
        (there,) = self.values([self.logits], {self.state: (center, center)})
        columns = self._columns(self.logits, self.state, {self.state: region})
        found = []
        for j in range(self.classes):
            if j != label:
                steep = _dual([c.ball(label) - c.ball(j) for c in columns], self.norm)
                found.append(-(there.ball(label) - there.ball(j) - steep * arb(error)).lower())
        return -_most(found)

    def around(self, center: Sequence[float], radius: float) -> tuple[list[float], list[float]]:
        """A box of all points that are no farther from a center."""
        low = [_outward(arb(c) - arb(radius), -1) for c in center]
        return low, [_outward(arb(c) + arb(radius), 1) for c in center]

    def values(self, wanted: Sequence[int], at: Mapping[int, Any], symbols: int | None = None) -> list[Form]:
        self.meter.boxes += 1
        self.meter.tick()
        fresh = itertools.count(1)
        return self.graph.values(wanted, {i: box(low, high, fresh) for i, (low, high) in at.items()}, symbols)

    def _unit(self, by: int, i: int) -> dict[int, int]:
        size = self.graph.size(by)
        return {by: self.graph.constant([float(i == k) for k in range(size)])}

    def _columns(self, of: int, by: int, at: Mapping[int, Any]) -> list[Form]:
        """The columns of a Jacobian over a box."""
        if (of, by) not in self.known:
            found = [self.graph.derivative(of, self._unit(by, i)) for i in range(self.graph.size(by))]
            zero = self.graph.constant([0.0] * self.graph.size(of))
            self.known[of, by] = [zero if d is None else d for d in found]
        # Symbols of operations on the way would take most of the time.
        return self.values(self.known[of, by], at, sum(self.graph.size(i) for i in at))

    def _slope(self, of: int, by: int, at: Mapping[int, Any]) -> arb:
        """The norm of a Jacobian over a box, at most."""
        columns = self._columns(of, by, at)
        table = [[c.ball(i) for c in columns] for i in range(self.graph.size(of))]
        return matrix_norm(table, self.norm)

    def _away(self, found: Form, center: Sequence[float]) -> arb:
        """How far a value is from a vector, at most."""
        parts = [abs(found.ball(i) - arb(c)) for i, c in enumerate(center)]
        if self.norm == "inf":
            return _most(parts)
        return _euclidean(parts)

    def sentences(self) -> list[str]:
        """What follows."""
        named = {"2": "Euclidean norm", "inf": "∞-norm"}[self.norm]
        radii = [e.radius for e in self.examples]
        spread = f"{min(radii)!r} to {max(radii)!r}"
        return [
            f"for each of {len(radii)} inputs, and for all inputs within its radius ({spread}) in the {named}, the logit of its "
            f"class is above all others after {len(self.times)} steps of the program"
        ]
        return out

    def given(self) -> list[str]:
        """What the sentences rest on and no file can show."""
        out = ["that a network is these programs, in real arithmetic: what a computer rounds is not counted"]
        if self.gain is not None:
            out.append(
                f"that start and context change by at most {self.gain!r} times the change of the input, in the Euclidean norm"
            )
        return out


def matrix_norm(table: list[list[arb]], norm: str) -> arb:
    """The norm of all matrices of balls, at most: the largest sum of a row, or by ‖A‖₂² = ‖AᵀA‖₂ <= ‖(AᵀA)^k‖_F^(1/k)."""
    if norm == "inf":
        return _most([sum((abs(v) for v in row), ZERO) for row in table])
    a = arb_mat(table)
    gram = a.transpose() * a if len(table) >= len(table[0]) else a * a.transpose()
    # Norms are those of gram / scale, to the power of 1 / 2^(i + 1) in all.
    scale, power, found = ONE, 1, []
    for _ in range(SQUARINGS):
        size = _euclidean([v for row in gram.tolist() for v in row])
        if not size.is_finite():
            break
        found.append(_root(size, power) * scale)
        if not size > 0:
            return ZERO
        # By a power of two, which rounds nothing.
        unit = arb(2) ** math.frexp(float(size))[1]
        gram, scale = gram / unit, scale * _root(unit, power)
        gram, power = gram * gram, 2 * power
    if not found:
        return arb.nan()
    least = found[0]
    for other in found[1:]:
        least = least.min(other)
    return least.sqrt().upper()


def _root(v: arb, power: int) -> arb:
    for _ in range(power.bit_length() - 1):
        v = v.sqrt()
    return v.upper()


def _dual(slopes: list[arb], norm: str) -> arb:
    """The norm that goes with another one."""
    if norm == "inf":
        return sum((abs(v) for v in slopes), ZERO).upper()
    return _euclidean(slopes)


def _euclidean(parts: list[arb]) -> arb:
    """The Euclidean norm, at most. The square of a ball around 0 may be a ball with negative numbers in it."""
    return sum((v * v for v in parts), ZERO).upper().sqrt().upper()


def _most(parts: list[arb]) -> arb:
    """The largest, not a number where one is none."""
    out = parts[0].upper()
    for v in parts[1:]:
        out = out.max(v.upper()) if not v.is_nan() and not out.is_nan() else arb.nan()
    return out


def _outward(v: arb, side: int) -> float:
    """A float beyond a number."""
    return math.nextafter(float(v), side * math.inf)
