"""Boxes cut into boxes: the cover of a region is a tree, so that its leaves leave no gap whatever they are."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ._limits import CELLS, Refused

CUT = 0
# Nodes that are numbers of Python at once.
CHUNK = 1 << 14
# How often a box may be cut along every axis, one part within the other: a float can be halved about so often.
DEPTH = 2200


class Leaf(NamedTuple):
    """A part of a box that is not cut further, faces included, and by which rule something holds there."""

    low: list[float]
    high: list[float]
    rule: int


def leaves(name: str, arrays: Mapping[str, np.ndarray], low: Sequence[float], high: Sequence[float]) -> Iterator[Leaf]:
    """The leaves of a tree over a box, in the order in which it is written: a node, its lower part, its upper part."""
    rules, axes, places = (arrays.get(f"{name}.{part}") for part in ("rule", "axis", "at"))
    if (
        rules is None
        or axes is None
        or places is None
        or rules.ndim != 1
        or not len(rules)
        or rules.dtype.kind not in "iu"
    ):
        raise Refused(f"{name}: the tree of boxes is missing")
    if (
        axes.shape != rules.shape
        or places.shape != rules.shape
        or axes.dtype.kind not in "iu"
        or places.dtype.kind != "f"
    ):
        raise Refused(f"{name}: the tree of boxes is no tree")
    if any(not a <= b for a, b in zip(low, high, strict=True)):
        raise Refused(f"{name}: the box is empty or has no ends")
    waiting = [(list(map(float, low)), list(map(float, high)))]
    for rule, axis, at in _nodes(rules, axes, places):
        if not waiting:
            raise Refused(f"{name}: the tree of boxes goes on after its end")
        least, most = waiting.pop()
        if rule != CUT:
            yield Leaf(least, most, rule)
            continue
        if not 0 <= axis < len(least) or not least[axis] <= at <= most[axis]:
            raise Refused(f"{name}: a box is cut where it is not")
        if len(waiting) > min(DEPTH * len(least), CELLS // len(least)):
            raise Refused(f"{name}: a box is cut into parts that are too many to hold")
        waiting.append(([*least[:axis], at, *least[axis + 1 :]], most))
        waiting.append((least, [*most[:axis], at, *most[axis + 1 :]]))
    if waiting:
        raise Refused(f"{name}: {len(waiting)} boxes of the tree are missing")


def _nodes(*columns: np.ndarray) -> Iterator[tuple[int, int, float]]:
    """The rows of columns, some at a time: all of them as numbers of Python would take ten times the room."""
    for first in range(0, len(columns[0]), CHUNK):
        yield from zip(*(column[first : first + CHUNK].tolist() for column in columns), strict=True)
