"""What a report adds to its claims: what is wrong, what ending early costs, radii as functions, feasibility."""

import math
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lyapunov_dsl as ld
from lyapunov_dsl._certify._report import _LEVELS, Robustness

pytestmark = pytest.mark.usefixtures("quick_module")
Level = ld.Assurance
X = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (40, 3)), jnp.float32)
Y = np.argmax(np.asarray(X), axis=1)


def program(field: Any, *, kappa: float = 1, loss: Any = ld.cross_entropy, size: float = 4.0, solver: Any = None,
            input: Any = lambda x: ld.Start(0 * x, x)) -> ld.Program:  # fmt: skip
    """Three logits that start at 0, with the true ones as context."""
    system = ld.System(input, field, domain=ld.Box(-size, size))
    return ld.compile(system, ld.Certificate.exponential(loss, kappa), (X[0], 0), solver=solver)


def towards_the_right_class(t: Any, state: Any, x: Any) -> Any:
    return 4 * (3.5 * jnp.tanh(1e6 * (x - jnp.max(x)) + 3) - state)


def test_nothing_is_wrong_with_a_good_program() -> None:
    report = ld.assess(program(towards_the_right_class), (X, Y))
    assert report.claims["error"].value == 0
    assert report.problems == ()
    assert "what is wrong" not in str(report)


def test_states_that_leave_are_named_with_when_and_how_far() -> None:
    """η moves at 8 half-widths of H per unit of time: it leaves at t = 1/8, and is at 8 of them at the end."""
    report = ld.assess(program(lambda t, s, x: jnp.full_like(s, 32.0)), (X, Y))
    (problem,) = report.problems
    assert problem.startswith(
        "states leave H: 100 % of the trajectories leave it, first seen at t = 0.156, up to 8 times"
    )
    assert "the field moves at 8 half-widths of H per unit of time" in problem
    assert str(report).startswith(f"what is wrong:\n- {problem}\n")


@pytest.mark.full
def test_a_field_that_is_too_fast_for_the_solver() -> None:
    """η' = 200 η³ blows up from 1 at t = 1/400."""
    report = ld.assess(program(lambda t, s, x: 200 * s**3, input=lambda x: ld.Start(1 + 0 * x, x)), (X, Y))
    left, failed = report.problems
    assert "states leave H: 100 %" in left
    assert "and end in infinity or NaN" in left
    assert failed.startswith("inference fails: 100 % of the trajectories could not be solved in 4096 steps")
    assert report.claims["unsolved"].value == 1


def test_states_that_begin_outside() -> None:
    outside = lambda x: ld.Start(jnp.where(x[0] > 0, 6.0, 0.0) + 0 * x, x)
    report = ld.assess(program(lambda t, s, x: 0 * s, input=outside), (X, Y))
    share = float(100 * (X[:, 0] > 0).mean())
    (problem,) = (p for p in report.problems if p.startswith("states outside H"))
    assert f"{share:.3g} % of the trajectories begin outside it, up to 1.5 times its half-width" in problem
    assert not any("states leave H" in p for p in report.problems)


@pytest.mark.parametrize("kappa", [3, 20])
def test_a_kappa_that_the_domain_cannot_meet(kappa: float) -> None:
    """On a cube of half-width 1 the least V is log(1 + 2 e^-2) = 0.24, and log 3 is where V begins: κ < 1.52."""
    least = math.log(1 + 2 * math.exp(-2))
    report = ld.assess(program(towards_the_right_class, kappa=kappa, size=1), (X, Y))
    (problem,) = (p for p in report.problems if p.startswith("exponential seems to ask for too much"))
    assert f"from V(0) = {math.log(3):.4g} it promises V(T) <= {math.log(3) * math.exp(-kappa):.3g}" in problem
    assert f"the least V found on H is {least:.3g} (likewise for 40 of 40 examples)" in problem
    assert f"kappa = {kappa} has to come down below {math.log(math.log(3) / least):.3g}" in problem


@pytest.mark.full
def test_a_radius_is_void_with_and_without_a_radius_asked_for() -> None:
    """The condition is refuted on H either way."""
    p = program(lambda t, s, x: 0 * s)
    for report in (ld.assess(p, (X, Y)), ld.assess(p, (X, Y), radius=0.1)):
        assert report.premises["the condition holds for the nominal input on all of H"] is Level.REFUTED
        assert "if every premise held (void: one of them is refuted)" in str(report)
    assert "robust" not in ld.assess(p, (X, Y)).claims
    left = ld.assess(program(lambda t, s, x: jnp.full_like(s, 32.0)), (X, Y))
    assert "H is forward invariant for every perturbed input (some were seen to leave it)" in left.premises


def test_the_advice_on_kappa_is_for_all_examples() -> None:
    """η in [-1, 1] and targets up to 3: from V = 9 to 4 at the least, so that κ has to come down below 0.81."""
    x, y = jnp.zeros((4, 1)), jnp.asarray([[1.2], [1.5], [2.0], [3.0]])
    system = ld.System(vector_field=lambda t, s, c: 0 * s, domain=ld.Box(-1, 1))
    p = ld.compile(system, ld.Certificate.exponential(ld.squared_error, 4), (x[0], y[0]))
    (problem,) = ld.assess(p, (x, y)).problems
    assert f"has to come down below {math.log(9 / 4):.3g}" in problem


def test_many_local_minima_are_no_false_alarm() -> None:
    """Rastrigin's function of two numbers, moved: its least is 0, and most descents end above it."""

    def rastrigin(state: Any, y: Any) -> Any:
        z = state - jnp.asarray([0.4, -0.7])
        return jnp.sum(z**2 + 10 * (1 - jnp.cos(2 * jnp.pi * z))) + 0 * y

    x = jnp.asarray(np.random.default_rng(0).uniform(-3, 3, (32, 2)), jnp.float32)
    system = ld.System(vector_field=lambda t, s, c: -s, domain=ld.Box(-4, 4))
    p = ld.compile(system, ld.Certificate.exponential(rastrigin, 3), (x[0], 0.0))
    assert not any("ask for too much" in problem for problem in ld.assess(p, (x, jnp.zeros(32))).problems)


def test_the_least_v_is_looked_for_in_the_domain() -> None:
    """The state begins outside H, at the target; on H the least V is 4."""
    x = jnp.full((3, 1), 3.5)
    system = ld.System(vector_field=lambda t, s, c: 0 * s, domain=ld.Box(-1, 1))
    p = ld.compile(system, ld.Certificate.exponential(ld.squared_error, 4), (x[0], x[0]))
    problems = ld.assess(p, (x, x - 0.5)).problems
    assert any("the least V found on H is 4 " in problem for problem in problems)


def test_truncation_makes_it_possible() -> None:
    report = ld.assess(
        program(towards_the_right_class, kappa=3, size=1, loss=ld.truncated(ld.cross_entropy, 0.3)), (X, Y)
    )
    assert not any("ask for too much" in p for p in report.problems)


@pytest.mark.parametrize(
    "solver",
    [
        pytest.param(ld.Solver(diffrax.Heun(), dt=0.125), id="fixed"),
        pytest.param(ld.Solver(), id="adaptive", marks=pytest.mark.full),
    ],
)
def test_the_curve_is_what_predict_does(solver: Any) -> None:
    field = lambda t, s, x: 3 * (x + 0.5 * jnp.cos(9 * t + 5 * x[::-1]))
    p = program(field, solver=solver)
    report = ld.assess(p, (X, Y))
    names = [stop.name for stop in report.stops]
    assert set(names) == {
        "t = 0.125", "t = 0.25", "t = 0.5", "t = 0.75", "t = 1", "confidence 0.9", "confidence 0.99", "confidence 0.999"
    }  # fmt: skip
    for stop in report.stops:
        assert stop.error.value == pytest.approx(p.error(X, Y, stop=stop.stop))
        assert stop.error.assurance is Level.STATISTICAL
        steps = p.trajectory(X, stop=stop.stop).stats["num_steps"]
        assert stop.steps == pytest.approx(float(jnp.mean(steps)))
        assert f"  {stop.name}" in str(report)
    assert [stop.steps for stop in report.stops] == sorted(stop.steps for stop in report.stops)
    errors = {name: stop.error.value for name, stop in zip(names, report.stops, strict=True)}
    assert errors["t = 1"] == report.claims["error"].value
    assert len(set(errors.values())) > 2


def test_the_curve_of_a_loss_that_decides_nothing() -> None:
    system = ld.System(lambda x: ld.Start(0 * x, x), lambda t, s, x: 5 * (x - s), domain=ld.Box(-4, 4))
    p = ld.compile(system, ld.Certificate.exponential(ld.squared_error, 1), (X[0], X[0]))
    report = ld.assess(p, (X, X))
    assert [stop.name for stop in report.stops] == ["t = 0.125", "t = 0.25", "t = 0.5", "t = 0.75", "t = 1"]
    for stop in report.stops:
        assert stop.error.assurance is Level.EMPIRICAL
        assert stop.error.value == pytest.approx(p.error(X, X, stop=stop.stop), rel=1e-4)


def given(initial: Any, loss: Any = ld.cross_entropy, norm: str = "inf") -> Robustness:
    initial = np.asarray(initial, np.float64)
    return Robustness(initial, np.exp(-3) * initial, loss, 3.0, 1.0, norm)


@pytest.mark.parametrize("norm", ["inf", "2"])
@pytest.mark.parametrize("rule", ["comparison", "theorem_3"])
def test_radii_are_functions_of_the_lipschitz_bound(norm: str, rule: str) -> None:
    """L_V of cross entropy is 2 for the 1-norm of its gradient, √2 for the 2-norm."""
    initial = [0.5, math.log(10), 0.5]
    radii = given(initial, norm=norm).radii(2.0, rule=rule)
    bound = {"lipschitz_potential": {"inf": 2.0, "2": math.sqrt(2)}[norm]} if rule == "theorem_3" else {}
    known = [
        ld.certified_radius(loss=ld.cross_entropy, initial=c, kappa=3, lipschitz=2, norm=norm, rule=rule, **bound)
        for c in initial
    ]
    assert radii == pytest.approx(known)
    assert given(initial, norm=norm).radii(1.0, rule=rule) == pytest.approx(2 * radii)


@pytest.mark.full
def test_many_initial_values_are_rounded_up() -> None:
    """Never a larger radius than that of the value itself, and hardly a smaller one."""
    initial = np.random.default_rng(0).uniform(0.1, 4, 3 * _LEVELS)
    radii = given(initial).radii(1.0)
    few = np.linspace(0, initial.size - 1, 20).astype(int)
    exact = given(initial[few]).radii(1.0)
    assert (radii[few] <= exact).all()
    assert radii[few] == pytest.approx(exact, rel=0.1)


@pytest.mark.full
def test_one_value_far_away_does_not_cost_the_others() -> None:
    initial = np.append(np.random.default_rng(0).uniform(0.1, 3, 200), 400.0)
    radii, exact = given(initial).radii(1.0), given(initial[:5]).radii(1.0)
    assert (radii[:5] <= exact).all()
    assert radii[:5] == pytest.approx(exact, rel=0.1)


def test_values_that_are_not_finite_have_no_radius() -> None:
    radii = given([math.inf, 1.0, math.nan]).radii(1.0)
    assert radii[0] == radii[2] == 0 < radii[1]
    assert (given([math.nan]).radii(1.0) == 0).all()
    assert "nan" not in str(given([1.0, 1.0])).lower()


def test_what_the_rules_refuse() -> None:
    with pytest.raises(ValueError, match="lipschitz: expected a finite number >= 0, got -1"):
        given([1.0]).radii(-1)
    with pytest.raises(ValueError, match="rule: expected 'comparison' or 'theorem_3', got 'theorem_2'"):
        given([1.0]).radii(1, rule="theorem_2")
    with pytest.raises(ValueError, match="the gradient of SquaredError is unbounded"):
        given([1.0], ld.squared_error, "2").radii(1, rule="theorem_3")


class Limited(eqx.Module):
    """A field towards the target at a speed of at most `speed` in the 2-norm."""

    speed: float

    def speed_bound(self, t: Any, state: Any, context: Any) -> Any:
        return jnp.asarray(self.speed, jnp.asarray(t).dtype)

    def __call__(self, t: Any, state: Any, context: Any) -> Any:
        return -self.speed * jnp.tanh(state) / 2


def line(speed: float, kappa: float, field: Any = None) -> ld.Program:
    """V = η² on [-1, 1]: V' = -2 η v at most 2 |η| v, so that κ η² <= 2 |η| v is needed: κ <= 2 v at the edge."""
    system = ld.System(vector_field=field or Limited(speed), domain=ld.Box(-1, 1))
    return ld.compile(system, ld.Certificate.exponential(ld.squared_error, kappa), (jnp.zeros(1), jnp.zeros(1)))


@pytest.mark.parametrize("speed", [0.5, 3.0])
def test_feasibility_turns_where_the_closed_form_says(speed: float, precision: Any) -> None:
    x = jnp.asarray(np.linspace(-1, 1, 5)[:, None], precision)
    yes = ld.assess(line(speed, 0.98 * 2 * speed), (x, 0 * x), only="feasibility")
    assert yes.claims["exponential.feasible"].assurance is Level.EMPIRICAL
    assert yes.counterexample is None
    no = ld.assess(line(speed, 1.02 * 2 * speed), (x, 0 * x), only="feasibility")
    claim = no.claims["exponential.feasible"]
    assert claim.assurance is Level.REFUTED
    assert claim.counterexample is no.counterexample is not None
    state = float(np.abs(claim.counterexample.state[0]))
    assert 1 / 1.02 < state <= 1
    assert no.claims["exponential.level"].value == pytest.approx(1, abs=0.04)
    assert no.claims["speed_bound"].assurance is Level.EMPIRICAL


def test_a_small_gradient_does_not_underflow() -> None:
    """V = |η|⁸ on a small box: its gradient is 1e-21 at most in float32, and its square nothing."""
    system = ld.System(vector_field=Limited(1.0), domain=ld.Box(-1e-3, 1e-3))
    certificate = ld.Certificate.exponential(lambda s, y: jnp.sum(s**2) ** 4 + 0 * y, 1.0)
    p = ld.compile(system, certificate, (jnp.zeros(2), 0.0))
    x = jnp.full((4, 2), 5e-4)
    assert (
        ld.assess(p, (x, jnp.zeros(4)), only="feasibility").claims["exponential.feasible"].assurance is Level.EMPIRICAL
    )


def test_feasibility_of_the_invariant_field() -> None:
    """f = K (g - η) with K = 8: feasible above the level K min V / (K - κ), and not below it."""
    field = ld.nn.InvariantField(lambda t, s, x: x, 2.0, 8.0)
    least = math.log(1 + 2 * math.exp(-4))
    level = 8 * least / (8 - 2)

    def report(loss: Any, kappa: float = 2) -> ld.Report:
        return ld.assess(program(field, kappa=kappa, loss=loss, size=2.0), (X, Y), only="feasibility")

    plain = report(ld.cross_entropy)
    assert plain.claims["exponential.feasible"].assurance is Level.REFUTED
    assert plain.claims["exponential.level"].value == pytest.approx(level, rel=0.1)
    assert plain.claims["exponential.level"].value <= level * 1.001
    assert report(ld.truncated(ld.cross_entropy, level)).claims["exponential.feasible"].assurance is Level.EMPIRICAL
    # Truncation asks for less of V, by the level: κ (V - level) in place of κ V.
    below = report(ld.truncated(ld.cross_entropy, 0.5 * least))
    assert below.claims["exponential.feasible"].assurance is Level.REFUTED
    above = report(ld.truncated(ld.cross_entropy, 1.05 * level))
    assert above.claims["exponential.feasible"].assurance is Level.EMPIRICAL
    assert report(ld.truncated(ld.cross_entropy, 1.05 * level), 40).counterexample is not None


def test_a_field_without_a_declared_speed_is_unknown() -> None:
    report = ld.assess(program(lambda t, s, x: x - s), (X, Y), only="feasibility")
    assert report.claims["exponential.feasible"].assurance is Level.UNDECIDED
    assert "unknown, as the vector field declares no speed_bound" in str(report)
    assert report.counterexample is None


def test_a_field_that_is_faster_than_it_says_is_caught() -> None:
    class Liar(Limited):
        def __call__(self, t: Any, state: Any, context: Any) -> Any:
            return jnp.full_like(state, 1.5 * self.speed)

    x = jnp.zeros((2, 1))
    report = ld.assess(line(1.0, 1.0, Liar(1.0)), (x, x), only="feasibility")
    assert report.claims["speed_bound"].assurance is Level.REFUTED
    assert report.claims["speed_bound"].value == pytest.approx(0.5)
    # A conclusion from a refuted premise is none.
    assert report.claims["exponential.feasible"].assurance is Level.UNDECIDED
    assert "exponential.level" not in report.claims
    assert report.counterexample is report.claims["speed_bound"].counterexample


def test_a_speed_as_a_number_and_bounds_as_a_list() -> None:
    class Number(Limited):
        def speed_bound(self, t: Any, state: Any, context: Any) -> Any:
            return 3.0

    class Bounds(Limited):
        def speed_bound(self, t: Any, state: Any, context: Any) -> Any:
            return [jnp.full_like(state, -3.0), jnp.full_like(state, 3.0)]

    x = jnp.zeros((2, 1))
    for field in (Number(3.0), Bounds(3.0)):
        assert (
            ld.assess(line(3.0, 5.9, field), (x, x), only="feasibility").claims["exponential.feasible"].assurance
            is Level.EMPIRICAL
        )
        assert (
            ld.assess(line(3.0, 6.1, field), (x, x), only="feasibility").claims["exponential.feasible"].assurance
            is Level.REFUTED
        )


def test_a_speed_bound_of_another_shape_is_refused() -> None:
    class Wrong(Limited):
        def speed_bound(self, t: Any, state: Any, context: Any) -> Any:
            return jnp.ones(2)

    x = jnp.zeros((2, 1))
    with pytest.raises(
        ValueError, match=r"speed_bound: expected a scalar, or a pair \(lower, upper\) .* got float32\[2\]"
    ):
        ld.assess(line(1.0, 1.0, Wrong(1.0)), (x, x), only="feasibility")


def test_feasibility_of_structured_states_and_several_parts() -> None:
    class Both(eqx.Module):
        def speed_bound(self, t: Any, state: Any, context: Any) -> Any:
            one = jax.tree.map(jnp.ones_like, state)
            return jax.tree.map(jnp.negative, one), one

        def __call__(self, t: Any, state: Any, context: Any) -> Any:
            return jax.tree.map(lambda s: -jnp.tanh(s), state)

    inside = ld.Certificate.barrier(lambda s: 9 - s["q"] @ s["q"] - s["p"] ** 2, alpha=1)
    fast = ld.Certificate.exponential(lambda s, y: s["q"] @ s["q"] + 0 * y, 5)
    x = {"q": jnp.ones((3, 2)), "p": jnp.ones(3)}
    system = ld.System(vector_field=Both(), domain=ld.Box(-1, 1))
    p = ld.compile(system, inside & fast, (jax.tree.map(lambda leaf: leaf[0], x), 0.0))
    report = ld.assess(p, (x, jnp.zeros(3)), only="feasibility")
    assert report.claims["barrier.feasible"].assurance is Level.EMPIRICAL
    # V' = -2 (|q1| + |q2|) at best, and 5 (q1² + q2²) is asked for: not at the corner.
    assert report.claims["exponential.feasible"].assurance is Level.REFUTED
    assert report.counterexample.part == "exponential"


def test_a_discrete_system_is_refused() -> None:
    system = ld.DiscreteSystem(steps=[lambda s, c: 0.5 * s])
    p = ld.compile(system, ld.Certificate.exponential(ld.squared_error, 1), (X[0], X[0]))
    with pytest.raises(ValueError, match="only: expected 'error', as the system is a DiscreteSystem"):
        ld.assess(p, (X, X), only="feasibility")
    # Of it the error is all that can be asked.
    claims = ld.assess(p, (X, X)).claims
    assert list(claims) == ["error"]
    assert claims["error"].assurance is Level.EMPIRICAL
    with pytest.raises(ValueError, match="only: expected some of"):
        ld.assess(p, (X, X), only="feasible")
    with pytest.raises(ValueError, match="samples: expected a positive whole number, got 0"):
        ld.assess(program(lambda t, s, x: x - s), (X, Y), only="feasibility", samples=0)


@pytest.mark.parametrize("kappa", [2, 25])
def test_a_valley_is_no_false_alarm(kappa: float) -> None:
    """V = |A η|² has its least, 0, inside H, in a valley 300 times as long as it is wide that lies along no axis."""
    frame, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
    a = jnp.asarray(np.diag([1.0, 0.05, 1 / 300]) @ frame, jnp.float32)
    system = ld.System(lambda x: ld.Start(x, x), lambda t, s, x: 0 * s, domain=ld.Box(-2, 2))
    certificate = ld.Certificate.exponential(lambda s, y: jnp.sum((a @ s) ** 2) + 0 * y, kappa)
    report = ld.assess(ld.compile(system, certificate, (X[0], 0.0)), (X, jnp.zeros(len(X))))
    assert report.problems == ()
