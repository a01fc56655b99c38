"""The scripts on FashionMNIST and CIFAR: slow, on data drawn by `tfds.testing.mock_data`, at a width that says nothing."""

import json
import os
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
# Most of the time is spent compiling.
pytestmark = pytest.mark.usefixtures("quick")
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
@pytest.mark.parametrize("name", ["fashion_mnist"] if REDUCED else ["fashion_mnist", "cifar10", "cifar100"])
def test_a_script_trains_attacks_and_writes_everything(script, capsys, name):
    methods = ALL if not REDUCED else ["resnet18", "lyanet"] if name == "fashion_mnist" else ["lyanet"]
    found, out = script(name, "--preset", "smoke", "--methods", *methods)
    printed = capsys.readouterr().out
    assert found["settings"]["measurement"] is False
    assert found["settings"]["training images"] == 100
    assert set(found["results"]) == set(methods)
    for row in found["results"].values():
        for figure in ("test error", "PGD Linf 8/255", "PGD L2 127/255"):
            assert 0 <= row[figure] <= 1
        assert row["PGD Linf 8/255"] >= row["nominal, attacked images"]
        assert row["examples per second"] > 0
        assert row["model GFLOP/s"] > 0
        assert 0 < row["model FLOP use"] < 1
        assert row["peak memory so far, GB"] > 0.1
        assert row["compile seconds"] > 0
    assert "a smoke test and no measurement" in printed
    assert set(found["figure_3"]["error"]) == {sys.modules["_images"].METHODS[method] for method in methods}
    assert (out / "figure_3.png").stat().st_size > 10_000
    for method in methods:
        assert (out / method / "checkpoint.npz").exists()


@pytest.mark.slow
@pytest.mark.skipif(REDUCED, reason="at full size only")
def test_a_second_call_finds_everything_done_and_another_folder_is_wanted_for_other_settings(script, capsys):
    arguments = ["mnist", "--methods", "lyanet", "--readout", "linear"]
    tables = [script(*arguments)[0]["results"]["lyanet"] for _ in range(2)]
    # What is measured anew.
    for row in tables:
        for name in (
            "peak memory so far, GB",
            "model FLOP use",
            "compile seconds",
            "examples per second",
            "model GFLOP/s",
        ):
            assert row.pop(name) >= 0
    assert tables[0] == tables[1]
    both, _ = script("mnist", "--methods", "neural-ode", "--readout", "linear")
    assert set(both["results"]) == {"lyanet", "neural-ode"}
    with pytest.raises(SystemExit, match=r"is of a run with rate 0\.003 and not 0\.5; give another --out"):
        script(*arguments, "--rate", "0.5")


@pytest.mark.slow
@pytest.mark.skipif(REDUCED, reason="at full size only")
@pytest.mark.parametrize("dynamics", ["invariant", "paper"])
def test_the_papers_optimizer_and_dynamics(script, dynamics):
    methods = [method for method in ALL if dynamics == "invariant" or method in ("neural-ode", "lyanet")]
    found, out = script("mnist", "--preset", "paper", "--dynamics", dynamics, "--methods", *methods)
    for row in found["results"].values():
        assert np.isfinite(row["history"][0]["loss"])
    # A solve that fails would be counted as an error, and its potential be NaN.
    for curve in found["figure_3"]["median potential"].values():
        assert np.isfinite(curve).all()
    assert (out / "table_1.md").read_text().count("\n") == 2 + len(methods)


@pytest.mark.slow
@pytest.mark.skipif(REDUCED, reason="at full size only")
def test_half_precision_trains(script):
    found, _ = script("mnist", "--precision", "bfloat16", "--methods", *ALL)
    assert found["settings"]["precision"] == "bfloat16"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--readout", "linear", "--methods", "flow-matching"], "--readout linear: not for"),
        (["--dynamics", "paper", "--methods", "flow-matching"], "--dynamics paper: not for flow matching"),
        (["--dynamics", "paper", "--kappa", "1"], "--kappa: not for the paper's dynamics"),
        (["--count", "0"], "invalid positive int value: '0'"),
    ],
)
def test_what_does_not_go_together_is_refused(script, capsys, arguments, message):
    with pytest.raises(SystemExit):
        script("mnist", *arguments)
    assert message in capsys.readouterr().err
