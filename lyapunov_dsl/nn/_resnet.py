"""ResNet-18 for small images, as an encoder and as a discrete system."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._system import DiscreteSystem, Start
from .._types import shown

_STRIDES = (1, 2, 2, 2)
_CHANNELS_A_GROUP = 16


def convolution(before: int, after: int, size: int, stride: int = 1, *, key: Any) -> eqx.nn.Conv2d:
    """A convolution that keeps height and width up to its stride; without a bias, which the norm after it would undo."""
    return eqx.nn.Conv2d(before, after, size, stride=stride, padding=size // 2, use_bias=False, key=key)


def group_norm(channels: int) -> eqx.nn.GroupNorm:
    """GroupNorm with the most groups that divide the channels and have at least 16 of them."""
    groups = max(n for n in range(1, max(channels // _CHANNELS_A_GROUP, 1) + 1) if channels % n == 0)
    return eqx.nn.GroupNorm(groups, channels)


def is_size(value: Any) -> bool:
    """Whether a value is a positive whole number."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value > 0)


def check_sizes(**sizes: Any) -> None:
    """Raises `ValueError` for the first of these that is not a positive whole number."""
    for name, size in sizes.items():
        if not is_size(size):
            raise ValueError(f"{name}: expected a positive whole number, got {size!r}")


def check_image(shape: Any) -> tuple[int, int, int]:
    """The shape of an image. Raises `ValueError` where it is none."""
    if not (isinstance(shape, tuple | list) and len(shape) == 3 and all(is_size(size) for size in shape)):
        raise ValueError(
            f"shape: expected (channels, height, width) of one image, three positive whole numbers, got {shown(shape)}"
        )
    return tuple(shape)


class Stem(eqx.Module):
    """A 3x3 convolution, GroupNorm and ReLU: the image at full size becomes the initial state."""

    convolution: eqx.nn.Conv2d
    norm: eqx.nn.GroupNorm

    def __init__(self, before: int, after: int, *, key: Any):
        self.convolution = convolution(before, after, 3, key=key)
        self.norm = group_norm(after)

    def __call__(self, image: Float[Array, "channels height width"]) -> Start:
        return Start(jax.nn.relu(self.norm(self.convolution(image))))


class BasicBlock(eqx.Module):
    """relu(norm(conv(relu(norm(conv(η))))) + shortcut(η)): one step of a residual network.

    The shortcut is the identity where the shape stays, a strided 1x1 convolution and GroupNorm where it does not.
    """

    first: eqx.nn.Conv2d
    first_norm: eqx.nn.GroupNorm
    second: eqx.nn.Conv2d
    second_norm: eqx.nn.GroupNorm
    shortcut: eqx.nn.Sequential | None

    def __init__(self, before: int, after: int, stride: int, *, key: Any):
        k1, k2, k3 = jax.random.split(key, 3)
        self.first = convolution(before, after, 3, stride, key=k1)
        self.second = convolution(after, after, 3, key=k2)
        self.first_norm, self.second_norm = group_norm(after), group_norm(after)
        changes = stride != 1 or before != after
        self.shortcut = (
            eqx.nn.Sequential([convolution(before, after, 1, stride, key=k3), group_norm(after)]) if changes else None
        )

    def __call__(self, state: Float[Array, "before h w"], context: Any = None) -> Float[Array, "after h2 w2"]:
        hidden = jax.nn.relu(self.first_norm(self.first(state)))
        hidden = self.second_norm(self.second(hidden))
        return jax.nn.relu(hidden + (state if self.shortcut is None else self.shortcut(state)))


class Head(eqx.Module):
    """The mean over all pixels and a dense layer."""

    dense: eqx.nn.Linear

    def __init__(self, channels: int, features: int, *, key: Any):
        self.dense = eqx.nn.Linear(channels, features, key=key)

    def __call__(self, state: Float[Array, "channels h w"]) -> Float[Array, " features"]:
        return self.dense(jnp.mean(state, axis=(1, 2)))


class ResNet18(eqx.Module):
    """ResNet-18 for small images (He et al., 2015): image -> vector, without mutable state.

    A 3x3 convolution, without the pooling that images of ImageNet's size need; four stages of two basic blocks with width
    (1, 2, 4, 8) channels, the first block of stages 2 to 4 with stride 2; the mean over all pixels; a dense layer.
    11.2 million parameters at the default width with 10 features; `width=8` is a network for a CPU, of 0.18 million.

    Every convolution is followed by GroupNorm (Wu and He, 2018) in place of BatchNorm. Its statistics are those of one
    image, so that it has no running averages to carry along, is the same function in training and in inference, and x
    alone decides what happens to x: under batch statistics the potential of one example would depend on the others.
    LayerNorm over all channels is the case of one group; instance normalization (one channel a group) loses what is in
    the mean, and all of an image that shrinks to one pixel. The groups are as many as divide the channels with at
    least 16 channels in each, for Wu and He as good as a fixed number of them.

    **Arguments:**

    - `shape`: (channels, height, width) of an image, all at least 1.
    - `features`: the length of the vector it returns.
    - `width`: channels of the first stage.
    - `key`: a PRNG key.

    **Raises:** `ValueError` for a shape that is not three positive whole numbers, or other sizes that are none.
    """

    stem: Stem
    blocks: tuple[BasicBlock, ...]
    head: Head

    def __init__(self, shape: Any, features: Any, *, width: Any = 64, key: Any):
        check_sizes(features=features, width=width)
        channels, *_ = check_image(shape)
        stem_key, head_key, *keys = jax.random.split(key, 2 + 2 * len(_STRIDES))
        self.stem = Stem(channels, width, key=stem_key)
        blocks, before = [], width
        for i, stride in enumerate(_STRIDES):
            after = width * 2**i
            blocks.append(BasicBlock(before, after, stride, key=keys[2 * i]))
            blocks.append(BasicBlock(after, after, 1, key=keys[2 * i + 1]))
            before = after
        self.blocks = tuple(blocks)
        self.head = Head(before, features, key=head_key)

    def __call__(self, image: Float[Array, "channels height width"]) -> Float[Array, " features"]:
        """One image to one vector, nothing applied after the dense layer."""
        hidden = self.stem(image).state
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(hidden)


def resnet18(shape: Any, classes: Any, *, width: Any = 64, key: Any) -> DiscreteSystem:
    """ResNet-18 as a discrete system (eq. 4): the first convolution, its eight blocks as steps, the classifier as readout.

    Five blocks keep the shape of the state and are dynamics, the first ones of stages 2 to 4 change it. The potential of a
    state therefore goes through the later ones of those three, and then the readout.

    **Arguments:**

    - `shape`, `classes`, `width`, `key`: as for [`lyapunov_dsl.nn.ResNet18`][].

    **Returns:** a [`lyapunov_dsl.DiscreteSystem`][] from images to logits.

    **Raises:** `ValueError` as `ResNet18` does.
    """
    network = ResNet18(shape, classes, width=width, key=key)
    return DiscreteSystem(network.stem, network.blocks, network.head)
