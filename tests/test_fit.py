"""The training loop: what it changes, what it leaves alone, and how it stops."""

import math
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lyapunov_dsl as ld

pytestmark = pytest.mark.usefixtures("quick")

EULER = ld.Solver(diffrax.Euler(), dt=0.25)


def origin(x: Any) -> ld.Start:
    return ld.Start(jnp.zeros(3, x.dtype), x)


def blobs(count: int = 48) -> tuple[np.ndarray, np.ndarray]:
    """Three classes of points in the plane, 120 degrees apart."""
    rng = np.random.default_rng(0)
    y = np.arange(count, dtype=np.int32) % 3
    angle = 2 * np.pi * y / 3
    x = np.stack([np.cos(angle), np.sin(angle)], axis=1) + 0.2 * rng.normal(size=(count, 2))
    return x.astype(np.float32), y


def classifier(key: Any, **options: Any) -> ld.Program:
    """Three logits that start at 0."""
    field = ld.nn.InvariantField(ld.nn.MLPField(3, 2, width=16, key=key), 5.0, 4.0)
    system = ld.System(origin, field, domain=ld.Box(-5, 5))
    certificate = ld.Certificate.exponential(ld.cross_entropy, 2)
    options = {"objective": ld.PathIntegral(4), "solver": EULER, **options}
    return ld.compile(system, certificate, (jnp.zeros(2), 0), **options)


class Weight(eqx.Module):
    """A field with one parameter."""

    weight: Any

    def __call__(self, t: Any, state: Any, context: Any) -> Any:
        return self.weight * state


class WeightTimesMean(ld.Objective):
    """The parameter times the mean of x: its gradient is that mean, so that SGD adds up what it has seen. NaN below a
    level."""

    level: float = eqx.field(static=True, default=-math.inf)

    def check(self, condition: Any, start: Any) -> None:
        pass

    def __call__(self, condition: Any, x: Any, y: Any, *, key: Any) -> Any:
        weight = condition.system.vector_field.weight
        return jnp.where(weight < self.level, jnp.nan, weight * jnp.mean(x))


def one_weight(level: float = -math.inf) -> ld.Program:
    system = ld.System(vector_field=Weight(jnp.zeros(())), domain=ld.Ball(0, 1))
    certificate = ld.Certificate.barrier(lambda s: 1 - jnp.sum(s**2))
    return ld.compile(system, certificate, (jnp.zeros(1), None), objective=WeightTimesMean(level))


def weight_of(program: ld.Program) -> float:
    return float(program.system.vector_field.weight)


def train(program: ld.Program, data: Any, key: Any, **options: Any) -> ld.FitResult:
    options = {"optimizer": optax.adam(1e-2), "epochs": 10, "batch_size": 16, "progress": False, **options}
    return ld.fit(program, data, key=key, **options)


@pytest.mark.parametrize(
    "objective",
    [ld.MonteCarlo(ld.Trajectory(2)), ld.PathIntegral(4), ld.EndToEnd(EULER)],
    ids=["MonteCarlo", "PathIntegral", "EndToEnd"],
)
def test_training_learns(objective: Any, key: Any) -> None:
    data = blobs()
    program = classifier(key, objective=objective)
    result = train(program, data, key, epochs=20)
    losses = [record["loss"] for record in result.history]
    assert losses[-1] < 0.5 * losses[0]
    assert result.program.error(*data) <= 0.05 < program.error(*data)
    assert result.status == "done"


def test_training_in_both_precisions_and_the_history(precision: Any, key: Any) -> None:
    """Not under strict promotion: optax itself takes powers of Python floats by integers."""
    x, y = blobs()
    x = x.astype(precision)
    held_out = (x[:10], y[:10])
    result = train(classifier(key), (x, y), key, epochs=3, validation=held_out)
    assert [record["epoch"] for record in result.history] == [0, 1, 2]
    assert [record["step"] for record in result.history] == [3, 6, 9]
    assert all(set(record) == {"epoch", "step", "loss", "seconds", "validation"} for record in result.history)
    assert all(record["seconds"] > 0 for record in result.history)
    assert result.history[-1]["validation"] == result.program.error(*held_out)
    for leaf in jax.tree.leaves(eqx.filter(result.program, ld.trainable(result.program))):
        assert leaf.dtype == precision


def test_the_loss_of_the_history_is_the_mean_over_the_epoch(key: Any) -> None:
    """By SGD on weight · 1 with rate 0.1 the losses are 0, -0.1, -0.2, ..."""
    result = train(one_weight(), (jnp.ones((8, 1)), None), key, optimizer=optax.sgd(0.1), epochs=2, batch_size=2)
    np.testing.assert_allclose([r["loss"] for r in result.history], [-0.15, -0.55], rtol=1e-5)
    assert weight_of(result.program) == pytest.approx(-0.8)


def test_the_callers_program_is_as_it_was(key: Any) -> None:
    program = classifier(key)
    leaves = [np.array(leaf) for leaf in jax.tree.leaves(eqx.filter(program, eqx.is_array))]
    x, y = blobs()
    before = np.array(program.predict(x))
    first = train(program, (x, y), key, epochs=1)
    # The step donates its arguments; none of them may be the caller's.
    for old, leaf in zip(leaves, jax.tree.leaves(eqx.filter(program, eqx.is_array)), strict=True):
        np.testing.assert_array_equal(leaf, old)
    np.testing.assert_array_equal(program.predict(x), before)
    second = train(first.program, (x, y), key, epochs=1)
    assert np.isfinite(first.program.predict(x)).all()
    assert not np.array_equal(first.program.predict(x), second.program.predict(x))
    assert isinstance(x, np.ndarray)


def test_the_same_key_gives_the_same_program_and_another_key_another(key: Any) -> None:
    data = blobs()
    program = classifier(key, objective=ld.MonteCarlo(ld.Cube(4)))
    once, again = (train(program, data, key, epochs=2) for _ in range(2))
    other = train(program, data, jax.random.key(1), epochs=2)
    assert eqx.tree_equal(once.program, again.program)
    assert [r["loss"] for r in once.history] == [r["loss"] for r in again.history]
    assert not eqx.tree_equal(once.program, other.program)


def test_every_epoch_visits_whole_batches_of_the_data_once_in_a_new_order(key: Any) -> None:
    """x_i = 2^i, so that the weight shows which examples SGD has seen."""
    x = 2.0 ** jnp.arange(10).reshape(10, 1)
    seen = []
    for epochs in (1, 2, 3):
        result = train(one_weight(), (x, None), key, optimizer=optax.sgd(4.0), epochs=epochs, batch_size=4)
        assert result.history[-1]["step"] == 2 * epochs
        seen.append(round(-weight_of(result.program)))
    each = np.diff([0, *seen])
    assert all(number == int(number) and bin(number).count("1") == 8 for number in each.tolist())
    assert len(set(each.tolist())) > 1


def test_a_batch_size_above_the_number_of_examples_is_the_whole_data(key: Any) -> None:
    x = jnp.arange(1.0, 6.0).reshape(5, 1)
    result = train(one_weight(), (x, None), key, optimizer=optax.sgd(1.0), epochs=3, batch_size=64)
    assert result.history[-1]["step"] == 3
    assert weight_of(result.program) == pytest.approx(-9)  # three times the mean


def test_no_targets(key: Any) -> None:
    """A barrier that training alone can meet: x' = w x leaves the ball for w > 0."""
    system = ld.System(vector_field=Weight(jnp.asarray(2.0)), domain=ld.Ball(0, 1))
    certificate = ld.Certificate.barrier(lambda s: 1 - jnp.sum(s**2))
    program = ld.compile(system, certificate, (jnp.zeros(2), None), objective=ld.MonteCarlo(ld.Cube(16)))
    x = np.random.default_rng(0).uniform(-0.5, 0.5, (16, 2)).astype(np.float32)
    result = train(program, (x, None), key, optimizer=optax.adam(0.1), epochs=40, validation=(x, None))
    assert weight_of(result.program) < 0.5
    assert result.history[-1]["loss"] < 0.01 * result.history[0]["loss"]
    assert result.history[-1]["validation"] < min(result.history[0]["validation"], 0)


class Oscillator(eqx.Module):
    """q'' = -weight q."""

    weight: Any

    def __call__(self, t: Any, state: Any, context: Any) -> Any:
        return {"q": state["p"], "p": -self.weight * state["q"]}


def test_data_of_several_parts(key: Any) -> None:
    """Training finds the weight that the targets were made with."""
    x = {"q": np.ones((8, 2), np.float32), "p": np.zeros((8, 2), np.float32)}
    example = jax.tree.map(lambda leaf: leaf[0], x)
    certificate = ld.Certificate.exponential(ld.squared_error, 1)

    def program(weight: float) -> ld.Program:
        system = ld.System(vector_field=Oscillator(jnp.asarray(weight)), domain=ld.Box(-9, 9))
        return ld.compile(system, certificate, (example, example), objective=ld.EndToEnd(EULER), solver=EULER)

    target = program(1.5).predict(x)
    result = train(program(0.0), (x, target), key, epochs=100, batch_size=8, optimizer=optax.adam(0.1))
    assert weight_of(result.program) == pytest.approx(1.5, abs=0.1)


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.chain(
            optax.clip_by_global_norm(1.0), optax.adamw(optax.cosine_decay_schedule(0.1, 100), weight_decay=1e-4)
        ),
        optax.inject_hyperparams(optax.adam)(learning_rate=0.1),
        optax.noisy_sgd(0.1, key=0),
        optax.lion(0.1),
    ],
    ids=["chain", "inject_hyperparams", "noisy_sgd", "lion"],
)
def test_any_optax_optimizer(optimizer: Any, key: Any) -> None:
    result = train(one_weight(), (jnp.ones((8, 1)), None), key, optimizer=optimizer, epochs=2, batch_size=2)
    assert result.status == "done"
    assert weight_of(result.program) < -0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda n: n.astype(jnp.int16), r"got int16\[\] after a step where int32\[\] was"),
        (lambda n: n[None], r"got int32\[1\] after a step where int32\[\] was"),
        (lambda n: (n, n), "expected a state that keeps its structure"),
    ],
)
def test_an_optimizer_whose_state_changes_its_kind_is_named(change: Any, message: str, key: Any) -> None:
    optimizer = optax.GradientTransformation(
        lambda params: jnp.zeros((), jnp.int32), lambda updates, state, params=None: (updates, change(state))
    )
    with pytest.raises(ValueError, match=f"optimizer: .*{message}"):
        ld.fit(classifier(key), blobs(), optimizer=optimizer, epochs=1, key=key, progress=False)


def test_a_nan_names_its_step_and_carries_the_last_good_program(key: Any) -> None:
    """The weight is -0.1 i at step i, and the loss NaN below -0.55: at step 6, in the second epoch of four steps."""
    program = one_weight(level=-0.55)
    data = (jnp.ones((8, 1)), None)
    options = {"optimizer": optax.sgd(0.1), "epochs": 3, "batch_size": 2}
    with pytest.raises(
        ld.NonFiniteError, match=r"NaN or Inf at step 6 \(epoch 1\).*is in \.result.*learning rate"
    ) as caught:
        train(program, data, key, **options)
    result = caught.value.result
    assert isinstance(caught.value, FloatingPointError)
    assert result.status == "NaN or Inf at step 6"
    assert weight_of(result.program) == pytest.approx(-0.6)
    assert [record["epoch"] for record in result.history] == [0]
    quiet = train(program, data, key, throw=False, **options)
    assert quiet.status == result.status
    assert eqx.tree_equal(quiet.program, result.program)


def test_a_nan_at_the_first_step_of_a_long_epoch_is_noticed_before_its_end(key: Any) -> None:
    result = train(one_weight(level=1.0), (jnp.ones((500, 1)), None), key, batch_size=1, throw=False)
    assert result.status == "NaN or Inf at step 0"
    assert result.history == []
    assert weight_of(result.program) == 0


def test_an_infinite_gradient_is_noticed(key: Any) -> None:
    """A loss that is finite with a gradient that is not: sqrt at 0."""

    class Root(ld.Objective):
        def check(self, condition: Any, start: Any) -> None:
            pass

        def __call__(self, condition: Any, x: Any, y: Any, *, key: Any) -> Any:
            return jnp.sqrt(condition.system.vector_field.weight)

    program = ld.compile(one_weight().system, one_weight().certificate, (jnp.zeros(1), None), objective=Root())
    result = train(program, (jnp.ones((4, 1)), None), key, throw=False)
    assert result.status == "NaN or Inf at step 0"
    assert weight_of(result.program) == 0


def test_parameters_that_overflow_are_not_the_last_good_ones(key: Any) -> None:
    """Loss and gradient are finite at step 1, the new parameter -6e38 is not."""
    options = {"optimizer": optax.sgd(3e38), "epochs": 1, "batch_size": 2, "throw": False}
    result = train(one_weight(), (jnp.ones((8, 1)), None), key, **options)
    assert result.status == "NaN or Inf at step 1"
    assert weight_of(result.program) == pytest.approx(-3e38, rel=1e-5)


def test_data_that_overflows_is_noticed(key: Any) -> None:
    x, y = blobs()
    x[7] = 1e38
    field = ld.nn.MLPField(3, 2, width=4, activation=lambda z: z * z, key=key)
    program = ld.compile(ld.System(origin, field, domain=ld.Box(-5, 5)), classifier(key).certificate, (x[0], 0),
                         objective=ld.PathIntegral(1))  # fmt: skip
    options = {"epochs": 1, "batch_size": 1}
    with pytest.raises(ld.NonFiniteError) as caught:
        train(program, (x, y), key, **options)
    # The program that is carried is that of training on the steps before, and still fit to train.
    step = int(caught.value.result.status.rsplit(" ", 1)[1])
    assert 0 <= step < 48
    leaves = jax.tree.leaves(eqx.filter(caught.value.result.program, eqx.is_inexact_array))
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in leaves)


def test_trajectories_that_the_solver_cannot_finish_stop_training(key: Any) -> None:
    program = classifier(key, objective=ld.EndToEnd(ld.Solver(rtol=1e-7, atol=1e-9, max_steps=3)))
    with pytest.raises(ld.NonFiniteError, match=r"step 0 .*max_steps"):
        train(program, blobs(), key, epochs=1)


def test_no_progress_bar_is_silent_and_a_progress_bar_is_not(key: Any, capfd: Any) -> None:
    data = (jnp.ones((8, 1)), None)
    train(one_weight(), data, key, progress=False)
    captured = capfd.readouterr()
    assert captured.err == ""
    assert captured.out == ""
    train(one_weight(), data, key, progress=True, epochs=2, batch_size=2, validation=data)
    captured = capfd.readouterr()
    assert "8/8" in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    "data", [[np.ones((8, 1)), None], (np.ones((8, 1), np.float64), None)], ids=["list", "float64"]
)
def test_data_of_every_kind(data: Any, key: Any) -> None:
    assert train(one_weight(), data, key, epochs=1).status == "done"
