"""Phase portraits (paper, Figure 1)."""

from typing import Any

import numpy as np
from jaxtyping import PyTree
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap

from .._certificate import loss_of
from .._compile import Program
from ._plane import INK, OUTSIDE, RED, RIGHT, WRONG, Plane, arrows, ground


def phase_portrait(
    program: Program,
    x: PyTree,
    y: Any = None,
    *,
    axes: Axes,
    plane: Any = None,
    extent: Any = None,
    time: Any = 0.0,
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

    **Raises:** `ValueError` for a discrete system, a state that is not a vector, a plane of another shape or one that
    does not meet H, and a time outside [0, horizon].
    """
    view = Plane(program, x, y, plane, extent, time)
    loss = loss_of(program.certificate)
    if loss is not None and loss.threshold() is not None:
        grid = view.grid(401)
        right = view.map(lambda state: loss.correct(view.point.readout(state), view.point.target), grid)
        kind = np.where(view.outside(grid), 2, right.astype(int))
        ground(axes, grid, kind, cmap=ListedColormap([WRONG, RIGHT, OUTSIDE]), vmin=0, vmax=2)

    where = view.inside(view.grid(19).reshape(-1, 2))
    arrows(axes, where, view.map(view.velocity, where), color=INK, alpha=0.45, width=0.003)

    draws = np.random.default_rng(seed).uniform(view.low, view.high, (50 * trajectories, 2))
    drawn = view.paths(view.inside(draws)[:trajectories], 40)
    axes.plot(*drawn.transpose(2, 1, 0), color=INK, linestyle=":", linewidth=0.8, zorder=2)
    axes.plot(*drawn[:, -1].T, ".", color=RED, markersize=4, zorder=3, label="states at the final time")
    axes.plot(*view.inference(40).T, color=RED, linewidth=2, zorder=3, label="inference")
    view.frame(axes)
