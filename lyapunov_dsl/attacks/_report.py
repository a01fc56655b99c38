"""What an evaluation found."""

import dataclasses
import json
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class AttackReport:
    """What `evaluate` found. Printable; errors are shares of the examples.

    **Arguments:**

    - `radius`, `norm`: the ball.
    - `nominal`: where the function is wrong without any attack, bool[batch].
    - `misled`: by the name of the attack, where the function is wrong after it (or was before), bool[batch].
    - `examples`: for each input a point of its ball that misleads the function, the input itself where none was found.
    - `zero_gradients`: the share of inputs where the gradient of the cross entropy (of the surrogate, where there is one)
        is zero or has vanished: followed across the ball, it would change the loss by less than a thousandth of it.
    - `non_finite_gradients`: the share of inputs where it has an entry that is not finite.
    - `own_zero_gradients`: as `zero_gradients`, of the function itself where there is a surrogate and JAX can trace the
        function.
    - `clamped_error`: the error of the inputs clamped to the range, `None` where they lie in it: what a clamp alone
        does, and no attack is to be thanked for.
    - `random_difference`: the largest difference between the logits of two calls.
    - `surrogate_decisions`, `surrogate_difference`: the share of the inputs that the surrogate decides otherwise than
        the function, and the largest difference between their logits relative to the largest logit; `None` without one.
    - `seconds`: by the name of the attack.
    - `warnings`: what makes these errors less than they seem, a sentence each.
    """

    radius: float
    norm: str
    nominal: np.ndarray
    misled: dict[str, np.ndarray]
    examples: np.ndarray
    zero_gradients: float
    non_finite_gradients: float
    own_zero_gradients: float | None = None
    clamped_error: float | None = None
    random_difference: float = 0.0
    surrogate_decisions: float | None = None
    surrogate_difference: float | None = None
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def not_tried(self) -> tuple[str, ...]:
        """Which of the attacks that masked gradients do not stop were not asked for."""
        return tuple(name for name in ("early", "transfer") if name not in self.misled)

    @property
    def worst(self) -> np.ndarray:
        """Where some attack succeeded, or none was needed, bool[batch]."""
        return np.any([self.nominal, *self.misled.values()], axis=0)

    @property
    def nominal_error(self) -> float:
        """The error without an attack."""
        return float(np.mean(self.nominal))

    @property
    def robust_error(self) -> float:
        """The error in the worst case over all attacks: a lower bound of what the best attack would reach."""
        return float(np.mean(self.worst))

    @property
    def errors(self) -> dict[str, float]:
        """The error by the name of the attack."""
        return {name: float(np.mean(found)) for name, found in self.misled.items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, as JSON has them; without `examples`."""
        figures = (
            "radius",
            "norm",
            "nominal_error",
            "robust_error",
            "errors",
            "zero_gradients",
            "non_finite_gradients",
            "own_zero_gradients",
        )
        figures += ("clamped_error", "random_difference", "surrogate_decisions", "surrogate_difference", "seconds")
        plain: dict[str, Any] = {"count": len(self.nominal)} | {name: getattr(self, name) for name in figures}
        plain |= {"worst": self.worst.tolist(), "not_tried": list(self.not_tried), "warnings": list(self.warnings)}
        # JSON knows neither NaN nor infinity.
        return json.loads(json.dumps(plain), parse_constant=str)

    def __str__(self) -> str:
        ball = f"{self.norm}-norm, radius {self.radius:.4g}"
        lines = [f"error in per cent, {len(self.nominal):,} examples, {ball}:"]
        rows = [("no attack", self.nominal_error, None)]
        rows += [(name, error, self.seconds.get(name)) for name, error in self.errors.items()]
        rows.append(("worst case", self.robust_error, None))
        width = max(len(name) for name, *_ in rows)
        for name, error, seconds in rows:
            lines.append(f"  {name:<{width}} {100 * error:7.2f}{'' if seconds is None else f'   {seconds:8.1f} s'}")
        lines += [
            "",
            f"gradients: {100 * self.zero_gradients:.2f} % zero, {100 * self.non_finite_gradients:.2f} % not finite",
        ]
        if self.own_zero_gradients is not None:
            lines[-1] += f" (of the surrogate; {100 * self.own_zero_gradients:.2f} % of the function's own are zero)"
        if self.not_tried:
            lines.append(f"not tried: {', '.join(self.not_tried)}")
        if self.clamped_error is not None:
            lines.append(f"inputs clamped to the range, no attack: {100 * self.clamped_error:.2f} % error")
        if self.surrogate_decisions is not None:
            decisions = f"{100 * self.surrogate_decisions:.2f} % of the inputs decided otherwise"
            lines.append(f"surrogate: {decisions}, logits differ by {self.surrogate_difference:.2g} of the largest")
        if self.warnings:
            lines += ["", "warnings:", *(f"- {warning}" for warning in self.warnings)]
        return "\n".join(lines)
