"""Vector fields with an input that enters linearly."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._constant import Constant
from ._types import Scalar, describe, is_finite, kind, shown


class ControlAffine(eqx.Module):
    """The vector field f(t, η, c) + G(t, η, c) u of a system with inputs u, closed by a controller.

    **Arguments:**

    - `drift`: f, (t, state, context) -> float[n].
    - `actuation`: G, (t, state, context) -> float[n, m].
    - `controller`: (t, state, context) -> float[m], or `None` for u = 0. What it gives is clipped to the limits.
    - `limits`: s > 0, a number or an array float[m], for -s <= u <= s; a pair (least, largest) of numbers or arrays float[m]; or `None`
        without limits.

    States are vectors float[n]. Shapes are compared exactly, as NumPy would take a column float[n] for a row, and one input for many.

    **Raises:** `ValueError` for what is no function, and for limits that are not finite or not in order; when it is called (by `compile`
    and `prove` before anything is computed) for a state, a drift, an actuation, an input or limits of another shape.
    """

    drift: Callable
    actuation: Callable
    controller: Callable | None
    least: Constant | None
    largest: Constant | None

    def __init__(self, drift: Any, actuation: Any, controller: Any = None, *, limits: Any = None):
        for name, function in {"drift": drift, "actuation": actuation}.items():
            if not callable(function):
                raise ValueError(f"{name}: expected a function (t, state, context), got {shown(function)}")
        if controller is not None and not callable(controller):
            raise ValueError(f"controller: expected a function (t, state, context) or None, got {shown(controller)}")
        self.drift, self.actuation, self.controller = drift, actuation, controller
        self.least = self.largest = None
        if limits is not None:
            one = is_finite(limits) or hasattr(limits, "ndim")
            ends = (-limits, limits) if one else limits
            try:
                low, high = (np.asarray(v, float) for v in ends)
                good = np.isfinite(low).all() and np.isfinite(high).all() and (low <= high).all()
                good = good and not (one and (high <= 0).any())
            except (TypeError, ValueError):
                good = False
            if not good:
                raise ValueError(
                    f"limits: expected a number > 0, a pair of finite least <= largest, or None, got {limits!r}"
                )
            self.least, self.largest = Constant(ends[0]), Constant(ends[1])

    def drifting(self, t: Any, state: Float[Array, " n"], context: Any) -> Float[Array, " n"]:
        """The drift at one time, state and context; raises `ValueError` for one of another shape."""
        n = _size(state)
        return _shaped("drift", self.drift(t, state, context), (n,), f"float[n] for a state of n = {n} numbers")

    def columns(self, t: Any, state: Float[Array, " n"], context: Any) -> Float[Array, "n m"]:
        """The actuation at one time, state and context; raises `ValueError` for one of another shape."""
        n, found = _size(state), self.actuation(t, state, context)
        shape = np.shape(found)
        what = f"float[n, m] for a state of n = {n} numbers and m inputs"
        column = "; a single input has one column, float[n, 1]: write actuation[:, None]" if shape == (n,) else ""
        return _shaped("actuation", found, (n, *shape[1:2]) if len(shape) == 2 else (n, 1), what, column)

    def input(self, t: Any, state: Float[Array, " n"], context: Any) -> Float[Array, " m"]:
        """The input at one time, state and context, inside of the limits."""
        return self._input(t, state, context, self.columns(t, state, context).shape[1])

    def _input(self, t: Any, state: Any, context: Any, m: int) -> Any:
        of_inputs = f"float[m] for an actuation with m = {m} columns"
        if self.controller is None:
            u = jnp.zeros(m, state.dtype)
        else:
            u = _shaped("controller", self.controller(t, state, context), (m,), of_inputs)
        if self.least is None or self.largest is None:
            return u
        for end in (self.least, self.largest):
            if end.shape not in ((), (m,)):
                raise ValueError(f"limits: expected numbers or {of_inputs}, got an array of shape {end.shape}")
        return jnp.clip(u, self.least(state.dtype), self.largest(state.dtype))

    def __call__(self, t: Any, state: Float[Array, " n"], context: Any) -> Float[Array, " n"]:
        """The velocity at one time, state and context."""
        drift = self.drifting(t, state, context)
        if self.controller is None and self.least is None:
            # A shape that does not fit is refused even so.
            jax.eval_shape(lambda t, s: self.columns(t, s, context), t, state)
            return drift
        columns = self.columns(t, state, context)
        return drift + columns @ self._input(t, state, context, columns.shape[1])

    def lie(
        self, value: Callable[[Any, Any], Any], t: Any, state: Float[Array, " n"], context: Any
    ) -> tuple[Scalar, Scalar, Float[Array, " m"]]:
        """V, its rate ∂V/∂t + L_f V without an input, and L_g V for every input, for a function (t, state) -> V."""
        v, rate = jax.jvp(value, (t, state), (jnp.ones_like(t), self.drifting(t, state, context)))
        along = lambda column: jax.jvp(lambda s: value(t, s), (state,), (column,))[1]
        return v, rate, jax.vmap(along, in_axes=1)(self.columns(t, state, context))


def _size(state: Any) -> int:
    """n, of a state float[n]."""
    if len(np.shape(state)) != 1:
        raise ValueError(f"ControlAffine: expected a state that is a vector float[n], got {describe(state)}")
    return np.shape(state)[0]


def _shaped(name: str, found: Any, shape: tuple[int, ...], expected: str, more: str = "") -> Any:
    """What a function returned. Raises `ValueError` where it is no array of a shape."""
    if not hasattr(found, "dtype") or np.shape(found) != shape:
        got = describe(found) if hasattr(found, "dtype") else kind(found)
        raise ValueError(f"{name}: expected an array {expected}, got {got}{more}")
    return found


def affine(certificate: str, field: Any, *, limited: bool = False) -> ControlAffine:
    """A field as one with inputs.

    **Raises:** `ValueError` for another field, and for one without limits where they are needed.
    """
    if not isinstance(field, ControlAffine):
        raise ValueError(
            f"{certificate}: expected a System whose vector_field is a lyapunov_dsl.ControlAffine, got {kind(field)}"
        )
    if limited and field.least is None:
        raise ValueError(
            f"{certificate}: expected a ControlAffine with limits of the input, got none; without limits any rate can be had "
            "wherever the input has an influence"
        )
    return field


def relative_degree(field: ControlAffine, h: Callable, states: Any, context: Any = None, *, most: int = 4) -> int:
    """How often a function of the state has to be differentiated along a system until its input appears: the least r for which
    L_g L_f^{r-1} h is not 0 at some of the given states.

    **Arguments:**

    - `field`: a [`lyapunov_dsl.ControlAffine`][].
    - `h`: state -> scalar.
    - `states`: float[k, n], where to look. A few states in general position are enough.
    - `context`: of one example.
    - `most`: where to stop.

    **Returns:** r >= 1.

    **Raises:** `ValueError` where the input has not appeared by then.
    """
    states = jnp.asarray(states)
    t = jnp.zeros((), states.dtype)
    psi = lambda t, s: h(s)
    for degree in range(1, most + 1):
        influence = jax.jit(jax.vmap(lambda s, psi=psi: field.lie(psi, t, s, context)[2]))(states)
        if bool(jnp.any(influence != 0)):
            return degree
        psi = lambda t, s, psi=psi: field.lie(psi, t, s, context)[1]
    raise ValueError(
        f"relative degree: expected an input that appears in one of the first {most} derivatives of h, got none; "
        "does h depend on states that the input reaches?"
    )


def drift_of(point: Any) -> Callable[[Any, Any], Any]:
    """The part of a velocity that no input changes: (t, state) -> velocity."""
    field = point.field
    return (lambda t, s: field.drifting(t, s, point.context)) if isinstance(field, ControlAffine) else point.velocity
