"""Rules of the bound engine by themselves, against exact numbers: ranges and planes hold, and are close where the box is small."""

import itertools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flint import arb, ctx

from lyapunov_dsl.bounds import (
    _interval as iv,
    _lines as lines_of,
    _pairs as pairs,
    _quotients as quotients,
    _reduce as reduce,
    _scalar as scalar,
    _smooth as smooth,
)
from lyapunov_dsl.bounds._interval import Interval
from lyapunov_dsl.bounds._rule import NONE, Node, band_of

inf, nan = math.inf, math.nan


@pytest.fixture(autouse=True)
def wide():
    """Ranges in float64, exact numbers of 150 bits."""
    before, ctx.prec = ctx.prec, 150
    with jax.enable_x64(True):
        yield
    ctx.prec = before


def interval(lower, upper):
    return Interval(jnp.asarray(lower, float), jnp.asarray(upper, float))


def ends(x):
    return np.asarray(x.lower).tolist(), np.asarray(x.upper).tolist()


def node(shape, dtype=float, data=None, inputs=(), virtual=False):
    return Node(
        None, [i if isinstance(i, Node) else Node(None, [], shape, i) for i in inputs], shape, dtype, data, virtual
    )


# --- intervals


def test_ends_that_are_infinite_or_beyond_a_type():
    largest = float(jnp.finfo(jnp.float32).max)
    x = interval(
        [1, -inf, nan, 0, 2, 1e39, -1e39, -1e39, largest, -largest],
        [2, 3, 1, nan, 1, 1e40, -1e38, 1e39, largest, largest],
    )
    low, high = ends(iv.clean(x, jnp.float32))
    assert low == [1, -inf, -inf, -inf, -inf, largest, -inf, -inf, largest, -largest]
    assert high == [2, 3, inf, inf, inf, inf, -1e38, inf, largest, largest]
    assert ends(iv.clean(interval(-1e40, -1e39), jnp.float32)) == (-inf, -largest)
    assert iv.is_anything(interval([-inf, -inf, 0, 0], [inf, 0, inf, 0])).tolist() == [True, False, False, False]


def test_intervals_add_and_meet():
    assert ends(iv.widen(interval(1, 2), 0.5)) == (0.5, 2.5)
    low, high = ends(
        iv.intersect(interval([0, 0, 1, 0, 2], [2, 1, 1, 3, 3]), interval([1, 2, 1, 1, 0], [3, 3, 1, 2, 2]))
    )
    assert (low, high) == ([1, -inf, 1, 1, 2], [2, inf, 1, 2, 2])
    assert iv.magnitude(interval([-3, 1, -1], [2, 4, 1])).tolist() == [3, 4, 1]
    assert iv.finite_magnitude(interval([-inf, 1, -inf, -7], [2, inf, inf, 3])).tolist() == [2, 1, 0, 7]
    assert iv.zero_safe(jnp.asarray([0.0, 2.0, -1.0, 0.0]), jnp.asarray([inf, 3.0, inf, nan])).tolist() == [
        0,
        6,
        -inf,
        0,
    ]
    assert iv.widest(np.float32(0.1)).dtype == np.float64
    assert iv.widest(np.int32(3)).dtype == np.int32
    assert iv.eps(np.float32) == 2.0**-23
    assert iv.tiny(np.float32) == 2.0**-126


def test_center_and_half_width_hold_an_interval():
    rng = np.random.default_rng(0)
    lower = np.concatenate([rng.normal(size=200), [0.1, 3.0, -1e308, 5e-324, 0.0, -inf, 0.0, -inf]])
    width = np.concatenate([10.0 ** rng.uniform(-17, 1, 200), [1e-17, 0.0, 1.9e308, 5e-324, 0.0, 0, 0, 0]])
    upper = lower + width
    upper[-3:] = [1.0, inf, inf]
    center, half = (np.asarray(v) for v in iv.middle(interval(lower, upper)))
    for a, b, c, h in zip(lower.tolist(), upper.tolist(), center.tolist(), half.tolist(), strict=True):
        if not (math.isfinite(a) and math.isfinite(b)):
            assert (c, h) == (0, inf)
            continue
        a, b, c, h = map(Fraction, (a, b, c, h))
        # Smaller numbers may be flushed to zero.
        least = Fraction(2.0**-1022)
        assert c - h <= a or abs(a) < least
        assert c + h >= b or abs(b) < least
        assert h <= (b - a) / 2 * (1 + Fraction(1, 2**48)) + Fraction(2.0**-1021) + abs(c) * Fraction(1, 2**51)
        assert a != b or (c == a and h == 0)


# --- functions of one number

LOG2 = lambda: arb(2).log()
POWER = lambda y: lambda x: x.max(arb(0)) ** arb(y) if y > 0 else x ** arb(y)
RULES = {
    # rule, exact function, where it is defined, data of the node
    "exp": (scalar.RULES["exp"], arb.exp, -inf, None),
    "exp2": (scalar.RULES["exp2"], lambda x: (x * LOG2()).exp(), -inf, None),
    "expm1": (scalar.RULES["expm1"], lambda x: x.exp() - 1, -inf, None),
    "log": (scalar.RULES["log"], arb.log, 0, None),
    "log1p": (scalar.RULES["log1p"], lambda x: (1 + x).log(), -1, None),
    "sqrt": (scalar.RULES["sqrt"], arb.sqrt, 0, None),
    "rsqrt": (scalar.RULES["rsqrt"], arb.rsqrt, 0, None),
    "tanh": (scalar.RULES["tanh"], arb.tanh, -inf, None),
    "logistic": (scalar.RULES["logistic"], lambda x: 1 / (1 + (-x).exp()), -inf, None),
    "erf": (scalar.RULES["erf"], arb.erf, -inf, None),
    "atan": (scalar.RULES["atan"], arb.atan, -inf, None),
    "sin": (scalar.RULES["sin"], arb.sin, -inf, None),
    "cos": (scalar.RULES["cos"], arb.cos, -inf, None),
    "abs": (scalar.RULES["abs"], abs, -inf, None),
    "square": (scalar.power(2), lambda x: x**2, -inf, 2),
    "cube": (scalar.power(3), lambda x: x**3, -inf, 3),
    "fourth power": (scalar.power(4), lambda x: x**4, -inf, 4),
    "fifth power": (scalar.power(5), lambda x: x**5, -inf, 5),
    "reciprocal": (scalar.reciprocal, lambda x: 1 / x, None, None),
    "root of three": (scalar.fractional(1 / 3), POWER(1 / 3), 0, None),
    "power 1.5": (scalar.fractional(1.5), POWER(1.5), 0, None),
    "power -0.5": (scalar.fractional(-0.5), POWER(-0.5), 0, None),
    "softplus": (smooth.softplus, lambda x: (1 + x.exp()).log(), -inf, None),
    "silu": (smooth.silu, lambda x: x / (1 + (-x).exp()), -inf, None),
    "gelu": (smooth.gelu, lambda x: x * (-x * arb(math.sqrt(0.5))).erfc() / 2, -inf, math.sqrt(0.5)),
    "gelu by tanh": (
        smooth.tanh_gelu,
        lambda x: x * (1 + (arb(0.75) * (x + arb(0.0625) * x**3)).tanh()) / 2,
        -inf,
        (0.75, 0.0625),
    ),
}
CENTERS = [-7.0, -2.5, -1.0, -0.625, -0.1, 0.0, 0.03, 0.75, 1.3, 3.1, 9.0]
WIDTHS = [0.0, 1e-9, 1e-3, 0.2, 1.7, 5.0, 16.0]
# The largest second derivative, of those where it grows without bound, by the distance from there.
ROUGH = {
    "abs": lambda x: math.inf,
    "log": lambda x: x**-2,
    "log1p": lambda x: (1 + x) ** -2,
    "sqrt": lambda x: 0.25 * x**-1.5,
    "rsqrt": lambda x: 0.75 * x**-2.5,
    "reciprocal": lambda x: 2 * abs(x) ** -3,
    "root of three": lambda x: 2 / 9 * x ** (-5 / 3),
    "power 1.5": lambda x: 0.75 * x**-0.5,
    "power -0.5": lambda x: 0.75 * x**-2.5,
}


def boxes(domain):
    """Boxes of all kinds in the domain of a function, and the widths of each."""
    found = []
    for center, width in itertools.product(CENTERS, WIDTHS):
        if domain in (0, -1):
            low = math.exp(center / 2) + domain
            found.append((low, low + width))
        elif domain is None:
            low = math.exp(center / 2)
            found += [(low, low + width), (-low - width, -low)]
        else:
            found += [(center - width / 2, center + width / 2), (center - 0.1 * width, center + 0.9 * width)]
            found += [(center, center + width), (-width - 0.0, 0.0)]
    lower, upper = np.array(found).T
    return lower, upper


@pytest.mark.parametrize("name", RULES)
def test_ranges_and_lines_hold_and_are_close(name, quick):
    rule, exact, domain, data = RULES[name]
    lower, upper = boxes(domain)
    here = node(lower.shape, data=data, inputs=[float])
    x = interval(lower, upper)
    with jax.disable_jit(False):
        out = jax.jit(lambda x: rule.range(here, x))(x)
        slack = np.broadcast_to(jax.jit(lambda x, out: rule.slack(here, out, x))(x, out), lower.shape)

        def all_lines(x, out):
            found = rule.relax(here, out, x)
            _, below, low, above, high = found.lines
            band = None if rule.band is None else rule.band(here, out, x)
            parallel = () if band is None else (band.transposes[0](jnp.ones_like(low)), band.bias, band.half)
            mean = band_of(found)
            return (
                (below[0], low, above[0], high, found.rounding),
                parallel,
                (mean.transposes[0].a, mean.bias, mean.half),
            )

        lines, parallel, mean = jax.tree.map(lambda v: np.broadcast_to(v, lower.shape), jax.jit(all_lines)(x, out))
    near = []
    for i, (a, b) in enumerate(zip(lower.tolist(), upper.tolist(), strict=True)):
        points = sorted(
            {a, b, *(min(max(a + (b - a) * s, a), b) for s in (0.02, 0.11, 0.25, 0.38, 0.5, 0.63, 0.8, 0.95))}
        )
        if a < 0 < b:
            points.append(0.0)
        values = [exact(arb(p)) for p in points]
        lo, hi, more = (arb(float(v)) for v in (out.lower[i], out.upper[i], slack[i]))
        assert all(lo - more <= v <= hi + more for v in values), (a, b, lo, hi)
        least, most = min(map(float, values)), max(map(float, values))
        size = max(abs(least), abs(most))
        # Its ranges are exact but for rounding, or the curvature between some points.
        loose = 0.02 * (b - a) ** 2 if name in ("silu", "gelu", "gelu by tanh", "sin", "cos") else 0.0
        assert float(lo) >= least - loose - 1e-12 * (1 + size), (a, b)
        assert float(hi) <= most + loose - (-1e-12) * (1 + size), (a, b)
        assert float(more) <= 1e-12 * (2 + size + abs(a) + abs(b)) * (1 + abs(b))
        below, low, above, high, rounding = (arb(float(v[i])) for v in lines)
        for p, v in zip(points, values, strict=True):
            # What is left of x times nearly 0 counts as rounding of the evaluation.
            lost = rounding + more if name in ("silu", "gelu", "gelu by tanh") else rounding
            assert below * p + low - lost <= v <= above * p + high + lost, (a, b, p)
            for line in (parallel, mean) if parallel else (mean,):
                slope, bias, half = (arb(float(u[i])) for u in line)
                assert abs(slope * p + bias - v) <= half + (lost - rounding), (a, b, p)
        assert float(rounding) <= 1e-11 * (1 + size + abs(float(below)) + abs(float(above))) * (1 + abs(a) + abs(b))
        if name == "abs" and (a >= 0 or b <= 0):
            assert max(abs(float(above * p + high - below * p - low)) for p in points) <= 1e-12
        if 1e-3 * 0.5 < b - a < 0.25:
            gaps = [float(above * p + high - below * p - low) for p in points]
            near.append(
                (
                    a if name == "log1p" else min(abs(a), abs(b)),
                    b - a,
                    max(gaps),
                    2 * float(mean[2][i]),
                    2 * float(parallel[2][i]) if parallel else 0.0,
                )
            )
    # Between a tangent and a chord it is the curvature times the width squared / 8, twice between others.
    bend = {
        "exp": math.e**9.2,
        "exp2": 2.0**9.3,
        "expm1": math.e**9.2,
        "tanh": 0.8,
        "logistic": 0.1,
        "erf": 1.0,
        "atan": 0.7,
        "cube": 6 * 9.2,
    }
    bend |= {
        "fourth power": 12 * 9.2**2,
        "fifth power": 20 * 9.2**3,
        "square": 2.0,
        "softplus": 0.25,
        "silu": 0.6,
        "gelu": 0.92,
    }
    bend |= {"gelu by tanh": 0.94, "sin": 1.0, "cos": 1.0}
    for start, width, *gaps in near:
        most = ROUGH[name](start) if name in ROUGH else bend[name]
        assert max(gaps) <= 2 * most * width**2 / 8 + 1e-9, (start, width, gaps)


@pytest.mark.slow
def test_functions_at_the_ends_of_their_domains(quick):
    at = lambda rule, lower, upper, data=None: ends(
        rule.range(node((), data=data, inputs=[float]), interval(lower, upper))
    )
    assert at(scalar.RULES["log"], 0, 1) == (-inf, 0)
    assert at(scalar.RULES["log"], -1e-300, 1) == (-inf, inf)
    assert at(scalar.RULES["sqrt"], 0, 4) == (0, 2)
    assert at(scalar.RULES["sqrt"], -1e-9, 4) == (-inf, inf)
    assert at(scalar.RULES["rsqrt"], 0, 4) == (-inf, inf)
    assert at(scalar.RULES["rsqrt"], 4, 16) == (0.25, 0.5)
    assert at(scalar.RULES["log1p"], -1, 0) == (-inf, 0)
    assert at(scalar.RULES["log1p"], -1.5, 0) == (-inf, inf)
    assert at(scalar.reciprocal, 0, 1) == at(scalar.reciprocal, -1, 0) == at(scalar.reciprocal, -1, 1) == (-inf, inf)
    assert at(scalar.reciprocal, 2, 4) == (0.25, 0.5)
    assert at(scalar.reciprocal, -4, -2) == (-0.5, -0.25)
    assert at(scalar.fractional(-0.5), 0, 4) == (-inf, inf)
    assert at(scalar.fractional(0.5), -1, 4) == (-inf, inf)
    assert at(scalar.power(2), -inf, inf, 2) == at(scalar.power(3), -inf, inf, 3) == (-inf, inf)
    assert at(scalar.RULES["tanh"], 0, inf) == (0, 1)
    assert at(scalar.RULES["exp"], -inf, 0) == (0, 1)
    for name in ("exp", "tanh", "abs", "sin", "cos", "log", "floor", "sign", "round"):
        assert at(scalar.RULES[name], -inf, inf) == (-inf, inf)
    for name in ("sin", "cos"):
        assert at(scalar.RULES[name], 0, inf) == (-inf, inf)
    assert at(smooth.silu, 0, inf) == at(smooth.gelu, -inf, 0, math.sqrt(0.5)) == (-inf, inf)
    assert at(scalar.RULES["abs"], -3, 1) == (0, 3)
    assert at(scalar.RULES["abs"], -3, -1) == (1, 3)
    # What is infinite or undefined has the range for its planes.
    for rule, lower, upper, data in (
        (scalar.RULES["exp"], 0.0, inf, None),
        (scalar.RULES["exp"], 700.0, 800.0, None),
        (scalar.RULES["log"], 0.0, 1.0, None),
        (scalar.RULES["log"], -1.0, 1.0, None),
        (scalar.RULES["tanh"], -inf, 1.0, None),
        (scalar.RULES["rsqrt"], 0.0, 1.0, None),
        (scalar.RULES["sin"], -inf, 1.0, None),
        (scalar.power(3), -inf, 1.0, 3),
        (scalar.reciprocal, -1.0, 1.0, None),
        (scalar.reciprocal, 0.0, 1.0, None),
        (scalar.reciprocal, -1.0, 0.0, None),
        (smooth.gelu, -inf, 1.0, math.sqrt(0.5)),
    ):
        here, x = node((), data=data, inputs=[float]), interval(lower, upper)
        out = rule.range(here, x)
        _, below, low, above, high = rule.relax(here, out, x).lines
        assert (float(below[0]), float(low), float(above[0]), float(high)) == (0, float(out.lower), 0, float(out.upper))


@pytest.mark.slow
def test_waves_reach_their_peaks(quick):
    rng = np.random.default_rng(0)
    lower = np.concatenate([rng.uniform(-20, 20, 200), [0.0, math.pi / 2, -math.pi / 2, 1e8, 1e15]])
    upper = lower + np.concatenate([rng.uniform(0, 7, 200), [0.0, 0.0, 0.0, 1.0, 1.0]])
    for name, peak, trough in (("sin", arb.pi() / 2, -arb.pi() / 2), ("cos", arb(0), arb.pi())):
        out = scalar.RULES[name].range(node(lower.shape, inputs=[float]), interval(lower, upper))
        for a, b, lo, hi in zip(lower.tolist(), upper.tolist(), *ends(out), strict=True):
            for at, end, value in ((peak, hi, 1), (trough, lo, -1)):
                turns = ((arb(b) - at) / (2 * arb.pi())).floor()
                if at + 2 * arb.pi() * turns >= arb(a):
                    assert end == value
            points = [getattr(arb(a + (b - a) * s), name)() for s in np.linspace(0, 1, 30)]
            assert lo - 1e-9 <= min(map(float, points))
            assert hi + 1e-9 >= max(map(float, points))
            if a < 1e6:
                assert lo >= min(map(float, points)) - 0.02
                assert hi <= max(map(float, points)) + 0.02


def test_between_points_softplus_and_silu_may_be_lower_by_the_curvature():
    # x², whose least value is between two of the sixteen points of the range, and its negative.
    for sign in (1, -1):
        bends = (min(2.0 * sign, 0.0), max(2.0 * sign, 0.0))
        rule = smooth.smooth(
            "square", lambda data, x, sign=sign: sign * x * x, lambda data, x, sign=sign: 2 * sign * x, bends, 8
        )
        here, x = node((), inputs=[float]), interval(-8.5, 7.5)
        low, high = ends(rule.range(here, x))
        assert (low if sign > 0 else -high) <= 0
        assert (low if sign > 0 else -high) >= -1e-6
        assert (high if sign > 0 else -low) == 8.5**2
        _, below, under, above, over = rule.relax(here, rule.range(here, x), x).lines
        for at in np.linspace(-8.5, 7.5, 65).tolist():
            assert float(below[0]) * at + float(under) <= sign * at * at + 1e-12
            assert float(above[0]) * at + float(over) >= sign * at * at - 1e-12


def test_steps_of_one_number():
    for name, function in (
        ("floor", math.floor),
        ("ceil", math.ceil),
        ("round", round),
        ("sign", lambda v: (v > 0) - (v < 0)),
    ):
        for a, b in ((-1.5, 0.25), (0.5, 0.5), (-2.0, -0.5), (0.0, 3.7)):
            out = scalar.RULES[name].range(node((), inputs=[float]), interval(a, b))
            assert ends(out) == (function(a), function(b))
    away = scalar.RULES["round away from zero"].range(node((), inputs=[float]), interval(-0.5, 2.5))
    assert ends(away) == (-1, 3)


def test_exponentials_whose_arguments_are_rounded_count_that():
    here = node((), jnp.float32, inputs=[jnp.float32])
    x = interval(60.0, 60.0)
    slack = float(scalar.RULES["exp"].slack(here, scalar.RULES["exp"].range(here, x), x))
    # exp(a b) with the product rounded in float32.
    assert slack >= 60 * 2.0**-24 * math.exp(60)
    sine = scalar.RULES["sin"]
    assert float(sine.slack(here, interval(0.0, 0.0), interval(3.0, 3.0))) >= 16 * 2.0**-23
    gelu = smooth.gelu
    # x times what is nearly 0 for a negative x, whose factors are rounded by themselves.
    assert float(gelu.slack(here, interval(-1e-9, 0.0), interval(-6.0, -5.0))) >= 64 * 2.0**-23 * 6


def test_what_two_evaluations_of_an_activation_differ_by():
    here = node((), jnp.float32, inputs=[jnp.float32])
    x = interval(-3.0, 2.0)
    for rule in (smooth.softplus, smooth.silu, smooth.gelu):
        assert float(rule.within(here, x, jnp.asarray(1e-3))) >= 2e-3 * 3
        assert float(rule.again(here, 0.01, [x], [1e-3])) >= 2e-3
    assert float(smooth.silu.again(here, 0.01, [x], [NONE])) == pytest.approx(0.02)
    square = scalar.power(2)
    assert float(square.again(here, 0.01, [x], [1e-3])) == pytest.approx(0.02 + 6e-3)
    assert float(scalar.RULES["abs"].again(here, NONE, [x], [1e-3])) == pytest.approx(1e-3)


# --- of two numbers

BOXES = [(-2.0, 3.0), (-1.5, -0.5), (0.25, 4.0), (0.0, 1.0), (-3.0, 0.0), (0.5, 0.5), (-0.3, 0.1)]


def two():
    """All pairs of some intervals."""
    x, y = np.array([(*a, *b) for a in BOXES for b in BOXES]).reshape(-1, 2, 2).transpose(1, 2, 0)
    return interval(*x), interval(*y)


def corners(x, y):
    """Values of both at the corners and inside of each pair of intervals."""
    for s, t in itertools.product((0.0, 0.3, 0.5, 1.0), repeat=2):
        yield (1 - s) * x.lower + s * x.upper, (1 - t) * y.lower + t * y.upper


@pytest.mark.parametrize("name", ["mul", "max"])
def test_products_and_larger_numbers(name, quick):
    rule, function = {"mul": (pairs.multiply, jnp.multiply), "max": (pairs.maximum, jnp.maximum)}[name]
    x, y = two()
    here = node(x.lower.shape, inputs=[float, float])
    out = rule.range(here, x, y)
    found = rule.relax(here, out, x, y)
    _, below, low, above, high = found.lines
    values = [function(p, q) for p, q in corners(x, y)]
    assert jnp.array_equal(out.lower, jnp.min(jnp.stack(values), 0))
    assert jnp.array_equal(out.upper, jnp.max(jnp.stack(values), 0))
    gaps = []
    for (p, q), value in zip(corners(x, y), values, strict=True):
        under, over = below[0] * p + below[1] * q + low, above[0] * p + above[1] * q + high
        assert bool(jnp.all(under <= value + 1e-14))
        assert bool(jnp.all(over >= value - 1e-14))
        gaps.append(over - under)
    # Half the product of the widths between the mean of McCormick's planes on each side.
    most = (x.upper - x.lower) * (y.upper - y.lower) / 2
    if name == "mul":
        assert bool(jnp.all(jnp.stack(gaps) <= most + 1e-12))
    else:
        apart = (x.upper <= y.lower) | (y.upper <= x.lower)
        assert bool(jnp.all(jnp.where(apart, jnp.max(jnp.stack(gaps), 0), 0) <= 1e-12))
        above_only = jnp.max(
            jnp.stack(
                [above[0] * p + above[1] * q + high - v for (p, q), v in zip(corners(x, y), values, strict=True)]
            ),
            0,
        )
        assert bool(jnp.all(above_only <= jnp.minimum(x.upper - x.lower + y.upper - y.lower, 9) / 2 + 1e-12))
    for one, other in (
        (interval(-inf, 1), interval(0, 2)),
        (interval(0, 1), interval(-1, inf)),
        (interval(-inf, inf), interval(1, 2)),
    ):
        here = node((), inputs=[float, float])
        out = rule.range(here, one, other)
        if name == "mul" or bool(iv.is_anything(one)):
            assert ends(out) == (-inf, inf)
        _, below, low, above, high = rule.relax(here, out, one, other).lines
        assert [float(v) for v in (*below, *above)] == [0] * 4
        assert (float(low), float(high)) == ends(out)
    assert ends(pairs.products(interval(2, 3), interval(1, inf))) == (2, inf)
    assert ends(pairs.products(interval(-inf, -1), interval(2, 3))) == (-inf, -2)
    assert ends(pairs.products(interval(1, inf), interval(0, 0))) == (-inf, inf)


def test_of_two_evaluations_products_differ_by_the_other_factor():
    here = node((), jnp.float32, inputs=[jnp.float32] * 2)
    x, y = interval(-2.0, 1.0), interval(3.0, 5.0)
    assert float(pairs.multiply.again(here, 0.25, [x, y], [1e-2, NONE])) == pytest.approx(0.5 + 5e-2)
    assert float(pairs.multiply.again(here, 0.25, [x, y], [NONE, 1e-2])) == pytest.approx(0.5 + 2e-2)
    assert float(pairs.maximum.again(here, NONE, [x, y], [1e-2, 1e-3])) == pytest.approx(1.1e-2)
    here.tag = ("div", {}, ())
    assert pairs.multiply.again(here, 0.25, [x, y], [1e-2, NONE]) is NONE
    which = interval([0, 0], [0, 1])
    both = pairs.select.again(node((2,), inputs=[bool, float, float]), NONE, [which, x, y], [1e-3, NONE, NONE])
    assert both.tolist() == [0, inf]


@pytest.mark.parametrize("name", pairs.COMPARISONS)
def test_comparisons_are_decided_only_apart(name):
    holds = {
        "lt": np.less,
        "le": np.less_equal,
        "gt": np.greater,
        "ge": np.greater_equal,
        "eq": np.equal,
        "ne": np.not_equal,
    }[name]
    rule = pairs.COMPARISONS[name]
    whole = (-inf, inf)
    for x, y in itertools.product([(0.0, 1.0), (1.0, 2.0), (2.0, 3.0), (1.0, 1.0), (1.5, 1.75), whole], repeat=2):
        out = rule.range(node((), bool, inputs=[float, float]), interval(*x), interval(*y))
        possible = (
            {bool(holds(p, q)) for p in np.linspace(*x, 5) for q in np.linspace(*y, 5)}
            if whole not in (x, y)
            else {True, False}
        )
        # Where ranges touch, either may be.
        if x[0] <= y[1] and y[0] <= x[1]:
            possible = {True, False}
        assert {bool(v) for v in ends(out)} == possible, (x, y)


def test_logic_and_choices():
    sets = [(False, False), (True, True), (False, True)]
    for name, function in (("and", lambda a, b: a and b), ("or", lambda a, b: a or b), ("xor", lambda a, b: a != b)):
        for x, y in itertools.product(sets, repeat=2):
            out = pairs.LOGIC[name].range(
                node((), bool), Interval(*map(jnp.asarray, x)), Interval(*map(jnp.asarray, y))
            )
            assert {bool(v) for v in ends(out)} == {function(a, b) for a in set(x) for b in set(y)}
    for x in sets:
        out = pairs.LOGIC["not"].range(node((), bool), Interval(*map(jnp.asarray, x)))
        assert {bool(v) for v in ends(out)} == {not a for a in x}
    finite = pairs.is_finite.range(node((4,), bool), interval([0, -inf, 0, -inf], [1, 1, inf, inf]))
    assert ends(finite) == ([True, False, False, False], [True] * 4)


@pytest.mark.slow
@pytest.mark.parametrize("which", [(0, 0), (1, 1), (0, 1)])
def test_choices_between_two(which, quick):
    x, y = two()
    shape = x.lower.shape
    here = node(shape, inputs=[int, float, float])
    chosen = Interval(*(jnp.full(shape, w) for w in which))
    out = pairs.select.range(here, chosen, x, y)
    found = pairs.select.relax(here, out, chosen, x, y)
    (none, *below), low = [t and t.a for t in found.lower.transposes], found.lower.bias
    (also, *above), high = [t and t.a for t in found.upper.transposes], found.upper.bias
    assert none is also is None
    cases = [c for i, c in enumerate((x, y)) if which[0] <= i <= which[1]]
    assert jnp.array_equal(out.lower, jnp.min(jnp.stack([c.lower for c in cases]), 0))
    assert jnp.array_equal(out.upper, jnp.max(jnp.stack([c.upper for c in cases]), 0))
    for p, q in corners(x, y):
        under, over = below[0] * p + below[1] * q + low, above[0] * p + above[1] * q + high
        for i in range(which[0], which[1] + 1):
            value = (p, q)[i]
            assert bool(jnp.all(under <= value + 1e-14))
            assert bool(jnp.all(over >= value - 1e-14))
            if which[0] == which[1]:
                assert bool(jnp.all((under == value) & (over == value)))
    # Three, and numbers that are no floats.
    three = [interval(0, 1), interval(5, 6), interval(-3, -2)]
    for a, b in ((0, 0), (1, 2), (0, 1), (0, 2)):
        out = pairs.select.range(node((), inputs=[int] + [float] * 3), Interval(jnp.asarray(a), jnp.asarray(b)), *three)
        some = three[a : b + 1]
        assert ends(out) == (min(float(c.lower) for c in some), max(float(c.upper) for c in some))
    numbers = [Interval(jnp.asarray(a, jnp.int32), jnp.asarray(b, jnp.int32)) for a, b in ((3, 4), (-7, 9))]
    out = pairs.select.range(
        node((), jnp.int32, inputs=[int, jnp.int32, jnp.int32]), Interval(jnp.asarray(0), jnp.asarray(1)), *numbers
    )
    assert ends(out) == (-7, 9)
    flags = [Interval(jnp.asarray(a), jnp.asarray(b)) for a, b in ((True, True), (False, True))]
    for w, expected in (((0, 0), (True, True)), ((1, 1), (False, True)), ((0, 1), (False, True))):
        out = pairs.select.range(node((), bool, inputs=[int, bool, bool]), Interval(*map(jnp.asarray, w)), *flags)
        assert ends(out) == expected


def test_choices_of_three_or_of_what_is_infinite_have_their_range_as_planes(quick):
    for cases, which in (
        ([interval(0, 1), interval(5, 6), interval(-3, -2)], (0, 2)),
        ([interval(0, 1), interval(-inf, 6)], (0, 1)),
        ([interval(0, inf), interval(2, 6)], (0, 1)),
    ):
        here = node((), inputs=[int] + [float] * len(cases))
        chosen = Interval(*map(jnp.asarray, which))
        out = pairs.select.range(here, chosen, *cases)
        found = pairs.select.relax(here, out, chosen, *cases)
        assert (float(found.lower.bias), float(found.upper.bias)) == ends(out)
        for side in (found.lower, found.upper):
            assert all(float(t.a) == 0 for t in side.transposes[1:])


def test_integers_wrap_or_are_what_they_are():
    x, y = (Interval(jnp.asarray(a, jnp.int32), jnp.asarray(b, jnp.int32)) for a, b in ((-3, 5), (2, 4)))
    expected = {"add": (-1, 9), "sub": (-7, 3), "max": (2, 5), "min": (-3, 4)}
    info = jnp.iinfo(jnp.int32)
    for name, both in expected.items():
        assert ends(pairs.INTEGERS[name].range(node((), jnp.int32), x, y)) == both
    assert ends(pairs.INTEGERS["clamp"].range(node((), jnp.int32), x, x, y)) == (-3, 4)
    big = Interval(jnp.asarray(info.max - 1, jnp.int32), jnp.asarray(info.max, jnp.int32))
    assert ends(pairs.INTEGERS["add"].range(node((), jnp.int32), big, y)) == (info.min, info.max)
    assert ends(pairs.INTEGERS["sub"].range(node((), jnp.int32), Interval(-big.upper, -big.lower), y)) == (
        info.min,
        info.max,
    )
    counted = pairs.counted((0,))
    many = Interval(jnp.asarray([0, 100], jnp.uint8), jnp.asarray([100, 100], jnp.uint8))
    assert ends(counted.range(node((), jnp.uint8), many)) == (100, 200)
    assert ends(counted.range(node((), jnp.uint8), Interval(many.lower, many.upper + jnp.uint8(100)))) == (0, 255)
    convert = lambda low, high, old, new: ends(
        pairs.convert.range(node((), new, inputs=[old]), Interval(jnp.asarray(low, old), jnp.asarray(high, old)))
    )
    assert convert(-3, 5, jnp.int32, float) == (-3, 5)
    assert convert(3, 200, jnp.int32, jnp.uint8) == (3, 200)
    assert convert(-1, 200, jnp.int32, jnp.uint8) == (0, 255)
    assert convert(3, 300, jnp.int32, jnp.uint8) == (0, 255)
    assert convert(False, True, bool, jnp.int32) == (0, 1)
    for low, high, expected in (
        (0, 0, (False, False)),
        (1, 5, (True, True)),
        (-5, -1, (True, True)),
        (-1, 1, (False, True)),
        (0, 2, (False, True)),
    ):
        assert convert(low, high, jnp.int32, bool) == expected
    slack = pairs.convert.slack(
        node((2,), jnp.float32, inputs=[jnp.int64]), interval([0, 0], [100, 2**40]), interval(0, 1)
    )
    assert float(slack[0]) == 0
    assert float(slack[1]) >= 2.0**40 * 2.0**-24


def test_quotients_of_products_may_underflow_on_the_way():
    out, tiny = interval(-1, 1), interval(1e-20, 1)
    lost = quotients.quotient_slack(jnp.float32, quotients.ONE, quotients.ONE)
    slack = lambda above, below: float(lost(node((), jnp.float32, None, [jnp.float32] * 3), out, above, below))
    one = interval(0.5, 1)
    assert slack(one, one) <= 1e-6
    # What is divided may have become 0, beside a divisor that is small.
    assert slack(one, tiny) >= 2.0**-126 / 1e-20
    assert slack(one, interval(1e-38, 1)) == inf
    assert slack(one, interval(0, 1)) == inf
    assert slack(interval(1e-20, 1e38), one) == inf
    assert slack(one, interval(0.5, 1e38)) == inf


# --- along an axis


def keys():
    lower = np.array(
        [[0.0, 1.0, -1.0], [0.0, 2.0, 0.5], [1.0, 1.0, 1.0], [-3.0, -2.0, -5.0], [0.0, 0.25, 0.125], [4.0, -1.0, 0.0]]
    )
    return interval(
        lower,
        lower + np.array([[1.5, 1.0, 0.2], [0.5, 1.0, 0.25], [0, 0, 0], [4.0, 0.5, 9.0], [2, 2, 2], [0.5, 6.0, 1.0]]),
    )


def draws(x, count=60):
    rng = np.random.default_rng(0)
    share = rng.choice([0.0, 1.0, 0.5], (count, *x.lower.shape))
    return np.asarray(x.lower) + share * np.asarray(x.upper - x.lower)


def rows_of(found):
    """Planes that act on rows, as (coefficients, bias) below and above."""
    ones = jnp.ones(np.shape(found.lower.bias))
    return [(np.asarray(side.transposes[-1](ones)), np.asarray(side.bias)) for side in (found.lower, found.upper)]


@pytest.mark.slow
def test_the_largest_of_several(quick):
    x = keys()
    here = node((6,), inputs=[float])
    out = reduce.largest.range(here, x)
    assert ends(out) == (np.max(x.lower, -1).tolist(), np.max(x.upper, -1).tolist())
    below, above = rows_of(reduce.largest.relax(here, out, x))
    gaps = []
    for point in draws(x):
        value = point.max(-1)
        under, over = ((rows * point).sum(-1) + bias for rows, bias in (below, above))
        assert (under <= value + 1e-14).all()
        assert (over >= value - 1e-14).all()
        gaps.append((over - under, over))
    # One that is always the largest is itself; the others are at most what they can be.
    assert max(g[0][1] for g in gaps) <= 1e-14
    assert (np.max([g[1] for g in gaps], 0) <= np.asarray(out.upper) + 1e-14).all()
    assert max(g[0][2] for g in gaps) <= 1e-14
    strange = interval([[0.0, -inf], [-inf, 1.0]], [[1.0, inf], [0.0, 2.0]])
    out = reduce.largest.range(node((2,), inputs=[float]), strange)
    assert ends(out) == ([-inf, 1], [inf, 2])
    found = reduce.largest.relax(node((2,), inputs=[float]), out, strange)
    assert (found.upper.transposes[0](jnp.ones(2)) == 0).all()
    assert np.asarray(found.upper.bias).tolist() == [inf, 2]
    assert np.asarray(found.lower.bias).tolist() == [-inf, 1]


@pytest.mark.slow
def test_what_goes_with_the_largest(quick):
    x = keys()
    values = interval(np.arange(18.0).reshape(6, 3) - 9, np.arange(18.0).reshape(6, 3) - 8.5)
    here = node((6,), inputs=[float, float])
    out = reduce.winner.range(here, x, values)
    place = reduce.place.range(node((6,), jnp.int32, inputs=[float]), x)
    single = interval(np.array([-2.0, 1.0, 3.0, -1.0, 0.5, -1.0]), np.array([-1.0, 2.0, 3.0, 1.0, 0.5, 2.0]))
    there = node((6, 3), inputs=[float, float])
    put = reduce.scatter.range(there, x, single)
    planes, spread = reduce.winner.relax(here, out, x, values), reduce.scatter.relax(there, put, x, single)
    rows = [
        (np.asarray(side.transposes[1](jnp.ones(6))), np.asarray(side.bias)) for side in (planes.lower, planes.upper)
    ]
    # Of each place by itself: the entry (i, k) is c times the value i.
    units = [jnp.zeros((6, 3)).at[:, k].set(1.0) for k in range(3)]
    shares = [np.stack([side.transposes[1](u) for u in units], -1) for side in (spread.lower, spread.upper)]
    biases = [np.asarray(side.bias) for side in (spread.lower, spread.upper)]
    (low, high), (put_low, put_high), (first, last) = (map(np.asarray, v) for v in (out, put, place))
    seen = [set() for _ in range(6)]
    for point, value, one in zip(draws(x), draws(values), draws(single), strict=True):
        under, over = ((r * value).sum(-1) + b for r, b in rows)
        below, above = (s * one[:, None] + b for s, b in zip(shares, biases, strict=True))
        for i in range(6):
            for j in np.flatnonzero(point[i] == point[i].max()).tolist():
                seen[i].add(j)
                assert low[i] <= value[i, j] <= high[i]
                assert first[i] <= j <= last[i]
                assert under[i] - 1e-14 <= value[i, j] <= over[i] + 1e-14
                row = np.where(np.arange(3) == j, one[i], 0.0)
                assert (put_low[i] <= row).all()
                assert (row <= put_high[i]).all()
                assert (below[i] <= row + 1e-14).all()
                assert (row <= above[i] + 1e-14).all()
    # Where there is nothing to choose, the value itself is there, and 0 elsewhere.
    share, bias = shares[0], biases[0]
    for i, some in enumerate(seen):
        for k in range(3):
            if len(some) == 1 or k not in some:
                expected = (1.0 if k in some else 0.0, 0.0)
                assert (share[i, k], bias[i, k]) == (shares[1][i, k], biases[1][i, k]) == expected
        assert (int(place.lower[i]), int(place.upper[i])) == (min(some), max(some))
        assert float(out.lower[i]) == min(float(values.lower[i, j]) for j in some)
        assert float(out.upper[i]) == max(float(values.upper[i, j]) for j in some)
        for k in range(3):
            expected = (0, 0) if k not in some else (float(single.lower[i]), float(single.upper[i]))
            if len(some) > 1 and k in some:
                expected = (min(expected[0], 0), max(expected[1], 0))
            assert (float(put.lower[i, k]), float(put.upper[i, k])) == expected
    unknown = interval([[0.0, -inf, 5.0]], [[1.0, inf, 6.0]])
    assert ends(reduce.place.range(node((1,), jnp.int32, inputs=[float]), unknown)) == ([0], [2])
    low, high = ends(
        reduce.winner.range(node((1,), inputs=[float, float]), unknown, interval([[1.0, 2.0, 3.0]], [[1.0, 2.0, 3.0]]))
    )
    assert (low, high) == ([1], [3])
    low, high = ends(reduce.scatter.range(node((1, 3), inputs=[float, float]), unknown, interval([2.0], [3.0])))
    assert (low, high) == ([[0, 0, 0]], [[3, 3, 3]])


def test_chords_of_ends_that_are_nearly_one():
    """A quotient of differences has lost all but three digits where the ends are as close as this."""
    unit = float(jnp.finfo(jnp.result_type(float)).eps)
    slopes = []
    for share in (0.9, 1.1):
        lower = jnp.asarray(1.0)
        upper = lower * (1 + share * 2e3 * unit)
        slopes.append(float(lines_of.chord(lambda v: 0 * v, lambda v: 1 + 0 * v, lower, upper)))
    assert slopes == [1, 0]
