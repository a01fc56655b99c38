"""Path integral and discrete-time training (Algorithm 2)."""

from typing import Any

import diffrax
import equinox as eqx
import jax.numpy as jnp
from jaxtyping import PyTree

from .._condition import Condition
from .._rollout import layout
from .._solve import with_tolerances
from .._system import DiscreteSystem
from .._types import Scalar, Struct, check_sizes, kind
from ._base import Objective, example_keys, starts


class PathIntegral(Objective):
    """Σ_i max(0, V(t_{i+1}) - flow(t_i, Δt, V(t_i))) along a differentiated rollout (Algorithm 2, eq. 16-17).

    For the exponential certificate flow is exp(-κ Δt) V, that is κ_d = 1 - exp(-κ Δt) in eq. 16. The sum tends to the
    Lyapunov loss of eq. 13 (times T) as Δt -> 0. For a discrete system the path is its layers.

    **Arguments:**

    - `steps`: Γ, the number of equal steps over [0, T]; a discrete system brings its own.
    - `solver`: the diffrax solver that takes them, Euler by default.

    **Raises:** `ValueError` for a number of steps that is not positive or a solver that is not diffrax's; `check` for a discrete
    system in which no step keeps the shape of the state.
    """

    steps: int = eqx.field(static=True)
    solver: diffrax.AbstractSolver

    def __init__(self, steps: int = 8, solver: Any = None):
        check_sizes(steps=steps)
        if solver is not None and not isinstance(solver, diffrax.AbstractSolver):
            raise ValueError(f"solver: expected a diffrax solver such as diffrax.Euler(), got {kind(solver)}")
        self.steps = steps
        # An implicit one finds its roots to the default tolerances of a `Solver`.
        self.solver = diffrax.Euler() if solver is None else with_tolerances(solver, 1e-3, 1e-6)

    def check(self, condition: Condition, start: Struct) -> None:
        if isinstance(condition.system, DiscreteSystem) and not any(layout(condition.system, start)[0]):
            raise ValueError(
                "steps: expected at least one step that keeps the state's shape (only those are dynamics), got none"
            )

    def __call__(self, condition: Condition, x: PyTree, y: PyTree, *, key: Any) -> Scalar:
        keys = example_keys(key, x)

        def one(start: Any, target: Any, key: Any) -> Any:
            residuals = condition.path_residuals(start, target, key, solver=self.solver, steps=self.steps)
            return jnp.sum(condition.hinge(residuals))

        return jnp.mean(eqx.filter_vmap(one)(starts(condition, x, keys), y, keys))
