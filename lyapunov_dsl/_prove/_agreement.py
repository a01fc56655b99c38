"""Whether what is proved is what runs.

A proof is about functions traced in float64. What runs are the field, V and the comparison as they were declared, in their own types,
traced again. Both are evaluated at many states of the region, its faces and corners; what differs by more than rounding depends on the
type, on a flag or on the state of Python, and nothing is proved about it.
"""

import hashlib
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.flatten_util import ravel_pytree

from .. import bounds
from .._condition import Condition
from .._jaxprs import equations
from .._types import number, numbers
from ..bounds import UnknownPrimitive
from ._known import numbers_of, remembered
from ._question import Functions
from ._region import Region

# How many states are drawn, how many corners, how many on faces, and how many at eighths of the way through the region.
INSIDE, CORNERS, FACES, EIGHTHS = 768, 128, 128, 128
# What rounding may make of a result: so many units in the last place of its largest size at these states; where it is more, what the
# rounding of this very evaluation may come to is bounded instead, and taken this many times.
UNITS, TIMES = 64, 4
# Of the context that an input module makes: half of the digits, as networks of many layers lose some.
HALF = 0.5


class Own(NamedTuple):
    """What runs, of flat states in their own type.

    **Arguments:**

    - `functions`: (t, state, context) -> field, V, rate and comparison, by name.
    - `dtype`: of the state.
    - `context`: the floating-point numbers of the context, flat.
    - `x64`: whether JAX has float64 enabled there.
    """

    functions: Callable[[Any, Any, Any], dict[str, Any]]
    dtype: Any
    context: Any
    x64: bool


def declared(condition: Condition, part: str, x: Any, y: Any, x64: bool) -> Own:
    """The functions of one example as they run: in inference, with the types and constants of the program."""
    with jax.enable_x64(x64):
        condition = eqx.nn.inference_mode(condition)
        system = condition.continuous
        start = system.start(jax.tree.map(jnp.asarray, x))
        shape = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if eqx.is_array(leaf) else leaf
        certificate = condition.parts[part].prepared(system, jax.tree.map(shape, start))
        flat, unravel = ravel_pytree(start.state)
        floats, rest = eqx.partition(start.context, eqx.is_inexact_array)
        context, as_floats = ravel_pytree(floats)
        target = jax.tree.map(jnp.asarray, y)

    def functions(t: Any, s: Any, u: Any) -> dict[str, Any]:
        begun = eqx.tree_at(lambda b: b.context, start, eqx.combine(as_floats(u), rest), is_leaf=lambda v: v is None)
        point, state = condition.point(begun, target), unravel(s)
        velocity = system.velocity(t, state, begun.context)
        v, rate = certificate.derivative(t, state, point, velocity)
        if certificate.own_rate:
            v = certificate.value(t, state, point)
        field = ravel_pytree(velocity)[0]
        return {"the field": field, "V": v, "dV/dt": rate, "comparison(t, V)": certificate.comparison(t, v)}

    return Own(functions, flat.dtype, context, x64)


def points_of(region: Region, dtype: Any, rest: np.ndarray | None) -> np.ndarray:
    """Times and states of a region, float64 [count, 1 + states], that are numbers of a type: drawn in it, on its faces, at its corners,
    its middle and the equilibrium."""
    random = np.random.default_rng(0)
    pick = lambda n: random.integers(0, len(region.low), n)
    at = lambda rows, part: region.low[rows] + part * (region.high[rows] - region.low[rows])
    size = region.low.shape[1]
    rows = pick(INSIDE)
    inside = at(rows, random.random((INSIDE, size)))
    corner = at(pick(CORNERS), random.integers(0, 2, (CORNERS, size)))
    share = random.random((FACES, size))
    share[np.arange(FACES), random.integers(0, size, FACES)] = random.integers(0, 2, FACES)
    eighths = at(pick(EIGHTHS), random.integers(0, 9, (EIGHTHS, size)) / 8)
    found = [inside, at(pick(FACES), share), corner, eighths, 0.5 * region.low[:64] + 0.5 * region.high[:64]]
    if rest is not None:
        found.append(np.concatenate([region.low[:1, 0], rest])[None])
    points = np.concatenate(found)
    if region.ball is not None:
        # Those outside are moved toward the center.
        center, radius = region.ball
        offset = points[:, 1:] - center
        length = np.linalg.norm(offset, axis=1, keepdims=True)
        points[:, 1:] = center + offset * np.minimum(1, radius / np.maximum(length, np.finfo(float).tiny))
    low, high = region.low.min(axis=0), region.high.max(axis=0)
    near = np.asarray(points.astype(dtype), np.float64)
    # What rounding took out of the region is moved inside, where the type has a number there.
    step = np.asarray(np.abs(points) * 2.0 * float(jnp.finfo(dtype).eps), np.float64)
    near = np.where(near > high, np.asarray((points - step).astype(dtype), np.float64), near)
    near = np.where(near < low, np.asarray((points + step).astype(dtype), np.float64), near)
    return near[((near >= low) & (near <= high) | (low == high)).all(axis=1)]


class Samples(NamedTuple):
    """What the functions that are proved about are at some states, in float64.

    **Arguments:**

    - `points`: float64 [count, 1 + states].
    - `proved`: field, V, rate and comparison there, by name.
    - `decisions`: the operations by which these functions choose or jump.
    """

    points: np.ndarray
    proved: dict[str, np.ndarray]
    decisions: frozenset[str]

    def lowest(self, rest: np.ndarray) -> np.ndarray:
        """States other than the equilibrium at which V is not above 0, the lowest first."""
        v = self.proved["V"].ravel()
        low = np.flatnonzero((v <= 0) & (self.points[:, 1:] != rest).any(axis=1))
        return self.points[low[np.argsort(v[low], kind="stable")]]


def sampled(told: Functions, own: Own, region: Region, rest: np.ndarray | None) -> Samples:
    """The functions that are proved about at states of a region."""
    points = points_of(region, own.dtype, rest)
    exact = lambda t, s: {
        "the field": told.field(t, s),
        "V": told.value(t, s),
        "dV/dt": told.rate(t, s)[1],
        "comparison(t, V)": told.comparison(t, told.value(t, s)),
    }
    proved = _evaluated(exact, (0, 0), points[:, 0], points[:, 1:])
    return Samples(points, proved, _decisions(exact, jnp.asarray(0.0), jnp.asarray(points[0, 1:])))


def differs(
    told: Functions, own: Own, samples: Samples, region: Region, horizon: float | None, claims: list[str]
) -> str:
    """What is different between the functions that are proved about and those that run, with the state; empty where nothing is.

    Also where V, the field or the comparison is no finite number at one of the states that claims speak of. With a horizon, nothing that
    is proved about depends on the time, and what runs is evaluated at times up to that.
    """
    points, proved, decisions = samples
    times = points[:, 0].copy()
    if horizon is not None:
        # Nothing that is proved about depends on the time. What runs should not either.
        times[1::2] = np.random.default_rng(1).random(len(times[1::2])).astype(own.dtype) * horizon
    kept = np.asarray(told.context, np.float64)
    here = np.asarray(jnp.asarray(own.context), np.float64)
    size = np.abs(kept).max(initial=0.0)
    half = float(jnp.finfo(own.dtype).eps) ** HALF
    if kept.shape != here.shape or not (np.abs(kept - here) <= half * size).all():
        return "the context that the input module makes in float64 is not the one it makes in its own types"
    with jax.enable_x64(own.x64):
        cast = lambda v: jnp.asarray(v.astype(own.dtype))
        # JAX takes a NumPy array that it met in float64 for one where it has no float64 any more, with a warning.
        with jax.default_matmul_precision("highest"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            context = jnp.asarray(own.context)
            ran = _evaluated(own.functions, (0, 0, None), cast(times), cast(points[:, 1:]), context)
            # Where what runs decides by other operations, a jump of its own is no rounding.
            like = _decisions(own.functions, cast(times)[0], cast(points[0, 1:]), context) <= decisions
    names = ["the field", *(["V"] if set(claims) - {"invariant"} else [])]
    names += ["dV/dt", "comparison(t, V)"] if set(claims) & {"decrease", "robust", "stays"} else []
    v = proved["V"]
    spoken = np.ones(len(v), bool)
    if not set(claims) & {"definite", "invariant"} and "V" in names:
        spoken &= ~(v > (np.inf if region.most is None else region.most))
        spoken &= ~(v < (-np.inf if region.least is None else region.least))
    for name in names:
        a, b = (v[name].reshape(len(points), -1) for v in (proved, ran))
        if bad := [i for i in np.flatnonzero(spoken) if not np.isfinite(a[i]).all()]:
            return f"{name} is {_shown(a[bad[0]])} at {_at(points[bad[0]])}: it is not known to be finite in H"
        a, b, where = a[spoken], b[spoken], points[spoken]
        if not len(a):
            continue
        eps = float(jnp.finfo(own.dtype).eps)
        largest = np.abs(a).max(axis=0, initial=0.0)
        far = ~(np.abs(a - b) <= UNITS * eps * largest + float(jnp.finfo(own.dtype).tiny)).all(axis=1)
        worst = np.argsort(-np.nan_to_num(np.abs(a - b), nan=np.inf).max(axis=1))
        for i in [i for i in worst if far[i]][:4]:
            if not like or not _rounding(own, name, float(times[spoken][i]), where[i], a[i], eps):
                return (
                    f"what is proved is not what runs: {name} at {_at(where[i], times[spoken][i])} is {_shown(a[i])} in the functions that "
                    f"are proved about, in float64, and {_shown(b[i])} as it was declared, in {np.dtype(own.dtype).name}, more than "
                    "rounding may make of it; does it depend on the type, on a setting of JAX, or on what Python holds?"
                )
    return ""


# Operations by which a function chooses or jumps.
DECISIONS = frozenset(
    (
        "argmax",
        "argmin",
        "ceil",
        "clamp",
        "cond",
        "eq",
        "floor",
        "ge",
        "gt",
        "is_finite",
        "le",
        "lt",
        "max",
        "min",
        "ne",
    )
) | {"nextafter", "reduce_and", "reduce_or", "reduce_precision", "rem", "round", "select_n", "sign", "sort", "while"}


def _decisions(function: Callable, *args: Any) -> frozenset[str]:
    """The names of the operations by which a function chooses or jumps."""
    closed = jax.make_jaxpr(lambda *args: function(*args))(*args)
    return DECISIONS & {equation.primitive.name for equation in equations(closed.jaxpr)}


_KNOWN: dict[str, Any] = {}


def _evaluated(function: Callable, axes: Any, *args: Any) -> dict[str, np.ndarray]:
    """A function of many states, in float64. Traced again whenever it is called; the program is compiled once for all weights."""
    closed, shapes = jax.make_jaxpr(jax.vmap(function, in_axes=axes), return_shape=True)(*args)
    digest = hashlib.sha256(repr([(v.shape, str(v.dtype)) for v in args]).encode())
    _hash(digest, closed, range(len(closed.consts)))
    flat = lambda consts, *args: jaxpr_as_fun(ClosedJaxpr(closed.jaxpr, consts))(*args)
    compiled = remembered(_KNOWN, digest.hexdigest(), lambda: jax.jit(flat))
    found = jax.tree.unflatten(jax.tree.structure(shapes), compiled(closed.consts, *args))
    return jax.tree.map(lambda v: np.asarray(v).astype(np.float64), found)


def _hash(digest: Any, closed: Any, without: Sequence[int] = ()) -> None:
    """Adds what a function computes to a hash, without the addresses of the functions that it is made of."""
    digest.update(re.sub(r"0x[0-9a-f]+", "", str(closed.jaxpr)).encode())
    for i, array in enumerate(numbers_of(closed)):
        digest.update(f"{array.dtype}{array.shape}".encode() + (b"" if i in without else array.tobytes()))


def _at(z: np.ndarray, t: Any = None) -> str:
    return f"the state {numbers(z[1:])}, t = {number(z[0] if t is None else t)}"


def _shown(v: np.ndarray) -> str:
    return numbers(v) if v.size > 1 else repr(float(v.ravel()[0]))


def _rounding(own: Own, name: str, t: float, z: np.ndarray, exact: np.ndarray, eps: float) -> bool:
    """Whether rounding may make of a result what it is: its bounds at one point, in its own type, hold the exact one."""
    with jax.enable_x64(own.x64):
        point = lambda v: bounds.Box(*[jnp.asarray(np.asarray(v).astype(own.dtype))] * 2)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = bounds.bound(
                    lambda t, s: own.functions(t, s, own.context)[name], point(t), point(z[1:]), method="ibp"
                )
        except (UnknownPrimitive, ValueError):
            return False
    low, high = (np.asarray(v, np.float64).ravel() for v in (found.lower, found.upper))
    # Constants of the program are rounded, too.
    reach = TIMES * (high - low) + UNITS * eps * np.abs(exact)
    return bool(np.isfinite(reach).all() and ((low - reach <= exact) & (exact <= high + reach)).all())


def traced(told: Functions, start: Any) -> str:
    """A hash of the functions, traced once more: another one where they depend on what Python holds."""
    digest = hashlib.sha256()
    t = jnp.zeros(())
    for function, args in (
        (told.perturbed, (t, start, told.context)),
        (told.value, (t, start)),
        (told.rate, (t, start)),
        (told.comparison, (t, t)),
    ):
        # In a function of its own, as JAX does not trace the same one twice.
        _hash(digest, jax.make_jaxpr(lambda *args, function=function: function(*args))(*args))
    return digest.hexdigest()
