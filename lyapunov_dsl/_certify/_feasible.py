"""Feasibility: whether any field with the declared speed could meet the condition."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._condition import Condition
from .._system import System
from .._types import Scalar, describe, struct_of
from ._assurance import Assurance, Claim, Counterexample
from ._falsify import Draws, Found, descend, draw, evaluate, falsify
from ._paths import before_truncation
from ._report import Report

# From a draw to the state with the least V: where on the way to look.
_WAYS = np.linspace(0.25, 1, 16)


class BestCase(eqx.Module):
    """A condition with, in place of the rate that V has, the least one that the declared speed allows.

    The field has a method `speed_bound(t, state, context)`. It returns a scalar s, for |f|_2 <= s over all leaves of
    the state together, or a pair (lower, upper) of PyTrees like the state, for lower <= f <= upper. The least of ∂V/∂η · f is then -s
    |∂V/∂η|_2, or the sum of min(∂V/∂η_i lower_i, ∂V/∂η_i upper_i).
    """

    condition: Condition

    @property
    def parts(self) -> Any:
        return self.condition.parts

    @property
    def continuous(self) -> System:
        return self.condition.continuous

    def point(self, start: Any, target: Any) -> Any:
        return self.condition.point(start, target)

    def rates(self, t: Any, state: Any, point: Any) -> dict[str, tuple[Scalar, Scalar]]:
        """V and the least dV/dt for every part."""
        field: Any = self.continuous.vector_field
        bound = field.speed_bound(t, state, point.context)

        def both(part: Any) -> tuple[Scalar, Scalar]:
            value, (of_time, slopes) = jax.value_and_grad(lambda t, s: part.value(t, s, point), (0, 1))(t, state)
            if isinstance(bound, tuple | list):
                least = jax.tree.map(lambda g, low, high: jnp.sum(jnp.minimum(g * low, g * high)), slopes, *bound)
                return value, of_time + jax.tree.reduce(jnp.add, least)
            # Of the largest entry, as squares of small ones underflow: where V is small that would be a speed of 0.
            largest = jnp.max(jnp.stack([jnp.max(jnp.abs(g)) for g in jax.tree.leaves(slopes)]))
            scale = jax.lax.stop_gradient(jnp.where(largest > 0, largest, 1))
            squares = jax.tree.reduce(jnp.add, jax.tree.map(lambda g: jnp.sum((g / scale) ** 2), slopes))
            # The root has no derivative at 0.
            norm = jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0) * scale
            return value, of_time - bound * norm

        return {name: both(part) for name, part in self.parts.items()}


def check_bound(condition: Condition, starts: PyTree) -> None:
    """Raises `ValueError` for a speed bound that is neither a scalar nor a pair like the state."""
    one = lambda tree: jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), struct_of(tree))
    state, context = one(starts.state), one(eqx.filter(starts.context, eqx.is_array))
    context = eqx.combine(context, eqx.filter(starts.context, eqx.is_array, inverse=True))
    field: Any = condition.continuous.vector_field
    t = jax.ShapeDtypeStruct((), jnp.result_type(*jax.tree.leaves(state)))
    bound = eqx.filter_eval_shape(field.speed_bound, t, state, context)
    shapes = lambda tree: jax.tree.map(lambda leaf: leaf.shape, struct_of(tree))
    pair = isinstance(bound, tuple | list) and len(bound) == 2 and all(shapes(side) == shapes(state) for side in bound)
    if not pair and np.shape(bound) != ():
        raise ValueError(
            f"speed_bound: expected a scalar, or a pair (lower, upper) of velocities like the state {describe(state)}, got "
            f"{describe(bound)}"
        )


@eqx.filter_jit
def _overrun(condition: Condition, starts: PyTree, draws: Draws) -> Any:
    """By how much the field exceeds its declared bound at every draw, relative to it; not a number counts as infinite."""
    system = condition.continuous
    field: Any = system.vector_field

    def one(example: Any, t: Any, state: Any) -> Any:
        context = jax.tree.map(lambda leaf: leaf[example] if eqx.is_array(leaf) else leaf, starts.context)
        velocity, bound = system.velocity(t, state, context), field.speed_bound(t, state, context)
        tiny = jnp.finfo(t.dtype).tiny
        if isinstance(bound, tuple | list):
            over = lambda v, low, high: jnp.max(
                jnp.maximum(low - v, v - high) / (jnp.max(jnp.abs(low)) + jnp.max(jnp.abs(high)) + tiny)
            )
            excess = jnp.max(jnp.stack(jax.tree.leaves(jax.tree.map(over, velocity, *bound))))
        else:
            speed = jnp.sqrt(sum(jnp.sum(v**2) for v in jax.tree.leaves(velocity)))
            excess = (speed - bound) / (bound + tiny)
        return jnp.where(jnp.isnan(excess), jnp.inf, excess)

    return jax.vmap(one)(draws.example, draws.t, draws.state)


def _towards_the_least(condition: Condition, part: str, starts: PyTree, targets: PyTree, draws: Draws) -> Draws:
    """States between each draw and the state with the least V that a descent finds from it: small V is where a bounded
    field has trouble, and uniform draws do not come there."""
    ends, _ = descend(condition, part, starts, targets, draws.example, draws.state)
    many = lambda leaf: np.repeat(np.asarray(leaf), _WAYS.size, axis=0)

    def between(begin: Any, end: Any) -> Any:
        way = np.resize(_WAYS, begin.shape[0] * _WAYS.size).reshape(-1, *[1] * (begin.ndim - 1)).astype(begin.dtype)
        return many(begin) + way * (many(end) - many(begin))

    return Draws(many(draws.example), many(draws.t), jax.tree.map(between, draws.state, ends))


def feasibility(condition: Condition, starts: PyTree, targets: PyTree, *, key: Any, samples: int) -> Report:
    """See [`lyapunov_dsl.assess`][]."""
    claims: dict[str, Claim] = {}
    if not callable(getattr(condition.continuous.vector_field, "speed_bound", None)):
        for name in condition.parts:
            why = "unknown, as the vector field declares no speed_bound"
            claims[f"{name}.feasible"] = Claim(f"whether {name} can be met on H: {why}", Assurance.UNDECIDED)
        return Report(claims)
    check_bound(condition, starts)
    drawn: Draws = jax.tree.map(np.asarray, draw(condition, starts, key, samples))
    claims["speed_bound"] = _declared(condition, starts, drawn)
    best = BestCase(condition)
    join = lambda *trees: jax.tree.map(lambda *leaves: np.concatenate(leaves), *trees)
    for name in condition.parts:
        few: Draws = jax.tree.map(lambda leaf: leaf[: max(samples // 16, 1)], drawn)
        points = join(drawn, _towards_the_least(condition, name, starts, targets, few))
        found: Found = jax.tree.map(np.asarray, evaluate(best, name, starts, targets, points))
        worst, counterexample = falsify(best, name, starts, targets, points, found)
        if claims["speed_bound"].counterexample is not None:
            why = "unknown, as the field breaks its own speed_bound"
            claims[f"{name}.feasible"] = Claim(f"whether {name} can be met on H: {why}", Assurance.UNDECIDED)
            continue
        statement = (
            f"{name} can be met on all of [0, T] x H at the declared speed; worst residual left to the fastest field"
        )
        level = Assurance.EMPIRICAL if counterexample is None else Assurance.REFUTED
        given = f"speed_bound, given by you; the field was found to keep it at {len(drawn.t)} states drawn in H"
        claims[f"{name}.feasible"] = Claim(statement, level, worst, counterexample=counterexample, given=given)
        values = found.value[found.excess > 0]
        if counterexample is not None:
            values = np.append(values, counterexample.value)
        if values.size:
            part: Any = condition.parts[name]
            level = 0.0 if before_truncation(part) is None else float(part.loss.level())
            claims[f"{name}.level"] = Claim(
                f"largest V{' before truncation' if level else ''} found at which no field of that speed meets {name}",
                Assurance.EMPIRICAL,
                float(np.max(values)) + level,
            )
    refuted = [c.counterexample for c in claims.values() if c.counterexample is not None]
    badness = lambda c: math.inf if math.isnan(c.residual) else c.residual
    return Report(claims, counterexample=max(refuted, key=badness, default=None))


def _declared(condition: Condition, starts: PyTree, drawn: Draws) -> Claim:
    """Whether the field that was declared keeps its own bound."""
    over = np.asarray(_overrun(condition, starts, drawn))
    i, statement = int(np.argmax(over)), "the field keeps its own speed_bound; worst overrun found, relative to it"
    if not over[i] > 256 * float(jnp.finfo(over.dtype).eps):
        return Claim(statement, Assurance.EMPIRICAL, float(over[i]))
    state = jax.tree.map(lambda leaf: np.asarray(leaf[i]), drawn.state)
    shown = Counterexample(
        "speed_bound", int(drawn.example[i]), float(drawn.t[i]), state, math.nan, math.nan, float(over[i])
    )
    return Claim(statement, Assurance.REFUTED, float(over[i]), counterexample=shown)
