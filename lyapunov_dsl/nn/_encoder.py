"""A small convolutional encoder."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from .._types import check_key, check_sizes, describe


class ConvEncoder(eqx.Module):
    """Two 3x3 convolutions, the second with stride 2, then a dense layer; GELU between them. It has no mutable state.

    **Arguments:**

    - `shape`: (channels, height, width) of an image.
    - `features`: the length of the vector it returns.
    - `width`: channels of the first convolution; the second has twice as many.
    - `key`: a PRNG key.

    **Raises:** `ValueError` for sizes that are not positive, and for an image of other channels or of integers.
    """

    first: eqx.nn.Conv2d
    second: eqx.nn.Conv2d
    dense: eqx.nn.Linear

    def __init__(self, shape: tuple[int, int, int], features: int, *, width: int = 16, key: Any):
        check_key(key)
        if not (isinstance(shape, tuple | list) and len(shape) == 3):
            raise ValueError(f"shape: expected (channels, height, width) of an image, got {shape!r}")
        channels, height, columns = shape
        check_sizes(channels=channels, height=height, columns=columns, features=features, width=width)
        k1, k2, k3 = jax.random.split(key, 3)
        self.first = eqx.nn.Conv2d(channels, width, 3, padding=1, key=k1)
        self.second = eqx.nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, key=k2)
        self.dense = eqx.nn.Linear(2 * width * -(-height // 2) * -(-columns // 2), features, key=k3)

    def __call__(self, image: Float[Array, "channels height width"]) -> Float[Array, " features"]:
        """One image to one vector, with a GELU after the dense layer as well."""
        if image.ndim != 3 or image.shape[0] != self.first.in_channels or not jnp.issubdtype(image.dtype, jnp.floating):
            raise ValueError(
                f"ConvEncoder: expected an image float[{self.first.in_channels},height,width], channels first, got {describe(image)}"
            )
        hidden = jax.nn.gelu(self.second(jax.nn.gelu(self.first(image))))
        return jax.nn.gelu(self.dense(rearrange(hidden, "c h w -> (c h w)")))
