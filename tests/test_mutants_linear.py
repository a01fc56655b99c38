"""Operations as they come from JAX: what the engine makes of each, of what only looks like it, and of sums with their rounding."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lyapunov_dsl import bounds
from lyapunov_dsl.bounds import Box

pytestmark = pytest.mark.usefixtures("quick")
LOW, HIGH = np.array([-1.0, 0.25, -0.5, 1.0, 0.5, -2.0]), np.array([0.5, 0.75, 1.0, 1.5, 2.0, -1.0])
# Softplus of what is no sum, its derivative, and activations with a constant that is another.
LOOKALIKES = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu by tanh": jax.nn.gelu,
    "softplus": jax.nn.softplus,
    "swish of 2": lambda x: x * jax.nn.sigmoid(2 * x),
    "sigmoid of another": lambda x: x * jax.nn.sigmoid(x[::-1]),
    "0.5 and 2": lambda x: 0.5 * x * (2 + jnp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "0.4 and 1": lambda x: x * (0.4 * (1 + jnp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))),
    "0.5 and 1": lambda x: x * (0.5 * (1 + jnp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))),
    "another factor": lambda x: x * (0.5 * (1 + jnp.tanh(0.8 * (x + 0.044715 * x**3)))),
    "another cube": lambda x: x * (0.5 * (1 + jnp.tanh(math.sqrt(2 / math.pi) * (x + 0.04 * x**3)))),
    "fourth power": lambda x: x * (0.5 * (1 + jnp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**4)))),
    "of another": lambda x: x[::-1] * (0.5 * (1 + jnp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))),
    "a cube of another": lambda x: x * (0.5 * (1 + jnp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x[::-1] ** 3)))),
    "erfc with 0.5": lambda x: 0.5 * x * lax.erfc(-x * 0.5),
    "erfc with 0.4": lambda x: 0.4 * x * lax.erfc(-x * math.sqrt(0.5)),
    "erfc of x": lambda x: 0.5 * x * lax.erfc(x * math.sqrt(0.5)),
    "erfc of another": lambda x: 0.5 * x * lax.erfc(-x[::-1] * math.sqrt(0.5)),
    "logaddexp": lambda x: jnp.logaddexp(x, x[::-1]),
    "logaddexp with 1": lambda x: jnp.logaddexp(x, jnp.ones(6)),
    "logaddexp with some zeros": lambda x: jnp.logaddexp(x, jnp.asarray([0.0, 0, 0, 0, 0, 1])),
    "its slope": lambda x: jax.grad(lambda x: jnp.sum(jax.nn.softplus(x)))(x),
    "exp of a difference": lambda x: jnp.exp(x - jax.nn.softplus(x[::-1])),
    "exp of softplus": lambda x: jnp.exp(x - jax.nn.softplus(2 * x)),
    "two slopes": lambda x: jax.grad(lambda x: jnp.sum(jnp.logaddexp(x, 2 * x[::-1])))(x),
}


def samples(count=40):
    rng = np.random.default_rng(0)
    return LOW + rng.choice([0.0, 1.0, 0.5, 0.3], (count, 6)) * (HIGH - LOW)


def both(functions, *methods):
    """Bounds of functions at a point and over the box, with values in between."""
    with jax.enable_x64(True):
        whole = lambda x: [f(x) for f in functions.values()]
        points = jnp.asarray(samples())
        values = [np.asarray(v) for v in jax.jit(jax.vmap(whole))(points)]
        found = jax.jit(lambda low, high: [bounds.bound(whole, Box(low, high), method=m) for m in methods])
        for region in ((LOW, HIGH), (points[7], points[7])):
            for method, each in zip(methods, found(*map(jnp.asarray, region)), strict=True):
                for name, value, low, high in zip(functions, values, each.lower, each.upper, strict=True):
                    value = value if region[0] is LOW else value[7:8]
                    yield name, method, region[0] is LOW, value, np.asarray(low), np.asarray(high)


@pytest.mark.slow
def test_activations_and_what_only_looks_like_them():
    tight = {"silu", "gelu", "gelu by tanh", "0.5 and 1", "softplus"}
    for name, _, wide, value, low, high in both(LOOKALIKES, "ibp"):
        assert (low <= value).all(), name
        assert (value <= high).all(), name
        if not wide:
            assert (high - low <= 1e-9).all(), name
        elif name in tight:
            # As functions of one number they have a range of their own.
            x = np.linspace(LOW, HIGH, 400)
            with jax.enable_x64(True):
                curve = np.asarray(jax.vmap(LOOKALIKES[name])(jnp.asarray(x)))
            assert (low >= curve.min(0) - 0.02).all(), name
            assert (high <= curve.max(0) + 0.02).all(), name


C = np.array([[1.0, -2.0, 0.5], [3.0, 0.25, -1.0]])
OPERATIONS = {
    "parts": lambda x: jnp.concatenate([jnp.split(x, [1, 3])[1], x[::-1], jnp.pad(x[:2], (1, 2), constant_values=3.0)]),
    "taken": lambda x: x[jnp.asarray([0, 5, 5, 2])] + jnp.take(x, jnp.asarray([1, 1, 3, 4])),
    "sliced": lambda x: lax.dynamic_slice(x, (2,), (3,)),
    "updated": lambda x: lax.dynamic_update_slice(x, 2 * x[:2], (3,)),
    "turned": lambda x: jnp.tile(jnp.transpose(x.reshape(2, 3)), (1, 2)),
    "sums": lambda x: jnp.concatenate(
        [jnp.cumsum(x), jnp.sum(x.reshape(2, 3), axis=0), jnp.sum(x)[None], jnp.cumsum(x[::-1])]
    ),
    "windows": lambda x: lax.reduce_window(x, 0.0, lax.add, (2,), (1,), "VALID"),
    "sign": lambda x: jnp.stack([1.5 - x, x - 1.5, -x, x + x[::-1], x - x[::-1], x - x]),
    "factors": lambda x: jnp.stack([3 * x, x * -0.25, x / 4, x / -0.5, 0 * x]),
    "matrix": lambda x: C @ x[:3] + x[3:] @ C.T,
    "beside constants": lambda x: C @ jnp.concatenate([x[:1], jnp.asarray([2.0, -3.0])]),
    "constants first": lambda x: jnp.concatenate([jnp.asarray([2.0]), x[:1], x[4:5]]) @ C.T,
    "convolution": lambda x: jnp.convolve(x, jnp.asarray([1.0, -2.0, 0.5]), mode="full"),
    "chosen": lambda x: jnp.where(jnp.asarray([True, False] * 3), x, -x),
    "types": lambda x: x.astype(jnp.float32).astype(float) + jnp.sum(x > 0),
}
PRODUCTS = {
    "product": lambda x: jnp.stack(
        [x[0] * x[1], x[0] * x[0], x[2] ** 2, x[2] ** 3, x[0] ** 4, x[3] ** -1.0, x[3] ** -2.0, x[1] ** 0.5]
    ),
    "powers": lambda x: jnp.stack(
        [2.0 ** x[0], x[1] ** 0, lax.integer_pow(x[3], -3), jnp.square(x[5]), x[5] ** -1, jnp.exp2(x[0])]
    ),
    "quotient": lambda x: jnp.stack(
        [x[0] / x[3], 2 / x[3], 1 / x[5], (x[0] / x[3]) / (x[4] / x[5]), (1 / x[3]) / x[5], x[0] / (x[3] / x[4])]
    ),
    "both vary": lambda x: jnp.concatenate(
        [(x.reshape(2, 3) @ x.reshape(3, 2)).ravel(), jnp.outer(x[:2], x[2:4]).ravel(), (x @ x)[None]]
    ),
    "batched": lambda x: jnp.einsum("ij,ij->i", x.reshape(2, 3), x[::-1].reshape(2, 3)),
    "largest": lambda x: jnp.stack(
        [
            jnp.max(x),
            jnp.min(x),
            jnp.maximum(x[0], x[1]),
            jnp.minimum(x[0], 0.2),
            jnp.clip(x[2], -0.25, 0.5),
            jnp.abs(x[3] - 1.25),
        ]
    ),
    "rows": lambda x: jnp.concatenate([jnp.max(x.reshape(2, 3), axis=1), jnp.min(x.reshape(2, 3), axis=0)]),
    "rounded": lambda x: jnp.stack(
        [jnp.floor(x[0]), jnp.ceil(x[3]), jnp.round(x[4]), jnp.sign(x[5]), lax.round(x[3]), lax.erfc(x[0])]
    ),
    "where it is": lambda x: jnp.stack([jnp.argmax(x), jnp.argmin(x), jnp.argmax(x[:2])]) * 1.0,
    "pooled": lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (2,), (2,), "VALID"),
    "its gradient": lambda x: jax.grad(
        lambda x: jnp.sum(
            lax.reduce_window(x.reshape(2, 3), -jnp.inf, lax.max, (2, 2), (1, 1), "VALID") * jnp.asarray([1.0, -2.0])
        )
    )(x),
    "its derivative": lambda x: jax.jvp(
        lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (2,), (2,), "VALID"), (x,), (jnp.arange(6.0),)
    )[1],
    "decided": lambda x: jnp.stack(
        [
            jnp.where(x[0] > 0, x[1], -x[1]),
            jnp.where((x[3] > 0) & (x[5] < 0), x[0], 9.0),
            jnp.where(x[3] == 7, 9.0, x[0]),
        ]
    ),
}


@pytest.mark.slow
def test_linear_operations_are_exact():
    for name, method, wide, value, low, high in both(OPERATIONS, "crown"):
        assert (low <= value + 1e-12).all(), (name, method)
        assert (value <= high + 1e-12).all(), (name, method)
        if not wide:
            assert (high - low <= 1e-6 if name == "types" else high - low <= 1e-11).all(), (name, method)
        elif method == "crown" and name != "types":
            corners = LOW + (np.arange(64)[:, None] >> np.arange(6) & 1) * (HIGH - LOW)
            with jax.enable_x64(True):
                ends = np.asarray(jax.vmap(OPERATIONS[name])(jnp.asarray(corners)))
            np.testing.assert_allclose(low, ends.min(0), atol=1e-11, err_msg=name)
            np.testing.assert_allclose(high, ends.max(0), atol=1e-11, err_msg=name)


@pytest.mark.slow
def test_products_quotients_and_choices_hold():
    for name, method, wide, value, low, high in both(PRODUCTS, "ibp"):
        assert (low <= value + 1e-12).all(), (name, method)
        assert (value <= high + 1e-12).all(), (name, method)
        assert np.isfinite(low).all(), name
        assert np.isfinite(high).all(), name
        if not wide and name not in ("its gradient", "its derivative", "where it is"):
            assert (high - low <= 1e-10).all(), (name, method)
        elif wide and name in ("largest", "rounded", "pooled", "powers"):
            np.testing.assert_allclose(low, value.min(0), atol=0.05, err_msg=name)
            np.testing.assert_allclose(high, value.max(0), atol=0.05, err_msg=name)
        elif wide and name == "where it is":
            # Ties at the ends count.
            np.testing.assert_allclose([low, high], [[2, 0, 0], [4, 5, 1]], atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ibp", "crown"])
def test_rounding_of_sums_grows_with_their_terms(method):
    # In float32 with ranges in float64: the slack is at least what an unlucky order of summation loses, and not much more.
    n, half = 64, 2.0**-24
    ones = np.ones(n, np.float32)
    functions = {
        "dot": (lambda x: jnp.dot(ones, x, precision="highest"), n, n),
        "matrix": (lambda x: jnp.dot(np.ones((1, n), np.float32), x, precision="highest")[0], n, n),
        "sum": (lambda x: jnp.sum(x), n, n),
        "cumulative": (lambda x: jnp.cumsum(x)[-1], n, n),
        "window": (lambda x: lax.reduce_window(x, np.float32(0), lax.add, (n,), (1,), "VALID")[0], n, n),
        "convolution": (lambda x: jnp.convolve(x, ones, mode="valid", precision="highest")[0], n, n),
        "both": (lambda x: jnp.dot(x, x, precision="highest"), n, n),
        "addition": (lambda x: x[0] + x[1], 1, 2),
        "difference": (lambda x: x[0] - (-x[1]), 1, 2),
        "constant": (lambda x: x[0] + np.float32(1), 1, 2),
        "factor": (lambda x: x[0] * np.float32(3), 1, 3),
        "quotient": (lambda x: x[0] / np.float32(0.3), 1, 3.3),
        "a sum beside a constant": (
            lambda x: jnp.dot(jnp.concatenate([x, ones]), np.ones(2 * n, np.float32), precision="highest"),
            2 * n,
            2 * n,
        ),
        "the sum of a product": (lambda x: jnp.sum(x * x), n, n),
    }
    with jax.enable_x64(True):
        x = jnp.ones(n, jnp.float32)
        found = jax.jit(
            lambda x: bounds.bound(lambda x: [f(x) for f, _, _ in functions.values()], Box(x, x), method=method)
        )(x)
        for (name, (_, terms, size)), low, high in zip(functions.items(), found.lower, found.upper, strict=True):
            slack = (float(high) - float(low)) / 2
            assert slack >= 0.99 * max(terms - 1, 1) * half * size, name
            assert slack <= 8 * (terms + 3) * half * size, name


def test_indices_out_of_range_and_types_that_are_too_narrow():
    box = Box(jnp.zeros(3), jnp.ones(3))
    clipped = lambda x: x.at[jnp.asarray([2, 7, -9])].get(mode="clip")
    found = bounds.bound(clipped, Box(jnp.asarray([0.0, 2.0, 4.0]), jnp.asarray([1.0, 3.0, 5.0])), method="ibp")
    assert found.lower.tolist() == [4.0, 4.0, 0.0]
    assert found.upper.tolist() == [5.0, 5.0, 1.0]
    for function, message in (
        (lambda x: x.at[jnp.asarray([0, 3])].get(mode="fill"), "out of range"),
        (lambda x: x[jnp.argmax(x)], "depend on the input"),
        (lambda x: lax.dynamic_slice(x, (jnp.argmax(x),), (1,)), "depend on the input"),
        (lambda x: x.astype(jnp.float16) @ jnp.ones(3, jnp.float16), "half precision"),
        (lambda x: x.astype(int) * 1.0, "made an integer"),
        (lambda x: x**x, "exponent varies"),
        (lambda x: jnp.where(x > 0, 3, 4) * jnp.where(x > 0, 3, 5), "integers"),
    ):
        with pytest.raises(bounds.UnknownPrimitive, match=message):
            bounds.bound(function, box)
    # Not known before the bounds are evaluated.
    lookup = jax.jit(lambda i: bounds.bound(lambda x: x.at[i].get(mode="fill"), box, method="ibp"))
    inside, outside = lookup(jnp.asarray([0, 2])), lookup(jnp.asarray([0, 3]))
    assert (inside.upper <= 1).all()
    assert np.isinf(np.asarray(outside.upper)).any()
    # Factors that together are 0 or infinite as one number, and divisors that are.
    tiny, large = np.float32(1e-30), np.float32(1e30)
    one = Box(np.float32(1e38), np.float32(1e38))
    lost = bounds.bound(lambda x: x * tiny * tiny, one, method="ibp")
    assert lost.lower <= 0 <= lost.upper
    assert not bool(
        bounds.bound(
            lambda x: x * tiny * large * large * large, Box(np.float32(1e-38), np.float32(1e-38)), method="ibp"
        ).upper
        <= 1e30
    )
    fine = bounds.bound(lambda x: x * np.float32(1e-20) * np.float32(1e-10), one, method="ibp")
    assert fine.lower >= 0.9e8
