"""One suite for the whole family of certificates: residuals, training, proofs, refutations, and how they combine."""

import copy
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import verify
from test_checker import rewritten

import lyapunov_dsl as ld
from lyapunov_checker import Refused, check
from lyapunov_checker._file import read
from lyapunov_dsl import Assurance, testing

pytestmark = pytest.mark.usefixtures("quick_module")


class Case(NamedTuple):
    """A certificate, a system that satisfies it, one that does not, and what is asked of `verify`."""

    certificate: Any
    good: ld.System
    bad: ld.System
    asked: dict[str, Any]


def square(state):
    return jnp.sum(state**2)


def system(field, low=-1.0, high=1.0, **more):
    return ld.System(vector_field=field, domain=ld.Box(low, high), **more)


def linear(rate):
    return system(lambda t, s, c: -rate * s)


def pulled(gain, drift=0.0, limit=1.0, controller=None):
    """ds/dt = drift s + gain u."""
    column = jnp.full((1, 1), gain)
    field = ld.ControlAffine(
        lambda t, s, c: drift * s, lambda t, s, c: column.astype(s.dtype), controller, limits=limit
    )
    return system(field)


def pushed(acceleration, limit):
    """A mass on a line, with friction: position and velocity."""
    column = jnp.asarray([[0.0], [acceleration]])
    field = ld.ControlAffine(
        lambda t, s, c: jnp.stack([s[1], -0.1 * s[1]]), lambda t, s, c: column.astype(s.dtype), limits=limit
    )
    return system(field)


def root(rate):
    """ds/dt = -rate sign(s) |s|^(1/2), away from 0."""
    return system(lambda t, s, c: -rate * jnp.sqrt(s), 0.25, 1.0)


def turning(rate):
    return ld.variational(system(lambda t, s, c: jnp.stack([s[1] - rate * s[0], -s[0] - rate * s[1] - s[1] ** 3])))


REST = {"equilibrium": np.zeros(1)}
CASES = {
    "exponential": lambda: Case(ld.Certificate.exponential(square, 1.9), linear(1.0), linear(0.9), REST),
    "asymptotic": lambda: Case(
        ld.Certificate.asymptotic(square, lambda v: v / (1 + v)), linear(0.6), linear(0.4), REST
    ),
    "finite time": lambda: Case(
        ld.Certificate.finite_time(square, 0.9, 0.75),
        root(0.5),
        root(0.4),
        {"x": np.full(1, 0.5), "level": (0.1, None)},
    ),
    "practical": lambda: Case(
        ld.Certificate.practical(square, 1.0, 0.1),
        system(lambda t, s, c: -s + 0.2 * jnp.sin(9 * t)),
        system(lambda t, s, c: -s + 0.5 * jnp.sin(9 * t)),
        {"x": np.zeros(1)},
    ),
    "time-varying": lambda: Case(
        ld.Certificate.exponential(square, lambda t: 1 + t),
        system(lambda t, s, c: -(0.6 + t / 2) * s),
        system(lambda t, s, c: -(0.5 + t / 4) * s),
        {"equilibrium": np.zeros(1), "time": (0, 1)},
    ),
    "barrier": lambda: Case(
        ld.Certificate.barrier(lambda s: 0.5 - s[0], 2.0), linear(1.9), linear(-1.0), {"x": np.zeros(1)}
    ),
    "barrier of degree 2": lambda: Case(
        ld.Certificate.barrier(lambda s: 3 - s[0], 2.0), pushed(1.0, 0.5), pushed(1.0, (9.0, 9.5)), {"x": np.zeros(2)}
    ),
    "control Lyapunov": lambda: Case(
        # The best rate has a kink at the equilibrium, where it is not twice differentiable.
        ld.Certificate.control_lyapunov(square, 1.0),
        pulled(1.0, 0.4),
        pulled(0.1, 0.4),
        {"x": np.zeros(1), "level": (1e-3, None)},
    ),
    "control barrier": lambda: Case(
        ld.Certificate.control_barrier(lambda s: 1 - s[0] ** 2, 1.0),
        pulled(1.0, 0.4),
        pulled(0.1, 0.4),
        {"x": np.zeros(1)},
    ),
    "reach": lambda: Case(
        ld.Reach(lambda s: s[0], lambda s: 0.25 - s[0] ** 2, 0.5),
        system(lambda t, s, c: -2 * (s + 1)),
        system(lambda t, s, c: -(s + 0.2)),
        {"x": np.zeros(1), "domain": ld.Box(-0.5, 1.0)},
    ),
    "input to state": lambda: Case(
        ld.Certificate.input_to_state(square, 1.0, 1.1), pulled(1.0, -1.0), pulled(1.2, -1.0), REST
    ),
    "finite gain": lambda: Case(ld.Certificate.finite_gain(square, 1.1), pulled(1.0, -1.0), pulled(1.2, -1.0), REST),
    "contraction": lambda: Case(
        ld.Certificate.contraction(0.9),
        turning(1.0),
        turning(0.8),
        {"x": np.zeros(2), "domain": ld.Product({"state": ld.Box(-0.5, 0.5), "tangent": ld.Faces(1.0)})},
    ),
}


def prepared(case, whole):
    size = next(n for n in (1, 2) if fits(whole, n))
    start = whole.start(jnp.zeros(size))
    certificate = case.certificate.prepared(
        whole, jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype), start)
    )
    return ld.Condition(whole, certificate), start


def fits(whole, size):
    try:
        out = jax.eval_shape(lambda x: whole.velocity(jnp.zeros(()), whole.start(x).state, None), jnp.zeros(size))
    except Exception:
        return False
    return all(leaf.shape == (size,) for leaf in jax.tree.leaves(out))


@pytest.mark.parametrize("name", CASES)
def test_residuals_and_flows(name):
    with jax.enable_x64(True):
        case = CASES[name]()
        condition, start = prepared(case, case.good)
        testing.assert_certificate(condition, start)


@pytest.mark.parametrize("name", CASES)
def test_the_discrete_residual_tends_to_the_continuous_one(name):
    with jax.enable_x64(True):
        case = CASES[name]()
        condition, start = prepared(case, case.good)
        state = condition.continuous.region.sample(start.state, jax.random.key(3))
        begun = ld.Start(state)
        (limit,) = condition.residuals(jnp.zeros(()), state, condition.point(begun, None)).values()
        errors = []
        for steps in (1000, 2000):
            (found,) = condition.path_residuals(begun, None, None, solver=diffrax.Euler(), steps=steps).values()
            errors.append(abs(float(found[0]) * steps - float(limit)))
        assert errors[1] <= 0.6 * errors[0] + 1e-9
        assert errors[0] <= 0.05 * (1 + abs(float(limit)))


# The proofs of the others are at full size only: they are of the same kind, and compiling is what takes long.
SOME = ("asymptotic", "barrier of degree 2", "input to state")


@pytest.mark.parametrize("name", [n if n in SOME else pytest.param(n, marks=pytest.mark.full) for n in CASES])
def test_proved_where_it_holds_and_refuted_where_it_does_not(name, tmp_path):
    case = CASES[name]()
    found = verify(case.good, case.certificate, **case.asked)
    assert found.status.proved, str(found)
    assert found.proof is not None
    found.proof.save(tmp_path / "proof.npz")
    assert "<= comparison(t, V)" in str(check(tmp_path / "proof.npz"))
    other = verify(case.bad, case.certificate, **case.asked)
    assert other.status is Assurance.REFUTED, str(other)
    assert other.counterexample.residual > 0


class Trained(eqx.Module):
    """A field, or the controller of one, that starts with the wrong sign."""

    gain: jax.Array
    bias: jax.Array

    def __call__(self, t, state, context):
        return self.gain @ state + self.bias


def starts_wrong(case, size):
    """The good system of a case with a linear field, or controller, to be trained in its place."""
    wrong = Trained(1.5 * jnp.eye(size), jnp.zeros(size))
    if isinstance(case.certificate, ld.Contraction):
        return ld.variational(ld.System(vector_field=wrong, domain=ld.Box(-1.0, 1.0)))
    field = case.good.vector_field
    if isinstance(field, ld.ControlAffine) and isinstance(case.certificate, ld.Barrier):
        controller = Trained(6 * jnp.ones((1, size)), jnp.zeros(1))
        wrong = ld.ControlAffine(field.drift, field.actuation, controller, limits=20.0)
    elif isinstance(field, ld.ControlAffine):
        wrong = ld.ControlAffine(wrong, field.actuation, limits=1.0)
    return ld.System(vector_field=wrong, domain=case.good.domain)


@pytest.mark.parametrize("name", CASES)
def test_training_reduces_the_loss(name):
    case = CASES[name]()
    size = next(n for n in (1, 2) if fits(case.good, n))
    system = starts_wrong(case, size)
    x = jax.vmap(lambda k: system.region.sample(system.start(jnp.zeros(size)).state, k))(
        jax.random.split(jax.random.key(0), 64)
    )
    x = x["state"] if isinstance(x, dict) else x
    program = ld.compile(system, case.certificate, (x[0], None), objective=ld.MonteCarlo(ld.Cube(64)))
    before = float(program.loss(x, None, key=jax.random.key(1)))
    result = ld.fit(program, (x, None), optimizer=optax.adam(5e-2), epochs=120, key=jax.random.key(2), progress=False)
    after = float(result.program.loss(x, None, key=jax.random.key(1)))
    assert before > 1e-3
    assert after < 0.3 * before


# What the checker refuses.


@pytest.mark.parametrize("name", ["input to state", pytest.param("contraction", marks=pytest.mark.full)])
def test_tampered_proofs_of_the_family_are_refused(name, tmp_path):
    case = CASES[name]()
    found = verify(case.good, case.certificate, **case.asked)
    found.proof.save(tmp_path / "proof.npz")
    header, arrays = read(tmp_path / "proof.npz")
    changes = {
        "input to state": {
            # A rate of its own says nothing about trajectories.
            "claims": ["decrease", "enclosed"],
            "level": [None, 0.5],
        },
        "contraction": {"faces": [0, 1], "claims": ["decrease", "invariant"]},
    }[name]
    for field, value in changes.items():
        other = {**copy.deepcopy(header), field: value}
        if field == "level":
            other["claims"] = ["decrease", "enclosed"]
        with pytest.raises(Refused):
            check(rewritten(tmp_path / "other.npz", other, arrays))
    other = copy.deepcopy(header)
    if name == "contraction":
        # Nothing about tangents in the middle of the cube was shown, where dV/dt is not below.
        other["faces"] = []
    else:
        other["programs"]["rate"] = other["programs"]["value"]
    with pytest.raises(Refused):
        check(rewritten(tmp_path / "other.npz", other, arrays))


# What a review of the family found, each of which was proved and false.


def undecided_or_refuted(*args, **asked):
    found = verify(*args, budget={"boxes": 500}, **asked)
    return found.status in (Assurance.UNDECIDED, Assurance.REFUTED)


def test_contraction_of_a_field_that_hides_its_derivative_is_not_proved():
    asked = {"x": np.zeros(1), "domain": ld.Product({"state": ld.Box(-0.5, 0.5), "tangent": ld.Faces(1.0)})}
    for field in (lambda t, s, c: -s + 3 * jax.lax.stop_gradient(s), lambda t, s, c: -s + jnp.sign(s)):
        assert undecided_or_refuted(ld.variational(system(field)), ld.Certificate.contraction(0.9), **asked)


def test_a_degree_that_is_too_high_changes_nothing_that_is_claimed():
    # The loop moves at the speed 1 towards the end, which the drift alone does not.
    field = ld.ControlAffine(
        lambda t, s, c: -5 + 0 * s, lambda t, s, c: jnp.ones((1, 1), s.dtype), lambda t, s, c: jnp.full(1, 6.0, s.dtype)
    )
    whole = ld.System(vector_field=field, domain=ld.Box(-1, 1.5))
    assert undecided_or_refuted(whole, ld.Barrier(lambda s: 1 - s[0], 2.0, degree=2), x=np.zeros(1))
    # Of a control barrier, whose chain is along the drift, the premise is looked at.
    field = ld.ControlAffine(lambda t, s, c: -5 + 0 * s, field.actuation, limits=6.0)
    whole = ld.System(vector_field=field, domain=ld.Box(-1, 1.5))
    found = verify(whole, ld.ControlBarrier(lambda s: 1 - s[0], 2.0, degree=2), x=np.zeros(1))
    assert found.status is Assurance.UNDECIDED
    assert "influence" in found.claims["decrease"].given


def test_a_barrier_with_a_derivative_of_someone_elses_is_not_proved():
    same = jax.custom_jvp(lambda s: s)
    same.defjvp(lambda primals, tangents: (primals[0], -tangents[0]))
    barrier = ld.Barrier(lambda s: 3 - same(s)[0], 2.0, degree=2)
    assert undecided_or_refuted(pushed(1.0, 0.5), barrier, x=np.zeros(2))


def test_a_subclass_stays_what_it_is():
    class Firmer(ld.Barrier):
        def comparison(self, t, v):
            return super().comparison(t, v) - 100.0

    firmer = Firmer(lambda s: 2 - s[0], 2.0)
    assert verify(linear(1.0), firmer, x=np.zeros(1)).status is Assurance.REFUTED
    program = ld.compile(linear(1.0), firmer, (jnp.zeros(1), None), objective=ld.MonteCarlo(ld.Cube(4)))
    assert type(program.certificate) is Firmer
    with pytest.raises(ValueError, match="expected two barriers"):
        _ = firmer | firmer


def test_a_learned_metric_is_definite_whatever_it_is():
    certificate = ld.Certificate.contraction(0.9, lambda s: jnp.zeros((2, 2)))
    value = certificate.value(0.0, {"state": jnp.ones(2), "tangent": jnp.ones(2)}, ld.Point(lambda s: s))
    assert float(value) == pytest.approx(2e-3)


def test_the_level_of_a_rate_of_its_own_is_that_of_v():
    class Odd(ld.Certificate):
        def value(self, t, state, point):
            return square(state)

        def comparison(self, t, v):
            return -v

        def derivative(self, t, state, point, velocity):
            v, rate = super().derivative(t, state, point, velocity)
            return v + 10, rate

    assert undecided_or_refuted(linear(-1.0), Odd(), x=np.zeros(1), level=1.0)


# Closed forms.


def test_rates_of_their_own_are_those_of_the_best_and_of_the_worst_input():
    with jax.enable_x64(True):
        random = np.random.default_rng(0)
        drift, columns = jnp.asarray(random.normal(size=(2, 2))), jnp.asarray(random.normal(size=(2, 3)))
        low, high = jnp.asarray([-1.0, 0.5, -2.0]), jnp.asarray([1.0, 0.75, 3.0])
        field = ld.ControlAffine(lambda t, s, c: drift @ s, lambda t, s, c: columns, limits=(low, high))
        whole = ld.System(vector_field=field, domain=ld.Box(-1, 1))
        state = jnp.asarray([0.3, -0.8])
        slope = 2 * state
        corners = np.stack(np.meshgrid(*zip(low, high, strict=True), indexing="ij"), -1).reshape(-1, 3)
        best = min(float(slope @ (drift @ state + columns @ u)) for u in corners)

        def rate(certificate):
            condition = ld.Condition(whole, certificate)
            return next(iter(condition.rates(jnp.zeros(()), state, condition.point(ld.Start(state), None)).values()))[1]

        np.testing.assert_allclose(rate(ld.Certificate.control_lyapunov(square, 1.0)), best, rtol=1e-12)
        barrier = ld.Certificate.control_barrier(lambda s: 3.0 - square(s), 1.0)
        np.testing.assert_allclose(rate(barrier), best, rtol=1e-12)
        # Of disturbances: the supremum of a concave parabola.
        w = random.normal(size=(20000, 3)) * 3
        rates = (slope @ drift @ state) + w @ np.asarray(columns.T @ slope) - 0.7 * (w**2).sum(1)
        got = float(rate(ld.Certificate.input_to_state(square, 1.0, 0.7)))
        assert rates.max() <= got <= rates.max() + 0.1
        gain = float(rate(ld.Certificate.finite_gain(square, 0.7)))
        np.testing.assert_allclose(gain, got + float(square(state)), rtol=1e-12)


@pytest.mark.parametrize(("h", "degree"), [(lambda s: s[2], 1), (lambda s: s[1], 2), (lambda s: 1 - s[0] ** 2, 3)])
def test_the_relative_degree_is_found(h, degree):
    field = ld.ControlAffine(
        lambda t, s, c: jnp.stack([s[1], jnp.sin(s[2]), -s[0]]),
        lambda t, s, c: jnp.asarray([[0.0], [0], [2]]),
        limits=1.0,
    )
    states = jax.random.normal(jax.random.key(0), (4, 3))
    assert ld.relative_degree(field, h, states) == degree
    with pytest.raises(ValueError, match="expected an input that appears"):
        ld.relative_degree(ld.ControlAffine(lambda t, s, c: 0 * s, field.actuation), lambda s: s[0], states)


def test_compile_finds_the_degree():
    barrier = ld.Certificate.barrier(lambda s: 3 - s[0], 1.0)
    program = ld.compile(pushed(1.0, 1.0), barrier, (jnp.zeros(2), None), objective=ld.MonteCarlo(ld.Cube(4)))
    assert program.certificate.degree == 2


def test_the_chain_of_a_barrier_is_its_derivatives():
    whole = pushed(1.0, 0.5)
    barrier = ld.Barrier(lambda s: 3 - s[0], 2.0, degree=2)
    condition = ld.Condition(whole, barrier)
    state = jnp.asarray([0.5, -0.25])
    point = condition.point(ld.Start(state), None)
    # h = 3 - p and dh/dt + 2 h.
    np.testing.assert_allclose(jnp.stack(barrier.chain(jnp.zeros(()), state, point)), [2.5, 0.25 + 5.0])


def test_finite_time_is_that_of_the_equation():
    certificate = ld.Certificate.finite_time(square, 0.5, 0.75)
    time = certificate.time(1.0)
    assert time == pytest.approx(1 / (0.5 * 0.25))
    flow = lambda t: float(certificate.flow(0.0, jnp.asarray(t), jnp.asarray(1.0)))
    assert flow(0.99 * time) > 0 == flow(1.01 * time)


@pytest.mark.full
def test_contraction_in_a_metric():
    # In the coordinates (p, q / 3) the field contracts, in those of the states it does not.
    field = lambda t, s, c: jnp.stack([-s[0] + 3 * s[1], -s[1]])
    whole = ld.variational(system(field))
    asked = {"x": np.zeros(2), "domain": ld.Product({"state": ld.Box(-0.1, 0.1), "tangent": ld.Faces(1.0)})}
    metric = np.diag([1.0, 9.0])
    assert verify(whole, ld.Certificate.contraction(0.49, metric), **asked).status.proved
    assert verify(whole, ld.Certificate.contraction(0.49), **asked).status is Assurance.REFUTED


# How they combine.


def test_both_and_either():
    left, right = ld.Certificate.barrier(lambda s: 1 - s[0], 1.0), ld.Certificate.barrier(lambda s: 1 + s[0], 3.0)
    condition = lambda c: ld.Condition(linear(1.0), c)
    state = jnp.asarray([0.25])

    def residual(certificate):
        found = condition(certificate)
        return found.residuals(jnp.zeros(()), state, found.point(ld.Start(state), None))

    both = residual(left & right)
    assert both["barrier"] == residual(left)["barrier"]
    assert both["barrier_2"] == residual(right)["barrier"]
    # The union: h = max(0.75, 1.25), of which the second decides, with the smaller α.
    either = left | right
    assert float(either.value(0.0, state, ld.Point(lambda s: s))) == -1.25
    assert float(either.comparison(0.0, jnp.asarray(-1.25))) == 1.25
    assert float((right | left).value(0.0, state, ld.Point(lambda s: s))) == -1.25
    assert float(((left | right) | left).value(0.0, state, ld.Point(lambda s: s))) == -1.25
    # What keeps each keeps their union: a residual that holds for the one that decides with the smaller α holds for both.
    assert residual(either)["barrier"] >= residual(right)["barrier"]


@pytest.mark.full
def test_a_union_is_proved():
    # Outside of (-1/2, 1/2), which is no convex set.
    either = ld.Certificate.barrier(lambda s: s[0] - 0.5, 1.0) | ld.Certificate.barrier(lambda s: -s[0] - 0.5, 1.0)
    away = system(lambda t, s, c: s - s**3)
    assert verify(away, either, x=np.zeros(1), level=(None, 0.0)).status.proved


def test_only_barriers_have_a_union():
    decay = ld.Certificate.exponential(square, 1.0)
    barrier = ld.Certificate.barrier(lambda s: s[0])
    for wrong in (lambda: decay | decay, lambda: decay | barrier, lambda: barrier | decay):
        with pytest.raises(ValueError, match="expected two barriers"):
            wrong()


def test_reach_and_avoid_are_two_parts():
    both = ld.Certificate.reach_avoid(
        lambda s: s[0], lambda s: 0.25 - s[0] ** 2, lambda s: 1 - s[0] ** 2, rate=0.5, alpha=2.0
    )
    assert list(both.parts) == ["reach", "avoid"]


# What is refused.


def test_bad_input_is_named():
    one = (jnp.zeros(1), None)
    made = ld.Certificate
    with pytest.raises(ValueError, match="value that depends on the state, got one that is the same for all"):
        ld.compile(linear(1.0), made.barrier(lambda s: jnp.asarray(1.0)), one)
    with pytest.raises(ValueError, match="value that depends on the state"):
        verify(linear(1.0), made.barrier(lambda s: jnp.asarray(1.0)), x=np.zeros(1))
    with pytest.raises(ValueError, match=r"expected κ\(t\) > 0 for all t in \[0, 1\], got κ"):
        ld.compile(linear(1.0), made.exponential(square, lambda t: 1 - 2 * t), one)
    with pytest.raises(ValueError, match="equilibrium: expected a state at which the field is 0"):
        verify(linear(1.0), made.exponential(square, 1.0), equilibrium=np.full(1, 0.5))
    with pytest.raises(ValueError, match=r"alpha\(0\) = 0"):
        made.asymptotic(square, lambda v: v + 1)
    with pytest.raises(ValueError, match="expected an increasing function"):
        made.barrier(lambda s: s[0], lambda h: h / (1 + h**2))
    with pytest.raises(ValueError, match="finite for h < 0 as well"):
        made.barrier(lambda s: s[0], jnp.sqrt)
    with pytest.raises(ValueError, match="without a controller"):
        ld.compile(pulled(1.0, controller=lambda t, s, c: s), made.input_to_state(square, 1.0, 1.0), one)
    with pytest.raises(ValueError, match="expected two barriers, got a conjunction"):
        _ = (made.barrier(lambda s: s[0]) & made.barrier(lambda s: -s[0])) | made.barrier(lambda s: s[0])
    with pytest.raises(ValueError, match="rho: expected a number in"):
        made.finite_time(square, 1.0, 1.0)
    with pytest.raises(ValueError, match="level: expected a finite number >= 0"):
        made.practical(square, 1.0, -1.0)
    for certificate in (made.control_lyapunov(square, 1.0), made.input_to_state(square, 1.0, 1.0)):
        with pytest.raises(ValueError, match="vector_field is a lyapunov_dsl"):
            ld.compile(linear(1.0), certificate, one)
    with pytest.raises(ValueError, match="expected a ControlAffine with limits"):
        ld.compile(pulled(1.0, limit=None), made.control_barrier(lambda s: s[0]), one)
    with pytest.raises(ValueError, match="states and tangents"):
        ld.compile(linear(1.0), made.contraction(1.0), one)
    with pytest.raises(ValueError, match="symmetric positive definite"):
        made.contraction(1.0, np.diag([1.0, -1.0]))
    with pytest.raises(ValueError, match="limits: expected"):
        pulled(1.0, limit=(1.0, -1.0))
    with pytest.raises(ValueError, match="expected a certificate about dV/dt"):
        verify(
            pulled(1.0), made.control_lyapunov(square, 1.0), x=np.zeros(1), level=1.0, claims=("decrease", "enclosed")
        )


# Learned potentials.


POTENTIALS = {
    "quadratic": lambda: ld.nn.QuadraticPotential(2, equilibrium=[0.5, -0.25], matrix=[[1.0, 2.0], [0.0, 1.0]]),
    "positive": lambda: ld.nn.PositivePotential(
        eqx.nn.MLP(2, 4, 8, 2, activation=jnp.tanh, key=jax.random.key(0)), 2, equilibrium=[0.5, -0.25]
    ),
    "convex": lambda: ld.nn.ConvexPotential(2, equilibrium=[0.5, -0.25], key=jax.random.key(1)),
}


@pytest.mark.parametrize("name", POTENTIALS)
def test_potentials_are_zero_at_the_equilibrium_alone(name):
    with jax.enable_x64(True):
        potential = POTENTIALS[name]()
        rest = jnp.asarray([0.5, -0.25])
        assert float(potential(rest)) == 0
        assert (jax.grad(potential)(rest) == 0).all()
        states = jax.random.normal(jax.random.key(2), (256, 2)) * 2
        values = jax.vmap(potential)(states)
        assert (values >= 1e-3 * jnp.sum((states - rest) ** 2, axis=1) * (1 - 1e-12)).all()
        if name == "convex":
            other = states[::-1]
            middle = jax.vmap(potential)((states + other) / 2)
            assert (middle <= (values + values[::-1]) / 2 + 1e-12).all()


@pytest.mark.parametrize("name", POTENTIALS)
def test_potentials_are_learned_with_the_field(name):
    # No decay at all in the Euclidean norm of the start.
    field = Trained(jnp.asarray([[-0.2, 2.0], [0.0, -0.2]]), jnp.zeros(2))
    shifted = lambda t, s, c: field(t, s - jnp.asarray([0.5, -0.25], s.dtype), c)
    whole = ld.System(
        vector_field=eqx.filter_closure_convert(shifted, jnp.zeros(()), jnp.zeros(2), None), domain=ld.Box(-2, 2)
    )
    certificate = ld.Certificate.exponential(POTENTIALS[name](), 0.2)
    x = jax.random.uniform(jax.random.key(0), (64, 2), minval=-2, maxval=2)
    program = ld.compile(whole, certificate, (x[0], None), objective=ld.MonteCarlo(ld.Cube(64)))
    before = float(program.loss(x, None, key=jax.random.key(1)))
    result = ld.fit(program, (x, None), optimizer=optax.adam(2e-2), epochs=60, key=jax.random.key(2), progress=False)
    assert float(result.program.loss(x, None, key=jax.random.key(1))) < 0.5 * before
    learned = result.program.certificate.loss.function
    assert float(learned(jnp.asarray([0.5, -0.25]))) == 0
    assert not eqx.tree_equal(learned, POTENTIALS[name]())


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("quadratic", {"equilibrium": np.asarray([0.5, -0.25]), "claims": ("decrease", "definite")}),
        # g(η) - g(η*) is 0 at η* up to rounding only, which no interval tells: down to a level.
        ("convex", {"x": np.zeros(2), "level": (0.02, None)}),
    ],
)
def test_a_learned_potential_is_proved(name, asked, tmp_path):
    potential = POTENTIALS[name]()
    field = lambda t, s, c: -(s - jnp.asarray([0.5, -0.25], s.dtype))
    certificate = ld.Certificate.exponential(potential, 0.5)
    found = verify(system(field), certificate, budget={"boxes": 20_000}, **asked)
    assert found.status.proved, str(found)
    if name == "quadratic":
        found.proof.save(tmp_path / "proof.npz")
        check(tmp_path / "proof.npz")


def test_potentials_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match="equilibrium: expected 2 finite numbers"):
        ld.nn.QuadraticPotential(2, equilibrium=[0.0])
    with pytest.raises(ValueError, match="margin: expected a positive"):
        ld.nn.ConvexPotential(2, margin=0.0, key=jax.random.key(0))
