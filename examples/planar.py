"""Two classes of points in the plane: an MLP, a Neural ODE and LyaNet of one size, and the pictures of the paper.

    python examples/planar.py --out out

The data is scikit-learn's two moons, 500 points for training and 500 for testing. The state is the two logits, so that
the dynamics can be drawn as they are. Writes `results.json` and five pictures into the folder given by `--out`:
`planar.png` (decision boundaries), `level_sets.png`, `phase_portrait.png`, `potential.png` and `error.png`; prints one
table.
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
from sklearn.datasets import make_moons

import lyapunov_dsl as ld

KAPPA = 2
# `radius_for` refuses two classes: on the cube of eq. 49 no state is much better than the promised V(1) = 0.094. In this
# box V reaches 0.0025.
HALF_WIDTH = 3
STOP = 0.25
ZOOMED_OUT = 7
COLORS = {"MLP": "#555555", "Neural ODE": "#1f5fa8", "LyaNet": "#b3261e"}


class Input(eqx.Module):
    """η(0) = 0, and the field sees the point."""

    def __call__(self, x):
        return ld.Start(state=jnp.zeros(2, x.dtype), context=x)


class Layers(eqx.Module):
    """A perceptron as the one step of a discrete system."""

    mlp: eqx.nn.MLP

    def __call__(self, state, context):
        return self.mlp(state)


def make_flow(key):
    """The Neural ODE and LyaNet: a dense field that keeps the box H invariant."""
    field = ld.nn.InvariantField(ld.nn.MLPField(2, 2, width=32, key=key), HALF_WIDTH, rate=8)
    return ld.System(input=Input(), vector_field=field, domain=ld.Box(-HALF_WIDTH, HALF_WIDTH))


def make_mlp(key):
    """A perceptron with about as many parameters."""
    return ld.DiscreteSystem(steps=[Layers(eqx.nn.MLP(2, 2, 33, 2, activation=jnp.tanh, key=key))])


METHODS = {
    "MLP": (make_mlp, ld.EndToEnd()),
    "Neural ODE": (make_flow, ld.EndToEnd()),
    "LyaNet": (make_flow, ld.MonteCarlo(ld.Trajectory(8, 8))),
}


def load(seed):
    """Training and test data, 500 points each; the moons overlap."""
    x, y = make_moons(1000, noise=0.25, random_state=seed)
    x, y = np.asarray(x, np.float32), np.asarray(y, np.int32)
    return (x[:500], y[:500]), (x[500:], y[500:])


def smoothness(program, x):
    """How the probability of class 1 changes over the square around the data that the picture shows."""
    low, high = x.min(axis=0), x.max(axis=0)
    side = 0.58 * (high - low).max() * np.linspace(-1, 1, 101, dtype=np.float32)
    points = (low + high) / 2 + np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
    probability = lambda points: jax.nn.softmax(program.predict(points))[:, 1]
    # One gradient of the sum is the gradient at every point: no prediction depends on another's input.
    slope = jnp.linalg.norm(jax.jit(jax.grad(lambda points: probability(points).sum()))(points), axis=-1)
    undecided = jnp.abs(probability(points) - 0.5) < 0.4
    return {"mean slope": float(slope.mean()), "max slope": float(slope.max()), "undecided": float(undecided.mean())}


def evaluate(program, train, test):
    """Every figure of the table that is not about training."""
    logits = program.predict(test[0])
    losses = jax.vmap(ld.cross_entropy)(logits, jnp.asarray(test[1]))
    row = {"train error": program.error(*train), "test error": program.error(*test)}
    if isinstance(program.system, ld.System):
        row[f"error t={STOP}"] = program.error(*test, stop=STOP)
    return {**row, "test loss": float(losses.mean()), **smoothness(program, train[0])}


def print_table(rows):
    """One line a method."""
    shares = ("train error", "test error", f"error t={STOP}", "undecided")
    columns = list(rows["LyaNet"])
    widths = [max(len(c), 8) for c in columns]
    print(" " * 12 + "  ".join(c.rjust(w) for c, w in zip(columns, widths, strict=True)))
    for name, row in rows.items():
        cells = []
        for column, width in zip(columns, widths, strict=True):
            # The MLP has no time to stop at.
            value = row.get(column, float("nan"))
            text = f"{100 * value:.1f} %" if column in shares else f"{value:,}" if value > 999 else f"{value:.3g}"
            cells.append(text.rjust(width) if column in row else "-".rjust(width))
        print(name.ljust(12) + "  ".join(cells))
    print("slope: of the probability of class 1 over the picture; undecided: the share of it between 10 and 90 %")


def draw_boundaries(programs, rows, train, path):
    """Figure 4: close up and zoomed out."""
    import matplotlib.pyplot as plt

    import lyapunov_dsl.plot as plot

    figure, axes = plt.subplots(2, 3, figsize=(10.4, 6.6), layout="compressed")
    grounds = []
    for column, (name, program) in zip(axes.T, programs.items(), strict=True):
        grounds.append(plot.decision_boundary(program.predict, *train, axes=column[0]))
        plot.decision_boundary(program.predict, *train, axes=column[1], extent=ZOOMED_OUT)
        column[0].set_title(f"{name}, test error {100 * rows[name]['test error']:.1f} %")
    axes[0, 0].set_ylabel("around the data")
    axes[1, 0].set_ylabel("zoomed out")
    figure.colorbar(grounds[0], ax=axes, shrink=0.6, aspect=30, label="probability of the red class")
    figure.savefig(path, dpi=80)


def draw_dynamics(programs, x, y, out):
    """Figures 1 and 2 for one test point; the axes are the two logits."""
    import matplotlib.pyplot as plt

    import lyapunov_dsl.plot as plot

    # A point that both decide rightly, but not easily: at the 90 % quantile of the worse of their two losses.
    logits = np.stack([np.asarray(program.predict(x)) for program in programs.values()])
    losses = jax.vmap(jax.vmap(ld.cross_entropy, (0, 0)), (0, None))(jnp.asarray(logits), jnp.asarray(y))
    worse = np.where((logits.argmax(-1) == y).all(0), np.asarray(losses).max(0), -1)
    hard = int(np.argsort(worse)[int(0.9 * len(worse))])
    right = int(y[hard])

    def compare(drawing, title, **options):
        figure, axes = plt.subplots(1, 2, figsize=(10.4, 5.2), layout="compressed")
        grounds = []
        for ax, (name, program) in zip(axes, programs.items(), strict=True):
            grounds.append(drawing(program, x[hard], y[hard], axes=ax, **options))
            ax.set_title(name)
            ax.set_xlabel("logit of class 0 (right)" if right == 0 else "logit of class 0")
            ax.set_ylabel("logit of class 1 (right)" if right == 1 else "logit of class 1")
        axes[0].legend(loc="lower left", fontsize=9)
        figure.suptitle(title, fontsize=11)
        return figure, axes, grounds[0]

    figure, _, _ = compare(plot.phase_portrait, "Dynamics for one test point; red ground: the readout is right")
    figure.savefig(out / "phase_portrait.png", dpi=80)

    title = f"Level sets of the cross entropy V for one test point; red arrows: dV/dt ≤ -{KAPPA} V is violated"
    figure, axes, ground = compare(plot.level_sets, title, vmax=4)
    label = f"violation max(0, dV/dt + {KAPPA} V)"
    figure.colorbar(ground, ax=axes, shrink=0.8, aspect=30, extend="max", label=label)
    figure.savefig(out / "level_sets.png", dpi=80)


def draw_time(programs, mlp_error, x, y, out):
    """Figure 3: the potential while inference runs, and the error if it stopped."""
    import matplotlib.pyplot as plt

    import lyapunov_dsl.plot as plot

    figure, ax = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
    for name, program in programs.items():
        last = name == "LyaNet"
        plot.potential_over_time(program, x, y, axes=ax, label=name, color=COLORS[name], promise=last)
    ax.set_title(f"Cross entropy while inference runs (median and 90 % of the test points), κ = {KAPPA}", fontsize=10)
    ax.legend()
    figure.savefig(out / "potential.png", dpi=110)

    figure, ax = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
    for name, program in programs.items():
        plot.error_over_time(program, x, y, axes=ax, label=name, color=COLORS[name], confidence=0.95)
    ax.axhline(mlp_error, color=COLORS["MLP"], linestyle=":", label="MLP (it has no time)")
    ax.set_ylim(bottom=0)
    ax.set_title("Test error if inference stopped early, with 95 % intervals", fontsize=10)
    ax.legend()
    figure.savefig(out / "error.png", dpi=110)


def main():
    parser = argparse.ArgumentParser(description="Two moons: an MLP, a Neural ODE and LyaNet.")
    parser.add_argument("--out", type=folder, default="out", help="folder for results.json and the pictures")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    mpl.use("Agg")

    train, test = load(options.seed)
    init_key, fit_key = jax.random.split(jax.random.key(options.seed))
    certificate = ld.Certificate.exponential(loss=ld.cross_entropy, kappa=KAPPA)
    optimizer = optax.adam(optax.cosine_decay_schedule(4e-3, options.epochs * (len(train[1]) // 64)))
    programs, rows = {}, {}
    for name, (make_system, objective) in METHODS.items():
        program = ld.compile(
            make_system(init_key), certificate, example=(train[0][0], train[1][0]), objective=objective
        )
        print(f"{name}:")
        began = time.perf_counter()
        program = ld.fit(program, train, optimizer=optimizer, epochs=options.epochs, key=fit_key).program
        seconds = time.perf_counter() - began
        programs[name] = program
        parameters = sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(program, ld.trainable(program))))
        rows[name] = {"parameters": parameters, "seconds": seconds, **evaluate(program, train, test)}
    print()
    print_table(rows)
    settings = {"epochs": options.epochs, "seed": options.seed, "kappa": KAPPA, "test points": len(test[1])}
    versions = {"lyapunov_dsl": ld.__version__, "jax": jax.__version__, "machine": platform.machine()}
    text = json.dumps({"settings": settings, "versions": versions, "results": rows}, indent=2)
    (options.out / "results.json").write_text(text + "\n")

    draw_boundaries(programs, rows, train, options.out / "planar.png")
    flows = {name: programs[name] for name in ("Neural ODE", "LyaNet")}
    draw_dynamics(flows, *test, options.out)
    draw_time(flows, rows["MLP"]["test error"], *test, options.out)
    print(f"\nwrote results.json and five pictures, planar.png first, to {options.out}")


if __name__ == "__main__":
    main()
