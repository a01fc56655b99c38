"""A proof is about the numbers that were written, not about what float32 makes of them."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import verify

import lyapunov_dsl as ld
from lyapunov_checker import check
from lyapunov_dsl import Assurance
from lyapunov_dsl._prove._region import box_of

# With its last step, a proof is checked.
PROVED = ("PROVED_REAL", "CHECKED")

pytestmark = pytest.mark.usefixtures("quick")

square = lambda s: jnp.sum(s * s)
# Rounded to float32 these become smaller, by some 1e-8.
NUMBERS = (0.7, 0.9, 2.1, 2.7, 5.2)


def between(written: float) -> tuple[float, float]:
    """What float32 makes of a number, and one halfway from there."""
    rounded = float(np.float32(written))
    assert rounded < written
    return rounded, 0.5 * rounded + 0.5 * written


def decay(rate, domain=None):
    return ld.System(vector_field=lambda t, s, c: -rate * s, domain=ld.Box(-1.0, 1.0) if domain is None else domain)


def test_rates():
    _, near = between(2.1)
    certificate = ld.Certificate.exponential(square, 2.1)
    ask = lambda rate: verify(decay(rate / 2), certificate, equilibrium=np.zeros(1))
    # Fast enough for the rounded rate alone.
    assert ask(near).status is Assurance.REFUTED
    assert ask(2.1 * (1 + 1e-12)).status.name in PROVED


RATES = {
    "exponential": lambda k: ld.Certificate.exponential(square, k),
    "barrier": lambda k: ld.Certificate.barrier(lambda s: s[0], k),
    "practical": lambda k: ld.Certificate.practical(square, k, 0.7),
    "finite time": lambda k: ld.Certificate.finite_time(square, k, 0.7),
    "reach": lambda k: ld.Reach(lambda s: s[0], lambda s: -1.0 - square(s), k, slack=0.9),
    "input to state": lambda k: ld.Certificate.input_to_state(square, k, 0.7),
    "contraction": lambda k: ld.Contraction(k, margin=0.7),
}


@pytest.mark.parametrize("name", RATES)
def test_constants_of_certificates_in_float64(name):
    """None is made of what was rounded before: the comparison at 1 is that of the numbers that were written."""
    made = {k: RATES[name](k) for k in NUMBERS}
    with jax.enable_x64(True):
        fresh = {k: RATES[name](k) for k in NUMBERS}
        one = jnp.ones((), jnp.float64)
        for k in NUMBERS:
            assert float(made[k].comparison(0.0, one)) == float(fresh[k].comparison(0.0, one))
            constants = lambda tree: [
                float(c.written())
                for c in jax.tree.leaves(tree, is_leaf=lambda v: isinstance(v, ld.Constant))
                if isinstance(c, ld.Constant)
            ]
            assert k in constants(made[k])
            assert set(constants(made[k])) <= {k, 0.7, 0.9}


REGIONS = {
    "box": lambda r: ld.Box(-r, r),
    "box of arrays": lambda r: ld.Box(np.full(1, -r), np.full(1, r)),
    "box of lists": lambda r: ld.Box([-r], [r]),
    "ball": lambda r: ld.Ball(0, r),
    "ball about another center": lambda r: ld.Ball(0.75 * r, 0.25 * r),
    "product": lambda r: ld.Product((ld.Box(-r, r),)),
}


@pytest.mark.parametrize("name", REGIONS)
def test_regions(name):
    for written in NUMBERS:
        domain = REGIONS[name](written)
        state = (np.zeros(1),) if name == "product" else np.zeros(1)
        _, high, ball = box_of(domain, state)
        assert high[0] >= written != float(np.float32(written))
        if ball is None:
            assert high[0] == written
        elif name == "ball":
            assert ball[1] == written
        else:
            assert ball[0][0] == 0.75 * written


def test_what_fails_between_a_box_and_its_rounding():
    _, near = between(0.7)
    field = lambda t, s, c: -s + 1e9 * jax.nn.relu(s - near)
    system = ld.System(vector_field=field, domain=ld.Box(-0.7, 0.7))
    found = verify(system, ld.Certificate.exponential(square, 1.0), np.ones(1), budget={"boxes": 3000})
    assert found.status in (Assurance.REFUTED, Assurance.UNDECIDED)


@pytest.mark.full
def test_limits_of_inputs():
    # With u <= 0.7 as written the rate is had, with float32's 0.69999999 it is not.
    rounded, near = between(0.7)
    column = lambda t, s, c: jnp.ones((1, 1), s.dtype)
    certificate = ld.Certificate.control_lyapunov(square, 1e-9)

    def best(push):
        field = ld.ControlAffine(lambda t, s, c: push * jnp.ones_like(s), column, limits=0.7)
        return verify(ld.System(vector_field=field), certificate, np.ones(1), domain=ld.Box(0.9, 1.0)).status

    assert best(near).name in PROVED
    assert best(0.7 + (0.7 - rounded)) is Assurance.REFUTED


def test_the_file_holds_the_numbers_that_were_written(tmp_path):
    system = ld.System(vector_field=lambda t, s, c: -s * (2 + t), domain=ld.Box(-0.7, 0.9), horizon=0.1)
    certificate = ld.Certificate.exponential(square, 2.1)
    found = verify(system, certificate, equilibrium=np.zeros(1), level=(None, 0.3))
    found.proof.save(tmp_path / "proof.npz")
    text = str(check(tmp_path / "proof.npz"))
    assert "[-0.7, 0.9]" in text
    assert "V <= 0.3" in text
    assert "0.1]" in text


def test_large_integers_are_kept_or_refused():
    assert float(ld.Constant(2**24 + 1).written()) == 2**24 + 1
    with jax.enable_x64(True):
        assert float(ld.Constant(2**24 + 1)(jnp.float64)) == 2**24 + 1
    wrong = 2**53 + 1
    for make in (
        lambda: ld.Constant(wrong),
        lambda: ld.Box(-1, wrong),
        lambda: ld.Certificate.exponential(square, wrong),
        lambda: ld.System(vector_field=lambda t, s, c: -s, horizon=wrong),
        lambda: verify(decay(1), ld.Certificate.exponential(square, 1), np.ones(1), level=wrong),
        lambda: verify(decay(1), ld.Certificate.exponential(square, 1), np.ones(1), time=(0, wrong)),
    ):
        with pytest.raises(ValueError, match="float64 holds exactly"):
            make()


def test_a_traced_constant_is_widened_without_a_change():
    random = np.random.default_rng(0).integers(0, 2**32, 4000, dtype=np.uint32).view(np.float32)
    edges = np.array(
        [0, -0.0, 1, 2.1, 1e-45, -3e-42, 1.1754942e-38, 1.1754944e-38, 3.4e38, np.inf, -np.inf], np.float32
    )
    values = np.concatenate([edges, random[~np.isnan(random)]])
    made = jax.jit(jax.vmap(ld.Constant))(values)
    np.testing.assert_array_equal(made.written(), values.astype(np.float64))
    assert (np.signbit(made.written()) == np.signbit(values)).all()


def test_what_is_stored_of_it(tmp_path, key):
    system = decay(2.0, ld.Box(-0.7, 0.9))

    def program(kappa):
        certificate = ld.Certificate.exponential(square, kappa)
        return ld.compile(system, certificate, (jnp.zeros(2), None))

    ld.save(tmp_path / "program.npz", program(2.1))
    loaded = ld.load(tmp_path / "program.npz", program(1.0))
    assert float(loaded.certificate.rate.written()) == 2.1
    assert float(loaded.certificate.kappa) == float(np.float32(2.1))
    traced = 0

    @eqx.filter_jit
    def rate(program):
        nonlocal traced
        traced += 1
        return program.certificate.comparison(0.0, jnp.ones(()))

    # Another rate does not compile again, and none of it is trained.
    assert [float(rate(program(k))) for k in (2.1, 3, 0.1)] == [-float(np.float32(k)) for k in (2.1, 3, 0.1)]
    assert traced == 1
    assert not any(jax.tree.leaves(ld.trainable(program(2.1)).certificate))
