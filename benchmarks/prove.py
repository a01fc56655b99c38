"""Proofs over regions: how many boxes and how long.

    python benchmarks/prove.py --networks DIR      # docs/results/prove.json, about five minutes
    python benchmarks/prove.py --check             # also writes the proofs and checks them

- net_k10 (in DIR): dV/dt + V <= 0 with V = cross entropy of class 0 on [-h, h]^10, for several h;
- reversed Van der Pol and the pendulum: {V <= c} with V = sᵀPs, AᵀP + PA = -I, at 0.98 and 1.02 of the largest c;
- a linear system at 0.98 and 1.02 of the largest κ.

Seconds are of the whole call, compilation included.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import common
import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg as sl

import lyapunov_dsl as ld
from lyapunov_checker import check

HALF_WIDTHS = (1.0, 1.25, 1.5)
FACTORS = (0.98, 1.02)


def network(folder: Path) -> tuple[Any, np.ndarray]:
    """The field of net_k10, and its context."""
    data = np.load(folder / "net_k10.npz")
    layers = [(data[f"W{i}"], data[f"b{i}"]) for i in range(3)]

    def field(t: Any, state: Any, context: Any) -> Any:
        hidden = jnp.concatenate([state, context])
        for weight, bias in layers[:-1]:
            hidden = jnp.tanh(weight @ hidden + bias)
        return layers[-1][0] @ hidden + layers[-1][1]

    return field, data["x"]


def lyapunov(a: np.ndarray) -> np.ndarray:
    return sl.solve_continuous_lyapunov(a.T, -np.eye(len(a)))


def quadratic(p: np.ndarray) -> Any:
    return lambda state, target: state @ jnp.asarray(p) @ state


def van_der_pol(t: Any, s: Any, context: Any) -> Any:
    return jnp.stack([-s[1], s[0] - s[1] * (1 - s[0] ** 2)])


def pendulum(t: Any, s: Any, context: Any) -> Any:
    return jnp.stack([s[1], -jnp.sin(s[0]) - 0.5 * s[1]])


CLASSICAL = {
    "van der Pol": (van_der_pol, np.array([[0.0, -1.0], [1.0, -1.0]])),
    "pendulum": (pendulum, np.array([[0.0, 1.0], [-1.0, -0.5]])),
}


def largest_level(field: Any, p: np.ndarray) -> float:
    """c*: the least V at a state other than 0 at which V does not fall, by bisection along 200,001 rays."""
    angles = np.linspace(0, np.pi, 200_001)
    rays = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    rays /= np.sqrt(np.einsum("ni,ij,nj->n", rays, p, rays))[:, None]
    with jax.enable_x64(True):
        rate = jax.jit(jax.vmap(lambda s: 2 * (s @ p) @ field(0.0, s, None)))
        rises = lambda level: np.asarray(rate(jnp.asarray(np.sqrt(level) * rays))) >= 0
        # Coarsely outward, for the first level of every ray; then between the last two.
        grid = np.linspace(0, 20, 401)[1:]
        first = grid[next(i for i, level in enumerate(grid) if rises(level).any())]
        low, high = first - 0.05, first
        for _ in range(40):
            middle = 0.5 * (low + high)
            low, high = (low, middle) if rises(middle).any() else (middle, high)
    return high


def report(name: str, found: ld.Verification, options: argparse.Namespace) -> dict[str, Any]:
    """One line, and what is recorded."""
    row: dict[str, Any] = {"status": found.status.name, "boxes": found.boxes, "seconds": found.seconds}
    if options.check and found.proof is not None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "proof.npz"
            began = time.perf_counter()
            try:
                found.proof.save(path, boxes=options.boxes)
                row["seconds to write"] = time.perf_counter() - began
                began = time.perf_counter()
                row["checked boxes"] = check(path).boxes
                row["seconds to check"] = time.perf_counter() - began
            except ValueError as error:
                row["not written"] = str(error)
    print(
        f"{name:32}",
        ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()),
        flush=True,
    )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description="Proofs over regions.")
    parser.add_argument("--networks", type=Path, default=None, help="a folder with net_k10.npz")
    parser.add_argument("--check", action="store_true", help="write the proofs and check them")
    parser.add_argument("--boxes", type=int, default=20_000, help="that a proof which is written may have")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    record: dict[str, Any] = {"environment": common.environment()}
    if options.networks is not None:
        field, x = network(options.networks)
        for h in HALF_WIDTHS:
            system = ld.System(
                input=lambda x: ld.Start(jnp.zeros(10, x.dtype), x), vector_field=field, domain=ld.Box(-h, h)
            )
            certificate = ld.Certificate.exponential(loss=ld.cross_entropy, kappa=1)
            found = ld.prove(
                ld.Condition(system, certificate),
                ld.Decrease(),
                at=(x, np.asarray(0)),
                prover=ld.Prover(progress=sys.stderr.isatty(), check=False),
            )
            record[f"net_k10, half-width {h}"] = report(f"net_k10, half-width {h}", found, options)
    for name, (field, a) in CLASSICAL.items():
        p = lyapunov(a)
        largest = largest_level(field, p)
        record[f"{name}, largest level"] = largest
        print(f"{name}: the largest level is {largest:.6g}")
        for factor in FACTORS:
            level = factor * largest
            reach = 1.05 * np.sqrt(level * np.diag(np.linalg.inv(p)))
            system = ld.System(vector_field=field, domain=ld.Box(-reach, reach))
            certificate = ld.Certificate.exponential(loss=quadratic(p), kappa=1e-3)
            region = ld.RegionOfAttraction(level=level, equilibrium=np.zeros(2))
            found = ld.prove(ld.Condition(system, certificate), region, prover=ld.Prover(check=False))
            record[f"{name}, {factor}"] = report(f"{name}, {factor} of it", found, options)
    a = np.array([[-1.0, 2.0], [-1.0, -3.0]])
    p = lyapunov(a)
    root = np.real(sl.sqrtm(np.linalg.inv(p)))
    largest = float(np.linalg.eigvalsh(root @ root).min())
    system = ld.System(vector_field=lambda t, s, c: jnp.asarray(a) @ s, domain=ld.Box(-1, 1))
    for factor in (*FACTORS, 1 + 1e-3, 1 + 1e-6):
        certificate = ld.Certificate.exponential(loss=quadratic(p), kappa=factor * largest)
        decrease, prover = ld.Decrease(equilibrium=np.zeros(2)), ld.Prover(boxes=100_000, check=False)
        found = ld.prove(ld.Condition(system, certificate), decrease, prover=prover)
        record[f"linear, {factor}"] = report(f"linear, {factor} of the rate", found, options)
    common.write(options.out, "prove", record)


if __name__ == "__main__":
    main()
