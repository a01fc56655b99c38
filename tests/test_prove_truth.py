"""What is proved is of finite numbers, what refutes is a derivative, and what is printed is what was shown."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import verify

import lyapunov_dsl as ld
from lyapunov_dsl import Assurance

# With its last step, a proof is checked.
PROVED = ("PROVED_REAL", "CHECKED")

pytestmark = pytest.mark.usefixtures("quick")

square = lambda s: jnp.sum(s * s)


def verified(field, value, *, kappa=1.0, low=-1.0, high=1.0, n=1, certificate=None, boxes=3000, **more):
    system = ld.System(vector_field=field, domain=ld.Box(low, high))
    certificate = ld.Certificate.exponential(value, kappa) if certificate is None else certificate
    more.setdefault("budget", {"boxes": boxes})
    if "equilibrium" not in more:
        more.setdefault("x", np.full(n, 0.4 * low + 0.6 * high))
    return verify(system, certificate, **more)


def grown(t, s, context):
    return jnp.ones_like(s)


UNDEFINED = {
    "nowhere": (lambda s: jnp.log(s[0] - 2.0), grown),
    "in a part": (lambda s: jnp.log(s[0]), grown),
    "hidden by a choice": (lambda s: jnp.where(s[0] > 0.9, jnp.nan, -s[0]), grown),
    "infinite": (lambda s: s[0] + jnp.inf, grown),
    "infinite on a face": (lambda s: -1 / (1 - s[0]), grown),
    "the field on a face": (lambda s: -s[0], lambda t, s, c: 1 + jnp.sqrt(s - s.shape[0] + 0.1)),
}


@pytest.mark.parametrize("name", UNDEFINED)
def test_what_is_no_number_is_not_proved(name):
    value, field = UNDEFINED[name]
    reach = ld.Reach(value, lambda s: s[0] - 9.0, 1e-3)
    found = verified(field, None, certificate=reach)
    assert found.status is Assurance.UNDECIDED
    assert found.boxes == 0
    assert "not known to be finite" in str(found)


def test_a_comparison_that_is_no_number():
    certificate = ld.Certificate.exponential(lambda s: 2 + s[0], lambda t: 1 + jnp.where(t > 0.7, jnp.log(t - 5), 0.0))
    with pytest.raises(ValueError, match="expected κ"):
        verified(lambda t, s, c: -9 + 0 * s, None, certificate=certificate)

    class Own(ld.Certificate):
        def value(self, t, state, point):
            return 2 + state[0]

        def comparison(self, t, v):
            return jnp.sqrt(v - 1.9)

    found = verified(lambda t, s, c: -9 + 0 * s, None, certificate=Own())
    assert found.status is Assurance.UNDECIDED
    assert "comparison(t, V) is nan at the state [" in str(found)


def test_a_field_that_is_infinite_where_nobody_looks():
    # V does not depend on the state whose velocity is infinite at a third, which no sample hits.
    field = lambda t, s, c: jnp.stack([-s[0], 1 / (3 * s[1] - 1)])
    found = verified(field, lambda s: 1 + s[0] ** 2, kappa=1e-9, low=0.1, n=2)
    assert found.status is Assurance.UNDECIDED
    assert "the field is not known to be finite in the box" in str(found)
    assert len(found.left["finite"][0])


@jax.custom_jvp
def wrong(s):
    return square(s)


wrong.defjvp(lambda primals, tangents: (square(primals[0]), -jnp.sum(primals[0] * tangents[0])))
DOUBTFUL = {
    "stop_gradient": lambda s: jnp.sum(s * jax.lax.stop_gradient(s)),
    "custom derivative": wrong,
    "integers": lambda s: square(s) + 0 * s[0].astype(jnp.int32),
    "rounding": lambda s: square(s) + 0 * jnp.round(s[0]),
}


@pytest.mark.parametrize("name", DOUBTFUL)
def test_a_derivative_that_need_not_be_one_refutes_nothing(name):
    found = verified(lambda t, s, c: -0.6 * s, DOUBTFUL[name])
    assert found.status is Assurance.UNDECIDED
    assert found.counterexample is None
    assert found.boxes == 0
    assert "derivative" in str(found)


def test_a_derivative_at_a_kink_refutes_nothing():
    # relu(s) - relu(-s) is s, and its derivative by JAX is 0 at 0: V falls at the rate 10 > V everywhere.
    value = lambda s: 5 + jax.nn.relu(s[0]) - jax.nn.relu(-s[0])
    found = verified(lambda t, s, c: -10 + 0 * s, value)
    assert found.status is not Assurance.REFUTED
    # What fails beside the kink is refuted.
    found = verified(lambda t, s, c: 10 + 0 * s, value)
    assert found.status is Assurance.REFUTED


ZEROS = {
    "at another state": (lambda s: jnp.sum((s**2 - 1) ** 2), np.ones(1), 2.0),
    "on a disc": (lambda s: jnp.maximum(square(s) - 0.01, 0.0), np.zeros(2), 1.0),
    "on a line": (lambda s: s[0] ** 2, np.zeros(2), 1.0),
    "below zero": (lambda s: s[0] ** 2 - 0.1 * s[1] ** 2, np.zeros(2), 1.0),
}


@pytest.mark.parametrize(
    "name", [*list(ZEROS)[:2], *(pytest.param(n, marks=pytest.mark.slow) for n in list(ZEROS)[2:])]
)
def test_a_potential_that_is_zero_elsewhere_is_refuted(name):
    value, rest, half = ZEROS[name]
    field = (lambda t, s, c: s - s**3) if rest.any() else (lambda t, s, c: -s)
    found = verified(field, value, low=-half, high=half, claims=("definite",), equilibrium=rest)
    assert found.status is Assurance.REFUTED
    state = np.asarray(found.counterexample.state)
    assert (state != rest).any()
    with jax.enable_x64(True):
        assert float(value(jnp.asarray(state))) <= 0
    assert found.boxes < 600


def test_an_equilibrium_up_to_rounding_is_said_at_once():
    field = lambda t, s, c: jnp.stack([s[1], -0.5 * s[1] - (jnp.sin(s[0] + np.pi / 3) - np.sin(np.pi / 3))])
    claims = ("decrease", "definite", "enclosed")
    more = {"equilibrium": np.zeros(2), "claims": claims, "strict": True, "kappa": 1e-4}
    value = lambda s: 1.5 * s[0] ** 2 + s[0] * s[1] + 2 * s[1] ** 2
    found = verified(field, value, level=0.2, **more)
    assert found.status is Assurance.UNDECIDED
    assert found.boxes == 0
    text = str(found)
    assert "the field at the equilibrium is not exactly 0, its entry 1 is between" in text
    assert "level=(least, c)" in text
    # Nor is it advised to give what was given.
    assert "equilibrium=..." not in text


def test_advice_is_not_what_was_given():
    more = {"kappa": 1.3, "boxes": 1, "low": -0.9, "high": 0.9}
    found = verified(lambda t, s, c: -jnp.tanh(s), square, x=np.full(1, 0.2), **more)
    assert found.status is Assurance.UNDECIDED
    assert "equilibrium=..." in str(found)
    assert "level=(least, c)" in str(found)
    found = verified(lambda t, s, c: -jnp.tanh(s), square, equilibrium=np.zeros(1), level=(1e-9, None), **more)
    assert found.status is Assurance.UNDECIDED
    assert "a Prover of more boxes" in str(found)
    assert "equilibrium" not in found.advice
    assert "level" not in found.advice


def test_numbers_are_printed_as_they_are():
    found = verified(
        lambda t, s, c: -s, square, claims=("decrease", "enclosed"), equilibrium=np.zeros(1), level=0.99999996
    )
    assert found.status.name in PROVED
    assert "V > 0.99999996 on the boundary" in str(found)
    assert "V <= 0.99999996" in str(found)


def test_an_enforced_field_is_refused():
    whole = ld.Certificate.exponential(ld.nn.QuadraticPotential(2), 1.0)
    plain = ld.System(vector_field=lambda t, s, c: jnp.stack([s[1], -s[0]]), domain=ld.Box(-1.0, 1.0))
    with pytest.raises(ValueError, match="got that of enforce, which satisfies exponential by construction"):
        verify(ld.enforce(plain, whole, np.zeros(2)), whole, np.full(2, 0.5), level=(0.01, None))
