"""Enforcement: how well the condition holds at a million states, and what a corrected field costs.

    python benchmarks/enforce.py     # docs/results/enforce.json, a minute

A network of three states, and two potentials. States are drawn with log V spread evenly over thirty decades, in float64. Times are
ratios of a batch of 1,024 evaluations, compiled, in one process.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import common
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import lyapunov_dsl as ld

KAPPA = 0.7


class Field(eqx.Module):
    network: eqx.nn.MLP

    def __call__(self, t: Any, state: Any, context: Any) -> Any:
        return 3 * self.network(state)


def states(count: int) -> Any:
    lengths = 10.0 ** jax.random.uniform(jax.random.key(0), (count, 1), minval=-13, maxval=2)
    directions = jax.random.normal(jax.random.key(1), (count, 3))
    return lengths * directions / jnp.linalg.norm(directions, axis=1, keepdims=True)


def held(system: Any, certificate: Any, states: Any) -> float:
    """The largest r / (|dV/dt| + κ V)."""
    condition = ld.Condition(system, certificate)
    (part,) = condition.parts.values()

    def one(s: Any) -> Any:
        ((v, rate),) = condition.rates(jnp.zeros(()), s, condition.point(ld.Start(s), None)).values()
        return (rate - part.comparison(0.0, v)) / (jnp.abs(rate) + KAPPA * jnp.abs(v))

    return float(jnp.max(eqx.filter_jit(jax.vmap(one))(states)))


def seconds(system: Any, batch: Any) -> float:
    run = jax.jit(jax.vmap(lambda s: system.velocity(jnp.zeros(()), s, None)))
    run(batch).block_until_ready()
    took = []
    for _ in range(200):
        began = time.perf_counter()
        run(batch).block_until_ready()
        took.append(time.perf_counter() - began)
    return float(np.median(took))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    network = eqx.nn.MLP(3, 3, options.width, 2, activation=jnp.tanh, key=jax.random.key(0))
    plain = ld.System(vector_field=Field(network), domain=ld.Box(-2.0, 2.0))
    potentials = {
        "quadratic": ld.nn.QuadraticPotential(3, matrix=[[1.0, 2, 0], [0, 1, 0], [0, 0, 0.1]]),
        "convex": ld.nn.ConvexPotential(3, key=jax.random.key(1)),
    }
    results: dict[str, Any] = {"settings": {**vars(options), "out": None}}
    batch = jax.random.uniform(jax.random.key(2), (1024, 3), minval=-2, maxval=2)
    for name, potential in potentials.items():
        certificate = ld.Certificate.exponential(potential, KAPPA)
        whole = ld.enforce(plain, certificate, jnp.zeros(3))
        results[name] = {
            "largest r / (|dV/dt| + kappa V)": held(whole, certificate, states(options.count)),
            "without enforcement": held(plain, certificate, states(options.count)),
            "time of an evaluation, of the plain one's": seconds(whole, batch) / seconds(plain, batch),
        }
    print(json.dumps(results, indent=1))
    common.write(options.out, "enforce", results)


if __name__ == "__main__":
    main()
