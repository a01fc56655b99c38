"""What the benchmarks share: the digits, the network trained on them, baselines the library has no name for, and
records.

The network is that of `examples/digits.py`; keep the two the same.
"""

import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import StratifiedKFold

import lyapunov_dsl as ld
from lyapunov_dsl._objective._base import example_keys, starts
from lyapunov_dsl._solve import solve

KAPPA = 2
RATE = 8
CLASSES = 10
BATCH = 64
# Before anything is measured.
LOAD = os.getloadavg()[0]
RESULTS = Path(__file__).parent.parent / "docs" / "results"


def load() -> tuple[np.ndarray, np.ndarray]:
    """The 1,797 images, float32 (1797, 1, 8, 8) with pixels in [0, 1], and their classes, int32."""
    digits: Any = load_digits()
    return (digits.images / 16).astype(np.float32)[:, None], digits.target.astype(np.int32)


def folds(x: np.ndarray, y: np.ndarray, count: int = 5, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Index arrays (train, test) of a stratified split."""
    return list(StratifiedKFold(count, shuffle=True, random_state=seed).split(x, y))


class Encoder(eqx.Module):
    """η(0) = 0, and what the field may know of the image."""

    convolutions: ld.nn.ConvEncoder
    states: int = eqx.field(static=True, default=CLASSES)

    def __call__(self, image: Any) -> ld.Start:
        return ld.Start(state=jnp.zeros(self.states, image.dtype), context=self.convolutions(image))


def make_system(
    key: Any, kappa: Any = KAPPA, *, width: int = 64, shape: tuple[int, int, int] = (1, 8, 8), states: int = CLASSES
) -> ld.System:
    """The digits network: a small convolutional encoder and a dense field that keeps the cube H invariant. Of more states than classes the
    first ones are the logits."""
    encoder_key, field_key = jax.random.split(key)
    # Twice the half-width of eq. 49, so that H has room below the promised V(1).
    half_width = 2 * ld.radius_for(ld.cross_entropy, kappa, CLASSES)
    inner = ld.nn.MLPField(states, 64, width=width, key=field_key)
    return ld.System(
        input=Encoder(ld.nn.ConvEncoder(shape, 64, key=encoder_key), states),
        vector_field=ld.nn.InvariantField(inner, half_width, rate=RATE),
        readout=ld.identity if states == CLASSES else lambda state: state[:CLASSES],
        domain=ld.Box(-half_width, half_width),
    )


def certificate(kappa: Any = KAPPA) -> Any:
    """Exponential stability of the cross entropy."""
    return ld.Certificate.exponential(loss=ld.cross_entropy, kappa=kappa)


class RK4(diffrax.AbstractERK):
    """The classical Runge-Kutta method, which diffrax does not have."""

    tableau = diffrax.ButcherTableau(
        c=np.array([0.5, 0.5, 1.0]),
        b_sol=np.array([1 / 6, 1 / 3, 1 / 3, 1 / 6]),
        b_error=np.zeros(4),
        a_lower=(np.array([0.5]), np.array([0.0, 0.5]), np.array([0.0, 0.0, 1.0])),
    )
    interpolation_cls = diffrax.ThirdOrderHermitePolynomialInterpolation.from_k

    def order(self, terms: Any) -> int:
        return 4


class Unrolled(ld.Objective):
    """The supervised loss after equal explicit Runge-Kutta steps, with steps and stages unrolled: no loop at all.

    The stages are written out from diffrax's tableau, because diffrax takes those of a method with several in a loop.
    """

    steps: int = eqx.field(static=True)
    method: Any

    def check(self, condition: Any, start: Any) -> None:
        pass

    def __call__(self, condition: Any, x: Any, y: Any, *, key: Any) -> Any:
        keys = example_keys(key, x)
        tableau = getattr(self.method, "tableau", None)
        weights, nodes, rows = ([1.0], [], []) if tableau is None else (tableau.b_sol, tableau.c, tableau.a_lower)

        def one(start: Any, target: Any, key: Any) -> Any:
            system, state = condition.continuous, start.state
            dt = system.horizon / self.steps

            def moved(coefficients: Any, slopes: list) -> Any:
                return state + dt * sum(float(a) * k for a, k in zip(coefficients, slopes, strict=True) if a != 0)

            for i in range(self.steps):
                t = jnp.asarray(i * dt, state.dtype)
                slopes = [system.velocity(t, state, start.context, key)]
                for c, row in zip(nodes, rows, strict=True):
                    slopes.append(system.velocity(t + float(c) * dt, moved(row, slopes), start.context, key))
                state = moved(weights, slopes)
            t = jnp.asarray(system.horizon, state.dtype)
            return condition.weighted(condition.values(t, state, condition.point(start, target, key)))

        return jnp.mean(eqx.filter_vmap(one)(starts(condition, x, keys), y, keys))


class Joint(ld.Objective):
    """End to end with the whole batch as one state: one step size for all, no batched loop condition."""

    solver: ld.Solver

    def check(self, condition: Any, start: Any) -> None:
        pass

    def __call__(self, condition: Any, x: Any, y: Any, *, key: Any) -> Any:
        begun = starts(condition, x, example_keys(key, x))
        system = condition.continuous
        batch = eqx.tree_at(lambda s: s.vector_field, system, _OverBatch(system.vector_field))
        solution = solve(batch, begun, None, self.solver)
        final = jax.tree.map(lambda leaf: leaf[-1], solution.ys)
        t = jnp.asarray(system.horizon, jnp.result_type(*jax.tree.leaves(final)))
        at = lambda start, state, target: condition.weighted(condition.values(t, state, condition.point(start, target)))
        loss = jnp.mean(eqx.filter_vmap(at)(begun, final, y))
        return jnp.where(diffrax.is_okay(solution.result), loss, jnp.nan)


class _OverBatch(eqx.Module):
    field: Any

    def __call__(self, t: Any, state: Any, context: Any) -> Any:
        return jax.vmap(self.field, in_axes=(None, 0, 0))(t, state, context)


def make_step(program: ld.Program, optimizer: Any) -> tuple[Any, Any, Any]:
    """One training step: loss, gradient, update; jitted, parameters and moments donated.

    **Returns:** the parameters, the moments, and `step(params, moments, x, y, key) -> (params, moments, loss)`.
    """
    params, static = eqx.partition(program, ld.trainable(program))
    params = jax.tree.map(jnp.copy, params)

    def step(params: Any, moments: Any, x: Any, y: Any, key: Any) -> Any:
        loss, grads = jax.value_and_grad(lambda p: eqx.combine(p, static).loss(x, y, key=key))(params)
        updates, moments = optimizer.update(grads, moments, params)
        return eqx.apply_updates(params, updates), moments, loss

    return params, optimizer.init(params), jax.jit(step, donate_argnums=(0, 1))


def time_steps(
    programs: dict[str, ld.Program], x: Any, y: Any, *, rounds: int, budget: float, label: str = ""
) -> dict[str, dict[str, float]]:
    """Milliseconds a training step, seconds of compilation and XLA's temporary memory of some programs on one batch.

    Interleaved rounds of as many steps as fit `budget` seconds; the median over rounds.
    """
    optimizer, x, y, key = optax.adam(1e-3), jnp.asarray(x), jnp.asarray(y), jax.random.key(1)
    state, rows, counts = {}, {}, {}
    for name, program in programs.items():
        params, moments, step = make_step(program, optimizer)
        began = time.perf_counter()
        step = step.lower(params, moments, x, y, key).compile()
        rows[name] = {
            "compile s": time.perf_counter() - began,
            "temporary MB": step.memory_analysis().temp_size_in_bytes / 1e6,
        }
        loss = jnp.zeros(())
        for _ in range(3):
            began = time.perf_counter()
            params, moments, loss = step(params, moments, x, y, key)
            jax.block_until_ready(loss)
        counts[name] = max(1, min(200, int(budget / (time.perf_counter() - began))))
        state[name] = (params, moments, step)
        print(f"  {label:12} {name:40} compiled in {rows[name]['compile s']:5.1f} s", flush=True)
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, (params, moments, step) in state.items():
            began, loss = time.perf_counter(), None
            for _ in range(counts[name]):
                params, moments, loss = step(params, moments, x, y, key)
            jax.block_until_ready(loss)
            seconds[name].append((time.perf_counter() - began) / counts[name])
            state[name] = (params, moments, step)
    return {name: row | {"ms": 1e3 * float(np.median(seconds[name]))} for name, row in rows.items()}


def train(program: ld.Program, step: Any, optimizer: Any, x: Any, y: Any, *, epochs: int, seed: int) -> ld.Program:
    """`epochs` over the data with a step of `make_step`, which is compiled once and used for many runs.

    `step` has to come from a program of the same structure; it is the one that is timed.
    """
    params, static = eqx.partition(program, ld.trainable(program))
    params = jax.tree.map(jnp.copy, params)
    moments = optimizer.init(params)
    order, keys = np.random.default_rng(seed), jax.random.split(jax.random.key(seed), epochs * (len(y) // BATCH))
    keys = iter(keys)
    for _ in range(epochs):
        shuffled = order.permutation(len(y))
        for begin in range(0, len(y) - BATCH + 1, BATCH):
            batch = shuffled[begin : begin + BATCH]
            params, moments, _ = step(params, moments, x[batch], y[batch], next(keys))
    return eqx.combine(params, static)


def environment() -> dict[str, Any]:
    """Hardware and versions, for the record."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        processor = names[0] if names else processor
    return {
        "backend": jax.default_backend(),
        "devices": [str(device.device_kind) for device in jax.devices()],
        "processor": processor,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load before": LOAD,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {
            name: version(name) for name in ("jax", "jaxlib", "equinox", "diffrax", "optax", "numpy", "scikit-learn")
        },
        "lyapunov_dsl": ld.__version__,
        "commit": _commit(),
        "command": " ".join(["python", *sys.argv]),
        "date": time.strftime("%Y-%m-%d"),
    }


def _commit() -> str:
    try:
        here = Path(__file__).parent
        out = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True)
        return out.stdout.strip() or "unknown"
    except OSError:
        return "unknown"


def write(path: Path | None, name: str, record: dict[str, Any]) -> None:
    """Writes a record to `path`, by default `docs/results/NAME.json`; of a smoke test, `record["quick"]`, to a given path only."""
    if path is None and record.get("quick"):
        print("\na smoke test: no record")
        return
    path = RESULTS / f"{name}.json" if path is None else path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"\nwrote {path}")
