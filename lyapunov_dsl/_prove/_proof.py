"""Proofs as objects: what was proved, frozen, in a form that `lyapunov_checker` reads without this library."""

import contextlib
import io
import itertools
import json
import math
import os
import time as clock
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .._types import check_file, check_path
from ._branch import CUT, Tree
from ._export import export
from ._judge import ABOVE, BELOW, HOLDS, OUTSIDE, REST
from ._match import Match, compare, declared
from ._question import Functions
from ._region import Region
from ._tube import Tube

FORMAT = "lyapunov proof 1"


def portable(
    told: Functions,
    size: int,
    region: Region,
    rest: np.ndarray | None,
    strict: bool,
    claims: list[str],
    tube: Tube | None,
    start: Sequence[np.ndarray],
    radius: float | None,
) -> Any:
    """What the checker needs besides the trees: header and arrays; or the reason why it cannot be written."""
    from ..bounds import UnknownPrimitive

    try:
        programs, arrays = programs_of(told, size, radius is not None)
    except (UnknownPrimitive, ValueError, ArithmeticError) as error:
        return str(error)
    low, high = region.low.min(axis=0), region.high.max(axis=0)
    header = {
        "format": FORMAT,
        "claims": claims,
        "domain": {"lower": low[1:].tolist(), "upper": high[1:].tolist()},
        "faces": list(region.faces),
        "tube": None
        if tube is None
        else np.column_stack([tube.times[:-1], tube.times[1:], tube.lower, tube.upper]).tolist(),
        "start": {"lower": start[0].tolist(), "upper": start[1].tolist()},
        "perturbation": None
        if radius is None
        else {"center": np.asarray(told.context).tolist(), "radius": radius, "gain": 0.0, "slope": 0.0},
        "ball": None if region.ball is None else {"center": region.ball[0].tolist(), "radius": region.ball[1]},
        "time": [float(low[0]), float(high[0])],
        "level": [region.least, region.most],
        "equilibrium": None if rest is None else rest.tolist(),
        "strict": strict,
        "programs": programs,
    }
    return header, arrays


def programs_of(told: Functions, size: int, perturbed: bool) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The field, V, the comparison and a rate of its own, as programs, and their arrays."""
    programs, arrays = {}, {}
    field = (told.perturbed, (size,), np.shape(told.context)) if perturbed else (told.field, (size,))
    parts = {"field": field, "value": (told.value, (size,)), "comparison": (told.comparison, ())}
    if told.own_rate:
        parts["rate"] = (lambda t, s: told.rate(t, s)[1], (size,))
    for name, (function, *shapes) in parts.items():
        programs[name], found = export(name, function, (), *shapes)
        arrays |= found
    return programs, arrays


def checking(record: Any) -> Any:
    """The checker's view of a record, for use in `precision`."""
    from lyapunov_checker._proof import Proof as Checked

    return Checked(*record)


@contextlib.contextmanager
def precision() -> Iterator[None]:
    """The checker's precision."""
    from flint import ctx

    from lyapunov_checker._proof import PRECISION

    before, ctx.prec = ctx.prec, PRECISION
    try:
        yield
    finally:
        ctx.prec = before


def decides(checked: Any, name: str, rule: int, low: np.ndarray, high: np.ndarray) -> bool:
    """Whether the checker accepts a rule in a box; not where the rule needs derivatives that a function does not have."""
    from lyapunov_checker import Refused

    try:
        return checked.decides(name, rule, low.tolist(), high.tolist())
    except Refused:
        return False


# The domain is shrunk by less than two to this power.
SHRUNK = 32


class Rest:
    """Whether a claim holds in a box at the equilibrium, by the checker's own rule: there values have to be exactly 0, which no
    bound in floating point can tell.

    **Arguments:**

    - `record`: header and arrays, or why there are none; then nothing is decided.
    """

    def __init__(self, record: Any):
        with precision():
            self.checked = None if isinstance(record, str) else checking(record)
        # Around the equilibrium, by claim: where it holds, as a box.
        self.near: dict[str, tuple[np.ndarray, np.ndarray] | None] = {}
        # The power of two that was found for another claim, which is likely to be near that of the next.
        self.power = SHRUNK // 2

    def __call__(self, name: str, low: np.ndarray, high: np.ndarray) -> bool:
        if self.checked is None or not self.checked.at_rest(low.tolist(), high.tolist()):
            return False
        if name not in self.near:
            self.near[name] = self._largest(name)
        near = self.near[name]
        if near is not None:
            # What holds by the second derivatives in a box holds in all of its parts.
            return bool((near[0] <= low).all() and (high <= near[1]).all())
        if self.checked.steady:
            return False
        # It may hold for a part of the times.
        with precision():
            return decides(self.checked, name, REST, low, high)

    def _largest(self, name: str) -> tuple[np.ndarray, np.ndarray] | None:
        """The domain shrunk about the equilibrium by the least power of two, of those that bisection tries, for which the claim holds."""
        assert self.checked is not None
        least, most = (np.array(v) for v in self.checked.whole())
        rest, found, first, last = np.array(self.checked.rest), None, 0, SHRUNK
        with precision():
            power = self.power
            while first < last:
                reach = 2.0**-power * (most - least)[1:]
                low, high = least.copy(), most.copy()
                low[1:], high[1:] = rest - reach, rest + reach
                if decides(self.checked, name, REST, low, high):
                    found, last = (low, high), power
                else:
                    first = power + 1
                power = (first + last) // 2
        self.power = min(last, SHRUNK - 1)
        return found

    def zero(self) -> bool:
        """Whether V is exactly 0 at the equilibrium, and that is in the domain."""
        if self.checked is None:
            return False
        with precision():
            return self.checked.vanishes(self.checked.potential)


def stays(record: Any) -> None:
    """Raises `ValueError` where trajectories may leave a tube, by the checker's own steps."""
    from lyapunov_checker._flow import stays as shown

    with precision():
        shown(checking(record))


def measured(record: Any, claim: str, parts: int) -> tuple[float, Tree]:
    """The largest of what the checker finds of `gain` or `slope` in boxes, of which the one where it is largest is cut; with
    the cover. Boxes above the level do not count."""
    with precision():
        checked = checking(record)
        tree = Tree(*checked.whole())

        def size(low: np.ndarray, high: np.ndarray) -> float:
            if checked.steep(claim, ABOVE, low.tolist(), high.tolist()):
                return -np.inf
            found = float(checked.steepness(claim, low.tolist(), high.tolist()).upper())
            return np.nextafter(found, np.inf) if np.isfinite(found) else np.inf

        boxes = [(size(tree.low, tree.high), 0, tree.low, tree.high)]
        for _ in range(parts):
            largest, node, low, high = max(boxes, key=lambda box: box[0])
            width = (high - low) / np.where(tree.high > tree.low, tree.high - tree.low, 1)
            width[0] *= not checked.steady
            if largest == -np.inf or not width.any():
                break
            boxes = [box for box in boxes if box[1] != node]
            count = len(tree.rule)
            tree.cut(np.array([node]), low[None], high[None], np.array([width.argmax()]))
            for k in (1, 2):
                least, most = tree.lows[-3 + k], tree.highs[-3 + k]
                boxes.append((size(least, most), count + k - 1, least, most))
        for value, node, *_ in boxes:
            tree.rule[node] = ABOVE if value == -np.inf else HOLDS
        return max(max(box[0] for box in boxes), 0.0), tree


def solved(record: Any, trees: dict[str, Tree]) -> float:
    """V at the last time at most, by the checker's own steps; raises `ValueError` where it has none."""
    from lyapunov_checker._flow import robust

    header, arrays = record
    with precision():
        for name, tree in trees.items():
            arrays = arrays | {f"{name}.{part}": value for part, value in tree.arrays().items()}
        checked = checking((header, arrays))
        robust(checked)
        return checked.final


class Proof:
    """A proof that was found, or that was read from a file; write it with `save`.

    **Arguments:**

    - `record`: header and arrays without the trees, or why there are none.
    - `trees`: the cover of each claim, by name.
    - `content`: the bytes of its file, once they are known.
    """

    def __init__(self, record: Any, trees: dict[str, Tree], content: bytes | None = None):
        self.record, self.trees, self.content = record, trees, content
        if not isinstance(record, str) and record[0]["tube"] is not None and "decrease" in trees:
            # The checker numbers the boxes of a tube even where there is one.
            self.trees = {("decrease.0" if name == "decrease" else name): tree for name, tree in trees.items()}

    @classmethod
    def load(cls, path: Any) -> "Proof":
        """Reads a proof from a file. It is not checked; `lyapunov_checker.check` does that.

        **Arguments:**

        - `path`: a file that `save` wrote.

        **Raises:** `ValueError` for a file that is none.
        """
        from lyapunov_checker._file import read

        check_path("path", path)
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise ValueError(f"path: expected a file that can be read, got {path} ({error.strerror})") from error
        return cls(read(content), {}, content)

    def matches(
        self, system: Any, certificate: Any = None, x: Any = None, y: Any = None, *, part: str | None = None
    ) -> Match:
        """Compares the programs of the proof with those of a declaration, operation by operation and number by number.

        A file says what its programs are, and not which system they are of. Here the declaration is translated again. It is
        the same function only where it is written the same: another version of JAX may trace it otherwise.
        Domain, levels and claims are not compared: the checker prints them.

        **Arguments:**

        - `system`, `certificate`, `x`, `y`, `part`: as they are given to [`lyapunov_dsl.prove`][].

        **Returns:** a [`lyapunov_dsl.Match`][], which is true where they are the same, and says what differs otherwise.

        **Raises:** `ValueError` where the proof has no programs, or the declaration is none.
        """
        if isinstance(self.record, str):
            raise ValueError(f"proof: expected functions that the checker knows, got others ({self.record})")
        header, arrays = self.record
        told, first = declared(system, certificate, x, y, part, header["equilibrium"])
        return compare(header, arrays, *programs_of(told, first.size, header["perturbation"] is not None), told.context)

    def written(self, boxes: int = 1_000_000, seconds: float | None = None) -> bytes:
        """The bytes of its file.

        The checker does not search, and its bounds are a little wider than those that found the proof. So every leaf is tried with
        the checker's own rules here, and cut further where they do not decide it.

        **Arguments:**

        - `boxes`: how many boxes may be tried.
        - `seconds`: how long that may take, or `None`.

        **Raises:** `ValueError` where the functions use operations that the checker does not know, or there is a box that the
        checker does not decide however small it is; `OutOfBoxes`, one of them, where more boxes or time would be needed.
        """
        from lyapunov_checker._file import seal
        from lyapunov_checker._limits import UNPACKED_TIMES

        if self.content is not None:
            return self.content
        if isinstance(self.record, str):
            raise ValueError(f"proof: expected functions that the checker knows, got others ({self.record})")
        header, arrays = self.record
        last = math.inf if seconds is None else clock.monotonic() + seconds
        with precision():
            checked = checking((header, arrays))
            left = itertools.count(boxes, -1)
            trees = {name: _refined(checked, name, tree, left, last) for name, tree in self.trees.items()}
        for name, tree in trees.items():
            arrays = arrays | {f"{name}.{part}": value for part, value in tree.items()}
        header = {**header, "sha256": seal(header, arrays)}
        whole = {"header": np.frombuffer(json.dumps(header).encode(), np.uint8), **arrays}
        for write in (np.savez_compressed, np.savez):
            file = io.BytesIO()
            write(file, **whole)
            self.content = file.getvalue()
            # The checker does not unpack what becomes much larger, such as a matrix of ones.
            if sum(v.nbytes + 256 for v in whole.values()) <= UNPACKED_TIMES * len(self.content):
                break
        assert self.content is not None
        return self.content

    def save(self, path: Any, *, boxes: int = 1_000_000) -> Path:
        """Writes the proof to a file that `python -m lyapunov_checker` checks; it is checked here before it is there.

        **Arguments:**

        - `path`: where to; the file is replaced as a whole.
        - `boxes`: how many boxes may be tried with the checker's rules, which may need more than the proof had.

        **Raises:** `ValueError` where the functions use operations that the checker does not know, where more boxes would be
        needed, and where the file cannot be written.
        """
        from lyapunov_checker import check

        check_path("path", path)
        check_file(Path(path))
        content = self.written(boxes)
        # What is not about single boxes is found only now: whether V falls at the level, for one.
        check(content)
        return replace(Path(path), content)


def replace(path: Path, content: bytes) -> Path:
    """Writes a file as a whole, or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ValueError(f"save: expected a place that can be written, got {path} ({error})") from error
    return path


class OutOfBoxes(ValueError):
    """More boxes, or more time, than were allowed."""


def _refined(checked: Any, name: str, tree: Tree, left: Any, last: float) -> dict[str, np.ndarray]:
    """The same cover with all leaves such that the checker's rules decide them, as it is written: a node, its lower part,
    its upper part."""
    rules, axes, places = [], [], []
    size = np.where(tree.high > tree.low, tree.high - tree.low, np.inf)
    waiting: list[tuple[int | None, np.ndarray, np.ndarray]] = [(0, tree.low, tree.high)]
    while waiting:
        node, low, high = waiting.pop()
        rule = int(tree.rule[node]) if node is not None else HOLDS
        axis, at, child = 0, 0.0, None
        if rule == CUT and node is not None:
            axis, at, child = int(tree.axis[node]), float(tree.at[node]), int(tree.child[node])
        elif next(left) <= 0 or clock.monotonic() > last:
            raise OutOfBoxes("boxes: expected more, as the checker needs more boxes or time than that for this proof")
        else:
            others = [r for r in (HOLDS, ABOVE, BELOW, OUTSIDE, REST) if r != rule]
            decided = (r for r in (rule, *others) if decides(checked, name, r, low, high))
            rule = next(decided, CUT)
            axis = int(((high - low) / size).argmax())
            at = float(0.5 * low[axis] + 0.5 * high[axis])
            if rule == CUT and not low[axis] < at < high[axis]:
                raise ValueError(
                    f"proof: {name}: the checker does not decide a box at {low.tolist()} however small it is"
                )
        rules.append(rule)
        axes.append(axis)
        places.append(at)
        if rule == CUT:
            below, above = high.copy(), low.copy()
            below[axis] = above[axis] = at
            waiting += [(None if child is None else child + 1, above, high), (child, low, below)]
    return {"rule": np.array(rules, np.int8), "axis": np.array(axes, np.int32), "at": np.array(places)}
