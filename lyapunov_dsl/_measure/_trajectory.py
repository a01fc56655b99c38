"""The tube around the current trajectories: the measure that makes training work."""

from typing import Any, ClassVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from .._rollout import rollout, time_dtype
from .._system import Start, System
from .._types import check_sizes, is_finite
from ._base import Measure, Samples, stratified_times, uniform_weights


class Trajectory(Measure):
    """States near those that inference visits: a short Euler rollout of the current system plus Gaussian noise.

    The rollout is not differentiated. Times are stratified, and a state between two points of the rollout is
    interpolated, so that every t in [0, T] is covered. States are projected onto the domain after every step, which keeps the few steps of
    a fast field from leaving it, and with the noise.

    **Arguments:**

    - `points`: how many Euler steps the rollout has. More where T/points is long beside the fastest motion in the domain.
    - `samples`: how many states are taken from it. A step of the rollout costs one evaluation of the field, a sample about three, since
        it is differentiated.
    - `noise`: the standard deviation of the noise, as a fraction of the half-width of the domain.

    **Raises:** `ValueError` for a number of points that is not positive, or noise that is negative or not finite.
    """

    points: int = eqx.field(static=True)
    samples: int = eqx.field(static=True)
    noise: float = eqx.field(static=True)
    per_example: ClassVar[bool] = True

    def __init__(self, points: int = 8, samples: int = 1, noise: Any = 0.25):
        check_sizes(points=points, samples=samples)
        if not (is_finite(noise) and noise >= 0):
            raise ValueError(f"noise: expected a finite number >= 0, got {noise!r}")
        self.points, self.samples = points, samples
        self.noise = float(noise)

    def check(self, system: System, state: PyTree) -> None:
        pass

    def sample(self, system: System, start: Start, *, key: Any) -> Samples:
        dtype = time_dtype(start.state)
        time_key, noise_key = jax.random.split(key)
        # Not the example's own key: the tube is around the trajectories of inference.
        path = rollout(
            eqx.nn.inference_mode(system), start, None,
            solver=diffrax.Euler(), steps=self.points, after=system.region.project,
        )  # fmt: skip
        grid, states = jax.lax.stop_gradient(path)
        t = stratified_times(time_key, self.samples, system.horizon, dtype)
        step = jnp.clip((t * (self.points / system.horizon)).astype(int), 0, self.points - 1)
        fraction = (t - grid[step]) / (grid[step + 1] - grid[step])

        def between(path: Any) -> Any:
            shape = (-1,) + (1,) * (path.ndim - 1)
            before, after = path[step], path[step + 1]
            return before + fraction.reshape(shape).astype(path.dtype) * (after - before)

        states = jax.tree.map(between, states)
        leaves, tree = jax.tree.flatten(states)
        widths = jax.tree.leaves(system.region.half_widths(start.state))
        keys = jax.random.split(noise_key, len(leaves))
        noisy = [
            leaf + self.noise * width[None] * jax.random.normal(k, leaf.shape, leaf.dtype)
            for leaf, width, k in zip(leaves, widths, keys, strict=True)
        ]
        states = jax.vmap(system.region.project)(jax.tree.unflatten(tree, noisy))
        return Samples(t, states, uniform_weights(self.samples, dtype))
