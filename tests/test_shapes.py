"""What NumPy would broadcast is refused, with what was expected and what was got: nothing is proved about another system."""

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import verify

import lyapunov_dsl as ld

pytestmark = pytest.mark.usefixtures("quick")

CERTIFICATE = ld.Certificate.exponential(lambda s: jnp.sum(s * s), kappa=0.1)


def driven(**more):
    """Two states and one input, of which parts can be replaced."""
    parts = {
        "drift": lambda t, s, c: -s,
        "actuation": lambda t, s, c: jnp.ones((2, 1), s.dtype),
        "controller": lambda t, s, c: -s[:1],
    } | more
    return ld.ControlAffine(parts["drift"], parts["actuation"], parts["controller"], limits=parts.get("limits"))


def refused(field, match, domain=None, certificate=CERTIFICATE, error=ValueError):
    """Both verbs refuse a declaration."""
    system = ld.System(vector_field=field, domain=ld.Box(-1.0, 1.0) if domain is None else domain)
    with pytest.raises(error, match=match):
        ld.compile(system, certificate, (jnp.zeros(2), None))
    with pytest.raises(error, match=match):
        verify(system, certificate, np.zeros(2))


def test_what_is_right_is_taken():
    for limits in (None, 1.0, np.ones(1), (-1.0, np.full(1, 2.0))):
        system = ld.System(vector_field=driven(limits=limits), domain=ld.Box(-1.0, 1.0))
        assert ld.compile(system, CERTIFICATE, (jnp.zeros(2), None)).predict(jnp.zeros((1, 2))).shape == (1, 2)


@pytest.mark.parametrize(
    ("part", "function", "got"),
    [
        ("actuation", lambda t, s, c: jnp.ones(2, s.dtype), r"got float32\[2\]; a single input has one column"),
        ("actuation", lambda t, s, c: jnp.ones((1, 2), s.dtype), r"float\[n, m\] .*n = 2 .*got float32\[1,2\]"),
        ("actuation", lambda t, s, c: jnp.ones((2, 1, 1), s.dtype), r"got float32\[2,1,1\]"),
        ("actuation", lambda t, s, c: 1.0, "got float"),
        ("drift", lambda t, s, c: -s[:1], r"float\[n\] for a state of n = 2 numbers, got float32\[1\]"),
        ("drift", lambda t, s, c: -s[:, None], r"got float32\[2,1\]"),
        ("drift", lambda t, s, c: -s[0], r"got float32\[\]"),
        ("controller", lambda t, s, c: -s, r"float\[m\] .*m = 1 columns, got float32\[2\]"),
        ("controller", lambda t, s, c: -s[0], r"got float32\[\]"),
        ("limits", np.ones(2), r"numbers or float\[m\] .*m = 1 columns, got an array of shape \(2,\)"),
    ],
)
def test_parts_of_a_field_with_inputs(part, function, got):
    # In float64 in `verify`.
    refused(driven(**{part: function}), f"{part}: expected .*{got}".replace("float32", "float(32|64)"))


def test_one_number_is_not_the_controller_of_two_inputs():
    two = lambda t, s, c: jnp.eye(2, dtype=s.dtype)
    refused(driven(actuation=two), r"m = 2 columns, got float(32|64)\[1\]")
    refused(driven(actuation=two, controller=lambda t, s, c: -s, limits=np.ones(1)), r"got an array of shape \(1,\)")


def test_a_field_without_an_input_is_looked_at_too():
    field = driven(controller=None, actuation=lambda t, s, c: jnp.ones(2, s.dtype))
    refused(field, "actuation: expected")


@pytest.mark.parametrize(
    "field", [lambda t, s, c: -s[:1], lambda t, s, c: -s[:, None], lambda t, s, c: -s[0], lambda t, s, c: {"s": -s}]
)
def test_the_field_has_the_shape_of_the_state(field):
    refused(field, "vector_field: expected an output like the state")


@pytest.mark.parametrize(
    "certificate",
    [
        ld.Certificate.exponential(lambda s: s[:1] ** 2, 1.0),
        ld.Certificate.barrier(lambda s: 1 - s[:1], 1.0),
        ld.Certificate.asymptotic(lambda s: s[:1] ** 2, lambda v: v),
        ld.Reach(lambda s: s[0], lambda s: 0.5 - s, 0.1),
        ld.Reach(lambda s: s[0], lambda s: 0.5 - s[:1], 0.1),
    ],
)
def test_potentials_comparisons_and_rates_are_scalars(certificate):
    # The import hook of these tests may see it first; without it: see the messages.
    match = r"for one example to be a float\[\] scalar|Type-check error"
    refused(lambda t, s, c: -s, match, certificate=certificate, error=(ValueError, TypeError))


@pytest.mark.parametrize(
    "domain",
    [
        ld.Box(-np.ones(1), 1.0),
        ld.Box(-1.0, np.ones((2, 1))),
        ld.Ball(np.zeros(1), 1.0),
        ld.Ball(np.zeros((1, 2)), 1.0),
    ],
)
def test_domains_have_the_shape_of_the_state(domain):
    refused(lambda t, s, c: -s, "domain: expected .* of the state's shape, got .* of shape", domain)
    with pytest.raises(ValueError, match=r"domain: expected .* of the state's shape, got .* of shape"):
        verify(ld.System(vector_field=lambda t, s, c: -s), CERTIFICATE, np.zeros(2), domain=domain)


def test_equilibrium_and_start_have_the_shape_of_the_state():
    system = ld.System(vector_field=lambda t, s, c: -s, domain=ld.Box(-1.0, 1.0))
    for wrong in (np.zeros((2, 1)), np.zeros(1), {"s": np.zeros(2)}):
        with pytest.raises(ValueError, match="equilibrium: expected a state like"):
            verify(system, CERTIFICATE, np.zeros(2), equilibrium=wrong)
    tube = ld.Tube(np.arange(2.0), -np.ones((1, 2)), np.ones((1, 2)))
    for wrong in ((0.0, 0.1), (np.zeros(2), np.zeros((2, 1))), (np.ones(2), np.zeros(2)), np.zeros(2)):
        with pytest.raises(ValueError, match="start: expected"):
            verify(system, CERTIFICATE, np.zeros(2), domain=tube, start=wrong, claims=("decrease", "stays"))


def test_modules_that_would_take_one_number_for_many():
    one = lambda t, s, c: s[:1]
    refused(ld.nn.InvariantField(one, 1.0, 2.0), "inner: expected an array like the state")
    refused(ld.nn.InvariantField(lambda t, s, c: s, np.ones(1), 2.0), "half_width: expected an array like the state")
    small = ld.Certificate.exponential(ld.nn.QuadraticPotential(3), 1.0)
    with pytest.raises(ValueError, match=r"expected a state of shape \(3,\), got \(1,\)"):
        verify(ld.System(vector_field=lambda t, s, c: -s, domain=ld.Box(-1.0, 1.0)), small, np.zeros(1))
    row = ld.Certificate.contraction(1.0, lambda s: s)
    system = ld.variational(ld.System(vector_field=lambda t, s, c: -s, domain=ld.Box(-1.0, 1.0)))
    with pytest.raises(ValueError, match=r"metric: expected a matrix float\[any, 2\], got shape \(2,\)"):
        ld.compile(system, row, (jnp.zeros(2), None))
