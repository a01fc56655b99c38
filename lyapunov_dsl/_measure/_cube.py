"""The uniform measure on H (paper, appendix B)."""

from typing import Any, ClassVar

import equinox as eqx
from jaxtyping import PyTree

from .._domain import Box
from .._system import Start, System
from .._types import check_sizes
from ._base import Measure, Samples, shared_samples


class Cube(Measure):
    """Uniform over a box of states and over [0, T], shared by the batch (paper, appendix B).

    **Arguments:**

    - `samples`: Γ, how many states a step.
    - `half_width`: of a cube around 0. Left out, the domain of the system, uniformly (by default the cube of eq. 49).

    **Raises:** `ValueError` for a number of samples or a half-width that is not positive.
    """

    samples: int = eqx.field(static=True)
    box: Box | None
    per_example: ClassVar[bool] = False

    def __init__(self, samples: int = 64, half_width: Any = None):
        check_sizes(samples=samples)
        self.samples = samples
        self.box = None if half_width is None else Box(-half_width, half_width)

    def check(self, system: System, state: PyTree) -> None:
        if self.box is not None:
            self.box.check(state)

    def sample(self, system: System, start: Start, *, key: Any) -> Samples:
        domain = system.region if self.box is None else self.box
        return shared_samples(lambda k: domain.sample(start.state, k), start, self.samples, system.horizon, key)
