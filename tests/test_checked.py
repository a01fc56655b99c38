"""`CHECKED`: what a second program recomputed; and whether a proof file is about a declaration."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import verify

import lyapunov_dsl as ld
from lyapunov_checker import Refused, check
from lyapunov_dsl import Assurance
from lyapunov_dsl._prove import _recheck
from lyapunov_dsl._prove._match import Match, declared
from lyapunov_dsl._prove._proof import programs_of

pytestmark = pytest.mark.usefixtures("quick_module")


def system(rate=-1.0):
    return ld.System(vector_field=lambda t, s, c: rate * s, domain=ld.Box(-1.0, 1.0))


def certificate(kappa=1.0, power=2):
    return ld.Certificate.exponential(loss=lambda s, y: jnp.sum(s**power), kappa=kappa)


ASKED = {"equilibrium": np.zeros(1), "claims": ("decrease", "definite", "enclosed"), "level": 0.9, "strict": True}


@pytest.fixture(scope="module")
def found():
    return verify(system(), certificate(), **ASKED)


def test_what_is_proved_is_checked_by_another_process(found, tmp_path):
    assert found.status is Assurance.CHECKED
    assert {claim.assurance for claim in found.claims.values()} == {Assurance.CHECKED}
    assert "checked by another process" in str(found)
    # The same programs as in the file, by their hash.
    verdict = check(found.proof.save(tmp_path / "proof.npz"))
    assert verdict.sha256 in found.checked
    assert (tmp_path / "proof.npz").read_bytes() == found.proof.content


def test_without_that_it_is_weaker_and_says_so(found):
    alone = verify(system(), certificate(), **ASKED, check=False)
    assert alone.status is Assurance.PROVED_REAL
    assert "not checked: check=False" in str(alone)
    assert alone.status.proved
    assert list(Assurance).index(found.status) < list(Assurance).index(alone.status)
    assert [level.name for level in Assurance if level.proved] == ["CHECKED", "PROVED_FLOAT", "PROVED_REAL"]


def test_it_is_not_asked_where_that_takes_longer_than_the_search(monkeypatch):
    monkeypatch.setattr(_recheck, "_expected", lambda proof: 1e4)
    monkeypatch.setattr(_recheck, "_run", lambda *args: pytest.fail("it is asked"))
    found = verify(system(), certificate(), **ASKED)
    assert found.status is Assurance.PROVED_REAL
    assert "not checked: the checker would need about 167 minutes" in str(found)


def test_what_it_refuses_is_undecided(monkeypatch):
    monkeypatch.setattr(_recheck, "_run", lambda *args: (1, "refused: a sentence of its own\n"))
    found = verify(system(), certificate(), **ASKED)
    assert found.status is Assurance.UNDECIDED
    assert found.proof is None
    assert all(claim.assurance is Assurance.UNDECIDED for claim in found.claims.values())
    assert "a sentence of its own" in str(found)
    # One that is about other programs, whatever it says.
    monkeypatch.setattr(_recheck, "_run", lambda *args: (0, "proved\n(1 boxes)"))
    assert verify(system(), certificate(), **ASKED).status is Assurance.UNDECIDED


def test_a_tree_that_is_none_is_undecided(found):
    """The search may err: a leaf that does not hold, and that no cut makes hold."""
    told, first = declared(system(0.5), certificate(), np.zeros(1), None, None, None)
    programs, arrays = programs_of(told, first.size, False)
    header, _ = found.proof.record
    forged = ld.Proof(({**header, "programs": programs}, arrays), found.proof.trees)
    said = _recheck.recheck(forged, Assurance.PROVED_REAL, 100.0)
    assert said.status is Assurance.UNDECIDED
    assert "the checker does not decide a box" in said.text


def test_functions_that_the_checker_does_not_know_stay_proved(found):
    proof = ld.Proof("primitive sort", found.proof.trees)
    said = _recheck.recheck(proof, Assurance.PROVED_REAL, 1.0)
    assert said.status is Assurance.PROVED_REAL
    assert "the checker does not know the functions (primitive sort)" in said.text
    with pytest.raises(ValueError, match="primitive sort"):
        proof.matches(system(), certificate(), np.zeros(1))


def test_floats_are_not_what_the_checker_speaks_of(found):
    said = _recheck.recheck(found.proof, Assurance.PROVED_FLOAT, 100.0)
    assert said.status is Assurance.PROVED_FLOAT
    assert "speaks of real arithmetic" in said.text


def test_a_proof_matches_its_own_declaration_alone(found, tmp_path):
    proof = found.proof
    assert proof.matches(system(), certificate())
    assert "is about this declaration" in str(proof.matches(system(), certificate(), np.zeros(1)))
    for other, own, words in (
        (system(1.0), certificate(), "field: operation"),
        (system(np.nextafter(-1.0, 0)), certificate(), "-1.0 in the proof, -0.99"),
        (system(), certificate(2.0), "comparison: operation"),
        (system(), certificate(1.0, 4), "value: operation"),
        (ld.System(vector_field=lambda t, s, c: -jnp.tanh(s), domain=ld.Box(-1.0, 1.0)), certificate(), "field"),
    ):
        match = proof.matches(other, own)
        assert not match
        assert words in str(match)
        assert check(proof.content).sha256 == match.sha256
    # Read from a file.
    loaded = ld.Proof.load(proof.save(tmp_path / "proof.npz"))
    assert loaded.matches(system(), certificate())
    assert not loaded.matches(system(1.0), certificate())
    assert loaded.save(tmp_path / "again.npz").read_bytes() == proof.content
    with pytest.raises(ValueError, match="path: expected a file"):
        ld.Proof.load(tmp_path / "none.npz")
    (tmp_path / "wrong.npz").write_bytes(b"PK")
    with pytest.raises(Refused):
        ld.Proof.load(tmp_path / "wrong.npz")
    with pytest.raises(ValueError, match="certificate: expected"):
        proof.matches(system())
    with pytest.raises(ValueError, match="part: expected one of"):
        proof.matches(system(), certificate(), part="other")


def test_a_match_says_what_it_is():
    match = Match(("field: operation 1",), "abc")
    assert not match
    assert dataclasses.replace(match, differences=())
    assert "field: operation 1" in str(match)
