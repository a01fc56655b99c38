"""Programs: lists of operations on vectors of real numbers, their derivatives, and their values on a box."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from flint import arb, arb_mat

from ._limits import CELLS, ENTRIES, PRODUCTS, Meter, Refused, brief, integer, record as record_of, sequence
from ._rules import ONE, Form, Matrix, affine, box, logsumexp, multiply, short, softmean, unary

UNARY = {
    *("exp", "log", "sqrt", "tanh", "logistic", "softplus", "atan", "erf", "reciprocal"),
    *("relu", "step", "jump", "square", "sin", "cos"),
}


class Operation(NamedTuple):
    """One operation of a program.

    **Arguments:**

    - `name`: `"input"`, `"constant"`, `"affine"`, `"multiply"`, `"logsumexp"`, `"softmean"` or a function of one number.
    - `args`: the operations that it is of, by number.
    - `size`: how many entries its value has.
    - `data`: the matrices of an affine map, the numbers of a constant.
    """

    name: str
    args: tuple[int, ...]
    size: int
    data: Any = None


class Graph:
    """Operations, each after those that it is of.

    **Arguments:**

    - `meter`: what they may cost.
    """

    def __init__(self, meter: Meter | None = None) -> None:
        self.meter = Meter() if meter is None else meter
        self.operations: list[Operation] = []
        self._known: dict[Any, int] = {}

    def add(self, name: str, args: Sequence[int], size: int, data: Any = None) -> int:
        """A new operation, or the same one where it is there already."""
        key = (name, tuple(args), size) if data is None else (name, tuple(args), size, id(data))
        if key not in self._known:
            self.meter.store(1 + size, _stored(data))
            self.operations.append(Operation(name, tuple(args), size, data))
            self._known[key] = len(self.operations) - 1
        return self._known[key]

    def size(self, value: int) -> int:
        return self.operations[value].size

    def input(self, size: int) -> int:
        self.meter.store(1 + size, 0)
        self.operations.append(Operation("input", (), size))
        return len(self.operations) - 1

    def constant(self, numbers: Sequence[float]) -> int:
        return self.add("constant", (), len(numbers), [float(v) for v in numbers])

    def unary(self, name: str, x: int) -> int:
        return self.add(name, (x,), self.size(x))

    def multiply(self, x: int, y: int) -> int:
        return self.add("multiply", (x, y), self.size(x))

    def combine(self, *terms: tuple[Any, int]) -> int:
        """Σ c x with a number for each term."""
        size = self.size(terms[0][1])
        self.meter.store(0, size * len(terms))
        data = [Matrix(size, None, [(i, i, arb(c)) for i in range(size)]) for c, _ in terms]
        return self.add("affine", [x for _, x in terms], size, data)

    def dot(self, numbers: Sequence[Any], x: int) -> int:
        """Σ c_i x_i, one entry."""
        return self.add("affine", [x], 1, [Matrix(1, None, [(0, i, arb(c)) for i, c in enumerate(numbers)])])

    def pick(self, i: int, x: int) -> int:
        """Entry i."""
        return self.add("affine", [x], 1, [Matrix(1, None, [(0, i, ONE)])])

    def inline(self, program: "Program", inputs: Sequence[int]) -> int:
        """The value of a program at other values."""
        if [self.size(x) for x in inputs] != [op.size for op in program.operations if op.name == "input"]:
            raise Refused(f"{program.name}: expected inputs of other sizes")
        waiting = iter(inputs)
        place: list[int] = []
        for op in program.operations:
            if op.name == "input":
                place.append(next(waiting))
            else:
                place.append(self.add(op.name, [place[i] for i in op.args], op.size, op.data))
        return place[program.output]

    def derivative(self, of: int, directions: Mapping[int, int]) -> int | None:
        """The derivative of a value along directions of some values that stand for inputs; `None` where it is 0."""
        tangents: dict[int, int | None] = dict(directions)

        def along(i: int) -> int | None:
            if i not in tangents:
                op = self.operations[i]
                tangents[i] = self._derived(op, i, [(j, along(j)) for j in op.args])
            return tangents[i]

        # Not by recursion alone: programs may be long.
        needed, waiting = set(), [of]
        while waiting:
            i = waiting.pop()
            if i not in needed and i not in directions:
                needed.add(i)
                waiting += self.operations[i].args
        for i in sorted(needed):
            along(i)
        return along(of)

    def _derived(self, op: Operation, own: int, args: list[tuple[int, int | None]]) -> int | None:
        moving = [(j, d) for j, d in args if d is not None]
        if not moving:
            return None
        if op.name == "affine":
            maps = [m for m, (_, d) in zip(op.data, args, strict=True) if d is not None]
            return self.add("affine", [d for _, d in moving if d is not None], op.size, maps)
        if op.name == "multiply":
            (x, dx), (y, dy) = args
            return self._total([self.multiply(d, v) for d, v in ((dx, y), (dy, x)) if d is not None])
        if op.name == "softmean":
            (z, dz), (t, dt) = args
            parts = [] if dt is None else [self.add("softmean", (z, dt), 1)]
            if dz is not None:
                spread = [Matrix(self.size(t), None, [(i, 0, -ONE) for i in range(self.size(t))])]
                same = [Matrix(self.size(t), None, [(i, i, ONE) for i in range(self.size(t))])]
                apart = self.add("affine", (t, own), self.size(t), [*same, *spread])
                parts.append(self.add("softmean", (z, self.multiply(apart, dz)), 1))
            return self._total(parts)
        (x, dx), *_ = args
        assert dx is not None
        if op.name == "logsumexp":
            return self.add("softmean", (x, dx), 1)
        return self.multiply(self._slope(op.name, x, own), dx)

    def _total(self, parts: list[int]) -> int:
        return parts[0] if len(parts) == 1 else self.combine(*((1, p) for p in parts))

    def _slope(self, name: str, x: int, y: int) -> int:
        """The derivative of y = f(x), a function of one number."""
        one = lambda: self.constant([1.0] * self.size(x))
        minus_square = lambda v: self.combine((1, one()), (-1, self.unary("square", v)))
        if name == "exp":
            return y
        if name == "log":
            return self.unary("reciprocal", x)
        if name == "sqrt":
            return self.combine((0.5, self.unary("reciprocal", y)))
        if name == "tanh":
            return minus_square(y)
        if name == "logistic":
            return self.combine((1, y), (-1, self.unary("square", y)))
        if name == "softplus":
            return self.unary("logistic", x)
        if name == "atan":
            return self.unary("reciprocal", self.combine((1, one()), (1, self.unary("square", x))))
        if name == "erf":
            bell = self.unary("exp", self.combine((-1, self.unary("square", x))))
            return self.combine((2 / arb.pi().sqrt(), bell))
        if name == "reciprocal":
            return self.combine((-1, self.unary("square", y)))
        if name == "relu":
            return self.unary("step", x)
        if name == "step":
            return self.unary("jump", x)
        if name == "square":
            return self.combine((2, x))
        if name == "sin":
            return self.unary("cos", x)
        if name == "cos":
            return self.combine((-1, self.unary("sin", x)))
        raise Refused(f"the derivative of {name} is none that a proof may use")

    def values(self, wanted: Sequence[int], inputs: Mapping[int, Form], symbols: int | None = None) -> list[Form]:
        """The values of operations for forms of inputs; with the first symbols alone, where a number of them is given."""
        fresh = next(iter(inputs.values())).fresh
        found: dict[int, Form] = dict(inputs)
        needed, waiting = set(), list(wanted)
        while waiting:
            i = waiting.pop()
            if i not in needed and i not in found:
                needed.add(i)
                waiting += self.operations[i].args
        # Symbols that are used so far, and coefficients that are held, both at most.
        used, held = sum(len(form.rows) for form in inputs.values()), 0
        for i in sorted(needed):
            op = self.operations[i]
            args = [found[j] for j in op.args]
            if symbols is not None:
                # No form has others than the first symbols, so that the numbers of the rest are free again.
                fresh, used = itertools.count(symbols + 1), symbols
                args = [form._replace(fresh=fresh) for form in args]
            more = sum(len(form.rows) for form in args) if op.name not in ("affine", "constant") else 0
            if held + _cells(op, args, used + more) > CELLS:
                raise Refused(f"programs: expected at most {CELLS} coefficients at once, got operations that need more")
            self.meter.tick()
            if op.name == "constant":
                found[i] = box(op.data, op.data, fresh)
            elif op.name == "affine":
                found[i] = affine(list(zip(op.data, args, strict=True)))
            elif op.name == "multiply":
                found[i] = multiply(*args)
            elif op.name == "logsumexp":
                found[i] = logsumexp(*args)
            elif op.name == "softmean":
                found[i] = softmean(*args)
            elif op.name in UNARY:
                found[i] = unary(op.name, *args)
            else:
                raise Refused(f"a program has an unknown operation {op.name!r}")
            if symbols is not None:
                found[i] = short(found[i], symbols)
            used += OWN.get(op.name, 1) * more
            held += sum(map(len, found[i].rows))
        return [found[i] for i in wanted]


# How many symbols an operation adds for each entry that it is of, where it is not one.
OWN = {"logsumexp": 2, "softmean": 5}


def _stored(data: Any) -> int:
    """Numbers that an operation has of its own."""
    if data is None:
        return 0
    return (
        sum(len(m.entries) + (0 if m.dense is None else m.dense.nrows() * m.dense.ncols()) for m in data)
        if (data and isinstance(data[0], Matrix))
        else len(data)
    )


def _cells(op: Operation, args: Sequence[Form], used: int) -> int:
    """Coefficients that an operation makes, at most, with those that it needs on the way; refuses a map of too many products."""
    if op.name != "affine":
        return op.size if op.name == "constant" else OWN.get(op.name, 1) * (1 + used) * sum(len(f.rows) for f in args)
    cells, products = 0, 0
    for matrix, form in zip(op.data, args, strict=True):
        width, dense = 1 + max(map(len, form.rows)), matrix.dense
        cells = max(cells, op.size * width)
        # Entries one by one take about ten times as long as those of a dense matrix.
        products += 10 * len(matrix.entries) * width
        if dense is not None:
            products += op.size * len(form.rows) * width
            cells = max(cells, 2 * op.size * len(form.rows), len(form.rows) * width)
    if products > PRODUCTS:
        raise Refused(f"programs: expected at most {PRODUCTS} products in one affine map, got more")
    return cells


class Program(NamedTuple):
    """A function of vectors: operations and which of them is its value."""

    name: str
    operations: list[Operation]
    output: int


def read_program(name: str, record: Any, arrays: Mapping[str, np.ndarray], meter: Meter | None = None) -> Program:
    """A program from what a file says of it; refuses what does not fit together."""
    meter = Meter() if meter is None else meter
    record_of(name, record, ("operations", "output"))
    operations: list[Operation] = []
    sizes: list[int] = []
    for number, entry in enumerate(sequence(name, record["operations"])):
        where = f"{name}, operation {number}"
        record_of(where, entry, ("name", "args", "size"), ("value", "matrices"))
        kind = entry["name"]
        if not isinstance(kind, str):
            raise Refused(f"{where}: expected a name, got {brief(kind)}")
        args = tuple(integer(where, i, 0, number - 1) for i in sequence(where, entry["args"]))
        size = integer(where, entry["size"], 1, ENTRIES)
        meter.store(1 + size + len(args), 0)
        given = [sizes[i] for i in args]
        data: Any = None
        if kind == "constant":
            meter.store(0, size)
            data = _numbers(where, arrays, entry.get("value"), (size,)).tolist()
            fits = not args
        elif kind == "affine":
            matrices = sequence(where, entry.get("matrices"))
            fits = len(args) == len(matrices) >= 1
            if fits:
                data = [_matrix(where, m, arrays, size, n, meter) for m, n in zip(matrices, given, strict=True)]
        elif kind in ("logsumexp", "softmean"):
            fits = size == 1 and len(set(given)) == 1 and len(args) == (1 if kind == "logsumexp" else 2)
        elif kind == "multiply":
            fits = given == [size, size]
        elif kind == "input":
            fits = not args
        else:
            fits = kind in UNARY and given == [size]
        if not fits or (kind != "constant" and "value" in entry) or (kind != "affine" and "matrices" in entry):
            raise Refused(f"{where} ({kind[:20]}): it is unknown, or has operands or numbers that do not fit")
        operations.append(Operation(kind, args, size, data))
        sizes.append(size)
    output = integer(name, record["output"], 0, len(operations) - 1)
    return Program(name, operations, output)


def _numbers(where: str, arrays: Mapping[str, np.ndarray], name: Any, shape: tuple[int, ...]) -> np.ndarray:
    """An array of finite numbers of a shape."""
    found = arrays.get(name) if isinstance(name, str) else None
    if found is None:
        raise Refused(f"{where}: an array is missing")
    if found.dtype.kind != "f" or found.shape != shape or not np.isfinite(found).all():
        raise Refused(f"{where}: expected finite numbers of shape {shape}, got {found.dtype}{found.shape}")
    return found.astype(np.float64)


def _matrix(where: str, record: Any, arrays: Mapping[str, np.ndarray], rows: int, columns: int, meter: Meter) -> Matrix:
    if isinstance(record, dict) and "dense" in record:
        record_of(where, record, ("dense",))
        meter.store(0, rows * columns)
        dense = _numbers(where, arrays, record["dense"], (rows, columns))
        return Matrix(rows, arb_mat(dense.tolist()), [])
    record_of(where, record, ("places", "values"))
    places = arrays.get(record["places"]) if isinstance(record["places"], str) else None
    if places is None or places.dtype.kind != "i" or places.ndim != 2 or places.shape[0] != 2:
        raise Refused(f"{where}: expected rows and columns of the entries of a matrix")
    meter.store(0, places.shape[1])
    values = _numbers(where, arrays, record["values"], (places.shape[1],))
    if places.size and not (places.min() >= 0 and places[0].max() < rows and places[1].max() < columns):
        raise Refused(f"{where}: entries of a matrix out of its range")
    entries = zip(places[0].tolist(), places[1].tolist(), values.tolist(), strict=True)
    return Matrix(rows, None, [(i, j, arb(v)) for i, j, v in entries])
