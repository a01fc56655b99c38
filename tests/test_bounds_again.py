"""Values that a compiler evaluates once for each use, with a product and a sum contracted in one place and not in the other; and
quotients and factors that it puts in another order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lyapunov_dsl import bounds

F = np.float32
X, Y = np.float32(10001.3), np.float32(9999.7)


def box(x):
    return bounds.Box(jnp.full(4, x, F), jnp.full(4, x, F))


def twice(x, y):
    """x y - 1e8 with the product rounded, and with it contracted into the sum."""
    return F(x * y) - F(1e8), F(np.float64(x) * np.float64(y) - 1e8)


def value(x, y):
    return x * y - F(1e8)


def in_a_loop(x, y):
    return jax.lax.fori_loop(0, 2, lambda i, c: value(x, y), jnp.zeros(4, F))


EYE = np.eye(4, dtype=F)
CANCEL = {
    "matrix": lambda x, y: value(x, y) @ EYE - jnp.maximum(value(x, y), F(-1e30)),
    "itself": lambda x, y: value(x, y) - value(x, y),
    "loop": lambda x, y: in_a_loop(x, y) - value(x, y),
    "choice": lambda x, y: jnp.where(value(x, y) > -1e30, value(x, y), F(0)) - value(x, y),
    "abs": lambda x, y: value(x, y) - jnp.abs(value(x, y) * F(1)),
    "power": lambda x, y: value(x, y) ** 2 / value(x, y) - value(x, y) ** 1,
}


@pytest.mark.parametrize("method", ["crown-ibp", "crown"])
@pytest.mark.parametrize("name", CANCEL)
def test_differences_of_evaluations(name, method):
    one, other = twice(X, Y)
    assert one != other
    found = bounds.bound(CANCEL[name], box(X), box(Y), method=method)
    apart = abs(float(one) - float(other))
    assert (found.lower <= -apart).all()
    assert (found.upper >= apart).all()
    # A few roundings of the product, no more.
    assert name == "power" or (found.upper < 3e3).all()


def test_nothing_is_added_for_real_numbers_or_where_evaluations_agree():
    assert bounds.bound(lambda x, y: value(x, y) - value(x, y), box(X), box(Y), rounding="real").upper.max() < 1e-6
    found = bounds.bound(lambda x: jnp.tanh(x) - jnp.tanh(x), box(X))
    assert (found.lower == 0).all()
    assert (found.upper == 0).all()


def test_activations_of_two_evaluations():
    one, other = (np.float64(v) for v in twice(X, Y))
    sigmoid = lambda v: 1 / (1 + np.exp(-v))
    found = bounds.bound(lambda x, y: jax.nn.silu(value(x, y) * F(0.01)), box(X), box(Y))
    for v, w in ((one, other), (other, one)):
        assert (found.lower <= 0.01 * v * sigmoid(0.01 * w)).all()
        assert (found.upper >= 0.01 * v * sigmoid(0.01 * w)).all()


def test_softmaxes_of_two_evaluations():
    x = np.array([X, X + 2, X + 3, X - 1], F)
    one, other = zip(*(twice(v, Y) for v in x), strict=True)
    one, other = (np.array(v, np.float64) * 0.001 for v in (one, other))
    found = bounds.bound(lambda x, y: jax.nn.softmax(value(x, y) * F(0.001)), bounds.Box(x, x), box(Y))
    for v, w in ((one, other), (other, one)):
        p = np.exp(v - w.max()) / np.sum(np.exp(w - w.max()))
        assert (found.lower <= p).all()
        assert (found.upper >= p).all()


def test_quotients_of_quotients():
    parts = [bounds.Box(F(1e30), F(1e31)), bounds.Box(F(1e30), F(1e31)), bounds.Box(F(1e25), F(1e26))]
    # As one quotient of products, whose divisor is infinite.
    assert bounds.bound(lambda x, y, z: (x / y) / z, *parts).lower <= 0
    assert np.isinf(bounds.bound(lambda x, y, z: x / (y / z), *parts).upper)
    assert np.isinf(bounds.bound(lambda x, y, z: (x / y) / (z / y), *parts).upper)
    # Nothing else changes.
    parts = [bounds.Box(F(1), F(2))] * 3
    found = bounds.bound(lambda x, y, z: (x / y) / z, *parts)
    assert found.lower == pytest.approx(0.25, abs=0.1)
    assert found.upper == pytest.approx(2, abs=1e-4)


def test_factors_that_become_one():
    large = bounds.Box(F(1e37), F(1e38))
    for function in (
        lambda x: x * F(1e-30) * F(1e-30),
        lambda x: x / F(1e30) / F(1e30),
        lambda x: x / F(1e30) * F(1e-30),
        lambda x: x / F(3e38),
    ):
        assert bounds.bound(function, large).lower <= 0
    assert np.isinf(bounds.bound(lambda x: x * F(1e30) * F(1e30), bounds.Box(F(0), F(1e-30))).upper)
