"""Where something is to be proved: boxes of (t, state), a ball among them, and levels of V."""

from typing import Any, NamedTuple

import jax
import numpy as np

from .._domain import Ball, Box, Domain, Product
from .._types import shown
from .._variational import Faces


class Region(NamedTuple):
    """Boxes of (t, state), of which only the states in a ball count where there is one, and of these only those with V between
    two levels.

    **Arguments:**

    - `low`, `high`: float64 [pieces, 1 + states].
    - `ball`: center and radius, or `None`.
    - `least`, `most`: levels, or `None`.
    - `faces`: the coordinates of which one is at an end, if that is asked.
    """

    low: np.ndarray
    high: np.ndarray
    ball: tuple[np.ndarray, float] | None
    least: float | None
    most: float | None
    faces: tuple[int, ...] = ()


def box_of(domain: Domain, start: Any) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, float] | None]:
    """The ends of a domain along every flat coordinate, and the ball that it is, if any."""
    if isinstance(domain, Ball):
        leaves = jax.tree.leaves(start)
        center = np.concatenate([np.broadcast_to(domain.center.written(), s.shape).ravel() for s in leaves])
        radius = float(domain.radius.written())
        # The sum may be rounded inward, by less than this.
        reach = np.nextafter(radius, np.inf)
        low, high = np.nextafter(center - reach, -np.inf), np.nextafter(center + reach, np.inf)
        return low, high, (center, radius)

    def ends(domain: Domain, start: Any) -> list[tuple[Any, Any]]:
        if isinstance(domain, Faces):
            side = domain.half_width.written()
            return [(np.full(leaf.size, -side), np.full(leaf.size, side)) for leaf in jax.tree.leaves(start)]
        if not isinstance(domain, Box):
            raise ValueError(f"domain: expected a Box, a Ball or a Product of Boxes and Faces, got {shown(domain)}")
        sides = (domain.lower.written(), domain.upper.written())
        spread = lambda v, leaf: np.broadcast_to(v, leaf.shape).ravel()
        return [(spread(sides[0], leaf), spread(sides[1], leaf)) for leaf in jax.tree.leaves(start)]

    if isinstance(domain, Product):
        is_domain = lambda node: isinstance(node, Domain)
        parts = jax.tree.map(lambda d, s: ends(d, s), domain.parts, start, is_leaf=is_domain)
        pairs = [pair for part in jax.tree.leaves(parts, is_leaf=lambda n: isinstance(n, list)) for pair in part]
    else:
        pairs = ends(domain, start)
    low, high = (np.concatenate(v).astype(np.float64) for v in zip(*pairs, strict=True))
    return low, high, None


def faces_of(domain: Domain, start: Any) -> list[int]:
    """The flat coordinates of which one has to be at an end."""
    is_domain = lambda node: isinstance(node, Domain)
    whole = lambda d, s: jax.tree.map(lambda leaf: np.full(leaf.shape, isinstance(d, Faces)), s)
    parts = domain.parts if isinstance(domain, Product) else domain
    marked = jax.tree.map(whole, parts, start, is_leaf=is_domain)
    flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(marked)])
    return [int(i) for i in np.flatnonzero(flat)]


def distances(center: np.ndarray, lows: np.ndarray, highs: np.ndarray) -> np.ndarray:
    """Squared distances of boxes from a point, at least, rounded down."""
    nearest = np.maximum(np.maximum(lows - center, center - highs), 0)
    return (nearest**2).sum(axis=1) * (1 - 1e-12)
