"""End-to-end training through the solver (eq. 5-6): the baseline."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from .._certificate import Point
from .._condition import Condition
from .._rollout import discrete_path
from .._solve import Solver, solve
from .._system import DiscreteSystem, System
from .._types import Scalar, Struct
from ._base import Objective, example_keys, starts


class EndToEnd(Objective):
    """The mean of V(T), which for the exponential certificate is the supervised loss at t = T (eq. 5-6), through the
    solver.

    **Arguments:**

    - `solver`: a [`lyapunov_dsl.Solver`][]: solver, step sizes and adjoint. The default is adaptive Tsit5 with
        diffrax's default adjoint. A discrete system needs none.

    Where the solver fails (`max_steps`), the loss is NaN.
    """

    solver: Solver

    def __init__(self, solver: Any = None):
        self.solver = Solver.of(solver)

    def check(self, condition: Condition, start: Struct) -> None:
        if isinstance(condition.system, System):
            self.solver.controller(condition.system)  # raises where the two do not go together

    def __call__(self, condition: Condition, x: PyTree, y: PyTree, *, key: Any) -> Scalar:
        keys = example_keys(key, x)

        def one(start: Any, target: Any, key: Any) -> Any:
            system = condition.system
            if isinstance(system, DiscreteSystem):
                states, readouts = discrete_path(system, start, key)
                final, point = states[-1], Point(readouts[-1], start.context, target)
                solved = True
            else:
                solution = solve(system, start, key, self.solver)
                final = jax.tree.map(lambda leaf: leaf[-1], solution.ys)
                point = condition.point(start, target, key)
                solved = diffrax.is_okay(solution.result)
            t = jnp.asarray(system.horizon, jnp.result_type(*jax.tree.leaves(final)))
            value = condition.weighted(condition.values(t, final, point))
            # A trajectory that was cut short has no state at T, so it must not look like one.
            return jnp.where(solved, value, jnp.nan)

        return jnp.mean(eqx.filter_vmap(one)(starts(condition, x, keys), y, keys))
