"""Log-sum-exp, softmax, and the mean of values under a softmax, over the last axis, with planes of their own.

With p = softmax(a): lse is convex with gradient p; p_j = exp(-lse(a - a_j)); and m(a, t) = Σ p_j t_j is what the derivative of
lse along t is.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ._interval import Interval, eps, magnitude, tiny, wide
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


def _safe(a: Interval) -> tuple[Any, Any, Any]:
    bad = not_finite(a)
    return jnp.where(bad, 0, a.lower), jnp.where(bad, 0, a.upper), bad


def lost_exponents(node: Node, a: Interval) -> Any:
    """Infinity where exponents are so large that their differences mean nothing: products fused into one of two equal ones
    make these differ by more than exponentials can bear. Of the shape of the exponents without their axis."""
    if node.virtual:
        return NONE
    return jnp.where(eps(node.dtype) * jnp.max(magnitude(a), axis=-1) < 4, 0, jnp.inf)


def _lse_range(node: Node, a: Interval) -> Interval:
    lower, upper, bad = _safe(a)
    lse = jax.nn.logsumexp
    return voided(bad[..., 0], Interval(lse(lower, axis=-1), lse(upper, axis=-1)))


def _lse_slack(node: Node, out: Interval, a: Interval) -> Any:
    size = jnp.max(magnitude(a), axis=-1)
    size = jnp.where(jnp.isfinite(size), size, 0)
    # The relative error of the sum is an absolute one of its logarithm.
    return added(roundoff(node, steps_of(a), 1.0) + roundoff(node, 4, size), lost_exponents(node, a))


class Start(NamedTuple):
    """A box of exponents with what its planes are made of: center, half-widths, their exponentials, up to a cap, softmax and
    log-sum-exp at the center."""

    center: Any
    half: Any
    grown: Any
    p: Any
    lse: Any


def start(lower: Any, upper: Any) -> Start:
    """That of a box."""
    center, half = 0.5 * (lower + upper), 0.5 * (upper - lower) * (1 + 4 * eps(wide()))
    most = jnp.max(center, axis=-1, keepdims=True)
    weights = jnp.exp(center - most)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    return Start(center, half, jnp.exp(jnp.minimum(half, 0.25 * _most())), weights / total, jnp.log(total) + most)


def pairs(x: Start) -> Start:
    """That of the boxes of a - a_j, a row for each j: nothing but the half-widths is new, and their exponentials are products."""
    count = x.center.shape[-1]
    off = 1 - jnp.eye(count, dtype=wide())
    half = (x.half[..., None, :] + x.half[..., :, None]) * off
    grown = jnp.where(off > 0, x.grown[..., None, :] * x.grown[..., :, None], 1)
    center = x.center[..., None, :] - x.center[..., :, None]
    return Start(center, half, grown, x.p[..., None, :], (x.lse - x.center)[..., None])


def lse_above(x: Start) -> tuple[Any, Any]:
    """(coefficients, bias) of a plane above log-sum-exp on a box: the exponentials are below their chords, the logarithm of
    the sum is below a tangent. All entries are taken relative to the center, or to the largest of them, whichever
    leaves less between plane and function at the center."""

    def chords(half: Any, grown: Any) -> tuple[Any, Any]:
        """exp(d) <= cosh(r) + d sinh(r)/r on [-r, r]."""
        up, down = 0.5 * grown, 0.5 / grown
        small = half < 1e-4
        return up + down, jnp.where(small, 1 + half**2 / 5, (up - down) / jnp.where(small, 1, half))

    cosh, slope = chords(x.half, x.grown)
    total = jnp.sum(x.p * cosh, axis=-1, keepdims=True)
    first = x.p * slope / total
    gap_first = jnp.log(total)
    # Relative to the largest entry, of which the others differ by both half-widths at most.
    top = jax.nn.one_hot(jnp.argmax(x.center, axis=-1), x.center.shape[-1], dtype=x.center.dtype)
    pick = lambda v: jnp.sum(top * v, axis=-1, keepdims=True)
    cosh, slope = chords(x.half + pick(x.half), x.grown * pick(x.grown))
    others = (1 - top) * x.p
    total = pick(x.p) + jnp.sum(others * cosh, axis=-1, keepdims=True)
    second = others * slope / total
    second = second + top * (1 - jnp.sum(second, axis=-1, keepdims=True))
    gap_second = jnp.log(total)
    better = gap_second < gap_first
    coefficients = jnp.where(better, second, first)
    gap = jnp.where(better, gap_second, gap_first)
    # Beyond the cap the chords are no bounds: the largest value is.
    huge = jnp.max(x.half, axis=-1, keepdims=True) > 0.4 * _most()
    coefficients = jnp.where(huge, 0, coefficients)
    bias = x.lse + gap - jnp.sum(coefficients * x.center, axis=-1, keepdims=True)
    highest = jnp.max(x.center + x.half, axis=-1, keepdims=True) + math.log(x.center.shape[-1])
    return coefficients, jnp.where(huge, highest, bias)[..., 0]


def lse_below(x: Start) -> tuple[Any, Any]:
    """(coefficients, bias) of the tangent at the center."""
    return x.p, (x.lse - jnp.sum(x.p * x.center, axis=-1, keepdims=True))[..., 0]


def _most() -> float:
    """The largest number whose exponential is finite."""
    return math.log(float(jnp.finfo(wide()).max))


def by_rows(coefficients: Any) -> Any:
    """From coefficients of Σ_j c_j a_j, one for each row of a."""
    return lambda c: c[..., None] * coefficients


def _lse_relax(node: Node, out: Interval, a: Interval) -> Relaxation:
    lower, upper, bad = _safe(a)
    box = start(lower, upper)
    low, low_bias = lse_below(box)
    high, high_bias = lse_above(box)
    void = bad[..., 0]
    size = jnp.max(jnp.where(bad, 0, magnitude(a)), axis=-1) + 1
    rounding = jnp.where(void, 0, (4 * size + 8 * node.inputs[0].shape[-1] + 64) * 4 * eps(wide()) * size)
    return Relaxation(
        Plane((by_rows(jnp.where(bad, 0, low)),), jnp.where(void, out.lower, low_bias)),
        Plane((by_rows(jnp.where(bad, 0, high)),), jnp.where(void, out.upper, high_bias)),
        rounding + tiny(wide()),
    )


logsumexp = Rule("logsumexp", _lse_range, _lse_slack, _lse_relax, again=once)


def exponentials(lower: Any, upper: Any) -> tuple[Any, Any]:
    """Exponentials of both ends relative to the largest: what vanishes counts as more than nothing among the upper ones,
    beside which a lower one that is nearly as small would look like all there is."""
    top = jnp.max(upper, axis=-1, keepdims=True)
    return jnp.exp(lower - top), jnp.exp(upper - top) + 2 * tiny(wide())


def softmax_bounds(lower: Any, upper: Any) -> Interval:
    """The exact ranges of the entries of a softmax on a box, up to rounding: its largest entry and the least others."""
    low, high = exponentials(lower, upper)
    count = lower.shape[-1]
    off = 1 - jnp.eye(count, dtype=lower.dtype)
    # Sums without the own entry, not differences: these would cancel.
    others_low, others_high = low @ off, high @ off
    least = low / jnp.maximum(low + others_high, tiny(wide()))
    most = high / jnp.maximum(high + others_low, tiny(wide()))
    most = jnp.where(high + others_low > 1e3 * tiny(wide()), most, 1.0)
    return Interval(least, most)


def _softmax_range(node: Node, a: Interval) -> Interval:
    lower, upper, bad = _safe(a)
    return voided(bad, softmax_bounds(lower, upper))


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


def softmax_planes(lower: Any, upper: Any) -> Planes:
    """p_j = exp(-L_j) with L_j = lse(a - a_j): its chord with L_j's plane below, its tangent with L_j's plane above."""
    count = lower.shape[-1]
    identity = jnp.eye(count, dtype=lower.dtype)
    rows = pairs(start(lower, upper))
    below, below_bias = lse_below(rows)
    above, above_bias = lse_above(rows)
    # The range of L_j, from the same exponentials for all j.
    shift = jnp.max(upper, axis=-1, keepdims=True)
    weak, strong = jnp.exp(lower - shift), jnp.exp(upper - shift)
    first = jnp.log(strong + weak @ (1 - identity)) - (upper - shift)
    last = jnp.log(weak + strong @ (1 - identity)) - (lower - shift)
    most, least = jnp.exp(-first), jnp.exp(-last)
    width = last - first
    slope = jnp.where(width > 1e-9, (least - most) / jnp.where(width > 1e-9, width, 1), -most)
    # The chord of exp(-L), raised to hold at both ends.
    intercept = jnp.maximum(most - slope * first, least - slope * last)
    middle_log = 0.5 * (first + last)
    tangent = -jnp.exp(-middle_log)
    # c · (a - a_j): what row j takes from entry j.
    turn = lambda rows: rows - identity * jnp.sum(rows, axis=-1, keepdims=True)
    # On boxes so wide that these exponentials may vanish, p_j is between 0 and 1.
    huge = jnp.max(shift - lower, axis=-1, keepdims=True) > 0.8 * _most()
    none = huge[..., None]
    size = jnp.max(jnp.maximum(jnp.abs(lower), jnp.abs(upper)), axis=-1, keepdims=True) + 1
    return Planes(
        jnp.where(none, 0, turn(tangent[..., None] * above)),
        jnp.where(huge, 0, tangent * above_bias - tangent * (1 + middle_log)),
        jnp.where(none, 0, turn(slope[..., None] * below)),
        jnp.where(huge, 1, slope * below_bias + intercept),
        (8 * size + 16 * count + 128) * 4 * eps(wide()) * size * (1 + jnp.where(huge, 0, first)),
    )


def _softmax_relax(node: Node, out: Interval, a: Interval) -> Relaxation:
    lower, upper, bad = _safe(a)
    found = softmax_planes(lower, upper)
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
