"""Loops and branches of traced programs, each part of which is a program by itself."""

from collections.abc import Callable

import numpy as np
from jax.extend.core import ClosedJaxpr, JaxprEqn

from .._jaxprs import avals_of
from ._operations import Array

Program = Callable[..., list[Array]]


def scan(equation: JaxprEqn, interpreted: Callable[[ClosedJaxpr], Program]) -> Program:
    """A loop of a fixed length over arrays."""
    params = equation.params
    body, length, reverse = interpreted(params["jaxpr"]), params["length"], params["reverse"]
    fixed, carried = params["num_consts"], params["num_carry"]

    def apply(*args: Array) -> list[Array]:
        consts, carry, xs = args[:fixed], list(args[fixed : fixed + carried]), args[fixed + carried :]
        turns: list[list[Array]] = [[]] * length
        for i in reversed(range(length)) if reverse else range(length):
            found = body(*consts, *carry, *(x[i] for x in xs))
            carry, turns[i] = found[:carried], found[carried:]
        avals = avals_of(equation.outvars[carried:])
        if not length:
            return [*carry, *(np.zeros(a.shape, a.dtype) for a in avals)]
        return [*carry, *(np.stack(parts) for parts in zip(*turns, strict=True))]

    return apply


def while_loop(equation: JaxprEqn, interpreted: Callable[[ClosedJaxpr], Program]) -> Program:
    """A loop for as long as a condition holds."""
    params = equation.params
    condition, body = interpreted(params["cond_jaxpr"]), interpreted(params["body_jaxpr"])
    first, second = params["cond_nconsts"], params["body_nconsts"]

    def apply(*args: Array) -> list[Array]:
        of_condition, of_body, carry = args[:first], args[first : first + second], list(args[first + second :])
        while (holds := condition(*of_condition, *carry)[0]).any():
            found = body(*of_body, *carry)
            # Of many at once, those whose condition does not hold any more stay as they are.
            carry = [np.where(_beside(holds, new), new, old) for new, old in zip(found, carry, strict=True)]
        return carry

    return apply


def _beside(holds: Array, value: Array) -> Array:
    """Conditions with as many axes as a value, of which theirs are the first."""
    return holds.reshape(holds.shape + (1,) * (np.ndim(value) - holds.ndim))


def cond(equation: JaxprEqn, interpreted: Callable[[ClosedJaxpr], Program]) -> Program:
    """One of several programs, by an index that is clipped."""
    branches = [interpreted(branch) for branch in equation.params["branches"]]

    def apply(index: Array, *args: Array) -> list[Array]:
        return branches[min(max(int(index), 0), len(branches) - 1)](*args)

    return apply


CONTROL = {"scan": scan, "while": while_loop, "cond": cond}
