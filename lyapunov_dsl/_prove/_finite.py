"""Whether what a claim speaks of is a finite number everywhere: V, its rate, the comparison and the field."""

import hashlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import bounds
from .._types import numbers
from ._judge import _batched
from ._known import fingerprint, remembered
from ._question import Functions
from ._region import Region, distances

# Boxes that are looked at before it is not known.
MOST, TOGETHER = 8192, 64
_KNOWN: dict[str, Any] = {}


def parts_of(told: Functions, claims: list[str]) -> dict[str, Callable[..., Any]]:
    """The functions of z = (t, state) and, where it is perturbed, of the context, that claims speak of, by what they are called."""
    field = {"the field": lambda z, *u: told.perturbed(z[0], z[1:], *u) if u else told.field(z[0], z[1:])}
    if set(claims) <= {"invariant"}:
        return field
    value = lambda z, *u: told.value(z[0], z[1:])
    parts = {"V": value}
    if set(claims) - {"definite", "enclosed", "invariant"}:
        parts["the rate of V"] = lambda z, *u: told.rate(z[0], z[1:])[1]
        parts["comparison(t, V)"] = lambda z, *u: told.comparison(z[0], value(z))
    return parts if set(claims) <= {"definite", "enclosed"} else parts | field


def unknown(told: Functions, claims: list[str], region: Region, radius: float | None) -> tuple[str, Any]:
    """Why something that claims speak of is not known to be finite, with the boxes that are left; empty where all is.

    Bounds that are finite on both sides are of numbers: where an operation is not defined, the engine knows nothing of any result.
    Where V is beyond the levels "decrease" says nothing, so that it need not be finite there.
    """
    parts = parts_of(told, claims)
    if set(claims) & {"definite", "invariant"}:
        region = region._replace(least=None, most=None)
    function = lambda z, *u: {name: part(z, *u) for name, part in parts.items()}
    around = () if radius is None else (bounds.Box.around(told.context, radius),)
    closed = jax.make_jaxpr(function)(region.low[0], *([] if radius is None else [told.context]))
    digest = hashlib.sha256(repr((sorted(parts), radius)).encode())
    fingerprint(digest, closed, told.context)

    def one(low: Any, high: Any) -> Any:
        found = bounds.bound(function, bounds.Box(low, high), *around, method="ibp", rounding="real")
        good = lambda a, b: jnp.all(jnp.isfinite(a) & jnp.isfinite(b))
        finite = jax.tree.map(good, found.lower, found.upper)
        nowhere = (jnp.asarray(-jnp.inf), jnp.asarray(jnp.inf))
        return finite, *((found.lower["V"], found.upper["V"]) if "V" in parts else nowhere)

    looked = remembered(_KNOWN, digest.hexdigest(), lambda: _batched(one))
    lows, highs = region.low, region.high
    extent = np.where(highs.max(axis=0) > lows.min(axis=0), highs.max(axis=0) - lows.min(axis=0), np.inf)
    count, left = 0, []
    while len(lows) and count < MOST:
        low, high, lows, highs = lows[-TOGETHER:], highs[-TOGETHER:], lows[:-TOGETHER], highs[:-TOGETHER]
        pad = lambda a: np.concatenate([a, np.repeat(a[-1:], TOGETHER - len(a), axis=0)])
        size = len(low)
        finite, least, most = jax.tree.map(lambda v, size=size: np.asarray(v)[:size], looked(pad(low), pad(high)))
        count += size
        done = np.logical_and.reduce(list(finite.values()))
        if region.most is not None:
            done |= least > region.most
        if region.least is not None:
            done |= most < region.least
        if region.ball is not None:
            center, radius = region.ball
            done |= distances(center, low[:, 1:], high[:, 1:]) > radius**2 * (1 + 1e-12)
        low, high, rows = low[~done], high[~done], np.arange((~done).sum())
        finite = {name: v[~done] for name, v in finite.items()}
        axes = ((high - low) / extent).argmax(axis=1)
        at = 0.5 * low[rows, axes] + 0.5 * high[rows, axes]
        cut = (low[rows, axes] < at) & (at < high[rows, axes])
        left += [(low[i], high[i], [n for n, v in finite.items() if not v[i]]) for i in np.flatnonzero(~cut)]
        below, above = high[cut].copy(), low[cut].copy()
        below[rows[: cut.sum()], axes[cut]] = above[rows[: cut.sum()], axes[cut]] = at[cut]
        lows, highs = np.concatenate([lows, low[cut], above]), np.concatenate([highs, below, high[cut]])
        if left:
            break
    if not left and not len(lows):
        return "", None
    if left:
        low, high, names = left[0]
    else:
        finite, *_ = looked(*(np.repeat(v[-1:], TOGETHER, axis=0) for v in (lows, highs)))
        low, high, names = lows[-1], highs[-1], [n for n, v in finite.items() if not v[0]]
    where = f"in the box {numbers(low[1:])} to {numbers(high[1:])}"
    rest = (np.array([v[0] for v in left] + list(lows)), np.array([v[1] for v in left] + list(highs)))
    return f"{' and '.join(names) or 'V'} is not known to be finite {where}", rest
