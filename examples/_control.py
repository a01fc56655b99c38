"""What the control examples share: simulation, areas, and `results.json`."""

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import optax
import scipy.linalg
import scipy.optimize
import scipy.special
from _folder import folder

import lyapunov_dsl as ld

# Of the level up to which V falls at the points tried: what a proof is tried at.
FACTORS = (0.995, 0.98, 0.95, 0.9, 0.8, 0.65)
BEGAN = time.monotonic()


def options(description, rounds, **more):
    """What the command line says, for options of some defaults, each with what it means."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=folder, default="out", help="folder for the record and the pictures")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=rounds, help="of training and proof, at most")
    for name, (default, meaning) in more.items():
        how: Any = {"action": "store_true"} if default is False else {"type": type(default), "default": default}
        parser.add_argument(f"--{name}", help=meaning, **how)
    found = parser.parse_args()
    mpl.use("Agg")
    return found


def say(text):
    """A line with the seconds since the start."""
    print(f"[{time.monotonic() - BEGAN:5.0f} s] {text}", flush=True)


def grid(low, high, count):
    """float[count, count, 2]: points of a rectangle, the first coordinate along the first axis."""
    return np.stack(np.meshgrid(*np.linspace(low, high, count).T, indexing="ij"), axis=-1)


@eqx.filter_jit
def simulate(field, states, *, seconds, dt=0.02, domain=None):
    """Where states are after some time by RK4, and whether they have been in the domain all along."""
    velocity = jax.vmap(lambda s: field(jnp.zeros(()), s, None))

    def step(carry, _):
        s, kept = carry
        k1 = velocity(s)
        k2 = velocity(s + dt / 2 * k1)
        k3 = velocity(s + dt / 2 * k2)
        new = s + dt / 6 * (k1 + 2 * k2 + 2 * k3 + velocity(s + dt * k3))
        kept &= True if domain is None else jax.vmap(domain.excess)(new) <= 0
        # What has left stays where it is, lest it overflows.
        return (jnp.where(kept[:, None], new, s), kept), None

    begun = states, jnp.ones(len(states), bool)
    return jax.lax.scan(step, begun, None, length=round(seconds / dt))[0]


def reached(field, domain, points, *, seconds=30.0, near=0.05):
    """The states of an array [..., n] that come near 0 without leaving the domain, in simulation (EMPIRICAL)."""
    last, kept = simulate(field, jnp.asarray(points.reshape(-1, points.shape[-1])), seconds=seconds, domain=domain)
    return np.asarray(kept & (jnp.abs(last).max(axis=1) < near)).reshape(points.shape[:-1])


def values(function, points):
    """A function of the state on an array of states."""
    found = jax.jit(jax.vmap(function))(jnp.asarray(points.reshape(-1, points.shape[-1])))
    return np.asarray(found).reshape(points.shape[:-1])


def stream(ax, field, points):
    """The lines of a field of the plane, on a grid of points."""
    velocity = np.asarray(
        jax.jit(jax.vmap(lambda s: field(jnp.zeros(()), s, None)))(jnp.asarray(points.reshape(-1, 2)))
    )
    velocity = velocity.reshape(points.shape)
    x, y = points[:, 0, 0], points[0, :, 1]
    look = {"color": "#777777", "linewidth": 0.5, "arrowsize": 0.6, "density": 1.2}
    ax.streamplot(x, y, velocity[..., 0].T, velocity[..., 1].T, **look)


def regions(ax, plane, simulated, v, level):
    """Two regions over a grid of the plane: a simulated one in blue, and {V <= level} in red."""
    x, y = plane[..., 0], plane[..., 1]
    ax.contourf(x, y, simulated, levels=[0.5, 1.5], colors=["#cfe0f3"])
    ax.contourf(x, y, v, levels=[-1, level], colors=["#b3261e"], alpha=0.35)
    ax.contour(x, y, v, levels=[level], colors=["#b3261e"], linewidths=2)


class Quadratic(eqx.Module):
    """V(s) = sᵀPs."""

    form: ld.Constant

    def __call__(self, s):
        return s @ self.form(s.dtype) @ s


class Regulator(eqx.Module):
    """u = -K s, clipped to its limits."""

    gain: ld.Constant
    limit: ld.Constant

    def __init__(self, gain, limit):
        self.gain, self.limit = (
            ld.Constant(np.atleast_2d(gain)),
            ld.Constant(np.broadcast_to(limit, len(np.atleast_2d(gain)))),
        )

    def __call__(self, s):
        limit = self.limit(s.dtype)
        return jnp.clip(-(self.gain(s.dtype) @ s), -limit, limit)


class Policy(eqx.Module):
    """A network inside of the limits of the input, of states in a unit each."""

    network: Any
    limit: ld.Constant

    def __init__(self, scale, limit, width, depth, key):
        limit = np.atleast_1d(limit)
        self.network = Scaled(network(len(scale), len(limit), width, depth, key), scale)
        self.limit = ld.Constant(limit)

    def __call__(self, s):
        return self.limit(s.dtype) * jnp.tanh(self.network(s))


class Scaled(eqx.Module):
    """A function of s / scale."""

    function: Callable
    scale: ld.Constant

    def __init__(self, function, scale):
        self.function, self.scale = function, ld.Constant(scale)

    def __call__(self, s):
        return self.function(s / self.scale(s.dtype))


def network(inputs, outputs, width, depth, key):
    """Without biases: odd, and exactly 0 at the origin."""
    return eqx.nn.MLP(inputs, outputs, width, depth, jnp.tanh, use_bias=False, use_final_bias=False, key=key)


def fitted(loss, models, keys, rate, last):
    """Models after a step of Adam on loss(models, key) for each of the keys, at a rate that falls to a share `last` of it."""
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, len(keys), last))

    @eqx.filter_jit
    def step(models, state, key):
        updates, state = optimizer.update(eqx.filter_grad(loss)(models, key), state)
        return eqx.apply_updates(models, updates), state

    state = optimizer.init(eqx.filter(models, eqx.is_inexact_array))
    for key in keys:
        models, state = step(models, state, key)
    return models


class Loop(eqx.Module):
    """A plant with a controller."""

    move: Callable = eqx.field(static=True)
    controller: Any

    def __call__(self, t, s, context):
        return jnp.stack(self.move(jnp, s, self.controller(s)))


class Plant(NamedTuple):
    """What is controlled, and where.

    `move(numpy or jax.numpy, s, u)`: the derivatives of the states [..., i], for inputs [..., j] with |u| <= limit; the domain is
    |s| <= reach.
    """

    move: Callable
    limit: np.ndarray
    reach: np.ndarray

    @property
    def domain(self):
        return ld.Box(-self.reach, self.reach)

    def loop(self, controller):
        return ld.System(vector_field=Loop(self.move, controller), domain=self.domain)

    def regulated(self, regulator):
        """The field and the V of a regulator, as `compared` has it."""
        field = self.loop(Regulator(regulator["gain"], self.limit)).vector_field
        return field, Quadratic(ld.Constant(regulator["form"]))

    def velocity(self, gain):
        """The loop of a clipped regulator, for arrays of states."""
        return lambda s: np.stack(self.move(np, s, np.clip(-s @ gain.T, -self.limit, self.limit)), axis=-1)

    def riccati(self, costs, effort):
        """The gain K of the linear quadratic regulator, for the costs of the states (a matrix, or its diagonal) and of the inputs, and
        the P of its Riccati equation."""
        with jax.enable_x64(True):
            field = lambda s, u: jnp.stack(self.move(jnp, s, u))
            zero = jnp.zeros(len(self.reach)), jnp.zeros(len(self.limit))
            a, b = (np.asarray(m) for m in jax.jacfwd(field, (0, 1))(*zero))
        costs = np.asarray(costs, float)
        costs = np.diag(costs) if costs.ndim == 1 else costs
        p = scipy.linalg.solve_continuous_are(a, b, costs, effort * np.eye(b.shape[1]))
        return b.T @ p / effort, p


def regulators(plant, designs, kappa, prover, rays, fine, radii):
    """The largest region that is proved of all clipped regulators, with their costs (of the states, of the inputs), by either V:
    candidates in the order of the volume up to which V falls at all points of many fine rays, until the volume proved is above that
    of all the others. And the largest volume at those points."""
    candidates = []
    for costs, effort in designs:
        gain, p = plant.riccati(costs, effort)
        velocity = plant.velocity(gain)
        other = best_quadratic(p, velocity, plant.reach, kappa, rays)
        for kind, form in (("Riccati", p), ("optimized", other)):
            level = largest(form, velocity, plant.reach, kappa, fine, radii)
            candidates.append((volume(form, level), kind, (costs, effort), gain, form, level))
    candidates.sort(key=lambda c: -c[0])
    say(f"{len(designs)} regulators: V falls up to a volume of {candidates[0][0]:.4g} at the points tried")
    best: dict[str, Any] = {}
    for size, kind, costs, gain, form, level in candidates:
        for factor in FACTORS:
            proved = volume(form, factor * level)
            if kind in best and best[kind]["volume"] >= proved:
                break
            found = prove(
                plant.loop(Regulator(gain, plant.limit)), Quadratic(ld.Constant(form)), factor * level, kappa, prover
            )
            say(
                f"{kind} V, costs {np.ravel(costs[0])[:3]} and {costs[1]}: {proved:.4g}, {found.status.name} ({found.boxes} boxes)"
            )
            if found.proof is not None:
                known = {"volume": proved, "limit": size, "gain": gain, "form": form, "level": factor * level}
                best[kind] = known | {"costs": (np.asarray(costs[0]).tolist(), costs[1]), "claim": claim(found)}
                break
    return best, candidates[0][0]


def compared(best, what="a region of attraction"):
    """The best of all regulators; what is claimed of each kind; and what else was found."""
    claims = {
        f"best clipped LQR, {kind} V: {{V <= {b['level']:.4g}}} is {what}": b["claim"] for kind, b in best.items()
    }
    table = {kind: {k: b[k] for k in ("volume", "limit", "costs", "level")} for kind, b in best.items()}
    return max(best.values(), key=lambda b: b["volume"]), claims, table


def directions(n, count):
    """Some rays, uniform on the sphere."""
    found = np.random.default_rng(0).normal(size=(count, n))
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def largest(form, velocity, reach, kappa, rays, radii=100):
    """The level up to which V = sᵀPs falls at the rate κ at all points of some rays, and where {V <= level} ends in |s| <= reach."""
    unit = rays / np.sqrt(np.einsum("ni,ij,nj->n", rays, form, rays))[:, None]
    top = (reach**2 / np.diag(np.linalg.inv(form))).min()
    size = np.sqrt(top) * np.linspace(0, 1, radii + 1)[1:]
    s = size[:, None, None] * unit
    rises = ((s @ form * (2 * velocity(s) + kappa * s)).sum(-1) >= 0).any(axis=1)
    return top if not rises.any() else (size[rises.argmax() - 1] ** 2 if rises.argmax() else 0.0)


def volume(form, level):
    """Of {sᵀPs <= level}."""
    n = len(form)
    return np.pi ** (n / 2) / scipy.special.gamma(n / 2 + 1) * level ** (n / 2) / np.sqrt(np.linalg.det(form))


def best_quadratic(form, velocity, reach, kappa, rays, steps=250):
    """The P whose sublevel set, as far as V falls in it, has the largest volume, by Nelder and Mead from a given P."""
    n = len(form)
    at, diagonal = np.tril_indices(n), np.diag_indices(n)

    def of(v):
        factor = np.zeros((n, n))
        factor[at] = v
        factor[diagonal] = np.exp(factor[diagonal])
        return factor @ factor.T

    low = np.linalg.cholesky(form / np.trace(form))
    low[diagonal] = np.log(low[diagonal])
    lost = lambda v: -volume(of(v), largest(of(v), velocity, reach, kappa, rays))
    starts = [low[at], *(low[at] + 0.3 * np.random.default_rng(i).normal(size=len(at[0])) for i in range(2))]
    found = [scipy.optimize.minimize(lost, v, method="Nelder-Mead", options={"maxfev": steps}) for v in starts]
    return of(min(found, key=lambda f: f.fun).x)


def field_of(program) -> Any:
    """The vector field of a program."""
    return program.system.vector_field


def learned(program) -> Any:
    """The V of a program."""
    return program.certificate.loss.function


def prove(system, potential, level, kappa, prover):
    """V falls where V <= level, is 0 at the origin alone, and is above the level all around the domain."""
    certificate = ld.Certificate.exponential(potential, kappa)
    origin = np.zeros(jax.tree.leaves(system.domain.lower())[0].size)
    region = ld.RegionOfAttraction(level=level, equilibrium=origin)
    return ld.prove(ld.Condition(system, certificate), region, prover=prover)


def asked(kappa, states, prover) -> dict[str, Any]:
    """What `synthesize` is asked for a region of attraction {V <= 1}: less than what is trained, the rate κ."""
    return {
        "property": ld.RegionOfAttraction(level=1.0, equilibrium=np.zeros(states)),
        "relative": True,
        "certificate": lambda program: ld.Certificate.exponential(learned(program), kappa),
        "prover": prover,
    }


def led(program, options, rate, last, **more):
    """Training led by the proof, `options.steps` steps of Adam in each round, at a rate that falls to a share `last` of it."""
    how = {"rounds": options.rounds, "key": jax.random.key(options.seed), **more}
    return ld.synthesize(
        program,
        # All is about states; the examples are there to be counted.
        (jnp.zeros((options.steps, program.declaration.state.size)), None),
        optimizer=optax.adam(optax.cosine_decay_schedule(rate, options.steps, last)),
        epochs=1,
        batch_size=1,
        steps_per_dispatch=64,
        **how,
    )


def rounds(history):
    """What came of each round of training, as it is written."""
    return [[status.name, count] for status, count in history]


def residuals(weight, parts, samples, level=1.05):
    """What is trained where V is at most a little above 1: on the whole domain, and on smaller and smaller cubes about the origin."""
    measures = [ld.Cube(samples), *(ld.Cube(samples // 4, 2.0 ** (1 - 2 * i)) for i in range(1, parts))]
    terms = [ld.MonteCarlo(measure, level=level, relative=True) for measure in measures]
    weighted = [(weight if i == 0 else 0.3 * weight) * term for i, term in enumerate(terms)]
    return sum(weighted[1:], start=weighted[0])


def claim(verification):
    """A verification as it is written: its status, each claim's, and why one is not proved."""
    return {
        "status": verification.status.name,
        "claims": {name: part.assurance.name for name, part in verification.claims.items()},
        "reason": reason(verification),
        "boxes": verification.boxes,
        "seconds": round(verification.seconds, 1),
    }


def reason(verification):
    """Why a verification is not a proof; `None` where it is one."""
    if verification.counterexample is not None:
        return str(verification.counterexample)
    given = [part.given for part in verification.claims.values() if part.given]
    left = [f"{len(low)} boxes of {name} are left" for name, (low, _) in verification.left.items()]
    return "; ".join(given + left) if verification.proof is None else None


def saved(verification, path, *, boxes=200_000):
    """Writes a proof for `python -m lyapunov_checker`, where there is one; what came of it, in words."""
    if verification.proof is None:
        return "there is no proof to write"
    try:
        verification.proof.save(path, boxes=boxes)
    except ValueError as error:
        return str(error)
    return f"{path.name}, accepted by python -m lyapunov_checker"


def write(out, name, claims, settings, figures):
    """`results.json`: the claims with a status each, the settings and what else was measured."""
    wrong = {key: c["status"] for key, c in claims.items() if c["status"] not in ld.Assurance.__members__}
    assert not wrong, wrong
    record = {
        "example": name,
        "claims": claims,
        "figures": figures,
        "settings": settings,
        "seconds": round(time.monotonic() - BEGAN, 1),
        "versions": {"lyapunov_dsl": ld.__version__, "jax": jax.__version__, "python": sys.version.split()[0]},
        "machine": platform.machine(),
    }
    (Path(out) / "results.json").write_text(json.dumps(record, indent=2) + "\n")
    for key, c in claims.items():
        print(f"{c['status']:14} {key}" + (f": {c['reason']}" if c.get("reason") else ""))
