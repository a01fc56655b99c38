"""Counterexample-guided synthesis: training that is led by what a proof fails at, until it goes through or the rounds are over."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from ._certify import Assurance
from ._certify._falsify import draw, evaluate
from ._compile import Program
from ._condition import Condition
from ._fit import Interrupted, NonFiniteError, fit
from ._measure import Boxes
from ._objective import MonteCarlo
from ._prove import Property, Prover, Tube, Verification, prove
from ._system import System
from ._types import is_count, is_finite, kind, levels

# How many boxes are kept, the latest; their number stays the same, so that nothing is compiled anew.
KEPT = 256


class Synthesis(NamedTuple):
    """What `synthesize` ends with.

    **Arguments:**

    - `program`: as trained in the last round.
    - `verification`: the last `Verification`: proved, refuted with a counterexample, or undecided with what is left; `None` where none
        was tried.
    - `history`: for each round the status, and the number of boxes that were left, or of states at which the condition fails.
    """

    program: Program
    verification: Any
    history: list[tuple[Assurance, int]]


def synthesize(
    program: Program,
    data: Any,
    property: Property,
    *,
    at: Any = None,
    prover: Prover | None = None,
    certificate: Callable[[Program], Any] | None = None,
    search: str = "proof",
    optimizer: Any,
    key: Any,
    rounds: int = 5,
    epochs: int = 20,
    weight: float = 1.0,
    near: float = 0.02,
    draws: int = 65_536,
    relative: bool = False,
    batch_size: int = 64,
    steps_per_dispatch: int | None = None,
    trainable: Any = None,
    progress: bool = False,
) -> Synthesis:
    """Trains, tries the proof of a property, and trains on with states from where it failed, until it goes through.

    In each round many states of H are looked at first, and what is to be proved is tried where it fails at none of them, or when the
    rounds are over. States at which it fails, and boxes that were left undecided, become states of a Monte Carlo objective beside that
    of the program (counterexample-guided synthesis; Chang, Roohi and Gao 2019).

    **Arguments:**

    - `program`: a [`lyapunov_dsl.Program`][] of a continuous system, with any objective.
    - `property`, `at`, `prover`: what is to be proved, as of [`lyapunov_dsl.prove`][].
    - `certificate`: program -> the certificate that is to be proved, such as the same V with a smaller κ than it is trained with; the
        program's own where it is left out.
    - `search`: `"proof"`, or `"counterexamples"`, which proves nothing: the rounds end where the condition fails at none of the states
        that are looked at, as a beginning for a call that proves, and the status is `EMPIRICAL` at best.
    - `data`, `optimizer`, `batch_size`, `steps_per_dispatch`, `trainable`: as of [`lyapunov_dsl.fit`][]; the
        optimizer starts anew in each round.
    - `key`: a PRNG key.
    - `rounds`: at most so many times training and proof.
    - `epochs`: of each round.
    - `weight`: of the residuals in the boxes, beside the program's objective, > 0.
    - `near`: half-width of the box around a counterexample, relative to the domain's.
    - `draws`: how many states are looked at in each round, drawn uniformly.
    - `relative`: whether the residuals in the boxes are relative, as of [`lyapunov_dsl.MonteCarlo`][].
    - `progress`: whether bars are shown.

    **Returns:** a `Synthesis`.

    **Raises:** `ValueError` for a discrete system, or numbers that are not as above. Where training meets a NaN or an Inf,
    [`lyapunov_dsl.NonFiniteError`][], and after Ctrl-C [`lyapunov_dsl.Interrupted`][]; the `result` of both is a `Synthesis` with
    the program so far, the last verification and the history of the rounds that ended.
    """
    objective = program.objective
    if not isinstance(property, Property):
        raise ValueError(f"property: expected one such as RegionOfAttraction(...), got {kind(property)}")
    if search not in ("proof", "counterexamples"):
        raise ValueError(f"search: expected 'proof' or 'counterexamples', got {search!r}")
    asked = property.options()
    if not (is_finite(weight) and weight > 0):
        raise ValueError(f"weight: expected a number > 0, got {weight!r}")
    if not is_count(rounds):
        raise ValueError(f"rounds: expected a positive whole number, got {rounds!r}")
    if not isinstance(program.system, System):
        raise ValueError(f"system: expected a continuous System, got {kind(program.system)}")
    low = high = None
    found: Any = None
    history: list[tuple[Assurance, int]] = []
    for turn in range(rounds):
        if low is not None and high is not None:
            led = MonteCarlo(Boxes(low, high), level=asked.get("level"), relative=relative)
            program = eqx.tree_at(lambda p: p.objective, program, objective + weight * led)
        one, two = jax.random.split(jax.random.fold_in(key, turn))
        with _keeping(program, found, history, objective):
            program = fit(
                program,
                data,
                optimizer=optimizer,
                epochs=epochs,
                batch_size=batch_size,
                steps_per_dispatch=steps_per_dispatch,
                trainable=trainable,
                key=one,
                progress=progress,
            ).program
        condition = Condition(program.system, program.certificate if certificate is None else certificate(program))
        points = _failing(program, condition.certificate, asked, at, two, draws)
        fresh = _around(program, points, near)
        if search == "counterexamples":
            status = Assurance.REFUTED if len(points) else Assurance.EMPIRICAL
            history.append((status, len(points)))
            if not len(points):
                break
        elif not len(points) or turn == rounds - 1:
            with _keeping(program, found, history, objective):
                found = prove(condition, property, at=at, prover=prover)
            history.append((found.status, sum(len(v) for v, _ in found.left.values())))
            if found.status.proved:
                break
            fresh = tuple(np.concatenate(v) for v in zip(fresh, _failed(program, found, near), strict=True))
        else:
            history.append((Assurance.REFUTED, len(points)))
        low, high = (
            v if old is None else np.concatenate([v, old])[:KEPT] for v, old in zip(fresh, (low, high), strict=True)
        )
        low, high = (np.resize(v, (KEPT, v.shape[1])) for v in (low, high))
    program = eqx.tree_at(lambda p: p.objective, program, objective)
    return Synthesis(program, found, history)


@contextlib.contextmanager
def _keeping(program: Program, found: Any, history: list[tuple[Assurance, int]], objective: Any) -> Iterator[None]:
    """Gives what ends a round what was found in the rounds before it."""
    so_far = f"in round {len(history) + 1}; what was found before it is in .result, a Synthesis"

    def guided(program: Program) -> Synthesis:
        return Synthesis(eqx.tree_at(lambda p: p.objective, program, objective), found, history)

    try:
        yield
    except (NonFiniteError, Interrupted) as error:
        raise type(error)(f"{error}; {so_far}", guided(error.result.program)) from None
    except KeyboardInterrupt as error:
        raise Interrupted(f"interrupted by Ctrl-C {so_far}", guided(program)) from error


def _failing(program: Any, certificate: Any, asked: Any, at: Any, key: Any, draws: int) -> np.ndarray:
    """(t, state) drawn at random at which the condition certainly fails where V is between the levels: at most half of what is kept."""
    system, domain = program.system, asked.get("domain")
    if isinstance(domain, Tube) or "decrease" not in asked["claims"]:
        return np.zeros((0, 1 + sum(leaf.size for leaf in jax.tree.leaves(program.declaration.state))))
    if domain is not None:
        system = eqx.tree_at(lambda s: s.domain, system, domain, is_leaf=lambda v: v is None)
    condition = Condition(system, certificate)
    part = asked.get("part") or next(iter(condition.parts))
    pair = (asked.get("equilibrium"), None) if at is None else at
    x, y = (jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], v) for v in pair)
    begun = eqx.filter_vmap(condition.system.start)(x)
    drawn = draw(condition, begun, key, draws)
    seen = evaluate(condition, part, begun, y, drawn)
    least, most = levels(asked.get("level"))
    first, last = asked.get("time") or (0.0, np.inf)
    fails = (seen.excess > 0) & (first <= drawn.t) & (drawn.t <= last)
    fails &= True if least is None else seen.value >= least
    fails &= True if most is None else seen.value <= most
    rows = np.flatnonzero(np.asarray(fails))[: KEPT // 2]
    states = jax.vmap(lambda s: ravel_pytree(s)[0])(drawn.state)
    return np.column_stack([np.asarray(drawn.t)[rows], np.asarray(states)[rows]]).astype(float)


def _around(program: Any, points: np.ndarray, near: float) -> tuple[np.ndarray, np.ndarray]:
    """Boxes around (t, state), of no width in time."""
    region = program.system.region
    widths = jax.tree.leaves(region.half_widths(jax.tree.map(jnp.zeros_like, program.declaration.state)))
    reach = np.concatenate([[0.0], *(near * np.ravel(w) for w in widths)])
    return points - reach, points + reach


def _failed(program: Any, found: Verification, near: float) -> tuple[np.ndarray, np.ndarray]:
    """Boxes of (t, state) where a proof failed: the largest of those left, and one around a counterexample."""
    lows, highs = [], []
    for low, high in found.left.values():
        order = np.argsort(-np.prod(np.maximum(high - low, 1e-12), axis=1))[: KEPT // 2]
        lows.append(low[order])
        highs.append(high[order])
    if found.counterexample is not None:
        counter = found.counterexample
        low, high = _around(program, np.concatenate([[counter.t], np.ravel(counter.state)])[None], near)
        lows.append(low)
        highs.append(high)
    return np.concatenate(lows), np.concatenate(highs)
