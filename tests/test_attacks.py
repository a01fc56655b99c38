"""Projected gradient descent: what it finds, and the bounds it keeps."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lyapunov_dsl as ld

pytestmark = pytest.mark.usefixtures("quick")

X = np.random.default_rng(0).uniform(0.2, 0.8, (5, 6)).astype(np.float32)
Y = np.array([0, 1, 0, 1, 1], np.int32)
W = np.random.default_rng(1).normal(size=(2, 6)).astype(np.float32)
SLACK = 4 * np.finfo(np.float32).eps


def linear(x: Any) -> Any:
    """Two logits."""
    return x @ jnp.asarray(W, x.dtype).T


def losses(function: Any, x: Any, y: Any) -> Any:
    return jax.vmap(ld.cross_entropy)(function(x), y)


def network(key: Any) -> Any:
    return jax.vmap(eqx.nn.MLP(6, 2, 16, 2, activation=jnp.tanh, key=key))


def lengths(offset: Any, norm: str) -> Any:
    flat = np.asarray(offset, np.float64).reshape(len(offset), -1)
    return np.max(np.abs(flat), axis=1) if norm == "inf" else np.linalg.norm(flat, axis=1)


def test_the_infinity_norm_optimum_of_a_linear_model(precision: Any, strict: None) -> None:
    """The margin falls fastest along the signs of the wrong class's weights minus the right one's."""
    x = X.astype(precision)
    out = ld.attacks.pgd(linear, x, Y, radius=0.1, step_size=0.03, steps=5, clip=None)
    against = (W[1 - Y] - W[Y]).astype(precision)
    np.testing.assert_allclose(out, x + 0.1 * np.sign(against), atol=1e-6)
    assert out.dtype == precision


def test_the_2_norm_optimum_of_a_linear_model(precision: Any, strict: None) -> None:
    x = X.astype(precision)
    out = ld.attacks.pgd(linear, x, Y, radius=0.1, step_size=0.03, steps=5, norm="2", clip=None)
    against = (W[1 - Y] - W[Y]).astype(precision)
    expected = x + 0.1 * against / np.linalg.norm(against, axis=1, keepdims=True)
    np.testing.assert_allclose(out, expected, atol=1e-6)
    assert out.dtype == precision


@pytest.mark.parametrize("norm", ["inf", "2"])
@pytest.mark.parametrize("seed", [None, 0, 1])
@pytest.mark.parametrize("radius", [0.01, 0.3])
def test_it_stays_in_the_ball_and_in_the_range_and_raises_the_loss(
    norm: str, seed: Any, radius: float, key: Any
) -> None:
    function = network(key)
    start = None if seed is None else jax.random.key(seed)
    out = ld.attacks.pgd(function, X, Y, radius=radius, step_size=radius / 2, steps=8, norm=norm, key=start)
    assert out.shape == X.shape
    assert (lengths(out - X, norm) <= radius * (1 + SLACK) + SLACK).all()
    assert (lengths(out - X, norm) > 0.5 * radius).any()
    assert float(out.min()) >= 0
    assert float(out.max()) <= 1 + SLACK
    assert (losses(function, out, Y) > losses(function, X, Y)).all()


def test_the_range_is_what_limits_a_large_ball(key: Any) -> None:
    out = ld.attacks.pgd(linear, X, Y, radius=5.0, step_size=1.0, steps=10, clip=(0.1, 0.9))
    against = W[1 - Y] - W[Y]
    np.testing.assert_allclose(out, np.where(against > 0, 0.9, 0.1), atol=1e-6)


@pytest.mark.parametrize("norm", ["inf", "2"])
def test_inputs_outside_the_range_are_not_thrown_out_of_the_ball(norm: str) -> None:
    """Standardized inputs with the default range of pixels: moving -2 to 0 would be no small perturbation."""
    x = 4 * X - 2
    out = ld.attacks.pgd(linear, x, Y, radius=0.05, norm=norm)
    assert (lengths(out - x, norm) <= 0.05 + 4 * SLACK).all()
    assert not np.array_equal(out, x)
    assert (np.asarray(out)[x < 0] >= x[x < 0]).all()
    assert (np.asarray(out)[x > 1] <= x[x > 1]).all()


@pytest.mark.parametrize("norm", ["inf", "2"])
@pytest.mark.parametrize(("steps", "step_size"), [(1, 0.1), (7, 0.02)])
def test_the_way_is_at_most_the_steps_times_their_size(norm: str, steps: int, step_size: float) -> None:
    """Why ten steps of 2/255 do not reach the edge of a ball of 127/255 (appendix C)."""
    out = ld.attacks.pgd(linear, X, Y, radius=9.0, step_size=step_size, steps=steps, norm=norm, clip=None)
    np.testing.assert_allclose(lengths(out - X, norm), steps * step_size, rtol=1e-5)


def test_the_defaults_are_those_of_the_paper() -> None:
    out = ld.attacks.pgd(linear, X, Y)
    np.testing.assert_allclose(lengths(out - X, "inf"), 8 / 255, rtol=1e-5)
    out = ld.attacks.pgd(linear, X, Y, radius=127 / 255, norm="2")
    np.testing.assert_allclose(lengths(out - X, "2"), 20 / 255, rtol=1e-5)


@pytest.mark.parametrize("norm", ["inf", "2"])
def test_a_random_start_is_reproducible_and_fills_the_ball(norm: str, key: Any) -> None:
    # Hardly a step, so that the start shows.
    x = np.full((200, 3), 0.5, np.float32)
    start = lambda k: ld.attacks.pgd(
        lambda x: x[:, :2], x, np.zeros(200, np.int32), radius=0.2, step_size=1e-9, steps=1, norm=norm, key=k
    )
    once, again, other = start(key), start(key), start(jax.random.key(1))
    np.testing.assert_array_equal(once, again)
    assert not np.array_equal(once, other)
    distance = lengths(once - x, norm)
    assert (distance <= 0.2 * (1 + SLACK) + SLACK).all()
    assert distance.max() > 0.18
    assert distance.min() < 0.1
    assert (np.abs(np.mean(once - x, axis=0)) < 0.03).all()
    np.testing.assert_allclose(
        ld.attacks.pgd(lambda x: x[:, :2], x, np.zeros(200, np.int32), step_size=1e-9, steps=1), x, atol=1e-6
    )


def test_a_constant_function_leaves_inputs_alone() -> None:
    for norm in ("inf", "2"):
        out = ld.attacks.pgd(lambda x: jnp.zeros((len(x), 2)) + 0 * x[:, :2], X, Y, norm=norm)
        np.testing.assert_array_equal(out, X)


def test_images_and_another_loss() -> None:
    """A distance that grows away from the target, on inputs of several axes; the 2-norm is over all of them."""
    images = np.full((2, 1, 3, 3), 0.5, np.float32)
    target = np.full((2, 1, 3, 3), 0.4, np.float32)
    out = ld.attacks.pgd(lambda x: x, images, target, radius=0.3, step_size=0.1, norm="2", loss=ld.squared_error)
    np.testing.assert_allclose(out, images + 0.1, atol=1e-6)  # 0.3 / sqrt(9) each


def test_it_works_on_a_program(key: Any) -> None:
    """On x' = 0 the prediction is x, so the attack on the program is that on the identity; and it misleads it."""
    system = ld.System(vector_field=lambda t, s, c: 0 * s, domain=ld.Box(-9, 9))
    certificate = ld.Certificate.exponential(ld.cross_entropy, 1)
    x = np.array([[0.6, 0.4, 0.0], [0.3, 0.7, 0.1]], np.float32)
    y = np.array([0, 1], np.int32)
    program = ld.compile(system, certificate, (x[0], 0), solver=ld.Solver(diffrax.Euler(), dt=0.5))
    out = ld.attacks.pgd(program.predict, x, y, radius=0.15, step_size=0.05)
    np.testing.assert_allclose(out, ld.attacks.pgd(lambda x: x, x, y, radius=0.15, step_size=0.05), atol=1e-6)
    assert program.error(x, y) == 0
    assert program.error(np.asarray(out), y) == 0.5


@pytest.mark.full
def test_through_an_adaptive_solver(key: Any) -> None:
    field = ld.nn.MLPField(3, 3, width=8, key=key)
    system = ld.System(lambda x: ld.Start(jnp.zeros(3), x), field, domain=ld.Box(-9, 9))
    x = np.random.default_rng(0).uniform(0, 1, (4, 3)).astype(np.float32)
    y = np.arange(4, dtype=np.int32) % 3
    program = ld.compile(system, ld.Certificate.exponential(ld.cross_entropy, 1), (x[0], 0))
    out = ld.attacks.pgd(program.predict, x, y, radius=0.3, step_size=0.1, steps=4)
    assert (losses(program.predict, out, y) > losses(program.predict, x, y)).all()


@pytest.mark.parametrize("norm", ["inf", "2"])
def test_gradients_that_are_not_finite_move_nothing(norm):
    function = lambda x: jnp.stack([jnp.sqrt(x[:, 0] * 0), x[:, 1]], axis=1)
    out = ld.attacks.pgd(function, X, Y, norm=norm)
    assert np.isfinite(out).all()
    assert np.max(np.abs(out - X)) <= 8 / 255
