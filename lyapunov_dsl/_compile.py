"""`compile`: from a declaration to a program."""

import dataclasses
import warnings
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from . import _infer
from ._certificate import AllOf, Certificate
from ._check import Declaration, check_batch, check_data, declare
from ._condition import Condition
from ._domain import Domain, Product
from ._objective import MonteCarlo, Objective, PathIntegral
from ._rollout import time_dtype
from ._smoothness import describe_smoothness
from ._solve import Confidence, Solver, check_saveat
from ._system import DiscreteSystem, System
from ._trainable import find_ties, split_trainable, trainable
from ._types import Scalar, check_key, describe, is_finite, is_traced, shown, strong

_CHUNK = 512


class Program(eqx.Module):
    """A compiled declaration: loss and inference. Made by [`lyapunov_dsl.compile`][].

    All methods take a leading batch axis. The trainable arrays are those of the system and of the certificate; see
    [`lyapunov_dsl.trainable`][]. `print(program)` shows a summary.

    **Arguments:**

    - `system`: the [`lyapunov_dsl.System`][] or [`lyapunov_dsl.DiscreteSystem`][], with a domain that was derived where none was
        declared.
    - `certificate`: the certificate, prepared for the system.
    - `objective`: what `loss` evaluates, a [`lyapunov_dsl.Objective`][].
    - `solver`: what `predict` and `trajectory` solve with, a [`lyapunov_dsl.Solver`][].
    - `declaration`: shapes and dtypes of one x, y, state and prediction, as `compile` found them.
    """

    system: System | DiscreteSystem
    certificate: Certificate | AllOf
    objective: Objective
    solver: Solver
    declaration: Declaration = eqx.field(static=True)

    @property
    def condition(self) -> Condition:
        """The certificate put on the system."""
        return Condition(self.system, self.certificate)

    def loss(self, x: PyTree, y: PyTree = None, *, key: Any) -> Scalar:
        """The training objective on a batch. Differentiate it with `eqx.filter_value_and_grad`.

        **Arguments:**

        - `x`, `y`: inputs and targets, leading batch axis.
        - `key`: a PRNG key.

        **Returns:** a scalar.

        **Raises:** `ValueError` for x or y that are not like the example, and for what is no key.
        """
        check_batch(x=(self.declaration.x, x), y=(self.declaration.y, y))
        check_key(key)
        return self.objective(self.condition, x, y, key=key)

    def predict(self, x: PyTree, *, stop: Any = None) -> PyTree:
        """The readout at the final time, in inference mode (no dropout).

        **Arguments:**

        - `x`: inputs, leading batch axis.
        - `stop`: end earlier: a time in (0, horizon], or a [`lyapunov_dsl.Confidence`][] to be reached.

        **Returns:** predictions, leading batch axis. Where the solver failed they are NaN; `trajectory` gives the
        status.

        **Raises:** `ValueError` for a time outside (0, horizon], or inputs that are not like the example.
        """
        check_batch(x=(self.declaration.x, x))
        return _infer.predict(self, x, self._stop(stop, x))

    def trajectory(self, x: PyTree, *, saveat: Any = None, stop: Any = None) -> Any:
        """The states along the way, in inference mode.

        **Arguments:**

        - `x`: inputs, leading batch axis.
        - `saveat`: a `diffrax.SaveAt`; the final state by default.
        - `stop`: as for `predict`.

        **Returns:** a `diffrax.Solution` with a leading batch axis: `ts`, `ys`, a status in `result` (no exception is
        raised), and `stats["num_steps"]`. For a discrete system, the list of states between its dynamic steps.

        **Raises:** `ValueError` for a time outside (0, horizon], for times to save at that are not increasing up to the end
        of the solve, for inputs that are not like the example, and for `saveat` or `stop` with a discrete system.
        """
        check_batch(x=(self.declaration.x, x))
        if isinstance(self.system, DiscreteSystem):
            if saveat is not None or stop is not None:
                raise ValueError("trajectory: a discrete system has its layers only; saveat and stop do not apply")
            return _infer.layers(self, x)
        stop, saveat = self._stop(stop), diffrax.SaveAt(t1=True) if saveat is None else saveat
        check_saveat(saveat, self.system.horizon if stop is None or isinstance(stop, Confidence) else stop)
        return _infer.trajectory(self, x, saveat, stop)

    def potential(self, x: PyTree, y: PyTree = None, *, times: Any) -> dict[str, Array]:
        """V along the trajectories, for every certificate by name.

        **Arguments:**

        - `x`, `y`: inputs and targets, leading batch axis.
        - `times`: increasing times in [0, horizon], shape (n,).

        **Returns:** arrays of shape (batch, n).

        **Raises:** `ValueError` for a discrete system, for inputs that are not like the example, and for other times.
        """
        check_batch(x=(self.declaration.x, x), y=(self.declaration.y, y))
        if isinstance(self.system, DiscreteSystem):
            raise ValueError("potential: expected a continuous system, got a DiscreteSystem")
        times = jnp.asarray(times)
        if not is_traced(times):
            t = np.asarray(times, np.float64)
            ordered = t.ndim == 1 and t.size > 0 and bool((np.diff(t) > 0).all())
            if not (ordered and t[0] >= 0 and t[-1] <= self.system.horizon * (1 + 1e-6)):
                raise ValueError(f"times: expected increasing times in [0, {self.system.horizon:g}], got {t}")
        return _infer.potential(self, x, y, times)

    def error(self, x: PyTree, y: PyTree = None, *, stop: Any = None) -> float:
        """The share of examples decided wrongly; where the loss decides nothing, the mean of V at the final time.

        **Arguments:**

        - `x`, `y`: inputs and targets, leading batch axis. They are taken in chunks, so that a whole data set is fine.
        - `stop`: as for `predict`.

        **Raises:** `ValueError` for data that does not fit the declaration.

        **Warns:** where the solver runs out of steps.
        """
        size = check_data(self.declaration, self.certificate, x, y)
        total, spent = 0.0, 0
        for begin in range(0, size, _CHUNK):
            some_x, some_y = jax.tree.map(lambda leaf, b=begin: jnp.asarray(leaf[b : b + _CHUNK]), (x, y))
            found, unfinished = _infer.failures(self, some_x, some_y, self._stop(stop))
            total, spent = total + float(jnp.sum(found)), spent + int(jnp.sum(unfinished))
        if spent:
            warnings.warn(
                f"the solver ran out of {self.solver.max_steps} steps (max_steps) on {spent} of {size} examples, which count as "
                "wrong or NaN; give it more, or an implicit solver such as Solver(diffrax.Kvaerno5()) for a stiff field",
                stacklevel=2,
            )
        return total / size

    def summary(self) -> str:
        """Says what was declared and which defaults were filled in, one line each.

        **Raises:** `ValueError` where arrays that were one when the program was compiled have become different ones.
        """
        d, params = self.declaration, jax.tree.leaves(split_trainable(self, trainable(self))[0])
        kept = [leaf for leaf in jax.tree.leaves((self.system, self.certificate)) if isinstance(leaf, np.ndarray)]
        count = f"{sum(leaf.size for leaf in params):,} parameters"
        if d.ties:
            count += f", {len(d.ties)} of {len(params)} arrays at several places"
        if any(np.issubdtype(leaf.dtype, np.inexact) for leaf in kept):
            count += "; NumPy arrays are constants"
        lines = {
            "system": f"{type(self.system).__name__}, {describe(d.x)} -> state {describe(d.state)} -> {describe(d.prediction)}",
            "horizon": f"{self.system.horizon:g}",
            "certificate": " & ".join(self.condition.parts),
            "domain": _describe_domain(getattr(self.system, "domain", None)),
            "objective": _describe(self.objective),
            "solver": _describe(self.solver) if isinstance(self.system, System) else "layer by layer",
            "smoothness": describe_smoothness(d.kinks),
            "trainable": count,
        }
        return "\n".join(f"{name:<12} {text}" for name, text in lines.items())

    def __str__(self) -> str:
        return self.summary()

    def _stop(self, stop: Any, x: PyTree = None) -> Any:
        if isinstance(stop, Confidence):
            prediction = self.declaration.prediction
            if isinstance(self.system, DiscreteSystem):
                raise ValueError("stop: expected a time for a discrete system, got a Confidence")
            if not (hasattr(prediction, "shape") and len(prediction.shape) == 1):
                raise ValueError(
                    f"stop: a Confidence needs a readout of logits float[classes], got {describe(prediction)}"
                )
            return stop
        if stop is None or is_traced(stop):
            return stop
        if not (is_finite(stop) and 0 < stop <= self.system.horizon):
            raise ValueError(f"stop: expected a time in (0, {self.system.horizon:g}] or a Confidence, got {stop!r}")
        # An array, so that another time does not recompile; within a trace a number, of which diffrax knows that it is in order.
        return float(stop) if any(map(is_traced, jax.tree.leaves(x))) else jnp.asarray(float(stop))


def compile(system: Any, certificate: Any, example: Any, *, objective: Any = None, solver: Any = None) -> Program:
    """Checks a declaration and fills in the defaults; nothing is trained or computed.

    **Arguments:**

    - `system`: a [`lyapunov_dsl.System`][] or a [`lyapunov_dsl.DiscreteSystem`][].
    - `certificate`: a [`lyapunov_dsl.Certificate`][], or several joined by `&`.
    - `example`: one pair (x, y) without a batch axis, as arrays or `jax.ShapeDtypeStruct`s; y is `None` without
        targets.
    - `objective`: what training minimizes; by default `MonteCarlo()` for a continuous system, `PathIntegral()` for a
        discrete one.
    - `solver`: a [`lyapunov_dsl.Solver`][] or a bare diffrax solver. By default adaptive Tsit5, or
        fixed steps of Heun, of about 1/(2K), for a field that has a `step_limit`, such as `nn.InvariantField`.

    **Returns:** a [`lyapunov_dsl.Program`][].

    **Raises:** `ValueError` for every static mistake, saying what was expected and what was got.

    **Warns:** where the field or the readout uses a piecewise constant function such as `argmax` or `round`, where the state
    is in half precision, and where the solver's `atol` is not small beside the domain.
    """
    # An array from a Python number promotes otherwise than one that was read from a file.
    system, certificate = strong((system, certificate))
    system, certificate, declaration = declare(system, certificate, example)
    if objective is None:
        objective = PathIntegral() if isinstance(system, DiscreteSystem) else MonteCarlo()
    if not isinstance(objective, Objective):
        raise ValueError(f"objective: expected an Objective such as MonteCarlo(), got {shown(objective)}")
    solver = Solver.default_for(system) if solver is None else Solver.of(solver)
    if isinstance(system, System):
        solver.controller(system)  # raises where the two do not go together
    start = eqx.filter_eval_shape(eqx.nn.inference_mode(system).start, declaration.x)
    objective.check(Condition(system, certificate), start)
    if isinstance(system, System):
        _warn_of_numbers(system, solver, start.state)
    program = Program(system, certificate, objective, solver, declaration)
    declaration = dataclasses.replace(declaration, ties=find_ties(program))
    return dataclasses.replace(program, declaration=declaration)


def _warn_of_numbers(system: System, solver: Solver, state: PyTree) -> None:
    """Warns where the type of the state or the tolerance of the solver is too coarse."""
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), state)
    dtype = time_dtype(zeros)
    if jnp.finfo(dtype).bits < 32:
        warnings.warn(
            f"the state is of {dtype}, and so is time, which can take steps no shorter than about {float(jnp.finfo(dtype).eps):.1g} "
            "of itself: solutions are inaccurate, silently; keep the state in float32 (input: Start(state.astype(jnp.float32))) and "
            "compute in half precision within the field",
            stacklevel=3,
        )
    widths = jax.tree.leaves(system.region.half_widths(zeros))
    least = min(float(jnp.min(width)) for width in widths if width.size)
    if solver.dt is None and solver.atol > 0.05 * least:
        warnings.warn(
            f"the solver's atol is {solver.atol:g}, and the domain has a half-width of {least:.3g}: such states are solved for "
            f"with few digits or none; give Solver(atol={1e-3 * least:.1g}), or measure them in another unit",
            stacklevel=3,
        )


def _describe(module: Any) -> str:
    text = eqx.tree_pformat(module, short_arrays=True, width=10_000)
    return text if len(text) <= 160 else text[:157] + "..."


def _describe_domain(domain: Any) -> str:
    if domain is None:
        return "none (discrete)"
    if isinstance(domain, Product):
        is_domain = lambda node: isinstance(node, Domain)
        return f"Product({jax.tree.map(_describe_domain, domain.parts, is_leaf=is_domain)})".replace("'", "")
    values = {n: np.asarray(getattr(domain, n)()) for n in ("lower", "upper", "radius", "center") if hasattr(domain, n)}
    return f"{type(domain).__name__}({', '.join(f'{n}={np.array2string(v, precision=4, threshold=6)}' for n, v in values.items())})"
