"""The programs that `examples/mnist.py` and its likes trained, under the paper's protocol and under attacks worth believing.

    python examples/mnist.py --data-dir DIR --out out/mnist
    python benchmarks/attacks.py --runs out/mnist --data-dir DIR            # docs/results/attacks_mnist.json

The first 1,000 test images, pixels in [0, 1], the maximum norm with radius 8/255 and the 2-norm with 127/255. For each method:
ten steps of 2/255 (the paper's protocol), then the standard set (Auto-PGD on cross entropy and on the targeted difference of
logits, FAB, Square), random points of the ball, the other model's adversarial examples (ResNet-18's, and Neural ODE's for
ResNet-18), gradients taken at t = 0.01, and the share of gradients that are zero. The baseline "clamp" is what the paper's code
does before any attack: images standardized first and then clamped to [0, 1]. A method that is done is not attacked again.
`--steps`, `--targets` and `--queries` are the budget; AutoAttack's is 100, 9 and 5,000.
"""

import argparse
import hashlib
import json
import math
import sys
import time
from pathlib import Path

import common
import numpy as np

import lyapunov_dsl as ld
from lyapunov_dsl import data

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
import _images  # pyright: ignore[reportMissingImports]
import jax

BALLS = {"inf": 8 / 255, "2": 127 / 255}


def load(runs: Path, method: str, settings: dict, dataset: data.Dataset) -> ld.Program:
    """The program of one method from its last checkpoint."""
    names = {field.name for field in _images.dataclasses.fields(_images.Preset)} - {"measure"}
    given = {name: settings[name] for name in names}
    preset = _images.Preset(**given, measure=_images.PRESETS[settings["preset"]].measure)
    x, y = dataset.test
    example = (data.to_float(x[0]), y[0])
    like = _images.make_program(method, preset, x.shape[1:], dataset.classes, example, jax.random.key(0))
    return ld.load(runs / method / "checkpoint.npz", like)


def clamp_error(program: ld.Program, x: np.ndarray, y: np.ndarray) -> float:
    """The error of images that were clamped to [0, 1] in units of their standard deviation: no attack, and no gradient."""
    mean, deviation = x.mean(), x.std()
    clamped = np.clip((x - mean) / deviation, 0, 1) * deviation + mean
    return program.error(clamped.astype(x.dtype), y)


def digest(file: Path) -> str:
    """What tells one trained program from another."""
    return hashlib.blake2b(file.read_bytes(), digest_size=8).hexdigest()


def attack(programs: dict, method: str, x: np.ndarray, y: np.ndarray, norm: str, budget: dict) -> dict:
    """One method in one norm."""
    program = programs[method]
    other = programs.get("neural-ode" if method == "resnet18" else "resnet18")
    early = None
    if isinstance(program.system, ld.System):
        early = lambda x: program.predict(x, stop=0.01)
    steps = {name: budget[name] for name in ("steps", "targets", "queries")}
    report = ld.attacks.evaluate(
        program.predict, x, y, radius=BALLS[norm], norm=norm, key=jax.random.key(0), steps=budget["steps"], early=early,
        attacks=ld.attacks.standard_attacks(**steps), transfer=None if other is None else other.predict,
    )  # fmt: skip
    print(f"\n{_images.METHODS[method]}: {report}", flush=True)
    return report.to_dict() | {"clamp": clamp_error(program, x, y)}


def table(results: dict) -> str:
    """Markdown: a line for each method and norm, errors in per cent."""
    columns = list(next(iter(results.values()))["errors"])
    columns += ["early", "transfer"]
    columns = list(dict.fromkeys(columns))
    head = ["", "no attack", "clamp", *columns, "worst case", "zero gradients"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    notes: dict[str, int] = {}
    for name, row in results.items():
        marks = [notes.setdefault(warning, len(notes) + 1) for warning in row["warnings"]]
        shares = [
            row["nominal_error"],
            row["clamp"],
            *(row["errors"].get(c, math.nan) for c in columns),
            row["robust_error"],
        ]
        cells = ["" if math.isnan(share) else f"{100 * share:.1f}" for share in [*shares, row["zero_gradients"]]]
        lines.append(f"| {name} {' '.join(f'[{mark}]' for mark in marks)} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"{number}. {warning}" for warning, number in notes.items())])


def main() -> None:
    parser = argparse.ArgumentParser(description="Trained image programs under attack.")
    parser.add_argument("--runs", type=Path, required=True, help="what --out of the example was")
    parser.add_argument("--data-dir", type=Path, help="as for the example")
    parser.add_argument("--data", default="mnist", choices=["mnist", "fashion_mnist", "cifar10", "cifar100"])
    parser.add_argument("--methods", nargs="+", choices=_images.METHODS)
    parser.add_argument("--norms", nargs="+", choices=BALLS, default=list(BALLS))
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--targets", type=int, default=9)
    parser.add_argument("--queries", type=int, default=5000)
    parser.add_argument("--out", type=Path, help="docs/results/attacks_DATA.json by default")
    options = parser.parse_args()
    out = options.out or common.RESULTS / f"attacks_{options.data}.json"
    record = json.loads((options.runs / "results.json").read_text())
    dataset = data.load(options.data, options.data_dir)
    x, y = data.to_float(dataset.test[0][: options.images]), dataset.test[1][: options.images]
    budget = {name: getattr(options, name) for name in ("images", "steps", "targets", "queries")}
    before = json.loads(out.read_text()) if out.exists() else {}
    files = {method: digest(options.runs / method / "checkpoint.npz") for method in record["results"]}
    same = [before.get(name) for name in ("budget", "training", "programs")] == [budget, record["settings"], files]
    results = before["results"] if same else {}
    methods = options.methods or [method for method in _images.METHODS if method in record["results"]]
    programs = {method: load(options.runs, method, record["settings"], dataset) for method in record["results"]}
    for norm in options.norms:
        for method in methods:
            name = f"{_images.METHODS[method]}, {norm}-norm {BALLS[norm]:.3f}"
            if name in results:
                continue
            began = time.perf_counter()
            results[name] = attack(programs, method, x, y, norm, budget)
            results[name]["seconds in all"] = time.perf_counter() - began
            whole = {
                "environment": common.environment(),
                "budget": budget,
                "training": record["settings"],
                "programs": files,
            }
            common.write(out, "", {**whole, "results": results})
    print(table(results))


if __name__ == "__main__":
    main()
