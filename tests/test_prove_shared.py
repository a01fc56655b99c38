"""Proofs of systems that differ in their weights alone share programs; kinks away from the equilibrium are no obstacle there."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import verify

import lyapunov_dsl as ld
from lyapunov_checker import check
from lyapunov_dsl import Assurance
from lyapunov_dsl._prove import _judge as judge

CLAIMS = ("decrease", "definite", "enclosed")


class Linear(eqx.Module):
    matrix: np.ndarray

    def __call__(self, t, s, context):
        return self.matrix @ s


class Clipped(eqx.Module):
    """A double integrator with a clipped linear input."""

    limit: float

    def __call__(self, t, s, context):
        return jnp.stack([s[1], jnp.clip(-s[0] - 1.5 * s[1], -self.limit, self.limit)])


class Kinked(eqx.Module):
    """A field whose derivative jumps at the equilibrium."""

    slope: float

    def __call__(self, t, s, context):
        return -s + self.slope * jnp.maximum(s, 0)


CERTIFICATE = ld.Certificate.exponential(lambda s: s @ s + s[0] * s[1], 1e-3)


def prove(field, **more):
    system = ld.System(vector_field=field, domain=ld.Box(-2, 2))
    return verify(system, CERTIFICATE, equilibrium=np.zeros(2), strict=True, budget={"boxes": 5000}, **more)


def test_weights_are_arguments(quick):
    judge._KNOWN.clear()
    stable = np.array([[-1.0, 0.3], [-0.2, -1.0]])
    assert prove(Linear(stable)).status.proved
    count = len(judge._KNOWN)
    # One program, and the numbers of each system nevertheless.
    assert prove(Linear(1.25 * stable)).status.proved
    assert prove(Linear(stable + 2 * np.eye(2))).status is Assurance.REFUTED
    assert len(judge._KNOWN) == count


class Held(eqx.Module):
    matrix: ld.Constant

    def __call__(self, t, s, context):
        return self.matrix(s.dtype) @ s


def test_constants_are_arguments_too(quick):
    stable = np.array([[-1.0, 0.3], [-0.2, -1.0]])
    assert prove(Held(ld.Constant(stable))).status.proved
    count = len(judge._KNOWN)
    assert prove(Held(ld.Constant(1.25 * stable))).status.proved
    assert prove(Held(ld.Constant(stable + 2 * np.eye(2)))).status is Assurance.REFUTED
    assert len(judge._KNOWN) == count


@pytest.mark.parametrize("odd", [5e-324, np.nan, np.inf])
def test_numbers_that_a_processor_may_flush_stay_constants(odd):
    assert judge._plain(np.array([0.0, -1.0, 2.3e-308]))
    assert not judge._plain(np.array([1.0, odd]))
    assert not judge._plain(np.array([1.0], np.float32))
    assert not judge._plain(np.array([1, 2]))


@pytest.mark.full
def test_a_clipped_input_has_second_derivatives_at_rest(quick, tmp_path):
    found = prove(Clipped(0.5), claims=CLAIMS, level=0.2)
    assert found.status.proved, str(found)
    found.proof.save(tmp_path / "proof.npz")
    assert "tends to the equilibrium" in str(check(tmp_path / "proof.npz"))


@pytest.mark.full
def test_a_kink_at_the_equilibrium_is_not_passed_over(quick):
    # Both halves are stable, but no second derivative says so; and where one half is not, it is found.
    assert prove(Kinked(0.5)).status is Assurance.UNDECIDED
    assert prove(Kinked(1.5)).status is Assurance.REFUTED
