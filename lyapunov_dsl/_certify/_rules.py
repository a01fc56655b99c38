"""Robustness rules as functions of given constants: Theorem 3 of the paper and the sharper comparison equation.

A rule is a theorem with premises; it proves nothing about a program whose premises are not proved. Everything here
is in Python's floats, whatever precision the program runs in. Premises, for both:

1. H is compact and forward invariant for every perturbed input, and `initial` >= sup V(η(0)) over the perturbed inputs;
2. the condition holds for the nominal input on all of H where the loss is above the truncation level, not merely on
   the nominal trajectory;
3. `lipschitz` bounds the change of the field for a unit change of the input, from the norm of the perturbation to the
   norm in which the gradient profile measures.

The profile of cross entropy holds for distributions as targets too: with the total variation d of p and y, ||p - y||_1
is 2 d, ||p - y||_2 at most √2 d, and 1 - d = Σ min(p, y) >= Σ y p >= Π p^y = exp(-L).
"""

import functools as ft
import math
from typing import Any

from .._potential import Loss, Truncated
from .._types import RealScalarLike, is_finite, kind, speaks

# Covers the rounding of one step of either rule (a few exp, products and sums) many times over; what grows with the
# exponent is added in `_linear`. Where exp underflows, this is what is left of it.
_SLACK = 1e-13
_TINY = 1e-300


def check(**constants: Any) -> None:
    """Raises `ValueError` for a constant that is not a finite number >= 0."""
    for name, value in constants.items():
        if not (is_finite(value) and value >= 0):
            raise ValueError(f"{name}: expected a finite number >= 0, got {value!r}")


def delta(initial: RealScalarLike, kappa: RealScalarLike, horizon: RealScalarLike = 1.0) -> float:
    """δ of Definition 5 as Theorem 3 needs it: exp(-κT) · `initial`, rounded up.

    **Arguments:**

    - `initial`: c >= sup V(η(0)) over the perturbed inputs. *Not* the observed final loss, which may be far smaller
        than what the condition promises: a perturbed trajectory has no more than the promise.
    - `kappa`: κ >= 0.
    - `horizon`: T >= 0.

    **Returns:** δ, in the unit of V.

    **Raises:** `ValueError` for constants that are negative or not finite.
    """
    check(initial=initial, kappa=kappa, horizon=horizon)
    return _linear(float(initial), -float(kappa), 0.0, float(horizon))


def theorem_3(
    *,
    initial: RealScalarLike,
    kappa: RealScalarLike,
    lipschitz: RealScalarLike,
    lipschitz_potential: RealScalarLike,
    radius: RealScalarLike,
    delta_claimed: Any = None,
    horizon: RealScalarLike = 1.0,
) -> float:
    """An upper bound of V(T) under a perturbation: δ + (L_V L_f ε / κ)(1 - exp(-κT)) (Theorem 3, eq. 43).

    **Arguments:**

    - `initial`: c >= sup V(η(0)) over the perturbed inputs.
    - `kappa`: the rate κ >= 0.
    - `lipschitz`: L_f, of the field in the input.
    - `lipschitz_potential`: L_V, of the potential in the state.
    - `radius`: ε >= 0.
    - `delta_claimed`: a δ of one's own; it has to be at least exp(-κT) · `initial`.
    - `horizon`: T >= 0.

    **Returns:** the bound, to be compared with the threshold of the loss: the class is right if it is strictly below
    log 2.

    **Raises:** `ValueError` for constants that are negative or not finite, and for a `delta_claimed` below exp(-κT) ·
    `initial`.
    """
    check(lipschitz=lipschitz, lipschitz_potential=lipschitz_potential, radius=radius)
    least = delta(initial, kappa, horizon)
    if delta_claimed is not None and not delta_claimed >= least * (1 - 2 * _SLACK):
        raise ValueError(
            f"delta_claimed: expected at least exp(-κT) · V(η(0)) = {least:.6g}, got {delta_claimed:.6g}. The observed final loss is no "
            "δ: a perturbed trajectory is held to the promised decay, not to the one observed without perturbation"
        )
    push = float(lipschitz_potential) * float(lipschitz) * float(radius)
    drift = _linear(0.0, -float(kappa), push, float(horizon))
    return (max(least, float(delta_claimed or 0)) + drift) * (1 + _SLACK)


def comparison_rule(
    *,
    loss: Loss,
    initial: RealScalarLike,
    kappa: RealScalarLike,
    lipschitz: RealScalarLike,
    radius: RealScalarLike,
    norm: str = "inf",
    lipschitz_potential: Any = None,
    horizon: RealScalarLike = 1.0,
    steps: int = 128,
) -> float:
    """An upper solution at T of γ' = -κγ + L_f ε min(g(γ + γ_tr), L_V), γ(0) = c - γ_tr; returns γ(T) + γ_tr.

    g is the gradient profile of the loss before truncation. It is concave, so on every step its tangent at the step's
    beginning bounds it from above everywhere and gives a linear equation with a closed-form solution: an upper
    solution, not a numerical approximation of one. With `lipschitz_potential` the result is never above that of
    [`lyapunov_dsl.theorem_3`][].

    **Arguments:**

    - `loss`: a loss with a gradient profile, such as `cross_entropy` or `truncated(cross_entropy, level)`.
    - `initial`: c >= sup L(η(0)) over the perturbed inputs, of the loss before truncation.
    - `kappa`, `lipschitz`, `radius`, `horizon`: as in `theorem_3`.
    - `norm`: `"inf"` or `"2"`, the norm in which `lipschitz` measures the change of the field (times the readout's
        constant).
    - `lipschitz_potential`: L_V, where one is known.
    - `steps`: the number of tangents.

    **Returns:** an upper bound of the loss before truncation at T; infinity where it overflows.

    **Raises:** `ValueError` for constants that are negative or not finite, fewer than one tangent, another norm, and for a
    loss without a gradient profile.
    """
    check(initial=initial, kappa=kappa, lipschitz=lipschitz, radius=radius, horizon=horizon)
    if lipschitz_potential is not None:
        check(lipschitz_potential=lipschitz_potential)
    if not steps >= 1:
        raise ValueError(f"steps: expected at least one, got {steps}")
    if norm not in ("inf", "2"):
        raise ValueError(f"norm: expected 'inf' or '2', got {norm!r}")
    level, inner = _split(loss)
    if inner.gradient_profile(1.0, norm) is None:
        raise ValueError(
            f"loss: expected one with a gradient profile in the {norm}-norm, such as cross_entropy, got {loss!r}"
        )
    push, kappa, dt = float(lipschitz) * float(radius), float(kappa), float(horizon) / steps
    # Bound once: looking a method up on an `eqx.Module` costs more than calling it.
    profile: Any = ft.partial(inner.gradient_profile, norm=norm)
    lowest = _lowest(profile, push * dt, 4 + kappa * dt)
    start = gamma = max(float(initial) - level, 0.0)
    for _ in range(steps):
        # Any point serves for a tangent.
        v = max(gamma + level, lowest)
        height, slope = profile(v)
        constant = height + slope * (level - v) + 4e-15 * (height + slope * v)
        after = _linear(gamma, push * slope - kappa, push * constant, dt)
        if lipschitz_potential is not None:
            after = min(after, _linear(gamma, -kappa, push * float(lipschitz_potential), dt))
        gamma = math.inf if math.isnan(after) else after
        if math.isinf(gamma):
            break
    if lipschitz_potential is not None:
        constants = {"kappa": kappa, "lipschitz": lipschitz, "radius": radius, "horizon": horizon}
        gamma = min(gamma, theorem_3(initial=start, lipschitz_potential=lipschitz_potential, **constants))
    return _sum(level, gamma)


def certified_radius(
    *,
    loss: Loss,
    initial: RealScalarLike,
    kappa: RealScalarLike,
    lipschitz: RealScalarLike,
    norm: str = "inf",
    lipschitz_potential: Any = None,
    horizon: RealScalarLike = 1.0,
    rule: str = "comparison",
) -> float:
    """The largest ε (found by bisection, from below) at which a rule keeps the loss strictly below its decision
    threshold (Theorem 3, eq. 15, solved for ε; or the comparison equation in its place).

    **Arguments:**

    - `loss`, `initial`, `kappa`, `lipschitz`, `norm`, `lipschitz_potential`, `horizon`: as in [`lyapunov_dsl.comparison_rule`][].
    - `rule`: `"comparison"`, or `"theorem_3"`, which needs `lipschitz_potential`.

    **Returns:** ε, or 0 where not even ε = 0 suffices; infinity where `lipschitz` is 0. Conditional on the premises
    of the rule.

    **Raises:** `ValueError` for a loss without a threshold, an unknown rule, or constants out of range.
    """
    level, inner = _split(loss)
    threshold = inner.threshold()
    if threshold is None:
        raise ValueError(f"loss: expected one that decides something, such as cross_entropy, got {loss!r}")
    if rule not in ("comparison", "theorem_3"):
        raise ValueError(f"rule: expected 'comparison' or 'theorem_3', got {rule!r}")
    check(initial=initial, lipschitz=lipschitz)

    def holds(radius: float) -> bool:
        if rule == "comparison":
            bound = comparison_rule(
                loss=loss, initial=initial, kappa=kappa, lipschitz=lipschitz, radius=radius, norm=norm,
                lipschitz_potential=lipschitz_potential, horizon=horizon,
            )  # fmt: skip
        else:
            bound = theorem_3(
                initial=max(float(initial) - level, 0.0), kappa=kappa, lipschitz=lipschitz,
                lipschitz_potential=lipschitz_potential, radius=radius, horizon=horizon,
            )  # fmt: skip
            bound = _sum(level, bound)
        return bound < threshold

    if not holds(0.0):
        return 0.0
    if lipschitz == 0:
        return math.inf
    # A power of two about which the answer has to be looked for, whatever the unit of the input.
    high = 2.0 ** -math.frexp(max(float(lipschitz), _TINY))[1]
    least, most = high * 2.0**-100, min(high * 2.0**100, 1 / _TINY)
    while holds(high) and high < most:
        high *= 2
    while not holds(high / 2) and high > least:
        high /= 2
    low = high / 2 if holds(high / 2) else 0.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _split(loss: Loss) -> tuple[float, Loss]:
    """The truncation level γ_tr and the loss before truncation. Raises `ValueError` for a loss whose profile or threshold is that of
    another one, which it inherits from."""
    level, inner = (float(loss.level()), loss.loss) if type(loss) is Truncated else (0.0, loss)
    for method in ("gradient_profile", "threshold"):
        if not speaks(inner, method):
            raise ValueError(f"loss: {kind(inner)} replaces the __call__ of the class that it inherits {method} from")
    return level, inner


def _sum(level: float, gamma: float) -> float:
    """level + gamma, rounded up."""
    return math.nextafter(level + gamma, math.inf) if level else gamma


def _lowest(profile: Any, push: float, growth: float) -> float:
    """A level v with push · g(v) <= growth · v, from which on a tangent has push · g' <= growth.

    Below it a tangent may be too steep to be of use, as at 0 for the profile 2 √v of the squared error.
    """
    v = 1.0
    while push * profile(v)[0] > growth * v and v < 1 / _TINY:
        v *= 2
    if push * profile(v)[0] > growth * v:
        return _TINY
    # As g increases, the inequality is kept on the way down.
    for _ in range(30):
        v = max(push * profile(v)[0] / growth, _TINY)
    return v


def _linear(start: float, slope: float, constant: float, dt: float) -> float:
    """The solution at dt of γ' = slope · γ + constant from `start`, all but `slope` >= 0, rounded up."""
    x = slope * dt
    if x > 700:
        return math.inf
    decayed = max(start * math.exp(x), _TINY) if start > 0 else 0.0
    added = constant * dt * (math.expm1(x) / x if x else 1.0)
    return (decayed + max(added, 0.0)) * (1 + _SLACK + 1e-15 * min(abs(x), 1e3))
