"""Bounds across the magnitudes where a rule changes its formula, against exact numbers.

Centers and half-widths are drawn log-uniformly from the whole range of the type, subnormal numbers and the largest
included, and along a ladder of half-widths whose steps are shorter than any switch is wide. Slopes are subtracted, so
that planes are seen and not only ranges.
"""

import itertools
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from jax import lax

from lyapunov_dsl import _logsumexp as own, bounds

Long = np.longdouble
if np.finfo(Long).nmant < 63:
    pytest.skip("no floating-point type of more digits and larger exponents here", allow_module_level=True)

METHODS = ("ibp", "crown-ibp", "crown")
SEEDS = st.integers(0, 2**32 - 1)
# The type of the function, and whether ranges are wider than it.
KINDS = [("float32", False), ("float32", True), ("float64", True)]
MANY = hypothesis.settings(max_examples=1 if "LYAPUNOV_DSL_REDUCED" in os.environ else 20)


def exactly_by(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of numbers of many digits, entry by entry."""

    def each(v: Any, stored: Any) -> Any:
        if not np.isfinite(v):
            return Long(np.nan)
        found = function(mpmath.mpf(str(v)), *stored)
        # Smaller ones cannot be read.
        return Long(mpmath.nstr(found, 25)) if abs(found) > mpmath.mpf("1e-4900") else Long(0)

    def apply(x: Any, *stored: float) -> Any:
        with mpmath.workdps(40):
            return np.array([each(v, stored) for v in np.ravel(x)], Long).reshape(np.shape(x))

    return apply


class Case(NamedTuple):
    """A function, the same exactly, and how many entries along the last axis it takes; 0 where it works entry by entry.
    `stored` are constants of the function, which are numbers of its type, and the last arguments of the exact one."""

    function: Callable[..., Any]
    exact: Callable[..., Any]
    arity: int = 1
    entries: int = 0
    least: float = -np.inf
    stored: tuple[float, ...] = ()


def _softmax(x: Any) -> Any:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _lse(x: Any) -> Any:
    top = x.max(-1, keepdims=True)
    return np.log(np.exp(x - top).sum(-1)) + top[..., 0]


def _erf(v: Any) -> Any:
    return mpmath.erf(v)


def _erfc(v: Any) -> Any:
    # mpmath overflows beyond.
    return mpmath.erfc(v) if v < 1e4 else mpmath.mpf(0)


def _silu(x: Any) -> Any:
    return x / (1 + np.exp(-x))


UNARY = {
    "exp": Case(jnp.exp, np.exp),
    "exp2": Case(jnp.exp2, np.exp2),
    "expm1": Case(jnp.expm1, np.expm1),
    "log": Case(jnp.log, np.log, least=0.0),
    "log1p": Case(jnp.log1p, np.log1p, least=-1.0),
    "sqrt": Case(jnp.sqrt, np.sqrt, least=0.0),
    "rsqrt": Case(lax.rsqrt, lambda x: 1 / np.sqrt(x), least=0.0),
    "tanh": Case(jnp.tanh, np.tanh),
    "logistic": Case(jax.nn.sigmoid, lambda x: 1 / (1 + np.exp(-x))),
    "erf": Case(lax.erf, exactly_by(_erf)),
    "erfc": Case(lax.erfc, exactly_by(_erfc)),
    "atan": Case(jnp.arctan, np.arctan),
    "sin": Case(jnp.sin, np.sin),
    "cos": Case(jnp.cos, np.cos),
    "abs": Case(jnp.abs, np.abs),
    "floor": Case(jnp.floor, np.floor),
    "ceil": Case(jnp.ceil, np.ceil),
    "round": Case(jnp.round, np.rint),
    "sign": Case(jnp.sign, np.sign),
    "square": Case(jnp.square, np.square),
    "x**3": Case(lambda x: x**3, lambda x: x * x * x),
    "x**4": Case(lambda x: x**4, lambda x: x * x * x * x),
    "x**-1": Case(lambda x: 1 / x, lambda x: 1 / x),
    "x**-2": Case(lambda x: x**-2, lambda x: 1 / (x * x)),
    "x**1.5": Case(lambda x: jnp.power(x, 1.5), lambda x: np.power(x, Long(1.5)), least=0.0),
    "x**0.3": Case(lambda x: jnp.power(x, jnp.asarray(0.25, x.dtype)), lambda x: np.power(x, Long(0.25)), least=0.0),
    "x**-0.5": Case(lambda x: jnp.power(x, -0.5), lambda x: np.power(x, Long(-0.5)), least=0.0),
    "1.5**x": Case(lambda x: 1.5**x, lambda x: np.power(Long(1.5), x)),
    "softplus": Case(jax.nn.softplus, lambda x: np.logaddexp(x, Long(0))),
    "silu": Case(jax.nn.silu, _silu),
    "gelu": Case(
        lambda x: jax.nn.gelu(x, approximate=False), exactly_by(lambda v, c: v / 2 * _erfc(-v * c)), stored=(0.5**0.5,)
    ),
    "gelu by tanh": Case(
        jax.nn.gelu,
        exactly_by(lambda v, c, b: v / 2 * (1 + mpmath.tanh(c * (v + b * v**3)))),
        stored=((2 / np.pi) ** 0.5, 0.044715),
    ),
    "relu": Case(jax.nn.relu, lambda x: np.maximum(x, 0)),
    "3 x": Case(lambda x: 3 * x, lambda x: 3 * x),
    "x / 3": Case(lambda x: x / 3, lambda x: x / 3),
    "1 - x": Case(lambda x: 1 - x, lambda x: 1 - x),
    "clip": Case(lambda x: jnp.clip(x, -0.5, 2.0), lambda x: np.clip(x, Long(-0.5), Long(2))),
    "choice": Case(lambda x: jnp.where(x > 0.5, x, 2 * x), lambda x: np.where(x > 0.5, x, 2 * x)),
}  # fmt: skip
BINARY = {
    "add": Case(lambda x, y: x + y, lambda x, y: x + y, 2),
    "sub": Case(lambda x, y: x - y, lambda x, y: x - y, 2),
    "mul": Case(lambda x, y: x * y, lambda x, y: x * y, 2),
    "div": Case(lambda x, y: x / y, lambda x, y: x / y, 2),
    "max": Case(jnp.maximum, np.maximum, 2),
    "min": Case(jnp.minimum, np.minimum, 2),
    "choice of two": Case(lambda x, y: jnp.where(x < y, x, y / 2), lambda x, y: np.where(x < y, x, y / 2), 2),
    "logaddexp": Case(jnp.logaddexp, np.logaddexp, 2),
    "quotient of quotients": Case(lambda x, y: (x / 3) / (y / 5), lambda x, y: (x / 3) / (y / 5), 2),
}
ROWS = {
    "reduce_sum": Case(lambda x: jnp.sum(x, -1), lambda x: x.sum(-1), 1, 3),
    "reduce_max": Case(lambda x: jnp.max(x, -1), lambda x: x.max(-1), 1, 3),
    "reduce_min": Case(lambda x: jnp.min(x, -1), lambda x: x.min(-1), 1, 3),
    "cumsum": Case(lambda x: jnp.cumsum(x, -1), lambda x: x.cumsum(-1), 1, 3),
    "dot": Case(
        lambda x: x @ jnp.asarray([1.0, -2.0, 0.5], x.dtype), lambda x: x @ np.asarray([1.0, -2.0, 0.5], Long), 1, 3
    ),
    "log-sum-exp": Case(lambda x: jax.nn.logsumexp(x, -1), _lse, 1, 3),
    "own log-sum-exp": Case(own.logsumexp, _lse, 1, 3),
    "cross entropy": Case(lambda x: jax.nn.logsumexp(x, -1) - x[..., 0], lambda x: _lse(x) - x[..., 0], 1, 3),
    "own cross entropy": Case(
        lambda x: own.logsumexp(own.margins(x, jnp.zeros(x.shape[:-1], jnp.int32))), lambda x: _lse(x - x[..., :1]), 1, 3
    ),
    "log_softmax": Case(jax.nn.log_softmax, lambda x: x - _lse(x)[..., None], 1, 3),
    "softmax": Case(jax.nn.softmax, _softmax, 1, 3),
    "softmax mean": Case(
        lambda x, t: jnp.sum(jax.nn.softmax(x) * t, -1), lambda x, t: (_softmax(x) * t).sum(-1), 2, 3
    ),
    "own softmax mean": Case(own.softmax_mean, lambda x, t: (_softmax(x) * t).sum(-1), 2, 3),
    "softmax mean minus one": Case(
        lambda x, t: jnp.sum(jax.nn.softmax(x) * t, -1) - t[..., 1],
        lambda x, t: (_softmax(x) * (t - t[..., 1:2])).sum(-1), 2, 3,
    ),
}  # fmt: skip
CASES = UNARY | BINARY | ROWS


def drawn(dtype: Any, shape: tuple[int, ...], rng: np.random.Generator, least: float) -> tuple[Any, Any]:
    """Ends of intervals: centers and half-widths log-uniform over the type, or over what exponentials bear, some of them
    zero, one-sided, or relative to the center."""
    info = np.finfo(dtype)
    lowest = float(np.log2(float(info.smallest_subnormal)))

    def size() -> Any:
        bits = np.where(rng.random(shape) < 0.5, rng.uniform(-24, 12, shape), rng.uniform(lowest, info.maxexp, shape))
        return np.where(rng.random(shape) < 0.15, 0, np.exp2(bits.astype(Long)))

    center, half = size() * rng.choice([-1.0, 1.0], shape), size()
    half = np.where(rng.random(shape) < 0.3, np.abs(center) * np.exp2(rng.uniform(-info.nmant, 2, shape)), half)
    side = rng.integers(0, 6, shape)
    low, high = np.where(side == 0, center, center - half), np.where(side == 1, center, center + half)
    return _cast(np.maximum(low, least), dtype), _cast(np.maximum(high, least), dtype)


def _cast(x: Any, dtype: Any) -> Any:
    most = Long(float(np.finfo(dtype).max))
    return np.clip(np.asarray(x, Long), -most, most).astype(dtype)


def ladder(dtype: Any, shape: tuple[int, ...], rng: np.random.Generator, least: float) -> tuple[Any, Any]:
    """Half-widths up to four logarithms of the largest number, in short steps, about centers near 0 or beside it."""
    each = (shape[0], *[1] * (len(shape) - 1))
    half = np.log(float(np.finfo(dtype).max)) * np.geomspace(1e-2, 4, shape[0]).reshape(each)
    half = half * np.where(rng.random(shape) < 0.6, 1, rng.choice([0, 1e-3, 0.3, 0.6], shape))
    center = rng.choice([0.0, 0.0, 1.0, -2.0, 0.5, -1.0], shape) * rng.choice([0, 0.1, 1, half.max() / 4], each)
    low, high = _all_sides((_cast(center - half, dtype), _cast(center + half, dtype)))
    return np.maximum(low, dtype.type(least)), np.maximum(high, dtype.type(least))


def points_of(rng: np.random.Generator, low: Any, high: Any, count: int) -> Any:
    """Corners and others of boxes, in their own type: [points, ...]."""
    shape = (count, *low.shape)
    share = rng.choice([0.0, 1.0, 0.5, -1.0], shape, p=[0.35, 0.35, 0.1, 0.2])
    share = np.where(share < 0, rng.random(shape), share)
    share[0], share[1] = 0, 1
    if low.ndim > 1:
        share[2], share[3] = 0, 0
        share[2, ..., 0], share[3, ..., 1:] = 1, 1
    inside = (low.astype(Long) * (1 - share) + high.astype(Long) * share).astype(low.dtype)
    return np.clip(inside, low, high)


def _all_sides(ends: tuple[Any, Any]) -> tuple[Any, Any]:
    """The same with a third of the boxes cubes, as which the worst case comes."""
    low, high = ends
    if low.ndim == 1:
        return ends
    cube = (np.arange(len(low)) % 3 == 0)[:, None]
    return np.where(cube, low.min(-1, keepdims=True), low), np.where(cube, high.max(-1, keepdims=True), high)


def _dot(weights: Any, x: Any) -> Any:
    """Σ w x for each box, in many digits."""
    return (weights.astype(Long) * x.astype(Long)).reshape(*x.shape[:2], -1).sum(-1)


def check(
    case: Case,
    kind: tuple[str, bool],
    seed: int,
    draw: Any,
    rounding: str,
    count: int = 60,
    methods: Any = ("crown",),
    slopes: bool = False,
) -> None:
    """Values at points of random boxes, of a function or of its difference to a line, are within their bounds."""
    dtype, rng = np.dtype(kind[0]), np.random.default_rng(seed)
    stored, written = [float(dtype.type(c)) for c in case.stored], case.exact
    case = case._replace(exact=lambda *x: written(*x, *stored))
    shape = (count, case.entries) if case.entries else (count,)
    ends = [draw(dtype, shape, rng, case.least) for _ in range(case.arity)]
    points = [points_of(rng, low, high, 16) for low, high in ends]
    with jax.enable_x64(kind[1]), np.errstate(all="ignore"):
        exact = case.exact(*(p.astype(Long) for p in points))
        weights = _weights(case, ends, exact, dtype) if slopes else []
        size = _size(case, exact, weights, points)

        def function(*x: Any) -> Any:
            out = case.function(*x)
            for w, v in zip(weights, x, strict=False):
                out = out - jnp.sum((w * v).reshape(count, -1), -1)
            return out

        exact = exact - sum(_dot(w, p) for w, p in zip(weights, points, strict=False))
        regions = [bounds.Box(low, high) for low, high in ends]
        found = {m: bounds.bound(function, *regions, method=m, rounding=rounding) for m in methods}
        value = (
            exact
            if rounding == "real"
            else np.stack([function(*(jnp.asarray(p[i]) for p in points)) for i in range(16)])
        )
    value = value.astype(Long)
    # The exact values are off by some units of their last digit.
    room = 8 * float(np.finfo(Long).eps) * size if rounding == "real" else 0
    for method, b in found.items():
        low, high = (np.asarray(v).astype(Long) for v in (b.lower, b.upper))
        assert not np.isnan(low).any(), method
        assert not np.isnan(high).any(), method
        # An exact value that is not known is no evidence; an evaluation to NaN is.
        unknown = (rounding == "real") | ((low == -np.inf) & (high == np.inf))
        held = np.where(np.isnan(value), unknown, (low - room <= value) & (value <= high + room))
        for at in map(tuple, np.argwhere(~held)[:1]):
            where = [(low[at[1]], high[at[1]], p[at[:2]]) for (low, high), p in zip(ends, points, strict=True)]
            raise AssertionError(
                f"{method}: {value[at]} is not in [{low[at[1:]]}, {high[at[1:]]}] for (lower, upper, point) {where}"
            )


def _size(case: Case, exact: Any, weights: Any, points: Any) -> Any:
    """What is added up for a value."""
    size = np.abs(exact)
    for w, p in zip(weights, points, strict=False):
        size = size + 2 * _dot(np.abs(w), np.abs(p))
    if case.entries:
        for p in points:
            size = size + np.abs(p.astype(Long)).max(-1).reshape(exact.shape[:2] + (1,) * (exact.ndim - 2))
    return np.where(np.isfinite(size), size, 0)


def _weights(case: Case, ends: Any, exact: Any, dtype: Any) -> Any:
    """Slopes of the function in boxes with one result each: of its chord over all of the box, its middle, or at an end."""
    if exact.ndim != 2:
        return []
    out = []
    for i, (low, high) in enumerate(ends):
        center = [0.5 * a.astype(Long) + 0.5 * b.astype(Long) for a, b in ends]
        slope = np.zeros(low.shape, Long)
        for j in range(case.entries or 1):
            at = (..., j) if case.entries else ...
            begin, width = low.astype(Long)[at], high.astype(Long)[at] - low.astype(Long)[at]
            which = np.arange(len(low)) % 4
            first, last = (np.choose(which, shares) for shares in ((0, 0.49, 0, 0.99), (1, 0.51, 0.01, 1)))
            one, other = [c.copy() for c in center], [c.copy() for c in center]
            one[i][at], other[i][at] = begin + first * width, begin + last * width
            step = other[i][at] - one[i][at]
            slope[at] = np.where(step > 0, (case.exact(*other) - case.exact(*one)) / np.where(step > 0, step, 1), 1)
        out.append(_cast(np.where(np.isfinite(slope), slope, 0), dtype))
    return out


# Rules of which the switches were wrong once.
FAMILY = [name for name in ROWS if "soft" in name or "log" in name or "entropy" in name]


@pytest.mark.parametrize("name", CASES)
def test_ladder(name):
    """Every half-width, in float32."""
    for rounding in ("real", "float") if name in FAMILY else ("real",):
        check(
            CASES[name],
            KINDS[0],
            0,
            ladder,
            rounding,
            72 if name in FAMILY else 30,
            slopes=name not in ("softmax", "log_softmax"),
        )


def tails(dtype: Any, shape: tuple[int, ...], rng: np.random.Generator, least: float) -> tuple[Any, Any]:
    """Boxes on one side of 0 where exponentials, and what is made of them, are small beside 1, each a few units wide."""
    center = rng.uniform(-1.2, 1.2, shape) * np.log(1 / float(np.finfo(dtype).eps))
    half = rng.uniform(1e-3, 2, shape)
    low, high = _cast(center - half, dtype), _cast(center + half, dtype)
    return np.maximum(low, dtype.type(least)), np.maximum(high, dtype.type(least))


@pytest.mark.parametrize("name", UNARY)
def test_tails(name):
    """Lines in a tail are off by units of what is there, not of the values on the other side of 0."""
    for kind in KINDS[::2]:
        for rounding in ("real", "float"):
            check(CASES[name], kind, 0, tails, rounding, 400)


@hypothesis.settings(max_examples=1)
@hypothesis.given(SEEDS)
@pytest.mark.parametrize("name", FAMILY)
def test_any_size(name, seed):
    """Every size of numbers, in float32."""
    check(CASES[name], KINDS[0], seed, drawn, "real", 40)


@pytest.mark.full
@pytest.mark.parametrize("kind", KINDS, ids=["32", "32 in 64", "64"])
@pytest.mark.parametrize("name", CASES)
def test_ladders(name, kind):
    for rounding, slopes in itertools.product(("real", "float"), (False, True)):
        check(CASES[name], kind, 0, ladder, rounding, 90, slopes=slopes)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=["32", "32 in 64", "64"])
@pytest.mark.parametrize("name", CASES)
@MANY
@hypothesis.given(SEEDS, st.booleans(), st.sampled_from(["real", "float"]))
def test_any_sizes(name, kind, seed, slopes, rounding):
    check(CASES[name], kind, seed, drawn, rounding, methods=METHODS, slopes=slopes)


def test_log_sum_exp_is_never_far_above_its_largest_value():
    """At all half-widths, the bound is the exact one, and the plane at most 1 above it: log-sum-exp plus a constant has only that."""
    half = jnp.asarray(np.geomspace(1e-3, 1e6, 200), jnp.float32)[:, None] * jnp.ones(3, jnp.float32)
    for shift in (0.0, 1.0):
        function = lambda x, shift=shift: jax.nn.logsumexp(x, -1) - shift * x[:, 0]
        found = bounds.bound(function, bounds.Box(-half, half), rounding="real")
        exact = jnp.log(3.0) + half[:, 0] if not shift else 2 * half[:, 0] + jnp.log(2.0 + jnp.exp(-2 * half[:, 0]))
        assert (np.asarray(found.upper) >= np.asarray(exact) * (1 - 1e-6)).all()
        assert (np.asarray(found.upper) <= np.asarray(exact) * (1 + 1e-4) + 1.01 + 1e-3).all()


def test_exponents_whose_differences_mean_nothing(quick):
    """Exponentials of exponents that are off by a unit of rounding of the largest are within the slack, or nothing is said."""
    unit = float(np.finfo(np.float32).eps)
    for share in (1e-3, 1.0, 1.9, 2.01, 2.39, 4.1):
        size = share / unit
        box = bounds.Box(jnp.asarray([size, size - 1], jnp.float32), jnp.asarray([size, size - 1], jnp.float32))
        upper = np.asarray(bounds.bound(jax.nn.softmax, box, method="ibp").upper, float)
        true = np.asarray(jax.nn.softmax(jnp.asarray([size, size - 1], jnp.float32)), float)
        assert (upper >= true * np.exp(share)).all(), share
        assert np.isfinite(upper).all() == (share < 2), share
    # Ten units of the largest number: their sum overflows, whatever the mean is.
    most = float(np.finfo(np.float32).max)
    for share, finite in ((0.9, True), (1.1, False)):
        t = jnp.full(2, share * most / 2, jnp.float32)
        for function in (lambda t: jnp.sum(jax.nn.softmax(t * 0) * t) - t[0], lambda t: jnp.sum(t)):
            found = bounds.bound(function, bounds.Box(t, t), method="ibp")
            assert bool(jnp.isfinite(found.upper)) == finite, share


def test_a_mean_whose_weights_are_all_about_the_smallest_number():
    """Entries beside which the largest may vanish: their own exponentials vanish relative to it."""
    low, high = jnp.asarray([-200.0, -120.0], jnp.float32), jnp.asarray([0.0, -110.0], jnp.float32)
    function = lambda a: own.softmax_mean(a, jnp.asarray([0.0, 0.3], jnp.float32))
    found = bounds.bound(function, bounds.Box(low, high), method="ibp")
    assert float(found.upper) >= float(function(jnp.asarray([-200.0, -110.0], jnp.float32))) > 0.29


def test_the_largest_number(quick):
    """What rounds to no number is infinite, and only that, where ranges reach further than the type of the function."""
    with jax.enable_x64(True):
        for x, finite in ((88.6, True), (88.8, False)):
            for sign, function in ((1, jnp.exp), (-1, lambda x: -jnp.exp(x))):
                box = bounds.Box(jnp.float32(x), jnp.float32(x))
                found = bounds.bound(function, box, method="ibp")
                value = sign * np.exp(np.float64(np.float32(x)))
                ends = sorted([float(found.lower) * sign, float(found.upper) * sign])
                assert np.isfinite(ends[1]) == finite
                assert ends[0] <= min(abs(value), float(np.finfo(np.float32).max))
                assert ends[0] >= 3e38


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_widths_that_are_flushed_to_zero(dtype):
    """Of two numbers about the smallest one the difference is taken for 0, and they are two numbers still."""
    with jax.enable_x64(dtype == "float64"):
        tiny, kind = np.finfo(dtype).tiny, np.dtype(dtype).type
        low = np.asarray([1, 1.7, 3.2, -3.2, 9, -1], dtype) * tiny
        high = low
        for _ in range(700):
            high = np.nextafter(high, kind(1))
        functions = {
            "same": lambda x: jnp.concatenate([x[1:], x[:1]]),
            "sum": lambda x: x + x[0],
            "product": lambda x: x * 3,
        }
        for name, function in functions.items():
            for method in METHODS:
                of = lambda a, b, function=function, method=method: bounds.bound(
                    function, bounds.Box(a, b), method=method
                )
                for found in (of(low, high), jax.jit(of)(low, high)):
                    for x in (low, high):
                        value = np.asarray(jax.jit(function)(x))
                        assert (np.asarray(found.lower) <= value).all(), (name, method)
                        assert (value <= np.asarray(found.upper)).all(), (name, method)


@pytest.mark.parametrize("kind", KINDS, ids=["32", "32 in 64", "64"])
def test_a_sum_that_overflows_on_its_way(kind):
    """Up to the largest number, no order of its terms overflows; past it one may, whatever the sum is in the end."""
    dtype, x64 = kind
    with jax.enable_x64(x64):
        most = np.finfo(dtype).max
        signs = jnp.asarray([1, 1, -1], dtype)
        for size, known in ((0.999, True), (1.1, False), (1.15, False)):
            x = jnp.asarray([share * most * size for share in (0.4, 0.4, 0.2)], dtype)
            for method in METHODS:
                found = bounds.bound(lambda v: signs @ v, bounds.Box(x, x), method=method)
                assert np.isfinite(found.upper) == known
                assert np.isfinite(found.lower) == known
