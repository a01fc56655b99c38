"""The error if inference stopped early (paper, Figure 3)."""

from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from .._certificate import loss_of
from .._certify import clopper_pearson
from .._compile import Program
from .._types import is_finite


def error_over_time(
    program: Program,
    x: PyTree,
    y: PyTree = None,
    *,
    axes: Axes,
    label: str | None = None,
    color: Any = None,
    points: int = 32,
    confidence: Any = None,
    relative: bool = False,
) -> None:
    """Draws the share of examples that are decided wrongly if inference stops at time t, against t.

    What is drawn at t is exactly `program.error(x, y, stop=t)`: the solver runs to t and the readout decides there,
    ties counting as wrong. Where the loss decides nothing it is the mean of V at t. A discrete system stops after the
    last of its layers that is reached by t.

    **Arguments:**

    - `program`: a compiled program.
    - `x`, `y`: inputs and targets, leading batch axis.
    - `axes`: a matplotlib `Axes`.
    - `label`, `color`: of the curve.
    - `points`: how many times t, equally spaced in (0, horizon].
    - `confidence`: of a Clopper-Pearson band around shares, such as 0.95; by default there is none. It holds at each t
        by itself, for examples that are independent draws and were not trained on.
    - `relative`: whether to draw against t / horizon, so that programs of different horizons share the axes.

    **Raises:** `ValueError` for data that does not fit the declaration, a number of points that is not positive, a
    confidence outside (0, 1), and one where the loss decides nothing.
    """
    if not (isinstance(points, int) and points > 0):
        raise ValueError(f"points: expected a positive whole number, got {points!r}")
    if confidence is not None and not (is_finite(confidence) and 0 < confidence < 1):
        raise ValueError(f"confidence: expected a probability in (0, 1), got {confidence!r}")
    loss = loss_of(program.certificate)
    decides = loss is not None and loss.threshold() is not None
    if confidence is not None and not decides:
        raise ValueError("confidence: expected a loss that decides, such as cross_entropy, got one that does not")
    horizon = program.system.horizon
    times = np.linspace(0, horizon, points + 1)[1:]
    errors = np.array([program.error(x, y, stop=t) for t in times])
    times = times / horizon if relative else times
    (line,) = axes.plot(times, errors, color=color, label=label, linewidth=2)
    if confidence is not None:
        size = jax.tree.leaves(x)[0].shape[0]
        low, high = np.transpose([clopper_pearson(round(share * size), size, confidence) for share in errors])
        axes.fill_between(times, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    unit = " / horizon" if relative else ""
    axes.set(xlabel=f"time t{unit} at which inference stops", xlim=(0, 1 if relative else horizon))
    axes.set_ylabel("share decided wrongly" if decides else "mean of the potential V")
    if decides:
        axes.yaxis.set_major_formatter(PercentFormatter(1))
