"""Phase portraits (paper, Figure 1)."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap

from .._compile import Program
from .._domain import Domain
from .._solve import solve
from .._system import Start

RIGHT, WRONG, OUTSIDE, INK, ACCENT = "#f3d9d3", "#d5e1ef", "#eeeeee", "#222222", "#b3261e"


def class_plane(classes: int, target: int, rival: int) -> np.ndarray:
    """The plane through 0 and the corners of two classes, for states that are logits.

    **Arguments:**

    - `classes`: the dimension k of the state.
    - `target`, `rival`: the two classes. The first axis points to the corner of `target` (1 there, -1 elsewhere).

    **Returns:** two orthonormal directions, shape (2, k).
    """
    corners = 2 * np.eye(classes)[[target, rival]] - 1
    first = corners[0] / np.linalg.norm(corners[0])
    second = corners[1] - corners[1] @ first * first
    return np.stack([first, second / np.linalg.norm(second)])


def phase_portrait(
    program: Program,
    x: PyTree,
    y: Any,
    *,
    axes: Axes,
    plane: Any = None,
    extent: Any = None,
    time: float = 0.0,
    trajectories: int = 100,
    seed: int = 0,
) -> None:
    """Draws the field of one example, trajectories from many initial states, and where the readout decides rightly.

    For a state with more than two entries, the field and the trajectories are projected onto a plane through 0.

    **Arguments:**

    - `program`: a compiled program for a continuous system whose state is a vector.
    - `x`, `y`: one example, without a batch axis.
    - `axes`: a matplotlib `Axes`.
    - `plane`: two orthonormal directions, shape (2, k); the coordinate plane for k = 2. For logits see
        [`lyapunov_dsl.plot.class_plane`][].
    - `extent`: half the side of the square that is shown; by default it reaches to the edge of H along both axes. What
        lies outside H is gray.
    - `time`: the t of the field that is drawn (trajectories follow the field in time).
    - `trajectories`: how many, from initial states uniform on the part of the square in H.
    - `seed`: of those states.

    **Raises:** `ValueError` for a state that is not a vector, or a plane of another shape.
    """
    quiet = eqx.nn.inference_mode(program)
    system, condition = quiet.condition.continuous, quiet.condition
    start = system.start(jnp.asarray(x))
    if not eqx.is_array(start.state) or start.state.ndim != 1:
        raise ValueError("phase_portrait: expected a state that is one vector")
    size = start.state.shape[0]
    if plane is None and size != 2:
        raise ValueError(f"plane: expected two directions of shape (2, {size}) for a state of {size}, got none")
    plane = jnp.asarray(np.eye(2) if plane is None else plane, start.state.dtype)
    if plane.shape != (2, size):
        raise ValueError(f"plane: expected two directions of shape (2, {size}), got {plane.shape}")
    half = _reach(system.region, plane) if extent is None else float(extent)
    point = condition.point(start, jnp.asarray(y))

    def outside(points: Any) -> np.ndarray:
        excess = jax.vmap(lambda a: system.region.excess(a @ plane))(jnp.asarray(points, plane.dtype))
        return np.asarray(excess) > 1e-6

    def square(count: int, across: float, up: float) -> np.ndarray:
        return np.stack(np.meshgrid(np.linspace(-across, across, count), np.linspace(-up, up, count)), -1)

    def within(points: np.ndarray) -> np.ndarray:
        return points[~outside(points)]

    # The picture is cropped to the part of the plane in H.
    across, up = np.abs(within(square(101, half, half).reshape(-1, 2))).max(axis=0) * 1.05
    t = jnp.asarray(time, start.state.dtype)

    loss = getattr(next(iter(condition.parts.values())), "loss", None)
    if loss is not None and loss.threshold() is not None:
        grid = square(401, across, up)
        flat = jnp.asarray(grid.reshape(-1, 2), plane.dtype)
        right = jax.jit(jax.vmap(lambda a: loss.correct(point.readout(a @ plane), point.target)))(flat)
        kind = np.where(outside(flat), 2, np.asarray(right, int)).reshape(grid.shape[:2])
        colors = ListedColormap([WRONG, RIGHT, OUTSIDE])
        axes.pcolormesh(*grid.transpose(2, 0, 1), kind, cmap=colors, vmin=0, vmax=2, zorder=0, rasterized=True)

    where = within(square(19, across, up).reshape(-1, 2))
    velocity = np.asarray(
        jax.vmap(lambda a: plane @ system.velocity(t, a @ plane, start.context))(jnp.asarray(where, plane.dtype))
    )
    speed = np.linalg.norm(velocity, axis=-1, keepdims=True)
    # Arrows show directions; their length saturates, so that slow regions stay readable.
    arrows = velocity / np.maximum(speed, 1e-12) * np.minimum(1, speed / max(float(np.median(speed)), 1e-12)) ** 0.5
    axes.quiver(*where.T, *arrows.T, color=INK, alpha=0.45, pivot="mid", width=0.003, scale=26)

    draws = np.random.default_rng(seed).uniform(-1, 1, (50 * trajectories, 2)) * [across, up]
    begin = within(draws)[:trajectories]
    saveat = diffrax.SaveAt(ts=jnp.linspace(0, system.horizon, 40, dtype=start.state.dtype))

    @jax.jit
    def paths(begin: Any) -> Any:
        return jax.vmap(lambda a: solve(system, Start(a @ plane, start.context), None, quiet.solver, saveat=saveat).ys)(
            begin
        )

    drawn = np.asarray(paths(jnp.asarray(begin, start.state.dtype)) @ plane.T)
    axes.plot(*drawn.transpose(2, 1, 0), color=INK, linestyle=":", linewidth=0.8, zorder=2)
    axes.plot(*drawn[:, -1].T, ".", color=ACCENT, markersize=4, zorder=3, label="states at the final time")
    nominal = np.asarray(solve(system, start, None, quiet.solver, saveat=saveat).ys @ plane.T)
    axes.plot(*nominal.T, color=ACCENT, linewidth=2, zorder=3, label="inference")
    axes.set(xlim=(-across, across), ylim=(-up, up), aspect="equal", xticks=[], yticks=[])


def _reach(domain: Domain, plane: Array) -> float:
    """How far H reaches from 0 along the axes of a plane: the larger of the two."""
    distances = jnp.geomspace(1e-3, 1e3, 2000, dtype=plane.dtype)
    inside = jax.vmap(lambda d: jnp.stack([domain.excess(d * plane[0]), domain.excess(d * plane[1])]) <= 0)(distances)
    return 1.08 * float(jnp.max(jnp.where(inside, distances[:, None], 0))) or 1.0
