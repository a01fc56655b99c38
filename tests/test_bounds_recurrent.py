"""Recurrent cells: convex combinations stay between what they combine, and bounds of many steps are tight and take seconds."""

import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from lyapunov_dsl import bounds

FORMS = {
    "n + z (h - n)": lambda z, h, n: n + z * (h - n),
    "z h + (1 - z) n": lambda z, h, n: z * h + (1 - z) * n,
    "(1 - z) n + h z": lambda z, h, n: (1 - z) * n + h * z,
    "n - z (n - h)": lambda z, h, n: n - z * (n - h),
    "(h - n) z + n": lambda z, h, n: (h - n) * z + n,
}
LOOKALIKES = {
    "n - z (h - n)": lambda z, h, n: n - z * (h - n),
    "n + z (n - h)": lambda z, h, n: n + z * (n - h),
    "h + z (h - n)": lambda z, h, n: h + z * (h - n),
    "z h - (1 - z) n": lambda z, h, n: z * h - (1 - z) * n,
    "z h + (2 - z) n": lambda z, h, n: z * h + (2 - z) * n,
    "z h + (1 - h) n": lambda z, h, n: z * h + (1 - h) * n,
    "z h + (z - 1) n": lambda z, h, n: z * h + (z - 1) * n,
}


def ends(centers, halves, dtype):
    return [bounds.Box.around(np.asarray(c, dtype), np.asarray(r, dtype)) for c, r in zip(centers, halves, strict=True)]


def drawn(boxes, seed, count=400):
    """Values of boxes, their corners among them."""
    rng = np.random.default_rng(seed)
    out = []
    for box in boxes:
        low, high = np.asarray(box.lower), np.asarray(box.upper)
        share = rng.choice([0.0, 1.0, 0.5, rng.random()], size=(count, *low.shape))
        share = np.where(rng.random(share.shape) < 0.3, rng.random(share.shape), share)
        with np.errstate(over="ignore", invalid="ignore"):
            value = np.where(share == 1, high, low + (high - low) * share.astype(low.dtype))
        out.append(np.clip(np.where(np.isfinite(value), value, low), low, high).astype(low.dtype))
    return out


def holds(found, values):
    """Whether values lie in a range; only one without ends holds what is not finite."""
    low, high = np.asarray(found.lower), np.asarray(found.upper)
    values = np.asarray(values, np.float64)
    anything = (low == -np.inf) & (high == np.inf)
    return bool((((values >= low) & (values <= high)) | anything).all())


@pytest.mark.parametrize("form", FORMS)
def test_a_convex_combination_stays_between(form):
    function = FORMS[form]
    h, n = jnp.asarray([-3.0, 2.0, 0.5], jnp.float32), jnp.asarray([1.0, 1.5, 0.5], jnp.float32)
    boxes = [bounds.Box(0 * h, 1 + 0 * h), bounds.Box.around(h, 0.25), bounds.Box.around(n, 0.25)]
    for method in ("ibp", "crown-ibp", "crown"):
        found = bounds.bound(function, *boxes, method=method)
        least, most = jnp.minimum(h, n) - 0.25, jnp.maximum(h, n) + 0.25
        assert (found.lower >= least - 1e-4).all()
        assert (found.upper <= most + 1e-4).all()
        assert holds(found, jax.jit(jax.vmap(function))(*drawn(boxes, 0)))


@pytest.mark.parametrize("form", LOOKALIKES)
def test_what_only_looks_like_one_is_none(form):
    boxes = ends([[0.5, 0.5], [3.0, -1.0], [-2.0, 4.0]], [[0.5, 0.25], [1.0, 0.5], [0.5, 1.0]], np.float32)
    for method in ("ibp", "crown"):
        found = bounds.bound(LOOKALIKES[form], *boxes, method=method)
        assert holds(found, jax.jit(jax.vmap(LOOKALIKES[form]))(*drawn(boxes, 1)))


@settings(max_examples=15, deadline=None)
@given(
    form=st.sampled_from(sorted({**FORMS, **LOOKALIKES})),
    logs=st.lists(st.floats(-1, 1), min_size=6, max_size=6),
    signs=st.lists(st.sampled_from([-1, 0, 1]), min_size=3, max_size=3),
    double=st.booleans(),
    gate=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_combinations_of_any_scale(form, logs, signs, double, gate, seed):
    """Up to the largest numbers, where h - n overflows, and down to those that are flushed to 0."""
    function = {**FORMS, **LOOKALIKES}[form]
    with jax.enable_x64(double):
        dtype = np.float64 if double else np.float32
        span = 0.999 * np.log10(float(np.finfo(dtype).max))
        sizes = [dtype(10.0 ** (span * v)) for v in logs]
        centers = [dtype(s) * c for s, c in zip(signs, sizes[:3], strict=True)]
        halves = list(sizes[3:])
        if gate:
            centers[0], halves[0] = dtype(0.5), dtype(0.5)
        tops = np.finfo(dtype).max
        boxes = []
        with np.errstate(over="ignore"):
            for c, r in zip(centers, halves, strict=True):
                boxes.append(bounds.Box(jnp.asarray(max(c - r, -tops), dtype), jnp.asarray(min(c + r, tops), dtype)))
        values = drawn(boxes, seed)
        run = jax.jit(jax.vmap(function))(*values)
        plain = function(*(jnp.asarray(v) for v in values))
        for method in ("ibp", "crown"):
            found = bounds.bound(function, *boxes, method=method)
            assert holds(found, run)
            assert holds(found, plain)


def test_common_factors_of_a_combination_may_overflow():
    """c h and c n may be computed as c (z h + (1 - z) n), which overflows where c is small and h is large."""

    def function(z, h, n):
        one, other = 1e-30 * h, 1e-30 * n
        return z * one + (1 - z) * other

    boxes = ends([0.5, 1e38, 3e38], [0.5, 1e38, 1e37], np.float32)
    found = bounds.bound(function, *boxes)
    assert holds(found, jax.jit(jax.vmap(function))(*drawn(boxes, 3)))


def unrolled(cell, inputs):
    return jax.lax.scan(lambda h, x: (cell(x, h), None), jnp.zeros(cell.hidden_size, inputs.dtype), inputs)[0]


def recurrent(steps):
    cell = eqx.nn.GRUCell(4, 8, key=jax.random.key(0))
    inputs = jax.random.normal(jax.random.key(1), (steps, 4))
    box = bounds.Box.around(inputs, 0.05)
    moved = inputs + jax.random.uniform(jax.random.key(2), (4000, *inputs.shape), minval=-0.05, maxval=0.05)
    corners = inputs + 0.05 * jax.random.rademacher(jax.random.key(3), (4000, *inputs.shape), inputs.dtype)
    function = lambda x: unrolled(cell, x)
    values = jax.jit(jax.vmap(function))(jnp.clip(jnp.concatenate([moved, corners]), box.lower, box.upper))
    return function, box, values


@pytest.mark.parametrize("double", [False, True])
def test_a_recurrent_network_of_some_steps(double):
    with jax.enable_x64(double):
        function, box, values = recurrent(4)
        truth = values.max(0) - values.min(0)
        for method, ratio in (("crown", 3),) if double else (("ibp", 8), ("crown-ibp", 6), ("crown", 3)):
            found = bounds.bound(function, box, method=method)
            assert holds(found, values)
            assert ((found.upper - found.lower) / truth).max() < ratio


def test_ranges_alone_stay_finite_for_any_number_of_steps():
    """The state is between -1 and 1 for every input: it begins at 0, and is mixed with values of tanh."""
    cell = eqx.nn.GRUCell(4, 8, key=jax.random.key(4))
    box = bounds.Box(jnp.full((15, 4), -100.0), jnp.full((15, 4), 100.0))
    found = bounds.bound(lambda x: unrolled(cell, x), box, method="ibp")
    assert (found.upper <= 1 + 1e-3).all()
    assert (found.lower >= -1 - 1e-3).all()


@pytest.mark.slow
def test_twenty_steps_take_seconds():
    function, box, values = recurrent(20)
    bounds.bound(function, box)
    begin = time.process_time()
    found = bounds.bound(function, box)
    jax.block_until_ready(found.lower)
    # A pass for each of seven operations in a step took five times as long.
    assert time.process_time() - begin < 30
    assert holds(found, values)
    assert ((found.upper - found.lower) / (values.max(0) - values.min(0))).max() < 3
