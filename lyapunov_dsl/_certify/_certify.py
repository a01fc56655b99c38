"""What can be said about a trained program today, at the level at which it can honestly be said."""

import dataclasses
import math
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
from .._rollout import time_dtype
from .._solve import Solver, solve
from ._assurance import Assurance, Claim, Counterexample, clopper_pearson, weakest
from ._falsify import Draws, draw, evaluate, falsify, last_time
from ._rules import certified_radius, check

DECAY_TIMES = (0.25, 0.5, 0.75, 1.0)
DECAY_SLACK = 0.05
LOOKS = 33


@dataclasses.dataclass(frozen=True)
class Report:
    """What `certify` found. Printable; every claim carries its assurance.

    **Arguments:**

    - `claims`: the claims by name.
    - `premises`: the premises of the robustness rules with the assurance each has.
    - `radii`: for every example, the radius of the comparison rule *if* all premises held, or `None` without a
        Lipschitz bound. Void where a premise is `REFUTED`.
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
            void = Assurance.REFUTED in self.premises.values()
            lines.append(
                f"radius if every premise held{' (void: one of them is refuted)' if void else ''}: "
                f"median {np.median(self.radii):.4g}, over {self.radii.size} examples"
            )
        if self.counterexample is not None:
            c = self.counterexample
            state = jax.tree.map(lambda leaf: np.array2string(leaf, precision=3, threshold=20), c.state)
            lines.append(
                f"counterexample: {c.part}, example {c.example}, t={c.t:.4g}, V={c.value:.4g}, dV/dt={c.rate:.4g}, "
                f"residual={c.residual:.4g} at state {state}"
            )
        return "\n".join(lines)


class Paths(eqx.Module):
    """What the trajectories of a batch show at `LOOKS` equal times: states, V, how far they are outside H, whether the
    solve succeeded and (where the loss decides) whether the decision at T is right."""

    times: Any
    states: PyTree
    values: dict[str, Any]
    excess: Any
    solved: Any
    correct: Any


@eqx.filter_jit
def paths(condition: Condition, solver: Solver, starts: PyTree, targets: PyTree) -> Paths:
    """Solves a batch; V is that of the loss before truncation."""
    system, loss = condition.continuous, loss_of(condition.certificate)

    def one(start: Any, target: Any) -> Any:
        times = jnp.linspace(0, system.horizon, LOOKS, dtype=time_dtype(start.state))
        solution = solve(system, start, None, solver, saveat=diffrax.SaveAt(ts=times, t1=True))
        states = jax.tree.map(lambda leaf: leaf[:-1], solution.ys)
        final = jax.tree.map(lambda leaf: leaf[-1], solution.ys)
        point = condition.point(start, target)

        def at(t: Any, state: Any) -> Any:
            values = {}
            for name, part in condition.parts.items():
                whole = _truncated(part)
                values[name] = whole(point.readout(state), target) if whole else part.value(t, state, point)
            return values, system.region.excess(state)

        finite = jax.tree.reduce(jnp.logical_and, jax.tree.map(lambda leaf: jnp.isfinite(leaf).all(), final))
        solved = (solution.result == diffrax.RESULTS.successful) & finite
        right = None if loss is None else loss.correct(point.readout(final), target)
        values, excess = jax.vmap(at)(times, states)
        return Paths(times, states, values, excess, solved, None if right is None else right & solved)

    run = eqx.filter_vmap(one)(starts, targets)
    return eqx.tree_at(lambda run: run.times, run, run.times[0])


def _truncated(part: Any) -> Any:
    """The loss before truncation of a part that has a truncated one, else `None`."""
    return part.loss.loss if isinstance(part, Exponential) and isinstance(part.loss, Truncated) else None


def visited(condition: Condition, run: Paths, count: int) -> list[Draws]:
    """The points (example, t, state) of the trajectories that are in H, where a condition on H has to hold first of all;
    in pieces of `count`, the last of them filled up by repetition."""
    inside = np.flatnonzero(np.asarray(run.excess) <= 0)
    example, when = np.divmod(np.resize(inside, -(-inside.size // count) * count), LOOKS)
    times = np.minimum(np.asarray(run.times), last_time(condition.continuous.horizon, run.times.dtype))
    states = jax.tree.map(np.asarray, run.states)
    pieces = [(example[i : i + count], when[i : i + count]) for i in range(0, example.size, count)]
    return [Draws(e, times[w], jax.tree.map(lambda leaf, e=e, w=w: leaf[e, w], states)) for e, w in pieces]


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
    if lipschitz is not None:
        check(lipschitz=lipschitz)
    begun = eqx.filter_jit(eqx.filter_vmap(condition.system.start))(x)
    run = paths(condition, solver, begun, y)
    # Only the first are independent draws; what the trajectories visit is looked at, not counted.
    draws = [jax.tree.map(np.asarray, draw(condition, begun, key, samples)), *visited(condition, run, samples)]
    join = lambda pieces: jax.tree.map(lambda *leaves: np.concatenate(leaves), *pieces)
    claims: dict[str, Claim] = {}

    def share(name: str, statement: str, events: Any) -> None:
        events = np.asarray(events)
        count = int(events.sum())
        interval = clopper_pearson(count, events.size, confidence)
        claims[name] = Claim(f"share of {statement}", Assurance.STATISTICAL, count / events.size, interval, confidence)

    examples = "examples (if they are fresh independent draws; as the solver computes them)"
    solved = np.asarray(run.solved)
    if run.correct is not None:
        share("error", f"{examples} decided wrongly", ~np.asarray(run.correct))
    for name, part in condition.parts.items():
        found = [evaluate(condition, name, begun, y, piece) for piece in draws]
        share(
            f"{name}.violation",
            f"(example, t, state), uniform on the batch, [0, T] and H, at which {name} is violated by more than rounding",
            np.asarray(found[0].excess) > 0,
        )
        worst, counterexample = falsify(condition, name, begun, y, join(draws), join(found))
        statement = f"{name} holds for these examples on all of [0, T] x H; worst residual found"
        level = Assurance.EMPIRICAL if counterexample is None else Assurance.REFUTED
        claims[f"{name}.holds"] = Claim(statement, level, worst, counterexample=counterexample)
        before = " before truncation" if _truncated(part) else ""
        share(
            f"{name}.decay",
            f"{examples} whose V ({name}{before}) is within {DECAY_SLACK:.0%} of the promise at t/T = {DECAY_TIMES}",
            solved & decays(condition, name, run),
        )
    rounding = 64 * float(jnp.finfo(run.excess.dtype).eps)
    stays = np.asarray(run.excess).max(axis=1) <= rounding
    share("domain.left", f"{examples} whose trajectory leaves H ({LOOKS} times looked at)", ~stays)
    if not solved.all():
        share("unsolved", f"{examples} that the solver could not finish", ~solved)
    refutations = [c.counterexample for c in claims.values() if c.counterexample is not None]
    badness = lambda c: math.inf if math.isnan(c.residual) else c.residual
    worst = max(refutations, key=badness, default=None)
    if radius is None:
        return Report(claims, {}, None, worst)

    # None of the premises is proved here (only refuted or searched), so neither is the conclusion.
    claims["robust"] = Claim(
        f"the decision is the same for every perturbation of size {float(radius):.4g} in the {norm}-norm",
        Assurance.UNDECIDED,
    )
    name = deciding(condition, norm)
    holds = [claims[f"{part}.holds"].assurance for part in (condition.parts if name is None else [name])]
    premises = {
        "H is forward invariant for every perturbed input": Assurance.UNDECIDED,
        "the condition holds for the nominal input on all of H": weakest(*holds),
        "c bounds V(η(0)) for every perturbed input": Assurance.UNDECIDED,
        f"L_f bounds the change of the field with the input, both in the {norm}-norm": Assurance.UNDECIDED,
        "the solver decides as the exact flow does": Assurance.UNDECIDED,
    }
    known = name is not None and lipschitz is not None
    return Report(claims, premises, conditional_radii(condition, name, run, lipschitz, norm) if known else None, worst)


def deciding(condition: Condition, norm: str) -> str | None:
    """The name of the first exponential part to which the robustness rules apply: its loss decides and has a gradient
    profile."""
    for name, part in condition.parts.items():
        loss = part.loss if isinstance(part, Exponential) else None
        if loss is not None and loss.threshold() is not None and loss.gradient_profile(1.0, norm) is not None:
            return name
    return None


def conditional_radii(condition: Condition, name: Any, run: Paths, lipschitz: Any, norm: str) -> np.ndarray:
    """For every example the radius of the comparison rule from its own V(η(0)); 0 where that is not finite."""
    part: Any = condition.parts[name]
    constants: Any = {"loss": part.loss, "kappa": float(part.kappa), "horizon": condition.continuous.horizon}
    # Starts that are constant are common, and a radius takes some 10 ms.
    initial, where = np.unique(np.asarray(run.values[name][:, 0], np.float64), return_inverse=True)
    radii = [
        certified_radius(initial=max(float(c), 0.0), lipschitz=float(lipschitz), norm=norm, **constants)
        if np.isfinite(c)
        else 0.0
        for c in initial
    ]
    return np.asarray(radii)[where]


def decays(condition: Condition, name: str, run: Paths, slack: float = DECAY_SLACK) -> np.ndarray:
    """For every example, whether V (before truncation) keeps the promise of the comparison equation, with relative
    slack.

    The promise is flow(0, t, V(0)), for the exponential certificate V(0) exp(-κt); looked at at `DECAY_TIMES` times T.
    """
    looks = np.array([round(fraction * (LOOKS - 1)) for fraction in DECAY_TIMES])
    values, times = run.values[name], run.times[looks]
    flow = lambda t, v: condition.parts[name].flow(jnp.zeros_like(t), t, v)
    promise = jax.vmap(lambda v: jax.vmap(lambda t: flow(t, v))(times))(values[:, 0])
    kept = jnp.isfinite(promise) & (values[:, looks] <= promise + slack * jnp.abs(promise))
    return np.asarray(kept.all(axis=1))
