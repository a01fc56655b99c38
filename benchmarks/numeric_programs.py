"""Programs of proof files in ordinary floating point, with NumPy alone: a third reading of them, with which trajectories are simulated.

Nothing here is shared with the library or the checker, so that what they say of a file can be held against it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.special as sp
from numpy.typing import DTypeLike

Array = np.ndarray


def _logistic(x: Array) -> Array:
    return sp.expit(x)


# Functions of one number and their derivatives.
UNARY: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
    "exp": (np.exp, np.exp),
    "log": (np.log, lambda x: np.where(x > 0, 1 / x, np.nan)),
    "sqrt": (np.sqrt, lambda x: 0.5 / np.sqrt(x)),
    "tanh": (np.tanh, lambda x: 1 - np.tanh(x) ** 2),
    "logistic": (_logistic, lambda x: _logistic(x) * _logistic(-x)),
    "softplus": (lambda x: np.logaddexp(x, 0), _logistic),
    "atan": (np.arctan, lambda x: 1 / (1 + x * x)),
    "erf": (lambda x: sp.erf(x.astype(float)), lambda x: 2 / np.sqrt(np.pi) * np.exp(-x * x)),
    "reciprocal": (lambda x: 1 / x, lambda x: -1 / (x * x)),
    "relu": (lambda x: np.maximum(x, 0), lambda x: (x > 0) * 1.0),
    "step": (lambda x: (x > 0) * 1.0, lambda x: np.where(x == 0, np.nan, 0.0)),
    "jump": (lambda x: np.where(x == 0, np.nan, 0.0), lambda x: np.full_like(x, np.nan)),
    "square": (np.square, lambda x: 2 * x),
    "sin": (np.sin, np.cos),
    "cos": (np.cos, lambda x: -np.sin(x)),
}


def evaluate(
    program: Mapping[str, Any], arrays: Mapping[str, Array], inputs: Sequence[Array], directions: Sequence[Array]
) -> tuple[Array, Array]:
    """The value of a program and its derivative along directions, at several points: arrays [points, entries], computed in the
    type of the inputs."""
    kind = inputs[0].dtype
    with np.errstate(all="ignore"):
        found: list[tuple[Array, Array]] = []
        waiting = iter(zip(inputs, directions, strict=True))
        count = len(inputs[0])
        for op in program["operations"]:
            args, name = [found[i] for i in op["args"]], op["name"]
            if name == "input":
                found.append(next(waiting))
            elif name == "constant":
                value = np.broadcast_to(np.asarray(arrays[op["value"]], kind), (count, op["size"]))
                found.append((value, np.zeros_like(value)))
            elif name == "affine":
                out = np.zeros((2, count, op["size"]), kind)
                for matrix, (x, dx) in zip(op["matrices"], args, strict=True):
                    if "dense" in matrix:
                        table = np.asarray(arrays[matrix["dense"]], kind)
                        out += np.stack([x @ table.T, dx @ table.T])
                    else:
                        (rows, columns), values = arrays[matrix["places"]], np.asarray(arrays[matrix["values"]], kind)
                        for k, v in enumerate((x, dx)):
                            np.add.at(out[k].T, rows, (v[:, columns] * values).T)
                found.append((out[0], out[1]))
            elif name == "multiply":
                (x, dx), (y, dy) = args
                found.append((x * y, dx * y + x * dy))
            elif name in ("logsumexp", "softmean"):
                z, dz = args[0]
                p = sp.softmax(z, axis=1)
                if name == "logsumexp":
                    found.append((sp.logsumexp(z, axis=1, keepdims=True), (p * dz).sum(1, keepdims=True)))
                else:
                    t, dt = args[1]
                    mean = (p * t).sum(1, keepdims=True)
                    found.append((mean, (p * ((t - mean) * dz + dt)).sum(1, keepdims=True)))
            else:
                f, slope = UNARY[name]
                (x, dx), *_ = args
                found.append((f(x), slope(x) * dx))
        return found[program["output"]]


class System:
    """The field, V and the comparison of a proof file.

    **Arguments:**

    - `header`, `arrays`: as they are in the file.
    """

    def __init__(self, header: Mapping[str, Any], arrays: Mapping[str, Array]):
        self.programs, self.arrays = header["programs"], arrays
        around = header["perturbation"]
        self.center = None if around is None else np.asarray(around["center"], float)

    def _of(self, name: str, *pairs: tuple[Array, Array]) -> tuple[Array, Array]:
        found = self._in(float, name, pairs)
        # Proofs are about real numbers: what overflows here may be large there.
        return found if all(np.isfinite(v).all() for v in found) else self._in(np.longdouble, name, pairs)

    def _in(self, kind: DTypeLike, name: str, pairs: Sequence[tuple[Array, Array]]) -> tuple[Array, Array]:
        with np.errstate(over="ignore"):
            inputs, directions = ([np.asarray(p[i], kind) for p in pairs] for i in (0, 1))
        return evaluate(self.programs[name], self.arrays, inputs, directions)

    def field(self, t: Array, s: Array, u: Array | None = None) -> Array:
        """dx/dt at times [points, 1] and states [points, n]."""
        pairs = [(t, 0 * t), (s, 0 * s)]
        if self.center is not None:
            u = np.broadcast_to(self.center if u is None else u, (len(t), len(self.center)))
            pairs.append((u, 0 * u))
        return self._of("field", *pairs)[0]

    def value(self, t: Array, s: Array) -> Array:
        """V, [points]."""
        return self._of("value", (t, 0 * t), (s, 0 * s))[0][:, 0]

    def excess(self, t: Array, s: Array) -> Array:
        """dV/dt, or the rate of the certificate, minus the comparison, [points]."""
        v, rate = self._of("value", (t, np.ones_like(t)), (s, self.field(t, s)))
        if "rate" in self.programs:
            rate = self._of("rate", (t, 0 * t), (s, 0 * s))[0]
        return (rate - self._of("comparison", (t, 0 * t), (v, np.zeros_like(v)))[0])[:, 0]
