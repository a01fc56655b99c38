"""The attack on the bounds, at reduced size; `benchmarks/attack_bounds.py` is the whole of it."""

import collections
import sys
from pathlib import Path

import numpy as np
import pytest

from lyapunov_dsl import bounds

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import attack_bounds


def attack(numbers):
    counts = collections.Counter()
    for number in numbers:
        more, said = attack_bounds.attack(0, number)
        assert not said
        counts += more
    return counts


def test_nothing_is_found():
    counts = attack(range(3))
    assert counts["functions"] == 3
    assert counts["bounded"] + counts["refused"] == 3


@pytest.mark.slow
def test_nothing_is_found_in_more():
    counts = attack(range(3, 23))
    assert counts["bounded"] > 15
    assert counts["values"] > 40_000
    assert counts["finite_ends"] > 0.1 * counts["ends"]


def test_what_is_wrong_is_found(monkeypatch):
    """Bounds of another function, and an exception, are both seen."""
    right = bounds.bound

    def wrong(function, *args, **options):
        found = right(lambda x: x, *args, **options)
        return bounds.Bounds(found.lower, found.lower, found.assurance)

    monkeypatch.setattr(attack_bounds, "function_of", lambda rng, dtype: (lambda x: x + 1, 2))
    monkeypatch.setattr(bounds, "bound", wrong)
    counts, said = attack_bounds.attack(0, 0)
    assert counts[attack_bounds.UNSOUND] > 0
    assert said

    def broken(*args, **options):
        raise TypeError("no bounds")

    monkeypatch.setattr(bounds, "bound", broken)
    counts, said = attack_bounds.attack(0, 0)
    assert counts[attack_bounds.TRACEBACK] == 1
    assert "no bounds" in said[0]


def test_boxes_and_points_are_in_the_type_and_in_the_box():
    rng = np.random.default_rng(0)
    for kind in (np.float32, np.float64):
        low, high = attack_bounds.boxes_of(rng, np.dtype(kind), 3)
        points = attack_bounds.points_of(rng, low, high)
        assert low.dtype == high.dtype == points.dtype == kind
        assert (low <= high).all()
        assert ((low <= points) & (points <= high)).all()
        assert np.isfinite(points).all()
