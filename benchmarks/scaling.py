"""How the cost of a training step scales, in one process: time, XLA's temporary memory and time of compilation.

    python benchmarks/scaling.py            # about ten minutes on two cores; docs/results/scaling.json
    python benchmarks/scaling.py --quick    # a smoke test, no measurement

The digits network with a dense field of width 128. What varies: the number of states k (10 to 300), the number Γ of samples (1 to 512, of
the cube and of the tube), the number of steps (4 to 64, end to end and of the path integral) and the batch (16 to 1,024). Every sweep is
timed in interleaved rounds. Above a state of 10 numbers the first ten are the logits.
"""

import argparse
from pathlib import Path
from typing import Any

import common
import diffrax
import jax

import lyapunov_dsl as ld

STATES, SAMPLES, STEPS, BATCHES = (10, 30, 100, 300), (1, 8, 64, 512), (4, 8, 16, 32, 64), (16, 64, 256, 1024)


def program(objective: ld.Objective, x: Any, y: Any, states: int = common.CLASSES) -> ld.Program:
    """A program of the digits network for an objective."""
    system = common.make_system(jax.random.key(0), width=128, states=states)
    return ld.compile(system, common.certificate(), (x[0], y[0]), objective=objective, solver=ld.Solver())


FAMILY: dict[str, ld.Objective] = {
    "MC Trajectory()": ld.MonteCarlo(),
    "MC Cube(64)": ld.MonteCarlo(ld.Cube(64)),
    "path integral, 8 Euler": ld.PathIntegral(8),
    "8 Euler, unrolled": common.Unrolled(8, diffrax.Euler()),
    "8 RK4, unrolled": common.Unrolled(8, common.RK4()),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Cost of a step against states, samples, steps and batch.")
    parser.add_argument("--quick", action="store_true", help="a smoke test")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    x, y = common.load()
    take = (lambda values: values[:2]) if options.quick else (lambda values: values)
    size = {"rounds": 2, "budget": 0.02} if options.quick else {"rounds": 5, "budget": 0.25}
    first, results = (x[: common.BATCH], y[: common.BATCH]), {}

    results["states"] = {}
    for k in take(STATES):
        programs = {n: program(o, x, y, k) for n, o in FAMILY.items()}
        results["states"][str(k)] = common.time_steps(programs, *first, **size, label=f"k = {k}")

    measures = {"MC Cube": ld.Cube, "MC Trajectory, 8 points": lambda n: ld.Trajectory(8, n)}
    programs = {
        f"{m}, {n}": program(ld.MonteCarlo(make(n)), x, y) for m, make in measures.items() for n in take(SAMPLES)
    }
    results["samples"] = common.time_steps(programs, *first, **size, label="samples")

    programs = {}
    for n in take(STEPS):
        recursive, direct = diffrax.RecursiveCheckpointAdjoint(), diffrax.DirectAdjoint()
        programs |= {
            f"MC Trajectory({n}, 1), {n}": program(ld.MonteCarlo(ld.Trajectory(n, 1)), x, y),
            f"path integral, {n}": program(ld.PathIntegral(n), x, y),
            f"Euler, diffrax, RecursiveCheckpoint, {n}": program(
                ld.EndToEnd(ld.Solver(diffrax.Euler(), dt=1 / n, adjoint=recursive, max_steps=n)), x, y
            ),
            f"Euler, diffrax, Direct, {n}": program(
                ld.EndToEnd(ld.Solver(diffrax.Euler(), dt=1 / n, adjoint=direct, max_steps=n)), x, y
            ),
            f"Euler, unrolled, {n}": program(common.Unrolled(n, diffrax.Euler()), x, y),
        }
    results["steps"] = common.time_steps(programs, *first, **size, label="steps")

    results["batch"] = {}
    for n in take(BATCHES):
        programs = {name: program(o, x, y) for name, o in FAMILY.items()}
        results["batch"][str(n)] = common.time_steps(programs, x[:n], y[:n], **size, label=f"batch {n}")

    common.write(
        options.out, "scaling", {"environment": common.environment(), "quick": options.quick, "results": results}
    )


if __name__ == "__main__":
    main()
