"""Bounds of small networks against auto_LiRPA's, where it is installed."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lyapunov_dsl import bounds

torch = pytest.importorskip("torch", reason="auto_LiRPA's bounds are compared with where torch and it are installed")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    lirpa = pytest.importorskip("auto_LiRPA", reason="auto_LiRPA's bounds are compared with where it is installed")

ACTIVATIONS = {
    "relu": (jax.nn.relu, torch.nn.ReLU),
    "tanh": (jnp.tanh, torch.nn.Tanh),
    "sigmoid": (jax.nn.sigmoid, torch.nn.Sigmoid),
}


def both(sizes: tuple[int, ...], activation: str, seed: int) -> tuple[Any, Any]:
    """The same random network for JAX and for torch, in float64."""
    ours, theirs = ACTIVATIONS[activation]
    rng = np.random.default_rng(seed)
    shapes = list(zip(sizes[1:], sizes[:-1], strict=True))
    weights = [(1.5 * rng.normal(size=shape) / shape[1] ** 0.5, 0.3 * rng.normal(size=shape[0])) for shape in shapes]

    def apply(x: Any) -> Any:
        for w, b in weights[:-1]:
            x = ours(w @ x + b)
        return weights[-1][0] @ x + weights[-1][1]

    layers: list[Any] = []
    for w, b in weights:
        linear = torch.nn.Linear(*w.shape[::-1], dtype=torch.float64)
        linear.weight.data, linear.bias.data = torch.from_numpy(w), torch.from_numpy(b)
        layers += [linear, theirs()]
    return apply, torch.nn.Sequential(*layers[:-1])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("norm", [np.inf, 2.0])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("sizes", [(2, 8, 3), (4, 10, 10, 2)], ids=str)
@pytest.mark.parametrize("radius", [0.01, 0.3])
def test_bounds_are_no_looser_than_those_of_auto_lirpa(sizes, activation, norm, radius):
    with jax.enable_x64(True):
        apply, module = both(sizes, activation, seed=len(sizes))
        center = np.random.default_rng(7).normal(size=sizes[0])
        region = (bounds.Box.around if norm == np.inf else bounds.Ball)(jnp.asarray(center), radius)
        ours = bounds.bound(apply, region, method="crown")

        point = torch.from_numpy(center)[None]
        bounded = lirpa.BoundedModule(module, torch.empty_like(point), device="cpu")
        moved = lirpa.BoundedTensor(point, lirpa.PerturbationLpNorm(norm=norm, eps=radius))
        lower, upper = (v.detach().numpy()[0] for v in bounded.compute_bounds(x=(moved,), method="CROWN"))

        offsets = np.random.default_rng(8).normal(size=(500, sizes[0]))
        values = np.asarray(
            jax.vmap(apply)(center + radius * offsets / np.linalg.norm(offsets, norm, 1, keepdims=True))
        )
        np.testing.assert_allclose(module(point).detach().numpy()[0], apply(center), rtol=1e-9, atol=1e-9)
        assert (np.asarray(ours.lower) <= values).all()
        assert (values <= np.asarray(ours.upper)).all()
        # Theirs do not round outward.
        assert (lower <= values + 1e-9).all()
        assert (values <= upper + 1e-9).all()
        # Both choose slopes by heuristics, so that either may win at an output, but not by much.
        assert float(jnp.sum(ours.upper - ours.lower)) <= 1.15 * float(np.sum(upper - lower)) + 1e-9
