"""Proofs of certified radii as files: programs of the Euler network, and the steps of a tube around the path of each input."""

import io
import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from .._rollout import EulerInference
from .._types import check_file, check_path
from ..bounds import UnknownPrimitive
from ._export import export
from ._proof import precision, replace
from ._question import flattened


class RadiusProof:
    """What the checker needs to recompute certified radii: the network in float64, and inputs with their radii.

    **Arguments:**

    - `network`: Euler inference.
    - `norm`: of perturbations.
    - `gain`: a Lipschitz constant of the input module that was given, or `None`.
    - `x`, `y`: inputs and classes.
    - `radius`: that were proved, 0 where none was.
    - `radii`: all that were tried, increasing.
    """

    def __init__(
        self, network: EulerInference, norm: str, gain: float | None, x: Any, y: Any, radius: Any, radii: list[float]
    ):
        self.network, self.norm, self.gain, self.radii = network, norm, gain, radii
        self.x, self.y, self.radius = x.reshape(len(x), -1), y, radius
        self.shape = x.shape[1:]

    def save(self, path: Any) -> np.ndarray:
        """Writes the radii that the checker's own rules confirm to a file that `python -m lyapunov_checker` checks, and checks it.

        Around the path of each input the checker follows a tube by Lipschitz constants of the steps, as the rule "margin" does. An
        example that it does not confirm at its radius is tried at the smaller ones.

        **Arguments:**

        - `path`: where to; the file is replaced as a whole.

        **Returns:** the radius of each example that is in the file, 0 where none is. [examples]

        **Raises:** `ValueError` where the network uses operations that the checker does not know, where no radius is confirmed, and
        where the file cannot be written.
        """
        from lyapunov_checker import check
        from lyapunov_checker._file import seal
        from lyapunov_checker._radius import FORMAT, Radii

        check_path("path", path)
        path = Path(path)
        check_file(path)
        programs, arrays = self._programs()
        times = [n * (self.network.system.horizon / self.network.steps) for n in range(self.network.steps)]
        header = {"format": FORMAT, "norm": self.norm, "times": times, "gain": self.gain, "programs": programs}
        centers, contexts = self._paths()
        claimed = np.flatnonzero(self.radius > 0)
        confirmed, rows = np.zeros(len(self.x)), []
        with precision():
            checked = Radii(header, arrays, examples=False)
            for i in claimed:
                for radius in reversed([r for r in self.radii if r <= self.radius[i]]):
                    # A decimal radius is rounded up.
                    row = _tube(
                        checked, self.x[i], int(self.y[i]), math.nextafter(radius, math.inf), centers[i], contexts[i]
                    )
                    if row is not None:
                        confirmed[i] = radius
                        rows.append(row)
                        break
        if not rows:
            raise ValueError(
                f"proof: expected a radius that the checker's own steps confirm, got none of {len(claimed)} that were proved"
            )
        for k, name in enumerate(("x", "y", "radius", "centers", "errors", "contexts", "reach")):
            arrays = arrays | {name: np.array([row[k] for row in rows], np.int64 if name == "y" else np.float64)}
        header["sha256"] = seal(header, arrays)
        content, packed = io.BytesIO(), {"header": np.frombuffer(json.dumps(header).encode(), np.uint8), **arrays}
        np.savez_compressed(content, allow_pickle=False, **packed)
        check(content.getvalue())
        replace(path, content.getvalue())
        return confirmed

    def _functions(self, x: Any) -> tuple[Any, Any]:
        """The ways back from flat arrays to states and contexts."""
        return flattened(self.network.system.start(x.reshape(self.shape)))[2:]

    def _programs(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Start, context, step and readout as programs, and their arrays."""
        with jax.enable_x64(True):
            origin = jnp.asarray(self.x[0])
            of = lambda i: lambda x: flattened(self.network.system.start(x.reshape(self.shape)))[i]
            state, context = of(0)(origin), of(1)(origin)
            as_state, as_context = self._functions(origin)
            dt = self.network.system.horizon / self.network.steps

            def step(t: Any, s: Any, *c: Any) -> Any:
                c = as_context(c[0] if c else context)
                return s + dt * ravel_pytree(self.network.system.velocity(t, as_state(s), c))[0]

            decode = lambda s: ravel_pytree(self.network.system.decode(as_state(s)))[0]
        moves = [(context.size,)] if context.size else []
        parts: dict[str, Any] = {
            "start": (of(0), (self.x.shape[1],)),
            **({"context": (of(1), (self.x.shape[1],))} if moves else {}),
            "step": (step, (), (state.size,), *moves),
            "readout": (decode, (state.size,)),
        }
        programs, arrays = {}, {}
        for name, (function, *shapes) in parts.items():
            try:
                programs[name], more = export(name, function, *shapes)
            except (UnknownPrimitive, ArithmeticError) as error:
                raise ValueError(f"proof: expected a network that the checker knows, got another ({error})") from error
            arrays |= more
        return programs, arrays

    def _paths(self) -> tuple[np.ndarray, np.ndarray]:
        """The states before each step and after the last, and the contexts, of all inputs."""

        def path(x: Any) -> tuple[Any, Any]:
            state, context, as_state, as_context = flattened(self.network.system.start(x.reshape(self.shape)))
            states = [state]
            for n in range(self.network.steps):
                moved = self.network.step(n, as_state(states[-1]), as_context(context))
                states.append(ravel_pytree(moved)[0])
            return jnp.stack(states), context

        with jax.enable_x64(True):
            states, contexts = jax.jit(jax.vmap(path))(jnp.asarray(self.x))
            return np.asarray(states), np.asarray(contexts)


def _tube(checked: Any, x: np.ndarray, label: int, radius: float, centers: np.ndarray, context: np.ndarray) -> Any:
    """One example as the file has it, with distances by the checker's own steps; `None` where a margin may not be above 0."""
    up = lambda v: math.nextafter(float(v), math.inf)
    points, c = centers.tolist(), context.tolist()
    first, reach = checked.begin(x.tolist(), radius, points[0], c)
    errors, reach = [up(first)], up(reach)
    if not (math.isfinite(errors[0]) and math.isfinite(reach)):
        return None
    region = checked.around(points[0], errors[0])
    for n in range(len(points) - 1):
        error = up(checked.next(n, region, points[n], errors[-1], c, reach, points[n + 1]))
        if not math.isfinite(error):
            return None
        errors.append(error)
        region = checked.moved(n, region, c, reach, points[n + 1], error)
    if not bool(checked.margin(region, points[-1], errors[-1], label) > 0):
        return None
    return x, label, radius, centers, errors, context, reach
