"""The potential against time (paper, Figure 3)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree
from matplotlib.axes import Axes

from .._compile import Program


def potential_over_time(
    program: Program,
    x: PyTree,
    y: PyTree = None,
    *,
    axes: Axes,
    label: str | None = None,
    color: Any = None,
    part: str | None = None,
    points: int = 65,
    promise: bool = True,
) -> None:
    """Draws V along the trajectories of a batch: the median, the band of 90 % of them, and the promised envelope.

    **Arguments:**

    - `program`: a compiled program for a continuous system.
    - `x`, `y`: inputs and targets, leading batch axis.
    - `axes`: a matplotlib `Axes`; its vertical axis becomes logarithmic.
    - `label`, `color`: of the curve.
    - `part`: the name of the certificate, the first by default.
    - `points`: how many times.
    - `promise`: whether to draw the envelope: the solution of the comparison equation from the median of V(0), for the
        exponential certificate V(0) exp(-κt).
    """
    times = jnp.linspace(0, program.system.horizon, points)
    name = next(iter(program.condition.parts)) if part is None else part
    values = program.potential(x, y, times=times)[name]
    middle, low, high = (np.quantile(np.asarray(values), q, axis=0) for q in (0.5, 0.05, 0.95))
    axes.fill_between(times, low, high, color=color, alpha=0.15, linewidth=0)
    axes.plot(times, middle, color=color, label=label, linewidth=2)
    if promise:
        first = jnp.asarray(middle[0], values.dtype)
        certificate = program.condition.parts[name]
        envelope = jax.vmap(lambda t: certificate.flow(jnp.zeros_like(t), t, first))(times.astype(values.dtype))
        axes.plot(times, envelope, color="black", linestyle="--", linewidth=1.5, label="promised")
    axes.set_yscale("log")
    axes.set(xlabel="time t", ylabel="potential V", xlim=(0, program.system.horizon))
