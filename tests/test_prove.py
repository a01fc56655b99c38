"""Proofs over regions: what is true is proved and checked, what is false is refuted, and nothing false is proved."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg as sl
from helpers import verify

import lyapunov_dsl as ld
from lyapunov_checker import Refused, check
from lyapunov_dsl import Assurance
from lyapunov_dsl._prove._judge import Judge

pytestmark = pytest.mark.usefixtures("quick")

VAN_DER_POL, PENDULUM = 2.3045, 9.2870


def quadratic(p):
    return lambda state, target: state @ jnp.asarray(p) @ state


def lyapunov(a):
    """P with AᵀP + PA = -I."""
    return sl.solve_continuous_lyapunov(np.asarray(a).T, -np.eye(len(a)))


def van_der_pol(t, s, context):
    return jnp.stack([-s[1], s[0] - s[1] * (1 - s[0] ** 2)])


def pendulum(t, s, context):
    return jnp.stack([s[1], -jnp.sin(s[0]) - 0.5 * s[1]])


CLASSICAL = {
    "van der Pol": (van_der_pol, [[0, -1], [1, -1]], VAN_DER_POL),
    "pendulum": (pendulum, [[0, 1], [-1, -0.5]], PENDULUM),
}


def attraction(name, factor, **more):
    """What is found about {V <= factor c*} of a classical system."""
    field, a, most = CLASSICAL[name]
    p = lyapunov(np.array(a, float))
    level = factor * most
    # The box that the level set just fits into, and a little more.
    reach = 1.05 * np.sqrt(level * np.diag(np.linalg.inv(p)))
    system = ld.System(vector_field=field, domain=ld.Box(-reach, reach))
    certificate = ld.Certificate.exponential(loss=quadratic(p), kappa=1e-3)
    claims = more.pop("claims", ("decrease", "definite", "enclosed"))
    return verify(system, certificate, equilibrium=np.zeros(2), level=level, claims=claims, strict=True, **more)


def largest_level(name):
    """c*: V on the set where dV/dt = 0, at least, by minimization along rays."""
    field, a, _ = CLASSICAL[name]
    p = lyapunov(np.array(a, float))
    angles = np.linspace(0, np.pi, 20001)
    rays = np.stack([np.cos(angles), np.sin(angles)])
    scale = 1 / np.sqrt(np.einsum("in,ij,jn->n", rays, p, rays))
    levels = np.linspace(0.5, 1.1, 2001)[:, None] * CLASSICAL[name][2]
    with jax.enable_x64(True):
        states = jnp.asarray(np.sqrt(levels) * scale)[..., None] * rays.T
        rate = jax.jit(lambda s: 2 * (s @ p) @ field(0.0, s, None))
        rising = np.asarray(jax.vmap(jax.vmap(rate))(states)) >= 0
    first = np.where(rising.any(axis=0), levels[rising.argmax(axis=0), 0], np.inf)
    return first.min()


@pytest.mark.parametrize("name", CLASSICAL)
def test_the_largest_levels_are_those_of_the_literature(name):
    assert largest_level(name) == pytest.approx(CLASSICAL[name][2], rel=1e-3)


def slow_but(*fast):
    """The classical systems, of which only some are for every run."""
    return [pytest.param(name, marks=() if name in fast else pytest.mark.slow) for name in CLASSICAL]


@pytest.mark.parametrize("name", slow_but("pendulum"))
def test_region_of_attraction_is_proved_up_to_its_size(name, tmp_path):
    found = attraction(name, 0.98)
    assert found.status.proved
    assert not found.left
    found.proof.save(tmp_path / "proof.npz")
    verdict = check(tmp_path / "proof.npz")
    assert "every trajectory that starts there tends to the equilibrium" in verdict.sentences
    # No hole: the equilibrium is in a box that second derivatives decide.
    assert any((tree.rule == 4).any() for tree in found.proof.trees.values())


@pytest.mark.parametrize("name", slow_but())
def test_a_level_that_is_too_large_is_refuted(name):
    found = attraction(name, 1.02, claims=("decrease",))
    assert found.status is Assurance.REFUTED
    assert found.proof is None
    worst = found.counterexample
    assert worst.residual > 0
    assert worst.value <= 1.02 * CLASSICAL[name][2]
    # It evaluates to a violation without the library.
    field, a, _ = CLASSICAL[name]
    state, p = np.asarray(worst.state), lyapunov(np.array(a, float))
    rate = 2 * state @ p @ np.asarray(field(0.0, jnp.asarray(state), None))
    assert rate == pytest.approx(worst.rate, rel=1e-4)
    assert rate > 0


def linear(factor):
    """A linear system whose V falls exactly at the rate κ*, and the certificate of a multiple of it."""
    a = np.array([[-1.0, 2.0], [-1.0, -3.0]])
    p = lyapunov(a)
    root = sl.sqrtm(np.linalg.inv(p)).real
    kappa = np.linalg.eigvalsh(root @ root).min()
    system = ld.System(vector_field=lambda t, s, c: jnp.asarray(a) @ s, domain=ld.Box(-1, 1))
    return system, ld.Certificate.exponential(loss=quadratic(p), kappa=factor * kappa)


def test_linear_system_is_decided_by_its_rate(tmp_path):
    found = verify(*linear(0.98), equilibrium=np.zeros(2))
    assert found.status.proved
    found.proof.save(tmp_path / "proof.npz")
    check(tmp_path / "proof.npz")
    assert verify(*linear(1.02), equilibrium=np.zeros(2)).status is Assurance.REFUTED


@pytest.mark.parametrize("hair", [1e-6, pytest.param(1e-3, marks=pytest.mark.slow)])
def test_what_fails_by_a_hair_is_never_proved(hair):
    found = verify(*linear(1 + hair), equilibrium=np.zeros(2), budget={"boxes": 2000})
    assert found.status in (Assurance.REFUTED, Assurance.UNDECIDED)
    # Nor where there is no equilibrium to speak of: a bump that is above 0 by the hair at one point.
    bump = ld.System(
        vector_field=lambda t, s, c: jnp.stack([hair - jnp.sum((s - 0.123) ** 2), 0.0 * s[1]]), domain=ld.Box(-1, 1)
    )
    height = ld.Certificate.barrier(lambda s: 1e6 - s[0], alpha=1e-12)
    found = verify(bump, height, np.zeros(2), budget={"boxes": 3000})
    assert found.status in (Assurance.REFUTED, Assurance.UNDECIDED)


def test_an_equilibrium_that_is_none_is_not_proved():
    p = lyapunov(np.array(CLASSICAL["pendulum"][1], float))
    certificate = ld.Certificate.exponential(loss=quadratic(p), kappa=1e-3)

    def shifted(by):
        field = lambda t, s, c: jnp.stack([s[1], -jnp.sin(s[0] - by) - 0.5 * s[1]])
        return ld.System(vector_field=field, domain=ld.Box(-0.5, 0.5))

    asked = {"equilibrium": np.zeros(2), "budget": {"boxes": 2000}}
    with pytest.raises(ValueError, match="equilibrium: expected a state at which the field is 0"):
        verify(shifted(1e-3), certificate, **asked)
    # What could be rounding is looked at, and not proved.
    assert verify(shifted(1e-7), certificate, **asked).status in (Assurance.REFUTED, Assurance.UNDECIDED)


@pytest.mark.full
def test_ball_and_time_that_counts(tmp_path):
    # dV/dt + V = -(1 + t) |s|² on a ball, with a field that depends on time.
    system = ld.System(vector_field=lambda t, s, c: -(1 + t) * s, domain=ld.Ball(0, 0.7), horizon=2.0)
    certificate = ld.Certificate.exponential(loss=lambda s, y: jnp.sum(s**2), kappa=1)
    found = verify(system, certificate, equilibrium=np.zeros(3))
    assert found.status.proved
    found.proof.save(tmp_path / "proof.npz")
    assert "all times in [0.0, 2.0]" in str(check(tmp_path / "proof.npz"))


def test_floating_point_evaluation_is_proved_where_there_is_no_rest():
    system = ld.System(vector_field=lambda t, s, c: -jnp.tanh(s), domain=ld.Box(0.5, 1.0))
    certificate = ld.Certificate.exponential(loss=lambda s, y: jnp.sum(s**2), kappa=0.5)
    found = verify(system, certificate, np.ones(2), rounding="float")
    assert found.status is Assurance.PROVED_FLOAT


def test_invariance_of_a_box():
    field = ld.nn.InvariantField(ld.nn.MLPField(2, 1, width=8, key=jax.random.key(0)), 1.5, rate=4)
    system = ld.System(input=lambda x: ld.Start(jnp.zeros(2, x.dtype), x), vector_field=field, domain=ld.Box(-1.5, 1.5))
    certificate = ld.Certificate.exponential(loss=lambda s, y: 10 + jnp.sum(s**2), kappa=1)
    found = verify(system, certificate, jnp.zeros(1), claims=("invariant",))
    assert found.status.proved
    outward = ld.System(vector_field=lambda t, s, c: 0.1 * s, domain=ld.Box(-1, 1))
    found = verify(outward, certificate, jnp.zeros(2), claims=("invariant",))
    assert found.status is Assurance.REFUTED


def test_tube_around_a_trajectory(tmp_path):
    field = lambda t, s, c: jnp.stack([s[1] - s[0], -s[0] - s[1]])
    times = np.linspace(0, 1, 101)
    states = np.stack([sl.expm(np.array([[-1, 1], [-1, -1]]) * t) @ [1.0, 0.0] for t in times])
    system = ld.System(vector_field=field, domain=ld.Box(-2, 2))
    certificate = ld.Certificate.exponential(loss=lambda s, y: jnp.sum(s**2), kappa=1.5)
    start = (np.array([0.99, -0.01]), np.array([1.01, 0.01]))
    tube = ld.Tube.around(times, states, 0.03)
    found = verify(system, certificate, jnp.ones(2), domain=tube, start=start, claims=("decrease", "stays"))
    assert found.status.proved, str(found)
    found.proof.save(tmp_path / "proof.npz")
    assert any("stays in that tube" in s for s in check(tmp_path / "proof.npz").sentences)
    # The start itself is not in it.
    narrow = ld.Tube.around(times, states, 0.005)
    found = verify(system, certificate, jnp.ones(2), domain=narrow, start=start, claims=("decrease", "stays"))
    assert found.claims["stays"].assurance is Assurance.UNDECIDED


def test_perturbed_context(tmp_path):
    # s' = -2 (s - u) with u within 0.1 of 0: V = s²/2 falls at rate 4, and the rest is what the context may add.
    system = ld.System(
        input=lambda x: ld.Start(jnp.full(1, 1.0, x.dtype), x),
        vector_field=lambda t, s, u: -2 * (s - u),
        domain=ld.Box(-2, 2),
    )
    certificate = ld.Certificate.exponential(loss=lambda s, y: 0.5 * jnp.sum(s**2), kappa=3.9)
    claims = ("decrease", "enclosed", "robust")
    more = {"equilibrium": np.zeros(1), "level": 0.6, "claims": claims, "perturbation": 0.1}
    found = verify(system, certificate, jnp.zeros(1), **more)
    assert found.status.proved, str(found)
    bound = found.claims["robust"].value
    # The worst context of all is constant: s(1) = u + (1 - u) e^-2.
    worst = 0.5 * (0.1 + 0.9 * np.exp(-2)) ** 2
    gain, slope = 2.0, np.sqrt(1.2)
    expected = 0.5 * np.exp(-3.9) + gain * 0.1 * slope / 3.9 * (1 - np.exp(-3.9))
    assert worst < expected <= bound <= 1.1 * expected
    found.proof.save(tmp_path / "proof.npz")
    assert any(repr(bound) in s for s in check(tmp_path / "proof.npz").sentences)
    # Too large a perturbation takes V above the level.
    found = verify(system, certificate, jnp.zeros(1), **{**more, "perturbation": 2.0})
    assert found.claims["robust"].assurance is Assurance.UNDECIDED


def test_a_run_that_is_cut_off_goes_on_to_the_same_answer(tmp_path):
    system, certificate = linear(0.9)

    def run(**more):
        return verify(system, certificate, np.ones(2), domain=ld.Box(0.1, 1.0), **more)

    whole, parts = run(), 0
    assert whole.boxes > 60
    while True:
        found = run(folder=tmp_path, budget={"boxes": 40})
        parts += 1
        if found.status is not Assurance.UNDECIDED:
            break
        assert (tmp_path / "frontier.npz").exists()
        assert sum(len(low) for low, _ in found.left.values()) > 0
    assert parts > 2
    assert found.status is whole.status
    assert found.status.proved
    (one,), (other,) = (v.proof.trees.values() for v in (whole, found))
    assert one.looked == other.looked
    assert one.leaves == other.leaves
    assert not (tmp_path / "frontier.npz").exists()
    # The frontier of one proof is not taken for that of another.
    run(folder=tmp_path, budget={"boxes": 40})
    with pytest.raises(ValueError, match="frontier of the same proof"):
        run(folder=tmp_path, strict=True)


def test_a_run_that_is_killed_goes_on_to_the_same_answer(tmp_path, monkeypatch):
    system, certificate = linear(0.9)
    run = lambda: verify(
        system, certificate, np.ones(2), domain=ld.Box(0.1, 1.0), folder=tmp_path, budget={"batch": 16}
    )
    calls = 0
    judged = Judge.__call__

    def interrupted(self, lows, highs):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return judged(self, lows, highs)

    monkeypatch.setattr(Judge, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert (tmp_path / "frontier.npz").exists()
    assert run().status.proved


def test_messages():
    system, certificate = linear(0.5)
    for more, match in (
        ({"equilibrium": np.zeros(3)}, "equilibrium: expected a state like"),
        ({"equilibrium": np.full(2, 2.0)}, "inside of the domain"),
        ({"level": (2, 1)}, "least <= most"),
        ({"time": (1, 0)}, "first <= last"),
        ({"part": "barrier"}, "part: expected one of"),
    ):
        with pytest.raises(ValueError, match=match):
            verify(system, certificate, np.zeros(2), **more)
    with pytest.raises(ValueError, match="x: expected an example"):
        verify(system, certificate)
    origin, condition = np.zeros(2), ld.Condition(system, certificate)
    inside = ld.Decrease(level=1.0) & ld.SublevelContained(level=1.0)
    for make, match in (
        (lambda: ld.Prover(batch=0), "batch: expected an integer"),
        (lambda: ld.Prover(rounding="exact"), "rounding: expected 'real' or 'float'"),
        (lambda: ld.SublevelContained(level=None), "level: expected the level c"),
        (lambda: ld.RegionOfAttraction(level=None, equilibrium=origin), "level: expected the level c"),
        (lambda: ld.RegionOfAttraction(level=1.0, equilibrium=None), "equilibrium: expected the state"),
        (lambda: ld.PositiveDefinite(equilibrium=None), "equilibrium: expected the state"),
        (lambda: ld.ReachTube(tube=ld.Box(-1, 1)), "tube: expected a Tube"),
        (lambda: ld.ContextRobustness(perturbation=-1), "perturbation: expected a radius"),
        (lambda: ld.Decrease() & "definite", "property: expected one such as"),
        (lambda: ld.AllProperties(parts=(ld.Decrease(),), time=(0, 1)), "parts: expected time with each"),
        (lambda: ld.prove(condition, ld.InputRobustness(), prover=ld.Prover()), "prover: expected none"),
        (lambda: ld.Decrease(domain=(-1, 1)), "domain: expected a Box"),
        (
            lambda: ld.Decrease(equilibrium=origin) & ld.PositiveDefinite(equilibrium=origin + 1),
            "equilibrium: expected",
        ),
        (lambda: ld.prove(condition, inside, at=(origin, None, 1)), "at: expected a pair"),
        (lambda: ld.prove(condition, ld.ContextRobustness(perturbation=0.1), at=(origin, None)), "with 'robust'"),
    ):
        with pytest.raises(ValueError, match=match):
            make()
    # The level of one may have a least one besides.
    assert (ld.Decrease(level=(0.5, None)) & ld.SublevelContained(level=1.0)).options()["level"] == (0.5, 1.0)
    with pytest.raises(TypeError, match="unexpected keyword argument 'equilibirum'"):
        ld.Decrease(equilibirum=origin)


def test_refused_files(tmp_path):
    with pytest.raises(Refused, match="expected a file that can be read"):
        check(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("proved")
    with pytest.raises(Refused, match="cannot be read"):
        check(tmp_path / "text.npz")


class Own(ld.Certificate):
    """A certificate of a potential v(t, s) and a comparison c(t, v)."""

    v: object
    c: object

    def value(self, t, state, point):
        return self.v(t, state)

    def comparison(self, t, v):
        return self.c(t, v)


def saved(found, tmp_path):
    """What the checker says of a proof."""
    found.proof.save(tmp_path / "proof.npz")
    return str(check(tmp_path / "proof.npz"))


def test_an_unstable_origin_is_no_attraction(tmp_path):
    # dV/dt < 0.5 - V does not lead to the origin.
    system = ld.System(vector_field=lambda t, s, c: s * (0.09 - s**2), domain=ld.Box(-1.1, 1.1))
    certificate = Own(lambda t, s: jnp.sum(s**2), lambda t, v: 0.5 - v)
    claims = ("decrease", "definite", "enclosed")
    found = verify(system, certificate, equilibrium=np.zeros(1), claims=claims, level=1.0, strict=True)
    if found.proof is not None:
        assert "tends to the equilibrium" not in saved(found, tmp_path)


def test_a_potential_that_is_not_zero_at_rest_is_not_definite():
    system = ld.System(vector_field=lambda t, s, c: -s, domain=ld.Box(-1.0, 1.0))
    certificate = ld.Certificate.exponential(loss=lambda s, y: 1 + s @ s, kappa=0.1)
    found = verify(system, certificate, claims=("definite",), equilibrium=np.zeros(2))
    assert found.status is Assurance.UNDECIDED
    # Printed with the reason.
    assert "V is not known to be exactly 0 at the equilibrium" in str(found)


def test_a_pole_in_the_tube_is_not_proved():
    # 1 / s from 0.3 on leaves [-1, 1.5] before t = 1.
    system = ld.System(vector_field=lambda t, s, c: 1.2 / s, domain=ld.Box(-1.0, 1.5))
    tube = ld.Tube(np.array([0.0, 1.0]), np.array([[-1.0]]), np.array([[1.5]]))
    certificate = Own(lambda t, s: s @ s, lambda t, v: 100 - v)
    start = (np.array([0.3]), np.array([0.4]))
    found = verify(system, certificate, 0.35 * np.ones(1), domain=tube, start=start, claims=("stays",))
    assert found.status is Assurance.UNDECIDED


@pytest.mark.parametrize(
    "loss",
    [lambda s, y: 3 * s @ s - 2 * jax.lax.stop_gradient(s @ s), lambda s, y: 10 * jnp.floor(s[0]) + 3 - s[0]],
)
def test_derivatives_that_are_none_are_not_trusted(loss):
    system = ld.System(vector_field=lambda t, s, c: -s, domain=ld.Box(0.5, 1.0))
    found = verify(system, ld.Certificate.exponential(loss=loss, kappa=5.0), 0.7 * np.ones(2))
    assert not found.status.proved


def test_frontiers_of_functions_that_differ_inside_of_a_jit(tmp_path):
    def problem(w):
        inner = jax.jit(lambda s: -(np.diag([w, 1.0]) @ s))
        return ld.System(vector_field=lambda t, s, c: inner(s), domain=ld.Box(-1.0, 1.0))

    certificate = ld.Certificate.exponential(loss=lambda s, y: s @ s, kappa=0.5)
    more = {"claims": ("invariant",), "folder": tmp_path}
    few = {"boxes": 2, "batch": 1}
    assert verify(problem(1.0), certificate, np.zeros(2), budget=few, **more).status is Assurance.UNDECIDED
    with pytest.raises(ValueError, match="frontier of the same proof"):
        verify(problem(-1.0), certificate, np.zeros(2), **more)


def test_invariance_for_a_time_says_so(tmp_path):
    field = lambda t, s, c: -s + 3 * jnp.maximum(t - 1, 0)
    system = ld.System(vector_field=field, domain=ld.Box(-1.0, 1.0), horizon=3.0)
    certificate = ld.Certificate.exponential(loss=lambda s, y: s @ s, kappa=0.5)
    found = verify(system, certificate, np.zeros(1), time=(0, 1), claims=("invariant",))
    assert "at times in [0.0, 1.0]" in saved(found, tmp_path)


def test_boxes_that_cannot_be_cut_stay_open():
    system = ld.System(vector_field=lambda t, s, c: jnp.sqrt(jnp.abs(s)), domain=ld.Box(-1.0, 0.0))
    certificate = ld.Certificate.exponential(loss=lambda s, y: s @ s, kappa=0.5)
    found = verify(system, certificate, -np.ones(1) / 2, claims=("invariant",), budget={"boxes": 1000})
    assert not found.status.proved
    assert found.boxes < 100


def test_a_counterexample_in_the_first_of_several_pieces_is_reported():
    """The other pieces are not looked at then, and nothing is said of them."""
    tube = ld.Tube(np.array([0.0, 0.5, 1.0]), np.full((2, 1), -1.0), np.full((2, 1), 1.0))
    system = ld.System(vector_field=lambda t, s, c: s, domain=ld.Box(-2, 2))
    certificate = ld.Certificate.exponential(loss=lambda s, y: jnp.sum(s**2), kappa=1)
    found = verify(system, certificate, x=np.ones(1), domain=tube, level=10.0)
    assert found.status is Assurance.REFUTED


def test_a_limit_that_is_infinite_is_none():
    class Clipped(eqx.Module):
        limit: float

        def __call__(self, t, s, c):
            return jnp.minimum(-s, self.limit)

    certificate = ld.Certificate.exponential(loss=lambda s, y: jnp.sum(s**2), kappa=1)
    system = lambda limit: ld.System(vector_field=Clipped(limit), domain=ld.Box(0.5, 1))
    assert verify(system(np.inf), certificate, x=np.ones(1)).status.proved
    with pytest.raises(ValueError, match="system: expected finite numbers, got NaN at"):
        verify(system(np.nan), certificate, x=np.ones(1))


def test_a_v_with_a_kink_at_the_equilibrium_is_undecided_at_once():
    system = ld.System(vector_field=lambda t, s, c: -s, domain=ld.Box(-np.ones(2), np.ones(2)))
    certificate = ld.Certificate.exponential(loss=lambda s, y: jnp.sum(jnp.abs(s)), kappa=1e-3)
    asked = {"claims": ("decrease",), "equilibrium": np.zeros(2), "strict": True, "check": False}
    found = verify(system, certificate, level=0.2, **asked)
    assert found.status is ld.Assurance.UNDECIDED
    assert "no second derivatives" in str(found)
    assert verify(system, certificate, level=(0.01, 0.2), **asked).status is not ld.Assurance.REFUTED
