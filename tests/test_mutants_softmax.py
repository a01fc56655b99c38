"""Log-sum-exp, softmax and means by themselves, against exact numbers: ranges and planes hold, and are close where the box is small."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flint import arb, ctx

from lyapunov_dsl.bounds import _softmax as soft
from lyapunov_dsl.bounds._interval import Interval
from lyapunov_dsl.bounds._rule import NONE, Node
from lyapunov_dsl.bounds._softmax_mean import _remainder, softmax_mean, tie, told

inf = math.inf


@pytest.fixture(autouse=True)
def wide(quick):
    before, ctx.prec = ctx.prec, 150
    with jax.enable_x64(True):
        yield
    ctx.prec = before


def node(shape, count=3, dtype=float, virtual=False):
    inputs = [Node(None, [], (*shape[:1], count), dtype) for _ in range(2)]
    return Node(None, inputs, shape, dtype, None, virtual)


# Centers and half-widths of exponents, and of what is averaged: small, large, uneven and degenerate.
CENTERS = [[0.0, 0.0, 0.0], [1.0, -2.0, 0.5], [5.0, 0.0, -5.0], [-30.0, 2.0, 2.0], [300.0, 299.0, 0.0]]
HALVES = [[0.0, 0.0, 0.0], [1e-3, 1e-3, 1e-3], [0.3, 0.1, 0.6], [2.0, 0.0, 0.5], [4.0, 5.0, 3.0]]
T = [([1.0, -2.0, 0.5], [0.0, 0.0, 0.0]), ([3.0, 3.0, -1.0], [0.5, 0.01, 1.0]), ([0.1, 0.2, 0.3], [1e-3, 1e-3, 1e-3])]
BOX = [(np.array(c), np.array(h)) for c in CENTERS for h in HALVES]
A = Interval(np.array([c - h for c, h in BOX]), np.array([c + h for c, h in BOX]))
SHARES = [np.array(s) for s in itertools.product([-1.0, 0.0, 1.0], repeat=3)] + [np.array([0.3, -0.7, 0.5])]


def points(x):
    """Floats inside of boxes: corners, middles and one elsewhere."""
    low, high = np.asarray(x.lower), np.asarray(x.upper)
    return [np.clip(0.5 * (1 - s) * low + 0.5 * (1 + s) * high, low, high) for s in SHARES]


def exponentials(a):
    found = [arb(v).exp() for v in a]
    return found, sum(found, arb(0))


def holds(value, rows, bias, point, rounding, side):
    said = sum((arb(float(c)) * arb(float(p)) for c, p in zip(rows, point, strict=True)), arb(float(bias)))
    return bool(said - arb(rounding) <= value) if side < 0 else bool(value <= said + arb(rounding))


def test_log_sum_exp():
    here = node((len(BOX),))
    out = soft.logsumexp.range(here, A)
    slack = np.asarray(soft.logsumexp.slack(here, out, A))
    found = soft.logsumexp.relax(here, out, A)
    sides = [(np.asarray(p.transposes[0](jnp.ones(len(BOX)))), np.asarray(p.bias)) for p in (found.lower, found.upper)]
    rounding, gaps = np.asarray(found.rounding), np.zeros(len(BOX))
    for point in points(A):
        for i, a in enumerate(point):
            value = exponentials(a.tolist())[1].log()
            assert arb(float(out.lower[i])) - arb(slack[i]) <= value <= arb(float(out.upper[i])) + arb(slack[i])
            for (rows, bias), side in zip(sides, (-1, 1), strict=True):
                assert holds(value, rows[i], bias[i], a, rounding[i], side), (BOX[i], side)
            gaps[i] = max(gaps[i], sum(s * ((r[i] * a).sum() + b[i]) for (r, b), s in zip(sides, (-1, 1), strict=True)))
    for i, (center, half) in enumerate(BOX):
        assert float(out.lower[i]) == pytest.approx(float(exponentials((center - half).tolist())[1].log()), abs=1e-12)
        assert float(out.upper[i]) == pytest.approx(float(exponentials((center + half).tolist())[1].log()), abs=1e-12)
        # Tangent and chords: at most the squares of the half-widths apart, and never more than the largest entry says.
        assert gaps[i] <= 2 * half.max() ** 2 + 1e-9
        assert gaps[i] <= 2 * half.max() * 1.2 + math.log(3) + 1e-9
        assert slack[i] <= 1e-12 * (1 + np.abs(center).max() + half.max())
        assert rounding[i] <= 1e-11 * (1 + np.abs(center).max() + half.max()) ** 2


@pytest.mark.slow
def test_softmax():
    here = node((len(BOX), 3))
    out = soft.softmax.range(here, A)
    slack = np.broadcast_to(np.asarray(soft.softmax.slack(here, out, A)), out.lower.shape)
    found = soft.softmax.relax(here, out, A)
    units = jnp.eye(3)[:, None, :] * jnp.ones((len(BOX), 1))
    # [boxes, entry, exponent]
    sides = [
        (np.stack([np.asarray(p.transposes[0](u[None])[0]) for u in units], 1), np.asarray(p.bias))
        for p in (found.lower, found.upper)
    ]
    rounding = np.broadcast_to(np.asarray(found.rounding), out.lower.shape)
    gaps, low, high = np.zeros((len(BOX), 3)), np.full((len(BOX), 3), inf), np.full((len(BOX), 3), -inf)
    for point in points(A):
        for i, a in enumerate(point):
            each, total = exponentials(a.tolist())
            for j in range(3):
                value = each[j] / total
                low[i, j], high[i, j] = min(low[i, j], float(value)), max(high[i, j], float(value))
                assert (
                    arb(float(out.lower[i, j])) - arb(slack[i, j])
                    <= value
                    <= arb(float(out.upper[i, j])) + arb(slack[i, j])
                )
                for (rows, bias), side in zip(sides, (-1, 1), strict=True):
                    assert holds(value, rows[i, j], bias[i, j], a, rounding[i, j], side), (BOX[i], j, side)
                gap = sum(s * ((r[i, j] * a).sum() + b[i, j]) for (r, b), s in zip(sides, (-1, 1), strict=True))
                gaps[i, j] = max(gaps[i, j], gap)
    np.testing.assert_allclose(out.lower, low, rtol=1e-10, atol=1e-300)
    np.testing.assert_allclose(out.upper, high, rtol=1e-10, atol=1e-300)
    for i, (_, half) in enumerate(BOX):
        assert gaps[i].max() <= 4 * half.max() ** 2 + 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("which", range(len(T)))
def test_means(which):
    center, half = (np.array(v) for v in T[which])
    t = Interval(*(np.broadcast_to(v, A.lower.shape) for v in (center - half, center + half)))
    here = node((len(BOX),))
    out = softmax_mean.range(here, A, t)
    slack = np.asarray(softmax_mean.slack(here, out, A, t))
    found = softmax_mean.relax(here, out, A, t)
    ones = jnp.ones(len(BOX))
    sides = [([np.asarray(f(ones)) for f in p.transposes], np.asarray(p.bias)) for p in (found.lower, found.upper)]
    rounding, gaps = np.asarray(found.rounding), np.zeros(len(BOX))
    low, high = np.full(len(BOX), inf), np.full(len(BOX), -inf)
    for s, a in zip(SHARES, points(A), strict=True):
        for turn in (1, -1):
            b = np.clip(center + turn * s[::-1] * half, center - half, center + half)
            for i in range(len(BOX)):
                each, total = exponentials(a[i].tolist())
                value = sum((p * arb(float(v)) for p, v in zip(each, b, strict=True)), arb(0)) / total
                low[i], high[i] = min(low[i], float(value)), max(high[i], float(value))
                assert arb(float(out.lower[i])) - arb(slack[i]) <= value <= arb(float(out.upper[i])) + arb(slack[i])
                for ((rows, more), bias), side in zip(sides, (-1, 1), strict=True):
                    both = (*rows[i], *more[i])
                    assert holds(value, both, bias[i], (*a[i], *b), rounding[i], side), (BOX[i], side)
                gap = sum(
                    s * ((r[i] * a[i]).sum() + (m[i] * b).sum() + o[i])
                    for ((r, m), o), s in zip(sides, (-1, 1), strict=True)
                )
                gaps[i] = max(gaps[i], gap)
    if not half.any():
        np.testing.assert_allclose(out.lower, low, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(out.upper, high, rtol=1e-9, atol=1e-12)
    else:
        assert (np.asarray(out.upper) <= center.max() + half.max() + 1e-12).all()
    spread, size = np.ptp(center) + 2 * half.max(), np.abs(center).max() + half.max()
    for i, (middle, wide) in enumerate(BOX):
        # Quadratic in the exponents' widths; the weights that are not certain leave the width of t.
        uncertain = 1 - float(jnp.sum(soft.softmax_bounds(A.lower[i], A.upper[i]).lower))
        assert gaps[i] <= 6 * spread * wide.max() ** 2 + 2 * half.max() * uncertain * 2 + 1e-8
        assert rounding[i] <= 1e-10 * size * (1 + np.abs(middle).max() + wide.max()) ** 2


@pytest.mark.slow
def test_what_is_infinite_or_undefined_says_nothing():
    odd = Interval(
        jnp.asarray([[0.0, -inf, 1.0], [0.0, 1.0, 1.0], [-inf, 0.0, 0.0]]),
        jnp.asarray([[1.0, 1.0, 1.0], [1.0, inf, 1.0], [inf, 0.0, 0.0]]),
    )
    fine = Interval(jnp.zeros((3, 3)), jnp.ones((3, 3)))
    for rule, arguments, shape in (
        (soft.logsumexp, (odd,), (3,)),
        (soft.softmax, (odd,), (3, 3)),
        (softmax_mean, (odd, fine), (3,)),
        (softmax_mean, (fine, odd), (3,)),
    ):
        here = node(shape)
        out = rule.range(here, *arguments)
        assert (out.lower == -inf).all()
        assert (out.upper == inf).all()
        found = rule.relax(here, out, *arguments)
        assert (found.lower.bias == -inf).all()
        assert (found.upper.bias == inf).all()
        ones = jnp.ones((1, *shape))
        assert (found.lower.transposes[0](ones) == 0).all()
        assert (found.upper.transposes[0](ones) == 0).all()
    one = Interval(A.lower[:1], A.upper[:1])
    assert bool(jnp.isfinite(soft.softmax.range(node((1, 3)), one).upper).all())


@pytest.mark.slow
def test_boxes_so_wide_that_exponentials_vanish():
    a = Interval(
        jnp.asarray([[-2000.0, 0.0, 0.0], [-900.0, -900.0, -900.0]]),
        jnp.asarray([[2000.0, 0.0, 1.0], [900.0, 900.0, 900.0]]),
    )
    t = Interval(jnp.asarray([[1.0, 2.0, 3.0]] * 2), jnp.asarray([[1.0, 2.0, 3.0]] * 2))
    p, here = soft.softmax.range(node((2, 3)), a), node((2,))
    assert (p.lower <= 1e-300).all()
    assert float(p.upper[0, 0]) == 1
    assert (p.upper[1] == 1).all()
    mean = softmax_mean.range(here, a, t)
    assert (mean.lower <= 1 + 1e-12).all()
    assert (mean.upper >= 3 - 1e-12)[1]
    assert float(mean.upper[0]) >= 2.7
    found = soft.softmax.relax(node((2, 3)), p, a)
    lse = soft.logsumexp.relax(here, soft.logsumexp.range(here, a), a)
    rng = np.random.default_rng(0)
    for _ in range(50):
        x = np.asarray(a.lower) + rng.choice([0.0, 1.0, 0.5], (2, 3)) * np.asarray(a.upper - a.lower)
        values = jax.nn.softmax(x, axis=-1)
        for side, sign in ((found.lower, -1), (found.upper, 1)):
            for j in range(3):
                rows = side.transposes[0](jnp.zeros((1, 2, 3)).at[:, :, j].set(1.0))[0]
                assert (
                    sign * (np.sum(rows * x, -1) + side.bias[:, j] - values[:, j])
                    >= -np.asarray(found.rounding)[:, j] - 1e-12
                ).all()
        for side, sign in ((lse.lower, -1), (lse.upper, 1)):
            said = np.sum(side.transposes[0](jnp.ones(2)) * x, -1) + side.bias
            assert (sign * (said - jax.nn.logsumexp(x, axis=-1)) >= -np.asarray(lse.rounding) - 1e-9).all()


@pytest.mark.slow
def test_rounding_in_float32_counts():
    # Exponents of 50 lose 50 ulp / 2 of the exponentials; the sum of the logarithm, its ulp.
    a = Interval(jnp.asarray([[50.0, 49.0, 0.0]]), jnp.asarray([[50.0, 49.0, 0.0]]))
    t = Interval(jnp.asarray([[3.0, -7.0, 1.0]]), jnp.asarray([[3.0, -7.0, 1.0]]))
    half = 2.0**-24
    there = node((1,), dtype=jnp.float32)
    p = soft.softmax.range(node((1, 3), dtype=jnp.float32), a)
    slack = soft.softmax.slack(node((1, 3), dtype=jnp.float32), p, a)
    assert float(slack[0, 0]) >= 100 * half * float(p.upper[0, 0])
    assert float(slack[0, 0]) <= 2000 * half
    lse = soft.logsumexp.slack(there, soft.logsumexp.range(there, a), a)
    assert 150 * half <= float(lse[0]) <= 2000 * half
    mean = softmax_mean.slack(there, softmax_mean.range(there, a, t), a, t)
    assert 100 * half * 7 <= float(mean[0]) <= 14000 * half
    tied = tie.slack(there, p, p, a, t)
    assert 100 * half * 7 <= float(tied[0]) <= 30000 * half
    heard = told.slack(there, p, p, p, a)
    assert 150 * half <= float(heard[0]) <= 6000 * half
    # Exponents of which nothing is left beside their rounding, and averages of what overflows.
    large = Interval(a.lower * 1e6, a.upper * 1e6)
    for rule, shape, more in ((soft.logsumexp, (1,), ()), (soft.softmax, (1, 3), ()), (softmax_mean, (1,), (t,))):
        assert np.isinf(
            rule.slack(node(shape, dtype=jnp.float32), rule.range(node(shape), large, *more), large, *more)
        ).all()
        assert np.isfinite(
            rule.slack(node(shape, virtual=True), rule.range(node(shape), large, *more), large, *more)
        ).all()
    # Three numbers of up to 7 units, which overflow together or do not.
    unit = float(jnp.finfo(jnp.float32).max) / 21
    for share, what in ((1.1, np.isinf), (0.9, np.isfinite)):
        near = Interval(t.lower * unit * share, t.upper * unit * share)
        assert what(softmax_mean.slack(there, p, a, near)).all()
        assert what(tie.slack(there, p, p, a, near)).all()
    for rule, inputs, spreads, least in (
        (soft.softmax, (a,), (1e-3,), 1e-3),
        (softmax_mean, (a, t), (1e-3, NONE), 14e-3),
        (softmax_mean, (a, t), (NONE, 1e-3), 2e-3),
        (tie, (a, a, t), (NONE, 1e-3, 1e-4), 2 * (14e-3 + 2e-4)),
        (told, (a, a, a), (NONE, NONE, 1e-3), 4e-3),
    ):
        shape = (1, 3) if rule is soft.softmax else (1,)
        found = rule.within(node(shape, dtype=jnp.float32), *inputs, *[jnp.asarray(s, float) for s in spreads])
        np.testing.assert_allclose(np.asarray(found).ravel(), least, rtol=1e-9)


def test_the_remainder_of_an_exponential_is_rounded_up():
    for d in [*np.geomspace(1e-12, 5000, 300).tolist(), 0.0]:
        true = 1 - (1 + arb(d)) * (-arb(d)).exp()
        found = float(_remainder(jnp.asarray(d)))
        assert arb(found) >= true
        assert found <= float(true) * (1 + min(d * d / 50, 0.13) + 1e-12) + 1e-26
