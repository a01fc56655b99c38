"""Constants stay bit for bit what they are, under any Optax loop, and can be changed without recompiling."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lyapunov_dsl as ld

pytestmark = pytest.mark.usefixtures("quick")

X = np.linspace(-1, 1, 32, dtype=np.float32).reshape(8, 4)
Y = np.arange(8, dtype=np.int32) % 4
# What is awkward to represent shows every rounding.
NUMBERS = (0.1, 1 / 3, 3.0000001, 1e-30, 12345.678)


class Encoder(eqx.Module):
    layer: eqx.nn.Linear

    def __call__(self, x: Any) -> ld.Start:
        return ld.Start(jnp.zeros(4, x.dtype), self.layer(x))


def program_with_every_constant(key: Any, kappa: float = 1.1) -> ld.Program:
    """Rate, truncation level, barrier rate, domain, measures, and the invariant field's half-width, rate and center."""
    k1, k2 = jax.random.split(key)
    center = np.array([0.1, 0.2, 0.3, -0.1], np.float32)
    field = ld.nn.InvariantField(ld.nn.MLPField(4, 3, width=8, key=k1), 2.7, 3.3, center)
    system = ld.System(Encoder(eqx.nn.Linear(4, 3, key=k2)), field, domain=ld.Box(center - 2.7, center + 2.7))
    loss = ld.truncated(ld.cross_entropy, 0.01)
    certificate = ld.Certificate.exponential(loss, kappa) & ld.Certificate.barrier(lambda s: 9.3 - jnp.sum(s**2), 0.7)
    measure = ld.Mixture(ld.Cube(2, half_width=1.9), ld.Sphere(2, radius=2.3))
    return ld.compile(system, certificate, (X[0], 0), objective=ld.MonteCarlo(measure))


def constants_of(program: Any) -> list[ld.Constant]:
    is_constant = lambda node: isinstance(node, ld.Constant)
    return [leaf for leaf in jax.tree.leaves(program, is_leaf=is_constant) if is_constant(leaf)]


def bits_of(program: Any) -> list[bytes]:
    return [np.asarray(constant.bits).tobytes() for constant in constants_of(program)]


def test_the_program_has_the_constants_that_the_next_test_is_about(key: Any) -> None:
    values = {round(float(np.ravel(c())[0]), 4) for c in constants_of(program_with_every_constant(key))}
    assert values == {1.1, 0.01, 0.7, -2.6, 2.8, -1.9, 1.9, 2.3, 2.7, 3.3, 0.1}


def test_fit_moves_no_constant(key: Any) -> None:
    program = program_with_every_constant(key)
    optimizer = optax.adamw(1e-2, weight_decay=10.0)
    result = ld.fit(program, (X, Y), optimizer=optimizer, epochs=50, batch_size=4, key=key, progress=False)
    assert result.history[-1]["step"] == 100
    assert bits_of(result.program) == bits_of(program)
    assert not eqx.tree_equal(result.program.system, program.system)


def test_a_naive_loop_moves_no_constant(key: Any) -> None:
    """The loop of every Equinox tutorial: weight decay moves all inexact arrays, gradient or not."""
    program = program_with_every_constant(key)
    before = bits_of(program)
    optimizer = optax.adamw(1e-2, weight_decay=10.0)
    moments = optimizer.init(eqx.filter(program, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(program: Any, moments: Any, key: Any) -> Any:
        grads = eqx.filter_grad(lambda p: p.loss(X, Y, key=key))(program)
        updates, moments = optimizer.update(grads, moments, eqx.filter(program, eqx.is_inexact_array))
        return eqx.apply_updates(program, updates), moments

    weights = program.system.input.layer.weight
    for i in range(100):
        program, moments = step(program, moments, jax.random.fold_in(key, i))
    assert bits_of(program) == before
    # (1 - 0.1)^100 of the old weight is left.
    assert float(jnp.max(jnp.abs(weights))) > 0.1
    assert float(jnp.max(jnp.abs(program.system.input.layer.weight - weights))) > 0.1


def test_trainable_is_the_inexact_arrays_of_the_system_and_of_learned_potentials(key: Any) -> None:
    program = program_with_every_constant(key)
    chosen, rest = eqx.partition(program, ld.trainable(program))
    inner = program.system.vector_field.inner
    expected = [program.system.input.layer.weight, program.system.input.layer.bias, *jax.tree.leaves(inner)]
    assert sum(leaf.size for leaf in jax.tree.leaves(chosen)) == sum(
        leaf.size for leaf in expected if eqx.is_inexact_array(leaf)
    )
    assert not any(eqx.is_inexact_array(leaf) for leaf in jax.tree.leaves(rest))
    assert eqx.tree_equal(eqx.combine(chosen, rest), program)

    learned = eqx.nn.MLP(2, "scalar", 4, 1, key=key)
    system = ld.System(vector_field=lambda t, s, c: -s, domain=ld.Ball(0, 1))
    barrier = ld.compile(system, ld.Certificate.barrier(learned), (jnp.zeros(2), None))
    filtered = eqx.filter(barrier, ld.trainable(barrier))
    assert sum(leaf.size for leaf in jax.tree.leaves(filtered)) == 2 * 4 + 4 + 4 + 1


def test_arrays_of_the_objective_are_not_trainable(key: Any) -> None:
    class Weighted(ld.Objective):
        scale: Any

        def check(self, condition: Any, start: Any) -> None:
            pass

        def __call__(self, condition: Any, x: Any, y: Any, *, key: Any) -> Any:
            return self.scale * jnp.sum(condition.system.input.layer.weight)

    program = program_with_every_constant(key)
    program = ld.compile(program.system, program.certificate, (X[0], 0), objective=Weighted(jnp.ones(())))
    assert ld.trainable(program).objective.scale is False
    result = ld.fit(program, (X, Y), optimizer=optax.sgd(1.0), epochs=1, key=key, progress=False)
    assert float(result.program.objective.scale) == 1.0


def test_sweeping_constants_does_not_recompile(key: Any, compilations: list) -> None:
    """The field counts how often it is traced; the values follow the constants all the same."""
    traces = []

    def field(t: Any, state: Any, context: Any) -> Any:
        traces.append(1)
        return -state

    def program(kappa: Any, half_width: float, level: float) -> ld.Program:
        system = ld.System(vector_field=field, domain=ld.Box(-half_width, half_width))
        certificate = ld.Certificate.exponential(ld.truncated(ld.squared_error, level), kappa)
        return ld.compile(system, certificate, (X[0], X[0]), objective=ld.MonteCarlo(ld.Cube(4)), solver=euler)

    euler = ld.Solver(diffrax.Euler(), dt=0.5)
    loss = eqx.filter_jit(lambda program: program.loss(X, 0 * X, key=key))
    first = program(1.0, 1.0, 0.01)
    values = [float(loss(first))]
    first.predict(X)
    programs = [program(kappa, 1.0, 0.01) for kappa in (3, np.float32(4.5), jnp.asarray(5.25))]
    programs += [program(5.25, 2.0, 0.01), program(5.25, 2.0, 0.5)]
    # `compile` looked at the field abstractly; from here on nobody may.
    traces.clear()
    compilations.clear()
    for p in programs:
        values.append(float(loss(p)))
        p.predict(X)
    assert not traces
    assert not compilations
    assert len(set(values)) == len(values)


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float32])
@pytest.mark.parametrize("value", [*NUMBERS, -0.0, float("inf")])
def test_a_constant_keeps_its_bits_and_its_dtype(value: float, dtype: Any) -> None:
    given = jnp.asarray(value, dtype)
    constant = ld.Constant(given)
    assert constant().dtype == dtype
    assert np.asarray(constant()).tobytes() == np.asarray(given).tobytes()
    assert not eqx.is_inexact_array(constant.bits)
    assert constant(jnp.float32).dtype == jnp.float32


def test_a_float64_constant_keeps_its_bits() -> None:
    with jax.enable_x64(True):
        for value in NUMBERS:
            assert float(ld.Constant(value)()) == value
            assert ld.Constant(value)().dtype == jnp.float64
            assert float(ld.Constant(value)(jnp.float32)) == float(np.float32(value))


def test_integers_and_python_floats_take_the_default_dtype(precision: Any) -> None:
    for value in (2, 2.0, np.int8(2), np.arange(3), True):
        assert ld.Constant(value)().dtype == precision
        np.testing.assert_array_equal(ld.Constant(value)(), np.asarray(value))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_constants_under_jit_vmap_and_grad(dtype: Any) -> None:
    constant = ld.Constant(np.array([0.1, 0.3, 1 / 3], dtype))
    expected = np.array([0.1, 0.3, 1 / 3], dtype)
    np.testing.assert_array_equal(jax.jit(lambda c: c())(constant), expected)
    np.testing.assert_array_equal(jax.vmap(lambda c: 2 * c())(constant), 2 * expected)
    np.testing.assert_array_equal(jax.vmap(lambda _: constant())(jnp.arange(2)), np.stack([expected, expected]))
    made = jax.jit(lambda v: ld.Constant(v))(jnp.asarray(expected))
    np.testing.assert_array_equal(made(), expected)
    # It is a constant of the derivative, by any route.
    x = jnp.asarray(2, dtype)
    np.testing.assert_allclose(jax.grad(lambda x: jnp.sum(constant() * x**2))(x), 4 * expected.sum(), rtol=1e-2)
    grads = eqx.filter_grad(lambda pair: jnp.sum(pair[0]() * pair[1]))((constant, x))
    assert grads[0].bits is None
    np.testing.assert_allclose(grads[1], expected.sum(), rtol=1e-2)
    primal, tangent = jax.jvp(lambda x: constant() * x, (x,), (jnp.ones_like(x),))
    np.testing.assert_array_equal(tangent, expected)
    assert primal.dtype == dtype


class Damped(eqx.Module):
    """A field with something to train."""

    rate: Any

    def __call__(self, t: Any, state: Any, context: Any) -> Any:
        return -self.rate * state


def test_a_second_fit_with_another_rate_does_not_recompile(key: Any, compilations: list) -> None:
    system = ld.System(vector_field=Damped(jnp.ones(2)), domain=ld.Box(-1, 1))
    optimizer, x = optax.adam(1e-3), jnp.ones((8, 2))

    def run(kappa: float) -> None:
        certificate = ld.Certificate.exponential(ld.squared_error, kappa)
        program = ld.compile(system, certificate, (x[0], x[0]))
        ld.fit(program, (x, x), optimizer=optimizer, epochs=1, batch_size=4, key=key, progress=False)

    run(1.0)
    compilations.clear()
    run(2.0)
    assert not compilations
