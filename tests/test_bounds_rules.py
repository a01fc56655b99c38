"""Every rule of the bound engine by itself: on boxes of all sizes and places against what XLA evaluates to, and against
real arithmetic by mpmath."""

import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from conftest import quickly
from jax import lax

from lyapunov_dsl import _logsumexp, bounds
from lyapunov_dsl._interpret import evaluated
from lyapunov_dsl.bounds import _scalar, _smooth, _trigonometric
from lyapunov_dsl.bounds._graph import TRANSLATIONS

METHODS = ("ibp", "crown-ibp", "crown")
mp = mpmath.mp.clone()
mp.prec = 160


KINDS = ["float32", "float32 in x64", "float64"]


@pytest.fixture(params=[pytest.param(KINDS[0], marks=pytest.mark.slow), *KINDS[1:]])
def kind(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The type of a function, with bounds in the same type or in a wider one."""
    with jax.enable_x64(request.param != "float32"):
        yield np.dtype(request.param.split()[0])


def outside(values: Any, lower: Any, upper: Any) -> np.ndarray:
    """Where samples [count, *shape] are not between bounds; only bounds that say nothing hold NaN."""
    values, lower, upper = (np.asarray(v).astype(np.float64) for v in (values, lower, upper))
    held = (lower <= values) & (values <= upper)
    return ~np.where(np.isnan(values), (lower == -np.inf) & (upper == np.inf), held)


def check(function: Callable, *draws: Any, methods: Sequence[str] = METHODS, eager: bool = False) -> None:
    """Bounds of the box that samples span hold what the function evaluates to, compiled and not, for each
    draw of samples."""
    found = lambda *regions: [bounds.bound(function, *regions, method=method) for method in methods]
    found, evaluate = found if eager else jax.jit(found), jax.jit(jax.vmap(function))
    for samples in draws:
        evaluated = [(evaluate(*samples), len(samples[0])), (function(*(jnp.asarray(s[0]) for s in samples)), 1)]
        regions = [bounds.Box(np.min(s, axis=0), np.max(s, axis=0)) for s in samples]
        with quickly():
            results = found(*regions)
        for method, result in zip(methods, results, strict=True):
            for values, count in evaluated:
                flat = zip(*map(jax.tree.leaves, (values, result.lower, result.upper)), strict=True)
                for value, lower, upper in flat:
                    bad = outside(np.asarray(value).reshape(count, *np.shape(lower)), lower, upper)
                    assert not bad.any(), (method, np.argwhere(bad)[:5])


def boxes(rng: np.random.Generator, dtype: Any, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Ends of boxes around 0, across 0, at the ends of the type and at infinity, many of them single points."""
    info = np.finfo(dtype)
    most, least = math.log(float(info.max)), math.log(float(info.tiny))
    signed = lambda v: v * rng.choice([-1, 1], count)
    center = np.choose(
        rng.integers(0, 4, count),
        [
            rng.uniform(-3, 3, count),
            signed(np.exp(rng.uniform(least - 3, most - 1e-9, count))),
            signed(np.exp(rng.uniform(-8, 8, count))),
            rng.choice([0, -0.0, 1, -1, 0.5, 2.5, info.tiny, -info.tiny / 4, info.max, -info.max], count),
        ],
    )
    with np.errstate(over="ignore"):
        relative = np.abs(center) * np.exp(rng.uniform(-30, 1, count))
    half = np.choose(
        rng.integers(0, 4, count),
        [
            np.zeros(count),
            relative,
            np.exp(rng.uniform(-9, 4, count)),
            1 / 64,
        ],
    )
    with np.errstate(over="ignore"):
        lower, upper = (center - half).astype(dtype), (center + half).astype(dtype)
    first = np.asarray(
        [[-np.inf, np.inf], [0, np.inf], [-np.inf, 0], [1, np.inf], [-1, 4], [0, 1], [0, 0], [-1, 0]], dtype
    )
    lower[: len(first)], upper[: len(first)] = first.T
    return lower, upper


def points(rng: np.random.Generator, lower: np.ndarray, upper: np.ndarray, count: int = 6) -> np.ndarray:
    """Points of boxes: ends and their neighbors, zeros of both signs, the smallest numbers, and inner ones."""
    dtype, info = lower.dtype, np.finfo(lower.dtype)
    low, high = (np.clip(v, -info.max, info.max).astype(np.float64) for v in (lower, upper))
    inner = [low * (1 - t) + high * t for t in rng.uniform(0, 1, (count, len(lower)))]
    with np.errstate(over="ignore", under="ignore"):
        near = [np.nextafter(lower, dtype.type(np.inf)), np.nextafter(upper, dtype.type(-np.inf))]
    marks = [np.full(len(lower), v) for v in (0.0, -0.0, info.tiny, -info.tiny, info.smallest_subnormal, 0.5)]
    found = [lower, upper, *(v.astype(dtype) for v in (*near, *inner, *marks))]
    return np.stack([np.where((v >= lower) & (v <= upper), v, lower) for v in found])


class Pointwise(NamedTuple):
    """A function of numbers, the primitive it is about, and the same function by mpmath, if its values are real numbers."""

    name: str
    function: Callable
    exact: Callable | None = None
    count: int = 1


def real(function: Callable) -> Callable:
    """Without complex values: what is undefined is NaN."""

    def guarded(*args: Any) -> Any:
        try:
            value = function(*args)
        except (ZeroDivisionError, ValueError):
            return mp.nan
        return value if isinstance(value, mp.mpf) else mp.nan

    return guarded


def _power(exponent: float) -> Pointwise:
    exact = lambda x: mp.power(x, mp.mpf(exponent)) if x > 0 or exponent > 0 else mp.nan
    return Pointwise("pow", lambda x: lax.pow(x, jnp.asarray(exponent, x.dtype)), exact)


def _erfc(x: Any) -> Any:
    return mp.erfc(x) if abs(x) < 1e4 else mp.mpf(0 if x > 0 else 2)


def _remainder(x: Any, y: Any) -> Any:
    """Exact as Python computes it, with the sign of x."""
    return mp.mpf(math.fmod(float(x), float(y))) if y and abs(x) < mp.inf else mp.nan


def _floored(x: Any, y: int) -> Any:
    rest = Fraction(float(x)) % y
    return mp.mpf(rest.numerator) / rest.denominator


def _to_the_edge(function: Callable) -> Callable:
    """A function that is infinite at -1 and 1."""
    return lambda x: function(x) if abs(x) < 1 else mp.sign(x) * mp.inf if abs(x) == 1 else mp.nan


def _rounded(x: Any) -> Any:
    return mp.nint(x)


POINTWISE = [
    Pointwise("abs", jnp.abs, abs),
    Pointwise("add", lambda x, y: x + y, lambda x, y: x + y, 2),
    Pointwise("add", lambda x: x + 0.3, None),
    Pointwise("and", lambda x, y: (x > 0) & (y > 0), None, 2),
    Pointwise("atan", jnp.arctan, mp.atan),
    Pointwise("ceil", jnp.ceil, mp.ceil),
    Pointwise("clamp", lambda x, y: lax.clamp(x.dtype.type(-1.5), x, jnp.abs(y)), None, 2),
    Pointwise("convert_element_type", lambda x: (x > 0).astype(jnp.float32) + x.astype(jnp.float32)),
    Pointwise("copy", lambda x: jnp.copy(x), lambda x: x),
    Pointwise("cos", jnp.cos, mp.cos),
    Pointwise("div", lambda x, y: x / y, lambda x, y: x / y, 2),
    Pointwise("div", lambda x: 3 / x, lambda x: 3 / x),
    Pointwise("div", lambda x: x / 3, lambda x: x / 3),
    Pointwise("eq", lambda x, y: x == y, None, 2),
    Pointwise("eq", lambda x: jnp.where(x == 0.5, 100.0, x)),
    Pointwise("erf", lax.erf, mp.erf),
    Pointwise("erfc", lax.erfc, _erfc),
    Pointwise("exp", jnp.exp, mp.exp),
    Pointwise("exp2", jnp.exp2, lambda x: mp.power(2, x)),
    Pointwise("expm1", jnp.expm1, mp.expm1),
    Pointwise("floor", jnp.floor, mp.floor),
    Pointwise("ge", lambda x, y: x >= y, None, 2),
    Pointwise("gt", lambda x, y: x > y, None, 2),
    Pointwise("integer_pow", lambda x: x**2 + 0, lambda x: x**2),
    Pointwise("integer_pow", lambda x: x**3, lambda x: x**3),
    Pointwise("integer_pow", lambda x: x**4, lambda x: x**4),
    Pointwise("integer_pow", lambda x: x**-1, lambda x: 1 / x),
    Pointwise("integer_pow", lambda x: x**-3, lambda x: 1 / x**3),
    Pointwise("is_finite", jnp.isfinite),
    Pointwise("le", lambda x, y: x <= y, None, 2),
    Pointwise("log", jnp.log, mp.log),
    Pointwise("log1p", jnp.log1p, mp.log1p),
    Pointwise("logistic", jax.nn.sigmoid, lambda x: 1 / (1 + mp.exp(-x))),
    Pointwise("lt", lambda x, y: x < y, None, 2),
    Pointwise("max", lambda x, y: lax.max(x, y), max, 2),
    Pointwise("min", lambda x, y: lax.min(x, y), min, 2),
    Pointwise("mul", lambda x, y: x * y, lambda x, y: x * y, 2),
    Pointwise("mul", lambda x: x * 3, lambda x: x * 3),
    Pointwise("mul", lambda x: x * x.dtype.type(0), lambda x: x * 0),
    Pointwise("ne", lambda x, y: x != y, None, 2),
    Pointwise("neg", lambda x: -x, lambda x: -x),
    Pointwise("not", lambda x: ~(x > 0)),
    Pointwise("optimization_barrier", lax.optimization_barrier, lambda x: x),
    Pointwise("or", lambda x, y: (x > 0) | (y < 1), None, 2),
    _power(0.5),
    _power(-0.75),
    _power(2.5),
    _power(3.0),
    Pointwise("pow", lambda x: x.dtype.type(1.5) ** x, lambda x: mp.power(1.5, x)),
    Pointwise("round", jnp.round, _rounded),
    Pointwise("round", lambda x: lax.round(x, lax.RoundingMethod.AWAY_FROM_ZERO)),
    Pointwise("rsqrt", lax.rsqrt, lambda x: 1 / mp.sqrt(x)),
    Pointwise("select_n", lambda x, y: jnp.where(x > 0.5, y, -x), None, 2),
    Pointwise("sharding_constraint", lambda x: lax.with_sharding_constraint(x, _device())),
    Pointwise("sign", jnp.sign, mp.sign),
    Pointwise("sin", jnp.sin, mp.sin),
    Pointwise("sqrt", jnp.sqrt, mp.sqrt),
    Pointwise("square", jnp.square, lambda x: x**2),
    Pointwise("stop_gradient", lax.stop_gradient, lambda x: x),
    Pointwise("sub", lambda x, y: x - y, lambda x, y: x - y, 2),
    Pointwise("sub", lambda x: 0.3 - x),
    Pointwise("tanh", jnp.tanh, mp.tanh),
    Pointwise("tan", jnp.tan, mp.tan),
    Pointwise("sinh", jnp.sinh, lambda x: mp.sinh(x) if abs(x) < 1e4 else mp.sign(x) * mp.inf),
    Pointwise("cosh", jnp.cosh, lambda x: mp.cosh(x) if abs(x) < 1e4 else mp.inf),
    Pointwise("asinh", lax.asinh, mp.asinh),
    Pointwise("acosh", lax.acosh, mp.acosh),
    Pointwise("atanh", lax.atanh, _to_the_edge(mp.atanh)),
    Pointwise("asin", lax.asin, mp.asin),
    Pointwise("acos", lax.acos, mp.acos),
    Pointwise("erf_inv", lax.erf_inv, _to_the_edge(mp.erfinv)),
    Pointwise("atan2", lax.atan2, mp.atan2, 2),
    Pointwise("rem", lax.rem, _remainder, 2),
    Pointwise("rem", lambda x: jnp.fmod(x, 0.75), lambda x: _remainder(x, mp.mpf(0.75))),
    Pointwise("rem", lambda x: x % 3.0, lambda x: _floored(x, 3)),
    Pointwise("rem", lambda x, y: x % y, None, 2),
    Pointwise("xor", lambda x, y: (x > 0) ^ (y > 0), None, 2),
    # What the engine recognizes as one function of a number.
    Pointwise("exp", jax.nn.softplus, lambda x: mp.log1p(mp.exp(x)) if x < 1e4 else x),
    Pointwise("logistic", jax.nn.silu, lambda x: x / (1 + mp.exp(-x))),
    Pointwise("erfc", lambda x: jax.nn.gelu(x, approximate=False), lambda x: x * _erfc(-x / mp.sqrt(2)) / 2),
    Pointwise("tanh", lambda x: jax.nn.gelu(x)),
    Pointwise("max", jax.nn.relu, lambda x: max(x, mp.zero)),
    Pointwise("custom_jvp_call", lambda x, y: jnp.logaddexp(x, y), None, 2),
    Pointwise("exp", lambda x: jax.jvp(jax.nn.softplus, (x,), (jnp.ones_like(x),))[1], lambda x: 1 / (1 + mp.exp(-x))),
]


def _device() -> Any:
    return jax.sharding.SingleDeviceSharding(jax.devices()[0])


identify = lambda case: case.name


@pytest.mark.parametrize("case", POINTWISE, ids=identify)
def test_evaluations_are_inside(kind, case):
    rng = np.random.default_rng(0)
    ends = [boxes(rng, kind, 128) for _ in range(case.count)]
    samples = [rng.permuted(points(rng, *end), axis=0) for end in ends]
    regions = [bounds.Box(*end) for end in ends]
    compiled, eager = jax.jit(case.function)(*samples), case.function(*map(jnp.asarray, samples))
    for method in METHODS[1:]:
        with quickly():
            found = bounds.bound(case.function, *regions, method=method)
        assert found.assurance == "PROVED_FLOAT"
        for values in (compiled, eager):
            bad = outside(values, found.lower, found.upper)
            at = [[float(s[i, j]) for s in samples] for i, j in np.argwhere(bad)[:3]]
            assert not bad.any(), (method, at, np.asarray(values)[bad][:3])


@pytest.mark.parametrize("case", [case for case in POINTWISE if case.exact], ids=identify)
@pytest.mark.parametrize("kind", [pytest.param(KINDS[0], marks=pytest.mark.slow), KINDS[2]], indirect=True)
def test_real_values_are_inside(kind, case):
    rng = np.random.default_rng(1)
    ends = [boxes(rng, kind, 48) for _ in range(case.count)]
    ends = [[np.clip(e, -np.finfo(kind).max, np.finfo(kind).max) for e in end] for end in ends]
    samples = [points(rng, *end, count=2)[[0, 1, 4, 5]] for end in ends]
    exact = real(case.exact)
    for method in ("ibp", "crown"):
        with quickly():
            found = bounds.bound(case.function, *(bounds.Box(*end) for end in ends), method=method, rounding="real")
        assert found.assurance == "PROVED_REAL"
        lower, upper = np.asarray(found.lower), np.asarray(found.upper)
        for row in zip(*samples, strict=True):
            for j, x in enumerate(zip(*row, strict=True)):
                value = exact(*(mp.mpf(float(v)) for v in x))
                anything = lower[j] == -np.inf and upper[j] == np.inf
                assert anything or mp.mpf(float(lower[j])) <= value <= mp.mpf(float(upper[j])), (method, x, value)


class Structured(NamedTuple):
    """A function of arrays and the primitive it is about. `eager` where the bounds would take long to compile, `slow` for
    variants of other cases."""

    name: str
    function: Callable
    shapes: tuple[tuple[int, ...], ...]
    eager: bool = False
    slow: bool = False


pool = lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (2, 2), (2, 2), "VALID")
overlapping = lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (3, 2), (1, 2), "VALID")
mean_pool = lambda x: lax.reduce_window(x, 0.0, lax.add, (2, 2), (1, 2), ((0, 1), (1, 0)))
_weights = np.random.default_rng(5).normal(size=(64,))


def weights(like: Any, *shape: int) -> Any:
    return jnp.asarray(_weights[: math.prod(shape)].reshape(shape), like.dtype)


def conv(x: Any, groups: int = 1, **more: Any) -> Any:
    kernel = weights(x, 4, 2 // groups, 2, 2)
    return lax.conv_general_dilated(x[None], kernel, (1, 1), ((0, 1), (0, 1)), feature_group_count=groups, **more)


def _triangular(x: Any, **options: Any) -> Any:
    return lax.linalg.triangular_solve(weights(x, 4, 4) + 2 * jnp.eye(4, dtype=x.dtype), x, **options)


STRUCTURED = [
    Structured("add_any", jax.grad(lambda x: jnp.sum(jnp.sin(x) * x)), ((3,),)),
    Structured("argmax", lambda x: jnp.argmax(x, axis=0), ((4, 2),)),
    Structured("argmin", lambda x: jnp.argmin(x, axis=1), ((2, 4),)),
    Structured("broadcast_in_dim", lambda x: jnp.broadcast_to(x[:, None], (3, 2)) * 2, ((3,),)),
    Structured("concatenate", lambda x, y: jnp.concatenate([x, y, x[:1]]), ((3,), (2,))),
    Structured("concatenate", lambda x: jnp.concatenate([x, weights(x, 2)]) @ weights(x, 5, 3), ((3,),)),
    Structured("stack", lambda x, y: jnp.stack([x, y], axis=1) @ weights(x, 2), ((3,), (3,))),
    Structured("tile", lambda x: jnp.tile(x, (2, 2))[1:3] * 2, ((2, 3),)),
    Structured("conv_general_dilated", conv, ((2, 3, 4),), slow=True),
    Structured("conv_general_dilated", lambda x: conv(x, groups=2, rhs_dilation=(1, 2)), ((2, 3, 3),)),
    Structured(
        "conv_general_dilated",
        jax.grad(lambda x: jnp.sum(jnp.sin(conv(x, lhs_dilation=(2, 1))))),
        ((2, 2, 2),),
        slow=True,
    ),
    Structured("conv_general_dilated", lambda k: lax.conv(weights(k, 1, 2, 4, 4), k, (2, 1), "VALID"), ((3, 2, 2, 2),)),
    Structured("cumsum", lambda x: jnp.cumsum(x, axis=1), ((2, 5),), slow=True),
    Structured("cumsum", lambda x: lax.cumsum(x, axis=0, reverse=True), ((5,),)),
    Structured("dot_general", lambda x: weights(x, 3, 4) @ x, ((4,),)),
    Structured("dot_general", lambda x: x @ x, ((2, 2),)),
    Structured("dot_general", lambda x, y: x @ y, ((5,), (5,))),
    Structured("dot_general", lambda x, y: jnp.einsum("bij,bjk->bik", x, y), ((2, 2, 3), (2, 3, 2)), slow=True),
    Structured("dot_general", lambda x: jnp.einsum("bij,bjk->bik", x, weights(x, 2, 3, 2)), ((2, 2, 3),), slow=True),
    Structured("dot_general", lambda x, y: jnp.outer(x, y), ((3,), (2,)), slow=True),
    Structured("dynamic_slice", lambda x: lax.dynamic_slice(x, (1, 7), (2, 2)), ((3, 4),)),
    Structured("dynamic_update_slice", lambda x, y: lax.dynamic_update_slice(x, y, (1, 0)), ((3, 3), (2, 2))),
    Structured("dynamic_update_slice", lambda x: lax.dynamic_update_slice(x, weights(x, 2), (1,)), ((4,),), slow=True),
    Structured("gather", lambda x: x[jnp.asarray([2, 0, -1])], ((3, 2),)),
    Structured("gather", lambda x: jnp.take(x, jnp.asarray([5, 1]), mode="clip"), ((3,),)),
    Structured("lyapunov_dsl_logsumexp", _logsumexp.logsumexp, ((4,),), eager=True),
    Structured("lyapunov_dsl_margins", lambda x: _logsumexp.margins(x, jnp.asarray([1, 3])), ((2, 4),)),
    Structured("lyapunov_dsl_softmax_mean", _logsumexp.softmax_mean, ((4,), (4,)), eager=True),
    Structured("lyapunov_dsl_softmax_mean", _logsumexp.softmax_mean, ((2, 4), (2, 4)), slow=True),
    Structured("lyapunov_dsl_logsumexp", lambda x: _logsumexp.logsumexp(_logsumexp.margins(x, 2)), ((4,),), eager=True),
    Structured(
        "lyapunov_dsl_softmax_mean",
        jax.grad(lambda x: _logsumexp.logsumexp(_logsumexp.margins(x, 2))),
        ((4,),),
        eager=True,
    ),
    Structured("cummax", lambda x: lax.cummax(x, axis=1), ((2, 4),)),
    Structured("cummin", lambda x: lax.cummin(x, axis=0, reverse=True), ((3, 2),)),
    Structured("cumprod", lambda x: lax.cumprod(x, axis=0, reverse=True), ((3,),)),
    Structured("cumprod", lambda x: lax.cumprod(x, axis=1), ((2, 5),), slow=True),
    Structured("reduce_prod", lambda x: jnp.prod(x, axis=(0, 2)), ((2, 3, 2),)),
    Structured("reduce_prod", lambda x: jnp.prod(x[0] * x[1]) - x[1, 0], ((2, 3),)),
    Structured("mul", jax.grad(jnp.prod), ((4,),)),
    Structured("sort", lambda x: jnp.sort(x, axis=0), ((4, 2),)),
    Structured("sort", lambda x: jnp.sort(x), ((12,),)),
    Structured("sort", lambda x: jnp.median(x, axis=0) - x[0], ((4, 2),)),
    Structured("top_k", lambda x: lax.top_k(x, 2), ((2, 4),)),
    Structured("reduce_or", lambda x: jnp.where(jnp.any(x > 0.5, axis=1), x[:, 0], -x[:, 0]), ((3, 2),)),
    Structured("reduce_and", lambda x: jnp.all(x > 0.5, axis=(0, 1)), ((3, 2),)),
    Structured("reduce_xor", lambda x: lax.reduce_xor(x > 0.5, axes=(1,)), ((3, 3),)),
    Structured("unvmap_any", lambda x: jnp.where(eqx.internal.unvmap_any(x > 0.5), x, -x), ((3,),)),
    Structured("unvmap_all", lambda x: jnp.where(eqx.internal.unvmap_all(x > 0.5), x, -x), ((3,),)),
    Structured("scatter", lambda x, y: x.at[jnp.asarray([2, 0])].set(y), ((4,), (2,))),
    Structured("scatter", lambda x: x.at[1, ::2].set(x[0, 1]), ((3, 4),)),
    Structured("scatter-add", lambda x, y: x.at[jnp.asarray([2, 0, 2])].add(y), ((3, 2), (3, 2))),
    Structured("scatter-add", jax.grad(lambda x: jnp.sum(jnp.sin(x[jnp.asarray([2, 0, -1])]))), ((3, 2),)),
    Structured("scatter-sub", lambda x, y: x.at[jnp.asarray([2, 2])].subtract(y), ((3,), (2,))),
    Structured("scatter-mul", lambda x, y: x.at[jnp.asarray([2, 0])].multiply(y), ((3,), (2,))),
    Structured("scatter-min", lambda x, y: x.at[jnp.asarray([2, 0])].min(y), ((3,), (2,))),
    Structured("scatter-max", lambda x, y: x.at[jnp.asarray([1])].max(y), ((3,), (1,))),
    Structured("triangular_solve", lambda x: _triangular(x, lower=True, left_side=True), ((4, 2),)),
    Structured("triangular_solve", lambda x: _triangular(x, left_side=True, transpose_a=True), ((4, 2),)),
    Structured("triangular_solve", lambda x: _triangular(x, lower=True, unit_diagonal=True), ((2, 4),)),
    Structured("triangular_solve", lambda x: jnp.linalg.solve(weights(x, 4, 4), x), ((4,),)),
    Structured("triangular_solve", jax.grad(lambda x: jnp.sum(jnp.linalg.solve(weights(x, 4, 4), x) ** 2)), ((4,),)),
    Structured("pad", lambda x: lax.pad(x, x[0, 0], ((1, 0, 1), (-1, 2, 0))), ((3, 3),)),
    Structured("reduce_max", lambda x: jnp.max(x, axis=0), ((4, 2),)),
    Structured("reduce_max", lambda x: jnp.max(jnp.argmax(x, axis=0)), ((4, 2),)),
    Structured("reduce_min", lambda x: jnp.min(x, axis=(0, 1)), ((2, 2),)),
    Structured("reduce_sum", lambda x: jnp.sum(x, axis=(0, 2)), ((3, 2, 4),)),
    Structured("reduce_sum", lambda x: jnp.sum(x > 0, axis=0), ((3, 2),)),
    Structured("reduce_window_max", pool, ((4, 5),)),
    Structured("reduce_window_sum", mean_pool, ((4, 5),)),
    Structured("reshape", lambda x: x.reshape(2, 6) * 2, ((3, 4),)),
    Structured("rev", lambda x: jnp.flip(x, 1), ((3, 4),)),
    Structured("select_and_gather_add", lambda x, t: jax.jvp(overlapping, (x,), (t,))[1], ((4, 4), (4, 4))),
    Structured("select_and_scatter_add", jax.grad(lambda x: jnp.sum(jnp.sin(pool(x)))), ((2, 4),)),
    Structured("select_and_scatter_add", jax.grad(lambda x: jnp.sum(overlapping(x) ** 2)), ((4, 4),), slow=True),
    Structured("slice", lambda x: x[1::2, :2], ((4, 3),)),
    Structured("split", lambda x: jnp.split(x, [1, 3], axis=1), ((2, 4),)),
    Structured("squeeze", lambda x: jnp.squeeze(x * 2, 1), ((3, 1, 2),)),
    Structured("unstack", lambda x: jnp.stack([sum(jnp.unstack(x)), x[1]]), ((2, 3),)),
    Structured("transpose", lambda x: jnp.transpose(x * 2, (2, 0, 1)), ((2, 3, 2),)),
    # What the engine recognizes in several operations.
    Structured("reduce_max", jax.nn.softmax, ((4,),), eager=True),
    Structured("reduce_max", lambda x: jax.nn.softmax(x, axis=0), ((4, 2),), slow=True),
    Structured("reduce_max", jax.nn.logsumexp, ((4,),), eager=True),
    Structured("reduce_max", lambda x: jax.nn.logsumexp(x, axis=0, keepdims=True), ((4, 2),), slow=True),
    Structured("reduce_max", lambda x: jax.nn.logsumexp(x) - x[1], ((4,),), eager=True),
    Structured("reduce_max", lambda x: -jax.nn.log_softmax(x)[2], ((4,),), eager=True),
    Structured("reduce_max", lambda x, t: jax.jvp(jax.nn.softmax, (x,), (t,))[1], ((4,), (4,)), eager=True),
    Structured("reduce_max", lambda x, t: jax.jvp(jax.nn.logsumexp, (x,), (t,))[1], ((4,), (4,)), eager=True),
    Structured("reduce_max", jax.grad(lambda x: jax.nn.logsumexp(x) - x[0]), ((4,),), eager=True),
    Structured("reduce_max", lambda x: jax.nn.softmax(x) @ weights(x, 4, 3), ((4,),), eager=True),
]


def samples_of(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any, scale: float, half: float) -> np.ndarray:
    """Random points and corners of a box, which they span."""
    center = scale * rng.normal(size=shape)
    inner = rng.uniform(-1, 1, (24, *shape))
    corners = rng.choice([-1.0, 1.0], (24, *shape))
    return (center + half * np.concatenate([inner, corners])).astype(dtype)


def _arrays() -> list[Any]:
    """Cases in every type, one of which is fast."""
    return [
        pytest.param(kind, case, id=f"{kind}-{case.name}", marks=[pytest.mark.slow] * (case.slow or kind != KINDS[1]))
        for kind in KINDS
        for case in STRUCTURED
    ]


@pytest.mark.parametrize(("kind", "case"), _arrays(), indirect=["kind"])
def test_evaluations_of_arrays_are_inside(kind, case):
    rng = np.random.default_rng(2)
    sizes = ((1.0, 0.0), (1.0, 0.5), (40.0, 1.0))
    draws = [[samples_of(rng, shape, kind, *size) for shape in case.shapes] for size in sizes]
    # One entry of each argument reaches infinity, where differences of infinities are NaN.
    last = [samples_of(rng, shape, kind, 1.0, 0.5) for shape in case.shapes]
    for s in last:
        s[:, *[0] * (s.ndim - 1)] = np.linspace(0.3, 3, len(s))
        s[3, *[0] * (s.ndim - 1)] = np.inf
    # The tightest method intersects what the others know, and shows what is wrong with any.
    check(case.function, *draws, last, methods=METHODS[-1:], eager=case.eager)


# Other versions of JAX make these of the same functions.
ELSEWHERE = {"copy_p", "expand_dims", "real", "round away from zero"}
ELSEWHERE |= {f"scatter_{name}" for name in ("add", "sub", "mul", "min", "max")}


def primitives(jaxpr: Any) -> set[str]:
    """The names of all primitives of a jaxpr and of those within."""
    found = set()
    for equation in jaxpr.eqns:
        found.add(equation.primitive.name)
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            found |= primitives(inner) if hasattr(inner, "eqns") else set()
    return found


def test_every_rule_has_a_case():
    seen = set()
    for case in POINTWISE:
        made = primitives(jax.make_jaxpr(case.function)(*[jnp.zeros(2, jnp.float32)] * case.count).jaxpr)
        seen |= {case.name} & made
    for case in STRUCTURED:
        made = primitives(jax.make_jaxpr(case.function)(*(jnp.zeros(s, jnp.float32) for s in case.shapes)).jaxpr)
        seen |= {case.name} & made
    assert set(TRANSLATIONS) - seen == ELSEWHERE


# Functions whose accuracy is XLA's or NumPy's own, with the arguments to measure at and what the rules allow, as of the values.
MEASURED = {
    "exp": (jnp.exp, mp.exp, (-80, 80), lambda x: _scalar._exp.ulps + abs(x)),
    "exp2": (jnp.exp2, lambda x: mp.power(2, x), (-120, 120), lambda x: _scalar._exp2.ulps + abs(x)),
    "expm1": (jnp.expm1, mp.expm1, (-20, 80), lambda x: _scalar._expm1.ulps),
    "log": (jnp.log, mp.log, (0, 10), lambda x: _scalar._log.ulps),
    "log1p": (jnp.log1p, mp.log1p, (-0.999, 3), lambda x: _scalar._log1p.ulps),
    "sqrt": (jnp.sqrt, mp.sqrt, (0, 10), lambda x: _scalar._sqrt.ulps),
    "rsqrt": (lax.rsqrt, lambda x: 1 / mp.sqrt(x), (0, 10), lambda x: _scalar._rsqrt.ulps),
    "tanh": (jnp.tanh, mp.tanh, (-12, 12), lambda x: _scalar._tanh.ulps),
    "logistic": (jax.nn.sigmoid, lambda x: 1 / (1 + mp.exp(-x)), (-30, 30), lambda x: _scalar._logistic.ulps),
    "erf": (lax.erf, mp.erf, (-6, 6), lambda x: _scalar._erf.ulps),
    "atan": (jnp.arctan, mp.atan, (-12, 12), lambda x: _scalar._atan.ulps),
    "softplus": (jax.nn.softplus, lambda x: mp.log1p(mp.exp(x)), (-30, 30), lambda x: _smooth._softplus.ulps),
    "erfc": (lax.erfc, _erfc, (-6, 9), lambda x: 512),
    "sinh": (jnp.sinh, mp.sinh, (-80, 80), lambda x: _trigonometric._sinh.ulps),
    "cosh": (jnp.cosh, mp.cosh, (-80, 80), lambda x: _trigonometric._cosh.ulps),
    "asinh": (jnp.arcsinh, mp.asinh, (-1e4, 1e4), lambda x: _trigonometric._asinh.ulps),
    "atanh": (jnp.arctanh, mp.atanh, (-0.999, 0.999), lambda x: _trigonometric._atanh.ulps),
    "asin": (jnp.arcsin, mp.asin, (-1, 1), lambda x: _trigonometric._asin.ulps),
    "tan": (jnp.tan, mp.tan, (-1.57, 1.57), lambda x: 64),
    "acos": (jnp.arccos, mp.acos, (-1, 1), lambda x: 64),
    "acosh": (lax.acosh, mp.acosh, (1, 1e4), lambda x: _trigonometric._acosh.ulps),
    "atan2": (
        lambda x: lax.atan2(x, jnp.full_like(x, -0.75)),
        lambda x: mp.atan2(x, mp.mpf(-0.75)),
        (-9, 9),
        lambda x: 64,
    ),
    "pow": (lambda x: x ** x.dtype.type(0.375), lambda x: mp.power(x, mp.mpf(0.375)), (0, 100), lambda x: 64),
    "erf_inv": (lax.erf_inv, mp.erfinv, (-0.999, 0.999), lambda x: _trigonometric._erf_inv.ulps),
}
# Bounds are evaluated by either.
EVALUATORS = {"xla": lambda function, x: np.asarray(jax.jit(function)(x)), "numpy": evaluated}


@pytest.mark.parametrize("evaluator", EVALUATORS)
@pytest.mark.parametrize("name", MEASURED)
def test_the_functions_of_evaluators_are_as_good_as_the_rules_assume(precision, name, evaluator):
    # With a factor to spare: other points, other processors.
    function, exact, (low, high), allowed = MEASURED[name]
    rng = np.random.default_rng(4)
    near = np.exp(rng.uniform(-30, math.log(min(high, 1.0)), 150)) * rng.choice([1] if low == 0 else [-1, 1], 150)
    info = np.finfo(precision)
    # Of every size that the type has, as far as results are numbers of it.
    whole = np.exp2(rng.uniform(info.minexp, info.maxexp - 1, 150)) * rng.choice([-1, 1], 150)
    x = np.concatenate([rng.uniform(low, high, 250), np.clip(near, low, high), whole[(low < whole) & (whole < high)]])
    x = x.astype(precision)
    got = EVALUATORS[evaluator](function, x)
    for at, value in zip(x.tolist(), got.tolist(), strict=True):
        expected = exact(mp.mpf(at))
        room = 0.5 * allowed(at) * (float(info.eps) * abs(expected) + float(info.tiny))
        assert abs(value - expected) <= room, (at, value)


@pytest.mark.parametrize("evaluator", EVALUATORS)
@pytest.mark.parametrize("function", ["sin", "cos"])
def test_sine_and_cosine_keep_an_absolute_error_at_large_arguments(precision, function, evaluator):
    rng = np.random.default_rng(4)
    x = np.concatenate([rng.uniform(-top, top, 40) for top in (1, 1e3, 1e8, 1e20, 1e37)]).astype(precision)
    got, exact = EVALUATORS[evaluator](getattr(jnp, function), x), getattr(mp, function)
    for at, value in zip(x.tolist(), got.tolist(), strict=True):
        assert abs(value - exact(mp.mpf(at))) <= 16 * float(np.finfo(precision).eps)


SMOOTH = {
    "silu": (_smooth.silu, lambda x: x / (1 + mp.exp(-x)), (-0.1, 0.5)),
    "gelu": (_smooth.gelu, lambda x: x * _erfc(-x / mp.sqrt(2)) / 2, (-0.11, 0.8)),
    "gelu by tanh": (
        _smooth.tanh_gelu,
        lambda x: x * (1 + mp.tanh(mp.sqrt(2 / mp.pi) * (x + mp.mpf("0.044715") * x**3))) / 2,
        (-0.13, 0.81),
    ),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_the_second_derivatives_that_the_rules_assume(name):
    # The rules close over these numbers; they are repeated here.
    _, exact, (least, most) = SMOOTH[name]
    step = mp.mpf(2) ** -20
    for x in np.linspace(-8, 8, 641):
        x = mp.mpf(float(x))
        second = (exact(x + step) - 2 * exact(x) + exact(x - step)) / step**2
        assert least < second < most, x


@pytest.mark.parametrize(("chosen", "right", "left"), [(jnp.maximum, 2.0, -3.0), (jnp.minimum, -3.0, 2.0)])
def test_the_derivative_of_the_larger_of_two_is_known_where_they_are_apart(chosen, right, left):
    slope = jax.grad(lambda s: chosen(2 * s, -3 * s))
    with jax.enable_x64(True):
        of = lambda low, high, f, mode: bounds.bound(f, bounds.Box(jnp.asarray(low), jnp.asarray(high)), rounding=mode)
        for low, high, expected in ((0.5, 1.0, right), (-1.0, -0.5, left)):
            found = of(low, high, slope, "real")
            np.testing.assert_allclose([found.lower, found.upper], expected, rtol=1e-12)
        # At the kink both sides count, and their mean, which is what JAX takes.
        found = of(0.0, 0.0, slope, "real")
        assert found.lower <= -3
        assert found.upper >= 2
        # Evaluated anew for the comparison, a rounded number may differ from the one that was chosen: then the derivative is 0.
        found = of(0.5, 1.0, jax.grad(lambda s: chosen(s * 0.1 + 0.3, -3 * s * 1.1)), "float")
        assert found.lower <= 0 <= found.upper
