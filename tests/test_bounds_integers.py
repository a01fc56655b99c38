"""Integers that vary stay integers: every operation of them is exact beyond the digits of floating-point types, or refused.

And no end is NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lyapunov_dsl import bounds

N = 2**24 + 1  # float32 rounds it
LAST = 2**31 - 1


def pick(x, one, other, dtype=jnp.int32):
    return jnp.where(x > 0, jnp.asarray(one, dtype), jnp.asarray(other, dtype))


EXACT = {
    "reduce_max": (lambda x: jnp.max(pick(x, [N, N], [N, 3])), N, N),
    "reduce_min": (lambda x: jnp.min(pick(x, [N, N], [N, N + 1])), N, N),
    "reduce_max at the limit": (lambda x: jnp.max(pick(x, [LAST, 0], [LAST - 1, 0])), LAST - 1, LAST),
    "window": (lambda x: lax.reduce_window(pick(x, [N, 1], [N, 2]), -(2**31), lax.max, (2,), (1,), "VALID"), [N], [N]),
    "argmax": (lambda x: jnp.argmax(pick(x, [3, N - 1], [N - 2, N])), 1, 1),
    "max": (lambda x: jnp.maximum(pick(x, N, N), N - 1), N, N),
    "min": (lambda x: jnp.minimum(pick(x, LAST, LAST), LAST), LAST, LAST),
    "clamp": (lambda x: lax.clamp(3, pick(x, N, 0), N), 3, N),
    "sign": (lambda x: jnp.sign(pick(x, -N, 0)), -1, 0),
    "add": (lambda x: pick(x, N, N) + pick(x, 2, 0), N, N + 2),
    "sub": (lambda x: pick(x, N, N) - pick(x, N - 1, N), 0, 1),
    "add near the limits": (
        lambda x: jnp.stack([pick(x, 2**30, 1), pick(x, -(2**30), 1)]) + jnp.asarray([859_000_000, -859_000_000]),
        [859_000_001, -859_000_000 - 2**30],
        [859_000_000 + 2**30, -858_999_999],
    ),
    "reduce_sum": (lambda x: jnp.sum(pick(x, [N, N], [N, 3])), N + 3, 2 * N),
    "gather": (lambda x: pick(x, [N, 5], [N, 5])[jnp.asarray([1, 0])], [5, N], [5, N]),
    "select": (lambda x: jnp.where(x > 2, pick(x, N, N), N), N, N),
    "cast without rounding": (lambda x: pick(x, 16_000_001, 1).astype(jnp.float32), 1, 16_000_001),
}
# Those that wrap around, or round, have to hold.
HOLD = {
    "cast": lambda x: pick(x, [N, N], [N, 3]).astype(jnp.float32),
    "unsigned difference": lambda x: pick(x, [N - 1, N], [N - 1, N], jnp.uint32) - pick(x, [N, N], [N, N], jnp.uint32),
    "sum that wraps": lambda x: jnp.sum(pick(x, [2**30] * 3, [2**30, 3, 3])),
    "sum that hardly wraps": lambda x: jnp.sum(pick(x, [2**30, 2**30, 50_000_000], [2**30, 3, 3])),
    "sum that hardly wraps below": lambda x: jnp.sum(pick(x, [-(2**30), -(2**30), -50_000_000], [1, 3, 3])),
    "sum of many that wraps": lambda x: jnp.sum(pick(x, [LAST // 1000] * 1001, [0] * 1001)),
    "fewer bits": lambda x: pick(x, [N - 1, 200], [7, N]).astype(jnp.int8),
    "mean": lambda x: jnp.mean(pick(x, [N - 1, N], [N, N])),
    "comparison": lambda x: pick(x, [N - 1, N], [N, N]) == N,
}
REFUSED = {
    "abs": lambda x: jnp.abs(pick(x, N, -N)),
    "neg": lambda x: -pick(x, N, -N),
    "mul": lambda x: 2 * pick(x, N, -N),
    "integer_pow": lambda x: pick(x, N, -N) ** 2,
    "dot": lambda x: pick(x, [N, N], [1, 1]) @ jnp.asarray([1, 1]),
    "cumsum": lambda x: jnp.cumsum(pick(x, [N, N], [1, 1])),
}
BOX = (jnp.float32(-1), jnp.float32(1))


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("method", ["ibp", "crown"])
def test_exact(name, method):
    function, lower, upper = EXACT[name]
    for rounding in ("real", "float"):
        found = bounds.bound(function, bounds.Box(*BOX), method=method, rounding=rounding)
        assert found.lower.dtype == jax.eval_shape(function, BOX[0]).dtype
        if jnp.issubdtype(found.lower.dtype, jnp.integer) or rounding == "float":
            np.testing.assert_array_equal(np.asarray(found.lower, np.int64), lower)
            np.testing.assert_array_equal(np.asarray(found.upper, np.int64), upper)


@pytest.mark.parametrize("name", HOLD)
@pytest.mark.parametrize("wide", [False, True])
def test_holds(name, wide):
    function = HOLD[name]
    with jax.enable_x64(wide):
        found = bounds.bound(function, bounds.Box(*BOX))
        for x in (-1.0, 1.0):
            value = np.asarray(function(jnp.float32(x)))
            assert (np.asarray(found.lower) <= value).all()
            assert (value <= np.asarray(found.upper)).all()


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    with pytest.raises(bounds.UnknownPrimitive):
        bounds.bound(REFUSED[name], bounds.Box(*BOX))


def test_a_ball_around_no_point_is_refused():
    for center in (jnp.nan, jnp.inf, -jnp.inf):
        with pytest.raises(ValueError, match="finite center"):
            bounds.Ball(jnp.asarray([0.0, center]), 0.1)
    for radius in (-1.0, jnp.nan):
        with pytest.raises(ValueError, match="radius"):
            bounds.Ball(jnp.zeros(2), radius)
    for lower, upper in ((1.0, 0.0), (jnp.nan, 0.0), (0.0, jnp.nan)):
        with pytest.raises(ValueError, match="lower <= upper"):
            bounds.Box(jnp.asarray([lower]), jnp.asarray([upper]))


@pytest.mark.parametrize("method", ["ibp", "crown-ibp", "crown"])
def test_no_end_is_ever_nan(method, quick):
    """Traced regions may be anything, and only say nothing then."""
    inf, nan = jnp.inf, jnp.nan

    def function(x):
        return x, jnp.tanh(x), x * x, jnp.sum(x), jnp.ones((2, 2)) @ x, jax.nn.logsumexp(x), jnp.where(x > 0, x, -x)

    def of_ball(center, radius):
        return jax.tree.leaves(bounds.bound(function, bounds.Ball(center, radius), method=method))

    def of_box(lower, upper):
        return jax.tree.leaves(bounds.bound(function, bounds.Box(lower, upper), method=method))

    centers = jnp.asarray([[nan, 1], [inf, 1], [1, -inf], [3e38, -3e38], [0, 0]], jnp.float32)
    radii = jnp.asarray([0.0, 0.1, 3e38, inf, nan, -1])
    pairs = [jnp.repeat(centers, 5, 0), jnp.tile(centers, (5, 1))]
    balls = jax.jit(jax.vmap(of_ball))(jnp.repeat(centers, 6, 0), jnp.tile(radii, 5))
    for ends in (*balls, *jax.jit(jax.vmap(of_box))(*pairs)):
        assert not jnp.isnan(ends).any()
    # Where nothing is known, it is said so.
    assert bool((balls[0][:6, 0] == -inf).all())
    assert bool((balls[7][:6, 0] == inf).all())
