"""The MNIST example: slow, at full size with `pytest -m slow`, at reduced size where LYAPUNOV_DSL_REDUCED is set."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLE = Path(__file__).parents[1] / "examples" / "mnist.py"
SHARED = Path(__file__).parents[2] / "shared" / "tfds"
REDUCED = "LYAPUNOV_DSL_REDUCED" in os.environ

needs_mnist = pytest.mark.skipif(not (SHARED / "mnist").is_dir(), reason="needs MNIST prepared in ../shared/tfds")


def run(*arguments, check=True):
    command = [sys.executable, str(EXAMPLE), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=check)


@pytest.mark.slow
@needs_mnist
@pytest.mark.parametrize("readout", ["identity"] if REDUCED else ["identity", "linear"])
def test_monte_carlo_keeps_up_with_end_to_end(tmp_path, readout):
    size = ["--train-size", 6000, "--epochs", 2] if REDUCED else []
    done = run("--data-dir", SHARED, "--out", tmp_path, "--readout", readout, *size)
    results = json.loads((tmp_path / "results.json").read_text())
    rows = results["results"]
    assert results["settings"]["training images"] == (6000 if REDUCED else 60_000)
    assert results["settings"]["test images"] == 10_000
    assert list(rows) == ["Monte Carlo", "end to end"]
    errors = [row["test error"] for row in rows.values()]
    # At reduced size training ends long before it has converged; chance is 90 %.
    assert errors[0] <= (0.12 if REDUCED else 0.015)
    assert errors[0] - errors[1] <= (0.04 if REDUCED else 0.003)
    for row in rows.values():
        assert row["leaves H"] == 0
        losses = [epoch["loss"] for epoch in row["history"]]
        assert losses == sorted(losses, reverse=True)
        assert row["keeps promise"] >= (0 if REDUCED else 0.9)
    assert "Monte Carlo" in done.stdout
    for picture in ("error.png", "potential.png"):
        assert (tmp_path / picture).stat().st_size > 10_000


@pytest.mark.slow
def test_an_npz_and_a_second_call(tmp_path):
    """The same command a second time finds everything done, and says the same."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 512).astype(np.uint8)
    images = (rng.random((512, 28, 28)) * 40 + 20 * labels[:, None, None]).astype(np.uint8)
    np.savez(tmp_path / "mnist.npz", x_train=images, y_train=labels, x_test=images[:64], y_test=labels[:64])
    arguments = ["--data-dir", tmp_path, "--out", tmp_path / "out", "--epochs", 1, "--readout", "linear"]
    arguments += ["--methods", "Monte Carlo"]
    tables = []
    for _ in range(2):
        run(*arguments)
        results = json.loads((tmp_path / "out" / "results.json").read_text())
        tables.append(results["results"]["Monte Carlo"])
    assert tables[0] == tables[1]
    assert not results["settings"].keys() & {"data_dir", "out"}


@pytest.mark.slow
def test_without_data_one_sentence_says_what_to_do(tmp_path):
    (tmp_path / "mnist.npz").write_text("no archive")
    done = run("--data-dir", tmp_path, "--out", tmp_path / "out", check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("mnist.py: data_dir: expected an .npz with x_train, y_train, x_test, y_test, got ")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()
