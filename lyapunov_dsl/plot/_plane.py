"""What the pictures of states share: a plane of states, the part of it in H, arrows and the path of inference."""

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh

from .._compile import Program
from .._domain import Domain
from .._solve import solve
from .._system import Start
from .._types import describe, is_finite, kind, struct_of

RIGHT, WRONG, OUTSIDE, INK = "#f3d9d3", "#d5e1ef", "#eeeeee", "#222222"
RED, BLUE, GREEN = "#b3261e", "#1f5fa8", "#1b7f3b"


def class_plane(classes: int, target: int, rival: int) -> np.ndarray:
    """The plane through 0 and the corners of two classes, for states that are logits.

    **Arguments:**

    - `classes`: the dimension k of the state.
    - `target`, `rival`: the two classes. The first axis points to the corner of `target` (1 there, -1 elsewhere).

    **Returns:** two orthonormal directions, shape (2, k).

    **Raises:** `ValueError` unless there are two different classes of at least three (of two, the corners are opposite).
    """
    if not (classes > 2 and 0 <= target < classes and 0 <= rival < classes and target != rival):
        raise ValueError(
            f"class_plane: expected two different classes of at least three, got {target!r} and {rival!r} of {classes!r}"
        )
    corners = 2 * np.eye(classes)[[target, rival]] - 1
    first = corners[0] / np.linalg.norm(corners[0])
    second = corners[1] - corners[1] @ first * first
    return np.stack([first, second / np.linalg.norm(second)])


class Plane:
    """A rectangle of a plane of states through 0, cropped to H, for one example of a program.

    Points of the picture are rows of an array (..., 2); `lift` gives their states.
    """

    def __init__(self, program: Program, x: PyTree, y: Any, plane: Any, extent: Any, time: Any):
        if not isinstance(program, Program):
            raise ValueError(f"program: expected a Program made by lyapunov_dsl.compile, got {kind(program)}")
        for name, declared, value in (("x", program.declaration.x, x), ("y", program.declaration.y, y)):
            if [s.shape for s in jax.tree.leaves(declared)] != [np.shape(leaf) for leaf in jax.tree.leaves(value)]:
                raise ValueError(
                    f"{name}: expected one example like the one given to compile, {describe(declared)}, without a batch axis, "
                    f"got {describe(struct_of(value)):.200}"
                )
        quiet = eqx.nn.inference_mode(program)
        self.condition, self.solver = quiet.condition, quiet.solver
        self.system = self.condition.continuous
        self.begin = self.system.start(jax.tree.map(jnp.asarray, x))
        state = self.begin.state
        if not eqx.is_array(state) or state.ndim != 1:
            raise ValueError(f"state: expected one vector, float[k], got {describe(struct_of(state))}")
        horizon = self.system.horizon
        if not (is_finite(time) and 0 <= time <= horizon):
            raise ValueError(f"time: expected a time in [0, {horizon:g}], got {time!r}")
        if extent is not None and not (is_finite(extent) and extent > 0):
            raise ValueError(f"extent: expected a positive finite number, got {extent!r}")
        self.dtype = state.dtype
        self.axes = jnp.asarray(_directions(plane, state.shape[0]), self.dtype)
        self.time = jnp.asarray(time, self.dtype)
        self.point = self.condition.point(self.begin, jax.tree.map(jnp.asarray, y))

        half = _reach(self.system.region, self.axes) if extent is None else float(extent)
        self.low, self.high = np.full(2, -half), np.full(2, half)
        shown = self.inside(self.grid(101).reshape(-1, 2))
        if not len(shown):
            raise ValueError(
                f"plane: expected a plane that meets H within {half:.4g} of 0, got none of H in the picture"
            )
        self.low, self.high = shown.min(axis=0), shown.max(axis=0)
        margin = 0.025 * (self.high - self.low)
        self.low, self.high = self.low - margin, self.high + margin

    def lift(self, point: Any) -> Array:
        """The state at a point of the picture."""
        return point @ self.axes

    def grid(self, count: int) -> np.ndarray:
        """Points of the picture, shape (count, count, 2)."""
        across, up = np.linspace(self.low, self.high, count).T
        return np.stack(np.meshgrid(across, up), -1)

    def map(self, function: Callable, points: np.ndarray) -> Any:
        """A function of one state at many points, shape (..., 2): arrays with the same leading axes."""
        flat = jnp.asarray(points.reshape(-1, 2), self.dtype)
        values = jax.jit(jax.vmap(lambda point: function(self.lift(point))))(flat)
        return jax.tree.map(lambda leaf: np.asarray(leaf).reshape(points.shape[:-1] + leaf.shape[1:]), values)

    def outside(self, points: np.ndarray) -> np.ndarray:
        """Which points, shape (..., 2), are states outside H."""
        return self.map(self.system.region.excess, points) > 1e-6

    def inside(self, points: np.ndarray) -> np.ndarray:
        """Those of some points, shape (n, 2), that are states of H."""
        return points[~self.outside(points)]

    def velocity(self, state: Array) -> Array:
        """The field at the time of the picture, projected onto the plane."""
        return self.axes @ self.system.velocity(self.time, state, self.begin.context)

    def paths(self, points: np.ndarray, count: int) -> np.ndarray:
        """Trajectories from points, shape (n, 2), projected onto the plane: shape (n, count, 2)."""
        return self.map(lambda state: self._path(Start(state, self.begin.context), count), points)

    def inference(self, count: int) -> np.ndarray:
        """The trajectory of inference, projected onto the plane: shape (count, 2)."""
        return np.asarray(self._path(self.begin, count))

    def _path(self, start: Start, count: int) -> Array:
        saveat = diffrax.SaveAt(ts=jnp.linspace(0, self.system.horizon, count, dtype=self.dtype))
        return jnp.asarray(solve(self.system, start, None, self.solver, saveat=saveat).ys) @ self.axes.T

    def frame(self, axes: Axes) -> None:
        """Shows the picture's rectangle, without ticks."""
        (left, bottom), (right, top) = self.low, self.high
        axes.set(xlim=(left, right), ylim=(bottom, top), aspect="equal", xticks=[], yticks=[])


def ground(axes: Axes, grid: np.ndarray, values: np.ndarray, **options: Any) -> QuadMesh:
    """Colors the picture by values at the points of a grid, shape (n, n, 2)."""
    return axes.pcolormesh(grid[..., 0], grid[..., 1], values, zorder=0, rasterized=True, **options)


def arrows(axes: Axes, where: np.ndarray, velocity: np.ndarray, **options: Any) -> None:
    """Arrows at points, shape (n, 2). They show directions; their length saturates, so that slow regions stay
    readable."""
    speed = np.linalg.norm(velocity, axis=-1, keepdims=True)
    vectors = velocity / np.maximum(speed, 1e-12) * np.minimum(1, speed / max(float(np.median(speed)), 1e-12)) ** 0.5
    axes.quiver(*where.T, *vectors.T, pivot="mid", scale=26, **options)


def _directions(plane: Any, size: int) -> np.ndarray:
    if plane is None and size != 2:
        raise ValueError(f"plane: expected two directions of shape (2, {size}) for a state of {size}, got none")
    directions = np.eye(2) if plane is None else np.asarray(plane)
    if directions.shape != (2, size):
        raise ValueError(
            f"plane: expected two directions of shape (2, {size}), got {kind(plane)} of shape {directions.shape}"
        )
    if not np.allclose(directions @ directions.T, np.eye(2), atol=1e-4):
        raise ValueError(
            f"plane: expected two orthonormal directions, got the products {(directions @ directions.T).tolist()}"
        )
    return directions


def _reach(domain: Domain, plane: Array) -> float:
    """How far H reaches from 0 along the axes of a plane, the farthest of the four ways."""
    distances = jnp.geomspace(1e-3, 1e3, 2000, dtype=plane.dtype)
    ways = jnp.concatenate([plane, -plane])
    inside = jax.vmap(lambda d: jax.vmap(lambda way: domain.excess(d * way) <= 0)(ways))(distances)
    return 1.08 * float(jnp.max(jnp.where(inside, distances[:, None], 0))) or 1.0
