"""Robustness rules as functions of given constants: Theorem 3 of the paper and the sharper comparison equation.

A rule is a theorem with premises; it proves nothing about a program whose premises are not proved. Everything here
is NumPy in float64, whatever precision the program runs in. Premises, for both:

1. H is compact and forward invariant for every perturbed input, and `initial` >= sup V(η(0)) over the perturbed inputs;
2. the condition holds for the nominal input on all of H where the loss is above the truncation level, not merely on
   the nominal trajectory;
3. `lipschitz` bounds the change of the field for a unit change of the input, from the norm of the perturbation to the
norm in which the gradient profile measures.
"""

import math
from typing import Any

import numpy as np

from .._potential import Loss, Truncated
from .._types import RealScalarLike

# Covers the rounding of one step of either rule (a few exp, products and sums) many times over.
_SLACK = 1e-13


def _check(**constants: Any) -> None:
    for name, value in constants.items():
        if not (np.ndim(value) == 0 and math.isfinite(value) and value >= 0):
            raise ValueError(f"{name}: expected a finite number >= 0, got {value!r}")


def delta(initial: RealScalarLike, kappa: RealScalarLike, horizon: RealScalarLike = 1.0) -> float:
    """δ of Definition 5 as Theorem 3 needs it: exp(-κT) · `initial`, rounded up.

    **Arguments:**

    - `initial`: c >= sup V(η(0)) over the perturbed inputs. *Not* the observed final loss, which may be far smaller
        than what the condition promises: a perturbed trajectory has no more than the promise.
    - `kappa`: κ > 0.
    - `horizon`: T > 0.
    """
    _check(initial=initial, kappa=kappa, horizon=horizon)
    return float(initial) * math.exp(-float(kappa) * float(horizon)) * (1 + _SLACK)


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
    - `kappa`: the rate κ > 0.
    - `lipschitz`: L_f, of the field in the input.
    - `lipschitz_potential`: L_V, of the potential in the state.
    - `radius`: ε >= 0.
    - `delta_claimed`: a δ of one's own; it has to be at least exp(-κT) · `initial`.
    - `horizon`: T > 0.

    **Returns:** the bound, to be compared with the threshold of the loss: the class is right if it is strictly below
    log 2.

    **Raises:** `ValueError` for constants that are negative or not finite, and for a `delta_claimed` below exp(-κT) ·
    `initial`.
    """
    _check(lipschitz=lipschitz, lipschitz_potential=lipschitz_potential, radius=radius)
    least = delta(initial, kappa, horizon)
    if delta_claimed is not None and not delta_claimed >= least * (1 - 2 * _SLACK):
        raise ValueError(
            f"delta_claimed: expected at least exp(-κT) · V(η(0)) = {least:.6g}, got {delta_claimed:.6g}. The observed final loss is no "
            "δ: a perturbed trajectory is held to the promised decay, not to the one observed without perturbation"
        )
    push = float(lipschitz_potential) * float(lipschitz) * float(radius)
    kappa, horizon = float(kappa), float(horizon)
    drift = push * horizon if kappa == 0 else push * -math.expm1(-kappa * horizon) / kappa
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
    steps: int = 256,
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

    **Returns:** an upper bound of the loss before truncation at T.

    **Raises:** `ValueError` for constants that are negative or not finite, and for a loss without a gradient profile.
    """
    _check(initial=initial, kappa=kappa, lipschitz=lipschitz, radius=radius, horizon=horizon)
    level, inner = _split(loss)
    if inner.gradient_profile(1.0, norm) is None:
        raise ValueError(
            f"loss: expected one with a gradient profile in the {norm}-norm, such as cross_entropy, got {loss!r}"
        )
    push, kappa, dt = float(lipschitz) * float(radius), float(kappa), float(horizon) / steps
    gamma = max(float(initial) - level, 0.0)
    for _ in range(steps):
        # Any point serves for a tangent; zero may have an infinite slope.
        v = max(gamma + level, 1e-9)
        height, slope = inner.gradient_profile(v, norm)  # pyright: ignore[reportGeneralTypeIssues]
        constant = height + slope * (level - v) + (height + slope * v) * 1e-15
        after = _linear(gamma, push * slope - kappa, push * constant, dt)
        if lipschitz_potential is not None:
            after = min(after, _linear(gamma, -kappa, push * float(lipschitz_potential), dt))
        gamma = max(after, 0.0) * (1 + _SLACK)
    return (gamma + level) * (1 + _SLACK)


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
    threshold.

    **Arguments:** as in [`lyapunov_dsl.comparison_rule`][]; `rule` is `"comparison"` or `"theorem_3"` (which needs
    `lipschitz_potential`).

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
    _check(lipschitz=lipschitz)

    def holds(radius: float) -> bool:
        if rule == "comparison":
            bound = comparison_rule(
                loss=loss, initial=initial, kappa=kappa, lipschitz=lipschitz, radius=radius, norm=norm,
                lipschitz_potential=lipschitz_potential, horizon=horizon,
            )  # fmt: skip
        else:
            bound = level + theorem_3(
                initial=max(float(initial) - level, 0.0), kappa=kappa, lipschitz=lipschitz,
                lipschitz_potential=lipschitz_potential, radius=radius, horizon=horizon,
            )  # fmt: skip
        return bound < threshold

    if not holds(0.0):
        return 0.0
    if lipschitz == 0:
        return math.inf
    low, high = 0.0, 1.0
    while holds(high):
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _split(loss: Loss) -> tuple[float, Loss]:
    """The truncation level γ_tr and the loss before truncation."""
    return (float(loss.level()), loss.loss) if isinstance(loss, Truncated) else (0.0, loss)


def _linear(start: float, slope: float, constant: float, dt: float) -> float:
    """The solution at dt of γ' = slope · γ + constant from `start`."""
    weight = dt if slope == 0 else math.expm1(slope * dt) / slope
    return start * math.exp(slope * dt) + constant * weight
