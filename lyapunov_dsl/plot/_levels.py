"""Level sets of the potential, and where the condition is violated (paper, Figure 2)."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LinearSegmentedColormap

from .._compile import Program
from .._types import is_finite
from ._plane import BLUE, GREEN, INK, OUTSIDE, RED, Plane, arrows, ground

_VIOLATION = LinearSegmentedColormap.from_list("violation", ["#ffffff", "#fdeadf", "#f9c8ae", "#f2a07c"]).with_extremes(
    bad=OUTSIDE
)


def level_sets(
    program: Program,
    x: PyTree,
    y: Any = None,
    *,
    axes: Axes,
    plane: Any = None,
    extent: Any = None,
    time: Any = 0.0,
    part: str | None = None,
    levels: Any = 9,
    vmax: Any = None,
) -> QuadMesh:
    """Draws the level sets of V for one example, and where its flow keeps the condition dV/dt <= comparison(t, V).

    Arrows of the field are blue where the condition holds and red where it is violated; the ground shows by how much,
    max(0, dV/dt - comparison(t, V)), the point-wise loss of eq. 12. The green line is the trajectory of inference from
    its start (the dot). States outside H are gray.

    For a state with more than two entries, V and the violation are those of the true field at the states of a plane
    through 0. Arrows and the trajectory are projected onto it: an arrow may point along the contours while V falls in
    a direction that is not shown, and the trajectory need not be where the contours under it say.

    **Arguments:**

    - `program`: a compiled program for a continuous system whose state is a vector.
    - `x`, `y`: one example, without a batch axis.
    - `axes`: a matplotlib `Axes`.
    - `plane`: two orthonormal directions, shape (2, k); the coordinate plane for k = 2. For logits see
        [`lyapunov_dsl.plot.class_plane`][].
    - `extent`: half the side of the square that is shown; by default it reaches to the edge of H along both axes.
    - `time`: the t at which V, the field and the violation are drawn (the trajectory follows the field in time).
    - `part`: the name of the certificate, the first by default.
    - `levels`: the levels of V, increasing, or how many: in equal ratios where V is positive, else in equal steps.
    - `vmax`: the violation that gets the darkest color, by default the largest in the picture; give two pictures the
        same to compare them.

    **Returns:** the ground, for `figure.colorbar`.

    **Raises:** `ValueError` for a discrete system, a state that is not a vector, a plane of another shape or one that
    does not meet H, a time outside [0, horizon], a name that no certificate has,
    levels that do not increase, and a `vmax` that is not positive.
    """
    view = Plane(program, x, y, plane, extent, time)
    parts = view.condition.parts
    name = next(iter(parts)) if part is None else part
    if name not in parts:
        raise ValueError(f"part: expected one of {sorted(parts)}, got {part!r}")
    if vmax is not None and not (is_finite(vmax) and vmax > 0):
        raise ValueError(f"vmax: expected a positive finite number, got {vmax!r}")

    def residual(state: Any) -> Any:
        return view.condition.residuals(view.time, state, view.point)[name]

    def violated(state: Any) -> Any:
        # By more than rounding, as in a report.
        value, rate = view.condition.rates(view.time, state, view.point)[name]
        allowed = parts[name].comparison(view.time, value)
        return rate - allowed > 64 * jnp.finfo(rate.dtype).eps * (jnp.abs(value) + jnp.abs(rate) + jnp.abs(allowed))

    grid = view.grid(301)
    outside = view.outside(grid)
    violation = np.ma.masked_where(outside, np.maximum(view.map(residual, grid), 0))
    # Where nothing is violated the ground is white, not the whole range of colors for rounding errors.
    top = max(float(violation.max()), 1e-3) if vmax is None else vmax
    mesh = ground(axes, grid, violation, cmap=_VIOLATION, vmin=0, vmax=top)

    values = view.map(lambda state: view.condition.values(view.time, state, view.point)[name], grid)
    values = np.ma.masked_where(outside, values)
    shown = _levels(values, levels)
    # A flat V has no contours.
    if values.max() > values.min():
        lines = axes.contour(*np.moveaxis(grid, -1, 0), values, shown, colors=INK, linewidths=0.9, alpha=0.6, zorder=1)
        axes.clabel(lines, fmt="%.2g", fontsize=7, inline_spacing=3)

    where = view.inside(view.grid(19).reshape(-1, 2))
    colors = np.where(view.map(violated, where), RED, BLUE)
    arrows(axes, where, view.map(view.velocity, where), color=colors, width=0.0035, zorder=2)
    path = view.inference(60)
    axes.plot(*path.T, color=GREEN, linewidth=2.5, zorder=3, label="inference")
    axes.plot(*path[0], "o", color=GREEN, markersize=6, zorder=3)
    view.frame(axes)
    return mesh


def _levels(values: Any, levels: Any) -> np.ndarray:
    """The levels as they are given, or so many strictly between the least and the largest value of the picture."""
    if np.ndim(levels) == 1 and (np.diff(levels) > 0).all():
        return np.asarray(levels)
    if not (isinstance(levels, int) and levels > 0):
        raise ValueError(f"levels: expected increasing levels or a positive whole number, got {levels!r}")
    low, high = float(values.min()), float(values.max())
    spaced = np.geomspace if low > 0 else np.linspace
    return spaced(low, high, levels + 2)[1:-1]
