"""Nothing is proved about functions other than those that run."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import verify

import lyapunov_dsl as ld
from lyapunov_dsl import Assurance
from lyapunov_dsl._condition import Condition
from lyapunov_dsl._prove._agreement import declared, differs, points_of, sampled
from lyapunov_dsl._prove._question import functions
from lyapunov_dsl._prove._region import Region

pytestmark = pytest.mark.usefixtures("quick")

square = lambda s: jnp.sum(s * s)
CLAIMS = ("decrease", "definite")


def verified(field, value=square, certificate=None, **more):
    system = ld.System(vector_field=field, domain=ld.Box(-1.0, 1.0))
    certificate = ld.Certificate.exponential(value, 1.0) if certificate is None else certificate
    return verify(system, certificate, equilibrium=np.zeros(2), claims=CLAIMS, **more)


def by_dtype(s):
    return -s if s.dtype == jnp.float64 else s


def by_flag(s):
    return -s if jax.config.jax_enable_x64 else s


def by_promotion(s):
    return -s if jnp.result_type(float) == jnp.float64 else s


def by_epsilon(s):
    # The same in float64 up to 1e-15, and other by a tenth in float32.
    return -s * (1 + 1e6 * jnp.finfo(s.dtype).eps)


FIELDS = {
    "the type of the state": lambda t, s, c: by_dtype(s),
    "the type of the time": lambda t, s, c: -s if t.dtype == jnp.float64 else s,
    "a flag of JAX": lambda t, s, c: by_flag(s),
    "promotion": lambda t, s, c: by_promotion(s),
    "the precision": lambda t, s, c: by_epsilon(s),
    "the type, a little": lambda t, s, c: -s if s.dtype == jnp.float64 else -s * 1.001,
    "the type, at one corner": lambda t, s, c: -s if s.dtype == jnp.float64 else jnp.where(jnp.all(s >= 1), s, -s),
    "the type, in NaN": lambda t, s, c: -s if s.dtype == jnp.float64 else -s * jnp.nan,
    "the type, in time": lambda t, s, c: -s if s.dtype == jnp.float64 else -s * (1 + t),
}


@pytest.mark.parametrize("name", FIELDS)
def test_fields(name):
    found = verified(FIELDS[name])
    assert found.status is Assurance.UNDECIDED
    assert found.boxes == 0
    assert found.proof is None
    # The point and both values are named.
    text = str(found)
    assert "what is proved is not what runs: the field at the state [" in text
    assert "in float32, more than rounding may make of it" in text


def test_potentials_and_comparisons():
    larger = lambda s: square(s) if s.dtype == jnp.float64 else 2 * square(s)
    assert "what is proved is not what runs: V at" in str(verified(lambda t, s, c: -s, larger))
    slower = ld.Certificate.asymptotic(square, lambda v: 0.5 * v if jnp.asarray(v).dtype == jnp.float64 else v)
    assert "what runs: comparison(t, V) at" in str(verified(lambda t, s, c: -s, certificate=slower))


@pytest.mark.parametrize("after", [4, 8, None])
def test_what_python_holds(after):
    calls = 0

    def field(t, s, context):
        nonlocal calls
        calls += 1
        stable = calls % 2 == 0 if after is None else calls < after
        return -s if stable else s

    assert verified(field, budget={"boxes": 500}).status in (Assurance.UNDECIDED, Assurance.REFUTED)


def test_a_closure_that_changes_while_it_is_traced():
    state = [1.0]

    def field(t, s, context):
        state[0] += 1e-3
        return -state[0] * s

    found = verified(field, budget={"boxes": 500})
    assert found.status is Assurance.UNDECIDED


def difference(field, value, low=-1.0, high=1.0, size=2, claims=CLAIMS, level=(None, None)):
    """What is found different in a box."""
    system = ld.System(vector_field=field, domain=ld.Box(low, high))
    condition = Condition(system, ld.Certificate.exponential(value, 1.0))
    x = np.full(size, 0.5 * low + 0.5 * high)
    with jax.enable_x64(True):
        told, _ = functions(condition, "exponential", x, None)
        ends = [np.concatenate([[0.0], np.full(size, v)])[None] for v in (low, high)]
        own = declared(condition, "exponential", x, None, False)
        assert own.dtype == jnp.float32
        region = Region(*ends, None, *level)
        return differs(told, own, sampled(told, own, region, x), region, 1.0, list(claims))


def test_rounding_is_no_difference(key):
    network = eqx.nn.MLP(2, 2, 64, 3, jnp.tanh, key=key)
    potential = ld.nn.PositivePotential(eqx.nn.MLP(2, 8, 32, 2, jnp.tanh, key=key), 2)
    assert difference(lambda t, s, c: network(s), potential) == ""
    # Far more is lost here, as bounds of the rounding say.
    assert difference(lambda t, s, c: -((s + 1e5) - 1e5), square) == ""
    assert difference(lambda t, s, c: jnp.exp(s) - 1 - s - s**3, lambda s: square(1e3 + s) - square(1e3 - s)) == ""
    # Numbers that are none in float32, and numbers that overflow it.
    assert difference(lambda t, s, c: -0.1 * s, lambda s: 0.7 * square(s)) == ""
    assert "V at" in difference(lambda t, s, c: -s, lambda s: 1e30 * square(s) ** 2, -1e4, 1e4)


def test_points_are_in_the_region_and_of_the_type():
    low, high = np.array([[0.0, 0.1, -0.7]]), np.array([[0.9, 0.3, 0.7]])
    region = Region(low, high, None, None, None)
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float64):
        points = points_of(region, dtype, np.array([0.2, 0.0]))
        assert len(points) > 1000
        assert ((points >= low) & (points <= high)).all()
        assert (points == np.asarray(points.astype(dtype), np.float64)).all()
        # Near all four corners, and on faces.
        assert len({tuple(p > 0.5 * (low + high)[0, 1:]) for p in points[:, 1:]}) == 4
        assert (np.abs(points[:, 2]) >= 0.69).sum() > 100
    ball = Region(low, high, (np.array([0.2, 0.0]), 0.1), None, None)
    inside = np.linalg.norm(points_of(ball, jnp.float64, None)[:, 1:] - [0.2, 0.0], axis=1)
    assert (inside <= 0.1 * (1 + 1e-12)).all()
