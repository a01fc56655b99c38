"""Branch and bound: a box is cut until something holds in every part, or fails at a point, or the prover has no more boxes or time."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from .._save import read_archive, write_archive
from .._types import is_count

# What a node of the tree is: cut further, not looked at yet, or a leaf with the number of the rule that holds there.
CUT, OPEN = 0, -1
SAVE_EVERY = 10.0
STUCK = ("stuck_nodes", "stuck_lows", "stuck_highs")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prover:
    """How a proof is searched for, and what it may take.

    **Arguments:**

    - `boxes`: how many boxes may be bounded.
    - `seconds`: wall time, compilation included; `None` for no limit.
    - `batch`: boxes that are bounded at once.
    - `rounding`: `"real"`, about the exact flow of the system with its weights as they are stored (`PROVED_REAL`); `"float"`: also about
        the inequality as it is evaluated in float64 (`PROVED_FLOAT`).
    - `checkpoint`: a folder where an unfinished proof is kept, to go on from when the same call is made again.
    - `progress`: whether a bar is shown.
    - `check`: whether `python -m lyapunov_checker` recomputes the proof as a last step, in a process of its own; only then it is
        `CHECKED`. It is not asked, which is said, where it would take longer than the search (and than ten seconds), or does not
        know the functions. What it refuses is `UNDECIDED`.

    **Raises:** `ValueError` for numbers that are not positive, and another rounding.
    """

    boxes: int = 1_000_000
    seconds: float | int | None = None
    batch: int = 512
    rounding: str = "real"
    checkpoint: Any = None
    progress: bool = False
    check: bool = True

    def __post_init__(self) -> None:
        if self.rounding not in ("real", "float"):
            raise ValueError(f"rounding: expected 'real' or 'float', got {self.rounding!r}")
        for name in ("boxes", "batch"):
            value = getattr(self, name)
            if not is_count(value):
                raise ValueError(f"{name}: expected an integer > 0, got {value!r}")
        if self.seconds is not None and not self.seconds > 0:
            raise ValueError(f"seconds: expected a number > 0 or None, got {self.seconds!r}")


class Judged(NamedTuple):
    """What is known of a batch of boxes.

    **Arguments:**

    - `rules`: the number of a rule that holds in each, 0 where none does.
    - `axes`: along which to cut.
    - `counterexample`: a point of one of them at which the claim fails, or `None`.
    """

    rules: np.ndarray
    axes: np.ndarray
    counterexample: np.ndarray | None = None


class Tree:
    """Boxes cut into boxes. The two parts of a node come one after the other; the root is node 0.

    **Arguments:**

    - `low`, `high`: the root, float64 [dimension].
    """

    def __init__(self, low: Any, high: Any):
        self.low, self.high = np.array(low, np.float64), np.array(high, np.float64)
        self.rule, self.axis, self.at, self.child = (
            np.full(1, OPEN, np.int8),
            np.zeros(1, np.int32),
            np.zeros(1),
            np.zeros(1, np.int64),
        )
        # Boxes that are still open: their nodes and ends.
        self.nodes, self.lows, self.highs = np.zeros(1, np.int64), self.low[None].copy(), self.high[None].copy()
        # Those of them that cannot be cut any more.
        self.stuck = [self.nodes[:0], self.lows[:0], self.highs[:0]]
        self.looked = 0

    def settle(self, nodes: np.ndarray, rules: np.ndarray) -> None:
        """Makes nodes leaves."""
        self.rule[nodes] = rules

    def cut(self, nodes: np.ndarray, lows: np.ndarray, highs: np.ndarray, axes: np.ndarray) -> None:
        """Cuts boxes in the middle along an axis each, and puts their parts on the stack. Boxes that are one number wide there
        stay open for ever."""
        rows = np.arange(len(nodes))
        at = 0.5 * lows[rows, axes] + 0.5 * highs[rows, axes]
        inside = (lows[rows, axes] < at) & (at < highs[rows, axes])
        self.stuck = [
            np.concatenate(v) for v in zip(self.stuck, (nodes[~inside], lows[~inside], highs[~inside]), strict=True)
        ]
        nodes, lows, highs, axes = nodes[inside], lows[inside], highs[inside], axes[inside]
        rows, count = np.arange(len(nodes)), len(self.rule)
        at = 0.5 * lows[rows, axes] + 0.5 * highs[rows, axes]
        first = count + 2 * rows
        self.rule[nodes], self.axis[nodes], self.at[nodes], self.child[nodes] = CUT, axes, at, first
        more = 2 * len(nodes)
        self.rule = np.append(self.rule, np.full(more, OPEN, np.int8))
        self.axis, self.at = np.append(self.axis, np.zeros(more, np.int32)), np.append(self.at, np.zeros(more))
        self.child = np.append(self.child, np.zeros(more, np.int64))
        below, above = highs.copy(), lows.copy()
        below[rows, axes] = above[rows, axes] = at
        self.nodes = np.concatenate([self.nodes, first, first + 1])
        self.lows, self.highs = np.concatenate([self.lows, lows, above]), np.concatenate([self.highs, below, highs])

    def take(self, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The last boxes of the stack, which are taken from it."""
        out = self.nodes[-count:], self.lows[-count:], self.highs[-count:]
        self.nodes, self.lows, self.highs = self.nodes[:-count], self.lows[:-count], self.highs[:-count]
        return out

    def put_back(self, nodes: np.ndarray, lows: np.ndarray, highs: np.ndarray) -> None:
        self.nodes = np.concatenate([self.nodes, nodes])
        self.lows, self.highs = np.concatenate([self.lows, lows]), np.concatenate([self.highs, highs])

    @property
    def left(self) -> tuple[np.ndarray, np.ndarray]:
        """The boxes that are not decided."""
        return np.concatenate([self.lows, self.stuck[1]]), np.concatenate([self.highs, self.stuck[2]])

    @property
    def leaves(self) -> int:
        return int((self.rule > CUT).sum())

    @property
    def share(self) -> float:
        """The share of the volume that is decided; of boxes without a width along an axis, along the others."""
        width = np.where(self.high > self.low, self.high - self.low, 1)
        lows, highs = self.left
        open_boxes = np.prod(np.where(self.high > self.low, (highs - lows) / width, 1), axis=1)
        return float(1 - open_boxes.sum())

    def arrays(self) -> dict[str, np.ndarray]:
        """The tree as it is written: a node, its lower part, its upper part."""
        order, waiting = [], [0]
        while waiting:
            node = waiting.pop()
            order.append(node)
            if self.rule[node] == CUT:
                waiting += [int(self.child[node]) + 1, int(self.child[node])]
        return {"rule": self.rule[order], "axis": self.axis[order], "at": self.at[order]}

    def state(self) -> dict[str, np.ndarray]:
        """All of it, to go on from."""
        names = ("low", "high", "rule", "axis", "at", "child", "nodes", "lows", "highs")
        stuck = dict(zip(STUCK, self.stuck, strict=True))
        return {name: getattr(self, name) for name in names} | stuck | {"looked": np.asarray(self.looked)}

    @classmethod
    def restored(cls, state: dict[str, np.ndarray]) -> "Tree":
        """The tree of a `state`."""
        tree = cls(state["low"], state["high"])
        tree.stuck = [state.pop(name) for name in STUCK]
        for name, value in state.items():
            setattr(tree, name, int(value) if name == "looked" else value)
        return tree


class Run:
    """What it may take, the progress bar and the file that the questions of one proof share.

    **Arguments:**

    - `prover`: a `Prover`.
    - `file`: where unfinished trees are kept, or `None`.
    - `identity`: what has to be the same to go on from the file.
    - `progress`: whether a bar is shown.
    """

    def __init__(self, prover: Prover, file: Path | None, identity: str, progress: bool):
        self.prover, self.file, self.identity = prover, file, identity
        self.begun, self.saved, self.looked = time.monotonic(), time.monotonic(), 0
        self.trees: dict[str, Tree] = {}
        self.bar = tqdm(total=1.0, disable=not progress, bar_format="{l_bar}{bar}| {postfix}")
        if file is not None and file.exists():
            self._resume(file)

    def _resume(self, file: Path) -> None:
        header, arrays = read_archive(file)
        if header.get("identity") != self.identity:
            raise ValueError(f"folder: expected the frontier of the same proof in {file}, got that of another")
        for name in header["names"]:
            state = {
                key[len(name) + 1 :].strip("[']"): value for key, value in arrays.items() if key.startswith(f"{name}/")
            }
            self.trees[name] = Tree.restored(state)

    def save(self) -> None:
        """Writes all trees; the file is replaced as a whole."""
        if self.file is None:
            return
        arrays = {name: tree.state() for name, tree in self.trees.items()}
        write_archive(self.file, {"identity": self.identity, "names": list(arrays)}, arrays)
        self.saved = time.monotonic()

    @property
    def spent(self) -> bool:
        late = self.prover.seconds is not None and time.monotonic() - self.begun > self.prover.seconds
        return late or self.looked >= self.prover.boxes

    def branch(self, name: str, judge: Callable[[Any, Any], Judged], low: Any, high: Any) -> tuple[Tree, Any]:
        """Cuts a box until `judge` has decided all parts, a counterexample is found, or the prover has no more boxes or time.

        **Returns:** the tree, whose stack is empty where all is decided; and the counterexample or `None`.
        """
        tree = self.trees.setdefault(name, Tree(low, high))
        while len(tree.nodes) and not self.spent:
            nodes, lows, highs = tree.take(min(self.prover.batch, max(1, self.prover.boxes - self.looked)))
            try:
                found = judge(lows, highs)
            except BaseException as error:
                tree.put_back(nodes, lows, highs)
                self._keep(error)
                raise
            tree.looked, self.looked = tree.looked + len(nodes), self.looked + len(nodes)
            if found.counterexample is not None:
                tree.put_back(nodes, lows, highs)
                self.save()
                return tree, found.counterexample
            decided = found.rules > 0
            tree.settle(nodes[decided], found.rules[decided])
            tree.cut(nodes[~decided], lows[~decided], highs[~decided], found.axes[~decided])
            try:
                self._show(name, tree)
            except BaseException as error:
                self._keep(error)
                raise
            if time.monotonic() - self.saved > SAVE_EVERY:
                self.save()
        self.save()
        return tree, None

    def _keep(self, error: BaseException) -> None:
        """Writes all trees before an error is raised; after Ctrl-C it says how to go on."""
        self.save()
        if isinstance(error, KeyboardInterrupt):
            go_on = f"the same call goes on from {self.file}" if self.file else "give folder=... to be able to go on"
            error.add_note(f"interrupted after {self.looked} boxes; {go_on}")

    def _show(self, name: str, tree: Tree) -> None:
        self.bar.n = tree.share
        self.bar.set_postfix_str(f"{name}: {tree.looked} boxes, {len(tree.nodes)} open", refresh=False)
        self.bar.refresh()
