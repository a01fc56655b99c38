"""Certified robustness: a program trained for it on the digits, beside four controls.

    python benchmarks/certify.py                  # docs/results/certify.json, about eight minutes
    python benchmarks/certify.py --epochs 5       # a look

The program: orthogonal layers with sorted pairs (1-Lipschitz), H = [-s, s]^10 kept by construction, κ = 2, truncation 0.01, inference
by eight Euler steps. Radii in L2, pixels in [0, 1]. The controls: a linear classifier's margin, the nearest neighbor's, the same encoder
alone, and the same encoder under f = K (A(x) - η). Attacks try every certified image at its radius.
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
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

import lyapunov_dsl as ld

RADII = (0.1, 0.2, 0.3)
# κ of the declaration, and the rate that is proved in discrete time: with K Δt = 1 a step goes all the way.
KAPPA, PROVED, TRUNCATION, RATE, STEPS = 2, 32.0, 0.01, 8.0, 8
# Half-width of H: twice that of eq. 49.
HALF_WIDTH = 2 * ld.radius_for(ld.cross_entropy, KAPPA, classes=10)


class Encoder(eqx.Module):
    """η(0) = 0, and a 1-Lipschitz function of the image that the field may look at."""

    network: ld.nn.Lipschitz

    def __call__(self, x: Any) -> ld.Start:
        return ld.Start(jnp.zeros(10, x.dtype), self.network(x))

    def gain(self) -> Any:
        """A Lipschitz constant of start and context together: the start is constant."""
        return self.network.gain()


class Goal(eqx.Module):
    """Where the field pulls: the encoder's logits, a times as large."""

    scale: float = eqx.field(static=True)

    def __call__(self, t: Any, state: Any, context: Any) -> Any:
        return self.scale / HALF_WIDTH * context


def system_of(width: int, scale: float, key: Any) -> ld.System:
    keys = jax.random.split(key, 4)
    linear, pairs = ld.nn.CayleyLinear, ld.nn.MaxMin()
    network = ld.nn.Lipschitz(
        *(linear(64, width, key=keys[0]), pairs, linear(width, width, key=keys[1]), pairs),
        *(linear(width, width, key=keys[2]), pairs, linear(width, 10, key=keys[3])),
    )
    return ld.System(
        input=Encoder(network),
        vector_field=ld.nn.InvariantField(Goal(scale), HALF_WIDTH, RATE),
        domain=ld.Box(-HALF_WIDTH, HALF_WIDTH),
    )


def linear_control(train: Any, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Exact radii of the best of some linear classifiers at the largest radius."""
    best = np.zeros(len(y))
    for c in (0.03, 0.1, 0.3, 1.0):
        model = LogisticRegression(C=c, max_iter=5000).fit(*train)
        weights, logits = model.coef_, model.decision_function(x)
        found = np.empty(len(y))
        for i, label in enumerate(y):
            lengths = np.linalg.norm(weights[label] - weights, axis=1)
            ratio = (logits[i, label] - logits[i]) / np.where(lengths > 0, lengths, 1)
            found[i] = np.min(np.delete(ratio, label))
        if np.mean(found >= RADII[-1]) > np.mean(best >= RADII[-1]):
            best = found
    return best


def nearest_control(train: Any, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Half the difference of the distances to the nearest image of another class and of this one."""
    distances = np.linalg.norm(x[:, None] - train[0][None], axis=-1)
    same = np.where(train[1][None] == y[:, None], distances, np.inf).min(axis=1)
    other = np.where(train[1][None] != y[:, None], distances, np.inf).min(axis=1)
    return (other - same) / 2


def encoder_control(program: Any, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The margin of the encoder's own logits over √2 times its Lipschitz constant."""
    network = ld.nn.plain(program.system.input.network)
    with jax.enable_x64(True):
        gain = float(network.gain())
    logits = np.asarray(jax.vmap(network)(jnp.asarray(x)), np.float64)
    margins = logits[np.arange(len(y)), y][:, None] - logits
    margins[np.arange(len(y)), y] = np.inf
    return margins.min(axis=1) / (np.sqrt(2) * gain)


def certified(options: Any, scale: float, train: Any, x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """Trains a program whose field pulls so many times as far as the encoder says, and certifies it."""
    system = system_of(options.width, scale, jax.random.key(options.seed))
    certificate = ld.Certificate.exponential(loss=ld.truncated(ld.cross_entropy, TRUNCATION), kappa=KAPPA)
    margin = ld.RobustMargin(options.trained_radius, steps=STEPS, lipschitz=scale, temperature=8 / scale)
    solver = ld.Solver(diffrax.Euler(), dt=1 / STEPS)
    program = ld.compile(system, certificate, (x[0], y[0]), objective=margin, solver=solver)
    steps = options.epochs * (len(train[1]) // 64)
    began = time.monotonic()
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, steps))
    program = ld.fit(
        program, train, optimizer=optimizer, epochs=options.epochs, key=jax.random.key(options.seed)
    ).program
    seconds = time.monotonic() - began

    results: dict[str, Any] = {"training seconds": seconds}
    controls = {
        "linear": linear_control(train, x, y),
        "nearest neighbor": nearest_control(train, x, y),
        "encoder alone": encoder_control(program, x, y),
    }
    line = ld.System(input=system.input, vector_field=lambda t, s, c: RATE * (c - s), domain=system.domain)
    line = eqx.tree_at(lambda s: s.input, line, program.system.input)
    # A field without the half-width of H keeps no cube: only the margin rule is about it.
    straight = ld.compile(line, certificate, (x[0], y[0]), objective=margin, solver=solver)
    controls["K (A(x) - η)"] = ld.prove(straight, ld.InputRobustness(radii=RADII, rules=("margin",)), at=(x, y)).radius
    asked: Any = {"radii": RADII, "truncation": TRUNCATION, "kappa": PROVED}
    found = ld.prove(program, ld.InputRobustness(**asked), at=(x, y))
    print(found)
    again = time.monotonic()
    ld.prove(program, ld.InputRobustness(**asked), at=(x, y))
    results["seconds an image, with compilation"] = found.seconds / len(y)
    results["seconds an image, once compiled"] = (time.monotonic() - again) / len(y)
    paper = ld.prove(program, ld.InputRobustness(**asked, rules=("theorem_3",)), at=(x, y))
    results["evaluations an image"] = found.evaluations / len(y)
    rows = {"this program": {str(r): found.accuracy(r) for r in RADII}}
    rows |= {name: {str(r): float(np.mean(radius >= r)) for r in RADII} for name, radius in controls.items()}
    results["test error"] = program.error(x, y)
    results["certified"] = rows
    results["rules"] = {
        name: {str(r): float(np.mean(v >= r)) for r in RADII} for name, v in {**found.radii, **paper.radii}.items()
    }
    broken = {}
    for radius in RADII:
        for name, attack in {"pgd": ld.attacks.pgd, "apgd": ld.attacks.apgd_ce}.items():
            attacked = attack(program.predict, x, y, radius=radius, norm="2", key=jax.random.key(1))
            wrong = np.asarray(program.predict(np.asarray(attacked))).argmax(-1) != y
            broken[f"{name} {radius}"] = int(np.sum(wrong & (found.radius >= radius)))
    results["certified examples that attacks broke"] = broken
    print(json.dumps(results, indent=1))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--scale", type=float, nargs="+", default=[6.0, 8.0], help="how far fields pull")
    parser.add_argument("--trained-radius", type=float, default=0.4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    pixels, labels = load_digits(return_X_y=True)
    x, y = (pixels / 16).astype(np.float32), labels.astype(np.int32)
    rest, test = next(StratifiedKFold(5, shuffle=True, random_state=options.seed).split(x, y))
    train, x, y = (x[rest], y[rest]), x[test], y[test]

    settings = {**vars(options), "out": None, "kappa": KAPPA, "proved kappa": PROVED, "truncation": TRUNCATION}
    settings["domain"] = f"[-{HALF_WIDTH:.4g}, {HALF_WIDTH:.4g}]^10"
    results = {f"scale {scale:g}": certified(options, scale, train, x, y) for scale in options.scale}
    results["settings"] = settings
    common.write(options.out, "certify", results)


if __name__ == "__main__":
    main()
