"""Decides boxes of one claim by bounds, cheaper ones first; proofs of systems that differ in their weights share programs."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from .. import bounds
from .._interpret import Staged
from ._branch import Judged
from ._known import fingerprint, options, remembered
from ._region import Region, distances

# Rules of leaves, as the checker numbers them.
HOLDS, ABOVE, BELOW, REST, OUTSIDE = 1, 2, 3, 4, 5
# Of the extent of a region: the half-width of the box around a point that refutes a claim about derivatives.
NEAR = 1e-12
# How many points are looked at in exact arithmetic.
PATIENCE = 64
# A cheaper method is asked first as long as it decides this share of the boxes.
WORTH = 0.1
Rounding = Literal["real", "float"]


class Compiled(NamedTuple):
    """The functions of a judge.

    **Arguments:**

    - `methods`: (lows, highs, *fixed, *weights) -> r at most, V at least and at most, by method.
    - `looked`: where to cut boxes, points that may refute, and r and V there.
    - `certain`: bounds in one box.
    - `traced`: what the functions were recognized by; kept, since addresses of objects may be in its text.
    """

    methods: dict[str, Callable]
    looked: Callable
    certain: Callable
    traced: Any


# Programs by what they compute: proofs of the same system for other levels and regions do not compile it again.
_KNOWN: dict[str, Compiled] = {}


def _compiled(
    function: Callable, example: Sequence[Any], around: tuple[Any, Any] | None, rounding: Rounding
) -> tuple[Compiled, tuple[Any, ...]]:
    """The functions, and the arrays that they take last: the weights, so that networks of one shape share programs."""
    nominal = () if around is None else (around[0],)
    digest = hashlib.sha256(repr((rounding, None if around is None else around[1])).encode())
    closed = jax.make_jaxpr(function)(*example, *nominal)
    free = [i for i, c in enumerate(closed.consts) if _plain(np.asarray(c))]
    fingerprint(digest, closed, *nominal, *(np.shape(v) for v in example), without=free)
    key, count = digest.hexdigest(), len(example)

    def opened(*args: Any) -> Any:
        # z, fixed, weights, u.
        known = dict(zip(free, args[count : count + len(free)], strict=True))
        consts = [known.get(i, c) for i, c in enumerate(closed.consts)]
        given = ClosedJaxpr(closed.jaxpr, consts)
        return tuple(jaxpr_as_fun(given)(*args[:count], *args[count + len(free) :]))

    made = remembered(_KNOWN, key, lambda: _made(opened, around, rounding, nominal, closed))
    return made, tuple(closed.consts[i] for i in free)


def _plain(array: np.ndarray) -> bool:
    """Whether an array may be an argument of a program: floats that no processor flushes, whose rules need not look at them."""
    if array.dtype != np.float64 or array.ndim == 0:
        return False
    size = np.abs(array)
    return bool((np.isfinite(size) & ((size == 0) | (size >= np.finfo(np.float64).tiny))).all())


def _made(
    function: Callable, around: tuple[Any, Any] | None, rounding: Rounding, nominal: tuple[Any, ...], traced: Any
) -> Compiled:
    more = () if around is None else (bounds.Box.around(*around),)
    points = [bounds.Box(u, u) for u in nominal]

    def bounded(method: Any) -> Callable:
        def one(low: Any, high: Any, *fixed: Any) -> Any:
            of = bounds.bound(function, bounds.Box(low, high), *fixed, *more, method=method, rounding=rounding)
            (_, v_low), (r, v) = of.lower, of.upper
            return r, v_low, v

        return _batched(one)

    def looked(low: Any, high: Any, *fixed: Any) -> Any:
        nominally = lambda z: function(z, *fixed, *nominal)
        slope = jax.grad(lambda z: nominally(z)[0])
        # Where to cut: the largest change of r along an axis that its derivatives allow.
        steep = bounds.bound(slope, bounds.Box(low, high), method="ibp", rounding="real")
        size = jnp.maximum(jnp.abs(steep.lower), jnp.abs(steep.upper))
        smear = jnp.where(jnp.isfinite(size), size, 1e30) * (high - low)
        # Points that may refute: the center, and the corner to which r rises.
        center = 0.5 * low + 0.5 * high
        rising = slope(center)
        tried = jnp.stack([center, jnp.where(rising > 0, high, jnp.where(rising < 0, low, center))])
        return smear, tried, *jax.vmap(nominally)(tried)

    def certain(low: Any, high: Any, *fixed: Any) -> Any:
        found = bounds.bound(function, bounds.Box(low, high), *fixed, *points, method="ibp", rounding=rounding)
        return found.lower, found.upper

    methods = {method: bounded(method) for method in ("ibp", "crown")}
    return Compiled(methods, _batched(looked), Staged(certain), traced)


class Judge:
    """Decides boxes of one claim, by cheaper bounds first.

    **Arguments:**

    - `function`: (z, *fixed, *u) -> (r, v): the claim is r <= `limit` (< where `strict`) where v is between the levels.
    - `region`: where the levels and the ball are.
    - `strict`, `rounding`: of the claim.
    - `at_rest`: (low, high) -> whether the claim holds in a box at the equilibrium by second derivatives; `None` without
        an equilibrium.
    - `around`: center and radius of u, for all of which the claim is; `None` without one.
    - `fixed`: what tells apart questions that share this judge; may be set later, of the same shapes.
    - `derived`: whether r is made of derivatives. What JAX takes for one at a kink need not be between those on its sides (that of
        relu(s) - relu(-s) = s is 0 at 0), so a point refutes only where all of a small box around it does.
    - `exact`: a point at which r evaluates to `limit` -> whether it is at least that there in exact arithmetic, which refutes a strict
        claim.
    - `limit`: of r. Claims that differ in it alone share their programs.
    """

    def __init__(
        self,
        function: Callable,
        region: Region,
        *,
        strict: bool,
        rounding: Rounding,
        at_rest: Callable[[np.ndarray, np.ndarray], bool] | None = None,
        around: tuple[Any, Any] | None = None,
        fixed: tuple[Any, ...] = (),
        derived: bool = False,
        exact: Callable[[np.ndarray], bool] | None = None,
        limit: float = 0.0,
    ):
        self.derived, self.exact, self.patience = derived, exact, PATIENCE
        self.region, self.strict, self.at_rest = region, strict, at_rest
        self.fixed, self.limit = fixed, limit
        self.tried, self.decided = {"ibp": 1.0, "crown": 1.0}, {"ibp": 1.0, "crown": 1.0}
        self.compiled, self.weights = _compiled(function, (region.low[0], *fixed), around, rounding)

    def __call__(self, lows: np.ndarray, highs: np.ndarray) -> Judged:
        rules = np.zeros(len(lows), np.int8)
        if self.region.ball is not None:
            center, radius = self.region.ball
            rules[distances(center, lows[:, 1:], highs[:, 1:]) > radius**2 * (1 + 1e-12)] = OUTSIDE
        for method, bounded in self.compiled.methods.items():
            todo = np.flatnonzero(rules == 0)
            # Now and then a method that was of no use is tried again.
            useful = self.decided[method] >= WORTH * self.tried[method] or self.tried["crown"] % 16 < 1
            if not len(todo) or (method == "ibp" and not useful):
                continue
            r, v_low, v_high = self._of(bounded, lows[todo], highs[todo])
            found = np.zeros(len(todo), np.int8)
            found[r < self.limit if self.strict else r <= self.limit] = HOLDS
            if self.region.most is not None:
                found[v_low > self.region.most] = ABOVE
            if self.region.least is not None:
                found[v_high < self.region.least] = BELOW
            rules[todo] = found
            # An average over about the last eight batches.
            self.tried[method] = 0.9 * self.tried[method] + 1
            self.decided[method] = 0.9 * self.decided[method] + (found > 0).mean()
        if self.at_rest is not None:
            for i in np.flatnonzero(rules == 0):
                rules[i] = REST if self.at_rest(lows[i], highs[i]) else 0
        todo = np.flatnonzero(rules == 0)
        axes = np.zeros(len(lows), np.int32)
        if not len(todo):
            return Judged(rules, axes)
        smear, points, r, v = self._of(self.compiled.looked, lows[todo], highs[todo])
        width = highs[todo] - lows[todo]
        # Along an axis of no width there is nothing to cut, and where r does not change at all the widest is taken.
        smear = np.where(width > 0, smear, -1)
        axes[todo] = np.where(smear.max(axis=1) > 0, smear.argmax(axis=1), width.argmax(axis=1))
        return Judged(rules, axes, self._refuted(points.reshape(-1, points.shape[-1]), r.ravel(), v.ravel()))

    def _of(self, function: Callable, lows: np.ndarray, highs: np.ndarray) -> list[np.ndarray]:
        """A function of boxes, for as many at a time as it is compiled for."""
        parts = []
        for i in range(0, len(lows), TOGETHER):
            low, high = lows[i : i + TOGETHER], highs[i : i + TOGETHER]
            pad = lambda a: np.concatenate([a, np.repeat(a[-1:], TOGETHER - len(a), axis=0)])
            parts.append([np.asarray(v)[: len(low)] for v in function(pad(low), pad(high), *self.fixed, *self.weights)])
        return [np.concatenate(v) for v in zip(*parts, strict=True)]

    def _refuted(self, points: np.ndarray, r: np.ndarray, v: np.ndarray) -> np.ndarray | None:
        """A point at which the claim certainly fails, rounding counted."""
        most = np.inf if self.region.most is None else self.region.most
        least = -np.inf if self.region.least is None else self.region.least
        r = np.where((v <= most) & (v >= least) & np.isfinite(r), r, -np.inf)
        for i in np.argsort(-r)[:8]:
            if not r[i] > self.limit:
                break
            if self.fails(points[i], least, most):
                return points[i]
        if self.strict and self.exact is not None and self.patience > 0:
            for z in np.unique(points[r == self.limit], axis=0)[:4]:
                self.patience -= 1
                if self.inside(z) and self.exact(z):
                    return z
        return None

    def inside(self, z: np.ndarray) -> bool:
        """Whether a point is in the ball, if there is one, rounding counted."""
        if self.region.ball is None:
            return True
        center, radius = self.region.ball
        return bool(((z[1:] - center) ** 2).sum() * (1 + 1e-12) <= radius**2)

    def fails(self, z: np.ndarray, least: float, most: float) -> bool:
        """Whether a point is in the region, and r above the limit there, rounding counted, or in all of a small box around it."""
        if not self.inside(z):
            return False
        low = high = z
        if self.derived:
            ends = self.region.low.min(axis=0), self.region.high.max(axis=0)
            reach = NEAR * (ends[1] - ends[0]) + 4 * np.spacing(np.abs(z))
            # With a part inside of the region that has a volume.
            low, high = np.maximum(z - reach, ends[0]), np.minimum(z + reach, ends[1])
        (r_low, v_low), (_, v_high) = self.compiled.certain(low, high, *self.fixed, *self.weights)
        return bool(
            r_low > self.limit and np.isfinite(v_low) and np.isfinite(v_high) and v_high <= most and v_low >= least
        )


# Boxes that are bounded together: their coefficients fit into the cache, and one size is compiled.
TOGETHER = 64


def _batched(one: Callable) -> Callable:
    """A function of one box for many."""
    mapped = lambda low, high, *fixed: jax.vmap(lambda a, b: one(a, b, *fixed))(low, high)
    return Staged(mapped, options(jax.default_backend()))
