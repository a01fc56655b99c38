"""Inference by diffrax: solver settings, whole trajectories, early termination."""

import math
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from optimistix import Newton

from ._constant import Constant
from ._rollout import field_term, time_dtype
from ._system import Start, System
from ._types import Key, is_count, is_finite, is_traced, kind, shown


class Solver(eqx.Module):
    """How a continuous system is solved; everything here is diffrax's.

    **Arguments:**

    - `method`: a diffrax solver; `Tsit5` by default.
    - `rtol`, `atol`: tolerances of the PID step size controller (in the unit of the state for `atol`), and of the root finder
        of an implicit solver.
    - `dt`: a fixed step (in the unit of t) instead of adaptive ones. It has to reach the horizon in `max_steps`.
    - `dtmax`: the largest step that adaptive ones may take (in the unit of t).
    - `adjoint`: how the solve is differentiated; diffrax's default, `RecursiveCheckpointAdjoint`.
    - `max_steps`: the most steps; a trajectory that needs more ends with the status `max_steps_reached`.

    **Raises:** `ValueError` for a solver or an adjoint that is not diffrax's, or numbers that are not positive.
    """

    method: diffrax.AbstractSolver
    adjoint: diffrax.AbstractAdjoint
    rtol: float = eqx.field(static=True)
    atol: float = eqx.field(static=True)
    dt: float | None = eqx.field(static=True)
    dtmax: float | None = eqx.field(static=True)
    max_steps: int = eqx.field(static=True)

    def __init__(
        self,
        method: Any = None,
        *,
        rtol: Any = 1e-3,
        atol: Any = 1e-6,
        dt: Any = None,
        dtmax: Any = None,
        adjoint: Any = None,
        max_steps: Any = 4096,
    ):
        method = diffrax.Tsit5() if method is None else method
        adjoint = diffrax.RecursiveCheckpointAdjoint() if adjoint is None else adjoint
        if not isinstance(method, diffrax.AbstractSolver):
            raise ValueError(f"solver: expected a diffrax solver such as diffrax.Tsit5(), got {shown(method)}")
        if not isinstance(adjoint, diffrax.AbstractAdjoint):
            raise ValueError(
                f"adjoint: expected a diffrax adjoint such as diffrax.DirectAdjoint(), got {kind(adjoint)}"
            )
        if isinstance(adjoint, diffrax.ImplicitAdjoint):
            raise ValueError(
                "adjoint: ImplicitAdjoint differentiates steady states, which the state at the horizon is not; use "
                "RecursiveCheckpointAdjoint(), DirectAdjoint(), BacksolveAdjoint() or ForwardMode()"
            )
        for name, value in {"rtol": rtol, "atol": atol, "dt": dt, "dtmax": dtmax}.items():
            if not (name in ("dt", "dtmax") and value is None) and not (is_finite(value) and value > 0):
                raise ValueError(f"{name}: expected a positive finite number, got {value!r}")
        if not is_count(max_steps):
            raise ValueError(f"max_steps: expected a positive whole number, got {max_steps!r}")
        method = with_tolerances(method, float(rtol), float(atol)) if dt is not None else check_method(method)
        if dt is None and not isinstance(method, diffrax.AbstractAdaptiveSolver):
            raise ValueError(
                f"solver: {type(method).__name__} has no error estimate to adapt its steps by; give a fixed step dt=..."
            )
        self.method, self.adjoint = method, adjoint
        self.rtol, self.atol, self.max_steps = float(rtol), float(atol), int(max_steps)
        self.dt = None if dt is None else float(dt)
        self.dtmax = None if dtmax is None else float(dtmax)

    @classmethod
    def of(cls, choice: Any) -> "Solver":
        """A `Solver` as it is, the default for `None`, and the default settings around a bare diffrax solver: what `choice` may be."""
        return choice if isinstance(choice, Solver) else cls(choice)

    @classmethod
    def default_for(cls, system: Any) -> "Solver":
        """Adaptive Tsit5; fixed steps of Heun, half as long as the limit, where the field has a `step_limit`.

        A step of Heun is a convex combination of Euler steps, so that it keeps a convex set that Euler steps up to the
        limit keep. Tsit5 keeps it up to its error only. With jumps the steps adapt, up to the limit.

        **Arguments:**

        - `system`: a [`lyapunov_dsl.System`][]; any other gets the default settings.
        """
        limit = getattr(getattr(system, "vector_field", None), "step_limit", None)
        if limit is None:
            return cls()
        if system.jumps:
            return cls(diffrax.Heun(), dtmax=limit)
        return cls(diffrax.Heun(), dt=system.horizon / math.ceil(2 * system.horizon / limit))

    def controller(self, system: System) -> diffrax.AbstractStepSizeController:
        """The step size controller, clipped at the jumps of the system. Raises `ValueError` for jumps and a fixed step, and
        for one with which the horizon is not reached."""
        if self.dt is not None:
            if system.jumps:
                raise ValueError(f"dt: jumps at {system.jumps} need steps that adapt to them; leave out dt={self.dt}")
            steps = system.horizon / self.dt
            if steps > self.max_steps * (1 + 1e-6):
                raise ValueError(
                    f"dt: expected a step with which {self.max_steps} (max_steps) reach the horizon {system.horizon:g}, got "
                    f"{self.dt:g}; give Solver(..., max_steps={math.ceil(steps * (1 - 1e-6))}) or longer steps"
                )
            return diffrax.ConstantStepSize()
        adaptive = diffrax.PIDController(rtol=self.rtol, atol=self.atol, dtmax=self.dtmax)
        return diffrax.ClipStepSizeController(adaptive, jump_ts=jnp.asarray(system.jumps)) if system.jumps else adaptive


def check_method(method: diffrax.AbstractSolver) -> diffrax.AbstractSolver:
    """A diffrax solver of one vector field. Raises `ValueError` for those that split it or add noise."""
    terms = method.term_structure
    if not (isinstance(terms, type) and issubclass(diffrax.ODETerm, terms)):
        raise ValueError(
            f"solver: expected one for a single vector field such as diffrax.Tsit5() or diffrax.Kvaerno5(), got "
            f"{type(method).__name__}, which takes several terms"
        )
    return method


def with_tolerances(method: diffrax.AbstractSolver, rtol: float, atol: float) -> diffrax.AbstractSolver:
    """A solver for fixed steps: an implicit one that would take its tolerances from a step size controller gets a root
    finder of its own. Raises `ValueError` as `check_method`."""
    finder = getattr(check_method(method), "root_finder", None)
    # In place of its tolerances there is a mark then.
    if not any("taken from" in repr(getattr(finder, name, None)) for name in ("rtol", "atol")):
        return method
    # Newton's method and not diffrax's chord method: that takes rounding for divergence, after which only an adaptive step
    # size goes on. Below this size a residual is rounding, too.
    least = float(jnp.finfo(jnp.result_type(float)).eps) ** 0.5
    return eqx.tree_at(lambda m: m.root_finder, method, Newton(rtol=rtol, atol=max(atol, least)))


class Confidence(eqx.Module):
    """Early termination: stop as soon as the largest softmax probability of the readout reaches a level.

    The event is looked at after every step of the solver, so that the answer is that of the first step at whose end the
    level is reached.

    **Arguments:**

    - `level`: the probability, in (0, 1).

    **Raises:** `ValueError` for a level outside (0, 1).
    """

    level: Constant

    def __init__(self, level: Any):
        if not is_traced(level) and not (is_finite(level) and 0 < level < 1):
            raise ValueError(f"confidence: expected a probability in (0, 1), got {level!r}")
        self.level = Constant(level)

    def event(self, system: System) -> diffrax.Event:
        """The diffrax event that stops a solve of this system."""

        def reached(t: Any, state: Any, args: Any, **kwargs: Any) -> Any:
            logits = system.decode(state)
            return jnp.max(jax.nn.softmax(logits)) >= self.level(logits.dtype)

        return diffrax.Event(reached)


def check_saveat(saveat: Any, end: Any) -> None:
    """Raises `ValueError` for what is no `diffrax.SaveAt`, and for times that are not increasing in [0, end]."""
    if not isinstance(saveat, diffrax.SaveAt):
        raise ValueError(f"saveat: expected a diffrax.SaveAt such as SaveAt(ts=times), got {kind(saveat)}")
    is_sub = lambda node: isinstance(node, diffrax.SubSaveAt)
    for sub in jax.tree.leaves(saveat.subs, is_leaf=is_sub):
        if not is_sub(sub) or sub.ts is None or is_traced(sub.ts) or is_traced(end):
            continue
        ts = np.asarray(sub.ts, np.float64)
        if ts.ndim != 1:
            raise ValueError(
                f"saveat: expected times of shape (n,), the same for all examples, got {list(ts.shape)}; for times of each "
                "example's own, jax.vmap a function (x, times) that calls trajectory(x[None], saveat=SaveAt(ts=times))"
            )
        if not ((np.diff(ts) >= 0).all() and (ts >= 0).all() and (ts <= end * (1 + 1e-6)).all()):
            raise ValueError(f"saveat: expected increasing times in [0, {end:g}], where the solve ends, got {ts}")


def solve(
    system: System,
    start: Start,
    key: Key,
    solver: Solver,
    *,
    saveat: diffrax.SaveAt | None = None,
    stop: Any = None,
) -> diffrax.Solution:
    """Solves eq. 2 for one example from t = 0.

    **Arguments:**

    - `system`, `start`, `key`: the system, its start and the example's key (or `None`).
    - `solver`: solver settings.
    - `saveat`: diffrax's `SaveAt`; the final state by default.
    - `stop`: `None` for the horizon, a time in (0, horizon], or a [`lyapunov_dsl.Confidence`][].

    **Returns:** a `diffrax.Solution`. It does not raise: `result` says whether the solve succeeded,
    `stats["num_steps"]` how many steps it took.
    """
    dtype = time_dtype(start.state)
    # As Python floats, which are static for diffrax: it checks them while tracing, and not by a callback in the program,
    # which could not be exported. Where times are of another type than Python floats are, they have to be arrays.
    usual = dtype == jnp.result_type(float)
    known = lambda x: float(x) if usual and not isinstance(x, jax.Array) else jnp.asarray(x, dtype)
    event = stop.event(system) if isinstance(stop, Confidence) else None
    end = system.horizon if stop is None or event is not None else stop
    return diffrax.diffeqsolve(
        field_term(system, key),
        solver.method,
        t0=known(0),
        t1=known(end),
        dt0=None if solver.dt is None else known(solver.dt),
        y0=start.state,
        args=start.context,
        saveat=diffrax.SaveAt(t1=True) if saveat is None else saveat,
        stepsize_controller=solver.controller(system),
        adjoint=solver.adjoint,
        event=event,
        max_steps=solver.max_steps,
        throw=False,
    )
