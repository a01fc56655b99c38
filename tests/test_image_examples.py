"""The scripts on CIFAR and FashionMNIST: slow, on small made-up data in the files' layout, at a width that says nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
REDUCED = "LYAPUNOV_DSL_REDUCED" in os.environ
SHAPES = {"cifar10": (32, 32, 3), "cifar100": (32, 32, 3), "fashion_mnist": (28, 28)}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fashion_mnist"] if REDUCED else list(SHAPES))
def test_a_script_trains_attacks_and_writes_everything(tmp_path, name):
    rng = np.random.default_rng(0)
    classes = 100 if name == "cifar100" else 10
    labels = (np.arange(128) % classes).astype(np.uint8)
    images = rng.integers(0, 256, (128, *SHAPES[name])).astype(np.uint8)
    np.savez(tmp_path / f"{name}.npz", x_train=images, y_train=labels, x_test=images[:100], y_test=labels[:100])
    methods = ["lyanet", "resnet18"] if REDUCED else ["lyanet", "neural-ode", "flow-matching", "resnet18", "continuous",
                                                      "continuous-lyanet"]  # fmt: skip
    command = [sys.executable, EXAMPLES / f"{name}.py", "--data-dir", tmp_path, "--out", tmp_path / "out"]
    command += ["--preset", "smoke", "--width", "8", "--epochs", "1", "--methods", *methods]
    run = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert found["settings"]["measurement"] is False
    assert list(found["results"]) == methods
    for row in found["results"].values():
        for figure in ("test error", "PGD Linf 8/255", "PGD L2 127/255"):
            assert 0 <= row[figure] <= 1
        assert row["PGD Linf 8/255"] >= row["nominal, attacked images"]
        assert row["examples per second"] > 0
        assert row["model GFLOP/s"] > 0
    assert "a smoke test and no measurement" in run.stdout
    assert (tmp_path / "out" / "figure_3.png").stat().st_size > 10_000
    for method in methods:
        assert (tmp_path / "out" / method / "checkpoint.npz").exists()
