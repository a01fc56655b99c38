"""A pendulum upright, with a torque that cannot hold it everywhere: a neural controller with a proved region of attraction.

    python examples/pendulum_swing_down.py --out out

θ'' = sin θ - 0.3 θ' + u, θ = 0 upright, |u| <= 0.95: gravity's greatest torque is 1, so that from many states the pendulum
first has to swing down before it can come up. A controller and a V, both networks, are learned together, led by the proof:
for all states of {V <= 1} it is proved that they go to the upright position, without leaving one period of θ. Beside it the
largest region that the same engine proves for 25 clipped linear quadratic regulators, each with the P of its Riccati equation and
with the quadratic V that is best for the clipped loop. Writes `results.json` and `pendulum_swing_down.png`.
"""

import concurrent.futures
import multiprocessing
from typing import Any

import _control as control
import _pendulum as pendulum
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from scipy.ndimage import map_coordinates

import lyapunov_dsl as ld

# Inside one period of θ.
REACH = np.array([3.14, 4.0])
KAPPA = 1e-3
# States from which the pendulum is up soon, with the controller of the grid, are what {V <= 1} is to hold; those from which it is late
# are what it is not to hold.
SOON, LATE = 7.0, 10.0
PLANT = pendulum.plant(REACH)
DOMAIN = PLANT.domain
PROVER = ld.Prover(boxes=400_000)


def optimal(count=161, torques=9, edge=40.0, most=9.0):
    """V and u of dynamic programming on a grid, where both networks begin: the time from a state to the origin, states near the
    edge of the domain made dear; cut off at `most`."""
    states = control.grid(-REACH, REACH, count).reshape(-1, 2)
    near = np.maximum(np.abs(states) / REACH - 0.8, 0) / 0.2
    cost = np.tanh((states**2).sum(1)) + edge * (near**2).sum(1)
    choices, dt = np.linspace(-pendulum.LIMIT, pendulum.LIMIT, torques), 0.08
    after = []
    for u in choices:
        s = states
        for _ in range(2):
            move = lambda s, u=u: np.stack(pendulum.move(np, s, np.array([u])), axis=1)
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


def networks(key):
    """A controller and a V."""
    one, two = jax.random.split(key)
    potential = ld.nn.PositivePotential(control.Scaled(control.network(2, 16, 48, 2, two), REACH / 3), 2, margin=0.04)
    return control.Policy(REACH / 3, pendulum.LIMIT, 16, 2, one), potential


def begin(key, steps=1500):
    """Both networks, fitted to the grid."""
    states, value, torque = (jnp.asarray(v, jnp.float32) for v in optimal())
    control.say("V and u on a grid")
    keys = jax.random.split(jax.random.fold_in(key, 1), steps)
    weight = jnp.where(value < 1.4, 1.0, 0.1)

    def loss(pair, key):
        rows = jax.random.randint(key, (2048,), 0, len(states))
        policy, v = pair
        wrong_v = jax.vmap(v)(states[rows]) - value[rows]
        wrong_u = jax.vmap(policy)(states[rows])[:, 0] - torque[rows]
        return jnp.mean(weight[rows] * (wrong_v**2 + 0.1 * wrong_u**2))

    return control.fitted(loss, networks(key), keys, 5e-3, 0.1)


def measures(system):
    """States that the loop brings up soon, and those that it brings up late or never; always as many, so that nothing is compiled anew."""
    points = control.grid(-0.97 * REACH, 0.97 * REACH, 121)
    up = lambda seconds: control.reached(system.vector_field, DOMAIN, points, seconds=seconds, near=0.3)
    rows = (np.resize(np.pad(v, ((0, 0), (1, 0))), (8192, 3)) for v in (points[up(SOON)], points[~up(LATE)]))
    return (ld.Boxes(v, v, 512) for v in rows)


def declared(policy, potential):
    """The program of two networks, and what it is trained for: the set grows over what the controller can do by now."""
    system, certificate = PLANT.loop(policy), ld.Certificate.exponential(potential, 30 * KAPPA)
    inside, outside = measures(system)
    objective = 3 * ld.Sublevel(1.0, inside, ld.Mixture(ld.Boundary(512), outside), growth=0.4)
    objective = objective + control.residuals(4, 4, 1024)
    return ld.compile(system, certificate, example=(jnp.zeros(2), None), objective=objective)


def led(program, options, **more):
    """Training led by states at which the condition fails, and by the proof."""
    return control.led(program, options, 3e-3, 0.03, weight=4.0, **control.asked(KAPPA, 2, PROVER), **more)


def first_training(options):
    """The arrays of both networks, trained until the condition fails at no state that is looked at; and what came of each round."""
    key, both, history = jax.random.key(options.seed), None, []
    for turn in range(2):
        # The second time the set is to hold what the controller can do by then.
        program = declared(*(begin(key) if both is None else both))
        control.say("networks fitted to the grid" if both is None else "trained on its own")
        rounds = 1 if turn == 0 else options.rounds
        found = led(program, options, rounds=rounds, key=jax.random.fold_in(key, turn), proof=False)
        both, history = (control.field_of(found.program).controller, control.learned(found.program)), found.history
    control.say(f"trained until the condition fails nowhere that is looked: {[n for _, n in history]}")
    return [np.asarray(leaf) for leaf in jax.tree.leaves(eqx.filter(both, eqx.is_array))], history


def learn(arrays, options):
    """A program, the verification of its certificate at the level 1, and what came of more rounds, if there were any."""
    key = jax.random.key(options.seed)
    shapes, static = eqx.partition(networks(key), eqx.is_array)
    both = eqx.combine(jax.tree.unflatten(jax.tree.structure(shapes), [jnp.asarray(v) for v in arrays]), static)
    program = declared(*both)
    found = control.prove(program.system, both[1], 1.0, KAPPA, PROVER)
    if found.proof is not None:
        return program, found, []
    control.say(str(found))
    more = led(program, options, key=jax.random.fold_in(key, 2))
    return more.program, more.verification, more.history


def compile_proof():
    """Compiles what a proof runs, with networks that are not trained: programs are shared by all of one shape."""
    policy, potential = networks(jax.random.key(0))
    certificate, one = ld.Certificate.exponential(potential, KAPPA), ld.Prover(boxes=1)
    origin = np.zeros(2)
    for property in (
        ld.Decrease(level=1.0, equilibrium=origin, strict=True),
        ld.PositiveDefinite(equilibrium=origin),
        ld.SublevelContained(level=1.0),
    ):
        ld.prove(ld.Condition(PLANT.loop(policy), certificate), property, at=(origin, None), prover=one)


def draw(path, field, potential, regulator, areas):
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 5), layout="compressed", sharey=True)
    points = control.grid(-REACH, REACH, 301)
    sides = (
        ("neural controller and V", field, potential, 1.0, areas[0]),
        ("best clipped LQR", *PLANT.regulated(regulator), regulator["level"], areas[1]),
    )
    for ax, (title, loop, value, level, (proved, simulated)) in zip(axes, sides, strict=True):
        control.regions(ax, points, control.reached(loop, DOMAIN, points), control.values(value, points), level)
        control.stream(ax, loop, points[::10, ::10])
        ax.set_title(f"{title}: proved {proved:.1f} (red), simulated {simulated:.1f} (blue)", fontsize=10)
        ax.set_xlabel("θ (upright at 0)")
        ax.set_xlim(-REACH[0], REACH[0])
        ax.set_ylim(-REACH[1], REACH[1])
    axes[0].set_ylabel("θ'")
    figure.suptitle(
        f"Region of attraction of the upright pendulum, torque at most {pendulum.LIMIT} of gravity's greatest"
    )
    figure.savefig(path, dpi=72)


def main():
    options = control.options(
        "A proved region of attraction of the upright pendulum.",
        rounds=6,
        steps=(2500, "of training in each round"),
        save=(False, "write the neural proof for lyapunov_checker; takes minutes"),
    )
    # The other process trains, and proves the regulators, while this one compiles what the proof of the networks runs.
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as other:
        trained = other.submit(first_training, options)
        compared = other.submit(pendulum.regulators, REACH, KAPPA, PROVER)
        compile_proof()
        control.say("the programs of the proof are compiled")
        arrays, history = trained.result()
        program, found, more = learn(arrays, options)
        control.say(str(found))
        best, limit = compared.result()
    field, potential = control.field_of(program), control.learned(program)

    points = control.grid(-REACH, REACH, 1001)
    cell = np.prod(2 * REACH) / points[..., 0].size
    area = lambda inside: float(inside.sum() * cell)
    coarse = control.grid(-REACH, REACH, 301)
    simulated = lambda field: float(control.reached(field, DOMAIN, coarse).mean() * np.prod(2 * REACH))
    proved = area(control.values(potential, points) <= 1) if found.proof is not None else 0.0
    strongest, others, table = control.compared(best)
    regulated, _ = PLANT.regulated(strongest)
    figures = {
        "neural": {"proved area": proved, "simulated area": simulated(field)},
        "regulator": {"proved area": strongest["volume"], "simulated area": simulated(regulated)},
        "ratio": proved / strongest["volume"],
        "the same, of the largest area at the points tried": proved / limit,
        "best by V": table,
    }
    claims = {"neural controller: {V <= 1} is a region of attraction": control.claim(found)}
    claims |= others
    claims["simulated regions"] = {"status": "EMPIRICAL", "reason": None}
    if options.save:
        figures["file"] = control.saved(found, options.out / "proof.npz")
    settings = {
        "damping": pendulum.DAMPING,
        "limit": pendulum.LIMIT,
        "domain": REACH.tolist(),
        "seed": options.seed,
        "rounds": control.rounds([*history, *more]),
    }
    areas = [(f["proved area"], f["simulated area"]) for f in (figures["neural"], figures["regulator"])]
    draw(options.out / "pendulum_swing_down.png", field, potential, strongest, areas)
    control.write(options.out, "pendulum_swing_down", claims, settings, figures)
    print(f"proved area {areas[0][0]:.2f} against {areas[1][0]:.2f}: {figures['ratio']:.2f} times")


if __name__ == "__main__":
    main()
