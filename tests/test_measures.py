"""One contract for every measure on every domain, the moments that each claims, and measures that are caught."""

import math
from typing import Any, ClassVar

import equinox as eqx
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lyapunov_dsl as ld
from lyapunov_dsl import testing
from lyapunov_dsl._measure._base import stratified_times

MANY = 20_000


# Most of the time here is XLA's, which compiles much and runs little.
pytestmark = pytest.mark.usefixtures("quick_module")


def relax(t, state, context):
    return jax.tree.map(lambda leaf: jnp.cos(3 * t) - leaf, state)


def system(domain, horizon=1.0, field=relax):
    return ld.System(vector_field=field, domain=domain, horizon=horizon)


def vector(dtype):
    return ld.Start(jnp.asarray([0.5, -1, 0.2], dtype), jnp.ones(2, dtype))


def image(dtype):
    return ld.Start(jnp.full((3, 2, 2), 0.3, dtype), jnp.ones((1, 2, 2), dtype))


def tree(dtype):
    return ld.Start({"q": jnp.asarray([0.1, 0.2], dtype), "p": jnp.asarray([[-0.5], [0.5], [0]], dtype)})


PRODUCT = ld.Product({"q": ld.Box(-1, np.array([1.0, 2.0])), "p": ld.Ball(0.5, 2)})
PLACES = {
    "box": (ld.Box(-2, 3), vector),
    "box per coordinate": (ld.Box(np.array([-1.0, -2, 0]), np.array([1.0, 2, 4])), vector),
    "ball": (ld.Ball(np.array([0.0, 1, 0]), 2), vector),
    "image in a box": (ld.Box(-1, 2), image),
    "image in a ball": (ld.Ball(0, 3), image),
    "tree in a box": (ld.Box(-1, 1), tree),
    "tree in a product": (PRODUCT, tree),
}
# For each measure, whether its samples stay in the domain; those of a sphere around a box need not.
MEASURES = {
    "cube": (ld.Cube(8), True),
    "cube of its own": (ld.Cube(7, half_width=0.4), False),
    "sphere": (ld.Sphere(8, radius=0.9), False),
    "trajectory": (ld.Trajectory(5, 3), True),
    "trajectory of one": (ld.Trajectory(), True),
    "trajectory without noise": (ld.Trajectory(4, noise=0), True),
    "mixture": (ld.Mixture(ld.Cube(4), ld.Trajectory(6), weights=(1, 3)), True),
    "nested mixture": (ld.Mixture(ld.Mixture(ld.Cube(2), ld.Sphere(3, 1.0)), ld.Trajectory(2)), False),
}


def contract(name, place, dtype, horizon=1.0):
    (measure, inside), (domain, start) = MEASURES[name], PLACES[place]
    within = domain if inside else None
    testing.assert_measure(measure, system(domain, horizon), start(dtype), within=within, draws=64)


@pytest.mark.parametrize("name", MEASURES)
def test_contract_in_float64_on_a_vector(name):
    with jax.enable_x64(True):
        contract(name, "box per coordinate", jnp.float64, horizon=0.7)


@pytest.mark.parametrize("name", MEASURES)
def test_contract_in_float32_on_a_tree(name):
    contract(name, "tree in a product", jnp.float32)


@pytest.mark.parametrize("place", ["ball", "image in a box", "image in a ball", "tree in a box"])
@pytest.mark.parametrize("name", ["cube", "trajectory"])
def test_contract_on_other_domains(name, place):
    contract(name, place, jnp.float32)


@pytest.mark.parametrize("place", ["box", "image in a ball"])
def test_contract_of_a_sphere_around_the_domain(place):
    domain, start = PLACES[place]
    within = domain if isinstance(domain, ld.Ball) else None
    testing.assert_measure(ld.Sphere(8), system(domain), start(jnp.float32), within=within, draws=64)


def test_strict_promotion(precision, strict):
    for measure, _ in MEASURES.values():
        for domain, start in PLACES.values():
            eqx.filter_eval_shape(measure.sample, system(domain), start(precision), key=jax.random.key(0))


@pytest.mark.parametrize("place", PLACES)
def test_the_states_that_hypothesis_finds_are_in_the_domain_and_on_its_boundary(place):
    domain, start = PLACES[place]
    state = start(jnp.float32).state
    excesses = []

    @hypothesis.settings(max_examples=40, database=None)
    @hypothesis.given(testing.states(domain, state))
    def check(found):
        assert jax.tree.structure(found) == jax.tree.structure(state)
        domain.check(found)
        excesses.append(float(domain.excess(found)))
        assert excesses[-1] <= 1e-5

    check()
    assert max(excesses) > -1e-5
    assert min(excesses) < -1e-2


# Moments.


def draws(measure, declared, start):
    """Samples of many keys, put one after the other."""
    sample = eqx.filter_jit(eqx.filter_vmap(lambda s, k: measure.sample(declared, s, key=k), in_axes=(None, 0)))
    count = -(-MANY // jax.tree.leaves(measure.sample(declared, start, key=jax.random.key(0)))[0].shape[0])
    many = sample(start, jax.random.split(jax.random.key(0), count))
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64).reshape(-1, *leaf.shape[2:]), many)


def close(values, mean, deviation):
    """The mean of independent values of a given standard deviation, within five standard errors."""
    np.testing.assert_allclose(np.mean(values, axis=0), mean, atol=5 * deviation / math.sqrt(len(values)))


@pytest.mark.parametrize(("domain", "half_width"), [(ld.Box(-2, 2), None), (ld.Box(-7, 9), 2.0)])
def test_a_cube_is_uniform(domain, half_width):
    samples = draws(ld.Cube(64, half_width=half_width), system(domain), vector(jnp.float32))
    s, side = samples.state, 4.0
    assert np.abs(s).max() <= 2
    close(s, 0, side / math.sqrt(12))
    # The variance of the uniform distribution is side²/12, and its fourth moment side⁴/80.
    close(s**2, side**2 / 12, side**2 / math.sqrt(180))
    # Coordinates and times are independent of each other.
    close(s[:, 0] * s[:, 1], 0, side**2 / 12)
    close(s * (samples.t - 0.5)[:, None], 0, side / 12)
    assert np.histogram(s[:, 0], 4, (-2, 2))[0].min() > 0.22 * len(s)


def test_a_cube_over_a_box_that_is_not_centered():
    low, high = np.array([-1.0, -2, 0]), np.array([1.0, 2, 4])
    samples = draws(ld.Cube(64), system(ld.Box(low, high)), vector(jnp.float32))
    for i in range(3):
        close(samples.state[:, i], (low + high)[i] / 2, (high - low)[i] / math.sqrt(12))


def test_a_cube_over_a_ball_is_uniform_in_volume():
    samples = draws(ld.Cube(64), system(ld.Ball(np.array([0.0, 1, 0]), 2)), vector(jnp.float32))
    offsets = samples.state - np.array([0, 1, 0])
    fraction = (np.linalg.norm(offsets, axis=1) / 2) ** 3
    close(fraction, 0.5, 1 / math.sqrt(12))
    close(fraction**2, 1 / 3, 1)
    close(offsets, 0, 2 / math.sqrt(5))


@pytest.mark.parametrize(
    ("domain", "radius", "largest", "center"),
    [
        (ld.Box(-1, 1), 1.5, 1.5, 0),
        (ld.Box(-2, 2), None, 2 * math.sqrt(3), 0),
        (ld.Box(np.array([-1.0, -2, 0]), np.array([1.0, 2, 4])), None, 3.0, [0, 0, 2]),
        (ld.Ball(np.array([0.0, 1, 0]), 2), None, 2.0, [0, 1, 0]),
    ],
)
def test_the_radius_of_a_sphere_is_uniform(domain, radius, largest, center):
    samples = draws(ld.Sphere(64, radius), system(domain), vector(jnp.float32))
    offsets = samples.state - np.asarray(center)
    r = np.linalg.norm(offsets, axis=1)
    assert r.max() <= largest * (1 + 1e-6)
    assert r.max() > 0.99 * largest
    close(r, largest / 2, largest / math.sqrt(12))
    close(r**2, largest**2 / 3, largest**2 * math.sqrt(4 / 45))
    # The direction is uniform: no mean, and a third of the squared length in every coordinate.
    direction = offsets / r[:, None]
    close(direction, 0, 1 / math.sqrt(3))
    close(direction**2, 1 / 3, math.sqrt(4 / 45))
    close(direction[:, 0] * r, 0, largest)


@hypothesis.settings(max_examples=50)
@hypothesis.given(st.sampled_from([1, 2, 7, 40]), st.floats(0.1, 10), st.integers(0, 9))
def test_times_are_stratified(count, horizon, seed):
    t = np.sort(np.asarray(stratified_times(jax.random.key(seed), count, horizon, jnp.float32), np.float64))
    cells = np.arange(count) * horizon / count
    assert np.all(t >= cells * (1 - 1e-6))
    assert np.all(t <= (cells + horizon / count) * (1 + 1e-6))
    assert t.max() <= np.float32(horizon)


def test_each_stratified_time_is_uniform():
    t = np.asarray(
        jax.vmap(lambda k: stratified_times(k, 4, 2.0, jnp.float32))(jax.random.split(jax.random.key(0), 5000))
    )
    for column in t.T:
        close(column, 1.0, 2 / math.sqrt(12))
        close(column**2, 4 / 3, 4 * math.sqrt(4 / 45))


@pytest.mark.parametrize("start", [vector, image, tree])
def test_without_noise_the_states_are_on_the_euler_rollout(start, precision):
    start, points, count, horizon = start(precision), 5, 7, 2.0
    declared = system(ld.Box(-50, 50), horizon)
    samples = ld.Trajectory(points, count, noise=0).sample(declared, start, key=jax.random.key(3))
    step = horizon / points
    path = [start.state]
    for i in range(points):
        velocity = relax(i * step, path[-1], None)
        path.append(jax.tree.map(lambda s, f: s + step * f, path[-1], velocity))
    path = jax.tree.map(lambda *leaves: np.stack(leaves).astype(np.float64), *path)
    t = np.asarray(samples.t, np.float64)
    assert np.all(np.floor(np.sort(t) / (horizon / count)) == np.arange(count))

    def check(states, nodes):
        flat = nodes.reshape(points + 1, -1)
        expected = np.stack([np.interp(t, step * np.arange(points + 1), column) for column in flat.T], axis=1)
        np.testing.assert_allclose(
            np.asarray(states, np.float64).reshape(count, -1),
            expected,
            atol=2e-5 if precision == jnp.float32 else 1e-12,
        )

    jax.tree.map(check, samples.state, path)


def test_the_scale_of_the_noise():
    """A fraction of the half-width of the domain, in every coordinate, independent of the time."""
    domain = ld.Box(np.array([-10.0, -20, -40]), np.array([10.0, 20, 40]))
    still = system(domain, field=lambda t, s, c: jnp.zeros_like(s))
    start = ld.Start(jnp.asarray([1.0, -2, 3]))
    samples = draws(ld.Trajectory(8, 8, noise=0.1), still, start)
    noise = (samples.state - np.asarray(start.state)) / np.array([1.0, 2, 4])
    close(noise, 0, 1)
    close(noise**2, 1, math.sqrt(2))
    close(noise[:, 0] * noise[:, 1], 0, 1)
    close(noise * (samples.t - 0.5)[:, None], 0, 1 / math.sqrt(12))


@pytest.mark.parametrize("domain", [ld.Box(-1, 0.5), ld.Ball(0.25, 0.5)])
def test_the_tube_is_projected_onto_the_domain(domain):
    samples = draws(ld.Trajectory(8, 8, noise=2), system(domain), vector(jnp.float32))
    excess = jax.vmap(domain.excess)(jnp.asarray(samples.state, jnp.float32))
    assert -1e-6 <= float(jnp.max(excess)) <= 1e-6


def test_every_step_of_the_rollout_ends_in_the_domain():
    """Steps of 1/4 turn this field's states over and double them: 1, -2 -> -1, 2 -> 1 and so on."""
    declared = system(ld.Box(-1, 1), field=lambda t, s, c: -12 * s)
    samples = draws(ld.Trajectory(4, 8, noise=0), declared, ld.Start(jnp.ones(1)))
    expected = np.interp(samples.t, np.linspace(0, 1, 5), [1, -1, 1, -1, 1])
    np.testing.assert_allclose(np.asarray(samples.state)[..., 0], expected, atol=1e-5)


def test_the_tube_is_not_differentiated():
    def spread(scale):
        declared = system(ld.Box(-5, 5), field=lambda t, s, c: scale * s)
        return jnp.sum(ld.Trajectory(3).sample(declared, ld.Start(scale * jnp.ones(2)), key=jax.random.key(0)).state)

    assert float(jax.grad(spread)(1.3)) == 0
    assert float(spread(1.3)) != float(spread(1.4))


def test_the_tube_is_around_the_trajectories_of_inference():
    """No dropout: the field is given no key."""
    noisy = lambda t, s, c, key=None: -s if key is None else s + 100
    declared = system(ld.Box(-1, 1), field=noisy)
    samples = ld.Trajectory(4, noise=0).sample(declared, ld.Start(jnp.ones(2)), key=jax.random.key(0))
    assert float(jnp.max(samples.state)) <= 1


def test_a_mixture_has_the_moments_of_its_parts():
    declared = system(ld.Box(-2, 2))
    mixture = ld.Mixture(ld.Cube(10), ld.Cube(30, half_width=1.0), weights=(3, 1))
    assert mixture.weights == (0.75, 0.25)
    samples = mixture.sample(declared, vector(jnp.float32), key=jax.random.key(0))
    np.testing.assert_allclose(samples.weight, [0.075] * 10 + [0.25 / 30] * 30, rtol=1e-6)
    many = draws(mixture, declared, vector(jnp.float32))
    square = np.sum(many.weight[:, None] * many.state**2, axis=0) / np.sum(many.weight)
    np.testing.assert_allclose(square, 0.75 * 4 / 3 + 0.25 / 3, rtol=0.03)


# Measures that are wrong.


class Fixed(ld.Measure):
    """Uniform times at the start; each subclass below breaks one promise."""

    per_example: ClassVar[bool] = True
    wrong: str = eqx.field(static=True)

    def check(self, system: Any, state: Any) -> None:
        pass

    def sample(self, system, start, *, key):
        dtype = start.state.dtype
        t = jax.random.uniform(key, (4,), dtype) * system.horizon
        state = jnp.broadcast_to(start.state, (4, *start.state.shape))
        weight = jnp.full((4,), 0.25, dtype)
        if self.wrong == "sum":
            weight = weight * 0.999
        if self.wrong == "negative":
            weight = jnp.asarray([0.5, 0.5, 0.5, -0.5], dtype)
        if self.wrong == "late":
            t = t * 1.1
        if self.wrong == "early":
            t = t / 2
        if self.wrong == "nan":
            state = jnp.sqrt(state)
        if self.wrong == "outside":
            state = state * 10
        if self.wrong == "dtype":
            state = state.astype(jnp.float16)
        if self.wrong == "shape":
            state = state[:, :1]
        if self.wrong == "constant":
            t = jnp.asarray([0.1, 0.3, 0.7, 0.9], dtype)
        return ld.Samples(t, state, weight)


class Shared(Fixed):
    """Claims to be shared by the batch."""

    per_example: ClassVar[bool] = False


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ("sum", "do not sum to 1"),
        ("negative", "weight is negative"),
        ("late", r"outside \[0, horizon\]"),
        ("early", "mean time"),
        ("nan", "not finite"),
        ("outside", "outside the set"),
        ("dtype", "expected"),
        ("shape", "expected"),
        ("constant", "draws with two keys are equal"),
    ],
)
def test_a_wrong_measure_is_caught(wrong, complaint):
    domain = ld.Box(-1, 1)
    with pytest.raises(AssertionError, match=complaint):
        testing.assert_measure(Fixed(wrong), system(domain), vector(jnp.float32), within=domain)


def test_a_measure_that_is_not_shared_is_caught():
    domain = ld.Box(-1, 1)
    testing.assert_measure(Fixed(""), system(domain), vector(jnp.float32), within=domain)
    with pytest.raises(AssertionError, match="depend on the start"):
        testing.assert_measure(Shared(""), system(domain), vector(jnp.float32), within=domain)


# Refusals.


@pytest.mark.parametrize("count", [0, -1, 2.5, None])
def test_a_count_that_is_not_a_positive_whole_number_is_refused(count):
    for make in (
        lambda: ld.Cube(count),
        lambda: ld.Sphere(count),
        lambda: ld.Trajectory(count),
        lambda: ld.Trajectory(8, count),
    ):
        with pytest.raises((ValueError, TypeError)):
            make()


def test_refusals():
    for radius in (0, -1, math.inf, math.nan):
        with pytest.raises(ValueError, match="radius: expected"):
            ld.Sphere(radius=radius)
    for half_width in (0, -1, math.nan):
        with pytest.raises(ValueError, match="expected"):
            ld.Cube(half_width=half_width)
    for noise in (-0.1, math.inf, math.nan):
        with pytest.raises(ValueError, match="noise: expected"):
            ld.Trajectory(noise=noise)
    for weights in ((1,), (1, 0), (1, -1), (1, math.nan)):
        with pytest.raises(ValueError, match="weights: expected 2 positive"):
            ld.Mixture(ld.Cube(), ld.Sphere(), weights=weights)
    with pytest.raises(ValueError, match="Mixture: expected"):
        ld.Mixture()


def test_a_measure_that_does_not_fit_the_system_is_refused():
    state = jax.ShapeDtypeStruct((3,), jnp.float32)
    with pytest.raises(ValueError, match="Sphere: expected a radius"):
        ld.Sphere().check(system(PRODUCT), state)
    with pytest.raises(ValueError, match="Sphere: expected a radius"):
        ld.Mixture(ld.Cube(), ld.Sphere()).check(system(PRODUCT), state)
    with pytest.raises(ValueError, match="domain: expected bounds"):
        ld.Cube(half_width=np.ones(4)).check(system(ld.Box(-1, 1)), state)
    with pytest.raises(ValueError, match="domain: expected a set"):
        ld.Cube().sample(system(None), vector(jnp.float32), key=jax.random.key(0))
