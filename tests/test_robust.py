"""Certified radii: what is certified survives attacks, and no premise is assumed."""

import math

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import certify_robustness

import lyapunov_dsl as ld
from lyapunov_dsl import bounds

pytestmark = pytest.mark.usefixtures("quick")

KEY = jax.random.key(0)
H, RATE = 4.0, 4.0
X = np.random.default_rng(0).uniform(-1, 1, (12, 3)).astype(np.float32)
# Three classes by the largest entry: the identity is a classifier with known margins.
Y = X.argmax(axis=1).astype(np.int32)
MARGIN = np.sort(X, axis=1)[:, -1] - np.sort(X, axis=1)[:, -2]


class Encoder(eqx.Module):
    """The image itself, as the context; the start is what `start` makes of it."""

    scale: jax.Array
    start: jax.Array

    def __init__(self, scale=1.0, start=0.0):
        self.scale, self.start = jnp.asarray(scale), jnp.asarray(start)

    def __call__(self, x):
        return ld.Start(self.start.astype(x.dtype) * x, self.scale.astype(x.dtype) * x)


class Pull(eqx.Module):
    """Towards the context, so many times as fast. Fields of one class are compiled once."""

    by: jax.Array

    def __call__(self, t, state, context):
        return self.by.astype(state.dtype) * context / H


def field(pull=1.0):
    return ld.nn.InvariantField(Pull(jnp.asarray(pull)), H, RATE)


def program_of(encoder=None, vector_field=None, *, readout=None, kappa=2, steps=4, domain=None, solver=None):
    system = ld.System(
        input=Encoder() if encoder is None else encoder,
        vector_field=field() if vector_field is None else vector_field,
        domain=ld.Box(-H, H) if domain is None else domain,
        **({} if readout is None else {"readout": readout}),
    )
    certificate = ld.Certificate.exponential(loss=ld.cross_entropy, kappa=kappa)
    solver = ld.Solver(diffrax.Euler(), dt=1 / steps) if solver is None else solver
    return ld.compile(system, certificate, (X[0], Y[0]), solver=solver)


def straight(t, state, context):
    return RATE * (context - state)


@pytest.mark.parametrize(
    ("rule", "norm"), [("margin", "2"), ("margin", "inf"), ("tube", "2"), ("tube", "inf"), ("reach", "inf")]
)
def test_a_linear_system_gets_its_exact_radius(rule, norm):
    # z = (1 - (1 - K Δt)^N) x, whose margins change by √2 ε, or by 2 ε in the ∞-norm.
    program = program_of(vector_field=straight, domain=ld.Box(-H, H), steps=8)
    radii = np.arange(1, 60) / 50
    found = certify_robustness(program, X, Y, radii=radii, norm=norm, rules=(rule,))
    exact = MARGIN / (math.sqrt(2) if norm == "2" else 2)
    assert found.right.all()
    assert (found.radius <= exact + 1e-9).all()
    assert (found.radius >= exact - 0.025).all()
    assert set(found.rule) <= {rule, ""}
    assert found.accuracy(0.1) == np.mean(found.radius >= 0.1)
    assert "PROVED_REAL" in str(found)


def corner(pull=30.0):
    """A program that goes where its class is, so fast that the comparison rule can promise something."""
    return program_of(vector_field=field(pull), kappa=1.0, steps=4)


def test_certified_examples_survive_attacks():
    program = corner(3.0)
    radii = (0.02, 0.05, 0.1, 0.2, 0.4)
    found = certify_robustness(program, X, Y, radii=radii, boxes=4000, rules=("margin", "tube", "reach"))
    assert found.accuracy(0.05) > 0.5
    for radius in radii:
        attacked = ld.attacks.pgd(program.predict, X, Y, radius=radius, norm="2", key=KEY)
        wrong = np.asarray(program.predict(np.asarray(attacked))).argmax(-1) != Y
        assert not (wrong & (found.radius >= radius)).any()
    assert found.evaluations > 0


def clear():
    """One example far from the others' classes."""
    return np.array([[0.9, -0.9, -0.9]], np.float32), np.array([0], np.int32)


def comparison(program, x=None, y=None, **more):
    x, y = clear() if x is None else (x, y)
    return certify_robustness(program, x, y, radii=(0.001,), rules=("comparison",), boxes=20_000, **more)


def broken(found):
    return [p.statement for p in found.premises["comparison"][0] if not p.holds]


def test_the_comparison_rule_certifies_with_every_premise():
    found = comparison(corner(), truncation=0.05)
    assert found.radius[0] == 0.001, str(found)
    assert len(found.premises["comparison"][0]) == 5
    assert broken(found) == []


def test_the_sharper_rule_is_never_above_theorem_3():
    asked = {"radii": (0.03,), "truncation": 0.05, "kappa": 20.0, "boxes": 4000, "rules": ("comparison", "theorem_3")}
    found = certify_robustness(corner(), *clear(), **asked)
    assert (found.radii["comparison"] >= found.radii["theorem_3"]).all()
    sharper, moved = promised(found, "comparison")
    constant, _ = promised(found, "theorem_3")
    assert moved > 0
    assert sharper <= constant
    # The constant profile in closed form, from the start 0, where V = log 3: first by the decay, then by the truncation.
    steps, v = 4, math.log(3)
    for _ in range(steps):
        v = max(math.exp(-20 / steps) * v, 0.05) + moved
    assert constant == pytest.approx(v, rel=1e-3)


def promised(found, rule):
    """V at the end and how far steps are moved, as the premises say."""
    statement = next(p.statement for p in found.premises[rule][0] if "below log 2" in p.statement)
    return float(statement.split("input: ")[1].split(",")[0]), float(statement.split("by ")[1])


@pytest.mark.full
def test_a_start_outside_of_h_is_not_certified():
    found = comparison(program_of(Encoder(start=5.0), field(30.0), kappa=1.0), truncation=0.05)
    assert found.radius[0] == 0
    assert any("start is in H" in s for s in broken(found))


def test_a_start_that_depends_on_x_counts():
    # The margin rule: e_0 = 5 ε, of which (1 - K Δt)^N = 0.316 is left.
    still = program_of(Encoder(scale=0.0, start=1.0), lambda t, s, c: 0.0 * s, kappa=1.0)
    x, y = clear()
    found = certify_robustness(still, x, y, radii=(1.0, 1.27, 1.3), rules=("margin",))
    # The margin is 1.8, and the state is x itself.
    assert found.radius[0] == 1.27


def test_a_field_that_leaves_h_is_not_certified():
    away = program_of(vector_field=lambda t, s, c: 30.0 * c, kappa=1.0)
    found = comparison(away, truncation=0.05)
    assert found.radius[0] == 0
    assert any("H is invariant" in s for s in broken(found))


@pytest.mark.filterwarnings("ignore:vector_field uses where between constants")
def test_a_condition_that_fails_somewhere_in_h_is_not_certified():
    # On the nominal trajectory V falls, as from 0 the pull is to the class; far from it, it is away from it.
    def lazy(t, state, context):
        return RATE * (jnp.where(state[0] < -1.0, -H, 1.0) * H * jnp.tanh(3.0 * context) / H - state)

    found = comparison(program_of(vector_field=lazy, kappa=1.0), truncation=0.05)
    assert found.radius[0] == 0
    assert any("V decreases" in s for s in broken(found))


@pytest.mark.full
def test_a_rate_that_is_asked_too_much_is_not_certified():
    # Half of the way in each step, where the promise is a factor of exp(-7.5).
    found = comparison(program_of(vector_field=field(30.0), kappa=60.0, steps=8), truncation=0.05)
    assert found.radius[0] == 0
    assert any("V decreases" in s for s in broken(found))


@pytest.mark.full
def test_a_steep_context_is_not_certified():
    # Its class changes at 1.8 / √2 = 1.27.
    steep = program_of(Encoder(scale=1000.0), field(0.03), kappa=1.0)
    found = certify_robustness(steep, *clear(), radii=(1.28,), rules=("comparison", "margin"), truncation=0.05)
    assert found.radius[0] == 0


def test_a_readout_with_a_large_constant_counts():
    # As steep as the margins: the radius does not change.
    plain = program_of(vector_field=straight)
    steep = program_of(vector_field=straight, readout=lambda s: 1000.0 * s)
    radii = np.arange(1, 30) / 25
    one, other = (certify_robustness(p, X, Y, radii=radii, rules=("margin",)).radius for p in (plain, steep))
    np.testing.assert_allclose(one, other, atol=1 / 25 + 1e-9)
    # Steep for one class alone, by a part that the margin of the nominal input does not show.
    unit = np.array([0.0, 1.0, 0.0])
    kinked = lambda s: s + 1000.0 * jnp.maximum(s[1] - s[0] + 1.0, 0.0) * unit.astype(s.dtype)
    kink = program_of(vector_field=straight, readout=kinked)
    found = certify_robustness(kink, *clear(), radii=(0.5, 1.0), rules=("margin", "reach"))
    assert found.radius[0] == 0.5
    with pytest.raises(ValueError, match="leave out comparison"):
        comparison(steep)


def test_an_observed_final_loss_is_no_delta():
    # κ as small as here promises little, whatever V the nominal trajectory ends with.
    found = comparison(program_of(vector_field=field(30.0), kappa=0.2), truncation=0.05)
    assert found.radius[0] == 0
    assert any("below log 2" in s for s in broken(found))


def test_what_cannot_be_certified_is_refused():
    with pytest.raises(ValueError, match="discontinuous function of x"):
        certify_robustness(program_of(solver=ld.Solver()), X, Y)
    with pytest.raises(ValueError, match="radii: expected increasing"):
        certify_robustness(program_of(), X, Y, radii=(0.2, 0.1))
    with pytest.raises(ValueError, match="rules: expected some of"):
        certify_robustness(program_of(), X, Y, rules=("hope",))
    with pytest.raises(ValueError, match="integer class"):
        certify_robustness(program_of(), X, X)
    with pytest.raises(ValueError, match="divides the horizon"):
        certify_robustness(program_of(solver=ld.Solver(diffrax.Euler(), dt=0.3)), X, Y)


def test_wrong_examples_get_nothing_and_nan_is_refused():
    y = np.array([(Y[0] + 1) % 3, Y[1]], np.int32)
    options = {"radii": (1e-4,), "rules": ("margin", "reach")}
    found = certify_robustness(program_of(vector_field=straight), X[:2], y, **options)
    assert list(found.right) == [False, True]
    assert list(found.radius > 0) == [False, True]
    x = np.concatenate([X[:1], np.full((1, 3), np.nan, np.float32)])
    with pytest.raises(ValueError, match="x: expected finite inputs, got NaN or Inf at example 1"):
        certify_robustness(program_of(vector_field=straight), x, y, **options)


@pytest.mark.full
def test_training_for_margins_through_bounds_and_constants():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(256, 3)).astype(np.float32)
    y = x.argmax(axis=1).astype(np.int32)

    for objective in (
        ld.RobustMargin(0.1, steps=4, lipschitz=1.0, temperature=5),
        ld.RobustMargin(0.1, steps=4, temperature=5),
    ):
        layer = ld.nn.CayleyLinear(3, 3, key=KEY)
        system = ld.System(input=Layered(layer), vector_field=straight, domain=ld.Box(-H, H))
        certificate = ld.Certificate.exponential(loss=ld.cross_entropy, kappa=1)
        program = ld.compile(
            system, certificate, (x[0], y[0]), objective=objective, solver=ld.Solver(diffrax.Euler(), dt=0.25)
        )
        before = certify_robustness(program, x[:64], y[:64], radii=(0.1,), rules=("margin",)).accuracy(0.1)
        result = ld.fit(program, (x, y), optimizer=optax.adam(1e-2), epochs=25, key=KEY)
        after = certify_robustness(result.program, x[:64], y[:64], radii=(0.1,), rules=("margin",)).accuracy(0.1)
        assert after > max(0.6, before + 0.1)


class Layered(eqx.Module):
    layer: ld.nn.CayleyLinear

    def __call__(self, x):
        return ld.Start(jnp.zeros(3, x.dtype), self.layer(x))

    def gain(self):
        return ld.nn.gain(self.layer)


@pytest.mark.parametrize("rule", ["margin", pytest.param("comparison", marks=pytest.mark.full)])
def test_an_encoder_that_jumps_is_not_certified(rule):
    class Rounded(eqx.Module):
        def __call__(self, x):
            return ld.Start(jnp.zeros(3, x.dtype), jnp.round(x))

    program = program_of(Rounded(), field(30.0), kappa=1.0)
    found = certify_robustness(program, *clear(), radii=(1.0,), rules=(rule,), truncation=0.05, boxes=20_000)
    assert found.radius[0] == 0


def test_a_context_of_integers_is_refused():
    class Counted(eqx.Module):
        def __call__(self, x):
            return ld.Start(jnp.zeros(3, x.dtype), (x, jnp.argmax(x)))

    with pytest.raises(ValueError, match="context of floating-point arrays"):
        certify_robustness(program_of(Counted(), lambda t, s, c: c[0] - s), X, Y, rules=("reach",))


def test_a_declared_constant_that_inputs_refute_is_refused():
    class Overstated(Encoder):
        def gain(self):
            return jnp.asarray(0.5)

    with pytest.raises(ValueError, match=r"input.gain: expected .* at least the slope 1"):
        certify_robustness(program_of(Overstated(), straight), X, Y, rules=("margin",))


def test_a_system_without_a_context():
    class Alone(eqx.Module):
        def __call__(self, x):
            return ld.Start(x)

    # The state is the input, and falls to exp(-1) of it; so do margins and what changes them.
    program = program_of(Alone(), lambda t, s, c: -s, kappa=1.0)
    x, y = clear()
    for norm, exact in (("2", 1.8 / math.sqrt(2)), ("inf", 0.9)):
        radii = (exact - 0.01, exact + 0.01)
        found = certify_robustness(program, x, y, radii=radii, norm=norm, rules=("margin", "tube", "reach"))
        assert all(v[0] == radii[0] for v in found.radii.values()), str(found)


@pytest.mark.full
def test_a_second_call_compiles_nothing_for_other_weights():
    from lyapunov_dsl._prove import _deployed

    x, y = clear()
    certify_robustness(program_of(vector_field=field(1.0)), x, y, rules=("margin",))
    before = list(_deployed._KNOWN)
    found = certify_robustness(program_of(vector_field=field(2.0)), x, y, rules=("margin",))
    assert list(_deployed._KNOWN) == before
    assert found.radius[0] > 0


# What a review of the rules found, each of which certified too much.


def test_python_state_that_a_field_reads_is_part_of_it():
    by = np.eye(3, dtype=np.float32)
    program = lambda: program_of(vector_field=lambda t, s, c: RATE * (jnp.asarray(by, s.dtype) @ c - s))
    asked = {"radii": (0.5,), "rules": ("tube",)}
    assert certify_robustness(program(), *clear(), **asked).radius[0] == 0.5
    by[:] = -by
    assert not certify_robustness(program(), *clear(), **asked).right[0]


def test_a_context_that_hides_the_input_is_refused():
    from lyapunov_dsl._prove._inference import check_context

    for hiding in (lambda: X[0], (X[0], Encoder)):
        with pytest.raises(ValueError, match="context of floating-point arrays, got one with"):
            check_context(hiding)
    check_context((X[0], 1.5, None, jnp.tanh, jax.nn.relu))


def straight_through():
    """The sign, with the derivative of the identity."""
    sign = jax.custom_jvp(jnp.sign)
    sign.defjvp(lambda primals, tangents: (jnp.sign(primals[0]), tangents[0]))
    return sign


def implicit(x):
    """A branch of a root, of which JAX takes a derivative that says nothing about the jump between branches."""
    solve = lambda f, x0: jnp.where(x0 > 0, 1.0, -1.0).astype(x0.dtype)
    root = lambda x: jax.lax.custom_root(lambda y: y * y - 1.0, x, solve, lambda g, y: y)
    return jnp.stack([root(v) for v in x])


@pytest.mark.parametrize("jump", [straight_through(), implicit, lambda x: jnp.isfinite(1 / x).astype(x.dtype)])
def test_functions_with_a_derivative_of_someone_elses_have_no_constant(jump):
    assert bounds.lipschitz(jump, bounds.Box(-jnp.ones(3), jnp.ones(3))) == jnp.inf


def test_a_nominal_context_that_is_rounded_is_not_taken_for_the_real_one():
    # In short floats 0.502 and 0.499 are farther apart than they are.
    short = ld.nn.MixedPrecision(lambda x: ld.Start(jnp.zeros(3, x.dtype), x * 1.0))
    x, y = np.array([[0.5020, 0.4990, -0.9]], np.float32), np.array([0])
    radii = np.arange(1, 60) * 1e-4
    found = certify_robustness(program_of(short, straight), x, y, radii=radii, rules=("margin", "tube"))
    exact = (float(x[0, 0]) - float(x[0, 1])) / math.sqrt(2)
    assert (found.radius <= exact).all()


def test_a_program_that_is_trained_on_probabilities_is_certified_for_classes():
    certificate = ld.Certificate.exponential(loss=ld.cross_entropy, kappa=2)
    system = program_of(vector_field=straight).system
    program = ld.compile(
        system, certificate, (X[0], np.eye(3, dtype=np.float32)[Y[0]]), solver=ld.Solver(diffrax.Euler(), dt=0.25)
    )
    found = certify_robustness(program, X, Y, radii=(0.01,), rules=("tube",))
    assert found.accuracy(0.01) > 0.5
