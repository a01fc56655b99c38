"""Which solver settings train the digits as well as the best: test errors of end-to-end and solver-free training.

    python benchmarks/solver_errors.py                 # 5 folds x 2 seeds x every setting, about half an hour on two cores
    python benchmarks/solver_errors.py --quick --out /tmp/errors.json

The digits network with a dense field of width 128, trained with every solver and step that `training_step.py` times.
Two errors are measured: with inference by the solver and step of training ("same steps": the trained network is then a
discrete one, and a single Euler step is a feed-forward network), and with inference by adaptive Tsit5 ("flow": the
differential equation that was declared, which is what `Program.predict` solves by default). The adjoint changes the cost
of a gradient and not what it tends to, so that one training stands for all adjoints of a setting.

Does not time anything, and may run on a busy machine. Writes `docs/results/solver_errors.json`, or the file given by
`--out`.
"""

import argparse
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import common
import diffrax
import jax
import numpy as np
import optax

import lyapunov_dsl as ld

WIDTH = 128
WITHIN = 0.2


class RK4(diffrax.AbstractERK):
    """The classical fourth-order Runge-Kutta method, which diffrax does not have."""

    tableau: ClassVar[diffrax.ButcherTableau] = diffrax.ButcherTableau(
        a_lower=(np.array([0.5]), np.array([0.0, 0.5]), np.array([0.0, 0.0, 1.0])),
        b_sol=np.array([1 / 6, 1 / 3, 1 / 3, 1 / 6]),
        b_error=np.zeros(4),
        c=np.array([0.5, 0.5, 1.0]),
    )
    interpolation_cls: ClassVar[Callable[..., diffrax.AbstractLocalInterpolation]] = (
        diffrax.ThirdOrderHermitePolynomialInterpolation.from_k
    )

    def order(self, terms: Any) -> int:
        return 4


@dataclasses.dataclass(frozen=True)
class Setting:
    """A way to train.

    **Arguments:**

    - `objective`: what is minimized.
    - `inference`: the solver that takes the same steps as training, `None` where that is adaptive Tsit5.
    - `order`: of the solver trained through; 0 for solver-free training.
    """

    objective: ld.Objective
    inference: ld.Solver | None = None
    order: int = 0


METHODS = {
    "Euler": (diffrax.Euler(), 1, (1, 2, 4, 8, 16, 32)),
    "Midpoint": (diffrax.Midpoint(), 2, (4, 8)),
    "Heun": (diffrax.Heun(), 2, (2, 4, 8, 16)),
    "RK4": (RK4(), 4, (2, 4, 8)),
    "Tsit5": (diffrax.Tsit5(), 5, (4, 8)),
}
SOLVER_FREE = {
    "Cube(64)": ld.MonteCarlo(ld.Cube(64)),
    "Sphere(64)": ld.MonteCarlo(ld.Sphere(64)),
    "Sphere(512)": ld.MonteCarlo(ld.Sphere(512)),
    "Trajectory(8)": ld.MonteCarlo(ld.Trajectory(8)),
    "Mixture(Trajectory(8), Cube(64))": ld.MonteCarlo(ld.Mixture(ld.Trajectory(8), ld.Cube(64))),
    "path integral (8)": ld.PathIntegral(8),
}
SETTINGS = {
    **{name: Setting(objective) for name, objective in SOLVER_FREE.items()},
    "Tsit5 adaptive": Setting(ld.EndToEnd(), None, 5),
    "Tsit5 adaptive, one step size": Setting(common.Joint(ld.Solver()), None, 5),
    **{
        f"{name} {steps}": Setting(common.Unrolled(steps, method), ld.Solver(method, dt=1 / steps), order)
        for name, (method, order, counts) in METHODS.items()
        for steps in counts
    },
}
QUICK = ("Trajectory(8)", "Tsit5 adaptive, one step size", "Euler 8")


def wrong(setting: Setting, x: Any, y: Any, splits: Any, options: Any) -> dict[str, np.ndarray]:
    """For every seed and image, whether it was classified wrongly when it was in the test fold."""
    per_epoch = min(len(train) for train, _ in splits) // common.BATCH
    optimizer = optax.adam(optax.cosine_decay_schedule(options.rate, options.epochs * per_epoch))
    out = {kind: np.zeros((options.seeds, len(y)), bool) for kind in ("same steps", "flow")}
    step = None
    for seed in range(options.seeds):
        system = common.make_system(jax.random.key(seed), width=WIDTH)
        example = (x[0], y[0])
        program = ld.compile(system, common.certificate(), example, objective=setting.objective)
        if step is None:
            _, _, step = common.make_step(program, optimizer)
        for train, test in splits:
            trained = common.train(program, step, optimizer, x[train], y[train], epochs=options.epochs, seed=seed)
            for kind, solver in (("same steps", setting.inference), ("flow", None)):
                if kind == "flow" and setting.inference is None:
                    out[kind][seed, test] = out["same steps"][seed, test]
                    continue
                judge = ld.compile(trained.system, common.certificate(), example, solver=solver)
                # NaN is wrong too.
                logits = np.asarray(judge.predict(x[test]))
                out[kind][seed, test] = ~((logits.argmax(axis=-1) == y[test]) & np.isfinite(logits).all(axis=-1))
    return out


def against(first: np.ndarray, second: np.ndarray) -> list[float]:
    """95 % bootstrap interval over images of the difference of two errors in points, averaged over seeds."""
    per_image = (first.astype(float) - second).mean(axis=0)
    levels, counts = np.unique(per_image, return_counts=True)
    draws = np.random.default_rng(0).multinomial(per_image.size, counts / per_image.size, size=20_000)
    return [float(q) for q in np.quantile(100 * draws @ levels / per_image.size, [0.025, 0.975])]


def measure(options: Any) -> dict[str, Any]:
    """Trains every setting; returns the record."""
    x, y = common.load()
    splits = common.folds(x, y)[: options.folds]
    # Equal sizes, so that a step is compiled once for all folds.
    size = min(len(train) for train, _ in splits)
    splits = [(train[:size], test) for train, test in splits]
    tested = np.concatenate([test for _, test in splits])
    names = options.settings or list(SETTINGS)
    flags, rows = {}, {}
    for name in names:
        began = time.perf_counter()
        flags[name] = {k: v[:, tested] for k, v in wrong(SETTINGS[name], x, y, splits, options).items()}
        means = {k: 100 * float(v.mean()) for k, v in flags[name].items()}
        rows[name] = {"error": means, "order": SETTINGS[name].order}
        figures = "  ".join(f"{k} {v:6.2f} %" for k, v in means.items())
        print(f"{name:<34} {figures}  ({time.perf_counter() - began:.0f} s)", flush=True)
    best = {}
    for kind in ("same steps", "flow"):
        solved = [name for name in names if SETTINGS[name].order]
        if not solved:
            continue
        best[kind] = min(solved, key=lambda name, k=kind: rows[name]["error"][k])
        least = rows[best[kind]]["error"][kind]
        for name in names:
            row = rows[name]
            row.setdefault("minus best", {})[kind] = row["error"][kind] - least
            row.setdefault("interval", {})[kind] = against(flags[name][kind], flags[best[kind]][kind])
        good = [name for name in names if rows[name]["error"][kind] <= least + WITHIN + 1e-9]
        print(f"\n{kind}: best end to end is {best[kind]} ({least:.2f} %); within {WITHIN} points: {', '.join(good)}")
    return {
        "environment": common.environment(),
        "settings": {k: getattr(options, k) for k in ("folds", "seeds", "epochs", "rate")},
        "network": f"digits, dense field of width {WIDTH}, batch {common.BATCH}, adam with cosine decay",
        "best": best,
        "rows": rows,
    }


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `measure`."""
    parser.add_argument("--folds", type=int, default=5, help="how many of the five folds to train on")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--rate", type=float, default=6e-3, help="Adam's first learning rate; it decays as a cosine")
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), metavar="NAME", help="only these")
    parser.add_argument("--quick", action="store_true", help="a smoke test")


def shorten(options: Any) -> None:
    """What `--quick` means."""
    if options.quick:
        options.folds, options.seeds, options.epochs = 1, 1, 2
        options.settings = list(QUICK)


def main() -> None:
    parser = argparse.ArgumentParser(description="Test errors of solver settings on the digits.")
    arguments(parser)
    parser.add_argument("--out", type=Path, help="default docs/results/solver_errors.json")
    options = parser.parse_args()
    shorten(options)
    common.write(options.out, "solver_errors", measure(options))


if __name__ == "__main__":
    main()
