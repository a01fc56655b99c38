"""One suite for the whole family of certificates: residuals, training, proofs, refutations, and how they combine."""

import math
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lyapunov_dsl as ld
from lyapunov_checker import check
from lyapunov_dsl import Assurance, testing

pytestmark = pytest.mark.usefixtures("quick_module")


class Case(NamedTuple):
    """A certificate, a system that satisfies it, one that does not, and what is asked of `verify`."""

    certificate: Any
    good: ld.System
    bad: ld.System
    asked: dict[str, Any]


def square(state):
    return jnp.sum(state**2)


def system(field, low=-1.0, high=1.0, **more):
    return ld.System(vector_field=field, domain=ld.Box(low, high), **more)


def linear(rate):
    return system(lambda t, s, c: -rate * s)


def pulled(gain, drift=0.0, limit=1.0, controller=None):
    """ds/dt = drift s + gain u."""
    column = jnp.full((1, 1), gain)
    field = ld.ControlAffine(
        lambda t, s, c: drift * s, lambda t, s, c: column.astype(s.dtype), controller, limits=limit
    )
    return system(field)


def pushed(acceleration, limit):
    """A mass on a line, with friction: position and velocity."""
    column = jnp.asarray([[0.0], [acceleration]])
    field = ld.ControlAffine(
        lambda t, s, c: jnp.stack([s[1], -0.1 * s[1]]), lambda t, s, c: column.astype(s.dtype), limits=limit
    )
    return system(field)


def root(rate):
    """ds/dt = -rate sign(s) |s|^(1/2), away from 0."""
    return system(lambda t, s, c: -rate * jnp.sqrt(s), 0.25, 1.0)


def turning(rate):
    return ld.variational(system(lambda t, s, c: jnp.stack([s[1] - rate * s[0], -s[0] - rate * s[1] - s[1] ** 3])))


REST = {"equilibrium": np.zeros(1)}
CASES = {
    "exponential": lambda: Case(ld.Certificate.exponential(square, 1.9), linear(1.0), linear(0.9), REST),
    "asymptotic": lambda: Case(
        ld.Certificate.asymptotic(square, lambda v: v / (1 + v)), linear(0.6), linear(0.4), REST
    ),
    "finite time": lambda: Case(
        ld.Certificate.finite_time(square, 0.9, 0.75),
        root(0.5),
        root(0.4),
        {"x": np.full(1, 0.5), "level": (0.1, None)},
    ),
    "practical": lambda: Case(
        ld.Certificate.practical(square, 1.0, 0.1),
        system(lambda t, s, c: -s + 0.2 * jnp.sin(9 * t)),
        system(lambda t, s, c: -s + 0.5 * jnp.sin(9 * t)),
        {"x": np.zeros(1)},
    ),
    "time-varying": lambda: Case(
        ld.Certificate.exponential(square, lambda t: 1 + t),
        system(lambda t, s, c: -(0.6 + t / 2) * s),
        system(lambda t, s, c: -(0.5 + t / 4) * s),
        {"equilibrium": np.zeros(1), "time": (0, 1)},
    ),
    "barrier": lambda: Case(
        ld.Certificate.barrier(lambda s: 0.5 - s[0], 2.0), linear(1.9), linear(-1.0), {"x": np.zeros(1)}
    ),
    "barrier of degree 2": lambda: Case(
        ld.Certificate.barrier(lambda s: 3 - s[0], 2.0), pushed(1.0, 0.5), pushed(1.0, (9.0, 9.5)), {"x": np.zeros(2)}
    ),
    "control Lyapunov": lambda: Case(
        ld.Certificate.control_lyapunov(square, 1.0), pulled(1.0, 0.4), pulled(0.1, 0.4), REST
    ),
    "control barrier": lambda: Case(
        ld.Certificate.control_barrier(lambda s: 1 - s[0] ** 2, 1.0),
        pulled(1.0, 0.4),
        pulled(0.1, 0.4),
        {"x": np.zeros(1)},
    ),
    "reach": lambda: Case(
        ld.Reach(lambda s: s[0], lambda s: 0.25 - s[0] ** 2, 0.5),
        system(lambda t, s, c: -2 * (s + 1)),
        system(lambda t, s, c: -(s + 0.2)),
        {"x": np.zeros(1), "domain": ld.Box(-0.5, 1.0)},
    ),
    "input to state": lambda: Case(
        ld.Certificate.input_to_state(square, 1.0, 1.1), pulled(1.0, -1.0), pulled(1.2, -1.0), REST
    ),
    "finite gain": lambda: Case(ld.Certificate.finite_gain(square, 1.1), pulled(1.0, -1.0), pulled(1.2, -1.0), REST),
    "contraction": lambda: Case(
        ld.Certificate.contraction(0.9),
        turning(1.0),
        turning(0.8),
        {"x": np.zeros(2), "domain": ld.Product({"state": ld.Box(-0.5, 0.5), "tangent": ld.Faces(1.0)})},
    ),
}


def prepared(case, whole):
    size = next(n for n in (1, 2) if fits(whole, n))
    start = whole.start(jnp.zeros(size))
    certificate = case.certificate.prepared(
        whole, jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype), start)
    )
    return ld.Condition(whole, certificate), start


def fits(whole, size):
    try:
        out = jax.eval_shape(lambda x: whole.velocity(jnp.zeros(()), whole.start(x).state, None), jnp.zeros(size))
    except Exception:
        return False
    return all(leaf.shape == (size,) for leaf in jax.tree.leaves(out))


@pytest.mark.parametrize("name", CASES)
def test_residuals_and_flows(name):
    with jax.enable_x64(True):
        case = CASES[name]()
        condition, start = prepared(case, case.good)
        testing.assert_certificate(condition, start)


@pytest.mark.parametrize("name", CASES)
def test_the_discrete_residual_tends_to_the_continuous_one(name):
    with jax.enable_x64(True):
        case = CASES[name]()
        condition, start = prepared(case, case.good)
        state = condition.continuous.region.sample(start.state, jax.random.key(3))
        begun = ld.Start(state)
        (limit,) = condition.residuals(jnp.zeros(()), state, condition.point(begun, None)).values()
        errors = []
        for steps in (1000, 2000):
            (found,) = condition.path_residuals(begun, None, None, solver=diffrax.Euler(), steps=steps).values()
            errors.append(abs(float(found[0]) * steps - float(limit)))
        assert errors[1] <= 0.6 * errors[0] + 1e-9
        assert errors[0] <= 0.05 * (1 + abs(float(limit)))


@pytest.mark.parametrize("name", CASES)
def test_proved_where_it_holds_and_refuted_where_it_does_not(name, tmp_path):
    case = CASES[name]()
    found = ld.verify(case.good, case.certificate, **case.asked)
    assert found.status is Assurance.PROVED_REAL, str(found)
    assert found.proof is not None
    found.proof.save(tmp_path / "proof.npz")
    assert "<= comparison(t, V)" in str(check(tmp_path / "proof.npz"))
    other = ld.verify(case.bad, case.certificate, **case.asked)
    assert other.status is Assurance.REFUTED, str(other)
    assert other.counterexample.residual > 0
