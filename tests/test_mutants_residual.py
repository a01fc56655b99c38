"""The residual against numbers computed by hand, one term at a time."""

import math

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lyapunov_dsl as ld
from lyapunov_dsl._certificate import Point, parts_of
from lyapunov_dsl._condition import Condition
from lyapunov_dsl._objective._base import example_keys, starts
from lyapunov_dsl._objective._monte_carlo import over

pytestmark = pytest.mark.usefixtures("quick")


class Moving(ld.Certificate):
    """V = (1 + t) |η|² with dV/dt <= -κ V + c t."""

    kappa: float
    c: float

    def value(self, t, state, point):
        return (1 + t) * jnp.sum(state**2)

    def comparison(self, t, v):
        return -self.kappa * v + self.c * t


class Own(Moving):
    """The same with a rate of its own: dV/dt + 3."""

    def derivative(self, t, state, point, velocity):
        v, rate = ld.Certificate.derivative(self, t, state, point, velocity)
        return v, rate + 3


FIELD = lambda t, state, context: jnp.stack([state[1] * context, -state[0] - t])
SYSTEM = ld.System(lambda x: ld.Start(x, jnp.asarray(2.0)), FIELD, domain=ld.Box(-9, 9))


def by_hand(t, a, b, kappa, c):
    """V, dV/dt and the residual."""
    v = (1 + t) * (a * a + b * b)
    rate = a * a + b * b + (1 + t) * 2 * (a * 2 * b + b * (-a - t))
    return v, rate, rate + kappa * v - c * t


def test_values_rates_and_residuals_by_hand():
    both = ld.AllOf({"one": Moving(0.5, 0.25), "two": Own(2.0, -1.0)}, weights={"one": 1.0, "two": 3.0})
    condition = Condition(SYSTEM, both)
    start = ld.Start(jnp.asarray([0.3, -0.7]), jnp.asarray(2.0))
    point = condition.point(start, None)
    for t, a, b in ((0.0, 0.3, -0.7), (0.5, -1.0, 0.25), (2.0, 0.1, 0.9)):
        state, time = jnp.asarray([a, b]), jnp.asarray(t)
        rates, residuals = condition.rates(time, state, point), condition.residuals(time, state, point)
        values = condition.values(time, state, point)
        expected = {"one": by_hand(t, a, b, 0.5, 0.25), "two": by_hand(t, a, b, 2.0, -1.0)}
        for name, (v, rate, residual) in expected.items():
            more = 3.0 if name == "two" else 0.0
            assert float(values[name]) == pytest.approx(v, rel=1e-5)
            assert [float(r) for r in rates[name]] == pytest.approx([v, rate + more], rel=1e-5, abs=1e-5)
            assert float(residuals[name]) == pytest.approx(residual + more, rel=1e-5, abs=1e-5)
        hinge = max(expected["one"][2], 0) + 3 * max(expected["two"][2] + 3, 0)
        assert float(condition.hinge(residuals)) == pytest.approx(hinge, rel=1e-5, abs=1e-5)
        assert float(condition.weighted(residuals)) == pytest.approx(
            expected["one"][2] + 3 * (expected["two"][2] + 3), rel=1e-5, abs=1e-4
        )
    assert [part.own_rate for part in condition.parts.values()] == [False, True]
    assert float(point.context) == 2
    assert point.field is FIELD
    assert point.velocity(jnp.asarray(0.5), jnp.asarray([1.0, 2.0])).tolist() == [4.0, -1.5]


def test_discrete_residuals_along_euler_steps_by_hand():
    condition = Condition(SYSTEM, ld.AllOf({"one": Moving(0.5, 0.0), "two": Own(0.5, 0.0)}))
    start = ld.Start(jnp.asarray([0.3, -0.7]), jnp.asarray(2.0))
    found = condition.path_residuals(start, None, None, solver=diffrax.Euler(), steps=4)
    times, values = condition.path_values(start, None, None, solver=diffrax.Euler(), steps=4)
    assert times.tolist() == [0, 0.25, 0.5, 0.75, 1]
    state, t, v = np.array([0.3, -0.7]), 0.0, []
    for _ in range(5):
        v.append((1 + t) * (state @ state))
        state, t = state + 0.25 * np.array([2 * state[1], -state[0] - t]), t + 0.25
    np.testing.assert_allclose(values["one"], v, rtol=1e-5)
    steps = [after - math.exp(-0.125) * before for before, after in zip(v, v[1:], strict=False)]
    np.testing.assert_allclose(found["one"], steps, rtol=1e-4, atol=1e-5)
    # A rate of its own: Δt times what it is above dV/dt.
    np.testing.assert_allclose(found["two"], np.array(steps) + 0.25 * 3, rtol=1e-4, atol=1e-5)
    plain = Condition(SYSTEM, Moving(0.5, 0.0)).path_residuals(start, None, None, solver=diffrax.Euler(), steps=4)
    np.testing.assert_allclose(next(iter(plain.values())), steps, rtol=1e-4, atol=1e-5)


def test_discrete_residuals_of_layers_by_hand():
    system = ld.DiscreteSystem(lambda x: ld.Start(x), [lambda s, c: 0.5 * s, lambda s, c: 0.25 * s + 1], horizon=3.0)
    condition = Condition(system, Moving(0.5, 0.0))
    times, values = condition.path_values(
        ld.Start(jnp.asarray([1.0, 2.0])), None, None, solver=diffrax.Euler(), steps=9
    )
    assert times.tolist() == [0, 1.5, 3]
    expected = [5.0, 2.5 * 1.25, 4 * (1.125**2 + 1.25**2)]
    np.testing.assert_allclose(next(iter(values.values())), expected, rtol=1e-6)
    found = condition.path_residuals(ld.Start(jnp.asarray([1.0, 2.0])), None, None, solver=diffrax.Euler(), steps=9)
    steps = [b - math.exp(-0.75) * a for a, b in zip(expected, expected[1:], strict=False)]
    np.testing.assert_allclose(next(iter(found.values())), steps, rtol=1e-4)
    # Layers have no rate but that of the steps.
    own = Condition(system, Own(0.5, 0.0)).path_residuals(
        ld.Start(jnp.asarray([1.0, 2.0])), None, None, solver=diffrax.Euler(), steps=9
    )
    np.testing.assert_allclose(next(iter(own.values())), steps, rtol=1e-4)


def test_the_default_flow_solves_the_comparison_equation():
    # v' = -κ v + c t from v at t.
    certificate = Moving(1.5, 2.0)
    with jax.enable_x64(True):
        for t, dt, v in ((0.0, 0.5, 1.0), (1.0, 0.25, 0.3), (0.7, 1.0, 0.0)):
            particular = lambda s: 2 / 1.5 * (s - 1 / 1.5)
            exact = particular(t + dt) + (v - particular(t)) * math.exp(-1.5 * dt)
            found = certificate.flow(jnp.asarray(t), jnp.asarray(dt), jnp.asarray(v))
            assert float(found) == pytest.approx(exact, rel=2e-6)
        # Of fourth order, by eight steps.
        stiff = Moving(8.0, 0.0).flow(jnp.asarray(0.0), jnp.asarray(1.0), jnp.asarray(1.0))
        assert float(stiff) == pytest.approx((1 - 1 + 1 / 2 - 1 / 6 + 1 / 24) ** 8, rel=1e-12)


def test_exponential_certificates_by_hand():
    state, t = jnp.asarray([1.0, 3.0]), jnp.asarray(0.25)
    point = Point(lambda s: 2 * s, None, jnp.asarray([1.0, 1.0]))
    square = ld.Certificate.exponential(ld.squared_error, 3)
    varying = ld.Certificate.exponential(ld.squared_error, lambda t: 1 + 2 * t)
    for certificate, rate in ((square, 3.0), (varying, 1.5)):
        v = float(certificate.value(t, state, point))
        assert v == pytest.approx(float(ld.squared_error(2 * state, point.target)))
        assert float(certificate.comparison(t, 2.0)) == pytest.approx(-rate * 2)
    assert float(square.flow(t, 0.5, 2.0)) == pytest.approx(2 * math.exp(-1.5))
    assert float(square.kappa) == 3
    system = ld.System(vector_field=lambda t, s, c: -s, domain=ld.Box(-1, 1), horizon=2.0)
    assert varying.prepared(system, None) is varying
    for kappa in (
        lambda t: 2 - 1.01 * t,
        lambda t: t,
        lambda t: jnp.where(t > 1, jnp.nan, 1.0),
        lambda t: 1 - jnp.exp(-100 * (t - 1.0) ** 2),
    ):
        with pytest.raises(ValueError, match="kappa: expected κ"):
            ld.Certificate.exponential(ld.squared_error, kappa).prepared(system, None)
    with pytest.raises(ValueError, match=r"κ\(2\) = -0.02"):
        ld.Certificate.exponential(ld.squared_error, lambda t: 2 - 1.01 * t).prepared(system, None)
    with pytest.raises(ValueError, match=r"κ\(1.008\) = nan"):
        ld.Certificate.exponential(ld.squared_error, lambda t: jnp.where(t > 1, jnp.nan, 1.0)).prepared(system, None)
    # A rate that is traced is taken on trust.
    traced = jax.jit(lambda kappa: ld.Certificate.exponential(ld.squared_error, kappa).comparison(t, 2.0))
    assert float(traced(jnp.asarray(0.5))) == -1
    with pytest.raises(ValueError, match="one number"):
        ld.Certificate.exponential(ld.squared_error, lambda t: jnp.ones(2) * t).prepared(system, None)
    assert ld.decay_from_rate(2, 0.25) == pytest.approx(1 - math.exp(-0.5))
    assert ld.rate_from_decay(0.25, 0.5) == pytest.approx(-math.log(0.75) / 0.5)
    assert ld.rate_from_decay(ld.decay_from_rate(1e-12, 0.5), 0.5) == pytest.approx(1e-12, rel=1e-12)
    for wrong in (0, 1, -0.5, math.nan):
        with pytest.raises(ValueError, match="decay: expected"):
            ld.rate_from_decay(wrong, 1)
    for wrong in (0, -1, math.inf, math.nan):
        with pytest.raises(ValueError, match="kappa: expected"):
            ld.Certificate.exponential(ld.squared_error, wrong)


def test_barriers_give_way_at_the_rate_1():
    h = lambda state: 1 - jnp.sum(state**2)
    v = jnp.asarray(-0.5)
    for certificate in (ld.Certificate.barrier(h), ld.Certificate.control_barrier(h)):
        assert float(certificate.comparison(jnp.asarray(0.0), v)) == pytest.approx(0.5)
    both = ld.Certificate.reach_avoid(h, h, h, rate=2.0)
    assert float(parts_of(both)["avoid"].comparison(jnp.asarray(0.0), v)) == pytest.approx(0.5)


def test_what_a_residual_counts_at_a_value():
    counted = lambda r, v, **options: float(
        ld.MonteCarlo(ld.Cube(), **options)._counted(jnp.asarray(r), jnp.asarray(v))
    )
    assert counted(0.5, 2.0) == 0.5
    # Up to a level it is at most what is left to it.
    assert counted(0.5, 0.9, level=1.0) == pytest.approx(0.1)
    assert counted(0.05, 0.9, level=1.0) == pytest.approx(0.05)
    assert counted(-0.5, 0.9, level=1.0) == -0.5
    assert counted(0.5, 1.0, level=1.0) == counted(0.5, 1.5, level=1.0) == 0
    # From a level on.
    assert counted(0.5, 0.2, level=(0.25, None)) == 0
    assert counted(0.5, 0.25, level=(0.25, None)) == 0.5
    assert counted(0.5, 0.3, level=(0.25, 1.0)) == 0.5
    # Relative.
    assert counted(0.5, 2.0, relative=True) == 0.25
    assert counted(0.5, 0.0, relative=True) == 0
    assert counted(0.5, 1e-40, relative=True) == 0
    assert counted(0.5, 1.5, level=2.0, relative=True) == pytest.approx(0.25)
    assert counted(0.1, 1.5, level=2.0, relative=True) == pytest.approx(0.1 / 1.5)
    for level in (0.0, -1.0):
        with pytest.raises(ValueError, match="level > 0"):
            ld.MonteCarlo(ld.Cube(), level=level, relative=True)
        ld.MonteCarlo(ld.Cube(), level=level)
    ld.MonteCarlo(ld.Cube(), level=(0.5, None), relative=True)
    with pytest.raises(ValueError, match="measure: expected"):
        ld.MonteCarlo(3)
    assert isinstance(ld.MonteCarlo().measure, ld.Trajectory)


@pytest.mark.slow
def test_the_objective_is_the_weighted_mean_by_hand():
    condition = Condition(SYSTEM, Moving(0.5, 0.25))
    x, key = jnp.asarray([[0.3, -0.7], [1.0, 0.5], [-0.2, 0.1]]), jax.random.key(3)
    model_key, sample_key = jax.random.split(key)
    keys = example_keys(model_key, x)
    begun = starts(condition, x, keys)
    parts = {"cube": ld.Cube(2), "tube": ld.Trajectory(2)}
    means = []
    for place, measure in enumerate(parts.values()):
        here = jax.random.fold_in(sample_key, 0)
        each = []
        for i in range(3):
            start = jax.tree.map(lambda leaf, i=i: leaf[i], begun)
            own = example_keys(here, keys)[i] if place else here
            drawn = measure.sample(SYSTEM, start if place else jax.tree.map(lambda leaf: leaf[0], begun), key=own)
            point = condition.point(start, None)
            r = jax.vmap(lambda t, s, point=point: condition.residuals(t, s, point)["moving"])(drawn.t, drawn.state)
            each.append(float(sum(w * max(float(v), 0) for w, v in zip(drawn.weight, r, strict=True))))
        means.append(np.mean(each))
        assert float(ld.MonteCarlo(measure)(condition, x, jnp.arange(3.0), key=key)) == pytest.approx(
            means[-1], rel=1e-4
        )
    # Weights of a mixture add to 1, and those of examples as well.
    mixture = ld.Mixture(ld.Cube(4), ld.Trajectory(2), weights=(1, 3))
    for measure in (*parts.values(), mixture):
        one = over(condition, measure, lambda t, s, p, k: jnp.ones(()), begun, jnp.arange(3.0), keys, sample_key)
        assert float(one) == pytest.approx(1, rel=1e-6)
