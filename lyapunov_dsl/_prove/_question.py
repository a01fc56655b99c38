"""What is to be proved about a system and a certificate, as functions of (t, state) in float64 that can be bounded."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from .. import bounds
from .._certificate import ControlBarrier
from .._certificate._barrier import apply, chain
from .._check import check_field, check_potentials, check_readout, check_start
from .._condition import Condition
from .._constant import Constant
from .._control_affine import drift_of
from .._depends import check_depends
from .._enforce import Enforced
from .._potential import Loss
from .._system import Start
from .._types import check_arrays, struct_of
from .._variational import Tangents
from ..bounds._jumps import doubtful as bounds_doubtful


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
        self.bits, self.words, self.dtype, self.value = (
            constant.bits,
            constant.words,
            constant.dtype,
            constant.written(),
        )

    def __call__(self, dtype: Any = None) -> Any:
        return jnp.asarray(self.value if dtype is None else self.value.astype(dtype))


def widened(tree: Any) -> Any:
    """A tree with its floating-point arrays in float64, which changes no value, and its constants as arrays."""

    def cast(leaf: Any) -> Any:
        if isinstance(leaf, Constant):
            return _Opened(leaf)
        return jnp.asarray(leaf, jnp.float64) if eqx.is_inexact_array(leaf) else leaf

    return jax.tree.map(cast, tree, is_leaf=lambda v: isinstance(v, Constant))


def flattened(start: Start) -> tuple[Any, Any, Callable[[Any], Any], Callable[[Any], Any]]:
    """The state and the floating-point numbers of the context as flat arrays, and the ways back from either."""
    state, as_state = ravel_pytree(start.state)
    numbers, rest = eqx.partition(start.context, eqx.is_inexact_array)
    context, as_numbers = ravel_pytree(numbers)
    return state, context, as_state, lambda u: eqx.combine(as_numbers(u), rest)


def functions(condition: Condition, part: str, x: Any, y: Any) -> tuple[Functions, Any]:
    """The functions of one example, and the start. Call it with float64 enabled."""
    check_arrays("x", x)
    check_arrays("y", y)
    x = jax.tree.map(jnp.asarray, x)
    condition, x, y = widened(eqx.nn.inference_mode(condition)), widened(x), widened(y)
    system = condition.continuous
    _refuse(np.isnan, "NaN", system=system, certificate=condition.parts[part])
    _refuse(lambda v: ~np.isfinite(v), "NaN or Inf", x=x, y=y)
    _check_enforced(system)
    check_start(system, struct_of(x))
    start = system.start(x)
    check_field(system, start, exactly=False)
    prediction = check_readout(system, struct_of(start.state))
    certificate = condition.parts[part].prepared(system, jax.tree.map(_shape, start))
    check_potentials(Condition(system, certificate), start, struct_of(prediction), struct_of(y), trained=False)
    if isinstance(loss := getattr(certificate, "loss", None), Loss) and y is not None:
        # JAX would take another class for one that is not there, and the proof would be about that.
        loss.check_targets(struct_of(prediction), jax.tree.map(lambda v: np.asarray(v)[None], y))
    flat, numbers, unravel, as_context = flattened(start)
    point = condition.point(start, y)
    found = Functions(
        lambda t, s: ravel_pytree(system.velocity(t, unravel(s), start.context))[0],
        lambda t, s: certificate.value(t, unravel(s), point),
        lambda t, v: certificate.comparison(t, v),
        lambda t, s, u: ravel_pytree(system.velocity(t, unravel(s), as_context(u)))[0],
        numbers,
        lambda t, s: certificate.derivative(t, unravel(s), point, system.velocity(t, unravel(s), start.context)),
        certificate.own_rate,
        _sources(certificate, system, point, start),
        _silent(certificate, point, unravel),
    )
    check_depends(part, lambda s: found.value(jnp.zeros(()), s), flat)
    return found, flat


def _check_enforced(system: Any) -> None:
    """Raises `ValueError` for the field of `enforce`, of which bounds say nothing."""
    is_enforced = lambda node: isinstance(node, Enforced)
    for node in jax.tree.leaves(system, is_leaf=is_enforced):
        if is_enforced(node):
            raise ValueError(
                f"vector_field: expected a field that can be bounded, got that of enforce, which satisfies {' & '.join(node.parts)} by "
                "construction, wherever it is evaluated without an error: where it corrects the field, dV/dt is comparison(t, V) up to "
                "rounding, and no bound is as tight as that. What is about V alone, prove it of the system that was given to enforce"
            )


def _refuse(wrong: Callable, what: str, **trees: Any) -> None:
    """Raises `ValueError` for arrays of which nothing can be proved."""
    for name, tree in trees.items():
        for where, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if eqx.is_inexact_array_like(leaf) and wrong(np.asarray(leaf)).any():
                place = jax.tree_util.keystr(where)
                raise ValueError(f"{name}: expected finite numbers, got {what}{f' at {place}' if place else ''}")


def _shape(leaf: Any) -> Any:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if eqx.is_array(leaf) else leaf


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
        method="ibp",
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
