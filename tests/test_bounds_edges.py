"""Bounds at the edges of the types: what underflows on the way, what is subnormal, exponents that are too large."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lyapunov_dsl import bounds
from lyapunov_dsl._interpret import evaluated

F = np.float32
SHRINKING = {
    "quotient": (lambda x: F(1e-3) / (x * F(1e-15) + 1), 1e32, 7e32),
    "root": (lambda x: F(1e-3) / (jnp.sqrt(x) + 1), 1e32, 7e32),
    "max": (lambda x: jnp.maximum(x * F(1e-25), F(1)) * F(1e-15), 0.0, 1e38),
    "tanh": (lambda x: jnp.tanh(x * F(1e-31)) * F(1e-8), 0.0, 1e30),
    "product": (lambda x: (x * F(1e-20)) * F(1e-19) - F(5e-30), 0.0, 1e10),
    "square": (jax.grad(lambda x: (x * F(1e-20)) ** 2), 0.0, 1e38),
}


@pytest.mark.parametrize("name", SHRINKING)
def test_coefficients_that_underflow_count(name):
    function, low, high = SHRINKING[name]
    for method in ("crown-ibp", "crown"):
        found = bounds.bound(function, bounds.Box(F(low), F(high)), method=method)
        for x in np.linspace(low, high, 33).astype(F):
            assert found.lower <= function(x) <= found.upper


def test_exponents_whose_differences_are_lost():
    # Fused into a difference, the products make two equal numbers differ by more than an exponential can bear.
    factors, x = np.array([1.7, 1.3, 2.9], F), np.array([19108849664.0, 8093601280.0, 1229205760.0], F)
    box = bounds.Box(x, x)
    for method in ("ibp", "crown"):
        found = bounds.bound(lambda x: jax.nn.softmax(x * factors), box, method=method)
        assert np.isinf(found.upper).all()
        assert np.isinf(bounds.bound(lambda x: jax.nn.logsumexp(x * factors), box, method=method).upper)


def test_regions_near_the_smallest_number():
    grow = lambda x: x * F(1e38)
    for region in (bounds.Box.around(F(1.5e-38), 1e-38), bounds.Ball(F(1.5e-38), 1e-38)):
        found = bounds.bound(grow, region)
        assert found.lower <= 0.5 < 2.5 <= found.upper
    found = bounds.bound(grow, bounds.Ball(F(0), 1e-40), rounding="real")
    assert found.lower <= -0.01 < 0.01 <= found.upper
    with jax.enable_x64(True):
        # 0.95e-38 is subnormal and may be taken for 0.
        assert bounds.bound(grow, bounds.Ball(jnp.asarray(1.2e-38, F), 3e-39)).lower <= 0


def test_two_constants_before_what_varies():
    x = bounds.Box(jnp.zeros(2), jnp.ones(2))
    joined = lambda x: jnp.concatenate([jnp.ones(2), 2 * jnp.ones(2), x]) @ jnp.arange(1.0, 7.0)
    found = bounds.bound(joined, x)
    assert found.lower <= 17 < 28 <= found.upper
    assert found.upper - found.lower < 11.01


def test_parts_of_a_stack():
    # The gradient of a stack takes it apart.
    slope = jax.grad(lambda x: jnp.stack([x[0] * x[1], x[1]]) @ jnp.array([1.0, 3.0]))
    found = bounds.bound(slope, bounds.Box(jnp.zeros(2), jnp.ones(2)))
    assert (found.lower <= jnp.array([0.0, 3.0])).all()
    assert (found.upper >= jnp.array([1.0, 4.0])).all()
    assert (found.upper - found.lower < 1.01).all()


def test_integers_that_may_wrap_are_refused():
    box = bounds.Box(jnp.full(2, -1.0), jnp.full(2, 1.0))
    small = lambda x: jnp.where(x > 0, jnp.uint8(3), jnp.uint8(200))
    for function in (
        lambda x: -small(x),
        lambda x: jnp.argmin(small(x)),
        lambda x: small(x) ** 2,
        lambda x: jnp.abs(jnp.where(x > 0, jnp.int8(-128), jnp.int8(90))),
    ):
        with pytest.raises(bounds.UnknownPrimitive):
            bounds.bound(function, box)


def test_a_sum_of_integers_that_wraps():
    box = bounds.Box(jnp.full(2, -1.0), jnp.full(2, 1.0))
    small = lambda x: jnp.where(x > 0, jnp.uint8(3), jnp.uint8(200))
    found = bounds.bound(lambda x: jnp.sum(small(x), dtype=jnp.uint8) * 1.0, box)
    # Of 6, 203 and 400, the last is 144.
    assert found.lower <= 6
    assert found.upper >= 203
    counted = bounds.bound(lambda x: jnp.sum(x > 0) * 1.0, box)
    assert counted.lower == pytest.approx(0, abs=1e-5)
    assert counted.upper == pytest.approx(2, abs=1e-5)


def test_gradients_over_a_ball_of_what_does_not_depend_on_it():
    # The margin of a class to itself.
    found = lambda w: (
        bounds.bound(lambda x: jnp.stack([w * x[0], w * x[0]]) - w * x[0], bounds.Ball(jnp.ones(2), 0.1)).upper
    )
    assert jnp.isfinite(jax.jacobian(found)(2.0)).all()


def test_constants_that_are_rounded_are_known_not_to_be_nan():
    # softplus asks of its argument whether it is NaN, of a constant as well.
    weights = jnp.asarray([0.1, -0.3, 2.0])
    function = lambda x: jnp.sum(jax.nn.softplus(weights * 0.7) * x)
    found = bounds.bound(function, bounds.Box(jnp.ones(3), jnp.ones(3)))
    assert found.lower <= function(jnp.ones(3)) <= found.upper
    with pytest.raises(bounds.UnknownPrimitive, match="decision on constants"):
        bounds.bound(lambda x: jnp.where(weights * 0.7 == 0.07, x, -x), bounds.Box(jnp.ones(3), jnp.ones(3)))


@pytest.mark.parametrize(
    "function", [lambda v: jnp.abs(v) ** 2, lambda v: jnp.square(jnp.abs(v)), lambda v: jnp.abs(v) ** 4]
)
def test_the_square_of_a_size_is_that_of_the_number(function):
    """A compiler takes the constant out of it as out of any square, and its square is 0."""
    x = jnp.asarray([1e30], jnp.float32)
    call = lambda x: function(x * jnp.float32(1e-30))
    found = bounds.bound(call, bounds.Box(x, 2 * x))
    value = jax.jit(call)(x)
    anything = (found.lower == -jnp.inf) & (found.upper == jnp.inf)
    assert (((found.lower <= value) & (value <= found.upper)) | anything).all()


@pytest.mark.parametrize("double", [False, True])
def test_subnormal_ends_are_seen_where_they_are_compiled(double):
    """By their bits; where a compiler compared numbers instead, as it does in some programs, they would count as 0."""
    with jax.enable_x64(double):
        dtype = np.float64 if double else np.float32
        tiny = np.finfo(dtype).tiny
        x = np.full((1, 1), tiny / 4, dtype)
        for function in (lambda v: v * dtype(1), lambda v: jnp.sum(v) * 3, lambda v: jnp.where(v > 0, v, 2 * v)):
            for method in ("ibp", "crown"):
                run = jax.jit(lambda m, f=function, method=method: bounds.bound(f, bounds.Box(m, m), method=method))
                found = run(x)
                assert (found.lower <= 0).all()
                assert (found.upper >= tiny / 4).all()


def test_float_to_integer_conversions_of_both_evaluators_agree():
    ends = [s * 2.0**k + d for k in (7, 8, 15, 16, 31, 32, 63, 64) for s in (-1, 1) for d in (-1.5, -0.5, 0, 0.5, 1.5)]
    values = np.array([*ends, 0.0, -0.0, 0.9, -0.9, np.nan, np.inf, -np.inf])
    with jax.enable_x64(True):
        for kind in (np.float32, np.float64):
            for target in (np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64):
                call = lambda v, target=target: v.astype(target)
                x = jnp.asarray(values.astype(kind))
                np.testing.assert_array_equal(evaluated(call, x), np.asarray(jax.jit(call)(x)))
