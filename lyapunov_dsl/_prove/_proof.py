"""Proofs as objects: what was proved, frozen, in a form that `lyapunov_checker` reads without this library."""

import hashlib
import itertools
import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from .._save import structure, to_numpy
from ._branch import CUT, Tree
from ._export import export
from ._question import ABOVE, BELOW, HOLDS, OUTSIDE, REST, Functions, Region

FORMAT = "lyapunov proof 1"


def portable(
    told: Functions, size: int, region: Region, rest: np.ndarray | None, strict: bool, claims: list[str], steady: bool
) -> Any:
    """What the checker needs besides the trees: header and arrays; or the reason why it cannot be written."""
    from ..bounds import UnknownPrimitive

    try:
        programs, arrays = {}, {}
        for name, function, shape in (
            ("field", told.field, (size,)),
            ("value", told.value, (size,)),
            ("comparison", told.comparison, ()),
        ):
            programs[name], found = export(name, function, (), shape)
            arrays |= found
    except UnknownPrimitive as error:
        return str(error)
    header = {
        "format": FORMAT,
        "claims": list(dict.fromkeys(name.split(".")[0] for name in claims)),
        "domain": {"lower": region.low[0, 1:].tolist(), "upper": region.high[0, 1:].tolist()},
        "ball": None if region.ball is None else {"center": region.ball[0].tolist(), "radius": region.ball[1]},
        "time": [float(region.low[0, 0]), float(region.high[0, 0])],
        "level": [region.least, region.most],
        "equilibrium": None if rest is None else rest.tolist(),
        "strict": strict,
        "programs": programs,
    }
    return header, arrays


class Proof:
    """A proof that was found; write it with `save`.

    **Arguments:**

    - `record`: header and arrays without the trees, or why there are none.
    - `trees`: the cover of each claim, by name.
    - `condition`, `example`: what was proved, of which a hash is kept.
    - `status`: `"PROVED_REAL"` or `"PROVED_FLOAT"`.
    """

    def __init__(self, record: Any, trees: dict[str, Tree], condition: Any, example: Any, status: str):
        self.record, self.trees, self.status = record, trees, status
        self.frozen = _frozen(condition, example)

    def save(self, path: Any, *, boxes: int = 1_000_000) -> Path:
        """Writes the proof to a file that `python -m lyapunov_checker` checks.

        The checker does not search, and its bounds are a little wider than those that found the proof. So every leaf is tried with
        the checker's own rules here, and cut further where they do not decide it: this takes as long as checking.

        **Arguments:**

        - `path`: where to; the file is replaced as a whole.
        - `boxes`: how many boxes may be tried.

        **Raises:** `ValueError` where the functions use operations that the checker does not know, where more boxes would be
        needed, and where the file cannot be written.
        """
        from lyapunov_checker._check import PRECISION, Proof as Checked, seal

        if isinstance(self.record, str):
            raise ValueError(f"proof: expected functions that the checker knows, got others ({self.record})")
        header, arrays = self.record
        header = {**header, "frozen": self.frozen, "found": self.status}
        from flint import ctx

        before, ctx.prec = ctx.prec, PRECISION
        try:
            checked = Checked(header, arrays)
            left = itertools.count(boxes, -1)
            trees = {name: _refined(checked, name, tree, left) for name, tree in self.trees.items()}
        finally:
            ctx.prec = before
        for name, tree in trees.items():
            arrays = arrays | {f"{name}.{part}": value for part, value in tree.items()}
        header["sha256"] = seal(header, arrays)
        text = json.dumps(header)
        path = Path(path)
        partial = path.with_name(f".{path.name}.partial")
        try:
            with open(partial, "wb") as file:
                np.savez_compressed(file, header=np.frombuffer(text.encode(), np.uint8), **arrays)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise ValueError(f"save: expected a place that can be written, got {path} ({error})") from error
        return path


def _refined(checked: Any, name: str, tree: Tree, left: Any) -> dict[str, np.ndarray]:
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
        elif next(left) <= 0:
            raise ValueError("boxes: expected more, as the checker needs more boxes than that for this proof")
        else:
            others = [r for r in (HOLDS, ABOVE, BELOW, OUTSIDE, REST) if r != rule]
            decided = (r for r in (rule, *others) if checked.decides(name, r, low.tolist(), high.tolist()))
            rule = next(decided, CUT)
            axis = int(((high - low) / size).argmax())
            at = float(0.5 * low[axis] + 0.5 * high[axis])
        rules.append(rule)
        axes.append(axis)
        places.append(at)
        if rule == CUT:
            below, above = high.copy(), low.copy()
            below[axis] = above[axis] = at
            waiting += [(None if child is None else child + 1, above, high), (child, low, below)]
    return {"rule": np.array(rules, np.int8), "axis": np.array(axes, np.int32), "at": np.array(places)}


def _frozen(condition: Any, example: Any) -> dict[str, str]:
    """Hashes of what was proved: the declaration with its settings, and all its numbers."""
    text = structure((condition, example))
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves((condition, example)):
        if hasattr(leaf, "dtype"):
            digest.update(str(leaf.dtype).encode() + to_numpy(leaf).tobytes())
    return {
        "declaration": hashlib.sha256(text.encode()).hexdigest(),
        "numbers": digest.hexdigest(),
        "precision": ", ".join(sorted({str(v.dtype) for v in jax.tree.leaves(condition) if hasattr(v, "dtype")})),
        "jax": jax.__version__,
    }
