"""Handwritten digits, one network trained three ways: Monte Carlo LyaNet, path integral, end to end.

    python examples/digits.py --out out

The data (1,797 images of 8 x 8 pixels) comes with scikit-learn. Writes `results.json` and four pictures into the
folder given by `--out`, `phase_portrait.png`, `level_sets.png`, `potential.png` and `error.png`, and prints one table.
"""

import argparse
import json
import platform
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import optax
from _folder import folder
from sklearn.datasets import load_digits
from sklearn.model_selection import StratifiedKFold

import lyapunov_dsl as ld

KAPPA = 2
STOPS = (0.25, 0.5, 0.75)


class Encoder(eqx.Module):
    """η(0) = 0, and what the field may know of the image."""

    convolutions: ld.nn.ConvEncoder

    def __call__(self, image):
        return ld.Start(state=jnp.zeros(10, image.dtype), context=self.convolutions(image))


def make_system(key):
    """The network: a small convolutional encoder and a dense field that keeps the cube H invariant."""
    encoder_key, field_key = jax.random.split(key)
    # Twice the half-width of eq. 49, so that H has room below the promised V(1).
    half_width = 2 * ld.radius_for(ld.cross_entropy, KAPPA, classes=10)
    field = ld.nn.InvariantField(ld.nn.MLPField(10, 64, width=64, key=field_key), half_width, rate=8)
    return ld.System(
        input=Encoder(ld.nn.ConvEncoder((1, 8, 8), 64, key=encoder_key)),
        vector_field=field,
        domain=ld.Box(-half_width, half_width),
    )


METHODS = {
    "Monte Carlo": ld.MonteCarlo(),
    "path integral": ld.PathIntegral(),
    "end to end": ld.EndToEnd(),
}


def load(seed):
    """A stratified split: 72 % for training, 8 % for validation, 20 % for testing. Pixels in [0, 1]."""
    pixels, labels = load_digits(return_X_y=True)
    x, y = (pixels / 16).astype(np.float32).reshape(-1, 1, 8, 8), labels.astype(np.int32)
    rest, test = next(StratifiedKFold(5, shuffle=True, random_state=seed).split(x, y))
    train, held = next(StratifiedKFold(10, shuffle=True, random_state=seed).split(x[rest], y[rest]))
    return (x[rest[train]], y[rest[train]]), (x[rest[held]], y[rest[held]]), (x[test], y[test])


def attack_error(program, x, y, radius, norm, key):
    """The share of test images decided wrongly after the paper's PGD (10 steps of 2/255)."""
    attacked = ld.attacks.pgd(program.predict, x, y, radius=radius, norm=norm, key=key)
    return program.error(np.asarray(attacked), y)


def evaluate(program, x, y, key):
    """Every figure of the table that is not about training."""
    report = ld.assess(program, (x, y), key=key)
    return {
        "test error": program.error(x, y),
        "PGD Linf 8/255": attack_error(program, x, y, 8 / 255, "inf", key),
        "PGD L2 127/255": attack_error(program, x, y, 127 / 255, "2", key),
        "violations": report.claims["exponential.violation"].value,
        "keeps promise": report.claims["exponential.decay"].value,
        "leaves H": report.claims["domain.left"].value,
        **{f"error t={t}": program.error(x, y, stop=t) for t in STOPS},
    }


def print_table(rows):
    """One line a method; shares in per cent."""
    columns = list(next(iter(rows.values())))
    widths = [max(len(c), 8) for c in columns]
    print(" " * 14 + "  ".join(c.rjust(w) for c, w in zip(columns, widths, strict=True)))
    for name, row in rows.items():
        cells = []
        for column, width in zip(columns, widths, strict=True):
            training = column in ("seconds", "ms/step")
            cells.append((f"{row[column]:.2f}" if training else f"{100 * row[column]:.2f} %").rjust(width))
        print(name.ljust(14) + "  ".join(cells))


def draw_dynamics(programs, x, y, out):
    """Figures 1 and 2 of the paper: the dynamics for one image, and where they keep the condition."""
    import matplotlib.pyplot as plt

    import lyapunov_dsl.plot as plot

    # An image that both decide rightly, but not easily: at the 90 % quantile of the worse of their two losses.
    pair = {"end to end": "Neural ODE, end to end", "Monte Carlo": "LyaNet, Monte Carlo"}
    logits = np.stack([np.asarray(programs[name].predict(x)) for name in pair])
    order = np.argsort(logits[0], axis=-1)
    losses = jax.vmap(jax.vmap(ld.cross_entropy, (0, 0)), (0, None))(jnp.asarray(logits), jnp.asarray(y))
    worse = np.where((logits.argmax(-1) == y).all(0), np.asarray(losses).max(0), -1)
    hard = int(np.argsort(worse)[int(0.9 * len(worse))])
    right, rival = int(y[hard]), int(order[hard, -2])
    plane = plot.class_plane(10, right, rival)

    def compare(drawing, title, **options):
        figure, axes = plt.subplots(1, 2, figsize=(11, 4.8), layout="compressed")
        grounds = []
        for ax, name in zip(axes, pair, strict=True):
            grounds.append(drawing(programs[name], x[hard], y[hard], axes=ax, plane=plane, **options))
            ax.set_title(pair[name])
            ax.set_xlabel(f"towards class {right} (right)")
            ax.set_ylabel(f"towards class {rival}")
        axes[0].legend(loc="lower left", fontsize=9)
        figure.suptitle(title, fontsize=11)
        return figure, axes, grounds[0]

    figure, _, _ = compare(plot.phase_portrait, "Dynamics for one test image; red ground: the readout is right")
    figure.savefig(out / "phase_portrait.png", dpi=75)

    title = f"Level sets of the cross entropy V for one test image; red arrows: dV/dt ≤ -{KAPPA} V is violated"
    figure, axes, ground = compare(plot.level_sets, title, vmax=2)
    label = f"violation max(0, dV/dt + {KAPPA} V)"
    figure.colorbar(ground, ax=axes, shrink=0.8, aspect=30, extend="max", label=label)
    figure.savefig(out / "level_sets.png", dpi=75)


def draw_time(programs, x, y, out):
    """Figure 3 of the paper: the potential while inference runs, and the error if it stopped."""
    import matplotlib.pyplot as plt

    import lyapunov_dsl.plot as plot

    colors = {"Monte Carlo": "#b3261e", "path integral": "#e08a00", "end to end": "#1f5fa8"}
    figure, ax = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
    for i, (name, program) in enumerate(programs.items()):
        last = i == len(programs) - 1
        plot.potential_over_time(program, x, y, axes=ax, label=name, color=colors[name], promise=last)
    ax.set_title(f"Cross entropy while inference runs (median and 90 % of the test images), κ = {KAPPA}", fontsize=10)
    ax.legend()
    figure.savefig(out / "potential.png", dpi=110)

    figure, ax = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
    for name, program in programs.items():
        plot.error_over_time(program, x, y, axes=ax, label=name, color=colors[name], confidence=0.95)
    ax.set_ylim(bottom=0)
    ax.set_title("Test error if inference stopped early, with 95 % intervals", fontsize=10)
    ax.legend()
    figure.savefig(out / "error.png", dpi=110)


def main():
    parser = argparse.ArgumentParser(description="One network on handwritten digits, trained three ways.")
    parser.add_argument("--out", type=folder, default="out", help="folder for results.json and the pictures")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    mpl.use("Agg")

    train, held_out, test = load(options.seed)
    init_key, fit_key, test_key = jax.random.split(jax.random.key(options.seed), 3)
    certificate = ld.Certificate.exponential(loss=ld.cross_entropy, kappa=KAPPA)
    steps = options.epochs * (len(train[1]) // 64)
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, steps))
    programs, rows = {}, {}
    for name, objective in METHODS.items():
        program = ld.compile(
            make_system(init_key), certificate, example=(train[0][0], train[1][0]), objective=objective
        )
        if not programs:
            print(program, end="\n\n")
        print(f"{name}:")
        began = time.perf_counter()
        result = ld.fit(program, train, validation=held_out, optimizer=optimizer, epochs=options.epochs, key=fit_key)
        seconds = time.perf_counter() - began
        programs[name] = result.program
        # The first epoch compiles; the median of the others is the time of a step.
        per_epoch = np.median([h["seconds"] for h in result.history[1:] or result.history])
        training = {"seconds": seconds, "ms/step": 1e3 * per_epoch * options.epochs / result.history[-1]["step"]}
        rows[name] = {**evaluate(result.program, *test, test_key), **training}
    print()
    print_table(rows)
    settings = {"epochs": options.epochs, "seed": options.seed, "kappa": KAPPA, "test images": len(test[1])}
    versions = {"lyapunov_dsl": ld.__version__, "jax": jax.__version__, "machine": platform.machine()}
    text = json.dumps({"settings": settings, "versions": versions, "results": rows}, indent=2)
    (options.out / "results.json").write_text(text + "\n")
    draw_dynamics(programs, *test, options.out)
    draw_time(programs, *test, options.out)
    print(f"\nwrote results.json and four pictures, phase_portrait.png first, to {options.out}")


if __name__ == "__main__":
    main()
