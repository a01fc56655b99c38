"""MNIST, one network trained by Monte Carlo LyaNet and end to end.

    python examples/mnist.py --data-dir DIR --out out

DIR is a folder of TensorFlow Datasets, or an `.npz` in the layout of Keras; without it the default folder of TensorFlow
Datasets is used, and MNIST downloaded there where TensorFlow is installed. Needs `pip install -e '.[examples,data]'`. A run
that was ended goes on when the same command is given again. Writes `results.json`, `error.png`, `potential.png` and one folder
with a checkpoint and metrics for each method, and prints one table.
"""

import argparse
import json
import platform
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import optax

import lyapunov_dsl as ld
from lyapunov_dsl import data

BATCH = 128
METHODS = {
    "Monte Carlo": ld.MonteCarlo(),
    "path integral": ld.PathIntegral(),
    "end to end": ld.EndToEnd(),
}


class Encoder(eqx.Module):
    """η(0) = 0, and what the field may know of the image: three convolutions (28 -> 14 -> 7 -> 7) and a dense layer."""

    convolutions: list[eqx.nn.Conv2d]
    dense: eqx.nn.Linear
    state: int

    def __init__(self, state, features, *, key):
        k1, k2, k3, k4 = jax.random.split(key, 4)
        self.convolutions = [
            eqx.nn.Conv2d(1, 32, 5, stride=2, padding=2, key=k1),
            eqx.nn.Conv2d(32, 64, 3, stride=2, padding=1, key=k2),
            eqx.nn.Conv2d(64, 64, 3, padding=1, key=k3),
        ]
        self.dense = eqx.nn.Linear(64 * 7 * 7, features, key=k4)
        self.state = state

    def __call__(self, image):
        hidden = image
        for convolution in self.convolutions:
            hidden = jax.nn.relu(convolution(hidden))
        context = jax.nn.relu(self.dense(jnp.ravel(hidden)))
        return ld.Start(state=jnp.zeros(self.state, image.dtype), context=context)


def make_system(readout, kappa, key):
    """The network: an encoder, a dense field that keeps the cube H invariant, and a readout.

    With the identity the state is the ten logits, and H is twice the half-width of eq. 49, so that it has room below the
    promised V(1). With a linear readout the state has 16 numbers and nothing derives H: it is declared.
    """
    encoder_key, field_key, readout_key = jax.random.split(key, 3)
    if readout == "identity":
        size, half_width = 10, 2 * ld.radius_for(ld.cross_entropy, kappa, classes=10)
        decode = ld.identity
    else:
        size, half_width = 16, 3.0
        decode = eqx.nn.Linear(size, 10, key=readout_key)
    return ld.System(
        input=Encoder(size, 128, key=encoder_key),
        vector_field=ld.nn.InvariantField(ld.nn.MLPField(size, 128, width=64, key=field_key), half_width, rate=8),
        readout=decode,
        domain=ld.Box(-half_width, half_width),
    )


def floats(pair, count=None):
    """The first images, as numbers in [0, 1], and their classes."""
    x, y = pair
    return (x[:count] / np.float32(255)).astype(np.float32), y[:count]


def evaluate(program, x, y, key):
    """Every figure of the table that is not about training."""
    report = program.certify(x, y, key=key)
    return {
        "test error": program.error(x, y),
        "violations": report.claims["exponential.violation"].value,
        "keeps promise": report.claims["exponential.decay"].value,
        "leaves H": report.claims["domain.left"].value,
    }


def print_table(rows):
    """One line a method; shares in per cent."""
    columns = [column for column in next(iter(rows.values())) if column != "history"]
    widths = [max(len(column), 8) for column in columns]
    print(" " * 14 + "  ".join(c.rjust(w) for c, w in zip(columns, widths, strict=True)))
    for name, row in rows.items():
        shares = [column not in ("seconds", "ms/step") for column in columns]
        cells = [
            f"{100 * row[c]:.2f} %" if share else f"{row[c]:.1f}" for c, share in zip(columns, shares, strict=True)
        ]
        print(name.ljust(14) + "  ".join(cell.rjust(w) for cell, w in zip(cells, widths, strict=True)))


def draw(programs, x, y, kappa, out):
    """The error if inference stops early and the potential against time, as in the paper's Figure 3."""
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    import lyapunov_dsl.plot as plot

    colors = {"Monte Carlo": "#b3261e", "path integral": "#e08a00", "end to end": "#1f5fa8"}
    figures, axes = zip(*[plt.subplots(figsize=(6.4, 4.4), layout="constrained") for _ in range(2)], strict=True)
    for i, (name, program) in enumerate(programs.items()):
        style = {"label": name, "color": colors[name]}
        plot.error_over_time(program, x, y, axes=axes[0], points=16, confidence=0.95, **style)
        plot.potential_over_time(program, x, y, axes=axes[1], promise=i == len(programs) - 1, **style)
    axes[0].set_ylim(bottom=0)
    axes[0].set_title(f"Test error if inference stops at t, with 95 % intervals, κ = {kappa:g}", fontsize=10)
    axes[1].set_title(f"Cross entropy while inference runs (median and 90 % of the images), κ = {kappa:g}", fontsize=10)
    for figure, ax, name in zip(figures, axes, ("error.png", "potential.png"), strict=True):
        ax.legend()
        figure.savefig(out / name, dpi=110)


def main():
    parser = argparse.ArgumentParser(description="One network on MNIST, trained with and without a solver.")
    parser.add_argument("--data-dir", type=Path, help="a folder of TensorFlow Datasets or an .npz file")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for everything that is written")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--kappa", type=float, default=2.0)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["Monte Carlo", "end to end"])
    parser.add_argument("--readout", choices=["identity", "linear"], default="identity")
    parser.add_argument("--train-size", type=int, help="train on the first so many images only, for a quick look")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    try:
        dataset = data.load("mnist", options.data_dir)
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"mnist.py: {error}")
    train, test = floats(dataset.train, options.train_size), floats(dataset.test)
    options.out.mkdir(parents=True, exist_ok=True)

    init_key, fit_key, test_key = jax.random.split(jax.random.key(options.seed), 3)
    certificate = ld.Certificate.exponential(loss=ld.cross_entropy, kappa=options.kappa)
    per_epoch = max(1, len(train[1]) // BATCH)
    optimizer = optax.adam(optax.cosine_onecycle_schedule(options.epochs * per_epoch, 3e-3, pct_start=0.1))
    programs, rows = {}, {}
    for name in options.methods:
        system = make_system(options.readout, options.kappa, init_key)
        program = ld.compile(system, certificate, example=(train[0][0], train[1][0]), objective=METHODS[name])
        if not programs:
            print(program, end="\n\n")
        print(f"{name}:")
        folder = options.out / name.replace(" ", "_")
        result = ld.fit(
            program, train, optimizer=optimizer, epochs=options.epochs, batch_size=BATCH, key=fit_key, folder=folder
        )
        programs[name] = result.program
        # The first epoch compiles; the median of the others is the time of a step.
        seconds = [epoch["seconds"] for epoch in result.history]
        per_step = np.median(seconds[1:] or seconds) / per_epoch
        training = {"ms/step": 1e3 * per_step, "seconds": sum(seconds), "history": result.history}
        rows[name] = {**evaluate(result.program, *test, test_key), **training}
    print()
    print_table(rows)
    shown = {k: v for k, v in vars(options).items() if k not in ("data_dir", "out")}
    settings = {**shown, "batch": BATCH, "training images": len(train[1]), "test images": len(test[1])}
    versions = {"lyapunov_dsl": ld.__version__, "jax": jax.__version__, "machine": platform.machine()}
    text = json.dumps({"settings": settings, "versions": versions, "results": rows}, indent=2)
    (options.out / "results.json").write_text(text + "\n")
    draw(programs, *test, options.kappa, options.out)
    print(f"\nwrote results.json, error.png and potential.png to {options.out}")


if __name__ == "__main__":
    main()
