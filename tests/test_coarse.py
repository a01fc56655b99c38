"""Fixed steps that are too long for the vector field are named where training begins, and others are not."""

import warnings
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lyapunov_dsl as ld
from lyapunov_dsl._coarse import warn_of_coarse_steps

pytestmark = pytest.mark.usefixtures("quick")


class Pendulum(eqx.Module):
    """A damped pendulum and a small network; the period is about 6."""

    net: eqx.nn.MLP

    def __call__(self, t: Any, state: Any, context: Any) -> Any:
        known = jnp.stack([state[1], -jnp.sin(state[0]) - 0.3 * state[1]])
        return known + 0.1 * self.net(state)


class Decay(eqx.Module):
    rate: Any

    def __call__(self, t: Any, state: Any, context: Any) -> Any:
        return -self.rate * state


def data() -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).uniform(-1, 1, (16, 2)).astype(np.float32)
    return x, 0 * x


def declared(field: Any, horizon: float, objective: Any = None, solver: Any = None) -> ld.Program:
    system = ld.System(vector_field=field, domain=ld.Box(-3, 3), horizon=horizon)
    certificate = ld.Certificate.exponential(ld.squared_error, 5 / horizon)
    return ld.compile(system, certificate, (jnp.zeros(2), jnp.zeros(2)), objective=objective, solver=solver)


def warned(program: ld.Program, x: Any = None, augment: Any = None, *, train: bool = False) -> str | None:
    """What training would warn of, or does."""
    given, y = data()
    x = given if x is None else x
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        if train:
            options = {"epochs": 1, "batch_size": 16, "key": jax.random.key(0), "progress": False, "throw": False}
            ld.fit(program, (x, y), optimizer=optax.sgd(1e-3), augment=augment, **options)
        else:
            warn_of_coarse_steps(program, x, augment)
    assert len(found) < 2
    return str(found[0].message) if found else None


@pytest.fixture
def pendulum() -> Pendulum:
    return Pendulum(eqx.nn.MLP(2, 2, 8, 1, jnp.tanh, key=jax.random.key(0)))


def by_euler(dt: float) -> ld.Solver:
    return ld.Solver(diffrax.Euler(), dt=dt)


def test_an_hour_in_seconds_and_one_second(pendulum: Pendulum) -> None:
    text = warned(declared(pendulum, 3600.0), train=True)
    assert text is not None
    assert "8 steps of 450 " in text
    assert "points" in text
    assert warned(declared(pendulum, 1.0), train=True) is None


@pytest.mark.parametrize(
    ("horizon", "coarse", "fine", "mend"),
    [
        (60.0, ld.PathIntegral(8), ld.PathIntegral(600), "more steps"),
        (60.0, ld.MonteCarlo(ld.Trajectory(8)), ld.MonteCarlo(ld.Trajectory(600)), "more points"),
        (60.0, ld.MonteCarlo(ld.Trajectory(8)), ld.MonteCarlo(ld.Cube(8)), "Cube()"),
        (10.0, ld.EndToEnd(by_euler(1.25)), ld.EndToEnd(by_euler(0.05)), "smaller dt"),
        (10.0, ld.EndToEnd(by_euler(1.25)), ld.EndToEnd(), "smaller dt"),
    ],
)
def test_every_way_to_take_fixed_steps(pendulum: Pendulum, horizon: float, coarse: Any, fine: Any, mend: str) -> None:
    text = warned(declared(pendulum, horizon, coarse))
    assert text is not None
    assert mend in text
    assert warned(declared(pendulum, horizon, fine)) is None


def test_within_a_mixture(pendulum: Pendulum) -> None:
    mixture = ld.Mixture(ld.Cube(4), ld.Trajectory(8))
    text = warned(declared(pendulum, 60.0, ld.MonteCarlo(mixture)))
    assert text is not None
    assert "Trajectory(points=8)" in text


def test_the_solver_of_inference(pendulum: Pendulum) -> None:
    text = warned(declared(pendulum, 10.0, ld.MonteCarlo(ld.Cube(4)), by_euler(1.25)))
    assert text is not None
    assert "Solver(dt=1.25)" in text


def test_the_unit_of_time_does_not_matter() -> None:
    """The same motion in seconds and in hours, and one that has its own scale of time."""
    assert warned(declared(Decay(jnp.asarray(1 / 3600)), 3600.0)) is None
    assert warned(declared(Decay(jnp.asarray(3600.0)), 1.0)) is not None
    assert warned(declared(Decay(jnp.asarray(1.0)), 1.0)) is None


def test_one_strange_example_does_not_warn_and_data_are_augmented_first() -> None:
    x, _ = data()
    x[3] = 1e38
    assert warned(declared(Decay(jnp.asarray(1.0)), 1.0, ld.PathIntegral(8)), x) is None
    x, _ = data()
    pixels = (127 + 100 * x).astype(np.uint8)
    shrink = lambda x, key: (x.astype(jnp.float32) - 127) / 100
    assert warned(declared(Decay(jnp.asarray(1.0)), 1.0), pixels, shrink) is None


def test_a_second_run_compiles_nothing(compilations: list) -> None:
    warned(declared(Decay(jnp.asarray(1.0)), 1.0))
    compilations.clear()
    warned(declared(Decay(jnp.asarray(2.0)), 1.0))
    assert not compilations
