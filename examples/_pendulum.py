"""What the pendulum examples share: the loop, networks, and the regulators that they are compared with.

θ'' = sin θ - 0.3 θ' + u, θ = 0 upright, |u| <= 0.95: gravity's greatest torque is 1.
"""

from typing import Any

import _control as control
import equinox as eqx
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import scipy.optimize

import lyapunov_dsl as ld

DAMPING, LIMIT = 0.3, 0.95
A, B = np.array([[0.0, 1.0], [1.0, -DAMPING]]), np.array([[0.0], [1.0]])


class Loop(eqx.Module):
    """The pendulum with a controller, whose torque is inside of the limit."""

    controller: Any

    def __call__(self, t, s, context):
        return jnp.stack([s[1], jnp.sin(s[0]) - DAMPING * s[1] + self.controller(s)])


def loop(controller, reach):
    """The system of a controller; its domain is |state| <= reach."""
    return ld.System(vector_field=Loop(controller), domain=ld.Box(-reach, reach))


# Networks. Without biases they are odd, as the pendulum is, and exactly 0 upright.


class Network(eqx.Module):
    layers: eqx.nn.MLP
    reach: ld.Constant

    def __init__(self, outputs, width, reach, key):
        self.layers = eqx.nn.MLP(2, outputs, width, 2, jnp.tanh, use_bias=False, use_final_bias=False, key=key)
        self.reach = ld.Constant(reach)

    def __call__(self, s):
        return self.layers(3 * s / self.reach(s.dtype))


class Policy(eqx.Module):
    network: Network

    def __call__(self, s):
        return LIMIT * jnp.tanh(self.network(s))


# The clipped regulators.


class Regulator(eqx.Module):
    gain: ld.Constant

    def __call__(self, s):
        return jnp.clip(-(self.gain(s.dtype) @ s), -LIMIT, LIMIT)


def riccati(angle_rate, effort):
    """The gain K of the regulator with the costs θ² + angle_rate θ'² + effort u², and the P of its Riccati equation."""
    p = scipy.linalg.solve_continuous_are(A, B, np.diag([1.0, angle_rate]), effort * np.eye(1))
    return (B.T @ p)[0] / effort, p


def largest(p, gain, reach, kappa, rays=180, radii=120):
    """The level up to which V = sᵀPs falls at the rate κ along the clipped loop at all points that are tried, and where it ends in
    the domain."""
    angles = np.linspace(0, np.pi, rays, endpoint=False)
    unit = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    unit /= np.sqrt(np.einsum("ni,ij,nj->n", unit, p, unit))[:, None]
    top = (reach**2 / np.diag(np.linalg.inv(p))).min()
    size = np.sqrt(top) * np.linspace(0, 1, radii + 1)[1:]
    s = size[:, None, None] * unit
    u = np.clip(-s @ gain, -LIMIT, LIMIT)
    velocity = np.stack([s[..., 1], np.sin(s[..., 0]) - DAMPING * s[..., 1] + u], axis=-1)
    rises = ((s @ p * (2 * velocity + kappa * s)).sum(-1) >= 0).any(axis=1)
    return top if not rises.any() else (size[rises.argmax() - 1] ** 2 if rises.argmax() else 0.0)


def ellipse(p, level):
    return np.pi * level / np.sqrt(np.linalg.det(p))


def best_quadratic(p, gain, reach, kappa):
    """The P whose sublevel set, as far as V falls in it, has the largest area, by Nelder and Mead from that of the Riccati equation."""
    factor = lambda v: np.array([[np.exp(v[0]), 0], [v[1], np.exp(v[2])]])
    form = lambda v: factor(v) @ factor(v).T
    low = np.linalg.cholesky(p / np.trace(p))
    first = np.array([np.log(low[0, 0]), low[1, 0], np.log(low[1, 1])])
    lost = lambda v: -ellipse(form(v), largest(form(v), gain, reach, kappa))
    starts = [first, *(first + 0.3 * np.random.default_rng(i).normal(size=3) for i in range(2))]
    found = [scipy.optimize.minimize(lost, v, method="Nelder-Mead", options={"maxfev": 250}) for v in starts]
    return form(min(found, key=lambda f: f.fun).x)


def regulators(reach, kappa, budget):
    """The proved region of the best of the 25, by either V: candidates in the order of the area up to which V falls at all points of
    a fine grid of rays, which no proof exceeds by more than a step of the grid, until the area proved is above that of all the others."""
    candidates = []
    for angle_rate in (0.01, 0.1, 1, 10, 100):
        for effort in (0.01, 0.1, 1, 10, 100):
            gain, p = riccati(angle_rate, effort)
            for kind, form in (("Riccati", p), ("optimized", best_quadratic(p, gain, reach, kappa))):
                level = largest(form, gain, reach, kappa, 720, 1000)
                candidates.append((ellipse(form, level), kind, angle_rate, effort, gain, form, level))
    candidates.sort(key=lambda c: -c[0])
    control.say(f"25 regulators: V falls on areas up to {candidates[0][0]:.2f} at the points tried")
    best: dict[str, Any] = {}
    for area, kind, angle_rate, effort, gain, form, level in candidates:
        if kind in best and best[kind]["area"] >= area:
            continue
        system = loop(Regulator(ld.Constant(gain)), reach)
        for factor in (0.995, 0.98, 0.95, 0.9):
            if kind in best and best[kind]["area"] >= factor * area:
                break
            found = control.prove(system, control.Quadratic(ld.Constant(form)), factor * level, kappa, budget)
            if found.proof is not None:
                best[kind] = {
                    "area": factor * area,
                    "limit": area,
                    "gain": gain,
                    "form": form,
                    "level": factor * level,
                    "costs": (angle_rate, effort),
                    "claim": control.claim(found),
                }
                control.say(
                    f"{kind}, costs {angle_rate} and {effort}: {factor * area:.2f} proved ({found.boxes} boxes)"
                )
                break
    return best, candidates[0][0]
