"""Norms of linear maps and Lipschitz constants of functions, never below the truth.

Power iteration comes from below and bounds nothing. Here norms are those of Gram matrices (Delattre et al. 2023), whose powers
bound the largest singular value from above at every step, and stacks of layers go through a quadratic form whose positivity is
checked by a Cholesky factorization (Fazlyab et al. 2019; Rump 2006).
"""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, ArrayLike, Float

from .._cache import cached
from .._types import is_traced, shown
from ._bound import bound
from ._interval import eps, tiny, wide
from ._jumps import doubtful
from ._region import Ball, Box

NORMS = ("2", "inf", ("2", "inf"))
# Bits of the exponent of a Gram matrix: with 12, a bound is off by a factor of at most rank^(1/8192).
SQUARINGS = 12


def spectral_norm(matrix: Float[Any, "rows columns"], squarings: int = SQUARINGS) -> Float[Array, ""]:
    """The largest singular value of a matrix, from above, rounding counted. May be compiled, mapped and differentiated.

    **Arguments:**

    - `matrix`: its entries are taken as they are; bounds are in float64 where JAX has it enabled.
    - `squarings`: how often the Gram matrix is squared; without rounding the result is at most rank^(1/2^(squarings + 1)) times the
        norm.

    ‖A‖₂² <= ‖AᵀA‖₂, again and again, and in the end ‖A‖₂ <= ‖A‖_F. What a product loses in rounding, at most n u ‖A‖_F² and a
    little, is added each time.

    **Returns:** a scalar, never below the norm of the matrix as it is stored.
    """
    if _is_wider(matrix):
        return _rounded_up(lambda: spectral_norm(matrix, squarings))
    if _is_zero(matrix):
        return jnp.zeros((), wide())
    return _spectral_norm(jnp.asarray(matrix, wide()), squarings)


@partial(jax.jit, static_argnames="squarings")
def _spectral_norm(matrix: Float[Array, "rows columns"], squarings: int) -> Float[Array, ""]:
    a = matrix
    if a.shape[0] < a.shape[1]:
        a = a.T
    unit = eps(wide())
    size = (max(a.shape) + 8) * unit
    scales, errors = [], []
    frobenius = jnp.zeros((), wide())
    for step in range(squarings + 1):
        # Divided by a power of 2, which rounds nothing; a zero matrix stays as it is.
        largest = jnp.max(jnp.abs(a)) if a.size else jnp.zeros((), wide())
        exponent = jnp.ceil(jnp.log2(jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)))
        scale = jnp.ldexp(jnp.ones((), a.dtype), jax.lax.stop_gradient(exponent).astype(int))
        a = a / scale
        squares = jnp.sum(a * a) * (1 + size * a.shape[-1])
        frobenius = jnp.sqrt(jnp.where(squares > 0, squares, 1)) * jnp.where(squares > 0, 1 + 4 * unit, 0)
        scales.append(scale)
        errors.append(size * squares + a.size * tiny(wide()))
        if step < squarings:
            a = jnp.matmul(a.T, a, precision="highest")
    found = frobenius
    for step in reversed(range(squarings)):
        inside = found * scales[step + 1] + errors[step]
        found = jnp.sqrt(jnp.where(inside > 0, inside, 1)) * jnp.where(inside > 0, 1 + 4 * unit, 0)
    found = found * scales[0] * (1 + 4 * unit)
    # What is normalized to entries of about 1 loses nothing to underflow that a sum could see; subnormal entries may count as 0.
    # Roots of what is lost would make much of nothing.
    found = jnp.where(jnp.max(jnp.abs(matrix), initial=0) < tiny(wide()), 0, found)
    found = jnp.maximum(found, 2 * math.sqrt(max(matrix.size, 1)) * tiny(wide()))
    return jnp.where(jnp.all(jnp.isfinite(matrix)) & jnp.isfinite(found), found, jnp.inf)


def _is_wider(array: Any) -> bool:
    """Whether an array has more digits than what is computed in."""
    return getattr(array, "dtype", None) == np.float64 and wide() != np.float64


def _rounded_up(norm: Callable[[], Any]) -> Any:
    """A norm that was computed in float64, where JAX has that disabled."""
    with jax.enable_x64(True):
        found = np.asarray(norm(), np.float64)
    return jnp.asarray(np.nextafter(found.astype(np.float32), np.float32(np.inf)))


def _is_zero(matrix: ArrayLike) -> bool:
    """Whether all entries are known to be 0. Compiled programs may take subnormal numbers for 0 also where their bits are compared,
    so of what is traced that is not known."""
    return not is_traced(matrix) and not np.asarray(matrix).any()


def _largest_sum(size: Any) -> Any:
    """The largest sum of a row of numbers >= 0, rounded up: the norm from the largest entry to the largest entry."""
    return jnp.max(jnp.sum(size, axis=-1)) * (1 + (size.shape[-1] + 2) * eps(wide()))


def jacobian_norm(lower: Any, upper: Any, norm: Any) -> Float[Array, ""]:
    """The norm, at most, of all matrices between two; `norm` as of `lipschitz`."""
    size = jnp.maximum(jnp.abs(lower), jnp.abs(upper))
    good = jnp.all(jnp.isfinite(size))
    lower, upper, size = (jnp.where(good, v, 0) for v in (lower, upper, size))
    if norm == "inf":
        return jnp.where(good, _largest_sum(size), jnp.inf)
    if norm == ("2", "inf"):
        largest = jnp.max(size)
        unit = jnp.where(largest > 0, largest, 1)
        squares = jnp.max(jnp.sum(jnp.square(size / unit), axis=-1)) * (1 + (size.shape[-1] + 6) * eps(wide()))
        found = jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)) * unit * (1 + 4 * eps(wide())), 0)
        return jnp.where(good, found if _is_zero(size) else found + tiny(wide()), jnp.inf)
    center = 0.5 * lower + 0.5 * upper
    half = jnp.maximum(upper - center, center - lower) * (1 + 4 * eps(wide())) + tiny(wide())
    # ‖R‖₂² <= ‖R‖₁ ‖R‖_∞ for what is left around the center.
    rest = jnp.sqrt(_largest_sum(half)) * jnp.sqrt(_largest_sum(half.T)) * (1 + 8 * eps(wide()))
    found = jnp.minimum(spectral_norm(center) + rest, spectral_norm(size)) * (1 + 2 * eps(wide()))
    return jnp.where(good, found, jnp.inf)


@cached()
def lipschitz(
    function: Callable[..., Any],
    *arguments: Any,
    norm: Any = "2",
    argnum: int = 0,
    method: Any = "crown",
) -> Float[Array, ""]:
    """A Lipschitz constant of a function on a region, in one of its arguments and for all values of the others.

    **Arguments:**

    - `function`: of arrays or PyTrees of them, continuous and piecewise smooth (ReLU is).
    - `arguments`: of it; regions ([`lyapunov_dsl.bounds.Box`][], [`lyapunov_dsl.bounds.Ball`][]) where they vary.
    - `norm`: `"2"` or `"inf"`, of inputs and of outputs, over all entries; or `("2", "inf")`, the former of inputs, the latter of outputs.
    - `argnum`: the argument it is about, a region.
    - `method`: of [`lyapunov_dsl.bounds.bound`][].

    The norm of the Jacobian, at most, over the region, which is convex. Infinite where nothing is known, and for a function that may
    jump: that rounds, compares or chooses (`jnp.where`; `jax.nn.relu` and `jnp.maximum` are fine), or whose derivative was written by hand.

    **Returns:** a scalar, never below the least such constant in real arithmetic; infinity where none is known.

    **Raises:** `ValueError` for another norm or method, or an argument that is no region.
    """
    if norm not in NORMS:
        raise ValueError(f"norm: expected one of {NORMS}, got {norm!r}")
    if not (0 <= argnum < len(arguments) and isinstance(arguments[argnum], Box | Ball)):
        raise ValueError(f"argnum: expected the number of an argument that is a region, got {argnum}")
    if method not in ("ibp", "crown-ibp", "crown"):
        raise ValueError(f"method: expected 'ibp', 'crown-ibp' or 'crown', got {shown(method)}")

    def jacobian(*values: Any) -> Any:
        flat, unravel = ravel_pytree(values[argnum])
        at = lambda v: ravel_pytree(function(*values[:argnum], unravel(v), *values[argnum + 1 :]))[0]
        return jax.jacfwd(at)(flat)

    # A step has the derivative 0.
    if doubtful(jax.make_jaxpr(function)(*(a.like if isinstance(a, Box | Ball) else a for a in arguments))):
        return jnp.asarray(jnp.inf, wide())
    found = bound(jacobian, *arguments, method=method, rounding="real")
    return jacobian_norm(jnp.asarray(found.lower, wide()), jnp.asarray(found.upper, wide()), norm)


def convolution_norm(
    kernel: Float[Any, "outputs inputs height width"], size: int | None = None, squarings: int = 6
) -> Float[Array, ""]:
    """The L2 norm of a two-dimensional convolution, from above: with any padding by zeros, any stride, images of any size.

    **Arguments:**

    - `kernel`: [outputs, inputs, height, width].
    - `size`: the side of the largest image after padding. With it the bound is that of a periodic convolution on a torus that the
        image and the kernel fit into side by side, of which the convolution is a part. Without it, of images of all sizes.
    - `squarings`: as of [`lyapunov_dsl.bounds.spectral_norm`][].

    The norm of a periodic convolution is that of its largest frequency. Between those of a grid of n, a trigonometric polynomial of
    degree d is at most 1 / cos(π d / n) times the largest value on it (Ehlich and Zeller 1964; Pfister and Bresler 2018).

    **Returns:** a scalar, never below the norm.
    """
    if _is_wider(kernel):
        return _rounded_up(lambda: convolution_norm(kernel, size, squarings))
    kernel = jnp.asarray(kernel, wide())
    _, _, height, width = kernel.shape
    # The frequencies of a torus are the multiples of 2π / n.
    n = 8 * max(height, width) if size is None else size + max(height, width) - 1
    degrees = [] if size is not None else [k // 2 for k in (height, width)]
    between = 1 / math.prod(math.cos(math.pi * d / n) for d in degrees) * (1 + 16 * eps(np.float64))
    grid = 2 * math.pi * jnp.arange(n) / n
    rows, columns = (jnp.arange(v) for v in (height, width))
    wave = grid[:, None, None, None] * rows[:, None] + grid[None, :, None, None] * columns[None, :]
    real, imaginary = (jnp.einsum("abhw,oihw->aboi", f(wave), kernel, precision="highest") for f in (jnp.cos, jnp.sin))
    # A complex matrix has the norm of this real one.
    matrices = jnp.concatenate(
        [jnp.concatenate([real, -imaginary], -1), jnp.concatenate([imaginary, real], -1)], -2
    ).reshape(n * n, 2 * kernel.shape[0], 2 * kernel.shape[1])
    largest = jnp.max(jax.lax.map(lambda m: spectral_norm(m, squarings), matrices, batch_size=64))
    # Rounding of the waves, whose arguments are up to 2π (height + width), and of sums of |k|.
    whole = jnp.sqrt(_largest_sum(sums := jnp.sum(jnp.abs(kernel), axis=(2, 3))) * _largest_sum(sums.T))
    lost = (64 * (height + width) + height * width) * eps(wide())
    found = jnp.where(_is_zero(kernel), 0, (largest + whole * lost) * between + kernel.size * tiny(wide()))
    return jnp.where(jnp.isfinite(found), found, jnp.inf)


def stack_norm(weights: Sequence[Any], slopes: tuple[float, float] = (0.0, 1.0), steps: int = 200) -> float:
    """A Lipschitz constant (L2) of x -> W_n φ(... φ(W_1 x)), for activations φ that work entry by entry with slopes in an interval.

    **Arguments:**

    - `weights`: matrices W_1, ..., W_n. Biases change nothing.
    - `slopes`: the least and the largest slope: (0, 1) for ReLU, tanh, softplus.
    - `steps`: of the optimization of the multipliers, which starts from a closed form. More are tighter; every number is sound.

    With Δz_i the differences of two evaluations, slopes in [0, 1] say Δz_i'T(W_i Δz_{i-1} - Δz_i) >= 0 for every diagonal T >= 0
    (LipSDP, Fazlyab et al. 2019). L² |Δz_0|² - |W_n Δz_{n-1}|² - 2 Σ of these is a quadratic form in all Δz; if it is positive, L is a
    Lipschitz constant. Multipliers T come layer by layer (Xu and Sivaranjani 2024), then from gradient descent, and the form that
    results is checked as a whole in floating point with its rounding (Rump 2006). Never above the product of the norms of the layers.

    **Returns:** L, never below the least such constant, and at most the product of the layers' norms.

    **Raises:** `ValueError` for matrices that do not fit, or slopes other than least <= 0 <= largest or 0 <= least < largest.
    """
    matrices = [np.asarray(w, np.float64) for w in weights]
    low, high = (float(s) for s in slopes)
    if not matrices or any(m.ndim != 2 or not np.isfinite(m).all() for m in matrices):
        raise ValueError("weights: expected finite matrices")
    for first, second in zip(matrices, matrices[1:], strict=False):
        if first.shape[0] != second.shape[1]:
            raise ValueError(f"weights: expected matrices that follow each other, got {first.shape} and {second.shape}")
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"slopes: expected (least, largest), got {slopes!r}")
    steepest = max(abs(low), abs(high))
    with jax.enable_x64(True):
        norms = [float(spectral_norm(m)) for m in matrices]
        plain = _product([*norms, *([steepest] * (len(matrices) - 1))])
        if len(matrices) == 1 or low < 0:
            return plain
        # φ(v) = low v + (high - low) ψ(v) with slopes of ψ in [0, 1]; only low = 0 leaves the stack one of ψ.
        if low > 0:
            low = 0.0
        scaled = [matrices[0], *(high * m for m in matrices[1:])]
        bound_of = _Layered(scaled)
        logs = bound_of.start
        best, least = logs, float(bound_of.value(logs))
        moment = [jnp.zeros_like(v) for v in logs]
        for step in range(steps):
            value, slope = bound_of.both(logs)
            if float(value) < least:
                best, least = logs, float(value)
            moment = [0.9 * m + g for m, g in zip(moment, slope, strict=True)]
            rate = 0.1 * (1 - step / steps) / (jnp.sqrt(sum(jnp.sum(m * m) for m in moment)) + 1e-30)
            logs = [v - rate * math.sqrt(v.size) * m for v, m in zip(logs, moment, strict=True)]
        multipliers = [np.exp(np.asarray(v)) for v in best]
    for more in (1e-9, 1e-7, 1e-5, 1e-3):
        candidate = least * (1 + more)
        if candidate < plain and _proved(scaled, [t * candidate**2 for t in multipliers], candidate):
            return candidate * (1 + 8 * len(matrices) * eps(np.float64))
    return plain


def _product(factors: Sequence[float]) -> float:
    """The product of numbers >= 0, rounded up, whatever the products on the way are."""
    if not all(map(math.isfinite, factors)):
        return math.inf
    exact = math.prod(map(Fraction, factors))
    try:
        return math.nextafter(float(exact), math.inf) if exact else 0.0
    except OverflowError:
        return math.inf


class _Layered:
    """The Lipschitz constant that multipliers give, as a function of their logarithms."""

    def __init__(self, matrices: Sequence[np.ndarray]):
        self.matrices = [jnp.asarray(m) for m in matrices]
        self.value, self.both = jax.jit(self._value), jax.jit(jax.value_and_grad(self._value))
        self.start = self._start()

    def _start(self) -> list[Any]:
        """T_i = 1 / ‖W_i M⁻¹ W_iᵀ‖ for each layer."""
        form, out = jnp.eye(self.matrices[0].shape[1]), []
        for w in self.matrices[:-1]:
            through = w @ jnp.linalg.solve(form, w.T)
            t = 1 / jnp.maximum(jnp.linalg.norm(through, 2), 1e-12)
            form = 2 * t * jnp.eye(len(w)) - t * t * through
            out.append(jnp.full(len(w), jnp.log(t)))
        return out

    def _value(self, logs: Any) -> Any:
        form = jnp.eye(self.matrices[0].shape[1])
        good = jnp.asarray(True)
        for w, log in zip(self.matrices, logs, strict=False):
            t = jnp.exp(log)
            through = w @ jnp.linalg.solve(form, w.T)
            form = 2 * jnp.diag(t) - t[:, None] * through * t
            good = good & (jnp.linalg.eigvalsh(form)[0] > 0)
        w = self.matrices[-1]
        largest = jnp.linalg.eigvalsh(w @ jnp.linalg.solve(form, w.T))[-1]
        return jnp.where(good & (largest > 0), jnp.sqrt(jnp.where(largest > 0, largest, 1)), jnp.inf)


def _proved(matrices: Sequence[np.ndarray], multipliers: Sequence[np.ndarray], constant: float) -> bool:
    """Whether the quadratic form of a Lipschitz constant is positive definite, by a factorization in floating point."""
    sizes = [matrices[0].shape[1], *(len(m) for m in matrices[:-1])]
    ends = np.cumsum([0, *sizes])
    form = np.zeros((ends[-1], ends[-1]))
    at = [slice(a, b) for a, b in zip(ends, ends[1:], strict=False)]
    form[at[0], at[0]] = constant * constant * (1 - 4 * eps(np.float64)) * np.eye(sizes[0])
    for i, (w, t) in enumerate(zip(matrices, multipliers, strict=False)):
        form[at[i + 1], at[i + 1]] += 2 * np.diag(t)
        form[at[i + 1], at[i]] -= t[:, None] * w
        form[at[i], at[i + 1]] -= (t[:, None] * w).T
    last = matrices[-1]
    form[at[-1], at[-1]] -= last.T @ last
    # Of the entries: products round once, Gram matrices as often as they have rows.
    unit = eps(np.float64)
    lost = 2 * unit * np.abs(form) + (len(last) + 2) * unit * _padded(np.abs(last).T @ np.abs(last), form.shape)
    error = float(np.abs(lost).sum(axis=1).max()) * (1 + len(form) * unit)
    trace = float(np.trace(form))
    if not (np.isfinite(form).all() and math.isfinite(error)):
        return False
    # Rump 2006: a factorization that succeeds with so much less on the diagonal proves that the matrix is positive definite.
    room = 2 * (len(form) + 3) * unit * abs(trace) + error + tiny(np.float64)
    try:
        np.linalg.cholesky(form - (1 + 1e-9) * room * np.eye(len(form)))
    except np.linalg.LinAlgError:
        return False
    return trace > 0


def _padded(block: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A matrix with a block in its last corner."""
    out = np.zeros(shape)
    out[-len(block) :, -len(block) :] = block
    return out
