"""What a program computes, against what is proved of it: fixed Euler steps, functions of arrays alone, and the same logits.

A proof speaks of functions that were traced. That they are what `predict` runs is looked at from both sides: by what is known of the
program before anything is computed, and by running both.
"""

import hashlib
import importlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from .._depends import depends
from .._jaxprs import equations
from .._solve import Solver
from .._system import DiscreteSystem, System
from .._types import describe, kind
from ..bounds._jumps import doubtful
from ._known import numbers_of
from ._question import flattened

# Points at which the network and `predict` are compared, at least, where anything is claimed.
POINTS = 1024


def euler_steps(program: Any) -> int:
    """The number of Euler steps that a program's inference takes.

    Exact types, as a subclass may do something else.

    **Raises:** `ValueError` for a solver whose result is not a fixed function of x in Euler steps.
    """
    solver, system = program.solver, program.system
    if isinstance(system, DiscreteSystem):
        raise ValueError("InputRobustness: expected a continuous system, got a DiscreteSystem")
    for what, value, expected in (("system", system, System), ("solver", solver, Solver)):
        if type(value) is not expected:
            raise ValueError(f"InputRobustness: expected a {what} of type {expected.__name__}, got {kind(value)}")
    if solver.dt is None or type(solver.method) is not diffrax.Euler:
        what = f"{kind(solver.method)}, dt={solver.dt}"
        raise ValueError(
            "InputRobustness: expected inference by Euler steps of a fixed size, "
            f"compile(..., solver=ld.Solver(diffrax.Euler(), dt=...)), got {what}; steps that adapt are a discontinuous function of x"
        )
    if not type(solver.adjoint).__module__.startswith("diffrax."):
        raise ValueError(f"InputRobustness: expected an adjoint of diffrax, got {kind(solver.adjoint)}")
    if system.jumps:
        raise ValueError(f"InputRobustness: expected a field without jumps, got jumps={system.jumps}")
    steps = round(system.horizon / solver.dt)
    if steps < 1 or abs(steps * solver.dt - system.horizon) > 1e-9 * system.horizon:
        raise ValueError(f"solver: expected a dt that divides the horizon {system.horizon}, got {solver.dt}")
    if steps > solver.max_steps:
        raise ValueError(
            f"solver: expected max_steps of at least {steps}, as many as there are steps of {solver.dt} in the horizon "
            f"{system.horizon}, got {solver.max_steps}: predict runs out of steps and answers NaN"
        )
    return steps


def check_steps(program: Any, x: np.ndarray, steps: int) -> None:
    """Raises `ValueError` unless the solver takes the steps that are proved about: as many, and at the same times.

    Times are added up in the dtype of the state, so that a last step may be too many.
    """
    # There is room for `max_steps` of them: the times alone.
    found = program.trajectory(x, saveat=diffrax.SaveAt(steps=True, fn=_nothing))
    taken, times = int(found.stats["num_steps"][0]), np.asarray(found.ts[0][:steps], np.float64)
    expected = program.system.horizon * np.arange(1, steps + 1) / steps
    near = half_of_the_digits(found.ts.dtype) * program.system.horizon
    if taken != steps or not (abs(times - expected) <= near).all():
        raise ValueError(
            f"solver: expected {steps} Euler steps of {program.solver.dt}, but the solver took {taken} in "
            f"{found.ts.dtype}, the last of which ended at {np.max(times[np.isfinite(times)], initial=0.0):.9g}"
        )


def _nothing(t: Any, state: Any, context: Any) -> Any:
    return jnp.zeros(())


def half_of_the_digits(dtype: Any) -> float:
    """The relative difference that rounding may make, of logits and of times."""
    return float(jnp.finfo(dtype).eps) ** 0.5


def check_pure(system: System, x: Any) -> tuple[str, str, str]:
    """Raises `ValueError` for a system that is no function of arrays: one where the field or the readout see x other than by state and
    context, that has side effects, or that computes something else when it is called again. Call it with float64 enabled.

    **Arguments:**

    - `x`: one example, an array or a `jax.ShapeDtypeStruct`.

    **Returns:** for the input module, the field and the readout, why they may jump; empty where they do not.
    """
    start = eqx.filter_eval_shape(system.start, x)
    check_context(start.context)
    state, context = jax.eval_shape(lambda x: flattened(system.start(x))[:2], x)
    time = jax.ShapeDtypeStruct((), jnp.float64)

    def functions(x: Any, t: Any, s: Any, c: Any) -> tuple[Any, Any, Any]:
        """Start and context, velocity and logits, of one trace: what `input` leaves anywhere, the others find."""
        first, second, as_state, as_context = flattened(system.start(x))
        velocity = ravel_pytree(system.velocity(t, as_state(s), as_context(c)))[0]
        return (first, second), velocity, ravel_pytree(system.decode(as_state(s)))[0]

    def again(before: Any, t: Any, s: Any, c: Any) -> tuple[Any, Any]:
        """The same after a call with other states, which may have left something as well."""
        x, other, another = before
        functions(x, t, other, another)
        _, velocity, logits = functions(x, t, s, c)
        return velocity, logits

    # New functions, as JAX keeps the trace of one that it has seen.
    traces = [jax.make_jaxpr(lambda *args: functions(*args))(x, time, state, context) for _ in range(2)]
    calls = sorted({e.primitive.name for e in equations(traces[0].jaxpr) if "callback" in e.primitive.name})
    if traces[0].effects or calls:
        found = ", ".join(calls or map(str, traces[0].effects))
        raise ValueError(f"InputRobustness: expected functions without side effects, got {found}")
    if _digest(traces[0]) != _digest(traces[1]):
        raise ValueError(
            "InputRobustness: expected functions of arrays, got a system that computes something else when it is traced "
            "again: it depends on Python state"
        )
    before = (x, state, context)
    for i, what in enumerate(("vector_field", "readout")):
        if depends(lambda *args, i=i: again(*args)[i], before, time, state, context):
            alone = "(t, state, context)" if i == 0 else "the state"
            raise ValueError(
                f"{what}: expected a function of {alone} alone, got one that depends on x, or on an earlier call, in another way: by "
                f"Python state, or by something that hides it in the context, which is {_parts(start.context)}. A context may hold "
                "floating-point arrays"
            )
    jumps = (
        doubtful(jax.make_jaxpr(lambda x: flattened(system.start(x))[:2])(x)),
        doubtful(jax.make_jaxpr(lambda x, t, s, c: functions(x, t, s, c)[1])(x, time, state, context)),
        doubtful(jax.make_jaxpr(lambda x, t, s, c: functions(x, t, s, c)[2])(x, time, state, context)),
    )
    return jumps


def _digest(closed: Any) -> str:
    """What a trace computes, without the addresses of objects in its text."""
    found = hashlib.sha256(re.sub("0x[0-9a-f]+", "", str(closed.jaxpr)).encode())
    for array in numbers_of(closed):
        found.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
    return found.hexdigest()


def _parts(context: Any) -> str:
    """What a context is made of, cut short."""
    return f"{context!r:.200}" if context is None or jax.tree.leaves(context) else kind(context)


def check_context(context: Any) -> None:
    """A part of the context that is no floating-point array has no distance from that of another input, and may depend on it unseen."""
    for leaf in jax.tree.leaves(context):
        constant = leaf is None or type(leaf) in (bool, int, float, str)
        array = eqx.is_inexact_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)
        floating = array and jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
        if not (floating or constant or _is_function_of_jax(leaf)):
            got = describe(leaf) if array or eqx.is_array(leaf) else kind(leaf)
            raise ValueError(f"InputRobustness: expected a context of floating-point arrays, got one with {got}")


def _is_function_of_jax(leaf: Any) -> bool:
    """Whether something is a function that a module of JAX has by that name: not a method of an array, for one, which holds it."""
    module, name = (str(getattr(leaf, part, "")) for part in ("__module__", "__qualname__"))
    if module.split(".")[0] not in ("jax", "jaxlib") or "." in name:
        return False
    return getattr(importlib.import_module(module), name, None) is leaf


def coarsest(program: Any, x: Any) -> Any:
    """The shortest floating-point type that `predict` computes in.

    **Raises:** `ValueError` for one of less than 16 bits: what is proved is about real arithmetic, of which that is no approximation.
    """
    found: set[Any] = {jnp.dtype(x.dtype)}

    one = jax.ShapeDtypeStruct((1, *x.shape), x.dtype)
    for equation in equations(eqx.filter_make_jaxpr(program.predict)(one)[0].jaxpr):
        types = [getattr(v.aval, "dtype", None) for v in (*equation.invars, *equation.outvars)]
        found.update(t for t in types if t is not None and jnp.issubdtype(t, jnp.floating))
    least = max(found, key=lambda dtype: float(jnp.finfo(dtype).eps))
    if jnp.finfo(least).bits < 16:
        raise ValueError(
            f"InputRobustness: expected arithmetic in floating-point numbers of 16 bits or more, got {least}, which rounds too "
            "much to be taken for real arithmetic"
        )
    return least


def points_of_ball(
    rng: Any, x: np.ndarray, radius: float, slope: np.ndarray, norm: str, count: int, dtype: Any
) -> np.ndarray:
    """Points of a ball that the program can be given: where a margin falls fastest, corners, ends of axes, the sphere and the inside.

    **Arguments:**

    - `slope`: of the smallest margin at x, like x.
    """
    flat, n = x.reshape(-1).astype(np.float64), x.size
    out = []
    for k in range(count):
        if norm == "inf":
            corner = -np.sign(slope.reshape(-1)) if k == 0 else rng.choice([-1.0, 1.0], n)
            # All at an end, some at an end, or none.
            step = corner if k % 4 < 2 else corner * (rng.random(n) if k % 4 == 3 else rng.random(n) < 0.5)
        else:
            step = -slope.reshape(-1) if k == 0 else rng.normal(size=n)
            if k % 4 == 2:
                step = np.eye(n)[rng.integers(n)] * rng.choice([-1.0, 1.0])
            step = step / max(np.linalg.norm(step), 1e-300)
            step = step * (rng.random() ** (1 / n) if k % 4 == 3 else 1.0)
        out.append(np.asarray(flat + radius * step, dtype))
    points = np.stack(out)
    # What rounding put outside is moved inside; where no number but x itself is near enough, it is x.
    for _ in range(3):
        far = _distance(points, flat, norm) > radius
        points[far] = (flat + 0.999 * (points[far].astype(np.float64) - flat)).astype(dtype)
    points[_distance(points, flat, norm) > radius] = flat.astype(dtype)
    return points.reshape(count, *x.shape)


def _distance(points: np.ndarray, center: np.ndarray, norm: str) -> np.ndarray:
    away = points.astype(np.float64) - center
    return abs(away).max(axis=1) if norm == "inf" else np.sqrt((away * away).sum(axis=1)) * (1 + 1e-12)


class Agreement(NamedTuple):
    """How far the network that is proved about and `predict` were apart.

    **Arguments:**

    - `points`: how many were looked at.
    - `largest`: the largest difference of logits, relative to the largest logit of the example.
    - `allowed`: the largest that rounding may make.
    - `dtype`: the shortest type that `predict` computes in.
    """

    points: int
    largest: float
    allowed: float
    dtype: str

    def __str__(self) -> str:
        return (
            f"predict and the network that is proved about were run at {self.points} inputs: logits differ by at most "
            f"{self.largest:.2g} of the largest, where {self.allowed:.2g} is allowed for rounding in {self.dtype}"
        )


def compare(
    predict: Callable, logits: Callable, points: np.ndarray, owner: np.ndarray, y: np.ndarray, dtype: Any
) -> tuple[np.ndarray, Agreement]:
    """What `predict` says at some inputs, and how far the network is from that.

    **Arguments:**

    - `predict`, `logits`: inputs -> logits, of batches.
    - `points`, `owner`: inputs, and to which examples they belong.
    - `y`: classes of the inputs that are claimed; -1 where none is.
    - `dtype`: see `coarsest`.

    **Raises:** `ValueError` where `predict` answers NaN, differs by more than rounding, or decides against a claim by more than that.
    """
    answers, exact = np.asarray(predict(points), np.float64), np.asarray(logits(points), np.float64)
    where = lambda i: f"example {owner[i]}, at {np.array2string(points[i], threshold=12, precision=9)}"
    if not (finite := np.isfinite(answers).all(axis=1)).all():
        i = int(np.flatnonzero(~finite)[0])
        raise ValueError(f"InputRobustness: predict answers {answers[i]} for {where(i)}; nothing is proved of that")
    scale = np.zeros(int(owner.max()) + 1)
    np.maximum.at(scale, owner, np.nan_to_num(abs(exact).max(axis=1), nan=0.0, posinf=0.0))
    allowed = half_of_the_digits(dtype)
    apart = abs(answers - exact).max(axis=1)
    relative = apart / np.maximum(scale[owner], np.finfo(np.float64).tiny)
    # Not so where the network has no value.
    if not (good := relative <= allowed).all():
        i = int(np.flatnonzero(~good)[0])
        raise ValueError(
            f"InputRobustness: what is proved is not what runs: predict answers {answers[i]} and the Euler network in float64 "
            f"{exact[i]} for {where(i)}, {relative[i]:.2g} of the largest logit apart, where rounding in {dtype} accounts for "
            f"{allowed:.2g}. The program may depend on dtypes, flags or Python state, or round more than its types do"
        )
    claimed = y >= 0
    own = np.take_along_axis(answers, np.maximum(y, 0)[:, None], axis=1)[:, 0]
    others = np.where(np.arange(answers.shape[1]) == y[:, None], -np.inf, answers).max(axis=1)
    if (broken := claimed & (own - others < -2 * allowed * scale[owner])).any():
        i = int(np.flatnonzero(broken)[0])
        raise ValueError(
            f"InputRobustness: predict decides for class {answers[i].argmax()} and not {y[i]} for {where(i)}, which is in a "
            "ball that was proved; please report this"
        )
    return answers, Agreement(len(points), float(relative.max()), allowed, str(dtype))
