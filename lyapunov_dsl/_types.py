"""Type names shared by the whole package."""

import decimal
import math
import os
from pathlib import Path
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


def strong(tree: PyTree) -> PyTree:
    """A tree with arrays in place of those that promote like Python numbers, of which `jnp.full(3, 1.0)` makes one. What was
    one array stays one."""
    made: dict[int, Any] = {}

    def leaf(x: Any) -> Any:
        if not (isinstance(x, jax.Array) and bool(getattr(x, "weak_type", False))):
            return x
        return made.setdefault(id(x), x.astype(x.dtype))

    return jax.tree.map(leaf, tree)


def is_finite(x: Any) -> bool:
    """Whether a value is one real and finite number (a traced one is not known to be)."""
    try:
        return np.ndim(x) == 0 and math.isfinite(x)
    except (TypeError, ValueError):
        return False


def exactly(name: str, x: Any) -> float:
    """A finite number as a Python float. Raises `ValueError` where that would be another number, as for large integers."""
    value = float(x)
    if value != x:
        raise ValueError(f"{name}: expected a number that float64 holds exactly, got {x!r}; write it as a float")
    return value


def number(x: Any) -> str:
    """A number as it is printed in what is claimed: the shortest text that reads back as the same one, so that nothing is rounded."""
    value = float(x)
    return str(int(value)) if value.is_integer() and abs(value) < 1e6 else repr(value)


def rounded(x: Any, side: int) -> str:
    """A number with four digits, rounded down for the side -1 and up for 1, as the ends of an interval are printed."""
    value = float(x)
    if not math.isfinite(value):
        return repr(value)
    context = decimal.Context(prec=4, rounding=decimal.ROUND_CEILING if side > 0 else decimal.ROUND_FLOOR)
    return f"{float(context.create_decimal(decimal.Decimal(value))):.4g}"


def numbers(x: Any) -> str:
    """Some numbers as they are printed in what is claimed, long arrays cut short."""
    flat = np.ravel(np.asarray(x, np.float64))
    return f"[{', '.join(map(number, flat[:12]))}{', ...' if flat.size > 12 else ''}]"


def check_path(name: str, path: Any) -> None:
    """Raises `ValueError` for what is no path, the empty one included, which is the folder a process runs in."""
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        raise ValueError(f"{name}: expected a path, got {shown(path)}")


def check_file(path: Path) -> None:
    """Raises `ValueError` where no file can be put: a folder or a device is there, or there is no folder around it."""
    what = "is a folder; name a file in it" if path.is_dir() else "is a device or a pipe"
    if path.exists() and not path.is_file():
        raise ValueError(f"save: expected a place that can be written, got {path}, which {what}")
    if not path.parent.is_dir():
        raise ValueError(f"save: expected a place that can be written, got {path}: there is no folder {path.parent}")


def is_count(x: Any) -> bool:
    """Whether a value is a positive whole number, of Python or of NumPy."""
    return isinstance(x, int | np.integer) and not isinstance(x, bool) and bool(x > 0)


def check_sizes(**sizes: Any) -> None:
    """Raises `ValueError` for what is no positive whole number."""
    for name, size in sizes.items():
        if not is_count(size):
            raise ValueError(f"{name}: expected a positive whole number, got {size!r}")


def kind(x: Any) -> str:
    """What a value is, for messages; a class in place of its instance is told apart."""
    if x is None:
        return "None"
    return f"the class {x.__name__} (call it)" if isinstance(x, type) else type(x).__name__


def speaks(module: Any, method: str) -> bool:
    """Whether a method says something of what an object computes now: not where a subclass replaced `__call__` alone."""
    owner = lambda name: next((c for c in type(module).__mro__ if name in vars(c)), object)
    return issubclass(owner(method), owner("__call__"))


def shown(x: Any) -> str:
    """What a value is and how it prints, cut short, for messages."""
    return kind(x) if x is None or isinstance(x, type) else f"{kind(x)} {x!r:.200}"


def check_key(key: Any) -> None:
    """Raises `ValueError` for what is no PRNG key, an integer seed for example."""
    dtype = getattr(key, "dtype", None)
    if dtype is None or not (jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key) or dtype == np.uint32):
        raise ValueError(f"key: expected a PRNG key such as jax.random.key(0), got {shown(key)}")
    # An old key is a vector of two or four numbers.
    if np.ndim(key) != (1 if dtype == np.uint32 else 0) or (dtype == np.uint32 and np.shape(key)[0] not in (2, 4)):
        raise ValueError(
            f"key: expected one PRNG key such as jax.random.key(0), got an array {dtype}{list(np.shape(key))}"
        )


_NORMS = {"2": ("2", "2.0", "l2"), "inf": ("inf", "linf", "infty", "infinity", "oo")}


def check_norm(norm: Any) -> None:
    """Raises `ValueError` for what is not the name of a norm; says the name where it is clear which is meant."""
    if isinstance(norm, str) and norm in _NORMS:
        return
    meant = [name for name, others in _NORMS.items() if str(norm).lower() in others]
    raise ValueError(f"norm: expected 'inf' or '2', got {norm!r}{f'; write norm={meant[0]!r}' if meant else ''}")


def check_arrays(name: str, tree: PyTree) -> None:
    """Raises `ValueError` for leaves that are no arrays of numbers, such as tensors of other libraries, data frames and strings."""
    for leaf in jax.tree.leaves(tree):
        known = isinstance(
            leaf, np.ndarray | np.generic | jax.Array | jax.ShapeDtypeStruct | bool | int | float | complex
        )
        if known and not (
            isinstance(leaf, np.ndarray | np.generic) and leaf.dtype.kind in "OSUMmV" and not _is_extended(leaf)
        ):
            continue
        got = f"{kind(leaf)} of {leaf.dtype}" if isinstance(leaf, np.ndarray) else kind(leaf)
        raise ValueError(
            f"{name}: expected NumPy or JAX arrays of numbers, got {got}; convert it, such as by numpy.asarray(..., numpy.float32)"
        )


def _is_extended(leaf: Any) -> bool:
    """Whether an array is of a type that JAX has and NumPy has not, such as bfloat16."""
    return leaf.dtype.kind == "V" and jax.numpy.issubdtype(leaf.dtype, np.number)


def struct_of(tree: PyTree) -> PyTree:
    """The shapes and dtypes of a PyTree of arrays (or of things that are like arrays)."""

    def leaf(x: Any) -> Any:
        if isinstance(x, jax.ShapeDtypeStruct):
            # Without what tells a Python number from an array: `jnp.full(3, 1.0)` is as good a state as any.
            return jax.ShapeDtypeStruct(x.shape, x.dtype)
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
    least, most = (None if v is None else exactly("level", v) for v in pair)
    if least is not None and most is not None and not least <= most:
        raise ValueError(f"level: expected least <= most, got {level!r}")
    return least, most
