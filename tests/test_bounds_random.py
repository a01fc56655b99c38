"""Bounds of random expressions and networks, and of their derivatives, against samples, corners and points of ascent."""

import os
from collections.abc import Callable
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import quickly
from jax import lax

from lyapunov_dsl import bounds

METHODS = ("ibp", "crown-ibp", "crown")
FAST = hypothesis.settings(max_examples=5)
FEW = hypothesis.settings(max_examples=1)
MANY = hypothesis.settings(max_examples=1 if "LYAPUNOV_DSL_REDUCED" in os.environ else 500)
SIZE = 3
SEEDS = st.integers(0, 2**32 - 1)
# The type of the function, and whether ranges are wider than it.
KINDS = st.sampled_from([("float32", False), ("float32", True), ("float64", True)])
REGIONS = st.sampled_from(["box", "ball"])

_rng = np.random.default_rng(0)
MATRICES = _rng.normal(size=(4, SIZE, SIZE))


def matrix(x: Any, index: int) -> Any:
    return jnp.asarray(MATRICES[index], x.dtype)


UNARY: list[Callable[[Any], Any]] = [
    jnp.tanh, jnp.sin, jnp.cos, jnp.arctan, jax.nn.sigmoid, lax.erf, lax.erfc, jnp.abs, jnp.square, jnp.exp, jnp.expm1, jnp.exp2,
    jax.nn.relu, jax.nn.softplus, jax.nn.gelu, jax.nn.silu, jax.nn.elu, jnp.floor, jnp.sign, jnp.round, jnp.log, jnp.sqrt,
    lambda x: jax.nn.gelu(x, approximate=False),
    lambda x: jnp.log1p(x * x), lambda x: jnp.sqrt(0.1 + x * x), lambda x: lax.rsqrt(1 + x * x), lambda x: 1 / (1.5 + jnp.sin(x)),
    lambda x: x**3, lambda x: x**-2, lambda x: (1 + x * x) ** 0.3, lambda x: 1.7**x, lambda x: 0.5 - 2 * x,
    lambda x: jnp.clip(x, -0.5, 0.7), lambda x: jnp.where(x > 0.3, x, -1.0), lambda x: matrix(x, 0) @ x, lambda x: x @ matrix(x, 1) + 1,
    jax.nn.softmax, jax.nn.log_softmax, lambda x: jax.nn.logsumexp(x) - x, lambda x: jnp.cumsum(x), lambda x: x[::-1],
    lambda x: jnp.max(x) + x, lambda x: jnp.min(x) * x, lambda x: (x - jnp.mean(x)) * lax.rsqrt(jnp.var(x) + 1e-3),
    lambda x: jnp.roll(x, 1), lambda x: jnp.pad(x[1:], (0, 1)), lambda x: x / jnp.sum(1 + x * x),
    lambda x: jnp.where(jnp.argmax(x) == 1, x, 2 * x), lambda x: jnp.ceil(2 * x) / 2,
]  # fmt: skip
BINARY: list[Callable[[Any, Any], Any]] = [
    lambda x, y: x + y, lambda x, y: x - y, lambda x, y: x * y, jnp.maximum, jnp.minimum, lambda x, y: x / (1 + y * y),
    lambda x, y: jnp.where(x < y, x, 0.5 * y), jnp.logaddexp, lambda x, y: jnp.dot(x, y) * x, lambda x, y: jnp.outer(x, y) @ x,
    lambda x, y: jax.nn.softmax(x) * y, lambda x, y: jnp.sum(jax.nn.softmax(x) * y) - y,
    lambda x, y: jnp.concatenate([x[:1], y[1:]]), lambda x, y: jnp.where((x > 0) & (y > 0), x, y), lambda x, y: x / y,
]  # fmt: skip


def expression(rng: np.random.Generator) -> Callable[[Any], Any]:
    """A random composition of both, of [3], in which values occur several times."""
    steps = []
    for count in range(1, rng.integers(2, 6)):
        pair = rng.integers(0, count, 2)
        steps.append(
            (UNARY[rng.integers(len(UNARY))], pair[:1])
            if rng.random() < 0.6
            else (BINARY[rng.integers(len(BINARY))], pair)
        )

    def apply(x: Any) -> Any:
        values = [x]
        for function, places in steps:
            values.append(function(*(values[p] for p in places)))
        return values[-1] + 0.1 * values[-2]

    return apply


def derived(function: Callable[[Any], Any], which: str) -> Callable[[Any], Any]:
    """The function or a derivative."""
    if which == "jvp":
        return lambda x: jax.jvp(function, (x,), (jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape),))[1]
    if which == "grad":
        return jax.grad(lambda x: jnp.sum(function(x)))
    return function


def candidates(rng: np.random.Generator, function: Callable, center: Any, radius: float, kind: str, dtype: Any) -> Any:
    """Samples and corners of a region, and where steps up the gradient of every result lead from them."""
    shape = center.shape
    inner, corners = rng.uniform(-1, 1, (40, *shape)), rng.choice([-1.0, 1.0], (20, *shape))
    offsets = np.concatenate([inner, corners, np.zeros((1, *shape))])
    length = lambda v: np.maximum(np.sqrt(np.sum(v**2, axis=tuple(range(1, v.ndim)), keepdims=True)), 1e-30)
    if kind == "ball":
        offsets = offsets / np.maximum(length(offsets), 1) * 0.999
    limit = (lambda v: np.clip(v, -1, 1)) if kind == "box" else (lambda v: v / np.maximum(length(v), 1) * 0.999)
    x = (center + radius * offsets).astype(dtype)
    weight = rng.normal(size=jax.eval_shape(function, x[0]).shape).astype(dtype)
    slope = jax.vmap(jax.grad(lambda v: jnp.sum(function(v) * weight)))
    climbing = offsets[:10]
    found = [x]
    for _ in range(3):
        with np.errstate(all="ignore"):
            step = np.nan_to_num(np.asarray(slope((center + radius * climbing).astype(dtype)), float))
        climbing = limit(climbing + 0.5 * (np.sign(step) if kind == "box" else step / length(step)))
        found.append((center + radius * climbing).astype(dtype))
    return np.concatenate(found)


def check(
    function: Callable, center: Any, radius: float, kind: str, dtype: Any, rng: Any, methods: Any = METHODS
) -> None:
    """All candidates are inside of all bounds, whatever evaluates them."""
    with quickly():
        points = candidates(rng, function, center, radius, kind, dtype)
    if kind == "box":
        region: Any = bounds.Box(np.min(points, axis=0), np.max(points, axis=0))
    else:
        region = bounds.Ball(center.astype(dtype), radius)
    evaluated = [np.asarray(jax.jit(jax.vmap(function))(points))]
    with quickly():
        evaluated.append(np.asarray(jax.vmap(function)(points)))
    for method in methods:
        with quickly():
            found = bounds.bound(function, region, method=method)
        lower, upper = np.asarray(found.lower, float), np.asarray(found.upper, float)
        for values in evaluated:
            anything = (lower == -np.inf) & (upper == np.inf)
            held = np.where(np.isnan(values), anything, (lower <= values) & (values <= upper))
            assert held.all(), (method, np.argwhere(~held)[:3], values[~held][:3])


def an_expression(
    seed: int, kind: tuple[str, bool], region: str, which: str, radius: float, scale: float, methods: Any = METHODS
) -> None:
    dtype, wide = kind
    rng = np.random.default_rng(seed)
    with jax.enable_x64(wide):
        function = derived(expression(rng), which)
        check(function, scale * rng.normal(size=SIZE), radius, region, np.dtype(dtype), rng, methods)


EXPRESSIONS = hypothesis.given(
    SEEDS,
    KINDS,
    REGIONS,
    st.sampled_from(["value", "jvp", "grad"]),
    st.sampled_from([0.0, 1e-6, 0.1, 1.0]),
    st.sampled_from([0.0, 1.0, 10.0]),
)


@FAST
@EXPRESSIONS
def test_random_expressions(seed, kind, region, which, radius, scale):
    # The tightest method intersects what the others know.
    an_expression(seed, kind, region, which, radius, scale, METHODS[-1:])


@pytest.mark.slow
@MANY
@EXPRESSIONS
def test_many_random_expressions(seed, kind, region, which, radius, scale):
    an_expression(seed, kind, region, which, radius, scale)


ACTIVATIONS = [jnp.tanh, jax.nn.relu, jax.nn.sigmoid, jax.nn.softplus, jax.nn.gelu, jax.nn.silu]
ACTIVATIONS += [lambda x: jax.nn.gelu(x, approximate=False)]


def layer_norm(x: Any) -> Any:
    return (x - jnp.mean(x)) * lax.rsqrt(jnp.var(x) + 1e-5)


def group_norm(x: Any) -> Any:
    """Two channels in a group of their own each."""
    return jax.vmap(layer_norm)(x)


HEADS = [
    lambda z: z,
    jax.nn.softmax,
    lambda z: jax.nn.logsumexp(z)[None],
    lambda z: -jax.nn.log_softmax(z)[:1],
    lambda z: (jax.nn.logsumexp(z) - z[1])[None],
]


def network(rng: np.random.Generator, dtype: Any) -> Callable[[Any], Any]:
    """A random encoder of an image [1, 4, 4]."""
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape) / np.prod(shape[1:]) ** 0.5, dtype)
    kernel, bias, dense, last = draw(2, 1, 3, 3), draw(2)[:, None, None], draw(3, 8), draw(3, 3)
    norm = [lambda x: x, layer_norm, group_norm][rng.integers(3)]
    first, second = (ACTIVATIONS[i] for i in rng.integers(0, len(ACTIVATIONS), 2))
    window = lambda x, start, by: lax.reduce_window(x, start, by, (1, 2, 2), (1, 2, 2), "VALID")
    pool = [lambda x: window(x, -jnp.inf, lax.max), lambda x: window(x, 0.0, lax.add) / 4][rng.integers(2)]
    head = HEADS[rng.integers(len(HEADS))]

    def apply(image: Any) -> Any:
        x = lax.conv(image[None], kernel, (1, 1), "SAME")[0] + bias
        x = pool(first(norm(x)))
        return head(last @ second(dense @ x.reshape(-1)))

    return apply


def a_network(
    seed: int, kind: tuple[str, bool], region: str, which: str, radius: float, methods: Any = METHODS
) -> None:
    dtype, wide = kind
    rng = np.random.default_rng(seed)
    with jax.enable_x64(wide):
        function = derived(network(rng, dtype), which)
        check(function, rng.uniform(size=(1, 4, 4)), radius, region, np.dtype(dtype), rng, methods)


NETWORKS = hypothesis.given(
    SEEDS, KINDS, REGIONS, st.sampled_from(["value", "jvp", "grad"]), st.sampled_from([0.0, 1e-4, 0.05, 0.5])
)


@FEW
@NETWORKS
def test_random_networks(seed, kind, region, which, radius):
    a_network(seed, kind, region, which, radius, methods=("crown-ibp",))


@pytest.mark.slow
@MANY
@NETWORKS
def test_many_random_networks(seed, kind, region, which, radius):
    a_network(seed, kind, region, which, radius)
