"""Calls of the host, states and other side effects are no constants: bounds refuse them, and never run them."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import io_callback

from lyapunov_dsl import bounds

F = np.float32
SCALAR = jax.ShapeDtypeStruct((), jnp.float32)
calls: list[int] = []


def host(*values: Any) -> Any:
    calls.append(1)
    return F(len(calls))


def io(*values: Any, **more: Any) -> Any:
    return io_callback(host, SCALAR, *values, **more)


def pure(*values: Any, **more: Any) -> Any:
    return jax.pure_callback(host, SCALAR, *values, **more)


@jax.custom_jvp
def custom(x: Any) -> Any:
    return x * pure()


custom.defjvp(lambda primals, tangents: (custom(*primals), tangents[0]))


def reference(x: Any) -> Any:
    new = getattr(jax, "new_ref", None) or pytest.skip("this JAX has no references")
    cell = new(jnp.float32(1))
    cell[...] = x
    return cell[...]


def sharded(x: Any, inner: Callable[..., Any]) -> Any:
    mesh, spec = jax.make_mesh((1,), ("a",)), jax.sharding.PartitionSpec()
    return x * jax.shard_map(inner, mesh=mesh, in_specs=spec, out_specs=spec)(jnp.float32(1))


REFUSED: dict[str, Callable[..., Any]] = {
    "io": lambda x: x * io(),
    "of a constant": lambda x: x * io(jnp.float32(2)),
    "ordered": lambda x: x * io(ordered=True),
    "without a result": lambda x: (io_callback(host, None), x)[1],
    "pure": lambda x: x * pure(),
    "pure, of what varies": pure,
    "jit": lambda x: x * jax.jit(lambda: io())(),
    "branch": lambda x: lax.cond(x > 0, lambda: pure(), lambda: x),
    "known branch": lambda x: x * lax.cond(jnp.float32(1) > 0, lambda: io(), lambda: jnp.float32(1)),
    "scan": lambda x: lax.scan(lambda c, _: (c * io(), None), x, None, length=2)[0],
    "loop": lambda x: lax.fori_loop(0, 2, lambda i, c: c * pure(), x),
    "condition of a loop": lambda x: x * lax.while_loop(lambda c: pure() < c, lambda c: c, jnp.float32(1)),
    "custom derivative": custom,
    "gradient": jax.grad(lambda x: x * x * pure()),
    "checkpoint": jax.checkpoint(lambda x: x * pure()),
    "vmap": lambda x: x * jax.vmap(lambda y: pure(y, vmap_method="sequential"))(jnp.arange(3.0)).sum(),
    "shard_map": lambda x: sharded(x, lambda y: y * pure()),
    "shard_map that prints": lambda x: sharded(x, lambda y: (jax.debug.callback(host, y), y)[1]),
    "reduction": lambda x: x * lax.reduce(jnp.ones(3), F(0), lambda a, b: a + b * pure(), (0,)),
    "random numbers of the device": lambda x: x * lax.rng_uniform(jnp.int32(0), jnp.int32(99), ()).astype(F),
    "reference": reference,
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_side_effects_are_refused_and_not_run(name: str) -> None:
    before = len(calls)
    with pytest.raises(bounds.UnknownPrimitive, match="side effect"):
        bounds.bound(REFUSED[name], bounds.Box(F(1), F(2)))
    jax.effects_barrier()
    assert len(calls) == before


PRINTED: dict[str, Callable[..., Any]] = {
    "print": lambda x: (jax.debug.print("{x}", x=x), 2 * x)[1],
    "print of a constant": lambda x: (jax.debug.print("{x}", x=jnp.float32(1)), 2 * x)[1],
    "ordered print": lambda x: (jax.debug.print("{x}", x=x, ordered=True), 2 * x)[1],
    "callback": lambda x: (jax.debug.callback(host, x), 2 * x)[1],
    "jit": jax.jit(lambda x: (jax.debug.callback(host, x), 2 * x)[1]),
    "branch": lambda x: lax.cond(x > 0, lambda: (jax.debug.callback(host, x), 2 * x)[1], lambda: 2 * x),
    "scan": lambda x: lax.scan(lambda c, _: (c, jax.debug.callback(host, c)), 2 * x, None, length=2)[0],
}


@pytest.mark.parametrize("name", list(PRINTED))
def test_what_only_prints_is_left_out(name: str, capsys: Any) -> None:
    before = len(calls)
    found = bounds.bound(PRINTED[name], bounds.Box(F(1), F(2)))
    jax.effects_barrier()
    assert 1.9 < float(found.lower) <= 2
    assert 4 <= float(found.upper) < 4.1
    assert len(calls) == before
    assert not capsys.readouterr().out


def test_random_numbers_of_a_known_key_are_constants() -> None:
    function = lambda x: x * jax.random.uniform(jax.random.key(0))
    found = bounds.bound(function, bounds.Box(F(1), F(1)))
    assert float(found.lower) <= float(function(F(1))) <= float(found.upper)


def test_constants_that_are_no_numbers_warn_of_nothing():
    """Warnings are errors here, and NumPy, which bounds constants, has many."""
    box = bounds.Box(jnp.zeros(2), jnp.ones(2))
    for constant in (
        lambda: jnp.log(jnp.asarray([0.0, 1.0])),
        lambda: jnp.exp(jnp.asarray([1000.0, 1.0])),
        lambda: jnp.ones(2) / jnp.zeros(2),
        lambda: jnp.sqrt(jnp.asarray([-1.0, 1.0])),
    ):
        for method in ("ibp", "crown"):
            found = bounds.bound(lambda x, constant=constant: x + constant(), box, method=method)
            assert found.upper.shape == (2,)


def test_a_loop_of_constants_is_read_in_seconds():
    def turned(x):
        return x + jax.lax.fori_loop(0, 300, lambda i, c: jnp.sin(c) * 0.9 + jnp.exp(-c) * 0.1, jnp.ones(2))

    box = bounds.Box(jnp.zeros(2), jnp.ones(2))
    found = bounds.bound(turned, box)
    assert (found.lower <= turned(jnp.zeros(2))).all()
    assert (turned(jnp.ones(2)) <= found.upper).all()
    began = time.process_time()
    bounds.bound(turned, box)
    # Measured: 2.1 s before constants were bounded by NumPy.
    assert time.process_time() - began < 20
