"""An attack on the bounds: random functions and their derivatives, at extreme scales and on odd boxes, against what they evaluate to.

    python benchmarks/attack_bounds.py                      # 2,000 functions, more than 10^7 values
    python benchmarks/attack_bounds.py --functions 150      # fewer; the first ones are the same

Every function is bounded on a batch of boxes by one of the methods, evaluated by NumPy, and every fourth by a
compiled program where that has at most 1,500 operations (XLA takes minutes for some that have ten thousand). It is
evaluated at their corners, on their faces and inside, compiled and operation by operation. Counted are values outside
of their bounds (`unsound`), exceptions that are not documented (`tracebacks`), and functions that took more than 20 s
of processor time to bound (`hangs`); each has to be 0, and each is listed with its number, by which `--only` repeats
it. Refused functions (`UnknownPrimitive`) are counted by themselves, and so are finite ends, so that a suite in which
nothing is bounded is seen. With `--resume` it goes on from what the record has.
"""

import argparse
import collections
import contextlib
import json
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lyapunov_dsl import _logsumexp as own, bounds
from lyapunov_dsl._interpret import evaluated
from lyapunov_dsl._jaxprs import equations

OUT = Path(__file__).resolve().parent.parent / "docs" / "results" / "attack_bounds.json"
# The type of the function, and whether JAX has float64 enabled.
KINDS = [("float32", False), ("float32", True), ("float64", True)]
METHODS = ("ibp", "crown-ibp", "crown")
BOXES, POINTS, SECONDS, COMPILED = 16, 160, 20.0, 1500
UNSOUND, TRACEBACK, HANG = "unsound", "tracebacks", "hangs"

UNARY: list[Callable[[Any], Any]] = [
    jnp.exp, jnp.exp2, jnp.expm1, jnp.log, jnp.log1p, jnp.sqrt, lax.rsqrt, jnp.tanh, jax.nn.sigmoid, lax.erf, lax.erfc,
    jnp.arctan, jnp.sin, jnp.cos,
    jnp.abs, jnp.square, jnp.floor, jnp.ceil, jnp.round, jnp.sign, jax.nn.relu, jax.nn.softplus, jax.nn.silu, jax.nn.gelu, jax.nn.elu,
    lambda x: jax.nn.gelu(x, approximate=False), lambda x: x**3, lambda x: x**-2, lambda x: 1 / x, lambda x: jnp.abs(x) ** 0.3,
    lambda x: jnp.log1p(x * x), lambda x: jnp.sqrt(1 + x * x), lambda x: 1 / (1 + x * x), lambda x: jnp.clip(x, -1, 2), lambda x: -x,
    lambda x: jnp.where(x > 0, x, x * x), lambda x: jnp.where(jnp.abs(x) < 1, x, jnp.sign(x)),
    jax.nn.softmax, jax.nn.log_softmax, lambda x: jax.nn.logsumexp(x) + 0 * x, lambda x: jax.nn.logsumexp(x) - x,
    lambda x: jnp.full_like(x, 1) * own.logsumexp(own.margins(x, jnp.array(0))), lambda x: x * own.softmax_mean(x, x),
    lambda x: jnp.max(x) - x, lambda x: jnp.min(x) * x, lambda x: jnp.where(jnp.argmax(x) == 1, x, 2 * x), jnp.cumsum, lambda x: x[::-1],
    lambda x: x - jnp.mean(x), lambda x: x / jnp.sqrt(1e-3 + jnp.mean(x * x)), lambda x: x / jnp.sum(jnp.abs(x)), lambda x: jnp.roll(x, 1),
    lambda x: x * jnp.sum(x), lambda x: jnp.sum(x * x) - x,
]  # fmt: skip
BINARY: list[Callable[[Any, Any], Any]] = [
    lambda x, y: x + y, lambda x, y: x - y, lambda x, y: x * y, lambda x, y: x / y,
    lambda x, y: x / (1 + jnp.abs(y)), jnp.maximum, jnp.minimum, jnp.logaddexp,
    lambda x, y: jnp.where(x < y, x, y), lambda x, y: jnp.where((x > 0) | (y > 1), x, -y), lambda x, y: jnp.dot(x, y) * x,
    lambda x, y: jnp.outer(x, y) @ y,
    lambda x, y: jax.nn.softmax(x) * y, lambda x, y: jnp.sum(jax.nn.softmax(x) * y) - y, lambda x, y: own.softmax_mean(x, y) + x,
    lambda x, y: (x / 3) / (y / 5), lambda x, y: jnp.concatenate([x[:1], y[1:]]), 
    lambda x, y: jnp.where(jnp.max(x) > jnp.max(y), x, y),
]  # fmt: skip


def scales(rng: np.random.Generator, dtype: Any, shape: Any) -> Any:
    """Numbers >= 0 of every size: half of them about 1 and where exponentials are finite, the others log-uniform over the whole type."""
    info = np.finfo(dtype)
    lowest = float(np.log2(float(info.smallest_subnormal)))
    bits = np.where(rng.random(shape) < 0.6, rng.uniform(-6, 9, shape), rng.uniform(lowest, float(info.maxexp), shape))
    return np.exp2(bits.astype(np.longdouble))


def _combined(x: Any, c: Any, which: int) -> Any:
    return [lambda: x * c, lambda: x + c, lambda: x / c][which]()


def function_of(rng: np.random.Generator, dtype: Any) -> tuple[Callable[[Any], Any], int]:
    """A random function of an array [n] and n: two to four operations, constants of all sizes among them, or a derivative of such."""
    size = int(rng.integers(2, 5))
    steps: list[tuple[Callable[..., Any], list[int]]] = []
    for count in range(1, int(rng.integers(3, 6))):
        kind = rng.random()
        if kind < 0.15:
            at = scales(rng, dtype, size) if rng.random() < 0.3 else np.exp2(rng.uniform(-3, 3, size))
            c = np.clip(at * rng.choice([-1, 1], size), -1e38, 1e38).astype(np.float32).astype(dtype)
            affine = int(rng.integers(3))
            steps.append(
                (lambda x, c=c, which=affine: _combined(x, jnp.asarray(c, x.dtype), which), [int(rng.integers(count))])
            )
        elif kind < 0.65:
            steps.append((UNARY[rng.integers(len(UNARY))], [int(rng.integers(count))]))
        else:
            steps.append((BINARY[rng.integers(len(BINARY))], [int(i) for i in rng.integers(0, count, 2)]))

    def value(x: Any) -> Any:
        values = [x]
        for apply, places in steps:
            values.append(apply(*(values[p] for p in places)))
        return values[-1]

    which = rng.choice(["value", "value", "jvp", "grad"])
    tangent = rng.normal(size=size).astype(dtype)
    if which == "jvp":
        return lambda x: jax.jvp(value, (x,), (jnp.asarray(tangent, x.dtype),))[1], size
    if which == "grad":
        return lambda x: jax.grad(lambda v: jnp.sum(value(v)))(x), size
    return value, size


def boxes_of(rng: np.random.Generator, dtype: Any, size: int) -> tuple[Any, Any]:
    """Odd boxes: points, tiny and huge ones, one-sided ones, with subnormal ends, with some sides of width 0; [BOXES, n]."""
    shape = (BOXES, size)
    each = lambda v: np.where(rng.random((BOXES, 1)) < 0.5, v[:, :1], v)
    center = each(scales(rng, dtype, shape)) * rng.choice([-1, 0, 1], shape)
    half = each(scales(rng, dtype, shape)) * (rng.random(shape) > 0.15)
    half = np.where(
        rng.random((BOXES, 1)) < 0.3, np.abs(center) * np.exp2(rng.uniform(-np.finfo(dtype).nmant, 0, (BOXES, 1))), half
    )
    side = rng.integers(0, 5, shape)
    low, high = np.where(side == 0, center, center - half), np.where(side == 1, center, center + half)
    most = np.longdouble(float(np.finfo(dtype).max))
    low, high = (np.clip(v, -most, most).astype(dtype) for v in (low, high))
    return np.minimum(low, high), np.maximum(low, high)


def points_of(rng: np.random.Generator, low: Any, high: Any) -> Any:
    """Points of boxes: corners, faces, inside, and near the corners; [POINTS, BOXES, n]."""
    shape = (POINTS, *low.shape)
    near = np.exp2(-rng.uniform(0, 40, shape))
    share = np.select(
        [(k := rng.integers(0, 8, shape)) < 3, k < 6, k == 6],
        [np.zeros(shape), np.ones(shape), near],
        rng.random(shape),
    )
    share[0], share[1], share[2] = 0, 1, 0.5
    wide = np.longdouble
    return np.clip((low.astype(wide) * (1 - share) + high.astype(wide) * share).astype(low.dtype), low, high)


@contextlib.contextmanager
def _quickly() -> Iterator[None]:
    """Bounds are as sound without most optimizations, which take longer than what they save; the functions get all of them."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


def attack(seed: int, number: int) -> tuple[collections.Counter[str], list[str]]:
    """Attacks one function; its counts, and what was found."""
    rng = np.random.default_rng([seed, number])
    kind, wide = KINDS[rng.integers(len(KINDS))]
    method, rounding = METHODS[rng.integers(3)], ["float", "float", "real"][rng.integers(3)]
    dtype = np.dtype(kind)
    counts: collections.Counter[str] = collections.Counter(functions=1)
    with jax.enable_x64(wide), np.errstate(all="ignore"):
        function, size = function_of(rng, dtype)
        low, high = boxes_of(rng, dtype, size)
        points = points_of(rng, low, high)
        began = time.process_time()
        try:
            of_box = lambda a, b: bounds.bound(function, bounds.Box(a, b), method=method, rounding=rounding)  # pyright: ignore[reportArgumentType]
            found = None
            with _quickly():
                if number % 4 == 0:
                    traced = jax.jit(jax.vmap(of_box)).trace(low, high)
                    if sum(1 for _ in equations(traced.jaxpr.jaxpr)) <= COMPILED:
                        counts["compiled"] = 1
                        found = traced.lower().compile()(low, high)
                found = evaluated(jax.vmap(of_box), low, high) if found is None else found
        except bounds.UnknownPrimitive:
            return counts + collections.Counter(refused=1), []
        except Exception:
            return counts + collections.Counter({TRACEBACK: 1}), [f"{number}: {traceback.format_exc(limit=-3)}"]
        took = time.process_time() - began
        lower, upper = np.asarray(found.lower, np.longdouble), np.asarray(found.upper, np.longdouble)
        evaluate = jax.vmap(jax.vmap(function))
        results = {"compiled": jax.jit(evaluate)(points)}
        with _quickly():
            results["one by one"] = evaluate(jnp.asarray(points))
    values = {name: np.asarray(v, np.longdouble) for name, v in results.items()}
    if rounding == "real":
        values = _exactly(function, points, dtype, values, lower, upper)
    counts.update(
        bounded=1,
        boxes=BOXES,
        ends=2 * lower.size,
        finite_ends=int(np.isfinite(lower).sum() + np.isfinite(upper).sum()),
    )
    messages = []
    if took > SECONDS:
        counts[HANG] += 1
        messages.append(f"{number}: {took:.0f} s")
    if np.isnan(lower).any() or np.isnan(upper).any():
        counts[UNSOUND] += 1
        messages.append(f"{number}: an end is NaN")
    for name, value in values.items():
        anything = (lower == -np.inf) & (upper == np.inf)
        held = np.where(np.isnan(value), anything, (lower <= value) & (value <= upper))
        counts["values"] += value.size
        if not held.all():
            counts[UNSOUND] += int((~held).sum())
            at = tuple(np.argwhere(~held)[0])
            box = f"[{low[at[1]].tolist()}, {high[at[1]].tolist()}] at {points[at[:2]].tolist()}"
            messages.append(
                f"{number}: {kind} {method} {rounding}: {name} {value[at]} is not in [{lower[at[1:]]}, {upper[at[1:]]}] on {box}"
            )
    return counts, messages


def _exactly(function: Any, points: Any, dtype: Any, values: dict[str, Any], lower: Any, upper: Any) -> dict[str, Any]:
    """Values as if without rounding: those of float64, where those in the function's own type differ from them by less
    than a tenth of what is outside of the bounds, and a million units of rounding do not explain it either."""
    with jax.enable_x64(True):
        exact = np.asarray(jax.jit(jax.vmap(jax.vmap(function)))(points.astype(np.float64)), np.longdouble)
    room = 1e6 * np.finfo(np.float64).eps * np.abs(exact)
    for value in values.values():
        room = np.maximum(room, 10 * np.abs(value - exact))
    outside = np.maximum(lower - exact, exact - upper)
    sure = np.isfinite(exact) & np.isfinite(room) & (outside > room)
    # What is not sure counts as a value inside.
    inside = np.where(np.isfinite(lower), lower, np.where(np.isfinite(upper), upper, 0))
    return {"without rounding": np.where(sure, exact, inside)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Attack on the bounds.")
    parser.add_argument("--functions", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, nargs="*", help="numbers of functions; nothing is recorded")
    parser.add_argument("--resume", action="store_true", help="go on from the record")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    counts: collections.Counter[str] = collections.Counter()
    messages: list[str] = []
    if options.resume and options.out.exists():
        record = json.loads(options.out.read_text())
        if record["seed"] != options.seed:
            raise SystemExit(f"--resume: expected the seed of the record, {record['seed']}, got {options.seed}")
        counts, messages = collections.Counter(record["counts"]), record["found"]
    todo = options.only if options.only is not None else range(counts["functions"], options.functions)
    for done, number in enumerate(todo):
        more, said = attack(options.seed, number)
        counts, messages = counts + more, messages + said
        for message in said:
            print(message, flush=True)
        last = done + 1 == len(todo)
        if done % 200 == 199:
            # Every executable maps memory, of which a process may have so much only.
            jax.clear_caches()
        if options.only is None and (done % 10 == 9 or last):
            record = {"seed": options.seed, "counts": dict(counts), "found": messages}
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(record, indent=1) + "\n")
        if done % 10 == 9 or last:
            print(dict(counts), flush=True)
    if counts[UNSOUND] or counts[TRACEBACK] or counts[HANG]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
