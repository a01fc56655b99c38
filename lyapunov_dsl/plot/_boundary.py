"""Decision boundaries of planar problems (paper, Figure 4)."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LinearSegmentedColormap, to_rgb

from .._types import describe, is_finite, struct_of
from ._plane import BLUE, GREEN, INK, RED, ground

_COLORS = (BLUE, RED, GREEN, "#e08a00", "#7b3fa0", "#008b8b", "#8a5a2b", "#c2478f", "#6b7a1f", "#555555")
_TWO = LinearSegmentedColormap.from_list("two classes", [BLUE, "#ffffff", RED])


def decision_boundary(
    predict: Callable,
    x: PyTree,
    y: PyTree = None,
    *,
    axes: Axes,
    extent: Any = None,
    resolution: int = 201,
    data: bool = True,
) -> QuadMesh:
    """Draws what a classifier of points in the plane answers: softmax probabilities, the boundary, and the data.

    With two classes the ground runs from blue (probability 0 of class 1) through white (one half) to red. With more,
    it has the color of the likeliest class, fading to white as its probability falls to 1/classes. The black line is
    where the two largest logits are equal.

    **Arguments:**

    - `predict`: a batch of inputs, float[n, 2], to logits, float[n, classes]: any function, a program's `predict`
        included.
    - `x`, `y`: the data, float[n, 2], and its classes, int[n].
    - `axes`: a matplotlib `Axes`.
    - `extent`: half the side of the square that is shown, around the middle of the data; by default the data with a
        margin.
    - `resolution`: how many inputs a side are predicted.
    - `data`: whether to draw the data as points.

    **Returns:** the ground; with two classes `figure.colorbar` explains it as the probability of class 1.

    **Raises:** `ValueError` for data or logits of other shapes, classes out of range, an extent that is not positive,
    and a resolution below 2.
    """
    x, y = np.asarray(x), np.asarray(y)
    if x.ndim != 2 or x.shape[1] != 2 or not len(x) or not np.issubdtype(x.dtype, np.floating):
        raise ValueError(f"x: expected planar inputs float[n, 2], got {describe(struct_of(x))}")
    if y.shape != x.shape[:1] or not np.issubdtype(y.dtype, np.integer):
        raise ValueError(f"y: expected one class for each input, int[{len(x)}], got {describe(y)}")
    if extent is not None and not (is_finite(extent) and extent > 0):
        raise ValueError(f"extent: expected a positive finite number, got {extent!r}")
    if not (isinstance(resolution, int) and resolution >= 2):
        raise ValueError(f"resolution: expected a whole number of at least 2, got {resolution!r}")
    low, high = x.min(axis=0), x.max(axis=0)
    middle = (low + high) / 2
    reach = 0.58 * float((high - low).max()) or 1.0
    half = reach if extent is None else float(extent)
    side = np.linspace(-half, half, resolution)
    grid = (middle + np.stack(np.meshgrid(side, side), -1)).astype(x.dtype)

    logits = np.asarray(predict(grid.reshape(-1, 2)))
    if logits.ndim != 2 or logits.shape[0] != resolution**2 or logits.shape[1] < 2:
        raise ValueError(
            f"predict: expected logits float[{resolution**2}, classes] with at least two classes, got {describe(logits)}"
        )
    classes = logits.shape[1]
    wrong = y[(y < 0) | (y >= classes)]
    if wrong.size:
        raise ValueError(f"y: expected classes in [0, {classes}), as many as there are logits, got {wrong[0]}")
    logits = logits.reshape(resolution, resolution, classes)
    shares = np.asarray(jax.nn.softmax(logits, axis=-1))
    palette = np.array([to_rgb(_COLORS[i % len(_COLORS)]) for i in range(classes)])
    if classes == 2:
        mesh = ground(axes, grid, shares[..., 1], cmap=_TWO, vmin=0, vmax=1, alpha=0.75)
    else:
        strength = ((shares.max(axis=-1, keepdims=True) - 1 / classes) / (1 - 1 / classes)) * 0.75
        mesh = ground(axes, grid, 1 - strength * (1 - palette[shares.argmax(axis=-1)]))
    # The lead of a class over the best other one; of two classes the second's says it all.
    for i in range(1 if classes == 2 else 0, classes):
        lead = logits[..., i] - np.delete(logits, i, axis=-1).max(axis=-1)
        if lead.min() < 0 < lead.max():
            axes.contour(grid[..., 0], grid[..., 1], lead, [0], colors=INK, linewidths=1.6, zorder=3)
    if data:
        small = min(1, reach / half) ** 0.5
        options = {"s": 14 * small, "linewidths": 0.5 * small, "edgecolors": "white", "zorder": 2}
        for i in range(classes):
            axes.scatter(*x[y == i].T, color=[palette[i]], label=f"class {i}", **options)
    axes.set(xlim=(grid[0, 0, 0], grid[0, -1, 0]), ylim=(grid[0, 0, 1], grid[-1, 0, 1]), aspect="equal")
    axes.set(xticks=[], yticks=[])
    return mesh
