"""Boxes cut into boxes: the cover of a region is a tree, so that its leaves leave no gap whatever they are."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ._program import Refused

CUT = 0


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
    for rule, axis, at in zip(rules.tolist(), axes.tolist(), places.tolist(), strict=True):
        if not waiting:
            raise Refused(f"{name}: the tree of boxes goes on after its end")
        least, most = waiting.pop()
        if rule != CUT:
            yield Leaf(least, most, rule)
            continue
        if not 0 <= axis < len(least) or not least[axis] <= at <= most[axis]:
            raise Refused(f"{name}: a box is cut where it is not")
        waiting.append(([*least[:axis], at, *least[axis + 1 :]], most))
        waiting.append((least, [*most[:axis], at, *most[axis + 1 :]]))
    if waiting:
        raise Refused(f"{name}: {len(waiting)} boxes of the tree are missing")
