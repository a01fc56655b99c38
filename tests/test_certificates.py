"""One contract for every certificate, what each promises beyond it, and certificates that are caught."""

import dataclasses
import importlib.util
import math
import sys
from typing import Any

import equinox as eqx
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lyapunov_dsl as ld
from lyapunov_dsl import testing

FEW = hypothesis.settings(max_examples=50)


# Most of the time here is XLA's, which compiles much and runs little.
pytestmark = pytest.mark.usefixtures("quick_module")


class Settle(ld.Certificate):
    """A user's certificate with a potential and a comparison that depend on the time, and no closed-form flow."""

    weight: Any

    def value(self, t, state, point):
        return (1 + t) * jnp.sum(self.weight.astype(state.dtype) * (state - point.context) ** 2)

    def comparison(self, t, v):
        return -v * (1 + jnp.cos(3 * t)) - v**2 / 4


class Bounded(ld.Certificate):
    """d/dt V <= rate of a structured state: another user's, with a flow of its own."""

    rate: float

    def value(self, t, state, point):
        return jnp.sum(state["q"] ** 2) / 2 + jnp.sum(jnp.cos(state["p"]))

    def comparison(self, t, v):
        return jnp.full_like(v, self.rate)

    def flow(self, t, dt, v):
        return v + self.rate * dt


def vector_field(t, state, context):
    turn = jnp.asarray([[0.3, 1.2, 0, -0.4], [-1, 0.1, 0.5, 0], [0.2, -0.7, -0.2, 0.9], [0, 0.4, -1, 0]], state.dtype)
    return jnp.tanh(turn @ state + jnp.sin(2 * t)) + context - state


def vector_condition(certificate, dtype, target=None):
    context = jnp.asarray([0.5, -0.2, 0.1, 0.3], dtype)
    system = ld.System(lambda x: ld.Start(x, context), vector_field, domain=ld.Box(-2, 2))
    target = None if target is None else jnp.asarray(target, None if isinstance(target, int) else dtype)
    return ld.Condition(system, certificate), system.start(jnp.zeros(4, dtype)), target


def tree_condition(certificate, dtype):
    domain = ld.Product({"q": ld.Box(-1, 1), "p": ld.Ball(jnp.asarray([0.5, 0]), 2)})
    field = lambda t, s, c: {"q": jnp.stack([s["p"][0], s["p"][1], t]), "p": -s["q"][:2] - s["p"] / 2}
    system = ld.System(vector_field=field, domain=domain)
    start = ld.Start({"q": jnp.zeros(3, dtype), "p": jnp.zeros(2, dtype)})
    return ld.Condition(system, certificate), start, None


def image_condition(certificate, dtype):
    system = ld.System(
        vector_field=lambda t, s, c: jnp.roll(s, 1, axis=1) * jnp.cos(t) - s,
        readout=lambda s: jnp.mean(s, axis=(1, 2)),
        domain=ld.Box(-1, 1),
    )
    return ld.Condition(system, certificate), ld.Start(jnp.zeros((3, 2, 2), dtype)), jnp.asarray(1)


def quartic(prediction, target):
    return jnp.sum((prediction - target) ** 4)


ONE_HOT = [0.0, 0.0, 1.0, 0.0]
CASES = {
    "cross_entropy, class": lambda d: vector_condition(ld.Certificate.exponential(ld.cross_entropy, 2), d, 2),
    "cross_entropy, one-hot": lambda d: vector_condition(ld.Certificate.exponential(ld.cross_entropy, 2), d, ONE_HOT),
    "squared_error": lambda d: vector_condition(ld.Certificate.exponential(ld.squared_error, 0.5), d, ONE_HOT),
    "truncated": lambda d: vector_condition(ld.Certificate.exponential(ld.truncated(ld.cross_entropy, 1.4), 3), d, 1),
    "own function": lambda d: vector_condition(ld.Certificate.exponential(quartic, 1), d, ONE_HOT),
    "barrier": lambda d: vector_condition(ld.Certificate.barrier(lambda s: 4 - jnp.sum(s * s), 2), d),
    "barrier, nonlinear": lambda d: vector_condition(
        ld.Certificate.barrier(lambda s: 4 - jnp.sum(s * s), lambda h: h + h**3 / 16), d
    ),
    "own certificate": lambda d: vector_condition(Settle(jnp.asarray([1.0, 2, 1, 0.5], d)), d),
    "conjunction": lambda d: vector_condition(
        ld.Certificate.exponential(ld.cross_entropy, 2)
        & ld.Certificate.barrier(lambda s: 4 - jnp.sum(s * s), 1)
        & Settle(jnp.ones(4, d)),
        d,
        0,
    ),
    "tree": lambda d: tree_condition(ld.AllOf({"bounded": Bounded(1.5), "safe": ld.Barrier(lambda s: s["q"][0])}), d),
    "image": lambda d: image_condition(ld.Certificate.exponential(ld.cross_entropy, 2), d),
}


@pytest.mark.parametrize("name", CASES)
def test_contract(name, precision):
    condition, start, target = CASES[name](precision)
    testing.assert_certificate(condition, start, target)


def test_contract_at_states_that_hypothesis_finds():
    with jax.enable_x64(True):
        condition, start, target = CASES["conjunction"](jnp.float64)

        @hypothesis.settings(max_examples=20)
        @hypothesis.given(testing.states(condition.system.region, start.state), testing.times(condition.system.horizon))
        def check(state, t):
            testing.assert_certificate(condition, start, target, times=jnp.asarray([t]), states=state[None])

        check()


# Certificates that are wrong, and what is said about them.


class WrongFlow(ld.Certificate):
    """1 - κΔt is the first-order solution only, and flow has to be the solution."""

    def value(self, t, state, point):
        return jnp.sum(state**2)

    def comparison(self, t, v):
        return -2 * v

    def flow(self, t, dt, v):
        return v * (1 - 2 * dt)


class WrongSign(WrongFlow):
    """The flow of an equation that grows."""

    def flow(self, t, dt, v):
        return v * jnp.exp(2 * dt)


class SplitFlow(WrongFlow):
    """Right over the step that is looked at, wrong over others."""

    def flow(self, t, dt, v):
        return v * jnp.where(jnp.abs(dt - 0.125) < 1e-4, jnp.exp(-2 * dt), jnp.exp(-2.1 * dt))


@jax.custom_jvp
def _square(x):
    return jnp.sum(x**2)


@_square.defjvp
def _(primals, tangents):
    return _square(*primals), 1.9 * jnp.sum(primals[0] * tangents[0])


class WrongRate(WrongFlow):
    """A derivative that is not that of the value."""

    def value(self, t, state, point):
        return _square(state)

    def flow(self, t, dt, v):
        return v * jnp.exp(-2 * dt)


class BlindToTime(WrongRate):
    """A rate without the partial derivative in time."""

    def value(self, t, state, point):
        return (1 + jax.lax.stop_gradient(t)) * jnp.sum(state**2)


class NotFinite(WrongRate):
    """The logarithm of a negative number."""

    def value(self, t, state, point):
        return jnp.log(jnp.sum(state) - 100)


class NotScalar(WrongRate):
    """One value for every coordinate."""

    def value(self, t, state, point):
        return state**2


@pytest.mark.parametrize(
    ("certificate", "complaint"),
    [
        (WrongFlow, "flow does not solve"),
        (WrongSign, "flow does not solve"),
        (SplitFlow, "two parts of a step"),
        (WrongRate, "rate differs from finite differences"),
        (BlindToTime, "rate differs from finite differences"),
        (NotFinite, "not finite"),
    ],
)
def test_a_wrong_certificate_is_caught(certificate, complaint):
    condition, start, target = vector_condition(certificate(), jnp.float32)
    with pytest.raises(AssertionError, match=complaint):
        testing.assert_certificate(condition, start, target)


def test_a_value_that_is_no_scalar_is_caught():
    condition, start, target = vector_condition(NotScalar(), jnp.float32)
    # Where jaxtyping's hook is installed, it is the first to object.
    with pytest.raises((AssertionError, Exception), match=r"scalar|type-check"):
        testing.assert_certificate(condition, start, target)


def test_a_wrong_residual_is_caught():
    """A condition whose residual leaves out the comparison: the step residual does not tend to it."""

    class Careless(ld.Condition):
        def residuals(self, t, state, point, key=None):
            return {name: rate for name, (_, rate) in self.rates(t, state, point, key).items()}

    good, start, target = CASES["squared_error"](jnp.float32)
    with pytest.raises(AssertionError, match="does not tend to the residual"):
        testing.assert_certificate(Careless(good.system, good.certificate), start, target)


def test_only_kinks_are_refused():
    condition, start, _ = vector_condition(ld.Certificate.barrier(lambda s: -jnp.abs(s[0] - 1)), jnp.float32)
    corner = jnp.asarray([[1.0, 0, 0, 0]])
    with pytest.raises(AssertionError, match="kink at every point"):
        testing.assert_certificate(condition, start, times=[0.5], states=corner)
    testing.assert_certificate(condition, start)


def test_without_hypothesis_the_module_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    spec = importlib.util.spec_from_file_location("lyapunov_dsl.again", testing.__file__)
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(ImportError, match=r"install lyapunov_dsl\[test\]"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


# What each promises beyond the contract.


@jax.jit
def exponential_flow(kappa, t, dt, v):
    certificate = ld.Certificate.exponential(ld.cross_entropy, kappa)
    return certificate.comparison(t, v), certificate.flow(t, dt, v)


@FEW
@hypothesis.given(st.floats(0.1, 20), st.floats(1e-3, 1), st.floats(1e-3, 100))
def test_the_flow_of_the_exponential_certificate(kappa, dt, v):
    with jax.enable_x64(True):
        allowed, flow = exponential_flow(kappa, 0.3, dt, v)
    np.testing.assert_allclose(allowed, -kappa * v, rtol=1e-12)
    np.testing.assert_allclose(flow, v * math.exp(-kappa * dt), rtol=1e-12)
    # Eq. 16: (1 - κ_d) V for the decay per step that the rate means.
    np.testing.assert_allclose(flow, (1 - ld.decay_from_rate(kappa, dt)) * v, atol=1e-13 * v)


class Plain(ld.Certificate):
    kappa: Any

    def value(self, t, state, point):
        return jnp.sum(state)

    def comparison(self, t, v):
        return -self.kappa * v * (1 + t)


plain_flow = jax.jit(lambda kappa, t, dt, v: Plain(kappa).flow(t, dt, v))


@FEW
@hypothesis.given(st.floats(0.1, 5), st.floats(0.01, 0.4), st.floats(1e-3, 10))
def test_the_default_flow_is_of_fourth_order(kappa, dt, v):
    with jax.enable_x64(True):
        got, halved = plain_flow(kappa, 0.5, dt, v), plain_flow(kappa, 0.5, dt / 2, v)
    exact = lambda dt: v * math.exp(-kappa * (1.5 * dt + dt**2 / 2))
    # The local error of a step h of Runge-Kutta for v' = -k v is (k h)^5 / 120, and there are eight.
    for value, step in ((got, dt), (halved, dt / 2)):
        np.testing.assert_allclose(value, exact(step), atol=abs(v) * ((2 * kappa * step / 8) ** 5 + 1e-14))


@FEW
@hypothesis.given(st.floats(1e-3, 30), st.floats(1e-3, 1))
def test_rates_and_decays_are_inverse(kappa, dt):
    decay = ld.decay_from_rate(kappa, dt)
    assert 0 < decay < 1
    # Where the decay is close to 1, it has few digits left to hold the rate in.
    assert ld.rate_from_decay(decay, dt) == pytest.approx(kappa, rel=1e-14 / (1 - decay) + 1e-12)


@FEW
@hypothesis.given(st.floats(1e-6, 1 - 1e-6), st.floats(1e-3, 10))
def test_decays_and_rates_are_inverse(decay, dt):
    assert ld.decay_from_rate(ld.rate_from_decay(decay, dt), dt) == pytest.approx(decay, rel=1e-12)


@pytest.mark.parametrize("decay", [0, 1, -0.1, 1.5, 2, math.nan])
def test_a_decay_outside_the_unit_interval_is_refused(decay):
    with pytest.raises(ValueError, match=r"decay: expected .*\(0, 1\)"):
        ld.rate_from_decay(decay, 0.1)


@pytest.mark.parametrize("rate", [0, -1, math.inf, math.nan])
def test_a_rate_that_is_not_positive_is_refused(rate):
    for make in (
        lambda: ld.Certificate.exponential(ld.cross_entropy, rate),
        lambda: ld.Certificate.barrier(lambda s: s, rate),
        lambda: ld.decay_from_rate(rate, 0.1),
        lambda: ld.decay_from_rate(1.0, rate),
        lambda: ld.rate_from_decay(0.5, rate),
    ):
        with pytest.raises(ValueError, match="expected a positive finite number"):
            make()


@pytest.mark.parametrize("kappa", [2, 2.0, np.float32(2), np.int64(2), jnp.asarray(2.0), jnp.asarray(2)])
def test_any_real_scalar_is_a_rate(kappa):
    assert float(ld.Exponential(ld.cross_entropy, kappa).kappa) == 2


def test_a_traced_rate_gives_one_compiled_function_for_all():
    traces = []

    @eqx.filter_jit
    def comparison(certificate, v):
        traces.append(1)
        return certificate.comparison(0.0, v)

    for kappa in (1.0, 2.0, 5.0):
        assert float(comparison(ld.Certificate.exponential(ld.squared_error, kappa), jnp.asarray(3.0))) == -3 * kappa
    assert len(traces) == 1
    assert float(jax.jit(lambda k: ld.Certificate.exponential(ld.squared_error, k).comparison(0.0, 3.0))(2.0)) == -6


def test_what_is_no_function_is_refused():
    with pytest.raises(ValueError, match="h: expected a function"):
        ld.Barrier(1.0)
    for rate in ("2", None, np.ones(2)):
        with pytest.raises(ValueError, match="expected a positive finite number"):
            ld.Barrier(lambda s: s, rate)


@jax.jit
def barriers(alpha, h):
    linear = ld.Certificate.barrier(lambda s: s, alpha)
    cubic = ld.Certificate.barrier(lambda s: s, lambda h: alpha * h**3)
    v = linear.value(0.0, h, ld.Point(lambda s: s))
    return v, [(b.comparison(0.0, v), b.flow(0.0, 0.05, v)) for b in (linear, cubic)]


@FEW
@hypothesis.given(st.floats(0.1, 5), st.floats(-3, 3, allow_subnormal=False))
def test_the_barrier_condition(alpha, h):
    """d/dt h >= -α(h) is d/dt V <= comparison(V) with V = -h, for the linear and for a nonlinear α."""
    with jax.enable_x64(True):
        v, allowed = barriers(alpha, h)
    assert float(v) == -h
    for (comparison, flow), expected in zip(allowed, (alpha * h, alpha * h**3), strict=True):
        np.testing.assert_allclose(comparison, expected, rtol=1e-12, atol=1e-300)
        # Invariance: from h >= 0 the bound on h stays >= 0.
        assert h < 0 or float(flow) <= 0
    np.testing.assert_allclose(allowed[0][1], -h * math.exp(-0.05 * alpha), rtol=1e-12, atol=1e-300)


# Conjunctions.


def exponential(kappa=1.0):
    return ld.Certificate.exponential(ld.squared_error, kappa)


def test_names_and_weights_of_a_conjunction():
    barrier = ld.Certificate.barrier(lambda s: 1 - jnp.sum(s), 1)
    both = exponential() & barrier
    assert list(both.parts) == ["exponential", "barrier"]
    assert both.weights == {"exponential": 1.0, "barrier": 1.0}
    three = ld.AllOf({"stable": exponential(), "safe": barrier}, {"safe": 3}) & exponential(2) & Settle(jnp.ones(4))
    assert list(three.parts) == ["stable", "safe", "exponential", "settle"]
    assert three.weights == {"stable": 1.0, "safe": 3.0, "exponential": 1.0, "settle": 1.0}
    same = exponential(1) & exponential(2) & (exponential(3) & exponential(4))
    assert len(same.parts) == 4
    rates = [float(part.kappa) for part in same.parts.values() if isinstance(part, ld.Exponential)]
    assert sorted(rates) == [1, 2, 3, 4]


def test_a_conjunction_refuses_what_is_no_certificate():
    with pytest.raises(ValueError, match="safe: expected a Certificate"):
        ld.AllOf({"safe": lambda s: s})
    for weights in ({"safe": 0}, {"safe": -1}, {"safe": math.nan}, {"other": 1}):
        with pytest.raises(ValueError, match="weights: expected positive"):
            ld.AllOf({"safe": exponential()}, weights)
    with pytest.raises(ValueError, match="expected a Certificate"):
        _ = exponential() & 3


def test_the_order_of_the_declaration_survives_what_rebuilds_a_tree():
    """JAX sorts the keys of dictionaries, and the first part with a loss decides the error that is reported."""
    stated = ld.AllOf({"z": ld.Certificate.exponential(ld.cross_entropy, 2), "a": exponential()}, {"z": 2.0})
    system = ld.System(vector_field=lambda t, s, c: -s, domain=ld.Box(-1, 1))
    rebuilt = jax.tree.map(lambda leaf: leaf, stated)
    seen = []
    eqx.filter_jit(lambda c: seen.append(list(c.parts)))(ld.Condition(system, stated))
    assert (
        list(ld.Condition(system, stated).parts) == list(ld.Condition(system, rebuilt).parts) == seen[0] == ["z", "a"]
    )
    x = jnp.eye(4)
    program = ld.compile(system, stated, (x[0], x[0]))
    # Cross entropy comes first, so that the error is a share of wrong decisions: none from these starts.
    assert program.error(x, x) == 0


def test_certificates_are_immutable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        exponential().loss = ld.cross_entropy  # pyright: ignore
