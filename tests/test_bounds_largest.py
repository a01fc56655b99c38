"""Derivatives of maxima and minima: tight where one entry is the largest, sound where several are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import quickly

from lyapunov_dsl import bounds

FUNCTIONS = {
    "max": jnp.max,
    "min": lambda x: jnp.min(x) * x[0],
    "along an axis": lambda x: jnp.sum(jnp.max(jnp.stack([x, 0.5 + x[::-1]]), axis=0) * x),
    "along the other": lambda x: jnp.sum(jnp.min(jnp.stack([x, 2 - x]), axis=1)),
    "over all": lambda x: jnp.max(jnp.stack([x, jnp.tanh(x)])) ** 2,
    "of two": lambda x: jnp.maximum(x[0], x[1]) * jnp.minimum(x[2], x[1]),
    "like ReLU": lambda x: jnp.sum(jnp.maximum(x - 0.25, 0)),
}
CLEAR, TIED = [-1.0, 0.5, 2.0], [0.5, 0.5, 0.5]


def inside(function, lower, upper, points):
    with quickly():
        found = bounds.bound(function, bounds.Box(lower, upper))
    low, high = np.asarray(found.lower, float), np.asarray(found.upper, float)
    values = np.asarray(jax.jit(jax.vmap(function))(points), float)
    assert (low <= values).all()
    assert (values <= high).all()
    return low, high, values


def points_of(lower, upper, dtype):
    """Samples, corners, and points where entries are equal."""
    rng = np.random.default_rng(0)
    inner = rng.uniform(lower, upper, (500, 3))
    corners = np.where(rng.integers(0, 2, (100, 3)) > 0, upper, lower)
    same = np.clip(np.repeat(inner[:100, :1], 3, axis=1), lower, upper)
    two = np.clip(inner[:100][:, [0, 0, 2]], lower, upper)
    return np.concatenate([inner, corners, same, two]).astype(dtype)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_and_directional_derivatives(name):
    check(name, np.dtype("float32"))


@pytest.mark.full
@pytest.mark.parametrize("name", ["max", "of two"])
def test_in_double_precision(name):
    with jax.enable_x64(True):
        check(name, np.dtype("float64"))


def check(name, dtype):
    function = FUNCTIONS[name]
    directional = lambda x: jax.jvp(function, (x,), (jnp.asarray([1, -0.5, 2], x.dtype),))[1]
    for center, clear in ((CLEAR, True), (TIED, False)):
        lower, upper = (np.asarray(center, dtype) + dtype.type(s * 0.125) for s in (-1, 1))
        points = points_of(lower, upper, dtype)
        for derivative in (jax.grad(function), directional):
            low, high, values = inside(derivative, lower, upper, points)
            assert np.isfinite(low).all()
            assert np.isfinite(high).all()
            if clear:
                assert (high - low <= 1.3 * (values.max(0) - values.min(0)) + 1e-4).all()


def test_what_is_evaluated_anew_need_not_be_equal_to_any_maximum():
    """A product may be contracted with a sum in the comparison and not in the maximum: then no entry is equal, and 0/0."""
    function = lambda x: jnp.max(x * x + 0.3 * x)
    box = bounds.Box(np.float32([0.5, 2.0]), np.float32([0.75, 2.25]))
    evaluated = bounds.bound(jax.grad(function), box)
    exact = bounds.bound(jax.grad(function), box, rounding="real")
    assert not np.isfinite(np.asarray(evaluated.upper)).any()
    np.testing.assert_allclose(exact.lower, [0, 4.3], atol=1e-4)
    np.testing.assert_allclose(exact.upper, [0, 4.8], atol=1e-4)


def test_entries_that_may_be_nan_or_infinite():
    """With NaN among the entries none is the largest, and what is divided by their number is NaN."""
    box = bounds.Box(np.float32([-1.0, 2.0]), np.float32([1.0, 3.0]))
    found = bounds.bound(jax.grad(lambda x: jnp.max(jnp.log(x))), box)
    assert np.isneginf(np.asarray(found.lower)).all()
    assert np.isposinf(np.asarray(found.upper)).all()


def test_a_negative_is_no_copy():
    """The least of one number, as minus the largest of its negative, is taken for neither."""
    box = bounds.Box(np.float32([0.5]), np.float32([2.0]))
    function = lambda x: jnp.exp(x - jnp.min(x, axis=0)) / jnp.sum(jnp.exp(x - jnp.min(x, axis=0))) * x
    found = bounds.bound(function, box)
    assert found.lower[0] <= 0.5
    assert found.upper[0] >= 2.0
