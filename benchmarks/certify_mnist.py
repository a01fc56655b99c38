"""Certified robustness on MNIST: the first 1,000 test images at L2 0.1 and at L∞ 0.1, pixels in [0, 1].

    python benchmarks/certify_mnist.py --data-dir DIR              # docs/results/certify_mnist.json, about half an hour
    python benchmarks/certify_mnist.py --data-dir DIR --epochs 1   # a look

L2: orthogonal layers with sorted pairs (1-Lipschitz), trained for their margins. L∞: a small convolutional network, trained through
ranges over a box that grows (Gowal et al. 2018). Both pull the state of a field that keeps a cube to their logits, in eight Euler steps.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import common
import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import lyapunov_dsl as ld
from lyapunov_dsl import data

KAPPA, RATE, STEPS, CLASSES, RADIUS = 2, 8.0, 8, 10, 0.1
HALF_WIDTH = 2 * ld.radius_for(ld.cross_entropy, KAPPA, classes=CLASSES)


class Input(eqx.Module):
    """η(0) = 0, and features of the image that the field may look at."""

    network: Any

    def __call__(self, x: Any) -> ld.Start:
        return ld.Start(jnp.zeros(CLASSES, x.dtype), self.network(x))


class Orthogonal(Input):
    """The same with a known Lipschitz constant: the start is constant."""

    def gain(self) -> Any:
        return self.network.gain()


class Goal(eqx.Module):
    """Where the field pulls: logits that are linear in the features."""

    layer: Any
    scale: float = eqx.field(static=True)

    def __call__(self, t: Any, state: Any, context: Any) -> Any:
        return self.scale / HALF_WIDTH * self.layer(context)


def orthogonal(key: Any, width: int, scale: float) -> ld.System:
    keys = jax.random.split(key, 3)
    linear, pairs = ld.nn.CayleyLinear, ld.nn.MaxMin()
    network = ld.nn.Lipschitz(
        *(jnp.ravel, linear(784, width, key=keys[0]), pairs, linear(width, width, key=keys[1]), pairs),
        linear(width, CLASSES, key=keys[2]),
    )
    return _system(Orthogonal(network), Goal(eqx.nn.Identity(), scale))


def convolutional(key: Any) -> ld.System:
    keys = jax.random.split(key, 4)
    relu = eqx.nn.Lambda(jax.nn.relu)
    layers = [
        *(eqx.nn.Conv2d(1, 16, 4, 2, 1, key=keys[0]), relu, eqx.nn.Conv2d(16, 32, 4, 2, 1, key=keys[1]), relu),
        *(eqx.nn.Lambda(jnp.ravel), eqx.nn.Linear(32 * 7 * 7, 128, key=keys[2]), relu),
    ]
    return _system(Input(eqx.nn.Sequential(layers)), Goal(eqx.nn.Linear(128, CLASSES, key=keys[3]), 1.0))


def _system(module: Any, goal: Any) -> ld.System:
    field = ld.nn.InvariantField(goal, HALF_WIDTH, RATE)
    return ld.System(input=module, vector_field=field, domain=ld.Box(-HALF_WIDTH, HALF_WIDTH))


def train(system: Any, examples: Any, stages: Any, rate: float, batch: int, seed: int) -> Any:
    """Trains for one objective after another, each for some epochs."""
    x, y = examples
    program: Any = None
    certificate = ld.Certificate.exponential(loss=ld.cross_entropy, kappa=KAPPA)
    solver = ld.Solver(diffrax.Euler(), dt=1 / STEPS)
    for i, (objective, epochs) in enumerate(stages):
        program = ld.compile(system, certificate, (x[0], y[0]), objective=objective, solver=solver)
        steps = epochs * (len(y) // batch)
        last = i == len(stages) - 1
        schedule = optax.cosine_decay_schedule(rate, steps) if last else rate
        optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
        key = jax.random.fold_in(jax.random.key(seed), i)
        program = ld.fit(program, examples, optimizer=optimizer, epochs=epochs, batch_size=batch, key=key).program
        system = program.system
    return program


def judged(program: Any, x: Any, y: Any, **asked: Any) -> dict[str, Any]:
    """Certified and attacked accuracy at the radius."""
    robust = ld.InputRobustness(radii=(RADIUS,), **asked)
    found = ld.prove(program, robust, at=(x, y))
    print(found)
    began = time.monotonic()
    ld.prove(program, robust, at=(x, y))
    seconds = time.monotonic() - began
    norm, key = asked["norm"], jax.random.key(1)
    attacked = np.asarray(ld.attacks.pgd(program.predict, x, y, radius=RADIUS, norm=norm, key=key))
    held = np.asarray(program.predict(attacked)).argmax(-1) == y
    return {
        "test error": program.error(x, y),
        "certified": found.accuracy(RADIUS),
        "attacked (PGD)": float(held.mean()),
        "certified examples that the attack broke": int(np.sum(~held & (found.radius >= RADIUS))),
        "rules": {name: float(np.mean(v >= RADIUS)) for name, v in found.radii.items()},
        "evaluations an image": found.evaluations / len(y),
        "seconds an image, with compilation": found.seconds / len(y),
        "seconds an image, once compiled": seconds / len(y),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--epochs", type=int, default=20, help="of each network, warm-up included")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--only", choices=["2", "inf"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    mnist = data.load("mnist", options.data_dir)
    x, y = data.to_float(mnist.train[0]), mnist.train[1]
    tests = data.to_float(mnist.test[0][:1000]), mnist.test[1][:1000]
    key = jax.random.key(options.seed)
    results: dict[str, Any] = {"settings": {**vars(options), "out": None, "data_dir": None}}

    if options.only != "inf":
        scale = 3.0
        margin = ld.RobustMargin(0.3, steps=STEPS, lipschitz=scale, temperature=8 / scale)
        began = time.monotonic()
        system = orthogonal(key, options.width, scale)
        program = train(system, (x, y), [(margin, options.epochs)], 3e-3, options.batch, options.seed)
        results["L2"] = {"training seconds": time.monotonic() - began}
        results["L2"] |= judged(program, *tests, norm="2", rules=("tube", "margin"))
        print(json.dumps(results["L2"], indent=1))
    if options.only != "2":
        ranges = lambda radius: ld.RobustMargin(radius, steps=STEPS, norm="inf", method="ibp")
        warm = max(1, options.epochs // 10)
        grown = [(ranges(r), warm) for r in (0.0, 0.02, 0.05, 0.08)]
        began = time.monotonic()
        stages = [*grown, (ranges(0.11), max(1, options.epochs - 4 * warm))]
        program = train(convolutional(key), (x, y), stages, 1e-3, options.batch, options.seed)
        results["L∞"] = {"training seconds": time.monotonic() - began}
        results["L∞"] |= judged(program, *tests, norm="inf", rules=("tube",), method="ibp")
        print(json.dumps(results["L∞"], indent=1))
    common.write(options.out, "certify_mnist", results)


if __name__ == "__main__":
    main()
