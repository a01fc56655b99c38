"""A pendulum upright, with a torque that cannot hold it everywhere: a neural controller with a proved region of attraction.

    python examples/pendulum_swing_down.py --out out

θ'' = sin θ - 0.3 θ' + u, θ = 0 upright, |u| <= 0.95: gravity's greatest torque is 1, so that from many states the pendulum
first has to swing down before it can come up. A controller and a V, both networks, are learned together, led by the proof:
for all states of {V <= 1} it is to be proved that they go to the upright position, without leaving one period of θ. That
proof does not go through yet. Beside it the largest region that the same engine proves for 25 clipped linear quadratic
regulators, each with the P of its Riccati equation and with the quadratic V that is best for the clipped loop. Writes
`results.json` and `pendulum_swing_down.png`.
"""

import argparse
from pathlib import Path
from typing import Any

import _control as control
import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import optax
import scipy.linalg
import scipy.optimize
from scipy.ndimage import map_coordinates

import lyapunov_dsl as ld

DAMPING, LIMIT = 0.3, 0.95
# Inside one period of θ.
REACH = np.array([3.14, 4.0])
KAPPA = 0.01
# States from which the pendulum is up soon, with the controller of the grid, are what {V <= 1} is to hold; those from which it is late
# are what it is not to hold.
SOON, LATE = 8.0, 8.5
DOMAIN = ld.Box(-REACH, REACH)
BUDGET = ld.Budget(boxes=400_000)
A, B = np.array([[0.0, 1.0], [1.0, -DAMPING]]), np.array([[0.0], [1.0]])


class Loop(eqx.Module):
    """The pendulum with a controller, whose torque is inside of the limit."""

    controller: Any

    def __call__(self, t, s, context):
        return jnp.stack([s[1], jnp.sin(s[0]) - DAMPING * s[1] + self.controller(s)])


def loop(controller):
    return ld.System(vector_field=Loop(controller), domain=DOMAIN)


# Networks. Without biases they are odd, as the pendulum is, and exactly 0 upright.


class Network(eqx.Module):
    layers: eqx.nn.MLP

    def __init__(self, outputs, width, key):
        self.layers = eqx.nn.MLP(2, outputs, width, 2, jnp.tanh, use_bias=False, use_final_bias=False, key=key)

    def __call__(self, s):
        return self.layers(3 * s / jnp.asarray(REACH, s.dtype))


class Policy(eqx.Module):
    network: Network

    def __call__(self, s):
        return LIMIT * jnp.tanh(self.network(s))


def optimal(count=161, torques=9, edge=40.0, most=12.0):
    """V and u of dynamic programming on a grid, where both networks begin: the time from a state to the origin, states near the
    edge of the domain made dear; cut off at `most`."""
    states = control.grid(-REACH, REACH, count).reshape(-1, 2)
    near = np.maximum(np.abs(states) / REACH - 0.8, 0) / 0.2
    cost = np.tanh((states**2).sum(1)) + edge * (near**2).sum(1)
    choices, dt = np.linspace(-LIMIT, LIMIT, torques), 0.08
    after = []
    for u in choices:
        s = states
        for _ in range(2):
            move = lambda s, u=u: np.stack([s[:, 1], np.sin(s[:, 0]) - DAMPING * s[:, 1] + u], 1)
            s = s + dt / 2 * move(s + dt / 4 * move(s))
        outside = (np.abs(s) > REACH).any(1)
        after.append(((s / REACH + 1).T / 2 * (count - 1), outside, (cost + 0.1 * u * u) * dt))
    value = np.full((count, count), 40.0)
    value[count // 2, count // 2] = 0
    to: Any = None
    for _ in range(400):
        to = [np.where(out, 40, map_coordinates(value, at, order=1)) + now for at, out, now in after]
        new = np.minimum(np.min(to, axis=0), 40).reshape(count, count)
        new[count // 2, count // 2] = 0
        change, value = np.abs(new - value).max(), new
        if change < 1e-3:
            break
    return states, np.minimum(value.ravel() / most, 1.5), choices[np.argmin(to, axis=0)]


def begin(key, steps=1500):
    """Both networks, fitted to the grid."""
    states, value, torque = (jnp.asarray(v, jnp.float32) for v in optimal())
    control.say("V and u on a grid")
    kinds, keys = jax.random.split(key, 2), jax.random.split(jax.random.fold_in(key, 1), steps)
    networks = Policy(Network("scalar", 16, kinds[0])), Network(16, 48, kinds[1])
    # With a smaller margin V may nearly vanish elsewhere, where residuals are then too small to be noticed.
    potential = ld.nn.PositivePotential(networks[1], 2, margin=0.04)
    weight = jnp.where(value < 1.4, 1.0, 0.1)

    def loss(pair, key):
        rows = jax.random.randint(key, (2048,), 0, len(states))
        policy, v = pair
        wrong_v = jax.vmap(v)(states[rows]) - value[rows]
        wrong_u = jax.vmap(policy)(states[rows]) - torque[rows]
        return jnp.mean(weight[rows] * (wrong_v**2 + 0.1 * wrong_u**2))

    optimizer = optax.adam(optax.cosine_decay_schedule(5e-3, steps, 0.1))

    @eqx.filter_jit
    def step(pair, state, key):
        grads = eqx.filter_grad(loss)(pair, key)
        updates, state = optimizer.update(grads, state)
        return eqx.apply_updates(pair, updates), state

    pair = networks[0], potential
    state = optimizer.init(eqx.filter(pair, eqx.is_inexact_array))
    for k in keys:
        pair, state = step(pair, state, k)
    return pair


def weaker(program):
    """What is to be proved: less than what is trained."""
    control.say("trained; now the proof")
    return ld.Certificate.exponential(control.learned(program), KAPPA)


def learn(key, options):
    """A program whose certificate is proved at the level 1, or what is left of it."""
    policy, potential = begin(key)
    control.say("networks fitted to the grid")
    system = loop(policy)
    points = control.grid(-0.95 * REACH, 0.95 * REACH, 121)
    up = lambda seconds: control.reached(system.vector_field, DOMAIN, points, seconds=seconds, near=0.3)
    inside, outside = (
        ld.Boxes(rows, rows, 512)
        for rows in (np.pad(v, ((0, 0), (1, 0))) for v in (points[up(SOON)], points[~up(LATE)]))
    )
    objective = 5 * ld.Sublevel(1.0, inside, ld.Mixture(ld.Boundary(512), outside))
    objective = objective + control.residuals(20, 4, 1024)
    certificate = ld.Certificate.exponential(potential, 10 * KAPPA)
    program = ld.compile(system, certificate, example=(jnp.zeros(2), None), objective=objective)
    steps = options.steps
    return ld.fit_until_proved(
        program,
        (jnp.zeros((steps, 2)), None),
        optimizer=optax.adam(optax.cosine_decay_schedule(3e-3, steps, 0.03)),
        epochs=1,
        batch_size=1,
        rounds=options.rounds,
        weight=30.0,
        key=key,
        prove=weaker,
        claims=control.REGION,
        equilibrium=np.zeros(2),
        level=1.0,
        strict=True,
        budget=BUDGET,
    )


# The clipped regulators.


class Regulator(eqx.Module):
    gain: ld.Constant

    def __call__(self, s):
        return jnp.clip(-(self.gain(s.dtype) @ s), -LIMIT, LIMIT)


def riccati(angle_rate, effort):
    """The gain K of the regulator with the costs θ² + angle_rate θ'² + effort u², and the P of its Riccati equation."""
    p = scipy.linalg.solve_continuous_are(A, B, np.diag([1.0, angle_rate]), effort * np.eye(1))
    return (B.T @ p)[0] / effort, p


def largest(p, gain, rays=180, radii=120):
    """The level up to which V = sᵀPs falls along the clipped loop at all points that are tried, and where it ends in the domain."""
    angles = np.linspace(0, np.pi, rays, endpoint=False)
    unit = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    unit /= np.sqrt(np.einsum("ni,ij,nj->n", unit, p, unit))[:, None]
    top = (REACH**2 / np.diag(np.linalg.inv(p))).min()
    size = np.sqrt(top) * np.linspace(0, 1, radii + 1)[1:]
    s = size[:, None, None] * unit
    u = np.clip(-s @ gain, -LIMIT, LIMIT)
    velocity = np.stack([s[..., 1], np.sin(s[..., 0]) - DAMPING * s[..., 1] + u], axis=-1)
    rises = ((s @ p * velocity).sum(-1) >= 0).any(axis=1)
    return top if not rises.any() else (size[rises.argmax() - 1] ** 2 if rises.argmax() else 0.0)


def ellipse(p, level):
    return np.pi * level / np.sqrt(np.linalg.det(p))


def best_quadratic(p, gain):
    """The P whose sublevel set, as far as V falls in it, has the largest area, by Nelder and Mead from that of the Riccati equation."""
    factor = lambda v: np.array([[np.exp(v[0]), 0], [v[1], np.exp(v[2])]])
    form = lambda v: factor(v) @ factor(v).T
    low = np.linalg.cholesky(p / np.trace(p))
    first = np.array([np.log(low[0, 0]), low[1, 0], np.log(low[1, 1])])
    lost = lambda v: -ellipse(form(v), largest(form(v), gain))
    starts = [first, *(first + 0.3 * np.random.default_rng(i).normal(size=3) for i in range(2))]
    found = [scipy.optimize.minimize(lost, v, method="Nelder-Mead", options={"maxfev": 250}) for v in starts]
    return form(min(found, key=lambda f: f.fun).x)


def regulators():
    """The proved region of the best of the 25, by either V: candidates in the order of the area up to which V falls at all points of
    a fine grid of rays, which no proof exceeds by more than a step of the grid, until the area proved is above that of all the others."""
    candidates = []
    for angle_rate in (0.01, 0.1, 1, 10, 100):
        for effort in (0.01, 0.1, 1, 10, 100):
            gain, p = riccati(angle_rate, effort)
            for kind, form in (("Riccati", p), ("optimized", best_quadratic(p, gain))):
                level = largest(form, gain, 720, 1000)
                candidates.append((ellipse(form, level), kind, angle_rate, effort, gain, form, level))
    candidates.sort(key=lambda c: -c[0])
    control.say(f"25 regulators: V falls on areas up to {candidates[0][0]:.2f} at the points tried")
    best: dict[str, Any] = {}
    for area, kind, angle_rate, effort, gain, form, level in candidates:
        if kind in best and best[kind]["area"] >= area:
            continue
        system = loop(Regulator(ld.Constant(gain)))
        for factor in (0.995, 0.98, 0.95, 0.9):
            if kind in best and best[kind]["area"] >= factor * area:
                break
            found = control.prove(system, control.Quadratic(ld.Constant(form)), factor * level, KAPPA, BUDGET)
            if found.proof is not None:
                best[kind] = {
                    "area": factor * area,
                    "limit": area,
                    "gain": gain,
                    "form": form,
                    "level": factor * level,
                    "costs": (angle_rate, effort),
                    "found": found,
                    "system": system,
                }
                control.say(
                    f"{kind}, costs {angle_rate} and {effort}: {factor * area:.2f} proved ({found.boxes} boxes)"
                )
                break
    return best, candidates[0][0]


def draw(path, learned, potential, regulator, areas):
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 5), layout="compressed", sharey=True)
    points = control.grid(-REACH, REACH, 301)
    quadratic = control.Quadratic(ld.Constant(regulator["form"]))
    sides = (
        ("neural controller and V", learned.vector_field, potential, 1.0, areas[0]),
        ("best clipped LQR", regulator["system"].vector_field, quadratic, regulator["level"], areas[1]),
    )
    for ax, (title, field, value, level, (proved, simulated)) in zip(axes, sides, strict=True):
        ok = control.reached(field, DOMAIN, points)
        x, y = points[..., 0], points[..., 1]
        ax.contourf(x, y, ok, levels=[0.5, 1.5], colors=["#cfe0f3"])
        v = control.values(value, points)
        ax.contourf(x, y, v, levels=[-1, level], colors=["#b3261e"], alpha=0.35)
        ax.contour(x, y, v, levels=[level], colors=["#b3261e"], linewidths=2)
        velocity = control.values(lambda s, field=field: field(jnp.zeros(()), s, None), points[::10, ::10])
        ax.streamplot(
            x[::10, 0],
            y[0, ::10],
            velocity[..., 0].T,
            velocity[..., 1].T,
            color="#777777",
            linewidth=0.5,
            arrowsize=0.6,
            density=1.2,
        )
        ax.set_title(f"{title}: proved {proved:.1f} (red), simulated {simulated:.1f} (blue)", fontsize=10)
        ax.set_xlabel("θ (upright at 0)")
        ax.set_xlim(-REACH[0], REACH[0])
        ax.set_ylim(-REACH[1], REACH[1])
    axes[0].set_ylabel("θ'")
    figure.suptitle(f"Region of attraction of the upright pendulum, torque at most {LIMIT} of gravity's greatest")
    figure.savefig(path, dpi=80)


def main():
    parser = argparse.ArgumentParser(description="A proved region of attraction of the upright pendulum.")
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=5000, help="of training in each round")
    parser.add_argument(
        "--save", action="store_true", help="write the neural proof for lyapunov_checker; takes minutes"
    )
    parser.add_argument("--rounds", type=int, default=4, help="of training and proof, at most")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    mpl.use("Agg")

    led = learn(jax.random.key(options.seed), options)
    system, potential, found = led.program.system, control.learned(led.program), led.verification
    print(found)
    best, limit = regulators()

    points = control.grid(-REACH, REACH, 1001)
    cell = np.prod(2 * REACH) / points[..., 0].size
    area = lambda inside: float(inside.sum() * cell)
    coarse = control.grid(-REACH, REACH, 301)
    simulated = lambda system: float(control.reached(system.vector_field, DOMAIN, coarse).mean() * np.prod(2 * REACH))
    proved = area(control.values(potential, points) <= 1) if found.proof is not None else 0.0
    strongest = max(best.values(), key=lambda b: b["area"])
    figures = {
        "neural": {"proved area": proved, "simulated area": simulated(system)},
        "regulator": {"proved area": strongest["area"], "simulated area": simulated(strongest["system"])},
        "ratio": proved / strongest["area"],
        "the same, of the largest area at the points tried": proved / limit,
        "best by V": {kind: {k: b[k] for k in ("area", "limit", "costs", "level")} for kind, b in best.items()},
    }
    claims = {"neural controller: {V <= 1} is a region of attraction": control.claim(found)}
    for kind, b in best.items():
        claims[f"best clipped LQR, {kind} V: {{V <= {b['level']:.4g}}} is a region of attraction"] = control.claim(
            b["found"]
        )
    claims["simulated regions"] = {"status": "EMPIRICAL", "reason": None}
    if options.save:
        figures["file"] = control.saved(found, options.out / "proof.npz")
    settings = {
        "damping": DAMPING,
        "limit": LIMIT,
        "domain": REACH.tolist(),
        "seed": options.seed,
        "rounds": [[status.name, boxes] for status, boxes in led.history],
    }
    areas = [(f["proved area"], f["simulated area"]) for f in (figures["neural"], figures["regulator"])]
    draw(options.out / "pendulum_swing_down.png", system, potential, strongest, areas)
    control.write(options.out, "pendulum_swing_down", claims, settings, figures)
    print(f"proved area {areas[0][0]:.2f} against {areas[1][0]:.2f}: {figures['ratio']:.2f} times")


if __name__ == "__main__":
    main()
