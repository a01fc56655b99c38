"""Every public function of JAX that takes an array: it has bounds, or is refused in one sentence."""

import inspect
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lyapunov_dsl import bounds

MODULES = {
    "numpy": jnp,
    "nn": jax.nn,
    "lax": jax.lax,
    "linalg": jnp.linalg,
    "special": jax.scipy.special,
    "fft": jnp.fft,
}
V = np.asarray([0.25, 0.5, 0.75], np.float32)
Q = np.asarray([[0.5, 0.25], [0.125, 0.75]], np.float32)
S, WHERE, PLACES = np.float32(0.5), np.asarray([True, False, True]), np.asarray([1, 0, 2])
# Arguments after the first, of which each function takes the first that it can.
MORE: list[tuple[Any, tuple[Any, ...]]] = [
    (V, ()),
    (Q, ()),
    (S, ()),
    (V, (V,)),
    (Q, (Q,)),
    (V, (V, V)),
    (V, (0,)),
    (V, ((1, 3),)),
    (V, (PLACES,)),
    (Q, (V[:2],)),
    (V, (0, 3)),
    (Q, ((1, 0),)),
    (V, (jnp.float32,)),
]
PARTS = 12


def calls(module: str) -> Iterator[tuple[str, Any, Any]]:
    """Functions of one array, made of those of a module, and arrays for them."""
    for name in sorted(dir(MODULES[module])):
        function = getattr(MODULES[module], name)
        if name.startswith("_") or not callable(function) or inspect.isclass(function):
            continue
        for first, more in MORE:
            of = lambda x, function=function, more=more: function(x, *more)
            try:
                shapes = jax.eval_shape(of, first)
            except Exception:
                # Not for such arguments.
                continue
            if jax.tree.leaves(shapes):
                yield name, of, first
                break


def refused(function: Any, x: Any) -> str:
    """Why there are no bounds, empty where there are; any other exception is let through."""
    of = lambda low, high: bounds.bound(function, bounds.Box(low, high), method="crown-ibp")
    try:
        jax.make_jaxpr(of)(x - np.float32(0.01), x + np.float32(0.01))
    except (bounds.UnknownPrimitive, ValueError) as error:
        return str(error)
    return ""


def walk(module: str, part: int, parts: int) -> int:
    known = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for i, (name, function, x) in enumerate(calls(module)):
            if i % parts != part:
                continue
            why = refused(function, x)
            assert not why or (why.startswith(("bound: ", "bounds: ")) and "\n" not in why), (name, why)
            known += not why
    return known


@pytest.mark.parametrize("module", MODULES)
def test_some_functions_of_jax_have_bounds_or_one_sentence(module):
    walk(module, 3, PARTS)


@pytest.mark.full
@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize("module", MODULES)
def test_all_functions_of_jax_have_bounds_or_one_sentence(module, part):
    walk(module, part, 4)
