"""Derivatives of LayerNorm: bounds within five times of what they are, and sound where a variance is close to 0."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lyapunov_dsl import bounds


def derivatives(size, weights):
    layer = eqx.nn.LayerNorm(size)
    return {
        "grad": jax.grad(lambda x: jnp.sum(weights * layer(x))),
        "jvp": lambda x: jax.jvp(layer, (x,), (weights,))[1],
    }


def samples(box, count, key):
    low, high = box.lower, box.upper
    share = jax.random.uniform(key, (count, *low.shape), low.dtype)
    corners = jax.random.bernoulli(jax.random.fold_in(key, 1), 0.5, share.shape)
    faces = jax.random.bernoulli(jax.random.fold_in(key, 2), 0.5, share.shape)
    share = jnp.where(faces, corners.astype(low.dtype), share)
    return jnp.clip(low + share * (high - low), low, high)


def extremes(function, box, values, steps=15):
    """Least and largest values found: of samples, and of ascent from the best of them."""
    jacobian, run = jax.jit(jax.vmap(jax.jacfwd(function))), jax.jit(jax.vmap(function))
    results = run(values)
    found = []
    for sign, best in ((1, results.argmax(0)), (-1, results.argmin(0))):
        point, top = values[best], sign * jnp.diagonal(results[best])
        rows = jnp.arange(len(best))
        for _ in range(steps):
            slope = jacobian(point)[rows, rows]
            point = jnp.clip(point + sign * 0.3 * (box.upper - box.lower) * jnp.sign(slope), box.lower, box.upper)
            top = jnp.maximum(top, sign * jnp.diagonal(run(point)))
        found.append(sign * top)
    return found[1], found[0]


@pytest.mark.parametrize("name", ["grad", "jvp"])
@pytest.mark.parametrize("size", [4, 16])
def test_derivatives_of_layer_norm_are_tight(name, size):
    for seed in (0, 2):
        center, weights = (jax.random.normal(jax.random.key(s), (size,)) for s in (seed, seed + 100))
        function = derivatives(size, weights)[name]
        box = bounds.Box.around(center, 0.1)
        least, most = extremes(function, box, samples(box, 2000, jax.random.key(7)))
        found = bounds.bound(function, box)
        assert (found.lower <= least).all()
        assert (found.upper >= most).all()
        # Measured: at most 2.2.
        assert ((found.upper - found.lower) / (most - least)).max() < 3


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("center", ["equal", "tiny", "large", "zero", "mixed"])
def test_derivatives_of_layer_norm_hold_at_any_scale(double, center):
    with jax.enable_x64(double):
        dtype = np.float64 if double else np.float32
        at = {
            "equal": np.ones(3),
            "tiny": np.asarray([1.0, 2.0, -1.0]) * 1e-20,
            "large": np.asarray([1.0, -2.0, 1.5]) * 1e15,
            "zero": np.zeros(3),
            "mixed": np.asarray([1e-10, 1e4, -3.0]),
        }[center].astype(dtype)
        weights = jnp.asarray([1.0, -2.0, 0.5], dtype)
        for radius in (0.0, 1e-3 * float(np.abs(at).max()) + 1e-12):
            box = bounds.Box.around(at, radius)
            values = samples(box, 400, jax.random.key(1))
            for function in derivatives(3, weights).values():
                found = bounds.bound(function, box, method="crown")
                low, high = np.asarray(found.lower), np.asarray(found.upper)
                for results in (jax.jit(jax.vmap(function))(values), jnp.stack([function(v) for v in values[:8]])):
                    results = np.asarray(results)
                    anything = (low == -np.inf) & (high == np.inf)
                    assert (((results >= low) & (results <= high)) | anything).all()


@pytest.mark.parametrize("other", [0.0, 1.0])
@pytest.mark.parametrize("scale", [1 / 3, 0.1])
def test_a_mean_of_squares_beside_a_number(other, scale):
    """Above the number the derivative of the larger of the two is that of the mean, and at it either one's, or their mean."""

    def slope(x):
        return jax.grad(lambda v: jnp.maximum(scale * jnp.sum(v * v), other))(x)

    for middle in (0.0, 1.0, 1.8, 3.0):
        box = bounds.Box.around(np.asarray([middle, 0.5, -0.5], np.float32), 0.2)
        values = samples(box, 500, jax.random.key(2))
        results, found = np.asarray(jax.jit(jax.vmap(slope))(values)), bounds.bound(slope, box)
        assert (results >= found.lower).all()
        assert (results <= found.upper).all()
        if middle == 3.0 and (scale > 0.2 or other == 0):
            # Linear: no wider than the box makes it.
            assert (found.upper - found.lower <= 2 * scale * 0.4 * 1.01).all()


def test_one_that_is_evaluated_anew_may_differ_from_the_maximum():
    """Of a product and a sum, a compiler may round the product in one use and not in the other."""

    def slope(x):
        return jax.grad(lambda v: jnp.sum(jnp.maximum(0.1 * v + v * v, 0.0)))(x)

    box = bounds.Box(jnp.full(3, 1.0), jnp.full(3, 2.0))
    found = bounds.bound(slope, box)
    assert (found.lower <= 0).all()
