"""Set invariance by a barrier function (Ames et al. 2016), of any relative degree (Xiao and Belta 2019)."""

import copy
import functools as ft
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from .._constant import Constant
from .._control_affine import ControlAffine, relative_degree
from .._types import Scalar, State, is_traced, kind, shown
from ._base import Certificate, Point
from ._decay import check_class_k
from ._exponential import check_rate, fallen


class Barrier(Certificate):
    """d/dt h >= -α(h) along the flow, with V = -h.

    Then {h >= 0} is forward invariant (Nagumo 1942; Ames et al. 2016), as h is above the solution of v' = -α(v), which does not cross 0.

    Where the input of a [`lyapunov_dsl.ControlAffine`][] appears only in the r-th derivative of h, the condition is about
    ψ_{r-1} instead of h, with ψ_0 = h and ψ_i = dψ_{i-1}/dt + α(ψ_{i-1}): then the set in which all ψ_i >= 0 is invariant (Xiao and
    Belta 2019), a subset of {h >= 0}, whatever r is. [`lyapunov_dsl.Barrier.chain`][] gives them.

    `a | b` is the barrier max(h_a, h_b) of the union of the safe sets, with the smaller of the two α (Glotfelter et al. 2017).

    **Arguments:**

    - `h`: a function of the state, at least 0 where the state is safe.
    - `alpha`: a rate > 0 for the linear class-K function α h, or an increasing function with α(0) = 0, of numbers h < 0 as well. The
        theorem needs it to be locally Lipschitz: a root is not, and its solutions leave 0.
    - `degree`: the relative degree r >= 1. Left out, `compile` and `prove` find it for a `ControlAffine`; it is 1 for other fields.

    **Raises:** `ValueError` for a rate <= 0 or not finite, an α that is not as above, or an `h` that is not callable.
    """

    h: Callable
    alpha: Callable
    degree: int | None = eqx.field(static=True)

    def __init__(self, h: Any, alpha: Any = 1.0, *, degree: Any = None):
        self.h, self.alpha, self.degree = *checked_barrier(h, alpha), checked_degree(degree)

    def chain(self, t: Any, state: State, point: Point) -> list[Scalar]:
        """ψ_0 = h, ..., ψ_{r-1}: a state is in the invariant set where all are at least 0."""
        return [psi(t, state) for psi in chain(self, point)]

    def value(self, t: Any, state: State, point: Point) -> Scalar:
        return -chain(self, point)[-1](t, state)

    def comparison(self, t: Any, v: Any) -> Scalar:
        return apply(self.alpha, -jnp.asarray(v))

    def flow(self, t: Any, dt: Any, v: Any) -> Scalar:
        return fallen(self.alpha, dt, v) if isinstance(self.alpha, Constant) else super().flow(t, dt, v)

    def prepared(self, system: Any, start: Any) -> Certificate:
        return with_degree(self, found_degree(self, system, start))

    def __or__(self, other: Any) -> Certificate:
        # A subclass may ask for something else.
        if not type(self) is type(other) is Barrier or {self.degree, other.degree} - {None, 1}:
            raise ValueError(f"|: expected two barriers of degree 1, got {kind(self)} and {kind(other)}")
        alphas = (self.alpha, other.alpha)
        return Barrier(Highest((self.h, other.h)), Least(alphas))


class Highest(eqx.Module):
    """The largest of some functions of the state."""

    parts: tuple[Callable, ...]

    def __call__(self, state: State) -> Scalar:
        # Pair by pair: where the largest of an array is not known, its derivative is a quotient of counts.
        return ft.reduce(jnp.maximum, [part(state) for part in self.parts])


class Least(eqx.Module):
    """The least of some class-K functions."""

    parts: tuple[Callable, ...]

    def __call__(self, h: Any) -> Scalar:
        return ft.reduce(jnp.minimum, [apply(part, h) for part in self.parts])


def apply(alpha: Callable, h: Any) -> Scalar:
    """α(h), for a rate α h."""
    h = jnp.asarray(h)
    return alpha(h.dtype) * h if isinstance(alpha, Constant) else alpha(h)


def checked_barrier(h: Any, alpha: Any) -> tuple[Callable, Callable]:
    """h and α, a rate as a constant."""
    if not callable(h):
        raise ValueError(f"h: expected a function of the state, got {shown(h)}")
    if isinstance(alpha, Constant | Least):
        return h, alpha
    if not callable(alpha) or hasattr(alpha, "dtype"):
        check_rate("alpha", alpha)
        return h, Constant(alpha)
    check_class_k("alpha", alpha)
    below: Any = jax.vmap(alpha)(-jnp.asarray([1e-6, 1e-3, 1.0, 1e3]))
    if not is_traced(below) and not bool(jnp.all(jnp.isfinite(below))):
        raise ValueError(
            "alpha: expected a function that is finite for h < 0 as well, where training evaluates it, got NaN or infinity"
        )
    return h, alpha


def with_degree(barrier: Any, degree: int) -> Any:
    """The same certificate, whatever class it is of, with a relative degree."""
    if degree == barrier.degree:
        return barrier
    found = copy.copy(barrier)
    object.__setattr__(found, "degree", degree)
    return found


def checked_degree(degree: Any) -> int | None:
    """A relative degree as it was given."""
    if degree is not None and (isinstance(degree, bool) or not (isinstance(degree, int) and degree >= 1)):
        raise ValueError(f"degree: expected a whole number >= 1 or None, got {degree!r}")
    return degree


def chain(barrier: Any, point: Point, along: Any = None) -> list[Callable[[Any, Any], Any]]:
    """ψ_0 to ψ_{r-1} of a barrier, functions of (t, state): along the velocity of the system, which makes the set invariant whatever
    the degree is, or along another."""
    found: list[Callable[[Any, Any], Any]] = [lambda t, s: barrier.h(s)]
    for _ in range(1, barrier.degree or 1):

        def after(t: Any, s: Any, psi: Callable = found[-1]) -> Any:
            velocity: Any = point.velocity if along is None else along
            h, rate = jax.jvp(psi, (t, s), (jnp.ones_like(t), velocity(t, s)))
            return rate + apply(barrier.alpha, h)

        found.append(after)
    return found


def found_degree(barrier: Any, system: Any, start: Any) -> int:
    """The relative degree of a barrier on a system: as given, that of the input where there is one, else 1."""
    field = getattr(system, "vector_field", None)
    if (barrier.degree or 1) > 1 and field is None:
        raise ValueError(f"degree: expected 1 for a DiscreteSystem, got {barrier.degree}")
    if barrier.degree is not None or not isinstance(field, ControlAffine):
        return barrier.degree or 1
    keys = jax.random.split(jax.random.key(0), 8)
    draw = lambda leaf, key: jax.random.normal(key, leaf.shape, leaf.dtype)
    is_shape = lambda leaf: hasattr(leaf, "shape") and jnp.issubdtype(leaf.dtype, jnp.floating)
    other = lambda leaf: jnp.zeros(leaf.shape, leaf.dtype) if hasattr(leaf, "shape") else leaf
    context = jax.tree.map(lambda leaf: draw(leaf, keys[0]) if is_shape(leaf) else other(leaf), start.context)
    if system.domain is None:
        states = jax.vmap(lambda k: draw(start.state, k))(keys)
    else:
        states = jax.vmap(lambda k: system.domain.sample(start.state, k))(keys)
    return relative_degree(field, barrier.h, states, context)
