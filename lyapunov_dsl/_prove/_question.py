"""What is to be proved about a system and a certificate, as functions of (t, state) in float64 that can be bounded."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.flatten_util import ravel_pytree

from .. import bounds
from .._certificate import ControlBarrier
from .._certificate._barrier import apply, chain
from .._check import check_field, check_potentials, check_readout, check_start
from .._condition import Condition
from .._constant import Constant
from .._control_affine import drift_of
from .._depends import check_depends
from .._domain import Ball, Box, Domain, Product
from .._potential import Loss
from .._types import check_arrays, shown, struct_of
from .._variational import Faces, Tangents
from ..bounds._jumps import doubtful as bounds_doubtful
from ._branch import Judged

# Rules of leaves, as the checker numbers them.
HOLDS, ABOVE, BELOW, REST, OUTSIDE = 1, 2, 3, 4, 5
# A cheaper method is asked first as long as it decides this share of the boxes.
WORTH = 0.1
Rounding = Literal["real", "float"]


class Region(NamedTuple):
    """Boxes of (t, state), of which only the states in a ball count where there is one, and of these only those with V between
    two levels.

    **Arguments:**

    - `low`, `high`: float64 [pieces, 1 + states].
    - `ball`: center and radius, or `None`.
    - `least`, `most`: levels, or `None`.
    - `faces`: the coordinates of which one is at an end, if that is asked.
    """

    low: np.ndarray
    high: np.ndarray
    ball: tuple[np.ndarray, float] | None
    least: float | None
    most: float | None
    faces: tuple[int, ...] = ()


class Functions(NamedTuple):
    """A system and a certificate for one example, as functions of flat float64 arrays."""

    field: Callable[[Any, Any], Any]
    value: Callable[[Any, Any], Any]
    comparison: Callable[[Any, Any], Any]
    perturbed: Callable[[Any, Any, Any], Any]
    context: Any
    rate: Callable[[Any, Any], Any]
    own_rate: bool
    sources: dict[str, tuple[Callable, Any]]
    silent: Callable[[Any, Any], Any] | None

    def residual(self, z: Any) -> tuple[Any, Any]:
        """dV/dt - comparison(t, V) and V at z = (t, state)."""
        t, s = z[0], z[1:]
        v, rate = self.rate(t, s)
        # Not what a certificate with a rate of its own says V is.
        v = self.value(t, s) if self.own_rate else v
        return rate - self.comparison(t, v), v


class _Opened(Constant):
    """A constant whose value is an array of a traced function, not the bits that it is computed from: it may be an argument then."""

    value: np.ndarray

    def __init__(self, constant: Constant):
        self.bits, self.dtype, self.value = constant.bits, constant.dtype, np.asarray(constant())

    def __call__(self, dtype: Any = None) -> Any:
        return jnp.asarray(self.value if dtype is None else self.value.astype(dtype))


def widened(tree: Any) -> Any:
    """A tree with its floating-point arrays in float64, which changes no value, and its constants as arrays."""

    def cast(leaf: Any) -> Any:
        if isinstance(leaf, Constant):
            return _Opened(leaf)
        return jnp.asarray(leaf, jnp.float64) if eqx.is_inexact_array(leaf) else leaf

    return jax.tree.map(cast, tree, is_leaf=lambda v: isinstance(v, Constant))


def functions(condition: Condition, part: str, x: Any, y: Any) -> tuple[Functions, Any]:
    """The functions of one example, and the start. Call it with float64 enabled."""
    check_arrays("x", x)
    check_arrays("y", y)
    x = jax.tree.map(jnp.asarray, x)
    condition, x, y = widened(eqx.nn.inference_mode(condition)), widened(x), widened(y)
    system = condition.continuous
    _check_finite(system=system, certificate=condition.parts[part], x=x, y=y)
    check_start(system, struct_of(x))
    start = system.start(x)
    check_field(system, start, exactly=False)
    prediction = check_readout(system, struct_of(start.state))
    certificate = condition.parts[part].prepared(system, jax.tree.map(_shape, start))
    check_potentials(Condition(system, certificate), start, struct_of(prediction), struct_of(y), trained=False)
    if isinstance(loss := getattr(certificate, "loss", None), Loss) and y is not None:
        # JAX would take another class for one that is not there, and the proof would be about that.
        loss.check_targets(struct_of(prediction), jax.tree.map(lambda v: np.asarray(v)[None], y))
    flat, unravel = ravel_pytree(start.state)
    point = condition.point(start, y)
    numbers, as_context = ravel_pytree(eqx.filter(start.context, eqx.is_inexact_array))
    rest = eqx.filter(start.context, eqx.is_inexact_array, inverse=True)
    whole = lambda u: eqx.combine(as_context(u), rest)
    found = Functions(
        lambda t, s: ravel_pytree(system.velocity(t, unravel(s), start.context))[0],
        lambda t, s: certificate.value(t, unravel(s), point),
        lambda t, v: certificate.comparison(t, v),
        lambda t, s, u: ravel_pytree(system.velocity(t, unravel(s), whole(u)))[0],
        numbers,
        lambda t, s: certificate.derivative(t, unravel(s), point, system.velocity(t, unravel(s), start.context)),
        certificate.own_rate,
        _sources(certificate, system, point, start),
        _silent(certificate, point, unravel),
    )
    check_depends(part, lambda s: found.value(jnp.zeros(()), s), flat)
    return found, flat


def _check_finite(**trees: Any) -> None:
    """Raises `ValueError` for arrays with NaN or Inf, of which nothing can be proved."""
    for name, tree in trees.items():
        for where, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if eqx.is_inexact_array_like(leaf) and not np.isfinite(np.asarray(leaf)).all():
                place = jax.tree_util.keystr(where)
                raise ValueError(f"{name}: expected finite numbers, got NaN or Inf{f' at {place}' if place else ''}")


def _shape(leaf: Any) -> Any:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if eqx.is_array(leaf) else leaf


def _inside(jaxpr: Any) -> Iterator[tuple[Any, Any]]:
    """All equations of a jaxpr and of those inside of it, and the constants of these, as pairs (equation, constants)."""
    for equation in jaxpr.eqns:
        yield equation, ()
        for leaf in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")
        ):
            if hasattr(leaf, "jaxpr") and hasattr(leaf, "consts"):
                yield equation, leaf.consts
                yield from _inside(leaf.jaxpr)
            elif hasattr(leaf, "eqns"):
                yield from _inside(leaf)
            elif isinstance(leaf, np.ndarray | jax.Array):
                yield equation, (leaf,)


def numbers_of(closed: Any) -> list[np.ndarray]:
    """All constant arrays of a function, those of functions inside of it too."""
    found = [*closed.consts, *(const for _, consts in _inside(closed.jaxpr) for const in consts)]
    literals = [v.val for equation, _ in _inside(closed.jaxpr) for v in equation.invars if hasattr(v, "val")]
    return [np.asarray(v) for v in (*found, *literals)]


def doubtful(told: Functions, start: Any) -> str:
    """Why a derivative that JAX takes may not be one, of V or of what is differentiated inside of it, empty where all are."""
    if found := bounds_doubtful(jax.make_jaxpr(told.value)(jnp.zeros(()), start)):
        return f"V {found}"
    for name, (function, where) in told.sources.items():
        if found := bounds_doubtful(jax.make_jaxpr(function)(*where)):
            return f"{name} {found}"
    return ""


def influenced(told: Functions, low: Any, high: Any) -> str:
    """Why the chain of a control barrier may not be that of its system: the input appears in an earlier derivative."""
    if told.silent is None:
        return ""
    found = bounds.bound(
        told.silent,
        bounds.Box(jnp.asarray(low[0]), jnp.asarray(high[0])),
        bounds.Box(jnp.asarray(low[1:]), jnp.asarray(high[1:])),
        method="interval",
        rounding="real",
    )
    zero = bool(jnp.all((found.lower == 0) & (found.upper == 0)))
    return "" if zero else "the input is not known to have no influence on the derivatives of h before the last"


def _sources(certificate: Any, system: Any, point: Any, start: Any) -> dict[str, tuple[Callable, Any]]:
    """What is differentiated before V is made of it, as functions and arguments."""
    t, field = jnp.zeros(()), system.vector_field
    if isinstance(field, Tangents):
        return {"the field": (lambda s: field.field(t, s, start.context), (start.state["state"],))}
    if (getattr(certificate, "degree", None) or 1) > 1:
        found: dict[str, tuple[Callable, Any]] = {"h": (certificate.h, (start.state,))}
        found["alpha"] = (lambda h: apply(certificate.alpha, h), (t,))
        along = drift_of(point) if isinstance(certificate, ControlBarrier) else point.velocity
        return {**found, "the field": (lambda s: along(t, s), (start.state,))}
    return {}


def _silent(certificate: Any, point: Any, unravel: Any) -> Callable[[Any, Any], Any] | None:
    """The influence of the input on ψ_0 to ψ_{r-2} of a control barrier, which has to be 0."""
    if not isinstance(certificate, ControlBarrier) or (certificate.degree or 1) == 1:
        return None
    functions = chain(certificate, point, drift_of(point))[:-1]
    return lambda t, s: jnp.stack([point.field.lie(psi, t, unravel(s), point.context)[2] for psi in functions])


def box_of(domain: Domain, start: Any) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, float] | None]:
    """The ends of a domain along every flat coordinate, and the ball that it is, if any."""
    if isinstance(domain, Ball):
        flat, _ = ravel_pytree(jax.tree.map(lambda s: jnp.broadcast_to(domain.center(jnp.float64), s.shape), start))
        center, radius = np.asarray(flat), float(domain.radius(jnp.float64))
        # The sum may be rounded inward, by less than this.
        reach = np.nextafter(radius, np.inf)
        low, high = np.nextafter(center - reach, -np.inf), np.nextafter(center + reach, np.inf)
        return low, high, (center, radius)

    def ends(domain: Domain, start: Any) -> list[tuple[Any, Any]]:
        if isinstance(domain, Faces):
            side = domain.half_width(jnp.float64)
            return [(np.full(leaf.size, -side), np.full(leaf.size, side)) for leaf in jax.tree.leaves(start)]
        if not isinstance(domain, Box):
            raise ValueError(f"domain: expected a Box, a Ball or a Product of Boxes and Faces, got {shown(domain)}")
        sides = (domain.lower(jnp.float64), domain.upper(jnp.float64))
        spread = lambda v, leaf: np.broadcast_to(v, leaf.shape).ravel()
        return [(spread(sides[0], leaf), spread(sides[1], leaf)) for leaf in jax.tree.leaves(start)]

    if isinstance(domain, Product):
        is_domain = lambda node: isinstance(node, Domain)
        parts = jax.tree.map(lambda d, s: ends(d, s), domain.parts, start, is_leaf=is_domain)
        pairs = [pair for part in jax.tree.leaves(parts, is_leaf=lambda n: isinstance(n, list)) for pair in part]
    else:
        pairs = ends(domain, start)
    low, high = (np.concatenate(v).astype(np.float64) for v in zip(*pairs, strict=True))
    return low, high, None


def faces_of(domain: Domain, start: Any) -> list[int]:
    """The flat coordinates of which one has to be at an end."""
    is_domain = lambda node: isinstance(node, Domain)
    whole = lambda d, s: jax.tree.map(lambda leaf: np.full(leaf.shape, isinstance(d, Faces)), s)
    parts = domain.parts if isinstance(domain, Product) else domain
    marked = jax.tree.map(whole, parts, start, is_leaf=is_domain)
    flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(marked)])
    return [int(i) for i in np.flatnonzero(flat)]


def distances(center: np.ndarray, lows: np.ndarray, highs: np.ndarray) -> np.ndarray:
    """Squared distances of boxes from a point, at least, rounded down."""
    nearest = np.maximum(np.maximum(lows - center, center - highs), 0)
    return (nearest**2).sum(axis=1) * (1 - 1e-12)


class Compiled(NamedTuple):
    """The functions of a judge.

    **Arguments:**

    - `methods`: (lows, highs, *fixed, *weights) -> r at most, V at least and at most, by method.
    - `looked`: where to cut boxes, points that may refute, and r and V there.
    - `certain`: bounds at one point.
    - `traced`: what the functions were recognized by; kept, since addresses of objects may be in its text.
    """

    methods: dict[str, Callable]
    looked: Callable
    certain: Callable
    traced: Any


# Programs by what they compute: proofs of the same system for other levels and regions do not compile it again.
_KNOWN: dict[str, Compiled] = {}
LATEST = 16


def _compiled(
    function: Callable, example: Sequence[Any], around: tuple[Any, Any] | None, rounding: Rounding
) -> tuple[Compiled, tuple[Any, ...]]:
    """The functions, and the arrays that they take last: the weights, so that networks of one shape share programs."""
    nominal = () if around is None else (around[0],)
    digest = hashlib.sha256(repr((rounding, None if around is None else around[1])).encode())
    closed = jax.make_jaxpr(function)(*example, *nominal)
    free = [i for i, c in enumerate(closed.consts) if _plain(np.asarray(c))]
    fingerprint(digest, closed, *nominal, *(np.shape(v) for v in example), without=free)
    key, count = digest.hexdigest(), len(example)

    def opened(*args: Any) -> Any:
        # z, fixed, weights, u.
        known = dict(zip(free, args[count : count + len(free)], strict=True))
        consts = [known.get(i, c) for i, c in enumerate(closed.consts)]
        given = ClosedJaxpr(closed.jaxpr, consts)
        return tuple(jaxpr_as_fun(given)(*args[:count], *args[count + len(free) :]))

    made = remembered(_KNOWN, key, lambda: _made(opened, around, rounding, nominal, closed))
    return made, tuple(closed.consts[i] for i in free)


def _plain(array: np.ndarray) -> bool:
    """Whether an array may be an argument of a program: floats that no processor flushes, whose rules need not look at them."""
    if array.dtype != np.float64 or array.ndim == 0:
        return False
    size = np.abs(array)
    return bool((np.isfinite(size) & ((size == 0) | (size >= np.finfo(np.float64).tiny))).all())


def remembered(known: dict[str, Any], key: str, make: Callable[[], Any]) -> Any:
    """What is known by a key, made where it is not; the latest stay."""
    known[key] = known.pop(key) if key in known else make()
    while len(known) > LATEST:
        del known[next(iter(known))]
    return known[key]


def _made(
    function: Callable, around: tuple[Any, Any] | None, rounding: Rounding, nominal: tuple[Any, ...], traced: Any
) -> Compiled:
    more = () if around is None else (bounds.Box.around(*around),)
    points = [bounds.Box(u, u) for u in nominal]

    def bounded(method: Any) -> Callable:
        def one(low: Any, high: Any, *fixed: Any) -> Any:
            of = bounds.bound(function, bounds.Box(low, high), *fixed, *more, method=method, rounding=rounding)
            (_, v_low), (r, v) = of.lower, of.upper
            return r, v_low, v

        return _batched(one)

    def looked(low: Any, high: Any, *fixed: Any) -> Any:
        nominally = lambda z: function(z, *fixed, *nominal)
        slope = jax.grad(lambda z: nominally(z)[0])
        # Where to cut: the largest change of r along an axis that its derivatives allow.
        steep = bounds.bound(slope, bounds.Box(low, high), method="interval", rounding="real")
        size = jnp.maximum(jnp.abs(steep.lower), jnp.abs(steep.upper))
        smear = jnp.where(jnp.isfinite(size), size, 1e30) * (high - low)
        # Points that may refute: the center, and the corner to which r rises.
        center = 0.5 * low + 0.5 * high
        rising = slope(center)
        tried = jnp.stack([center, jnp.where(rising > 0, high, jnp.where(rising < 0, low, center))])
        return smear, tried, *jax.vmap(nominally)(tried)

    def certain(z: Any, *fixed: Any) -> Any:
        found = bounds.bound(function, bounds.Box(z, z), *fixed, *points, method="interval", rounding=rounding)
        return found.lower, found.upper

    methods = {method: bounded(method) for method in ("interval", "crown")}
    return Compiled(methods, _batched(looked), jax.jit(certain), traced)


def fingerprint(digest: Any, closed: Any, *more: Any, without: Sequence[int] = ()) -> None:
    """Adds to a hash what a function computes: its operations, and all numbers in them; of some of its constants the shapes alone."""
    digest.update(f"{closed.jaxpr}{list(without)}".encode())
    for i, array in enumerate((*numbers_of(closed), *(np.asarray(v) for v in more))):
        digest.update(f"{array.dtype}{array.shape}".encode())
        if i not in without:
            digest.update(array.tobytes())


class Judge:
    """Decides boxes of one claim, by cheaper bounds first.

    **Arguments:**

    - `function`: (z, *fixed, *u) -> (r, v): the claim is r <= 0 (< 0 where `strict`) where v is between the levels.
    - `region`: where the levels and the ball are.
    - `strict`, `rounding`: of the claim.
    - `at_rest`: (low, high) -> whether the claim holds in a box at the equilibrium by second derivatives; `None` without
        an equilibrium.
    - `around`: center and radius of u, for all of which the claim is; `None` without one.
    - `fixed`: what tells apart questions that share this judge; may be set later, of the same shapes.
    """

    def __init__(
        self,
        function: Callable,
        region: Region,
        *,
        strict: bool,
        rounding: Rounding,
        at_rest: Callable[[np.ndarray, np.ndarray], bool] | None = None,
        around: tuple[Any, Any] | None = None,
        fixed: tuple[Any, ...] = (),
    ):
        self.region, self.strict, self.at_rest = region, strict, at_rest
        self.fixed = fixed
        self.tried, self.decided = {"interval": 1.0, "crown": 1.0}, {"interval": 1.0, "crown": 1.0}
        self.compiled, self.weights = _compiled(function, (region.low[0], *fixed), around, rounding)

    def __call__(self, lows: np.ndarray, highs: np.ndarray) -> Judged:
        rules = np.zeros(len(lows), np.int8)
        if self.region.ball is not None:
            center, radius = self.region.ball
            rules[distances(center, lows[:, 1:], highs[:, 1:]) > radius**2 * (1 + 1e-12)] = OUTSIDE
        for method, bounded in self.compiled.methods.items():
            todo = np.flatnonzero(rules == 0)
            # Now and then a method that was of no use is tried again.
            useful = self.decided[method] >= WORTH * self.tried[method] or self.tried["crown"] % 16 < 1
            if not len(todo) or (method == "interval" and not useful):
                continue
            r, v_low, v_high = self._of(bounded, lows[todo], highs[todo])
            found = np.zeros(len(todo), np.int8)
            found[r < 0 if self.strict else r <= 0] = HOLDS
            if self.region.most is not None:
                found[v_low > self.region.most] = ABOVE
            if self.region.least is not None:
                found[v_high < self.region.least] = BELOW
            rules[todo] = found
            # An average over about the last eight batches.
            self.tried[method] = 0.9 * self.tried[method] + 1
            self.decided[method] = 0.9 * self.decided[method] + (found > 0).mean()
        if self.at_rest is not None:
            for i in np.flatnonzero(rules == 0):
                rules[i] = REST if self.at_rest(lows[i], highs[i]) else 0
        todo = np.flatnonzero(rules == 0)
        axes = np.zeros(len(lows), np.int32)
        if not len(todo):
            return Judged(rules, axes)
        smear, points, r, v = self._of(self.compiled.looked, lows[todo], highs[todo])
        width = highs[todo] - lows[todo]
        # Along an axis of no width there is nothing to cut, and where r does not change at all the widest is taken.
        smear = np.where(width > 0, smear, -1)
        axes[todo] = np.where(smear.max(axis=1) > 0, smear.argmax(axis=1), width.argmax(axis=1))
        return Judged(rules, axes, self._refuted(points.reshape(-1, points.shape[-1]), r.ravel(), v.ravel()))

    def _of(self, function: Callable, lows: np.ndarray, highs: np.ndarray) -> list[np.ndarray]:
        """A function of boxes, for as many at a time as it is compiled for."""
        parts = []
        for i in range(0, len(lows), TOGETHER):
            low, high = lows[i : i + TOGETHER], highs[i : i + TOGETHER]
            pad = lambda a: np.concatenate([a, np.repeat(a[-1:], TOGETHER - len(a), axis=0)])
            parts.append([np.asarray(v)[: len(low)] for v in function(pad(low), pad(high), *self.fixed, *self.weights)])
        return [np.concatenate(v) for v in zip(*parts, strict=True)]

    def _refuted(self, points: np.ndarray, r: np.ndarray, v: np.ndarray) -> np.ndarray | None:
        """A point at which the claim certainly fails, rounding counted."""
        most = np.inf if self.region.most is None else self.region.most
        least = -np.inf if self.region.least is None else self.region.least
        r = np.where((v <= most) & (v >= least) & np.isfinite(r), r, -np.inf)
        for i in np.argsort(-r)[:8]:
            if not r[i] > 0:
                return None
            if self.fails(points[i], least, most):
                return points[i]
        return None

    def fails(self, z: np.ndarray, least: float, most: float) -> bool:
        """Whether a point is in the region, and r above 0 there, rounding counted."""
        if self.region.ball is not None:
            center, radius = self.region.ball
            if not ((z[1:] - center) ** 2).sum() * (1 + 1e-12) <= radius**2:
                return False
        (r_low, v_low), (_, v_high) = self.compiled.certain(z, *self.fixed, *self.weights)
        return bool(r_low > 0 and v_high <= most and v_low >= least)


# Boxes that are bounded together: their coefficients fit into the cache, and one size is compiled.
TOGETHER = 64


def options(backend: str) -> dict[str, Any] | None:
    """Of the compiler, for the search for proofs."""
    # On a CPU, XLA's fusion copies cheap operations into each kernel that uses them: planes of ten lines become programs that take
    # several times as long to compile. Proofs of small systems spend their time there.
    return {"xla_disable_hlo_passes": "fusion"} if backend == "cpu" else None


def _batched(one: Callable) -> Callable:
    """A function of one box for many, compiled."""
    mapped = lambda low, high, *fixed: jax.vmap(lambda a, b: one(a, b, *fixed))(low, high)
    return jax.jit(mapped, compiler_options=options(jax.default_backend()))
