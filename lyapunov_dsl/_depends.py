"""What a function depends on, by its operations."""

from collections.abc import Callable
from typing import Any

import jax
from jax.interpreters import partial_eval


def depends(function: Callable, first: Any, *more: Any) -> bool:
    """Whether any result of a function is computed from its first argument. Looks at shapes only."""
    closed = jax.make_jaxpr(function)(first, *more)
    used = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.out_avals))[1]
    return any(used[: len(jax.tree.leaves(first))])


def check_depends(name: str, value: Callable, state: Any, *more: Any) -> None:
    """Raises `ValueError` for the value of a certificate that does not depend on the state, its first argument."""
    if not depends(value, state, *more):
        raise ValueError(f"{name}: expected a value that depends on the state, got one that is the same for all states")
