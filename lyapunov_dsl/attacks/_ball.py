"""The set an attack may search: a ball around each input, cut by the range of valid inputs."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from .._mesh import Team
from .._types import check_norm, describe, is_count, is_finite, shown


class Ball(eqx.Module):
    """Points within `radius` of each center that lie between `low` and `high`.

    A center outside of `clip` stays within its ball, too: it may only move towards the range. In the ∞-norm `low` and
    `high` are the ball itself, rounded inwards, so that no rounding leads out of it.
    """

    center: Float[Array, "batch ..."]
    low: Float[Array, "batch ..."]
    high: Float[Array, "batch ..."]
    radius: Float[Array, ""]
    norm: str = eqx.field(static=True)

    def project(self, point: Float[Array, "batch ..."]) -> Float[Array, "batch ..."]:
        """Into the ball (up to rounding in the 2-norm), then into the range (exactly)."""
        if self.norm == "2":
            offset = point - self.center
            limits = jnp.finfo(point.dtype)
            share = self.radius * (1 - 4 * limits.eps) / jnp.maximum(lengths(offset, "2"), limits.tiny)
            point = self.center + offset * expand(jnp.minimum(1, share), offset)
        return jnp.clip(point, self.low, self.high)

    def random(self, keys: Any) -> Float[Array, "batch ..."]:
        """A point for each key: uniform in the cube, or a uniform direction with a uniform length."""
        shape, dtype = self.center.shape[1:], self.center.dtype
        ways, sizes = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        if self.norm == "inf":
            share = jax.vmap(lambda k: jax.random.uniform(k, shape, dtype, -1, 1))(ways)
        else:
            normal = jax.vmap(lambda k: jax.random.normal(k, shape, dtype))(ways)
            share = direction(normal, "2") * expand(jax.vmap(lambda k: jax.random.uniform(k, (), dtype))(sizes), normal)
        return self.project(self.center + self.radius * share)


def around(x: np.ndarray, radius: float, norm: str, clip: Any, team: Team) -> Ball:
    """The balls around concrete inputs, on the devices that attack them."""
    lowest, highest = _range(clip, x.dtype)
    low, high = np.minimum(x, lowest), np.maximum(x, highest)
    if norm == "inf":
        wide = x.astype(np.longdouble)
        low = np.maximum(low, _rounded(wide - radius, x.dtype, np.inf))
        high = np.minimum(high, _rounded(wide + radius, x.dtype, -np.inf))
    edge = _rounded(np.asarray(radius, np.longdouble), x.dtype, -np.inf)
    center, low, high = team.spread((x, low, high))
    return Ball(center, low, high, team.spare(jnp.asarray(edge)), norm)


def unbounded(ball: Ball, clip: Any) -> Ball:
    """The range without the ball, whose points it does not project."""
    lowest, highest = _range(clip, ball.center.dtype)
    low, high = jnp.minimum(ball.center, lowest), jnp.maximum(ball.center, highest)
    return Ball(ball.center, low, high, ball.radius, ball.norm)


def _range(clip: Any, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """The ends of the range, rounded inwards."""
    low, high = (-np.inf, np.inf) if clip is None else clip
    lowest, highest = np.asarray(low, np.longdouble), np.asarray(high, np.longdouble)
    return _rounded(lowest, dtype, np.inf), _rounded(highest, dtype, -np.inf)


def _rounded(value: np.ndarray, dtype: Any, towards: float) -> np.ndarray:
    """To a narrower dtype in one direction."""
    near = value.astype(dtype)
    beyond = near < value if towards > 0 else near > value
    return np.where(beyond, np.nextafter(near, near.dtype.type(towards)), near)


def settle(ball: Ball, point: Any) -> np.ndarray:
    """A point of the ball in exact arithmetic: what rounding led out of it is moved back, towards the center."""
    x = np.asarray(ball.center)
    out = np.clip(np.asarray(point), np.asarray(ball.low), np.asarray(ball.high))
    if ball.norm == "inf":
        return out
    wide = x.astype(np.longdouble)
    offset = out.astype(np.longdouble) - wide
    share = np.asarray(ball.radius).astype(np.longdouble) * (1 - 1e-15)
    length = np.sqrt(np.sum(offset**2, axis=tuple(range(1, x.ndim)), keepdims=True))
    scaled = offset * np.minimum(1, share / np.maximum(length, np.finfo(x.dtype).tiny))
    moved = (wide + scaled).astype(x.dtype)
    moved = np.where(np.abs(moved.astype(np.longdouble) - wide) > np.abs(scaled), np.nextafter(moved, x), moved)
    return np.where(length > share, moved, out)


def expand(v: Array, x: Array) -> Array:
    """One value an example, with axes to go along with a batch of inputs."""
    return v.reshape(v.shape + (1,) * (x.ndim - 1))


def lengths(offset: Array, norm: str) -> Array:
    """The norm of each example, shape (batch,)."""
    axes = tuple(range(1, offset.ndim))
    return jnp.max(jnp.abs(offset), axis=axes) if norm == "inf" else jnp.sqrt(jnp.sum(offset**2, axis=axes))


def direction(gradient: Array, norm: str) -> Array:
    """The direction of steepest ascent of length 1; 0 where the gradient is 0, and in entries that are not finite: a point
    of NaN would count as found. The length is taken without underflow."""
    gradient = jnp.where(jnp.isfinite(gradient), gradient, jnp.zeros_like(gradient))
    if norm == "inf":
        return jnp.sign(gradient)
    largest = jnp.max(jnp.abs(gradient), axis=tuple(range(1, gradient.ndim)))
    scaled = gradient / expand(jnp.where(largest > 0, largest, jnp.ones_like(largest)), gradient)
    size = lengths(scaled, "2")
    return scaled / expand(jnp.where(size > 0, size, jnp.ones_like(size)), gradient)


def select(condition: Bool[Array, "batch"], yes: Array, no: Array) -> Array:
    """`jnp.where` by example."""
    return jnp.where(expand(condition, yes), yes, no)


def check_ball(radius: Any, norm: Any, clip: Any) -> float:
    """Raises `ValueError` for what is no ball or no range; gives the radius as a number."""
    check_norm(norm)
    if not (is_finite(radius) and radius > 0):
        raise ValueError(f"radius: expected a positive number, got {shown(radius)}")
    pair = isinstance(clip, (tuple, list)) and len(clip) == 2 and all(np.ndim(c) == 0 for c in clip)
    if clip is not None and not (pair and clip[0] < clip[1]):
        raise ValueError(f"clip: expected (lowest, highest) or None, got {shown(clip)}")
    return float(radius)


def check_counts(**counts: Any) -> None:
    """Raises `ValueError` for what is no positive integer."""
    for name, count in counts.items():
        if not is_count(count):
            raise ValueError(f"{name}: expected a positive integer, got {shown(count)}")


def check_inputs(x: Any) -> np.ndarray:
    """Inputs on the host in the default precision. Raises `ValueError` where they are no batch of floats."""
    x = np.asarray(x)
    x = x.astype(jax.dtypes.canonicalize_dtype(x.dtype))
    if not np.issubdtype(x.dtype, np.floating):
        raise ValueError(f"x: expected floating-point inputs, got {describe(x)}")
    if x.ndim < 2 or x.size == 0:
        raise ValueError(f"x: expected inputs with a leading batch axis, got {describe(x)}")
    if not np.isfinite(x).all():
        raise ValueError(f"x: expected finite inputs, got {int((~np.isfinite(x)).sum())} values that are not")
    return x
