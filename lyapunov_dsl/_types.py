"""Type names shared by the whole package."""

import math
from typing import Any

import jax
import jax.core
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, Real

# As diffrax annotates its scalars: an `int` is accepted where beartype would reject it for `float`.
RealScalarLike = Real[Array, ""] | Real[np.ndarray, ""] | np.number | int | float
Scalar = Float[Array, ""]
State = PyTree[Float[Array, "..."]]
Context = PyTree
Key = PRNGKeyArray | None
Struct = PyTree[jax.ShapeDtypeStruct]


def is_traced(x: Any) -> bool:
    """Whether a value is known only while tracing, so that it cannot be checked."""
    return isinstance(x, jax.core.Tracer)


def is_finite(x: Any) -> bool:
    """Whether a value is one real and finite number (a traced one is not known to be)."""
    try:
        return np.ndim(x) == 0 and math.isfinite(x)
    except (TypeError, ValueError):
        return False


def kind(x: Any) -> str:
    """What a value is, for messages; a class in place of its instance is told apart."""
    if x is None:
        return "None"
    return f"the class {x.__name__} (call it)" if isinstance(x, type) else type(x).__name__


def shown(x: Any) -> str:
    """What a value is and how it prints, cut short, for messages."""
    return kind(x) if x is None or isinstance(x, type) else f"{kind(x)} {x!r:.200}"


def check_key(key: Any) -> None:
    """Raises `ValueError` for what is no PRNG key, an integer seed for example."""
    dtype = getattr(key, "dtype", None)
    if dtype is None or not (jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key) or dtype == np.uint32):
        raise ValueError(f"key: expected a PRNG key such as jax.random.key(0), got {shown(key)}")


def struct_of(tree: PyTree) -> PyTree:
    """The shapes and dtypes of a PyTree of arrays (or of things that are like arrays)."""

    def leaf(x: Any) -> Any:
        if isinstance(x, jax.ShapeDtypeStruct):
            return x
        return jax.ShapeDtypeStruct(np.shape(x), jax.dtypes.canonicalize_dtype(jax.numpy.result_type(x)))

    return jax.tree.map(leaf, tree)


def describe(tree: PyTree) -> str:
    """A PyTree of arrays in words: `float32[10]`, `{'q': float32[2], 'p': float32[2]}`."""

    class Text(str):
        __repr__ = str.__str__

    def leaf(x: Any) -> Any:
        if hasattr(x, "shape") and hasattr(x, "dtype"):
            return Text(
                f"{np.dtype(x.dtype).name if x.dtype != jax.dtypes.float0 else 'float0'}[{','.join(map(str, x.shape))}]"
            )
        return Text(f"{type(x).__name__} {x!r}")

    return str(jax.tree.map(leaf, tree))


def levels(level: Any) -> tuple[float | None, float | None]:
    """(least, most) of what was given as a level: a number, which is the most, a pair, or `None`.

    **Raises:** `ValueError` for anything else, and where least > most.
    """
    pair = level if isinstance(level, tuple | list) else (None, level)
    if len(pair) != 2 or not all(v is None or is_finite(v) for v in pair):
        raise ValueError(f"level: expected a number or (least, most), got {level!r}")
    least, most = (None if v is None else float(v) for v in pair)
    if least is not None and most is not None and not least <= most:
        raise ValueError(f"level: expected least <= most, got {level!r}")
    return least, most
