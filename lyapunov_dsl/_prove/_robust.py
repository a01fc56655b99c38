"""Certified radii of a trained classifier: around each input a ball in which its class is proved not to change.

What is deployed is what is proved: inference by a fixed number of Euler steps, a function of x without decisions, of which every
rule speaks. Steps that adapt are a discontinuous function of x, and so is stopping early; neither is covered.

With Φ_n(η, c) = η + Δt f(n Δt, η, c), the context c and the start as functions of x, a ball of radius ε around x, and everything
below bounded from above over it:

- **reach**: the margins themselves, by planes through all steps over the ball (Zhang et al. 2018).
- **margin**: e_0 = Lip(start) ε and e_{n+1} = q e_n + b Lip(c) ε bound how far the states of a perturbed input are from the
  nominal ones, q and b the Lipschitz constants of Φ in state and context; the class holds while every margin of the nominal input
  exceeds √2 Lip(readout) e_N (Tsuzuku et al. 2018).
- **comparison**: V(Φ_n(η, c)) <= max(exp(-κ Δt) V(η), γ) on all of H for the *nominal* input, H invariant for *every* perturbed
  one, and d the change of Φ by the perturbation in the ∞-norm. Then v_{n+1} = log(1 + (exp(max(exp(-κ Δt) v_n, γ)) - 1) exp(2 d))
  bounds V of cross entropy along every perturbed trajectory, since |∂V| <= 2 (1 - exp(-V)) per unit of the ∞-norm; the class holds
  if v_N < log 2 (Theorem 3 of the paper, in discrete time and with the sharper profile).
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

from .. import bounds
from .._certificate import Exponential
from .._certify import Assurance
from .._domain import Box
from .._potential import CrossEntropy, Truncated
from .._rollout import EulerInference
from .._system import DiscreteSystem, System, identity, plain
from .._types import is_finite, kind
from ._question import box_of, compiled, depends, widened

RULES = ("margin", "reach", "comparison")


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


class _Functions:
    """What the rules evaluate, for one example and one radius, compiled for a batch of examples."""

    def __init__(
        self, network: EulerInference, certificate: Any, domain: Any, norm: str, truncation: float, timed: bool
    ):
        self.network, self.norm, self.timed = network, norm, timed
        self.domain, self.truncation = domain, truncation
        self.kappa = float(certificate.kappa) if isinstance(certificate, Exponential) else 0.0
        self.margin = _mapped(self._margin)
        self.reach = _mapped(self._reach)
        self.comparison = _mapped(self._comparison)
        self.residual, self.margins = _mapped(self._residual), _mapped(self._margins)

    def ball(self, x: Any, radius: Any) -> Any:
        return bounds.Ball(x, radius) if self.norm == "2" else bounds.Box.around(x, radius)

    def _margins(self, x: Any, y: Any) -> Any:
        """Enclosed margins z_y - z_j of the nominal input, infinite at y."""
        found = bounds.bound(lambda x: self.network.margins(x, y), bounds.Box(x, x), method="interval", rounding="real")
        return jnp.where(jnp.arange(found.lower.shape[0]) == y, jnp.inf, found.lower)

    def _reach(self, x: Any, y: Any, radius: Any) -> Any:
        """The smallest margin over the ball, at least."""
        found = bounds.bound(lambda x: self.network.margins(x, y), self.ball(x, radius), rounding="real")
        lower = jnp.where(jnp.arange(found.lower.shape[0]) == y, jnp.inf, found.lower)
        return jnp.min(jnp.where(jnp.isnan(lower), -jnp.inf, lower))

    def _flat(self, x: Any) -> tuple[Any, Any, Any, Any]:
        start = self.network.system.start(x)
        state, as_state = ravel_pytree(start.state)
        context, as_context = ravel_pytree(eqx.filter(start.context, eqx.is_inexact_array))
        rest = eqx.filter(start.context, eqx.is_inexact_array, inverse=True)
        return state, context, as_state, lambda c: eqx.combine(as_context(c), rest)

    def _moved(self, x: Any, radius: Any) -> tuple[Any, Any]:
        """Lipschitz constants, in the Euclidean norm of outputs, times the radius: of the start and of the context."""
        varies = depends(lambda x: self._flat(x)[0], x)
        given = getattr(self.network.system.input, "gain", None)
        if given is not None and self.norm == "2":
            # Of start and context as one vector, so of each.
            reach = given() * radius * (1 + 1e-14)
            return (reach if varies else jnp.zeros(())), reach
        ball = self.ball(x, radius)
        # From the ∞-norm, n entries are at most √n as long.
        more = 1.0 if self.norm == "2" else math.sqrt(x.size) * (1 + 1e-14)
        of = lambda part: bounds.lipschitz(lambda x: self._flat(x)[part], ball, norm="2") * radius * more
        return (of(0) if varies else jnp.zeros(())), of(1)

    def _step(self, n: Any, as_state: Any, as_context: Any) -> Any:
        return lambda s, c: ravel_pytree(self.network.step(n, as_state(s), as_context(c)))[0]

    def _start(self, x: Any, radius: Any) -> tuple[Any, Any]:
        """A box that every perturbed start is in."""
        found = bounds.bound(lambda x: self._flat(x)[0], self.ball(x, radius), rounding="real")
        return found.lower, found.upper

    def _margin(self, x: Any, y: Any, radius: Any) -> Any:
        """The room of the margin rule: the smallest of nominal margin - √2 Lip(readout) e_N."""
        first, reach = self._moved(x, radius)
        _, context, as_state, as_context = self._flat(x)
        contexts = bounds.Ball(context, reach)

        def one(n: Any, carry: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
            low, high, error = carry
            # Nominal and perturbed states lie in the box, and so does the line between them.
            step, regions = self._step(n, as_state, as_context), (bounds.Box(low, high), contexts)
            q = bounds.lipschitz(step, *regions, norm="2", argnum=0)
            b = bounds.lipschitz(step, *regions, norm="2", argnum=1)
            after = bounds.bound(step, *regions, rounding="real")
            return after.lower, after.upper, (q * error + b * reach) * (1 + 1e-14)

        low, high, error = jax.lax.fori_loop(0, self.network.steps, one, (*self._start(x, radius), first))
        decode = lambda s: self.network.system.decode(as_state(s))
        plain = self.network.system.readout is identity
        last = 1.0 if plain else bounds.lipschitz(decode, bounds.Box(low, high), norm="2")
        room = jnp.min(self._margins(x, y)) - math.sqrt(2) * (1 + 1e-14) * last * error
        return jnp.where(jnp.isnan(room), -jnp.inf, room)

    def _comparison(self, x: Any, y: Any, radius: Any) -> Any:
        """(V at the end at most, whether H is invariant, whether the start is in H, d) of the comparison rule."""
        low, high = (jnp.asarray(v) for v in self.domain[:2])
        _, reach = self._moved(x, radius)
        _, context, as_state, as_context = self._flat(x)
        regions = bounds.Box(low, high), bounds.Ball(context, reach)

        def one(n: Any) -> tuple[Any, Any]:
            step = self._step(n, as_state, as_context)
            found = bounds.bound(step, *regions, rounding="real")
            steep = bounds.lipschitz(step, *regions, norm=("2", "inf"), argnum=1)
            return jnp.all((found.lower >= low) & (found.upper <= high)), steep * reach * (1 + 1e-14)

        kept, changes = self._each(one)
        invariant, change = jnp.all(kept), jnp.max(changes)
        first = self._start(x, radius)
        inside = jnp.all((first[0] >= low) & (first[1] <= high))
        v = bounds.bound(lambda s: self._value(s, y, as_state), bounds.Box(*first), rounding="real").upper
        kappa, dt = self.kappa, self.network.system.horizon / self.network.steps
        for _ in range(self.network.steps):
            v = jnp.maximum(jnp.exp(-kappa * dt) * v, self.truncation) * (1 + 1e-14)
            v = jnp.log1p(jnp.expm1(v) * jnp.exp(2 * change)) * (1 + 1e-13)
        return jnp.where(jnp.isnan(v), jnp.inf, v), invariant, inside, change

    def _each(self, one: Any) -> Any:
        """A function of all steps, of one where they are all the same; compiled once."""
        return jax.lax.map(one, jnp.arange(self.network.steps if self.timed else 1))

    def _value(self, s: Any, y: Any, as_state: Any) -> Any:
        return CrossEntropy()(self.network.system.decode(as_state(s)), y)

    def _residual(self, low: Any, high: Any, x: Any, y: Any) -> tuple[Any, Any]:
        """V(Φ_n) - max(exp(-κ Δt) V, γ) at most, over a box of states and all steps, for the nominal input; and where to cut."""
        _, context, as_state, as_context = self._flat(x)
        dt = self.network.system.horizon / self.network.steps
        decay = math.exp(-self.kappa * dt)

        def one(n: Any) -> Any:
            step = self._step(n, as_state, as_context)

            def excess(s: Any) -> Any:
                after = self._value(step(s, context), y, as_state)
                return jnp.stack([after - decay * self._value(s, y, as_state), after - self.truncation])

            found = bounds.bound(excess, bounds.Box(low, high), rounding="real").upper
            return jnp.min(jnp.where(jnp.isnan(found), jnp.inf, found))

        return jnp.max(self._each(one)), jnp.argmax(high - low)


def _mapped(function: Any) -> Any:
    """A function of one example for many, compiled."""
    return compiled(jax.vmap(function))


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
    rules: Sequence[str] = RULES,
    truncation: float = 0.01,
    boxes: int = 500,
    together: int = 64,
) -> Robust:
    """The largest of some radii within which the class of each example is proved, and by which rule.

    **Arguments:**

    - `program`: a compiled program whose inference is by Euler steps of a fixed size; readout: logits.
    - `x`, `y`: inputs (arrays, leading batch axis) and integer classes.
    - `radii`: increasing, in the unit of x; a decimal number means at least that.
    - `norm`: `"2"` or `"inf"`.
    - `rules`: some of `"margin"`, `"reach"`, `"comparison"`; see the module's documentation for what they are. `"comparison"` needs an
        exponential certificate of cross entropy and a Box as the domain.
    - `truncation`: γ, the level down to which the comparison rule has V decrease.
    - `boxes`: the most boxes of states per example in which the condition of the comparison rule is proved.
    - `together`: how many examples are bounded at a time.

    **Returns:** a [`lyapunov_dsl.Robust`][]. It is about real arithmetic: the rounding of floating-point inference is not part of the
    claim. Where the input module has a method `gain`, that is taken for its Lipschitz constant in L2: a premise that is yours.

    **Raises:** `ValueError` for a program, radii or rules that are not as above.
    """
    steps = euler_steps(program)
    radii = [float(r) for r in radii]
    if not radii or not all(is_finite(r) and r > 0 for r in radii) or sorted(set(radii)) != radii:
        raise ValueError(f"radii: expected increasing numbers > 0, got {radii}")
    if norm not in ("2", "inf"):
        raise ValueError(f"norm: expected '2' or 'inf', got {norm!r}")
    unknown = [r for r in rules if r not in RULES]
    if unknown or not rules:
        raise ValueError(f"rules: expected some of {RULES}, got {list(rules)}")
    if not (is_finite(truncation) and truncation >= 0):
        raise ValueError(f"truncation: expected a finite number >= 0, got {truncation!r}")
    x, y = np.asarray(x), np.asarray(y)
    if not np.issubdtype(y.dtype, np.integer) or y.ndim != 1 or len(x) != len(y) or not len(y):
        raise ValueError(f"y: expected one integer class for each of {len(x)} inputs, got {y.dtype}{list(y.shape)}")
    began = clock.monotonic()
    quiet = plain(eqx.nn.inference_mode(program))
    certificate = quiet.certificate
    with jax.enable_x64(True):
        network = EulerInference(widened(quiet.system), steps)
        domain = None
        if "comparison" in rules:
            _check_comparison(certificate, quiet.system)
            domain = box_of(quiet.system.region, network.system.start(jnp.asarray(x[0], jnp.float64)).state)
        start = network.system.start(jnp.asarray(x[0], jnp.float64))
        _check_context(start.context)
        timed = depends(lambda t: network.system.velocity(t, start.state, start.context), jnp.zeros(()))
        found = _Functions(network, certificate, domain, norm, truncation, timed)
        return _search(found, np.asarray(x, np.float64), y, radii, list(rules), boxes, together, began)


def _check_comparison(certificate: Any, system: System) -> None:
    loss = certificate.loss if isinstance(certificate, Exponential) else None
    loss = loss.loss if isinstance(loss, Truncated) else loss
    if not isinstance(loss, CrossEntropy) or system.readout is not identity:
        raise ValueError(
            "rules: expected an exponential certificate of cross entropy, and the state as logits, for 'comparison', got "
            f"{kind(certificate)} of {kind(loss)}; leave it out"
        )
    if not isinstance(system.region, Box):
        raise ValueError(
            f"rules: expected a Box as the domain for 'comparison', got {kind(system.region)}; leave it out"
        )


def _check_context(context: Any) -> None:
    """A part of the context that is no floating-point array has no distance from that of another input."""
    other = [leaf for leaf in jax.tree.leaves(context) if eqx.is_array(leaf) and not eqx.is_inexact_array(leaf)]
    if other:
        raise ValueError(
            f"certify_robustness: expected a context of floating-point arrays, got one with {other[0].dtype}{list(other[0].shape)}"
        )


def _search(
    found: _Functions,
    x: np.ndarray,
    y: np.ndarray,
    radii: list[float],
    rules: list[str],
    boxes: int,
    together: int,
    began: float,
) -> Robust:
    count, steps = len(y), found.network.steps
    margins = _batched(found.margins, together, x, y)[0]
    right = np.min(margins, axis=1) > 0
    # A decimal radius is rounded up.
    grid = np.array([0.0, *np.nextafter(radii, np.inf)])
    cost = {"margin": steps * 3 + 3, "reach": 1, "comparison": 2 * steps + 3}
    evaluations = count
    best, rule = np.zeros(count), [""] * count
    by_rule: dict[str, np.ndarray] = {}
    premises: dict[str, list[list[Premise]]] = {}
    for name in rules:
        low, high = np.zeros(count, int), np.full(count, len(grid) - 1)
        high[~right] = 0
        decreasing = np.ones(count, bool)
        if name == "comparison":
            decreasing, looked = _decreasing(found, x, y, right, boxes, together)
            evaluations += looked
        seen: list[Any] = [None] * count
        while (todo := np.flatnonzero(low < high)).size:
            tried = (low[todo] + high[todo] + 1) // 2
            values = _batched(getattr(found, name), together, x[todo], y[todo], grid[tried])
            evaluations += cost[name] * len(todo)
            told = [_premises(name, found, [v[i] for v in values], bool(decreasing[j])) for i, j in enumerate(todo)]
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


def _premises(name: str, found: _Functions, values: list[Any], decreasing: bool) -> list[Premise]:
    """What a rule rests on, from what was evaluated."""
    if name == "reach":
        return [Premise(f"every margin is above 0 in the ball: {values[0]:.4g}", bool(values[0] > 0))]
    if name == "margin":
        return [Premise(f"every margin exceeds what a perturbation changes: by {values[0]:.4g}", bool(values[0] > 0))]
    v, invariant, inside, change = values
    kappa = found.kappa
    return [
        Premise("H is invariant for every perturbed input: each step keeps it", bool(invariant)),
        Premise("every perturbed start is in H: by its range", bool(inside)),
        Premise(
            f"V decreases for the nominal input on all of H above the truncation: kappa {kappa:g}, level {found.truncation:g}",
            decreasing,
        ),
        Premise(
            f"V at the end is below log 2 for every perturbed input: {float(v):.4g}, with steps moved by {float(change):.3g}",
            bool(v < math.log(2)),
        ),
    ]


def _decreasing(
    found: _Functions, x: np.ndarray, y: np.ndarray, wanted: np.ndarray, boxes: int, together: int
) -> tuple[np.ndarray, int]:
    """For which examples V decreases on all of H, by branch and bound of all of them at once; and how many boxes that took."""
    low, high, _ = found.domain
    owner = np.flatnonzero(wanted)
    lows, highs = np.repeat(low[None], len(owner), 0), np.repeat(high[None], len(owner), 0)
    spent, failed, looked = np.zeros(len(x), int), ~wanted.copy(), 0
    while len(owner):
        worst, axis = _batched(found.residual, together, lows, highs, x[owner], y[owner])
        np.add.at(spent, owner, found.network.steps if found.timed else 1)
        looked += len(owner) * (found.network.steps if found.timed else 1)
        left = ~(worst <= 0)
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


def _batched(function: Any, together: int, *arrays: np.ndarray) -> list[np.ndarray]:
    """The results of a mapped function, so many at a time."""
    parts = []
    for i in range(0, len(arrays[0]), together):
        some = [a[i : i + together] for a in arrays]
        room = together - len(some[0])
        full = [np.concatenate([a, np.repeat(a[-1:], room, axis=0)]) for a in some]
        out = function(*full)
        out = out if isinstance(out, tuple) else (out,)
        parts.append([np.asarray(v)[: len(some[0])] for v in out])
    return [np.concatenate(v) for v in zip(*parts, strict=True)]
