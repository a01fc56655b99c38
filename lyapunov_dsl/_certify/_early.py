"""Error against compute, for inference that ends early."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._certificate import loss_of
from .._condition import Condition
from .._solve import Confidence, Solver, solve
from ._assurance import Assurance, Claim, clopper_pearson
from ._report import FRESH, EarlyStop

TIMES = (0.125, 0.25, 0.5, 0.75)
LEVELS = (0.9, 0.99, 0.999)


@eqx.filter_jit
def _ended(condition: Condition, solver: Solver, starts: PyTree, targets: PyTree, stop: Any) -> tuple[Any, Any]:
    """For every example 1 or 0 where the loss decides (wrongly or rightly), else the loss; and its solver steps."""
    system, loss = condition.continuous, loss_of(condition.certificate)
    assert loss is not None

    def one(start: Any, target: Any) -> tuple[Any, Any]:
        solution = solve(system, start, None, solver, stop=stop)
        prediction = system.decode(jax.tree.map(lambda leaf: leaf[-1], solution.ys))
        correct, good = loss.correct(prediction, target), diffrax.is_okay(solution.result)
        undecided = lambda: jnp.where(good, loss(prediction, target), jnp.nan)
        return undecided() if correct is None else (~(correct & good)).astype(float), solution.stats["num_steps"]

    return eqx.filter_vmap(one)(starts, targets)


def early_stops(
    condition: Condition, solver: Solver, starts: PyTree, targets: PyTree, prediction: PyTree, confidence: float
) -> tuple[EarlyStop, ...]:
    """The curve, ordered by what it costs; empty for certificates without a loss."""
    loss, horizon = loss_of(condition.certificate), condition.continuous.horizon
    if loss is None:
        return ()
    decides = loss.threshold() is not None
    stops: dict[str, Any] = {f"t = {fraction * horizon:g}": fraction * horizon for fraction in TIMES}
    if decides and getattr(prediction, "ndim", 0) == 1:
        stops |= {f"confidence {level:g}": Confidence(level) for level in LEVELS}
    curve = []
    for name, stop in {**stops, f"t = {horizon:g}": None}.items():
        # An array, so that another time does not recompile.
        end = jnp.asarray(horizon if stop is None else stop) if not isinstance(stop, Confidence) else stop
        failures, steps = map(np.asarray, _ended(condition, solver, starts, targets, end))
        mean = float(failures.mean(dtype=np.float64))
        if decides:
            interval = clopper_pearson(int(failures.sum()), failures.size, confidence)
            error = Claim(
                "share of examples decided wrongly", Assurance.STATISTICAL, mean, interval, confidence, given=FRESH
            )
        else:
            error = Claim("mean loss", Assurance.EMPIRICAL, mean)
        curve.append(EarlyStop(stop, name, error, float(steps.mean())))
    return tuple(sorted(curve, key=lambda point: point.steps))
