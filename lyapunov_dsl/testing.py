"""Hypothesis strategies and assertions to test certificates, measures and objectives of your own.

Needs the extra `[test]`. Everything is checked in the precision of the states given; float64 finds more.
"""

from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ._certificate import Certificate
from ._condition import Condition
from ._domain import Domain
from ._measure import Measure
from ._objective import Objective
from ._rollout import rollout, time_dtype
from ._system import Start, System
from ._types import struct_of

try:
    from hypothesis import strategies as st
    from hypothesis.extra import numpy as st_numpy
except ImportError as error:
    raise ImportError("lyapunov_dsl.testing needs hypothesis: install lyapunov_dsl[test]") from error


class LinearSystem(NamedTuple):
    """dη/dt = A η and V(η) = ηᵀ P η, whose exact rate of decay is known. All arrays are float64.

    **Arguments:**

    - `matrix`, `weight`: A and P, which is symmetric and positive definite, both of shape (n, n).
    - `rate`: the largest κ with dV/dt <= -κ V at every η.
    - `worst`: an η with V(η) = 1 at which dV/dt = -κ V, shape (n,).
    """

    matrix: np.ndarray
    weight: np.ndarray
    rate: float
    worst: np.ndarray


def stable_linear_systems(dimension: int, *, weighted: bool = False) -> st.SearchStrategy[LinearSystem]:
    """Random stable linear systems with a known rate of decay between 1/4 and 4.

    **Arguments:**

    - `dimension`: n >= 1.
    - `weighted`: whether P is a random positive definite matrix rather than the identity (V = |η|²).

    **Returns:** a hypothesis strategy of [`lyapunov_dsl.testing.LinearSystem`][].
    """
    floats = lambda *shape: st_numpy.arrays(np.float64, shape, elements=st.floats(-1, 1), fill=st.nothing())
    eye, vector = np.eye(dimension), floats(dimension)
    skew = floats(dimension, dimension).map(lambda m: m - m.T)
    orthogonal = skew.map(lambda s: np.linalg.solve(eye + s, eye - s))

    def build(axes: Any, turn: Any, rates: Any, scales: Any, rotation: Any) -> LinearSystem:
        # In the coordinates z = G η, where V = |z|², A is minus half of diag(rates), rotated, plus a skew matrix.
        change = scales[:, None] * rotation if weighted else eye
        back = np.linalg.inv(change)
        matrix = back @ (turn - axes @ np.diag(rates) @ axes.T / 2) @ change
        return LinearSystem(matrix, change.T @ change, float(rates.min()), back @ axes[:, np.argmin(rates)])

    return st.builds(build, orthogonal, skew, vector.map(lambda u: 4.0**u), vector.map(lambda u: 2.0**u), orthogonal)


def states(domain: Domain, struct: PyTree) -> st.SearchStrategy[PyTree]:
    """States of a domain, its boundary included.

    **Arguments:**

    - `domain`, `struct`: the set H, and one state or its `jax.ShapeDtypeStruct`s.

    **Returns:** a hypothesis strategy of states, of the shapes and dtypes of `struct`.
    """
    leaves, tree = jax.tree.flatten(struct_of(struct))
    elements = st.floats(-2, 2, allow_subnormal=False)

    def place(units: Any) -> PyTree:
        units = jax.tree.unflatten(tree, [jnp.asarray(u, leaf.dtype) for u, leaf in zip(units, leaves, strict=True)])
        some = domain.sample(units, jax.random.key(0))
        return domain.project(jax.tree.map(lambda s, w, u: s + w * u, some, domain.half_widths(some), units))

    return st.tuples(*(st_numpy.arrays(np.float64, leaf.shape, elements=elements) for leaf in leaves)).map(place)


def times(horizon: float) -> st.SearchStrategy[float]:
    """Times in [0, horizon], both ends included.

    **Arguments:**

    - `horizon`: T > 0.

    **Returns:** a hypothesis strategy of numbers.
    """
    return st.floats(0, horizon, allow_subnormal=False)


def _require(good: Any, message: str, **numbers: Any) -> None:
    wrong = np.argwhere(~np.asarray(good))
    if len(wrong):
        at = tuple(wrong[0])
        shown = [f"{name}={np.broadcast_to(number, np.shape(good))[at]}" for name, number in numbers.items()]
        raise AssertionError(", ".join([f"{message} (point {at[0]})" if at else message, *shown]))


@eqx.filter_jit
def _probe(condition: Condition, start: Start, target: PyTree, times: Any, states: PyTree, dt: Any) -> dict:
    system, point = condition.continuous, condition.point(start, target)
    small = jnp.finfo(times.dtype).eps ** (1 / 3)  # the best step of a central difference
    norm = lambda tree: jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree)))

    def one(t: Any, state: PyTree) -> dict[str, dict[str, Any]]:
        t = jnp.clip(t, 2 * small * system.horizon, (1 - 2 * small) * system.horizon)
        velocity = system.velocity(t, state, start.context)
        h = small * jnp.minimum(system.horizon, (1 + norm(state)) / (norm(velocity) + small))
        rates, residuals = condition.rates(t, state, point), condition.residuals(t, state, point)
        early = jnp.minimum(t, system.horizon - dt)

        def numbers(part: Certificate, v: Any, rate: Any, residual: Any) -> dict[str, Any]:
            moved = lambda s: part.value(t + s, jax.tree.map(lambda x, f: x + s * f, state, velocity), point)
            # A rate of its own is no derivative along the flow: what it is above that is taken away.
            plain = Certificate.derivative(part, t, state, point, velocity)[1]
            rate, residual = plain, residual - (rate - plain)
            scaled = System(vector_field=lambda s, v, _: dt * part.comparison(early + s * dt, v))
            return {
                "value": v, "rate": rate, "comparison": part.comparison(t, v), "step": h,
                "forward": jnp.stack([(moved(s) - v) / s for s in (h, 2 * h)]),
                "backward": jnp.stack([(v - moved(-s)) / s for s in (h, 2 * h)]),
                "error": jnp.stack([(moved(s) - part.flow(t, s, v)) / s - residual for s in (h, 2 * h)]),
                "solution": rollout(scaled, Start(v), None, solver=diffrax.Tsit5(), steps=64)[1][-1],
                "flow": part.flow(early, dt, v),
                "twice": part.flow(early + dt / 4, dt * 3 / 4, part.flow(early, dt / 4, v)),
            }  # fmt: skip

        return {n: numbers(part, *rates[n], residuals[n]) for n, part in condition.parts.items()}

    return jax.vmap(one)(times, states)


def assert_certificate(
    condition: Condition, start: Start, target: PyTree = None, *, times: Any = None, states: PyTree = None, dt: Any = None
) -> None:  # fmt: skip
    """A certificate on a continuous system is what the library takes it for, at a number of points.

    V is a finite scalar, its rate agrees with finite differences along the flow, `flow` solves v' = comparison(t, v) and
    is a semigroup, and the residual of a step by Δt tends to the residual. That the condition *holds* is not checked.

    **Arguments:**

    - `condition`: the condition; every part of a conjunction is checked.
    - `start`, `target`: of one example.
    - `times`, `states`: n of each, leading axis; by default eight, uniform on the domain.
    - `dt`: the step over which `flow` is compared, an eighth of the horizon by default.

    **Raises:** `AssertionError` that names the part, the point and the numbers.
    """
    system, dtype = condition.continuous, time_dtype(start.state)
    if states is None:
        states = jax.vmap(lambda k: system.region.sample(start.state, k))(jax.random.split(jax.random.key(0), 8))
    count, eps = jax.tree.leaves(states)[0].shape[0], float(jnp.finfo(dtype).eps)
    times = jnp.linspace(0, system.horizon, count, dtype=dtype) if times is None else jnp.asarray(times, dtype)
    values = eqx.filter_eval_shape(lambda s: condition.values(times[0], s, condition.point(start, target)), start.state)
    for name, value in values.items():
        _require(value.shape == (), f"{name}: expected the value to be a scalar, got {value}")
    step, rough = jnp.asarray(system.horizon / 8 if dt is None else dt, dtype), 1e-5 if eps < 1e-12 else 1e-4
    for name, arrays in _probe(condition, start, target, times, states, step).items():
        n = {what: np.moveaxis(np.asarray(array, np.float64), 0, -1) for what, array in arrays.items()}
        v, rate, comparison, forward, backward = (n[k] for k in ("value", "rate", "comparison", "forward", "backward"))
        _require(np.isfinite(v + rate + comparison), f"{name}: value, rate or comparison is not finite", v=v, rate=rate)
        scale = 1 + np.abs(v) + np.abs(rate) + np.abs(comparison) + np.abs(forward[0])
        near, slopes = 64 * eps ** (2 / 3) * scale, np.sort([forward[0], backward[0]], axis=0)
        between = (slopes[0] - near <= rate) & (rate <= slopes[1] + near)
        _require(between, f"{name}: the rate differs from finite differences", rate=rate, slope=forward[0])
        slack = rough * (np.abs(v) + float(step) * np.abs(comparison)) + float(jnp.finfo(dtype).tiny)
        seen = {what: n[what] for what in ("value", "flow", "solution", "twice")}
        solves, splits = (np.abs(n["flow"] - n[other]) <= slack for other in ("solution", "twice"))
        _require(solves, f"{name}: flow does not solve v' = comparison(t, v)", **seen)
        _require(splits, f"{name}: flow over two parts of a step differs from flow over the step", **seen)
        smooth = np.abs(forward[1] - backward[1]) <= 64 * n["step"] * scale
        _require(smooth.any(), f"{name}: V has a kink at every point; give other states")
        limit = 2 * n["error"][0] - n["error"][1]  # 0 to second order in the step, if the error is of first order
        good = ~smooth | (np.abs(limit) <= 4 * near)
        _require(good, f"{name}: the residual of a step by dt does not tend to the residual", difference=limit)


def assert_measure(
    measure: Measure, system: System, start: Start, *, within: Domain | None = None, draws: int = 256
) -> None:
    """A measure gives what [`lyapunov_dsl.Samples`][] promises, and is shared or not as it claims.

    **Arguments:**

    - `measure`, `system`, `start`: a measure, the system it samples for, and the start of one example.
    - `within`: a set that all samples have to lie in, such as `system.domain`; not checked by default.
    - `draws`: over how many keys the mean time is taken, which has to be half the horizon within five standard errors.

    **Raises:** `AssertionError` that says what is broken.
    """
    measure.check(system, struct_of(start.state))
    sample = lambda start, key: measure.sample(system, start, key=key)
    got, dtype = struct_of(eqx.filter_eval_shape(sample, start, jax.random.key(0))), time_dtype(start.state)
    count, eps = jax.tree.leaves(got)[0].shape[0], float(jnp.finfo(dtype).eps)
    row = jax.ShapeDtypeStruct((count,), dtype)
    expected = jax.tree.map(lambda s: jax.ShapeDtypeStruct((count, *s.shape), s.dtype), struct_of(start.state))
    _require((got.t, got.state, got.weight) == (row, expected, row), f"expected {row} and {expected}, got {got}")
    keys = jax.random.split(jax.random.key(0), draws)
    compiled = eqx.filter_jit(eqx.filter_vmap(sample, in_axes=(None, 0)))
    many = compiled(start, keys)
    t, weight = np.asarray(many.t, np.float64), np.asarray(many.weight, np.float64)
    _require(weight >= 0, "a weight is negative", weight=weight)
    _require(np.abs(weight.sum(1) - 1) <= 4 * count * eps, "the weights do not sum to 1", sum=weight.sum(1))
    _require((t >= 0) & (t <= np.asarray(system.horizon, dtype)), "a time is outside [0, horizon]", t=t)
    _require(all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(many.state)), "a state is not finite")
    if within is not None:
        _require(jax.vmap(jax.vmap(within.excess))(many.state) <= 16 * eps, "a state is outside the set")
    middle = float((weight * t).sum(1).mean()) / system.horizon
    _require(abs(middle - 0.5) <= 5 / np.sqrt(12 * draws), f"the mean time is {middle} of the horizon, expected a half")
    _require(eqx.tree_equal(many, compiled(start, keys)), "two draws with one key differ")
    _require(not eqx.tree_equal(many, compiled(start, keys[::-1])), "draws with two keys are equal")
    if not measure.per_example:
        other = jax.tree.map(lambda leaf: leaf + 1 if eqx.is_inexact_array(leaf) else leaf, start)
        _require(eqx.tree_equal(many, compiled(other, keys)), "per_example is False, but samples depend on the start")


def assert_objective(
    objective: Objective, condition: Condition, x: PyTree, y: PyTree = None, *, nonnegative: bool = True,
    symmetric: bool = False, eager: bool = True,
) -> None:  # fmt: skip
    """An objective is a finite scalar with finite gradients, a function of its arguments and key alone.

    **Arguments:**

    - `objective`, `condition`: an objective and the condition it trains.
    - `x`, `y`: a batch, leading batch axis.
    - `nonnegative`: whether the loss cannot be negative; the value of a barrier can.
    - `symmetric`: whether the order of the examples does not matter; it does where each has random samples of its own.
    - `eager`: whether to compare with the loss without `jit`; that takes the longest.

    **Raises:** `AssertionError` that says what is broken.
    """
    first = jax.tree.map(lambda leaf: leaf[0], x)
    objective.check(condition, eqx.filter_eval_shape(condition.system.start, first))
    loss = lambda condition, x, y: objective(condition, x, y, key=jax.random.key(0))
    shape = eqx.filter_eval_shape(loss, condition, x, y).shape
    _require(shape == (), f"expected a scalar, got an array of shape {shape}")
    compiled = eqx.filter_jit(eqx.filter_value_and_grad(loss))
    value, gradient = compiled(condition, x, y)
    _require(jnp.isfinite(value), f"the loss is {value}")
    _require(not nonnegative or value >= 0, f"the loss is negative: {value}")
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        _require(jnp.isfinite(leaf), f"a gradient is not finite, at {jax.tree_util.keystr(path)}")
    _require(eqx.tree_equal((value, gradient), compiled(condition, x, y)), "two evaluations with one key differ")
    close = lambda other: abs(float(other - value)) <= 1e3 * jnp.finfo(value.dtype).eps * (1 + abs(float(value)))
    plain = loss(condition, x, y) if eager else value
    _require(close(plain), f"without jit the loss is {plain}, with it {value}")
    turned = compiled(condition, *jax.tree.map(lambda leaf: leaf[::-1], (x, y)))[0] if symmetric else value
    _require(close(turned), f"with the examples reversed the loss is {turned} instead of {value}")
