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
- **theorem3**: the same with the constant a instead of the profile, v_{n+1} = max(exp(-κ Δt) v_n, γ) + a d: Theorem 3 of the paper in
  discrete time. Never above the rule before it, and therefore not among those that are tried unless it is asked for.
"""

import math
import time as clock
from collections.abc import Sequence
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from .._certificate import Exponential
from .._certify import Assurance
from .._check import Declaration, check_batch
from .._depends import depends
from .._domain import Box
from .._potential import CrossEntropy, Truncated
from .._rollout import EulerInference
from .._system import DiscreteSystem, System, identity, plain
from .._types import check_arrays, check_norm, describe, is_count, is_finite, kind
from ._deployed import Deployed, known
from ._question import widened
from ._region import box_of

# Bounds of boxes that a rule takes for N steps, and the function that evaluates it.
COST = {
    "margin": lambda n: 4 * n + 4,
    "reach": lambda n: 1,
    "tube": lambda n: 2,
    "comparison": lambda n: 3 * n + 3,
    "theorem3": lambda n: 3 * n + 3,
}


class Premise(NamedTuple):
    """What a rule rests on, and whether it holds.

    **Arguments:**

    - `statement`: in words, with its number.
    - `holds`: whether it was proved.
    """

    statement: str
    holds: bool


class Robust(NamedTuple):
    """What was proved of a set of examples. Printable.

    **Arguments:**

    - `radius`: of the largest ball around each example in which its class is proved; 0 where none is, or where it is decided wrongly.
        [examples]
    - `rule`: that gave it, empty where none did. [examples]
    - `right`: whether the class is right without a perturbation. [examples]
    - `radii`: by rule, for each example. {rule: [examples]}
    - `premises`: of each rule, at its own radius or the smallest one that was tried, for each example. {rule: one list for each example}
    - `norm`: of the perturbations.
    - `evaluations`: of boxes by the bound engine, for all examples.
    - `seconds`: wall time, compilation included.
    - `assurance`: `PROVED_REAL`: of the network in real numbers, with the weights as they are.
    """

    radius: np.ndarray
    rule: list[str]
    right: np.ndarray
    radii: dict[str, np.ndarray]
    premises: dict[str, list[list[Premise]]]
    norm: str
    evaluations: int
    seconds: float
    assurance: Assurance = Assurance.PROVED_REAL

    def accuracy(self, radius: float) -> float:
        """The share of the examples that are decided rightly in all of a ball of this radius, as far as proved."""
        return float(np.mean(self.right & (self.radius >= radius)))

    def __str__(self) -> str:
        lines = [f"robustness, L{self.norm}: {self.assurance.name}, in real arithmetic, of Euler inference"]
        lines.append(f"  right without a perturbation: {100 * self.right.mean():.2f} % of {len(self.right)}")
        for name in self.radii:
            used = sum(r == name for r in self.rule)
            lines.append(f"  {name}: the largest radius of {used}; median {np.median(self.radii[name]):.4g}")
            broken: dict[str, int] = {}
            for found in self.premises[name]:
                for premise in found:
                    if not premise.holds:
                        broken[premise.statement.split(":")[0]] = broken.get(premise.statement.split(":")[0], 0) + 1
            lines += [f"    UNDECIDED for {count}: {what}" for what, count in broken.items()]
        return "\n".join(lines)


def euler_steps(program: Any) -> int:
    """The number of Euler steps that a program's inference takes.

    **Raises:** `ValueError` for a solver whose result is not a fixed function of x in Euler steps.
    """
    solver, system = program.solver, program.system
    if isinstance(system, DiscreteSystem):
        raise ValueError("certify_robustness: expected a continuous system, got a DiscreteSystem")
    if solver.dt is None or not isinstance(solver.method, diffrax.Euler):
        what = f"{kind(solver.method)}, dt={solver.dt}"
        raise ValueError(
            "certify_robustness: expected inference by Euler steps of a fixed size, "
            f"compile(..., solver=ld.Solver(diffrax.Euler(), dt=...)), got {what}; steps that adapt are a discontinuous function of x"
        )
    steps = round(system.horizon / solver.dt)
    if steps < 1 or abs(steps * solver.dt - system.horizon) > 1e-9 * system.horizon:
        raise ValueError(f"solver: expected a dt that divides the horizon {system.horizon}, got {solver.dt}")
    return steps


def certify_robustness(
    program: Any,
    x: Any,
    y: Any,
    *,
    radii: Any = (0.1, 0.2, 0.3),
    norm: str = "2",
    rules: Sequence[str] | None = None,
    kappa: float | None = None,
    truncation: float = 0.01,
    boxes: int = 500,
    method: str = "crown",
    together: int = 64,
) -> Robust:
    """The largest of some radii within which the class of each example is proved, and by which rule.

    **Arguments:**

    - `program`: a compiled program whose inference is by Euler steps of a fixed size; readout: logits.
    - `x`, `y`: inputs (arrays, leading batch axis) and integer classes.
    - `radii`: increasing, in the unit of x; a decimal number means at least that.
    - `norm`: `"2"` or `"inf"`.
    - `rules`: some of `"margin"`, `"tube"`, `"reach"`, `"comparison"`, `"theorem3"`; the guide on certified robustness says what they
        are. By default all but the last, `"comparison"` only where it can be: it needs an exponential certificate of cross entropy, the
        state as the logits and a Box as the domain, and so does `"theorem3"`.
    - `kappa`: κ of the comparison rule, by default that of the certificate. It promises more at a higher rate, which is proved like any.
    - `truncation`: γ, the level down to which the comparison rule has V decrease.
    - `boxes`: the most boxes of states per example in which the condition of the comparison rule is proved.
    - `method`: of the bounds through the input module, of [`lyapunov_dsl.bounds.bound`][]; `"interval"` is the cheapest, for
        networks that were trained by it.
    - `together`: how many examples are bounded at a time.

    **Returns:** a [`lyapunov_dsl.Robust`][]. It is about real arithmetic: the rounding of floating-point inference is not part of the
    claim. Where the input module has a method `gain`, that is taken for its Lipschitz constant in L2: a premise that is yours.

    **Raises:** `ValueError` for a program, radii or rules that are not as above.
    """
    if not isinstance(getattr(program, "declaration", None), Declaration):
        raise ValueError(f"program: expected a Program made by lyapunov_dsl.compile, got {kind(program)}")
    steps = euler_steps(program)
    radii = [float(r) for r in np.atleast_1d(radii)]
    if not radii or not all(is_finite(r) and r > 0 for r in radii) or sorted(set(radii)) != radii:
        raise ValueError(f"radii: expected increasing numbers > 0, got {radii}")
    check_norm(norm)
    rules = [rules] if isinstance(rules, str) else rules
    if rules is not None and (not rules or any(r not in COST for r in rules)):
        raise ValueError(f"rules: expected some of {tuple(COST)}, got {list(rules)}")
    if method not in ("interval", "backward", "crown"):
        raise ValueError(f"method: expected 'interval', 'backward' or 'crown', got {method!r}")
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
    quiet = plain(eqx.nn.inference_mode(program))
    missing = _missing(quiet.certificate, quiet.system)
    if rules is None:
        rules = ["margin", "tube", "reach", *(["comparison"] if not missing else [])]
    elif missing and {"comparison", "theorem3"} & set(rules):
        raise ValueError(f"rules: expected {missing}; leave out comparison and theorem3")
    with jax.enable_x64(True):
        x = np.asarray(x, np.float64)
        network = EulerInference(widened(quiet.system), steps)
        start = network.system.start(jnp.asarray(x[0]))
        _check_context(start.context)
        low, high, _ = (None,) * 3 if missing else box_of(quiet.system.region, start.state)
        if kappa is None:
            kappa = 0.0 if missing else float(quiet.certificate.kappa)
        timed = depends(lambda t: network.system.velocity(t, start.state, start.context), jnp.zeros(()))
        found = Deployed(
            network, low, high, jnp.asarray(float(kappa)), jnp.asarray(float(truncation)), norm, method, timed
        )
        _check_gain(network.system.input, x[:16], norm)
        compiled = known(found, jnp.asarray(x[0])).evaluate
        run = lambda name, arrays: compiled(found, name, arrays)
        return _search(found, run, x, y, radii, list(rules), boxes, together, began)


def _missing(certificate: Any, system: System) -> str:
    """What the comparison rule lacks, empty where there is nothing."""
    loss: Any = certificate.loss if isinstance(certificate, Exponential) else None
    loss = loss.loss if isinstance(loss, Truncated) else loss
    if not isinstance(loss, CrossEntropy) or system.readout is not identity:
        what = f"{kind(certificate)} of {kind(loss)}, readout {kind(system.readout)}"
        return f"an exponential certificate of cross entropy and the state as logits, got {what}"
    return "" if isinstance(system.region, Box) else f"a Box as the domain, got {kind(system.region)}"


def _check_gain(module: Any, x: np.ndarray, norm: str) -> None:
    """A declared Lipschitz constant that some inputs refute."""
    if not hasattr(module, "gain") or norm != "2":
        return
    if not callable(module.gain):
        raise ValueError(f"input.gain: expected a method without arguments, got {kind(module.gain)}")
    flat = lambda x: ravel_pytree(eqx.filter(module(x), eqx.is_inexact_array))[0]

    def slope(x: Any) -> Any:
        forward = lambda u: jax.jvp(flat, (x,), (u,))[1]
        back = jax.vjp(flat, x)[1]
        # Power iteration, which is below the slope.
        u = jax.lax.fori_loop(0, 8, lambda _, u: back(forward(u / jnp.linalg.norm(u)))[0], jnp.ones_like(x))
        return jnp.linalg.norm(forward(u / jnp.linalg.norm(u)))

    slopes: np.ndarray = np.asarray(jax.vmap(slope)(jnp.asarray(x)))
    steepest, gain = float(np.nanmax(slopes)), float(np.asarray(module.gain()))
    if steepest > gain * (1 + 1e-6):
        raise ValueError(
            f"input.gain: expected a Lipschitz constant of start and context together, at least the slope {steepest:.6g} that was "
            f"found at an input, got {gain:.6g}"
        )


def _check_context(context: Any) -> None:
    """A part of the context that is no floating-point array has no distance from that of another input, and may depend on it unseen."""
    for leaf in jax.tree.leaves(context):
        plain = leaf is None or isinstance(leaf, bool | int | float | str)
        known = callable(leaf) and str(getattr(leaf, "__module__", "")).split(".")[0] in ("jax", "jaxlib")
        if not (eqx.is_inexact_array(leaf) or plain or known):
            got = describe(leaf) if eqx.is_array(leaf) else kind(leaf)
            raise ValueError(f"certify_robustness: expected a context of floating-point arrays, got one with {got}")


def _search(
    found: Deployed,
    run: Any,
    x: np.ndarray,
    y: np.ndarray,
    radii: list[float],
    rules: list[str],
    boxes: int,
    together: int,
    began: float,
) -> Robust:
    count, steps = len(y), found.network.steps
    margins = _batched(run, "margins", together, x, y)[0]
    right = np.min(margins, axis=1) > 0
    # A decimal radius is rounded up.
    grid = np.array([0.0, *np.nextafter(radii, np.inf)])
    evaluations = count
    best, rule = np.zeros(count), [""] * count
    by_rule: dict[str, np.ndarray] = {}
    premises: dict[str, list[list[Premise]]] = {}
    decreasing: np.ndarray | None = None
    for name in rules:
        low, high = np.zeros(count, int), np.full(count, len(grid) - 1)
        high[~right] = 0
        if name in ("comparison", "theorem3") and decreasing is None:
            # The same for both.
            decreasing, looked = _decreasing(found, run, x, y, right, boxes, together)
            evaluations += looked
        falling = np.ones(count, bool) if decreasing is None else decreasing
        seen: list[Any] = [None] * count
        while (todo := np.flatnonzero(low < high)).size:
            tried = (low[todo] + high[todo] + 1) // 2
            function = "comparison" if name == "theorem3" else name
            values = _batched(run, function, together, x[todo], y[todo], grid[tried])
            evaluations += COST[name](steps) * len(todo)
            told = [_premises(name, found, [v[i] for v in values], bool(falling[j])) for i, j in enumerate(todo)]
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
    return Robust(best, rule, right, by_rule, premises, found.norm, evaluations, clock.monotonic() - began)


def _premises(name: str, found: Deployed, values: list[Any], decreasing: bool) -> list[Premise]:
    """What a rule rests on, from what was evaluated."""
    if name == "reach":
        return [Premise(f"every margin is above 0 in the ball: {values[0]:.4g}", bool(values[0] > 0))]
    declared = hasattr(found.network.system.input, "gain") and found.norm == "2"
    source = "its gain, as the input module declares" if declared else "bounds of its Jacobian over the ball"
    moves = Premise(f"start and context change by at most L times the perturbation: L is {source}", True)
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
    found: Deployed, run: Any, x: np.ndarray, y: np.ndarray, wanted: np.ndarray, boxes: int, together: int
) -> tuple[np.ndarray, int]:
    """For which examples V decreases on all of H, by branch and bound of all of them at once; and how many boxes that took."""
    low, high = np.asarray(found.low), np.asarray(found.high)
    owner = np.flatnonzero(wanted)
    lows, highs = np.repeat(low[None], len(owner), 0), np.repeat(high[None], len(owner), 0)
    spent, failed, looked = np.zeros(len(x), int), ~wanted.copy(), 0
    while len(owner):
        worst, axis, there = _batched(run, "residual", together, lows, highs, x[owner], y[owner])
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
