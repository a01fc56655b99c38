"""Bounds against what XLA makes of scaled products, sums and quotients: programs whose intermediate values are all in the middle of
the range of their type, with constants and inputs of any size, so that what is merged and reordered is not."""

import math
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from jax import lax

from lyapunov_dsl import bounds

# Programs are built with what they evaluate to: pairs of a function of the inputs and log2 |value|.
Part = tuple[Callable[..., Any], float]


def limits(dtype: Any) -> float:
    """How large the logarithms of values are that programs have as they are written."""
    return 0.8 * float(jnp.finfo(dtype).maxexp)


def number(dtype: Any, logarithm: float) -> Any:
    return dtype(2.0 ** min(max(logarithm, jnp.finfo(dtype).minexp + 1), jnp.finfo(dtype).maxexp - 0.01))


def program(rng: np.random.Generator, dtype: Any, shape: tuple[int, ...]) -> tuple[Callable[..., Any], list[Any]]:
    """A program of a few operations, and its inputs. Drawn from a seed: what hypothesis draws itself is seldom extreme."""
    top = limits(dtype)
    inputs: list[Any] = []

    def constant(logarithm: float) -> Any:
        found = number(dtype, logarithm) * dtype(rng.choice([1.0, -1.0]))
        return np.full(shape, found) if rng.random() < 0.3 else found

    def fresh() -> Part:
        at, logarithm = len(inputs), rng.uniform(-top, top)
        inputs.append(np.full(shape, number(dtype, logarithm)))
        return (lambda *x: x[at]), logarithm

    def scaled(part: Part) -> Part:
        """A part times or over a constant, often a power of two, that brings it nearer to 1 from anywhere."""
        f, here = part
        step = rng.uniform(-0.45 * top, 0.45 * top) - here
        step = float(round(step)) if rng.random() < 0.5 else step
        if rng.random() < 0.5:
            c = constant(step)
            return (lambda *x: f(*x) * c), here + step
        c = constant(-step)
        return (lambda *x: f(*x) / c), here + step

    def tree(depth: int) -> Part:
        if depth == 0:
            leaf = fresh()
            return scaled(leaf) if rng.random() < 0.8 else leaf
        kind = rng.choice(["mul", "mul", "div", "div", "unary", "add", "common", "shift"])
        f, here = tree(depth - 1)
        if kind == "unary":
            return unary(f, here)
        if kind == "shift":
            c, d = constant(here), constant(rng.uniform(-0.9, 1.0) * abs(here))
            both = max(here, math.log2(float(np.max(np.abs(d)))))
            return (lambda *x: (f(*x) + c) - c + d), both
        g, there = tree(int(rng.integers(0, depth)))
        if kind == "common":
            # Brought to a size where the sum, or its terms, are in range.
            step = float(round(rng.uniform(-0.45 * top, 0.45 * top) - max(here, there)))
            c = number(dtype, step)
            return (lambda *x: f(*x) * c + g(*x) * c), max(here, there) + math.log2(float(c))
        if kind == "mul" and abs(here + there) < top:
            return (lambda *x: f(*x) * g(*x)), here + there
        if kind == "div" and abs(here - there) < top:
            return (lambda *x: f(*x) / g(*x)), here - there
        return (lambda *x: f(*x) + g(*x)), max(here, there)

    def unary(f: Callable[..., Any], here: float) -> Part:
        n = int(rng.choice([2, 3, -1, -2]))
        kind = rng.choice(["scale", "power", "power", "neg", "moved"])
        if kind == "power" and abs(n * here) < top:
            return (lambda *x: lax.integer_pow(f(*x), n)), n * here
        if kind == "neg":
            return (lambda *x: -f(*x)), here
        if kind == "moved":
            return (lambda *x: jnp.stack([f(*x), -f(*x)])[0].reshape(1, *shape)[0]), here
        return scaled((f, here))

    return tree(int(rng.integers(1, 5)))[0], inputs


def holds(function: Callable[..., Any], inputs: list[Any], radius: float = 0.0) -> None:
    boxes = [bounds.Box(x - radius * np.abs(x), x + radius * np.abs(x)) for x in inputs]
    found = bounds.bound(function, *boxes, method="ibp")
    lower, upper = np.asarray(found.lower), np.asarray(found.upper)
    for name, run in (("jit", jax.jit(function)), ("eager", function)):
        for place in (inputs, [b.lower for b in boxes], [b.upper for b in boxes]):
            value = np.asarray(run(*map(jnp.asarray, place)))
            anything = np.isinf(lower) & np.isinf(upper) & (lower < upper)
            inside = anything | ((lower <= value) & (value <= upper))
            assert inside.all(), f"{name}: {value} is not within [{lower}, {upper}] at {place}"


@pytest.mark.parametrize("precision", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(), (2,)])
@settings(max_examples=10)
@given(seed=st.integers(0, 2**32 - 1))
def test_bounds_hold_of_random_products_sums_and_quotients(precision: Any, shape: tuple[int, ...], seed: int) -> None:
    rng = np.random.default_rng(seed)
    with jax.enable_x64(True):
        function, inputs = program(rng, precision, shape)
        holds(function, inputs, float(rng.choice([0.0, 1e-3])))


F = np.float32
# Programs whose values are all near 1 as they are written, and what they are when compiled: 0, infinite or NaN.
MERGED = {
    "product": (lambda x, y: (x * F(1e-20)) * (y * F(1e-19)), 1e20, 1e20),
    "product that vanishes": (lambda x, y: (x * F(1e20)) * (y * F(1e10)), 1e-25, 1e-20),
    "three": (lambda x, y: ((x * F(1e10)) * (y * F(1e10))) * (x * F(1e20)), 1e-13, 1e-13),
    "square": (lambda x, y: jnp.square(x / F(1e15)) + y, 1e20, 1.0),
    "cube": (lambda x, y: lax.integer_pow(x / F(1e10), 3) + y, 1e13, 1.0),
    "fourth power": (lambda x, y: (x * F(1e10)) ** 4 + y, 1e-10, 1.0),
    "inverse square": (lambda x, y: lax.integer_pow(x / F(1e15), -2) + y, 1e20, 1.0),
    "pow": (lambda x, y: lax.pow(x / F(1e15), F(2)) + y, 1e20, 1.0),
    "norm": (lambda x, y: jnp.sqrt((x / F(1e10)) ** 2 + (y / F(1e10)) ** 2), 1e20, 1e20),
    "signs": (lambda x, y: (x * F(-1e-20)) * (-(y * F(1e-19))), 1e20, -1e20),
    "shapes": (lambda x, y: ((x * F(1e-20)).reshape(1, 1) * jnp.broadcast_to(y * F(1e-19), (1, 1)))[0, 0], 1e20, 1e20),
    "stack": (lambda x, y: jnp.stack([x * F(1e-20), y])[0] * (y * F(1e-19)), 1e20, 1e20),
    "outer product": (lambda x, y: (x * F(1e-20)).reshape(1) @ (y * F(1e-19)).reshape(1), 1e20, 1e20),
    "matrix of one": (lambda x, y: ((x * F(1e-20)).reshape(1) @ np.full((1, 1), F(1e-25)))[0] * F(1e35) + y, 1e19, 1.0),
    "common factor": (lambda x, y: x * F(2.0**-40) + y * F(2.0**-40), 3e38, 3e38),
    "common factor below": (lambda x, y: x * F(2.0**100) + y * F(2.0**100), 1.5e-38, -1.2e-38),
    "three of a factor": (lambda x, y: x * F(2.0**-9) + y * F(2.0**-9) + x * F(2.0**-9), 1.5e38, 1.5e38),
    "factor of a sum": (lambda x, y: (x * F(2.0**-40) + y * F(2.0**-40)) * (y * F(1e-18)), 1e20, 1e20),
    "quotients": (lambda x, y: (x / y) / (y / x), 1e20, 1.3e20),
    "quotients, deeper": (lambda x, y: ((x / y) / y) / (F(1e-18) / x), 1e18, 1e18),
    "quotient in a quotient": (lambda x, y: x / (y / (x / (y / x))), 1e13, 1.3e13),
    "moved quotient": (lambda x, y: jnp.broadcast_to((x / y).reshape(1), (3,))[1] / (y / x), 1e20, 1.3e20),
    "inverse power": (lambda x, y: lax.integer_pow(x, -2) / (F(1e10) / y), 1e15, 1e25),
    "inverse exponential": (lambda x, y: x / jnp.exp(y), 1e38, 88.5),
    "inverse root": (lambda x, y: x / lax.pow(y, F(1.5)), 1e38, 4e25),
    "broadcast divisor": (lambda x, y: (jnp.stack([x, x]) / jnp.broadcast_to(y, (2,)))[0], 8e37, 8.8e37),
    "zeros": (lambda x, y: ((x * np.array([0, 1e-20], F)) * (y * np.array([1e-19, 1e-19], F)))[0], 1e20, 1e20),
}


@pytest.mark.parametrize("precision", [False, True])
@pytest.mark.parametrize("name", list(MERGED))
def test_what_compilers_merge_is_counted(name: str, precision: bool) -> None:
    function, x, y = MERGED[name]
    with jax.enable_x64(precision):
        holds(function, [F(x), F(y)])
        if precision:
            # In real numbers nothing is lost.
            boxes = [bounds.Box(F(x), F(x)), bounds.Box(F(y), F(y))]
            found = bounds.bound(function, *boxes, rounding="real", method="ibp")
            assert np.isfinite(found.lower)
            assert np.isfinite(found.upper)


def test_guards_do_not_vanish_themselves_in_the_widest_type() -> None:
    with jax.enable_x64(True):
        x = np.float64(1e300)
        for function in (
            lambda x: x / 1e200 / 1e200,
            lambda x: x * 1e-200 * 1e-200,
            lambda x: (x / 1e200) * 1e-200,
            lambda x: -(x / 1e200).reshape(1)[0] / 1e200,
            lambda x: x * 1e-300 * 1e-300 * 1e300,
            lambda x: (x * 1e-290) * (x * 1e-290) * 1e-20,
            lambda x: (x / 1e300) * (x / 1e300),
        ):
            holds(function, [x])


def test_sums_of_constants_round_as_their_largest() -> None:
    # x + (c + d + d + ...), where c takes every d: the values as written are those of the small ones.
    def function(x: Any) -> Any:
        x = x - F(1e8)
        for _ in range(60):
            x = x + F(3.9)
        return x

    with jax.enable_x64(True):
        assert abs(float(jax.jit(function)(F(1e8))) - float(function(jnp.float32(1e8)))) > 3
        holds(function, [F(1e8)])


@pytest.mark.parametrize("method", ["ibp", "crown-ibp", "crown"])
def test_ordinary_products_are_as_tight_as_without_what_is_merged(method: Any) -> None:
    box = bounds.Box(np.array([1.0, 2.0], F), np.array([1.1, 2.1], F))
    scaled = lambda x: (x[0] * F(3)) * (x[1] * F(0.25)) + x[0] * F(0.5) + x[1] * F(0.5)
    plain = bounds.bound(scaled, box, method=method, rounding="real")
    found = bounds.bound(scaled, box, method=method)
    assert float(found.upper - found.lower) <= float(plain.upper - plain.lower) * (1 + 1e-4)
    # Constants that undo each other are no more than one.
    one = bounds.bound(lambda x: x * F(1e30) * F(1e-30) * F(1e30) * F(1e-30), bounds.Box(F(1), F(1)), method=method)
    assert float(one.upper - one.lower) < 1e-5
