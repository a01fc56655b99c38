"""What can be said about a trained program today, at the level at which it can honestly be said."""

import dataclasses
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._certificate import Exponential, loss_of
from .._condition import Condition
from .._potential import Truncated
from .._solve import Solver, solve
from ._assurance import Assurance, Claim, Counterexample, clopper_pearson, weakest
from ._falsify import draw, evaluate, falsify
from ._rules import certified_radius

DECAY_TIMES = (0.25, 0.5, 0.75, 1.0)
DECAY_SLACK = 0.05


@dataclasses.dataclass(frozen=True)
class Report:
    """What `certify` found. Printable; every claim carries its assurance.

    **Arguments:**

    - `claims`: the claims by name.
    - `premises`: the premises of the robustness rules with the assurance each has.
    - `radii`: for every example, the radius of the comparison rule *if* all premises held, or `None` without a
        Lipschitz bound.
    - `counterexample`: the worst violation found over all parts, or `None`.
    """

    claims: dict[str, Claim]
    premises: dict[str, Assurance]
    radii: np.ndarray | None = None
    counterexample: Counterexample | None = None

    def __str__(self) -> str:
        lines = [str(claim) for claim in self.claims.values()]
        if self.premises:
            lines.append("premises of a robustness radius:")
            lines += [f"  {level.name:<12} {name}" for name, level in self.premises.items()]
        if self.radii is not None:
            lines.append(
                f"radius if every premise held: median {np.median(self.radii):.4g}, over {self.radii.size} examples"
            )
        if self.counterexample is not None:
            c = self.counterexample
            lines.append(
                f"counterexample: {c.part}, example {c.example}, t={c.t:.4g}, V={c.value:.4g}, dV/dt={c.rate:.4g}, "
                f"residual={c.residual:.4g} at state {np.array2string(np.asarray(jax.tree.leaves(c.state)[0]), precision=3)}"
            )
        return "\n".join(lines)


class Paths(eqx.Module):
    """What trajectories of a batch show: V on a grid of times, and how far they leave H."""

    times: Any
    values: dict[str, Any]
    excess: Any
    solved: Any


@eqx.filter_jit
def paths(condition: Condition, solver: Solver, starts: PyTree, targets: PyTree, count: int) -> Paths:
    """Solves a batch and evaluates V (of the loss before truncation) at `count` + 1 equal times from 0 to T."""
    system = condition.continuous

    def one(start: Any, target: Any) -> Any:
        times = jnp.linspace(0, system.horizon, count + 1, dtype=jax.tree.leaves(start.state)[0].dtype)
        solution = solve(system, start, None, solver, saveat=diffrax.SaveAt(ts=times))
        point = condition.point(start, target)

        def at(t: Any, state: Any) -> Any:
            values = {}
            for name, part in condition.parts.items():
                loss = part.loss if isinstance(part, Exponential) else None
                if isinstance(loss, Truncated):
                    values[name] = loss.loss(point.readout(state), target)
                else:
                    values[name] = part.value(t, state, point)
            return values, system.region.excess(state)

        values, excess = jax.vmap(at)(times, solution.ys)
        return values, jnp.max(excess), solution.result == diffrax.RESULTS.successful, times

    values, excess, solved, times = eqx.filter_vmap(one)(starts, targets)
    return Paths(times[0], values, excess, solved)


def certify(
    condition: Condition,
    solver: Solver,
    x: PyTree,
    y: PyTree,
    *,
    key: Any,
    samples: int,
    radius: Any,
    norm: str,
    lipschitz: Any,
    confidence: float,
) -> Report:
    """See [`lyapunov_dsl.Program.certify`][]."""
    if norm not in ("inf", "2"):
        raise ValueError(f"norm: expected 'inf' or '2', got {norm!r}")
    begun = eqx.filter_jit(eqx.filter_vmap(condition.system.start))(x)
    draws = draw(condition, begun, key, samples)
    run = paths(condition, solver, begun, y, 32)
    claims: dict[str, Claim] = {}

    def share(name: str, statement: str, events: Any) -> None:
        events = np.asarray(events)
        count = int(events.sum())
        interval = clopper_pearson(count, events.size, confidence)
        claims[name] = Claim(statement, Assurance.STATISTICAL, count / events.size, interval)

    loss = loss_of(condition.certificate)
    if loss is not None and loss.threshold() is not None:
        final = eqx.filter_jit(_decisions)(condition, solver, begun, y)
        share("error", "share of examples decided wrongly (examples as drawn independently)", ~np.asarray(final))
    worst: Counterexample | None = None
    for name in condition.parts:
        _, _, residual, margin = (np.asarray(a) for a in evaluate(condition, name, begun, y, draws))
        share(
            f"{name}.violation",
            f"share of (example, t, state), uniform on the batch, [0, T] and H, at which {name} is violated",
            ~(residual <= margin),
        )
        found, counterexample = falsify(condition, name, begun, y, draws)
        statement = f"{name} holds for these examples on all of [0, T] x H; worst residual found"
        level = Assurance.EMPIRICAL if counterexample is None else Assurance.REFUTED
        claims[f"{name}.holds"] = Claim(statement, level, found, counterexample=counterexample)
        if counterexample is not None and (worst is None or counterexample.residual > worst.residual):
            worst = counterexample
        kept = np.asarray(run.solved) & decays(condition, name, run)
        share(
            f"{name}.decay",
            f"share of examples with V(t) <= {1 + DECAY_SLACK} times the promise at t/T = {', '.join(map(str, DECAY_TIMES))}",
            kept,
        )
    rounding = 64 * float(jnp.finfo(run.excess.dtype).eps)
    share(
        "domain.left",
        "share of examples whose trajectory leaves H (33 times looked at)",
        ~(np.asarray(run.excess) <= rounding),
    )
    if not bool(np.asarray(run.solved).all()):
        share("unsolved", "share of examples that the solver could not finish", ~np.asarray(run.solved))

    premises: dict[str, Assurance] = {}
    radii = None
    if radius is not None:
        premises = {
            "H is forward invariant for every perturbed input": Assurance.UNDECIDED,
            "the condition holds for the nominal input on all of H": weakest(
                *(claims[f"{name}.holds"].assurance for name in condition.parts)
            ),
            "c bounds V(η(0)) for every perturbed input": Assurance.UNDECIDED,
            "L_f bounds the change of the field with the input": Assurance.UNDECIDED,
        }
        # None of the premises is proved here (only refuted or searched), so neither is the conclusion.
        claims["robust"] = Claim(
            f"the decision is the same for every perturbation of size {float(radius):.4g} in the {norm}-norm",
            Assurance.UNDECIDED,
        )
        part = next((p for p in condition.parts.values() if isinstance(p, Exponential)), None)
        if lipschitz is not None and part is not None and part.loss.threshold() is not None:
            name = next(n for n, p in condition.parts.items() if p is part)
            initial = np.asarray(run.values[name])[:, 0]
            radii = np.array(
                [
                    certified_radius(
                        loss=part.loss, initial=float(c), kappa=float(part.kappa), lipschitz=float(lipschitz), norm=norm,
                        horizon=condition.system.horizon,
                    )
                    for c in initial
                ]
            )  # fmt: skip
    return Report(claims, premises, radii, worst)


def decays(condition: Condition, name: str, run: Paths, slack: float = DECAY_SLACK) -> np.ndarray:
    """For every example, whether V (before truncation) keeps the promise of the comparison equation, with relative
    slack.

    The promise is flow(0, t, V(0)), for the exponential certificate V(0) exp(-κt); looked at at `DECAY_TIMES` times T.
    """
    values = run.values[name]
    count = run.times.shape[0] - 1
    kept = np.ones(values.shape[0], bool)
    for fraction in DECAY_TIMES:
        i = round(fraction * count)
        promise = jax.vmap(lambda v, t=run.times[i]: condition.parts[name].flow(jnp.zeros_like(t), t, v))(values[:, 0])
        kept &= np.asarray(values[:, i] <= promise + slack * jnp.abs(promise))
    return kept


def _decisions(condition: Condition, solver: Solver, starts: PyTree, targets: PyTree) -> Any:
    def one(start: Any, target: Any) -> Any:
        solution = solve(condition.continuous, start, None, solver)
        prediction = condition.system.decode(jax.tree.map(lambda leaf: leaf[-1], solution.ys))
        return loss_of(condition.certificate).correct(prediction, target)

    return eqx.filter_vmap(one)(starts, targets)
