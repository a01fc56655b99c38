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
    Start,
    by_rows,
    exponentials,
    flat_where,
    lost_exponents,
    not_finite,
    softmax_bounds,
    softmax_planes,
    start,
    steps_of,
    voided,
    widest_spread,
    without,
)


def _mean_most(a: Interval, t: Any) -> Any:
    """The largest mean of t over all softmaxes of the box: the weights of all t above some level are largest, the others
    least."""
    low, high = exponentials(*a)
    chosen = t[..., None, :] >= t[..., :, None]
    weights = jnp.where(chosen, high[..., None, :], low[..., None, :])
    # Shares first: products of weights and values may vanish where all weights are small.
    share = weights / jnp.sum(weights, axis=-1, keepdims=True)
    return jnp.max(jnp.sum(share * t[..., None, :], axis=-1), axis=-1)


def _mean_range(node: Node, a: Interval, t: Interval) -> Interval:
    bad = not_finite(a) | not_finite(t)
    exponents, (low, high) = without(bad, a), without(bad, t)
    return voided(bad[..., 0], Interval(-_mean_most(exponents, -low), _mean_most(exponents, high)))


def _mean_slack(node: Node, out: Interval, a: Interval, t: Interval) -> Any:
    size = jnp.max(magnitude(t), axis=-1)
    steps = steps_of(a)
    slack = added(roundoff(node, steps, jnp.where(jnp.isfinite(size), size, 0)), lost_exponents(node, a))
    # The sum that is divided, of numbers up to those of t, may overflow though the mean does not.
    share = size / float(jnp.finfo(node.dtype).max) * (1 + steps * eps(node.dtype))
    return jnp.where(share * t.lower.shape[-1] < 1, slack, jnp.inf)


def _remainder(d: Any) -> Any:
    """exp(-d) (exp(d) - 1 - d) at most, for d >= 0: the same at 0, and increases faster, since 3 sinh(d / 3) >= d."""
    return 9 / 8 * jnp.expm1(-2 / 3 * d) ** 2 * (1 + 1024 * eps(wide()))


def _by_curvature(box: Start, t: Any) -> tuple[Any, Any, Any]:
    """(coefficients, bias, gap at the center) of a plane above m(a, t) for one t, good on small boxes.

    With p the softmax at the center c, u = t - Σ p t and d = a - c - Σ p (a - c), exactly
    m(a, t) = Σ p t + A + Σ p_j (u_j - A) ψ(d_j) / Z, with A = Σ p u d, ψ(d) = exp(d) - 1 - d >= 0 and Z = 1 + Σ p ψ(d).
    """
    half, p = box.half, jnp.exp(box.log_p)
    mean = jnp.sum(p * t, axis=-1, keepdims=True)
    u = t - mean
    slope = p * u
    # |A| and |d_j| at most.
    largest = jnp.sum(jnp.abs(slope) * half, axis=-1, keepdims=True)
    moved = jnp.sum(p * half, axis=-1, keepdims=True)
    most = jnp.maximum(half * (1 - p) + (moved - p * half), 0)
    # p ψ(d) relative to the largest p exp(d), or to 1.
    grown = box.log_p + most
    top = jnp.maximum(jnp.max(grown, axis=-1, keepdims=True), 0)
    weights = jnp.exp(grown - top) * _remainder(most)
    one = jnp.exp(-top)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    above = jnp.maximum(u + largest, 0)
    remainder = jnp.sum(above * weights, axis=-1, keepdims=True)
    limit = jnp.max(above, axis=-1, keepdims=True) * (total / (one + total))
    # Where this holds, exp(top) is finite.
    less = remainder < limit * one
    gap = jnp.where(less, remainder * jnp.exp(jnp.where(less, top, 0)), limit)
    return slope, (mean + gap - jnp.sum(slope * box.center, axis=-1, keepdims=True))[..., 0], gap[..., 0]


def _by_entries(box: Start, t: Any, found: Planes) -> tuple[Any, Any, Any]:
    """The same from the planes of every p_j: those above where t_j - τ is positive, those below elsewhere, for the τ among
    the t_j with the least gap. Σ p = 1 makes τ free."""
    at = lambda rows, bias: jnp.sum(rows * box.center[..., None, :], axis=-1) + bias - jnp.exp(box.log_p)
    over, under = jnp.maximum(at(found.high, found.high_bias), 0), jnp.maximum(-at(found.low, found.low_bias), 0)
    u = t[..., None, :] - t[..., :, None]
    gaps = jnp.sum(jnp.maximum(u, 0) * over[..., None, :] + jnp.maximum(-u, 0) * under[..., None, :], axis=-1)
    best = jax.lax.stop_gradient(jnp.argmin(gaps, axis=-1)[..., None])
    tau = jnp.take_along_axis(t, best, axis=-1)
    up, down = jnp.maximum(t - tau, 0), jnp.minimum(t - tau, 0)
    slope = jnp.sum(up[..., :, None] * found.high + down[..., :, None] * found.low, axis=-2)
    bias = tau[..., 0] + jnp.sum(up * found.high_bias + down * found.low_bias, axis=-1)
    return slope, bias, jnp.take_along_axis(gaps, best, axis=-1)[..., 0]


def _mean_above(box: Start, least: Any, t: Any, found: Planes) -> tuple[Any, Any, Any]:
    """(coefficients of a, coefficients of t, bias) of a plane above m(a, t) for t up to the one given: with b_j <= q_j the
    least of each weight, Σ q t <= Σ b t + Σ (q - b) t_most, which is Σ b (t - t_most) + m(a, t_most)."""
    slope, bias, gap = _by_curvature(box, t)
    other, other_bias, other_gap = _by_entries(box, t, found)
    better = other_gap < gap
    slope, bias = jnp.where(better[..., None], other, slope), jnp.where(better, other_bias, bias)
    return slope, least, bias - jnp.sum(least * t, axis=-1)


def _mean_relax(node: Node, out: Interval, a: Interval, t: Interval) -> Relaxation:
    zero = flat_where(a) | flat_where(t)
    bad = zero[..., 0]
    exponents, (low, high) = without(zero, a), without(zero, t)
    box, found = start(*exponents), softmax_planes(exponents)
    least = softmax_bounds(*exponents).lower
    # Rounded down, so that no weight is below it.
    least = jnp.maximum(least * (1 - (4 * steps_of(a)[..., None] + 64) * eps(wide())) - tiny(wide()), 0)
    above = _mean_above(box, least, high, found)
    below = _mean_above(box, least, -low, found)
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
    return added(_mean_slack(node, out, a, t), roundoff(node, 8, jnp.where(jnp.isfinite(size), size, 0)))


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
