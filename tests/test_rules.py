"""The robustness rules as mathematics: upper solutions, the table of the design, and systems that refute wrong uses."""

import decimal
import math
import re
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings, strategies as st
from hypothesis.extra import numpy as st_numpy
from scipy.integrate import solve_ivp
from scipy.special import logsumexp, softmax
from scipy.stats import binom

import lyapunov_dsl as ld

rates = st.floats(0, 10)
pushes = st.floats(0, 10)
levels = st.just(0.0) | st.floats(1e-6, 10)
potentials = st.just(0.0) | st.floats(1e-6, 3)
horizons = st.floats(0.125, 2)
losses = st.sampled_from(
    [
        (ld.cross_entropy, "inf"),
        (ld.cross_entropy, "2"),
        (ld.truncated(ld.cross_entropy, 0.125), "inf"),
        (ld.truncated(ld.cross_entropy, 0.5), "2"),
        (ld.squared_error, "2"),
        (ld.truncated(ld.squared_error, 0.25), "2"),
    ]
)


def integrated(loss: Any, norm, initial, kappa, push, horizon, lipschitz_potential=math.inf):
    """The perturbed scalar equation, integrated numerically to about ten digits."""
    level = float(loss.level()) if isinstance(loss, ld.Truncated) else 0.0

    profile: Any = loss.gradient_profile  # that of a truncated loss takes v + level itself

    def rate(t, gamma):
        v = max(gamma[0], 0.0)
        return [-kappa * v + push * min(profile(v, norm)[0], lipschitz_potential)]

    begin = max(initial - level, 0.0)
    # From 0 the squared error has two solutions, of which an integrator takes either; see the edges below.
    assume(loss is not ld.squared_error or begin > 0)
    return level + solve_ivp(rate, (0, horizon), [begin], method="LSODA", rtol=1e-11, atol=1e-18).y[0, -1]


@settings(max_examples=60)
@given(losses, levels, rates, pushes, horizons)
def test_the_comparison_rule_is_an_upper_solution_and_a_close_one(which, initial, kappa, push, horizon):
    loss, norm = which
    true = integrated(loss, norm, initial, kappa, push, horizon)
    constants = {"initial": initial, "kappa": kappa, "lipschitz": push, "radius": 1.0, "horizon": horizon}
    coarse, fine = (ld.comparison_rule(loss=loss, norm=norm, steps=n, **constants) for n in (64, 1024))
    assert coarse >= true * (1 - 1e-9) - 1e-11
    assert fine >= true * (1 - 1e-9) - 1e-11
    singular = norm == "2" and loss is ld.squared_error and initial < 1e-3
    if not singular:
        assert fine - true <= 0.02 * (coarse - true) + 1e-8 * (1 + true) or fine - true <= 1e-4 * true


@settings(max_examples=60)
@given(levels, st.just(0.0) | st.floats(1e-30, 10), potentials, horizons, potentials)
def test_theorem_3_is_an_upper_solution_and_the_exact_one(initial, kappa, push, horizon, potential):
    bound = ld.theorem_3(
        initial=initial, kappa=kappa, lipschitz=push, radius=0.5, lipschitz_potential=potential, horizon=horizon
    )
    with decimal.localcontext(prec=60):
        decay = (-decimal.Decimal(kappa) * decimal.Decimal(horizon)).exp()
        push = decimal.Decimal(potential) * decimal.Decimal(push) / 2
        drift = push * ((1 - decay) / decimal.Decimal(kappa) if kappa else decimal.Decimal(horizon))
        true = decimal.Decimal(initial) * decay + drift
        assert decimal.Decimal(bound) >= true
        assert decimal.Decimal(bound) <= true * (1 + decimal.Decimal("1e-11")) + decimal.Decimal("1e-299")
        assert decimal.Decimal(ld.delta(initial, kappa, horizon)) >= decimal.Decimal(initial) * decay


@settings(max_examples=100)
@given(losses, levels, rates, pushes, horizons, potentials)
def test_the_sharper_rule_is_never_weaker_than_theorem_3(which, initial, kappa, push, horizon, potential):
    loss, norm = which
    level = float(loss.level()) if isinstance(loss, ld.Truncated) else 0.0
    constants = {"kappa": kappa, "lipschitz": push, "lipschitz_potential": potential, "horizon": horizon}
    sharp = ld.comparison_rule(loss=loss, norm=norm, initial=initial, radius=1.0, **constants)
    paper = ld.theorem_3(initial=max(initial - level, 0.0), radius=1.0, **constants)
    assert sharp <= math.nextafter(level + paper, math.inf) if level else sharp <= paper
    assert sharp >= integrated(loss, norm, initial, kappa, push, horizon, potential) * (1 - 1e-9) - 1e-11


@settings(max_examples=15)
@given(st.sampled_from([0.0, 0.125, 0.5]), levels, st.floats(0.1, 10), st.sampled_from([1e-6, 0.3, 1.0, 1e6]), horizons)
def test_the_sharper_rule_never_certifies_a_smaller_radius(level, initial, kappa, lipschitz, horizon):
    loss = ld.truncated(ld.cross_entropy, level) if level else ld.cross_entropy
    constants = {
        "loss": loss, "initial": initial, "kappa": kappa, "lipschitz": lipschitz, "horizon": horizon,
        "lipschitz_potential": 2.0,
    }  # fmt: skip
    paper = ld.certified_radius(rule="theorem_3", **constants)
    sharp = ld.certified_radius(rule="comparison", **constants)
    assert sharp >= paper >= 0
    if sharp > 0:  # a radius that is returned is one at which the rule holds, and not much more does
        rule = {key: value for key, value in constants.items() if key != "loss"}
        assert ld.comparison_rule(loss=loss, radius=sharp, **rule) < math.log(2)
        assert ld.comparison_rule(loss=loss, radius=sharp * (1 + 1e-9), **rule) >= math.log(2) * (1 - 1e-8)


@pytest.mark.parametrize(
    ("classes", "kappa", "paper", "sharp"),
    [
        (10, 2, "0.44", "0.70"),
        (10, 3, "0.91", "1.53"),
        (10, 5, "1.71", "3.12"),
        (10, 10, "3.47", "6.83"),
        (100, 2, "0.08", "0.11"),
        (100, 3, "0.73", "1.12"),
        (100, 5, "1.67", "2.91"),
        (100, 10, "3.46", "6.77"),
    ],
)
def test_the_table_of_radii(classes, kappa, paper, sharp):
    constants = {"loss": ld.cross_entropy, "initial": math.log(classes), "kappa": kappa, "lipschitz": 1}
    assert f"{ld.certified_radius(rule='theorem_3', lipschitz_potential=2, **constants):.2f}" == paper
    assert f"{ld.certified_radius(**constants):.2f}" == sharp


@settings(max_examples=200)
@given(st_numpy.arrays(np.float64, (2, 5), elements=st.floats(-20, 20)), st.booleans(), st.sampled_from(["inf", "2"]))
def test_the_gradient_profile_holds_for_soft_targets_too(rows, one_hot, norm):
    target = np.eye(5)[np.argmax(rows[1])] if one_hot else softmax(rows[1])
    loss = float(target @ (logsumexp(rows[0]) - rows[0]))
    gradient = softmax(rows[0]) - target
    profile: Any = ld.cross_entropy.gradient_profile(loss, norm)
    bound, _ = profile
    assert np.linalg.norm(gradient, 1 if norm == "inf" else 2) <= bound * (1 + 1e-12) + 1e-12


def test_the_observed_final_loss_is_refused_as_delta():
    message = (
        "delta_claimed: expected at least exp(-κT) · V(η(0)) = 0.695921, got 0.0001. The observed final loss is no "
        "δ: a perturbed trajectory is held to the promised decay, not to the one observed without perturbation"
    )
    constants = {"initial": 0.85, "kappa": 0.2, "lipschitz": 1, "lipschitz_potential": 1, "radius": 0.1}
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        ld.theorem_3(delta_claimed=1e-4, **constants)
    with pytest.raises(ValueError, match="delta_claimed"):
        ld.theorem_3(delta_claimed=math.nan, **constants)
    honest = ld.delta(0.85, 0.2)
    assert ld.theorem_3(delta_claimed=honest, **constants) == ld.theorem_3(**constants)
    assert ld.theorem_3(delta_claimed=1.0, **constants) > ld.theorem_3(**constants)


def test_a_system_whose_observed_final_loss_promises_too_much():
    """κ = 0.2, L_f = L_V = 1, ε = 0.1: V ends at 1e-4, promised at most 0.09 with that as δ, and ends at 0.78 perturbed.

    The state is (a, b) with V = |a|. Along b = 0 there is a narrow channel in which a falls fast; without perturbation
    the trajectory stays in it, with one it leaves it at once and only the promised rate is left.
    """
    kappa, epsilon, width, begin = 0.2, 0.1, 1e-4, 0.85
    extra = math.log(begin * math.exp(-kappa) / 1e-4)

    def field(t, state, x):
        a, b = state[..., 0], state[..., 1]
        channel = extra * np.exp(-((b / width) ** 2))
        return np.stack([-kappa * a - channel * a + x, x - b + 0 * a], axis=-1)

    # The condition holds on all of H = [-1, 1]^2, not merely along the trajectory, L_f is 1 and H is invariant.
    states = np.random.default_rng(0).uniform(-1, 1, (10_000, 2)) * [1, width]
    rate = np.sign(states[:, 0]) * field(0, states, 0.0)[:, 0]
    assert (rate <= -kappa * np.abs(states[:, 0]) + 1e-15).all()
    assert np.allclose(field(0, states, epsilon) - field(0, states, 0.0), epsilon)
    for x in (-epsilon, epsilon):
        assert kappa > abs(x)  # at |a| = 1 the field points inward, and at |b| = 1 too

    def final(x):
        solution = solve_ivp(lambda t, s: field(t, s, x), (0, 1), [begin, 0], rtol=1e-10, atol=1e-12, max_step=1e-3)
        return abs(solution.y[0, -1])

    observed = final(0.0)
    assert observed == pytest.approx(1e-4, rel=1e-4)
    constants = {"initial": begin, "kappa": kappa, "lipschitz": 1, "lipschitz_potential": 1, "radius": epsilon}
    with pytest.raises(ValueError, match="observed final loss is no"):
        ld.theorem_3(delta_claimed=observed, **constants)
    wrong = observed + ld.theorem_3(**{**constants, "initial": 0.0})
    assert wrong < 0.091
    perturbed = final(epsilon)
    assert perturbed > 0.77 > 8 * wrong
    assert perturbed <= ld.theorem_3(**constants) < 0.79


def test_rules_at_the_edges():
    rule = {"loss": ld.cross_entropy, "initial": 2.0, "kappa": 2.0}
    # nothing pushes, nothing decays, no time
    assert ld.comparison_rule(**rule, lipschitz=0, radius=5) == pytest.approx(2 * math.exp(-2), rel=1e-10)
    assert ld.comparison_rule(**rule, lipschitz=1, radius=0) == pytest.approx(2 * math.exp(-2), rel=1e-10)
    assert ld.comparison_rule(loss=ld.cross_entropy, initial=2, kappa=0, lipschitz=0, radius=0) == pytest.approx(2)
    assert ld.comparison_rule(**rule, lipschitz=1, radius=1, horizon=0) == pytest.approx(2)
    assert ld.theorem_3(initial=1, kappa=0, lipschitz=1, lipschitz_potential=2, radius=3) == pytest.approx(7)
    assert ld.delta(0, 1) == 0
    # a rate so small that κT underflows still lets the perturbation act
    tiny = {"kappa": 5e-324, "lipschitz": 1, "lipschitz_potential": 1, "radius": 1, "horizon": 0.5}
    assert ld.theorem_3(initial=0, **tiny) >= 0.5
    assert ld.comparison_rule(loss=ld.cross_entropy, initial=0, **tiny) >= 0
    # rounded up where exp underflows
    assert 0 < ld.delta(1, 1e5) <= 1e-299
    # large constants overflow neither in between nor without need
    assert ld.comparison_rule(**rule, lipschitz=1e9, radius=1) == pytest.approx(2e9 * -math.expm1(-2) / 2, rel=1e-3)
    assert ld.comparison_rule(**rule, lipschitz=1e200, radius=1e200) == math.inf
    stiff = ld.comparison_rule(loss=ld.cross_entropy, initial=50, kappa=1e5, lipschitz=1e5, radius=1)
    assert stiff == pytest.approx(1.59362426004, rel=1e-9)  # where γ = 2 (1 - exp(-γ))
    # the squared error from 0: √γ' = -κ/2 √γ + push
    for push in (1e-6, 1.0, 1e5):
        exact = (2 * push * -math.expm1(-0.5)) ** 2
        bound = ld.comparison_rule(loss=ld.squared_error, norm="2", initial=0, kappa=1, lipschitz=1, radius=push)
        assert exact <= bound <= 1.01 * exact


def test_radii_at_the_edges():
    constants = {"loss": ld.cross_entropy, "initial": 2.0, "kappa": 2.0}
    one = ld.certified_radius(**constants, lipschitz=1)
    for lipschitz in (1e-290, 1e-6, 1e9, 1e290):  # whatever the unit of the input
        assert ld.certified_radius(**constants, lipschitz=lipschitz) * lipschitz == pytest.approx(one, rel=1e-9)
    assert ld.certified_radius(**constants, lipschitz=0) == math.inf
    assert ld.certified_radius(**constants, lipschitz=5e-324) > 1e290
    assert ld.certified_radius(**constants, lipschitz=1, lipschitz_potential=0) > 1e25
    # not even without perturbation: V(T) is promised to be log 2 at best, or the truncation level is above it
    assert ld.certified_radius(loss=ld.cross_entropy, initial=math.log(2) * math.exp(2), kappa=2, lipschitz=1) == 0
    assert ld.certified_radius(loss=ld.truncated(ld.cross_entropy, 0.75), initial=1, kappa=2, lipschitz=0) == 0
    # truncation of a truncated loss, and a horizon that is not 1
    twice = ld.truncated(ld.truncated(ld.cross_entropy, 0.125), 0.0)
    once = ld.truncated(ld.cross_entropy, 0.125)
    assert ld.certified_radius(loss=twice, initial=2.0, kappa=2, lipschitz=1) > 0
    longer = ld.certified_radius(loss=once, initial=2.0, kappa=2, lipschitz=1, horizon=2)
    assert longer > ld.certified_radius(loss=once, initial=2.0, kappa=2, lipschitz=1)


RULE = {"loss": ld.cross_entropy, "initial": 1.0, "kappa": 1.0, "lipschitz": 1.0, "radius": 1.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kappa": -1.0}, "kappa: expected a finite number >= 0, got -1.0"),
        ({"initial": math.nan}, "initial: expected a finite number >= 0, got nan"),
        ({"radius": math.inf}, "radius: expected a finite number >= 0, got inf"),
        ({"lipschitz": -0.5}, "lipschitz: expected a finite number >= 0, got -0.5"),
        ({"horizon": -1}, "horizon: expected a finite number >= 0, got -1"),
        ({"lipschitz_potential": -3}, "lipschitz_potential: expected a finite number >= 0, got -3"),
        ({"lipschitz_potential": math.nan}, "lipschitz_potential: expected a finite number >= 0, got nan"),
        ({"steps": 0}, "steps: expected at least one, got 0"),
        ({"norm": "1"}, "norm: expected 'inf' or '2', got '1'"),
        ({"loss": ld.squared_error}, "loss: expected one with a gradient profile in the inf-norm"),
    ],
)
def test_what_a_rule_refuses(change, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        ld.comparison_rule(**{**RULE, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": ld.squared_error}, "loss: expected one that decides something"),
        ({"rule": "none"}, "rule: expected 'comparison' or 'theorem_3', got 'none'"),
        ({"initial": -1e-9}, "initial: expected a finite number >= 0"),
    ],
)
def test_what_a_radius_refuses(change, message):
    arguments = {key: value for key, value in RULE.items() if key != "radius"}
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        ld.certified_radius(**{**arguments, **change})


def test_constants_of_every_kind_are_taken():
    plain = ld.theorem_3(initial=1.0, kappa=2.0, lipschitz=1.0, lipschitz_potential=1.0, radius=0.5)
    mixed = ld.theorem_3(
        initial=np.float64(1), kappa=2, lipschitz=jnp.ones(()), lipschitz_potential=np.ones(()), radius=np.float32(0.5)
    )
    assert plain == mixed


@pytest.mark.parametrize("trials", [1, 7, 40])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.999])
def test_clopper_pearson_has_the_exact_tails_and_covers(trials, confidence):
    tail = (1 - confidence) / 2
    intervals = [ld.clopper_pearson(k, trials, confidence) for k in range(trials + 1)]
    for k, (lower, upper) in enumerate(intervals):
        assert 0 <= lower <= k / trials <= upper <= 1
        if k > 0:
            assert binom.sf(k - 1, trials, lower) == pytest.approx(tail, rel=1e-8)
        if k < trials:
            assert binom.cdf(k, trials, upper) == pytest.approx(tail, rel=1e-8)
    assert intervals[0][0] == 0
    assert intervals[-1][1] == 1
    for p in np.linspace(0.001, 0.999, 97):
        inside = [lower <= p <= upper for lower, upper in intervals]
        assert binom.pmf(range(trials + 1), trials, p)[inside].sum() >= confidence - 1e-12


def test_clopper_pearson_covers_in_simulation():
    rng = np.random.default_rng(0)
    for p in (0.0, 0.003, 0.2, 1.0):
        counts = rng.binomial(200, p, 2000)
        inside = [lower <= p <= upper for lower, upper in (ld.clopper_pearson(int(k), 200, 0.9) for k in counts)]
        assert np.mean(inside) >= 0.9 - 0.01


@pytest.mark.parametrize("arguments", [(1, 0), (-1, 3), (4, 3), (1, 3, 0.0), (1, 3, 1.0), (1, 3, math.nan)])
def test_what_clopper_pearson_refuses(arguments):
    with pytest.raises(ValueError, match=r"^clopper_pearson: expected 0 <= successes <= trials"):
        ld.clopper_pearson(*arguments)
