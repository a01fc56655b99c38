"""Loops and branches of traced programs, each part of which is a program by itself."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Operation = Callable[..., Any]


def scan(equation: Any, interpreted: Callable[[Any], Operation]) -> Operation:
    """A loop of a fixed length over arrays."""
    params = equation.params
    body, length, reverse = interpreted(params["jaxpr"]), params["length"], params["reverse"]
    fixed, carried = params["num_consts"], params["num_carry"]

    def apply(*args: Any) -> list[Any]:
        consts, carry, xs = args[:fixed], list(args[fixed : fixed + carried]), args[fixed + carried :]
        turns: list[Any] = [None] * length
        for i in reversed(range(length)) if reverse else range(length):
            found = body(*consts, *carry, *(x[i] for x in xs))
            carry, turns[i] = found[:carried], found[carried:]
        avals = [v.aval for v in equation.outvars[carried:]]
        if not length:
            return [*carry, *(np.zeros(a.shape, a.dtype) for a in avals)]
        return [*carry, *(np.stack(parts) for parts in zip(*turns, strict=True))]

    return apply


def while_loop(equation: Any, interpreted: Callable[[Any], Operation]) -> Operation:
    """A loop for as long as a condition holds."""
    params = equation.params
    going, body = interpreted(params["cond_jaxpr"]), interpreted(params["body_jaxpr"])
    first, second = params["cond_nconsts"], params["body_nconsts"]

    def apply(*args: Any) -> list[Any]:
        of_going, of_body, carry = args[:first], args[first : first + second], list(args[first + second :])
        while (goes := going(*of_going, *carry)[0]).any():
            found = body(*of_body, *carry)
            # Of many at once, those whose condition does not hold any more stay as they are.
            carry = [np.where(_beside(goes, new), new, old) for new, old in zip(found, carry, strict=True)]
        return carry

    return apply


def _beside(goes: Any, value: Any) -> Any:
    """Conditions with as many axes as a value, of which theirs are the first."""
    return goes.reshape(goes.shape + (1,) * (np.ndim(value) - goes.ndim))


def cond(equation: Any, interpreted: Callable[[Any], Operation]) -> Operation:
    """One of several programs, by an index that is clipped."""
    branches: Sequence[Operation] = [interpreted(branch) for branch in equation.params["branches"]]

    def apply(index: Any, *args: Any) -> list[Any]:
        return branches[min(max(int(index), 0), len(branches) - 1)](*args)

    return apply


CONTROL = {"scan": scan, "while": while_loop, "cond": cond}
