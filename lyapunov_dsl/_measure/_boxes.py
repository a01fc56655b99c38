"""Where a proof failed: boxes of times and states."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import PyTree

from .._constant import Constant
from .._rollout import time_dtype
from .._system import Start, System
from .._types import check_sizes, describe
from ._base import Measure, Samples, uniform_weights


class Boxes(Measure):
    """Uniform in some boxes of (t, state), of which one is drawn for every sample.

    **Arguments:**

    - `low`, `high`: ends of the boxes, float[boxes, 1 + n], the time first, then the state as a vector; low <= high.
    - `samples`: how many in each draw.

    **Raises:** `ValueError` for ends that are not as above.
    """

    low: Constant
    high: Constant
    samples: int = eqx.field(static=True)
    per_example: ClassVar[bool] = False

    def __init__(self, low: Any, high: Any, samples: int = 64):
        check_sizes(samples=samples)
        ends = [np.asarray(v, float) for v in (low, high)]
        same = ends[0].ndim == 2 and ends[0].shape == ends[1].shape and len(ends[0]) and ends[0].shape[1] > 1
        if not same or not all(np.isfinite(v).all() for v in ends) or not (ends[0] <= ends[1]).all():
            raise ValueError(
                f"Boxes: expected finite low <= high, float[boxes, 1 + n], got {ends[0].shape} and {ends[1].shape}"
            )
        self.low, self.high, self.samples = Constant(low), Constant(high), samples

    def check(self, system: System, state: PyTree) -> None:
        size = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(state))
        if self.low.shape[1] != 1 + size:
            raise ValueError(
                f"Boxes: expected ends of a time and {size} states, for {describe(state)}, got {self.low.shape[1]}"
            )

    def sample(self, system: System, start: Start, *, key: Any) -> Samples:
        dtype = time_dtype(start.state)
        _, unravel = ravel_pytree(jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), start.state))
        low, high = self.low(dtype), self.high(dtype)
        which, where = jax.random.split(key)
        rows = jax.random.randint(which, (self.samples,), 0, len(low))
        points = jax.random.uniform(where, (self.samples, low.shape[1]), dtype, low[rows], high[rows])
        return Samples(points[:, 0], jax.vmap(unravel)(points[:, 1:]), uniform_weights(self.samples, dtype))
