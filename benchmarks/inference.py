"""Time and error of inference, with and without early termination, in one process.

    python benchmarks/inference.py            # about three minutes on two cores; docs/results/inference.json
    python benchmarks/inference.py --quick    # a smoke test

The digits network, trained by Monte Carlo and end to end on four folds of five. `predict` of the images of the fifth: to the
horizon, to a time, and until the largest probability reaches a level, by the default solver (fixed steps of Heun) and by adaptive Tsit5.
Times are medians over interleaved rounds; the batch ends when its last image does, so that a level saves time for the batch only where all
images reach it, while the steps that an image takes by itself are in the column of steps.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import common
import diffrax
import jax
import numpy as np
import optax

import lyapunov_dsl as ld

STOPS: dict[str, Any] = {
    "to the horizon": None,
    "t = 0.5": 0.5,
    "t = 0.25": 0.25,
    "probability 0.99": ld.Confidence(0.99),
    "probability 0.9": ld.Confidence(0.9),
}
SOLVERS: dict[str, Any] = {"default (Heun, 1/16)": None, "adaptive Tsit5": ld.Solver()}
OBJECTIVES: dict[str, ld.Objective] = {
    "Monte Carlo": ld.MonteCarlo(),
    "end to end": ld.EndToEnd(ld.Solver(diffrax.Heun(), dt=1 / 16)),
}


def steps(program: ld.Program, x: Any, stop: Any) -> float:
    """The mean number of solver steps of an image."""
    return float(np.mean(np.asarray(program.trajectory(x, stop=stop).stats["num_steps"])))


def main() -> None:
    parser = argparse.ArgumentParser(description="Inference with early termination.")
    parser.add_argument("--quick", action="store_true", help="a smoke test")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    x, y = common.load()
    train, test = common.folds(x, y)[0]
    epochs, rounds = (1, 2) if options.quick else (40, 9)
    calls, rows = {}, {}
    for name, objective in OBJECTIVES.items():
        program = ld.compile(
            common.make_system(jax.random.key(0)), common.certificate(), (x[0], y[0]), objective=objective
        )
        optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, epochs * (len(train) // common.BATCH)))
        step = common.make_step(program, optimizer)[2]
        program = common.train(program, step, optimizer, x[train], y[train], epochs=epochs, seed=0)
        for solver, choice in SOLVERS.items():
            solved = program if choice is None else ld.compile(
                program.system, common.certificate(), (x[0], y[0]), solver=choice
            )  # fmt: skip
            for stop, when in STOPS.items():
                row: dict[str, Any] = {"trained by": name, "solver": solver, "stop": stop}
                row["test error"] = 100 * solved.error(x[test], y[test], stop=when)
                row["steps an image"] = steps(solved, x[test], when)
                calls[name, solver, stop] = lambda solved=solved, when=when: solved.predict(x[test], stop=when)
                rows[name, solver, stop] = row
    seconds: dict[Any, list[float]] = {key: [] for key in calls}
    for call in calls.values():
        jax.block_until_ready(call())
    for _ in range(rounds):
        for key, call in calls.items():
            began = time.perf_counter()
            jax.block_until_ready(call())
            seconds[key].append(time.perf_counter() - began)
    for key, row in rows.items():
        row["ms"] = 1e3 * float(np.median(seconds[key]))
        row["ratio"] = row["ms"] / (1e3 * float(np.median(seconds[key[0], key[1], "to the horizon"])))
        print("  ".join(str(v if isinstance(v, str) else round(v, 3)) for v in row.values()))
    record = {
        "environment": common.environment(),
        "quick": options.quick,
        "images": len(test),
        "results": list(rows.values()),
    }
    common.write(options.out, "inference", record)


if __name__ == "__main__":
    main()
