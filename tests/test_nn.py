"""Fields and encoders: shapes, what depends on what, and the invariance of H."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import lyapunov_dsl as ld

HALF_WIDTH = 1.3
# Only where rounding is not the point; see conftest.
quick = pytest.mark.usefixtures("quick")


@quick
def test_an_mlp_field(precision: Any, key: Any, strict: None) -> None:
    field = ld.nn.MLPField(3, 2, width=8, depth=3, key=key)
    state, context = jnp.linspace(-1, 1, 3), jnp.array([0.5, -0.5])
    out = field(0.5, state, context)
    assert out.shape == (3,)
    assert out.dtype == precision
    # Time, state and context all matter.
    assert not np.allclose(out, field(0.6, state, context))
    assert not np.allclose(out, field(0.5, state + 1, context))
    assert not np.allclose(out, field(0.5, state, context + 1))
    assert sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(field, eqx.is_array))) == (
        (3 + 1) * 8 + 8 + 2 * 8 + 2 * (8 * 8 + 8) + 8 * 3 + 3
    )


@quick
def test_the_activation_of_an_mlp_field(key: Any) -> None:
    relu = ld.nn.MLPField(3, 2, width=8, activation=jax.nn.relu, key=key)
    tanh = ld.nn.MLPField(3, 2, width=8, key=key)
    assert not np.allclose(relu(0.0, jnp.ones(3), jnp.ones(2)), tanh(0.0, jnp.ones(3), jnp.ones(2)))


def test_what_depends_on_the_context_alone_is_computed_once_for_shared_states(key: Any) -> None:
    """64 states and one context: the map of the context appears in the jaxpr without the batch axis."""
    field = ld.nn.MLPField(3, 2, width=8, key=key)
    jaxpr = jax.make_jaxpr(lambda states, context: jax.vmap(lambda s: field(0.0, s, context))(states))(
        jnp.zeros((64, 3)), jnp.zeros(2)
    )
    products = [eqn.outvars[0].aval.shape for eqn in jaxpr.jaxpr.eqns if eqn.primitive.name == "dot_general"]
    assert (8,) in products
    assert all(64 in shape for shape in products if shape != (8,))


@quick
def test_a_convolutional_field(precision: Any, key: Any, strict: None) -> None:
    field = ld.nn.ConvField(2, 3, width=4, key=key)
    state, context = jnp.ones((2, 5, 6)), jnp.ones((3, 5, 6))
    out = field(0.5, state, context)
    assert out.shape == (2, 5, 6)
    assert out.dtype == precision
    assert not np.allclose(out, field(0.6, state, context))
    assert not np.allclose(out, field(0.5, state, 2 * context))


@quick
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 7), (2, 1, 1)])
def test_a_convolutional_encoder(shape: tuple, precision: Any, key: Any) -> None:
    encoder = ld.nn.ConvEncoder(shape, 6, width=4, key=key)
    out = encoder(jax.random.normal(key, shape))
    assert out.shape == (6,)
    assert out.dtype == precision
    assert not np.allclose(out, encoder(jnp.zeros(shape)))


def test_an_invariant_field_is_its_formula(precision: Any, key: Any, strict: None) -> None:
    inner = ld.nn.MLPField(3, 2, width=8, key=key)
    center = np.array([0.1, 0.2, 0.3])
    half_width = np.array([1.0, 2.0, 3.0])
    field = ld.nn.InvariantField(inner, half_width, 4, center)
    state, context = jnp.linspace(-1, 1, 3), jnp.ones(2)
    expected = 4 * (center + half_width * np.tanh(inner(0.3, state, context)) - state)
    np.testing.assert_allclose(field(0.3, state, context), expected, rtol=1e-5)
    assert field(0.3, state, context).dtype == precision


@pytest.mark.parametrize("name", ["half_width", "rate"])
@pytest.mark.parametrize("value", [0, -1.0, float("nan"), np.array([1.0, 0.0])])
def test_an_invariant_field_wants_positive_numbers(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected positive"):
        ld.nn.InvariantField(jnp.negative, **{"half_width": 1.0, "rate": 1.0, name: value})


@given(st.integers(0, 2**31 - 1), st.floats(0.1, 100), st.floats(0.01, 50))
@settings(max_examples=50)
def test_the_field_points_inward_on_the_faces(seed: int, scale: float, rate: float) -> None:
    """What invariance of the flow rests on (Nagumo): on an upper face no coordinate grows, on a lower one none falls."""
    k1, k2 = jax.random.split(jax.random.key(seed))
    inner = lambda t, state, context: scale * jnp.sin(context @ state)
    field = ld.nn.InvariantField(inner, HALF_WIDTH, rate)
    state = HALF_WIDTH * jnp.sign(jax.random.normal(k1, (4,)))
    velocity = field(0.0, state, jax.random.normal(k2, (4, 4)))
    assert bool((velocity * jnp.sign(state) <= 0).all())


def split(x: Any) -> ld.Start:
    return ld.Start(x[:4], x[4:])


def squared(prediction: Any, target: Any) -> Any:
    return jnp.sum(prediction**2)


def violent_program(seed: int, dtype: Any, *, scale: float, rate: float, **options: Any) -> tuple[ld.Program, Any]:
    """A random invariant field with weights `scale` times those of an initialization, and states of H to start at,
    half of them corners."""
    key = jax.random.key(seed)
    enlarge = lambda leaf: scale * leaf if eqx.is_inexact_array(leaf) else leaf
    inner = jax.tree.map(enlarge, ld.nn.MLPField(4, 3, width=16, key=key))
    system = ld.System(
        split,
        ld.nn.InvariantField(inner, HALF_WIDTH, rate),
        domain=ld.Box(-HALF_WIDTH, HALF_WIDTH),
    )
    limit = jnp.asarray(HALF_WIDTH, dtype)
    x = jax.random.uniform(key, (64, 7), dtype, -limit, limit)
    x = x.at[:32, :4].set(limit * jnp.sign(x[:32, :4]))
    certificate = ld.Certificate.exponential(squared, 1)
    return ld.compile(system, certificate, (x[0], 0), **options), x


def excess(program: ld.Program, x: Any) -> float:
    """How far the states at 33 times leave H, in units of the rounding of the dtype."""
    times = jnp.linspace(0, 1, 33, dtype=x.dtype)
    solution = program.trajectory(x, saveat=diffrax.SaveAt(ts=times))
    assert bool((solution.result == diffrax.RESULTS.successful).all())
    worst = jnp.max(jax.vmap(jax.vmap(program.system.region.excess))(solution.ys))
    return float(worst / jnp.finfo(x.dtype).eps)


@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("rate", [1.0, 20.0])
def test_an_invariant_field_keeps_h_by_the_default_solver(scale: float, rate: float, precision: Any) -> None:
    for seed in range(2):
        program, x = violent_program(seed, precision, scale=scale, rate=rate)
        assert isinstance(program.solver.method, diffrax.Heun)
        assert program.solver.dt == pytest.approx(0.5 / rate)
        assert excess(program, x) <= 64


@pytest.mark.parametrize(("rate", "dt"), [(4.0, 0.25), (20.0, 0.05)])
@pytest.mark.parametrize("method", [diffrax.Euler(), diffrax.Heun()], ids=["Euler", "Heun"])
def test_euler_and_heun_keep_h_whatever_the_field(method: Any, rate: float, dt: float, precision: Any) -> None:
    """For K Δt <= 1 an Euler step is a convex combination of the state and g, and a Heun step one of Euler steps."""
    for seed in range(3):
        program, x = violent_program(seed, precision, scale=30.0, rate=rate, solver=ld.Solver(method, dt=dt))
        assert excess(program, x) <= 64


@pytest.mark.full
@quick
def test_tsit5_keeps_h_up_to_its_tolerance_only() -> None:
    """A documented fact: where g jumps about within a step, Tsit5 overshoots H. A report says so."""
    program, x = violent_program(0, jnp.float32, scale=30.0, rate=4.0, solver=diffrax.Tsit5())
    assert 1e-3 < excess(program, x) * np.finfo(np.float32).eps < 0.3
    assert ld.assess(program, (x, np.zeros(64, np.int32)), samples=64).claims["domain.left"].value > 0


class RK4(diffrax.AbstractERK):
    """The classical Runge-Kutta method, which diffrax does not have."""

    tableau = diffrax.ButcherTableau(
        c=np.array([0.5, 0.5, 1.0]),
        b_sol=np.array([1 / 6, 1 / 3, 1 / 3, 1 / 6]),
        b_error=np.zeros(4),
        a_lower=(np.array([0.5]), np.array([0.0, 0.5]), np.array([0.0, 0.0, 1.0])),
    )
    interpolation_cls = diffrax.ThirdOrderHermitePolynomialInterpolation.from_k

    def order(self, terms: Any) -> int:
        return 4


def test_rk4_with_large_steps_leaves_h() -> None:
    """A documented fact: at K Δt = 3 a step towards g = 0 multiplies the state by 1 - 3 + 9/2 - 27/6 + 81/24 = 1.375."""
    system = ld.System(
        vector_field=ld.nn.InvariantField(lambda t, s, c: 0 * s, HALF_WIDTH, 30.0),
        domain=ld.Box(-HALF_WIDTH, HALF_WIDTH),
    )
    certificate = ld.Certificate.exponential(squared, 1)
    x = jnp.full((1, 2), HALF_WIDTH)

    def final(solver: Any) -> Any:
        return ld.compile(system, certificate, (x[0], 0), solver=solver).predict(x)

    np.testing.assert_allclose(final(ld.Solver(RK4(), dt=0.1)), x * 1.375**10, rtol=1e-3)
    assert bool((final(ld.Solver(RK4(), dt=0.1)) > 20 * HALF_WIDTH).all())
    assert bool((jnp.abs(final(ld.Solver(diffrax.Euler(), dt=1 / 30))) <= HALF_WIDTH).all())
