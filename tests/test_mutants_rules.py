"""The robustness rules against solutions of their equations, and with their rounding: above, and by little."""

import math
from fractions import Fraction

import numpy as np
import pytest
from flint import arb, ctx
from scipy.integrate import solve_ivp

import lyapunov_dsl as ld
from lyapunov_dsl._certify import _rules as rules
from lyapunov_dsl._types import is_finite


@pytest.fixture(autouse=True)
def precision():
    before, ctx.prec = ctx.prec, 200
    yield
    ctx.prec = before


def exact(start, slope, constant, dt):
    """γ(dt) of γ' = slope γ + constant."""
    start, slope, constant, dt = map(arb, (start, slope, constant, dt))
    return start * (slope * dt).exp() + (constant * ((slope * dt).exp() - 1) / slope if slope != 0 else constant * dt)


def test_linear_equations_are_solved_upward_and_closely():
    rng = np.random.default_rng(0)
    for _ in range(400):
        start, constant, dt = (float(v) for v in 10.0 ** rng.uniform(-8, 4, 3))
        slope = float(rng.choice([-1, 1]) * 10.0 ** rng.uniform(-12, 2)) / dt
        start, constant = start * rng.integers(2), constant * rng.integers(2)
        found, true = rules._linear(start, slope, constant, dt), exact(start, slope, constant, dt)
        assert arb(found) >= true
        # The slack is that of a step and of a large exponent.
        assert arb(found) <= true * arb(1 + 2.2e-13 + 1.1e-15 * min(abs(slope * dt), 1e3)) + arb(1e-299)
    assert rules._linear(2.0, 0.0, 3.0, 0.5) == pytest.approx(3.5)
    assert rules._linear(0.0, -1.0, 0.0, 1.0) == 0
    assert rules._linear(1.0, -800.0, 0.0, 1.0) >= 1e-300
    assert rules._linear(1.0, 701.0, 0.0, 1.0) == math.inf
    assert math.isfinite(rules._linear(1.0, 699.0, 0.0, 1.0))


def test_delta_and_theorem_3_are_rounded_up():
    rng = np.random.default_rng(1)
    for _ in range(200):
        initial, kappa, push, horizon = (float(v) for v in 10.0 ** rng.uniform(-3, 1.5, 4))
        kappa = min(kappa, 50 / horizon)
        decayed = arb(initial) * (-arb(kappa) * arb(horizon)).exp()
        found = rules.delta(initial, kappa, horizon)
        assert arb(found) >= decayed
        assert found <= max(float(decayed), 1e-300) * (1 + 1e-11)
        bound = rules.theorem_3(
            initial=initial, kappa=kappa, lipschitz=push, lipschitz_potential=0.5, radius=2.0, horizon=horizon
        )
        true = decayed + exact(0.0, -kappa, push, horizon)
        assert arb(bound) >= true
        assert bound <= float(true) * (1 + 1e-11)
        # One's own δ counts where it is larger, and the promised one may be given.
        more = rules.theorem_3(
            initial=initial, kappa=kappa, lipschitz=push, lipschitz_potential=0.5, radius=2.0, horizon=horizon, delta_claimed=3 * found
        )  # fmt: skip
        assert more == pytest.approx(float(3 * arb(found) + true - decayed), rel=1e-11)
        same = {
            "initial": initial,
            "kappa": kappa,
            "lipschitz": push,
            "lipschitz_potential": 0.5,
            "radius": 2.0,
            "horizon": horizon,
        }
        assert rules.theorem_3(**same, delta_claimed=float(decayed)) == pytest.approx(bound, rel=1e-11)
        with pytest.raises(ValueError, match="delta_claimed"):
            rules.theorem_3(**same, delta_claimed=float(decayed) * (1 - 1e-11))
    with pytest.raises(ValueError, match="delta_claimed"):
        rules.theorem_3(
            initial=1.0, kappa=1.0, lipschitz=1.0, lipschitz_potential=1.0, radius=1.0, delta_claimed=math.nan
        )
    assert rules.delta(1.0, 1.0) == rules.delta(1.0, 1.0, 1.0)


LOSSES = [
    (ld.cross_entropy, "inf"),
    (ld.cross_entropy, "2"),
    (ld.squared_error, "2"),
    (ld.truncated(ld.cross_entropy, 0.05), "inf"),
]


def solution(loss, norm, initial, kappa, push, horizon, cap=math.inf):
    """The comparison equation by an accurate solver."""
    level, inner = (
        (float(loss.level()), loss.loss) if isinstance(loss, ld.Truncated) else (0.0, ld.Exponential(loss, 1.0).loss)
    )
    right = lambda t, v: [-kappa * v[0] + push * min(inner.gradient_profile(max(v[0] + level, 1e-300), norm)[0], cap)]
    found = solve_ivp(right, (0, horizon), [max(initial - level, 0.0)], rtol=1e-10, atol=1e-12, method="LSODA")
    return found.y[0, -1] + level


@pytest.mark.parametrize(("loss", "norm"), LOSSES)
@pytest.mark.parametrize(
    ("initial", "kappa", "push", "horizon"),
    [(2.3, 2.0, 0.4, 1.0), (2.3, 0.0, 0.3, 1.0), (0.5, 3.0, 2.0, 2.0), (1e-3, 0.5, 0.1, 4.0), (5.0, 1.0, 0.0, 1.0)],
)
def test_the_comparison_rule_is_above_the_solution_and_close(loss, norm, initial, kappa, push, horizon):
    given = {
        "loss": ld.Exponential(loss, 1.0).loss,
        "initial": initial,
        "kappa": kappa,
        "norm": norm,
        "horizon": horizon,
    }
    true = solution(loss, norm, initial, kappa, push, horizon)
    found = rules.comparison_rule(**given, lipschitz=push / 2, radius=2.0)
    assert true * (1 - 1e-8) <= found <= true * (1 + 2e-3) + 1e-6
    assert found <= rules.comparison_rule(**given, lipschitz=push / 2, radius=2.0, steps=16) * (1 + 1e-9)
    # A constant that is smaller than the profile takes its place, a larger one changes nothing.
    for cap in (0.3, 50.0):
        capped = rules.comparison_rule(**given, lipschitz=push, radius=1.0, lipschitz_potential=cap)
        true = solution(loss, norm, initial, kappa, push, horizon, cap)
        assert true * (1 - 1e-8) <= capped <= true * (1 + 2e-2) + 1e-6


@pytest.mark.slow
def test_a_radius_is_the_largest_that_a_rule_allows():
    for loss in (ld.cross_entropy, ld.truncated(ld.cross_entropy, 0.1)):
        for rule in ("comparison", "theorem_3"):
            for lipschitz in (1e-6, 0.7, 3e5):
                given = {
                    "loss": ld.Exponential(loss, 1.0).loss,
                    "initial": 1.5,
                    "kappa": 2.0,
                    "lipschitz": lipschitz,
                    "lipschitz_potential": 1.8,
                }
                radius = rules.certified_radius(**given, rule=rule)
                given.pop("loss")
                level = float(loss.level()) if isinstance(loss, ld.Truncated) else 0.0

                def bound(radius, given=given, rule=rule, loss=loss, level=level):
                    if rule == "comparison":
                        return rules.comparison_rule(loss=ld.Exponential(loss, 1.0).loss, **given, radius=radius)
                    return rules.theorem_3(**{**given, "initial": given["initial"] - level}, radius=radius) + level

                assert bound(radius) < math.log(2) <= bound(radius * (1 + 1e-9)) * (1 + 1e-9)
    always = rules.certified_radius(
        loss=ld.Exponential(ld.cross_entropy, 1.0).loss, initial=0.1, kappa=1.0, lipschitz=0.0
    )
    never = rules.certified_radius(
        loss=ld.Exponential(ld.cross_entropy, 1.0).loss, initial=9.0, kappa=1.0, lipschitz=1.0
    )
    assert (always, never) == (math.inf, 0)
    # Wherever the answer is: small beside the threshold, large, in any unit.
    for initial, kappa in ((math.log(2) - 1e-9, 0.0), (1e-3, 40.0)):
        for lipschitz in (1e-40, 1.0, 1e40):
            given = {
                "loss": ld.Exponential(ld.cross_entropy, 1.0).loss,
                "initial": initial,
                "kappa": kappa,
                "lipschitz": lipschitz,
            }
            radius = rules.certified_radius(**given)
            assert (
                rules.comparison_rule(**given, radius=radius)
                < math.log(2)
                <= rules.comparison_rule(**given, radius=radius * (1 + 1e-5))
            )
    # What the other two arguments are passed on to.
    given = {"loss": ld.Exponential(ld.cross_entropy, 1.0).loss, "initial": 1.0, "kappa": 1.0, "lipschitz": 1.0}
    assert rules.certified_radius(**given, norm="2") > rules.certified_radius(**given, norm="inf")
    assert rules.certified_radius(**given, horizon=2.0) != pytest.approx(rules.certified_radius(**given))


def test_levels_are_added_upward():
    rng = np.random.default_rng(2)
    for a, b in rng.uniform(0, 1, (200, 2)).tolist():
        assert Fraction(rules._sum(a, b)) >= Fraction(a) + Fraction(b)
    assert rules._sum(0.0, 0.25) == 0.25
    for value, right in ((0.0, True), (1.5, True), (-1e-9, False), (math.inf, False), (math.nan, False)):
        assert (is_finite(value) and value >= 0) == right
        if right:
            rules.check(some=value)
        else:
            with pytest.raises(ValueError, match="some: expected a finite number >= 0"):
                rules.check(some=value)


def test_where_tangents_are_steep_a_lower_level_bounds_them():
    # 2 √v, of the squared error: at 0 there is no tangent.
    profile = lambda v: (2 * math.sqrt(v), 1 / math.sqrt(v))
    for push, growth in ((1.0, 4.0), (1e-3, 4.5), (20.0, 4.0), (1e-9, 5.0)):
        v = rules._lowest(profile, push, growth)
        assert push * profile(v)[0] <= growth * v * (1 + 1e-9)
        assert v == pytest.approx((2 * push / growth) ** 2, rel=1e-6)
    assert rules._lowest(lambda v: (v, 1.0), 10.0, 4.0) == 1e-300
    loss = ld.Exponential(ld.squared_error, 1.0).loss
    found = rules.comparison_rule(loss=loss, initial=0.0, kappa=1.0, lipschitz=1.0, radius=0.1, norm="2")
    # √v grows at 0.1 - √v / 2 from 0 on.
    assert (0.2 * (1 - math.exp(-0.5))) ** 2 <= found <= 1.5 * (0.2 * (1 - math.exp(-0.5))) ** 2
