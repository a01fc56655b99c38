"""Training time to equal test accuracy on MNIST: without a solver, by flow matching, and end to end with every adjoint of diffrax.

    python benchmarks/time_to_accuracy.py --data-dir DIR            # about twenty minutes; docs/results/time_to_accuracy.json
    python benchmarks/time_to_accuracy.py --data-dir DIR --quick    # a smoke test

A small convolutional encoder and a dense field that keeps H, of width 128; Adam at 1e-3, batches of 64, all 60,000 training images,
float32. First every setting is trained and its test error on 10,000 images taken every 100 steps (an adjoint changes the time of a step
and not what is learned, so that all adaptive ones are trained once): how many steps until it is at most 3 %, the mean over
seeds. Then the steps of all settings are timed in interleaved rounds. The time to an accuracy is the number of steps times the time of a
step; compilation and evaluation are not in it.
"""

import argparse
from pathlib import Path
from typing import Any

import common
import equinox as eqx
import jax
import numpy as np
import optax
import training_step
from trains_as_well import solver_of

import lyapunov_dsl as ld
from lyapunov_dsl import data

TARGETS, EVERY = (3.0,), 100
# What is trained, and what else is timed because it takes the same steps.
SAME = {
    "Tsit5 PID, whole batch as one state": [n for n in training_step.adjoints() if "whole" not in n],
    "8 RK4, unrolled": ["8 RK4, diffrax"],
    "8 Euler, unrolled": ["8 Euler, diffrax"],
}


def settings() -> dict[str, ld.Objective]:
    """What is trained."""
    free, end = training_step.solver_free("dense 128"), {**training_step.adjoints(), **training_step.fixed()}
    names = (
        "MC Trajectory(4, 1)",
        "MC Trajectory(8, 1)",
        "MC Trajectory(8, 8)",
        "flow matching, 1",
        "flow matching, 8",
    )
    return {n: free[n] for n in names} | training_step.PATH_INTEGRAL | {n: end[n] for n in SAME}


def program(objective: ld.Objective, width: int, seed: int, example: Any) -> ld.Program:
    """The network for images of 28 x 28."""
    system = common.make_system(jax.random.key(seed), width=width, shape=(1, 28, 28))
    return ld.compile(system, common.certificate(), example, objective=objective, solver=solver_of(objective))


def curve(objective: ld.Objective, width: int, seed: int, train: Any, test: Any, steps: int) -> list[float]:
    """Test errors in per cent after every 100 steps, until the last target is met or the steps are over."""
    (x, y), optimizer = train, optax.adam(1e-3)
    compiled = program(objective, width, seed, (x[0], y[0]))
    params, moments, step = common.make_step(compiled, optimizer)
    static = eqx.partition(compiled, ld.trainable(compiled))[1]
    order, found = np.random.default_rng(seed), []
    for i in range(steps):
        batch = order.integers(0, len(y), common.BATCH)
        params, moments, _ = step(params, moments, x[batch], y[batch], jax.random.fold_in(jax.random.key(seed), i))
        if (i + 1) % EVERY == 0:
            now = eqx.combine(params, static)
            wrong = [now.error(test[0][b : b + 1000], test[1][b : b + 1000]) for b in range(0, len(test[1]), 1000)]
            found.append(100 * float(np.mean(wrong)))
            if found[-1] <= min(TARGETS):
                break
    return found


def reached(errors: list[float], target: float) -> int | None:
    """After how many steps an error is at most the target, or `None`."""
    below = [i for i, error in enumerate(errors) if error <= target]
    return EVERY * (below[0] + 1) if below else None


def main() -> None:
    parser = argparse.ArgumentParser(description="Time to equal accuracy on MNIST.")
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--widths", type=int, nargs="+", default=[128])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=1500, help="the most that a setting gets")
    parser.add_argument("--quick", action="store_true", help="a smoke test")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    size = {"rounds": 5, "budget": 0.4}
    if options.quick:
        options.widths, options.seeds, options.steps, size = [128], 1, 100, {"rounds": 2, "budget": 0.05}
    found = data.load("mnist", options.data_dir)
    train, test = (tuple(np.asarray(a) for a in (data.to_float(x), y)) for x, y in (found.train, found.test))
    results = {}
    for width in options.widths:
        rows = {}
        for name, objective in settings().items():
            curves = [curve(objective, width, s, train, test, options.steps) for s in range(options.seeds)]
            steps = {}
            for target in TARGETS:
                at = [reached(errors, target) for errors in curves]
                steps[str(target)] = None if None in at else float(np.mean([a for a in at if a is not None]))
            rows[name] = {"errors": curves, "steps": steps}
            print(f"  width {width} {name:40} steps to {steps}", flush=True)
        every = {**training_step.adjoints(), **training_step.fixed(), **settings()}
        names = [*settings(), *(n for same in SAME.values() for n in same)]
        example = (train[0][0], train[1][0])
        programs = {n: program(every[n], width, 0, example) for n in names}
        batch = train[0][: common.BATCH], train[1][: common.BATCH]
        times = common.time_steps(programs, *batch, **size, label=f"width {width}")
        for first, same in SAME.items():
            rows |= {n: {"trained as": first, "steps": rows[first]["steps"]} for n in same}
        for name, row in rows.items():
            row |= times[name]
            row["seconds"] = {t: None if n is None else n * row["ms"] / 1e3 for t, n in row["steps"].items()}
            print(f"  width {width} {name:40} {row['ms']:8.2f} ms  seconds to {row['seconds']}")
        results[str(width)] = rows
    record = {
        "environment": common.environment(),
        "quick": options.quick, "settings": {"seeds": options.seeds, "steps": options.steps},
        "results": results,
    }  # fmt: skip
    common.write(options.out, "time_to_accuracy", record)


if __name__ == "__main__":
    main()
