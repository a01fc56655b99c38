"""Operations that change nothing, between two that compilers merge: programs whose values are all in the middle of the range of
their type as they are written, and infinite, 0 or NaN where what stands on both sides becomes one."""

import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lyapunov_dsl import bounds

Function = Callable[[Any], Any]


def flat(v: Any) -> Any:
    return jnp.reshape(v, (-1,))


def operations(kind: Any) -> dict[str, Function]:
    """Operations on an array of one entry. Most change nothing, some as far as a compiler sees."""
    one, zero, c = kind(1), kind(0), kind(1.5)
    copies = lambda v, n: jnp.broadcast_to(jnp.reshape(v, ()), (n,))
    known = lambda number: np.full(1, number, kind)
    positive = {
        "|v|": jnp.abs,
        "v v": lambda v: v * v,
        "exp v": jnp.exp,
        "relu v": jax.nn.relu,
        "max(v, 0)": lambda v: jnp.maximum(v, 0),
        "sqrt v": jnp.sqrt,
    }
    return {
        "nothing": lambda v: v,
        # Reductions, and what goes along an axis of one entry.
        "max": jnp.max,
        "min": jnp.min,
        "sum": jnp.sum,
        "sum that keeps its axis": lambda v: jnp.sum(v, keepdims=True),
        "product": jnp.prod,
        "mean": jnp.mean,
        "median": jnp.median,
        "mean of squares": lambda v: jnp.sqrt(jnp.mean(jnp.square(v))),
        "norm": jnp.linalg.norm,
        "sort": jnp.sort,
        "cumulative sum": jnp.cumsum,
        "cumulative product": jnp.cumprod,
        "cumulative maximum": lambda v: lax.cummax(flat(v)),
        "largest k": lambda v: lax.top_k(flat(v), 1)[0],
        "window of one": lambda v: lax.reduce_window(flat(v), -np.inf, lax.max, (1,), (1,), "VALID"),
        "sum in a window of one": lambda v: lax.reduce_window(flat(v), zero, lax.add, (1,), (1,), "VALID"),
        "vmap of max": jax.vmap(lambda v: jnp.max(v[None])),
        "argmin": lambda v: v * (1 + jnp.argmin(flat(v))),
        "log-sum-exp": jax.nn.logsumexp,
        "softmax": lambda v: jax.nn.softmax(v) * v,
        # Copies.
        "max of copies": lambda v: jnp.max(jnp.stack([v, v]), 0),
        "min of copies": lambda v: jnp.min(jnp.concatenate([flat(v), flat(v)]), keepdims=True),
        "max of equals": lambda v: jnp.max(jnp.stack([v, v * one])),
        "mean of copies": lambda v: jnp.mean(copies(v, 3)),
        "sum of copies": lambda v: jnp.sum(copies(v, 3)),
        "sum of many copies": lambda v: jnp.sum(copies(v, 64)),
        "product of copies": lambda v: jnp.prod(copies(v, 2)),
        "product of three": lambda v: jnp.prod(jnp.stack([v, v, v]), 0),
        "cumulative product of copies": lambda v: jnp.cumprod(jnp.stack([v, v]), 0)[1],
        "sum of two": lambda v: jnp.sum(jnp.stack([v, v]), 0),
        "half of two": lambda v: (v + v) / 2,
        "sum of scaled copies": lambda v: jnp.sum(copies(v, 3) * kind(2)),
        "max of scaled copies": lambda v: jnp.max(copies(v, 3) * kind(2)),
        "mean of mapped copies": lambda v: jnp.mean(jax.vmap(lambda u: u * v)(np.full(4, 2, kind))),
        "scalar product of copies": lambda v: jnp.dot(copies(v * kind(2), 3), np.ones(3, kind)),
        "sum of squares of copies": lambda v: jnp.sum(jnp.square(copies(v, 3))),
        "mean of an outer product": lambda v: jnp.mean(jnp.outer(v * kind(2), np.ones(4, kind)), 1),
        "norm of copies": lambda v: jnp.linalg.norm(copies(v, 4)) / 2,
        # Choices.
        "where": lambda v: jnp.where(v > kind(0.2), v, v),
        "where of equals": lambda v: jnp.where(v > kind(0.2), v, v * jnp.exp(zero)),
        "where it is finite": lambda v: jnp.where(jnp.isfinite(v), v, v),
        "where, nested": lambda v: jnp.where(v > zero, v, jnp.where(v < zero, v, v)),
        "maximum": lambda v: jnp.maximum(v, v),
        "maximum of equals": lambda v: jnp.maximum(v, v / c * c),
        "minimum": lambda v: jnp.minimum(v, v),
        "clamp": lambda v: lax.clamp(v, v, v),
        "one of three": lambda v: lax.select_n(jnp.int32(flat(v)[0] > 0.2), v, v, v),
        "leaky relu": lambda v: jax.nn.leaky_relu(v, 1.0),
        "branches": lambda v: lax.cond(flat(v)[0] > 0.2, lambda v: v * c, lambda v: v * c, v),
        "constant choice": lambda v: v * jnp.where(v > kind(0.2), kind(2), kind(2)),
        **{
            f"where {name} >= 0": lambda v, f=f: jnp.where(f(v) >= 0, v, 3 * v)  # pyright: ignore[reportCallIssue]
            for name, f in positive.items()
        },
        "where |v| < 0": lambda v: jnp.where(jnp.abs(v) < 0, 3 * v, v),
        "plus a comparison": lambda v: v + (jnp.abs(v) < 0),
        "times a comparison": lambda v: v * (jnp.abs(v) >= 0),
        "minus a choice": lambda v: v - jnp.where(jnp.exp(v) < 0, v, 0),
        "times a choice": lambda v: v * jnp.where(~(jnp.abs(v) < 0), kind(1), kind(0)),
        "a sum in a stack": lambda v: jnp.stack([v + kind(0.25), jnp.sin(v)])[0] - kind(0.25),
        "a product in a stack": lambda v: jnp.stack([v * kind(3), jnp.sin(v)])[0] / kind(3),
        "not a number": jnp.nan_to_num,
        # Constants.
        "plus sin(0)": lambda v: v + jnp.sin(zero),
        "plus an array of sin(0)": lambda v: v + jnp.sin(known(0)),
        "minus zeros": lambda v: v - known(0),
        "zeros minus": lambda v: known(0) - v,
        "plus and minus": lambda v: v + kind(0.25) - kind(0.25),
        "twice from": lambda v: kind(0.25) - (kind(0.25) - v),
        "times exp(0)": lambda v: v * jnp.exp(zero),
        "over exp(0)": lambda v: v / jnp.exp(zero),
        "times 1": lambda v: v * one,
        "times cos(pi)": lambda v: v * jnp.cos(kind(np.pi)),
        "times sqrt(1)": lambda v: v * jnp.sqrt(one),
        "over and times": lambda v: v / c * c,
        "times and over": lambda v: v * c / c,
        "times a third of 3": lambda v: v * kind(3) * (one / kind(3)),
        "to the power exp(0)": lambda v: v ** jnp.exp(zero),
        "times its power 0": lambda v: v * lax.pow(v, zero),
        "polynomial": lambda v: jnp.polyval(np.array([1, 0], kind), v),
        "two minus one": lambda v: 2 * v - v,
        "loop": lambda v: lax.fori_loop(0, 3, lambda i, x: x * one, v),
        "checkpoint": jax.checkpoint(lambda v: v * one),
        "gradient": jax.vmap(lambda v: jax.grad(lambda u: u * v)(v)),
        "derivative": lambda v: jax.jvp(lambda u: u * one, (v,), (v,))[1],
        # Inverses.
        "log(exp)": lambda v: jnp.log(jnp.exp(v)),
        "log2(exp2)": lambda v: jnp.log2(jnp.exp2(v)),
        "log of a square of exp": lambda v: jnp.log(jnp.exp(v) * jnp.exp(v)) / 2,
        "log of a product of exponentials": lambda v: jnp.log(jnp.exp(v) * jnp.exp(v * kind(2))),
        "1 / (1 / v)": lambda v: 1 / (1 / v),
        "3 / (3 / v)": lambda v: kind(3) / (kind(3) / v),
        "inverse powers": lambda v: lax.integer_pow(lax.integer_pow(v, -1), -1),
        "inverse powers by pow": lambda v: lax.pow(lax.pow(v, -one), -one),
        "root of a square": lambda v: jnp.sqrt(v * v),
        "root by pow": lambda v: lax.pow(v * v, kind(0.5)),
        "square of a root": lambda v: jnp.square(jnp.sqrt(v)),
        "|v|": jnp.abs,
        "|v v|": lambda v: jnp.abs(v * v),
        "|exp v|": lambda v: jnp.abs(jnp.exp(v) * kind(2)),
        "v v / v": lambda v: v * v / v,
        "log of a root": lambda v: jnp.log(jnp.sqrt(v + one)),
        # Products, and places of arrays.
        "matrix product": lambda v: flat(v) @ np.eye(1, dtype=kind),
        "scalar product": lambda v: jnp.vdot(v, known(1)),
        "einsum": lambda v: jnp.einsum("i,ij->j", flat(v), np.ones((1, 1), kind)),
        "convolution": lambda v: lax.conv(v.reshape(1, 1, 1), np.ones((1, 1, 1), kind), (1,), "VALID").reshape(1),
        "outer product": lambda v: jnp.outer(v, known(1)).reshape(-1),
        "trace": lambda v: jnp.trace(v.reshape(1, 1)),
        "determinant": lambda v: jnp.linalg.det(v.reshape(1, 1)),
        "added to a place": lambda v: jnp.zeros(1, kind).at[0].add(flat(v)[0]),
        "added to one of three": lambda v: jnp.zeros(3, kind).at[1].add(flat(v)[0])[1],
        "put in a place": lambda v: jnp.zeros(1, kind).at[0].set(flat(v)[0]),
        "largest in a place": lambda v: jnp.full(1, -np.inf, kind).at[0].max(flat(v)[0]),
        "multiplied in a place": lambda v: jnp.ones(1, kind).at[0].mul(flat(v)[0]),
        "segment": lambda v: jax.ops.segment_sum(flat(v), np.zeros(1, int), 1),
        "remainder by infinity": lambda v: jnp.mod(v, kind(np.inf)),
    }


def programs(f: Function, kind: Any) -> dict[str, tuple[Function, float, float]]:
    """Programs with an operation in their middle, and the ends of their one input."""
    small = kind(1e-30 if kind is np.float32 else 1e-200)
    huge, most = kind(2e38 if kind is np.float32 else 1.5e308), float(np.finfo(kind).max)
    least = float(np.finfo(kind).tiny)
    middle, quarter, shift = float(small) ** (-2 / 3), kind(0.25), kind(2.0**60)
    return {
        "f(2 x) c": (lambda x: f(x * kind(2)) * huge, 0.1, 0.3),
        "f(c / x) / x": (lambda x: f(1 / small / x) / x, middle, 2 * middle),
        "f(-2 x) c": (lambda x: f(-(x * kind(2))) * huge, 0.1, 0.3),
        "f(x t) t": (lambda x: f(x * small) * small, 0.5 / small, 2 / small),
        "f(x t)^2": (lambda x: jnp.square(f(x * small)), 0.5 / small, 2 / small),
        "f(x t) f(x t)": (lambda x: f(x * small) * f(x * small), 0.5 / small, 2 / small),
        "f(x t) x t": (lambda x: f(x * small) * (x * small), 0.5 / small, 2 / small),
        "c / f(x) / x": (lambda x: 1 / small / f(x) / x, middle, 2 * middle),
        "(t / x) / f(x / t)": (lambda x: small / x / f(x / small), middle, 2 * middle),
        "f(t / x) / x / x / t": (lambda x: f(small / x) / x / x / small, middle, 2 * middle),
        "f(x p) + x p": (lambda x: f(x * quarter) + flat(x)[0] * quarter, 0.3 * most, 0.9 * most),
        "f(x p) + f(x p)": (lambda x: f(x * quarter) + f(x * quarter), 0.3 * most, 0.9 * most),
        "f(x + c) - c": (lambda x: f(x + shift) - shift, 0.1, 0.3),
        "exp f(x p) exp(x p)": (
            lambda x: jnp.exp(f(x * kind(2 * least))) * jnp.exp(x * kind(2 * least)),
            0.3 * most,
            0.9 * most,
        ),
        "exp f(x p) / exp(-x p)": (
            lambda x: jnp.exp(f(x * kind(2 * least))) / jnp.exp(-(x * kind(2 * least))),
            0.3 * most,
            0.9 * most,
        ),
        "exp(f(x t))^t": (lambda x: lax.pow(jnp.exp(f(x * small)), small), 0.5 / small, 20 / small),
        "f(x) c": (lambda x: f(x) * kind(0.9 * most), 0.01, 0.1),
        "f(x) t": (lambda x: f(x) * kind(1.01 * least), 10.0, 20.0),
    }


def holds(function: Function, low: float, high: float, kind: Any) -> None:
    low, high = kind(low), kind(high)
    found = bounds.bound(function, bounds.Box(jnp.array([low]), jnp.array([high])), method="ibp")
    lower, upper = np.ravel(found.lower), np.ravel(found.upper)
    compiled = jax.jit(function)
    for x in (low, kind(np.sqrt(low) * np.sqrt(high)), high):
        value = np.ravel(compiled(jnp.array([x])))
        anything = np.isinf(lower) & np.isinf(upper) & (lower < upper)
        inside = anything | ((lower <= value) & (value <= upper))
        assert inside.all(), f"{value} is not within [{lower}, {upper}] at {x}"


@pytest.mark.parametrize("name", list(operations(np.float32)))
def test_operations_that_change_nothing_hide_nothing(name: str) -> None:
    # One program each; those of the first two find most of what there is to find.
    cases = list(programs(operations(np.float32)[name], np.float32).values())
    drawn = zlib.crc32(name.encode())
    holds(*cases[drawn % 2 if drawn % 8 < 6 else drawn % len(cases)], np.float32)


@pytest.mark.full
@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("name", list(operations(np.float32)))
def test_operations_that_change_nothing_hide_nothing_anywhere(name: str, kind: Any) -> None:
    with jax.enable_x64(kind is np.float64):
        for case in programs(operations(kind)[name], kind).values():
            holds(*case, kind)


def test_remainders_by_infinity_are_the_number_itself() -> None:
    with jax.enable_x64(True):
        for x, y in ((1.5, np.inf), (-1.5, -np.inf), (7.25, np.inf)):
            for function in (jnp.mod, lax.rem, jnp.fmod):
                found = bounds.bound(lambda v, f=function, y=y: f(v, np.float64(y)), bounds.Box(x - 0.25, x))
                for v in (x - 0.25, x):
                    assert float(found.lower) <= float(function(v, y)) <= float(found.upper)


def test_a_wider_type_and_back() -> None:
    with jax.enable_x64(True):
        f = lambda v: v.astype(np.float64).astype(np.float32)
        for case in list(programs(f, np.float32).values())[:4]:
            holds(*case, np.float32)


def test_what_may_be_dropped_costs_no_tightness_in_ordinary_programs() -> None:
    gain = np.array([0.9, 1.0, 1.1], np.float32)

    # If constants passed through every operation, they would leave the range of their type in the first loop.
    def function(x: Any) -> Any:
        for _ in range(100):
            x = jax.nn.relu(x * 0.5) * 1.99
        for _ in range(10):
            x = x / jnp.sqrt(0.5 + jnp.mean(jnp.square(x))) * gain
        return jnp.where(x > 0.1, x * 1.5, x) * 0.75 + 0.1 * x

    point = np.array([0.5, 1.0, 1.5], np.float32)
    found = bounds.bound(function, bounds.Box(point, point), method="ibp")
    assert float(jnp.max(found.upper - found.lower)) < 0.2


@pytest.mark.parametrize("step", [lambda c: -c, lambda c: jnp.maximum(c, c)], ids=["minus", "maximum"])
def test_what_passes_through_long_loops_is_no_deep_recursion(step: Function) -> None:
    turns = lambda x: lax.scan(lambda c, _: (step(c), None), x, None, length=1500)[0]
    box = bounds.Box(np.full(2, 0.1, np.float32), np.full(2, 0.3, np.float32))
    found = bounds.bound(lambda x: turns(x) * np.float32(2) / x, box, method="ibp")
    assert bool(jnp.all((found.lower <= 2) & (found.upper >= 2)))


def taken(kind: Any) -> dict[str, tuple[Function, Any, Any]]:
    """Programs in which one operand of a product takes the constants of the other, and the ends of their input."""
    big = 1e30 if kind is np.float32 else 1e240
    least, up, down = float(np.finfo(kind).tiny), kind(big), kind(1 / big)
    small = np.sqrt(1 / big) * np.ones(2)
    return {
        "x c / |x|": (lambda x: x * up / jnp.sqrt(jnp.sum(x * x)), small, 2 * small),
        "x / c / |x|": (lambda x: x * down / jnp.sqrt(jnp.sum(x * x)), 1 / small, 2 / small),
        "(x c) y": (lambda x: x[:2] * up * x[2], [1 / big, 1 / big, big], [2 / big, 2 / big, 2 * big]),
        "(x / c) y": (
            lambda x: x[:2] / up * x[2],
            [big, big, big ** (-2 / 3)],
            [2 * big, 2 * big, 2 * big ** (-2 / 3)],
        ),
        "(x c) y that vanishes": (
            lambda x: x[1:] * kind(1e-3) * x[0],
            [100 * least, 1e3, 1e3],
            [200 * least, 2e3, 2e3],
        ),
        "outer product": (lambda x: jnp.outer(x[:2] * up, x[2:]), [1 / big, 1 / big, big], [2 / big, 2 / big, 2 * big]),
        "over a quotient": (lambda x: x[:2] * up / (1 / x[2]), [1 / big, 1 / big, big], [2 / big, 2 / big, 2 * big]),
        "sum of copies of products": (
            lambda x: jnp.sum(x[:, None] * np.full((2, 2), 0.6 * float(np.finfo(kind).max), kind), 1),
            [1e-3] * 2,
            [2e-3] * 2,
        ),
        "log of two exponentials": (
            lambda x: (
                jnp.log(jnp.exp(x[0] * kind(2)) * jnp.exp(x[1] * kind(2))) * kind(0.6 * float(np.finfo(kind).max))
            ),
            [0.01] * 2,
            [0.02] * 2,
        ),
    }


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("name", list(taken(np.float32)))
def test_constants_that_the_other_operand_takes_are_counted(name: str, kind: Any) -> None:
    with jax.enable_x64(kind is np.float64):
        function, low, high = taken(kind)[name]
        low, high = np.asarray(low, kind), np.asarray(high, kind)
        found = bounds.bound(function, bounds.Box(low, high), method="ibp")
        for x in (low, np.sqrt(low) * np.sqrt(high), high):
            value = np.asarray(jax.jit(function)(x))
            anything = np.isinf(found.lower) & np.isinf(found.upper) & (found.lower < found.upper)
            inside = anything | ((found.lower <= value) & (value <= found.upper))
            assert inside.all(), f"{value} is not within [{found.lower}, {found.upper}] at {x}"


@pytest.mark.parametrize(
    "choice",
    [
        lambda v: jnp.abs(v) > 0,
        lambda v: v * jnp.abs(v) >= 0,
        lambda v: v**3 >= 0,
        lambda v: jnp.maximum(v, -1) >= 0,
        lambda v: ~(jnp.abs(v) <= 0),
    ],
    ids=["positive", "product", "cube", "maximum", "not zero"],
)
def test_a_comparison_that_depends_on_the_number_is_no_constant(choice: Function) -> None:
    big = np.float32(1e30)
    function = lambda x: (x[:2] * big) * jnp.where(choice(x[2]), np.float32(1), big)
    for v in (0.0, -1.0):
        point = np.array([1e-30, 1e-30, v], np.float32)
        found = bounds.bound(function, bounds.Box(point, point + np.float32([0, 0, 0.25])), method="ibp")
        value = np.asarray(jax.jit(function)(point))
        anything = np.isinf(found.lower) & np.isinf(found.upper)
        assert (anything | ((found.lower <= value) & (value <= found.upper))).all()


def test_quotients_in_loops_over_stacks_are_as_tight_as_their_rounding() -> None:
    # Parts of a stack are followed one by one: if all passed, quotients would pile up, and their number with every turn.
    def function(s: Any) -> Any:
        for _ in range(20):
            s = jnp.stack([np.float32(9) * s[0] / (1 + s[1] ** 2) / np.float32(9), s[1]]) * np.float32(1.01)
        return s

    point = np.array([10.0, 0.3], np.float32)
    found = bounds.bound(function, bounds.Box(point, point), method="ibp")
    assert float(jnp.max(found.upper - found.lower)) < 1e-3
    long = bounds.bound(lambda x: jnp.cumprod(x * np.float32(0.9)), bounds.Box(*[np.full(300, 1.1, np.float32)] * 2))
    assert float(jnp.max(long.upper - long.lower)) < 1e-2


def test_a_choice_of_signs_of_zero_is_no_constant() -> None:
    choice = lambda x: jnp.where(x > 0, np.float32(0.0), np.float32(-0.0))
    try:
        found = bounds.bound(lambda x: jnp.copysign(np.float32(1), choice(x)), bounds.Box(-jnp.ones(1), jnp.ones(1)))
    except bounds.UnknownPrimitive:
        return
    assert bool(found.lower <= -1)
    assert bool(found.upper >= 1)
