"""One contract for every objective, and each against a closed form or a plain loop."""

import math
from typing import Any, ClassVar

import diffrax
import equinox as eqx
import hypothesis
import hypothesis.strategies as st
import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import lyapunov_dsl as ld
from lyapunov_dsl import testing

BATCH = 4


# Most of the time here is XLA's, which compiles much and runs little.
pytestmark = pytest.mark.usefixtures("quick_module")


class Encoder(eqx.Module):
    """x -> a start whose context is a trained function of x."""

    weight: Any

    def __call__(self, x):
        return ld.Start(jnp.zeros(3, x.dtype), jnp.tanh(self.weight @ x))


class Field(eqx.Module):
    turn: Any

    def __call__(self, t, state, context):
        return self.turn @ state + context - jnp.sin(t) * state


def continuous(dtype, certificate=None):
    """A small trainable system on three classes, with a batch."""
    k1, k2, k3 = jax.random.split(jax.random.key(5), 3)
    encoder, field = Encoder(jax.random.normal(k1, (3, 2), dtype)), Field(jax.random.normal(k2, (3, 3), dtype))
    system = ld.System(encoder, field, domain=ld.Box(-3, 3))
    certificate = ld.Certificate.exponential(ld.cross_entropy, 2) if certificate is None else certificate
    return ld.Condition(system, certificate), jax.random.normal(k3, (BATCH, 2), dtype), jnp.asarray([0, 2, 1, 1])


def structured(dtype):
    """A state that is a tree, and no targets: a barrier."""
    field = lambda t, s, c: {"q": s["p"], "p": -s["q"] * jnp.sum(c) - s["p"]}
    domain = ld.Product({"q": ld.Box(-2, 2), "p": ld.Ball(0, 2)})
    start = lambda x: ld.Start({"q": x[:2], "p": x[2:]}, x)
    certificate = ld.Certificate.barrier(lambda s: 1 - jnp.sum(s["q"] ** 2), 0.5)
    return (
        ld.Condition(ld.System(start, field, domain=domain), certificate),
        jax.random.normal(jax.random.key(1), (BATCH, 4), dtype),
        None,
    )


def images(dtype):
    """A state (C, H, W), read out by a mean over the pixels."""
    field = ld.nn.ConvField(2, 1, width=2, key=jax.random.key(2))
    field = jax.tree.map(lambda leaf: leaf.astype(dtype) if eqx.is_inexact_array(leaf) else leaf, field)
    system = ld.System(
        lambda x: ld.Start(jnp.concatenate([x, -x]), x), field, lambda s: jnp.mean(s, axis=(1, 2)), domain=ld.Box(-4, 4)
    )
    x = jax.random.normal(jax.random.key(3), (BATCH, 1, 4, 4), dtype)
    return ld.Condition(system, ld.Certificate.exponential(ld.cross_entropy, 2)), x, jnp.asarray([0, 1, 1, 0])


class Step(eqx.Module):
    weight: Any

    def __call__(self, state, context):
        return state + jnp.tanh(self.weight @ state) / 2


class Widen(eqx.Module):
    weight: Any

    def __call__(self, state, context):
        return self.weight @ state


def discrete(dtype):
    """Residual steps with a change of shape between them."""
    keys = jax.random.split(jax.random.key(4), 4)
    steps = [
        Step(jax.random.normal(keys[0], (2, 2), dtype)),
        Widen(jax.random.normal(keys[1], (3, 2), dtype)),
        Step(jax.random.normal(keys[2], (3, 3), dtype)),
    ]
    x = jax.random.normal(keys[3], (BATCH, 2), dtype)
    system = ld.DiscreteSystem(steps=steps)
    return ld.Condition(system, ld.Certificate.exponential(ld.cross_entropy, 2)), x, jnp.asarray([0, 2, 1, 1])


def two_parts(dtype):
    both = ld.AllOf(
        {
            "stable": ld.Certificate.exponential(ld.truncated(ld.cross_entropy, 0.1), 2),
            "safe": ld.Certificate.barrier(lambda s: 4 - jnp.sum(s**2), 1),
        },
        {"safe": 0.5},
    )
    return continuous(dtype, both)


FIXED = ld.Solver(diffrax.Heun(), dt=0.25)
CASES = {
    "monte carlo, default": (ld.MonteCarlo(), continuous, {}),
    "monte carlo, cube": (ld.MonteCarlo(ld.Cube(8)), continuous, {"symmetric": True}),
    "monte carlo, sphere": (ld.MonteCarlo(ld.Sphere(8)), continuous, {"symmetric": True}),
    "monte carlo, mixture": (ld.MonteCarlo(ld.Mixture(ld.Cube(4), ld.Trajectory(3))), two_parts, {}),
    "monte carlo, tree": (ld.MonteCarlo(ld.Mixture(ld.Cube(4), ld.Trajectory(3))), structured, {}),
    "monte carlo, image": (ld.MonteCarlo(ld.Trajectory(2)), images, {}),
    "path integral": (ld.PathIntegral(4), continuous, {"symmetric": True}),
    "path integral, Heun": (ld.PathIntegral(3, diffrax.Heun()), two_parts, {"symmetric": True}),
    "path integral, Tsit5": (ld.PathIntegral(2, diffrax.Tsit5()), structured, {"symmetric": True}),
    "path integral, image": (ld.PathIntegral(2), images, {"symmetric": True}),
    "path integral, discrete": (ld.PathIntegral(), discrete, {"symmetric": True}),
    "end to end": (ld.EndToEnd(), continuous, {"symmetric": True}),
    "end to end, fixed": (ld.EndToEnd(FIXED), structured, {"symmetric": True, "nonnegative": False}),
    "end to end, discrete": (ld.EndToEnd(), discrete, {"symmetric": True}),
    "flow matching": (ld.FlowMatching(ld.ClassCorner(3)), continuous, {}),
    "flow matching, noise": (ld.FlowMatching(ld.ClassCorner(3), samples=2, noise=0.5), two_parts, {}),
    "sum": (ld.MonteCarlo(ld.Cube(4)) + 0.1 * ld.EndToEnd(FIXED), continuous, {"symmetric": True}),
    "negative scale": (ld.PathIntegral(2) * -2, two_parts, {"symmetric": True, "nonnegative": False}),
}


EAGER = ("monte carlo, cube", "path integral", "path integral, discrete", "end to end")


@pytest.mark.parametrize("name", CASES)
def test_contract(name):
    objective, case, options = CASES[name]
    testing.assert_objective(objective, *case(jnp.float32), **options, eager=name in EAGER)


@pytest.mark.parametrize("name", ["monte carlo, mixture", "path integral, Heun", "path integral, discrete"])
def test_contract_in_float64(name):
    with jax.enable_x64(True):
        objective, case, options = CASES[name]
        testing.assert_objective(objective, *case(jnp.float64), **options, eager=False)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_strict_promotion(name, dtype, strict):
    """Also of a float32 system where x64 is on, where a constant of the library could be float64."""
    with jax.enable_x64(True):
        objective, case, _ = CASES[name]
        condition, x, y = case(jnp.dtype(dtype))
        loss = lambda condition: objective(condition, x, y, key=jax.random.key(0))
        value = eqx.filter_eval_shape(eqx.filter_value_and_grad(loss), condition)
        assert {leaf.dtype for leaf in jax.tree.leaves(value)} == {jnp.dtype(dtype)}


# Monte Carlo against a plain loop over examples and samples.


class Grid(ld.Measure):
    """The same points for every key, and unequal weights; shared by the batch."""

    per_example: ClassVar[bool] = False

    def check(self, system, state):
        pass

    def sample(self, system, start, *, key):
        dtype = start.state.dtype
        state = jnp.stack([jnp.linspace(-2, 2, 5, dtype=dtype) * s for s in (1, -0.5, 0.25)], axis=1)
        return ld.Samples(jnp.linspace(0.1, 0.9, 5, dtype=dtype), state, jnp.asarray([0.1, 0.2, 0.4, 0.2, 0.1], dtype))


class Around(ld.Measure):
    """Points around the context of the example, which differ by example."""

    per_example: ClassVar[bool] = True

    def check(self, system, state):
        pass

    def sample(self, system, start, *, key):
        offsets = jnp.asarray([-1.0, 0, 2], start.state.dtype)
        return ld.Samples(offsets / 4 + 0.5, offsets[:, None] + start.context, jnp.asarray([0.5, 0.3, 0.2]))


def plain_loop(measure, condition, x, y):
    """The mean over examples of the weighted sum of the positive parts of the residuals, one by one."""
    total = 0.0
    for i in range(len(x)):
        start = condition.system.start(x[i])
        point = condition.point(start, None if y is None else y[i])
        samples = measure.sample(condition.system, start, key=jax.random.key(0))
        for t, state, weight in zip(samples.t, samples.state, samples.weight, strict=True):
            residuals = condition.residuals(t, state, point)
            parts = condition.certificate.weights if isinstance(condition.certificate, ld.AllOf) else {}
            total += float(weight) * sum(parts.get(n, 1.0) * max(0.0, float(r)) for n, r in residuals.items())
    return total / len(x)


@pytest.mark.parametrize("case", [continuous, two_parts])
def test_monte_carlo_is_the_plain_double_loop(case):
    condition, x, y = case(jnp.float32)
    loss = eqx.filter_jit(lambda measure: ld.MonteCarlo(measure)(condition, x, y, key=jax.random.key(7)))
    grid, around = plain_loop(Grid(), condition, x, y), plain_loop(Around(), condition, x, y)
    assert grid > 0.1
    assert around > 0.1
    np.testing.assert_allclose(loss(Grid()), grid, rtol=1e-5)
    np.testing.assert_allclose(loss(Around()), around, rtol=1e-5)
    np.testing.assert_allclose(
        loss(ld.Mixture(Grid(), Around(), weights=(3, 1))), 0.75 * grid + 0.25 * around, rtol=1e-5
    )
    nested = ld.Mixture(ld.Mixture(Grid(), Around()), Around(), weights=(1, 2))
    np.testing.assert_allclose(loss(nested), grid / 6 + around * 5 / 6, rtol=1e-5)


def test_the_samples_of_a_shared_measure_are_drawn_once():
    """What depends on the state alone is then computed once for the batch: the jaxpr shows no batched copy of it."""
    condition, x, y = continuous(jnp.float32)
    shapes = []

    class Spy(Grid):
        def sample(self, system, start, *, key):
            shapes.append(start.state.shape)
            return super().sample(system, start, key=key)

    potential = lambda s, y: jnp.sum(jnp.sin(s) * (y + 1))
    condition = ld.Condition(condition.system, ld.Certificate.exponential(potential, 1))
    jaxpr = jax.make_jaxpr(lambda x, y: ld.MonteCarlo(Spy())(condition, x, y, key=jax.random.key(0)))(x, y)
    assert shapes == [(3,)]
    sines = {e.outvars[0].aval.shape for e in equations(jaxpr.jaxpr) if e.primitive.name == "sin"}
    assert (5, 3) in sines
    assert not any(BATCH in shape for shape in sines)


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for parameter in equation.params.values():
            inner = getattr(parameter, "jaxpr", None)
            if inner is not None:
                yield from equations(inner)


def test_the_input_module_runs_once_for_each_batch():
    calls = []

    def encode(x):
        calls.append(x.shape)
        return ld.Start(x, x)

    system = ld.System(encode, lambda t, s, c: c - s, domain=ld.Box(-1, 1))
    condition = ld.Condition(system, ld.Certificate.exponential(ld.squared_error, 1))
    x = jnp.ones((BATCH, 2))
    for objective in (ld.MonteCarlo(ld.Mixture(ld.Cube(2), ld.Trajectory(2))), ld.PathIntegral(2), ld.EndToEnd()):
        calls.clear()
        jax.make_jaxpr(lambda x, o=objective: o(condition, x, x, key=jax.random.key(0)))(x)
        assert calls == [(2,)]


DECAY = 0.5


def scalar_condition(kappa, horizon=1.0):
    """dη/dt = -a η with V = η², whose residual is (κ - 2 a) η²."""
    system = ld.System(vector_field=lambda t, s, c: -DECAY * s, domain=ld.Box(-2, 2), horizon=horizon)
    return ld.Condition(system, ld.Certificate.exponential(ld.squared_error, kappa))


@pytest.mark.parametrize(
    ("measure", "square"),
    [(ld.Cube(20_000), 4 / 3), (ld.Cube(20_000, half_width=1), 1 / 3), (ld.Sphere(20_000, 1.5), 0.75)],
)
def test_monte_carlo_tends_to_the_mean_over_the_measure(measure, square):
    x = jnp.zeros((1, 1))
    for kappa, excess in {3.0: 2.0, 1.5: 0.5, 0.9: 0.0}.items():
        loss = ld.MonteCarlo(measure)(scalar_condition(kappa), x, x, key=jax.random.key(0))
        np.testing.assert_allclose(loss, excess * square, rtol=0.03)


def test_the_samples_of_an_example_are_a_function_of_its_place():
    """What an example adds to the loss does not depend on the others, but on where in the batch it is."""
    condition, x, y = continuous(jnp.float32)
    loss = jax.jit(lambda *batch: ld.MonteCarlo(ld.Trajectory(2))(condition, *batch, key=jax.random.key(3)))
    total = lambda *places: len(places) * float(loss(x[jnp.asarray(places)], y[jnp.asarray(places)]))
    first, second = total(0, 1) - total(0), total(2, 1) - total(2)
    assert first == pytest.approx(second, rel=1e-4)
    assert first > 0
    assert first != pytest.approx(total(1), rel=1e-3)


# The path integral.


@jax.jit
def euler_sum(kappa, x, horizonless):
    return ld.PathIntegral(8)(scalar_condition(kappa), x, jnp.zeros_like(x), key=jax.random.key(0)) + 0 * horizonless


@hypothesis.settings(max_examples=30)
@hypothesis.given(st.floats(0.1, 5), st.lists(st.floats(-2, 2, width=32), min_size=2, max_size=2))
def test_the_path_integral_of_an_euler_rollout(kappa, starts):
    """Each step multiplies V by (1 - a Δt)², and may multiply it by 1 - κ_d."""
    x = np.asarray(starts, np.float32)[:, None]
    ratio = (1 - DECAY / 8) ** 2
    one = max(0.0, ratio - (1 - ld.decay_from_rate(kappa, 1 / 8))) * (1 - ratio**8) / (1 - ratio)
    np.testing.assert_allclose(euler_sum(kappa, x, 0.0), one * np.mean(x**2), rtol=1e-3, atol=3e-6)


@pytest.mark.parametrize("solver", [None, diffrax.Heun(), diffrax.Tsit5()])
def test_the_path_integral_tends_to_the_integral_of_the_hinge(solver):
    """∫ (κ - 2 a) V dt over [0, T], to first order in Δt; eq. 13 times T."""
    kappa, horizon, x = 3.0, 2.0, jnp.asarray([[1.5], [-1.0]])
    exact = (kappa - 2 * DECAY) * np.mean(np.square(x)) * (1 - math.exp(-2 * DECAY * horizon)) / (2 * DECAY)
    with jax.enable_x64(True):
        condition, x = scalar_condition(kappa, horizon), jnp.asarray(x, jnp.float64)
        errors = [
            float(ld.PathIntegral(steps, solver)(condition, x, jnp.zeros_like(x), key=jax.random.key(0))) - exact
            for steps in (40, 80, 160)
        ]
    assert abs(errors[2]) < 0.03 * exact
    np.testing.assert_allclose([errors[0] / errors[1], errors[1] / errors[2]], 2, rtol=0.1)


def test_the_path_integral_of_a_discrete_system():
    """Two steps that keep the shape and one that does not: V is read through the change of shape."""
    double = jnp.asarray([[1.0, 0], [0, 1], [1, 1]])
    system = ld.DiscreteSystem(
        lambda x: ld.Start(x, x), (lambda s, c: s - c / 4, lambda s, c: double @ s, lambda s, c: 0.9 * s), horizon=1.0
    )
    condition = ld.Condition(system, ld.Certificate.exponential(ld.squared_error, 4))
    x, y = np.array([[1.0, 2.0], [-1.0, 0.5]]), np.zeros((2, 3))
    allowed, total = math.exp(-4 * 0.5), 0.0
    for start in x:
        states = [double @ start, double @ (0.75 * start), 0.9 * (double @ (0.75 * start))]
        v = [float(np.sum(np.square(s))) for s in states]
        total += sum(max(0.0, after - allowed * before) for before, after in zip(v[:-1], v[1:], strict=True))
    loss = ld.PathIntegral()(condition, jnp.asarray(x), jnp.asarray(y), key=jax.random.key(0))
    np.testing.assert_allclose(loss, total / 2, rtol=1e-5)
    final = ld.EndToEnd()(condition, jnp.asarray(x), jnp.asarray(y), key=jax.random.key(0))
    np.testing.assert_allclose(final, np.mean([np.sum((0.675 * double @ s) ** 2) for s in x]), rtol=1e-5)


def test_a_discrete_system_of_changes_of_shape_alone_has_no_path():
    condition = ld.Condition(
        ld.DiscreteSystem(steps=[lambda s, c: s[:1]]), ld.Certificate.exponential(ld.squared_error, 1)
    )
    with pytest.raises(ValueError, match="steps: expected at least one step that keeps"):
        ld.PathIntegral().check(condition, ld.Start(jax.ShapeDtypeStruct((2,), jnp.float32)))


# End to end.


@jax.jit
def end_to_end(matrix, x):
    system = ld.System(vector_field=lambda t, s, c: matrix @ s, domain=ld.Box(-9, 9), horizon=0.5)
    condition = ld.Condition(system, ld.Certificate.exponential(ld.squared_error, 1))
    losses = [ld.EndToEnd(s)(condition, x, jnp.zeros_like(x), key=jax.random.key(0)) for s in SOLVERS]
    gradient = jax.grad(lambda x: ld.EndToEnd(SOLVERS[0])(condition, x, jnp.zeros_like(x), key=jax.random.key(0)))(x)
    return losses, gradient


SOLVERS = (ld.Solver(rtol=1e-9, atol=1e-11), ld.Solver(diffrax.Tsit5(), dt=0.02), diffrax.Dopri8())


@hypothesis.settings(max_examples=15)
@hypothesis.given(testing.stable_linear_systems(3))
def test_end_to_end_is_the_loss_at_the_horizon(linear):
    """Of a linear system the final state is a matrix exponential, and so is the gradient."""
    with jax.enable_x64(True):
        x = np.array([[1.0, -2, 0.5], [0.3, 0.1, -0.7]])
        (tight, fixed, default), gradient = end_to_end(linear.matrix, x)
    flow = scipy.linalg.expm(linear.matrix * 0.5)
    exact = np.mean(np.sum((x @ flow.T) ** 2, axis=1))
    np.testing.assert_allclose(tight, exact, rtol=1e-7)
    np.testing.assert_allclose(fixed, exact, rtol=1e-7)
    np.testing.assert_allclose(default, exact, rtol=1e-2)
    np.testing.assert_allclose(gradient, x @ flow.T @ flow, rtol=1e-6, atol=1e-7)


def test_end_to_end_weighs_the_parts_of_a_conjunction():
    condition, x, y = two_parts(jnp.float32)
    alone = [
        float(ld.EndToEnd(FIXED)(ld.Condition(condition.system, part), x, y, key=jax.random.key(0)))
        for part in condition.parts.values()
    ]
    both = ld.EndToEnd(FIXED)(condition, x, y, key=jax.random.key(0))
    np.testing.assert_allclose(both, alone[0] + 0.5 * alone[1], rtol=1e-5)


# Sums.


def test_objectives_add_and_scale():
    condition, x, y = continuous(jnp.float32)
    path, final, key = ld.PathIntegral(3), ld.EndToEnd(FIXED), jax.random.key(0)
    a, b = (float(o(condition, x, y, key=key)) for o in (path, final))
    for objective, expected in (
        (path + final, a + b),
        (0.1 * path, 0.1 * a),
        (path * 3, 3 * a),
        (path + 2 * (final + 0.5 * path), 2 * a + 2 * b),
        (np.float32(0.5) * path + path, 1.5 * a),
    ):
        np.testing.assert_allclose(objective(condition, x, y, key=key), expected, rtol=1e-5)


def test_the_terms_of_a_sum_have_keys_of_their_own():
    condition, x, y = continuous(jnp.float32)
    one = ld.MonteCarlo(ld.Cube(2))
    value = float(one(condition, x, y, key=jax.random.key(0)))
    assert float((one + one)(condition, x, y, key=jax.random.key(0))) != pytest.approx(2 * value, rel=1e-6)


# Objectives that are wrong, and refusals.


class Wrong(ld.Objective):
    """Breaks one promise of an objective."""

    how: str = eqx.field(static=True)

    def check(self, condition, start):
        pass

    def __call__(self, condition, x, y, *, key):
        encoder: Any = condition.system.input
        weight = encoder.weight
        loss = jnp.mean(x @ weight.T) ** 2
        if self.how == "shape":
            return jnp.mean(x @ weight.T, axis=0)
        if self.how == "nan":
            return jnp.log(-1 - loss)
        if self.how == "gradient":
            return jnp.sqrt(jnp.sum(weight * 0))
        if self.how == "negative":
            return -1 - loss
        if self.how == "order":
            return jnp.sum(x[0] * jnp.sum(weight)) ** 2
        if self.how == "jit":
            return loss + isinstance(x, jax.core.Tracer)
        return loss


@pytest.mark.parametrize(
    ("how", "complaint"),
    [
        ("shape", "scalar|type-check"),
        ("nan", "the loss is nan"),
        ("gradient", "gradient is not finite"),
        ("negative", "the loss is negative"),
        ("order", "reversed"),
        ("jit", "without jit"),
    ],
)
def test_a_wrong_objective_is_caught(how, complaint):
    condition, x, y = continuous(jnp.float32)
    testing.assert_objective(Wrong(""), condition, x, y, symmetric=True)
    with pytest.raises(AssertionError, match=complaint):
        testing.assert_objective(Wrong(how), condition, x, y, symmetric=True)


@pytest.mark.parametrize("horizon", [1.0, 2.5])
def test_flow_matching_is_the_distance_from_straight_paths(horizon):
    """With f = a η + b the integral over t has a closed form; 4,096 stratified times come close to it."""
    a, b = 0.3, 0.7
    begin = jnp.asarray([[0.5, -1.0, 0.0], [0.0, 0.2, 0.1]])
    y = jnp.asarray([2, 0])
    system = ld.System(vector_field=lambda t, s, c: a * s + b, domain=ld.Box(-5, 5), horizon=horizon)
    condition = ld.Condition(system, ld.Certificate.exponential(ld.cross_entropy, 1))
    loss = ld.FlowMatching(ld.ClassCorner(3), samples=4096)(condition, begin, y, key=jax.random.key(0))
    goal = 3 * (2 * np.eye(3)[np.asarray(y)] - 1)
    # f - velocity is linear in s = t / T on the path: p + q s, whose mean square is p² + p q + q² / 3.
    begin = np.asarray(begin)
    p, q = a * begin + b - (goal - begin) / horizon, a * (goal - begin)
    assert float(loss) == pytest.approx(float(np.mean(p**2 + p * q + q**2 / 3)), rel=1e-4)


def test_flow_matching_is_zero_for_the_straight_flow_and_then_decides_rightly():
    class Straight(eqx.Module):
        def __call__(self, t, state, context):
            return context

    goal = ld.ClassCorner(3)
    y = jnp.arange(4)
    x = jax.vmap(goal)(y, jnp.zeros((4, 4)))
    system = ld.System(lambda x: ld.Start(0 * x, x), Straight(), domain=ld.Box(-5, 5))
    program = ld.compile(system, ld.Certificate.exponential(ld.cross_entropy, 1), (x[0], 0),
                         objective=ld.FlowMatching(goal))  # fmt: skip
    assert float(program.loss(x, y, key=jax.random.key(0))) == 0
    assert program.error(x, y) == 0
    assert np.allclose(program.predict(x), x, atol=1e-5)


SHAPE = jax.ShapeDtypeStruct((3,), jnp.float32)


def test_flow_matching_refuses():
    with pytest.raises(ValueError, match="FlowMatching: expected a continuous System"):
        ld.FlowMatching(ld.ClassCorner(1)).check(discrete(jnp.float32)[0], ld.Start(SHAPE))
    with pytest.raises(ValueError, match="FlowMatching: expected a state that is one array"):
        ld.FlowMatching(ld.ClassCorner(1)).check(continuous(jnp.float32)[0], ld.Start({"q": SHAPE}))
    with pytest.raises(ValueError, match=r"goal: expected a function \(target, state\) -> state, got float"):
        ld.FlowMatching(3.0)
    with pytest.raises(ValueError, match="noise: expected a finite number >= 0, got -1"):
        ld.FlowMatching(ld.ClassCorner(1), noise=-1)
    with pytest.raises(ValueError, match="samples: expected a positive whole number, got 0"):
        ld.FlowMatching(ld.ClassCorner(1), samples=0)
    with pytest.raises(ValueError, match="half_width: expected a positive finite number, got 0"):
        ld.ClassCorner(0)
    condition, x, y = continuous(jnp.float32)
    with pytest.raises(ValueError, match=r"goal: expected a state float32\[.*got float32\[1\]"):
        ld.FlowMatching(lambda y, s: jnp.zeros(1))(condition, x, y, key=jax.random.key(0))


def test_refusals():
    condition = discrete(jnp.float32)[0]
    with pytest.raises(ValueError, match="MonteCarlo: expected a continuous System"):
        ld.MonteCarlo().check(condition, ld.Start(jax.ShapeDtypeStruct((2,), jnp.float32)))
    with pytest.raises(ValueError, match="measure: expected a Measure"):
        ld.MonteCarlo(3)
    with pytest.raises(ValueError, match="solver: expected a diffrax solver"):
        ld.PathIntegral(3, "euler")
    for steps in (0, -1):
        with pytest.raises(ValueError, match="steps: expected a positive whole number"):
            ld.PathIntegral(steps)
    for scale in (math.nan, math.inf, "2"):
        with pytest.raises(ValueError, match="expected a finite number to scale by"):
            _ = scale * ld.PathIntegral()


# Levels, and where a sublevel set is.


def cubic(level=None):
    """s' = -s + s³, whose V = s² falls up to 1 alone, and the condition."""
    system = ld.System(vector_field=lambda t, s, c: s**3 - s, domain=ld.Box(-2, 2))
    return ld.Condition(system, ld.Certificate.exponential(lambda s: s[0] ** 2, 0.1))


def test_states_outside_of_the_levels_do_not_count():
    condition, x = cubic(), jnp.zeros((2, 1))
    loss = lambda **options: float(ld.MonteCarlo(ld.Cube(512), **options)(condition, x, None, key=jax.random.key(0)))
    assert loss() > 1
    assert loss(level=0.9) == 0
    assert loss(level=(0.9, 0.95)) == 0
    # Far above what a residual is, the level changes nothing.
    np.testing.assert_allclose(loss(level=1e6), loss(), rtol=1e-6)
    np.testing.assert_allclose(loss(level=(1.5, 1e6)), loss(level=(1.5, None)), rtol=1e-6)
    assert loss(level=(None, 1.2)) < loss(level=(None, 1.5)) < loss()


@pytest.mark.parametrize(("relative", "expected"), [(False, [0.0, 0.1, 0.0]), (True, [0.0, 0.1 / 1.5, 0.0])])
def test_a_state_that_cannot_fall_is_led_out_of_the_level(relative, expected):
    # V = s² rises at s² = 1.4, where it is 0.1 below the level.
    condition, x = cubic(), jnp.zeros((1, 1))
    for square, known in zip((0.81, 1.4, 1.6), expected, strict=True):
        row = np.array([[0.0, square**0.5]])
        objective = ld.MonteCarlo(ld.Boxes(row, row, 1), level=1.5, relative=relative)
        found = float(objective(condition, x, None, key=jax.random.key(0)))
        np.testing.assert_allclose(found, known, rtol=1e-4, atol=1e-6)


def test_relative_residuals_are_rates_of_decay():
    # dV/dt + 0.1 V = (2 s² - 1.9) V.
    condition, x = cubic(), jnp.zeros((1, 1))
    for s in (0.0, 1e-25, 0.1, 1.2):
        row = np.array([[0.0, s]])
        loss = lambda condition, row=row: ld.MonteCarlo(ld.Boxes(row, row, 1), relative=True)(
            condition, x, None, key=jax.random.key(0)
        )
        np.testing.assert_allclose(float(loss(condition)), max(0, 2 * s * s - 1.9), rtol=1e-5)
        assert all(np.isfinite(v).all() for v in jax.tree.leaves(eqx.filter_grad(loss)(condition)))


def test_a_sublevel_set_is_where_it_is_wanted():
    condition, x = cubic(), jnp.zeros((2, 1))
    inside = ld.Boxes([[0.0, -0.5]], [[1.0, 0.5]])
    loss = lambda objective: float(objective(condition, x, None, key=jax.random.key(0)))
    # V = 4 on the boundary, at most 0.25 inside.
    assert loss(ld.Sublevel(1.0, inside)) == 0
    np.testing.assert_allclose(loss(ld.Sublevel(5.0, inside, margin=0.1)), 5.1 - 4, rtol=1e-6)
    assert loss(ld.Sublevel(0.1, inside)) > 0
    assert loss(ld.Sublevel(1.0, inside, outside=inside)) > 0


def test_wrong_levels_are_named():
    with pytest.raises(ValueError, match="level: expected least <= most"):
        ld.MonteCarlo(level=(2, 1))
    with pytest.raises(ValueError, match="level: expected a finite number"):
        ld.Sublevel(np.nan, ld.Cube())
    with pytest.raises(ValueError, match="level: expected a level > 0 for relative"):
        ld.MonteCarlo(level=0, relative=True)
    with pytest.raises(ValueError, match="growth: expected"):
        ld.Sublevel(1, ld.Cube(), growth=0)
    with pytest.raises(ValueError, match="margin: expected"):
        ld.Sublevel(1, ld.Cube(), margin=-1)
    with pytest.raises(ValueError, match="inside: expected a Measure"):
        ld.Sublevel(1, None)
    discrete = ld.Condition(
        ld.DiscreteSystem(steps=[lambda s, c: s]), ld.Certificate.exponential(lambda s: s[0] ** 2, 1)
    )
    with pytest.raises(ValueError, match="Sublevel: expected a continuous System"):
        ld.Sublevel(1, ld.Cube()).check(discrete, ld.Start(jax.ShapeDtypeStruct((1,), jnp.float32)))


def test_the_boundary_is_a_measure():
    system = ld.System(vector_field=lambda t, s, c: -s, domain=ld.Box(np.array([-1.0, -3.0]), np.array([2.0, 4.0])))
    start = ld.Start(jnp.zeros(2))
    testing.assert_measure(ld.Boundary(32), system, start, within=system.domain)
    found = ld.Boundary(512).sample(system, start, key=jax.random.key(0)).state
    faces = np.stack([found[:, 0] == -1, found[:, 0] == 2, found[:, 1] == -3, found[:, 1] == 4])
    assert faces.any(0).all()
    assert (faces.mean(1) > 0.15).all()
    with pytest.raises(ValueError, match="Boundary: expected a System whose domain is a Box"):
        ld.Boundary().check(ld.System(vector_field=lambda t, s, c: -s), jnp.zeros(2))
