"""The origin-biased measure on a ball (paper, appendix B)."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import PyTree

from .._constant import Constant
from .._domain import Ball, Box
from .._system import Start, System
from .._types import check_sizes, is_finite
from ._base import Measure, Samples, shared_samples


class Sphere(Measure):
    """Radius uniform in (0, r_max), direction uniform, shared by the batch (paper, appendix B; Muller 1959).

    **Arguments:**

    - `samples`: Γ, how many states a step.
    - `radius`: r_max. Left out, the radius of the sphere around the domain: √k times the half-width of a box (so that
        some samples lie outside it, as in the paper), or the radius of a ball.

    **Raises:** `ValueError` for a number of samples or a radius that is not positive; `check` where no radius can be
    derived.
    """

    samples: int = eqx.field(static=True)
    radius: Constant | None
    per_example: ClassVar[bool] = False

    def __init__(self, samples: int = 64, radius: Any = None):
        check_sizes(samples=samples)
        if radius is not None and not (is_finite(radius) and radius > 0):
            raise ValueError(f"radius: expected a positive finite number, got {radius!r}")
        self.samples = samples
        self.radius = None if radius is None else Constant(radius)

    def check(self, system: System, state: PyTree) -> None:
        if self.radius is None and not isinstance(system.domain, Box | Ball):
            raise ValueError(
                f"Sphere: expected a radius, or a Box or Ball domain to derive it from, got {type(system.domain).__name__}"
            )

    def _frame(self, system: System, state: PyTree) -> tuple[Any, Any]:
        """Center and r_max as flat arrays."""
        flat, _ = ravel_pytree(state)
        if self.radius is not None:
            return jnp.zeros_like(flat), self.radius(flat.dtype)
        domain = system.region
        widths, _ = ravel_pytree(domain.half_widths(state))
        # Both kinds of domain are symmetric, so that the center is the projection's middle: a bound plus a half-width.
        corner = domain.center if isinstance(domain, Ball) else domain.lower if isinstance(domain, Box) else None
        assert corner is not None  # `check` refused other domains
        begin, _ = ravel_pytree(jax.tree.map(lambda x: jnp.broadcast_to(corner(x.dtype), x.shape), state))
        if isinstance(domain, Ball):
            return begin, widths[0]
        return begin + widths, jnp.linalg.norm(widths)

    def sample(self, system: System, start: Start, *, key: Any) -> Samples:
        flat, unravel = ravel_pytree(start.state)
        center, largest = self._frame(system, start.state)

        def draw(key: Any) -> Any:
            direction, length = jax.random.split(key)
            normal = jax.random.normal(direction, flat.shape, flat.dtype)
            radius = jax.random.uniform(length, (), flat.dtype) * largest
            return unravel(center + normal / jnp.linalg.norm(normal) * radius)

        return shared_samples(draw, start, self.samples, system.horizon, key)
