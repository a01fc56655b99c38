"""Layers that are 1-Lipschitz in the Euclidean norm by construction, for networks that are meant to be certified.

Training moves their parameters freely; [`lyapunov_dsl.nn.plain`][] turns them into ordinary layers of the weights that these stand
for, which is what should be deployed and proved. Their norms are bounded from above by `gain`, with the rounding of the weights in it.
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .. import bounds
from .._types import Key, kind, speaks


class MaxMin(eqx.Module):
    """Sorts pairs of entries along the first axis: (a, b) becomes (max(a, b), min(a, b)) (Anil et al. 2019). 1-Lipschitz, and it
    keeps the norm of gradients, which ReLU does not. An entry that is left over stays as it is."""

    def __call__(self, x: Float[Array, "entries ..."], *, key: Key | None = None) -> Float[Array, "entries ..."]:
        half = x.shape[0] // 2
        a, b, rest = x[:half], x[half : 2 * half], x[2 * half :]
        return jnp.concatenate([jnp.maximum(a, b), jnp.minimum(a, b), rest])

    def gain(self) -> float:
        """1: two sorted pairs are no farther apart than the pairs were."""
        return 1.0


@jax.jit
def _cayley(matrix: Float[Array, "size size"]) -> Float[Array, "size size"]:
    a = matrix - matrix.T
    eye = jnp.eye(len(a), dtype=a.dtype)
    return jnp.linalg.solve((eye + a).T, (eye - a).T).T


class CayleyLinear(eqx.Module):
    """A dense layer whose weight has orthonormal rows or columns (Trockman and Kolter 2021).

    **Arguments:**

    - `inputs`, `outputs`: sizes.
    - `key`: keyword only.

    The weight is a part of the orthogonal matrix (I - A)(I + A)⁻¹, A = M - Mᵀ.
    """

    matrix: Float[Array, "size size"]
    bias: Float[Array, " outputs"]
    inputs: int = eqx.field(static=True)
    outputs: int = eqx.field(static=True)

    def __init__(self, inputs: int, outputs: int, *, key: Any):
        size = max(inputs, outputs)
        self.inputs, self.outputs = inputs, outputs
        self.matrix = jax.random.normal(key, (size, size)) / math.sqrt(size)
        self.bias = jnp.zeros(outputs)

    @property
    def weight(self) -> Float[Array, "outputs inputs"]:
        """The weight that the parameters stand for, computed anew at every call."""
        return _cayley(self.matrix)[: self.outputs, : self.inputs]

    def __call__(self, x: Float[Array, " inputs"], *, key: Key | None = None) -> Float[Array, " outputs"]:
        return self.weight @ x + self.bias

    def gain(self) -> Float[Array, ""]:
        """The Lipschitz constant in the Euclidean norm, from above: 1 and what rounding added to the weight."""
        return bounds.spectral_norm(self.weight)

    def plain(self) -> Any:
        """The `equinox.nn.Linear` of this weight and bias."""
        # Its own weights would only be drawn to be replaced.
        layer = eqx.filter_eval_shape(eqx.nn.Linear, self.inputs, self.outputs, key=jax.random.key(0))
        return eqx.tree_at(lambda v: (v.weight, v.bias), layer, (self.weight, self.bias))


class SLLLinear(eqx.Module):
    """A residual layer x - 2 W D⁻¹ relu(Wᵀ x + b), with D_ii = Σ_j |WᵀW|_ij q_j / q_i (SDP-based Lipschitz layer, Araujo et al.
    2023), which is 1-Lipschitz for every W and q > 0.

    **Arguments:**

    - `size`: of x.
    - `width`: columns of W.
    - `key`: keyword only.
    """

    matrix: Float[Array, "size width"]
    bias: Float[Array, " width"]
    scale: Float[Array, " width"]

    def __init__(self, size: int, width: int, *, key: Any):
        self.matrix = jax.random.normal(key, (size, width)) / math.sqrt(size)
        self.bias, self.scale = jnp.zeros(width), jnp.zeros(width)

    def _diagonal(self) -> Any:
        q = jnp.exp(self.scale)
        return jnp.sum(jnp.abs(self.matrix.T @ self.matrix) * q / q[:, None], axis=1) + 1e-6

    def __call__(self, x: Float[Array, " size"], *, key: Key | None = None) -> Float[Array, " size"]:
        return x - 2 * self.matrix @ (jax.nn.relu(self.matrix.T @ x + self.bias) / self._diagonal())

    def plain(self) -> Any:
        """A layer x + V relu(W x + b) of the weights that the parameters stand for."""
        return _Residual(self.matrix.T, self.bias, -2 * self.matrix / self._diagonal())

    def gain(self) -> Float[Array, ""]:
        """The Lipschitz constant in the Euclidean norm, from above, of the weights as they are."""
        return self.plain().gain()


class _Residual(eqx.Module):
    """x + V relu(W x + b)."""

    weight: Array
    bias: Array
    back: Array

    def __call__(self, x: Array, *, key: Key | None = None) -> Array:
        return x + self.back @ jax.nn.relu(self.weight @ x + self.bias)

    def gain(self) -> Any:
        """Slopes in [0, 1] give, with any diagonal T >= 0,

        |Δx + VΔz|² <= |Δx|² + 2 Δz'(V' + TW) Δx + Δz'(V'V - 2T) Δz.

        T is fitted to make V' + TW small, and |Δz| <= ‖W‖ |Δx|.
        """
        wide = jnp.result_type(float)
        w, v = self.weight.astype(wide), self.back.astype(wide)
        # T_ii from V e_i = -T_ii (row i of W), by least squares.
        t = jnp.maximum(-jnp.sum(v.T * w, axis=1) / jnp.maximum(jnp.sum(w * w, axis=1), 1e-30), 0)
        rest = bounds.spectral_norm(v.T + t[:, None] * w)
        unit = float(jnp.finfo(wide).eps)
        gram = v.T @ v - 2 * jnp.diag(t)
        over = jnp.linalg.eigvalsh(gram)[-1]
        slack = 64 * len(t) * unit * (jnp.sum(v * v) + jnp.sum(t))
        # |Δz| <= |W| |Δx|.
        steep = bounds.spectral_norm(w)
        square = 1 + (jnp.maximum(over, 0) + slack) * steep**2 + 2 * rest * steep
        return jnp.sqrt(square) * (1 + 8 * unit)


class AOLConv2d(eqx.Module):
    """A convolution that is 1-Lipschitz with any stride and any padding by zeros (almost orthogonal layers, Prach and Lampert 2022).

    **Arguments:**

    - `inputs`, `outputs`: channels.
    - `kernel`: side of the kernel.
    - `stride`, `padding`: as of `equinox.nn.Conv2d`.
    - `key`: keyword only.

    Input channel i is scaled by (Σ_j Σ_p |v_ij(p)|)^(-1/2), where v_ij = Σ_o K_oi ⋆ K_oj are the correlations of the kernels.
    """

    kernel: Float[Array, "outputs inputs height width"]
    bias: Float[Array, " outputs"]
    stride: int = eqx.field(static=True)
    padding: int = eqx.field(static=True)

    def __init__(self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, padding: int = 0, key: Any):
        self.kernel = jax.random.normal(key, (outputs, inputs, kernel, kernel)) / kernel
        self.bias, self.stride, self.padding = jnp.zeros(outputs), stride, padding

    @property
    def weight(self) -> Float[Array, "outputs inputs height width"]:
        """The kernel that the parameters stand for, computed anew at every call."""
        k = self.kernel
        height, width = k.shape[2:]
        # Kernels as images, with the outputs as channels that are summed over.
        images, filters = jnp.swapaxes(k, 0, 1), jnp.swapaxes(k, 0, 1)
        pads = [(height - 1, height - 1), (width - 1, width - 1)]
        correlations = jax.lax.conv_general_dilated(images, filters, (1, 1), pads, precision="highest")
        total = jnp.sum(jnp.abs(correlations), axis=(1, 2, 3))
        return k / jnp.sqrt(total + 1e-12)[None, :, None, None]

    def __call__(self, x: Float[Array, "inputs _ _"], *, key: Key | None = None) -> Float[Array, "outputs _ _"]:
        pads = [(self.padding, self.padding)] * 2
        out = jax.lax.conv_general_dilated(x[None], self.weight, (self.stride, self.stride), pads)[0]
        return out + self.bias[:, None, None]

    def gain(self) -> Float[Array, ""]:
        """The Lipschitz constant in the Euclidean norm, from above, for images of any size."""
        return bounds.convolution_norm(self.weight)

    def plain(self) -> Any:
        """The `equinox.nn.Conv2d` of this kernel and bias."""
        outputs, inputs, kernel, _ = self.kernel.shape
        make = lambda key: eqx.nn.Conv2d(inputs, outputs, kernel, self.stride, self.padding, key=key)
        layer = eqx.filter_eval_shape(make, jax.random.key(0))
        return eqx.tree_at(lambda v: (v.weight, v.bias), layer, (self.weight, self.bias[:, None, None]))


class Lipschitz(eqx.Module):
    """Layers in a row, with a bound of their Lipschitz constant.

    **Arguments:**

    - `layers`: of this module; `jnp.ravel` and other functions that move numbers, ReLU and `MaxMin` count as 1-Lipschitz.
    """

    layers: tuple[Any, ...]

    def __init__(self, *layers: Any):
        self.layers = layers

    def __call__(self, x: Array, *, key: Key | None = None) -> Array:
        for layer in self.layers:
            x = layer(x)
        return x

    def gain(self) -> Float[Array, ""]:
        """A Lipschitz constant in the Euclidean norm, from above, of the weights as they are: about 1. Raises
        `ValueError` where a layer's is not known ([`lyapunov_dsl.nn.gain`][])."""
        out = jnp.ones((), jnp.result_type(float))
        for layer in self.layers:
            # A product that underflows is below the least normal number.
            info = jnp.finfo(out.dtype)
            out = jnp.maximum(out * gain(layer) * (1 + 4 * float(info.eps)), float(info.tiny))
        return out


# Functions that are 1-Lipschitz in every norm.
NONEXPANSIVE = (jnp.ravel, jax.nn.relu, jnp.tanh, jax.nn.tanh)


def gain(layer: Any) -> Any:
    """A Lipschitz constant of a layer in the Euclidean norm, from above.

    **Arguments:**

    - `layer`: a module with a method `gain`, an `equinox.nn.Linear`, a `Conv2d` padded by zeros without groups and dilation, a `Lambda` of
        one of these, or one of `jnp.ravel`, `jax.nn.relu`, `jnp.tanh`.

    **Returns:** a scalar, never below the constant of the layer with the weights as they are.

    **Raises:** `ValueError` for a layer whose constant is not known, and for a class that inherits `gain` and replaces `__call__`.
    """
    if hasattr(layer, "gain"):
        if not speaks(layer, "gain"):
            raise ValueError(f"gain: {kind(layer)} replaces the __call__ of the class that it inherits gain from")
        return layer.gain()
    # A subclass may do something else.
    if type(layer) is eqx.nn.Linear:
        return bounds.spectral_norm(layer.weight)
    if (
        type(layer) is eqx.nn.Conv2d
        and layer.groups == 1
        and set(layer.dilation) == {1}
        and layer.padding_mode == "ZEROS"
    ):
        return bounds.convolution_norm(layer.weight)
    if type(layer) is eqx.nn.Lambda:
        return gain(layer.fn)
    if any(layer is f for f in NONEXPANSIVE):
        return 1.0
    raise ValueError(f"gain: expected a layer with a Lipschitz constant that is known, got {layer!r}")
