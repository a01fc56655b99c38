"""What `compile` accepts, the defaults it fills in, and what a program can do."""

import inspect
import math
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

EULER = ld.Solver(diffrax.Euler(), dt=0.25)
X = np.linspace(-1, 1, 24, dtype=np.float32).reshape(6, 4)
Y = np.arange(6, dtype=np.int32)


class Encoder(eqx.Module):
    """Four numbers to η(0) = 0 with ten logits and three features."""

    layer: eqx.nn.Linear

    def __call__(self, x: Any) -> ld.Start:
        features = jnp.tanh(self.layer(x))
        return ld.Start(jnp.zeros(10, features.dtype), features)


def logits_system(key: Any, **changes: Any) -> ld.System:
    parts = {"input": Encoder(eqx.nn.Linear(4, 3, key=key)), "vector_field": ld.nn.MLPField(10, 3, width=8, key=key)}
    return ld.System(**{**parts, **changes})


def exponential() -> ld.Certificate:
    return ld.Certificate.exponential(loss=ld.cross_entropy, kappa=2)


def oscillator(**changes: Any) -> ld.System:
    """A state of two parts, {'q', 'p'}, that x is the initial value of."""
    field = lambda t, s, c: {"q": s["p"], "p": -s["q"] - s["p"]}
    return ld.System(vector_field=field, domain=ld.Product({"q": ld.Box(-4, 4), "p": ld.Ball(0, 4)}), **changes)


def jitted_loss(program: ld.Program, x: Any, y: Any, key: Any) -> Any:
    return eqx.filter_jit(lambda p, x, y: p.loss(x, y, key=key))(program, x, y)


def test_the_certificate_of_the_readme_word_for_word() -> None:
    certificate = ld.Certificate.exponential(loss=ld.cross_entropy, kappa=2)
    assert isinstance(certificate, ld.Exponential)
    assert certificate.loss is ld.cross_entropy
    assert float(certificate.kappa) == 2.0
    assert list(inspect.signature(ld.Certificate.exponential).parameters) == ["loss", "kappa"]


@pytest.mark.parametrize(
    "example",
    [
        (X[0], Y[0]),
        (X[0], 3),
        (X[0], np.int64(3)),
        [X[0], np.int32(3)],
        (jnp.asarray(X[0]), jnp.asarray(3)),
        (jax.ShapeDtypeStruct((4,), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)),
        (X[0].astype(np.float64), np.uint8(3)),
    ],
    ids=["numpy", "int", "numpy scalar", "list", "jax", "struct", "other precision"],
)
def test_examples_of_every_kind(example: Any, key: Any) -> None:
    program = ld.compile(logits_system(key), exponential(), example)
    keyword = ld.compile(system=logits_system(key), certificate=exponential(), example=example)
    assert program.declaration == keyword.declaration
    assert hash(program.declaration) == hash(keyword.declaration)
    assert program.declaration.x == jax.ShapeDtypeStruct((4,), jnp.float32)
    assert program.declaration.y.shape == ()
    assert program.declaration.state == jax.ShapeDtypeStruct((10,), jnp.float32)
    assert program.declaration.prediction == jax.ShapeDtypeStruct((10,), jnp.float32)


def test_nothing_is_computed_by_compile(key: Any) -> None:
    """Only abstract values reach the user's code, so that compiling costs no forward pass."""
    seen = []
    field = lambda t, s, c: seen.append(isinstance(s, jax.core.Tracer)) or -s
    ld.compile(logits_system(key, vector_field=field), exponential(), (X[0], Y[0]))
    assert seen
    assert all(seen)


@pytest.mark.parametrize(("kappa", "horizon"), [(2, 1.0), (0.5, 1.0), (3.0, 2.0)])
def test_the_default_domain_is_the_cube_of_eq_49(kappa: Any, horizon: float, key: Any) -> None:
    certificate = ld.Certificate.exponential(ld.cross_entropy, kappa)
    system = ld.compile(logits_system(key, horizon=horizon), certificate, (X[0], Y[0])).system
    assert isinstance(system.domain, ld.Box)
    half_width = float(system.domain.upper())
    assert float(system.domain.lower()) == -half_width
    # V is exp(-κT) at the corner that is best for class 3.
    corner = np.full(10, -half_width)
    corner[3] = half_width
    assert math.log(np.exp(corner - corner[3]).sum()) == pytest.approx(math.exp(-kappa * horizon), rel=1e-6)


def test_a_truncated_loss_has_the_same_default_domain(key: Any) -> None:
    plain = ld.compile(logits_system(key), exponential(), (X[0], Y[0]))
    truncated = ld.Certificate.exponential(ld.truncated(ld.cross_entropy, 0.01), 2)
    assert ld.compile(logits_system(key), truncated, (X[0], Y[0])).system.region.upper() == plain.system.region.upper()


def test_a_declared_domain_stays(key: Any) -> None:
    program = ld.compile(logits_system(key, domain=ld.Ball(0, 7)), exponential(), (X[0], Y[0]))
    assert isinstance(program.system.domain, ld.Ball)
    assert float(program.system.domain.radius()) == 7


def test_defaults(key: Any) -> None:
    program = ld.compile(logits_system(key), exponential(), (X[0], Y[0]))
    assert isinstance(program.objective, ld.MonteCarlo)
    assert isinstance(program.objective.measure, ld.Trajectory)
    assert isinstance(program.solver.method, diffrax.Tsit5)
    assert program.system.horizon == 1.0
    bare = ld.compile(logits_system(key), exponential(), (X[0], Y[0]), solver=diffrax.Dopri5())
    assert isinstance(bare.solver.method, diffrax.Dopri5)
    layers = ld.DiscreteSystem(lambda x: ld.Start(x), [lambda s, c: 0.5 * s])
    assert isinstance(ld.compile(layers, exponential(), (X[0], Y[0])).objective, ld.PathIntegral)


def test_the_summary(key: Any) -> None:
    system = logits_system(key, horizon=2.0, domain=ld.Box(-3, 3), readout=jax.nn.relu)
    certificate = exponential() & ld.Certificate.barrier(lambda s: 9 - jnp.sum(s**2))
    program = ld.compile(system, certificate, (X[0], Y[0]), objective=ld.MonteCarlo(ld.Cube(32)), solver=EULER)
    lines = dict(line.split(maxsplit=1) for line in program.summary().splitlines())
    # 4·3 + 3 of the encoder, and (11 + 1)·8 + 3·8 + 8·8 + 8 + 8·10 + 10 of the field.
    count = 15 + 96 + 24 + 72 + 90
    assert lines.pop("objective").startswith("MonteCarlo(")
    assert lines.pop("solver").startswith("Solver(method=Euler(")
    assert lines == {
        "system": "System, float32[4] -> state float32[10] -> float32[10]",
        "horizon": "2",
        "certificate": "exponential & barrier",
        "domain": "Box(lower=-3., upper=3.)",
        "smoothness": "piecewise smooth (max)",
        "trainable": f"{count} parameters",
    }
    assert str(program) == program.summary()


def test_a_state_of_several_parts(key: Any, strict: None) -> None:
    x = {"q": jnp.linspace(-1, 1, 6).reshape(3, 2), "p": jnp.ones((3, 2))}
    one = jax.tree.map(lambda leaf: leaf[0], x)
    certificate = ld.Certificate.exponential(ld.squared_error, 0.5)
    program = ld.compile(oscillator(), certificate, (one, one), objective=ld.PathIntegral(3), solver=EULER)
    out = program.predict(x)
    assert jax.tree.map(jnp.shape, out) == jax.tree.map(jnp.shape, x)
    assert float(jitted_loss(program, x, out, key)) >= 0
    assert program.error(x, out) == pytest.approx(0, abs=1e-10)  # V at T of the predictions themselves
    # A whole number of Euler steps by hand.
    q, p = np.asarray(x["q"]), np.asarray(x["p"])
    for _ in range(4):
        q, p = q + 0.25 * p, p + 0.25 * (-q - p)
    np.testing.assert_allclose(out["q"], q, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(out["p"], p, rtol=1e-5, atol=1e-6)


def test_a_state_of_channels_height_and_width(key: Any) -> None:
    k1, k2 = jax.random.split(key)
    readout = eqx.nn.Linear(2, 3, key=k2)
    system = ld.System(
        lambda image: ld.Start(jnp.zeros((2, 4, 4)), image),
        ld.nn.ConvField(2, 1, width=4, key=k1),
        lambda state: readout(state.mean(axis=(1, 2))),
        domain=ld.Box(-2, 2),
    )
    images = jax.random.normal(key, (5, 1, 4, 4))
    measure = ld.Mixture(ld.Trajectory(2), ld.Cube(2), ld.Sphere(2))
    program = ld.compile(system, exponential(), (images[0], 0), objective=ld.MonteCarlo(measure), solver=EULER)
    assert program.declaration.state.shape == (2, 4, 4)
    assert program.predict(images).shape == (5, 3)
    assert math.isfinite(float(jitted_loss(program, images, jnp.arange(5) % 3, key)))


def test_a_barrier_needs_no_targets(key: Any) -> None:
    """x' = -x stays in the unit ball; h = 1 - |x|², and the error is the mean of V = -h at the end."""
    system = ld.System(vector_field=lambda t, s, c: -s, domain=ld.Ball(0, 1))
    certificate = ld.Certificate.barrier(lambda s: 1 - jnp.sum(s**2), alpha=1)
    program = ld.compile(system, certificate, (jnp.zeros(2), None))
    x = jnp.array([[0.5, 0.0], [0.0, -1.0]])
    assert float(jitted_loss(program, x, None, key)) == 0  # dh/dt = 2 |x|² >= -h on the ball
    end = math.exp(-2) * np.array([0.25, 1.0])
    np.testing.assert_allclose(program.error(x), np.mean(end - 1), rtol=1e-3)
    values = program.potential(x, times=[0.0, 1.0])["barrier"]
    np.testing.assert_allclose(values, np.stack([[0.25 - 1, 0.0], end - 1], axis=1), atol=1e-3)


@pytest.mark.parametrize("wrong", [1.0, -1.0])
def test_the_loss_is_positive_exactly_where_the_barrier_fails(wrong: float, key: Any) -> None:
    system = ld.System(vector_field=lambda t, s, c: wrong * s, domain=ld.Ball(0, 1))
    certificate = ld.Certificate.barrier(lambda s: 1 - jnp.sum(s**2))
    program = ld.compile(system, certificate, (jnp.zeros(2), None), objective=ld.MonteCarlo(ld.Cube(32)))
    assert (float(jitted_loss(program, jnp.ones((2, 2)), None, key)) > 0) == (wrong > 0)


def test_a_hand_written_optax_loop(key: Any) -> None:
    program = ld.compile(logits_system(key), exponential(), (X[0], Y[0]), objective=ld.PathIntegral(2))
    optimizer = optax.adam(1e-2)
    moments = optimizer.init(eqx.filter(program, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(program: ld.Program, moments: Any, key: Any) -> Any:
        loss, grads = eqx.filter_value_and_grad(lambda p: p.loss(X, Y, key=key))(program)
        updates, moments = optimizer.update(grads, moments)
        return eqx.apply_updates(program, updates), moments, loss

    losses = []
    for i in range(60):
        program, moments, loss = step(program, moments, jax.random.fold_in(key, i))
        losses.append(float(loss))
    assert losses[-1] < 0.5 * losses[0]


def test_all_objectives_in_both_precisions(precision: Any, key: Any, strict: None) -> None:
    measure = ld.Mixture(ld.Trajectory(2), ld.Cube(4), ld.Sphere(4), weights=(2, 1, 1))
    objective = ld.MonteCarlo(measure) + 0.5 * ld.PathIntegral(2) + 2 * ld.EndToEnd(EULER)
    program = ld.compile(logits_system(key), exponential(), (X[0].astype(precision), 0), objective=objective)
    loss = jitted_loss(program, X.astype(precision), Y, key)
    assert loss.shape == ()
    assert loss.dtype == precision
    assert float(loss) > 0
    assert program.predict(X.astype(precision), stop=0.5).dtype == precision


def test_a_float32_network_stays_float32_under_x64(key: Any, strict: None) -> None:
    with jax.enable_x64(True):
        system = jax.tree.map(
            lambda leaf: leaf.astype(jnp.float32) if eqx.is_inexact_array(leaf) else leaf, logits_system(key)
        )
        program = ld.compile(system, exponential(), (X[0], 0), objective=ld.PathIntegral(2), solver=EULER)
        assert program.declaration.state.dtype == jnp.float32
        assert program.predict(X).dtype == jnp.float32
        assert jitted_loss(program, X, Y, key).dtype == jnp.float32


class Noisy(eqx.Module):
    """The start, the field or the readout of a system that adds noise in training."""

    kind: str = eqx.field(static=True)

    def noise(self, key: Any) -> Any:
        return jnp.zeros(2) if key is None else jax.random.normal(key, (2,))

    def __call__(self, *args: Any, key: Any) -> Any:
        if self.kind == "input":
            return ld.Start(jnp.zeros(2), self.noise(key))
        if self.kind == "vector_field":
            return self.noise(key) + 0 * args[1]
        return args[0] + self.noise(key)


def noisy_program(**parts: Any) -> ld.Program:
    """V(T) is the squared length of what the readout returns."""
    plain = {"input": lambda x: ld.Start(jnp.zeros(2)), "vector_field": lambda t, s, c: jnp.zeros(2)}
    system = ld.System(**{**plain, **parts}, domain=ld.Box(-9, 9))
    certificate = ld.Certificate.exponential(lambda prediction, target: jnp.sum(prediction**2), 1)
    return ld.compile(system, certificate, (X[0], 0), objective=ld.EndToEnd(EULER), solver=EULER)


def test_a_key_for_each_example_and_the_same_along_a_trajectory(key: Any) -> None:
    """With one noise for all of the four Euler steps, the final state is that noise; with a new one it is a mean."""
    program = noisy_program(vector_field=Noisy("vector_field"))
    noise = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), (2,)))(jnp.arange(6))
    loss = float(jitted_loss(program, X, Y, key))
    assert loss == pytest.approx(float(jnp.mean(jnp.sum(noise**2, axis=1))), rel=1e-5)
    assert float(jnp.std(noise)) > 0.1
    assert float(jitted_loss(program, X, Y, jax.random.key(1))) != pytest.approx(loss, rel=1e-3)


def test_the_key_is_the_same_in_the_input_the_field_and_the_readout(key: Any) -> None:
    program = noisy_program(
        input=Noisy("input"),
        vector_field=lambda t, s, context: -context,
        readout=Noisy("readout"),
    )
    assert float(jitted_loss(program, X, Y, key)) == pytest.approx(0, abs=1e-10)


def test_no_key_in_inference(key: Any) -> None:
    program = noisy_program(input=Noisy("input"), vector_field=Noisy("vector_field"), readout=Noisy("readout"))
    assert not program.predict(X).any()
    assert not program.trajectory(X, saveat=diffrax.SaveAt(ts=[0.5, 1.0])).ys.any()
    assert program.error(X, Y) == 0


class WithDropout(eqx.Module):
    """A field with a dropout layer."""

    layer: eqx.nn.Linear
    dropout: eqx.nn.Dropout

    def __call__(self, t: Any, state: Any, context: Any, *, key: Any) -> Any:
        return self.dropout(jnp.tanh(self.layer(context)), key=key) - state


@pytest.mark.parametrize(
    "objective", [ld.MonteCarlo(ld.Cube(4)), ld.PathIntegral(2)], ids=["MonteCarlo", "PathIntegral"]
)
def test_dropout_is_random_in_training_and_off_in_inference(objective: Any, key: Any) -> None:
    field = WithDropout(eqx.nn.Linear(3, 10, key=key), eqx.nn.Dropout(0.5))
    program = ld.compile(logits_system(key, vector_field=field), exponential(), (X[0], 0), objective=objective)
    loss = eqx.filter_jit(lambda program, key: program.loss(X, Y, key=key))
    # The Cube's own samples are random too, so the dropout is told apart by turning it off.
    assert float(loss(program, key)) == float(loss(program, key))
    assert float(loss(program, key)) != pytest.approx(float(loss(eqx.nn.inference_mode(program), key)), rel=1e-4)
    off = eqx.tree_at(lambda p: p.system.vector_field.dropout.p, program, 0.0)
    np.testing.assert_array_equal(program.predict(X), program.predict(X))
    np.testing.assert_array_equal(program.predict(X), off.predict(X))


def test_a_program_is_a_pytree_that_jit_takes(key: Any) -> None:
    program = ld.compile(logits_system(key), exponential(), (X[0], Y[0]), solver=EULER)
    leaves, structure = jax.tree.flatten(program)
    again = jax.tree.unflatten(structure, leaves)
    np.testing.assert_array_equal(again.predict(X), program.predict(X))
    assert eqx.tree_equal(again, program)
