"""How long a first proof takes, in a process that has compiled nothing, and in the one after it.

    python benchmarks/first_proof.py                  # docs/results/first_proof.json, five minutes on two quiet cores
    python benchmarks/first_proof.py --rounds 1

A damped pendulum with a quadratic V, and with networks of two widths in V; a claim that is false; a certified radius of the network of
`benchmarks/certify.py`, before training; a Lipschitz constant. Each in processes of their own, twice with one folder for compiled
programs, which is empty the first time (on Linux, where a variable says where it is); and the
median over rounds. Seconds are of the call (of `prove` with `check=False`), and of
writing the proof and checking it; importing is not counted.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"


# What is timed, and what is recorded of what it finds.
Case = tuple[Callable[[], Any], Callable[[Any], list[str | float]]]


def proof(width: int, kappa: float) -> Case:
    """A proof for a network so wide in V, none for 0; and what is checked of what it finds."""
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
    region = ld.RegionOfAttraction(level=0.3, equilibrium=np.zeros(2))

    def checked(found: ld.Verification) -> list[str | float]:
        if found.proof is not None:
            check(found.proof.written())
        return [found.status.name, found.boxes]

    condition, prover = ld.Condition(system, certificate), ld.Prover(check=False)
    return lambda: ld.prove(condition, region, prover=prover), checked


def radius() -> Case:
    """A certified radius of one image of the digits, of the class that the network says."""
    import certify
    import diffrax
    import jax
    import numpy as np
    from sklearn.datasets import load_digits

    import lyapunov_dsl as ld

    x = (load_digits(return_X_y=True)[0][:1] / 16).astype(np.float32)
    certificate = ld.Certificate.exponential(
        loss=ld.truncated(ld.cross_entropy, certify.TRUNCATION), kappa=certify.KAPPA
    )
    program = ld.compile(
        certify.system_of(128, 8.0, jax.random.key(0)), certificate, (x[0], np.int32(0)),
        solver=ld.Solver(diffrax.Euler(), dt=1 / certify.STEPS),
    )  # fmt: skip
    y = np.asarray(program.predict(x)).argmax(-1).astype(np.int32)
    robust = ld.InputRobustness(radii=certify.RADII, truncation=certify.TRUNCATION, kappa=certify.PROVED)
    return lambda: ld.prove(program, robust, at=(x, y)), lambda v: [float(v.radius[0])]


def constant() -> Case:
    """A Lipschitz constant of a small network."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp

    from lyapunov_dsl import bounds

    network = eqx.nn.MLP(2, 2, 48, 2, jnp.tanh, key=jax.random.key(0))
    box = bounds.Box(jnp.full(2, -0.5), jnp.full(2, 0.5))
    return lambda: bounds.lipschitz(network, box), lambda v: [round(float(v), 6)]


CASES: dict[str, Callable[[], Case]] = {
    "quadratic": partial(proof, 0, 0.05), "network 2-16-16-8": partial(proof, 16, 0.05),
    "network 2-48-48-8": partial(proof, 48, 0.05), "refuted": partial(proof, 0, 2.0), "certified radius": radius,
    "Lipschitz constant": constant,
}  # fmt: skip


def measured(case: str) -> dict[str, Any]:
    """One case in this process."""
    call, checked = CASES[case]()
    began = time.perf_counter()
    found = call()
    took = time.perf_counter() - began
    began = time.perf_counter()
    return {"found": checked(found), "seconds": took, "checker": time.perf_counter() - began}


def main() -> None:
    parser = argparse.ArgumentParser(description="First proofs.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--case", choices=list(CASES), help="one of them in this process, printed as JSON")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--out", type=Path, default=RESULTS / "first_proof.json")
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measured(options.case)))
        return
    record: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    for case in options.cases:
        runs: list[list[dict[str, Any]]] = [[], []]
        for _ in range(options.rounds):
            with tempfile.TemporaryDirectory() as folder:
                for which in runs:
                    command = [sys.executable, __file__, "--case", case]
                    environment = os.environ | {"XDG_CACHE_HOME": folder}
                    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
                    which.append(json.loads(done.stdout))
        (found,) = {json.dumps(run["found"]) for which in runs for run in which}
        first, second = (
            {name: round(statistics.median(run[name] for run in which), 2) for name in ("seconds", "checker")}
            for which in runs
        )
        record[case] = {"found": json.loads(found), **first, "second process": second["seconds"]}
        print(f"{case:20} {record[case]}", flush=True)
    options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
