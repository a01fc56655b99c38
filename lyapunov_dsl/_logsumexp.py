"""Log-sum-exp, its derivative, and the margins of a class as operations of their own, so that the bounds of
`lyapunov_dsl.bounds` recognize them.

Over the last axis, with a = argmax d: lse(d) = d_a + log1p(Σ_{j≠a} exp(d_j - d_a)), and m(d, t) = Σ softmax(d)_j t_j, the derivative of
lse at d along t. Where d_a is exactly 0, both keep their relative precision down to the smallest floats.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir


def logsumexp(d: Any) -> Any:
    """log Σ exp(d_j) over the last axis."""
    return _logsumexp_p.bind(d)


def softmax_mean(d: Any, t: Any) -> Any:
    """Σ softmax(d)_j t_j over the last axis, of two arrays of one shape."""
    return _softmax_mean_p.bind(d, t)


def margins(z: Any, label: Any) -> Any:
    """z - z[label] over the last axis, exactly 0 at the label, whose own derivative does not cancel then either."""
    return _margins_p.bind(z, jnp.asarray(label, jnp.int32))


def _places(d: Any) -> Any:
    return jax.lax.broadcasted_iota(jnp.int32, d.shape, d.ndim - 1)


def _margins(z: Any, label: Any) -> Any:
    own = _places(z) == label[..., None]
    mine = jnp.sum(jnp.where(own, z, jnp.zeros_like(z)), axis=-1, keepdims=True)
    return jnp.where(own, jnp.zeros_like(z), z - mine)


def _parts(d: Any) -> tuple[Any, Any, Any]:
    """Where the largest exponent is, that exponent, and the other exponentials relative to it."""
    is_top = _places(d) == jax.lax.argmax(d, d.ndim - 1, jnp.int32)[..., None]
    largest = jnp.sum(jnp.where(is_top, d, jnp.zeros_like(d)), axis=-1, keepdims=True)
    return is_top, largest, jnp.where(is_top, jnp.zeros_like(d), jnp.exp(d - largest))


def _logsumexp(d: Any) -> Any:
    _, largest, others = _parts(d)
    return largest[..., 0] + jnp.log1p(jnp.sum(others, axis=-1))


def _softmax(d: Any) -> Any:
    is_top, _, others = _parts(d)
    return jnp.where(is_top, jnp.ones_like(d), others) / (1 + jnp.sum(others, axis=-1, keepdims=True))


def _softmax_mean(d: Any, t: Any) -> Any:
    return jnp.sum(_softmax(d) * t, axis=-1)


def _new(name: str, function: Any, keeps: bool = False) -> Primitive:
    """A primitive that computes a function over the last axis of its operands, which it removes or keeps."""
    primitive = Primitive(name)
    primitive.def_impl(jax.jit(function))
    primitive.def_abstract_eval(lambda d, *_: ShapedArray(d.shape if keeps else d.shape[:-1], d.dtype))
    mlir.register_lowering(primitive, mlir.lower_fun(function, multiple_results=False))

    def batched(operands: Any, axes: Any) -> tuple[Any, int]:
        size = next(v.shape[axis] for v, axis in zip(operands, axes, strict=True) if axis is not None)
        front = [batching.bdim_at_front(v, axis, size) for v, axis in zip(operands, axes, strict=True)]
        return primitive.bind(*front), 0

    batching.primitive_batchers[primitive] = batched
    return primitive


_logsumexp_p = _new("lyapunov_dsl_logsumexp", _logsumexp)
_margins_p = _new("lyapunov_dsl_margins", _margins, keeps=True)
_softmax_mean_p = _new("lyapunov_dsl_softmax_mean", _softmax_mean)


def _logsumexp_jvp(primals: Any, tangents: Any) -> tuple[Any, Any]:
    (d,), (t,) = primals, tangents
    return logsumexp(d), softmax_mean(d, ad.instantiate_zeros(t))


def _softmax_mean_jvp(primals: Any, tangents: Any) -> tuple[Any, Any]:
    (d, t), (d_dot, t_dot) = primals, tangents
    mean = softmax_mean(d, t)
    out = None if isinstance(t_dot, ad.Zero) else softmax_mean(d, t_dot)
    if not isinstance(d_dot, ad.Zero):
        # The covariance of t and the change of d.
        moved = softmax_mean(d, (t - mean[..., None]) * d_dot)
        out = moved if out is None else out + moved
    return mean, out


def _margins_jvp(primals: Any, tangents: Any) -> tuple[Any, Any]:
    (z, label), (z_dot, _) = primals, tangents
    return margins(z, label), margins(ad.instantiate_zeros(z_dot), label)


def _margins_transpose(cotangent: Any, z: Any, label: Any) -> tuple[Any, None]:
    assert ad.is_undefined_primal(z)
    own = _places(cotangent) == label[..., None]
    others = jnp.where(own, jnp.zeros_like(cotangent), cotangent)
    return jnp.where(own, -jnp.sum(others, axis=-1, keepdims=True), others), None


def _softmax_mean_transpose(cotangent: Any, d: Any, t: Any) -> tuple[None, Any]:
    assert ad.is_undefined_primal(t)
    return None, cotangent[..., None] * _softmax(d)


ad.primitive_jvps[_logsumexp_p] = _logsumexp_jvp
ad.primitive_jvps[_softmax_mean_p] = _softmax_mean_jvp
ad.primitive_transposes[_softmax_mean_p] = _softmax_mean_transpose
ad.primitive_jvps[_margins_p] = _margins_jvp
ad.primitive_transposes[_margins_p] = _margins_transpose
