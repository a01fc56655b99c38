"""Norms and Lipschitz constants, never below the truth; layers that are 1-Lipschitz by construction."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lyapunov_dsl as ld
from lyapunov_dsl import bounds

pytestmark = pytest.mark.usefixtures("quick")


@pytest.mark.parametrize("shape", [(3, 3), (1, 5), (20, 4), (4, 20)])
def test_spectral_norms_are_above_the_truth_and_near_it(precision, shape):
    for seed, size in ((0, 1.0), (1, 1e-20), (2, 1e20)):
        matrix = jnp.asarray(size * np.random.default_rng(seed).normal(size=shape), precision)
        truth = np.linalg.norm(np.asarray(matrix, np.float64), 2)
        assert truth <= float(bounds.spectral_norm(matrix)) <= truth * 1.001


def test_spectral_norms_at_the_edges():
    assert bounds.spectral_norm(jnp.zeros((2, 3))) == 0
    assert bounds.spectral_norm(jnp.array([[jnp.nan, 0.0]])) == jnp.inf
    assert bounds.spectral_norm(jnp.array([[jnp.inf, 0.0]])) == jnp.inf
    slope = jax.grad(lambda m: bounds.spectral_norm(m))(jnp.diag(jnp.array([3.0, 1.0])))
    np.testing.assert_allclose(slope, np.diag([1.0, 0.0]), atol=1e-3)


@pytest.mark.parametrize(("stride", "padding", "side"), [(1, 1, 6), (2, 0, 7), (1, 0, 5)])
def test_norms_of_convolutions_are_above_the_truth(stride, padding, side):
    with jax.enable_x64(True):
        kernel = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 3, 3)))
        pads = [(padding, padding)] * 2

        def convolve(x):
            return jax.lax.conv_general_dilated(x.reshape(1, 2, side, side), kernel, (stride, stride), pads).ravel()

        truth = np.linalg.norm(jax.jacobian(convolve)(jnp.zeros(2 * side * side)), 2)
        for_this, for_all = bounds.convolution_norm(kernel, side + 2 * padding), bounds.convolution_norm(kernel)
        assert truth <= for_this <= 1.7 * stride * truth
        assert truth <= for_all <= 1.7 * stride * truth
        # No periodic convolution of any size exceeds the bound for all.
        large = bounds.convolution_norm(kernel, 48)
        assert large <= for_all <= 1.1 * large


def network_of(weights):
    def network(x):
        for w in weights[:-1]:
            x = jnp.tanh(w @ x)
        return weights[-1] @ x

    return network


def test_stacks_of_layers_are_between_the_truth_and_the_product():
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=s) / np.sqrt(s[1]) for s in ((16, 8), (16, 16), (4, 16))]
    found = bounds.stack_norm(weights, steps=50)
    product = np.prod([np.linalg.norm(w, 2) for w in weights])
    x = jnp.asarray(rng.normal(size=(500, 8)) * 0.3)
    steepest = np.linalg.norm(jax.vmap(jax.jacobian(network_of(weights)))(x), 2, axis=(1, 2)).max()
    assert steepest <= found < 0.8 * product
    assert bounds.stack_norm(weights[:1]) == pytest.approx(np.linalg.norm(weights[0], 2), rel=1e-3)
    # The identity is an activation with slope 1: the constant is that of the product of the matrices at least.
    assert np.linalg.norm(weights[2] @ weights[1] @ weights[0], 2) <= found
    # Slopes that may be negative: the product.
    assert bounds.stack_norm(weights, slopes=(-0.2, 1.1)) == pytest.approx(product * 1.1**2, rel=1e-3)
    with pytest.raises(ValueError, match="follow each other"):
        bounds.stack_norm([weights[0], weights[0]])


@pytest.mark.parametrize("norm", ["2", "inf"])
def test_local_constants_hold_between_any_two_points(norm):
    rng = np.random.default_rng(1)
    network = network_of([rng.normal(size=s) for s in ((6, 4), (3, 6))])
    box = bounds.Box(jnp.full(4, -0.2), jnp.full(4, 0.3))
    found = float(
        bounds.lipschitz(lambda x, y: network(x) * y, box, bounds.Box(jnp.zeros(()), jnp.ones(())), norm=norm)
    )
    p, q = (jnp.asarray(rng.uniform(-0.2, 0.3, (2000, 4)), jnp.float32) for _ in range(2))
    order = 2 if norm == "2" else np.inf
    change = np.linalg.norm(jax.vmap(network)(p) - jax.vmap(network)(q), order, axis=1)
    steepest = (change / np.linalg.norm(p - q, order, axis=1)).max()
    assert steepest <= found < 4 * steepest
    # It tends to the truth with the box.
    small = float(bounds.lipschitz(network, bounds.Box.around(jnp.zeros(4), 1e-4), norm=norm))
    assert small == pytest.approx(np.linalg.norm(jax.jacobian(network)(jnp.zeros(4)), order), rel=0.02)


def test_what_lipschitz_refuses():
    with pytest.raises(ValueError, match="norm: expected"):
        bounds.lipschitz(jnp.sin, bounds.Box(jnp.zeros(1), jnp.ones(1)), norm="1")
    with pytest.raises(ValueError, match="argnum: expected"):
        bounds.lipschitz(jnp.sin, jnp.zeros(1))
    assert bounds.lipschitz(jnp.sqrt, bounds.Box(jnp.zeros(1), jnp.ones(1))) == jnp.inf


LAYERS = {
    "Cayley": (lambda key: ld.nn.CayleyLinear(8, 5, key=key), (8,)),
    "Cayley up": (lambda key: ld.nn.CayleyLinear(5, 8, key=key), (5,)),
    "SLL": (lambda key: ld.nn.SLLLinear(6, 12, key=key), (6,)),
    "AOL": (lambda key: ld.nn.AOLConv2d(3, 4, 3, padding=1, key=key), (3, 6, 6)),
    "AOL strided": (lambda key: ld.nn.AOLConv2d(2, 3, 4, stride=2, key=key), (2, 8, 8)),
    "MaxMin": (lambda key: ld.nn.MaxMin(), (7,)),
}


@pytest.mark.parametrize("size", [1.0, 30.0])
@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_1_lipschitz_for_any_parameters(name, size, key):
    make, shape = LAYERS[name]
    with jax.enable_x64(True):
        layer = make(key)
        layer = jax.tree.map(lambda v: size * v + 0.1 if eqx.is_inexact_array(v) else v, layer)
        x = jax.random.normal(key, (50, *shape))
        jacobian = jax.vmap(jax.jacobian(lambda v: layer(v.reshape(shape)).ravel()))(x.reshape(50, -1))
        steepest = np.linalg.norm(jacobian, 2, axis=(1, 2)).max()
        assert steepest <= 1 + 1e-9
        found = float(ld.nn.gain(layer))
        assert steepest <= found <= 1.01
        same = ld.nn.plain(layer)
        np.testing.assert_allclose(jax.vmap(same)(x), jax.vmap(layer)(x), atol=1e-9)
        assert steepest <= float(ld.nn.gain(same)) <= 1.01


def test_gains_are_those_of_the_weights_at_hand(key):
    network = ld.nn.Lipschitz(ld.nn.CayleyLinear(4, 4, key=key), jax.nn.relu, eqx.nn.Linear(4, 2, key=key))
    weight = np.linalg.norm(np.asarray(network.layers[2].weight, np.float64), 2)
    assert weight <= float(network.gain()) <= 1.01 * weight
    spoiled = eqx.tree_at(lambda n: n.layers[0].weight, ld.nn.plain(network), jnp.eye(4) * 3)
    assert float(spoiled.gain()) >= 3 * weight
    with pytest.raises(ValueError, match="Lipschitz constant that is known"):
        ld.nn.Lipschitz(eqx.nn.LayerNorm(4)).gain()


@pytest.mark.parametrize(
    "function",
    [jnp.floor, lambda x: jnp.where(x > 0.5, 1.0, 0.0), lambda x: x.astype(int) * 1.0, jax.lax.stop_gradient],
    ids=["floor", "where", "integers", "stop_gradient"],
)
def test_a_function_that_jumps_has_no_constant(function):
    assert bounds.lipschitz(function, bounds.Box(jnp.zeros(2), jnp.ones(2))) == jnp.inf
    assert bounds.lipschitz(jax.nn.relu, bounds.Box(-jnp.ones(2), jnp.ones(2)), norm=("2", "inf")) == pytest.approx(1)


def test_what_is_nothing_stays_so_where_it_is_traced():
    """Of a matrix that is traced nobody knows that it is 0, but that it is below the smallest normal number."""
    tiny = np.finfo(np.float32).tiny
    for matrix in (np.zeros((3, 2), np.float32), np.full((3, 2), tiny / 4, np.float32)):
        found = float(jax.jit(bounds.spectral_norm)(matrix))
        assert np.linalg.norm(matrix.astype(np.float64)) <= found <= 1e-30
    norm = jax.jit(lambda box: bounds.lipschitz(lambda x: 0 * x, box))
    assert float(norm(bounds.Box(jnp.zeros(2), jnp.ones(2)))) <= 1e-15
