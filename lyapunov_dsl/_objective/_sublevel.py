"""Training where a sublevel set of V is."""

import functools as ft
from typing import Any

import equinox as eqx
import jax
from jaxtyping import PyTree

from .._condition import Condition
from .._measure import Boundary, Measure
from .._system import DiscreteSystem
from .._types import Scalar, Struct, is_finite, kind
from ._base import Objective, example_keys, starts
from ._monte_carlo import over


class Sublevel(Objective):
    """g E_inside max(0, V - (c - m)) + E_outside max(0, c + m - V) at level c with a margin m and a growth
    g: V <= c where trajectories are to be certified, V > c on the boundary of H.

    Together with `MonteCarlo(level=c)`, what `prove` claims as `"decrease"` and `"enclosed"` at that level is trained, and the set
    {V <= c} grows over `inside` (a region of attraction that is learned; Chang, Roohi and Gao 2019).

    **Arguments:**

    - `level`: c, such as 0 for a barrier.
    - `inside`: a [`lyapunov_dsl.Measure`][] over states that {V <= c} is to hold.
    - `outside`: a measure over states that it is not to hold; the boundary of the domain where it is left out.
    - `margin`: m >= 0, in the unit of V.
    - `growth`: > 0, how much the first term counts beside the second.

    **Raises:** `ValueError` for what is not as above; when it is compiled, for a discrete system.
    """

    level: float = eqx.field(static=True)
    inside: Measure
    outside: Measure
    margin: float = eqx.field(static=True)
    growth: float = eqx.field(static=True)

    def __init__(self, level: Any, inside: Any, outside: Any = None, *, margin: Any = 0.1, growth: Any = 1.0):
        if not is_finite(level):
            raise ValueError(f"level: expected a finite number, got {level!r}")
        if not (is_finite(margin) and margin >= 0):
            raise ValueError(f"margin: expected a number >= 0, got {margin!r}")
        if not (is_finite(growth) and growth > 0):
            raise ValueError(f"growth: expected a number > 0, got {growth!r}")
        outside = Boundary() if outside is None else outside
        for name, measure in {"inside": inside, "outside": outside}.items():
            if not isinstance(measure, Measure):
                raise ValueError(f"{name}: expected a Measure such as Boxes(low, high), got {kind(measure)}")
        self.level, self.margin, self.growth = float(level), float(margin), float(growth)
        self.inside, self.outside = inside, outside

    def check(self, condition: Condition, start: Struct) -> None:
        if isinstance(condition.system, DiscreteSystem):
            raise ValueError("Sublevel: expected a continuous System, got a DiscreteSystem")
        self.inside.check(condition.continuous, start.state)
        self.outside.check(condition.continuous, start.state)

    def __call__(self, condition: Condition, x: PyTree, y: PyTree, *, key: Any) -> Scalar:
        model_key, sample_key = jax.random.split(key)
        keys = example_keys(model_key, x)
        begun = starts(condition, x, keys)
        low, high = self.level - self.margin, self.level + self.margin

        def missed(sign: int, level: float, t: Any, state: Any, point: Any, key: Any) -> Any:
            return condition.hinge({name: sign * (v - level) for name, v in condition.values(t, state, point).items()})

        sides = ((self.inside, ft.partial(missed, 1, low)), (self.outside, ft.partial(missed, -1, high)))
        found = [
            over(condition, measure, loss, begun, y, keys, jax.random.fold_in(sample_key, i))
            for i, (measure, loss) in enumerate(sides)
        ]
        return self.growth * found[0] + found[1]
