"""Nero: against a reading of the paper in NumPy, at its edges, and inside Optax and `ld.fit`."""

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

import lyapunov_dsl as ld
from lyapunov_dsl import optim

pytestmark = pytest.mark.usefixtures("quick")

SHAPES = {
    "dense": (4, 5),
    "conv": (3, 2, 3, 3),
    "bias": (4,),
    "conv bias": (3, 1, 1),
    "gain": (6,),
    "fan-in 1": (4, 1),
    "one neuron": (1, 7),
    "scalar": (),
}
WEIGHTS = ("dense", "conv", "one neuron")


def parameters(dtype: Any, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    arrays = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
    arrays |= {"bias": np.zeros(SHAPES["bias"]), "gain": np.ones(SHAPES["gain"])}
    return {name: jnp.asarray(array, dtype) for name, array in arrays.items()}


def gradients(step: int, dtype: Any) -> dict[str, Any]:
    """Of sizes from 1e-4 to 1e4."""
    rng = np.random.default_rng(step + 1)
    draw = lambda shape: rng.normal(size=shape) * 10 ** rng.uniform(-4, 4, size=shape[:1] + (1,) * (len(shape) - 1))
    return {name: jnp.asarray(draw(shape), dtype) for name, shape in SHAPES.items()}


class Reading:
    """Algorithm 1 of Liu et al., neuron by neuron in double precision, for one array."""

    def __init__(self, array: Any, constrained: bool):
        self.shape = np.shape(array)
        rows = np.asarray(array, np.float64)
        self.neurons = list(rows.reshape(self.shape[0], -1) if rows.ndim else rows.reshape(1, 1))
        self.constrained = constrained and len(self.neurons[0]) > 1
        if self.constrained:
            self.neurons = [self.project(w) for w in self.neurons]
        self.scale = np.mean([np.linalg.norm(w) for w in self.neurons]) or 0.01
        self.averages = [0.0] * len(self.neurons)
        self.steps = 0

    @staticmethod
    def project(w: Any) -> Any:
        return (w - w.mean()) / np.linalg.norm(w - w.mean())

    def step(self, gradient: Any, rate: float, beta: float) -> None:
        self.steps += 1
        for i, g in enumerate(np.asarray(gradient, np.float64).reshape(len(self.neurons), -1)):
            self.averages[i] = beta * self.averages[i] + (1 - beta) * np.linalg.norm(g) ** 2
            corrected = np.sqrt(self.averages[i] / (1 - beta**self.steps))
            self.neurons[i] = self.neurons[i] - rate * self.scale * g / corrected
            if self.constrained:
                self.neurons[i] = self.project(self.neurons[i])

    def array(self) -> Any:
        return np.stack(self.neurons).reshape(self.shape)


def one_step(optimizer: Any, params: Any, grads: Any) -> Any:
    def new(params: Any, grads: Any) -> Any:
        updates, _ = optimizer.update(grads, optimizer.init(params), params)
        return optax.apply_updates(params, updates)

    return jax.jit(new)(params, grads)


balanced = jax.jit(optim.balance)


def assert_balanced(array: Any) -> None:
    rows = np.asarray(array, np.float64).reshape(array.shape[0], -1)
    eps = float(jnp.finfo(array.dtype).eps)
    np.testing.assert_allclose(rows.mean(axis=1), 0, atol=2 * eps)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=4 * eps)


class TestAgainstThePaper:
    @pytest.mark.parametrize("constraints", [True, False])
    @pytest.mark.parametrize("beta", [0.999, 0.9, 0.0])
    def test_twenty_steps(self, precision: Any, strict: None, beta: float, constraints: bool) -> None:
        optimizer = optim.nero(0.02, beta, constraints)
        params = parameters(precision)
        readings = {name: Reading(array, constraints) for name, array in params.items()}
        if constraints:
            params = balanced(params)
        state, update = optimizer.init(params), jax.jit(optimizer.update)
        tolerance = 300 * float(jnp.finfo(precision).eps)
        for step in range(20):
            grads = gradients(step, precision)
            updates, state = update(grads, state, params)
            params = jax.tree.map(jnp.add, params, updates)
            for name, reading in readings.items():
                reading.step(grads[name], 0.02, beta)
                assert params[name].dtype == precision
                np.testing.assert_allclose(params[name], reading.array(), rtol=0, atol=tolerance, err_msg=name)
                if constraints and name in WEIGHTS:
                    assert_balanced(params[name])
        assert int(state.steps) == 20

    def test_the_first_step_balances_what_was_not(self) -> None:
        """The step is taken where the parameters are, with the scale of balanced neurons."""
        params = {"weight": 50 * parameters(jnp.float32)["dense"]}
        grads = {"weight": gradients(0, jnp.float32)["dense"]}
        new = one_step(optim.nero(0.1), params, grads)["weight"]
        g = np.asarray(grads["weight"], np.float64)
        moved = np.asarray(params["weight"], np.float64) - 0.1 * g / np.linalg.norm(g, axis=1, keepdims=True)
        np.testing.assert_allclose(new, [Reading.project(w) for w in moved], atol=1e-5)

    def test_a_step_turns_a_neuron_by_the_learning_rate(self) -> None:
        w = balanced(jnp.asarray([[1.0, -2.0, 0.5, 3.0]]))
        along = balanced(jnp.asarray([[0.0, 1.0, 2.0, 0.0]]))
        g = along - jnp.sum(along * w) * w
        new = one_step(optim.nero(1e-2), w, g)
        assert float(jnp.arccos(jnp.sum(new * w))) == pytest.approx(1e-2, rel=1e-2)


class TestBalance:
    def test_mean_and_norm(self, precision: Any) -> None:
        params = parameters(precision)
        new = balanced(params)
        for name in SHAPES:
            if name in WEIGHTS:
                assert_balanced(new[name])
            else:
                np.testing.assert_array_equal(new[name], params[name], err_msg=name)

    def test_balancing_again_changes_rounding_only(self, precision: Any) -> None:
        once = balanced(parameters(precision))
        twice = balanced(once)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=4 * jnp.finfo(precision).eps), once, twice)

    def test_extreme_sizes(self) -> None:
        rows = jnp.asarray([[1.0, -2.0, 0.5, 3.0]], jnp.float32)
        for size in (1e-30, 1e30):
            np.testing.assert_allclose(balanced(rows * size), balanced(rows), atol=1e-6)

    def test_whole_modules_and_other_leaves(self, key: Any) -> None:
        mlp = eqx.nn.MLP(3, 2, 8, 1, key=key)
        new = optim.balance(mlp)
        assert_balanced(new.layers[0].weight)
        np.testing.assert_array_equal(new.layers[0].bias, mlp.layers[0].bias)
        assert new.activation is mlp.activation
        others = {"none": None, "whole": jnp.arange(6).reshape(2, 3), "empty": jnp.zeros((3, 0))}
        kept = optim.balance(others)
        assert kept["none"] is None
        assert kept["whole"] is others["whole"]
        assert kept["empty"].shape == (3, 0)

    @pytest.mark.parametrize("width", [2, 3, 1000])
    @pytest.mark.parametrize("value", [0.0, 0.1, -1e30, 3e-38])
    def test_equal_entries_stay(self, precision: Any, width: int, value: float) -> None:
        """Where rounding in the mean would become a direction."""
        rows = jnp.full((2, width), value, precision)
        np.testing.assert_array_equal(balanced(rows), rows)


class TestEdges:
    @pytest.mark.parametrize("constraints", [True, False])
    def test_without_gradient_nothing_moves(self, precision: Any, constraints: bool) -> None:
        """Not a neuron whose first gradients are zero, next to one that moves."""
        params = balanced(parameters(precision))
        grads = {name: g.at[:1].set(0) if g.ndim else 0 * g for name, g in gradients(0, precision).items()}
        new = one_step(optim.nero(0.1, constraints=constraints), params, grads)
        eps = float(jnp.finfo(precision).eps)
        for name in SHAPES:
            before, after = jnp.atleast_1d(params[name]), jnp.atleast_1d(new[name])
            np.testing.assert_allclose(after[0], before[0], atol=4 * eps, err_msg=name)
            assert np.all(np.isfinite(after))
            assert name in ("one neuron", "scalar") or not np.allclose(after[1:], before[1:], atol=1e-4)

    def test_rows_of_zeros_wait_for_a_gradient(self) -> None:
        params = jnp.zeros((2, 3))
        new = one_step(optim.nero(0.1), params, jnp.asarray([[0.0, 0.0, 0.0], [1.0, 2.0, 6.0]]))
        np.testing.assert_array_equal(new[0], 0)
        np.testing.assert_allclose(new[1], Reading.project(-np.asarray([1.0, 2.0, 6.0])), atol=1e-6)

    def test_equal_steps_of_equal_entries_are_not_projected(self) -> None:
        new = one_step(optim.nero(0.1), jnp.ones((1, 4)), jnp.full((1, 4), 3.0))
        np.testing.assert_allclose(new, 0.95, rtol=1e-6)

    @pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 1, 1)])
    def test_one_entry_a_neuron_is_a_bias_whatever_its_rank(self, shape: Any) -> None:
        values, signs = jnp.asarray([0.5, -1.0, 3.0]).reshape(shape), jnp.asarray([2.0, -7.0, 1e-3]).reshape(shape)
        optimizer = optim.nero(0.1)
        assert float(optimizer.init(values).scale) == 1.5
        np.testing.assert_allclose(one_step(optimizer, values, signs), values - 0.15 * jnp.sign(signs), rtol=1e-6)
        zeros = jnp.zeros(shape)
        np.testing.assert_allclose(one_step(optimizer, zeros, signs), -0.001 * jnp.sign(signs), rtol=1e-6)

    def test_two_weights_cannot_turn(self) -> None:
        """What the documentation warns of."""
        w = balanced(jnp.asarray([[3.0, 1.0]]))
        np.testing.assert_allclose(one_step(optim.nero(0.1), w, jnp.asarray([[5.0, -1.0]])), w, atol=1e-6)

    @pytest.mark.parametrize("size", [1e-30, 1e-6, 1e30])
    @pytest.mark.parametrize("beta", [0.0, 0.999])
    def test_the_size_of_a_constant_gradient_does_not_matter(self, size: float, beta: float) -> None:
        """The bias correction is exact at every step, and squares neither vanish nor overflow."""
        optimizer = optim.nero(0.05, beta)
        update = jax.jit(optimizer.update)
        grads = gradients(0, jnp.float32)
        grads = {name: g / jnp.max(jnp.abs(g)) for name, g in grads.items()}

        def trained(factor: float) -> Any:
            params = balanced(parameters(jnp.float32))
            state = optimizer.init(params)
            for _ in range(5):
                updates, state = update(jax.tree.map(lambda g: factor * g, grads), state, params)
                params = optax.apply_updates(params, updates)
            return params

        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-6), trained(size), trained(1.0))

    def test_a_nan_is_not_hidden(self) -> None:
        params = balanced(parameters(jnp.float32))
        grads = {**gradients(0, jnp.float32), "dense": jnp.full(SHAPES["dense"], jnp.nan)}
        new = one_step(optim.nero(), params, grads)
        assert np.all(np.isnan(new["dense"]))
        assert np.all(np.isfinite(new["conv"]))

    def test_half_precision_keeps_its_average_in_single(self) -> None:
        params = balanced({"w": jnp.asarray([[1.0, -2.0, 0.5, 3.0]], jnp.bfloat16)})
        optimizer = optim.nero(0.1)
        state = optimizer.init(params)
        assert state.size["w"].dtype == jnp.float32
        for _ in range(3):
            updates, state = optimizer.update({"w": jnp.asarray([[1.0, 2.0, 3.0, 0.0]], jnp.bfloat16)}, state, params)
            params = optax.apply_updates(params, updates)
        assert params["w"].dtype == jnp.bfloat16
        assert float(jnp.linalg.norm(params["w"].astype(jnp.float32))) == pytest.approx(1, abs=1e-2)

    def test_leaves_that_are_no_arrays(self, key: Any) -> None:
        """Equinox's filtered gradients go with filtered parameters, and with the whole module."""
        mlp = eqx.nn.MLP(3, 2, 8, 1, key=key)
        grads = eqx.filter_grad(lambda m: jnp.sum(m(jnp.ones(3)) ** 2))(mlp)
        optimizer = optim.nero(0.1)
        for params in (eqx.filter(mlp, eqx.is_inexact_array), mlp):
            updates, _ = optimizer.update(grads, optimizer.init(params), params)
            new = eqx.apply_updates(mlp, updates)
            assert updates.activation is None
            assert_balanced(new.layers[0].weight)
            assert new.activation is mlp.activation

    def test_whole_numbers_and_empty_arrays_stay(self) -> None:
        params = {"whole": jnp.arange(3), "empty": jnp.zeros((3, 0)), "weight": jnp.ones((1, 3))}
        grads = {"whole": jnp.ones(3), "empty": jnp.zeros((3, 0)), "weight": jnp.asarray([[1.0, 2.0, 4.0]])}
        new = one_step(optim.nero(), params, grads)
        np.testing.assert_array_equal(new["whole"], params["whole"])
        assert new["empty"].shape == (3, 0)


class TestInOptax:
    def test_a_schedule_begins_at_zero(self) -> None:
        rates = jnp.asarray([0.1, 0.0, 0.3])
        optimizer = optim.nero(lambda count: rates[count], beta=0.0)
        x = jnp.asarray([2.0])
        state, seen = optimizer.init(x), []
        for _ in rates:
            updates, state = optimizer.update(jnp.ones(1), state, x)
            seen.append(float(updates[0]))
        np.testing.assert_allclose(seen, -2 * rates, rtol=1e-6)

    def test_after_clipping_in_a_chain(self) -> None:
        """The direction alone matters at the first step."""
        params, grads = balanced(parameters(jnp.float32)), gradients(0, jnp.float32)
        chained = one_step(optax.chain(optax.clip_by_global_norm(1.0), optim.nero(0.1)), params, grads)
        alone = one_step(optim.nero(0.1), params, grads)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), chained, alone)

    def test_injected_hyperparameters(self, precision: Any) -> None:
        """They can be changed between two steps; a warm-up begins with a rate of 0."""
        params, grads = balanced(parameters(precision)), gradients(0, precision)
        injected, alone = optax.inject_hyperparams(optim.nero)(learning_rate=0.1), optim.nero(0.2)
        state = injected.init(params)
        assert set(state.hyperparams) == {"learning_rate", "beta"}
        state.hyperparams["learning_rate"] = jnp.asarray(0.2, precision)
        updates, state = jax.jit(injected.update)(grads, state, params)
        other, _ = jax.jit(alone.update)(grads, alone.init(params), params)
        eps = float(jnp.finfo(precision).eps)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=100 * eps), updates, other)

        warm = optax.inject_hyperparams(optim.nero)(learning_rate=optax.linear_schedule(0.0, 0.1, 4))
        updates, _ = jax.jit(warm.update)(grads, warm.init(params), params)
        jax.tree.map(lambda u: np.testing.assert_allclose(u, 0, atol=4 * eps), updates)

    def test_masked(self) -> None:
        params, grads = balanced(parameters(jnp.float32)), gradients(0, jnp.float32)
        mask = {name: name in WEIGHTS for name in SHAPES}
        optimizer = optax.chain(optax.masked(optax.set_to_zero(), {n: not m for n, m in mask.items()}))
        optimizer = optax.chain(optimizer, optax.masked(optim.nero(0.1), mask))
        new, alone = one_step(optimizer, params, grads), one_step(optim.nero(0.1), params, grads)
        for name in SHAPES:
            np.testing.assert_array_equal(new[name], alone[name] if mask[name] else params[name])

    def test_a_partition_leaves_the_first_layer_unconstrained(self, key: Any) -> None:
        params = eqx.filter(eqx.nn.MLP(2, 1, 8, 1, key=key), eqx.is_inexact_array)
        grads = jax.tree.map(jnp.ones_like, params)
        labels = lambda params: jax.tree.map(lambda leaf: "free" if leaf.shape[-1] == 2 else "balanced", params)
        parts = {"balanced": optim.nero(0.1), "free": optim.nero(0.1, constraints=False)}
        new = one_step(optax.partition(parts, labels), params, grads)
        first = params.layers[0].weight
        step = 0.1 * jnp.mean(jnp.linalg.norm(first, axis=1)) / np.sqrt(2)
        np.testing.assert_allclose(new.layers[0].weight, first - step, rtol=1e-5)
        assert_balanced(new.layers[1].weight)

    def test_with_donated_state_and_parameters(self) -> None:
        optimizer = optim.nero(0.1)

        def step(params: Any, state: Any, grads: Any) -> Any:
            updates, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        donated = jax.jit(step, donate_argnums=(0, 1))
        for init in (optimizer.init, jax.jit(optimizer.init)):
            params = expected = balanced(parameters(jnp.float32))
            state, other = init(params), optimizer.init(params)
            params = jax.tree.map(jnp.copy, params)
            for number in range(3):
                params, state = donated(params, state, gradients(number, jnp.float32))
                expected, other = step(expected, other, gradients(number, jnp.float32))
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), params, expected)


class TestMessages:
    @pytest.mark.parametrize("rate", [0, -0.1, float("nan"), float("inf"), "0.1", None, np.float32(-1)])
    def test_learning_rate(self, rate: Any) -> None:
        with pytest.raises(
            ValueError, match=re.escape(f"learning_rate: expected a positive finite number or a schedule, got {rate!r}")
        ):
            optim.nero(rate)

    @pytest.mark.parametrize("beta", [1, 1.5, -0.1, float("nan"), None])
    def test_beta(self, beta: Any) -> None:
        with pytest.raises(ValueError, match=re.escape(f"beta: expected a number in [0, 1), got {beta!r}")):
            optim.nero(beta=beta)

    def test_update_without_parameters(self) -> None:
        optimizer = optim.nero()
        with pytest.raises(ValueError, match=re.escape("expected update(gradients, state, params)")):
            optimizer.update(jnp.ones(2), optimizer.init(jnp.ones(2)))


def test_training_goes_on_from_a_checkpoint_and_lowers_the_loss(key: Any, tmp_path: Any) -> None:
    rng = np.random.default_rng(0)
    y = np.arange(48, dtype=np.int32) % 3
    x = (np.eye(4)[y] + 0.2 * rng.normal(size=(48, 4))).astype(np.float32)
    field = ld.nn.InvariantField(ld.nn.MLPField(3, 4, width=16, key=key), 5.0, 4.0)
    system = ld.System(lambda x: ld.Start(jnp.zeros(3, x.dtype), x), field, domain=ld.Box(-5, 5))
    certificate = ld.Certificate.exponential(ld.cross_entropy, 2)
    solver = ld.Solver(diffrax.Euler(), dt=0.25)
    program = ld.compile(system, certificate, (jnp.zeros(4), 0), objective=ld.PathIntegral(4), solver=solver)
    params, static = eqx.partition(program, ld.trainable(program))
    program = eqx.combine(optim.balance(params), static)

    def train(epochs: int) -> ld.FitResult:
        optimizer = optim.nero(optax.cosine_decay_schedule(0.02, 90))
        options: Any = {"folder": tmp_path, "batch_size": 16, "progress": False}
        return ld.fit(program, (x, y), optimizer=optimizer, epochs=epochs, key=key, **options)

    train(10)
    result = train(30)
    losses = [record["loss"] for record in result.history]
    assert len(losses) == 30
    assert losses[-1] < 0.5 * losses[0]
    assert result.program.error(x, y) < program.error(x, y)
    weights = [leaf for leaf in jax.tree.leaves(eqx.filter(result.program, ld.trainable(program))) if leaf.ndim == 2]
    assert weights
    for weight in weights:
        assert_balanced(weight)


def test_the_documentation_runs_as_printed() -> None:
    page = (Path(__file__).parent.parent / "docs/api/optim.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, "docs/api/optim.md", "exec"), names)
    assert_balanced(names["model"].layers[1].weight)
    assert names["loss"](names["model"]) < names["before"]
