"""The control examples end in proofs, and say so in `results.json`."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import lyapunov_dsl as ld
from lyapunov_checker import check

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name, out, *options):
    """What an example writes."""
    subprocess.run([sys.executable, str(EXAMPLES / f"{name}.py"), "--out", str(out), *options], check=True)
    assert (out / f"{name}.png").stat().st_size < 200_000
    record = json.loads((out / "results.json").read_text())
    for claim in record["claims"].values():
        assert claim["status"] in ld.Assurance.__members__
        # What is not proved says why.
        assert (claim["status"] in ("UNDECIDED", "REFUTED")) <= bool(claim["reason"])
    return record


def statuses(record):
    """The levels of an example's claims; whether the checker was asked depends on how long it would take."""
    found = {claim["status"] for claim in record["claims"].values()}
    return {"proved" if ld.Assurance[status].proved else status for status in found}


@pytest.mark.full
def test_van_der_pol(tmp_path):
    record = run("van_der_pol", tmp_path)
    assert statuses(record) == {"proved", "EMPIRICAL"}
    areas = record["figures"]["areas"]
    assert areas["quadratic V"] < areas["learned V"] < areas["simulated"]
    assert "tends to the equilibrium" in str(check(tmp_path / "quadratic.npz"))


@pytest.mark.full
def test_pendulum_swing_down(tmp_path):
    record = run("pendulum_swing_down", tmp_path)
    assert statuses(record) == {"proved", "EMPIRICAL"}
    assert record["figures"]["ratio"] >= 1.5


@pytest.mark.full
def test_pendulum_barrier(tmp_path):
    record = run("pendulum_barrier", tmp_path)
    assert statuses(record) == {"proved", "EMPIRICAL"}
    assert record["figures"]["ratio"] > 1


@pytest.mark.full
def test_planar_stable_dynamics(tmp_path):
    record = run("planar_stable_dynamics", tmp_path)
    assert statuses(record) == {"proved", "EMPIRICAL"}
    assert "tends to the equilibrium" in str(check(tmp_path / "proof.npz"))


@pytest.mark.full
@pytest.mark.parametrize("name", ["segway", "quadrotor2d"])
def test_more_states(name, tmp_path):
    assert "proved" in statuses(run(name, tmp_path))


# What they share.


@pytest.fixture
def control(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import _control

    return _control


def test_levels_of_quadratic_potentials(control):
    rays, reach = control.directions(3, 200), np.array([1.0, 2.0, 3.0])
    stable = lambda s: -s
    # It falls everywhere: the level at which the set ends in the domain.
    assert control.largest(np.eye(3), stable, reach, 0.1, rays) == 1
    assert control.largest(np.eye(3), stable, reach, 2.1, rays) == 0
    # s' = -s + |s|² s: up to |s| = 1.
    cubic = lambda s: -s + (s * s).sum(-1, keepdims=True) * s
    assert 0.9 < control.largest(np.eye(3), cubic, 4 * reach, 1e-3, rays) <= 1
    np.testing.assert_allclose(control.volume(np.eye(3), 4.0), 4 / 3 * np.pi * 8)
    np.testing.assert_allclose(control.volume(np.diag([4.0, 1.0]), 1.0), np.pi / 2)


def test_a_regulator_stabilizes_what_it_was_made_for(control):
    move = lambda numpy, s, u: [s[..., 1], numpy.sin(s[..., 0]) + u[..., 0]]
    plant = control.Plant(move, np.array([5.0]), np.array([1.0, 2.0]))
    gain, form = plant.riccati([1.0, 1.0], 1.0)
    rays = control.directions(2, 100)
    first = control.volume(form, control.largest(form, plant.velocity(gain), plant.reach, 0.01, rays))
    better = control.best_quadratic(form, plant.velocity(gain), plant.reach, 0.01, rays, 60)
    assert 0 < first <= control.volume(better, control.largest(better, plant.velocity(gain), plant.reach, 0.01, rays))
    # The same loop for numpy and for JAX.
    s = np.array([0.3, -0.4])
    loop = plant.loop(control.Regulator(gain, plant.limit)).vector_field
    np.testing.assert_allclose(loop(0.0, s.astype(np.float32), None), plant.velocity(gain)(s), rtol=1e-5)
    points = control.grid(-0.5 * plant.reach, 0.5 * plant.reach, 5)
    assert control.reached(loop, plant.domain, points)[2, 2]


def test_results_have_a_status_for_each_claim(control, tmp_path):
    claims = {
        "a": {"status": "PROVED_REAL", "reason": None},
        "b": {"status": "UNDECIDED", "reason": "3 boxes are left"},
    }
    control.write(tmp_path, "example", claims, {}, {})
    assert json.loads((tmp_path / "results.json").read_text())["claims"] == claims
    with pytest.raises(AssertionError, match="CERTIFIED"):
        control.write(tmp_path, "example", {"a": {"status": "CERTIFIED"}}, {}, {})
