"""Which settings train as well: test errors of the digits network with a field of width 128, over five folds.

    python benchmarks/trains_as_well.py    # about ten minutes on two cores; docs/results/trains_as_well.json

Every end-to-end setting of `training_step.py` once (an adjoint or a loop changes the time, not the answer), and the solver-free ones.
Inference is by the setting's own steps where it has some, by the default solver (16 steps of Heun for this field) otherwise, and then by
the default solver for all: what is trained by a few steps may be no continuous model. A setting trains as well whose mean test error is
at most 0.2 points above that of the best end-to-end setting.
"""

import argparse
from pathlib import Path
from typing import Any

import common
import jax
import numpy as np
import optax
import training_step

import lyapunov_dsl as ld

POINTS = 0.2
# Hundreds of samples a step: their accuracy is that of fewer (docs/results/digits_measures.json).
LEFT_OUT = ("MC Sphere(512)", "MC Sphere(64)", "MC Cube(64)")


def candidates() -> tuple[dict[str, ld.Objective], dict[str, ld.Objective]]:
    """End to end, and solver-free."""
    adaptive = training_step.adjoints()
    end_to_end = {n: adaptive[n] for n in ("Tsit5 PID, RecursiveCheckpoint", "Tsit5 PID, whole batch as one state")}
    end_to_end |= {n: o for n, o in training_step.fixed().items() if "unrolled" in n}
    free = {n: o for n, o in training_step.solver_free("dense 128").items() if n not in LEFT_OUT}
    return end_to_end, {**free, **training_step.PATH_INTEGRAL}


def solver_of(objective: ld.Objective) -> Any:
    """The setting's own steps, or `None`."""
    if isinstance(objective, common.Unrolled):
        return ld.Solver(objective.method, dt=1 / objective.steps)
    return objective.solver if isinstance(objective, ld.EndToEnd | common.Joint) else None


def errors(
    objective: ld.Objective, x: Any, y: Any, *, folds: int, seeds: int, epochs: int
) -> tuple[list[float], list[float]]:
    """Test errors in per cent over seeds and folds, by the setting's own steps and solved accurately; the step is compiled once."""
    step, own, accurate, example = None, [], [], (x[0], y[0])
    for seed in range(seeds):
        for train, test in common.folds(x, y)[:folds]:
            system = common.make_system(jax.random.key(seed), width=128)
            program = ld.compile(
                system, common.certificate(), example, objective=objective, solver=solver_of(objective)
            )
            optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, epochs * (len(train) // common.BATCH)))
            step = common.make_step(program, optimizer)[2] if step is None else step
            program = common.train(program, step, optimizer, x[train], y[train], epochs=epochs, seed=seed)
            own.append(100 * program.error(x[test], y[test]))
            solved = ld.compile(program.system, common.certificate(), example)
            accurate.append(100 * solved.error(x[test], y[test]))
    return own, accurate


def main() -> None:
    parser = argparse.ArgumentParser(description="Test errors of every setting.")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=1, help="initializations")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    x, y = common.load()
    size = {"folds": options.folds, "seeds": options.seeds, "epochs": options.epochs}
    end_to_end, free = candidates()
    rows: dict[str, dict[str, Any]] = {}
    for name, objective in {**end_to_end, **free}.items():
        own, accurate = errors(objective, x, y, **size)
        rows[name] = {"own": float(np.mean(own)), "accurate": float(np.mean(accurate)), "errors": own}
        print(
            f"  {name:40} test error {rows[name]['own']:.2f} %, accurately {rows[name]['accurate']:.2f} %", flush=True
        )
    well = {}
    for how in ("own", "accurate"):
        best = min(rows[name][how] for name in end_to_end)
        well[how] = sorted(name for name, row in rows.items() if row[how] <= best + POINTS)
        print(f"\nas well, {how}:", ", ".join(well[how]))
    record = {"environment": common.environment(), "settings": size, "test errors": rows, "as well": well}
    common.write(options.out, "trains_as_well", record)


if __name__ == "__main__":
    main()
