"""Tubes: a box of states for each of several intervals of time."""

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Tube:
    """States between `lower[i]` and `upper[i]` at the times between `times[i]` and `times[i + 1]`, faces included.

    **Arguments:**

    - `times`: float64 [n + 1], increasing.
    - `lower`, `upper`: float64 [n, states], of flat states.

    **Raises:** `ValueError` for arrays that do not fit, and boxes that are empty.
    """

    times: np.ndarray
    lower: np.ndarray
    upper: np.ndarray

    def __post_init__(self) -> None:
        arrays = [np.asarray(v, np.float64) for v in (self.times, self.lower, self.upper)]
        times, lower, upper = arrays
        fits = times.ndim == 1 and lower.ndim == 2 and lower.shape == upper.shape == (len(times) - 1, lower.shape[1])
        if not (fits and len(lower) and (np.diff(times) > 0).all() and times[0] >= 0 and (lower < upper).all()):
            shapes = ", ".join(str(v.shape) for v in arrays)
            raise ValueError(
                f"Tube: expected increasing times [n + 1] and lower < upper of shape [n, states], got shapes {shapes}"
            )
        if not all(np.isfinite(v).all() for v in arrays):
            raise ValueError("Tube: expected finite numbers, got some that are not")
        for name, value in zip(("times", "lower", "upper"), arrays, strict=True):
            object.__setattr__(self, name, value)

    @classmethod
    def around(cls, times: Any, states: Any, radius: Any) -> "Tube":
        """The boxes that hold every two neighbours of a sequence of states, and what is within `radius` of them.

        **Arguments:**

        - `times`: float [n + 1], increasing.
        - `states`: float [n + 1, states], one at each of the times.
        - `radius`: a number > 0, or one for each time [n + 1, 1] or state [states].

        **Raises:** `ValueError` for arrays that do not fit, and boxes that are empty.
        """
        states = np.asarray(states, np.float64)
        low, high = states - radius, states + radius
        return cls(np.asarray(times), np.minimum(low[:-1], low[1:]), np.maximum(high[:-1], high[1:]))
