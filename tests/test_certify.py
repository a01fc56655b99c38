"""Reports: a claim is never stronger than its evidence, and what is false is refuted by something that shows it."""

import dataclasses
import math
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lyapunov_dsl as ld
from lyapunov_dsl._certify import _falsify
from lyapunov_dsl._certify._assurance import weakest

Level = ld.Assurance


def program(field, certificate, x, y, *, context=None, solver=None, **system):
    """A program whose state begins at x (or at the first part of a pair) with x (or the second part) as context."""
    start = (lambda x: ld.Start(x, x)) if context is None else context
    one = jax.tree.map(lambda leaf: leaf[0], (x, y))
    return ld.compile(ld.System(start, field, **system), certificate, example=one, solver=solver)


def squared(kappa):
    return ld.Certificate.exponential(ld.squared_error, kappa)


def entropy(kappa, level=0.0):
    loss = ld.truncated(ld.cross_entropy, level) if level else ld.cross_entropy
    return ld.Certificate.exponential(loss, kappa)


def levels_of(report):
    return {claim.assurance for claim in report.claims.values()} | set(report.premises.values())


def check(report: Any, samples: int = 4096) -> Any:
    """What every report has to keep."""
    assert not any(level.proved for level in levels_of(report))
    for claim in report.claims.values():
        assert (claim.assurance is Level.REFUTED) == (claim.counterexample is not None)
        assert (claim.assurance is Level.STATISTICAL) == (claim.interval is not None)
        if claim.interval is not None:
            assert 0 <= claim.interval[0] <= claim.value <= claim.interval[1] <= 1
            assert claim.interval[0] < claim.interval[1]
        assert claim.line() in str(report)
        assert claim.given in str(report)
    for name, claim in report.claims.items():
        if name.endswith(".holds"):
            assert claim.assurance in (Level.EMPIRICAL, Level.REFUTED)
        if name.endswith(".violation"):
            assert claim.interval == ld.clopper_pearson(round(claim.value * samples), samples)
    return report


def test_figures_that_are_proved_are_printed_exactly():
    number = 0.06783849302993
    assert ld._certify._assurance.Claim("V at the end", Level.PROVED_REAL, number).figure() == repr(number)
    assert ld._certify._assurance.Claim("V at the end", Level.EMPIRICAL, number).figure() == "0.06784"


def test_the_order_of_assurances():
    order = list(Level)
    assert [level.name for level in order] == [
        "CHECKED", "PROVED_FLOAT", "PROVED_REAL", "STATISTICAL", "EMPIRICAL", "UNDECIDED", "REFUTED",
    ]  # fmt: skip
    for i, stronger in enumerate(order):
        assert weakest(stronger) is stronger
        for weaker in order[i:]:
            assert weakest(stronger, weaker) is weakest(weaker, stronger) is weaker
    assert weakest(*order) is Level.REFUTED
    assert weakest(*order[:-1]) is Level.UNDECIDED


def test_how_a_claim_prints():
    assert str(ld.Claim("open", Level.UNDECIDED)).split() == ["UNDECIDED", "open"]
    assert str(ld.Claim("worst", Level.EMPIRICAL, -0.5)).split() == ["EMPIRICAL", "-0.5", "worst"]
    share = ld.Claim("share", Level.STATISTICAL, 0.0, (0.0, 0.25), 0.9)
    assert str(share) == f"STATISTICAL  {'0 [0, 0.25] 90 %':<28} share"
    given = dataclasses.replace(share, given="that it rains")
    assert given.line() == str(share)
    assert str(given) == f"{share} (given that it rains)"


def test_a_linear_system_is_refuted_just_above_its_rate_and_not_below(precision):
    # dη/dt = A η with the symmetric part diag(-1, -4, ...) in a random frame: V = |η|² decays at 2, on one axis only.
    rng = np.random.default_rng(0)
    frame, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    skew = rng.normal(size=(6, 6))
    matrix = frame @ np.diag([-1.0, -4, -4, -5, -6, -7]) @ frame.T + skew - skew.T
    a = jnp.asarray(matrix, precision)
    x = jnp.asarray(rng.uniform(-1, 1, (8, 6)), precision)
    system = ld.System(vector_field=lambda t, s, c: a @ s, domain=ld.Box(-1, 1), horizon=0.1)

    def report(kappa):
        return check(ld.assess(ld.compile(system, squared(kappa), (x[0], x[0])), (x, jnp.zeros_like(x))))

    below = report(0.98 * 2)
    assert below.claims["exponential.holds"].assurance is Level.EMPIRICAL
    assert below.claims["exponential.holds"].value <= 1e-5
    assert below.counterexample is None
    above = report(1.02 * 2)
    assert above.claims["exponential.holds"].assurance is Level.REFUTED
    c = above.counterexample
    assert c is above.claims["exponential.holds"].counterexample
    state = np.asarray(c.state, np.float64)
    value, rate = state @ state, 2 * state @ matrix @ state
    assert rate + 2.04 * value > 0
    assert (value, rate, rate + 2.04 * value) == pytest.approx((c.value, c.rate, c.residual), rel=1e-3)
    assert np.abs(state).max() <= 1
    assert 0 <= c.t <= 0.1  # float32 rounds 0.1 up
    assert 0 <= c.example < 8


@pytest.mark.full
def test_rounding_near_the_target_is_no_violation(precision):
    # The rate is 6 in exact arithmetic; near the target the field is nothing but rounding errors.
    y = jax.random.uniform(jax.random.key(0), (16, 3), precision, -1, 1)
    field = lambda t, s, c: 3 * ((c + 10) - (s + 10))
    p = program(field, squared(5.9), y, y, context=lambda x: ld.Start(0 * x, x), domain=ld.Box(-1, 1), horizon=5.0)
    report = check(ld.assess(p, (y, y)))
    assert report.claims["exponential.holds"].assurance is Level.EMPIRICAL
    assert report.claims["exponential.violation"].value == 0


def search(p: Any, x: Any, y: Any, count: int = 2048) -> Any:
    """What the falsifier finds, from draws alone: how many of them violate, the worst residual, a counterexample."""
    starts = ld.Start(x, x)
    (name,) = p.condition.parts
    draws = _falsify.draw(p.condition, starts, jax.random.key(1), count)
    found = _falsify.evaluate(p.condition, name, starts, y, draws)
    worst, counterexample = _falsify.falsify(p.condition, name, starts, y, draws, found)
    return int((np.asarray(found.excess) > 0).sum()), worst, counterexample


# f = K (goal - η) with K = 4 meets κ = 3 where the cross entropy is above a level, but not at its least on H.
GOAL = np.asarray([6.0] + 9 * [-6.0])


def test_the_cross_entropy_is_refuted_at_its_least():
    x, y = jnp.zeros((4, 10)), jnp.zeros((4,), int)
    p = program(lambda t, s, c: 4 * (jnp.asarray(GOAL, jnp.float32) - s), entropy(3), x, y, domain=ld.Box(-6, 6))
    drawn, worst, counterexample = search(p, x, y)
    assert drawn == 0
    assert counterexample is not None
    assert worst == counterexample.residual > 0
    assert counterexample.value < 1e-3


@pytest.mark.full
@pytest.mark.usefixtures("quick")
def test_a_truncated_loss_is_not(precision):
    goal, x, y = jnp.asarray(GOAL, precision), jnp.zeros((4, 10), precision), jnp.zeros((4,), int)
    p = program(lambda t, s, c: 4 * (goal - s), entropy(3, 1e-3), x, y, domain=ld.Box(-6, 6),
                solver=ld.Solver(rtol=1e-5, atol=1e-8))  # fmt: skip
    report = check(ld.assess(p, (x, y), radius=0.1))
    assert report.claims["exponential.holds"].assurance is Level.EMPIRICAL
    assert report.claims["exponential.decay"].value == 1
    # The radius begins with the loss before truncation as well.
    known = ld.certified_radius(loss=ld.truncated(ld.cross_entropy, 1e-3), initial=math.log(10), kappa=3, lipschitz=1)
    assert report.robustness.radii(1.0) == pytest.approx(known, rel=1e-5)
    assert report.robustness.deltas == pytest.approx(math.exp(-3) * (math.log(10) - 1e-3), rel=1e-5)


@pytest.mark.usefixtures("quick")
def test_decay_is_measured_before_truncation():
    # The loss stands still at 0.7 from 0.8 on, which a level of 0.75 would hide as 0.
    field = lambda t, s, c: jnp.where(s**2 > 0.7, -4 * s, 0 * s)
    x, y = jnp.full((4, 1), math.sqrt(0.8)), jnp.zeros((4, 1))
    certificate = ld.Certificate.exponential(ld.truncated(ld.squared_error, 0.75), 2)
    p = program(field, certificate, x, y, domain=ld.Box(-1, 1), solver=ld.Solver(diffrax.Euler(), dt=0.01))
    report = check(ld.assess(p, (x, y)))
    assert report.claims["exponential.holds"].assurance is Level.EMPIRICAL
    assert report.claims["exponential.decay"].value == 0
    assert "before truncation" in report.claims["exponential.decay"].statement


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("horizon", [0.7, 3.0])
def test_shares_of_decay_and_of_states_that_leave_on_a_known_system(horizon):
    # dη/dt = -λ η: V = η² decays at 2 λ; a negative λ leaves H from 0.9 and not from 0.01.
    rate = jnp.asarray([0.5, 0.97, 1.0, 1.5, 4.0, -0.5, -0.5, 0.5])
    begin = jnp.asarray([0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.01, 0.0])
    x, y = {"state": begin, "rate": rate}, jnp.zeros(8)
    p = program(lambda t, s, c: -c * s, squared(2), x, y, context=lambda x: ld.Start(x["state"], x["rate"]),
                domain=ld.Box(-1, 1), horizon=horizon, solver=ld.Solver(rtol=1e-6, atol=1e-9))  # fmt: skip
    report = check(ld.assess(p, (x, y)))
    # 0.97 keeps V within 5 % of its promise for T = 0.7, where exp(0.06 · 0.7) = 1.043, but not for T = 3.
    kept = 5 if horizon < 1 else 4
    assert report.claims["exponential.decay"].value == kept / 8
    assert report.claims["exponential.decay"].interval == ld.clopper_pearson(kept, 8)
    assert report.claims["domain.left"].value == 1 / 8
    assert report.claims["exponential.holds"].assurance is Level.REFUTED
    assert report.counterexample.example in (0, 1, 5, 6, 7)
    assert 0 <= report.counterexample.t <= horizon
    assert "error" not in report.claims
    assert "unsolved" not in report.claims


@pytest.mark.full
@pytest.mark.usefixtures("quick")
def test_what_the_solver_cannot_finish_counts_as_failed():
    # The first half is stiff; its logits are right from the beginning on, also where the solver gave up.
    x = {"state": jnp.tile(jnp.asarray([3.0, -3.0]), (6, 1)), "rate": jnp.asarray(3 * [1e5] + 3 * [1.0])}
    y = jnp.zeros(6, int)
    field = lambda t, s, c: c * (jnp.asarray([4.0, -4.0]) - s)
    begin = lambda x: ld.Start(x["state"], x["rate"])
    p = program(field, entropy(0.5), x, y, context=begin, domain=ld.Box(-5, 5), solver=ld.Solver(max_steps=16))
    report = check(ld.assess(p, (x, y), confidence=0.95))
    for name, value in {"unsolved": 0.5, "error": 0.5, "exponential.decay": 0.5, "domain.left": 0.5}.items():
        assert report.claims[name].value == value
    assert "could not finish" in str(report)


@pytest.mark.full
@pytest.mark.filterwarnings("ignore:vector_field (uses where between|chooses by the time)")
@pytest.mark.usefixtures("quick")
def test_a_state_that_is_not_a_number_counts_as_failed():
    x, y = jnp.asarray([[0.5, -0.5], [0.5, -0.5]]), jnp.zeros(2, int)
    context = lambda x: ld.Start(x, x[0] * 0 + jnp.asarray([1.0]))
    field = lambda t, s, c: jnp.where(t > 0.5, jnp.nan, 1.0) * (jnp.asarray([4.0, -4.0]) - s)
    p = program(field, entropy(0.1), x, y, context=context, domain=ld.Box(-5, 5),
                solver=ld.Solver(diffrax.Euler(), dt=0.1))  # fmt: skip
    report = check(ld.assess(p, (x, y), radius=0.1))
    for name in ("unsolved", "error", "domain.left"):
        assert report.claims[name].value == 1
    assert report.claims["exponential.decay"].value == 0
    assert report.claims["exponential.violation"].value == pytest.approx(0.5, abs=0.05)
    holds = report.claims["exponential.holds"]
    assert holds.assurance is Level.REFUTED
    assert math.isnan(holds.value)
    assert report.counterexample.t > 0.5
    assert "nan" in str(report)


@pytest.mark.filterwarnings("ignore:vector_field (uses where between|chooses by the time)")
@pytest.mark.parametrize(
    ("bad", "where"),
    [
        # not a number at the very end of [0, T] only, where no draw falls but the ascent leads
        (lambda t, s: jnp.where(t >= 1, jnp.nan, -(2 - t) * s), "end"),
        # so fast that dV/dt overflows to infinity, and so does what rounding might add
        (lambda t, s: jnp.where(s > 0.5, 3e38, -3.0) * 10 * s, "half"),
    ],
)
def test_what_cannot_be_evaluated_is_not_satisfied(bad, where):
    x = jnp.full((2,), 0.4)
    p = program(lambda t, s, c: bad(t, s), squared(1.9), x, 0 * x, domain=ld.Box(-1, 1))
    report = check(ld.assess(p, (x, 0 * x)))
    c = report.counterexample
    assert report.claims["exponential.holds"].assurance is Level.REFUTED
    assert not math.isfinite(c.residual)
    assert abs(float(c.state)) <= 1
    if where == "end":
        assert c.t == 1
    else:
        assert float(c.state) > 0.5
        assert report.claims["exponential.violation"].value == pytest.approx(0.25, abs=0.03)


@pytest.mark.filterwarnings("ignore:vector_field (uses where between|chooses by the time)")
def test_the_ascent_stops_at_what_is_not_a_number():
    # The draws stay below t = 0.9, from where the residual rises towards t = 1.
    x = jnp.full((1,), 0.4)
    field = lambda t, s, c: jnp.where(t >= 1, jnp.nan, -(2 - t) * s)
    p = program(field, squared(1.9), x, 0 * x, domain=ld.Box(-1, 1))
    starts = ld.Start(x, x)
    t = jnp.linspace(0, 0.9, 64)
    draws = _falsify.Draws(jnp.zeros(64, int), t, jnp.linspace(-1, 1, 64))
    found = _falsify.evaluate(p.condition, "exponential", starts, 0 * x, draws)
    assert not (np.asarray(found.excess) > 0).any()
    _, counterexample = _falsify.falsify(p.condition, "exponential", starts, 0 * x, draws, found)
    assert counterexample is not None
    assert counterexample.t == 1
    assert np.isfinite(counterexample.state)


@pytest.mark.usefixtures("quick")
def test_a_needle_is_not_claimed_to_be_absent():
    # The violation is a ball of radius about 0.02 in ten dimensions: nobody finds it, and nobody says it is not there.
    def field(t, s, c):
        return -1.1 * s + 4 * s * jnp.exp(-jnp.sum((s - 0.5) ** 2) / 0.02**2)

    x = jnp.full((4, 10), -0.5)
    p = program(field, squared(2), x, 0 * x, domain=ld.Box(-1, 1))
    report = check(ld.assess(p, (x, 0 * x), radius=0.1))
    at = jnp.full((10,), 0.5)
    residual = p.condition.residuals(jnp.zeros(()), at, p.condition.point(ld.Start(at, at), 0 * at))["exponential"]
    assert residual > 0
    assert report.claims["exponential.holds"].assurance is Level.EMPIRICAL
    assert report.premises["the condition holds for the nominal input on all of H"] is Level.EMPIRICAL
    assert report.claims["exponential.violation"].interval[1] > 0
    assert report.claims["robust"].assurance is Level.UNDECIDED


@pytest.mark.parametrize(
    "field",
    [
        # on a cone about one axis of ten, a ball of ten dimensions, near the target, and near the end
        lambda t, s: -jnp.asarray([0.98] + 9 * [5.0]) * s,
        lambda t, s: -1.1 * s + 4 * s * jnp.exp(-jnp.sum((s - 0.5) ** 2) / 0.3**2),
        lambda t, s: -(1.2 - 0.5 * jnp.exp(-jnp.sum(s * s) / 0.05**2)) * s,
        lambda t, s: -(1.2 - 0.5 * jax.nn.sigmoid(500 * (t - 0.999))) * s,
    ],
    ids=["cone", "ball", "core", "end"],
)
def test_violations_that_no_draw_hits_are_searched_for(field):
    x = jnp.full((4, 10), 0.9) * jnp.asarray(5 * [1.0, -1.0])
    p = program(lambda t, s, c: field(t, s), squared(2), x, 0 * x, domain=ld.Box(-1, 1))
    _, _, counterexample = search(p, x, 0 * x)
    assert counterexample is not None
    again = p.condition.residuals(
        jnp.asarray(counterexample.t),
        jnp.asarray(counterexample.state),
        p.condition.point(ld.Start(x[0], x[0]), 0 * x[0]),
    )
    assert again["exponential"] > 0
    assert np.abs(counterexample.state).max() <= 1


@pytest.mark.usefixtures("quick")
def test_a_violation_along_the_trajectories_is_seen_and_not_counted_as_drawn():
    # Twenty dimensions, and a thin tube about the trajectories in which V stands still: hopeless to hit by drawing.
    def field(t, s, c):
        return -1.1 * s * (1 - jnp.exp(-jnp.sum((s - c) ** 2) / 1e-4))

    x = jax.random.uniform(jax.random.key(0), (8, 20), minval=-0.9, maxval=0.9)
    p = program(field, squared(2), x, 0 * x, domain=ld.Box(-1, 1))
    report = check(ld.assess(p, (x, 0 * x)))
    assert report.claims["exponential.violation"].value == 0
    assert report.claims["exponential.decay"].value == 0
    assert report.claims["exponential.holds"].assurance is Level.REFUTED
    c = report.counterexample
    assert np.linalg.norm(c.state - x[c.example]) < 0.05


@pytest.mark.usefixtures("quick")
def test_one_example_of_many_is_found_and_named():
    x = jnp.zeros((300, 1)).at[123].set(1.0)
    start = lambda x: ld.Start(0 * x + 0.5, x)
    p = program(lambda t, s, c: -jnp.where(c > 0, 0.9, 1.2) * s, squared(2), x, 0 * x, context=start,
                domain=ld.Box(-1, 1))  # fmt: skip
    report = check(ld.assess(p, (x, 0 * x), samples=64), samples=64)
    assert report.counterexample.example == 123
    assert report.claims["exponential.decay"].value == pytest.approx(299 / 300)


@pytest.mark.usefixtures("quick")
def test_structured_states_several_parts_and_no_targets(precision):
    x = {"q": jnp.full((4, 2), 0.5, precision), "p": jnp.zeros((4,), precision)}
    inside = ld.Certificate.barrier(lambda s: 1 - jnp.sum(s["q"] ** 2), alpha=1.0)
    slow = ld.Certificate.barrier(lambda s: 4 - s["p"] ** 2, alpha=lambda h: 0.1 * h)
    field = lambda t, s, c: {"q": -s["q"], "p": s["p"]}
    domain = ld.Product({"q": ld.Ball(0, 2.0), "p": ld.Box(-1, 3)})
    report = check(ld.assess(program(field, inside & slow, x, None, domain=domain), (x, None), radius=0.1))
    assert {"barrier.holds", "barrier_2.holds", "barrier.decay", "barrier_2.decay"} <= set(report.claims)
    assert report.claims["barrier.holds"].assurance is Level.EMPIRICAL
    assert report.claims["barrier_2.holds"].assurance is Level.REFUTED
    assert report.claims["barrier.decay"].value == report.claims["barrier_2.decay"].value == 1
    c = report.counterexample
    assert c.part == "barrier_2"
    p = float(c.state["p"])
    assert 2 * p * p > 0.1 * (4 - p * p) - 1e-6
    assert -1 <= p <= 3
    assert np.linalg.norm(c.state["q"]) <= 2 * (1 + 1e-6)
    assert "q" in str(report).splitlines()[-1]
    # nothing here decides anything, so there is no radius
    assert report.robustness is None
    assert report.stops == ()
    assert report.claims["robust"].assurance is Level.UNDECIDED


@pytest.mark.full
@pytest.mark.usefixtures("quick")
def test_the_radius_rests_on_the_part_that_decides():
    goal = jnp.asarray(GOAL, jnp.float32)
    x, y = jnp.zeros((3, 10)).at[1, 0].set(1.0), jax.nn.one_hot(jnp.zeros(3, int), 10)
    out = ld.Certificate.barrier(lambda s: 1 - s[0], alpha=1.0)
    certificate = out & squared(0.1) & entropy(3, 0.125)
    p = program(lambda t, s, c: 4 * (goal - s), certificate, x, y, domain=ld.Box(-6, 6), horizon=2)
    report = check(ld.assess(p, (x, y), radius=0.1, norm="2"))
    assert report.claims["barrier.holds"].assurance is Level.REFUTED
    assert report.claims["exponential_2.holds"].assurance is Level.EMPIRICAL
    assert report.premises["the condition holds for the nominal input on all of H"] is Level.EMPIRICAL
    loss = ld.truncated(ld.cross_entropy, 0.125)
    initial = np.log(np.exp(np.asarray(x, np.float64)).sum(axis=1)) - np.asarray(x)[:, 0]
    known = [
        ld.certified_radius(loss=loss, initial=c, kappa=3, lipschitz=2, norm="2", horizon=2) for c in initial.tolist()
    ]
    radii = report.robustness.radii(2.0)
    assert radii == pytest.approx(known, rel=1e-5)
    assert radii[0] == radii[2] < radii[1]
    assert "if every premise held:\n  δ of Definition 5: median" in str(report)
    assert all(report.premises[name] is Level.UNDECIDED for name in report.premises if "condition" not in name)


@pytest.mark.full
@pytest.mark.usefixtures("quick")
def test_a_wrong_class_where_the_condition_holds_on_the_nominal_trajectory_only():
    """Theorem 3 "certifies" ε = 0.69 with the right δ, and ε = 0.05 ends in the wrong class.

    The state is two logits and a third number b that is 0 without perturbation. Where b is 0 the margin grows as fast as
    the condition asks, elsewhere it falls: the condition holds along the nominal trajectory and not off it.
    """
    kappa, epsilon, width = 2.0, 0.05, 0.005

    def field(t, s, x):
        value = jax.nn.softplus(s[1] - s[0])
        channel = jnp.exp(-((s[2] / width) ** 2))
        # -(1 - exp(-V)) margin' <= -κ V, for V / (1 - exp(-V)) <= 1 + V
        margin = channel * kappa * (1 + value) - 6 * (1 - channel)
        return jnp.stack([margin / 2, -margin / 2, x])

    x, y = jnp.zeros((5,)), jnp.zeros((5,), int)
    domain = ld.Box(np.asarray([-6.0, -6, -1]), np.asarray([6.0, 6, 1]))
    p = program(field, entropy(kappa), x, y, context=lambda x: ld.Start(jnp.zeros(3), x), readout=lambda s: s[:2],
                domain=domain, solver=ld.Solver(rtol=1e-6, atol=1e-8))  # fmt: skip

    # along the nominal trajectory the condition holds
    times = jnp.linspace(0, 1, 50)
    nominal, perturbed = p.trajectory(jnp.asarray([0.0, epsilon]), saveat=diffrax.SaveAt(ts=times)).ys
    point = p.condition.point(ld.Start(jnp.zeros(3), x[0]), y[0])
    residual = jax.vmap(lambda t, s: p.condition.residuals(t, s, point)["exponential"])(times, nominal)
    assert (np.asarray(residual) <= 1e-6).all()
    # L_f is 1, and by Theorem 3 with the right δ every ε below 0.69 would do
    rule: Any = {"initial": math.log(2), "kappa": kappa, "lipschitz": 1.0, "lipschitz_potential": 2.0}
    assert ld.theorem_3(radius=0.6, delta_claimed=ld.delta(math.log(2), kappa), **rule) < math.log(2)
    assert ld.certified_radius(loss=ld.cross_entropy, rule="theorem_3", **rule) > 10 * epsilon
    # a perturbed trajectory stays in H and ends with the wrong class
    assert np.abs(perturbed).max() < 6
    assert np.abs(perturbed[:, 2]).max() < 1
    assert perturbed[-1, 0] < perturbed[-1, 1] - 1

    report = check(ld.assess(p, (x, y), radius=epsilon))
    assert report.claims["error"].value == 0
    assert report.claims["exponential.decay"].value == 1
    assert report.claims["exponential.holds"].assurance is Level.REFUTED
    assert report.claims["robust"].assurance is Level.UNDECIDED
    assert report.premises["the condition holds for the nominal input on all of H"] is Level.REFUTED
    assert "if every premise held (void: one of them is refuted)" in str(report)
    c = report.counterexample
    state = jnp.asarray(c.state)
    assert p.condition.residuals(jnp.asarray(c.t), state, point)["exponential"] > 0


@pytest.mark.full
@pytest.mark.usefixtures("quick")
def test_soft_targets_and_starts_that_are_not_finite_in_v():
    x = {"state": jnp.asarray([[0.0, 0.0, 0.0], [jnp.finfo(jnp.float32).max, 0.0, 0.0]]), "goal": jnp.zeros((2, 3))}
    y = jnp.asarray([[0.8, 0.1, 0.1], [0.0, 1.0, 0.0]])
    field = lambda t, s, c: jnp.asarray([2.0, 0, 0]) - jnp.clip(s, -4, 4)
    big = ld.Certificate.exponential(ld.cross_entropy, 0.25)
    p = program(field, big, x, y, context=lambda x: ld.Start(2 * x["state"], x["goal"]), domain=ld.Box(-4, 4))
    report = check(ld.assess(p, (x, y), radius=0.1))
    # V(η(0)) = log 3 gives a radius, an infinite one none, and no promise is kept from there
    radii = report.robustness.radii(1.0)
    assert radii[1] == 0
    assert report.robustness.deltas[1] == math.inf
    assert radii[0] == pytest.approx(
        ld.certified_radius(loss=ld.cross_entropy, initial=math.log(3), kappa=0.25, lipschitz=1), abs=1e-5
    )
    assert report.claims["exponential.decay"].value <= 0.5
    assert report.claims["domain.left"].value == 0.5


def test_what_certify_refuses():
    x = jnp.full((2, 1), 0.5)
    p = program(lambda t, s, c: -s, squared(1), x, 0 * x, domain=ld.Box(-1, 1))
    with pytest.raises(ValueError, match="norm: expected 'inf' or '2', got '1'"):
        ld.assess(p, (x, 0 * x), norm="1")
    with pytest.raises(ValueError, match="radius: expected a finite number >= 0, got nan"):
        ld.assess(p, (x, 0 * x), radius=math.nan)


@pytest.mark.parametrize("horizon", [0.1, 0.3, 0.7, 1.0, 1e-3])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_last_time_is_not_after_the_horizon(horizon, dtype):
    last = _falsify.last_time(horizon, dtype)
    assert last.dtype == dtype
    assert float(last) <= horizon < float(np.nextafter(last, np.asarray(np.inf, dtype)))
