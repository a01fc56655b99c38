"""MNIST by the methods of Table 1: slow, at full size only, with `pytest -m slow`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[1] / "examples" / "mnist.py"
SHARED = Path(__file__).parents[2] / "shared" / "tfds"

needs_mnist = pytest.mark.skipif(not (SHARED / "mnist").is_dir(), reason="needs MNIST prepared in ../shared/tfds")


def run(*arguments, check=True):
    command = [sys.executable, str(EXAMPLE), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=check)


@pytest.mark.full
@needs_mnist
@pytest.mark.parametrize("readout", ["identity", "linear"])
def test_monte_carlo_keeps_up_with_end_to_end(tmp_path, readout):
    methods = ["lyanet", "neural-ode"]
    if readout == "identity":
        methods += ["resnet18", "continuous", "continuous-lyanet"]
    done = run("--data-dir", SHARED, "--out", tmp_path, "--readout", readout, "--methods", *methods)
    results = json.loads((tmp_path / "results.json").read_text())
    rows = results["results"]
    assert results["settings"]["training images"] == 60_000
    assert results["settings"]["test images"] == 10_000
    assert results["settings"]["measurement"]
    assert set(rows) == set(methods)
    rows = {method: rows[method] for method in methods}
    errors = [row["test error"] for row in rows.values()]
    assert max(errors) <= 0.02
    assert errors[0] - errors[1] <= 0.003
    for row in rows.values():
        losses = [epoch["loss"] for epoch in row["history"]]
        assert losses[-1] < losses[0]
        assert row["PGD L2 127/255"] >= row["nominal, attacked images"]
    for row in list(rows.values())[:2]:
        assert row["leaves H"] == 0
        assert row["keeps promise"] >= 0.9
    assert "LyaNet" in done.stdout
    assert (tmp_path / "figure_3.png").stat().st_size > 10_000


@pytest.mark.slow
def test_without_data_one_sentence_says_what_to_do(tmp_path):
    (tmp_path / "mnist.npz").write_text("no archive")
    done = run("--data-dir", tmp_path, "--out", tmp_path / "out", check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("mnist.py: data_dir: expected an .npz with x_train, y_train, x_test, y_test, got ")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()
