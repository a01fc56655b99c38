"""Softmax, its logarithm, log-sum-exp and attention under constant masks: sound, and as tight as over what is kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import quickly

from lyapunov_dsl import bounds

MASK = np.array([True, False, True, True])
KEPT = np.array([0, 2, 3])
HIDDEN = {"-inf": -np.inf, "-1e9": -1e9, "the smallest number": float(np.finfo(np.float32).min)}
gradient = lambda f: jax.grad(lambda x: jnp.sum(f(x) ** 2))


def span(function, box, rounding="float"):
    with quickly():
        found = bounds.bound(function, box, rounding=rounding)
    return np.asarray(found.lower, float), np.asarray(found.upper, float)


def check(masked, plain, dtype, half=0.25, most=1.02):
    """Bounds of the masked function hold and are no wider than those of the plain one of the entries kept."""
    rng = np.random.default_rng(0)
    center = rng.normal(size=4).astype(dtype)
    box = bounds.Box(center - dtype.type(half), center + dtype.type(half))
    points = rng.uniform(box.lower, box.upper, (500, 4))
    points = np.concatenate([points, np.where(rng.integers(0, 2, (100, 4)) > 0, box.upper, box.lower)]).astype(dtype)
    values = np.asarray(jax.jit(jax.vmap(masked))(points), float)
    low, high = span(masked, box)
    assert (low <= values).all()
    assert (values <= high).all()
    least, largest = span(plain, bounds.Box(box.lower[KEPT], box.upper[KEPT]))
    assert (np.max(high - low) <= most * np.max(largest - least) + 1e-5).all()


@pytest.mark.parametrize(
    "fill", [pytest.param(fill, marks=() if fill == "-inf" else pytest.mark.full) for fill in HIDDEN]
)
def test_softmax_and_log_sum_exp(precision, fill):
    mask = lambda x: jnp.where(MASK, x, HIDDEN[fill])
    check(lambda x: jax.nn.softmax(mask(x)), jax.nn.softmax, precision)
    check(lambda x: jax.nn.logsumexp(mask(x)), jax.nn.logsumexp, precision)


def test_log_softmax_and_gradients():
    mask = lambda x: jnp.where(MASK, x, -jnp.inf)
    single = np.dtype("float32")
    check(lambda x: jax.nn.log_softmax(mask(x))[KEPT], jax.nn.log_softmax, single)
    check(gradient(lambda x: jax.nn.softmax(mask(x))), gradient(jax.nn.softmax), single)


def test_functions_that_take_a_mask():
    single = np.dtype("float32")
    check(lambda x: jax.nn.softmax(x, where=MASK), jax.nn.softmax, single)
    check(lambda x: jax.nn.logsumexp(x, where=MASK), jax.nn.logsumexp, single)


def test_causal_attention_of_the_first_place_is_its_own_value():
    """Rows of a causal mask keep one entry, two, and so on."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 2)).astype(np.float32)
    weight = jnp.asarray(rng.normal(size=(2, 2)), jnp.float32)

    def attention(x):
        scores = jnp.where(jnp.tril(jnp.ones((3, 3), bool)), (x @ weight) @ x.T, -jnp.inf)
        return jax.nn.softmax(scores, axis=-1) @ x

    low, high = span(attention, bounds.Box(x - np.float32(0.05), x + np.float32(0.05)))
    points = (x + rng.uniform(-0.05, 0.05, (500, 3, 2))).astype(np.float32)
    values = np.asarray(jax.jit(jax.vmap(attention))(points), float)
    assert (low <= values).all()
    assert (values <= high).all()
    np.testing.assert_allclose(high[0] - low[0], 0.1, atol=1e-3)
    assert (high - low <= 3 * (values.max(0) - values.min(0))).all()


def test_where_nothing_is_kept_there_is_no_number():
    rows = np.array([[True, False], [False, False]])
    box = bounds.Box(np.zeros((2, 2), np.float32), np.ones((2, 2), np.float32))
    low, high = span(lambda x: jax.nn.softmax(jnp.where(rows, x, -jnp.inf), axis=1), box)
    np.testing.assert_allclose([low[0], high[0]], [[1, 0], [1, 0]], atol=1e-4)
    assert np.isneginf(low[1]).all()
    assert np.isposinf(high[1]).all()


def test_what_is_kept_may_be_as_small_as_what_is_not():
    """-1e9 stands for nothing only beside what is larger; an infinite entry makes all of its row NaN."""
    hidden = lambda x: jax.nn.softmax(jnp.where(MASK, x, -1e9))
    low, high = span(hidden, bounds.Box(np.full(4, -1e9, np.float32), np.full(4, -9.9e8, np.float32)))
    assert high[1] >= 0.25
    unknown = lambda x: jax.nn.softmax(jnp.where(MASK, jnp.log(x), -jnp.inf))
    low, high = span(unknown, bounds.Box(np.full(4, -1, np.float32), np.ones(4, np.float32)))
    assert np.isneginf(low).all()
    assert np.isposinf(high).all()
