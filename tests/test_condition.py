"""The condition against closed forms: linear systems, fields built to satisfy it, discrete systems, conjunctions."""

import math
from typing import Any

import diffrax
import equinox as eqx
import hypothesis
import hypothesis.extra.numpy as st_numpy
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lyapunov_dsl as ld
from lyapunov_dsl import testing

SOME = hypothesis.settings(max_examples=50)
FEW = hypothesis.settings(max_examples=15)
N = 3
VECTORS = st_numpy.arrays(np.float64, N, elements=st.floats(-3, 3, allow_subnormal=False))
RATES = st.floats(0.05, 10)


class Quadratic(ld.Certificate):
    """V = (η - y)ᵀ P (η - y) with dV/dt <= -κ V."""

    weight: Any
    kappa: Any

    def value(self, t, state, point):
        error = state - point.target
        return error @ self.weight @ error

    def comparison(self, t, v):
        return -self.kappa * v


def linear_condition(matrix, certificate):
    """dη/dt = A (η - c), with the center c as the context."""
    system = ld.System(
        lambda x: ld.Start(x, x), lambda t, state, center: matrix @ (state - center), domain=ld.Box(-10, 10)
    )
    return ld.Condition(system, certificate)


@jax.jit
def linear_residuals(matrix, weight, kappa, state, center):
    both = ld.AllOf({"square": ld.Exponential(ld.squared_error, kappa), "weighted": Quadratic(weight, kappa)})
    condition = linear_condition(matrix, both)
    point = condition.point(ld.Start(state, center), center)
    t = jnp.zeros((), state.dtype)
    return condition.residuals(t, state, point), condition.rates(t, state, point)


@SOME
@hypothesis.given(testing.stable_linear_systems(N, weighted=True), RATES, VECTORS, VECTORS)
def test_the_residual_of_a_linear_system_is_a_quadratic_form(precision, linear, kappa, state, center):
    arrays = [jnp.asarray(a, precision) for a in (linear.matrix, linear.weight, kappa, state, center)]
    residuals, rates = linear_residuals(*arrays)
    A, P, kappa, state, center = (np.asarray(a, np.float64) for a in arrays)
    error = state - center
    size = (np.linalg.norm(A) + kappa) * np.linalg.norm(error) * (np.linalg.norm(state) + np.linalg.norm(center))
    slack = float(32 * jnp.finfo(precision).eps * size * max(1, np.linalg.norm(P)) + 1e-30)
    for name, weight in {"square": np.eye(N), "weighted": P}.items():
        form = weight @ A + A.T @ weight
        assert residuals[name].dtype == precision
        np.testing.assert_allclose(residuals[name], error @ (form + kappa * weight) @ error, rtol=0, atol=slack)
        np.testing.assert_allclose(rates[name][0], error @ weight @ error, rtol=0, atol=slack)
        np.testing.assert_allclose(rates[name][1], error @ form @ error, rtol=0, atol=slack)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_decay_rate_of_a_linear_system_is_sharp(weighted):
    @SOME
    @hypothesis.given(testing.stable_linear_systems(N, weighted=weighted), VECTORS)
    def check(linear, state):
        form = linear.weight @ linear.matrix + linear.matrix.T @ linear.weight
        worst = linear.worst
        with jax.enable_x64(True):
            at = lambda kappa, state: linear_residuals(
                linear.matrix, linear.weight, kappa, jnp.asarray(state), jnp.zeros(N)
            )[0]["weighted"]
            slower, faster = linear.rate * (1 - 1e-6), linear.rate * (1 + 1e-6)
            # κ below the true rate: the condition holds everywhere. Above it: it fails at the worst state, by 1e-6 V.
            assert float(at(slower, state)) <= 1e-12 * float(state @ linear.weight @ state) + 1e-300
            np.testing.assert_allclose(at(faster, worst), 1e-6 * linear.rate, rtol=1e-4)
        assert worst @ linear.weight @ worst == pytest.approx(1)
        # The rate that the strategy claims is the least generalized eigenvalue of -(PA + AᵀP) and P.
        root = np.linalg.inv(np.linalg.cholesky(linear.weight))
        assert np.linalg.eigvalsh(-root @ form @ root.T).min() == pytest.approx(linear.rate)

    check()


# Fields built to satisfy the condition.


def descent(loss, kappa, target):
    """f = -κ V ∇V / |∇V|², for which dV/dt = -κ V exactly."""

    def field(t, state, context):
        value, slope = jax.value_and_grad(loss)(state, target)
        return -kappa * value / jnp.sum(slope**2) * slope

    return field


DESCENTS = {
    "cross_entropy": (ld.cross_entropy, 2, 2.0),
    "squared_error": (ld.squared_error, np.array([0.1, -0.2, 0.3, 0.0]), 3.0),
    "own function": (lambda p, y: jnp.sum(jnp.cosh(p - y) - 1), np.array([0.1, -0.2, 0.3, 0.0]), 1.0),
}


@pytest.mark.parametrize("name", DESCENTS)
def test_a_descent_field_satisfies_the_condition_with_equality(name, precision):
    loss, target, kappa = DESCENTS[name]
    target = jnp.asarray(target) if isinstance(target, int) else jnp.asarray(target, precision)
    system = ld.System(vector_field=descent(ld.Exponential(loss, kappa).loss, kappa, target), domain=ld.Box(-2, 2))
    condition = ld.Condition(system, ld.Certificate.exponential(loss, kappa))

    @jax.jit
    def numbers(t, state):
        point = condition.point(ld.Start(state), target)
        return condition.residuals(t, state, point)["exponential"], condition.rates(t, state, point)["exponential"]

    @SOME
    @hypothesis.given(testing.states(system.region, jax.ShapeDtypeStruct((4,), precision)), testing.times(1.0))
    def check(state, t):
        residual, (value, rate) = numbers(jnp.asarray(t, precision), state)
        hypothesis.assume(float(value) > 1e-8)
        eps = float(jnp.finfo(precision).eps)
        assert abs(float(residual)) <= 64 * eps * kappa * float(value)
        assert float(rate) == pytest.approx(-kappa * float(value), rel=256 * eps)

    check()


@pytest.mark.parametrize("name", DESCENTS)
def test_the_trajectory_of_a_descent_field_decays_at_the_promised_rate(name):
    loss, target, kappa = DESCENTS[name]
    with jax.enable_x64(True):
        target = jnp.asarray(target)
        loss = ld.Exponential(loss, kappa).loss
        system = ld.System(vector_field=descent(loss, kappa, target), domain=ld.Box(-1, 1))
        times = jnp.linspace(0, 1, 5)

        @jax.jit
        def values(state):
            term = diffrax.ODETerm(system.velocity)
            control = diffrax.PIDController(rtol=1e-8, atol=1e-10)
            saveat = diffrax.SaveAt(ts=times)
            path = diffrax.diffeqsolve(
                term, diffrax.Tsit5(), 0, 1, None, state, saveat=saveat, stepsize_controller=control
            )
            return jax.vmap(lambda s: loss(s, target))(path.ys)

        @FEW
        @hypothesis.given(testing.states(system.region, jnp.zeros(4)))
        def check(state):
            v = np.asarray(values(state))
            hypothesis.assume(v[0] > 1e-3)
            np.testing.assert_allclose(v, v[0] * np.exp(-kappa * np.asarray(times)), rtol=1e-5)

        check()


SPEED, KAPPA, HALF = 5.0, 2.0, 3.0


def invariant_condition(dtype):
    """f = K (g - η) with g the corner of the box at which the right class wins by most."""
    corner = lambda t, state, label: 50 * (2 * jax.nn.one_hot(label, 4, dtype=dtype) - 1)
    field = ld.nn.InvariantField(corner, half_width=HALF, rate=SPEED)
    system = ld.System(lambda x: ld.Start(x["state"], x["label"]), field, domain=ld.Box(-HALF, HALF))
    return ld.Condition(system, ld.Certificate.exponential(ld.cross_entropy, KAPPA))


LEAST = math.log1p(3 * math.exp(-2 * HALF))


@SOME
@hypothesis.given(
    testing.states(ld.Box(-HALF, HALF), jax.ShapeDtypeStruct((4,), jnp.float32)), st.integers(0, 3), testing.times(1.0)
)
def test_an_invariant_field_satisfies_the_condition_above_its_truncation_level(state, label, t):
    """For K > κ the condition holds where V >= K min V / (K - κ), V being convex."""
    value, residual = invariant_numbers(jnp.asarray(t, jnp.float32), state, jnp.asarray(label))
    level = SPEED * LEAST / (SPEED - KAPPA)
    if float(value) >= level * (1 + 1e-5):
        assert float(residual) <= 1e-5 * SPEED * float(value)


@jax.jit
def invariant_numbers(t, state, label):
    condition = invariant_condition(state.dtype)
    point = condition.point(ld.Start(state, label), label)
    ((value, _),) = condition.rates(t, state, point).values()
    return value, condition.residuals(t, state, point)["exponential"]


@jax.jit
def invariant_path(state, label):
    condition = invariant_condition(state.dtype)
    start = ld.Start(state, label)
    # Tsit5 at K Δt = 0.1
    times, values = condition.path_values(start, label, None, solver=diffrax.Tsit5(), steps=50)
    return times, values["exponential"]


@FEW
@hypothesis.given(testing.states(ld.Box(-HALF, HALF), jax.ShapeDtypeStruct((4,), jnp.float32)), st.integers(0, 3))
def test_the_trajectory_of_an_invariant_field_decays_at_the_promised_rate(state, label):
    with jax.enable_x64(True):
        times, v = (np.asarray(a) for a in invariant_path(jnp.asarray(state, jnp.float64), jnp.asarray(label)))
    level = SPEED * LEAST / (SPEED - KAPPA)
    assert np.all(v <= np.maximum(v[0] * np.exp(-KAPPA * times), level) * (1 + 1e-6))
    # What convexity gives: V - min V decays at the rate K itself.
    assert np.all(v - LEAST <= (v[0] - LEAST) * np.exp(-SPEED * times) * (1 + 1e-5) + 1e-9)


def test_the_condition_fails_at_the_least_value():
    """At the minimizer of V over a bounded domain no field that stays inside can decrease V: truncation is needed."""
    corner = jnp.full((4,), -HALF).at[1].set(HALF)
    value, residual = invariant_numbers(jnp.asarray(0.0), corner, jnp.asarray(1))
    assert float(value) == pytest.approx(LEAST, rel=1e-5)
    assert float(residual) > 0.9 * KAPPA * LEAST


# How often what is evaluated.


def counted(function):
    calls = []

    def wrapper(*args):
        calls.append(1)
        return function(*args)

    return wrapper, calls


def test_a_conjunction_evaluates_the_field_once():
    field, calls = counted(lambda t, s, c: -s)
    parts = ld.AllOf(
        {
            "a": ld.Exponential(ld.squared_error, 1),
            "b": ld.Exponential(ld.cross_entropy, 2),
            "c": ld.Barrier(lambda s: 1 - jnp.sum(s)),
        },
        {"b": 2.0, "c": 0.5},
    )
    condition = ld.Condition(ld.System(vector_field=field, domain=ld.Box(-1, 1)), parts)
    state, target = jnp.asarray([1.0, -2, 0.5]), jnp.asarray([1.0, 0, 0])
    jaxpr = jax.make_jaxpr(lambda s: condition.residuals(0.0, s, condition.point(ld.Start(s), target)))(state)
    assert len(calls) == 1
    assert len(jaxpr.out_avals) == 3
    # Nor by differentiation of what depends on it.
    calls.clear()
    jax.make_jaxpr(
        jax.grad(lambda s: condition.hinge(condition.residuals(0.0, s, condition.point(ld.Start(s), target))))
    )(state)
    assert len(calls) == 1

    residuals = condition.residuals(0.0, state, condition.point(ld.Start(state), target))
    alone = {
        name: ld.Condition(condition.system, part).residuals(0.0, state, condition.point(ld.Start(state), target))
        for name, part in parts.parts.items()
    }
    for name, residual in residuals.items():
        np.testing.assert_allclose(residual, *alone[name].values(), rtol=1e-6)
    plain = sum(w * max(0.0, float(residuals[n])) for n, w in {"a": 1.0, "b": 2.0, "c": 0.5}.items())
    np.testing.assert_allclose(condition.hinge(residuals), plain, rtol=1e-6)
    assert plain > 0
    values = condition.values(0.0, state, condition.point(ld.Start(state), target))
    plain = sum(w * float(values[n]) for n, w in {"a": 1.0, "b": 2.0, "c": 0.5}.items())
    np.testing.assert_allclose(condition.weighted(values), plain, rtol=1e-6)


@SOME
@hypothesis.given(
    st.lists(st.floats(-5, 5, width=32, allow_subnormal=False), min_size=2, max_size=2), st.floats(0.1, 3)
)
def test_the_hinge_is_the_weighted_sum_of_positive_parts(residuals, weight):
    parts = ld.AllOf({"a": ld.Barrier(jnp.sum), "b": ld.Barrier(jnp.sum)}, {"b": weight})
    condition = ld.Condition(ld.System(vector_field=lambda t, s, c: s), parts)
    a, b = (np.float32(r) for r in residuals)
    np.testing.assert_allclose(condition.hinge({"a": a, "b": b}), max(a, 0) + weight * max(b, 0), rtol=1e-5, atol=1e-30)


def test_the_rate_includes_the_partial_derivative_in_time():
    class Growing(ld.Certificate):
        def value(self, t, state, point):
            return (1 + t**2) * jnp.sum(state**2)

        def comparison(self, t, v):
            return -v

    condition = ld.Condition(ld.System(vector_field=lambda t, s, c: -s), Growing())
    t, state = jnp.asarray(0.75), jnp.asarray([1.0, 2.0])
    ((value, rate),) = condition.rates(t, state, condition.point(ld.Start(state), None)).values()
    np.testing.assert_allclose(value, 1.5625 * 5)
    np.testing.assert_allclose(rate, 2 * 0.75 * 5 - 2 * 1.5625 * 5, rtol=1e-6)


def test_the_key_reaches_field_and_readout():
    noisy = lambda t, s, c, key=None: s * (0 if key is None else jax.random.normal(key))
    readout = lambda s, key=None: s if key is None else s + jax.random.normal(key)
    system = ld.System(vector_field=noisy, readout=readout)
    condition = ld.Condition(system, ld.Certificate.exponential(ld.squared_error, 1))
    state, key = jnp.asarray([2.0]), jax.random.key(1)
    noise = jax.random.normal(key)

    def rates(key):
        ((value, rate),) = condition.rates(
            0.0, state, condition.point(ld.Start(state), jnp.zeros(1), key), key
        ).values()
        return value, rate

    np.testing.assert_allclose(rates(None), (4, 0))
    np.testing.assert_allclose(rates(key), ((2 + noise) ** 2, 2 * (2 + noise) * 2 * noise), rtol=1e-5)


# Paths.


def test_path_values_of_a_continuous_system(precision):
    condition = ld.Condition(
        ld.System(vector_field=lambda t, s, c: -s + t, horizon=2.0),
        ld.Certificate.exponential(ld.squared_error, 1) & ld.Certificate.barrier(lambda s: s[0], 2),
    )
    start, target = ld.Start(jnp.asarray([1.0, -1.0], precision)), jnp.zeros(2, precision)
    times, values = condition.path_values(start, target, None, solver=diffrax.Euler(), steps=4)
    state, states = np.array([1.0, -1.0]), [np.array([1.0, -1.0])]
    for i in range(4):
        state = state + 0.5 * (-state + 0.5 * i)
        states.append(state)
    assert times.dtype == precision
    np.testing.assert_allclose(times, [0, 0.5, 1, 1.5, 2])
    np.testing.assert_allclose(values["exponential"], [s @ s for s in states], rtol=1e-5)
    np.testing.assert_allclose(values["barrier"], [-s[0] for s in states], rtol=1e-5, atol=1e-6)
    residuals = condition.step_residuals(times, values)
    v = np.array([s @ s for s in states])
    decay = ld.decay_from_rate(1, 0.5)
    np.testing.assert_allclose(residuals["exponential"], v[1:] - (1 - decay) * v[:-1], rtol=1e-4, atol=1e-6)
    h = np.array([s[0] for s in states])
    np.testing.assert_allclose(residuals["barrier"], math.exp(-1) * h[:-1] - h[1:], rtol=1e-4, atol=1e-6)


def test_path_values_of_a_discrete_system():
    """Steps that keep the shape take time; the others are changes of coordinates, and V looks through them."""
    wide = jnp.asarray([[1.0, 0], [0, 2], [1, 1]])
    steps = (
        lambda s, c: s / 2,  # 2 -> 2, dynamics
        lambda s, c: wide @ s + c,  # 2 -> 3
        lambda s, c: s - 1,  # 3 -> 3, dynamics
        lambda s, c: s[:2],  # 3 -> 2
    )
    system = ld.DiscreteSystem(lambda x: ld.Start(x, jnp.asarray([0.0, 1, 0])), steps, lambda s: 3 * s, horizon=4.0)
    condition = ld.Condition(system, ld.Certificate.exponential(ld.squared_error, 0.25))
    x, y = jnp.asarray([2.0, 4.0]), jnp.asarray([1.0, 1.0])
    times, values = condition.path_values(system.start(x), y, None, solver=diffrax.Euler(), steps=99)
    np.testing.assert_allclose(times, [0, 2, 4])
    # η_0 = (2, 4) reads out as 3 (2, 9), η_1 = (1, 2) as 3 (1, 5), η_2 = (0, 4, 2) as 3 (0, 4).
    expected = np.array([5**2 + 26**2, 2**2 + 14**2, 1 + 11**2], float)
    np.testing.assert_allclose(values["exponential"], expected)
    residual = condition.step_residuals(times, values)["exponential"]
    np.testing.assert_allclose(residual, expected[1:] - math.exp(-0.5) * expected[:-1], rtol=1e-5)
    with pytest.raises(ValueError, match="expected a continuous System"):
        condition.rates(0.0, x, ld.Point(lambda s: s))


def test_the_step_residual_per_step_tends_to_the_residual():
    with jax.enable_x64(True):
        condition = ld.Condition(
            ld.System(vector_field=lambda t, s, c: jnp.sin(s) + t), ld.Certificate.exponential(ld.cross_entropy, 2)
        )
        start, target = ld.Start(jnp.asarray([0.3, -0.5, 1.0])), jnp.asarray(1)
        limit = condition.residuals(jnp.asarray(0.0), start.state, condition.point(start, target))["exponential"]
        errors = []
        for steps in (100, 200):
            times, values = condition.path_values(start, target, None, solver=diffrax.Euler(), steps=steps)
            errors.append(float(condition.step_residuals(times, values)["exponential"][0] * steps - limit))
    assert abs(errors[0]) < 0.1
    np.testing.assert_allclose(errors[0] / errors[1], 2, rtol=0.03)


# Strict promotion of dtypes and ranks, in both precisions.


@pytest.mark.parametrize(
    ("certificate", "target"),
    [
        (lambda: ld.Certificate.exponential(ld.cross_entropy, 2), 1),
        (lambda: ld.Certificate.exponential(ld.cross_entropy, 2), [0.0, 1, 0]),
        (lambda: ld.Certificate.exponential(ld.truncated(ld.cross_entropy, 0.1), 2), 1),
        (lambda: ld.Certificate.exponential(ld.squared_error, 2), [0.0, 1, 0]),
        (lambda: ld.Certificate.exponential(lambda p, y: jnp.sum(jnp.abs(p - y)), np.float32(2)), [0.0, 1, 0]),
        (lambda: ld.Certificate.barrier(lambda s: 1 - jnp.sum(s * s), 3), None),
        (lambda: ld.Certificate.barrier(lambda s: 1 - jnp.sum(s * s), lambda h: 2 * h + h**3), None),
        (lambda: ld.Certificate.barrier(jnp.sum) & ld.Certificate.exponential(ld.cross_entropy, 2), 1),
    ],
)
def test_strict_promotion(certificate, target, precision, strict):
    if target is not None:
        target = jnp.asarray(target) if isinstance(target, int) else jnp.asarray(target, precision)
    field = ld.nn.MLPField(3, 2, width=4, key=jax.random.key(0))
    system = ld.System(
        lambda x: ld.Start(jnp.zeros(3, precision), x), ld.nn.InvariantField(field, 2.0, 5), domain=ld.Box(-2, 2)
    )
    condition = ld.Condition(system, certificate())
    start = system.start(jnp.ones(2, precision))

    def everything(t, state):
        point = condition.point(start, target)
        residuals = condition.residuals(t, state, point)
        times, values = condition.path_values(start, target, None, solver=diffrax.Heun(), steps=3)
        return condition.hinge(residuals), condition.hinge(condition.step_residuals(times, values))

    # Promotion is decided while tracing, so that nothing has to be computed.
    arguments = jnp.asarray(0.5, precision), jnp.ones(3, precision)
    outputs = eqx.filter_eval_shape(everything, *arguments)
    slopes = eqx.filter_eval_shape(jax.jacrev(everything, argnums=1), *arguments)
    assert [leaf.dtype for leaf in jax.tree.leaves((outputs, slopes))] == [precision] * 4
