"""What the networks on images are made of, without mutable state, and checks of their sizes."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from .._system import Start
from .._types import is_count, is_finite, shown

_CHANNELS_A_GROUP = 16


class Convolution(eqx.Module):
    """A convolution of (H, W, channels) that keeps height and width up to its stride, without a bias, which the norm after
    it would undo.

    Channels are last because XLA's convolutions on a CPU want them there; with channels first it transposes, and keeps
    both copies for the gradient. The weight has the layout of `equinox.nn.Conv2d`: one row for each channel afterwards, which is
    what optimizers such as Nero take for a neuron.
    """

    weight: Float[Array, "after before height width"]
    stride: int = eqx.field(static=True)

    def __init__(self, before: int, after: int, size: int, stride: int = 1, *, key: Any):
        limit = 1 / math.sqrt(before * size**2)
        self.weight = jax.random.uniform(key, (after, before, size, size), minval=-limit, maxval=limit)
        self.stride = stride

    def __call__(self, state: Float[Array, "h w before"]) -> Float[Array, "h2 w2 after"]:
        side = self.weight.shape[-1] // 2
        (out,) = jax.lax.conv_general_dilated(
            state[None],
            rearrange(self.weight, "after before h w -> h w before after"),
            (self.stride, self.stride),
            [(side, side)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return out


def channels_last(state: Float[Array, "c h w"]) -> Float[Array, "h w c"]:
    """The layout inside of a block. Between two blocks the transposes cancel."""
    return rearrange(state, "c h w -> h w c")


def channels_first(state: Float[Array, "h w c"]) -> Float[Array, "c h w"]:
    """The layout of images and states."""
    return rearrange(state, "h w c -> c h w")


class GroupNorm(eqx.Module):
    """GroupNorm (Wu and He, 2018) over (H, W, channels), with the most groups that divide the channels and have at least 16
    of them.

    The function of `equinox.nn.GroupNorm`, written as η · scale + shift with one pair of numbers for a channel, so that a gradient
    needs η alone and not the arrays in between.
    """

    weight: Float[Array, " channels"]
    bias: Float[Array, " channels"]
    groups: int = eqx.field(static=True)

    def __init__(self, channels: int):
        most = max(channels // _CHANNELS_A_GROUP, 1)
        self.groups = max(n for n in range(1, most + 1) if channels % n == 0)
        self.weight, self.bias = jnp.ones(channels), jnp.zeros(channels)

    def __call__(self, state: Float[Array, "h w channels"]) -> Float[Array, "h w channels"]:
        mean, inverse = _moments(rearrange(state, "h w (g c) -> (h w) g c", g=self.groups))
        of_channels = lambda x: jnp.repeat(x, state.shape[-1] // self.groups)
        scale = self.weight.astype(mean.dtype) * of_channels(inverse)
        shift = self.bias.astype(mean.dtype) - scale * of_channels(mean)
        return (state.astype(scale.dtype) * scale[None, None] + shift[None, None]).astype(state.dtype)


@jax.custom_jvp
def _moments(x: Float[Array, "n groups c"]) -> tuple[Float[Array, " groups"], Float[Array, " groups"]]:
    """The mean of every group and 1/sqrt(variance + 1e-5), in float32 at least: sums over many pixels."""
    x = x.astype(jnp.float32) if jnp.finfo(x.dtype).bits < 32 else x
    mean = jnp.mean(x, axis=(0, 2))
    return mean, jax.lax.rsqrt(jnp.mean(jnp.square(x - mean[None, :, None]), axis=(0, 2)) + 1e-5)


@_moments.defjvp
def _moments_jvp(primals: Any, tangents: Any) -> Any:
    (x,), (dx,) = primals, tangents
    mean, inverse = _moments(x)
    x, dx = x.astype(mean.dtype), dx.astype(mean.dtype)
    # Half the tangent of the variance is the covariance of x and dx. In this form its transpose keeps x and not x - mean.
    slope = jnp.mean(dx, axis=(0, 2))
    covariance = jnp.mean(x * dx, axis=(0, 2)) - mean * slope
    return (mean, inverse), (slope, -(inverse**3) * covariance)


class Stem(eqx.Module):
    """A 3x3 convolution, GroupNorm and ReLU: the image at full size becomes the initial state."""

    convolution: Convolution
    norm: GroupNorm

    def __init__(self, before: int, after: int, *, key: Any):
        self.convolution = Convolution(before, after, 3, key=key)
        self.norm = GroupNorm(after)

    def __call__(self, image: Float[Array, "channels height width"]) -> Start:
        return Start(channels_first(jax.nn.relu(self.norm(self.convolution(channels_last(image))))))


class BasicBlock(eqx.Module):
    """relu(norm(conv(relu(norm(conv(η))))) + shortcut(η)): one step of a residual network.

    The shortcut is the identity where the shape stays, a strided 1x1 convolution and GroupNorm where it does not.
    """

    first: Convolution
    first_norm: GroupNorm
    second: Convolution
    second_norm: GroupNorm
    shortcut: tuple[Convolution, GroupNorm] | None

    def __init__(self, before: int, after: int, stride: int, *, key: Any):
        k1, k2, k3 = jax.random.split(key, 3)
        self.first = Convolution(before, after, 3, stride, key=k1)
        self.second = Convolution(after, after, 3, key=k2)
        self.first_norm, self.second_norm = GroupNorm(after), GroupNorm(after)
        changes = stride != 1 or before != after
        self.shortcut = (Convolution(before, after, 1, stride, key=k3), GroupNorm(after)) if changes else None

    def __call__(self, state: Float[Array, "before h w"], context: Any = None) -> Float[Array, "after h2 w2"]:
        before = channels_last(state)
        hidden = jax.nn.relu(self.first_norm(self.first(before)))
        hidden = self.second_norm(self.second(hidden))
        if self.shortcut is not None:
            change, norm = self.shortcut
            before = norm(change(before))
        return channels_first(jax.nn.relu(hidden + before))


class Head(eqx.Module):
    """The mean over all pixels and a dense layer."""

    dense: eqx.nn.Linear

    def __init__(self, channels: int, features: int, *, key: Any):
        self.dense = eqx.nn.Linear(channels, features, key=key)

    def __call__(self, state: Float[Array, "channels h w"]) -> Float[Array, " features"]:
        return self.dense(jnp.mean(state, axis=(1, 2)))


def check_image(shape: Any) -> tuple[int, int, int]:
    """The shape of an image. Raises `ValueError` where it is none."""
    if not (isinstance(shape, tuple | list) and len(shape) == 3 and all(is_count(size) for size in shape)):
        raise ValueError(
            f"shape: expected (channels, height, width) of one image, three positive whole numbers, got {shown(shape)}"
        )
    return tuple(shape)


def check_positive(**numbers: Any) -> None:
    """Raises `ValueError` for the first of these that is not a positive finite number."""
    for name, number in numbers.items():
        if not (is_finite(number) and number > 0):
            raise ValueError(f"{name}: expected a positive finite number, got {number!r}")
