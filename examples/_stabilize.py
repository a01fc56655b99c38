"""The job that the segway and the quadrotor share: a neural controller begun as a regulator, and a V that is learned with it, led by
the proof; beside the largest region that is proved for clipped regulators."""

import argparse
import concurrent.futures
import multiprocessing
from pathlib import Path

import _control as control
import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import optax

import lyapunov_dsl as ld


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


def learn(plant, policy, potential, kappa, trained, margin, faces, options, budget):
    """A program whose certificate is proved at the level 1, or what is left of it."""
    zero = jnp.zeros(len(plant.reach))
    outside: ld.Measure = ld.Boundary(512)
    if faces:
        # Where an ellipsoid comes nearest to a face uniform samples of many dimensions are rare.
        middle = np.concatenate([np.diag(plant.reach), -np.diag(plant.reach)])
        rows = np.pad(middle, ((0, 0), (1, 0)))
        outside = ld.Mixture(outside, ld.Boxes(rows, rows, 128))
    inside = ld.Sublevel(1.0, ld.Cube(512), outside, margin=margin, growth=options.growth)
    program = ld.compile(
        plant.loop(policy),
        ld.Certificate.exponential(potential, trained),
        example=(zero, None),
        objective=3 * inside + control.residuals(8, 3, 1024),
    )
    return ld.fit_until_proved(
        program,
        (jnp.zeros((options.steps, len(zero))), None),
        optimizer=optax.adam(optax.cosine_decay_schedule(2e-3, options.steps, 0.03)),
        epochs=1,
        batch_size=1,
        steps_per_dispatch=64,
        rounds=options.rounds,
        weight=8.0,
        key=jax.random.key(options.seed),
        **control.asked(kappa, len(zero), budget),
    )


def estimated(potential, reach, count=1_000_000):
    """The volume of {V <= 1} in the domain, by uniform points, with three standard errors."""
    points = np.random.default_rng(0).uniform(-reach, reach, (count, len(reach)))
    share = float((control.values(potential, points) <= 1).mean())
    size = float(np.prod(2 * reach))
    return share * size, 3 * size * float(np.sqrt(share * (1 - share) / count))


def draw(path, name, plant, sides, axes_of, labels):
    """Both regions in the plane of two states, the others 0."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 5), layout="compressed", sharey=True)
    flat = control.grid(-plant.reach[axes_of], plant.reach[axes_of], 121)
    points = np.zeros((*flat.shape[:2], len(plant.reach)))
    points[..., axes_of] = flat
    x, y = flat[..., 0], flat[..., 1]
    for ax, (title, field, value, level) in zip(axes, sides, strict=True):
        ax.contourf(x, y, control.reached(field, plant.domain, points), levels=[0.5, 1.5], colors=["#cfe0f3"])
        v = control.values(value, points)
        ax.contourf(x, y, v, levels=[-1, level], colors=["#b3261e"], alpha=0.35)
        ax.contour(x, y, v, levels=[level], colors=["#b3261e"], linewidths=2)
        ax.set_title(title, fontsize=10)
        ax.set_xlabel(labels[0])
    axes[0].set_ylabel(labels[1])
    figure.suptitle(f"{name}: proved (red) and simulated (blue) regions, all other states 0")
    figure.savefig(path, dpi=80)


def job(
    name,
    title,
    plant,
    designs,
    begin,
    kappa,
    trained,
    budget,
    axes_of,
    labels,
    margin=0.1,
    growth=0.02,
    shrunk=1.0,
    faces=False,
    steps=3000,
):
    """The whole job; `begin(gain, form, key)` returns the controller and the V that are trained, for the rate `trained`; proved is the
    rate `kappa`. V begins at 1 at `shrunk` of the level of the regulator;
    with `faces`, the middle of each face of the domain is trained to be outside."""
    parser = argparse.ArgumentParser(description=f"A proved region of attraction: {title}.")
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=steps, help="of training in each round")
    parser.add_argument("--rounds", type=int, default=6, help="of training and proof, at most")
    parser.add_argument("--growth", type=float, default=growth, help="how much the size of the set counts")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    mpl.use("Agg")

    n = len(plant.reach)
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as other:
        rays = control.directions(n, 100 * n), control.directions(n, 1000 * n)
        comparison = other.submit(control.regulators, plant, designs, kappa, budget, *rays, 200)
        gain, form = plant.riccati(*designs[0])
        level = control.largest(form, plant.velocity(gain), plant.reach, trained, rays[1])
        policy, potential = begin(gain, form / (shrunk * level), jax.random.key(options.seed))
        led = learn(plant, policy, potential, kappa, trained, margin, faces, options, budget)
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
        "rounds": [[status.name, count] for status, count in led.history],
    }
    regulated = plant.loop(control.Regulator(strongest["gain"], plant.limit)).vector_field
    quadratic = control.Quadratic(ld.Constant(strongest["form"]))
    sides = (
        (f"neural controller and V: volume {volume:.3g}", field, potential, 1.0),
        (f"best clipped LQR: volume {strongest['volume']:.3g}", regulated, quadratic, strongest["level"]),
    )
    draw(options.out / f"{name}.png", title, plant, sides, axes_of, labels)
    control.write(options.out, name, claims, settings, figures)
    print(f"proved volume {volume:.4g} against {strongest['volume']:.4g}: {figures['ratio']:.2f} times")
