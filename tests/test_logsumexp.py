"""Log-sum-exp, the mean under a softmax, and margins: values, derivatives, batches, both precisions."""

import itertools
from typing import Any

import hypothesis
import hypothesis.extra.numpy as st_numpy
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from lyapunov_dsl import _logsumexp
from lyapunov_dsl._logsumexp import logsumexp, margins, softmax_mean

FEW = hypothesis.settings(max_examples=30)
mp = mpmath.mp.clone()
mp.prec = 200

# Near and far, with ties likely; a shift of the largest by 1e4 leaves nothing of the others.
EXPONENTS = st_numpy.arrays(
    np.float64, 5, elements=st.one_of(st.sampled_from([0.0, 1.0, -40.0, 100.0, 1e4, -1e4]), st.floats(-100, 100))
)
VALUES = st_numpy.arrays(np.float64, 5, elements=st.floats(-10, 10))

value, mean = jax.jit(logsumexp), jax.jit(softmax_mean)
gradient, hessian = jax.jit(jax.grad(logsumexp)), jax.jit(jax.hessian(logsumexp))
mean_gradients = jax.jit(jax.grad(softmax_mean, argnums=(0, 1)))


def weights(d: np.ndarray) -> tuple[list[Any], Any]:
    """Softmax and log-sum-exp of the floats, without rounding."""
    terms = [mp.exp(mp.mpf(float(v))) for v in d]
    return [t / mp.fsum(terms) for t in terms], mp.log(mp.fsum(terms))


def close(got: Any, expected: Any, eps: float, size: float) -> None:
    assert abs(mp.mpf(float(got)) - expected) <= eps * size, (got, expected)


@FEW
@hypothesis.given(EXPONENTS)
def test_values_and_gradients_of_log_sum_exp(precision, d):
    d = jnp.asarray(d, precision)
    eps = float(jnp.finfo(precision).eps)
    p, lse = weights(np.asarray(d))
    top = float(jnp.max(d))
    # Relative to what is added to the largest exponent.
    close(value(d), lse, 8 * eps, abs(float(lse)) + float(lse - top))
    reach = 16 + float(jnp.max(d) - jnp.min(d))
    for got, expected in zip(gradient(d).tolist(), p, strict=True):
        close(got, expected, eps, reach * float(expected) + 1e-30)


def test_the_largest_exponent_being_zero_nothing_cancels(precision):
    d = jnp.asarray([-40.0, 0.0, -41.0], precision)
    _, lse = weights(np.asarray(d))
    assert float(value(d)) == pytest.approx(float(lse), rel=64 * float(jnp.finfo(precision).eps))
    assert float(value(d)) > 0
    # At the least exponents that have an exponential, the flat sum would be 1 and its logarithm 0.
    assert float(value(jnp.asarray([0.0, -80.0], precision))) == pytest.approx(np.exp(-80.0), rel=1e-4)


@FEW
@hypothesis.given(EXPONENTS, VALUES)
def test_values_and_gradients_of_the_mean(precision, d, t):
    d, t = jnp.asarray(d, precision), jnp.asarray(t, precision)
    eps = float(jnp.finfo(precision).eps)
    p, _ = weights(np.asarray(d))
    exact = mp.fsum(w * mp.mpf(float(v)) for w, v in zip(p, np.asarray(t), strict=True))
    # Beyond the reach of the exponential everything is the largest.
    room = 16 + 2 * min(float(jnp.max(d) - jnp.min(d)), 110.0)
    size = 1e-30 + room * float(jnp.max(jnp.abs(t)))
    close(mean(d, t), exact, eps, size)
    by_d, by_t = mean_gradients(d, t)
    for j in range(len(p)):
        close(by_t[j], p[j], eps, room)
        close(by_d[j], p[j] * (mp.mpf(float(t[j])) - exact), eps, 4 * size)


@FEW
@hypothesis.given(EXPONENTS)
def test_second_derivatives(precision, d):
    d = jnp.clip(jnp.asarray(d, precision), -100, 100)
    p, _ = weights(np.asarray(d))
    p = np.asarray([float(v) for v in p])
    room = 4e3 * float(jnp.finfo(precision).eps)
    np.testing.assert_allclose(hessian(d), np.diag(p) - np.outer(p, p), atol=room)


def test_derivatives_of_all_orders_and_modes_agree_with_jax(key, quick):
    with jax.enable_x64(True):
        d, t, s = jax.random.normal(key, (3, 4))
        ours = lambda d, t: logsumexp(d) + softmax_mean(d, jnp.sin(t)) ** 2
        plain = lambda d, t: jax.nn.logsumexp(d) + jnp.sum(jax.nn.softmax(d) * jnp.sin(t)) ** 2
        along = lambda f: lambda d, t: jax.jvp(f, (d, t), (s, t))[1]
        modes = [
            along,
            lambda f: jax.grad(f, argnums=(0, 1)),
            lambda f: jax.grad(along(f), argnums=(0, 1)),
            lambda f: along(jax.grad(f, argnums=1)),
            lambda f: jax.grad(jax.checkpoint(f)),
            lambda f: lambda d, t: jax.linearize(f, d, t)[1](s, d),
        ]
        for mode in modes:
            expected = jax.tree.leaves(jax.jit(mode(plain))(d, t))
            for got, want in zip(jax.tree.leaves(jax.jit(mode(ours))(d, t)), expected, strict=True):
                np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "function", [logsumexp, softmax_mean, lambda d, t: margins(d, t[..., 0] > 0)], ids=["lse", "mean", "margins"]
)
def test_any_operands_may_be_mapped_along_any_axis(function, key, quick):
    count = 1 if function is logsumexp else 2
    operands = jax.random.normal(key, (2, 3, 4, 5))[:count]
    for axes in itertools.product((None, 0, 1, 2), repeat=count):
        if all(axis is None for axis in axes):
            continue
        # The mapped axis has length 3 wherever it is.
        moved = [v[0] if axis is None else jnp.moveaxis(v, 0, axis) for v, axis in zip(operands, axes, strict=True)]
        expected = jnp.stack(
            [
                function(*(v[0] if axis is None else v[i] for v, axis in zip(operands, axes, strict=True)))
                for i in range(3)
            ]
        )
        np.testing.assert_allclose(jax.vmap(function, axes)(*moved), expected, rtol=1e-5, atol=1e-6)


def test_mapped_derivatives(key, quick):
    d, t = jax.random.normal(key, (2, 3, 5))
    each = jnp.stack([jax.grad(lambda d, t=u: softmax_mean(d, t))(v) for v, u in zip(d, t, strict=True)])
    np.testing.assert_allclose(jax.vmap(jax.grad(softmax_mean))(d, t), each, rtol=1e-5, atol=1e-6)
    shared = jax.vmap(jax.grad(softmax_mean, argnums=1), (None, 0))(d[0], t)
    np.testing.assert_allclose(shared, jnp.broadcast_to(jax.nn.softmax(d[0]), (3, 5)), rtol=1e-5)


@FEW
@hypothesis.given(EXPONENTS, st.integers(0, 4))
def test_margins_are_differences_and_zero_at_the_label(precision, z, label):
    z = jnp.asarray(z, precision)
    got = np.asarray(margins(z, label))
    # Subnormal differences may be flushed to zero.
    least = float(jnp.finfo(precision).tiny)
    np.testing.assert_allclose(got, np.asarray(z) - np.asarray(z)[label], rtol=0, atol=least)
    assert got[label] == 0
    np.testing.assert_array_equal(np.asarray(margins(jnp.stack([z, -z]), jnp.asarray([label, 0])))[0], got)


def test_derivatives_of_margins(precision, key, quick):
    z, t = jax.random.normal(key, (2, 4), precision)
    for label in range(4):
        matrix = np.eye(4) - np.eye(4)[label]
        of = lambda z, label=label: margins(z, label)
        np.testing.assert_array_equal(jax.jacfwd(of)(z), matrix)
        np.testing.assert_array_equal(jax.jacrev(of)(z), matrix)
        np.testing.assert_array_equal(jax.jvp(of, (z,), (t,))[1], margins(t, label))


def test_a_label_of_no_class_is_no_difference():
    np.testing.assert_array_equal(margins(jnp.asarray([1.0, 2.0]), -1), [1.0, 2.0])


@pytest.mark.parametrize(
    ("d", "lse"),
    [
        ([np.inf, 0.0], np.inf),
        ([-np.inf, 0.0], 0.0),
        ([3e38, 3e38, -3e38], 3e38),
        ([-3e38, -3e38], -3e38),
        ([1e-42, 0.0], np.log(2)),
        ([5.0], 5.0),
        ([np.nan, 0.0], np.nan),
    ],
)
def test_extreme_exponents(precision, d, lse):
    np.testing.assert_allclose(logsumexp(jnp.asarray(d, precision)), lse, rtol=1e-6)


def test_types_and_shapes(precision):
    d = jnp.zeros((2, 3), precision)
    for out, shape in ((logsumexp(d), (2,)), (softmax_mean(d, d), (2,)), (margins(d, jnp.asarray([0, 2])), (2, 3))):
        assert out.dtype == precision
        assert out.shape == shape
    abstract = jax.eval_shape(_logsumexp.logsumexp, jax.ShapeDtypeStruct((4, 2, 3), precision))
    assert (abstract.shape, abstract.dtype) == ((4, 2), precision)
