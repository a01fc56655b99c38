"""Bounds against what XLA makes of scaled products, sums and quotients: programs whose intermediate values are all in the middle of
the range of their type, with constants and inputs of any size, so that what is merged and reordered is not."""

import functools
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


@st.composite
def programs(draw: Any, dtype: Any, shape: tuple[int, ...]) -> tuple[Callable[..., Any], list[Any]]:
    """A program of two to nine operations, and its inputs."""
    top = limits(dtype)
    size = st.floats(-top, top)
    inputs: list[Any] = []
    parts: list[Part] = []

    def fresh() -> Part:
        at, logarithm = len(inputs), draw(size)
        inputs.append(np.full(shape, number(dtype, logarithm)))
        return (lambda *x: x[at]), logarithm

    def constant(logarithm: float) -> Any:
        found = number(dtype, logarithm) * dtype(draw(st.sampled_from([1.0, 1.0, -1.0])))
        return np.full(shape, found) if draw(st.integers(0, 3)) == 0 else found

    def scaled(part: Part) -> Part:
        # Towards a value of the type, by a power of two every third time.
        f, here = part
        there = draw(size)
        step = there - here
        step = float(round(step)) if draw(st.integers(0, 2)) == 0 else step
        limit = float(jnp.finfo(dtype).maxexp) - 2
        step = min(max(step, -limit), limit)
        if draw(st.booleans()):
            c = constant(step)
            return (lambda *x: f(*x) * c), here + step
        c = constant(-step)
        return (lambda *x: f(*x) / c), here + step

    def pick() -> Part:
        return parts.pop(draw(st.integers(0, len(parts) - 1))) if parts else fresh()

    parts.append(fresh())
    for _ in range(draw(st.integers(2, 9))):
        kind = draw(st.sampled_from(["scale", "scale", "mul", "div", "div", "power", "add", "common", "shift", "inverse", "moved", "neg"]))
        f, here = pick()
        if kind == "scale":
            parts.append(scaled((f, here)))
        elif kind == "neg":
            parts.append(((lambda *x, f=f: -f(*x)), here))
        elif kind == "moved":
            parts.append(((lambda *x, f=f: jnp.stack([f(*x), -f(*x)])[0].reshape(1, *shape)[0]), here))
        elif kind == "power":
            n = draw(st.sampled_from([2, 3, -1, -2]))
            if abs(n * here) < top:
                parts.append(((lambda *x, f=f, n=n: lax.integer_pow(f(*x), n)), n * here))
            else:
                parts.append(scaled((f, here)))
        elif kind == "inverse":
            parts.append(((lambda *x, f=f: 1 / f(*x)), -here))
        elif kind == "shift":
            c, d = constant(here), constant(draw(size))
            there = max(here, math.log2(abs(float(np.max(np.abs(d))))))
            parts.append(((lambda *x, f=f, c=c, d=d: (f(*x) + c) - c + d), there))
        elif kind == "common":
            g, there = pick()
            step = float(round(draw(st.floats(-top, top)) - max(here, there)))
            c = number(dtype, min(max(step, -top), top))
            step = math.log2(float(c))
            parts.append(((lambda *x, f=f, g=g, c=c: f(*x) * c + g(*x) * c), max(here, there) + step))
        else:
            g, there = pick()
            if kind == "add":
                parts.append(((lambda *x, f=f, g=g: f(*x) + g(*x)), max(here, there)))
            elif kind == "mul" and abs(here + there) < top:
                parts.append(((lambda *x, f=f, g=g: f(*x) * g(*x)), here + there))
            elif kind == "div" and abs(here - there) < top:
                parts.append(((lambda *x, f=f, g=g: f(*x) / g(*x)), here - there))
            else:
                parts += [scaled((f, here)), scaled((g, there))]
    while len(parts) > 1:
        (f, here), (g, there) = parts.pop(), parts.pop()
        sign = 1 if abs(here + there) < top else -1
        if abs(here + sign * there) < top:
            parts.append(((lambda *x, f=f, g=g, s=sign: f(*x) * g(*x) if s > 0 else f(*x) / g(*x)), here + sign * there))
        else:
            parts.append(((lambda *x, f=f, g=g: f(*x) + g(*x)), max(here, there)))
    return parts[0][0], inputs


def holds(function: Callable[..., Any], inputs: list[Any], radius: float = 0.0) -> None:
    boxes = [bounds.Box(x - radius * np.abs(x), x + radius * np.abs(x)) for x in inputs]
    found = bounds.bound(function, *boxes, method="interval")
    lower, upper = np.asarray(found.lower), np.asarray(found.upper)
    for name, run in (("jit", jax.jit(function)), ("eager", function)):
        for place in (inputs, [b.lower for b in boxes], [b.upper for b in boxes]):
            value = np.asarray(run(*map(jnp.asarray, place)))
            anything = np.isinf(lower) & np.isinf(upper) & (lower < upper)
            inside = anything | ((lower <= value) & (value <= upper))
            assert inside.all(), f"{name}: {value} is not within [{lower}, {upper}] at {place}"


@pytest.mark.parametrize("precision", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(), (2,)])
@settings(max_examples=40)
@given(data=st.data())
def test_bounds_hold_of_random_products_sums_and_quotients(precision: Any, shape: tuple[int, ...], data: Any) -> None:
    with jax.enable_x64(True):
        function, inputs = data.draw(programs(precision, shape))
        holds(function, inputs, data.draw(st.sampled_from([0.0, 1e-3])))
