"""The time of one training step, solver-free against end to end, in one process.

    python benchmarks/training_step.py            # about ten minutes on two cores; docs/results/training_step.json
    python benchmarks/training_step.py --quick    # a smoke test, no measurement

A step is loss, gradient and Adam update for a batch of 64, jitted, buffers donated. The candidates are timed in interleaved
rounds; a figure is the median over rounds of the mean over a round's steps, compilation excluded and given beside it. The
fields are dense of width 128 and 512 (state of 10) and convolutional (state of 8 x 8 x 8 with a linear readout).

The *cheapest setting that trains as well* is found by training: on the five folds of the digits, with every end-to-end setting, the
dense network of width 128. It is the fastest whose mean test error is within 0.2 points of the best of them.

On a CPU a convolution inside an XLA loop runs many times slower than outside (jax issue 12868). diffrax solves in a loop; rollouts of
at most 32 Euler steps are unrolled here. So the unrolled settings are the ones to compare with on a CPU, and are in the list.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import common
import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import lyapunov_dsl as ld
from lyapunov_dsl import EndToEnd, MonteCarlo, Solver

FREE: dict[str, ld.Objective] = {
    "MC Trajectory(8)": MonteCarlo(ld.Trajectory(8)),
    "MC Cube(64)": MonteCarlo(ld.Cube(64)),
    "MC Sphere(64)": MonteCarlo(ld.Sphere(64)),
    "MC Sphere(512)": MonteCarlo(ld.Sphere(512)),
    "MC Mixture(Trajectory(8), Cube(32))": MonteCarlo(ld.Mixture(ld.Trajectory(8), ld.Cube(32))),
}
ROLLOUT: dict[str, ld.Objective] = {"path integral, 8 Euler": ld.PathIntegral(8)}


def adjoints() -> dict[str, ld.Objective]:
    """Adaptive Tsit5 with every adjoint that applies."""
    return {
        "Tsit5 PID, RecursiveCheckpoint": EndToEnd(),
        "Tsit5 PID, Direct": EndToEnd(Solver(adjoint=diffrax.DirectAdjoint(), max_steps=64)),
        "Tsit5 PID, Backsolve": EndToEnd(Solver(adjoint=diffrax.BacksolveAdjoint())),
        "Tsit5 PID, whole batch as one state": common.Joint(Solver()),
    }


NOT_APPLICABLE = {
    "ForwardMode": "forward mode over all parameters; reverse-mode gradients are refused",
    "ImplicitAdjoint": "for steady states only",
}


def fixed() -> dict[str, ld.Objective]:
    """Fixed steps: diffrax's loop, and unrolled."""
    out: dict[str, ld.Objective] = {}
    for name, method, steps in [
        ("Tsit5", diffrax.Tsit5(), (4, 1)),
        ("Heun", diffrax.Heun(), (4, 2)),
        ("Euler", diffrax.Euler(), (16, 8, 4, 2, 1)),
    ]:
        for n in steps:
            out[f"{n} {name}, diffrax"] = EndToEnd(Solver(method, dt=1 / n))
            out[f"{n} {name}, unrolled"] = common.Unrolled(n, method)
    return out


FOURTH_ORDER = ("Tsit5",)


def make(kind: str, key: Any) -> ld.System:
    """The three systems."""
    if kind.startswith("dense"):
        return common.make_system(key, width=int(kind.split()[1]))
    field_key, readout_key = jax.random.split(key)
    linear = eqx.nn.Linear(512, 10, key=readout_key)
    field = ld.nn.ConvField(8, 1, width=16, key=field_key)
    return ld.System(_image, field, eqx.nn.Sequential([eqx.nn.Lambda(jnp.ravel), linear]), domain=ld.Box(-3, 3))


def _image(x: Any) -> ld.Start:
    """η(0): the image in every channel of an (8, 8, 8) state; the context is the image."""
    return ld.Start(jnp.repeat(x, 8, axis=0), x)


def time_all(kind: str, objectives: dict[str, ld.Objective], x: Any, y: Any, *, rounds: int, budget: float) -> dict:
    """Milliseconds a step and seconds of compilation for every objective, in interleaved rounds."""
    optimizer, x, y, key = optax.adam(1e-3), jnp.asarray(x), jnp.asarray(y), jax.random.key(1)
    state, compile_seconds, counts = {}, {}, {}
    for name, objective in objectives.items():
        program = ld.compile(make(kind, jax.random.key(0)), common.certificate(), (x[0], y[0]), objective=objective)
        params, moments, step = common.make_step(program, optimizer)
        began = time.perf_counter()
        params, moments, loss = step(params, moments, x, y, key)
        jax.block_until_ready(loss)
        compile_seconds[name] = time.perf_counter() - began
        began = time.perf_counter()
        for _ in range(2):
            params, moments, loss = step(params, moments, x, y, key)
        jax.block_until_ready(loss)
        # As many steps a round as fit the budget.
        counts[name] = max(1, min(200, int(budget / ((time.perf_counter() - began) / 2))))
        state[name] = (params, moments, step)
        print(f"  {kind:10} {name:40} compiled in {compile_seconds[name]:5.1f} s", flush=True)
    seconds: dict[str, list[float]] = {name: [] for name in objectives}
    loss = jnp.zeros(())
    for _ in range(rounds):
        for name, (params, moments, step) in state.items():
            began = time.perf_counter()
            for _ in range(counts[name]):
                params, moments, loss = step(params, moments, x, y, key)
            jax.block_until_ready(loss)
            seconds[name].append((time.perf_counter() - began) / counts[name])
            state[name] = (params, moments, step)
    return {n: {"ms": 1e3 * float(np.median(s)), "compile s": compile_seconds[n]} for n, s in seconds.items()}


def errors(objectives: dict[str, ld.Objective], x: Any, y: Any, *, folds: int, seeds: int, epochs: int) -> dict:
    """Mean test error in per cent of every end-to-end setting, inference by the setting's own solver where it has one."""
    out = {}
    for name, objective in objectives.items():
        step, found = None, []
        for seed in range(seeds):
            for train, test in common.folds(x, y)[:folds]:
                solver = objective.solver if isinstance(objective, EndToEnd | common.Joint) else None
                if isinstance(objective, common.Unrolled):
                    solver = Solver(objective.method, dt=1 / objective.steps)
                program = ld.compile(
                    common.make_system(jax.random.key(seed), width=128), common.certificate(), (x[0], y[0]),
                    objective=objective, solver=solver,
                )  # fmt: skip
                optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, epochs * (len(train) // common.BATCH)))
                step = common.make_step(program, optimizer)[2] if step is None else step
                program = common.train(program, step, optimizer, x[train], y[train], epochs=epochs, seed=seed)
                found.append(100 * program.error(x[test], y[test]))
        out[name] = float(np.mean(found))
        print(f"  {name:40} test error {out[name]:.2f} %", flush=True)
    return out


def cheapest(times: dict, names: Any) -> str:
    """The fastest of some settings."""
    return min(names, key=lambda name: times[name]["ms"])


def main() -> None:
    parser = argparse.ArgumentParser(description="Training steps, solver-free against end to end.")
    parser.add_argument("--quick", action="store_true", help="a smoke test in about a minute")
    parser.add_argument("--epochs", type=int, default=40, help="of the runs that find the cheapest setting")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    x, y = common.load()
    end_to_end = {**adjoints(), **fixed()}
    kinds = ["dense 128", "dense 512", "conv"]
    rounds, budget, trained = 7, 0.3, dict(end_to_end)
    if options.quick:
        kinds, rounds, budget, options.epochs = ["dense 128"], 2, 0.05, 1
        names = ("Tsit5 PID, RecursiveCheckpoint", "8 Euler, diffrax", "8 Euler, unrolled")
        end_to_end = {name: end_to_end[name] for name in names}
        trained = {"8 Euler, unrolled": end_to_end["8 Euler, unrolled"]}
    # The two ways to take the same steps give the same numbers, and so do the adjoints: each is trained once.
    trained = {
        n: o for n, o in trained.items() if "diffrax" not in n and ("PID" not in n or "Recursive" in n or "whole" in n)
    }
    print("test errors of the end-to-end settings:")
    size = {"folds": 1, "seeds": 1} if options.quick else {"folds": 5, "seeds": 1}
    error = errors(trained, x, y, epochs=options.epochs, **size)
    as_well = {n for n, e in error.items() if e <= min(error.values()) + 0.2}
    as_well |= {name.replace("unrolled", "diffrax") for name in as_well} & set(end_to_end)
    results, sentences = {}, []
    for kind in kinds:
        times = time_all(kind, {**FREE, **ROLLOUT, **end_to_end}, x[: common.BATCH], y[: common.BATCH],
                         rounds=rounds, budget=budget)  # fmt: skip
        fourth = cheapest(times, [n for n in end_to_end if any(m in n for m in FOURTH_ORDER)])
        references = {"best fourth order or higher": fourth, "cheapest that trains as well": cheapest(times, as_well)}
        references["8 Euler, unrolled"] = "8 Euler, unrolled"
        references["8 Euler, diffrax"] = "8 Euler, diffrax"
        results[kind] = {"times": times, "references": references}
        print(f"\n{kind}: milliseconds a step (ratio of each reference to it)")
        for name in (*FREE, *ROLLOUT, *end_to_end):
            ms = times[name]["ms"]
            ratios = {r: times[n]["ms"] / ms for r, n in references.items()} if name in {**FREE, **ROLLOUT} else {}
            times[name]["ratios"] = ratios
            shown = "  ".join(f"{r}: {ratio:.2f}" for r, ratio in ratios.items())
            print(f"  {name:40} {ms:8.2f}  {shown}")
            sentences += [
                f"{kind}: {name} is not faster than {references[r]} ({r}): {ratio:.2f} times its speed"
                for r, ratio in ratios.items()
                if ratio <= 1
            ]
        print(f"  references: {references}")
    print("\nwhere solver-free training is not faster:")
    print("\n".join(f"  {s}" for s in sentences) or "  nowhere")
    record = {
        "environment": common.environment(), "quick": options.quick, "epochs": options.epochs, "test errors": error,
        "trains as well": sorted(as_well), "not applicable": NOT_APPLICABLE, "results": results,
        "not faster": sentences,
    }  # fmt: skip
    common.write(options.out, "training_step", record)


if __name__ == "__main__":
    main()
