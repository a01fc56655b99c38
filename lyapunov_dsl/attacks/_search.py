"""What the attacks share: calling a classifier, judging it, and going through the inputs in batches of one size."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._types import check_key, describe
from ._ball import Ball, around, check_ball, check_counts, check_inputs, settle

# One attempt at a batch: (balls, classes, keys, judge) -> a misleading point where one was found, else the best one.
Attempt = Callable[[Ball, Array, Any, Callable], Any]


@eqx.filter_jit
def _traced(function: Callable, x: Array) -> Any:
    # The function is an argument: the weights of a `program.predict` may change without compiling anew.
    return function(x)


def compiled(function: Callable) -> Callable:
    """The function, compiled where JAX can trace it, as it is where it cannot (it may call NumPy)."""
    plain = False

    def call(x: Array) -> Array:
        nonlocal plain
        if not plain:
            try:
                return _traced(function, x)
            except jax.errors.JAXTypeError:
                plain = True
        return jnp.asarray(function(x))

    return call


def wrong(logits: Float[Array, "batch classes"], y: Int[Array, "batch"]) -> Bool[Array, "batch"]:
    """Where the class is not decided for; ties and NaN count as wrong."""
    return ~(margins(logits, y) > 0)


def margins(logits: Float[Array, "batch classes"], y: Int[Array, "batch"]) -> Float[Array, "batch"]:
    """The logit of the class minus the largest other one."""
    own = jnp.arange(logits.shape[1], dtype=y.dtype)[None, :] == y[:, None]
    other = jnp.max(jnp.where(own, -jnp.inf, logits), axis=1)
    return jnp.take_along_axis(logits, y[:, None], axis=1)[:, 0] - other


_wrong = jax.jit(wrong)


def judge(function: Callable, x: np.ndarray, y: np.ndarray, batch_size: int) -> np.ndarray:
    """Where a function is wrong, by batches."""
    found = np.zeros(len(y), bool)
    for rows, count in batches(np.arange(len(y)), batch_size):
        found[rows[:count]] = np.asarray(_wrong(function(jnp.asarray(x[rows])), jnp.asarray(y[rows])))[:count]
    return found


def batches(rows: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Rows by batches of one size, the last one filled up with its first row, and how many rows are no filling."""
    for begin in range(0, len(rows), size):
        some = rows[begin : begin + size]
        yield np.concatenate([some, np.repeat(some[:1], size - len(some))]), len(some)


def checked(
    function: Callable, x: Any, y: Any, radius: Any, norm: str, clip: Any, key: Any, batch_size: Any
) -> tuple[np.ndarray, np.ndarray, float, int]:
    """Inputs and classes on the host, the radius and the size of the batches, after what can be wrong with them."""
    radius = check_ball(radius, norm, clip)
    check_counts(batch_size=batch_size)
    x, y = check_inputs(x), np.asarray(y)
    check_keys(key, len(x))
    if not np.issubdtype(y.dtype, np.integer) or y.shape != x.shape[:1]:
        raise ValueError(f"y: expected integer classes int[{len(x)}], got {describe(y)}")
    y = y.astype(np.int32)
    size = min(batch_size, len(x))
    logits = compiled(function)(jnp.asarray(x[:size]))
    shape, dtype = getattr(logits, "shape", ()), getattr(logits, "dtype", np.dtype(object))
    if len(shape) != 2 or shape[0] != size or shape[1] < 2 or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"function: expected logits float[batch, classes] for a batch of {size}, got {describe(logits)}"
        )
    if y.min() < 0 or y.max() >= shape[1]:
        raise ValueError(f"y: expected classes in [0, {shape[1]}), got {int(y.min())} to {int(y.max())}")
    return x, y, radius, size


def search(
    attempts: Sequence[Attempt],
    function: Callable,
    x: Any,
    y: Any,
    *,
    radius: Any,
    norm: str,
    clip: Any,
    key: Any,
    batch_size: Any,
) -> Float[Array, "batch ..."]:
    """Runs the attempts, each on the inputs that still are classified rightly; the others are left as they are.

    The key of an example depends on its row, not on the batch it comes in.
    """
    x, y, radius, size = checked(function, x, y, radius, norm, clip, key, batch_size)
    call = compiled(function)
    done = judge(call, x, y, size)
    out = x.copy()
    for turn, attempt in enumerate(attempts):
        for rows, count in batches(np.flatnonzero(~done), size):
            keys = keys_of(key, turn, rows)
            ball, classes = around(x[rows], radius, norm, clip), jnp.asarray(y[rows])
            points = settle(ball, attempt(ball, classes, keys, call))
            misled = np.asarray(_wrong(call(jnp.asarray(points)), classes))
            keep = rows[:count][misled[:count] | (turn == 0)]
            out[keep] = points[:count][misled[:count] | (turn == 0)]
            done[rows[:count]] = misled[:count]
    return jnp.asarray(out)


def keys_of(key: Any, turn: int, rows: np.ndarray) -> Any:
    """A key for each row."""
    key = fold(key, turn)
    return key[rows] if _is_batch(key) else _by_row(key, jnp.asarray(rows))


def fold(key: Any, number: int) -> Any:
    """`jax.random.fold_in` of one key or of a batch of them."""
    return jax.vmap(jax.random.fold_in, (0, None))(key, number) if _is_batch(key) else jax.random.fold_in(key, number)


def check_keys(key: Any, count: int) -> None:
    """Raises `ValueError` for what is neither one key nor one for each input."""
    check_key(key)
    if _is_batch(key) and len(key) != count:
        raise ValueError(f"key: expected one PRNG key, or {count} of them, got {len(key)}")


def count_classes(function: Callable, x: Any) -> int:
    """How many logits there are (0 where the outputs are none). Raises `ValueError` where JAX cannot trace the function."""
    try:
        shape = jnp.shape(jax.eval_shape(function, jnp.asarray(x)[:1]))
    except jax.errors.JAXTypeError:
        raise ValueError(
            "function: expected one that JAX can take gradients of, or a surrogate that is one, got one that JAX cannot trace"
        ) from None
    return shape[1] if len(shape) == 2 else 0


def _is_batch(key: Any) -> bool:
    return key.ndim == (1 if jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key) else 2)


@jax.jit
def _by_row(key: Any, rows: Array) -> Any:
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)
