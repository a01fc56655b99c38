"""A stable vector field from demonstrations: how a pen writes an S, and a proof that it ends where it should from a whole region.

    python examples/planar_stable_dynamics.py --out out

Positions and velocities along a few strokes are given. A field learned from them alone (regression) does as it likes elsewhere. Here the
field is learned together with a V of its own: where V <= 1, a set that holds all strokes, V falls, and it is proved that from everywhere
in that set the field leads to the end of the stroke. Writes `results.json`, `planar_stable_dynamics.png` and the proof for
`python -m lyapunov_checker`.
"""

from typing import Any

import _control as control
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import lyapunov_dsl as ld

REACH = np.array([2.5, 2.0])
DOMAIN = ld.Box(-REACH, REACH)
KAPPA = 0.05
PROVER = ld.Prover(boxes=300_000)


def strokes(count=5, times=200, last=5.0):
    """Positions and velocities, float[count, times, 2] each: strokes from the left that wind to the origin."""
    t = np.linspace(0, last, times)

    def place(t, angle):
        u = jnp.exp(-t)
        x, y = -1.9 * u, 1.6 * u * jnp.sin(4.5 * (1 - u))
        c, q = jnp.cos(angle), jnp.sin(angle)
        return jnp.stack([c * x - q * y, q * x + c * y])

    angles = np.linspace(-0.25, 0.25, count)
    each = lambda f: jax.vmap(jax.vmap(f, (0, None)), (None, 0))(jnp.asarray(t), jnp.asarray(angles))
    return [np.asarray(each(f)) for f in (place, jax.jacfwd(place))]


class Field(eqx.Module):
    """Without biases it is exactly 0 at the origin, where the strokes end."""

    network: eqx.nn.MLP

    def __call__(self, t, s, context):
        return self.network(s)


class Imitation(ld.Objective):
    """The squared distance between the field and the velocities of the strokes."""

    def check(self, condition, start):
        pass

    def __call__(self, condition, x, y, *, key):
        found = jax.vmap(lambda s: condition.continuous.velocity(jnp.zeros(()), s, None))(x)
        return jnp.mean(jnp.sum((found - y) ** 2, axis=-1))


def begin(key):
    one, two = jax.random.split(key)
    field = Field(eqx.nn.MLP(2, 2, 32, 2, jnp.tanh, use_bias=False, use_final_bias=False, key=one))
    network = eqx.nn.MLP(2, 8, 32, 1, jnp.tanh, use_bias=False, use_final_bias=False, key=two)
    return field, ld.nn.PositivePotential(network, 2, margin=0.05)


def learn(data, options):
    """A program whose certificate is proved at the level 1, or what is left of it; and a field of regression alone."""
    key = jax.random.key(options.seed)
    field, potential = begin(key)
    certificate = ld.Certificate.exponential(potential, 4 * KAPPA)
    rows = np.pad(np.asarray(data[0]), ((0, 0), (1, 0)))
    objective = Imitation() + ld.Sublevel(1.0, ld.Boxes(rows, rows, 256), ld.Boundary(256))
    objective = objective + control.residuals(2, 3, 512)
    make = lambda objective: ld.compile(
        ld.System(vector_field=field, domain=DOMAIN),
        certificate,
        example=(jnp.zeros(2), jnp.zeros(2)),
        objective=objective,
    )
    how: Any = {
        "optimizer": optax.adam(optax.cosine_decay_schedule(5e-3, options.epochs * (len(data[0]) // 100), 0.02)),
        "epochs": options.epochs,
        "batch_size": 100,
        "steps_per_dispatch": 8,
        "progress": False,
    }
    plain = ld.fit(make(Imitation()), data, key=key, **how).program
    control.say("regression alone")
    led = ld.synthesize(
        make(objective),
        data,
        key=key,
        rounds=options.rounds,
        weight=2.0,
        **control.asked(KAPPA, 2, PROVER),
        **how,
    )
    return led, plain


def retraced(field, places, last=5.0):
    """The largest distance at any time between strokes and what the field makes of their beginnings."""
    count = places.shape[1] - 1
    far, states = [], jnp.asarray(places[:, 0])
    for i in range(1, count + 1):
        states, _ = control.simulate(field, states, seconds=last / count, dt=last / count)
        far.append(np.linalg.norm(np.asarray(states) - places[:, i], axis=-1).max())
    return float(np.max(far))


def draw(path, places, sides, potential):
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10.5, 4.6), layout="compressed", sharey=True)
    points = control.grid(-REACH, REACH, 161)
    x, y = points[..., 0], points[..., 1]
    for ax, (title, field) in zip(axes, sides.items(), strict=True):
        ax.contourf(x, y, control.reached(field, DOMAIN, points), levels=[0.5, 1.5], colors=["#cfe0f3"])
        control.stream(ax, field, points[::8, ::8])
        for stroke in places:
            ax.plot(*stroke.T, color="#1f5fa8", linewidth=1.5)
        ax.plot(0, 0, "o", color="black")
        ax.set_title(title, fontsize=10)
        ax.set_xlabel("s₁")
    v = control.values(potential, points)
    axes[1].contour(x, y, v, levels=[0.1, 0.3, 0.6], colors=["#b3261e"], linewidths=0.8)
    axes[1].contour(x, y, v, levels=[1.0], colors=["#b3261e"], linewidths=2.2)
    axes[0].set_ylabel("s₂")
    figure.suptitle("Strokes (blue lines), what simulation leads to their end (blue), V <= 1 (red)")
    figure.savefig(path, dpi=72)


def main():
    options = control.options(
        "A provably stable field from demonstrations.", rounds=4, epochs=(400, "of training in each round")
    )
    places, velocities = strokes()
    data = tuple(jnp.asarray(v.reshape(-1, 2), jnp.float32) for v in (places, velocities))
    led, plain = learn(data, options)
    found, potential, field = led.verification, control.learned(led.program), control.field_of(led.program)
    control.say(str(found))
    fine = control.grid(-REACH, REACH, 1001)
    size = float(np.prod(2 * REACH))
    inside = control.values(potential, fine) <= 1
    held = bool((control.values(potential, places) < 1).all())
    coarse = control.grid(-REACH, REACH, 161)
    fields = {"regression alone": control.field_of(plain), "with a certificate": field}
    figures: dict[str, Any] = {
        name: {
            "simulated area": float(control.reached(f, DOMAIN, coarse).mean() * size),
            "largest distance from a stroke": retraced(f, places),
        }
        for name, f in fields.items()
    }
    figures["proved area"] = float(inside.mean() * size) if found.proof is not None else 0.0
    figures["all strokes are in V <= 1"] = held
    figures["file"] = control.saved(found, options.out / "proof.npz")
    claims = {
        "from everywhere in {V <= 1} the field leads to the end of the strokes": control.claim(found),
        "all strokes are in {V <= 1}, at the points given": {
            "status": "EMPIRICAL" if held else "REFUTED",
            "reason": None if held else "V is above 1 at a point of a stroke",
        },
        "simulated regions": {"status": "EMPIRICAL", "reason": None},
    }
    settings = {"kappa": KAPPA, "seed": options.seed, "rounds": control.rounds(led.history)}
    draw(options.out / "planar_stable_dynamics.png", places, fields, potential)
    control.write(options.out, "planar_stable_dynamics", claims, settings, figures)
    print(f"proved area {figures['proved area']:.2f}")


if __name__ == "__main__":
    main()
