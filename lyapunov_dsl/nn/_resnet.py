"""ResNet-18 for small images, as an encoder and as a discrete system."""

from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Float

from .._system import DiscreteSystem
from .._types import check_sizes
from ._blocks import BasicBlock, Head, Stem, check_image

_STRIDES = (1, 2, 2, 2)


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
    least 16 channels in each (a single one where there are fewer than 32), for Wu and He as good as a fixed number of them.

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
