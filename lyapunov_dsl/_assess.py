"""`assess`: what sampling, attacks and trajectories say about a program. Nothing of it is a proof."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from . import _infer
from ._certify import Assurance, Claim, clopper_pearson
from ._certify._certify import certify
from ._certify._feasible import feasibility
from ._certify._report import FRESH, Report
from ._check import check_data
from ._compile import Program
from ._system import DiscreteSystem
from ._types import check_key, check_norm, is_count, is_finite, kind

QUESTIONS = ("condition", "feasibility", "error")
# So many states are enough to ask whether a condition can be met.
FEASIBILITY_SAMPLES = 2048


def assess(
    program: Program,
    data: Any,
    *,
    only: str | Sequence[str] | None = None,
    radius: Any = None,
    norm: str = "inf",
    samples: int = 4096,
    confidence: float = 0.95,
    key: Any = None,
) -> Report:
    """Reports on a program and data: violations, decay, states leaving H, feasibility, each with how it was obtained. Nothing is proved.

    Shares are `STATISTICAL` (Clopper-Pearson) where the draws are independent; a violation that was found is
    `REFUTED` with its counterexample; a search that found none is `EMPIRICAL`. A robustness radius is `UNDECIDED`
    unless its premises are proved, which [`lyapunov_dsl.prove`][] does and this does not; what would follow from them is
    `report.robustness`, as a function of a Lipschitz bound. `report.problems` says what is wrong (states that leave
    H, inference that fails, a rate that cannot be met), `report.stops` what ending early costs.

    Feasibility asks whether the certificate can be met on H at all, by a field as fast as the declared one may be. The vector
    field declares how fast it can be, whatever its parameters, by a method `speed_bound(t, state, context)`: a scalar s for
    |f|_2 <= s, or a pair (lower, upper) of PyTrees like the state ([`lyapunov_dsl.nn.InvariantField`][] has one). Where even the
    velocity that lowers V fastest is too slow, no training of the field helps (another readout might). The claims are
    `NAME.feasible`: `REFUTED` with a state at which it cannot be met, `EMPIRICAL` where none was found, `UNDECIDED` where the
    field breaks its own bound or declares none (said only where it is asked for); `NAME.level`, the largest V found at which it
    cannot be met (a loss truncated there can be, and less may do, as truncation asks for less everywhere); and `speed_bound`,
    whether the field was found to keep its own bound.

    **Arguments:**

    - `program`: a [`lyapunov_dsl.Program`][].
    - `data`: a pair (x, y) of inputs and targets with a leading batch axis, y `None` without targets.
    - `only`: some of `"condition"`, `"feasibility"` and `"error"`; by default all that can be asked of the system: of a discrete
        one, the error.
    - `radius`, `norm`: the size of the perturbations of x and its norm, `"inf"` or `"2"`.
    - `samples`: how many independent (example, t, state) are drawn.
    - `confidence`: of the intervals.
    - `key`: a PRNG key; fixed by default.

    **Returns:** a [`lyapunov_dsl.Report`][].

    **Raises:** `ValueError` for data that does not fit the declaration (targets out of range included), for a condition or
    feasibility of a discrete system, and for a speed bound of another shape.
    """
    if not isinstance(program, Program):
        raise ValueError(f"program: expected a Program made by lyapunov_dsl.compile, got {kind(program)}")
    if not (isinstance(data, tuple | list) and len(data) == 2):
        raise ValueError(f"data: expected a pair (x, y), with y None where there are no targets, got {kind(data)}")
    discrete = isinstance(program.system, DiscreteSystem)
    wanted = [only] if isinstance(only, str) else only
    if wanted is not None and (not wanted or any(name not in QUESTIONS for name in wanted)):
        raise ValueError(f"only: expected some of {QUESTIONS}, got {only!r}")
    if discrete and wanted is not None and set(wanted) - {"error"}:
        raise ValueError(f"only: expected 'error', as the system is a DiscreteSystem, got {only!r}")
    if radius is not None and not (is_finite(radius) and radius >= 0):
        raise ValueError(f"radius: expected a finite number >= 0, got {radius!r}")
    if not is_count(samples):
        raise ValueError(f"samples: expected a positive whole number, got {samples!r}")
    if not (is_finite(confidence) and 0 < confidence < 1):
        raise ValueError(f"confidence: expected a probability in (0, 1), got {confidence!r}")
    check_norm(norm)
    key = jax.random.key(0) if key is None else key
    check_key(key)
    x, y = data
    check_data(program.declaration, program.certificate, x, y)
    x, y = jax.tree.map(jnp.asarray, (x, y))
    quiet = eqx.nn.inference_mode(program)
    if discrete or (wanted is not None and "condition" not in wanted):
        # The report on the condition has the error too.
        report = _error(quiet, x, y, confidence) if wanted is None or "error" in wanted else Report({})
    else:
        report = certify(
            quiet.condition,
            quiet.solver,
            x,
            y,
            key=key,
            samples=int(samples),
            radius=radius,
            norm=norm,
            confidence=confidence,
            prediction=program.declaration.prediction,
        )
    declared = not discrete and callable(getattr(quiet.condition.continuous.vector_field, "speed_bound", None))
    if declared if wanted is None else "feasibility" in wanted:
        starts = eqx.filter_jit(eqx.filter_vmap(quiet.condition.system.start))(x)
        found = feasibility(quiet.condition, starts, y, key=key, samples=min(int(samples), FEASIBILITY_SAMPLES))
        report = report.joined(found)
    return report


def _error(program: Program, x: Any, y: Any, confidence: float) -> Report:
    """The share of examples decided wrongly; where the loss decides nothing, the mean of V at the final time."""
    failed = np.asarray(_infer.failures(program, x, y, None)[0], np.float64)
    if not set(np.unique(failed)) <= {0.0, 1.0}:
        claim = Claim("mean of V at the final time", Assurance.EMPIRICAL, float(failed.mean()))
        return Report({"error": claim})
    count = int(failed.sum())
    interval = clopper_pearson(count, failed.size, confidence)
    statement = "share of examples decided wrongly"
    claim = Claim(statement, Assurance.STATISTICAL, count / failed.size, interval, confidence, given=FRESH)
    return Report({"error": claim})
