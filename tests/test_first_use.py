"""What people meet when they begin: constants, weights that are shared or frozen, optional parameters, states near rest."""

import contextlib
import functools
import re
from pathlib import Path
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export

import lyapunov_dsl as ld
from lyapunov_dsl import _synthesize

pytestmark = pytest.mark.usefixtures("quick")

X = np.random.default_rng(0).normal(size=(32, 2)).astype(np.float32)
Y = np.arange(32, dtype=np.int32) % 3


EYE = np.eye(2)


class Encoder(eqx.Module):
    """Standardizes by constants, and looks through a layer."""

    mean: Any
    layer: eqx.nn.Linear

    def __call__(self, x: Any) -> ld.Start:
        return ld.Start(jnp.zeros(2, x.dtype), jnp.tanh(self.layer(x - self.mean)))


class Field(eqx.Module):
    """A field whose hidden layer may be that of the encoder."""

    layer: eqx.nn.Linear
    head: eqx.nn.Linear

    def __call__(self, t: Any, state: Any, context: Any) -> Any:
        return self.head(jnp.tanh(self.layer(state)) + context) - state


class Logits(eqx.Module):
    layer: eqx.nn.Linear

    def __call__(self, state: Any) -> Any:
        return self.layer(state)


class Direct(ld.Objective):
    """A loss of everything that is trained, without a solve: quick to compile."""

    def check(self, condition: Any, start: Any) -> None:
        pass

    def __call__(self, condition: Any, x: Any, y: Any, *, key: Any) -> Any:
        def one(x: Any) -> Any:
            start = condition.system.start(x)
            return jnp.sum(condition.system.decode(condition.system.velocity(0.0, start.state + 1, start.context)) ** 2)

        return jnp.mean(eqx.filter_vmap(one)(x))


def program(mean: Any = 0.0, layers: tuple[int, int] = (0, 1), wrap: Any = lambda x: x) -> ld.Program:
    """A small classifier. Layers of the encoder and the field with the same number are the same object."""
    made = {i: eqx.nn.Linear(2, 2, key=jax.random.key(i)) for i in layers}
    one, two = (made[i] for i in layers)
    system = ld.System(
        Encoder(mean, one),
        wrap(Field(two, eqx.nn.Linear(2, 2, key=jax.random.key(7)))),
        Logits(eqx.nn.Linear(2, 3, key=jax.random.key(8))),
        domain=ld.Box(-4, 4),
    )
    options = {"objective": Direct(), "solver": ld.Solver(diffrax.Euler(), dt=0.5)}
    return ld.compile(system, ld.Certificate.exponential(ld.cross_entropy, 2), (X[0], Y[0]), **options)


def train(program: ld.Program, **options: Any) -> Any:
    options = {"optimizer": optax.adamw(1e-2, weight_decay=0.1), "epochs": 1, "batch_size": 16, **options}
    return ld.fit(program, (X, Y), key=jax.random.key(2), progress=False, **options)


def same(a: Any, b: Any) -> bool:
    """Bit for bit, and of the same kind."""
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(type(x) is type(y) and np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in leaves)


@pytest.mark.parametrize("mean", [np.array([0.3, 0.4], np.float32), np.array([0.3, 0.4]), np.float32(0.3)])
def test_numpy_arrays_are_constants(mean: Any, tmp_path: Path) -> None:
    begun = program(mean)
    count = sum(
        leaf.size for leaf in jax.tree.leaves(eqx.filter(begun, eqx.is_inexact_array)) if isinstance(leaf, jax.Array)
    )
    assert f"{count} parameters" in str(begun)
    assert ("NumPy arrays are constants" in str(begun)) == (isinstance(mean, np.ndarray) and mean.dtype.kind == "f")
    result = train(begun, epochs=2, folder=tmp_path / "run")
    assert same(result.program.system.input.mean, mean)
    assert not same(result.program.system.input.layer, begun.system.input.layer)
    ld.save(tmp_path / "p", result.program)
    for path in (tmp_path / "p", tmp_path / "run" / "checkpoint.npz"):
        found = ld.load(path, program(mean))
        assert same((found.system, found.certificate), (result.program.system, result.program.certificate))
    # What was loaded trains on, and so does what was trained, in the folder of the run.
    longer = train(program(mean), epochs=3, folder=tmp_path / "run")
    assert len(longer.history) == 3
    assert train(found).status == "done"


def test_one_array_at_several_places_stays_one(tmp_path: Path) -> None:
    begun = program(layers=(0, 0))
    assert begun.declaration.ties == tuple(
        (f".system.input.layer.{name}", f".system.vector_field.layer.{name}") for name in ("weight", "bias")
    )
    assert "at several places" in str(begun)
    assert "at several places" not in str(program())
    result = train(begun, folder=tmp_path / "run")
    trained = result.program.system
    assert same(trained.input.layer, trained.vector_field.layer)
    assert not same(trained.input.layer, begun.system.input.layer)
    ld.save(tmp_path / "p", result.program)
    found = ld.load(tmp_path / "p", program(layers=(0, 0)))
    again = train(found, optimizer=optax.sgd(0.1)).program.system
    assert same(again.input.layer, again.vector_field.layer)
    resumed = train(program(layers=(0, 0)), folder=tmp_path / "run", epochs=2).program.system
    assert same(resumed.input.layer, resumed.vector_field.layer)
    assert not same(resumed.input.layer, trained.input.layer)


def test_the_gradient_of_a_shared_array_is_the_sum_over_its_places() -> None:
    begun, key = program(layers=(0, 0)), jax.random.key(2)
    order_key, step_key = jax.random.split(key)
    order = jax.random.permutation(jax.random.fold_in(order_key, 0), 32)
    loss = lambda p: p.loss(X[order], Y[order], key=jax.random.fold_in(step_key, 0))
    both = eqx.filter_grad(loss)(begun).system
    # Each of the two is a part of the sum that shows.
    one, two = both.input.layer.weight, both.vector_field.layer.weight
    assert min(jnp.abs(one).max(), jnp.abs(two).max()) > 1e-3
    fitted = train(begun, optimizer=optax.sgd(1.0), batch_size=32).program.system.input.layer.weight
    np.testing.assert_allclose(fitted, begun.system.input.layer.weight - (one + two), rtol=1e-5, atol=1e-6)


def test_shared_arrays_that_have_drifted_apart_or_are_half_frozen_are_refused() -> None:
    begun = program(layers=(0, 0))
    apart = eqx.tree_at(lambda p: p.system.input.layer.bias, begun, jnp.ones(2))
    with pytest.raises(ValueError, match=r"expected the same numbers at \.system\.input\.layer\.bias and"):
        train(apart)
    with pytest.raises(ValueError, match="trained at both or at none"):
        train(begun, trainable=ld.trainable(begun, freeze=lambda p: p.system.input))
    both = train(begun, trainable=ld.trainable(begun, freeze=lambda p: (p.system.input, p.system.vector_field.layer)))
    assert same(both.program.system.input, begun.system.input)
    assert same(both.program.system.vector_field.layer, begun.system.vector_field.layer)
    assert not same(both.program.system.readout, begun.system.readout)


@pytest.mark.parametrize("optimizer", [optax.adamw(1e-2, weight_decay=0.1), optax.sgd(1e-2, momentum=0.9)])
def test_what_is_frozen_does_not_move(optimizer: Any, tmp_path: Path) -> None:
    begun = program()
    mask = ld.trainable(begun, freeze=lambda p: (p.system.input, p.system.vector_field.head.weight))
    result = train(begun, optimizer=optimizer, trainable=mask, epochs=2, folder=tmp_path)
    assert same(result.program.system.input, begun.system.input)
    assert same(result.program.system.vector_field.head.weight, begun.system.vector_field.head.weight)
    assert not same(result.program.system.vector_field.head.bias, begun.system.vector_field.head.bias)
    # Another filter is another run.
    with pytest.raises(ValueError, match="to go on with that run"):
        train(begun, optimizer=optimizer, epochs=3, folder=tmp_path)
    assert train(begun, optimizer=optimizer, trainable=mask, epochs=3, folder=tmp_path).status == "done"


def test_filters_that_freeze_nothing_or_are_of_another_program_are_refused() -> None:
    begun = program(np.zeros(2))
    for freeze in (lambda p: p.system.domain, lambda p: p.system.input.mean, lambda p: p.nothing, lambda p: 3, 3):
        with pytest.raises(ValueError, match="freeze: expected a function that returns parts of the program"):
            ld.trainable(begun, freeze=freeze)
    for mask in (True, ld.trainable(program(wrap=lambda f: ld.nn.InvariantField(f, 4.0, 4.0)))):
        with pytest.raises(ValueError, match="trainable: expected a filter of this program"):
            train(begun, trainable=mask)
    everything = jax.tree.map(lambda _: True, begun)
    with pytest.raises(ValueError, match=r"trainable: expected True at floating-point JAX arrays .* alone"):
        train(begun, trainable=everything)


@pytest.mark.parametrize("static", [np.ones(2), jnp.ones(2), (1.0, {"a": np.ones(2)})])
def test_arrays_in_static_fields_are_refused(static: Any) -> None:
    class Hides(eqx.Module):
        table: Any = eqx.field(static=True)

        def __call__(self, t: Any, state: Any, context: Any) -> Any:
            return -state

    with pytest.warns(UserWarning, match="static"):
        field = Hides(static)
    with pytest.raises(ValueError, match=r"got one in system\.vector_field\.table"):
        program(wrap=lambda _: field)


def test_times_to_save_at_are_checked() -> None:
    begun = program()
    for ts, stop in (([0.5, 0.2], None), ([0.5, 2.0], None), ([0.2, 0.9], 0.5), ([[0.1], [0.2]], None)):
        with pytest.raises(ValueError, match="saveat: expected"):
            begun.trajectory(X, saveat=diffrax.SaveAt(ts=jnp.asarray(ts)), stop=stop)
    saveat = diffrax.SaveAt(subs=[diffrax.SubSaveAt(ts=jnp.asarray([0.2, 0.4])), diffrax.SubSaveAt(t1=True)])
    assert begun.trajectory(X, saveat=saveat, stop=0.5).ys[0].shape == (32, 2, 2)


class Scaled(eqx.Module):
    weight: Any

    def __call__(self, s: Any, scale: Any = 2.0, *, key: Any = None) -> Any:
        return scale * self.weight * jnp.sum(s**2)


def quadratic(s: Any, scale: float = 2.0) -> Any:
    return scale * jnp.sum(s**2)


ALONE = {
    "an optional parameter": (quadratic, 4.0),
    "a bound default": (lambda s, P=EYE: s @ P @ s, 2.0),
    "partial": (functools.partial(quadratic, scale=3.0), 6.0),
    "partial of a pair": (functools.partial(lambda p, t: jnp.sum((p - t) ** 2), t=0.0), 2.0),
    "jitted": (jax.jit(quadratic), 4.0),
    "a module": (Scaled(jnp.ones(())), 4.0),
    "any keyword": (lambda s, **more: jnp.sum(s**2), 2.0),
}


@pytest.mark.parametrize("name", ALONE)
def test_parameters_with_defaults_keep_them(name: str) -> None:
    potential, expected = ALONE[name]
    system = ld.System(vector_field=lambda t, s, c: -s, domain=ld.Box(-1, 1))
    certificate = ld.Certificate.exponential(potential, 1)
    for y in (None, np.float32(5.0)):
        compiled = ld.compile(system, certificate, (np.ones(2, np.float32), y))
        targets = None if y is None else np.full(1, y)
        value = compiled.potential(np.ones((1, 2), np.float32), targets, times=[0.0])
        assert float(value["exponential"][0, 0]) == pytest.approx(expected)


def test_two_parameters_take_the_target_and_other_numbers_are_refused() -> None:
    loss = ld.as_loss(lambda p, t, scale=2.0: scale * jnp.sum((p - t) ** 2))
    assert loss.needs_target
    assert float(loss(jnp.ones(2), jnp.zeros(2))) == 4
    assert ld.as_loss(lambda p, t, *more: 0.0).needs_target
    for wrong in (lambda *a: 0, lambda p, *a: 0, lambda: 0, lambda p, t, q: 0, lambda p, *, t: 0, Scaled, "energy"):
        with pytest.raises(ValueError, match=r"loss: expected a Loss or a function .*got"):
            ld.as_loss(wrong)
    with pytest.raises(ValueError, match="optional targets=None and an example with a target"):
        ld.compile(
            ld.System(vector_field=lambda t, s, c: -s, domain=ld.Box(-1, 1)),
            ld.Certificate.exponential(lambda p, targets=None: jnp.sum(p**2), 1),
            (np.zeros(2, np.float32), np.zeros(2, np.float32)),
        )


@pytest.mark.parametrize("width", [1e-10, 1e-14, 1e-17, 0.0])
def test_relative_residuals_near_rest_have_finite_gradients(width: float, precision: Any) -> None:
    field = lambda t, s, c: jnp.stack([s[1], -s[0] - s[1]])
    potential = ld.nn.QuadraticPotential(2, margin=0.1)
    box = np.array([[0.0, width / 2, width / 2]])
    measure = ld.Boxes(box, 2 * box, 4)
    compiled = ld.compile(
        ld.System(vector_field=field, domain=ld.Box(-1, 1)),
        ld.Certificate.exponential(potential, 1.3),
        (jnp.zeros(2, precision), None),
        objective=ld.MonteCarlo(measure, level=1.0, relative=True),
    )
    loss = lambda p: p.loss(jnp.zeros((1, 2), precision), key=jax.random.key(0))
    value, grads = eqx.filter_value_and_grad(loss)(compiled)
    leaves = jax.tree.leaves(eqx.filter(grads.certificate, eqx.is_inexact_array))
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in leaves)
    # V falls at a rate of 0.82 there, so that the residual is 0.48 V, below the cap. Of a quadratic V and a linear field it is
    # the same at every scale, until V underflows.
    counted = width > (1e-15 if precision == jnp.float32 else 0)
    assert (float(value) > 0) == counted
    if counted:
        assert any(np.abs(leaf).max() > 1e-3 for leaf in leaves)


def test_what_earlier_rounds_found_survives_a_failure(monkeypatch: Any) -> None:
    compiled = ld.compile(
        ld.System(vector_field=lambda t, s, c: -0.1 * s, domain=ld.Box(-1, 1)),
        ld.Certificate.exponential(ld.nn.QuadraticPotential(2, margin=0.1), 1.0),
        (jnp.zeros(2), None),
        objective=ld.MonteCarlo(ld.Cube(4)),
    )
    how = {"optimizer": optax.sgd(1e-3), "key": jax.random.key(0), "epochs": 1, "draws": 64}
    rounds = []

    def breaks(program: Any, *args: Any, **options: Any) -> Any:
        rounds.append(program)
        if len(rounds) == 2:
            raise ld.NonFiniteError("NaN or Inf at step 0", ld.FitResult(program, [], "NaN or Inf at step 0"))
        return ld.fit(program, *args, **options)

    monkeypatch.setattr(_synthesize, "fit", breaks)
    with pytest.raises(ld.NonFiniteError, match="in round 2; what was found before it") as raised:
        ld.synthesize(compiled, (X, None), ld.Decrease(equilibrium=np.zeros(2)), rounds=3, **how)
    result = raised.value.result
    assert isinstance(result, ld.Synthesis)
    assert [status for status, _ in result.history] == [ld.Assurance.REFUTED]
    assert result.history[0][1] > 0
    assert eqx.tree_equal(result.program.objective, compiled.objective)
    assert not eqx.tree_equal(result.program.certificate, compiled.certificate)

    def interrupted(*args: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(_synthesize, "prove", interrupted)
    with pytest.raises(ld.Interrupted, match="by Ctrl-C in round 2") as raised:
        ld.synthesize(compiled, (X, None), ld.Decrease(equilibrium=np.zeros(2)), rounds=2, **how)
    assert len(raised.value.result.history) == 1


def test_weights_alone_can_be_loaded_after_the_code_has_changed(tmp_path: Path) -> None:
    class Renamed(Field):
        sign: float = eqx.field(static=True, default=-1.0)

    renamed = lambda field: Renamed(field.layer, field.head)
    begun = program(np.zeros(2, np.float32))
    ld.save(tmp_path / "p", begun)
    other = program(np.ones(2, np.float32), layers=(3, 4), wrap=renamed)
    with pytest.raises(ValueError, match=r"load\(path, program, weights_only=True\) takes them alone"):
        ld.load(tmp_path / "p", other)
    found = ld.load(tmp_path / "p", other, weights_only=True)
    assert same(found.system.input.layer, begun.system.input.layer)
    assert same(found.system.vector_field.layer, begun.system.vector_field.layer)
    # Constants are those of the declaration.
    assert same(found.system.input.mean, np.ones(2, np.float32))
    assert isinstance(found.system.vector_field, Renamed)
    wider = eqx.tree_at(lambda p: p.system.input.layer.weight, other, jnp.zeros((2, 3)))
    wider = eqx.tree_at(lambda p: p.system.input.layer.bias, wider, None)
    with pytest.raises(ValueError, match="expected the weights of this program, got others") as raised:
        ld.load(tmp_path / "p", wider, weights_only=True)
    assert "[0].input.layer.weight: expected float32[2,3], got float32[2,2]" in str(raised.value)
    assert "[0].input.layer.bias: expected none, got float32[2]" in str(raised.value)


def test_fixed_steps_have_no_callbacks_and_can_be_exported() -> None:
    begun = program()
    predict = jax.jit(lambda x: begun.predict(x))
    exported = export.export(predict)(jax.ShapeDtypeStruct((4, 2), jnp.float32))
    assert "python_cpu_callback" not in exported.mlir_module()
    np.testing.assert_array_equal(exported.call(X[:4]), begun.predict(X[:4]))
    early = jax.jit(lambda x: begun.predict(x, stop=0.5))
    assert "python_cpu_callback" not in early.lower(X[:4]).as_text()
    pytest.importorskip("flatbuffers")
    read = export.deserialize(exported.serialize())
    np.testing.assert_array_equal(read.call(X[:4]), begun.predict(X[:4]))


@pytest.mark.parametrize("method", [diffrax.ImplicitEuler(), diffrax.Kvaerno3()], ids=["ImplicitEuler", "Kvaerno3"])
def test_implicit_solvers_take_fixed_steps(method: Any) -> None:
    stiff = lambda t, s, c: jnp.stack([-100.0 * s[0] + 99.0 * s[1], -s[1]])
    options = {"solver": ld.Solver(method, dt=0.05), "objective": ld.PathIntegral(4, method)}
    certificate = ld.Certificate.exponential(lambda s: jnp.sum(s**2), 0.5)
    compiled = ld.compile(
        ld.System(vector_field=stiff, domain=ld.Box(-2, 2)), certificate, (jnp.zeros(2), None), **options
    )
    assert compiled.predict(np.ones((1, 2), np.float32)) == pytest.approx(np.exp(-1) * np.ones((1, 2)), abs=0.02)
    assert np.isfinite(compiled.loss(np.ones((1, 2), np.float32), key=jax.random.key(0)))


def test_solvers_that_cannot_work_are_refused() -> None:
    for method in (diffrax.SemiImplicitEuler(), diffrax.KenCarp4()):
        for make in (lambda m: ld.Solver(m, dt=0.1), lambda m: ld.PathIntegral(4, m)):
            with pytest.raises(ValueError, match=r"single vector field .* got .*which takes several terms"):
                make(method)
    system = ld.System(vector_field=lambda t, s, c: -s, domain=ld.Box(-1, 1), horizon=10.0)
    certificate = ld.Certificate.exponential(lambda s: jnp.sum(s**2), 1)
    with pytest.raises(ValueError, match=r"dt: expected a step with which 50 .* give Solver\(\.\.\., max_steps=100\)"):
        ld.compile(system, certificate, (jnp.zeros(2), None), solver=ld.Solver(diffrax.Euler(), dt=0.1, max_steps=50))


def test_a_solver_that_runs_out_of_steps_is_named() -> None:
    system = ld.System(vector_field=lambda t, s, c: -1000 * s, domain=ld.Box(-2, 2))
    certificate = ld.Certificate.exponential(ld.squared_error, 1)
    zero = jnp.zeros(2)
    few = ld.Solver(max_steps=16)
    compiled = ld.compile(system, certificate, (zero, zero), solver=few, objective=ld.EndToEnd(few))
    x, y = np.ones((4, 2), np.float32), np.zeros((4, 2), np.float32)
    problems = ld.assess(compiled, (x, y), samples=16).problems
    assert problems[0].startswith("inference fails: 100 % of the trajectories ran out of 16 steps (max_steps)")
    assert not any("leave H" in problem for problem in problems)
    with pytest.warns(UserWarning, match=r"the solver ran out of 16 steps \(max_steps\) on 4 of 4 examples"):
        assert np.isnan(compiled.error(x, y))


class Decays(eqx.Module):
    rate: Any

    def __call__(self, t: Any, s: Any, c: Any) -> Any:
        return -self.rate * s


def test_training_names_a_solver_that_runs_out_of_steps() -> None:
    system = ld.System(vector_field=Decays(jnp.asarray(1000.0)), domain=ld.Box(-2, 2))
    objective = 0.5 * ld.EndToEnd(ld.Solver(max_steps=16))
    zero = jnp.zeros(2)
    compiled = ld.compile(system, ld.Certificate.exponential(ld.squared_error, 1), (zero, zero), objective=objective)
    data = (np.ones((4, 2), np.float32), np.zeros((4, 2), np.float32))
    with pytest.raises(ld.NonFiniteError, match=r"EndToEnd ran out of 16 steps \(max_steps\) on 4 of 4 examples"):
        ld.fit(compiled, data, optimizer=optax.sgd(0.1), epochs=1, key=jax.random.key(0), progress=False)


FIELDS = {
    "where by the state": (lambda t, s: jnp.where(s > 0, -s, -5 * s), r"may jump or bend where .* \(where\)", None),
    "a relay": (lambda t, s: jnp.where(s > 0, -1.0, 1.0) + 0 * s, r"\(where between constants\)", "derivative is zero"),
    "a relay of a relay": (
        lambda t, s: jnp.where(s > 0, jnp.where(s > 1, -2.0, -1.0), 1.0),
        r"\(where between",
        "derivative is zero",
    ),
    "a mask": (lambda t, s: -jnp.where(s > 0, 1.0, 0.5) * s, r"may jump or bend where .* \(where\)$", None),
    "a slope": (lambda t, s: -jax.grad(lambda v: jnp.sum(jnp.maximum(v, 0) ** 2))(s), r"\(max", None),
    "sign": (lambda t, s: -jnp.sign(s), r"may jump or bend where .* \(sign\)", "uses sign"),
    "cond": (lambda t, s: jax.lax.cond(s[0] > 0, lambda s: -s, lambda s: 5 - s, s), r"\(cond\)", None),
    "mod": (lambda t, s: -jnp.mod(s, 2.0), r"may jump or bend where .* \(mod", None),
    "sort": (lambda t, s: -jnp.sort(s), r"piecewise smooth \(sort\)$", None),
    "abs": (lambda t, s: -jnp.abs(s), r"piecewise smooth \(abs\)$", None),
    "where by the time": (lambda t, s: jnp.where(t < 0.3, -s, 0 * s), r"\(where\)", r"chooses by the time .* jumps="),
    "where by a constant": (lambda t, s: jnp.where(jnp.ones(2) > 0, -s, s), "smooth$", None),
    "smooth": (lambda t, s: -jnp.tanh(s) * jnp.cos(t), "smooth$", None),
}


@pytest.mark.parametrize("name", FIELDS)
def test_the_summary_says_what_is_not_smooth(name: str) -> None:
    field, said, warned = FIELDS[name]
    declare = lambda **more: ld.compile(
        ld.System(vector_field=lambda t, s, c: field(t, s), domain=ld.Box(-1, 1), **more),
        ld.Certificate.exponential(lambda s: jnp.sum(s**2), 1),
        (jnp.zeros(2), None),
    )
    with pytest.warns(UserWarning, match=warned) if warned else contextlib.nullcontext():
        summary = declare().summary()
    line = next(line for line in summary.splitlines() if line.startswith("smoothness"))
    assert re.search(said, line)
    if name == "where by the time":
        declare(jumps=(0.3,))


def test_coarse_numbers_are_warned_of() -> None:
    certificate = ld.Certificate.exponential(lambda s: jnp.sum(s**2), 1)
    declare = lambda dtype, half, **options: ld.compile(
        ld.System(vector_field=lambda t, s, c: -s, domain=ld.Box(-half, half)),
        certificate,
        (jnp.zeros(2, dtype), None),
        **options,
    )
    for dtype in (jnp.bfloat16, jnp.float16):
        with pytest.warns(UserWarning, match=f"the state is of {jnp.dtype(dtype)}, and so is time"):
            declare(dtype, 1.0)
    with pytest.warns(
        UserWarning, match=r"atol is 1e-06, and the domain has a half-width of 1e-05.*Solver\(atol=1e-08\)"
    ):
        declare(jnp.float32, 1e-5)
    declare(jnp.float32, 1e-5, solver=ld.Solver(atol=1e-9))
    declare(jnp.float32, 1.0)
