"""The mean of values under a softmax, and differences of which one of two equal evaluations has the better bounds.

m(a, t) = Σ p_j t_j with p = softmax(a) is what the derivative of log-sum-exp along t is.
"""

from typing import Any

import jax
import jax.numpy as jnp

from ._interval import Interval, eps, intersect, magnitude, tiny, wide, zero_safe
from ._rule import NONE, Node, Plane, Relaxation, Rule, added, once, roundoff
from ._softmax import (
    Planes,
    by_rows,
    exponentials,
    lost_exponents,
    not_finite,
    softmax_bounds,
    softmax_planes,
    steps_of,
    voided,
    widest_spread,
)


def _mean_bad(a: Interval, t: Interval) -> Any:
    return (not_finite(a) | not_finite(t))[..., 0]


def _mean_most(lower: Any, upper: Any, t: Any) -> Any:
    """The largest mean of t over all softmaxes of the box: the weights of all t above some level are largest, the others
    least."""
    low, high = exponentials(lower, upper)
    chosen = t[..., None, :] >= t[..., :, None]
    weights = jnp.where(chosen, high[..., None, :], low[..., None, :])
    total = jnp.maximum(jnp.sum(weights, axis=-1), tiny(wide()))
    return jnp.max(jnp.sum(weights * t[..., None, :], axis=-1) / total, axis=-1)


def _mean_range(node: Node, a: Interval, t: Interval) -> Interval:
    bad = _mean_bad(a, t)
    lower, upper = (jnp.where(bad[..., None], 0, v) for v in a)
    low, high = (jnp.where(bad[..., None], 0, v) for v in t)
    return voided(bad, Interval(-_mean_most(lower, upper, -low), _mean_most(lower, upper, high)))


def _mean_slack(node: Node, out: Interval, a: Interval, t: Interval) -> Any:
    size = jnp.max(magnitude(t), axis=-1)
    slack = added(roundoff(node, steps_of(a), jnp.where(jnp.isfinite(size), size, 0)), lost_exponents(node, a))
    # The sum that is divided may overflow though the mean does not.
    return jnp.where(size * t.lower.shape[-1] < 0.25 * float(jnp.finfo(node.dtype).max), slack, jnp.inf)


def _psi(d: Any) -> Any:
    """exp(d) - 1 - d for d >= 0, rounded up."""
    small = d < 0.01
    series = d * d * (0.5 + d * (1 / 6 + d * (1 / 24 + d / 100)))
    safe = jnp.minimum(d, 600.0)
    return jnp.where(small, series, jnp.expm1(safe) - safe) * (1 + 512 * eps(wide()))


def _by_curvature(lower: Any, upper: Any, t: Any) -> tuple[Any, Any, Any]:
    """(coefficients, bias, gap at the center) of a plane above m(a, t) for one t, good on small boxes.

    With p the softmax at the center c, u = t - Σ p t and d = a - c - Σ p (a - c), exactly
    m(a, t) = Σ p t + A + Σ p_j (u_j - A) ψ(d_j) / Z, with A = Σ p u d, ψ(d) = exp(d) - 1 - d >= 0 and Z = 1 + Σ p ψ(d).
    """
    center, half = 0.5 * (lower + upper), 0.5 * (upper - lower) * (1 + 8 * eps(wide()))
    p = jax.nn.softmax(center, axis=-1)
    mean = jnp.sum(p * t, axis=-1, keepdims=True)
    u = t - mean
    slope = p * u
    # |A| and |d_j| at most.
    largest = jnp.sum(jnp.abs(slope) * half, axis=-1, keepdims=True)
    moved = jnp.sum(p * half, axis=-1, keepdims=True)
    weights = p * _psi(jnp.maximum(half * (1 - p) + (moved - p * half), 0))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    above = jnp.maximum(u + largest, 0)
    remainder = jnp.sum(above * weights, axis=-1, keepdims=True)
    gap = jnp.minimum(remainder, jnp.max(above, axis=-1, keepdims=True) * (total / (1 + total)))
    return slope, (mean + gap - jnp.sum(slope * center, axis=-1, keepdims=True))[..., 0], gap[..., 0]


def _by_entries(lower: Any, upper: Any, t: Any, found: Planes) -> tuple[Any, Any, Any]:
    """The same from the planes of every p_j: those above where t_j - τ is positive, those below elsewhere, for the τ among
    the t_j with the least gap. Σ p = 1 makes τ free."""
    center = 0.5 * (lower + upper)
    p = jax.nn.softmax(center, axis=-1)
    at = lambda rows, bias: jnp.sum(rows * center[..., None, :], axis=-1) + bias - p
    over, under = jnp.maximum(at(found.high, found.high_bias), 0), jnp.maximum(-at(found.low, found.low_bias), 0)
    u = t[..., None, :] - t[..., :, None]
    gaps = jnp.sum(jnp.maximum(u, 0) * over[..., None, :] + jnp.maximum(-u, 0) * under[..., None, :], axis=-1)
    best = jax.lax.stop_gradient(jnp.argmin(gaps, axis=-1)[..., None])
    tau = jnp.take_along_axis(t, best, axis=-1)
    up, down = jnp.maximum(t - tau, 0), jnp.minimum(t - tau, 0)
    slope = jnp.sum(up[..., :, None] * found.high + down[..., :, None] * found.low, axis=-2)
    bias = tau[..., 0] + jnp.sum(up * found.high_bias + down * found.low_bias, axis=-1)
    return slope, bias, jnp.take_along_axis(gaps, best, axis=-1)[..., 0]


def _mean_above(lower: Any, upper: Any, least: Any, t: Any, found: Planes) -> tuple[Any, Any, Any]:
    """(coefficients of a, coefficients of t, bias) of a plane above m(a, t) for t up to the one given: with b_j <= q_j the
    least of each weight, Σ q t <= Σ b t + Σ (q - b) t_most, which is Σ b (t - t_most) + m(a, t_most)."""
    slope, bias, gap = _by_curvature(lower, upper, t)
    other, other_bias, other_gap = _by_entries(lower, upper, t, found)
    better = other_gap < gap
    slope, bias = jnp.where(better[..., None], other, slope), jnp.where(better, other_bias, bias)
    return slope, least, bias - jnp.sum(least * t, axis=-1)


def _mean_relax(node: Node, out: Interval, a: Interval, t: Interval) -> Relaxation:
    bad = _mean_bad(a, t)
    zero = bad[..., None]
    lower, upper, low, high = (jnp.where(zero, 0, v) for v in (*a, *t))
    found = softmax_planes(lower, upper)
    least = softmax_bounds(lower, upper).lower
    # Rounded down, so that no weight is below it.
    least = jnp.maximum(least * (1 - (4 * steps_of(a)[..., None] + 64) * eps(wide())) - tiny(wide()), 0)
    above = _mean_above(lower, upper, least, high, found)
    below = _mean_above(lower, upper, least, -low, found)
    size = jnp.max(jnp.where(zero, 0, magnitude(t)), axis=-1)
    reach = 1 + jnp.max(jnp.where(zero, 0, magnitude(a)), axis=-1)
    rounding = (8 * node.inputs[0].shape[-1] + 256) * 4 * eps(wide()) * size * reach
    rounding = rounding + 2 * size * jnp.sum(found.rounding, axis=-1)
    return Relaxation(
        Plane((by_rows(-below[0]), by_rows(below[1])), jnp.where(bad, out.lower, -below[2])),
        Plane((by_rows(above[0]), by_rows(above[1])), jnp.where(bad, out.upper, above[2])),
        jnp.where(bad, 0, rounding) + tiny(wide()),
    )


def _mean_within(node: Node, a: Interval, t: Interval, *spreads: Any) -> Any:
    """Weights of two evaluations of a, values of two of t."""
    size = jnp.max(magnitude(t), axis=-1)
    first, second = (widest_spread(s, x) for s, x in zip(spreads, (a, t), strict=True))
    return zero_safe(first, 2 * size) + 2 * second


softmax_mean = Rule("softmax_mean", _mean_range, _mean_slack, _mean_relax, again=once, within=_mean_within)


def _tie_slack(node: Node, out: Interval, exact: Interval, a: Interval, t: Interval) -> Any:
    """That of the composite, and of the difference."""
    size = jnp.max(magnitude(t), axis=-1)
    size = jnp.where(jnp.isfinite(size), size, 0)
    return added(roundoff(node, steps_of(a), size) + roundoff(node, 8, size), lost_exponents(node, a))


def _first(node: Node, out: Interval, *inputs: Interval) -> Relaxation:
    plane = Plane((lambda c: c, *[None] * (len(inputs) - 1)), NONE)
    return Relaxation(plane, plane, NONE)


def _tie_within(node: Node, exact: Interval, a: Interval, t: Interval, first: Any, *spreads: Any) -> Any:
    return 2 * _mean_within(node, a, t, *spreads)


# m(a, t) - t_i, evaluated so, and the same real number as m(a, t - t_i): inputs are the latter, a and t.
tie = Rule("tie", lambda node, exact, *_: exact, _tie_slack, _first, guides=0, within=_tie_within)


def _told_slack(node: Node, out: Interval, value: Interval, other: Interval, a: Interval) -> Any:
    size = jnp.max(magnitude(a), axis=-1)
    size = jnp.where(jnp.isfinite(size), size, 0)
    return added(roundoff(node, steps_of(a), 1.0) + roundoff(node, 16, size), lost_exponents(node, a))


def _told_within(node: Node, value: Interval, other: Interval, a: Interval, *spreads: Any) -> Any:
    return 4 * widest_spread(spreads[-1], a)


# lse(a) - a_i, evaluated in either way, and the same real number as lse(a - a_i): inputs are both, the first with the better
# planes, and a.
told = Rule(
    "told", lambda node, value, other, _: intersect(value, other), _told_slack, _first, guides=0, within=_told_within
)
