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
