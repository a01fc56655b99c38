"""Bounds of functions over boxes and balls: edges of domains, kinks, rounding, control flow, errors, transformations."""

import fractions
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from test_bounds_rules import outside

from lyapunov_dsl import bounds
from lyapunov_dsl.bounds import Ball, Box

METHODS = ("ibp", "crown-ibp", "crown")
inf = np.inf


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> Any:
    return request.param


def box(lower: Any, upper: Any, dtype: Any = None) -> Box:
    return Box(jnp.asarray(lower, dtype), jnp.asarray(upper, dtype))


def inside(values: Any, found: bounds.Bounds) -> bool:
    """Whether samples [count, ...] are between the bounds; NaN is only where these say nothing."""
    return not outside(values, found.lower, found.upper).any()


def network(key: Any, *sizes: int, dtype: Any = None, activation: Any = jnp.tanh) -> Any:
    """Weights of dense layers, and the function of weights and input."""
    pairs = list(zip(sizes[:-1], sizes[1:], strict=True))
    keys = jax.random.split(key, len(pairs))
    draw = lambda k, m, n: (jax.random.normal(k, (n, m), dtype or float) / m**0.5, jnp.full(n, 0.1, dtype))
    layers = [draw(k, *pair) for k, pair in zip(keys, pairs, strict=True)]

    def apply(layers: Any, x: Any) -> Any:
        for w, b in layers[:-1]:
            x = activation(w @ x + b)
        return layers[-1][0] @ x + layers[-1][1]

    return layers, apply


# --- regions


@pytest.mark.parametrize(("center", "radius"), [(0.1, "8/255"), (100.0, "1/10"), (0.0, "1/3"), (-1.0, "0")])
def test_a_box_and_a_ball_around_a_point_are_rounded_outward(precision, center, radius):
    exact, middle = fractions.Fraction(radius), fractions.Fraction(float(precision.type(center)))
    around = Box.around(jnp.asarray([center], precision), float(exact))
    for lower, upper in (
        (around.lower, around.upper),
        Ball(jnp.asarray([center], precision), float(exact)).ranges(),
    ):
        low, high = fractions.Fraction(float(lower[0])), fractions.Fraction(float(upper[0]))
        assert low <= middle - exact <= middle + exact <= high
        assert high - low <= 2 * exact + fractions.Fraction(16 * float(jnp.finfo(precision).eps)) * (
            abs(middle) + exact
        )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: box([1.0], [0.0]), "lower <= upper"),
        (lambda: box([np.nan], [0.0]), "no NaN"),
        (lambda: box([1], [2]), "floating-point"),
        (lambda: box([1.0], [2.0, 3.0]), "one shape"),
        (lambda: Ball(jnp.zeros(2), -1.0), "radius >= 0"),
        (lambda: Ball(jnp.zeros(2), np.nan), "radius >= 0"),
        (lambda: Ball(jnp.zeros(2, int), 1.0), "floating-point center"),
        (lambda: bounds.bound(jnp.sin, jnp.zeros(2)), "a Box or a Ball among"),
    ],
)
def test_what_is_no_region_or_no_option_raises(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_regions_and_constants_are_leaves_of_the_arguments(method):
    function = lambda state, scale: {"y": state["x"] * scale + state["z"], "n": state["k"] + 1}
    state = {"x": box([1.0, 2.0], [2.0, 2.0]), "z": Ball(jnp.zeros(2), 0.5), "k": 3}
    found = bounds.bound(function, state, 2.0, method=method)
    np.testing.assert_allclose(found.lower["y"], [1.5, 3.5], rtol=1e-5)
    np.testing.assert_allclose(found.upper["y"], [4.5, 4.5], rtol=1e-5)
    assert found.lower["n"] == found.upper["n"] == 4


# --- NaN and edges of domains

ANYTHING = (-inf, inf)
EDGES = {
    "log": (jnp.log, (0.0, 1.0), (-inf, 0.0)),
    "log of a negative number": (jnp.log, (-1.0, 1.0), ANYTHING),
    "log1p": (jnp.log1p, (-1.0, 0.0), (-inf, 0.0)),
    "log1p below -1": (jnp.log1p, (-1.5, 0.0), ANYTHING),
    "sqrt": (jnp.sqrt, (0.0, 4.0), (0.0, 2.0)),
    "sqrt of a negative number": (jnp.sqrt, (-1.0, 4.0), ANYTHING),
    "rsqrt": (lax.rsqrt, (1.0, 4.0), (0.5, 1.0)),
    "rsqrt at 0": (lax.rsqrt, (0.0, 4.0), ANYTHING),
    "a quotient": (lambda x: 1 / x, (0.5, 2.0), (0.5, 2.0)),
    "a quotient across 0": (lambda x: 1 / x, (-1.0, 1.0), ANYTHING),
    "a quotient by 0": (lambda x: 1 / x, (0.0, 1.0), ANYTHING),
    "0 / 0": (lambda x: x / x, (0.0, 1.0), ANYTHING),
    "a power": (lambda x: x**0.5, (0.0, 4.0), (0.0, 2.0)),
    "a power of a negative number": (lambda x: x**0.5, (-1.0, 4.0), ANYTHING),
    "a negative power at 0": (lambda x: x**-0.5, (0.0, 4.0), ANYTHING),
    "a negative power": (lambda x: x**-2, (-1.0, 4.0), ANYTHING),
    "0 times infinity": (lambda x: 0 * (1 / x), (-1.0, 1.0), ANYTHING),
    "infinity minus itself": (lambda x: jnp.exp(x) - jnp.exp(x), (0.0, 1e4), ANYTHING),
    "infinity minus infinity": (lambda x: jnp.exp(2 * x) - jnp.exp(x), (0.0, 1e4), ANYTHING),
    "infinity by infinity": (lambda x: jnp.exp(x) / jnp.exp(2 * x), (0.0, 1e4), ANYTHING),
    "sine of infinity": (jnp.sin, (0.0, inf), ANYTHING),
    "a constant NaN": (lambda x: jnp.minimum(x, jnp.nan), (0.0, 1.0), ANYTHING),
    "a NaN not chosen": (lambda x: jnp.where(x > 2, jnp.nan, x), (0.0, 1.0), (0.0, 1.0)),
    "a NaN that may be chosen": (lambda x: jnp.where(x > 0.5, jnp.nan, x), (0.0, 1.0), ANYTHING),
    "the larger of a number and NaN": (lambda x: jnp.maximum(jnp.log(x), 1.0), (-1.0, 1.0), ANYTHING),
    "a softmax with infinity": (lambda x: jax.nn.softmax(jnp.append(x, 0.0))[0], (0.0, inf), ANYTHING),
    "exp of minus infinity": (jnp.exp, (-inf, 0.0), (0.0, 1.0)),
    "tanh of a half-line": (jnp.tanh, (0.0, inf), (0.0, 1.0)),
}


@pytest.mark.parametrize("precision", ["float32", pytest.param("float64", marks=pytest.mark.slow)], indirect=True)
@pytest.mark.parametrize("name", EDGES)
def test_edges_of_domains(precision, name, quick):
    function, ends, expected = EDGES[name]
    region = box(*([v] for v in ends), precision)
    for method in METHODS:
        found = bounds.bound(lambda x: function(x).reshape(()), region, method=method)
        got = (float(found.lower), float(found.upper))
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=2e-4, err_msg=method)
        assert got[0] <= expected[0] <= expected[1] <= got[1]
        if expected == ANYTHING:
            assert not bool(found.upper <= float(jnp.finfo(precision).max))
            assert not bool(found.lower >= float(jnp.finfo(precision).min))


def test_nan_and_empty_boxes_that_are_traced_say_nothing(method, quick):
    functions = [jnp.tanh, lambda x: jnp.where(x < 5, 0 * x, 1.0), lambda x: jnp.minimum(x, 0.0), jax.nn.softmax]
    found = jax.jit(lambda low, high: [bounds.bound(f, Box(low, high), method=method) for f in functions])
    for ends in ((np.nan, 1.0), (0.0, np.nan), (np.nan, np.nan), (1.0, 0.0)):
        for each in found(*(jnp.asarray([v, 0.5]) for v in ends)):
            assert each.lower[0] == -inf
            assert each.upper[0] == inf


def test_a_negative_or_nan_radius_that_is_traced_says_nothing(method, quick):
    of_radius = jax.jit(lambda r: bounds.bound(lambda x: jnp.sum(jnp.tanh(x)), Ball(jnp.zeros(2), r), method=method))
    for radius in (-1.0, np.nan):
        assert not bool(of_radius(radius).upper <= 1e9)
    assert bool(of_radius(1.0).upper <= 2)


# --- kinks: every derivative from either side, and all in between

pool = lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (2,), (2,), "VALID")
mean_normal = lambda x: (x - jnp.mean(x)) * lax.rsqrt(jnp.var(x) + 1e-5)
KINKS = {
    # function, point of the kink, tangent, derivatives to contain
    "relu": (jax.nn.relu, [0.0], [2.0], [[0.0], [2.0]]),
    "abs": (jnp.abs, [0.0], [1.0], [[-1.0], [1.0]]),
    "leaky ReLU": (jax.nn.leaky_relu, [0.0], [1.0], [[0.01], [1.0]]),
    "hard tanh": (jax.nn.hard_tanh, [1.0], [1.0], [[0.0], [1.0]]),
    "clip": (lambda x: jnp.clip(x, -1, 1), [-1.0], [1.0], [[0.0], [1.0]]),
    "maximum": (lambda x: jnp.maximum(x[0], x[1]), [1.0, 1.0], [3.0, -1.0], [3.0, -1.0]),
    "minimum": (lambda x: jnp.minimum(x[0], x[1]), [1.0, 1.0], [3.0, -1.0], [3.0, -1.0]),
    "largest": (jnp.max, [1.0, 1.0, 0.0], [3.0, -1.0, 9.0], [3.0, -1.0]),
    "pool": (pool, [1.0, 1.0, 2.0, 0.0], [3.0, -1.0, 4.0, 9.0], [[3.0, 4.0], [-1.0, 4.0]]),
}


@pytest.mark.parametrize("half", [0.0, 1e-3])
@pytest.mark.parametrize("name", KINKS)
def test_derivatives_at_a_kink_are_all_of_clarke(name, half, quick):
    function, at, tangent, derivatives = KINKS[name]
    at, tangent = np.asarray(at), np.asarray(tangent)
    derivative = lambda x: jax.jvp(function, (x,), (jnp.asarray(tangent, x.dtype),))[1]
    for method in METHODS:
        found = bounds.bound(derivative, box(at - half, at + half), method=method)
        assert inside(np.asarray(derivatives), found)
        if name != "largest":  # whose derivative JAX divides by the number of ties
            assert bool(jnp.all(jnp.isfinite(found.upper)))


@pytest.mark.parametrize("half", [0.0, 1e-3])
def test_gradients_of_pooling_at_ties_are_all_of_clarke(half, method, quick):
    gradient = jax.grad(lambda x: jnp.sum(pool(x) * jnp.asarray([1.0, -2.0])))
    at = np.asarray([1.0, 1.0, 5.0, 5.0])
    found = bounds.bound(gradient, box(at - half, at + half), method=method)
    ties = np.asarray([[1.0, 0, -2, 0], [0, 1.0, -2, 0], [1.0, 0, 0, -2], [0.5, 0.5, -1, -1]])
    assert inside(ties, found)
    assert bool(jnp.all(jnp.abs(found.upper - found.lower) < 2.01))


@pytest.mark.parametrize("half", [0.0, 1e-4, 0.1])
def test_normalization_near_zero_variance(half, quick):
    # The variance of the box' center is 0, and rounding may make it negative.
    tangent = jnp.asarray([1.0, -1.0, 2.0])
    both = lambda x: (mean_normal(x), jax.jvp(mean_normal, (x,), (tangent.astype(x.dtype),))[1])
    samples = 0.7 + half * np.random.default_rng(0).uniform(-1, 1, (200, 3)).astype(np.float32)
    values, slopes = jax.jit(jax.vmap(both))(samples)
    for method in METHODS:
        found = bounds.bound(both, box(samples.min(axis=0), samples.max(axis=0)), method=method)
        assert inside(values, bounds.Bounds(found.lower[0], found.upper[0], ""))
        assert inside(slopes, bounds.Bounds(found.lower[1], found.upper[1], ""))
        assert half > 1e-3 or bool(jnp.all(jnp.isfinite(found.upper[1])))


# --- rounding and equality


def test_a_value_at_one_point_counts(method):
    found = bounds.bound(lambda x: jnp.where(x == 0.3, 100.0, 0.0), box([0.0], [1.0]), method=method)
    assert found.upper[0] >= 100
    assert found.lower[0] <= 0


@pytest.mark.parametrize("order", ["as it comes", "reversed", "from the smallest", "from the largest", "pairs"])
def test_long_sums_in_any_order(order):
    # In float64, the bounds without rounding are far tighter than what orders of summation differ by.
    rng = np.random.default_rng(1)
    w, x = (rng.normal(size=4096).astype(np.float32) for _ in range(2))
    terms = w * x
    if order == "reversed":
        terms = terms[::-1]
    elif order != "pairs":
        terms = terms[np.argsort(np.abs(terms) * (-1 if "largest" in order else 1))] if "from" in order else terms
    total = np.sum(terms, dtype=np.float32) if order == "pairs" else np.cumsum(terms, dtype=np.float32)[-1]
    with jax.enable_x64(True):
        point = box(x, x)
        for method in METHODS:
            found = bounds.bound(lambda v: jnp.dot(w, v, precision="highest"), point, method=method)
            assert inside(total[None], found)
            real = bounds.bound(lambda v: jnp.dot(w, v, precision="highest"), point, method=method, rounding="real")
            assert not inside(total[None], real)


def test_ends_of_a_range_are_no_bounds_where_an_evaluation_is_not_monotone():
    with jax.enable_x64(True):
        x = 2.5 + np.finfo(float).eps * 2 * np.arange(5000)
        y = np.asarray(jax.jit(jnp.tanh)(x))
        drops = np.flatnonzero(y[1:] < y[:-1])
        assert len(drops) > 10, "tanh has become monotone: look at others"
        found = bounds.bound(jnp.tanh, box(x[drops], x[drops + 1]), method="ibp")
    assert inside(y[[drops, drops + 1]], found)


def test_rounding_may_exceed_what_the_real_function_does_not():
    # 2^24 + 1.5 rounds to 2^24 + 2, so that the float32 function reaches 2 though the real one stays at 1.5.
    with jax.enable_x64(True):
        large = jnp.asarray(2.0**24, jnp.float32)
        function = lambda x, c: (x + c) - c
        region = box(0.0, 1.5, jnp.float32)
        assert float(function(jnp.asarray(1.5, jnp.float32), large)) == 2.0
        for method in METHODS:
            real = bounds.bound(function, region, large, method=method, rounding="real")
            held = bounds.bound(function, region, large, method=method)
            assert 1.5 <= float(real.upper) <= 1.5 + 1e-6
            assert not bool(held.upper <= 1.99)
            assert bool(held.upper >= 2)


def test_subnormal_constants_may_be_zero(method):
    weight = np.asarray([[1e-40]], np.float32)
    with jax.enable_x64(True):
        point = box([1e30], [1e30], jnp.float32)
        for function in (lambda x: weight @ x, lambda x: x * weight[0], lambda x: 1e-40 * x):
            found = bounds.bound(function, point, method=method)
            assert inside(np.asarray([[0.0], [1e-10]]), found)


def test_a_rounded_constant_makes_another_function():
    # GELU but for a constant of seven digits.
    with jax.enable_x64(True):
        function = lambda x: 0.5 * x * lax.erfc(-x * 0.7071068)
        x = jnp.linspace(-2, 2, 9)
        for method in METHODS:
            assert inside(function(x)[None], bounds.bound(function, Box(x, x), method=method))


def test_float32_overflows_before_float64_ranges_do(method):
    with jax.enable_x64(True):
        function = lambda x: jnp.minimum(x * jnp.float32(1e30), x)
        product = lambda x: x * jnp.float32(1e30)
        region = box([1e8, 1.0], [1e9, 2.0], jnp.float32)
        assert bounds.bound(product, region, method=method).upper[0] == inf
        assert inside(jax.jit(function)(region.upper)[None], bounds.bound(function, region, method=method))


# --- what is violated by a hair is never proved

MAXIMA = {
    # function of [2] with the largest value 1 on [-1, 1]², and where
    "inner": (lambda x: 1 - jnp.sum((x - jnp.asarray([0.3, -0.2])) ** 2), (0.3, -0.2)),
    "corner": (lambda x: jnp.tanh(2 * x[0] - x[1]) / np.tanh(3.0), (1.0, -1.0)),
    "kink": (lambda x: 1 - jnp.maximum(jnp.abs(x[0] - 0.25), jax.nn.relu(x[1])), (0.25, -0.5)),
    "ridge": (lambda x: 2 * jax.nn.sigmoid(-((x[0] - x[1]) ** 2)), (0.1, 0.1)),
    "softmax": (lambda x: jax.nn.softmax(jnp.append(3 * x, 3.0))[2] * (1 + 2 * np.exp(-6)), (-1.0, -1.0)),
    "network": (lambda x: jnp.sum(jax.nn.relu(jnp.asarray([[1.0, 1], [-1, 1], [1, -1]]) @ x)) / 2, (1.0, 1.0)),
}


@pytest.mark.parametrize("gap", [pytest.param(1e-3, marks=pytest.mark.slow), 1e-6])
@pytest.mark.parametrize("name", MAXIMA)
def test_a_violation_by_a_hair_is_never_proved(name, gap, quick):
    function, top = MAXIMA[name]
    with jax.enable_x64(True):
        best = float(function(jnp.asarray(top)))
        threshold = best - gap
        # Boxes of all sizes around the point, as far as they are in the region.
        halves = jnp.asarray([2.0, 0.5, 1e-2, 1e-4, 1e-7, 0.0])[:, None]
        lower, upper = (jnp.clip(jnp.asarray(top) + side * halves, -1, 1) for side in (-1, 1))
        # The tightest method has the ranges of the others in it, and is the one that would prove too much.
        found = jax.vmap(lambda low, high: bounds.bound(function, Box(low, high), method="crown"))(lower, upper)
        assert not bool(jnp.any(found.upper <= threshold))
        # At the point itself the bound is what is there.
        assert float(found.upper[-1]) <= best + 1e-9


# --- relations between bounds


@pytest.mark.parametrize("precision", [pytest.param("float32", marks=pytest.mark.slow), "float64"], indirect=True)
@pytest.mark.parametrize("activation", [jnp.tanh, jax.nn.relu, jax.nn.gelu, jax.nn.softplus], ids=lambda f: f.__name__)
def test_tighter_methods_are_tighter_and_all_hold(precision, key, activation, quick):
    layers, apply = network(key, 2, 4, 4, 2, dtype=precision, activation=activation)
    x = jax.random.uniform(key, (500, 2), precision, -1, 1)
    values = jax.jit(jax.vmap(lambda x: apply(layers, x)))(x)
    for region in (box(-jnp.ones(2), jnp.ones(2), precision), Ball(jnp.zeros(2, precision), 2**0.5)):
        found = [bounds.bound(apply, layers, region, method=method) for method in METHODS]
        assert all(inside(values, each) for each in found)
        # Planes are always intersected with ranges. Those of tighter ranges need not be better, but mostly are.
        room = 1e-4 if precision == jnp.float32 else 1e-10
        for tight in found[1:]:
            assert bool(jnp.all(tight.upper <= found[0].upper + room))
            assert bool(jnp.all(tight.lower >= found[0].lower - room))
        widths = [float(jnp.sum(each.upper - each.lower)) for each in found]
        assert max(widths[1:]) <= 0.99 * widths[0]
        assert widths[2] <= 1.1 * widths[1]


@pytest.mark.parametrize("precision", ["float32", pytest.param("float64", marks=pytest.mark.slow)], indirect=True)
def test_smaller_boxes_have_ranges_inside(precision, key, quick):
    # Up to rounding: a center and a half-width that are rounded are not monotone in the ends.
    layers, apply = network(key, 3, 5, 2, dtype=precision)
    function = lambda x: (apply(layers, x), x / (2 + x * x), jnp.exp(x) * jnp.sin(3 * x))
    ends = jnp.sort(jax.random.uniform(key, (20, 4, 3), precision, -1, 1), axis=1)
    of = jax.jit(jax.vmap(lambda low, high: bounds.bound(function, Box(low, high), method="ibp")))
    large, small = of(ends[:, 0], ends[:, 3]), of(ends[:, 1], ends[:, 2])
    room = 64 * float(jnp.finfo(precision).eps)
    for outer, inner in zip(large.lower, small.lower, strict=True):
        assert bool(jnp.all(outer <= inner + room * (1 + jnp.abs(outer))))
    for outer, inner in zip(large.upper, small.upper, strict=True):
        assert bool(jnp.all(outer >= inner - room * (1 + jnp.abs(outer))))


def encoder(key: Any, dtype: Any) -> Any:
    kernel, head = jax.random.normal(key, (3, 1, 3, 3), dtype) / 3, jax.random.normal(key, (2, 12), dtype) / 3

    def apply(image: Any) -> Any:
        x = jax.nn.relu(lax.conv(image[None, None], kernel, (1, 1), "SAME"))
        x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")
        return jnp.tanh(head @ x.reshape(-1))

    return apply


@pytest.mark.parametrize("precision", ["float32", pytest.param("float64", marks=pytest.mark.slow)], indirect=True)
def test_the_width_of_bounds_goes_with_that_of_the_box(precision, key, quick):
    apply = encoder(key, precision)
    image = jax.random.uniform(key, (4, 4), precision)
    for method in ("ibp", "crown-ibp"):
        of = jax.jit(lambda r, m=method: bounds.bound(apply, Box(image - r, image + r), method=m))
        widths = [float(jnp.max(found.upper - found.lower)) for found in (of(10.0**-k) for k in (1, 2, 3, 9))]
        assert widths[1] < 0.2 * widths[0]
        assert widths[2] < 0.2 * widths[1]
        assert widths[3] < (1e-3 if precision == jnp.float32 else 1e-7)


# --- transformations


@pytest.mark.parametrize("precision", [pytest.param("float32", marks=pytest.mark.slow), "float64"], indirect=True)
def test_jit_vmap_and_eager_agree_and_hold(precision, key, quick):
    layers, apply = network(key, 2, 3, 2, dtype=precision)
    # Twice the same network, whose results the engine takes for one where it can.
    function = lambda layers, x: jax.nn.logsumexp(apply(layers, x)) - apply(layers, x)[0]
    center = jax.random.normal(key, (2, 2), precision)
    of = lambda layers, c: bounds.bound(function, layers, Box(c - 0.1, c + 0.1), method="crown-ibp")
    samples = center[:, None] + 0.1 * jax.random.uniform(key, (2, 100, 2), precision, -1, 1)
    values = jax.vmap(jax.vmap(lambda x: function(layers, x)))(samples)
    mapped = jax.jit(jax.vmap(of, (None, 0)))(layers, center)
    eager = of(layers, center[0])
    room = 1e3 * float(jnp.finfo(precision).eps)
    np.testing.assert_allclose(mapped.lower[0], eager.lower, rtol=room, atol=room)
    np.testing.assert_allclose(mapped.upper[0], eager.upper, rtol=room, atol=room)
    assert inside(values[0], eager)
    assert all(inside(values[i], bounds.Bounds(mapped.lower[i], mapped.upper[i], "")) for i in range(2))


@pytest.mark.parametrize(
    "activation", [jnp.tanh, pytest.param(jax.nn.relu, marks=pytest.mark.slow)], ids=lambda f: f.__name__
)
def test_gradients_of_bounds_by_weights_and_by_the_box(key, activation, quick):
    with jax.enable_x64(True):
        layers, apply = network(key, 2, 2, 1, activation=activation)
        loss = lambda layers, x: apply(layers, x)[0] ** 2
        for method in ("ibp", "crown"):

            def upper(layers: Any, low: Any, high: Any, method: Any = method) -> Any:
                # Weights closed over.
                return bounds.bound(lambda x: loss(layers, x), Box(low, high), method=method).upper

            args = (layers, jnp.asarray([-0.4, 0.1]), jnp.asarray([0.3, 0.5]))
            gradient = jax.jit(jax.grad(upper, argnums=(0, 1, 2)))(*args)
            assert all(bool(jnp.all(jnp.isfinite(g))) for g in jax.tree.leaves(gradient))
            tangents = jax.tree.map(lambda v: jnp.cos(jnp.arange(1.0, v.size + 1)).reshape(v.shape), args)
            moved = [jax.tree.map(lambda a, b, s=s: a + s * b, args, tangents) for s in (-1e-6, 1e-6)]
            before, after = (jax.jit(upper)(*each) for each in moved)
            exact = sum(jnp.vdot(a, b) for a, b in zip(*map(jax.tree.leaves, (gradient, tangents)), strict=True))
            # Where lines touch an S-shaped function is taken for fixed: any place is sound, and this one is nearly the best.
            rough = activation is jnp.tanh and method == "crown"
            np.testing.assert_allclose(exact, (after - before) / 2e-6, rtol=0.3 if rough else 2e-4, atol=1e-6)


def test_gradients_at_a_single_point_are_finite(key, quick):
    layers, apply = network(key, 2, 3, 1)
    point = jnp.zeros(2)
    for region in (lambda r: Box(point - r, point + r), lambda r: Ball(point, r)):
        width = lambda layers, r, region=region: bounds.bound(apply, layers, region(r), method="crown-ibp").upper[0]
        gradient = jax.jit(jax.grad(width, argnums=(0, 1)))(layers, 0.0)
        assert all(bool(jnp.all(jnp.isfinite(g))) for g in jax.tree.leaves(gradient))


def test_a_linear_function_of_a_ball_is_bounded_exactly(precision):
    w = jnp.asarray([3.0, -4.0], precision)
    found = bounds.bound(lambda x: w @ x + 1, Ball(jnp.ones(2, precision), 0.1), method="crown-ibp")
    np.testing.assert_allclose([found.lower, found.upper], [-0.5, 0.5], atol=1e-4)
    assert found.lower <= -0.5
    assert found.upper >= 0.5


# --- control flow and calls


@jax.custom_jvp
def doubled(x: Any) -> Any:
    return 2 * x


doubled.defjvp(lambda primals, tangents: (doubled(*primals), 5 * tangents[0]))


@jax.custom_vjp
def tripled(x: Any) -> Any:
    return 3 * x


tripled.defvjp(lambda x: (3 * x, None), lambda _, g: (7 * g,))


def _while(x: Any) -> Any:
    return lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, jnp.sin(c[1])), (0, x))[1]


KERNEL = jnp.asarray(np.random.default_rng(1).normal(size=(2, 1, 2, 2)), jnp.float32)
CALLS = {
    "jit": jax.jit(lambda x: jnp.sin(x) + 1),
    "nested jit": jax.jit(lambda x: jax.jit(jnp.tanh)(x) * 2),
    "vmap": lambda x: jax.vmap(jnp.sin)(x),
    "remat": jax.checkpoint(lambda x: jnp.sin(jnp.sin(x))),
    "gradient of remat": jax.grad(lambda x: jnp.sum(jax.checkpoint(lambda x: jnp.sin(jnp.sin(x)))(x))),
    "custom_jvp": doubled,
    "derivative of custom_jvp": lambda x: jax.jvp(doubled, (x,), (x,))[1],
    "custom_vjp": tripled,
    "derivative of custom_vjp": jax.grad(lambda x: jnp.sum(tripled(x) * x)),
    "scan": lambda x: lax.scan(lambda c, w: (jnp.tanh(w * c), c), x, jnp.asarray([1.0, -2.0, 0.5]))[0],
    "scan with results": lambda x: lax.scan(lambda c, v: (c + v, c * v), 0.5, x, reverse=True)[1],
    "scan of no steps": lambda x: lax.scan(lambda c, v: (c + v, c), x, jnp.zeros((0, 2)))[0],
    "fori_loop": lambda x: lax.fori_loop(0, 3, lambda i, v: v + i * jnp.sin(v), x),
    "gradient of scan": jax.grad(lambda x: jnp.sum(lax.fori_loop(0, 3, lambda i, v: jnp.sin(v) * 2, x))),
    "while": _while,
    "decided cond": lambda x: lax.cond(jnp.asarray(2) > 1, jnp.sin, jnp.cos, x),
    "undecided cond": lambda x: lax.cond(x[0] > 0.1, lambda v: v + 1, lambda v: v - 1, x),
    "cond decided by the box": lambda x: lax.cond(x[0] > -5, lambda v: v, lambda v: v * 1e9, x),
    "derivative of a convolution along a constant": lambda x: (
        jax.jvp(lambda v: lax.conv(v.reshape(1, 1, 1, 2), KERNEL, (1, 1), "SAME"), (x,), (jnp.asarray([1.0, 0.3]),))[1]
        * x
    ),
    "a product of constants": lambda x: (KERNEL[0, 0] @ KERNEL[1, 0].T) @ x,
    "undecided switch": lambda x: lax.switch(jnp.argmax(x), [jnp.sin, jnp.cos], x),
}


@pytest.mark.parametrize("name", CALLS)
def test_calls_loops_and_branches(name, quick):
    function = CALLS[name]
    samples = np.random.default_rng(0).uniform(-0.5, 0.7, (100, 2)).astype(np.float32)
    values = jax.jit(jax.vmap(function))(samples)
    region = box(samples.min(axis=0), samples.max(axis=0))
    for method in METHODS:
        found = bounds.bound(function, region, method=method)
        assert inside(values, found)
        # And not by saying nothing.
        assert bool(jnp.all(found.upper - found.lower < 16))


def _line(function: Any) -> str:
    """The file and line of a function of one line."""
    return f"test_bounds.py:{function.__code__.co_firstlineno}"


unknown_svd = lambda x: jnp.linalg.svd(x, compute_uv=False)
unknown_sort = lambda x: jnp.argsort(x)
unknown_digamma = lambda x: lax.digamma(x)
UNKNOWN = {
    "svd": (unknown_svd, unknown_svd, "svd"),
    "sort": (unknown_sort, unknown_sort, "sort"),
    "digamma": (unknown_digamma, unknown_digamma, "digamma"),
    "in jit": (jax.jit(unknown_digamma), unknown_digamma, "digamma"),
    "in vmap": (jax.vmap(unknown_digamma), unknown_digamma, "digamma"),
    "in a loop": (lambda x: lax.fori_loop(0, 2, lambda i, v: unknown_digamma(v), x), unknown_digamma, "digamma"),
    "in a function": (lambda x: jnp.tanh(unknown_digamma(x) + 1), unknown_digamma, "digamma"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_operation_without_a_rule_is_named_with_its_shapes_and_line(name):
    function, source, primitive = UNKNOWN[name]
    with pytest.raises(bounds.UnknownPrimitive) as error:
        bounds.bound(function, box(jnp.ones((3, 3)), jnp.full((3, 3), 2.0)))
    assert f"primitive {primitive} on float32[3,3]" in str(error.value)
    assert _line(source) in str(error.value)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: lax.while_loop(lambda v: v[0] < 3, lambda v: v + 1, x), "number of turns depends on the input"),
        (lambda x: lax.scan(lambda c, _: (c + 1, None), x, length=11)[0], "a scan of more than 10 steps"),
        (lambda x: lax.while_loop(lambda c: c[0] < 10**6, lambda c: (c[0] + 1, c[1]), (0, x))[1], "more than 10"),
        (lambda x: x[jnp.argmax(x)], "indices that depend on the input"),
        (lambda x: lax.dynamic_slice(x, (jnp.argmax(x),), (1,)), "indices that depend on the input"),
        (lambda x: jnp.take(x, jnp.asarray([5])), "filled with NaN"),
        (lambda x: x**x, "whose exponent varies"),
        (lambda x: x.astype(jnp.float16) @ jnp.ones(2, jnp.float16), "half precision"),
        (lambda x: x.astype(int), "made an integer"),
    ],
)
def test_what_is_not_supported_of_an_operation_raises(function, message, monkeypatch):
    # A loop of 10,000 turns takes seconds to read.
    monkeypatch.setattr(bounds._graph, "TURNS", 10)
    with pytest.raises(bounds.UnknownPrimitive, match=message):
        bounds.bound(function, box([0.0, 1.0], [1.0, 2.0]))
