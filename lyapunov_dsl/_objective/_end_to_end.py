"""End-to-end training through the solver (eq. 5-6): the baseline."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from .._certificate import Point
from .._condition import Condition
from .._rollout import chart, discrete_states
from .._solve import Solver, solve
from .._system import DiscreteSystem
from .._types import Scalar, Struct
from ._base import Objective, example_keys, starts


class EndToEnd(Objective):
    """The mean of V(T), which for the exponential certificate is the supervised loss at t = T (eq. 5-6), through the
    solver.

    **Arguments:**

    - `solver`: a [`lyapunov_dsl.Solver`][]: solver, step sizes and adjoint. The default is adaptive Tsit5 with
        diffrax's default adjoint. A discrete system needs none.
    """

    solver: Solver

    def __init__(self, solver: Any = None):
        self.solver = Solver.of(solver)

    def check(self, condition: Condition, start: Struct) -> None:
        pass

    def __call__(self, condition: Condition, x: PyTree, y: PyTree, *, key: Any) -> Scalar:
        keys = example_keys(key, x)

        def one(start: Any, target: Any, key: Any) -> Any:
            system = condition.system
            if isinstance(system, DiscreteSystem):
                states, positions = discrete_states(system, start, key)
                final, point = states[-1], Point(chart(system, start, positions[-1], key), start.context, target)
            else:
                solution = solve(system, start, key, self.solver)
                final = jax.tree.map(lambda leaf: leaf[-1], solution.ys)
                point = condition.point(start, target, key)
            t = jnp.asarray(system.horizon, jnp.result_type(*jax.tree.leaves(final)))
            return condition.weighted(condition.values(t, final, point))

        return jnp.mean(eqx.filter_vmap(one)(starts(condition, x, keys), y, keys))
