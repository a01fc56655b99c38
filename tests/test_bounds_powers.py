"""Powers whose exponents the program computes: derivatives of x**y, and constants of which it is made."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lyapunov_dsl import bounds

EXPONENTS = (1.5, 0.3, 2.5, -0.7, 1.1, -1.3)


def contains(function, lower, upper, most=1.1):
    """The bounds hold at dense samples, and are at most that much wider than these."""
    x = np.linspace(lower, upper, 4001).astype(lower.dtype)
    values = np.asarray(jax.jit(jax.vmap(function))(x), float)
    for rounding in ("float", "real"):
        found = bounds.bound(function, bounds.Box(lower, upper), rounding=rounding)
        low, high = np.asarray(found.lower, float), np.asarray(found.upper, float)
        if rounding == "float":
            assert (low <= values.min(0)).all()
            assert (values.max(0) <= high).all()
        width = values.max(0) - values.min(0)
        assert (high - low <= most * width + 1e-4 * np.abs(values).max(0)).all()


@pytest.mark.parametrize("y", EXPONENTS)
def test_derivatives_of_powers(precision, y):
    lower, upper = np.asarray([0.5], precision), np.asarray([1.25], precision)
    first = jax.grad(lambda x: jnp.sum(x**y))
    contains(first, lower, upper)
    contains(jax.grad(lambda x: jnp.sum(first(x))), lower, upper)


def test_exponents_that_differ(precision):
    y = jnp.asarray([1.5, 2.0, -0.5, 1.5], precision)
    lower = np.asarray([0.5, 0.25, 1.0, 2.0], precision)
    contains(lambda x: x**y, lower, lower + precision.type(0.5))
    contains(jax.grad(lambda x: jnp.sum(x**y)), lower, lower + precision.type(0.5))


@pytest.mark.parametrize("base", [1.7, 0.2])
def test_powers_of_a_constant_and_their_derivatives(precision, base):
    lower, upper = np.asarray([-1.0], precision), np.asarray([0.75], precision)
    power = lambda x: base**x
    first = jax.grad(lambda x: jnp.sum(power(x)))
    for function in (power, first, jax.grad(lambda x: jnp.sum(first(x)))):
        contains(function, lower, upper)


@pytest.mark.parametrize("lower", [1e-30, 1e-3, 1.0, 1e3])
@pytest.mark.parametrize("y", [-2.3, -0.4, 0.4, 2.3])
def test_an_exponent_with_slack_holds_for_all_within(lower, y):
    """The slack of the rule against exact differences, on either side of 1, where it changes its formula."""
    from lyapunov_dsl.bounds._interval import Interval
    from lyapunov_dsl.bounds._powers import _moved

    with jax.enable_x64(True):
        for upper in (lower, 3 * lower, 1e4 * lower):
            for off in (1e-7, 1e-3, 0.1):
                slack = float(_moved(Interval(jnp.asarray(lower), jnp.asarray(upper)), y, off))
                x = np.geomspace(lower, upper, 301)
                moved = [np.abs(x ** (y + off * s) - x**y).max() for s in (-1, -0.5, 0.5, 1)]
                assert max(moved) <= slack * (1 + 1e-12) + 1e-12 * (x**y).max()


def test_an_exponent_that_may_be_zero_says_nothing():
    from lyapunov_dsl.bounds._interval import Interval
    from lyapunov_dsl.bounds._powers import _moved

    assert np.isinf(_moved(Interval(jnp.asarray(0.5), jnp.asarray(2.0)), 0.1, 0.2))


def test_sums_of_constants_that_are_exact_stay_constants():
    from lyapunov_dsl.bounds._graph import Const, trace

    difference = lambda x, y: lambda v: (v, jax.lax.sub(jnp.full_like(v, x), jnp.full_like(v, y)))
    x = np.float32(0.1)
    for pair, exact in (((1.5, 1.0), True), ((0.3, 0.25), True), ((0.3, 1e-8), False), ((1.0, 1e-20), False)):
        graph, _ = trace(difference(*pair), x)
        (_, constant) = graph.outputs
        assert isinstance(constant, Const)
        assert (constant.slack is None) == exact
