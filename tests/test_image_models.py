"""The image models: ResNet-18, the continuous-in-depth network, the data-controlled field and the paper's own dynamics."""

import math
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_nn import RK4

import lyapunov_dsl as ld
from lyapunov_dsl.nn._blocks import Convolution, GroupNorm, channels_first, channels_last

# Only where rounding is not the point; see conftest.
quick = pytest.mark.usefixtures("quick")

Level = ld.Assurance
IMAGE = (2, 6, 5)
CLASSES = 3


def count(module: Any) -> int:
    """Numbers that training changes."""
    return sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(module, eqx.is_inexact_array)))


def abstract(make: Any) -> Any:
    """A module of which only the shapes exist."""
    return eqx.filter_eval_shape(make)


def built(make: Any) -> Any:
    """A module whose arrays are made in one compilation, in place of one for every shape."""
    return eqx.filter_jit(make)()


def certificate(kappa: float = 2) -> Any:
    return ld.Certificate.exponential(ld.cross_entropy, kappa)


# Encoders and discrete systems


@pytest.mark.parametrize(
    ("shape", "features", "width", "expected"),
    # The first is the count of the usual variant for small images with BatchNorm, whose scale and shift are as many.
    [((3, 32, 32), 10, 64, 11_173_962), ((1, 28, 28), 10, 64, 11_172_810), ((1, 8, 8), 10, 8, 176_258)],
)
def test_the_parameters_of_resnet_18(shape: Any, features: int, width: int, expected: int, key: Any) -> None:
    for make in (ld.nn.ResNet18, ld.nn.resnet18):
        network = abstract(lambda make=make: make(shape, features, width=width, key=key))
        leaves = [leaf for leaf in jax.tree.leaves(network) if isinstance(leaf, jax.ShapeDtypeStruct)]
        assert sum(leaf.size for leaf in leaves) == expected


def test_the_shapes_inside_resnet_18(key: Any) -> None:
    system = abstract(lambda: ld.nn.resnet18((3, 28, 28), 10, key=key))
    states = [eqx.filter_eval_shape(system.start, jax.ShapeDtypeStruct((3, 28, 28), jnp.float32)).state]
    for i in range(len(system.steps)):
        states.append(eqx.filter_eval_shape(system.step, i, states[-1], None))
    assert [state.shape for state in states] == [
        *[(64, 28, 28)] * 3,
        *[(128, 14, 14)] * 2,
        *[(256, 7, 7)] * 2,
        *[(512, 4, 4)] * 2,
    ]


@pytest.mark.parametrize("channels", [1, 4, 16, 24, 48, 64, 100, 512])
def test_groups_divide_the_channels_and_are_no_smaller_than_they_should(channels: int) -> None:
    groups = GroupNorm(channels).groups
    assert channels % groups == 0
    assert groups == 1 or channels // groups >= 16
    assert GroupNorm(512).groups == 32


def test_group_norm_is_that_of_equinox_with_its_derivatives(precision: Any, key: Any, strict: None) -> None:
    k1, k2, k3 = jax.random.split(key, 3)
    x, weight, dx = (
        3 + jax.random.normal(k1, (32, 5, 6)),
        jax.random.normal(k2, (32,)),
        jax.random.normal(k3, (32, 5, 6)),
    )

    def ours(weight: Any, x: Any) -> Any:
        norm = eqx.tree_at(lambda n: (n.weight, n.bias), GroupNorm(32), (weight, weight + 1))
        return channels_first(norm(channels_last(x)))

    def theirs(weight: Any, x: Any) -> Any:
        norm = eqx.tree_at(lambda n: (n.weight, n.bias), eqx.nn.GroupNorm(2, 32), (weight, weight + 1))
        return norm(x)

    close = {"rtol": 1e-4, "atol": 1e-4} if precision == jnp.float32 else {"rtol": 1e-11, "atol": 1e-11}
    forward = lambda f: jax.jvp(f, (weight, x), (weight, dx))
    backward = lambda f: jax.grad(lambda *a: jnp.sum(jnp.sin(f(*a))), (0, 1))(weight, x)
    # Along dx, of the gradient: second derivatives.
    second = lambda f: jax.jvp(lambda x: jax.grad(lambda x: jnp.sum(jnp.sin(f(weight, x))))(x), (x,), (dx,))[1]
    for derivative in (forward, backward, second):
        for a, b in zip(jax.tree.leaves(derivative(ours)), jax.tree.leaves(derivative(theirs)), strict=True):
            assert a.dtype == precision
            np.testing.assert_allclose(a, b, **close)


@pytest.mark.parametrize(("size", "stride"), [(3, 1), (3, 2), (1, 2)])
def test_a_convolution_is_that_of_equinox(size: int, stride: int, key: Any) -> None:
    ours = Convolution(2, 3, size, stride, key=key)
    theirs = eqx.nn.Conv2d(2, 3, size, stride, size // 2, use_bias=False, key=key)
    theirs = eqx.tree_at(lambda c: c.weight, theirs, ours.weight)
    x = jax.random.normal(key, (2, 5, 6))
    np.testing.assert_allclose(channels_first(ours(channels_last(x))), theirs(x), rtol=1e-5, atol=1e-6)
    assert float(jnp.max(jnp.abs(ours.weight))) <= 1 / (size * math.sqrt(2))


SIZES: dict = {"resnet18": {"width": 2}, "continuous_net": {"width": 2, "stages": 2, "steps": 2}}


def small(make: str, shape: Any, key: Any, **sizes: Any) -> Any:
    """One of the two discrete systems, small."""
    return built(lambda: getattr(ld.nn, make)(shape, CLASSES, **(SIZES[make] | sizes), key=key))


@pytest.mark.parametrize("make", SIZES)
def test_the_dtypes_of_the_discrete_systems(make: str, precision: Any, key: Any, strict: None) -> None:
    """No mutable state, no implicit promotion; states between the dynamic steps, in float32 and in float64."""
    system = abstract(lambda: getattr(ld.nn, make)(IMAGE, CLASSES, **SIZES[make], key=key))
    zeros = lambda leaf: jnp.zeros(leaf.shape, leaf.dtype) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf
    system = jax.tree.map(zeros, system)
    image = jax.ShapeDtypeStruct(IMAGE, precision)
    program = ld.compile(system, certificate(), (image, jax.ShapeDtypeStruct((), jnp.int32)))
    logits = program.declaration.prediction
    assert (logits.shape, logits.dtype) == ((CLASSES,), precision)
    loss = eqx.filter_eval_shape(
        lambda p, x, y, k: p.loss(x, y, key=k), program, jax.ShapeDtypeStruct((4, *IMAGE), precision),
        jax.ShapeDtypeStruct((4,), jnp.int32), key,
    )  # fmt: skip
    assert (loss.shape, loss.dtype) == ((), precision)


@quick
@pytest.mark.parametrize("make", SIZES)
def test_a_discrete_system_on_images(make: str, key: Any) -> None:
    image = jax.random.normal(key, IMAGE)
    program = ld.compile(small(make, IMAGE, key), certificate(), (image, 0))
    logits = program.predict(jnp.stack([image, image[:, ::-1]]))
    # What is done to an image depends on it alone, not on the others of the batch.
    np.testing.assert_allclose(logits[0], program.predict(jnp.stack([image, 0 * image]))[0], rtol=1e-4, atol=1e-5)
    assert not np.allclose(logits[0], logits[1])
    states = program.trajectory(image[None])
    assert len(states) == (6 if make == "resnet18" else 5)
    assert states[-1].shape[1] == (16 if make == "resnet18" else 4)
    if make == "resnet18":
        network = built(lambda: ld.nn.ResNet18(IMAGE, CLASSES, width=2, key=key))
        np.testing.assert_allclose(eqx.filter_jit(network)(image), logits[0], rtol=1e-4, atol=1e-5)
    step = eqx.filter_jit(eqx.filter_value_and_grad(lambda p: p.loss(image[None], jnp.zeros(1, int), key=key)))
    loss, grads = step(program)
    assert bool(jnp.isfinite(loss))
    # All of it is trained: no weight without a gradient.
    assert all(bool(jnp.isfinite(leaf).all() and (leaf != 0).any()) for leaf in jax.tree.leaves(grads.system))


@quick
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 9)])
def test_images_of_any_size(shape: Any, key: Any) -> None:
    out = built(lambda: ld.nn.ResNet18(shape, 4, width=4, key=key)(jax.random.normal(key, shape)))
    assert out.shape == (4,)
    assert bool(jnp.isfinite(out).all())


def test_the_continuous_in_depth_network_of_the_paper(key: Any) -> None:
    """16, 32, 64 channels, three steps a stage, one unit of time a stage."""
    system = abstract(lambda: ld.nn.continuous_net((3, 32, 32), 10, key=key))
    state = eqx.filter_eval_shape(system.start, jax.ShapeDtypeStruct((3, 32, 32), jnp.float32)).state
    shapes = [state.shape]
    for i in range(len(system.steps)):
        shapes.append(eqx.filter_eval_shape(system.step, i, jax.ShapeDtypeStruct(shapes[-1], jnp.float32), None).shape)
    assert shapes == [*[(16, 32, 32)] * 4, *[(32, 16, 16)] * 4, *[(64, 8, 8)] * 4]
    assert system.horizon == 3
    steps = [step for step in system.steps if isinstance(step, ld.nn.RungeKuttaStep)]
    np.testing.assert_allclose([step.begin for step in steps], np.arange(9) / 3)
    assert {step.dt for step in steps} == {1 / 3}
    assert {step.field.scale for step in steps} == {3.0}


def stripes(count: int, key: Any) -> tuple[Any, Any]:
    """Horizontal stripes, vertical ones and a checkerboard, with noise."""
    row, column = jnp.mgrid[:6, :6] % 2
    patterns = jnp.stack([row, column, (row + column) % 2]).astype(float)[:, None]
    y = jnp.arange(count) % CLASSES
    return patterns[y] + 0.1 * jax.random.normal(key, (count, 1, 6, 6)), y


@quick
@pytest.mark.parametrize(
    ("make", "objective"),
    [
        pytest.param("resnet18", ld.PathIntegral(), marks=pytest.mark.slow),
        ("continuous_net", ld.EndToEnd()),
        pytest.param("resnet18", ld.EndToEnd(), marks=pytest.mark.full),
        pytest.param("continuous_net", ld.PathIntegral(), marks=pytest.mark.full),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_discrete_systems_learn_a_separable_problem(make: str, objective: Any, key: Any) -> None:
    x, y = stripes(96, key)
    program = ld.compile(small(make, (1, 6, 6), key, width=4), certificate(), (x[0], y[0]), objective=objective)
    result = ld.fit(program, (x, y), optimizer=optax.adam(1e-2), epochs=8, batch_size=24, key=key)
    assert result.history[-1]["loss"] < 0.3 * result.history[0]["loss"]
    fresh = stripes(60, jax.random.key(1))
    assert result.program.error(*fresh) <= 0.05


# Runge-Kutta steps


def test_a_step_of_a_linear_field_is_the_polynomial_of_fourth_order(precision: Any, strict: None) -> None:
    z = -1.7 * 0.25
    step = ld.nn.RungeKuttaStep(lambda t, state, context: context * state, 0.0, 0.25)
    expected = 1 + z + z**2 / 2 + z**3 / 6 + z**4 / 24
    out = step(jnp.asarray([1.0, -2.0]), -1.7)
    assert out.dtype == precision
    np.testing.assert_allclose(out, expected * np.array([1.0, -2.0]), rtol=1e-6)


def test_the_order_of_convergence_with_time_and_structure() -> None:
    """q' = -t q² and p' = cos t: the error falls by 2⁴ when the steps are halved."""
    field = lambda t, s, c: {"q": -t * s["q"] ** 2, "p": jnp.cos(t) + 0 * s["p"]}
    with jax.enable_x64(True):

        def error(steps: int) -> float:
            state = {"q": jnp.asarray(2.0), "p": jnp.asarray(0.0)}
            for i in range(steps):
                state = ld.nn.RungeKuttaStep(field, i / steps, 1 / steps)(state)
            return max(abs(float(state["q"]) - 2 / (1 + 1.0)), abs(float(state["p"]) - math.sin(1)))

        rates = [math.log2(error(n) / error(2 * n)) for n in (8, 16, 32)]
    np.testing.assert_allclose(rates, 4, atol=0.25)


def test_a_stage_is_the_residual_field_solved_by_that_method(key: Any) -> None:
    """The steps of a network against diffrax with the same tableau; as weights jump, one solve for each step."""
    system = ld.nn.continuous_net((4, 5, 5), CLASSES, width=4, stages=1, steps=2, key=key)
    image = jax.random.normal(key, (4, 5, 5))
    state = system.start(image).state
    for step in system.steps:
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(step.field), RK4(), step.begin, step.begin + step.dt, dt0=step.dt, y0=state
        )
        state = step(state, None)
        np.testing.assert_allclose(state, solution.ys[0], rtol=1e-5, atol=1e-5)


@quick
def test_a_residual_field_serves_a_continuous_system(key: Any) -> None:
    readout = eqx.nn.Sequential([eqx.nn.Lambda(jnp.ravel), eqx.nn.Linear(2 * 6 * 5, CLASSES, key=key)])
    system = ld.System(vector_field=ld.nn.ResidualField(2, key=key), readout=readout, domain=ld.Box(-3, 3))
    x = jax.random.normal(key, (4, *IMAGE))
    program = ld.compile(system, certificate(), (x[0], 0), solver=diffrax.Tsit5())
    assert bool(jnp.isfinite(program.predict(x)).all())
    assert float(program.loss(x, jnp.zeros(4, int), key=key)) > 0


# The data-controlled field


def controlled(field: Any, *, hidden: int = 8, scale: Any = None, domain: Any = None, key: Any) -> ld.System:
    """The data-controlled neural ODE on small images; the encoder is a dense layer, for speed."""
    dense = eqx.nn.Linear(36, hidden**2, key=key)
    encoder = eqx.nn.Sequential([eqx.nn.Lambda(jnp.ravel), dense])
    return ld.System(ld.nn.ControlledStart(encoder, CLASSES, hidden, scale=scale), field, domain=domain)


@pytest.mark.full
@quick
def test_the_data_controlled_ode_with_a_resnet(key: Any, strict: None) -> None:
    k1, k2 = jax.random.split(key)
    encoder = built(lambda: ld.nn.ResNet18(IMAGE, 8**2, width=2, key=k1))
    field = ld.nn.InvariantField(ld.nn.ControlledField(CLASSES, 8, key=k2), 4.0, 8.0)
    system = ld.System(ld.nn.ControlledStart(encoder, CLASSES, 8), field, domain=ld.Box(-4, 4))
    x = jax.random.normal(key, (2, *IMAGE))
    start = eqx.filter_jit(system.start)(x[0])
    np.testing.assert_array_equal(start.state, np.zeros(CLASSES))
    np.testing.assert_allclose(
        start.context, eqx.filter_jit(encoder)(x[0]).reshape(8, 8) / math.sqrt(8), rtol=1e-5, atol=1e-6
    )
    program = ld.compile(system, certificate(), (x[0], 0), objective=ld.MonteCarlo(ld.Sphere(16)))
    grads = eqx.filter_jit(eqx.filter_grad(lambda p: p.loss(x, jnp.zeros(2, int), key=key)))(program)
    assert all(bool(jnp.isfinite(leaf).all() and (leaf != 0).any()) for leaf in jax.tree.leaves(grads.system))


def test_the_dtypes_of_the_data_controlled_ode(precision: Any, key: Any, strict: None) -> None:
    encoder = abstract(lambda: ld.nn.ResNet18(IMAGE, 8**2, width=2, key=key))
    start = eqx.filter_eval_shape(
        lambda e, x: ld.nn.ControlledStart(e, CLASSES, 8)(x), encoder, jax.ShapeDtypeStruct(IMAGE, precision)
    )
    assert (start.state.shape, start.context.shape) == ((CLASSES,), (8, 8))
    assert start.state.dtype == start.context.dtype == precision
    field = ld.nn.InvariantField(ld.nn.ControlledField(CLASSES, 8, key=key), 4.0, 8.0)
    assert field(0.0, jnp.ones(CLASSES), jnp.ones((8, 8))).dtype == precision


def test_the_controlled_field_is_its_formula(precision: Any, key: Any, strict: None) -> None:
    field = ld.nn.ControlledField(CLASSES, 8, key=key)
    state, matrix = jnp.linspace(-1, 1, CLASSES), jax.random.normal(key, (8, 8))
    prelu = lambda x: np.where(x >= 0, x, 0.25 * x)
    a = prelu(np.asarray(field.of_state.weight) @ np.asarray(state) + np.asarray(field.of_state.bias))
    b = prelu(np.asarray(matrix) @ a)
    out = field(0.3, state, matrix)
    np.testing.assert_allclose(
        out, np.asarray(field.last.weight) @ b + np.asarray(field.last.bias), rtol=1e-4, atol=1e-5
    )
    assert out.dtype == precision
    tanh = ld.nn.ControlledField(CLASSES, 8, activation=jnp.tanh, key=key)
    assert count(field) == count(tanh) + 2
    assert not np.allclose(out, tanh(0.3, state, matrix))


def test_no_matrix_is_copied_for_a_sample(key: Any) -> None:
    """The largest array of a Monte Carlo step is batch x samples x hidden, and a is computed without the batch axis."""
    batch, samples, hidden = 6, 20, 16
    field = ld.nn.PaperField(CLASSES, gain=6, hidden=hidden, dropout=0.0, key=key)
    system = controlled(field, hidden=hidden, domain=ld.Ball(0, 10), key=key)
    x, y = jnp.zeros((batch, 36)), jnp.zeros(batch, int)
    program = ld.compile(system, certificate(), (x[0], y[0]), objective=ld.MonteCarlo(ld.Sphere(samples)))
    params, static = eqx.partition(program, ld.trainable(program))
    step = lambda p: jax.value_and_grad(lambda q: eqx.combine(q, static).loss(x, y, key=key))(p)
    products, sizes = [], []

    def walk(jaxpr: Any) -> None:
        for equation in jaxpr.eqns:
            sizes.extend(v.aval.size for v in equation.outvars)
            if equation.primitive.name == "dot_general":
                products.append([v.aval.shape for v in equation.invars])
            for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda p: hasattr(p, "jaxpr")):
                walk(getattr(inner, "jaxpr", inner)) if hasattr(getattr(inner, "jaxpr", inner), "eqns") else None

    walk(jax.make_jaxpr(step)(params).jaxpr)
    weights = 36 * hidden**2  # of the encoder
    assert max(size for size in sizes if size != weights) == batch * samples * hidden
    # One product for all images and samples, and one of the state for all samples without the batch.
    assert [(batch, hidden, hidden), (samples, hidden)] in products
    assert [(hidden, CLASSES), (samples, CLASSES)] in products


def test_the_invariant_controlled_field_keeps_h(precision: Any, key: Any) -> None:
    inner = ld.nn.ControlledField(CLASSES, 8, key=key)
    field = ld.nn.InvariantField(inner, 2.0, 8.0)
    # A(x) far larger than an initialization has it.
    system = controlled(field, scale=30.0, domain=ld.Box(-2, 2), key=key)
    x = jax.random.normal(key, (32, 36))
    program = ld.compile(system, certificate(), (x[0], 0))
    times = jnp.linspace(0, 1, 33, dtype=precision)
    solution = program.trajectory(x, saveat=diffrax.SaveAt(ts=times))
    worst = jnp.max(jax.vmap(jax.vmap(system.region.excess))(solution.ys))
    assert float(worst) <= 64 * jnp.finfo(precision).eps
    assert float(jnp.max(jnp.abs(solution.ys))) > 1


@quick
@pytest.mark.parametrize("objective", [ld.MonteCarlo(), ld.MonteCarlo(ld.Sphere(32))], ids=["tube", "sphere"])
def test_the_controlled_ode_learns_a_separable_problem(objective: Any, key: Any) -> None:
    field = ld.nn.InvariantField(ld.nn.ControlledField(CLASSES, 8, key=key), 4.0, 8.0)
    x, y = stripes(96, key)
    program = ld.compile(
        controlled(field, domain=ld.Box(-4, 4), key=key), certificate(), (x[0], y[0]), objective=objective
    )
    program = ld.fit(program, (x, y), optimizer=optax.adam(1e-2), epochs=20, batch_size=24, key=key).program
    assert program.error(*stripes(60, jax.random.key(1))) <= 0.05


def test_dropout_follows_the_key_and_ends_with_training(key: Any) -> None:
    field = ld.nn.ControlledField(CLASSES, 64, dropout=0.5, key=key)
    state, matrix = jnp.ones(CLASSES), jax.random.normal(key, (64, 64))
    out = [field(0.0, state, matrix, key=jax.random.key(i)) for i in (0, 0, 1)]
    np.testing.assert_array_equal(out[0], out[1])
    assert not np.allclose(out[0], out[2])
    with pytest.raises(RuntimeError, match="requires a key"):
        field(0.0, state, matrix)
    quiet = eqx.nn.inference_mode(field)
    plain = ld.nn.ControlledField(CLASSES, 64, key=key)
    np.testing.assert_allclose(quiet(0.0, state, matrix), plain(0.0, state, matrix), rtol=1e-6)


@quick
def test_the_papers_field_trains_with_its_dropout(key: Any) -> None:
    field = ld.nn.PaperField(CLASSES, gain=8, hidden=8, key=key)
    x, y = stripes(8, key)
    program = ld.compile(controlled(field, domain=ld.Ball(0, 15 * math.sqrt(CLASSES)), key=key), certificate(), (x[0], y[0]),
                         objective=ld.MonteCarlo(ld.Sphere(16)))  # fmt: skip
    step = eqx.filter_jit(eqx.filter_value_and_grad(lambda p, k: p.loss(x, y, key=k)))
    (loss, grads), (other, _) = step(program, jax.random.key(0)), step(program, jax.random.key(1))
    assert float(loss) != float(other)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(grads.system))
    np.testing.assert_array_equal(program.predict(x), program.predict(x))


# The dynamics of the paper's own code


def by_hand(field: Any, state: Any, matrix: Any) -> np.ndarray:
    """The two variants as they are written, in NumPy."""
    classes, state = field.classes, np.asarray(state, np.float64)
    w = np.asarray(field.inner(0.0, jnp.asarray(state), matrix), np.float64)
    corners = 15 * (2 * np.eye(classes) - 1)
    distances = corners - state
    softmax = lambda z: np.exp(z - z.max()) / np.exp(z - z.max()).sum()
    factor = float(field.kappa()) * float(field.gain()) / classes
    if field.variant == "simplex":
        return factor * (softmax(w)[:, None] * distances).sum(axis=0)
    u = w / np.linalg.norm(w)
    return factor * (np.linalg.norm(distances, axis=1) * softmax(distances @ u)).sum() * u


@pytest.mark.parametrize("variant", ["direction", "simplex"])
@pytest.mark.parametrize("classes", [2, 10])
def test_the_papers_fields_are_their_formulas(variant: str, classes: int, key: Any) -> None:
    with jax.enable_x64(True):
        field = ld.nn.PaperField(classes, variant, gain=7, hidden=8, dropout=0.0, key=key)
        assert float(field.kappa()) == pytest.approx(math.log(15 * math.sqrt(classes)))
        for i in range(5):
            k1, k2 = jax.random.split(jax.random.key(i))
            state, matrix = 10 * jax.random.normal(k1, (classes,)), jax.random.normal(k2, (8, 8))
            np.testing.assert_allclose(field(0.5, state, matrix), by_hand(field, state, matrix), rtol=1e-9)


@pytest.mark.parametrize("variant", ["direction", "simplex"])
def test_dtypes_and_ranks_of_the_papers_fields(variant: str, precision: Any, key: Any, strict: None) -> None:
    field = ld.nn.PaperField(CLASSES, variant, gain=7, hidden=8, dropout=0.0, key=key)
    state, matrix = jnp.ones(CLASSES), jnp.ones((8, 8))
    assert field(0.0, state, matrix).dtype == field.speed_bound(0.0, state, matrix).dtype == precision
    assert field.speed_bound(0.0, state, matrix).shape == ()


@pytest.mark.parametrize("variant", ["direction", "simplex"])
def test_the_speed_bound_holds_and_is_reached(variant: str, key: Any) -> None:
    with jax.enable_x64(True):
        field = ld.nn.PaperField(10, variant, gain=3, hidden=4, dropout=0.0, key=key)
        field = eqx.tree_at(lambda f: f.inner.last.weight, field, jnp.zeros((10, 4)))

        def speed(raw: Any, state: Any) -> Any:
            moved = eqx.tree_at(lambda f: f.inner.last.bias, field, raw)
            return jnp.linalg.norm(moved(0.0, state, jnp.zeros((4, 4))))

        states = 20 * jax.random.normal(key, (200, 10))
        raws = 10 * jax.random.normal(jax.random.key(1), (200, 10))
        bounds = jax.vmap(lambda s: field.speed_bound(0.0, s, None))(states)
        assert bool((jax.vmap(speed)(raws, states) <= bounds * (1 + 1e-12)).all())
        # Towards the farthest corner, decidedly.
        corners = 15 * (2 * jnp.eye(10) - 1)
        farthest = jnp.argmax(jnp.linalg.norm(corners - states[:, None], axis=-1), axis=-1)
        best = jax.vmap(speed)(1e3 * jax.nn.one_hot(farthest, 10), states)
        np.testing.assert_allclose(best, bounds, rtol=1e-11)


def test_no_direction_is_no_velocity_and_has_a_finite_gradient(precision: Any, key: Any) -> None:
    field = ld.nn.PaperField(CLASSES, gain=7, hidden=8, dropout=0.0, key=key)
    none = jax.tree.map(lambda leaf: 0 * leaf if eqx.is_inexact_array(leaf) else leaf, field)
    ones = jnp.ones((8, 8))
    corner = 15 * (2 * jnp.eye(CLASSES)[0] - 1)  # where |D_0| has no derivative
    for model in (none, field):
        for leaf in jax.tree.leaves(
            eqx.filter_grad(lambda both: jnp.sum(both[0](0.0, both[1], ones)))((model, corner))
        ):
            assert bool(jnp.isfinite(leaf).all())
    np.testing.assert_array_equal(none(0.0, corner, ones), np.zeros(CLASSES))


def test_the_simplex_variant_keeps_the_ball_and_the_other_leaves_it(key: Any) -> None:
    """Euler with K Δt <= 1 mixes the state with a point of the simplex. At the gain that code starts with, the direction
    variant is out of the ball by t = 0.05."""
    radius = 15 * math.sqrt(CLASSES)
    x = jax.random.normal(key, (16, 36))

    def largest(variant: str, steps: int, end: float) -> float:
        field = ld.nn.PaperField(CLASSES, variant, gain=100, hidden=8, dropout=0.0, key=key)
        system = controlled(field, scale=1.0, domain=ld.Ball(0, radius), key=key)
        program = ld.compile(system, certificate(), (x[0], 0), solver=ld.Solver(diffrax.Euler(), dt=1 / steps))
        return float(jnp.max(jnp.linalg.norm(program.predict(x, stop=end), axis=-1)))

    assert 100 * math.log(radius) / CLASSES <= 120
    assert largest("simplex", 120, 1.0) <= radius * (1 + 1e-5)
    assert largest("direction", 1000, 0.05) > radius


def paper_program(gain: float, key: Any, *, kappa: float, loss: Any = ld.cross_entropy) -> ld.Program:
    field = ld.nn.PaperField(10, gain=gain, hidden=4, key=key)
    start = ld.nn.ControlledStart(ld.identity, 10, 4)
    system = ld.System(start, field, domain=ld.Ball(0, 15 * math.sqrt(10)))
    return ld.compile(system, ld.Certificate.exponential(loss, kappa), (jnp.zeros(16), jnp.asarray(0)))


def needed_gain(states: Any, classes: int = 10) -> np.ndarray:
    """C V / (|∇V| max |D_c|) for class 0: the gain with which the fastest field meets the condition at a state."""
    value, slope = jax.vmap(jax.value_and_grad(lambda s: ld.cross_entropy(s, 0)))(states)
    corners = 15 * (2 * np.eye(classes) - 1)
    farthest = np.linalg.norm(corners - np.asarray(states)[:, None], axis=-1).max(axis=-1)
    return classes * np.asarray(value) / (np.linalg.norm(slope, axis=-1) * farthest)


@pytest.mark.full
def test_what_gain_the_papers_field_needs(key: Any) -> None:
    """At gain 1 the condition cannot be met on most of the sampled set; at the wrong corners it takes 5 (30 C / (√2 · 30 √2)),
    and 2 √C = 6.32 on the whole ball."""
    with jax.enable_x64(True):
        kappa = math.log(15 * math.sqrt(10))
        program = paper_program(1, key, kappa=kappa)
        sampled = ld.Sphere(4096).sample(program.system, ld.Start(jnp.zeros(10)), key=key).state
        inside = jax.vmap(lambda k: program.system.region.sample(jnp.zeros(10), k))(jax.random.split(key, 4096))
        assert np.mean(needed_gain(sampled) > 1) > 0.5
        assert np.mean(needed_gain(inside) > 1) > 0.7
        corners = 15 * (2 * jnp.eye(10) - 1)
        np.testing.assert_allclose(needed_gain(corners[1:]), 5, rtol=1e-9)
        # On the sphere of radius 15 √10, found by a search; no draw is worse.
        worst = jnp.full(10, -7.5).at[:2].set(jnp.array([-30.0, 30.0]))
        np.testing.assert_allclose(needed_gain(worst[None]), 2 * math.sqrt(10), rtol=1e-9)
        assert needed_gain(jnp.concatenate([sampled, inside])).max() < 2 * math.sqrt(10)
        # And so says the library, which searches.
        x, y = jnp.zeros((10, 16)), jnp.arange(10)
        for gain, level in [(1, Level.REFUTED), (5, Level.REFUTED), (6.4, Level.EMPIRICAL)]:
            report = ld.assess(paper_program(gain, key, kappa=kappa), (x, y), only="feasibility", samples=512)
            assert report.claims["exponential.feasible"].assurance is level, gain
            assert report.claims["speed_bound"].assurance is Level.EMPIRICAL


def test_a_schedule_of_the_gain_does_not_recompile(key: Any, compilations: list) -> None:
    field = ld.nn.PaperField(CLASSES, gain=jnp.asarray(100.0), hidden=8, dropout=0.0, key=key)
    state, matrix = jnp.ones(CLASSES), jnp.ones((8, 8))
    call = eqx.filter_jit(lambda f: f(0.0, state, matrix))
    first = call(field)
    slower = eqx.tree_at(lambda f: f.gain, field, ld.Constant(jnp.asarray(10.0)))
    before = len(compilations)
    second = call(slower)
    assert len(compilations) == before
    np.testing.assert_allclose(first, 10 * second, rtol=1e-5)
    # Neither the gain nor κ is trained.
    assert count(field) == count(field.inner)


# Messages

KEY = jax.random.key(0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ld.nn.ResNet18((28, 28), 10, key=KEY), r"shape: expected \(channels, height, width\) .* got tuple \(28, 28\)"),
        (lambda: ld.nn.ResNet18((1, 0, 28), 10, key=KEY), "shape: expected .* three positive whole numbers"),
        (lambda: ld.nn.ResNet18((1, 28, 28), 0, key=KEY), "features: expected a positive whole number, got 0"),
        (lambda: ld.nn.resnet18((1, 28, 28), 10, width=1.5, key=KEY), "width: expected a positive whole number, got 1.5"),
        (lambda: ld.nn.continuous_net(28, 10, key=KEY), "shape: expected .* got int 28"),
        (lambda: ld.nn.continuous_net((1, 8, 8), 10, steps=0, key=KEY), "steps: expected a positive whole number, got 0"),
        (lambda: ld.nn.continuous_net((1, 8, 8), 10, scale=-1, key=KEY), "scale: expected a positive finite number, got -1"),
        (lambda: ld.nn.ResidualField(True, key=KEY), "channels: expected a positive whole number, got True"),
        (lambda: ld.nn.RungeKuttaStep(3, 0, 1), "field: expected a callable .* got 3"),
        (lambda: ld.nn.RungeKuttaStep(ld.identity, math.nan, 1), "begin: expected a finite time, got nan"),
        (lambda: ld.nn.RungeKuttaStep(ld.identity, 0, 0), "dt: expected a positive finite number, got 0"),
        (lambda: ld.nn.ControlledStart(None, 10), "encoder: expected a callable x -> vector, got None"),
        (lambda: ld.nn.ControlledStart(ld.identity, 10, 4, scale=0), "scale: expected a positive finite number, got 0"),
        (lambda: ld.nn.ControlledStart(ld.identity, 10, 4)(jnp.ones(15)), r"encoder: .* hidden\*\*2 = 16, got .* \(15,\)"),
        (lambda: ld.nn.ControlledField(10, -4, key=KEY), "hidden: expected a positive whole number, got -4"),
        (lambda: ld.nn.ControlledField(10, dropout=1, key=KEY), r"dropout: expected a probability in \[0, 1\), got 1"),
        (lambda: ld.nn.PaperField(1, gain=1, key=KEY), "classes: expected at least 2, got 1"),
        (lambda: ld.nn.PaperField(10, "other", gain=1, key=KEY), 'variant: expected "direction" or "simplex", got \'other\''),
        (lambda: ld.nn.PaperField(10, gain=0, key=KEY), "gain: expected a positive finite number, got 0"),
        (lambda: ld.nn.PaperField(10, gain=1, kappa=math.inf, key=KEY), "kappa: expected a positive finite number, got inf"),
    ],
)  # fmt: skip
def test_messages(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
