"""What functions the bounds know: ends of regions of any kind, functions over the whole range of their type, arrays, constants,
and one sentence for all that is refused."""

import fractions
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import optax
import pytest
from conftest import quickly

from lyapunov_dsl import bounds
from lyapunov_dsl.bounds import Ball, Box

mp = mpmath.mp.clone()
mp.prec = 200
F = np.float32
A = np.array([[2.0, 1.0], [1.0, 3.0]], F)


# --- Ends of regions

ENDS = {
    "floats": lambda: Box(-30.0, 30.0),
    "ints": lambda: Box(-30, 30),
    "a float and an int": lambda: Box(-30, 30.0),
    "NumPy scalars": lambda: Box(np.float64(-30), np.int32(30)),
    "weak arrays": lambda: Box(jnp.asarray(-30.0), jnp.asarray(30.0)),
    "a weak and a strong array": lambda: Box(-30.0, jnp.asarray(30.0, jnp.result_type(float))),
}


@pytest.mark.parametrize("name", ENDS)
def test_numbers_as_ends_are_like_arrays(precision, name):
    spread = lambda x: jax.nn.logsumexp(jnp.stack([x, 2 * x, -x]))
    array = bounds.bound(spread, Box(jnp.asarray(-30, precision), jnp.asarray(30, precision)))
    found = bounds.bound(spread, ENDS[name]())
    assert ENDS[name]().lower.dtype == precision
    assert (found.lower, found.upper) == (array.lower, array.upper)
    assert found.upper < 61


@hypothesis.settings(max_examples=100)
@hypothesis.given(st.floats(allow_nan=False, allow_infinity=False), st.floats(0, 1e300), st.booleans())
def test_ends_that_a_type_does_not_have_are_rounded_outward(low, width, wide):
    high = low + width
    hypothesis.assume(math.isfinite(high))
    exact = fractions.Fraction
    inside = lambda a, b: (
        (a == -math.inf or exact(float(a)) <= exact(low)) and (b == math.inf or exact(high) <= exact(float(b)))
    )
    with jax.enable_x64(wide):
        for box in (Box(low, high), Box([low], np.array([high])), Box(jnp.asarray(-jnp.inf, F), high)):
            assert inside(np.asarray(box.lower, float).min(), np.asarray(box.upper, float).max())
        with np.errstate(over="ignore"):
            huge = np.isinf(np.float64(low).astype(np.float64 if wide else np.float32))
        if huge:
            with pytest.raises(ValueError, match="expected a finite center"):
                Ball(low, 0.0)
        else:
            ball = Ball(low, 0.0).ranges()
            assert float(ball.lower) <= low <= float(ball.upper)


def test_decimals_are_inside_of_what_is_around_them():
    for center, radius in ((0.1, 0.2), (0.3, 1e-9), (16777217, 0), (1, 1)):
        box, ball = Box.around(center, radius), Ball(center, radius).ranges()
        for low, high in ((box.lower, box.upper), (ball.lower, ball.upper)):
            assert fractions.Fraction(float(low)) <= fractions.Fraction(center) - fractions.Fraction(radius)
            assert fractions.Fraction(float(high)) >= fractions.Fraction(center) + fractions.Fraction(radius)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Box(np.array([0, 1]), np.array([1, 2])),
        lambda: Box(True, False),
        lambda: Box(1j, 2j),
        lambda: Box(None, 1.0),
        lambda: Box("0", "1"),
        lambda: Box(10**400, 10**401),
        lambda: Box(jnp.zeros(2), 1.0),
        lambda: Box.around(jnp.zeros(2, int), 1.0),
        lambda: Ball(1j, 1.0),
    ],
)
def test_other_ends_are_refused(make):
    with pytest.raises(ValueError, match="expected"):
        make()


# --- Functions of numbers, over all of their type


def _edge(function: Callable) -> Callable:
    return lambda x: function(x) if abs(x) < 1 else mp.sign(x) * mp.inf if abs(x) == 1 else mp.nan


def _capped(function: Callable, sign: Callable) -> Callable:
    return lambda x: function(x) if abs(x) < 2000 else sign(x) * mp.inf


def _real(function: Callable) -> Callable:
    return lambda x: found if isinstance(found := function(x), mp.mpf) else mp.nan


def _modulo(x: Any) -> Any:
    rest = fractions.Fraction(float(x)) % fractions.Fraction(0.75)
    return mp.mpf(rest.numerator) / rest.denominator


FUNCTIONS: dict[str, tuple[Callable, Callable]] = {
    "tan": (jnp.tan, mp.tan),
    "sinh": (jnp.sinh, _capped(mp.sinh, mp.sign)),
    "cosh": (jnp.cosh, _capped(mp.cosh, lambda x: 1)),
    "asinh": (jax.lax.asinh, mp.asinh),
    "acosh": (jax.lax.acosh, _real(mp.acosh)),
    "atanh": (jax.lax.atanh, _edge(mp.atanh)),
    "asin": (jax.lax.asin, _real(mp.asin)),
    "acos": (jax.lax.acos, _real(mp.acos)),
    "mod": (lambda x: x % 0.75, _modulo),
    "fmod": (lambda x: jnp.fmod(x, 0.75), lambda x: mp.mpf(math.fmod(float(x), 0.75))),
}
COUNT = 16


def log_uniform(draw: Any, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """Boxes with centers and half-widths of all sizes that the type has."""
    info = np.finfo(dtype)
    rng = np.random.default_rng(draw)
    size = lambda: np.exp(rng.uniform(math.log(float(info.tiny)), math.log(float(info.max)) - 1, COUNT))
    near = np.exp(rng.uniform(-12, 3, COUNT))
    center = np.where(rng.random(COUNT) < 0.5, near, size()) * rng.choice([-1, 1], COUNT)
    center = np.where(rng.random(COUNT) < 0.2, rng.choice([0.0, 1.0, -1.0, math.pi / 2], COUNT), center)
    half = np.choose(rng.integers(0, 4, COUNT), [0 * center, size(), np.abs(center) * np.exp(-near * 3), near])
    with np.errstate(over="ignore"):
        low, high = (center - half).astype(dtype), (center + half).astype(dtype)
    return np.clip(low, -info.max, info.max), np.clip(high, -info.max, info.max)


@pytest.mark.parametrize("name", FUNCTIONS)
@hypothesis.settings(max_examples=6)
@hypothesis.given(st.integers(0, 2**32 - 1))
def test_functions_over_all_of_their_type(precision, name, draw):
    _, exact = FUNCTIONS[name]
    low, high = log_uniform(draw, precision)
    rng = np.random.default_rng(draw)
    with np.errstate(over="ignore"):
        inner = [(low * (1 - t) + high * t).astype(precision) for t in rng.uniform(0, 1, (4, 1))]
    samples = np.clip(np.stack([low, high, *inner]), low, high)
    values = np.asarray(_compiled(name, precision)(samples), float)
    for rounding in ("float", "real"):
        found = _bounds_of(name, precision, rounding)(low, high)
        lower, upper = (np.asarray(v, float) for v in found)
        anything = (lower == -np.inf) & (upper == np.inf)
        assert not np.isnan(lower).any()
        assert not np.isnan(upper).any()
        if rounding == "float":
            held = np.where(np.isnan(values), anything, (lower <= values) & (values <= upper))
            assert held.all(), (samples[~held], values[~held])
            continue
        for x, a, b, void in zip(samples.T, lower, upper, anything, strict=True):
            for v in x[:3]:
                value = exact(mp.mpf(float(v)))
                assert void or mp.mpf(a) <= value <= mp.mpf(b), (v, a, b, value)


_KNOWN: dict[Any, Any] = {}


def _compiled(name: str, precision: Any) -> Any:
    key = (name, str(precision))
    if key not in _KNOWN:
        _KNOWN[key] = jax.jit(FUNCTIONS[name][0])
    return _KNOWN[key]


def _bounds_of(name: str, precision: Any, rounding: Any) -> Any:
    key = (name, str(precision), rounding)
    if key not in _KNOWN:

        def ends(low: Any, high: Any) -> Any:
            found = bounds.bound(FUNCTIONS[name][0], Box(low, high), method="crown-ibp", rounding=rounding)
            return found.lower, found.upper

        _KNOWN[key] = jax.jit(ends)
    return _KNOWN[key]


def test_poles_and_edges():
    of = lambda f, low, high: bounds.bound(f, Box(low, high))
    anything = lambda found: (found.lower, found.upper) == (-np.inf, np.inf)
    assert anything(of(jnp.tan, 1.5, 1.6))
    assert anything(of(jnp.tan, 0.0, 100.0))
    assert of(jnp.tan, 1.0, 1.5).upper < 15
    assert anything(of(jnp.arccos, 0.5, 1.01))
    assert of(jnp.arccos, 0.5, 1.0).lower > -1e-3
    assert of(jnp.arctanh, 0.5, 1.0).upper == np.inf
    assert of(jnp.arctanh, 0.5, 1.0).lower > 0.5
    assert anything(of(lambda x: x % 0.0, 0.5, 1.0))
    assert anything(of(lambda x: 1.0 % x, -1.0, 1.0))
    # The angle jumps across the negative axis, and is NaN for two subnormal numbers.
    assert of(lambda y: jnp.arctan2(y, -1.0), -0.1, 0.1).upper >= math.pi
    assert of(lambda y: jnp.arctan2(y, -1.0), 0.0, 0.1).lower <= -math.pi
    assert of(lambda y: jnp.arctan2(y, 1.0), -0.1, 0.1).upper < 0.11
    assert anything(of(lambda y: jnp.arctan2(y, y), -0.1, 0.1))


def test_planes_of_an_angle_are_closer_than_its_range():
    turned = lambda v: jnp.arctan2(v[0], v[1]) - 0.5 * v[0]
    box = Box(jnp.array([0.5, 1.0]), jnp.array([0.52, 1.02]))
    width = {}
    for method in ("ibp", "crown"):
        found = bounds.bound(turned, box, method=method)
        width[method] = float(found.upper - found.lower)
        points = np.random.default_rng(0).uniform(box.lower, box.upper, (200, 2)).astype(F)
        values = jax.vmap(turned)(points)
        assert ((found.lower <= values) & (values <= found.upper)).all()
    assert width["crown"] < 0.9 * width["ibp"]


# --- Arrays, constants, and what is refused

X = Box(np.array([0.2, 0.3], F), np.array([0.3, 0.5], F))
ARRAYS = {
    "gradient of a product": jax.grad(jnp.prod),
    "running products": jnp.cumprod,
    "sorted": lambda x: jnp.sort(jnp.concatenate([x, x**2])),
    "median": lambda x: jnp.median(jnp.concatenate([x, x**2, x[:1]])),
    "running extremes": lambda x: jax.lax.cummax(x[::-1]) - jax.lax.cummin(x),
    "any": lambda x: jnp.where(jnp.any(x > 0.1), x, -x),
    "all": lambda x: jnp.where(jnp.all(x > 0.25), x, -x),
    "gradient of what is picked": jax.grad(lambda x: jnp.sum(x[np.array([0, 0, 1])] ** 2)),
    "integer cross entropy": jax.grad(lambda x: optax.softmax_cross_entropy_with_integer_labels(x, 1)),
    "set": lambda x: x.at[0].set(x[1]).at[1].multiply(2.0).at[0].max(x[1]),
    "added": lambda x: x.at[jnp.array([0, 0, 5])].add(1.0),
    "solve": lambda x: jnp.linalg.solve(A, x),
    "gradient of solve": jax.grad(lambda x: jnp.sum(jnp.linalg.solve(A, x) ** 2)),
    "inverse": lambda x: jnp.linalg.inv(A) @ x,
    "Cholesky": lambda x: jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(A), x),
    "eigenvectors": lambda x: jnp.linalg.eigh(A)[1] @ x,
    "QR and SVD": lambda x: jnp.linalg.qr(A)[0] @ x + jnp.linalg.svd(A)[1] * x,
    "determinants": lambda x: jnp.linalg.det(A) * x + jnp.linalg.slogdet(A)[1] * x,
    "Fourier": lambda x: jnp.abs(jnp.fft.fft(A)) @ x,
    "random": lambda x: jax.random.normal(jax.random.key(0), (2,)) * x,
    "a loop of constants": lambda x: jax.lax.while_loop(lambda i: i < 5, lambda i: i + 2, 0) * x,
    "an error that is not raised": lambda x: eqx.error_if(x, jnp.any(x > 3), "no") * 2,
    "its gradient": jax.grad(lambda x: jnp.sum(eqx.error_if(x, jnp.any(x > 3), "no") ** 2)),
    "nothing beside something": lambda x: jnp.concatenate([x[:0], x]) + jnp.sum(x[:0]),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_functions_of_arrays_are_inside(name):
    function = ARRAYS[name]
    with quickly():
        found = bounds.bound(function, X, method="crown-ibp")
        points = np.random.default_rng(0).uniform(X.lower, X.upper, (100, 2)).astype(F)
        values = jax.vmap(function)(points)
    assert ((found.lower <= values) & (values <= found.upper)).all()
    assert np.isfinite(found.lower).all()
    assert np.isfinite(found.upper).all()
    # And not by much: twice the spread of what was sampled.
    spread = np.ptp(values, axis=0)
    assert (found.upper - found.lower <= 2.5 * spread + 0.05).all()


REFUSED = {
    "an error that may be raised": (lambda x: eqx.error_if(x, jnp.any(x > 0.4), "no"), "side effect"),
    "a callback": (
        lambda x: x + jax.pure_callback(lambda: F(1), jax.ShapeDtypeStruct((), jnp.float32)), "side effect",
    ),
    "complex numbers": (lambda x: jnp.abs(x * 1j), "complex"),
    "a Fourier transform": (lambda x: jnp.abs(jnp.fft.fft(x)), "complex"),
    "no entries": (lambda x: x[:0], "at least one"),
    "a complex constant": (lambda x: jnp.ones(2, jnp.complex64), "real numbers"),
    "a matrix that varies": (lambda x: jnp.linalg.solve(jnp.diag(x), x), "no rule"),
    "places twice": (lambda x: x.at[jnp.array([0, 0])].set(x), "one place"),
    "places that vary": (lambda x: jnp.zeros(2).at[jnp.argmax(x)].set(1.0), "indices"),
    "argsort": (lambda x: x[jnp.argsort(x)], "sorted by one"),
    "integers": (lambda x: jnp.prod((x > 0.25).astype(int)), "integers"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_says_why(name):
    function, message = REFUSED[name]
    with pytest.raises((bounds.UnknownPrimitive, ValueError), match=message):
        bounds.bound(function, X)


def test_evaluated_constants_are_no_real_numbers():
    with pytest.raises(bounds.UnknownPrimitive, match="not in real numbers"):
        bounds.bound(lambda x: jnp.linalg.solve(A, x), X, rounding="real")


def test_an_error_in_a_traced_region_makes_bounds_say_nothing():
    function = lambda x: eqx.error_if(x, x > 1, "no") * 2
    upper = jax.jit(lambda low, high: bounds.bound(function, Box(low, high)).upper)
    assert upper(F(0), F(0.5)) < 1.1
    assert upper(F(0), F(1.5)) == np.inf


@pytest.mark.parametrize("most", [0, 300])
def test_an_error_that_may_be_raised_is_refused_however_bounds_are_evaluated(most, monkeypatch):
    monkeypatch.setattr(bounds._bound, "LONG", most)
    function = lambda x: jnp.tanh(eqx.error_if(x, x > 1, "no") * 2)
    assert bounds.bound(function, Box(F(0), F(0.5))).upper < 1
    with pytest.raises(bounds.UnknownPrimitive, match="side effect"):
        bounds.bound(function, Box(F(0), F(1.5)))
    # What a transformation traces is a constant of the function, not of its region.
    of = lambda c: bounds.bound(lambda x: x * c, Box(F(1), F(2))).upper
    np.testing.assert_allclose(jax.vmap(of)(np.asarray([1, 3], F)), [2, 6], rtol=1e-5)
    np.testing.assert_allclose(jax.grad(of)(F(3)), 2, rtol=1e-5)


def test_a_system_that_is_nearly_singular_says_nothing():
    near = np.array([[1.0, 1.0], [1.0, 1.0 + 1e-7]], F)
    found = bounds.bound(lambda x: jax.scipy.linalg.solve_triangular(near * F(1e-20), x), X)
    assert np.isfinite(found.upper).all()
    steep = np.triu(np.full((40, 40), -1.0, F)) + 2 * np.eye(40, dtype=F)
    box = Box(np.zeros(40, F), np.ones(40, F))
    found = bounds.bound(lambda x: jax.scipy.linalg.solve_triangular(steep, x), box, method="ibp")
    assert np.isinf(found.upper).any()


@pytest.mark.parametrize("method", ["ibp", "crown-ibp", "crown"])
def test_exponentials_of_shifted_numbers(method):
    for shift in (1.0, np.float32(2.0), np.ones(2, np.float32), jnp.ones(2)):
        for function in (
            lambda x, c=shift: jnp.exp(x - c),
            lambda x, c=shift: jnp.exp(c - x),
            lambda x, c=shift: jnp.exp(x + c),
        ):
            box = bounds.Box(jnp.zeros(2), jnp.ones(2))
            found = bounds.bound(function, box, method=method)
            values = jnp.stack([function(jnp.full(2, v)) for v in (0.0, 0.3, 1.0)])
            assert (found.lower <= values).all()
            assert (values <= found.upper).all()
            assert (found.upper - found.lower <= 1.01 * jnp.abs(values[2] - values[0])).all()
