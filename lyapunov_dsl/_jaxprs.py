"""Walking the traced programs of JAX."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, no_type_check

import jax
from jax.core import ShapedArray
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from jaxtyping import ArrayLike

# What is called for each operation of a program is exempt from the checks of types at each call that tests make: they would take
# most of the time of the tests.

# Operations that call a function, whose body is read in place.
CALLS = {
    *("jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint"),
    *("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"),
}


@no_type_check
def body_of(equation: JaxprEqn) -> tuple[Jaxpr, Sequence[ArrayLike]]:
    """The program that an operation of `CALLS` calls, and its constants."""
    return opened(
        next(v for name in ("jaxpr", "call_jaxpr", "fun_jaxpr") if (v := equation.params.get(name)) is not None)
    )


@no_type_check
def opened(body: Jaxpr | ClosedJaxpr) -> tuple[Jaxpr, Sequence[ArrayLike]]:
    """A program, closed or not, and its constants."""
    return (body.jaxpr, body.consts) if isinstance(body, ClosedJaxpr) else (body, ())


@no_type_check
def avals_of(values: Iterable[Any]) -> list[ShapedArray]:
    """Shapes and types of the inputs or results of an equation, all of which are arrays."""
    return [value.aval for value in values]


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
