"""What holds exactly at a point: in the checker's arithmetic, in which 1 - 1 is 0 and not a small interval around it."""

from typing import Any

import numpy as np

from .._types import number
from ._proof import Rest, precision


def at_rest(rest: Rest | None, claims: list[str], strict: bool, least: float | None) -> str:
    """Why no box around the equilibrium can be decided for "decrease", which can be said before any is looked at; empty where that is
    not known.

    There dV/dt - comparison(t, V) has to be below 0, or exactly 0 with its first derivatives.
    """
    if rest is None or rest.checked is None or "decrease" not in claims or least is not None:
        return ""
    from lyapunov_checker import Refused

    checked: Any = rest.checked
    times = [checked.time[0], *checked.rest], [checked.time[1], *checked.rest]
    with precision():
        try:
            first, _ = checked._taylor(checked.excess)
            smooth = True
        except Refused:
            # Of V = |x|, for one.
            first, smooth = [], False
        r, v, *slopes = checked.values([checked.excess, checked.potential, *first], *times)
        (field,) = checked.values([checked.f], *times)
        # Nothing is claimed there.
        if checked.away(*times) or (checked.most is not None and bool(v.low[0] > checked.most)):
            return ""
        exact = lambda form: all(bool(a == 0) and bool(b == 0) for a, b in zip(form.low, form.high, strict=True))
        if bool(r.high[0] < 0) or (not strict and bool(r.high[0] <= 0)) or (smooth and all(map(exact, [r, *slopes]))):
            return ""
        if checked.own_rate:
            return ""
        if not smooth:
            return (
                "dV/dt - comparison(t, V) has no second derivatives at the equilibrium that a proof may use, so no box around it can be "
                "decided; write V without steps and choices there, or claim it from a level on, level=(least, c)"
            )
        if not exact(field):
            pairs = zip(field.low, field.high, strict=True)
            ends = [(float(a), float(b)) for a, b in pairs]
            wrong = [i for i, (a, b) in enumerate(ends) if not a == b == 0]
            low, high = ends[wrong[0]]
            sure = low > 0 or high < 0
            return (
                f"the field at the equilibrium {'is not' if sure else 'is not known to be'} exactly 0, its entry {wrong[0]} is between "
                f"{number(low)} and {number(high)}; so dV/dt {'is not' if sure else 'is not known to be'} 0 there, and no box around it "
                "can be decided. Write that entry such that it is 0 without rounding (sin(d + a) - sin(a) as "
                "2 sin(d/2) cos(a + d/2), for one), or claim it from a level on, level=(least, c) with a small least"
            )
        return (
            "dV/dt - comparison(t, V) and its first derivatives are not known to be exactly 0 at the equilibrium, so no box around it can "
            "be decided; write V such that it is 0 there without rounding, or claim it from a level on, level=(least, c)"
        )


def violates(rest: Rest | None, name: str, z: np.ndarray) -> bool:
    """Whether a strict claim fails at a point by an equality: V <= 0 beside the equilibrium, or dV/dt >= comparison(t, V) there."""
    if rest is None or rest.checked is None or (z[1:] == np.asarray(rest.checked.rest)).all():
        return False
    checked: Any = rest.checked
    point = z.tolist()
    with precision():
        r, v = checked.values([checked.excess, checked.potential], point, point)
        if name == "definite":
            return bool(v.high[0] <= 0)
        inside = (checked.most is None or bool(v.high[0] <= checked.most)) and (
            checked.least is None or bool(v.low[0] >= checked.least)
        )
        return inside and bool(r.low[0] >= 0)
