"""The example that looks at a model trained elsewhere."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parent.parent / "examples" / "wrap_pretrained.py"


@pytest.mark.full
def test_a_model_trained_elsewhere_is_reported_on_and_left_alone(tmp_path: Path) -> None:
    def run(*options: str) -> str:
        command = [sys.executable, str(EXAMPLE), "--out", str(tmp_path / "out"), *options]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    first = run()
    weights = tmp_path / "out" / "model.eqx"
    before = weights.read_bytes()
    second = run("--weights", str(weights))
    # The same report from the weights alone, which nobody touched.
    assert second == first
    assert weights.read_bytes() == before
    assert "logits of the program and of the model differ by at most" in first
    assert float(first.split("differ by at most ")[1].split()[0]) < 1e-3
    # Every number of the model belongs to the program: 64·16 + 16, 16·64 + 64 + 64·16 + 16, 16·10 + 10.
    assert "3,338 parameters" in first
    for line in ("share of examples decided wrongly", "REFUTED", "error against compute", "counterexample"):
        assert line in first
    assert (tmp_path / "out" / "report.txt").read_text().strip() in first
    assert (tmp_path / "out" / "potential.png").stat().st_size > 10_000
