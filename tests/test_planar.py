"""The planar example: slow, at full size with `pytest -m slow`, at reduced size where LYAPUNOV_DSL_REDUCED is set."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parent.parent / "examples" / "planar.py"
REDUCED = "LYAPUNOV_DSL_REDUCED" in os.environ
PICTURES = ("planar.png", "level_sets.png", "phase_portrait.png", "potential.png", "error.png")


@pytest.mark.slow
def test_the_planar_example_writes_what_it_promises(tmp_path: Path) -> None:
    epochs = 15 if REDUCED else 100
    command = [sys.executable, str(EXAMPLE), "--out", str(tmp_path), "--epochs", str(epochs)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    record = json.loads((tmp_path / "results.json").read_text())
    assert record["settings"]["epochs"] == epochs
    results = record["results"]
    assert list(results) == ["MLP", "Neural ODE", "LyaNet"]
    sizes = [row["parameters"] for row in results.values()]
    assert max(sizes) <= 1.05 * min(sizes)
    for name, row in results.items():
        assert name in run.stdout
        # The moons overlap: no classifier does much better than 6 %.
        assert row["test error"] <= (0.2 if REDUCED else 0.1)
        assert abs(row["train error"] - row["test error"]) <= 0.05
        assert 0 < row["mean slope"] < row["max slope"]
        assert 0 < row["undecided"] < 1
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", *PICTURES}
    for picture in PICTURES:
        content = (tmp_path / picture).read_bytes()
        assert content.startswith(b"\x89PNG")
        assert len(content) > 10_000
