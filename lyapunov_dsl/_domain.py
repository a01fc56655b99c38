"""The sets H of states that measures sample and reports speak of."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import PyTree

from ._constant import Constant
from ._types import Scalar, State, describe, is_finite


class Domain(eqx.Module):
    """A compact convex set H of states (paper, section 2). Abstract; see `Box`, `Ball`, `Product`."""

    @abc.abstractmethod
    def check(self, state: PyTree) -> None:
        """Raises `ValueError` where the domain does not fit a state of these shapes."""

    @abc.abstractmethod
    def sample(self, state: PyTree, key: Any) -> State:
        """One state, uniform on H, of the shapes and dtypes of `state`."""

    @abc.abstractmethod
    def excess(self, state: State) -> Scalar:
        """How far a state is outside H, relative to the extent of H; at most 0 inside."""

    @abc.abstractmethod
    def project(self, state: State) -> State:
        """The nearest state of H."""

    @abc.abstractmethod
    def half_widths(self, state: State) -> State:
        """Half the extent of H along every coordinate, as a PyTree like `state`."""


class Box(Domain):
    """All states with lower <= state <= upper in every coordinate.

    **Arguments:**

    - `lower`, `upper`: real scalars, or arrays of the shape of every leaf of the state.

    **Raises:** `ValueError` where a bound is not finite or `lower < upper` does not hold.
    """

    lower: Constant
    upper: Constant

    def __init__(self, lower: Any, upper: Any):
        try:
            low, high = np.asarray(lower), np.asarray(upper)
            good = bool(np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all())
        except (TypeError, ValueError):
            good = False
        if not good:
            raise ValueError(f"Box: expected finite bounds with lower < upper, got lower={lower!r}, upper={upper!r}")
        self.lower = Constant(lower)
        self.upper = Constant(upper)

    def _bounds(self, leaf: Any) -> tuple[Any, Any]:
        low, high = self.lower(leaf.dtype), self.upper(leaf.dtype)
        return jnp.broadcast_to(low, leaf.shape), jnp.broadcast_to(high, leaf.shape)

    def check(self, state: PyTree) -> None:
        for leaf in jax.tree.leaves(state):
            for bound in (self.lower, self.upper):
                # A bound float[1] of a state float[2] would be taken for both.
                if bound.shape not in ((), leaf.shape):
                    raise ValueError(
                        f"domain: expected bounds that are numbers or of the state's shape, got bounds of shape {bound.shape} "
                        f"for a state {describe(leaf)}"
                    )

    def sample(self, state: PyTree, key: Any) -> State:
        leaves, tree = jax.tree.flatten(state)
        keys = jax.random.split(key, len(leaves))
        out = []
        for leaf, k in zip(leaves, keys, strict=True):
            low, high = self._bounds(leaf)
            out.append(jax.random.uniform(k, leaf.shape, leaf.dtype, low, high))
        return jax.tree.unflatten(tree, out)

    def excess(self, state: State) -> Scalar:
        def leaf(x: Any) -> Any:
            low, high = self._bounds(x)
            return jnp.max(jnp.maximum(low - x, x - high) / (high - low) * 2)

        return jnp.max(jnp.stack([leaf(x) for x in jax.tree.leaves(state)]))

    def project(self, state: State) -> State:
        return jax.tree.map(lambda x: jnp.clip(x, *self._bounds(x)), state)

    def half_widths(self, state: State) -> State:
        def leaf(x: Any) -> Any:
            low, high = self._bounds(x)
            return (high - low) / 2

        return jax.tree.map(leaf, state)


class Ball(Domain):
    """All states within Euclidean distance `radius` of `center`, over all leaves of the state together.

    **Arguments:**

    - `center`: a real scalar, or an array of the shape of every leaf of the state.
    - `radius`: a positive real scalar.

    **Raises:** `ValueError` where the radius is not positive and finite, or the center not finite.
    """

    center: Constant
    radius: Constant

    def __init__(self, center: Any, radius: Any):
        if not (is_finite(radius) and radius > 0):
            raise ValueError(f"Ball: expected a positive finite radius, got {radius!r}")
        if not all(map(is_finite, np.ravel(center))):
            raise ValueError(f"Ball: expected a finite center, got {center!r}")
        self.radius = Constant(radius)
        self.center = Constant(center)

    def check(self, state: PyTree) -> None:
        shape = self.center.shape
        for leaf in jax.tree.leaves(state):
            if shape not in ((), leaf.shape):
                raise ValueError(
                    f"domain: expected a center that is a number or of the state's shape, got a center of shape {shape} "
                    f"for a state {describe(leaf)}"
                )

    def _offset(self, state: State) -> State:
        return jax.tree.map(lambda x: x - self.center(x.dtype), state)

    def sample(self, state: PyTree, key: Any) -> State:
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), state)
        flat, unravel = ravel_pytree(zeros)
        direction, length = jax.random.split(key)
        normal = jax.random.normal(direction, flat.shape, flat.dtype)
        scale = jax.random.uniform(length, (), flat.dtype) ** (1 / flat.size)
        offset = unravel(normal / jnp.linalg.norm(normal) * scale * self.radius(flat.dtype))
        return jax.tree.map(lambda x: x + self.center(x.dtype), offset)

    def excess(self, state: State) -> Scalar:
        flat, _ = ravel_pytree(self._offset(state))
        return jnp.linalg.norm(flat) / self.radius(flat.dtype) - 1

    def project(self, state: State) -> State:
        flat, unravel = ravel_pytree(self._offset(state))
        radius = self.radius(flat.dtype)
        inside = unravel(flat * jnp.minimum(1, radius / jnp.maximum(jnp.linalg.norm(flat), radius)))
        return jax.tree.map(lambda x: x + self.center(x.dtype), inside)

    def half_widths(self, state: State) -> State:
        return jax.tree.map(lambda x: jnp.full(x.shape, self.radius(x.dtype)), state)


class Product(Domain):
    """A product of domains, one for each part of a structured state.

    **Arguments:**

    - `parts`: a PyTree of domains that is a prefix of the state, such as `{"q": Box(-1, 1), "p": Ball(0, 2)}`.

    **Raises:** `ValueError` for parts that are no domains.
    """

    parts: PyTree[Domain]

    def __init__(self, parts: Any):
        leaves = jax.tree.leaves(parts, is_leaf=lambda node: isinstance(node, Domain))
        if not leaves or not all(isinstance(leaf, Domain) for leaf in leaves):
            raise ValueError(f"Product: expected domains, such as {{'q': Box(-1, 1), 'p': Ball(0, 2)}}, got {parts!r}")
        self.parts = parts

    def _map(self, function: Any, *states: PyTree) -> Any:
        is_domain = lambda node: isinstance(node, Domain)
        return jax.tree.map(function, self.parts, *states, is_leaf=is_domain)

    def check(self, state: PyTree) -> None:
        try:
            self._map(lambda domain, part: None, state)
        except (ValueError, TypeError, KeyError) as error:
            is_domain = lambda node: isinstance(node, Domain)
            names = jax.tree.map(lambda domain: type(domain).__name__, self.parts, is_leaf=is_domain)
            raise ValueError(
                f"domain: expected a Product whose parts are a prefix of the state {describe(state)}, got {names}"
            ) from error
        self._map(lambda domain, part: domain.check(part), state)

    def sample(self, state: PyTree, key: Any) -> State:
        count = len(jax.tree.leaves(self.parts, is_leaf=lambda node: isinstance(node, Domain)))
        keys = iter(jax.random.split(key, count))
        return self._map(lambda domain, part: domain.sample(part, next(keys)), state)

    def excess(self, state: State) -> Scalar:
        excesses = self._map(lambda domain, part: domain.excess(part), state)
        return jnp.max(jnp.stack(jax.tree.leaves(excesses)))

    def project(self, state: State) -> State:
        return self._map(lambda domain, part: domain.project(part), state)

    def half_widths(self, state: State) -> State:
        return self._map(lambda domain, part: domain.half_widths(part), state)
