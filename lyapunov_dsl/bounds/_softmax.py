"""Log-sum-exp, softmax, and the mean of values under a softmax, over the last axis, with planes of their own.

With p = softmax(a): lse is convex with gradient p; p_j = exp(-lse(a - a_j)); and m(a, t) = Σ p_j t_j is what the derivative of
lse along t is.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ._interval import Interval, eps, magnitude, middle, tiny, wide
from ._rule import NONE, Node, Plane, Relaxation, Rule, added, once, roundoff


def steps_of(a: Interval) -> Any:
    """Relative error of the evaluation in units of rounding: exponents of up to twice the magnitude are rounded, then
    exponentials, sum and quotient; float[...]."""
    size = jnp.max(magnitude(a), axis=-1)
    return 4 * jnp.where(jnp.isfinite(size), size, 0) + a.lower.shape[-1] + 64


def not_finite(a: Interval) -> Any:
    """Where an entry may be infinite or NaN, and the composite therefore NaN; bool[..., 1]."""
    return ~jnp.all(jnp.isfinite(a.lower) & jnp.isfinite(a.upper), axis=-1, keepdims=True)


def voided(bad: Any, out: Interval) -> Interval:
    return Interval(jnp.where(bad, -jnp.inf, out.lower), jnp.where(bad, jnp.inf, out.upper))


def flat_where(a: Interval) -> Any:
    """Where the planes are the range itself: sums of four exponents are not finite, of which differences of two half-widths
    are made; bool[..., 1]."""
    return ~jnp.isfinite(4 * jnp.max(magnitude(a), axis=-1, keepdims=True))


def without(bad: Any, a: Interval) -> Interval:
    """Numbers where there are none."""
    return Interval(jnp.where(bad, 0, a.lower), jnp.where(bad, 0, a.upper))


def lost_exponents(node: Node, a: Interval) -> Any:
    """Infinity where exponents are so large that their differences mean nothing: products fused into one of two equal ones
    move these by x, a unit of rounding of the largest, and exponentials by exp(x) - 1 relatively, which is the 4 x that
    `steps_of` counts for x < 2.3 only. Of the shape of the exponents without their axis."""
    if node.virtual:
        return NONE
    return jnp.where(eps(node.dtype) * jnp.max(magnitude(a), axis=-1) < 2, 0, jnp.inf)


def _lse_range(node: Node, a: Interval) -> Interval:
    bad, lse = not_finite(a), jax.nn.logsumexp
    lower, upper = without(bad, a)
    return voided(bad[..., 0], Interval(lse(lower, axis=-1), lse(upper, axis=-1)))


def _lse_slack(node: Node, out: Interval, a: Interval) -> Any:
    size = jnp.max(magnitude(a), axis=-1)
    size = jnp.where(jnp.isfinite(size), size, 0)
    # The relative error of the sum is an absolute one of its logarithm.
    return added(roundoff(node, steps_of(a), 1.0) + roundoff(node, 4, size), lost_exponents(node, a))


class Start(NamedTuple):
    """A box of exponents with what its planes are made of: center, half-widths, and at the center log-sum-exp and the
    logarithms of the softmax."""

    center: Any
    half: Any
    log_p: Any
    lse: Any


def start(lower: Any, upper: Any) -> Start:
    """That of a box."""
    center, half = middle(Interval(lower, upper))
    lse = jax.nn.logsumexp(center, axis=-1, keepdims=True)
    return Start(center, half * (1 + 2 * eps(wide())), center - lse, lse)


def falling(x: Any) -> Any:
    """(1 - exp(-x)) / x for x >= 0, which is 1 at 0."""
    some = x > 0
    return jnp.where(some, -jnp.expm1(-x) / jnp.where(some, x, 1), 1)


def chords(log_p: Any, half: Any) -> tuple[Any, Any]:
    """(coefficients c, bias b) with log Σ p exp(d) <= Σ c d + b for all |d| <= half: exponentials are below their chords,
    exp(d) <= cosh(r) + d sinh(r)/r, and the logarithm of the sum is below a tangent.

    Everything is relative to the largest p exp(r), so that nothing overflows, and what vanishes is less than rounding beside it.
    """
    tops = log_p + half
    top = jnp.max(tops, axis=-1, keepdims=True)
    share = jnp.exp(tops - top)
    total = jnp.sum(share * (0.5 + 0.5 * jnp.exp(-2 * half)), axis=-1, keepdims=True)
    return share * falling(2 * half) / total, top + jnp.log(total)


def beside(half: Any, own: Any) -> Any:
    """Half-widths of the differences to one entry, where `own` is 1."""
    return (half + jnp.sum(own * half, axis=-1, keepdims=True)) * (1 - own)


def largest(x: Start) -> Any:
    """1 at the entry that is largest at the center."""
    return jax.nn.one_hot(jnp.argmax(x.center, axis=-1), x.center.shape[-1], dtype=x.center.dtype)


def rest(coefficients: Any, own: Any) -> Any:
    """Coefficients of differences to one entry as those of the entries, whose sum is 1."""
    return jnp.where(own > 0, 1 - jnp.sum(coefficients * (1 - own), axis=-1, keepdims=True), coefficients)


def closer(*planes: tuple[Any, Any]) -> tuple[Any, Any]:
    """Of planes (coefficients, bias) above one function, the one that is lowest at the center."""
    (first, one), (second, other) = planes
    return jnp.where(other < one, second, first), jnp.minimum(one, other)


def lse_above(x: Start) -> tuple[Any, Any]:
    """(coefficients, bias) of a plane above log-sum-exp on a box. All entries are taken relative to the center, or to the
    largest of them, whichever leaves less between plane and function at the center."""
    top = largest(x)
    coefficients, gap = chords(x.log_p, beside(x.half, top))
    coefficients, gap = closer(chords(x.log_p, x.half), (rest(coefficients, top), gap))
    return coefficients, (x.lse + gap - jnp.sum(coefficients * x.center, axis=-1, keepdims=True))[..., 0]


def rows_above(x: Start) -> tuple[Any, Any]:
    """The same above lse(a - a_j) for every j: its entries are relative to a_j, or to the largest."""
    own = jnp.eye(x.center.shape[-1], dtype=x.center.dtype)
    top = largest(x)
    other, gap = chords(x.log_p, beside(x.half, top))
    one, gaps = chords(x.log_p[..., None, :], beside(x.half[..., None, :], own))
    coefficients, gap = closer((rest(one, own), gaps), (rest(other, top)[..., None, :], gap[..., None]))
    bias = x.lse + gap[..., 0] - jnp.sum(coefficients * x.center[..., None, :], axis=-1)
    return coefficients - own, bias


def lse_below(x: Start) -> tuple[Any, Any]:
    """(coefficients, bias) of the tangent at the center."""
    p = jnp.exp(x.log_p)
    return p, (x.lse - jnp.sum(p * x.center, axis=-1, keepdims=True))[..., 0]


def by_rows(coefficients: Any) -> Any:
    """From coefficients of Σ_j c_j a_j, one for each row of a."""
    return lambda c: c[..., None] * coefficients


def _lse_relax(node: Node, out: Interval, a: Interval) -> Relaxation:
    bad = flat_where(a)
    box = start(*without(bad, a))
    low, low_bias = lse_below(box)
    high, high_bias = lse_above(box)
    void = bad[..., 0]
    return Relaxation(
        Plane((by_rows(jnp.where(bad, 0, low)),), jnp.where(void, out.lower, low_bias)),
        Plane((by_rows(jnp.where(bad, 0, high)),), jnp.where(void, out.upper, high_bias)),
        jnp.where(void, 0, rounding_of(box)) + tiny(wide()),
    )


def rounding_of(x: Start) -> Any:
    """What the planes of a box are off: exponents, and so their exponentials relatively, are off by units of rounding times
    their size, which moves a plane by as much times the half-widths; and biases are sums of numbers of that size."""
    size = jnp.max(jnp.abs(x.center) + x.half, axis=-1) + 1
    return 4 * eps(wide()) * size * (8 * x.center.shape[-1] + 72 + 8 * jnp.max(x.half, axis=-1))


logsumexp = Rule("logsumexp", _lse_range, _lse_slack, _lse_relax, again=once)


def exponentials(lower: Any, upper: Any) -> tuple[Any, Any]:
    """Exponentials of both ends relative to the largest: what vanishes counts as more than nothing among the upper ones,
    beside which a lower one that is nearly as small would look like all there is."""
    top = jnp.max(upper, axis=-1, keepdims=True)
    return jnp.exp(lower - top), jnp.exp(upper - top) + 2 * tiny(wide())


def softmax_bounds(lower: Any, upper: Any) -> Interval:
    """The ranges of the entries of a softmax on a box: its largest entry and the least others."""
    low, high = exponentials(lower, upper)
    off = 1 - jnp.eye(lower.shape[-1], dtype=lower.dtype)
    # Sums without the own entry, not differences: these would cancel. None of the divisors is less than an upper exponential.
    return Interval(low / (low + high @ off), high / (high + low @ off))


def _softmax_range(node: Node, a: Interval) -> Interval:
    bad = not_finite(a)
    return voided(bad, softmax_bounds(*without(bad, a)))


def _softmax_slack(node: Node, out: Interval, a: Interval) -> Any:
    size = jnp.where(jnp.isfinite(magnitude(out)), magnitude(out), 0)
    lost = lost_exponents(node, a)
    return added(roundoff(node, steps_of(a)[..., None], size), lost if lost is NONE else lost[..., None])


class Planes(NamedTuple):
    """Planes below and above every entry of a softmax: matrices, biases, and the rounding of both."""

    low: Any
    low_bias: Any
    high: Any
    high_bias: Any
    rounding: Any


def softmax_planes(a: Interval) -> Planes:
    """p_j = exp(-L_j) with L_j = lse(a - a_j): its chord with L_j's plane below, its tangent with L_j's plane above."""
    lower, upper = a
    own = jnp.eye(lower.shape[-1], dtype=lower.dtype)
    box = start(lower, upper)
    below, below_bias = lse_below(box)
    above, above_bias = rows_above(box)
    # The range of L_j.
    entries = lambda one, other: jnp.where(own > 0, 0, one[..., None, :] - other[..., :, None])
    first = jax.nn.logsumexp(entries(lower, upper), axis=-1)
    last = jax.nn.logsumexp(entries(upper, lower), axis=-1)
    most, least = jnp.exp(-first), jnp.exp(-last)
    slope = -most * falling(last - first)
    # The chord of exp(-L), raised to hold at both ends.
    intercept = jnp.maximum(most - slope * first, least - slope * last)
    at = 0.5 * first + 0.5 * last
    tangent = -jnp.exp(-at)
    return Planes(
        tangent[..., None] * above,
        tangent * above_bias - tangent * (1 + at),
        slope[..., None] * (below[..., None, :] - own),
        slope * below_bias[..., None] + intercept,
        # Of the planes of L_j, which is a difference of two, times slopes of at most 1; and of exponentials of L_j.
        4 * rounding_of(box)[..., None] * jnp.ones_like(first),
    )


def _softmax_relax(node: Node, out: Interval, a: Interval) -> Relaxation:
    bad = flat_where(a)
    found = softmax_planes(without(bad, a))
    zero = bad[..., None]
    transposes = lambda rows: (lambda c: jnp.einsum("f...j,...jk->f...k", c, rows, precision="highest"),)
    return Relaxation(
        Plane(transposes(jnp.where(zero, 0, found.low)), jnp.where(bad, out.lower, found.low_bias)),
        Plane(transposes(jnp.where(zero, 0, found.high)), jnp.where(bad, out.upper, found.high_bias)),
        jnp.where(bad, 0, found.rounding) + tiny(wide()),
    )


def _softmax_within(node: Node, a: Interval, spread: Any) -> Any:
    """Of exponentials and their sum, of two evaluations: as of a softmax of inputs that far apart."""
    return jnp.broadcast_to(widest_spread(spread, a)[..., None], node.shape)


def widest_spread(spread: Any, x: Interval) -> Any:
    """The largest spread along the last axis."""
    return jnp.max(jnp.broadcast_to(spread, jnp.shape(x.lower)), axis=-1)


softmax = Rule("softmax", _softmax_range, _softmax_slack, _softmax_relax, again=once, within=_softmax_within)
