"""The job that the segway and the quadrotor share: a neural controller begun as a regulator, and a V that is learned with it, led by
the proof; beside the largest region that is proved for clipped regulators."""

import concurrent.futures
import multiprocessing
from collections.abc import Callable
from typing import NamedTuple

import _control as control
import jax
import jax.numpy as jnp
import numpy as np

import lyapunov_dsl as ld


class Task(NamedTuple):
    """What is stabilized, and how.

    `begin(gain, form, key)`: the controller and the V that are trained, from the gain of the first of the regulators of `designs` and a
    quadratic V, which is 1 at `shrunk` of the level up to which that falls. Trained is the rate `trained`, proved is `kappa`.
    `margin`, `growth`: as of `ld.Sublevel`; with `faces`, the middle of each face of the domain is trained to be outside. `axes`: the
    states that are drawn, by their names.
    """

    name: str
    title: str
    plant: control.Plant
    designs: list
    begin: Callable
    axes: dict[str, int]
    prover: ld.Prover
    kappa: float = 1e-3
    trained: float = 0.1
    margin: float = 0.1
    growth: float = 0.02
    shrunk: float = 1.0
    faces: bool = False


def imitated(plant, policy, gain, potential, form, key, steps=1500):
    """Both networks, fitted to a clipped regulator and its quadratic V."""
    reach, limit = jnp.asarray(plant.reach, jnp.float32), jnp.asarray(plant.limit, jnp.float32)
    gain, form = jnp.asarray(gain, jnp.float32), jnp.asarray(form, jnp.float32)

    def loss(pair, key):
        s = jax.random.uniform(key, (1024, len(reach)), minval=-1, maxval=1) * reach
        policy, v = pair
        wrong_u = jax.vmap(policy)(s) - jnp.clip(-s @ gain.T, -limit, limit)
        quadratic = jnp.einsum("ni,ij,nj->n", s, form, s)
        wrong_v = jax.vmap(v)(s) - quadratic
        return jnp.mean(jnp.sum((wrong_u / limit) ** 2, -1)) + jnp.mean(wrong_v**2 / (1 + quadratic) ** 2)

    return control.fitted(loss, (policy, potential), jax.random.split(key, steps), 5e-3, 0.05)


def learn(task, policy, potential, options):
    """A program whose certificate is proved at the level 1, or what is left of it."""
    plant = task.plant
    zero = jnp.zeros(len(plant.reach))
    outside: ld.Measure = ld.Boundary(512)
    if task.faces:
        # Where an ellipsoid comes nearest to a face uniform samples of many dimensions are rare.
        middle = np.concatenate([np.diag(plant.reach), -np.diag(plant.reach)])
        rows = np.pad(middle, ((0, 0), (1, 0)))
        outside = ld.Mixture(outside, ld.Boxes(rows, rows, 128))
    inside = ld.Sublevel(1.0, ld.Cube(512), outside, margin=task.margin, growth=options.growth)
    program = ld.compile(
        plant.loop(policy),
        ld.Certificate.exponential(potential, task.trained),
        example=(zero, None),
        objective=3 * inside + control.residuals(8, 3, 1024),
    )
    return control.led(program, options, 2e-3, 0.03, weight=8.0, **control.asked(task.kappa, len(zero), task.prover))


def estimated(potential, reach, count=1_000_000):
    """The volume of {V <= 1} in the domain, by uniform points, with three standard errors."""
    points = np.random.default_rng(0).uniform(-reach, reach, (count, len(reach)))
    share = float((control.values(potential, points) <= 1).mean())
    size = float(np.prod(2 * reach))
    return share * size, 3 * size * float(np.sqrt(share * (1 - share) / count))


def draw(path, task, sides):
    """Both regions in the plane of two states, the others 0."""
    import matplotlib.pyplot as plt

    plant, (shown, labels) = task.plant, (list(task.axes.values()), list(task.axes))
    figure, axes = plt.subplots(1, 2, figsize=(10, 5), layout="compressed", sharey=True)
    plane = control.grid(-plant.reach[shown], plant.reach[shown], 121)
    points = np.zeros((*plane.shape[:2], len(plant.reach)))
    points[..., shown] = plane
    for ax, (title, field, value, level) in zip(axes, sides, strict=True):
        simulated = control.reached(field, plant.domain, points)
        control.regions(ax, plane, simulated, control.values(value, points), level)
        ax.set_title(title, fontsize=10)
        ax.set_xlabel(labels[0])
    axes[0].set_ylabel(labels[1])
    figure.suptitle(f"{task.title}: proved (red) and simulated (blue) regions, all other states 0")
    figure.savefig(path, dpi=80)


def job(task):
    """The whole job."""
    plant, kappa = task.plant, task.kappa
    options = control.options(
        f"A proved region of attraction: {task.title}.",
        rounds=6,
        steps=(3000, "of training in each round"),
        growth=(task.growth, "how much the size of the set counts"),
    )

    n = len(plant.reach)
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as other:
        rays = control.directions(n, 100 * n), control.directions(n, 1000 * n)
        comparison = other.submit(control.regulators, plant, task.designs, kappa, task.prover, *rays, 200)
        gain, form = plant.riccati(*task.designs[0])
        level = control.largest(form, plant.velocity(gain), plant.reach, task.trained, rays[1])
        policy, potential = task.begin(gain, form / (task.shrunk * level), jax.random.key(options.seed))
        led = learn(task, policy, potential, options)
        control.say(str(led.verification))
        best, limit = comparison.result()
    found, potential, field = led.verification, control.learned(led.program), control.field_of(led.program)
    strongest, others, table = control.compared(best)
    volume, doubt = estimated(potential, plant.reach) if found.proof is not None else (0.0, 0.0)
    figures = {
        "neural": {"proved volume": volume, "three standard errors of it": doubt},
        "regulator": {"proved volume": strongest["volume"]},
        "ratio": volume / strongest["volume"],
        "the same, of the largest volume at the points tried": volume / limit,
        "best by V": table,
    }
    claims = {
        "neural controller: {V <= 1} is a region of attraction": control.claim(found),
        **others,
        "volume of {V <= 1}": {"status": "STATISTICAL", "reason": None},
        "simulated regions": {"status": "EMPIRICAL", "reason": None},
    }
    settings = {
        "limit": plant.limit.tolist(),
        "domain": plant.reach.tolist(),
        "kappa": kappa,
        "seed": options.seed,
        "rounds": control.rounds(led.history),
    }
    sides = (
        (f"neural controller and V: volume {volume:.3g}", field, potential, 1.0),
        (f"best clipped LQR: volume {strongest['volume']:.3g}", *plant.regulated(strongest), strongest["level"]),
    )
    draw(options.out / f"{task.name}.png", task, sides)
    control.write(options.out, task.name, claims, settings, figures)
    print(f"proved volume {volume:.4g} against {strongest['volume']:.4g}: {figures['ratio']:.2f} times")
