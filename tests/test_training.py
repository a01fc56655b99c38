"""Training on real data: slow, at full size with `pytest -m slow`, at reduced size where LYAPUNOV_DSL_REDUCED is set."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

import lyapunov_dsl as ld

EXAMPLE = Path(__file__).parent.parent / "examples" / "digits.py"
REDUCED = "LYAPUNOV_DSL_REDUCED" in os.environ


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0] if REDUCED else [0, 1, 2])
def test_monte_carlo_learns_the_digits_and_keeps_its_promise(seed, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLE.parent))
    digits = runpy.run_path(str(EXAMPLE))
    train, _, (x, y) = digits["load"](seed)
    epochs = 15 if REDUCED else 40
    certificate = ld.Certificate.exponential(loss=ld.cross_entropy, kappa=2)
    program = ld.compile(digits["make_system"](jax.random.key(seed)), certificate, example=(x[0], y[0]))
    steps = epochs * (len(train[1]) // 64)
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, steps))
    fitted = ld.fit(program, train, optimizer=optimizer, epochs=epochs, key=jax.random.key(seed), progress=False)
    program = fitted.program
    assert program.error(x, y) <= (0.06 if REDUCED else 0.03)
    values = np.asarray(program.potential(x, y, times=np.array([0, 0.25, 0.5, 0.75, 1]))["exponential"])
    kept = (values[:, 1:] <= 1.05 * values[:, :1] * np.exp(-2 * np.array([0.25, 0.5, 0.75, 1]))).all(axis=1)
    right = np.asarray(program.predict(x)).argmax(axis=1) == y
    assert kept[right].mean() >= 0.95
    assert ld.assess(program, (x, y)).claims["domain.left"].value == 0


@pytest.mark.slow
def test_the_main_job_writes_what_it_promises(tmp_path):
    command = [sys.executable, str(EXAMPLE), "--out", str(tmp_path), "--epochs", "2" if REDUCED else "40"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    results = json.loads((tmp_path / "results.json").read_text())["results"]
    assert set(results) == {"Monte Carlo", "path integral", "end to end"}
    for row in results.values():
        assert {"test error", "PGD Linf 8/255", "PGD L2 127/255", "violations", "leaves H", "error t=0.25"} <= set(row)
        assert row["PGD Linf 8/255"] >= row["test error"]
        assert row["leaves H"] == 0
    assert "Monte Carlo" in run.stdout
    for picture in ("phase_portrait.png", "potential.png"):
        assert (tmp_path / picture).stat().st_size > 10_000
