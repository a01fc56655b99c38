"""What is added to errors of the user's own code: what it was called for, and what to do."""

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import jax

from ._types import Struct


@contextlib.contextmanager
def doing(what: str, function: Any = None, *arguments: str) -> Iterator[None]:
    """Adds to an error of the user's own code what it was being called for, and what to do where that is clear."""
    try:
        yield
    except Exception as error:
        error.add_note(f"raised while checking {what}")
        if hint := _hint(error, function, arguments):
            error.add_note(hint)
        raise


def _hint(error: Exception, function: Any, arguments: tuple[str, ...]) -> str:
    """What to do about an error of the user's own code, empty where nothing is known."""
    if isinstance(function, type):
        return f"expected a function of ({', '.join(arguments)}), got the class {function.__name__}: give an instance of it"
    if isinstance(function, Callable) and not _takes(function, arguments):
        return f"expected a function of ({', '.join(arguments)}), got one of {inspect.signature(function)}: wrap it in one that is"
    if isinstance(error, jax.errors.TracerArrayConversionError):
        return "NumPy cannot compute what is only traced: use jax.numpy, jnp.tanh in place of np.tanh for example"
    if isinstance(error, jax.errors.TracerBoolConversionError):
        return "Python's if, while, and, or cannot look at what is only traced: use jnp.where, jax.lax.cond or jax.lax.while_loop"
    if isinstance(error, jax.errors.ConcretizationTypeError | jax.errors.TracerIntegerConversionError):
        return "float(), int(), range() and the functions of math cannot take what is only traced: use jax.numpy and jax.lax"
    return ""


def _takes(function: Callable, arguments: tuple[str, ...]) -> bool:
    """Whether a function can be called with so many arguments, as far as is known."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return True
    try:
        # A key is given to what takes one.
        signature.bind(*arguments, **({"key": None} if "key" in signature.parameters else {}))
    except TypeError:
        return False
    return True


@contextlib.contextmanager
def as_one(x: Struct, y: Struct) -> Iterator[None]:
    """Adds to an error that the example looks like a batch, where it does."""
    try:
        yield
    except Exception as error:
        sizes = {leaf.shape[0] if leaf.shape else None for leaf in jax.tree.leaves((x, y))}
        if len(sizes) == 1 and None not in sizes and jax.tree.leaves(y):
            error.add_note(
                f"the example is one pair without a batch axis; all of x and y begin with an axis of {sizes.pop()} here: "
                "if that is the batch, give example=(x[0], y[0])"
            )
        raise
