"""What the rules of certified radii evaluate: bounds of Euler inference over a ball of inputs, for one example and one radius.

Functions of batches are compiled once for networks of the same structure, whatever their weights.
"""

import hashlib
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import ArrayLike, PyTree

from .. import bounds
from .._depends import depends
from .._interpret import Staged
from .._potential import CrossEntropy
from .._rollout import EulerInference, margins
from .._system import identity
from ._known import fingerprint, options, remembered
from ._question import flattened

# More than what some dozens of roundings in float64 lose.
UP = 1 + 1e-14


class Radii(NamedTuple):
    """Norms of changes for the perturbations of one norm.

    **Arguments:**

    - `of`: the norm in which states and contexts are compared, of [`lyapunov_dsl.bounds.lipschitz`][].
    - `margin`: how much a margin z_y - z_j changes at most where the logits change by 1.
    """

    of: str
    margin: float


NORMS = {"2": Radii("2", math.sqrt(2) * UP), "inf": Radii("inf", 2.0)}


class Deployed(eqx.Module):
    """Euler inference, a norm, and what the comparison rule needs to know.

    **Arguments:**

    - `network`: inference, in float64.
    - `low`, `high`: the ends of H, or `None`.
    - `kappa`, `truncation`: of the comparison rule.
    - `norm`: of perturbations.
    - `gain`: a Lipschitz constant of the input module that was given, for perturbations in the Euclidean norm, or `None`.
    - `method`: of bounds through the input module.
    - `timed`: whether the field depends on t.
    - `jumps`: whether the input module may jump, so that a constant that was given says nothing.
    """

    network: EulerInference
    low: Any
    high: Any
    kappa: Any
    truncation: Any
    gain: Any
    norm: str = eqx.field(static=True)
    method: Any = eqx.field(static=True)
    timed: bool = eqx.field(static=True)
    jumps: bool = eqx.field(static=True)

    def logits(self, x: Any) -> Any:
        """The prediction of the network, evaluated."""
        return self.network(x)

    def slope(self, x: Any, y: Any) -> Any:
        """The slope of the smallest margin at x, of which nothing but where to look depends."""
        least = lambda x: jnp.min(
            jnp.where(jnp.arange(self.network(x).shape[0]) == y, jnp.inf, self.network.margins(x, y))
        )
        return jax.grad(least)(x)

    def reach(self, x: Any, y: Any, radius: Any) -> Any:
        """The smallest margin over the ball, at least."""
        ball = self._ball(x, radius)
        found = bounds.bound(lambda x: self.network.margins(x, y), ball, method=self.method, rounding="real")
        return _least(found, y)

    def tube(self, x: Any, y: Any, radius: Any) -> Any:
        """The smallest margin at least, for all starts and contexts that are as near to the nominal ones as those of the ball."""
        _, _, as_state, as_context = self._flat(x)

        def after(s: Any, c: Any) -> Any:
            final = self.network.final(as_state(s), as_context(c))
            return margins(self.network.system.decode(final), y)

        if self.norm == "2":
            regions = tuple(_ball(v, by) for v, by in zip(self._nominal(x), self._moved(x, radius), strict=True))
        else:
            # The range is no wider than what the Jacobian says of it.
            found = bounds.bound(
                lambda x: self._flat(x)[:2], self._ball(x, radius), method=self.method, rounding="real"
            )
            regions = tuple(bounds.Box(*ends) for ends in zip(found.lower, found.upper, strict=True))
        return _least(bounds.bound(after, *regions, rounding="real"), y)

    def margin(self, x: Any, y: Any, radius: Any) -> Any:
        """The smallest margin at a center that the nominal state is near to, less what the distance from it changes.

        States of all inputs of the ball are within e_n of a center η_n, a vector of floats, and η_{n+1} is about Φ_n(η_n):
        e_{n+1} = q e_n + b |c - c_0| + |Φ_n(η_n, c_0) - η_{n+1}|. So the rounding of a step is multiplied by what the step contracts
        by, while the ranges of states grow with every step, even where it contracts.
        """
        norm = NORMS[self.norm]
        first, reach = self._moved(x, radius)
        _, _, as_state, as_context = self._flat(x)
        near, context = self._nominal(x)
        moves = context.lower.size > 0
        contexts = self._contexts(context, reach)
        nominal, off = _centered(context, norm.of)
        reach = (reach + off) * UP

        def one(n: Any, carry: Any) -> Any:
            low, high, center, error = carry
            # The center and all states lie in the box, and so do the lines between them.
            step = self._step(n, as_state, as_context)
            regions = (bounds.Box(low, high), contexts)
            q = bounds.lipschitz(step, *regions, norm=norm.of, argnum=0)
            b = bounds.lipschitz(step, *regions, norm=norm.of, argnum=1) if moves else 0.0
            at = (bounds.Box(center, center), bounds.Box(nominal, nominal))
            found = bounds.bound(step, *at, method="ibp", rounding="real")
            center, off = _centered(bounds.Box(found.lower, found.upper), norm.of)
            error = (q * error + b * reach + off) * UP
            return *_tube(bounds.bound(step, *regions, rounding="real"), center, error), center, error

        center, off = _centered(near, norm.of)
        error = (first + off) * UP
        begun = (*_tube(self._start(x, radius), center, error), center, error)
        low, high, center, error = jax.lax.fori_loop(0, self.network.steps, one, begun)
        decode = lambda s: self.network.system.decode(as_state(s))
        plain = self.network.system.readout is identity
        last = 1.0 if plain else bounds.lipschitz(decode, bounds.Box(low, high), norm=norm.of)
        at = bounds.Box(center, center)
        found = bounds.bound(lambda s: margins(decode(s), y), at, method="ibp", rounding="real")
        room = _least(found, y) - norm.margin * last * error * UP
        return jnp.where(jnp.isnan(room), -jnp.inf, room)

    def comparison(self, x: Any, y: Any, radius: Any) -> Any:
        """(V at the end at most by the sharper profile, by a constant, whether H is invariant, whether the start is in H, a d)."""
        _, reach = self._moved(x, radius)
        _, _, as_state, as_context = self._flat(x)
        _, context = self._nominal(x)
        regions = bounds.Box(self.low, self.high), self._contexts(context, reach)
        # Norms of ∂V = p - e_y, which are at most this times 1 - exp(-V), and those of changes that they go with.
        profiles = {"2": math.sqrt(2) * UP, ("2", "inf"): 2.0} if self.norm == "2" else {"inf": 2.0}

        def one(n: Any) -> tuple[Any, Any]:
            step = self._step(n, as_state, as_context)
            found = bounds.bound(step, *regions, rounding="real")
            kept = jnp.all((found.lower >= self.low) & (found.upper <= self.high))
            if not context.lower.size:
                return kept, jnp.zeros(())
            steep = [bounds.lipschitz(step, *regions, norm=n, argnum=1) * by for n, by in profiles.items()]
            return kept, jnp.min(jnp.stack(steep)) * reach * UP

        kept, changes = self._each(one)
        change = jnp.max(changes)
        first = self._start(x, radius)
        inside = jnp.all((first.lower >= self.low) & (first.upper <= self.high))
        v = bounds.bound(lambda s: self._value(s, y, as_state), bounds.Box(first.lower, first.upper), rounding="real")
        fallen = lambda v: jnp.maximum(self._decay() * v, self.truncation)

        def step(_: Any, values: Any) -> Any:
            sharper, constant = values
            sharper = jnp.log1p(jnp.expm1(fallen(sharper)) * jnp.exp(change)) * (1 + 1e-12)
            return sharper, (fallen(constant) + change) * UP

        values = jax.lax.fori_loop(0, self.network.steps, step, (v.upper, v.upper))
        sharper, constant = (jnp.where(jnp.isnan(v), jnp.inf, v) for v in values)
        return sharper, constant, jnp.all(kept), inside, change

    def residual(self, low: Any, high: Any, x: Any, y: Any) -> tuple[Any, Any, Any]:
        """V(Φ_n) - max(exp(-κ Δt) V, γ) for the nominal input and all steps: at most, over a box of states; where to cut the box;
        and at the worse of two states in it."""
        _, nominal, as_state, as_context = self._flat(x)
        _, context = self._nominal(x)

        def one(n: Any) -> Any:
            step = self._step(n, as_state, as_context)

            def excess(s: Any, c: Any) -> Any:
                after = self._value(step(s, c), y, as_state)
                return jnp.stack([after - self._decay() * self._value(s, y, as_state), after - self.truncation])

            found = bounds.bound(excess, bounds.Box(low, high), context, rounding="real").upper
            center = 0.5 * low + 0.5 * high
            corner = jnp.where(jax.grad(lambda s: excess(s, nominal)[0])(center) > 0, high, low)
            tried = jax.vmap(lambda s: excess(s, nominal))(jnp.stack([center, corner]))
            points = jnp.max(jnp.min(tried, axis=1))
            return jnp.min(jnp.where(jnp.isnan(found), jnp.inf, found)), points

        most, there = self._each(one)
        return jnp.max(most), jnp.argmax(high - low), jnp.max(there)

    def _decay(self) -> Any:
        return jnp.exp(-self.kappa * (self.network.system.horizon / self.network.steps)) * UP

    def _each(self, one: Any) -> Any:
        """A function of all steps, of one where they are all the same; compiled once."""
        return jax.lax.map(one, jnp.arange(self.network.steps if self.timed else 1))

    def _value(self, s: Any, y: Any, as_state: Any) -> Any:
        return CrossEntropy()(self.network.system.decode(as_state(s)), y)

    def _ball(self, x: Any, radius: Any) -> Any:
        return bounds.Ball(x, radius) if self.norm == "2" else bounds.Box.around(x, radius)

    def _contexts(self, nominal: Any, reach: Any) -> Any:
        """All contexts no farther than this from the nominal one."""
        return _ball(nominal, reach) if self.norm == "2" else bounds.Box(nominal.lower - reach, nominal.upper + reach)

    def _nominal(self, x: Any) -> tuple[Any, Any]:
        """Boxes of the start and of the context of x itself, which are known up to rounding."""
        exact = bounds.bound(lambda x: self._flat(x)[:2], bounds.Box(x, x), method="ibp", rounding="real")
        state, context = (bounds.Box(*ends) for ends in zip(exact.lower, exact.upper, strict=True))
        return state, context

    def _flat(self, x: Any) -> tuple[Any, Any, Any, Any]:
        return flattened(self.network.system.start(x))

    def _step(self, n: Any, as_state: Any, as_context: Any) -> Any:
        return lambda s, c: ravel_pytree(self.network.step(n, as_state(s), as_context(c)))[0]

    def _start(self, x: Any, radius: Any) -> Any:
        """A box that every perturbed start is in."""
        return bounds.bound(lambda x: self._flat(x)[0], self._ball(x, radius), method=self.method, rounding="real")

    def _moved(self, x: Any, radius: Any) -> tuple[Any, Any]:
        """How far the start and the context of a perturbed input are from the nominal ones, at most."""
        varies = [depends(lambda x, i=i: self._flat(x)[i], x) for i in (0, 1)]
        if self.gain is not None:
            # Of start and context as one vector, so of each. Of what jumps it is no constant, whatever it says.
            given = jnp.inf if self.jumps else self.gain
            moved = [given * radius * UP if v else jnp.zeros(()) for v in varies]
            return moved[0], moved[1]
        ball = self._ball(x, radius)
        norm: Any = NORMS[self.norm].of

        def of(i: int) -> Any:
            return bounds.lipschitz(lambda x: self._flat(x)[i], ball, norm=norm, method=self.method) * radius * UP

        first, second = (of(i) if v else jnp.zeros(()) for i, v in enumerate(varies))
        return first, second


def _ball(box: Any, radius: Any) -> Any:
    """A ball that has all points no farther than a radius from some point of a small box."""
    center = 0.5 * box.lower + 0.5 * box.upper
    off = jnp.maximum(box.upper - center, center - box.lower)
    return bounds.Ball(center, (radius + jnp.sqrt(jnp.sum(off * off)) + jnp.sum(off)) * UP)


def _least(found: Any, y: Any) -> Any:
    """The smallest margin at least, that of y itself left out."""
    lower = jnp.where(jnp.arange(found.lower.shape[0]) == y, jnp.inf, found.lower)
    return jnp.min(jnp.where(jnp.isnan(lower), -jnp.inf, lower))


def _centered(box: Any, norm: Any) -> tuple[Any, Any]:
    """The center of a small box in floats, and how far all of the box is from it, at most."""
    center = 0.5 * box.lower + 0.5 * box.upper
    if not center.size:
        return center, jnp.zeros(())
    off = jnp.maximum(box.upper - center, center - box.lower) * UP
    return center, jnp.max(off) if norm == "inf" else jnp.sqrt(jnp.sum(off * off)) * UP


def _tube(found: Any, center: Any, error: Any) -> tuple[Any, Any]:
    """The states of a box that are not farther from a center than this, at most, and the center."""
    error = jnp.where(jnp.isnan(error), jnp.inf, error)
    # Differences round by less than this.
    reach = error * UP + 1e-15 * jnp.abs(center)
    low, high = jnp.maximum(found.lower, center - reach), jnp.minimum(found.upper, center + reach)
    return jnp.minimum(low, center), jnp.maximum(high, center)


class Known(NamedTuple):
    """Compiled functions of networks that compute the same, up to their weights.

    **Arguments:**

    - `evaluate`: (what is known, name, arrays) -> results.
    - `traced`: what these networks were recognized by; kept, since addresses of objects may be in its text.
    """

    evaluate: Any
    traced: Any


# The latest, by what is computed. Python state that a network reads is part of that.
_KNOWN: dict[str, Known] = {}


def known(found: Deployed, x: Any) -> Known:
    """The compiled functions for a network, whose weights may be others."""
    system = found.network.system
    arrays, rest = eqx.partition(system, eqx.is_array)

    def whole(arrays: Any, x: Any, t: Any) -> Any:
        system = eqx.combine(arrays, rest)
        start = system.start(x)
        more = eqx.filter((start, system.decode(start.state)), eqx.is_array)
        return more, system.velocity(t, start.state, start.context)

    traced = jax.make_jaxpr(whole)(arrays, x, jnp.zeros(()))
    settings = (found.norm, found.method, found.timed, found.jumps, found.gain is None, found.network.steps, rest)
    digest = hashlib.sha256(repr(settings).encode())
    fingerprint(digest, traced)

    return remembered(_KNOWN, digest.hexdigest(), lambda: Known(_evaluator(), (traced, rest)))


def _evaluator() -> Callable[[Deployed, str, Sequence[ArrayLike]], PyTree]:
    """A function (what is known, name, arrays) -> results for all examples of the arrays."""
    staged: dict[Hashable, Staged] = {}

    def evaluate(found: Deployed, name: str, arrays: Sequence[ArrayLike]) -> PyTree:
        dynamic, static = eqx.partition(found, eqx.is_array)
        key = name, *jax.tree.flatten(static)[0], jax.tree.structure(static)
        if key not in staged:
            function = lambda dynamic, arrays: jax.vmap(getattr(eqx.combine(dynamic, static), name))(*arrays)
            staged[key] = Staged(function, options(jax.default_backend()))
        return staged[key](dynamic, list(arrays))

    return evaluate
