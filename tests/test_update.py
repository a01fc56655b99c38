"""Optimizers that differ in their numbers alone share one compiled step, and compute what they would by themselves."""

import gc
import weakref
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lyapunov_dsl as ld
from lyapunov_dsl import _step
from lyapunov_dsl._update import read_update


def beside_itself(x: Any) -> ld.Start:
    return ld.Start(x, x)


def program(seed: int = 0) -> ld.Program:
    field = ld.nn.MLPField(2, 2, width=4, key=jax.random.key(seed))
    system = ld.System(beside_itself, field, domain=ld.Box(-2, 2))
    certificate = ld.Certificate.exponential(ld.squared_error, 1)
    return ld.compile(system, certificate, (jnp.zeros(2), jnp.zeros(2)), objective=ld.PathIntegral(2))


def data() -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).uniform(-1, 1, (16, 2)).astype(np.float32)
    return x, 0 * x


def train(optimizer: Any, **options: Any) -> ld.FitResult:
    options = {"epochs": 2, "batch_size": 4, "key": jax.random.key(0), "progress": False, **options}
    return ld.fit(program(), data(), optimizer=optimizer, **options)


def callback(rate: float) -> optax.GradientTransformation:
    """One that calls Python, which knows the rate."""

    def update(grads: Any, state: Any, params: Any = None) -> Any:
        one = lambda g: jax.pure_callback(lambda g: np.asarray(-rate * g), jax.ShapeDtypeStruct(g.shape, g.dtype), g)
        return jax.tree.map(one, grads), state

    return optax.GradientTransformation(lambda params: (), update)


def anchored(pull: float) -> optax.GradientTransformation:
    """One with an array of its own, and a rate that is an array."""
    rate = jnp.asarray([[pull]])

    def update(grads: Any, state: Any, params: Any = None) -> Any:
        return jax.tree.map(lambda g: -rate[0, 0] * (g + jnp.full((), pull)), grads), state

    return optax.GradientTransformation(lambda params: (), update)


# Made from a rate; whether those of two rates share a step.
OPTIMIZERS = {
    "adam": (optax.adam, True),
    "sgd": (lambda r: optax.sgd(r, momentum=0.9 * r), True),
    "chain": (
        lambda r: optax.chain(optax.clip_by_global_norm(100 * r), optax.adamw(r, b1=1 - r, weight_decay=r)),
        True,
    ),
    "schedule": (lambda r: optax.adam(optax.cosine_decay_schedule(r, 8)), True),
    "warmup": (lambda r: optax.adam(optax.warmup_cosine_decay_schedule(0.0, r, 2, 8)), True),
    "piecewise": (lambda r: optax.sgd(optax.piecewise_constant_schedule(r, {3: 0.1})), True),
    "inject": (lambda r: optax.inject_hyperparams(optax.adam)(learning_rate=r), True),
    "inject schedule": (lambda r: optax.inject_hyperparams(optax.adam)(optax.linear_schedule(r, 0.0, 8)), True),
    "masked": (lambda r: optax.masked(optax.adam(r), lambda p: jax.tree.map(lambda leaf: leaf.ndim > 1, p)), True),
    "partition": (
        lambda r: optax.partition(
            {"matrix": optax.adam(r), "rest": optax.sgd(r)},
            lambda p: jax.tree.map(lambda leaf: "matrix" if leaf.ndim > 1 else "rest", p),
        ),
        True,
    ),
    "nero": (ld.optim.nero, True),
    "plateau": (lambda r: optax.chain(optax.adam(r), optax.contrib.reduce_on_plateau(patience=1)), True),
    "multi steps": (lambda r: optax.MultiSteps(optax.adam(r), 2).gradient_transformation(), True),
    "if finite": (lambda r: optax.apply_if_finite(optax.adam(r), 2), True),
    "lion": (optax.lion, True),
    "noise": (lambda r: optax.noisy_sgd(r, key=jax.random.key(1)), True),
    "dog": (lambda r: optax.contrib.dog(), True),
    "polyak": (optax.polyak_sgd, True),
    "schedule free": (optax.contrib.schedule_free_adamw, True),
    "lookup": (anchored, True),
    "callback": (callback, False),
    "line search": (lambda r: optax.chain(optax.sgd(r), optax.scale_by_backtracking_linesearch(4)), False),
}


def by_itself(optimizer: Any, steps: int) -> list[Any]:
    """The parameters after some steps on a quadratic by Optax, and by what was read from the optimizer."""
    params = {"w": jnp.linspace(-1.0, 2.0, 6).reshape(3, 2), "b": jnp.asarray([0.5, -0.25, 1.0])}
    value_fn = lambda p: sum(jnp.sum((leaf - 0.3) ** 2) for leaf in jax.tree.leaves(p))
    extended = optax.with_extra_args_support(optimizer)
    ours = read_update(optimizer, params, optimizer.init(params), lambda: jax.eval_shape(value_fn, params))

    def plain(update: Any, params: Any, state: Any) -> Any:
        value, grads = jax.value_and_grad(value_fn)(params)
        given = {"value": value, "grad": grads, "value_fn": value_fn}
        updates, state = extended.update(grads, state, params, **given)
        return optax.apply_updates(params, updates), state

    def read(update: Any, params: Any, state: Any) -> Any:
        value, grads = jax.value_and_grad(value_fn)(params)
        updates, state = update(grads, state, params, value, value_fn)
        return optax.apply_updates(params, updates), state

    found = []
    for step in (plain, read):
        now, state = params, optimizer.init(params)
        for _ in range(steps):
            now, state = eqx.filter_jit(step)(ours, now, state)
        found.append((now, state))
    return found


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_computes_what_it_would_by_itself(name: str) -> None:
    expected, found = by_itself(OPTIMIZERS[name][0](1e-2), 6)
    assert jax.tree.structure(expected) == jax.tree.structure(found)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        # XLA rounds otherwise where it merges other operations.
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)


def test_in_both_precisions(precision: Any) -> None:
    """The loss is of the type of the parameters, and not always that of Python's floats."""
    expected, found = by_itself(OPTIMIZERS["plateau"][0](1e-2), 6)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(a, b, rtol=20 * float(jnp.finfo(precision).eps))
    assert found[0]["w"].dtype == precision


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_rules_are_equal_where_optimizers_differ_in_numbers_alone(name: str) -> None:
    make, shares = OPTIMIZERS[name]
    params = {"w": jnp.ones((3, 2)), "b": jnp.ones(3)}
    value = lambda: jax.ShapeDtypeStruct((), jnp.float32)
    rules = [read_update(make(r), params, make(r).init(params), value).rule for r in (1e-1, 1e-2, 3e-3)]
    assert [rule == rules[0] for rule in rules] == [True, shares, shares]
    assert not shares or len(set(rules)) == 1


def test_rules_differ_where_more_than_numbers_does() -> None:
    params = {"w": jnp.ones((3, 2)), "b": jnp.ones(3)}
    powers = [optax.stateless(lambda u, p, n=n: jax.tree.map(lambda leaf: leaf**n, u)) for n in (2, 3, 0.5, 1.5)]
    some = [optax.adam(1e-2), optax.adam(1e-2, nesterov=True), optax.sgd(1e-2), optax.rmsprop(1e-2), *powers]
    some += [optax.sgd(optax.exponential_decay(1e-2, n, 0.5)) for n in (2, 3)]
    rules = [read_update(o, params, o.init(params), lambda: None).rule for o in some]
    assert len(set(rules)) == len(rules)


def test_a_sweep_over_rates_compiles_one_step(compilations: list) -> None:
    train(optax.adam(1e-2))
    gc.collect()
    compilations.clear()
    alive = len(jax.devices()[0].client.live_executables())
    results = [train(optax.adam(rate)) for rate in (1e-1, 3e-2, 1e-3, 1e-4)]
    assert not compilations
    assert len(jax.devices()[0].client.live_executables()) <= alive
    losses = [result.history[-1]["loss"] for result in results]
    assert len(set(losses)) == 4


def test_a_sweep_computes_what_single_runs_do() -> None:
    """Whichever optimizer was compiled for."""
    train(optax.adam(1.0))
    swept = train(optax.adam(1e-2)).program
    jax.clear_caches()
    _step._rules.clear()
    assert eqx.tree_equal(train(optax.adam(1e-2)).program, swept)


def test_an_optimizer_is_not_kept() -> None:
    def make() -> tuple[Any, Any]:
        inner = optax.sgd(1e-2)
        update = lambda grads, state, params=None: inner.update(grads, state, params)
        return optax.GradientTransformation(inner.init, update), weakref.ref(update)

    optimizer, update = make()
    train(optimizer)
    del optimizer
    gc.collect()
    assert update() is None


def test_steps_of_many_kinds_are_forgotten(monkeypatch: Any) -> None:
    """Optimizers that call Python are all of different kinds, since what is called can not be looked into."""
    monkeypatch.setattr(_step, "KINDS", 2)
    _step._rules.clear()
    alive = []
    for _ in range(6):
        train(callback(1e-2), epochs=1)
        gc.collect()
        assert len(_step._rules) <= 2
        alive.append(len(jax.devices()[0].client.live_executables()))
    assert max(alive[2:]) <= max(alive[:2])
