"""Inference: accuracy, solver settings, derivatives, statuses, early termination and jumps."""

import math
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import expm

import lyapunov_dsl as ld

pytestmark = pytest.mark.usefixtures("quick")

A = np.array([[-0.5, 2.0, 0.0], [-2.0, -0.5, 1.0], [0.0, 0.3, -1.0]])
X = np.array([[1.0, 0.0, 0.0], [0.0, -1.0, 2.0], [0.5, 0.5, 0.5], [-1.0, 2.0, 0.0]])
TIGHT = ld.Solver(rtol=1e-6, atol=1e-6)


class Linear(eqx.Module):
    """x' = A x."""

    matrix: Any

    def __call__(self, t: Any, state: Any, context: Any) -> Any:
        return self.matrix @ state


def size(prediction: Any, target: Any) -> Any:
    """A loss without a target."""
    return jnp.sum(prediction**2)


def program_of(field: Any, x: Any, *, readout: Any = ld.identity, horizon: float = 1.0, **options: Any) -> ld.Program:
    """A program that starts at x."""
    jumps = options.pop("jumps", ())
    system = ld.System(vector_field=field, readout=readout, domain=ld.Box(-9, 9), horizon=horizon, jumps=jumps)
    return ld.compile(system, ld.Certificate.exponential(size, 1), (x[0], 0), **options)


def linear(dtype: Any = jnp.float32, **options: Any) -> ld.Program:
    return program_of(Linear(jnp.asarray(A, dtype)), X.astype(dtype), **options)


def exact(t: float) -> np.ndarray:
    return X @ expm(t * A).T


def test_a_linear_equation_in_both_precisions(precision: Any, strict: None) -> None:
    tolerance = {"float32": 1e-5, "float64": 1e-10}[precision.name]
    program = linear(precision, horizon=1.5, solver=ld.Solver(rtol=tolerance, atol=tolerance))
    out = program.predict(X.astype(precision))
    assert out.dtype == precision
    np.testing.assert_allclose(out, exact(1.5), atol=20 * tolerance)


def test_a_field_sees_time_state_and_context(strict: None) -> None:
    """x' = 2 t c x from 1, so that x(T) = exp(c T²)."""
    system = ld.System(
        lambda x: ld.Start(jnp.ones(1), x), lambda t, s, c: 2 * t * c * s, domain=ld.Box(-9, 9), horizon=1.2
    )
    context = jnp.array([[0.5], [-1.0]])
    program = ld.compile(system, ld.Certificate.exponential(size, 1), (context[0], 0), solver=TIGHT)
    np.testing.assert_allclose(program.predict(context), jnp.exp(1.44 * context), rtol=1e-4)


@pytest.mark.parametrize(
    ("solver", "error"),
    [
        (None, 5e-3),
        (ld.Solver(diffrax.Dopri8(), rtol=1e-6, atol=1e-6), 1e-5),
        (ld.Solver(diffrax.Kvaerno3(), rtol=1e-4, atol=1e-4), 2e-3),
        (ld.Solver(diffrax.Heun(), dt=0.02), 2e-3),
        (ld.Solver(diffrax.Euler(), dt=0.002), 2e-2),
    ],
    ids=["default", "Dopri8", "Kvaerno3", "Heun", "Euler"],
)
def test_solvers(solver: Any, error: float) -> None:
    out = linear(solver=solver).predict(X.astype(np.float32))
    assert np.max(np.abs(out - exact(1.0))) < error


def test_tolerances_are_passed_on() -> None:
    errors, steps = [], []
    for tolerance in (1e-1, 1e-3, 1e-5):
        solution = linear(solver=ld.Solver(rtol=tolerance, atol=tolerance)).trajectory(X.astype(np.float32))
        errors.append(float(np.max(np.abs(solution.ys[:, -1] - exact(1.0)))))
        steps.append(int(solution.stats["num_steps"].max()))
    assert errors[0] > 10 * errors[1] > 100 * errors[2]
    assert steps[0] < steps[1] < steps[2]


def test_the_number_of_steps_is_reported() -> None:
    solution = linear(solver=ld.Solver(diffrax.Euler(), dt=0.125)).trajectory(X.astype(np.float32))
    np.testing.assert_array_equal(solution.stats["num_steps"], [8, 8, 8, 8])


def slope(make: Any) -> float:
    """The derivative of a scalar of the program by the entry A[0, 1], by central differences of the exact solution."""
    step = np.zeros_like(A)
    step[0, 1] = 1e-5
    return (make(A + step) - make(A - step)) / 2e-5


def squared_end(matrix: np.ndarray) -> float:
    return float(np.sum((X @ expm(matrix).T) ** 2))


@pytest.mark.parametrize(
    ("adjoint", "way"),
    [
        (diffrax.RecursiveCheckpointAdjoint(), "EndToEnd"),
        (diffrax.DirectAdjoint(), "EndToEnd"),
        (diffrax.BacksolveAdjoint(), "EndToEnd"),
        (diffrax.ForwardMode(), "EndToEnd"),
        (diffrax.RecursiveCheckpointAdjoint(), "predict"),
        (diffrax.BacksolveAdjoint(), "predict"),
    ],
    ids=lambda part: part if isinstance(part, str) else type(part).__name__,
)
def test_every_adjoint(adjoint: Any, way: str, key: Any) -> None:
    """ImplicitAdjoint is for steady states and refused; see test_messages."""
    solver = ld.Solver(rtol=1e-6, atol=1e-6, adjoint=adjoint)
    program = linear(solver=solver, objective=ld.EndToEnd(solver))
    x = X.astype(np.float32)

    def scalar(matrix: Any) -> Any:
        p = eqx.tree_at(lambda p: p.system.vector_field.matrix, program, matrix)
        return len(X) * p.loss(x, jnp.zeros(4, int), key=key) if way == "EndToEnd" else jnp.sum(p.predict(x) ** 2)

    matrix = jnp.asarray(A, jnp.float32)
    if isinstance(adjoint, diffrax.ForwardMode):
        direction = jnp.zeros((3, 3)).at[0, 1].set(1)
        value, derivative = jax.jit(lambda m: jax.jvp(scalar, (m,), (direction,)))(matrix)
    else:
        value, gradient = jax.jit(jax.value_and_grad(scalar))(matrix)
        derivative = gradient[0, 1]
    np.testing.assert_allclose(value, squared_end(A), rtol=1e-4)
    np.testing.assert_allclose(derivative, slope(squared_end), rtol=1e-3)


def test_the_adjoint_reaches_the_context_and_the_start() -> None:
    """By the adjoint that is easiest to get wrong: it differentiates only what it is handed."""
    solver = ld.Solver(rtol=1e-6, atol=1e-6, adjoint=diffrax.BacksolveAdjoint())
    weight = jnp.array([0.5, 2.0])
    system = ld.System(lambda x: ld.Start(weight * x, x), lambda t, s, c: -s + c, domain=ld.Box(-9, 9))
    program = ld.compile(system, ld.Certificate.exponential(size, 1), (weight, 0), solver=solver)
    # x(1) = e^-1 w x + (1 - e^-1) x
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(program.predict(x))))(jnp.ones((3, 2)))
    expected = np.broadcast_to(math.exp(-1) * weight + 1 - math.exp(-1), (3, 2))
    np.testing.assert_allclose(gradient, expected, rtol=1e-4)


def test_jit_vmap_and_grad_pass_through_predict() -> None:
    program = linear(solver=ld.Solver(diffrax.Dopri5(), rtol=1e-6, atol=1e-6))
    x = jnp.asarray(X, jnp.float32)
    plain = program.predict(x)
    np.testing.assert_allclose(jax.jit(lambda x: program.predict(x))(x), plain, rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(program.predict)(x.reshape(2, 2, 3)).reshape(4, 3), plain, rtol=1e-5)
    jacobian = jax.jit(jax.jacrev(lambda x: program.predict(x[None])[0]))(x[1])
    np.testing.assert_allclose(jacobian, expm(A), atol=1e-4)
    early = jax.jit(lambda x, t: program.predict(x, stop=t))(x, jnp.asarray(0.5))
    np.testing.assert_allclose(early, exact(0.5), atol=1e-4)


def test_saveat() -> None:
    program = linear(solver=TIGHT)
    x = X.astype(np.float32)
    times = np.array([0.0, 0.25, 0.6, 1.0])
    solution = program.trajectory(x, saveat=diffrax.SaveAt(ts=jnp.asarray(times)))
    assert solution.ts.shape == (4, 4)
    assert solution.ys.shape == (4, 4, 3)
    np.testing.assert_allclose(solution.ys, np.stack([exact(t) for t in times], axis=1), atol=5e-4)
    assert bool((solution.result == diffrax.RESULTS.successful).all())
    final = program.trajectory(x)
    assert final.ys.shape == (4, 1, 3)
    np.testing.assert_allclose(final.ys[:, 0], program.predict(x), rtol=1e-6)
    both = program.trajectory(x, saveat=diffrax.SaveAt(t0=True, t1=True))
    np.testing.assert_array_equal(both.ys[:, 0], x)
    stopped = program.trajectory(x, saveat=diffrax.SaveAt(t0=True, t1=True), stop=0.5)
    np.testing.assert_allclose(stopped.ts[:, 1], 0.5)


def test_the_potential_along_a_trajectory() -> None:
    program = linear(solver=TIGHT)
    times = [0.0, 0.5, 1.0]
    values = program.potential(X.astype(np.float32), np.zeros(4, np.int32), times=times)["exponential"]
    expected = np.stack([np.sum(exact(t) ** 2, axis=1) for t in times], axis=1)
    np.testing.assert_allclose(values, expected, rtol=1e-3, atol=1e-4)


def test_a_failure_is_a_status_and_nan_and_no_exception() -> None:
    program = linear(solver=ld.Solver(rtol=1e-6, atol=1e-6, max_steps=3))
    x = X.astype(np.float32)
    solution = program.trajectory(x)
    assert bool((solution.result == diffrax.RESULTS.max_steps_reached).all())
    np.testing.assert_array_equal(solution.stats["num_steps"], 3)
    assert np.isnan(program.predict(x)).all()


def test_only_the_examples_that_fail_are_nan(key: Any) -> None:
    """x' = -c x with a c that is a mild one for the first example and a stiff one for the second."""
    system = ld.System(lambda x: ld.Start(jnp.ones(1), x), lambda t, s, c: -c * s, domain=ld.Box(-2, 2))
    solver = ld.Solver(max_steps=16)
    certificate = ld.Certificate.exponential(size, 1)
    program = ld.compile(system, certificate, (jnp.ones(1), 0), solver=solver, objective=ld.EndToEnd(solver))
    context = jnp.array([[1.0], [1000.0]])
    result = program.trajectory(context).result
    np.testing.assert_array_equal(result == diffrax.RESULTS.successful, [True, False])
    np.testing.assert_array_equal(result == diffrax.RESULTS.max_steps_reached, [False, True])
    out = program.predict(context)
    np.testing.assert_allclose(out[0], math.exp(-1), rtol=1e-3)
    assert np.isnan(out[1])
    # Neither may training take a trajectory that was cut short for one that ended there.
    loss = eqx.filter_jit(lambda x: program.loss(x, jnp.zeros(len(x), int), key=key))
    assert np.isnan(loss(context))
    np.testing.assert_allclose(loss(context[:1]), math.exp(-2), rtol=1e-3)


def test_a_wrong_decision_is_what_a_failure_counts_as() -> None:
    certificate = ld.Certificate.exponential(ld.cross_entropy, 1)
    system = ld.System(vector_field=lambda t, s, c: 0 * s, domain=ld.Box(-2, 2))
    x, y = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32), np.array([0, 1])
    assert ld.compile(system, certificate, (x[0], 0)).error(x, y) == 0
    assert ld.compile(system, certificate, (x[0], 0)).error(x, 1 - y) == 1
    assert ld.compile(system, certificate, (x[0], 0)).error(x, np.array([0, 0])) == 0.5
    fast = ld.System(vector_field=lambda t, s, c: 0 * s + 100 * jnp.cos(100 * t), domain=ld.Box(-2, 2))
    hopeless = ld.compile(fast, certificate, (x[0], 0), solver=ld.Solver(max_steps=2))
    with pytest.warns(UserWarning, match="max_steps"):
        assert hopeless.error(x, y) == 1


def test_the_error_of_a_data_set_larger_than_a_chunk() -> None:
    system = ld.System(vector_field=lambda t, s, c: 0 * s, domain=ld.Box(-2, 2))
    certificate = ld.Certificate.exponential(ld.cross_entropy, 1)
    x = np.eye(2, dtype=np.float32)[np.zeros(1030, int)]
    y = np.zeros(1030, int)
    y[-7:] = 1
    program = ld.compile(system, certificate, (x[0], 0), solver=ld.Solver(diffrax.Euler(), dt=0.5))
    assert program.error(x, y) == pytest.approx(7 / 1030)


def test_a_stop_at_a_time_is_the_state_then(compilations: list) -> None:
    x = X.astype(np.float32)
    program = linear(solver=TIGHT)
    np.testing.assert_allclose(program.predict(x, stop=0.5), exact(0.5), atol=1e-4)
    times = (0.123, 1, np.float32(0.75))
    assert compilations
    compilations.clear()
    predictions = [program.predict(x, stop=t) for t in times]
    assert not compilations
    for t, prediction in zip(times, predictions, strict=True):
        np.testing.assert_allclose(prediction, exact(float(t)), atol=1e-4)
    np.testing.assert_allclose(program.predict(x, stop=jnp.asarray(0.25)), exact(0.25), atol=1e-4)
    assert program.error(x, np.zeros(4, int), stop=0.5) == pytest.approx(
        np.mean(np.sum(exact(0.5) ** 2, axis=1)), rel=1e-4
    )


def test_confidence_stops_at_the_first_step_that_reaches_it() -> None:
    """Logits (c t, 0), so that the confidence is the sigmoid of c t: 0.6 is reached at t = log(1.5) / c."""
    system = ld.System(
        lambda x: ld.Start(jnp.zeros(2), x), lambda t, s, c: jnp.array([1.0, 0.0]) * c[0], domain=ld.Box(-9, 9)
    )
    solver = ld.Solver(diffrax.Euler(), dt=0.0625)
    certificate = ld.Certificate.exponential(ld.cross_entropy, 1)
    program = ld.compile(system, certificate, (jnp.ones(1), 0), solver=solver)
    speeds = jnp.array([[1.0], [2.0], [0.25]])
    solution = program.trajectory(speeds, stop=ld.Confidence(0.6))
    # 0.405 lies in (6, 7] steps of 1/16, 0.203 in (3, 4], and 1.62 beyond the horizon.
    np.testing.assert_allclose(solution.ts[:, 0], [7 / 16, 4 / 16, 1.0])
    np.testing.assert_array_equal(solution.stats["num_steps"], [7, 4, 16])
    np.testing.assert_array_equal(solution.result == diffrax.RESULTS.event_occurred, [True, True, False])
    np.testing.assert_array_equal(solution.result == diffrax.RESULTS.successful, [False, False, True])
    reached = jax.nn.softmax(program.predict(speeds, stop=ld.Confidence(0.6))).max(axis=1)
    np.testing.assert_allclose(reached, 1 / (1 + np.exp(-np.array([7 / 16, 8 / 16, 0.25]))), rtol=1e-6)
    assert bool((reached[:2] >= 0.6).all())
    assert bool(reached[2] < 0.6)
    # Classes 0, 0, 1: the last is wrong.
    assert program.error(speeds, np.array([0, 0, 1]), stop=ld.Confidence(0.6)) == pytest.approx(1 / 3)


def test_another_confidence_does_not_recompile(compilations: list) -> None:
    system = ld.System(vector_field=lambda t, s, c: jnp.array([1.0, 0.0]), domain=ld.Box(-9, 9))
    certificate = ld.Certificate.exponential(ld.cross_entropy, 1)
    program = ld.compile(system, certificate, (jnp.zeros(2), 0), solver=ld.Solver(diffrax.Euler(), dt=0.0625))
    x = jnp.zeros((2, 2))
    times = [program.trajectory(x, stop=ld.Confidence(0.55)).ts[0, 0]]
    levels = [ld.Confidence(level) for level in (0.6, 0.7)]
    compilations.clear()
    times += [program.trajectory(x, stop=level).ts[0, 0] for level in levels]
    assert not compilations
    # logit(level), rounded up to sixteenths
    np.testing.assert_allclose(times, [4 / 16, 7 / 16, 14 / 16])


@pytest.mark.filterwarnings("ignore:vector_field chooses by the time")
def test_the_solver_steps_exactly_at_jumps() -> None:
    """x' = 1 before 0.3 and -10 after 0.7: with the jumps declared, every step sees a constant."""
    field = lambda t, s, c: jnp.where(t < 0.3, 1.0, jnp.where(t < 0.7, 0.0, -10.0)) + 0 * s
    x = np.zeros((1, 1), np.float32)
    saveat = diffrax.SaveAt(steps=True)
    with_jumps = program_of(field, x, jumps=(0.7, 0.3)).trajectory(x, saveat=saveat)
    without = program_of(field, x).trajectory(x, saveat=saveat)

    def final(solution: Any) -> float:
        return float(solution.ys[0, int(solution.stats["num_accepted_steps"][0]) - 1, 0])

    assert final(with_jumps) == pytest.approx(0.3 - 3.0, abs=1e-5)
    assert abs(final(without) - (0.3 - 3.0)) > 1e-5
    for t in (0.3, 0.7):
        assert np.min(np.abs(with_jumps.ts - t)) < 1e-6
    assert int(with_jumps.stats["num_rejected_steps"][0]) == 0
    assert int(without.stats["num_rejected_steps"][0]) > 0


def test_jumps_pass_through_training_too(key: Any) -> None:
    field = lambda t, s, c: jnp.where(t < 0.3, 1.0, -10.0) + 0 * s
    x = np.zeros((2, 1), np.float32)
    program = program_of(field, x, jumps=(0.3,), objective=ld.EndToEnd())
    loss = eqx.filter_jit(lambda p: p.loss(x, jnp.zeros(2, int), key=key))(program)
    np.testing.assert_allclose(loss, (0.3 - 7.0) ** 2, rtol=1e-5)
