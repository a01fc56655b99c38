"""The boundary of H."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import PyTree

from .._domain import Box
from .._system import Start, System
from .._types import check_sizes, kind
from ._base import Measure, Samples, shared_samples


class Boundary(Measure):
    """The boundary of a box H: uniform on each of its faces, every face as likely as another; times uniform.

    **Arguments:**

    - `samples`: how many in each draw.

    **Raises:** `ValueError` where there is not a positive whole number of them; when it is compiled, for a domain that is no `Box`.
    """

    samples: int = eqx.field(static=True)
    per_example: ClassVar[bool] = False

    def __init__(self, samples: int = 64):
        check_sizes(samples=samples)
        self.samples = samples

    def check(self, system: System, state: PyTree) -> None:
        if not isinstance(system.domain, Box):
            raise ValueError(f"Boundary: expected a System whose domain is a Box, got {kind(system.domain)}")
        system.domain.check(state)

    def sample(self, system: System, start: Start, *, key: Any) -> Samples:
        domain: Any = system.domain
        far = lambda leaf, sign: jnp.full(leaf.shape, sign * jnp.inf, leaf.dtype)
        corner = lambda sign: ravel_pytree(domain.project(jax.tree.map(lambda s: far(s, sign), start.state)))
        (low, unravel), (high, _) = corner(-1), corner(1)

        def draw(key: Any) -> Any:
            inside, which = jax.random.split(key)
            point = jax.random.uniform(inside, low.shape, low.dtype, low, high)
            face = jax.random.randint(which, (), 0, 2 * len(low))
            axis = face // 2
            return unravel(point.at[axis].set(jnp.where(face % 2 == 0, low[axis], high[axis])))

        return shared_samples(draw, start, self.samples, system.horizon, key)
