"""Bounds of residuals: how tight, and how long they take, beside auto_LiRPA in one process.

    python benchmarks/bounds.py --networks DIR                  # docs/results/bounds.json, half an hour
    python benchmarks/bounds.py --rounds 1 --batch 8 --examples 2 --untrained    # a smoke test, no measurement

For fields f of several widths, depths and activations, V = cross entropy of the first class and g = dV/dt + V along f:

- tightness: for 64 boxes, (upper bound - g(center)) / (largest g found - g(center)), the median over boxes; the largest is that of
  4,000 samples and 60 steps of sign-gradient ascent from the best 24;
- time per box of the upper bound, compiled and warm, in batches, the two engines in turn, on the same cores.

DIR holds `net_k10.npz` and its likes: x, W0, b0, W1, b1, W2, b2; without it only networks drawn here are bounded. auto_LiRPA, which
needs PyTorch, is no dependency: where it is not installed, its columns stay empty. Version 0.7.1, from
https://github.com/Verified-Intelligence/auto_LiRPA, works with PyTorch 2.13, which its setup does not allow, if its folder is on
PYTHONPATH and appdirs, graphviz, ninja, packaging, pyyaml, sortedcontainers and tqdm are installed.
Its CROWN is given g as softmax, log(sum(exp)) and linear layers, the context folded into a bias, and asked for upper bounds only.
It does not count rounding, which is why it may look tighter in small boxes in float32. "mixed" is a float32 function with ranges in
float64, as it is bounded where JAX has float64 enabled.

Then the digits: bounds of the convolutional encoder over boxes of pixels, and of the residual of the program over boxes of time and
state along trajectories, in both precisions. Their widths tend to 0 with the boxes, in floating point down to what rounding may do.
"""

import argparse
import functools
import importlib
import importlib.util
import itertools
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import common
import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from digits_folds import in_float64

import lyapunov_dsl as ld
from lyapunov_dsl import bounds

WIDTHS = (0.01, 0.05, 0.1, 0.5, 1.0)
SIZES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 0.0)
METHODS = ("ibp", "crown-ibp", "crown")
# Name: activation, state, widths of the hidden layers, factor on the weights' usual size.
DRAWN = {
    "relu_k10": ("relu", 10, (64, 64), 1.0),
    "softplus_k10": ("softplus", 10, (64, 64), 1.0),
    "logistic_k10": ("logistic", 10, (64, 64), 2.0),
    "tanh_k5_deep": ("tanh", 5, (64, 64, 64), 1.5),
    "tanh_k10_wide": ("tanh", 10, (128, 128), 1.0),
    "relu_k3_narrow": ("relu", 3, (32, 32), 2.0),
}
ACTIVATIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu, "softplus": jax.nn.softplus, "logistic": jax.nn.sigmoid}
# The type of the function, and whether JAX has float64: the ranges of the engine are in the widest type that it has.
PRECISIONS = {"float32": (np.float32, False), "mixed": (np.float32, True), "float64": (np.float64, True)}
LIRPA = importlib.util.find_spec("auto_LiRPA") is not None and importlib.util.find_spec("torch") is not None


def networks(folder: Path | None) -> dict[str, dict[str, Any]]:
    """Layers, context, activation and half-width of the domain, by name; float64."""
    found = {}
    for name in ("net_k10", "net_k2", "rand_k10", "rand_k2"):
        if folder is not None:
            data = np.load(folder / f"{name}.npz")
            layers = [(data[f"W{i}"], data[f"b{i}"]) for i in range(3)]
            radius = 2.0 if name.endswith("k2") else 1.5
            found[name] = {"layers": layers, "x": data["x"], "activation": "tanh", "radius": radius}
    for seed, (name, (activation, k, hidden, gain)) in enumerate(DRAWN.items()):
        rng = np.random.default_rng(seed)
        sizes = (k + 16, *hidden, k)
        layers = []
        for ins, outs in zip(sizes, sizes[1:], strict=False):
            limit = gain / np.sqrt(ins)
            layers.append((rng.uniform(-limit, limit, (outs, ins)), rng.uniform(-limit, limit, outs)))
        found[name] = {"layers": layers, "x": rng.normal(size=16), "activation": activation, "radius": 1.5}
    return found


def residual(network: dict[str, Any], dtype: Any) -> Callable[[Any], Any]:
    """g of one state."""
    layers, x = jax.tree.map(lambda v: jnp.asarray(v, dtype), (network["layers"], network["x"]))
    activation = ACTIVATIONS[network["activation"]]

    def field(state: Any) -> Any:
        hidden = jnp.concatenate([state, x])
        for weight, bias in layers[:-1]:
            hidden = activation(weight @ hidden + bias)
        return layers[-1][0] @ hidden + layers[-1][1]

    def g(state: Any) -> Any:
        potential = lambda s: jax.nn.logsumexp(s) - s[0]
        value, rate = jax.jvp(potential, (state,), (field(state),))
        return rate + value

    return g


def centers(network: dict[str, Any], count: int, dtype: Any) -> np.ndarray:
    k, reach = len(network["layers"][-1][1]), 0.7 * network["radius"]
    return np.random.default_rng(1).uniform(-reach, reach, (count, k)).astype(dtype)


def found_most(g: Callable, center: np.ndarray, r: float) -> np.ndarray:
    """The largest g that a search finds in each box."""
    values = jax.jit(jax.vmap(jax.vmap(g)))
    gradients = jax.jit(jax.vmap(jax.vmap(jax.grad(g))))
    inside = np.random.default_rng(0).uniform(-r, r, (len(center), 4000, center.shape[1])).astype(center.dtype)
    low, high = center[:, None] - center.dtype.type(r), center[:, None] + center.dtype.type(r)
    at = np.clip(center[:, None] + inside, low, high)
    found = np.asarray(values(at))
    best, step = found.max(1), r / 2
    order = np.argsort(-found, axis=1)[:, :24]
    at = np.take_along_axis(at, order[..., None], 1)
    for _ in range(60):
        at = np.clip(at + (step * np.sign(gradients(at))).astype(center.dtype), low, high)
        best, step = np.maximum(best, np.asarray(values(at)).max(1)), step * 0.93
    return best


def ours(g: Callable, method: Any) -> Callable[[Any, Any], Any]:
    """Upper bounds of a batch of boxes, compiled; 64 at a time, whose coefficients fit into the cache."""
    upper = lambda box: bounds.bound(g, bounds.Box(*box), method=method).upper
    return jax.jit(lambda low, high: jax.lax.map(upper, (low, high), batch_size=min(64, len(low))))


def theirs(network: dict[str, Any], dtype: Any) -> Callable[[Any, Any], Any]:
    """The same by auto_LiRPA's CROWN, with its softmax rule; a module for each size of batch."""
    import torch  # pyright: ignore[reportMissingImports]
    from auto_LiRPA import BoundedModule, BoundedTensor, PerturbationLpNorm  # pyright: ignore[reportMissingImports]

    kind = torch.float64 if dtype == np.float64 else torch.float32
    # Its tables of tangent points are of the default type.
    torch.set_default_dtype(kind)
    functions = {
        "tanh": torch.tanh,
        "relu": torch.relu,
        # Its own softplus has no planes.
        "softplus": lambda x: torch.log(1 + torch.exp(x)),
        "logistic": torch.sigmoid,
    }
    activation = functions[network["activation"]]
    tensor = lambda v: torch.tensor(np.asarray(v), dtype=kind)

    class Residual(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linears = torch.nn.ModuleList()
            k = len(network["layers"][-1][1])
            for index, (weight, bias) in enumerate(network["layers"]):
                if index == 0:
                    weight, bias = weight[:, :k], bias + weight[:, k:] @ network["x"]
                linear = torch.nn.Linear(weight.shape[1], weight.shape[0])
                linear.weight.data, linear.bias.data = tensor(weight), tensor(bias)
                self.linears.append(linear)

        def forward(self, state: Any) -> Any:
            hidden = state
            for linear in list(self.linears)[:-1]:
                hidden = activation(linear(hidden))
            f = self.linears[-1](hidden)
            p = torch.softmax(state, -1)
            lse = torch.log(torch.exp(state).sum(-1, keepdim=True))
            return (p * f).sum(-1, keepdim=True) - f[:, 0:1] + lse - state[:, 0:1]

    @functools.cache
    def module(count: int, k: int) -> Any:
        return BoundedModule(Residual().to(kind), torch.zeros(count, k, dtype=kind), bound_opts={"softmax": "lse"})

    def upper(low: Any, high: Any) -> Any:
        low, high = tensor(low), tensor(high)
        region = PerturbationLpNorm(norm=np.inf, x_L=low, x_U=high)
        state = BoundedTensor((low + high) / 2, region)
        with torch.no_grad():
            _, found = module(*low.shape).compute_bounds(x=(state,), method="CROWN", bound_lower=False)
        return found.numpy()[:, 0]

    return upper


def tightness(network: dict[str, Any], dtype: Any, engines: dict[str, Callable]) -> dict[str, list[float]]:
    """The median ratio of every engine at every half-width."""
    g, center = residual(network, dtype), centers(network, 64, dtype)
    at = np.asarray(jax.vmap(g)(center))
    rows: dict[str, list[float]] = {name: [] for name in engines}
    for r in WIDTHS:
        most = found_most(g, center, r)
        low, high = center - dtype(r), center + dtype(r)
        for name, engine in engines.items():
            upper = np.asarray(engine(low, high))
            if name != "auto_LiRPA" and not (upper >= most).all():
                raise AssertionError(f"{name} at half-width {r}: a state exceeds the bound by {(most - upper).max()}")
            rows[name].append(float(np.median((upper - at) / (most - at))))
    return rows


def times(
    network: dict[str, Any], dtype: Any, engines: dict[str, Callable], batch: int, rounds: int
) -> dict[str, float]:
    """Microseconds per box, the median over rounds in which every engine has its turn."""
    center = centers(network, batch, dtype)
    low, high = center - dtype(0.1), center + dtype(0.1)
    taken: dict[str, list[float]] = {name: [] for name in engines}
    for number in range(rounds + 1):
        for name, engine in engines.items():
            calls = 1 if name == "auto_LiRPA" else 5
            # What the one leaves in caches and threads is not the other's to pay.
            jax.block_until_ready(engine(low, high))
            begin = time.perf_counter()
            for _ in range(calls):
                jax.block_until_ready(engine(low, high))
            if number:
                taken[name].append((time.perf_counter() - begin) / calls / batch * 1e6)
    return {name: float(np.median(row)) for name, row in taken.items()}


def compare(options: argparse.Namespace, dtype: Any) -> dict[str, Any]:
    """Tightness and time of every network."""
    results = {}
    for name, network in networks(options.networks).items():
        engines = {method: ours(residual(network, dtype), method) for method in METHODS}
        if options.lirpa:
            engines["auto_LiRPA"] = theirs(network, dtype)
        row: dict[str, Any] = {"half-widths": WIDTHS, "ratio": tightness(network, dtype, engines), "us per box": {}}
        timed = {key: engines[key] for key in engines if key != "crown-ibp"}
        for batch in options.batch:
            row["us per box"][str(batch)] = times(network, dtype, timed, batch, options.rounds)
        results[name] = row
        print(f"\n{name}", *report(row), sep="\n", flush=True)
    return results


def report(row: dict[str, Any]) -> list[str]:
    """Lines of text about one network."""
    lines = [f"  {'half-width':12}" + "".join(f"{r:>9}" for r in WIDTHS)]
    lines += [f"  {name:12}" + "".join(f"{v:9.3f}" for v in ratios) for name, ratios in row["ratio"].items()]
    for batch, found in row["us per box"].items():
        text = ", ".join(f"{name} {value:.1f}" for name, value in found.items())
        times_faster = f"; {found['auto_LiRPA'] / found['crown']:.1f} times" if "auto_LiRPA" in found else ""
        lines.append(f"  us per box, batch {batch}: {text}{times_faster}")
    return lines


def digits(options: argparse.Namespace) -> dict[str, Any]:
    """Widths of the bounds of the digits program, by part, precision and method."""
    images, classes = common.load()
    program = ld.compile(common.make_system(jax.random.key(0)), common.certificate(), example=(images[0], classes[0]))
    if not options.untrained:
        _, _, step = common.make_step(program, optax.adam(3e-3))
        program = common.train(program, step, optax.adam(3e-3), images, classes, epochs=20, seed=0)
    images, classes = images[: options.examples], classes[: options.examples]
    # A state on the trajectory of every image, each at a time of its own.
    times = np.linspace(0.1, 0.9, len(images), dtype=np.float32)
    paths = program.trajectory(images, saveat=diffrax.SaveAt(ts=jnp.asarray(times))).ys
    inputs = (images, times, np.asarray(paths)[np.arange(len(images)), np.arange(len(images))])
    results: dict[str, Any] = {"trained": not options.untrained, "half-widths": SIZES}
    for precision, (dtype, x64) in PRECISIONS.items():
        with jax.enable_x64(x64):
            same = in_float64(program) if dtype == np.float64 else program
            images, times, states = (v.astype(dtype) for v in inputs)
            for part, (function, center, fixed) in parts(same, images, times, states, classes).items():
                found = widths(function, center, fixed)
                results.setdefault(part, {})[precision] = found
                print(f"\ndigits, {part}, {precision}\n  {'half-width':16}" + "".join(f"{r:>9.0e}" for r in SIZES))
                for name, row in found.items():
                    print(f"  {name:16}" + "".join(f"{v:9.1e}" for v in row), flush=True)
    return results


def parts(program: ld.Program, images: Any, times: Any, states: Any, classes: Any) -> dict[str, tuple]:
    """What is bounded: a function of one example, centers of the boxes of what varies, and what is fixed."""
    condition = program.condition
    context = jax.jit(jax.vmap(lambda image: condition.continuous.input(image).context))(images)

    def residual_of(t: Any, state: Any, context: Any, label: Any) -> Any:
        point = condition.point(ld.Start(state, context), label)
        return condition.residuals(t, state, point)["exponential"]

    encoder = lambda image: condition.continuous.input(image).context
    return {"encoder": (encoder, (images,), ()), "residual": (residual_of, (times, states), (context, classes))}


def widths(function: Callable, center: tuple, fixed: tuple, samples: int = 500) -> dict[str, list[float]]:
    """The largest width over outputs, the median over examples, for every half-width. Raises where a sampled point, half of them
    corners, lies outside, and where a smaller box has wider bounds."""
    values = jax.jit(jax.vmap(jax.vmap(function, (0,) * len(center) + (None,) * len(fixed))))
    rows: dict[str, list[float]] = {name: [] for name in (*METHODS, "of samples")}
    engines = {name: jax.jit(jax.vmap(functools.partial(bound_of, function, name))) for name in METHODS}
    rng = np.random.default_rng(0)
    median = lambda low, high: float(np.median((high - low).reshape(len(low), -1).max(axis=1)))
    for r in SIZES:
        low = tuple(v - v.dtype.type(r) for v in center)
        high = tuple(v + v.dtype.type(r) for v in center)
        at = []
        for v, least, most in zip(center, low, high, strict=True):
            share = rng.uniform(-1, 1, (len(v), samples, *v.shape[1:]))
            share[:, ::2] = np.sign(share[:, ::2])
            at.append(np.clip(v[:, None] + (r * share).astype(v.dtype), least[:, None], most[:, None]))
        found = np.asarray(values(*at, *fixed), np.float64)
        rows["of samples"].append(median(found.min(axis=1), found.max(axis=1)))
        for name, engine in engines.items():
            lower, upper = (np.asarray(v, np.float64)[:, None] for v in engine(low, high, fixed))
            if not ((lower <= found) & (found <= upper)).all():
                raise AssertionError(f"{name} at half-width {r}: a sampled point lies outside of the bounds")
            rows[name].append(median(lower, upper))
    for name in METHODS:
        if any(after > 1.01 * before for before, after in itertools.pairwise(rows[name])):
            raise AssertionError(f"{name}: bounds of a smaller box are wider: {rows[name]}")
    return rows


def bound_of(function: Callable, method: Any, low: tuple, high: tuple, fixed: tuple) -> tuple[Any, Any]:
    """Bounds of one example over its boxes."""
    regions = map(bounds.Box, low, high)
    found = bounds.bound(lambda *v: function(*v, *fixed), *regions, method=method)
    return found.lower, found.upper


def main() -> None:
    parser = argparse.ArgumentParser(description="Tightness and time of bounds, beside auto_LiRPA.")
    parser.add_argument("--networks", type=Path, default=None, help="a folder with net_k10.npz and its likes")
    parser.add_argument("--rounds", type=int, default=7, help="of timing, every engine once in each")
    parser.add_argument("--batch", type=int, nargs="*", default=[64, 1024], help="boxes that are bounded at once")
    parser.add_argument("--precision", nargs="*", choices=tuple(PRECISIONS), default=["float32", "float64"])
    parser.add_argument("--no-lirpa", action="store_true", help="without auto_LiRPA also where it is installed")
    parser.add_argument("--examples", type=int, default=16, help="images of the digits; 0 leaves the digits out")
    parser.add_argument("--untrained", action="store_true", help="the digits program at initialization")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    options.lirpa = LIRPA and not options.no_lirpa
    record: dict[str, Any] = {"environment": common.environment(), "rounds": options.rounds}
    if options.lirpa:
        found = importlib.import_module("auto_LiRPA").__version__
        record["environment"]["versions"] |= {"torch": version("torch"), "auto_LiRPA": found}
    for precision in options.precision:
        dtype, x64 = PRECISIONS[precision]
        with jax.enable_x64(x64):
            print(f"\n{precision}")
            record[precision] = compare(options, dtype)
    if options.examples:
        record["digits"] = digits(options)
    common.write(options.out, "bounds", record)


if __name__ == "__main__":
    main()
