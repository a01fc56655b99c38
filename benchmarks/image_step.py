"""The time and the memory of one training step at the paper's size: Monte Carlo against end to end.

    python benchmarks/image_step.py            # about fifteen minutes on two cores; docs/results/image_step.json
    python benchmarks/image_step.py --quick    # a smoke test with a narrow encoder

A ResNet-18 of width 64 (3x3 first convolution, no pooling) gives a 128 x 128 matrix A(x) for dynamics with 10 states: the field
of `ld.nn.ControlledField` kept inside H by `ld.nn.InvariantField`, and the paper's own `ld.nn.PaperField` ("direction", gain 8, dropout
0.5). Images are 28x28x1 and 32x32x3, and *none*: matrices are the inputs, so that the dynamics alone are timed. A step is loss,
gradient and Adam update for a batch of 64, jitted, buffers donated. Monte Carlo draws 512 states shared by the batch. End to end
solves by the classical Runge-Kutta method at step 0.1, unrolled and in diffrax's loop; the faster of the two is the reference.
*Encoder alone* is a classifier: the same encoder and one evaluation of the field's network at η = 0 as logits.

Times: all candidates in one process, in interleaved rounds, median over rounds. Memory: XLA's count of temporary and argument bytes, and
the peak resident set of a process of its own for each candidate, which takes two steps, Python and JAX included.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import common
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import lyapunov_dsl as ld

HIDDEN, SAMPLES, STEPS = 128, 512, 10
SHAPES: dict[str, tuple[int, ...]] = {"28x28x1": (1, 28, 28), "32x32x3": (3, 32, 32), "none": (HIDDEN**2,)}
FIELDS = ("invariant", "paper")


MONTE_CARLO, ALONE = "Monte Carlo, 512 states", "encoder alone"
END_TO_END = ("end to end, RK4 unrolled", "end to end, RK4 in diffrax's loop")
OBJECTIVES: dict[str, ld.Objective] = {
    ALONE: ld.EndToEnd(),
    END_TO_END[0]: common.Unrolled(STEPS, common.RK4()),
    END_TO_END[1]: ld.EndToEnd(ld.Solver(common.RK4(), dt=1 / STEPS)),
    MONTE_CARLO: ld.MonteCarlo(ld.Sphere(SAMPLES)),
    "Monte Carlo, tube": ld.MonteCarlo(),
}


class Shift(eqx.Module):
    """In place of an encoder where matrices are the inputs: a trained matrix is added, so that A(x) has a gradient."""

    matrix: Any

    def __call__(self, x: Any) -> Any:
        return x + self.matrix


class Once(eqx.Module):
    """The field at η = 0 as one step of a discrete system: a plain classifier."""

    field: Any

    def __call__(self, state: Any, context: Any, *, key: Any = None) -> Any:
        return self.field(jnp.zeros((), state.dtype), state, context, key=key)


def make(name: str, field: str, images: str, width: int, key: Any) -> ld.Program:
    """The program of one candidate."""
    k1, k2 = jax.random.split(key)
    shape, classes = SHAPES[images], common.CLASSES
    encoder = Shift(jnp.zeros(shape)) if images == "none" else ld.nn.ResNet18(shape, HIDDEN**2, width=width, key=k1)
    begin = ld.nn.ControlledStart(encoder, classes, HIDDEN)
    half_width = 2 * ld.radius_for(ld.cross_entropy, common.KAPPA, classes)
    if field == "invariant":
        inner = ld.nn.ControlledField(classes, HIDDEN, key=k2)
        dynamics, domain = ld.nn.InvariantField(inner, half_width, rate=common.RATE), ld.Box(-half_width, half_width)
    else:
        dynamics = ld.nn.PaperField(classes, gain=8.0, hidden=HIDDEN, key=k2)
        inner, domain = dynamics.inner, ld.Ball(0, 15 * classes**0.5)
    system = (
        ld.DiscreteSystem(begin, [Once(eqx.nn.inference_mode(inner))])
        if name == ALONE
        else ld.System(begin, dynamics, domain=domain)
    )
    example = (jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct((), jnp.int32))
    return ld.compile(system, common.certificate(), example, objective=OBJECTIVES[name])


def prepare(name: str, field: str, images: str, width: int) -> tuple[Any, Any, Any, tuple]:
    """Parameters, moments, the step and the batch of one candidate."""
    key = jax.random.key(0)
    program = make(name, field, images, width, key)
    params, moments, step = common.make_step(program, optax.adam(1e-4))
    x = jax.random.normal(key, (common.BATCH, *SHAPES[images]))
    return params, moments, step, (x, jnp.arange(common.BATCH, dtype=jnp.int32) % common.CLASSES, key)


def measure(field: str, images: str, width: int, rounds: int) -> dict[str, dict[str, float]]:
    """Seconds a step and XLA's bytes for every candidate, in interleaved rounds."""
    state, found = {}, {}
    for name in OBJECTIVES:
        params, moments, step, batch = prepare(name, field, images, width)
        began = time.perf_counter()
        compiled = step.lower(params, moments, *batch).compile()
        memory = compiled.memory_analysis()
        found[name] = {
            "compile s": time.perf_counter() - began,
            "temporary MB": memory.temp_size_in_bytes / 1e6,
            "argument MB": memory.argument_size_in_bytes / 1e6,
        }
        params, moments, loss = compiled(params, moments, *batch)
        jax.block_until_ready(loss)
        state[name] = (params, moments, compiled, batch)
    times: dict[str, list[float]] = {name: [] for name in OBJECTIVES}
    for _ in range(rounds):
        for name, (params, moments, step, batch) in state.items():
            began, steps = time.perf_counter(), 0
            while steps == 0 or time.perf_counter() - began < 0.5:
                params, moments, loss = step(params, moments, *batch)
                jax.block_until_ready(loss)
                steps += 1
            times[name].append((time.perf_counter() - began) / steps)
            state[name] = (params, moments, step, batch)
    for name, seconds in times.items():
        found[name] |= {"ms": 1e3 * float(np.median(seconds)), "least ms": 1e3 * min(seconds)}
    return found


def peak() -> float:
    """The most memory this process has had resident so far, in MB."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not `ru_maxrss`, in which a child begins with the peak of its parent.
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def child(name: str, field: str, images: str, width: int) -> None:
    """Two steps of one candidate; prints the peak before and after them."""
    params, moments, step, batch = prepare(name, field, images, width)
    jax.block_until_ready(params)
    before = peak()
    for _ in range(2):
        params, moments, loss = step(params, moments, *batch)
        jax.block_until_ready(loss)
    print(json.dumps({"peak before MB": before, "peak MB": peak()}))


def peaks(name: str, field: str, images: str, width: int) -> dict[str, float]:
    """The peaks of a process of its own."""
    command = [sys.executable, __file__, "--child", name, field, images, "--width", str(width)]
    out = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(out.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description="Training steps at the paper's size: time and memory.")
    parser.add_argument("--quick", action="store_true", help="a smoke test with an encoder of width 4")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--fields", nargs="+", choices=FIELDS, default=list(FIELDS))
    parser.add_argument("--images", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.width, options.images = 1, 4, options.images[-1:]
    if options.child:
        name, field, images = options.child
        return child(name, field, images, options.width)
    environment, results = common.environment(), {}
    for field in options.fields:
        for images in options.images:
            found = measure(field, images, options.width, options.rounds)
            reference, alone = min(found[name]["ms"] for name in END_TO_END), found[ALONE]["ms"]
            print(f"\n{field} field, images {images}:")
            for name, row in found.items():
                row |= peaks(name, field, images, options.width)
                row["ratio to faster RK4"] = row["ms"] / reference
                if images != "none":
                    row["ms beyond encoder"] = row["ms"] - alone
                print(
                    f"  {name:36} {row['ms']:8.1f} ms  {row['ratio to faster RK4']:5.2f}  temporary {row['temporary MB']:6.0f} MB  "
                    f"peak {row['peak MB']:6.0f} MB (before {row['peak before MB']:.0f})  compiled in {row['compile s']:.1f} s",
                    flush=True,
                )
            results[f"{field}, {images}"] = found
    settings = {
        "batch": common.BATCH, "hidden": HIDDEN, "states": common.CLASSES, "samples": SAMPLES, "width": options.width,
        "rounds": options.rounds, "quick": options.quick,
    }  # fmt: skip
    common.write(options.out, "image_step", {"environment": environment, "settings": settings, "results": results})
    return None


if __name__ == "__main__":
    main()
