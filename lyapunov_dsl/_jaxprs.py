"""Walking the traced programs of JAX."""

from collections.abc import Iterator
from typing import Any

import jax


def is_jaxpr(value: Any) -> bool:
    """Whether a parameter of an equation is a program, closed or not."""
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")


def inner_jaxprs(equation: Any) -> list[Any]:
    """The programs that an equation calls, without their constants."""
    leaves = jax.tree.leaves(list(equation.params.values()), is_leaf=is_jaxpr)
    return [getattr(v, "jaxpr", v) for v in leaves if is_jaxpr(v)]


def equations(jaxpr: Any) -> Iterator[Any]:
    """All equations of a program, those of the programs that they call included."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in inner_jaxprs(equation):
            yield from equations(inner)
