"""Programs of proofs: decisions of constants, and functions that the checker has rules for."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flint import ctx
from helpers import verify

import lyapunov_dsl as ld
from lyapunov_checker import _rules as rules
from lyapunov_checker._program import Graph, read_program
from lyapunov_checker._proof import PRECISION
from lyapunov_dsl import bounds
from lyapunov_dsl._prove._export import export

A, B = np.array([[-1.0, 2.0], [-2.0, -1.0]]), np.array([[0.2, 0.0], [0.0, -1.0]])
LOW, HIGH = np.array([0.2, 0.5]), np.array([0.25, 0.51])


@pytest.fixture(autouse=True)
def wide() -> Any:
    before, ctx.prec = ctx.prec, PRECISION
    with jax.enable_x64(True):
        yield
    ctx.prec = before


def recomputed(function: Any, derivative: bool = False) -> tuple[Any, Any]:
    """The checker's range of a function on the box, or of its derivative along (1, 2)."""
    program = read_program("f", *export("f", function, (2,)))
    graph = Graph()
    state = graph.input(2)
    out = graph.inline(program, [state])
    if derivative:
        out = graph.derivative(out, {state: graph.constant([1.0, 2.0])})
    (found,) = graph.values([out], {state: rules.box(LOW.tolist(), HIGH.tolist(), itertools.count(1))})
    return np.array([float(v) for v in found.low]), np.array([float(v) for v in found.high])


def contains(ends: Any, values: np.ndarray, room: float) -> None:
    low, high = ends
    assert (low - 1e-12 <= values.min(axis=0)).all()
    assert (values.max(axis=0) <= high + 1e-12).all()
    assert (high - low <= room * np.ptp(values, axis=0) + 1e-9).all()


FUNCTIONS = {
    "tan": jnp.tan,
    "sinh": jnp.sinh,
    "cosh": jnp.cosh,
    "asinh": jnp.arcsinh,
    "acosh": lambda s: jnp.arccosh(s + 1),
    "atanh": jnp.arctanh,
    "asin": jnp.arcsin,
    "acos": jnp.arccos,
    "atan2": lambda s: jnp.arctan2(s, jnp.flip(s) - 0.7),
    "prod": lambda s: jnp.prod(s)[None],
    "cumprod": jnp.cumprod,
    "scatter": lambda s: s.at[0].set(s[1]) * s,
    "scatter-add": jax.grad(lambda s: jnp.sum(s[np.array([0, 0, 1])] ** 2)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_checker_recomputes_functions_and_derivatives(name):
    function, points = FUNCTIONS[name], np.random.default_rng(0).uniform(LOW, HIGH, (200, 2))
    along = lambda s: jax.jvp(function, (s,), (jnp.array([1.0, 2.0]),))[1]
    contains(recomputed(function), np.asarray(jax.vmap(function)(points)), 2.5)
    slopes = np.asarray(jax.vmap(along)(points))
    contains(recomputed(function, derivative=True), slopes, 12)
    contains(recomputed(along), slopes, 12)


@pytest.mark.parametrize(
    "function",
    [
        lambda s: jnp.arctan2(s - 0.22, -s),
        lambda s: jnp.arctanh(s + 0.8),
        lambda s: jnp.arccosh(s + 0.7),
        lambda s: jnp.tan(7 * s),
    ],
)
def test_the_checker_knows_nothing_across_poles_and_edges(function):
    low, high = recomputed(function)
    assert not (np.isfinite(low) & np.isfinite(high)).all()


@pytest.mark.parametrize("name", ["remainder", "sort", "solve"])
def test_what_the_checker_has_no_rule_for_is_named(name):
    function, primitive = {
        "remainder": (lambda s: s % 1.0, "rem"),
        "sort": (jnp.sort, "sort"),
        "solve": (lambda s: jnp.linalg.solve(np.eye(2), s), "lu"),
    }[name]
    with pytest.raises(bounds.UnknownPrimitive, match=f"primitive {primitive} "):
        export("f", function, (2,))


MODES = {
    "switch": lambda s, m: jax.lax.switch(m, [lambda s: A @ s, lambda s: B @ s], s),
    "cond": lambda s, m: jax.lax.cond(m == 0, lambda s: A @ s, lambda s: B @ s, s),
    "where": lambda s, m: jnp.where(m == 0, A @ s, B @ s),
    "index": lambda s, m: jnp.stack([A, B])[m] @ s,
    "dynamic index": lambda s, m: jax.lax.dynamic_index_in_dim(jnp.stack([A, B]), m, keepdims=False) @ s,
    "select": lambda s, m: jnp.select([m == 0, m == 1], [A @ s, B @ s], s),
    "one hot": lambda s, m: jnp.einsum("i,ij->j", jax.nn.one_hot(m, 2), jnp.stack([A @ s, B @ s])),
    "nested": lambda s, m: jax.lax.switch(
        m, [lambda s: jax.lax.cond(m > 0, jnp.sin, lambda s: A @ s, s), lambda s: B @ s], s
    ),
    "while": lambda s, m: jax.lax.while_loop(lambda c: c[0] < 1, lambda c: (c[0] + 1, jnp.where(m, B @ s, A @ s)), (0, s))[1],
}  # fmt: skip


@pytest.mark.parametrize("kind", [np.int32, np.uint8, jnp.asarray, np.int64])
@pytest.mark.parametrize("name", MODES)
def test_a_mode_that_is_constant_is_decided(name, kind):
    for mode, matrix in ((0, A), (1, B)):
        function = lambda s, mode=mode: MODES[name](s, jnp.asarray(kind(mode)))
        points = np.random.default_rng(0).uniform(LOW, HIGH, (100, 2))
        contains(recomputed(function), points @ matrix.T, 1.5)
        contains(recomputed(lambda s, f=function: jax.jvp(f, (s,), (s,))[1]), points @ matrix.T, 1.5)


def test_a_loop_over_arrays_is_read():
    rows = np.stack([A, B])
    function = lambda s: jnp.sum(jax.lax.scan(lambda c, a: (a @ c, c), s, rows)[1], axis=0)
    points = np.random.default_rng(0).uniform(LOW, HIGH, (100, 2))
    contains(recomputed(function), points + points @ A.T, 1.5)


def test_branches_and_loops_that_depend_on_the_state_are_refused():
    for function in (
        lambda s: jax.lax.cond(s[0] > 0, jnp.sin, jnp.cos, s),
        lambda s: jax.lax.while_loop(lambda c: c[0] < 3, lambda c: c + 1, s),
    ):
        with pytest.raises(bounds.UnknownPrimitive):
            export("f", function, (2,))


@pytest.mark.full
@pytest.mark.parametrize("name", ["switch", "cond", "index"])
def test_a_system_with_a_mode_is_proved(name):
    with jax.enable_x64(False):
        field = lambda t, s, mode: MODES[name](s, mode).astype(s.dtype)
        system = ld.System(input=lambda x: ld.Start(x["s"], x["mode"]), vector_field=field, domain=ld.Box(-1.0, 1.0))
        certificate = ld.Certificate.exponential(lambda s: jnp.sum(s**2), kappa=1.0)
        x = {"s": np.zeros(2, np.float32), "mode": np.int32(0)}
        budget = {"boxes": 100, "seconds": 60}
        found = verify(system, certificate, x=x, equilibrium=np.zeros(2), budget=budget)
    assert found.status.name.startswith("PROVED") or found.status.name == "CHECKED", str(found)
