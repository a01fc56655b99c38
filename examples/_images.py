"""What the image examples share: the six methods, the presets, training, attacks, figures.

Not a script; see `cifar10.py`, `cifar100.py` and `fashion_mnist.py`.
"""

import argparse
import dataclasses
import json
import platform
import resource
import sys
from pathlib import Path
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import optax

import lyapunov_dsl as ld
from lyapunov_dsl import data

METHODS = {
    "resnet18": "ResNet-18",
    "continuous": "Continuous",
    "continuous-lyanet": "Continuous LyaNet",
    "neural-ode": "Neural ODE",
    "lyanet": "LyaNet",
    "flow-matching": "Flow matching",
}
COLORS = dict(zip(METHODS, ["#777777", "#7a5195", "#e08a00", "#1f5fa8", "#b3261e", "#1b7f3b"], strict=True))
RATE = 8


@dataclasses.dataclass(frozen=True)
class Preset:
    """How large the models are and how they are trained and attacked.

    `width`: channels of the first stage of ResNet-18 (the continuous network has a quarter); `hidden`: rows of A(x);
    `count`, `attacked`: how many images are trained on and attacked, all where it is `None`; `dynamics`: `"invariant"`
    or `"paper"`, the dynamics of the paper's own code; `measure`: what Monte Carlo samples.
    """

    note: str
    width: int
    hidden: int
    epochs: int
    batch: int
    optimizer: str
    rate: float
    augment: bool = True
    count: int | None = None
    attacked: int | None = None
    dynamics: str = "invariant"
    measure: Any = None
    kappa: float = 2.0


PRESETS = {
    "paper": Preset(
        "the paper's setting: 120 epochs, Nero at 0.01, a tenth of it from epoch 60 on", 64, 128, 120, 64, "nero", 0.01,
        attacked=1000, measure=ld.Sphere(512),
    ),
    "fast": Preset("our own setting, not measured yet: 30 epochs, one cycle of Adam", 64, 128, 30, 128, "adam", 2e-3, attacked=1000),
    "smoke": Preset(
        "no measurement: a small width, few images, two epochs", 16, 32, 2, 64, "adam", 3e-3, count=2000, attacked=100
    ),
}  # fmt: skip


def make_program(method, preset, shape, classes, example, key):
    """One of the methods as a program; the last three share one network."""
    certificate = ld.Certificate.exponential(loss=ld.cross_entropy, kappa=preset.kappa)
    if method == "resnet18":
        system = ld.nn.resnet18(shape, classes, width=preset.width, key=key)
        return ld.compile(system, certificate, example, objective=ld.EndToEnd())
    if method.startswith("continuous"):
        system = ld.nn.continuous_net(shape, classes, width=max(preset.width // 4, 4), key=key)
        objective = ld.EndToEnd() if method == "continuous" else ld.PathIntegral()
        return ld.compile(system, certificate, example, objective=objective)
    encoder_key, field_key = jax.random.split(key)
    encoder = ld.nn.ResNet18(shape, preset.hidden**2, width=preset.width, key=encoder_key)
    # Room for the promised V(1), as in the other examples.
    half_width = 2 * ld.radius_for(ld.cross_entropy, preset.kappa, classes)
    if preset.dynamics == "paper":
        field = ld.nn.PaperField(classes, gain=5.0, hidden=preset.hidden, key=field_key)
        half_width = 15.0
    else:
        inner = ld.nn.ControlledField(classes, preset.hidden, key=field_key)
        field = ld.nn.InvariantField(inner, half_width, rate=RATE)
    system = ld.System(
        input=ld.nn.ControlledStart(encoder, classes, preset.hidden),
        vector_field=field,
        domain=ld.Box(-half_width, half_width),
    )
    # Steps of Euler: on the digits the cheapest end-to-end setting that trains as well (docs/benchmarks.md).
    euler = ld.Solver(diffrax.Euler(), dt=1 / RATE)
    objective = {
        "neural-ode": ld.EndToEnd(euler),
        "lyanet": ld.MonteCarlo(preset.measure),
        # An invariant field can follow straight paths up to there.
        "flow-matching": ld.FlowMatching(ld.ClassCorner(0.8 * half_width)),
    }[method]
    return ld.compile(system, certificate, example, objective=objective)


def make_optimizer(preset, steps):
    """Nero as in the paper, or Adam or SGD over one cycle."""
    if preset.optimizer == "nero":
        return ld.optim.nero(optax.piecewise_constant_schedule(preset.rate, {steps // 2: 0.1}))
    schedule = optax.cosine_onecycle_schedule(steps, preset.rate, pct_start=0.1)
    return {"adam": optax.adam, "sgd": lambda rate: optax.sgd(rate, momentum=0.9, nesterov=True)}[preset.optimizer](
        schedule
    )


def flops(program, x, y):
    """Floating-point operations of loss and gradient for one batch, as XLA counts them before it optimizes."""
    params, static = eqx.partition(program, ld.trainable(program))
    step = jax.jit(jax.grad(lambda p, x, y: eqx.combine(p, static).loss(x, y, key=jax.random.key(0))))
    counted = step.lower(params, x, y).cost_analysis()
    return float((counted or {}).get("flops", np.nan))


def attack_errors(program, x, y, key):
    """Nominal and adversarial error on the same images, by the paper's protocol (10 steps of 2/255)."""
    found = {"nominal, attacked images": program.error(x, y)}
    for name, radius, norm in (("PGD Linf 8/255", 8 / 255, "inf"), ("PGD L2 127/255", 127 / 255, "2")):
        wrong = 0.0
        for begin in range(0, len(y), 100):
            some_x, some_y = jnp.asarray(x[begin : begin + 100]), jnp.asarray(y[begin : begin + 100])
            attacked = ld.attacks.pgd(program.predict, some_x, some_y, radius=radius, norm=norm, key=key)
            wrong += program.error(np.asarray(attacked), some_y) * len(some_y)
        found[name] = wrong / len(y)
    return found


def evaluate(program, preset, x, y, key):
    """Every figure that is not about training."""
    row = {"test error": program.error(x, y)}
    count = len(y) if preset.attacked is None else preset.attacked
    row |= attack_errors(program, x[:count], y[:count], key)
    if isinstance(program.system, ld.System):
        report = program.certify(x[:1000], y[:1000], key=key)
        row["keeps promise"] = report.claims["exponential.decay"].value
        row["leaves H"] = report.claims["domain.left"].value
    row["error if stopped"] = {t: program.error(x, y, stop=t * program.system.horizon) for t in (0.25, 0.5, 0.75)}
    return row


def print_table(rows, title):
    """The paper's Table 1, one line a method."""
    columns = ("test error", "PGD Linf 8/255", "PGD L2 127/255", "keeps promise")
    print(f"\n{title}, per cent")
    print(" " * 18 + "".join(c.rjust(17) for c in columns) + "examples/s".rjust(12) + "compile s".rjust(11))
    for method, row in rows.items():
        cells = "".join((f"{100 * row[c]:.2f}" if c in row else "").rjust(17) for c in columns)
        print(f"{METHODS[method]:<18}{cells}{row['examples per second']:12.0f}{row['compile seconds']:11.1f}")


def draw(programs, x, y, title, out):
    """Error and potential against stopping time, as in the paper's Figure 3."""
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    import lyapunov_dsl.plot as plot

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for method, program in programs.items():
        label, color = METHODS[method], COLORS[method]
        plot.error_over_time(program, x, y, axes=left, points=8, label=label, color=color)
        if isinstance(program.system, ld.System):
            promise = method == "lyanet"
            plot.potential_over_time(program, x, y, axes=right, label=label, color=color, promise=promise)
    left.set_title(f"{title}: test error if inference stops at t", fontsize=10)
    right.set_title(f"{title}: cross entropy while inference runs", fontsize=10)
    for axes in (left, right):
        axes.legend(fontsize=8)
    figure.savefig(out / "figure_3.png", dpi=90)


def main(name, title):
    """The whole script for one data set."""
    parser = argparse.ArgumentParser(description=f"The five methods of the paper's Table 1 on {title}, and one more.")
    parser.add_argument("--data-dir", type=Path, help="a folder of TensorFlow Datasets or an .npz file")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for everything that is written")
    parser.add_argument("--preset", choices=PRESETS, default="fast")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS)[:5])
    parser.add_argument("--epochs", type=int, help="another number than the preset's")
    parser.add_argument("--width", type=int, help="another width of ResNet-18 than the preset's")
    parser.add_argument("--kappa", type=float, help="another rate than the preset's")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    changed = {k: getattr(options, k) for k in ("epochs", "width", "kappa") if getattr(options, k) is not None}
    preset = dataclasses.replace(PRESETS[options.preset], **changed)
    try:
        dataset = data.load(name, options.data_dir)
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"{name}.py: {error}")
    train = (dataset.train[0][: preset.count], dataset.train[1][: preset.count])
    test = (data.to_float(dataset.test[0][: preset.count]), dataset.test[1][: preset.count])
    shape, batch = train[0].shape[1:], min(preset.batch, len(train[1]))
    augment = data.Augment(flip=preset.augment and not name.startswith("mnist"), crop=4 if preset.augment else 0)
    options.out.mkdir(parents=True, exist_ok=True)
    print(f"{title}, preset {options.preset}: {preset.note}; {len(train[1]):,} images, {preset.epochs} epochs")

    programs, rows = {}, {}
    init_key, fit_key, test_key = jax.random.split(jax.random.key(options.seed), 3)
    per_epoch = len(train[1]) // batch
    for method in options.methods:
        program = make_program(method, preset, shape, dataset.classes, (test[0][0], test[1][0]), init_key)
        if preset.optimizer == "nero":
            params, static = eqx.partition(program, ld.trainable(program))
            program = eqx.combine(ld.optim.balance(params), static)
        print(f"\n{METHODS[method]}:")
        result = ld.fit(
            program, train, augment=augment, optimizer=make_optimizer(preset, preset.epochs * per_epoch),
            epochs=preset.epochs, batch_size=batch, key=fit_key, folder=options.out / method,
        )  # fmt: skip
        seconds = [epoch["seconds"] for epoch in result.history]
        usual = float(np.median(seconds[1:] or seconds))
        operations = flops(program, jnp.asarray(test[0][:batch]), jnp.asarray(test[1][:batch]))
        rows[method] = {
            **evaluate(result.program, preset, *test, test_key),
            "examples per second": per_epoch * batch / usual,
            "compile seconds": max(seconds[0] - usual, 0.0),
            "seconds": sum(seconds),
            "model GFLOP/s": operations * per_epoch / usual / 1e9,
            "peak memory GB": peak_memory(),
            "history": result.history,
        }
        shown = {k: v for k, v in rows[method].items() if k in ("model GFLOP/s", "peak memory GB", "test error")}
        print(", ".join(f"{k} {v:.3g}" for k, v in shown.items()))
        programs[method] = result.program
        settings = {**dataclasses.asdict(dataclasses.replace(preset, measure=None)), "preset": options.preset}
        settings |= {"seed": options.seed, "training images": len(train[1]), "test images": len(test[1])}
        settings["measurement"] = options.preset != "smoke"
        versions = {"lyapunov_dsl": ld.__version__, "jax": jax.__version__, "machine": platform.machine()}
        versions["device"] = str(jax.devices()[0].device_kind)
        text = json.dumps({"settings": settings, "versions": versions, "results": rows}, indent=2)
        (options.out / "results.json").write_text(text + "\n")
    print_table(rows, title if options.preset != "smoke" else f"{title}, a smoke test and no measurement")
    draw(programs, test[0][:1000], test[1][:1000], title, options.out)
    print(f"\nwrote results.json and figure_3.png to {options.out}")


def peak_memory():
    """Of the device where it says so, else of this process so far, in GB."""
    stats = jax.devices()[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024) / 1e9
