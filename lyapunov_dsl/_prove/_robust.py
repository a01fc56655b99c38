"""Certified radii of a trained classifier: around each input a ball in which its class is proved not to change.

What is deployed is what is proved: inference by a fixed number of Euler steps, a function of x without decisions, of which every
rule speaks. Steps that adapt are a discontinuous function of x, and so is stopping early; neither is covered.

With Φ_n(η, c) = η + Δt f(n Δt, η, c), the context c and the start as functions of x, a ball of radius ε around x, and everything
below bounded from above over it:

- **reach**: the margins themselves, by planes through all steps over the ball (Zhang et al. 2018).
- **tube**: the margins by planes through all steps over all starts and contexts that are no farther from the nominal ones than
  Lip(start) ε and Lip(c) ε.
- **margin**: e_0 = Lip(start) ε and e_{n+1} = q e_n + b Lip(c) ε bound how far the states of a perturbed input are from the
  nominal ones, with q and b the Lipschitz constants of Φ in state and context on a tube of boxes that all of these are in and that is
  no wider than e_n; q < 1 where the steps contract. The class holds while every margin of the nominal input exceeds √2 Lip(readout) e_N
  (Tsuzuku et al. 2018), 2 Lip(readout) e_N in the ∞-norm.
- **comparison**: V(Φ_n(η, c)) <= max(exp(-κ Δt) V(η), γ) on all of H for the *nominal* input, H invariant for *every* perturbed
  one, and d the change of Φ by the perturbation. Along it |∂V| <= a (1 - exp(-V)) with a = √2 where d is in the Euclidean norm and a = 2
  where it is in the ∞-norm, and so v_{n+1} = log(1 + (exp(max(exp(-κ Δt) v_n, γ)) - 1) exp(a d)) bounds V of cross entropy along every
  perturbed trajectory. The class holds if v_N < log 2.
- **theorem_3**: the same with the constant a instead of the profile, v_{n+1} = max(exp(-κ Δt) v_n, γ) + a d: Theorem 3 of the paper in
  discrete time. Never above the rule before it, and therefore not among those that are tried unless it is asked for.
"""

import math
import time as clock
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._certificate import Exponential
from .._check import Declaration, check_batch
from .._depends import depends
from .._domain import Box
from .._potential import CrossEntropy, Truncated
from .._rollout import EulerInference
from .._system import System, identity, plain
from .._types import check_arrays, check_norm, describe, is_count, is_finite, kind
from ._deployed import Deployed, known
from ._gain import Gain, given_gain
from ._inference import POINTS, check_pure, check_steps, coarsest, compare, euler_steps, points_of_ball
from ._properties import InputRobustness
from ._question import widened
from ._radii import Premise, Robust
from ._radius import RadiusProof
from ._region import box_of

# Bounds of boxes that a rule takes for N steps, and the function that evaluates it.
COST = {
    "margin": lambda n: 4 * n + 4,
    "reach": lambda n: 1,
    "tube": lambda n: 2,
    "comparison": lambda n: 3 * n + 3,
    "theorem_3": lambda n: 3 * n + 3,
}

# So many examples are bounded at a time where there are no more: what is bounded beside them would be copies.
FEW = 8


def decide_robustness(program: Any, x: Any, y: Any, asked: InputRobustness) -> Robust:
    """Proves the largest of some radii within which the class of each example does not change.

    Which examples are right is what `predict` says. `predict` and the network that is proved about are run at every example, and at 1,024
    inputs or more of the balls that were proved.

    **Arguments:**

    - `program`: a compiled program whose inference is by Euler steps of a fixed size; readout: logits.
    - `x`, `y`: inputs (arrays, leading batch axis) and integer classes.
    - `asked`: radii, norm and rules.
    """
    radii, norm, rules, kappa = asked.radii, asked.norm, asked.rules, asked.kappa
    truncation, boxes, method, together = asked.truncation, asked.boxes, asked.method, asked.together
    from .._compile import Program

    if type(program) is not Program or type(program.declaration) is not Declaration:
        raise ValueError(f"program: expected a Program made by lyapunov_dsl.compile, got {kind(program)}")
    steps = euler_steps(program)
    radii = [float(r) for r in np.atleast_1d(radii)]
    if not radii or not all(is_finite(r) and r > 0 for r in radii) or sorted(set(radii)) != radii:
        raise ValueError(f"radii: expected increasing numbers > 0, got {radii}")
    check_norm(norm)
    rules = [rules] if isinstance(rules, str) else rules
    if rules is not None and (not rules or any(r not in COST for r in rules)):
        raise ValueError(f"rules: expected some of {tuple(COST)}, got {list(rules)}")
    if method not in ("ibp", "crown-ibp", "crown"):
        raise ValueError(f"method: expected 'ibp', 'crown-ibp' or 'crown', got {method!r}")
    if kappa is not None and not (is_finite(kappa) and kappa > 0):
        raise ValueError(f"kappa: expected a positive finite number, got {kappa!r}")
    if not (is_finite(truncation) and truncation >= 0):
        raise ValueError(f"truncation: expected a finite number >= 0, got {truncation!r}")
    if not is_count(together):
        raise ValueError(f"together: expected a positive whole number, got {together!r}")
    check_arrays("x", x)
    x, y = np.asarray(x), np.asarray(y)
    if not np.issubdtype(x.dtype, np.floating) or x.ndim < 1:
        raise ValueError(
            f"x: expected an array of floating-point inputs with a leading batch axis, got {x.dtype}{list(x.shape)}"
        )
    if not np.issubdtype(y.dtype, np.integer) or y.ndim != 1 or len(x) != len(y) or not len(y):
        raise ValueError(f"y: expected one integer class for each of {len(x)} inputs, got {y.dtype}{list(y.shape)}")
    check_batch(x=(program.declaration.x, x))
    if not (finite := np.isfinite(x).reshape(len(x), -1).all(axis=1)).all():
        raise ValueError(f"x: expected finite inputs, got NaN or Inf at example {np.flatnonzero(~finite)[0]}")
    prediction = program.declaration.prediction
    if len(getattr(prediction, "shape", ())) != 1:
        raise ValueError(f"readout: expected logits float[classes], got {describe(prediction)}")
    classes = prediction.shape[0]
    # JAX would take a class out of range for another.
    if y.min() < 0 or y.max() >= classes:
        raise ValueError(f"y: expected classes in [0, {classes}), got {y.min()} to {y.max()}")
    began = clock.monotonic()
    given = program.declaration.x
    answered = np.asarray(x, given.dtype)
    check_steps(program, answered[:1], steps)
    dtype = coarsest(program, given)
    quiet = plain(eqx.nn.inference_mode(program))
    missing = _missing(quiet.certificate, quiet.system)
    if rules is None:
        rules = ["margin", "tube", "reach", *(["comparison"] if not missing else [])]
    elif missing and {"comparison", "theorem_3"} & set(rules):
        raise ValueError(f"rules: expected {missing}; leave out comparison and theorem_3")
    with jax.enable_x64(True):
        x = np.asarray(x, np.float64)
        network = EulerInference(widened(quiet.system), steps)
        jumps = check_pure(network.system, jax.ShapeDtypeStruct(x[0].shape, jnp.float64))
        start = jax.eval_shape(lambda x: network.system.start(x).state, x[0])
        low, high, _ = (None,) * 3 if missing else box_of(quiet.system.region, start)
        if kappa is None:
            kappa = 0.0 if missing else float(quiet.certificate.kappa)
        gain = given_gain(network.system, x, radii[-1]) if norm == "2" else None
        found = Deployed(
            network,
            low,
            high,
            jnp.asarray(float(kappa)),
            jnp.asarray(float(truncation)),
            None if gain is None else jnp.asarray(gain.value),
            norm,
            method,
            _is_timed(network.system, x[0]),
            bool(jumps[0]),
        )
        compiled = known(found, jnp.asarray(x[0])).evaluate

    def run(name: str, *arrays: np.ndarray) -> list[np.ndarray]:
        with jax.enable_x64(True):
            size = together if name == "logits" or len(x) > FEW else min(together, FEW)
            return _batched(lambda name, arrays: compiled(found, name, arrays), name, size, *arrays)

    logits = lambda points: run("logits", np.asarray(points, np.float64))[0]
    predict = lambda points: _batched(lambda _, arrays: program.predict(*arrays), "", together, points)[0]
    nobody = np.full(count := len(y), -1)
    answers, agreement = compare(predict, logits, answered, np.arange(count), nobody, dtype)
    own = answers[np.arange(count), y]
    right = own > np.where(np.arange(classes) == y[:, None], -np.inf, answers).max(axis=1)
    proved = _search(found, run, x, y, right, radii, list(rules), boxes, jumps, gain)
    best: np.ndarray = proved["radius"]
    if (claimed := np.flatnonzero(best > 0)).size:
        slopes = run("slope", x[claimed], y[claimed])[0]
        each, rng = max(2, -(-POINTS // len(claimed))), np.random.default_rng(0)
        points = [
            points_of_ball(rng, x[i], best[i], slope, norm, each, given.dtype)
            for i, slope in zip(claimed, slopes, strict=True)
        ]
        owner = np.repeat(claimed, each)
        _, there = compare(predict, logits, np.concatenate(points), owner, y[owner], dtype)
        largest = max(agreement.largest, there.largest)
        agreement = agreement._replace(points=agreement.points + there.points, largest=largest)
    return Robust(
        **proved,
        right=right,
        norm=norm,
        seconds=clock.monotonic() - began,
        agreement=agreement,
        given=() if gain is None else (str(gain),),
        proof=RadiusProof(network, norm, None if gain is None else gain.value, x, y, best, radii),
    )


def _is_timed(system: System, x: np.ndarray) -> bool:
    """Whether the field depends on the time."""

    def velocity(t: Any, x: Any) -> Any:
        start = system.start(x)
        return system.velocity(t, start.state, start.context)

    return depends(velocity, jax.ShapeDtypeStruct((), jnp.float64), jax.ShapeDtypeStruct(x.shape, jnp.float64))


def _missing(certificate: Any, system: System) -> str:
    """What the comparison rule lacks, empty where there is nothing."""
    loss: Any = certificate.loss if type(certificate) is Exponential else None
    loss = loss.loss if type(loss) is Truncated else loss
    if type(loss) is not CrossEntropy or system.readout is not identity:
        what = f"{kind(certificate)} of {kind(loss)}, readout {kind(system.readout)}"
        return f"an exponential certificate of cross entropy and the state as logits, got {what}"
    return "" if type(system.region) is Box else f"a Box as the domain, got {kind(system.region)}"


def _search(
    found: Deployed,
    run: Any,
    x: np.ndarray,
    y: np.ndarray,
    right: np.ndarray,
    radii: list[float],
    rules: list[str],
    boxes: int,
    jumps: tuple[str, str, str],
    gain: Gain | None,
) -> dict[str, Any]:
    """The largest radius of each example, and by which rule: what `Robust` has of this."""
    count, steps = len(y), found.network.steps
    # A decimal radius is rounded up.
    grid = np.array([0.0, *np.nextafter(radii, np.inf)])
    evaluations = 0
    best, rule = np.zeros(count), [""] * count
    by_rule: dict[str, np.ndarray] = {}
    premises: dict[str, list[list[Premise]]] = {}
    decreasing: np.ndarray | None = None
    for name in rules:
        low, high = np.zeros(count, int), np.full(count, len(grid) - 1)
        high[~right] = 0
        if name in ("comparison", "theorem_3") and decreasing is None:
            # The same for both.
            decreasing, looked = _decreasing(found, run, x, y, right, boxes)
            evaluations += looked
        falling = np.ones(count, bool) if decreasing is None else decreasing
        seen: list[Any] = [None] * count
        while (todo := np.flatnonzero(low < high)).size:
            tried = (low[todo] + high[todo] + 1) // 2
            function = "comparison" if name == "theorem_3" else name
            values = run(function, x[todo], y[todo], grid[tried])
            evaluations += COST[name](steps) * len(todo)
            told = [
                _premises(name, found, [v[i] for v in values], bool(falling[j]), jumps, gain)
                for i, j in enumerate(todo)
            ]
            held = np.array([all(p.holds for p in t) for t in told])
            for j, t, k, h in zip(todo, told, tried, held, strict=True):
                if h or seen[j] is None or not seen[j][1]:
                    seen[j] = (t, h)
                low[j], high[j] = (k, high[j]) if h else (low[j], k - 1)
        by_rule[name] = np.array([0.0, *radii])[low]
        premises[name] = [[] if s is None else s[0] for s in seen]
        better = by_rule[name] > best
        best = np.where(better, by_rule[name], best)
        rule = [name if b else r for b, r in zip(better, rule, strict=True)]
    return {"radius": best, "rule": rule, "radii": by_rule, "premises": premises, "evaluations": evaluations}


def _premises(
    name: str, found: Deployed, values: list[Any], decreasing: bool, jumps: tuple[str, str, str], gain: Gain | None
) -> list[Premise]:
    """What a rule rests on, from what was evaluated."""
    if name == "reach":
        return [Premise(f"every margin is above 0 in the ball: {values[0]:.4g}", bool(values[0] > 0))]
    moves = Premise(
        "start and context change by at most L times the perturbation: L bounds their Jacobian over the ball", True
    )
    if gain is not None:
        moves = Premise(str(gain), True)
    # Of what jumps no slope is a Lipschitz constant, whoever gives it.
    parts = zip(("input", "vector_field", "readout"), jumps, strict=True)
    jumping = [f"the {part} {why}" for part, why in parts if why and (part == "input" or name != "tube")]
    if jumping and not (name == "tube" and found.norm == "inf"):
        moves = Premise(f"no Lipschitz constant is known, as {'; '.join(jumping)}", False)
    if name == "tube":
        # In the ∞-norm starts and contexts are bounded themselves.
        above = Premise(f"every margin is above 0 in the tube: {values[0]:.4g}", bool(values[0] > 0))
        return [moves, above] if found.norm == "2" else [above]
    if name == "margin":
        return [
            moves,
            Premise(f"every margin exceeds what a perturbation changes: by {values[0]:.4g}", bool(values[0] > 0)),
        ]
    sharper, constant, invariant, inside, change = values
    v = sharper if name == "comparison" else constant
    return [
        moves,
        Premise("H is invariant for every perturbed input: each step keeps it", bool(invariant)),
        Premise("every perturbed start is in H: by its range", bool(inside)),
        Premise(
            f"V decreases for the nominal input on all of H above the truncation: kappa {found.kappa:g}, level {found.truncation:g}",
            decreasing,
        ),
        Premise(
            f"V at the end is below log 2 for every perturbed input: {float(v):.4g}, with steps moved by {float(change):.3g}",
            bool(v < math.log(2)),
        ),
    ]


def _decreasing(
    found: Deployed, run: Any, x: np.ndarray, y: np.ndarray, wanted: np.ndarray, boxes: int
) -> tuple[np.ndarray, int]:
    """For which examples V decreases on all of H, by branch and bound of all of them at once; and how many boxes that took."""
    low, high = np.asarray(found.low), np.asarray(found.high)
    owner = np.flatnonzero(wanted)
    lows, highs = np.repeat(low[None], len(owner), 0), np.repeat(high[None], len(owner), 0)
    spent, failed, looked = np.zeros(len(x), int), ~wanted.copy(), 0
    while len(owner):
        worst, axis, there = run("residual", lows, highs, x[owner], y[owner])
        np.add.at(spent, owner, found.network.steps if found.timed else 1)
        looked += len(owner) * (found.network.steps if found.timed else 1)
        left = ~(worst <= 0)
        # Where it fails there is nothing to prove.
        failed[owner[there > 1e-9]] = True
        # What is left would not fit into the budget.
        queued = np.bincount(owner[left], minlength=len(x))
        failed |= spent + 2 * queued > boxes
        left &= ~failed[owner]
        owner, lows, highs, axis = owner[left], lows[left], highs[left], axis[left].astype(int)
        rows = np.arange(len(owner))
        middle = 0.5 * (lows[rows, axis] + highs[rows, axis])
        first, second = highs.copy(), lows.copy()
        first[rows, axis], second[rows, axis] = middle, middle
        owner, lows, highs = np.tile(owner, 2), np.concatenate([lows, second]), np.concatenate([first, highs])
    return ~failed, looked


def _batched(run: Any, name: str, together: int, *arrays: np.ndarray) -> list[np.ndarray]:
    """The results of a function of one example, so many at a time."""
    parts = []
    for i in range(0, len(arrays[0]), together):
        some = [a[i : i + together] for a in arrays]
        room = together - len(some[0])
        full = [np.concatenate([a, np.repeat(a[-1:], room, axis=0)]) for a in some]
        out = run(name, full)
        out = out if isinstance(out, tuple) else (out,)
        parts.append([np.asarray(v)[: len(some[0])] for v in out])
    return [np.concatenate(v) for v in zip(*parts, strict=True)]
