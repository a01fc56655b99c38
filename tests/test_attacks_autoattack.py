"""The attacks against the authors' own, on one small model; skipped where PyTorch or that package is missing
(`pip install torch git+https://github.com/fra31/auto-attack`)."""

import functools
import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lyapunov_dsl as ld

# The same budget for both.
STEPS, TARGETS, QUERIES = 30, 3, 300


def bridge(function: Any) -> Any:
    """A JAX function from a batch to a batch as a PyTorch function, with JAX's gradient."""
    torch = pytest.importorskip("torch")
    forward = jax.jit(function)
    pull = jax.jit(lambda x, g: jax.vjp(function, x)[1](g)[0])
    to_torch = lambda array: torch.from_numpy(np.array(array))

    class Bridge(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            ctx.save_for_backward(x)
            return to_torch(forward(x.detach().numpy()))

        @staticmethod
        def backward(ctx: Any, gradient: Any) -> Any:
            (x,) = ctx.saved_tensors
            return to_torch(pull(x.detach().numpy(), gradient.numpy()))

    return Bridge.apply


@pytest.fixture(scope="module")
def model() -> Any:
    """A network trained on scikit-learn's digits, as images, and those it was not trained on."""
    datasets = pytest.importorskip("sklearn.datasets")
    x, y = datasets.load_digits(return_X_y=True)
    x, y = (x / 16).astype(np.float32).reshape(-1, 1, 8, 8), y.astype(np.int32)
    apply = lambda net, x: jax.vmap(net)(x.reshape(len(x), 64))
    net: Any = eqx.nn.MLP(64, 10, 32, 1, key=jax.random.key(0))
    optimizer = optax.adam(5e-3)

    @eqx.filter_jit
    def step(net: Any, state: Any) -> Any:
        loss = lambda net: jnp.mean(jax.vmap(ld.cross_entropy)(apply(net, x[:1200]), y[:1200]))
        updates, state = optimizer.update(eqx.filter_grad(loss)(net), state)
        return eqx.apply_updates(net, updates), state

    state = optimizer.init(eqx.filter(net, eqx.is_array))
    for _ in range(150):
        net, state = step(net, state)
    return functools.partial(apply, net), x[1200:1400], y[1200:1400]


def test_the_bridge_gives_the_gradient() -> None:
    torch = pytest.importorskip("torch")
    x = torch.tensor([[0.5, 2.0]], requires_grad=True)
    out = bridge(lambda x: x**3)(x)
    out.sum().backward()
    np.testing.assert_allclose(out.detach().numpy(), [[0.125, 8.0]])
    np.testing.assert_allclose(x.grad.numpy(), [[0.75, 12.0]])


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "radius"), [("inf", 0.1), ("2", 0.5)])
def test_ours_are_as_strong_at_the_same_budget(model: Any, norm: str, radius: float) -> None:
    torch = pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        autoattack = pytest.importorskip("autoattack", exc_type=ImportError)
        function, x, y = model
        names = {"apgd-ce": "apgd_ce", "apgd-t": "apgd_t", "fab-t": "fab", "square": "square"}
        theirs = autoattack.AutoAttack(
            bridge(function), norm={"inf": "Linf", "2": "L2"}[norm], eps=radius, seed=0, verbose=False, version="custom",
            attacks_to_run=list(names), device="cpu",
        )  # fmt: skip
        theirs.apgd.n_restarts = theirs.fab.n_restarts = 1
        theirs.apgd.n_iter = theirs.apgd_targeted.n_iter = theirs.fab.n_iter = STEPS
        theirs.apgd_targeted.n_target_classes = theirs.fab.n_target_classes = TARGETS
        theirs.square.n_queries = QUERIES
        found = theirs.run_standard_evaluation_individual(torch.from_numpy(x), torch.from_numpy(y).long(), bs=len(x))
    attacks = ld.attacks.standard_attacks(steps=STEPS, targets=TARGETS, queries=QUERIES)
    report = ld.attacks.evaluate(
        function, x, y, radius=radius, norm=norm, key=jax.random.key(0), attacks=attacks, batch_size=len(x)
    )
    wrong = lambda points: float(np.mean(np.argmax(function(jnp.asarray(points.numpy())), axis=1) != y))
    for name, ours in names.items():
        assert report.errors[ours] >= wrong(found[name]) - 0.0101, (ours, report.errors[ours], wrong(found[name]))
    assert 0.1 < report.robust_error < 0.95
