"""What the image examples share: the six methods, the presets, training, attacks, figures.

Not a script; see `mnist.py`, `fashion_mnist.py`, `cifar10.py` and `cifar100.py`.
"""

import argparse
import dataclasses
import json
import platform
import resource
import sys
import time
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
    `lyanet_batch`: where it is not `batch`; `count`, `tested`, `attacked`: how many images are trained on, tested and
    attacked, all where it is `None`; `dynamics`: `"invariant"` or `"paper"`, the dynamics of the paper's own code;
    `readout`: `"identity"` or `"linear"`, from a state of 16; `measure`: what Monte Carlo samples.
    """

    note: str
    width: int
    hidden: int
    epochs: int
    batch: int
    optimizer: str
    rate: float
    lyanet_batch: int | None = None
    augment: bool = True
    count: int | None = None
    tested: int | None = None
    attacked: int | None = 1000
    dynamics: str = "invariant"
    readout: str = "identity"
    measure: Any = None
    kappa: float = 2.0
    precision: str = "float32"


PRESETS = {
    "paper": Preset(
        "the paper's setting: its dynamics, 120 epochs, Nero at 0.01, a tenth of it from epoch 60 on", 64, 128, 120, 128,
        "nero", 0.01, lyanet_batch=64, dynamics="paper", measure=ld.Sphere(512),
    ),
    "fast": Preset("our own setting for a GPU, not measured yet: 30 epochs, one cycle of Adam", 64, 128, 30, 128, "adam", 2e-3),
    "small": Preset("small models for a CPU: 5 epochs, one cycle of Adam", 8, 32, 5, 128, "adam", 3e-3, augment=False),
    "smoke": Preset(
        "no measurement: a small width, few images, two epochs", 16, 32, 2, 64, "adam", 3e-3, count=2000, tested=2000,
        attacked=100,
    ),
}  # fmt: skip


def make_program(method, preset, shape, classes, example, key):
    """One of the methods as a program; the last three share one network."""
    certificate = ld.Certificate.exponential(loss=ld.cross_entropy, kappa=preset.kappa)
    # Steps of Euler: on the digits the cheapest end-to-end setting that trains as well (docs/benchmarks.md).
    objective = {
        "resnet18": ld.EndToEnd(),
        "continuous": ld.EndToEnd(),
        "continuous-lyanet": ld.PathIntegral(),
        "neural-ode": ld.EndToEnd(ld.Solver(diffrax.Euler(), dt=1 / RATE)),
        "lyanet": ld.MonteCarlo(preset.measure),
    }
    if method == "resnet18":
        system = ld.nn.resnet18(shape, classes, width=preset.width, key=key)
    elif method.startswith("continuous"):
        system = ld.nn.continuous_net(shape, classes, width=max(preset.width // 4, 4), key=key)
    else:
        system, half_width = make_system(preset, shape, classes, key)
        # An invariant field can follow straight paths up to there.
        objective["flow-matching"] = ld.FlowMatching(ld.ClassCorner(0.8 * half_width))
    if preset.precision != "float32":
        # The state, the potential and the residuals stay in float32.
        discrete = isinstance(system, ld.DiscreteSystem)
        parts = lambda s: (s.input, *s.steps) if discrete else (s.input.encoder, s.vector_field.inner)
        system = eqx.tree_at(parts, system, replace_fn=lambda m: ld.nn.MixedPrecision(m, preset.precision))
    program = ld.compile(system, certificate, example, objective=objective[method])
    if preset.optimizer == "nero":
        params, static = eqx.partition(program, ld.trainable(program))
        program = eqx.combine(jax.tree.map(lambda p: ld.optim.balance(p) if p.ndim == 4 else p, params), static)
    return program


def make_system(preset, shape, classes, key):
    """The data-controlled neural ODE, and how far its states reach."""
    encoder_key, field_key, readout_key = jax.random.split(key, 3)
    encoder = ld.nn.ResNet18(shape, preset.hidden**2, width=preset.width, key=encoder_key)
    if preset.dynamics == "paper":
        # As in that code, but for a gain that stays: the least that allows κ on the whole ball at ten classes is 6.3.
        field = ld.nn.PaperField(classes, gain=8.0, hidden=preset.hidden, key=field_key)
        start = ld.nn.ControlledStart(encoder, classes, preset.hidden, scale=1.0)
        return ld.System(start, field, domain=ld.Ball(15 * classes**0.5)), 15.0
    if preset.readout == "linear":
        # Nothing derives H behind a readout: it is declared.
        size, half_width, readout = 16, 3.0, eqx.nn.Linear(16, classes, key=readout_key)
    else:
        # Room for the promised V(1), as in the other examples.
        size, half_width, readout = classes, 2 * ld.radius_for(ld.cross_entropy, preset.kappa, classes), ld.identity
    inner = ld.nn.ControlledField(size, preset.hidden, key=field_key)
    system = ld.System(
        input=ld.nn.ControlledStart(encoder, size, preset.hidden),
        vector_field=ld.nn.InvariantField(inner, half_width, rate=RATE),
        readout=readout,
        domain=ld.Box(-half_width, half_width),
    )
    return system, half_width


def make_optimizer(preset, steps):
    """Nero as in the paper's code, or Adam or SGD over one cycle."""
    if preset.optimizer == "nero":
        # There it has β = 0.9, and keeps the kernels of convolutions balanced alone.
        schedule = optax.piecewise_constant_schedule(preset.rate, {steps // 2: 0.1})
        kinds: Any = {"kernel": ld.optim.nero(schedule, 0.9), "other": ld.optim.nero(schedule, 0.9, constraints=False)}
        return optax.partition(
            kinds, lambda params: jax.tree.map(lambda p: "kernel" if p.ndim == 4 else "other", params)
        )
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


def product_flops(precision):
    """Floating-point operations a second of a large matrix product on this device: what a network could reach at most."""
    size = 2048 if jax.default_backend() == "cpu" else 8192
    matrix = jnp.ones((size, size), precision)
    multiply = jax.jit(jnp.matmul).lower(matrix, matrix).compile()
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        multiply(matrix, matrix).block_until_ready()
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / min(seconds)


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


def main(name, title, preset="fast"):
    """The whole script for one data set."""
    parser = argparse.ArgumentParser(description=f"The five methods of the paper's Table 1 on {title}, and one more.")
    parser.add_argument("--data-dir", type=Path, help="a folder of TensorFlow Datasets or an .npz file")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for everything that is written")
    parser.add_argument("--preset", choices=PRESETS, default=preset)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS)[:5])
    parser.add_argument("--seed", type=int, default=0)
    another = parser.add_argument_group("in place of what the preset says")
    another.add_argument("--epochs", type=int)
    another.add_argument("--width", type=int, help="of ResNet-18")
    another.add_argument("--kappa", type=float)
    another.add_argument("--count", type=int, help="train on the first so many images")
    another.add_argument("--optimizer", choices=["nero", "adam", "sgd"])
    another.add_argument("--rate", type=float, help="the learning rate")
    another.add_argument("--dynamics", choices=["invariant", "paper"])
    another.add_argument("--readout", choices=["identity", "linear"], help="of the invariant dynamics")
    another.add_argument("--precision", choices=["float32", "bfloat16"], help="inside of the networks")
    options = parser.parse_args()
    names = ("epochs", "width", "kappa", "count", "optimizer", "rate", "dynamics", "readout", "precision")
    changed = {k: getattr(options, k) for k in names if getattr(options, k) is not None}
    preset = dataclasses.replace(PRESETS[options.preset], **changed)
    if preset.readout == "linear" and (preset.dynamics == "paper" or "flow-matching" in options.methods):
        parser.error("--readout linear: not for the paper's dynamics and flow matching, whose state is the logits")
    try:
        dataset = data.load(name, options.data_dir)
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"{name}.py: {error}")
    train = (dataset.train[0][: preset.count], dataset.train[1][: preset.count])
    test = (data.to_float(dataset.test[0][: preset.tested]), dataset.test[1][: preset.tested])
    options.out.mkdir(parents=True, exist_ok=True)
    print(f"{title}, preset {options.preset}: {preset.note}")
    print(f"{len(train[1]):,} images, {preset.epochs} epochs{''.join(f', {k} {v}' for k, v in changed.items())}")

    settings = {**dataclasses.asdict(dataclasses.replace(preset, measure=None)), "preset": options.preset}
    settings |= {"measure": str(preset.measure), "seed": options.seed, "measurement": options.preset != "smoke"}
    settings |= {"training images": len(train[1]), "test images": len(test[1])}
    versions = {"lyapunov_dsl": ld.__version__, "jax": jax.__version__, "machine": platform.machine()}
    versions["device"] = str(jax.devices()[0].device_kind)
    programs, rows, at_most = {}, {}, product_flops(preset.precision)
    for method in options.methods:
        print(f"\n{METHODS[method]}:")
        programs[method], rows[method] = run(method, preset, dataset, train, test, options.seed, options.out / method)
        row = rows[method]
        row["model FLOP use"] = row["model GFLOP/s"] * 1e9 / at_most
        print(
            f"test error {100 * row['test error']:.2f} %, {row['examples per second']:.0f} examples/s, compiled in "
            f"{row['compile seconds']:.1f} s, peak memory so far {row['peak memory GB']:.2f} GB, {row['model GFLOP/s']:.3g} GFLOP/s, "
            f"{100 * row['model FLOP use']:.0f} % of a large {preset.precision} matrix product's"
        )
        text = json.dumps({"settings": settings, "versions": versions, "results": rows}, indent=2)
        (options.out / "results.json").write_text(text + "\n")
    print_table(rows, title if options.preset != "smoke" else f"{title}, a smoke test and no measurement")
    draw(programs, test[0][:1000], test[1][:1000], title, options.out)
    print(f"\nwrote results.json and figure_3.png to {options.out}")


def run(method, preset, dataset, train, test, seed, folder):
    """Trains, tests and attacks one method."""
    init_key, fit_key, test_key = jax.random.split(jax.random.key(seed), 3)
    batch = (method == "lyanet" and preset.lyanet_batch) or preset.batch
    batch = min(batch, len(train[1]))
    per_epoch = len(train[1]) // batch
    program = make_program(method, preset, train[0].shape[1:], dataset.classes, (test[0][0], test[1][0]), init_key)
    # Mirrored digits are others.
    augment = data.Augment(flip=preset.augment and dataset.name != "mnist", crop=4 if preset.augment else 0)
    result = ld.fit(
        program, train, augment=augment, optimizer=make_optimizer(preset, preset.epochs * per_epoch),
        epochs=preset.epochs, batch_size=batch, key=fit_key, folder=folder,
    )  # fmt: skip
    # The first epoch compiles; the median of the others is the time of an epoch.
    seconds = [epoch["seconds"] for epoch in result.history]
    usual = float(np.median(seconds[1:] or seconds))
    operations = flops(program, jnp.asarray(test[0][:batch]), jnp.asarray(test[1][:batch]))
    return result.program, {
        **evaluate(result.program, preset, test[0], test[1], test_key),
        "examples per second": per_epoch * batch / usual,
        "compile seconds": max(seconds[0] - usual, 0.0),
        "seconds": sum(seconds),
        "model GFLOP/s": operations * per_epoch / usual / 1e9,
        "peak memory GB": peak_memory(),
        "history": result.history,
    }


def peak_memory():
    """Of the device where it says so, else of this process so far, in GB."""
    stats = jax.devices()[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024) / 1e9
