"""Programs that NumPy evaluates: what XLA makes of the same program, with what is special in floating point, and the thread
that compiles those that are called for long."""

import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from jax import lax

from lyapunov_dsl._interpret import Interpreted, Staged, evaluated
from lyapunov_dsl._interpret._operations import PLAIN, SHAPED
from lyapunov_dsl._jaxprs import equations

# No subnormal numbers, which XLA takes for 0 on a CPU.
SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, 2.5, -2.5, 3e38, -3e38, 1e308, np.inf, -np.inf, np.nan]


def floats(dtype, *shape, seed=0):
    """Numbers of every kind, some of them special."""
    rng = np.random.default_rng(seed)
    with np.errstate(all="ignore"):
        out = rng.normal(size=shape) * np.exp(rng.normal(size=shape) * 3)
        return np.where(rng.random(shape) < 0.3, rng.choice(SPECIAL, shape), out).astype(dtype)


def compared(function, *args, exact=True, steps=None):
    """What NumPy and XLA evaluate to is the same, or the same to some units of rounding."""
    closed = jax.make_jaxpr(function)(*args)
    program = Interpreted(closed)
    names = {s.apply.__qualname__.split(".")[0] for s in program.steps if hasattr(s.apply, "__qualname__")}
    assert "by_xla" not in names or steps == "by_xla", closed
    for got, expected in zip(program(*args), jax.tree.leaves(jax.jit(function)(*args)), strict=True):
        expected = np.asarray(expected)
        assert got.dtype == expected.dtype
        assert got.shape == expected.shape
        if exact or got.dtype.kind != "f":
            # XLA may take subnormal numbers for 0.
            tiny = np.finfo(got.dtype).tiny if got.dtype.kind == "f" else 0
            with np.errstate(all="ignore"):
                near = (
                    (got == expected) | ((np.abs(got) <= tiny) & (np.abs(expected) <= tiny))
                    if tiny
                    else got == expected
                )
            assert (near | ((got != got) & (expected != expected))).all(), (got, expected)
        else:
            np.testing.assert_allclose(
                got, expected, rtol=1e3 * np.finfo(got.dtype).eps, atol=4 * np.finfo(got.dtype).tiny
            )


ONE = {
    "neg": lambda x: -x,
    "abs": jnp.abs,
    "sign": jnp.sign,
    "floor": jnp.floor,
    "ceil": jnp.ceil,
    "round": jnp.round,
    "round away": lambda x: lax.round(x, lax.RoundingMethod.AWAY_FROM_ZERO),
    "is_finite": jnp.isfinite,
    "square": jnp.square,
    "not": lambda x: ~(x > 0),
    "integer_pow": lambda x: x**2,
    "bits": lambda x: lax.bitcast_convert_type(x, jnp.uint64 if x.dtype == np.float64 else jnp.uint32),
    "bool": lambda x: x.astype(bool),
    "back": lambda x: (x > 0).astype(x.dtype) + 1,
    "stop_gradient": lax.stop_gradient,
    "broadcast": lambda x: jnp.broadcast_to(x[:, None], (4, 2, 3)),
    "reshape": lambda x: x.reshape(2, 6),
    "squeeze": lambda x: x[:1][0],
    "transpose": lambda x: x.T,
    "rev": lambda x: x[::-1, ::-1],
    "slice": lambda x: x[1:4:2, 1:],
    "concatenate": lambda x: jnp.concatenate([x, x[:2]]),
    "stack": lambda x: jnp.stack([x, 2 * x], axis=1),
    "split": lambda x: jnp.split(x, [1, 3]),
    "unstack": lambda x: list(x),
    "pad": lambda x: lax.pad(x, x.dtype.type(7), ((1, 2, 0), (0, 0, 2))),
    "pad off": lambda x: lax.pad(x, x.dtype.type(7), ((-1, 2, 1), (3, -2, 0))),
    "iota": lambda x: x + lax.broadcasted_iota(x.dtype, (4, 3), 1),
    "max": lambda x: jnp.max(x, axis=1),
    "min": lambda x: jnp.min(x, axis=0),
    "max of all": jnp.max,
    "any": lambda x: jnp.any(x > 0, axis=0),
    "all": lambda x: jnp.all(x < 1, axis=1),
    "argmax": lambda x: jnp.argmax(x, axis=1),
    "argmin": lambda x: jnp.argmin(x, axis=0),
    "cummax": lambda x: lax.cummax(x, 0),
    "cummin": lambda x: lax.cummin(x, 1, reverse=True),
    "where": lambda x: jnp.where(x > 0, x, -x),
    "select": lambda x: lax.select_n(jnp.argmax(x, axis=1), x[:, 0], x[:, 1], x[:, 2]),
    "clamp": lambda x: jnp.clip(x, -1.0, 2.0),
    "nextafter": lambda x: jnp.nextafter(x, x.dtype.type(np.inf)),
    "shift": lambda x: lax.shift_left((x > 0).astype(jnp.uint32), jnp.arange(12, dtype=jnp.uint32).reshape(4, 3) * 5),
    "expand": lambda x: jnp.expand_dims(x, (0, 2)),
    "copy": jnp.copy,
    "xor": lambda x: (x > 0) ^ (x < 1),
    "rsqrt of ones": lambda x: lax.rsqrt(jnp.ones_like(x) * 4),
}
TWO = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "div": lambda x, y: x / y,
    "max": lax.max,
    "min": lax.min,
    "eq": lambda x, y: x == y,
    "ne": lambda x, y: x != y,
    "lt": lambda x, y: x < y,
    "le": lambda x, y: x <= y,
    "gt": lambda x, y: x > y,
    "ge": lambda x, y: x >= y,
    "and": lambda x, y: (x > 0) & (y > 0),
    "or": lambda x, y: (x > 0) | (y > 0),
    "clamp": lambda x, y: lax.clamp(x, y, jnp.maximum(x, y)),
}
ROUNDED = {
    "exp": jnp.exp,
    "exp2": jnp.exp2,
    "expm1": jnp.expm1,
    "log": jnp.log,
    "log1p": jnp.log1p,
    "sqrt": jnp.sqrt,
    "rsqrt": lax.rsqrt,
    "sin": jnp.sin,
    "cos": jnp.cos,
    "tan": jnp.tan,
    "tanh": jnp.tanh,
    "sinh": jnp.sinh,
    "cosh": jnp.cosh,
    "asin": jnp.arcsin,
    "acos": jnp.arccos,
    "atan": jnp.arctan,
    "asinh": jnp.arcsinh,
    "acosh": lambda x: lax.acosh(1 + jnp.abs(x)),
    "atanh": jnp.arctanh,
    "logistic": jax.nn.sigmoid,
    "erf": lax.erf,
    "erfc": lax.erfc,
    "pow": lambda x: jnp.abs(x) ** 0.3,
    "integer_pow": lambda x: x**7,
    "inverse": lambda x: x**-3,
    "atan2": lambda x: lax.atan2(x, x[::-1]),
    "sum": lambda x: jnp.sum(x, axis=1),
    "prod": lambda x: jnp.prod(x, axis=0),
    "cumsum": lambda x: jnp.cumsum(x, axis=0),
    "cumsum back": lambda x: lax.cumsum(x, 1, reverse=True),
    "dot of vectors": lambda x: x[0] @ x[1],
    "outer": lambda x: jnp.outer(x[0], x[:, 1]),
    "dot of numbers": lambda x: lax.dot_general(x[0, 0], x[1, 1], (((), ()), ((), ()))),
    "dot": lambda x: x @ x.T,
    "dot with axes": lambda x: lax.dot_general(x.reshape(4, 3, 1), x.reshape(4, 1, 3), (((2,), (1,)), ((0,), (0,)))),
    "einsum": lambda x: jnp.einsum("ij,kj,k->ik", x, x, x[:, 0]),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ONE)
def test_operations_of_one_array(name, dtype):
    with jax.enable_x64(True):
        compared(ONE[name], floats(dtype, 4, 3))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", TWO)
def test_operations_of_two_arrays(name, dtype):
    with jax.enable_x64(True):
        compared(TWO[name], floats(dtype, 40, 3), floats(dtype, 40, 3, seed=1))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ROUNDED)
def test_operations_that_round(name, dtype):
    x = np.random.default_rng(0).uniform(-0.9, 0.9, (4, 3)).astype(dtype)
    with jax.enable_x64(True):
        compared(ROUNDED[name], np.abs(x) if name in ("log", "sqrt", "rsqrt") else x, exact=False)


@pytest.mark.parametrize("name", ["exp", "log", "sqrt", "tanh", "logistic", "erf", "sin", "expm1", "log1p"])
def test_functions_where_they_end(name):
    """At infinity, at 0 and outside of their domain they are infinite or NaN where XLA's are."""
    x = np.asarray([0.0, -0.0, np.inf, -np.inf, np.nan, -1.0, -2.0, 1000.0, -1000.0])
    with jax.enable_x64(True):
        got, expected = evaluated(ROUNDED[name], x), np.asarray(jax.jit(ROUNDED[name])(x))
    np.testing.assert_allclose(got, expected, rtol=1e-13)


def test_every_operation_has_a_case():
    seen = set()
    with jax.enable_x64(True):
        for functions, count in ((ONE, 1), (TWO, 2), (ROUNDED, 1)):
            for function in functions.values():
                made = jax.make_jaxpr(function)(*[np.ones((4, 3))] * count)
                seen |= {e.primitive.name for e in equations(made.jaxpr)}
    # Those that only derivatives or other versions of JAX make.
    assert {*PLAIN, *SHAPED} - seen <= {
        "add_any",
        "copy",
        "copy_p",
        "expand_dims",
        "square",
        "tan",
        "clamp",
        "stack",
        "unstack",
        "erfc",
    }


def test_integers_wrap_and_counts_are_exact():
    x = np.asarray([2**31 - 1, -(2**31), 5], np.int32)
    compared(lambda x: (x + 1, x * 3, -x, jnp.abs(x), x > 4, jnp.sum(x)), x)
    compared(lambda x: (x // 2, x % 3, jnp.max(x), jnp.sign(x)), x, steps="by_xla")


def test_what_numpy_does_not_have_is_evaluated_by_xla():
    x = np.random.default_rng(0).normal(size=(4, 4))
    with jax.enable_x64(True):
        for function in (
            lambda x: jnp.sort(x, axis=0),
            lambda x: x[jnp.asarray([2, 0])],
            lambda x: x.at[1].add(2.0),
            lambda x: x.astype(jnp.int32),
        ):
            compared(function, x, exact=False, steps="by_xla")


CONTROL = {
    "fori_loop": lambda x: lax.fori_loop(0, 3, lambda i, v: v @ x + i, x),
    "while": lambda x: lax.while_loop(lambda v: jnp.abs(v).max() < 50, lambda v: 1.5 * v + x, x),
    "while with constants": lambda x: lax.while_loop(
        lambda v: v.sum() < x.sum() + 5, lambda v: v + x[0, 0] ** 2 + 0.1, x
    ),
    "cond": lambda x: lax.cond(x[0, 0] > 0, lambda v: v, lambda v: -v, x),
    "switch": lambda x: [
        lax.switch(i + 0 * x[0, 0].astype(int), [lambda v: v, lambda v: 2 * v, lambda v: -v], x) for i in (-1, 1, 7)
    ],
    "scan": lambda x: lax.scan(lambda c, v: (c + v, (c * v, v[0])), x[0], x),
    "scan back": lambda x: lax.scan(lambda c, v: (c * 0.5 + v, c), x[0], x, reverse=True),
    "scan of nothing": lambda x: lax.scan(lambda c, v: (c + v, c * 2), x[0], x[:0]),
    "scan without arrays": lambda x: lax.scan(lambda c, _: (c @ x, None), x, None, length=3),
    "map": lambda x: lax.map(lambda v: jnp.tanh(v) @ x, x),
    "map of many": lambda x: jax.vmap(lambda v: lax.map(lambda w: w * v, x))(x),
    "loop of many": lambda x: jax.vmap(lambda v: lax.while_loop(lambda w: w.sum() < 9, lambda w: w + 1 + v * v, v))(x),
    "nested": lambda x: lax.scan(
        lambda c, v: (lax.fori_loop(0, 2, lambda i, w: w * 0.5 + v, c), lax.cond(v[0] > 0, jnp.sin, jnp.cos, v)),
        x[0],
        x,
    ),
}


@pytest.mark.parametrize("name", CONTROL)
def test_loops_and_branches(name):
    x = np.random.default_rng(0).normal(size=(4, 4))
    with jax.enable_x64(True):
        steps = "by_xla" if name == "switch" else None
        compared(CONTROL[name], x, exact=False, steps=steps)
        compared(CONTROL[name], -x, exact=False, steps=steps)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 7, 1), (1, 7, 5), (6, 7, 1), (6, 7, 5), (3, 1, 4), (40, 64, 33)])
@pytest.mark.parametrize("batch", [(), (1,), (3,)])
def test_products_of_zero_and_infinity_are_no_numbers(dtype, shape, batch):
    """Rules of bounds rely on it: a library of linear algebra that leaves out products with 0 would make them finite."""
    rows, count, columns = shape
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(*batch, rows, count)).astype(dtype), rng.normal(size=(*batch, count, columns)).astype(dtype)
    x = np.where(rng.random(x.shape) < 0.3, 0, x).astype(dtype)
    y.flat[:: max(1, y.size // 5)] = np.inf
    x.flat[:: max(1, x.size // 3)] = 0
    with jax.enable_x64(True):
        for one, other in ((x, y), (np.swapaxes(y, -1, -2), np.swapaxes(x, -1, -2)), (x[..., ::-1], y[..., ::-1, :])):
            with np.errstate(all="ignore"):
                exact = (one[..., :, :, None] * other[..., None, :, :]).sum(-2)
            got = evaluated(jnp.matmul, one, other)
            np.testing.assert_array_equal(np.isfinite(got), np.isfinite(exact))
            np.testing.assert_array_equal(np.isnan(got), np.isnan(exact))


def test_what_is_constant_or_occurs_twice_is_computed_once():
    weights = np.arange(12.0).reshape(3, 4)

    def function(x):
        once = jnp.tanh(jnp.exp(jnp.asarray(weights)) @ x)
        again = jnp.tanh(jnp.exp(jnp.asarray(weights)) @ x)
        unused = jnp.sin(x)
        del unused
        return once + again

    with jax.enable_x64(True):
        program = Interpreted(jax.make_jaxpr(function)(np.ones(4)))
        assert len(program.steps) == 3
        np.testing.assert_allclose(program(np.ones(4) / 9)[0], function(np.ones(4) / 9), rtol=1e-12)


def test_constants_are_told_apart():
    """By content and type: -0 from 0, large ones from each other."""
    large = [np.full(5000, float(i)) for i in range(4)]

    def function(x):
        return [
            x / 0.0,
            x / -0.0,
            *(x[0] + v for v in map(jnp.asarray, large)),
            x + np.float32(0.1),
            x + np.float64(0.1),
        ]

    with jax.enable_x64(True):
        compared(function, np.ones(5000))


def test_arguments_stay_as_they_are_and_results_are_the_callers_own():
    x = np.ones(3)
    program = Interpreted(jax.make_jaxpr(lambda x: (x, x + 1))(x))
    first = program(x)
    second = program(2 * x)
    assert (x == 1).all()
    assert (first[1] == 2).all()
    assert (second[1] == 3).all()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3), st.integers(0, 2)), min_size=2, max_size=2),
    st.integers(0, 4), st.integers(1, 4),
)  # fmt: skip
def test_padding_of_any_kind(config, rows, columns):
    x = np.arange(rows * columns, dtype=np.float32).reshape(rows, columns) + 1
    sizes = [n + max(n - 1, 0) * inner + low + high for n, (low, high, inner) in zip(x.shape, config, strict=True)]
    if min(sizes) < 0 or any(n == 0 and inner for n, (_, _, inner) in zip(x.shape, config, strict=True)):
        return
    compared(lambda x: lax.pad(x, jnp.float32(0), config), x)


def waited(staged, *args):
    """Calls a function until it is compiled."""
    for _ in range(2000):
        found = staged(*args)
        (entry,) = staged.known.values()
        if entry.compiled is not None:
            return found
        time.sleep(0.005)
    raise AssertionError("never compiled")


def test_what_is_called_for_long_is_compiled_beside_that():
    with jax.enable_x64(True):
        staged = Staged(lambda x: {"a": jnp.sin(x) @ x.T, "b": x.sum()})
        x = np.random.default_rng(0).normal(size=(300, 300))
        first = staged(x)
        (entry,) = staged.known.values()
        assert isinstance(first["a"], np.ndarray)
        later = waited(staged, x)
        assert entry.interpreted is None
        for name in ("a", "b"):
            np.testing.assert_allclose(first[name], later[name], rtol=1e-10)
        # Another shape is another program.
        staged(x[:10])
        assert len(staged.known) == 2


def test_what_is_called_once_is_not_compiled():
    with jax.enable_x64(True):
        staged = Staged(lambda x: jnp.tanh(x) + 1)
        staged(np.ones(3))
        (entry,) = staged.known.values()
        assert entry.thread is None


def test_keys_are_left_to_xla():
    staged = Staged(lambda key: jax.random.normal(key, (3,)))
    key = jax.random.key(0)
    np.testing.assert_array_equal(staged(key), jax.random.normal(key, (3,)))
    assert threading.active_count() < 50
