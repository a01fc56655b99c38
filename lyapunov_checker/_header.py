"""What a proof says of its region: read field by field, and refused where that makes no sense."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from flint import arb

from ._limits import Refused, integer, number, numbers, record, sequence

FORMAT = "lyapunov proof 1"
FIELDS = (
    *("format", "claims", "domain", "faces", "tube", "start", "perturbation", "ball", "time", "level", "equilibrium"),
    *("strict", "programs"),
)


class Header(NamedTuple):
    """What is claimed, and where.

    **Arguments:**

    - `claims`: their names, each once.
    - `lower`, `upper`: the box of states.
    - `time`: the first and the last time.
    - `least`, `most`: levels of V, or `None`.
    - `rest`: the equilibrium, or `None`.
    - `ball`: center and radius, or `None`.
    - `start`: lower and upper ends of the states at the first time.
    - `tube`: boxes [first, last, *lower, *upper] of times and states, or `None`.
    - `faces`: the states of which one is at an end.
    - `strict`: whether < is claimed instead of <=.
    - `context`, `radius`, `gain`, `slope`: of the perturbation.
    """

    claims: list[str]
    lower: list[float]
    upper: list[float]
    time: list[float]
    least: float | None
    most: float | None
    rest: list[float] | None
    ball: tuple[list[float], float] | None
    start: list[list[float]]
    tube: list[list[float]] | None
    faces: list[int]
    strict: bool
    context: list[float] | None
    radius: float
    gain: float
    slope: float


def read_header(header: Mapping[str, Any]) -> Header:
    """The fields of a header with their types; refuses what contradicts itself."""
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise Refused(f"format: expected {FORMAT!r}, got another")
    record("header", header, FIELDS)
    domain = record("domain", header["domain"], ("lower", "upper"))
    lower = numbers("domain", domain["lower"])
    n = len(lower)
    upper = numbers("domain", domain["upper"], n)
    if n < 1 or not all(a < b for a, b in zip(lower, upper, strict=True)):
        raise Refused("domain: expected finite lower < upper, as many as there are states")
    time = numbers("time", header["time"], 2)
    if not 0 <= time[0] <= time[1]:
        raise Refused("time: expected 0 <= first <= last")
    levels = sequence("level", header["level"])
    if len(levels) != 2:
        raise Refused("level: expected the least and the most, or none of them")
    least, most = (None if v is None else number("level", v) for v in levels)
    if least is not None and most is not None and least > most:
        raise Refused("level: expected least <= most, as no state is between them")
    ball = _ball(header["ball"], lower, upper)
    rest = None if header["equilibrium"] is None else numbers("equilibrium", header["equilibrium"], n)
    if rest is not None and not all(a < v < b for a, v, b in zip(lower, rest, upper, strict=True)):
        raise Refused("equilibrium: expected a state inside of the domain")
    if rest is not None and ball is not None:
        apart = sum(((arb(v) - arb(c)) ** 2 for v, c in zip(rest, ball[0], strict=True)), arb(0))
        if not apart < arb(ball[1]) ** 2:
            raise Refused("equilibrium: expected a state inside of the ball")
    ends = record("start", header["start"], ("lower", "upper"))
    start = [numbers("start", ends[side], n) for side in ("lower", "upper")]
    if not all(a <= b for a, b in zip(*start, strict=True)):
        raise Refused("start: expected lower <= upper")
    tube = None if header["tube"] is None else _tube(header["tube"], time, lower, upper)
    faces = [integer("faces", i, 0, n - 1) for i in sequence("faces", header["faces"])]
    if faces and (tube is not None or ball is not None or len(set(faces)) < len(faces)):
        raise Refused("faces: expected indices of states, of a box, each once")
    if not isinstance(header["strict"], bool):
        raise Refused("strict: expected true or false")
    claims = sequence("claims", header["claims"])
    if not claims or not all(isinstance(c, str) for c in claims) or len(set(claims)) < len(claims):
        raise Refused("claims: expected names, each once")
    context, radius, gain, slope = None, 0.0, 0.0, 0.0
    if header["perturbation"] is not None:
        around = record("perturbation", header["perturbation"], ("center", "radius", "gain", "slope"))
        context = numbers("perturbation", around["center"])
        radius, gain, slope = (number("perturbation", around[key]) for key in ("radius", "gain", "slope"))
        if not context or min(radius, gain, slope) < 0:
            raise Refused("perturbation: expected a context and a radius, a gain and a slope >= 0")
    if "robust" in claims and context is None:
        raise Refused("robust: expected a perturbation")
    return Header(
        *(list(claims), lower, upper, time, least, most, rest, ball, start, tube, faces, header["strict"]),
        *(context, radius, gain, slope),
    )


def _ball(value: Any, lower: list[float], upper: list[float]) -> tuple[list[float], float] | None:
    if value is None:
        return None
    record("ball", value, ("center", "radius"))
    center, radius = numbers("ball", value["center"], len(lower)), number("ball", value["radius"])
    if not radius > 0:
        raise Refused("ball: expected a radius > 0")
    for c, a, b in zip(center, lower, upper, strict=True):
        if not (bool(a <= arb(c) - arb(radius)) and bool(arb(c) + arb(radius) <= b)):
            raise Refused("ball: it is not inside of the box of the domain")
    return center, radius


def _tube(value: Any, time: list[float], lower: list[float], upper: list[float]) -> list[list[float]]:
    """A tube is boxes [first, last, *lower, *upper] of times and states, each from where the one before ends."""
    n, before = len(lower), time[0]
    rows = [numbers("tube", row, 2 + 2 * n) for row in sequence("tube", value)]
    if not rows:
        raise Refused("tube: it has no boxes")
    for row in rows:
        first, last, low, high = row[0], row[1], row[2 : 2 + n], row[2 + n :]
        inside = all(a <= p <= q <= b for a, p, q, b in zip(lower, low, high, upper, strict=True))
        if not (first == before and first <= last and inside):
            raise Refused("tube: its boxes are not in the domain, or do not follow each other in time")
        before = last
    if before != time[1]:
        raise Refused("tube: it does not reach the last time")
    return rows
