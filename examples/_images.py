"""What the image examples share: the six methods, the presets, training, attacks, figures.

Not a script; see `mnist.py`, `fashion_mnist.py`, `cifar10.py` and `cifar100.py`.
"""

import argparse
import contextlib
import dataclasses
import functools
import json
import math
import platform
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
from _folder import folder

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
# Where another optimizer than the preset's is asked for.
LEARNING_RATES = {"nero": 0.01, "adam": 2e-3, "sgd": 0.1}
COLUMNS = ("test error", "PGD Linf 8/255", "PGD L2 127/255", "keeps promise")


# As the figures of docs/images.md were recorded.
TUBE = ld.Trajectory(8, 8)


@dataclasses.dataclass(frozen=True)
class Preset:
    """How large the models are and how they are trained and attacked.

    `width`: channels of the first stage of ResNet-18 (the continuous network has a quarter); `hidden`: rows of A(x);
    `lyanet_batch`: that of both LyaNets, where it is not `batch`; `count`, `tested`, `attacked`: how many images are trained on, tested and
    attacked, all where it is `None`; `dynamics`: `"invariant"` or `"paper"`, the dynamics of the paper's own code;
    `readout`: `"identity"` or `"linear"`, from a state of 16; `measure`: what Monte Carlo samples; `kappa`: the rate, a stage
    in the continuous network; `precision`: inside of the networks.
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
    measure: Any = TUBE
    kappa: float = 2.0
    precision: str = "float32"


PRESETS = {
    "paper": Preset(
        "the paper's training: 120 epochs, Nero at 0.01, a tenth of it from epoch 60 on; 512 states on the sphere", 64, 128,
        120, 128, "nero", 0.01, lyanet_batch=64, measure=ld.Sphere(512),
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
    # Steps of Euler: on the digits the cheapest end-to-end setting that trains as well (docs/benchmarks.md).
    solver, kappa = ld.Solver(diffrax.Euler(), dt=1 / RATE), preset.kappa
    inference = None
    if method == "resnet18":
        system = ld.nn.resnet18(shape, classes, width=preset.width, key=key)
    elif method.startswith("continuous"):
        system = ld.nn.continuous_net(shape, classes, width=max(preset.width // 4, 4), key=key)
    elif preset.dynamics == "paper":
        # That field jumps where its network is 0, which adaptive steps do not survive; its κ is its own.
        inference = solver = ld.Solver(diffrax.Tsit5(), dt=0.1)
        kappa = math.log(15 * math.sqrt(classes))
        system = make_paper_system(preset, shape, classes, key)
    else:
        system = make_system(preset, shape, classes, key)
    objective = {
        "continuous-lyanet": lambda: ld.PathIntegral(),
        "neural-ode": lambda: ld.EndToEnd(solver),
        "lyanet": lambda: ld.MonteCarlo(preset.measure),
        # An invariant field can follow straight paths up to there.
        "flow-matching": lambda: ld.FlowMatching(ld.ClassCorner(0.8 * half_width(preset, classes))),
    }.get(method, ld.EndToEnd)()
    if preset.precision != "float32":
        system = eqx.tree_at(networks, system, replace_fn=lambda m: ld.nn.MixedPrecision(m, preset.precision))
    certificate = ld.Certificate.exponential(loss=ld.cross_entropy, kappa=kappa)
    program = ld.compile(system, certificate, example, objective=objective, solver=inference)
    if preset.optimizer == "nero":
        params, static = eqx.partition(program, ld.trainable(program))
        program = eqx.combine(jax.tree.map(lambda p: ld.optim.balance(p) if p.ndim == 4 else p, params), static)
    return program


def networks(system: Any):
    """What computes in half precision: the state of an ODE and what is computed of it stay in float32. The blocks of
    ResNet-18 round their state."""
    if not isinstance(system, ld.DiscreteSystem):
        return system.input.encoder, system.vector_field.inner
    return system.input, *(step.field if isinstance(step, ld.nn.RungeKuttaStep) else step for step in system.steps)


def half_width(preset, classes):
    """Of the box H. Behind a readout nothing derives it: it is declared."""
    # Room for the promised V(1), as in the other examples.
    return 3.0 if preset.readout == "linear" else 2 * ld.radius_for(ld.cross_entropy, preset.kappa, classes)


def make_system(preset, shape, classes, key):
    """The data-controlled neural ODE: ResNet-18 gives the matrix A(x) inside of dynamics that keep H invariant."""
    encoder_key, field_key, readout_key = jax.random.split(key, 3)
    encoder = ld.nn.ResNet18(shape, preset.hidden**2, width=preset.width, key=encoder_key)
    linear, wide = preset.readout == "linear", half_width(preset, classes)
    size = 16 if linear else classes
    inner = ld.nn.ControlledField(size, preset.hidden, key=field_key)
    return ld.System(
        input=ld.nn.ControlledStart(encoder, size, preset.hidden),
        vector_field=ld.nn.InvariantField(inner, wide, rate=RATE),
        readout=eqx.nn.Linear(size, classes, key=readout_key) if linear else ld.identity,
        domain=ld.Box(-wide, wide),
    )


def make_paper_system(preset, shape, classes, key):
    """The dynamics of the paper's code, but for a gain that stays."""
    encoder_key, field_key = jax.random.split(key)
    encoder = ld.nn.ResNet18(shape, preset.hidden**2, width=preset.width, key=encoder_key)
    # It takes 2 √C for κ to be possible on the whole ball.
    field = ld.nn.PaperField(classes, gain=2.5 * math.sqrt(classes), hidden=preset.hidden, key=field_key)
    start = ld.nn.ControlledStart(encoder, classes, preset.hidden, scale=1.0)
    return ld.System(start, field, domain=ld.Ball(0, 15 * math.sqrt(classes)))


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


def flops(program, x, y, batch):
    """Floating-point operations of loss and gradient for one batch, as XLA counts them before it optimizes."""
    params, static = eqx.partition(program, ld.trainable(program))
    step = jax.jit(jax.grad(lambda p, x, y: eqx.combine(p, static).loss(x, y, key=jax.random.key(0))))
    several = lambda one: jax.ShapeDtypeStruct((batch, *one.shape), one.dtype)
    counted = step.lower(params, several(x), several(y)).cost_analysis()
    return float((counted or {}).get("flops", np.nan))


@functools.cache
def product_flops(precision):
    """Floating-point operations a second of a large matrix product on this device: what a network could reach at most."""
    size = 2048 if jax.default_backend() == "cpu" else 8192
    matrix = jax.random.normal(jax.random.key(0), (size, size), precision)
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
        report = ld.assess(program, (x[:1000], y[:1000]), key=key)
        row["keeps promise"] = report.claims["exponential.decay"].value
        row["leaves H"] = report.claims["domain.left"].value
    row["error if stopped"] = {t: program.error(x, y, stop=t * program.system.horizon) for t in (0.25, 0.5, 0.75)}
    return row


def table(rows, title):
    """The paper's Table 1 in Markdown, a line a method."""
    lines = [f"| {title}, per cent | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for method, row in rows.items():
        cells = [f"{100 * row[column]:.2f}" if column in row else "" for column in COLUMNS]
        lines.append(f"| {METHODS[method]} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw(programs, x, y, title, out):
    """Error and potential against stopping time, as in the paper's Figure 3; returns what is drawn."""
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    import lyapunov_dsl.plot as plot

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for method, program in programs.items():
        label, color = METHODS[method], COLORS[method]
        plot.error_over_time(program, x, y, axes=left, points=8, label=label, color=color, relative=True)
        if isinstance(program.system, ld.System):
            promise = method == "lyanet"
            plot.potential_over_time(program, x, y, axes=right, label=label, color=color, promise=promise)
    left.set_title(f"{title}: test error if inference stops at t", fontsize=10)
    right.set_title(f"{title}: cross entropy while inference runs, median and 90 %", fontsize=10)
    drawn = {}
    for axes, name in ((left, "error"), (right, "median potential")):
        drawn[name] = {line.get_label(): np.asarray(line.get_xydata()).tolist() for line in axes.get_lines()}
        if drawn[name]:
            axes.legend(fontsize=8)
    figure.savefig(out / "figure_3.png", dpi=90)
    return drawn


def main(name, title, preset="fast"):
    """The whole script for one data set."""
    parser = argparse.ArgumentParser(description=f"The five methods of the paper's Table 1 on {title}, and one more.")
    parser.add_argument("--data-dir", type=Path, help="a folder of TensorFlow Datasets or an .npz file")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for everything that is written")
    parser.add_argument("--preset", choices=PRESETS, default=preset)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS)[:5])
    parser.add_argument("--seed", type=int, default=0)
    another = parser.add_argument_group("in place of what the preset says")
    another.add_argument("--epochs", type=positive(int))
    another.add_argument("--width", type=positive(int), help="of ResNet-18")
    another.add_argument("--kappa", type=positive(float))
    another.add_argument("--count", type=positive(int), help="train on the first so many images")
    another.add_argument("--optimizer", choices=LEARNING_RATES)
    another.add_argument("--rate", type=positive(float), help="the learning rate")
    another.add_argument("--dynamics", choices=["invariant", "paper"])
    another.add_argument("--readout", choices=["identity", "linear"], help="of the invariant dynamics")
    another.add_argument("--precision", choices=["float32", "bfloat16"], help="inside of the networks")
    options = parser.parse_args()
    names = ("epochs", "width", "kappa", "count", "optimizer", "rate", "dynamics", "readout", "precision")
    changed = {k: getattr(options, k) for k in names if getattr(options, k) is not None}
    if changed.get("optimizer", PRESETS[options.preset].optimizer) != PRESETS[options.preset].optimizer:
        changed = {"rate": LEARNING_RATES[options.optimizer], **changed}
    preset = dataclasses.replace(PRESETS[options.preset], **changed)
    if preset.readout == "linear" and (preset.dynamics == "paper" or "flow-matching" in options.methods):
        parser.error("--readout linear: not for the paper's dynamics and flow matching, whose state is the logits")
    if preset.dynamics == "paper" and "flow-matching" in options.methods:
        parser.error("--dynamics paper: not for flow matching, whose straight lines those dynamics cannot follow")
    if preset.dynamics == "paper" and options.kappa is not None:
        parser.error("--kappa: not for the paper's dynamics, whose rate is ln(15 √C)")
    try:
        dataset = data.load(name, options.data_dir)
        # Made here and not by the parser: without data nothing is written.
        folder(options.out)
    except (argparse.ArgumentTypeError, ImportError, OSError, ValueError) as error:
        sys.exit(f"{name}.py: {error}")
    train = (dataset.train[0][: preset.count], dataset.train[1][: preset.count])
    test = (data.to_float(dataset.test[0][: preset.tested]), dataset.test[1][: preset.tested])
    print(f"{title}, preset {options.preset}: {preset.note}")
    print(f"{len(train[1]):,} images, {preset.epochs} epochs{''.join(f', {k} {v}' for k, v in changed.items())}")

    settings = {**dataclasses.asdict(dataclasses.replace(preset, measure=None)), "preset": options.preset}
    settings |= {"measure": str(preset.measure), "seed": options.seed, "measurement": preset.count is None}
    settings |= {"training images": len(train[1]), "test images": len(test[1])}
    versions = {"lyapunov_dsl": ld.__version__, "jax": jax.__version__, "machine": platform.machine()}
    versions["device"] = str(jax.devices()[0].device_kind)
    file = options.out / "results.json"
    rows = earlier(file, settings, name)
    programs = {}
    for method in options.methods:
        print(f"\n{METHODS[method]}:")
        try:
            programs[method], row = run(method, preset, dataset, train, test, options.seed, options.out / method)
        except KeyboardInterrupt as error:
            sys.exit(f"\n{name}.py: {error}")
        row["model FLOP use"] = row["model GFLOP/s"] * 1e9 / product_flops(preset.precision)
        rows[method] = row
        print(
            f"test error {100 * row['test error']:.2f} %, {row['examples per second']:.0f} examples/s, compiled for "
            f"{row['compile seconds']:.1f} s, peak memory so far {row['peak memory so far, GB']:.2f} GB, "
            f"{row['model GFLOP/s']:.3g} GFLOP/s, {100 * row['model FLOP use']:.0f} % of a large {preset.precision} matrix product's"
        )
        record = {"settings": settings, "versions": versions, "results": rows}
        file.write_text(json.dumps(record, indent=2) + "\n")
    if preset.count is not None:
        title += ", a smoke test and no measurement"
    rows = {method: rows[method] for method in METHODS if method in rows}
    (options.out / "table_1.md").write_text(table(rows, title))
    print("\n" + table(rows, title))
    figure = draw(programs, test[0][:1000], test[1][:1000], title, options.out)
    record = {"settings": settings, "versions": versions, "results": rows, "figure_3": figure}
    file.write_text(json.dumps(record, indent=2) + "\n")
    print(f"wrote results.json, table_1.md and figure_3.png to {options.out}")


def earlier(file, settings, name):
    """The results of an earlier call with other methods. Other settings in the same folder would be taken for these."""
    try:
        record = json.loads(file.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        sys.exit(f"{name}.py: {file} cannot be read ({error}); move it away or give another --out")
    # As JSON has them: a tuple is a list there.
    now, before = json.loads(json.dumps(settings)), record["settings"]
    other = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    if other:
        said = ", ".join(f"{key} {before.get(key)!r} and not {now.get(key)!r}" for key in other)
        sys.exit(f"{name}.py: {file} is of a run with {said}; give another --out")
    return record["results"]


def positive(kind):
    """The type of an argument that has to be positive."""

    def parse(text):
        number = kind(text)
        if not 0 < number < math.inf:
            raise ValueError(text)
        return number

    parse.__name__ = f"positive {kind.__name__}"
    return parse


def run(method, preset, dataset, train, test, seed, folder):
    """Trains, tests and attacks one method."""
    init_key, fit_key, test_key = jax.random.split(jax.random.key(seed), 3)
    batch = ("lyanet" in method and preset.lyanet_batch) or preset.batch
    batch = min(batch, len(train[1]))
    per_epoch = len(train[1]) // batch
    program = make_program(method, preset, train[0].shape[1:], dataset.classes, (test[0][0], test[1][0]), init_key)
    # Mirrored digits are others.
    augment = data.Augment(flip=preset.augment and dataset.name != "mnist", crop=4 if preset.augment else 0)
    with compiling() as compiled:
        result = ld.fit(
            program, train, augment=augment, optimizer=make_optimizer(preset, preset.epochs * per_epoch),
            epochs=preset.epochs, batch_size=batch, key=fit_key, folder=folder,
        )  # fmt: skip
    memory = peak_memory()
    # The first epoch compiles.
    seconds = [epoch["seconds"] for epoch in result.history]
    usual = float(np.median(seconds[1:])) if len(seconds) > 1 else max(seconds[0] - sum(compiled), 1e-9)
    operations = flops(program, test[0][0], test[1][0], batch)
    return result.program, {
        **evaluate(result.program, preset, test[0], test[1], test_key),
        "examples per second": per_epoch * batch / usual,
        "compile seconds": sum(compiled),
        "seconds": sum(seconds),
        "model GFLOP/s": operations * per_epoch / usual / 1e9,
        "peak memory so far, GB": memory,
        "history": result.history,
    }


@contextlib.contextmanager
def compiling():
    """A list that grows by the seconds of everything that XLA compiles."""
    seconds = []

    def listen(event, duration_secs, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            seconds.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seconds
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def peak_memory():
    """The most that the device had in use, where it says so, else that this process had resident, so far, in GB."""
    used = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    if used is None:
        try:
            import resource
        except ImportError:  # Windows
            return math.nan
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return used / 1e9
