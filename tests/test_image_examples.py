"""The scripts on FashionMNIST and CIFAR: slow, on data drawn by `tfds.testing.mock_data`, at a width that says nothing."""

import json
import os
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
REDUCED = "LYAPUNOV_DSL_REDUCED" in os.environ
ALL = ["resnet18", "continuous", "continuous-lyanet", "neural-ode", "lyanet", "flow-matching"]


@pytest.fixture
def script(monkeypatch, tfds, prepared, tmp_path):
    """Runs a script in this process on mocked data; returns what is in its results.json."""
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def run(name, *arguments):
        folder = tmp_path / name if (tmp_path / name).exists() else prepared(name).parent
        out = tmp_path / "out"
        command = [f"{name}.py", "--data-dir", str(tmp_path), "--out", str(out), "--width", "8", "--epochs", "1"]
        monkeypatch.setattr(sys, "argv", [*command, *arguments])
        # Another folder than the script's, which finds its prepared data set by itself.
        with tfds.testing.mock_data(num_examples=100, data_dir=str(next(folder.iterdir()))):
            runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return json.loads((out / "results.json").read_text()), out

    return run


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fashion_mnist", "cifar100"] if REDUCED else ["fashion_mnist", "cifar10", "cifar100"])
def test_a_script_trains_attacks_and_writes_everything(script, capsys, name):
    methods = ALL if not REDUCED else ["resnet18", "lyanet"] if name == "fashion_mnist" else ["lyanet"]
    found, out = script(name, "--preset", "smoke", "--methods", *methods)
    printed = capsys.readouterr().out
    assert found["settings"]["measurement"] is False
    assert found["settings"]["training images"] == 100
    assert list(found["results"]) == methods
    for row in found["results"].values():
        for figure in ("test error", "PGD Linf 8/255", "PGD L2 127/255"):
            assert 0 <= row[figure] <= 1
        assert row["PGD Linf 8/255"] >= row["nominal, attacked images"]
        assert row["examples per second"] > 0
        assert row["model GFLOP/s"] > 0
        assert 0 < row["model FLOP use"] < 1
        assert row["peak memory GB"] > 0.1
    assert "a smoke test and no measurement" in printed
    assert (out / "figure_3.png").stat().st_size > 10_000
    for method in methods:
        assert (out / method / "checkpoint.npz").exists()


@pytest.mark.slow
def test_a_second_call_finds_everything_done(script):
    tables = [script("mnist", "--methods", "lyanet", "--readout", "linear")[0]["results"]["lyanet"] for _ in range(2)]
    for row in tables:
        row.pop("peak memory GB"), row.pop("model FLOP use")
    assert tables[0] == tables[1]


@pytest.mark.slow
@pytest.mark.skipif(REDUCED, reason="at full size only")
def test_the_papers_setting_trains_with_its_own_optimizer_and_dynamics(script):
    found, _ = script("mnist", "--preset", "paper", "--methods", "lyanet", "resnet18", "neural-ode")
    assert found["settings"]["lyanet_batch"] == 64
    for row in found["results"].values():
        assert row["history"][0]["loss"] < 20


@pytest.mark.slow
def test_half_precision_trains(script):
    found, _ = script("mnist", "--precision", "bfloat16", "--methods", *(["lyanet"] if REDUCED else ALL))
    assert found["settings"]["precision"] == "bfloat16"


def test_a_readout_for_methods_that_have_none_is_refused(script, capsys):
    with pytest.raises(SystemExit):
        script("mnist", "--readout", "linear", "--methods", "flow-matching")
    assert "--readout linear: not for" in capsys.readouterr().err
