"""The control examples end in proofs, and say so in `results.json`."""

import json
import runpy
import sys
from pathlib import Path

import pytest

import lyapunov_dsl as ld
from lyapunov_checker import check

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name, tmp_path, monkeypatch, *options):
    """What an example writes, run as a script."""
    monkeypatch.setattr(sys, "argv", [name, "--out", str(tmp_path), *options])
    monkeypatch.syspath_prepend(str(EXAMPLES))
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert (tmp_path / f"{name}.png").stat().st_size < 200_000
    record = json.loads((tmp_path / "results.json").read_text())
    for claim in record["claims"].values():
        assert claim["status"] in ld.Assurance.__members__
        # What is not proved says why.
        assert (claim["status"] in ("UNDECIDED", "REFUTED")) <= bool(claim["reason"])
    return record


@pytest.mark.full
def test_van_der_pol(tmp_path, monkeypatch):
    record = run("van_der_pol", tmp_path, monkeypatch)
    assert {c["status"] for c in record["claims"].values()} == {"PROVED_REAL", "EMPIRICAL"}
    areas = record["figures"]["areas"]
    assert areas["quadratic V"] < areas["learned V"] < areas["simulated"]
    assert "tends to the equilibrium" in str(check(tmp_path / "quadratic.npz"))
