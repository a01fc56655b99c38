"""How long a first proof takes, in a process that has compiled nothing.

    python benchmarks/first_proof.py                  # docs/results/first_proof.json, two minutes on two quiet cores
    python benchmarks/first_proof.py --rounds 1

A damped pendulum with a quadratic V, and with networks of two widths in V; a claim that is false; each in processes of their own, and the
median over rounds. Seconds are of `verify` with `check=False`, and of writing the proof and checking it; importing is not counted.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
CASES = {"quadratic": (0, 0.05), "network 2-16-16-8": (16, 0.05), "network 2-48-48-8": (48, 0.05), "refuted": (0, 2.0)}


def prove(width: int, kappa: float) -> dict[str, Any]:
    """One proof in this process."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    import numpy as np

    import lyapunov_dsl as ld
    from lyapunov_checker import check

    form = np.asarray([[1.5, 0.5], [0.5, 1.5]], np.float32)
    system = ld.System(
        vector_field=lambda t, s, c: jnp.stack([s[1], -jnp.sin(s[0]) - 0.5 * s[1]]), domain=ld.Box(-1, 1)
    )
    value = lambda s: s @ form @ s
    if width:
        network = eqx.nn.MLP(2, 8, width, 2, jnp.tanh, use_bias=False, use_final_bias=False, key=jax.random.key(0))
        value = lambda s: s @ form @ s + 0.01 * jnp.sum(network(s) ** 2)
    certificate = ld.Certificate.exponential(value, kappa=kappa)
    asked: dict[str, Any] = {"claims": ("decrease", "definite", "enclosed"), "equilibrium": np.zeros(2), "strict": True}
    began = time.perf_counter()
    found = ld.verify(system, certificate, level=0.3, check=False, **asked)
    took = time.perf_counter() - began
    began = time.perf_counter()
    if found.proof is not None:
        check(found.proof.written())
    return {
        "status": found.status.name, "boxes": found.boxes, "seconds": took, "checker": time.perf_counter() - began,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="First proofs.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--case", choices=list(CASES), help="one proof in this process, printed as JSON")
    parser.add_argument("--out", type=Path, default=RESULTS / "first_proof.json")
    options = parser.parse_args()
    if options.case:
        print(json.dumps(prove(*CASES[options.case])))
        return
    record: dict[str, Any] = {}
    for case in CASES:
        runs = []
        for _ in range(options.rounds):
            command = [sys.executable, __file__, "--case", case]
            runs.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        same = {(run["status"], run["boxes"]) for run in runs}
        assert len(same) == 1, same
        middle = {name: round(statistics.median(run[name] for run in runs), 2) for name in ("seconds", "checker")}
        record[case] = {"status": runs[0]["status"], "boxes": runs[0]["boxes"], **middle}
        print(f"{case:20} {record[case]}", flush=True)
    options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
