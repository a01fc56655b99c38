"""Systems that satisfy a certificate by construction."""

import diffrax
import equinox as eqx
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import lyapunov_dsl as ld

pytestmark = pytest.mark.usefixtures("quick_module")
KAPPA = 0.7


def square(state):
    return jnp.sum(state**2)


def network(size=3, key=0):
    mlp = eqx.nn.MLP(size, size, 32, 2, activation=jnp.tanh, key=jax.random.key(key))
    return ld.System(vector_field=Plain(mlp), domain=ld.Box(-2.0, 2.0))


class Plain(eqx.Module):
    mlp: eqx.nn.MLP

    def __call__(self, t, state, context):
        return 3 * self.mlp(state)


POTENTIALS = {
    "quadratic": lambda: ld.nn.QuadraticPotential(3, matrix=[[1.0, 2, 0], [0, 1, 0], [0, 0, 0.1]]),
    "convex": lambda: ld.nn.ConvexPotential(3, key=jax.random.key(1)),
}


def residuals(whole, certificate, states):
    """(r, |dV/dt| + κ V) at many states."""
    condition = ld.Condition(whole, certificate)

    def one(s):
        point = condition.point(ld.Start(s), None)
        ((v, rate),) = condition.rates(jnp.zeros(()), s, point).values()
        return rate - part.comparison(0.0, v), jnp.abs(rate) + KAPPA * jnp.abs(v)

    (part,) = condition.parts.values()
    return eqx.filter_jit(jax.vmap(one))(states)


@pytest.mark.parametrize("name", POTENTIALS)
def test_the_condition_holds_at_states_of_all_levels(name):
    with jax.enable_x64(True):
        certificate = ld.Certificate.exponential(POTENTIALS[name](), KAPPA)
        whole = ld.enforce(network(), certificate, jnp.zeros(3))
        # Stratified by log V: from 1e-12 to 1e2 of the distance.
        lengths = 10.0 ** jax.random.uniform(jax.random.key(0), (100_000, 1), minval=-12, maxval=2)
        directions = jax.random.normal(jax.random.key(1), (100_000, 3))
        states = lengths * directions / jnp.linalg.norm(directions, axis=1, keepdims=True)
        r, size = residuals(whole, certificate, states)
        assert (r <= 1e-9 * size).all()
        # Without the correction it fails at many.
        r, size = residuals(network(), certificate, states)
        assert (r > 1e-3 * size).mean() > 0.2


@hypothesis.settings(max_examples=50)
@hypothesis.given(st.lists(st.floats(-2, 2).filter(lambda v: v == 0 or abs(v) > 1e-100), min_size=3, max_size=3))
def test_the_correction_is_the_least_and_leaves_what_is_right(state):
    with jax.enable_x64(True):
        plain, right = network(), ld.System(vector_field=lambda t, s, c: -s, domain=ld.Box(-2, 2))
        certificate = ld.Certificate.exponential(square, KAPPA)
        s = jnp.asarray(state)
        velocity = plain.velocity(0.0, s, None)
        found = ld.enforce(plain, certificate).velocity(0.0, s, None)
        slope, most = 2 * s, -KAPPA * square(s)
        # Along the slope, and no farther than needed.
        excess = max(float(slope @ velocity - most), 0.0)
        expected = velocity - (excess / float(slope @ slope) * slope if excess else 0)
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
        np.testing.assert_array_equal(ld.enforce(right, certificate).velocity(0.0, s, None), -s)


def driven(limits=None, controller=None):
    drift, columns = jnp.asarray([[0.5, 1.0], [-1.0, 0.3]]), jnp.asarray([[1.0, 0.5, 0.0], [0.0, 1.0, -2.0]])
    return ld.System(
        vector_field=ld.ControlAffine(
            lambda t, s, c: drift.astype(s.dtype) @ s,
            lambda t, s, c: columns.astype(s.dtype),
            controller,
            limits=limits,
        ),
        domain=ld.Box(-1.0, 1.0),
    )


def nearest(u, row, most, ends):
    """By SciPy."""
    inside = {"type": "ineq", "fun": lambda w: most - row @ w, "jac": lambda w: -row}
    objective, slope = lambda w: np.sum((w - u) ** 2), lambda w: 2 * (w - u)
    options = {"ftol": 1e-14, "maxiter": 500}
    return scipy.optimize.minimize(
        objective, u, jac=slope, bounds=ends, method="SLSQP", constraints=inside, options=options
    ).x


@pytest.mark.parametrize("limits", [None, 1.5, (jnp.asarray([-1.0, -2.0, 0.0]), jnp.asarray([0.5, 1.0, 2.0]))])
def test_inputs_are_the_nearest_that_satisfy_the_condition(limits):
    with jax.enable_x64(True):
        controller = lambda t, s, c: jnp.stack([s[0], -s[1], s[0] * s[1]])
        plain = driven(limits, controller)
        certificate = (
            ld.Certificate.control_lyapunov(square, 0.5)
            if limits is not None
            else ld.Certificate.exponential(square, 0.5)
        )
        whole = ld.enforce(plain, certificate, jnp.zeros(2))
        field = plain.vector_field
        random = np.random.default_rng(0)
        for state in random.uniform(-0.7, 0.7, (12, 2)):
            s = jnp.asarray(state)
            u, columns = field.input(0.0, s, None), np.asarray(field.actuation(0.0, s, None))
            row, most = 2 * state @ columns, -0.5 * float(square(s)) - float(2 * s @ field.drift(0.0, s, None))
            ends = [(None, None)] * 3
            if limits is not None:
                low, high = (np.broadcast_to(v(jnp.float64), 3) for v in (field.least, field.largest))
                ends = list(zip(low, high, strict=True))
            expected = field.drift(0.0, s, None) + columns @ nearest(np.asarray(u), row, most, ends)
            np.testing.assert_allclose(whole.velocity(0.0, s, None), expected, atol=1e-5)


def test_several_certificates_at_once():
    pytest.importorskip("qpax")
    with jax.enable_x64(True):
        both = ld.Certificate.exponential(square, 0.2) & ld.Certificate.barrier(lambda s: s[0] + 0.5, 1.0)
        plain = network()
        whole = ld.enforce(plain, both, jnp.zeros(3))
        states = jax.random.uniform(jax.random.key(0), (64, 3), minval=-0.4, maxval=1.0)
        velocities = jax.jit(jax.vmap(lambda s: whole.velocity(jnp.zeros(()), s, None)))(states)
        before = jax.vmap(lambda s: plain.velocity(jnp.zeros(()), s, None))(states)
        decay = 2 * jnp.sum(states * velocities, 1) + 0.2 * jnp.sum(states**2, 1)
        safe = -velocities[:, 0] - (states[:, 0] + 0.5)
        assert jnp.max(jnp.maximum(decay, safe)) <= 1e-3
        kept = (2 * jnp.sum(states * before, 1) + 0.2 * jnp.sum(states**2, 1) <= -1e-9) & (
            -before[:, 0] - (states[:, 0] + 0.5) <= -1e-9
        )
        assert kept.any()
        np.testing.assert_allclose(velocities[kept], before[kept], atol=1e-14)


def test_it_is_trained_through_and_holds_along_trajectories():
    certificate = ld.Certificate.exponential(POTENTIALS["quadratic"](), KAPPA)
    whole = ld.enforce(network(), certificate, jnp.zeros(3))
    start = jnp.asarray([1.0, -1.0, 0.5])

    @eqx.filter_value_and_grad
    def loss(whole):
        def step(s, _):
            return s + 0.05 * whole.velocity(jnp.zeros(()), s, None), s

        final, _ = jax.lax.scan(step, start, None, length=20)
        return jnp.sum((final - jnp.asarray([0.1, 0.0, 0.0])) ** 2)

    value, slopes = eqx.filter_jit(loss)(whole)
    leaves = [leaf for leaf in jax.tree.leaves(slopes) if eqx.is_inexact_array(leaf)]
    assert jnp.isfinite(value)
    assert all(jnp.isfinite(leaf).all() for leaf in leaves)
    assert any((leaf != 0).any() for leaf in leaves)
    program = ld.compile(whole, certificate, (start, None), objective=ld.MonteCarlo(ld.Cube(8)))
    solution = program.trajectory(start[None], saveat=diffrax.SaveAt(ts=jnp.linspace(0, 1, 21)))
    values = jax.vmap(POTENTIALS["quadratic"]())(solution.ys[0])
    assert (values <= values[0] * jnp.exp(-KAPPA * solution.ts[0]) * (1 + 1e-3)).all()


def test_what_cannot_be_enforced_is_named():
    certificate = ld.Certificate.exponential(square, KAPPA)
    with pytest.raises(ValueError, match="expected a System, got"):
        ld.enforce(None, certificate)
    with pytest.raises(ValueError, match="whose loss has a target"):
        ld.enforce(network(), ld.Certificate.exponential(ld.squared_error, 1))
    with pytest.raises(ValueError, match="certificates about dV/dt"):
        ld.enforce(driven(1.0), ld.Certificate.input_to_state(square, 1, 1))
    with pytest.raises(ValueError, match="depends on the state"):
        ld.enforce(network(), ld.Certificate.barrier(lambda s: jnp.asarray(1.0)), jnp.zeros(3))
    # A critical point of V that is no equilibrium: V = (|s|² - 1)² has a slope of 0 at 0, where V is 1.
    ring = ld.Certificate.exponential(lambda s: (square(s) - 1) ** 2, KAPPA)
    with pytest.raises(Exception, match="has no slope, nothing satisfies the certificate exponential"):
        ld.enforce(network(), ring).velocity(0.0, jnp.zeros(3), None).block_until_ready()
    weak = ld.enforce(driven(0.01), ld.Certificate.control_lyapunov(square, 5.0), jnp.zeros(2))
    with pytest.raises(Exception, match="no input inside of the limits satisfies"):
        weak.velocity(0.0, jnp.ones(2), None).block_until_ready()
