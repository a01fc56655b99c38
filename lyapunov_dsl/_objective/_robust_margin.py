"""Training for a certificate: the loss of the margins that a perturbation leaves."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from .. import bounds
from .._condition import Condition
from .._rollout import EulerInference, margins
from .._system import DiscreteSystem, plain
from .._types import Scalar, Struct, is_finite
from ._base import Objective


class RobustMargin(Objective):
    """Cross entropy of the least margins z_y - z_j in a ball around each input, for inference by Euler steps; readout: logits.

    With a Lipschitz constant the least margin is the nominal one less √2 L ε (Tsuzuku et al. 2018); without one it is a bound over the
    ball by planes through all steps (Wong and Kolter 2018; Zhang et al. 2020).

    **Arguments:**

    - `radius`: ε >= 0, in the unit of x.
    - `steps`: of Euler; those of inference.
    - `norm`: `"2"` or `"inf"`, of the perturbation.
    - `lipschitz`: L of x -> logits in the Euclidean norm, a number or a function of the system: 1 for 1-Lipschitz layers all the way.
        `None` for bounds.
    - `temperature`: margins are multiplied by it.
    - `method`: of [`lyapunov_dsl.bounds.bound`][], where that is used; `"ibp"`: ranges through the input module, the cheapest, and
        planes through the steps.

    Nothing is claimed of what comes out; [`lyapunov_dsl.InputRobustness`][] does that.

    **Raises:** `ValueError` for numbers that are not as above.
    """

    radius: float
    steps: int
    norm: str
    lipschitz: Any
    temperature: float
    method: Any

    def __init__(
        self,
        radius: Any,
        *,
        steps: int = 8,
        norm: str = "2",
        lipschitz: Any = None,
        temperature: Any = 1.0,
        method: Any = "crown-ibp",
    ):
        if not (is_finite(radius) and radius >= 0):
            raise ValueError(f"radius: expected a finite number >= 0, got {radius!r}")
        if not (isinstance(steps, int) and steps > 0):
            raise ValueError(f"steps: expected a positive whole number, got {steps!r}")
        if norm not in ("2", "inf") or (norm == "inf" and lipschitz is not None):
            raise ValueError(f"norm: expected '2', or 'inf' without a Lipschitz constant, got {norm!r}")
        if not (is_finite(temperature) and temperature > 0):
            raise ValueError(f"temperature: expected a positive finite number, got {temperature!r}")
        self.radius, self.steps, self.norm, self.lipschitz = float(radius), steps, norm, lipschitz
        self.temperature, self.method = float(temperature), method

    def check(self, condition: Condition, start: Struct) -> None:
        if isinstance(condition.system, DiscreteSystem):
            raise ValueError("objective: expected a continuous system for RobustMargin, got a DiscreteSystem")

    def __call__(self, condition: Condition, x: PyTree, y: PyTree, *, key: Any) -> Scalar:
        network = EulerInference(plain(condition.continuous), self.steps)
        given: Any = self.lipschitz(network.system) if callable(self.lipschitz) else self.lipschitz

        def one(x: Any, y: Any) -> Any:
            change = 0.0 if given is None else math.sqrt(2) * given * self.radius
            least = self._bounded(network, x, y) if given is None else network.margins(x, y) - change
            least = jnp.where(jnp.arange(least.shape[0]) == y, 0, least)
            return jax.nn.logsumexp(-self.temperature * least)

        return jnp.mean(jax.vmap(one)(x, y))

    def _bounded(self, network: EulerInference, x: Any, y: Any) -> Any:
        """The margins over the ball, at least."""
        region = bounds.Ball(x, self.radius) if self.norm == "2" else bounds.Box.around(x, self.radius)
        if self.method != "ibp":
            return bounds.bound(lambda x: network.margins(x, y), region, method=self.method, rounding="real").lower

        # Ranges through Euler steps would grow with every step; planes through them do not.
        begin = lambda x: eqx.filter(network.system.start(x), eqx.is_inexact_array)
        rest = eqx.filter(network.system.start(x), eqx.is_inexact_array, inverse=True)
        found = bounds.bound(begin, region, method="ibp", rounding="real")
        boxes = jax.tree.map(bounds.Box, found.lower, found.upper)

        def after(start: Any) -> Any:
            start = eqx.combine(start, rest)
            return margins(network.system.decode(network.final(start.state, start.context)), y)

        return bounds.bound(after, boxes, method="crown-ibp", rounding="real").lower
