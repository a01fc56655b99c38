"""What follows along trajectories: that they stay in a tube, tend to the equilibrium, or how large V is at the last time."""

import itertools
import math

import numpy as np
from flint import arb, ctx

from ._limits import Refused
from ._proof import Proof, outward
from ._rules import ONE, ZERO, Matrix, affine

# Steps with which the comparison equation is solved.
STEPS = 64
# Bits in which a few products and sums of numbers of 53 bits are exact.
EXACT = 320


def stays(proof: Proof) -> None:
    """Every trajectory that starts in the box `start` is in the tube at all its times."""
    if proof.tube is None:
        raise Refused("stays: there is no tube")
    low, high = proof.start
    n, rate = len(low), proof.derivative(proof.f, {proof.t: proof.graph.constant([1.0]), proof.state: proof.f})
    for i, (_, least, most) in enumerate(proof.pieces("stays")):
        h = arb(most[0]) - arb(least[0])
        f, change = proof.values([proof.f, rate], least, most)
        for j in range(n):
            # Picard: what x + s f, 0 <= s <= h, can reach from a box with f of the whole piece, is inside of the piece.
            below = arb(low[j]) + (h * f.low[j]).min(ZERO)
            above = arb(high[j]) + (h * f.high[j]).max(ZERO)
            if not (bool(below >= least[1 + j]) and bool(above <= most[1 + j])):
                raise Refused(f"stays: trajectories may leave piece {i} of the tube along state {j}")
        # x(t + h) = x + h f(t, x) + h² / 2 times what d/dt f is on average.
        at = proof.at([least[0], *low], [least[0], *high])
        (there,) = proof.graph.values([proof.f], at)
        unit = lambda c: Matrix(n, None, [(j, j, c) for j in range(n)])
        moved = affine([(unit(ONE), at[proof.state]), (unit(h), there)])
        ends = [moved.ball(j) + h * h / 2 * change.ball(j) for j in range(n)]
        low = [max(outward(v.lower(), -1), a) for v, a in zip(ends, least[1:], strict=True)]
        high = [min(outward(v.upper(), 1), b) for v, b in zip(ends, most[1:], strict=True)]


def robust(proof: Proof) -> None:
    """V at the last time is at most `final`, for every context within the radius: γ' = comparison(t, γ) + L ε G from
    V at the start on, with L the gain and G the slope."""
    have = set(proof.claims)
    whole = proof.most is not None and proof.least is None and proof.tube is None
    if not (whole and "decrease" in have and have & {"enclosed", "invariant"}):
        raise Refused("robust: expected 'decrease' up to a level, and 'enclosed' or 'invariant'")
    assert proof.most is not None
    if proof.u is None:
        raise Refused("robust: expected a perturbation")
    if not all(a <= p <= q <= b for a, p, q, b in zip(proof.lower, *proof.start, proof.upper, strict=True)):
        raise Refused("robust: the start is not in the domain")
    for claim in ("gain", "slope"):
        proof.cover(claim, *proof.whole())
    (v,) = proof.values([proof.potential], [proof.time[0], *proof.start[0]], [proof.time[0], *proof.start[1]])
    if not v.high[0] <= proof.most:
        raise Refused("robust: V at the start may be above the level")
    push = (arb(proof.gain) * arb(proof.radius) * arb(proof.slope)).upper()
    (rate,) = proof.scalar([proof.allowed], proof.time[0], proof.time[1], proof.most, proof.most)
    if not rate.high[0] + push < 0:
        raise Refused("robust: V may rise above the level under a perturbation")
    proof.final = _solution(proof, outward(v.high[0], 1), push)
    if not math.isfinite(proof.final):
        raise Refused("robust: the comparison equation has no bound that is a number")


def _solution(proof: Proof, level: float, push: arb) -> float:
    """An upper bound of the solution of γ' = comparison(t, γ) + push at the last time, from a level on: by steps of Taylor's
    formula, within boxes that no step leaves (Picard)."""
    ends = np.linspace(proof.time[0], proof.time[1], STEPS + 1).tolist()
    ends[-1] = proof.time[1]
    change = proof.derivative(proof.allowed, {proof.t: proof.graph.constant([1.0])})
    bend = proof.derivative(proof.allowed, {proof.v: proof.graph.constant([1.0])})
    for a, b in itertools.pairwise(ends):
        h = arb(b) - arb(a)
        (rate,) = proof.scalar([proof.allowed], a, a, level, level)
        reach = 2 * float((h * abs(rate.ball(0) + push)).upper()) + 1e-12
        box_low, box_high = level - reach, level + reach
        c, c_t, c_v = proof.scalar([proof.allowed, change, bend], a, b, box_low, box_high)
        moving = h * (c.ball(0) + push)
        if not (
            bool(arb(level) + moving.lower().min(ZERO) >= box_low)
            and bool(arb(level) + moving.upper().max(ZERO) <= box_high)
        ):
            raise Refused("robust: the comparison equation moves too far in one step")
        second = c_t.ball(0) + c_v.ball(0) * (c.ball(0) + push)
        level = outward((arb(level) + h * (rate.ball(0) + push) + h * h / 2 * second).upper(), 1)
    return level


def attracts(proof: Proof) -> bool:
    """Whether the claims together say that all that starts below the level tends to the equilibrium."""
    together = {"decrease", "definite", "enclosed"} <= set(proof.claims) and proof.least is None and proof.tube is None
    if not (together and proof.strict and proof.steady and proof.most is not None and proof.vanishes(proof.f)):
        return False
    ends = np.linspace(0.0, proof.most, STEPS + 1).tolist()
    ends[-1] = proof.most
    # Products of numbers of 53 bits are exact here: at 0, -κ v is to be 0 and not a little more.
    before, ctx.prec = ctx.prec, EXACT
    try:
        parts = [proof.scalar([proof.allowed], proof.time[0], proof.time[1], a, b) for a, b in itertools.pairwise(ends)]
        return proof.most >= 0 and all(bool(form.high[0] <= 0) for (form,) in parts)
    finally:
        ctx.prec = before
