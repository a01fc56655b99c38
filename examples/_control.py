"""What the control examples share: simulation, areas, and `results.json`."""

import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import lyapunov_dsl as ld

REGION = ("decrease", "definite", "enclosed")
BEGAN = time.monotonic()


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


class Quadratic(eqx.Module):
    """V(s) = sᵀPs."""

    form: ld.Constant

    def __call__(self, s):
        return s @ self.form(s.dtype) @ s


def learned(program) -> Any:
    """The V of a program."""
    return program.certificate.loss.function


def prove(system, potential, level, kappa, budget):
    """V falls where V <= level, is 0 at the origin alone, and is above the level all around the domain."""
    certificate = ld.Certificate.exponential(potential, kappa)
    return ld.verify(
        system,
        certificate,
        claims=REGION,
        equilibrium=np.zeros(2),
        level=level,
        strict=True,
        budget=budget,
    )


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
