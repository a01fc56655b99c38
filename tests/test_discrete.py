"""Discrete systems: which steps are dynamics, the potential across changes of shape, inference and training."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lyapunov_dsl as ld

pytestmark = pytest.mark.usefixtures("quick")

_RNG = np.random.default_rng(0)
# Two steps that keep the shape (of 4 and of 3 numbers) and, between them, one that does not.
A, B, C, R = (_RNG.normal(size=shape).astype(np.float32) / 2 for shape in ((4, 4), (3, 4), (3, 3), (2, 3)))
X = _RNG.normal(size=(5, 4)).astype(np.float32)
Y = _RNG.normal(size=(5, 2)).astype(np.float32)


class Map(eqx.Module):
    """state -> matrix · state, as a step or a readout."""

    matrix: Any

    def __call__(self, state: Any, context: Any = None) -> Any:
        return self.matrix @ state


def chain(*matrices: Any) -> tuple[Map, ...]:
    return tuple(Map(jnp.asarray(m)) for m in matrices)


def start_with(x: Any) -> ld.Start:
    return ld.Start(x)


def system(*matrices: Any, horizon: float = 1.0) -> ld.DiscreteSystem:
    return ld.DiscreteSystem(start_with, chain(*matrices), Map(jnp.asarray(R)), horizon=horizon)


def squared(kappa: float = 2.0) -> ld.Certificate:
    return ld.Certificate.exponential(ld.squared_error, kappa)


def program(*matrices: Any, kappa: float = 2.0, horizon: float = 1.0, **options: Any) -> ld.Program:
    return ld.compile(system(*matrices, horizon=horizon), squared(kappa), (X[0], Y[0]), **options)


def potentials(*outputs: np.ndarray) -> np.ndarray:
    """V at each of the predictions, shape (batch, number of predictions)."""
    return np.stack([np.sum((out - Y) ** 2, axis=1) for out in outputs], axis=1)


# The predictions at the three layers of A, B, C: changes of coordinates still to come are made, dynamics are not.
LAYERS = (X @ B.T @ R.T, X @ A.T @ B.T @ R.T, X @ A.T @ B.T @ C.T @ R.T)


def loss_of(p: ld.Program, key: Any) -> float:
    return float(eqx.filter_jit(lambda p: p.loss(X, Y, key=key))(p))


def path(p: ld.Program, x: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    """Times and V along the layers for one example."""
    start = p.system.start(jnp.asarray(x))
    times, values = p.condition.path_values(start, y, None, solver=p.solver.method, steps=1)
    return np.asarray(times), np.asarray(values["exponential"])


def test_the_trajectory_is_the_states_between_the_dynamics() -> None:
    states = program(A, B, C).trajectory(X)
    assert [state.shape for state in states] == [(5, 4), (5, 3), (5, 3)]
    for state, expected in zip(states, (X, X @ A.T @ B.T, X @ A.T @ B.T @ C.T), strict=True):
        np.testing.assert_allclose(state, expected, rtol=1e-4, atol=1e-5)


def test_a_change_of_shape_takes_no_time() -> None:
    """An embedding first, a projection last, two changes in a row: two dynamic steps, of half the horizon each."""
    up, down = np.eye(5, 4, dtype=np.float32), np.eye(3, 5, dtype=np.float32)
    wide = np.eye(5, dtype=np.float32) / 2
    p = ld.compile(ld.DiscreteSystem(start_with, chain(up, wide, wide, down, R), horizon=3.0), squared(), (X[0], Y[0]))
    assert [state.shape for state in p.trajectory(X)] == [(5, 5), (5, 5), (5, 2)]
    np.testing.assert_allclose(path(p, X[0], Y[0])[0], [0, 1.5, 3])


def test_the_potential_at_every_layer(strict: None) -> None:
    p = program(A, B, C, horizon=3.0)
    for i in range(5):
        times, values = path(p, jnp.asarray(X[i]), jnp.asarray(Y[i]))
        np.testing.assert_allclose(times, [0.0, 1.5, 3.0])
        np.testing.assert_allclose(values, potentials(*LAYERS)[i], rtol=1e-4)


def test_the_potential_is_equal_before_and_after_a_change_of_shape() -> None:
    """A system that ends, begins or goes on at the change: V there is one number."""
    at_change = ld.compile(system(A, B), squared(), (X[0], Y[0]))
    before = path(at_change, X[0], Y[0])[1][-1]
    middle = path(program(A, B, C), X[0], Y[0])[1][1]
    moved = ld.compile(ld.DiscreteSystem(start_with, chain(C), Map(jnp.asarray(R))), squared(), (X[0, :3], Y[0]))
    after = path(moved, jnp.asarray(B @ A @ X[0]), Y[0])[1][0]
    assert before == pytest.approx(middle, rel=1e-5)
    assert after == pytest.approx(middle, rel=1e-5)
    assert middle == pytest.approx(potentials(*LAYERS)[0, 1], rel=1e-4)


def test_predictions_at_the_end_and_at_a_time() -> None:
    p = program(A, B, C, horizon=2.0)
    np.testing.assert_allclose(p.predict(X), LAYERS[2], rtol=1e-4, atol=1e-5)
    for stop, layer in ((0.01, 0), (0.99, 0), (1.0, 1), (1, 1), (1.5, 1), (2.0, 2)):
        np.testing.assert_allclose(p.predict(X, stop=stop), LAYERS[layer], rtol=1e-4, atol=1e-5, err_msg=str(stop))


def test_decimal_times_reach_their_layer() -> None:
    """Ten steps to the horizon 0.3, where 0.03 / 0.3 · 10 is 0.99999994 in float32."""
    half = np.eye(4, dtype=np.float32) / 2
    p = ld.compile(ld.DiscreteSystem(start_with, chain(*[half] * 10), horizon=0.3), squared(), (X[0], X[0]))
    for i in range(1, 11):
        np.testing.assert_allclose(p.predict(X, stop=0.3 * i / 10), X / 2**i, rtol=1e-6)


def test_another_stop_does_not_recompile(compilations: list) -> None:
    p = program(A, C @ B)
    p.predict(X, stop=0.5)
    compilations.clear()
    for stop in (0.1, 0.7, 1.0):
        p.predict(X, stop=stop)
    assert not compilations


def test_derivatives_pass_through_predict() -> None:
    jacobian = jax.jacrev(lambda x: program(A, B, C).predict(x[None])[0])(jnp.asarray(X[0]))
    np.testing.assert_allclose(jacobian, R @ C @ B @ A, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kappa", [0.5, 2.0, 6.0])
def test_the_path_integral_is_eq_16(kappa: float, key: Any) -> None:
    """With the decay per step κ_d = 1 - exp(-κ/2) for two dynamic steps over [0, 1]."""
    values = potentials(*LAYERS)
    decay = ld.decay_from_rate(kappa, 0.5)
    hinges = np.maximum(0, values[:, 1:] - (1 - decay) * values[:, :-1])
    assert loss_of(program(A, B, C, kappa=kappa), key) == pytest.approx(hinges.sum(axis=1).mean(), rel=1e-4)
    assert hinges.max() > 0


def test_the_path_integral_is_zero_where_every_step_decays_fast_enough(key: Any) -> None:
    half = np.eye(4, dtype=np.float32) / 2
    layers = ld.DiscreteSystem(start_with, chain(half, half))
    # V falls by a factor of 4 = exp(2 log 2) in half the horizon: a rate of 4 log 2.
    for kappa, kept in ((4 * math.log(2) - 0.01, True), (4 * math.log(2) + 0.01, False)):
        p = ld.compile(layers, squared(kappa), (X[0], X[0]))
        loss = float(eqx.filter_jit(lambda p: p.loss(X, 0 * X, key=jax.random.key(0)))(p))
        assert (loss == 0) == kept


def test_end_to_end_is_the_potential_of_the_last_layer(key: Any) -> None:
    expected = potentials(*LAYERS)[:, -1].mean()
    p = program(A, B, C, objective=ld.EndToEnd())
    assert loss_of(p, key) == pytest.approx(expected, rel=1e-4)
    assert p.error(X, Y) == pytest.approx(expected, rel=1e-4)
    assert loss_of(program(A, B, C, objective=ld.PathIntegral() + 0.5 * ld.EndToEnd()), key) == pytest.approx(
        loss_of(program(A, B, C), key) + 0.5 * expected, rel=1e-4
    )


def test_the_error_without_a_loss_is_v_at_the_end() -> None:
    certificate = ld.Certificate.barrier(lambda s: 1 - jnp.sum(s**2))
    half = np.eye(4, dtype=np.float32) / 2
    p = ld.compile(ld.DiscreteSystem(start_with, chain(half, half)), certificate, (X[0], None))
    for stop, factor in ((None, 16), (0.5, 4), (0.1, 1)):
        assert p.error(X, stop=stop) == pytest.approx(np.mean(np.sum(X**2, axis=1) / factor - 1), rel=1e-4)


def test_a_step_sees_the_context_and_the_key_of_the_example(key: Any) -> None:
    """In training every step of an example adds the same noise, and takes it away again by the context; in inference
    there is none."""

    class Noisy(eqx.Module):
        sign: float

        def __call__(self, state: Any, context: Any, *, key: Any) -> Any:
            noise = 0.0 if key is None else jax.random.normal(key, state.shape)
            return state + self.sign * noise + context

    layers = ld.DiscreteSystem(lambda x: ld.Start(x, x), [Noisy(1.0), Noisy(-1.0)])
    p = ld.compile(layers, squared(), (X[0], X[0]), objective=ld.EndToEnd())
    np.testing.assert_allclose(p.predict(X), 3 * X, rtol=1e-6)
    loss = eqx.filter_jit(lambda p, y: p.loss(X, y, key=key))
    assert float(loss(p, 3 * X)) == pytest.approx(0, abs=1e-9)
    one = ld.compile(
        eqx.tree_at(lambda s: s.steps[1].sign, layers, 1.0), squared(), (X[0], X[0]), objective=ld.EndToEnd()
    )
    assert float(loss(one, 3 * X)) > 1


class Residual(eqx.Module):
    """x + conv(relu(conv(x))): dynamics."""

    first: eqx.nn.Conv2d
    second: eqx.nn.Conv2d

    def __init__(self, channels: int, *, key: Any):
        k1, k2 = jax.random.split(key)
        self.first = eqx.nn.Conv2d(channels, channels, 3, padding=1, key=k1)
        self.second = eqx.nn.Conv2d(channels, channels, 3, padding=1, key=k2)

    def __call__(self, state: Any, context: Any) -> Any:
        return state + self.second(jax.nn.relu(self.first(state)))


class Down(eqx.Module):
    """Half the resolution, more channels: a change of coordinates."""

    conv: eqx.nn.Conv2d

    def __call__(self, state: Any, context: Any) -> Any:
        return self.conv(state)


class Head(eqx.Module):
    dense: eqx.nn.Linear

    def __call__(self, state: Any) -> Any:
        return self.dense(state.mean(axis=(1, 2)))


def resnet(key: Any) -> ld.DiscreteSystem:
    k1, k2, k3, k4, k5 = jax.random.split(key, 5)
    stem = eqx.nn.Conv2d(1, 4, 3, padding=1, key=k1)
    steps = [Residual(4, key=k2), Down(eqx.nn.Conv2d(4, 8, 2, stride=2, key=k3)), Residual(8, key=k4)]
    return ld.DiscreteSystem(Stem(stem), steps, Head(eqx.nn.Linear(8, 2, key=k5)))


class Stem(eqx.Module):
    conv: eqx.nn.Conv2d

    def __call__(self, image: Any) -> ld.Start:
        return ld.Start(self.conv(image))


def stripes(count: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Noisy horizontal and vertical stripes, 6 by 6."""
    rng = np.random.default_rng(0)
    y = np.arange(count, dtype=np.int32) % 2
    wave = np.tile([1.0, -1.0], 3)
    images = np.where(y[:, None, None] == 0, wave[:, None] + np.zeros((6, 6)), wave[None, :] + np.zeros((6, 6)))
    return (images + 0.5 * rng.normal(size=images.shape))[:, None].astype(np.float32), y


def test_the_path_integral_trains_a_small_resnet(key: Any) -> None:
    images, y = stripes()
    p = ld.compile(resnet(key), ld.Certificate.exponential(ld.cross_entropy, 4), (images[0], 0))
    assert isinstance(p.objective, ld.PathIntegral)
    assert p.declaration.kinks == ("max",)
    assert [state.shape for state in p.trajectory(images)] == [(32, 4, 6, 6), (32, 8, 3, 3), (32, 8, 3, 3)]
    optimizer = optax.adam(1e-2)
    result = ld.fit(p, (images, y), optimizer=optimizer, epochs=30, batch_size=16, key=key, progress=False)
    assert result.history[-1]["loss"] < 0.3 * result.history[0]["loss"]
    assert result.program.error(images, y) <= 0.05 < p.error(images, y)


def test_both_precisions(precision: Any, key: Any, strict: None) -> None:
    x, y = X.astype(precision), Y.astype(precision)
    matrices = chain(A.astype(precision), B[:2].astype(precision))
    p = ld.compile(ld.DiscreteSystem(start_with, matrices), squared(), (x[0], y[0]))
    loss = eqx.filter_jit(lambda p, x, y: p.loss(x, y, key=key))(p, x, y)
    assert loss.dtype == precision
    assert p.predict(x, stop=0.5).dtype == precision


def test_steps_with_dropout_train_and_predict(key):
    class Dropped(eqx.Module):
        linear: eqx.nn.Linear
        dropout: eqx.nn.Dropout

        def __call__(self, state, context, *, key=None):
            return state + self.dropout(jnp.tanh(self.linear(state)), key=key)

    step = Dropped(eqx.nn.Linear(3, 3, key=key), eqx.nn.Dropout(0.5))
    system = ld.DiscreteSystem(steps=[step, step])
    x = jax.random.normal(key, (4, 3))
    for objective in (ld.PathIntegral(), ld.EndToEnd()):
        p = ld.compile(system, ld.Certificate.exponential(ld.cross_entropy, 1), (x[0], 0), objective=objective)
        losses = {float(p.loss(x, jnp.arange(4) % 3, key=jax.random.key(i))) for i in range(4)}
        assert len(losses) == 4
        assert bool(jnp.isfinite(p.predict(x)).all())
