"""What an operation makes of intervals and of affine forms, in Arb's arithmetic: the rules that have to be trusted.

A value of several entries is a `Form`: each entry is c + Σ aᵢ εᵢ with |εᵢ| <= 1, and lies between `low` and `high` as well. The first
symbols are those of the box, and whatever is not affine adds one of its own for every entry. All numbers are balls (`arb`) that hold
the exact one, so that nothing is lost to rounding. What nothing is known of is NaN, and no comparison with NaN is ever true.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from flint import arb, arb_mat

from ._curves import COSH, MORE, TAN, Curve

ZERO, ONE = arb(0), arb(1)
# [-1, 1].
AROUND = arb(0, 1)
Row = list[arb]


class Form(NamedTuple):
    """Entries as affine forms and as intervals.

    **Arguments:**

    - `rows`: for each entry [c, a1, a2, ...]; coefficients that are left out are 0.
    - `low`, `high`: the interval of each entry.
    - `fresh`: numbers of symbols that nothing has used yet, of all forms that are used together.
    """

    rows: list[Row]
    low: list[arb]
    high: list[arb]
    fresh: "itertools.count[int]"

    def ball(self, i: int) -> arb:
        """The interval of an entry as one ball."""
        return self.low[i].union(self.high[i])


def known(rows: list[Row], low: Sequence[arb], high: Sequence[arb], fresh: Any) -> Form:
    """A form with the better of the given intervals and those of its rows."""
    least, most = [], []
    for row, low_i, high_i in zip(rows, low, high, strict=True):
        reach = sum((abs(a) for a in row[1:]), ZERO)
        # Arb's maximum of a number and NaN is NaN: then the other one is taken.
        below, above = (row[0] - reach).lower(), (row[0] + reach).upper()
        least.append(low_i if below.is_nan() else below if low_i.is_nan() else below.max(low_i))
        most.append(high_i if above.is_nan() else above if high_i.is_nan() else above.min(high_i))
    return Form(rows, least, most, fresh)


def box(low: Sequence[float], high: Sequence[float], fresh: Any) -> Form:
    """The entries of a box, each with a symbol of its own where it has a width."""
    rows = []
    for a, b in zip(low, high, strict=True):
        rows.append([(arb(a) + arb(b)) / 2])
        if a != b:
            _symbol(rows[-1], (arb(b) - arb(a)) / 2, next(fresh))
    return Form(rows, [arb(a) for a in low], [arb(b) for b in high], fresh)


def _symbol(row: Row, size: arb, number: int) -> None:
    """Adds a symbol to a row."""
    row += [ZERO] * (number + 1 - len(row))
    row[number] = size


def _plus(x: Row, y: Row) -> Row:
    return [a + b for a, b in itertools.zip_longest(x, y, fillvalue=ZERO)]


def short(x: Form, count: int) -> Form:
    """The same with its first symbols alone. What the others add at a point is in a ball at the center then, as is all that is done with
    it: at every point for itself."""
    rest = [sum((abs(a) for a in row[count + 1 :]), ZERO) for row in x.rows]
    rows = [[row[0] + size * AROUND, *row[1 : count + 1]] for row, size in zip(x.rows, rest, strict=True)]
    return x._replace(rows=rows)


class Matrix(NamedTuple):
    """A linear map: `dense` rows, or entries (row, column, coefficient), of `size` rows."""

    size: int
    dense: arb_mat | None
    entries: list[tuple[int, int, arb]]


def affine(parts: Sequence[tuple[Matrix, Form]]) -> Form:
    """The sum of linear maps of values."""
    size = parts[0][0].size
    rows: list[Row] = [[ZERO] for _ in range(size)]
    middle, reach = [ZERO] * size, [ZERO] * size
    for matrix, x in parts:
        centers = [(a + b) / 2 for a, b in zip(x.low, x.high, strict=True)]
        halves = [(b - a) / 2 for a, b in zip(x.low, x.high, strict=True)]
        if matrix.dense is not None:
            width = max(map(len, x.rows))
            table = [[m, *row, *[ZERO] * (width - len(row))] for row, m in zip(x.rows, centers, strict=True)]
            moved = (matrix.dense * arb_mat(table)).tolist()
            sizes = arb_mat([[abs(v) for v in row] for row in matrix.dense.tolist()])
            spread = (sizes * arb_mat([[h] for h in halves])).tolist()
            rows = [_plus(a, b[1:]) for a, b in zip(rows, moved, strict=True)]
            middle = [a + b[0] for a, b in zip(middle, moved, strict=True)]
            reach = [a + b[0] for a, b in zip(reach, spread, strict=True)]
        for i, j, c in matrix.entries:
            rows[i] = _plus(rows[i], [c * a for a in x.rows[j]])
            middle[i], reach[i] = middle[i] + c * centers[j], reach[i] + abs(c) * halves[j]
    both = list(zip(middle, reach, strict=True))
    return known(rows, [(m - r).lower() for m, r in both], [(m + r).upper() for m, r in both], parts[0][1].fresh)


def multiply(x: Form, y: Form) -> Form:
    """The products of the entries of two values."""
    rows, low, high = [], [], []
    for i, (p, q) in enumerate(zip(x.rows, y.rows, strict=True)):
        row = _plus([q[0] * a for a in p], [p[0] * b for b in q])
        # (Σ aᵢ εᵢ)(Σ bᵢ εᵢ): of this Σ aᵢ bᵢ εᵢ² is one-sided.
        twins = [a * b for a, b in zip(p[1:], q[1:], strict=False)]
        row[0] = p[0] * q[0] + sum(twins, ZERO) / 2
        spread = sum((abs(a) for a in p[1:]), ZERO) * sum((abs(b) for b in q[1:]), ZERO)
        _symbol(row, spread - sum((abs(t) for t in twins), ZERO) / 2, next(x.fresh))
        rows.append(row)
        least, most = corners(x.low[i], x.high[i], y.low[i], y.high[i])
        low.append(least)
        high.append(most)
    return known(rows, low, high, x.fresh)


def corners(a: arb, b: arb, c: arb, d: arb) -> tuple[arb, arb]:
    """The products of [a, b] and [c, d] at least and at most."""
    found = (a * c, a * d, b * c, b * d)
    return _least(found).lower(), (-_least([-p for p in found])).upper()


def _logistic(x: arb) -> arb:
    return 1 / (1 + (-x).exp())


def _softplus(x: arb) -> arb:
    # log(1 + exp x) = max(x, 0) + log(1 + exp -|x|).
    return x.max(ZERO) + (-abs(x)).exp().log1p()


def _sech2(x: float) -> float:
    return 1 / math.cosh(min(abs(x), 300.0)) ** 2


def _logistic_float(x: float) -> float:
    return 0.5 * (1 + math.tanh(x / 2))


CURVES = {
    "exp": Curve(arb.exp, arb.exp, lambda x: math.exp(min(x, 700.0)), (), 1),
    "log": Curve(arb.log, lambda x: 1 / x, lambda x: 1 / x, (), -1, above=0.0),
    "sqrt": Curve(arb.sqrt, lambda x: 1 / (2 * x.sqrt()), lambda x: 0.5 / math.sqrt(x), (), -1, above=0.0),
    "tanh": Curve(arb.tanh, lambda x: 1 / x.cosh() ** 2, _sech2, (0.0,), 1),
    "logistic": Curve(_logistic, lambda x: _logistic(x) * _logistic(-x), lambda x: _sech2(x / 2) / 4, (0.0,), 1),
    "softplus": Curve(_softplus, _logistic, _logistic_float, (), 1),
    "atan": Curve(arb.atan, lambda x: 1 / (1 + x * x), lambda x: 1 / (1 + x * x), (0.0,), 1),
    "erf": Curve(arb.erf, lambda x: 2 * (-x * x).exp() / arb.pi().sqrt(), lambda x: 1.13 * math.exp(-x * x), (0.0,), 1),
    **MORE,
    # Of positive numbers; of negative ones by symmetry.
    "reciprocal": Curve(lambda x: 1 / x, lambda x: -1 / (x * x), lambda x: -1 / (x * x), (), 1, above=0.0, monotone=-1),
}


def _line(curve: Curve, a: arb, b: arb) -> tuple[arb, arb, arb]:
    """A slope α with the least and the most of f(x) - α x for x in [a, b]."""
    if not curve.defined(a, b):
        return arb.nan(), arb.nan(), arb.nan()
    fa, fb = curve.f(a), curve.f(b)
    if a == b:
        return ZERO, fa, fb
    # Any slope is right; it has to be one exact number.
    slope = ((fb - fa) / (b - a)).mid()
    ends = [a, *(arb(x) for x in curve.bends if a < x < b), b]
    sign, lows, highs = curve.curvature, [], []
    for x in curve.bends:
        sign = -sign if a >= x else sign
    for p, q in zip(ends, ends[1:], strict=False):
        at_p, at_q = curve.f(p) - slope * p, curve.f(q) - slope * q
        touch = arb(_touch(curve, float(p), float(q), float(slope), sign))
        if not p <= touch <= q:
            touch = p
        # The tangent there, on the inner side of the curve.
        steep, height = curve.slope(touch), curve.f(touch)
        tangent = [height + steep * (x - touch) - slope * x for x in (p, q)]
        lows += tangent if sign > 0 else [at_p, at_q]
        highs += [at_p, at_q] if sign > 0 else tangent
        sign = -sign
    return slope, _least(lows), -_least([-v for v in highs])


def _touch(curve: Curve, a: float, b: float, slope: float, sign: int) -> float:
    """About where the derivative is `slope` in [a, b]; nothing rests on it."""
    try:
        for _ in range(30):
            m = 0.5 * (a + b)
            a, b = (m, b) if (curve.slope_float(m) - slope) * sign < 0 else (a, m)
    except (ArithmeticError, ValueError):
        pass
    return 0.5 * (a + b)


def bend(
    x: Form, line: Callable[[arb, arb], tuple[arb, arb, arb]], span: Callable[[arb, arb], tuple[arb, arb]]
) -> Form:
    """A function of every entry, from a line with what is around it, and its range."""
    rows, low, high = [], [], []
    for row, a, b in zip(x.rows, x.low, x.high, strict=True):
        ends = span(a, b)
        slope, least, most = line(a, b)
        if ends[0].is_nan() or ends[1].is_nan():
            # Not defined in all of the interval: a line that is finite by accident says nothing.
            slope = least = most = arb.nan()
        new = [slope * v for v in row]
        new[0] = new[0] + (least + most) / 2
        _symbol(new, (most - least) / 2, next(x.fresh))
        rows.append(new)
        low.append(ends[0].lower())
        high.append(ends[1].upper())
    return known(rows, low, high, x.fresh)


def unary(name: str, x: Form) -> Form:
    """A function of one number, entry by entry."""
    if name in SHAPES:
        return bend(x, *SHAPES[name])
    curve = CURVES[name]
    # 1 / x of a negative number is -1 / -x.
    negative = name == "reciprocal"
    signs = [-1 if negative and b < 0 else 1 for b in x.high]
    out = bend(_signed(signs, x), lambda a, b: _line(curve, a, b), lambda a, b: _span(curve, a, b))
    return _signed(signs, out)


def _signed(signs: list[int], x: Form) -> Form:
    """The entries with a sign each."""
    both = zip(signs, x.low, x.high, strict=True)
    ends = [(-b, -a) if s < 0 else (a, b) for s, a, b in both]
    rows = [[s * v for v in row] for s, row in zip(signs, x.rows, strict=True)]
    return Form(rows, [a for a, _ in ends], [b for _, b in ends], x.fresh)


def _span(curve: Curve, a: arb, b: arb) -> tuple[arb, arb]:
    if not curve.defined(a, b):
        return arb.nan(), arb.nan()
    return (curve.f(a), curve.f(b)) if curve.monotone > 0 else (curve.f(b), curve.f(a))


def _relu_line(a: arb, b: arb) -> tuple[arb, arb, arb]:
    if a >= 0:
        return ONE, ZERO, ZERO
    if b <= 0:
        return ZERO, ZERO, ZERO
    slope = (b / (b - a)).mid().max(ZERO).min(ONE)
    return slope, ZERO, (-slope * a).max(b - slope * b)


def _square_line(a: arb, b: arb) -> tuple[arb, arb, arb]:
    # x² - (a + b) x is between -((a + b) / 2)² and -a b.
    slope = a + b
    return slope, -slope * slope / 4, -a * b


def _wave(f: Callable[[arb], arb], slope: Callable[[arb], arb], turn: Callable[[arb], arb]) -> Any:
    """A function with its first two derivatives, all of them within [-1, 1]: by its Taylor polynomial of degree 1."""

    def line(a: arb, b: arb) -> tuple[arb, arb, arb]:
        middle, half = ((a + b) / 2).mid(), (b - a) / 2
        steep = slope(middle).mid()
        # f(x) = f(m) + f'(m) (x - m) + f''(ξ) (x - m)² / 2 with ξ between, and |x - m| <= half up to the rounding of m.
        bent = turn(a.union(b)) * (ZERO.union((abs(half) + abs(middle - (a + b) / 2)) ** 2)) / 2
        rest = f(middle) - steep * middle + (slope(middle) - steep) * (a.union(b) - middle) + bent
        return steep, rest.lower(), rest.upper()

    def span(a: arb, b: arb) -> tuple[arb, arb]:
        found = f(a.union(b))
        return found.lower(), found.upper()

    return line, span


SHAPES = {
    "relu": (_relu_line, lambda a, b: (a.max(ZERO), b.max(ZERO))),
    # The derivative of relu, at 0 all between its derivatives on both sides (Clarke).
    "step": (lambda a, b: (ZERO, *_step(a, b)), lambda a, b: _step(a, b)),
    # The derivative of step: none where the argument may be 0.
    "jump": (lambda a, b: (ZERO, *_jump(a, b)), lambda a, b: _jump(a, b)),
    "square": (_square_line, lambda a, b: ((a.max(-b).max(ZERO)) ** 2, abs(a).max(abs(b)) ** 2)),
    "sin": _wave(arb.sin, arb.cos, lambda x: -x.sin()),
    "cos": _wave(arb.cos, lambda x: -x.sin(), lambda x: -x.cos()),
    "cosh": COSH,
    "tan": TAN,
}


def _step(a: arb, b: arb) -> tuple[arb, arb]:
    if a.is_nan() or b.is_nan():
        return arb.nan(), arb.nan()
    return (ONE if a > 0 else ZERO), (ZERO if b < 0 else ONE)


def _jump(a: arb, b: arb) -> tuple[arb, arb]:
    return (ZERO, ZERO) if a > 0 or b < 0 else (arb.nan(), arb.nan())


def _sum(size: int) -> Matrix:
    return Matrix(1, None, [(0, j, ONE) for j in range(size)])


def _shifted(x: Form, by: Sequence[arb]) -> Form:
    rows = [[row[0] + c, *row[1:]] for row, c in zip(x.rows, by, strict=True)]
    move = lambda ends, side: [getattr(v + c, side)() for v, c in zip(ends, by, strict=True)]
    return Form(rows, move(x.low, "lower"), move(x.high, "upper"), x.fresh)


def logsumexp(z: Form) -> Form:
    """log Σ exp(z_j), one entry. It grows with every z_j."""
    size = len(z.rows)
    top = max((float(row[0].mid()) for row in z.rows), default=0.0)
    shift = arb(top if math.isfinite(top) else 0.0)
    terms = unary("exp", _shifted(z, [-shift] * size))
    out = _shifted(unary("log", affine([(_sum(size), terms)])), [shift])
    total = lambda ends: sum(((v - shift).exp() for v in ends), ZERO).log() + shift
    return known(out.rows, [total(z.low).lower()], [total(z.high).upper()], z.fresh)


def softmean(z: Form, t: Form) -> Form:
    """Σ p_j t_j with p_j = exp(z_j) / Σ exp(z_i), one entry."""
    size = len(z.rows)
    identity = Matrix(size, None, [(j, j, ONE) for j in range(size)])
    less = Matrix(size, None, [(j, 0, -ONE) for j in range(size)])
    p = unary("exp", affine([(identity, z), (less, logsumexp(z))]))
    # p_j grows with z_j and falls with the others.
    part = lambda j, own, others: 1 / (1 + sum(((others[i] - own[j]).exp() for i in range(size) if i != j), ZERO))
    low = [part(j, z.low, z.high).lower() for j in range(size)]
    high = [part(j, z.high, z.low).upper() for j in range(size)]
    p = known(p.rows, low, high, z.fresh)
    weights = [float((a + b).mid()) for a, b in zip(low, high, strict=True)]
    middles = [float(row[0].mid()) for row in t.rows]
    center = arb(sum(w * m for w, m in zip(weights, middles, strict=True)) / sum(weights))
    # Σ p_j = 1, so that Σ p_j t_j = c + Σ p_j (t_j - c) for any number c.
    out = _shifted(affine([(_sum(size), multiply(p, _shifted(t, [-center] * size)))]), [center])
    least = -_mean_most(p, [-b for b in t.low])
    return known(out.rows, [least.lower()], [_mean_most(p, t.high).upper()], z.fresh)


def _mean_most(p: Form, t: Sequence[arb]) -> arb:
    """Σ p_j t_j at most, for p_j between their ends and Σ p_j = 1: c + Σ p_j (t_j - c), the smallest over numbers c."""
    found = []
    for c in t:
        terms = [((v - c) * a).max((v - c) * b) for v, a, b in zip(t, p.low, p.high, strict=True)]
        found.append(c + sum(terms, ZERO))
    return _least(found)


def _least(values: Sequence[arb]) -> arb:
    out = values[0]
    for v in values[1:]:
        out = out.min(v)
    return out
