"""What the attacks share: calling a classifier, judging it, and going through the inputs in batches of one size."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._checkpoint import fingerprint
from .._mesh import Team
from .._save import structure
from .._types import check_key, describe, kind
from ._ball import Ball, around, check_ball, check_counts, check_inputs, settle

# One attempt at a batch: (function to follow, balls, classes, keys, judge) -> a misleading point where one was found, else
# the best one.
Attempt = Callable[[Callable, Ball, Array, Any, Callable], Any]
_ALONE = Team(None)


@eqx.filter_jit
def _traced(function: Callable, x: Array) -> Any:
    # The function is an argument: the weights of a `program.predict` may change without compiling anew.
    return function(x)


def compiled(function: Callable, mesh: Any = None) -> Callable:
    """The function, compiled where JAX can trace it, as it is where it cannot (it may call NumPy) and there is no mesh."""
    plain = False

    def call(x: Array) -> Array:
        nonlocal plain
        if not plain:
            try:
                return _traced(function, x)
            except jax.errors.JAXTypeError:
                if mesh is not None:
                    raise ValueError(
                        "function: expected one that JAX can trace, since mesh is given, got one that it cannot"
                    ) from None
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


def judge(function: Callable, x: np.ndarray, y: np.ndarray, batch_size: int, team: Team = _ALONE) -> np.ndarray:
    """Where a function is wrong, by batches."""
    found = np.zeros(len(y), bool)
    for rows, count in batches(np.arange(len(y)), batch_size):
        points, classes = team.spread((x[rows], y[rows]))
        found[rows[:count]] = np.asarray(_wrong(function(points), classes))[:count]
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
    return _checked(function, x, y, radius, norm, clip, key, batch_size, _ALONE)[:4]


def _checked(
    function: Callable, x: Any, y: Any, radius: Any, norm: str, clip: Any, key: Any, batch_size: Any, team: Team
) -> tuple[np.ndarray, np.ndarray, float, int, int]:
    """What `checked` gives, and the number of classes; the batches are those of this process."""
    check_function(function)
    radius = check_ball(radius, norm, clip)
    check_counts(batch_size=batch_size)
    x, y = check_inputs(x), np.asarray(y)
    check_keys(key, len(x))
    if not np.issubdtype(y.dtype, np.integer) or y.shape != x.shape[:1]:
        raise ValueError(f"y: expected integer classes int[{len(x)}], got {describe(y)}")
    size = size_here(batch_size, len(x), team)
    rows, _ = next(batches(np.arange(len(x)), size))
    logits = compiled(team.spare(function), team.mesh)(team.spread(x[rows]))
    shape, dtype = getattr(logits, "shape", ()), getattr(logits, "dtype", np.dtype(object))
    if len(shape) != 2 or shape[0] != size or shape[1] < 2 or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"function: expected logits float[batch, classes] for a batch of {size}, got {describe(logits)}"
        )
    if y.min() < 0 or y.max() >= shape[1]:
        raise ValueError(f"y: expected classes in [0, {shape[1]}), got {int(y.min())} to {int(y.max())}")
    return x, y.astype(np.int32), radius, size, shape[1]


def check_function(function: Any) -> None:
    """Raises `ValueError` for what cannot be called, a program for one."""
    if not callable(function):
        hint = "; give its predict" if hasattr(function, "predict") else ""
        raise ValueError(f"function: expected a function from inputs to logits, got {kind(function)}{hint}")


def size_here(batch_size: int | None, count: int, team: Team) -> int:
    """The size of this process's batches; a single one is filled up to what the devices can share evenly."""
    devices = 1 if team.mesh is None else team.mesh.size
    whole = -(-count // devices) * devices
    team.check_batch(whole if batch_size is None else batch_size)
    return team.own_part(whole if batch_size is None else min(batch_size, whole))


def search(
    attempts: Callable[[int], Sequence[Attempt]],
    function: Callable,
    x: Any,
    y: Any,
    *,
    radius: Any,
    norm: str,
    clip: Any,
    key: Any,
    batch_size: Any,
    mesh: Any,
    follow: Callable | None = None,
    settings: Any = (),
) -> Float[Array, "batch ..."]:
    """Runs the attempts, each on the inputs that still are classified rightly; the others are left as they are.

    The key of an example depends on its row, not on the batch it comes in.

    **Arguments:**

    - `attempts`: from the number of classes.
    - `follow`: the function that attempts take gradients of, if they do.
    - `settings`: what else has to be the same in all processes.
    """
    team = Team(mesh)
    with team.together():
        x, y, radius, size, classes = _checked(function, x, y, radius, norm, clip, key, batch_size, team)
        if follow is not None:
            check_gradients(follow, function, (size, *x.shape[1:]), x.dtype, (size, classes))

    def work(rows: np.ndarray) -> np.ndarray:
        of, some, labels = team.spare(follow), x[rows], y[rows]
        call = compiled(of if follow is function else team.spare(function), mesh)
        done, out = judge(call, some, labels, size, team), some.copy()
        for turn, attempt in enumerate(attempts(classes)):
            for here, count in batches(np.flatnonzero(~done), size):
                keys = team.spread(keys_of(key, turn, rows[here]))
                ball, own = around(some[here], radius, norm, clip, team), team.spread(labels[here])
                points = settle(ball, attempt(of, ball, own, keys, call))
                misled = np.asarray(_wrong(call(team.spread(points)), own))
                keep = misled[:count] | (turn == 0)
                out[here[:count][keep]] = points[:count][keep]
                done[here[:count]] = misled[:count]
        return out

    settings = (attempts.__qualname__, settings, radius, norm, clip, batch_size)
    return shared(team, work, x, (function, follow), (y, key), settings)


def shared(team: Team, work: Callable, x: np.ndarray, functions: Any, arrays: Any, settings: Any) -> Array:
    """Every process works on its share of the inputs, and gets the results of all of them."""
    if not team.alone:
        with team.together():
            call = {"set of inputs": fingerprint(x), "function": structure(functions) + fingerprint(functions)}
            call |= {"set of classes or keys": fingerprint(arrays), "option": repr(settings)}
        team.check_same(call)
    with team.together():
        found = work(team.rows(len(x)))
    return jnp.asarray(team.gather(found, len(x)))


def keys_of(key: Any, turn: int, rows: np.ndarray) -> Any:
    """A key for each row."""
    key = fold(key, turn)
    return key[rows] if _is_batch(key) else _by_row(key, jnp.asarray(rows))


def fold(key: Any, number: int) -> Any:
    """`jax.random.fold_in` of one key or of a batch of them."""
    return jax.vmap(jax.random.fold_in, (0, None))(key, number) if _is_batch(key) else jax.random.fold_in(key, number)


def check_keys(key: Any, count: int) -> None:
    """Raises `ValueError` for what is neither one key nor one for each input."""
    several = eqx.is_array(key) and _is_batch(key)
    check_key(key[0] if several and len(key) else key)
    if several and len(key) != count:
        raise ValueError(f"key: expected one PRNG key, or {count} of them, got {len(key)}")


def count_classes(function: Callable, x: Any) -> int:
    """How many logits there are (0 where the outputs are none). Raises `ValueError` where JAX cannot trace the function."""
    shape = jnp.shape(traced("function", function, jax.ShapeDtypeStruct((1, *jnp.shape(x)[1:]), jnp.result_type(x))))
    return shape[1] if len(shape) == 2 else 0


def check_gradients(follow: Callable, function: Callable, shape: Any, dtype: Any, expected: tuple[int, int]) -> None:
    """Raises `ValueError` where gradients are to be taken of what JAX cannot trace, or of what gives no such logits."""
    name = "function" if follow is function else "surrogate"
    logits = traced(name, follow, jax.ShapeDtypeStruct(shape, dtype))
    found = getattr(logits, "shape", None), getattr(logits, "dtype", np.dtype(object))
    if found[0] != expected or not jnp.issubdtype(found[1], jnp.floating):
        raise ValueError(
            f"{name}: expected as many logits as those of function, float[{expected[0]},{expected[1]}], got {describe(logits)}"
        )


def traced(name: str, function: Callable, x: jax.ShapeDtypeStruct) -> Any:
    """The shapes of what a function returns. Raises `ValueError` where JAX cannot trace it."""
    try:
        return jax.eval_shape(function, x)
    except jax.errors.JAXTypeError:
        or_else = ", or a surrogate that is one" if name == "function" else ""
        raise ValueError(
            f"{name}: expected one that JAX can take gradients of{or_else}, got one that JAX cannot trace"
        ) from None


def _is_batch(key: Any) -> bool:
    return key.ndim == (1 if jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key) else 2)


@jax.jit
def _by_row(key: Any, rows: Array) -> Any:
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)
