"""Checks of what a proof is asked about, before anything is computed."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._types import check_arrays, check_path, describe, number, shown, struct_of
from ._question import Functions
from ._region import Region


def check_like(declaration: Any, x: Any, y: Any) -> None:
    """Raises `ValueError` for an example that is not shaped like that of a program."""
    for name, data, declared in (("x", x, declaration.x), ("y", y, declaration.y)):
        check_arrays(name, data)
        shapes = lambda tree: jax.tree.map(np.shape, tree)
        if data is not None and shapes(data) != shapes(declared):
            raise ValueError(
                f"{name}: expected one example like the one given to compile, {describe(declared)}, without a batch axis, "
                f"got {describe(struct_of(data)):.200}"
            )


def flat_state(equilibrium: Any, state: Any) -> np.ndarray:
    """An equilibrium as a vector. Raises `ValueError` for one that is not shaped like the state."""
    check_arrays("equilibrium", equilibrium)
    shapes = lambda tree: jax.tree.map(np.shape, tree)
    if shapes(equilibrium) != shapes(state):
        raise ValueError(
            f"equilibrium: expected a state like that of the example, {describe(struct_of(state))}, "
            f"got {describe(struct_of(equilibrium)):.200}"
        )
    rest = np.concatenate([np.ravel(np.asarray(v, np.float64)) for v in jax.tree.leaves(equilibrium)])
    if not np.isfinite(rest).all():
        raise ValueError(f"equilibrium: expected finite numbers, got {rest}")
    return rest


def ends_of(start: Any, first: np.ndarray) -> list[np.ndarray]:
    """The ends of the box in which trajectories start, which is the start of the example where none is given."""
    if start is None:
        return [first, first]
    ends = [np.asarray(v, np.float64) for v in start] if isinstance(start, tuple | list) else []
    if len(ends) != 2 or any(v.shape != first.shape for v in ends) or not (ends[0] <= ends[1]).all():
        raise ValueError(
            f"start: expected (lower, upper) with lower <= upper, vectors of {first.size} numbers, got {shown(start)}"
        )
    if not np.isfinite(ends).all():
        raise ValueError(f"start: expected finite numbers, got {shown(start)}")
    return ends


def check_rest(told: Functions, rest: np.ndarray, region: Region) -> None:
    """Raises `ValueError` for an equilibrium that is none, up to rounding."""
    if told.own_rate:
        # That of the system with another input.
        return
    for t in np.unique([region.low[:, 0].min(), region.high[:, 0].max()]):
        velocity = np.asarray(told.field(jnp.asarray(t), jnp.asarray(rest)))
        speed, scale = np.abs(velocity).max(), 1 + np.abs(rest).max()
        if not speed <= 1e-6 * scale:
            raise ValueError(
                f"equilibrium: expected a state at which the field is 0, got {rest} with the velocity {velocity} at t = {number(t)}"
            )


def frontier(folder: Any) -> Path | None:
    if folder is None:
        return None
    check_path("folder", folder)
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"folder: expected one that can be written, got {path} ({error.strerror})") from error
    return path / "frontier.npz"
