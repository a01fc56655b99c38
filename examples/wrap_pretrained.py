"""A report on an Equinox model that was trained elsewhere, without training it.

    python examples/wrap_pretrained.py --out out [--weights model.eqx]

The model is a plain neural ODE classifier, as one writes it with Equinox and Diffrax alone; nothing in its class knows of
this library. Its weights are read from `--weights` (written by `eqx.tree_serialise_leaves`); without that, a stand-in for
"elsewhere" trains it for some seconds by an ordinary loop. Then it is declared, compiled and looked at: prints the
report, and writes `report.txt`, `potential.png` and `model.eqx` into the folder given by `--out`.
"""

import argparse
from pathlib import Path

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import optax
from _folder import folder
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import lyapunov_dsl as ld

# --- Somebody's model -------------------------------------------------------------------------------------------------


class Field(eqx.Module):
    """An autonomous field, with the argument order that diffrax wants."""

    mlp: eqx.nn.MLP

    def __call__(self, t, y, args):
        return self.mlp(y)


class NeuralODE(eqx.Module):
    """64 pixels to 16 numbers, a flow for one unit of time, and 10 logits."""

    embed: eqx.nn.Linear
    field: Field
    head: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        self.embed = eqx.nn.Linear(64, 16, key=keys[0])
        self.field = Field(eqx.nn.MLP(16, 16, 64, 1, activation=jnp.tanh, key=keys[1]))
        self.head = eqx.nn.Linear(16, 10, key=keys[2])

    def __call__(self, pixels):
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(self.field),
            diffrax.Tsit5(),
            t0=0.0,
            t1=1.0,
            dt0=None,
            y0=self.embed(pixels),
            stepsize_controller=diffrax.PIDController(rtol=1e-3, atol=1e-6),
        )
        (state,) = solution.ys  # type: ignore
        return self.head(state)


def train_elsewhere(model, x, y, key, steps=1500):
    """An ordinary loop, which knows of no certificate."""
    optimizer = optax.adam(3e-3)

    @eqx.filter_jit
    def step(model, moments, x, y):
        def loss(model):
            return optax.softmax_cross_entropy_with_integer_labels(jax.vmap(model)(x), y).mean()

        grads = eqx.filter_grad(loss)(model)
        updates, moments = optimizer.update(grads, moments)
        return eqx.apply_updates(model, updates), moments

    moments = optimizer.init(eqx.filter(model, eqx.is_inexact_array))
    for k in jax.random.split(key, steps):
        batch = jax.random.randint(k, (64,), 0, len(y))
        model, moments = step(model, moments, x[batch], y[batch])
    return model


# --- What this library adds -------------------------------------------------------------------------------------------


class Embed(eqx.Module):
    """The input module: a class rather than a closure, so that the layer's arrays belong to the system."""

    layer: eqx.nn.Linear

    def __call__(self, pixels):
        return ld.Start(self.layer(pixels))


def declare(model, x, kappa):
    """The same model as a system: its parts in their places, and the set H that its own trajectories fill."""
    start = Embed(model.embed)
    # Half as far again as the trajectories of some inputs go.
    probe = ld.System(start, model.field, model.head, domain=ld.Box(-1, 1))
    certificate = ld.Certificate.exponential(loss=ld.cross_entropy, kappa=kappa)
    example = (x[0], 0)
    times = diffrax.SaveAt(ts=jnp.linspace(0, 1, 17))
    states = ld.compile(probe, certificate, example).trajectory(x, saveat=times).ys
    reach = 1.5 * float(jnp.abs(states).max())
    return ld.compile(ld.System(start, model.field, model.head, domain=ld.Box(-reach, reach)), certificate, example)


def main():
    parser = argparse.ArgumentParser(description="A report on a neural ODE that was trained elsewhere.")
    parser.add_argument("--out", type=folder, default="out", help="folder for report.txt and potential.png")
    parser.add_argument("--weights", type=Path, help="leaves written by eqx.tree_serialise_leaves")
    parser.add_argument("--kappa", type=float, default=1.0, help="the rate of decay that is asked about")
    options = parser.parse_args()

    pixels, labels = load_digits(return_X_y=True)
    x, y = (pixels / 16).astype(np.float32), labels.astype(np.int32)
    x, test_x, y, test_y = train_test_split(x, y, test_size=0.2, random_state=0, stratify=y)
    init_key, train_key = jax.random.split(jax.random.key(0))
    model = NeuralODE(init_key)
    if options.weights is None:
        model = train_elsewhere(model, jnp.asarray(x), jnp.asarray(y), train_key)
        eqx.tree_serialise_leaves(options.out / "model.eqx", model)
    else:
        model = eqx.tree_deserialise_leaves(options.weights, model)

    program = declare(model, x[:256], options.kappa)
    print(program, end="\n\n")
    difference = jnp.abs(program.predict(test_x) - jax.vmap(model)(test_x)).max()
    print(f"logits of the program and of the model differ by at most {float(difference):.2g}\n")
    report = ld.assess(program, (test_x, test_y), radius=8 / 255)
    print(report)
    (options.out / "report.txt").write_text(f"{report}\n")

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    import lyapunov_dsl.plot as plot

    figure, ax = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
    plot.potential_over_time(program, test_x, test_y, axes=ax, label="trained elsewhere", color="#1f5fa8")
    ax.set_title(f"Cross entropy while inference runs, κ = {options.kappa:g} asked for", fontsize=10)
    ax.legend()
    figure.savefig(options.out / "potential.png", dpi=110)
    print(f"\nwrote report.txt and potential.png to {options.out}")


if __name__ == "__main__":
    main()
