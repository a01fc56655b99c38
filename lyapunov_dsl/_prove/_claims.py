"""What the claims about a region are: what decides them, and in which boxes."""

import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from .._condition import Condition
from .._depends import depends
from .._types import exactly, is_finite, levels, number
from ._exact import violates
from ._judge import Judge, Rounding
from ._proof import Rest
from ._question import Functions
from ._region import Region, box_of, faces_of
from ._tube import Tube

CLAIMS = ("decrease", "definite", "enclosed", "invariant", "stays", "robust")


def tubular(tube: Tube, level: Any) -> Region:
    """The boxes of a tube, between levels."""
    low, high = np.column_stack([tube.times[:-1], tube.lower]), np.column_stack([tube.times[1:], tube.upper])
    return Region(low, high, None, *levels(level))


def checked_claims(claims: Any, level: Any, equilibrium: Any, perturbation: Any) -> list[str]:
    """Claims in their order. Raises `ValueError` where something that one of them needs is missing."""
    claims = [claims] if isinstance(claims, str) else list(claims)
    wrong = [c for c in claims if c not in CLAIMS]
    if wrong or not claims:
        raise ValueError(f"claims: expected some of {CLAIMS}, got {wrong or 'none'}")
    if "enclosed" in claims and levels(level)[1] is None:
        raise ValueError("level: expected the level c of the claim 'enclosed', got none")
    if ("robust" in claims) != (perturbation is not None) or (
        perturbation is not None and not (is_finite(perturbation) and perturbation >= 0)
    ):
        raise ValueError(f"perturbation: expected a radius >= 0 with the claim 'robust', got {perturbation!r}")
    if "robust" in claims and not ({"decrease"} < set(claims) and set(claims) & {"enclosed", "invariant"}):
        raise ValueError(f"claims: expected 'decrease' and 'enclosed' or 'invariant' with 'robust', got {claims}")
    if "definite" in claims and equilibrium is None:
        raise ValueError("equilibrium: expected the state of the claim 'definite', got none")
    return [c for c in CLAIMS if c in claims]


def region_of(condition: Condition, domain: Any, state: Any, level: Any, time: Any, steady: bool) -> Region:
    """A domain and times, or the faces of a domain, between levels."""
    domain = condition.continuous.region if domain is None else domain
    domain.check(state)
    low, high, ball = box_of(domain, state)
    first, last = (0.0, condition.continuous.horizon) if time is None else _pair(time)
    if not (is_finite(first) and is_finite(last) and 0 <= first <= last):
        raise ValueError(f"time: expected (first, last) with 0 <= first <= last, got {time!r}")
    first, last = (exactly("time", t) for t in (first, last))
    if steady:
        first = last = 0.0
    piece = lambda t, v: np.concatenate([[t], v])[None]
    least, most = piece(first, low), piece(last, high)
    if faces := faces_of(domain, state):
        rows = [_at_end(least[0], most[0], i, side) for i in faces for side in (0, 1)]
        least, most = (np.stack(side) for side in zip(*rows, strict=True))
    return Region(least, most, ball, *levels(level), tuple(faces))


def _pair(time: Any) -> tuple[Any, Any]:
    if not (isinstance(time, Sequence | np.ndarray) and len(time) == 2):
        raise ValueError(f"time: expected (first, last) with 0 <= first <= last, got {time!r}")
    return time[0], time[1]


def _at_end(low: np.ndarray, high: np.ndarray, axis: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """A face of a box of (t, state): the lower or the upper end of one state."""
    low, high = low.copy(), high.copy()
    low[1 + axis] = high[1 + axis] = (low, high)[side][1 + axis]
    return low, high


def is_steady(told: Functions, start: Any) -> bool:
    """Whether nothing depends on time."""
    t = jnp.zeros(())
    of_state = [told.field, told.value, told.rate]
    return not (any(depends(f, t, start) for f in of_state) or depends(told.comparison, t, t))


def questions_of(
    told: Functions,
    region: Region,
    claims: list[str],
    strict: bool,
    rounding: Rounding,
    rest: Rest | None,
    radius: float | None,
) -> dict[str, tuple[str, Judge, list[tuple[Any, ...]]]]:
    """For each claim what it says, what decides boxes of it, and the boxes that it is about, with what is fixed there."""
    if region.ball is not None and {"enclosed", "invariant"} & set(claims):
        raise ValueError("domain: expected a Box for the claims 'enclosed' and 'invariant', got a Ball")
    free = region._replace(least=None, most=None)
    pairs = list(zip(region.low, region.high, strict=True))
    at = lambda name: [(name if len(pairs) == 1 else f"{name}.{i}", *pair) for i, pair in enumerate(pairs)]
    at_rest = lambda name: None if rest is None else functools.partial(rest, name)
    value = lambda z: told.value(z[0], z[1:])
    negative = lambda z: (-value(z), value(z))
    out: dict[str, Any] = {}
    if "decrease" in claims:
        sign = "<" if strict else "<="
        levels = "".join(
            f" and V {s} {number(v)}" for s, v in ((">=", region.least), ("<=", region.most)) if v is not None
        )
        exact = None if rest is None or told.own_rate else functools.partial(violates, rest, "decrease")
        judge = Judge(
            told.residual,
            region,
            strict=strict,
            rounding=rounding,
            at_rest=at_rest("decrease"),
            derived=True,
            exact=exact,
        )
        rate = "the rate that the certificate is about" if told.own_rate else "dV/dt"
        out["decrease"] = f"{rate} {sign} comparison(t, V) in H{levels}", judge, at("decrease")
    if "definite" in claims:
        judge = Judge(
            negative,
            free,
            strict=True,
            rounding=rounding,
            at_rest=at_rest("definite"),
            exact=None if rest is None else functools.partial(violates, rest, "definite"),
        )
        out["definite"] = "V is 0 at the equilibrium and above 0 elsewhere in H", judge, at("definite")
    if "enclosed" in claims:
        # By the programs of "definite".
        judge = Judge(negative, free, strict=True, rounding=rounding, limit=-np.float64(region.most))
        boxes = [(f"enclosed.{axis}.{side}", low, high) for axis, side, low, high in _faces(region)]
        out["enclosed"] = f"V > {number(region.most)} on the boundary of H", judge, boxes
    if "invariant" in claims:
        field = lambda z, *u: told.perturbed(z[0], z[1:], *u) if u else told.field(z[0], z[1:])
        judge = Judge(
            lambda z, normal, *u: (jnp.sum(normal * field(z, *u)), jnp.zeros(())),
            free,
            strict=False,
            rounding=rounding,
            around=None if radius is None else (told.context, radius),
            fixed=(np.zeros(region.low.shape[1] - 1),),
        )
        boxes = []
        for axis, side, low, high in _faces(region):
            normal = np.zeros(len(low) - 1)
            normal[axis] = -1.0 if side == "lower" else 1.0
            boxes.append((f"invariant.{axis}.{side}", low, high, normal))
        out["invariant"] = "the field does not point outward on the boundary of H", judge, boxes
    return out


def _faces(region: Region) -> list[tuple[int, str, np.ndarray, np.ndarray]]:
    out = []
    for axis in range(region.low.shape[1] - 1):
        for side in ("lower", "upper"):
            out.append((axis, side, *_at_end(region.low[0], region.high[0], axis, side == "upper")))
    return out
