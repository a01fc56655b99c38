"""The time of one training step, solver-free against end to end, in one process.

    python benchmarks/trains_as_well.py           # first, once: which settings train as well
    python benchmarks/training_step.py            # about a quarter of an hour on two cores; docs/results/training_step.json
    python benchmarks/training_step.py --quick    # a smoke test, no measurement

A step is loss, gradient and Adam update for a batch of 64, jitted, buffers donated. The candidates are timed in interleaved
rounds; a figure is the median over rounds of the mean over a round's steps, compilation excluded and given beside it. The
fields are dense of width 128 and 512 (state of 10) and convolutional (state of 8 x 8 x 8 with a linear readout).

On a CPU a convolution inside an XLA loop runs many times slower than outside (jax issue 12868). diffrax solves in a loop; rollouts of
at most 32 Euler steps are unrolled here. So the unrolled settings are the ones to compare with on a CPU, and are in the list. *Encoder
alone* is what no objective can do without.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import common
import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp

import lyapunov_dsl as ld
from lyapunov_dsl import EndToEnd, MonteCarlo, Solver

ALONE = "encoder alone"
FOURTH_ORDER = ("Tsit5", "RK4")
NOT_APPLICABLE = {
    "ForwardMode": "forward mode over all parameters; reverse-mode gradients are refused",
    "ImplicitAdjoint": "for steady states only",
}


def solver_free(kind: str) -> dict[str, ld.Objective]:
    """Objectives that differentiate no solve. Flow matching wants a goal in the state's space, which the convolutional field has not."""
    out: dict[str, ld.Objective] = {
        "MC Trajectory(4, 1)": MonteCarlo(ld.Trajectory(4, 1)),
        "MC Trajectory(8, 1)": MonteCarlo(ld.Trajectory(8, 1)),
        "MC Trajectory(8, 8)": MonteCarlo(ld.Trajectory(8, 8)),
        "MC Cube(1)": MonteCarlo(ld.Cube(1)),
        "MC Cube(64)": MonteCarlo(ld.Cube(64)),
        "MC Sphere(64)": MonteCarlo(ld.Sphere(64)),
        "MC Sphere(512)": MonteCarlo(ld.Sphere(512)),
        "MC Mixture(Trajectory(4, 1), Cube(32))": MonteCarlo(ld.Mixture(ld.Trajectory(4, 1), ld.Cube(32))),
    }
    if kind.startswith("dense"):
        half_width = 2 * ld.radius_for(ld.cross_entropy, common.KAPPA, common.CLASSES)
        out |= {f"flow matching, {n}": ld.FlowMatching(ld.ClassCorner(0.8 * half_width), samples=n) for n in (1, 8)}
    return out


def adjoints() -> dict[str, ld.Objective]:
    """Adaptive Tsit5 with every adjoint that applies."""
    return {
        "Tsit5 PID, RecursiveCheckpoint": EndToEnd(),
        "Tsit5 PID, Direct": EndToEnd(Solver(adjoint=diffrax.DirectAdjoint(), max_steps=64)),
        "Tsit5 PID, Backsolve": EndToEnd(Solver(adjoint=diffrax.BacksolveAdjoint())),
        "Tsit5 PID, whole batch as one state": common.Joint(Solver()),
    }


def fixed() -> dict[str, ld.Objective]:
    """Fixed steps: diffrax's loop, and unrolled."""
    out: dict[str, ld.Objective] = {}
    for name, method, steps in [
        ("Tsit5", diffrax.Tsit5(), (8, 1)),
        ("RK4", common.RK4(), (8, 4, 1)),
        ("Heun", diffrax.Heun(), (4, 2)),
        ("Euler", diffrax.Euler(), (16, 8, 4, 2, 1)),
    ]:
        for n in steps:
            out[f"{n} {name}, diffrax"] = EndToEnd(Solver(method, dt=1 / n))
            out[f"{n} {name}, unrolled"] = common.Unrolled(n, method)
    return out


PATH_INTEGRAL: dict[str, ld.Objective] = {"path integral, 8 Euler": ld.PathIntegral(8)}


class Alone(ld.Objective):
    """The mean square of what the encoder returns: encoder and optimizer, and no dynamics."""

    def check(self, condition: Any, start: Any) -> None:
        pass

    def __call__(self, condition: Any, x: Any, y: Any, *, key: Any) -> Any:
        return jnp.mean(jax.vmap(lambda x: condition.system.start(x, None).context)(x) ** 2)


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
    """Milliseconds a step, seconds of compilation and temporary memory for every objective, in interleaved rounds."""
    programs = {
        name: ld.compile(make(kind, jax.random.key(0)), common.certificate(), (x[0], y[0]), objective=objective)
        for name, objective in objectives.items()
    }
    return common.time_steps(programs, x, y, rounds=rounds, budget=budget, label=kind)


def fastest(times: dict, names: Any) -> str:
    """The fastest of some settings."""
    return min(names, key=lambda name: times[name]["ms"])


def main() -> None:
    parser = argparse.ArgumentParser(description="Training steps, solver-free against end to end.")
    parser.add_argument("--quick", action="store_true", help="a smoke test in about a minute")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    x, y = common.load()
    as_well = json.loads((common.RESULTS / "trains_as_well.json").read_text())["as well"]
    end_to_end, kinds, rounds, budget = {**adjoints(), **fixed()}, ["dense 128", "dense 512", "conv"], 7, 0.3
    if options.quick:
        kinds, rounds, budget = ["dense 128"], 2, 0.05
        quick = ("Tsit5 PID, whole batch as one state", "8 Euler, diffrax", "8 Euler, unrolled", "8 RK4, unrolled")
        end_to_end = {name: end_to_end[name] for name in quick}
    # The two ways to take the same steps give the same numbers.
    alike = lambda names: {n for n in end_to_end if n in names or n.replace("diffrax", "unrolled") in names}
    well, accurate = alike(as_well["own"]), alike(as_well["accurate"])
    results, slower = {}, []
    for kind in kinds:
        free = {**solver_free(kind), **PATH_INTEGRAL}
        times = time_all(kind, {ALONE: Alone(), **free, **end_to_end}, x[: common.BATCH], y[: common.BATCH],
                         rounds=rounds, budget=budget)  # fmt: skip
        fourth = [n for n in end_to_end if any(m in n for m in FOURTH_ORDER)]
        references = {
            "best fourth order that trains as well": fastest(times, well & set(fourth)),
            "cheapest that trains as well": fastest(times, well),
            "cheapest that does, solved accurately": fastest(times, accurate),
            "best of diffrax's loop": fastest(times, [n for n in well if "unrolled" not in n]),
        }
        results[kind] = {"times": times, "references": references}
        print(f"\n{kind}: milliseconds a step (how many times longer each reference takes)")
        for name, row in times.items():
            row["ratios"] = {r: times[n]["ms"] / row["ms"] for r, n in references.items()} if name in free else {}
            shown = "  ".join(f"{r}: {ratio:.2f}" for r, ratio in row["ratios"].items())
            print(f"  {name:40} {row['ms']:8.2f}  {shown}")
            slower += [
                f"{kind}: {name} takes {1 / ratio:.2f} times as long as {references[r]} ({r})"
                for r, ratio in row["ratios"].items()
                if ratio <= 1
            ]
        print(f"  references: {references}")
    print("\nwhere solver-free training is not faster:")
    print("\n".join(f"  {s}" for s in slower) or "  nowhere")
    record = {
        "environment": common.environment(), "quick": options.quick, "not applicable": NOT_APPLICABLE,
        "results": results, "not faster": slower,
    }  # fmt: skip
    common.write(options.out, "training_step", record)


if __name__ == "__main__":
    main()
