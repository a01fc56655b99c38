"""Half precision inside of networks, full precision around them."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lyapunov_dsl as ld


class Spy(eqx.Module):
    """Notes what it is given, as types in its output's name would not survive."""

    weight: jax.Array
    seen: list = eqx.field(static=True)

    def __call__(self, t, state, context, *, key=None):
        self.seen.extend([t.dtype, state.dtype, context.dtype, self.weight.dtype, key is not None])
        return self.weight * state


def test_it_computes_short_and_returns_long(precision, key):
    seen = []
    module = ld.nn.MixedPrecision(Spy(jnp.ones((), precision), seen))
    out = module(jnp.zeros((), precision), jnp.ones(3, precision), jnp.ones(2, precision), key=key)
    assert seen == [jnp.bfloat16] * 4 + [True]
    assert out.dtype == precision
    assert (
        jax.grad(lambda m: jnp.sum(m(jnp.zeros(()), jnp.ones(3), jnp.ones(2))))(module).module.weight.dtype == precision
    )


def test_integers_and_structure_pass(key):
    module = ld.nn.MixedPrecision(lambda image: ld.Start(image.astype(jnp.float16) / 255, image))
    start = module(jnp.arange(3, dtype=jnp.uint8))
    assert isinstance(start, ld.Start)
    assert start.state.dtype == jnp.float32
    assert start.context.dtype == jnp.uint8


def network(key, half):
    k1, k2 = jax.random.split(key)
    encoder = ld.nn.ResNet18((1, 8, 8), 64, width=4, key=k1)
    field = ld.nn.InvariantField(ld.nn.ControlledField(4, 8, key=k2), 3.0, rate=8)
    system = ld.System(ld.nn.ControlledStart(encoder, 4, 8), field, domain=ld.Box(-3.0, 3.0))
    if half:
        system = eqx.tree_at(lambda s: (s.input.encoder, s.vector_field.inner), system, replace_fn=ld.nn.MixedPrecision)
    example = (jnp.zeros((1, 8, 8)), jnp.int32(0))
    certificate = ld.Certificate.exponential(loss=ld.cross_entropy, kappa=1)
    return ld.compile(system, certificate, example, objective=ld.MonteCarlo())


@pytest.mark.full
def test_residuals_and_gradients_are_long_and_near_those_of_full_precision(key, quick):
    x, y = jax.random.normal(key, (8, 1, 8, 8)), jnp.arange(8, dtype=jnp.int32) % 4
    losses, gradients = [], []
    for half in (False, True):
        program = network(key, half)
        loss, gradient = eqx.filter_jit(eqx.filter_value_and_grad(lambda p: p.loss(x, y, key=key)))(program)
        losses.append(loss)
        leaves = jax.tree.leaves(eqx.filter(gradient.system, eqx.is_inexact_array))
        assert {leaf.dtype for leaf in leaves} == {jnp.dtype(jnp.float32)}
        gradients.append(np.concatenate([np.ravel(leaf) for leaf in leaves]))
    assert losses[1].dtype == jnp.float32
    assert losses[1] != losses[0]
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.02)
    a, b = gradients
    assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.98


def test_parameters_stay_long_and_move_by_less_than_the_short_format_sees(key, quick):
    x, y = jax.random.normal(key, (8, 1, 8, 8)), jnp.arange(8, dtype=jnp.int32) % 4
    program = network(key, True)
    result = ld.fit(program, (x, y), optimizer=optax.sgd(1e-6), epochs=2, batch_size=8, key=key, progress=False)
    before, after = (p.system.input.encoder.module.head.dense.weight for p in (program, result.program))
    assert after.dtype == jnp.float32
    assert not jnp.array_equal(before, after)
    assert jnp.array_equal(before.astype(jnp.bfloat16), after.astype(jnp.bfloat16))


def test_statistics_of_group_norm_are_taken_in_full_precision(key):
    """In bfloat16 the variance of small noise around a large mean would be lost."""
    state = (30 + 2 * jax.random.normal(key, (32, 32, 4))).astype(jnp.bfloat16)
    moments, tangents = jax.jvp(
        ld.nn._blocks._moments, (state[:, :, None].reshape(-1, 1, 4),), (jnp.ones((1024, 1, 4), jnp.bfloat16),)
    )
    exact = np.asarray(state, np.float64)
    assert {leaf.dtype for leaf in (*moments, *tangents)} == {jnp.dtype(jnp.float32)}
    np.testing.assert_allclose(moments[0], exact.mean(), rtol=1e-6)
    np.testing.assert_allclose(moments[1], 1 / np.sqrt(exact.var() + 1e-5), rtol=1e-5)
    with jax.numpy_dtype_promotion("strict"):
        half = cast(ld.nn._blocks.GroupNorm(4))(state)
    assert half.dtype == jnp.bfloat16
    full = ld.nn._blocks.GroupNorm(4)(state.astype(jnp.float32))
    np.testing.assert_allclose(np.asarray(half, np.float32), full, atol=0.02)


def cast(module):
    return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), module)


def test_messages():
    with pytest.raises(ValueError, match="module: expected a callable, got 3"):
        ld.nn.MixedPrecision(3)
    with pytest.raises(
        ValueError, match=r"module: expected a network without bounds .* got InvariantField; wrap its inner"
    ):
        ld.nn.MixedPrecision(ld.nn.InvariantField(jnp.tanh, 1, rate=1))
    for dtype in ("bfloat", jnp.int8):
        with pytest.raises(ValueError, match="dtype: expected a floating-point dtype"):
            ld.nn.MixedPrecision(jnp.tanh, dtype)
