"""Attacks on proofs: changed files for the checker, and simulated trajectories against everything that is proved.

    python benchmarks/attack_proofs.py --files 12000 --systems 250      # docs/results/attack_proofs.json, hours on two cores
    python benchmarks/attack_proofs.py --files 300 --systems 4          # a few minutes

Files: proofs of several kinds are changed, byte by byte, or in what they say with the hash made right again. Each goes to the checker in a
process of its own, with bounds on time and memory: it has to answer, by a sentence. Where a changed file is still accepted, all that it
says is tried on its own programs (`numeric_programs.py`): at sampled states, and along trajectories of tight tolerance.

Systems: linear, polynomial and clipped fields and small networks, with claims that may be true or false. For all that is proved,
trajectories are simulated; every counterexample is evaluated.
"""

import argparse
import copy
import functools
import io
import json
import multiprocessing as mp
import sys
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numeric_programs import System
from scipy.integrate import solve_ivp

from lyapunov_checker import Refused, check
from lyapunov_checker._file import read, seal

RESULTS = Path(__file__).parent.parent / "docs" / "results"
HANG = 20.0
MEMORY = 3 << 30
KINDS = ("attraction", "invariant", "tube", "robust", "ball", "rate")


def seeds(kinds: Any) -> dict[str, bytes]:
    """Valid proofs of small systems, by kind."""
    import jax.numpy as jnp

    import lyapunov_dsl as ld

    quiet = ld.Prover(check=False)
    square = lambda s, y: jnp.sum(s**2)
    decay = lambda t, s, c: -s
    exponential = lambda kappa: ld.Certificate.exponential(loss=square, kappa=kappa)
    clipped = lambda t, s, c: jnp.stack([s[1], -jnp.clip(2 * s[0] + 2 * s[1], -1.0, 1.0)])

    def attraction() -> Any:
        system = ld.System(vector_field=clipped, domain=ld.Box(-0.5, 0.5))
        form = jnp.asarray([[1.5, 0.5], [0.5, 0.75]])
        certificate = ld.Certificate.exponential(loss=lambda s, y: s @ form @ s, kappa=0.1)
        region = ld.RegionOfAttraction(level=0.08, equilibrium=np.zeros(2))
        return ld.prove(ld.Condition(system, certificate), region, prover=quiet)

    def invariant() -> Any:
        system = ld.System(vector_field=lambda t, s, c: jnp.tanh(s[::-1]) - 1.5 * s, domain=ld.Box(-1, 1))
        condition = ld.Condition(system, exponential(0.5))
        return ld.prove(condition, ld.ForwardInvariant(), at=(np.zeros(2), None), prover=quiet)

    def tube() -> Any:
        times = np.linspace(0, 1, 17)
        around = ld.Tube.around(times, np.exp(-times)[:, None] * np.ones(1), 0.1)
        start = (np.array([0.98]), np.array([1.02]))
        system = ld.System(vector_field=decay, domain=ld.Box(-2, 2))
        both = ld.Decrease(domain=around) & ld.ReachTube(tube=around, start=start)
        return ld.prove(ld.Condition(system, exponential(1.5)), both, at=(np.ones(1), None), prover=quiet)

    def robust() -> Any:
        system = ld.System(
            input=lambda x: ld.Start(jnp.full(1, 1.0, x.dtype), x),
            vector_field=lambda t, s, u: -2 * (s - u),
            domain=ld.Box(-2, 2),
        )
        inside = ld.Decrease(level=1.2, equilibrium=np.zeros(1)) & ld.SublevelContained(level=1.2)
        all_of = inside & ld.ContextRobustness(perturbation=0.1)
        return ld.prove(ld.Condition(system, exponential(3.9)), all_of, at=(np.zeros(1), None), prover=quiet)

    def ball() -> Any:
        system = ld.System(vector_field=lambda t, s, c: -(1 + t) * s, domain=ld.Ball(0, 0.7), horizon=2.0)
        return ld.prove(ld.Condition(system, exponential(1)), ld.Decrease(equilibrium=np.zeros(2)), prover=quiet)

    def rate() -> Any:
        column = lambda t, s, c: jnp.ones((1, 1), s.dtype)
        field = ld.ControlAffine(lambda t, s, c: 0.5 * jnp.sin(s), column, limits=0.7)
        certificate = ld.Certificate.control_lyapunov(lambda s: s @ s, 0.2)
        condition = ld.Condition(ld.System(vector_field=field), certificate)
        return ld.prove(condition, ld.Decrease(domain=ld.Box(0.25, 0.75)), at=(np.ones(1), None), prover=quiet)

    made = {}
    makers = (attraction, invariant, tube, robust, ball, rate)
    for kind, maker in ((maker.__name__, maker) for maker in makers if maker.__name__ in kinds):
        found = maker()
        if not found.status.proved:
            raise RuntimeError(f"{kind}: expected a proof, got {found}")
        made[kind] = found.proof.written()
    return made


# --- changed files


def flipped(rng: Any, data: bytes) -> bytes:
    """Bytes changed, put in, taken out, moved, or cut off."""
    out = bytearray(data)
    for _ in range(int(rng.choice([1, 1, 1, 2, 8]))):
        # Nothing may be left of a short one.
        out = out or bytearray(b"0")
        at, kind = int(rng.integers(len(out))), int(rng.integers(6))
        if kind == 0:
            out[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            out[at] = int(rng.integers(256))
        elif kind == 2:
            out[at:at] = rng.bytes(int(rng.integers(1, 9)))
        elif kind == 3:
            del out[at : at + int(rng.integers(1, 9))]
        elif kind == 4:
            out[at : at + 8] = rng.choice([b"\xff" * 8, b"\0" * 8, b"\x7f" + b"\xff" * 7])
        else:
            del out[max(1, at) :]
    return bytes(out)


NUMBERS = (
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    2,
    -3,
    1e-300,
    1e300,
    2**53 + 1,
    10**400,
    True,
    None,
    "1",
    "",
    [],
    {},
    [0.0],
    1e308,
)


def changed_value(rng: Any, value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float) and rng.random() < 0.7:
        return [
            value * float(rng.choice([0.5, 0.9, 1.1, 2.0, -1.0])),
            value + float(rng.choice([-1.0, 1.0, 1e-3, -1e-3])),
            float(np.nextafter(value, np.inf)),
            float(np.nextafter(value, -np.inf)),
            value + int(rng.choice([-1, 1])),
        ][int(rng.integers(5))]
    if isinstance(value, str) and rng.random() < 0.7:
        names = ("tanh", "sin", "cos", "exp", "log", "sqrt", "relu", "step", "jump", "square", "multiply", "affine", "decrease", "enclosed",
                 "definite", "invariant", "stays", "robust", "softplus", "reciprocal")  # fmt: skip
        return str(rng.choice(names))
    if isinstance(value, list) and value and rng.random() < 0.7:
        kind, at = int(rng.integers(4)), int(rng.integers(len(value)))
        if kind == 0:
            return value[:at] + value[at + 1 :]
        if kind == 1:
            return [*value, value[at]]
        return value[::-1] if kind == 2 else [*value[:at], value[0], *value[at:]]
    return NUMBERS[int(rng.integers(len(NUMBERS)))]


def places(tree: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """All paths of a header."""
    keys = tree.keys() if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    return [p for k in keys for p in ((*at, k), *places(tree[k], (*at, k)))]


def restated(rng: Any, data: bytes, others: list[bytes]) -> bytes:
    """A file that says something else, with a right hash."""
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _restated(rng, data, others)
        except OverflowError:
            # A large integer was changed once more.
            return data[:-1]


def _restated(rng: Any, data: bytes, others: list[bytes]) -> bytes:
    header, arrays = read(data)
    header, arrays = copy.deepcopy(header), dict(arrays)
    for _ in range(int(rng.choice([1, 1, 1, 2, 3]))):
        kind = rng.random()
        if kind < 0.55:
            # Fields of the region and the claims as often as what the programs are.
            part = header if rng.random() < 0.5 else {k: v for k, v in header.items() if k != "programs"}
            options = places(part)
            *path, last = options[int(rng.integers(len(options)))]
            target: Any = header
            for key in path:
                target = target[key]
            if isinstance(target, dict) and rng.random() < 0.15:
                del target[last]
            elif last in target if isinstance(target, dict) else last < len(target):
                target[last] = changed_value(rng, target[last])
        elif kind < 0.9:
            names = sorted(arrays)
            name = names[int(rng.integers(len(names)))]
            array = np.array(arrays[name])
            how = rng.random()
            if how < 0.7 and array.size:
                i = int(rng.integers(array.size))
                old = array.ravel()[i]
                if array.dtype.kind == "f":
                    wide = float(old) * 1e300
                    new = rng.choice([old * 1.1, -old, old + 0.1, np.nan, np.inf, 0.0, np.nextafter(old, 9e9), wide])
                elif array.dtype.kind not in "iu":
                    new = old
                else:
                    new = int(old) + int(rng.choice([-1, 1, 2, 5]))
                array.reshape(-1)[i] = np.array(new).astype(array.dtype)
            elif how < 0.8:
                array = array[..., :-1]
            elif how < 0.9:
                array = array.astype(rng.choice(["f8", "f4", "i8", "i1", "c16"]))
            else:
                array = np.concatenate([array.reshape(-1), array.reshape(-1)])
            arrays[name] = array
        else:
            # A program, a region or trees of another proof.
            other, more = read(others[int(rng.integers(len(others)))])
            key = str(rng.choice([k for k in other if k in header]))
            header[key] = copy.deepcopy(other[key])
            arrays = {**arrays, **more} if rng.random() < 0.5 else {**more, **arrays}
    try:
        header["sha256"] = seal(header, arrays)
        text = json.dumps(header)
    except (TypeError, ValueError):
        return data[:-1]
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **{"header": np.frombuffer(text.encode(), np.uint8), **arrays})
    return file.getvalue()


def repacked(rng: Any, data: bytes) -> bytes:
    """An archive whose arrays are others byte by byte; its directory and its sums are right."""
    with zipfile.ZipFile(io.BytesIO(data)) as old:
        parts = [(m.filename, old.read(m)) for m in old.infolist()]
    at = int(rng.integers(len(parts)))
    parts[at] = parts[at][0], flipped(rng, parts[at][1] or b"0")
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new:
        for name, content in parts:
            new.writestr(name, content)
    return file.getvalue()


def _serve(pipe: Any) -> None:
    """The checker, for one file after the other."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    while True:
        data = pipe.recv()
        if data is None:
            return
        began = time.monotonic()
        try:
            said = "accepted", check(data, seconds=HANG / 2).sentences
        except Refused as error:
            said = "refused", str(error)
        except BaseException as error:
            said = "traceback", repr(error)
        pipe.send((*said, time.monotonic() - began))


class Checker:
    """A process that checks; another one where it died, or did not answer."""

    def __init__(self) -> None:
        self.process: Any = None

    def __call__(self, data: bytes) -> tuple[str, Any, float]:
        if self.process is None:
            context = mp.get_context("spawn")
            self.pipe, other = context.Pipe()
            self.process = context.Process(target=_serve, args=(other,), daemon=True)
            self.process.start()
            self.pipe.send(b"")
            self.pipe.recv()
        self.pipe.send(data)
        try:
            if self.pipe.poll(HANG + 10):
                return self.pipe.recv()
            answer = "hang", "", HANG + 10
        except EOFError:
            answer = "died", "", 0.0
        self.close()
        return answer

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None


# --- what is said, tried


def contradiction(rng: Any, header: Any, arrays: Any, points: int = 400, runs: int = 4) -> str:
    """What contradicts the claims of a proof on its own programs; nothing where nothing was found."""
    system, claims = System(header, arrays), set(header["claims"])
    low, high = (np.asarray(header["domain"][side], float) for side in ("lower", "upper"))
    # From 0.0 to -0.0 is nothing NumPy draws from.
    first, last = (v + 0.0 for v in header["time"])
    least, most = header["level"]
    n, tolerance = len(low), 1e-7
    times = rng.uniform(first, last, (points, 1))
    states = np.where(
        rng.random((points, n)) < 0.15,
        np.where(rng.random((points, n)) < 0.5, low, high),
        rng.uniform(low, high, (points, n)),
    )
    inside = np.ones(points, bool)
    if header["ball"] is not None:
        away = states - np.asarray(header["ball"]["center"], float)
        inside = (away**2).sum(1) <= header["ball"]["radius"] ** 2 * (1 - 1e-12)
    v = system.value(times, states)
    scale = 1 + np.abs(v)
    # What is no number is not left out.
    between = lambda v: ~((v > (np.inf if most is None else most)) | (v < (-np.inf if least is None else least)))
    within = inside & between(v)
    if header["tube"] is not None:
        rows = np.asarray(header["tube"], float) + 0.0
        pick = rows[rng.integers(len(rows), size=points)]
        times = rng.uniform(pick[:, :1], pick[:, 1:2])
        states = rng.uniform(pick[:, 2 : 2 + n], pick[:, 2 + n :])
        v = system.value(times, states)
        within = between(v)
    if header["faces"]:
        axis = rng.choice(header["faces"], size=points)
        states[np.arange(points), axis] = np.where(rng.random(points) < 0.5, low[axis], high[axis])
        v = system.value(times, states)
        within = between(v)
    if "decrease" in claims:
        excess = system.excess(times, states)
        if not (np.isfinite(v[within]).all() and (excess[within] <= tolerance * scale[within]).all()):
            return "decrease"
    rest = None if header["equilibrium"] is None else np.asarray(header["equilibrium"], float)
    if "definite" in claims and (
        rest is None or abs(system.value(times[:1], rest[None])[0]) > tolerance or not (v[inside] >= -tolerance).all()
    ):
        return "definite"
    if claims & {"enclosed", "invariant"}:
        axis, upper = rng.integers(n, size=points), rng.random(points) < 0.5
        edge = rng.uniform(low, high, (points, n))
        edge[np.arange(points), axis] = np.where(upper, high[axis], low[axis])
        if "enclosed" in claims and not (system.value(times, edge) > most - tolerance * (1 + abs(most))).all():
            return "enclosed"
        push = 0.0 if header["perturbation"] is None else header["perturbation"]["radius"]
        u = None if system.center is None else system.center + rng.uniform(-push, push, (points, len(system.center)))
        out = system.field(times, edge, u)[np.arange(points), axis] * np.where(upper, 1, -1)
        if "invariant" in claims and not (out <= tolerance * (1 + np.abs(out))).all():
            return "invariant"
    return _along(rng, header, system, claims, states[within], runs)


# Of a field, along one trajectory.
EVALUATIONS = 20_000


def _along(rng: Any, header: Any, system: System, claims: set[str], inside: Any, runs: int) -> str:
    """The same along trajectories."""
    low, high = (np.asarray(header["domain"][side], float) for side in ("lower", "upper"))
    (first, last), (least, most) = header["time"], header["level"]
    start = [np.asarray(header["start"][side], float) for side in ("lower", "upper")]
    slack = 1e-6 * (1 + np.abs(high) + np.abs(low))
    kept = {"decrease", "enclosed"} <= claims and least is None and header["tube"] is None
    rest = None if header["equilibrium"] is None else np.asarray(header["equilibrium"], float)
    falls = kept and "definite" in claims and header["strict"]
    radius = 0.0 if header["perturbation"] is None else header["perturbation"]["radius"]
    if not (kept or claims & {"stays", "robust", "invariant"}):
        return ""
    for _ in range(runs):
        u = None
        if claims & {"stays", "robust"}:
            begin = rng.uniform(*start)
            if "robust" in claims and system.center is not None:
                u = system.center + radius * rng.choice([-1.0, 1.0], len(system.center))
        elif kept:
            if not len(inside):
                return ""
            begin = inside[rng.integers(len(inside))]
        else:
            begin = rng.uniform(low, high)
        end = max(last, first + 5.0) if kept and first == last else last
        if end <= first:
            end = first + 2.0
        # A changed file may be about a field that is stiff, or a long time: then what it does at first is looked at.
        left = iter(np.zeros(EVALUATIONS))
        f = lambda t, s, u=u, left=left: system.field(np.full((1, 1), t), s[None], u)[0] + next(left, np.nan)
        if not np.isfinite(f(first, begin)).all():
            continue
        with np.errstate(all="ignore"):
            run = solve_ivp(f, (first, end), begin, rtol=1e-9, atol=1e-11, max_step=(end - first) / 20 or np.inf)
        path, v = run.y.T, system.value(run.t[:, None], run.y.T)
        if (kept or "invariant" in claims) and not ((path >= low - slack) & (path <= high + slack)).all():
            return "leaves H"
        if kept and not (v <= most + 1e-6 * (1 + abs(most))).all():
            return "leaves the level set"
        # In less time nothing moves as far as its numbers are apart.
        seen = falls and run.success and end - first > 1e-3
        if seen and v[0] > 1e-3 and not v[-1] < v[0]:
            return "does not tend to the equilibrium"
        if seen and rest is not None and not np.linalg.norm(path[-1] - rest) < np.linalg.norm(high - low):
            return "goes away from the equilibrium"
        if "stays" in claims:
            for row in np.asarray(header["tube"], float):
                part = path[(run.t >= row[0]) & (run.t <= row[1])]
                n = len(low)
                if not ((part >= row[2 : 2 + n] - slack) & (part <= row[2 + n :] + slack)).all():
                    return "leaves the tube"
    return ""


def attack_files(count: int, kinds: Any, seed: int, told: Callable[[str], None]) -> dict[str, Any]:
    """Counts of what the checker answers to changed files."""
    originals, rng = seeds(kinds), np.random.default_rng(seed)
    counts: Counter[str] = Counter()
    slowest, bad, names = 0.0, [], list(originals)
    checker = Checker()
    try:
        for i in range(count):
            name = names[i % len(names)]
            data, how = originals[name], ("bytes", "arrays", "content", "content")[int(rng.integers(4))]
            changed = (
                flipped(rng, data)
                if how == "bytes"
                else repacked(rng, data)
                if how == "arrays"
                else restated(rng, data, list(originals.values()))
            )
            answer, said, seconds = checker(changed)
            slowest = max(slowest, seconds)
            counts[f"{how}: {answer}"] += 1
            if answer == "accepted":
                header, arrays = read(changed)
                same = seal(header, arrays) == seal(*read(data))
                counts["accepted and changed"] += not same
                wrong = "" if same else contradiction(rng, header, arrays)
                sentences = " ".join(said)
                if wrong or "nan" in sentences or "inf" in sentences.replace("infinity", ""):
                    counts["accepted and false"] += 1
                    bad.append({"file": i, "kind": name, "how": how, "why": wrong or "a sentence without a number"})
            elif answer != "refused":
                bad.append({"file": i, "kind": name, "how": how, "why": f"{answer}: {said}"[:200]})
            elif not (said.isprintable() and len(said) < 600):
                bad.append({"file": i, "kind": name, "how": how, "why": "more than a sentence"})
            elif "the file is no proof (" in said:
                # Not foreseen by the checker: it failed closed.
                counts["refused as a last resort"] += 1
            counts["slower than 20 s"] += seconds > HANG
            if i % 100 == 99:
                told(f"{i + 1} files, {dict(counts)}")
    finally:
        checker.close()
    total = lambda answer: sum(v for k, v in counts.items() if k.endswith(f": {answer}"))
    return {
        "files": count, "kinds": names, "refused": total("refused"), "accepted": total("accepted"),
        "accepted and changed": counts["accepted and changed"], "accepted and false": counts["accepted and false"],
        "tracebacks": total("traceback") + total("died"), "hangs": total("hang") + counts["slower than 20 s"],
        "slowest seconds": slowest, "counts": dict(sorted(counts.items())), "bad": bad,
    }  # fmt: skip


# --- random systems


@functools.cache
def _modules() -> dict[str, Any]:
    """The fields and V as modules: their arrays are arguments of the programs of a proof, which all systems of a family share."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp

    class Linear(eqx.Module):
        a: jax.Array

        def __call__(self, t: Any, s: Any, c: Any) -> Any:
            return self.a @ s

    class Polynomial(eqx.Module):
        a: jax.Array
        b: jax.Array

        def __call__(self, t: Any, s: Any, c: Any) -> Any:
            return self.a @ s + jnp.einsum("ijk,j,k->i", self.b, s, s)

    class Clipped(eqx.Module):
        a: jax.Array
        column: jax.Array
        gain: jax.Array

        def __call__(self, t: Any, s: Any, c: Any) -> Any:
            return self.a @ s - self.column @ jnp.clip(self.gain @ s, -0.5, 0.5)

    class Network(eqx.Module):
        first: jax.Array
        second: jax.Array
        decay: jax.Array

        def __call__(self, t: Any, s: Any, c: Any) -> Any:
            return self.second @ jnp.tanh(self.first @ s) - self.decay * s

    class Quadratic(eqx.Module):
        p: jax.Array

        def __call__(self, s: Any) -> Any:
            return s @ self.p @ s

    return {"linear": Linear, "polynomial": Polynomial, "clipped": Clipped, "network": Network, "V": Quadratic}


def random_system(rng: Any, family: str) -> tuple[Any, Any, Any]:
    """A system, a certificate and a claim, which may be true or false: {V <= level} for the V of the linearization."""
    import jax.numpy as jnp
    import scipy.linalg as sl

    import lyapunov_dsl as ld

    n = 2
    a = rng.normal(size=(n, n)) - float(rng.choice([1.0, 2.0])) * np.eye(n)
    a -= max(0.0, np.linalg.eigvals(a).real.max() + 0.3) * np.eye(n)
    if family == "linear":
        arrays = [a]
    elif family == "polynomial":
        arrays = [a, rng.normal(size=(n, n, n)) * 0.5]
    elif family == "clipped":
        open_loop, gain, column = a + np.eye(n), rng.normal(size=(1, n)), rng.normal(size=(n, 1))
        a, arrays = open_loop - column @ gain, [open_loop, column, gain]
    else:
        first, second = rng.normal(size=(4, n)), rng.normal(size=(n, 4)) * 0.3
        decay = np.linalg.norm(second @ first, 2) + float(rng.uniform(-0.3, 0.6))
        a, arrays = second @ first - decay * np.eye(n), [first, second, np.asarray(decay)]
    if np.linalg.eigvals(a).real.max() >= -0.1:
        return random_system(rng, family)
    p = sl.solve_continuous_lyapunov(a.T, -np.eye(n))
    if rng.random() < 0.25:
        # Not that of the linearization: the claim is often false.
        p = p * np.exp(rng.normal(size=(1, n))) + 0
        p = (p + p.T) / 2
        if np.linalg.eigvalsh(p).min() <= 1e-3:
            return random_system(rng, family)
    level = float(np.exp(rng.uniform(-4, 1.5))) * np.linalg.eigvalsh(p).min()
    reach = 1.02 * np.sqrt(level * np.diag(np.linalg.inv(p)))
    field = _modules()[family](*map(jnp.asarray, arrays))
    system = ld.System(vector_field=field, domain=ld.Box(-reach, reach))
    certificate = ld.Certificate.exponential(_modules()["V"](jnp.asarray(p)), kappa=float(rng.choice([1e-3, 0.1])))
    return system, certificate, ld.RegionOfAttraction(level=level, equilibrium=np.zeros(n))


FAMILIES = ("linear", "polynomial", "clipped", "network")


def attack_systems(
    count: int, families: Any, seed: int, told: Callable[[str], None], boxes: int = 4000
) -> dict[str, Any]:
    """Counts of what is proved of random systems, and of what is false of it."""
    import jax

    import lyapunov_dsl as ld

    rng, counts, bad = np.random.default_rng(seed), Counter(), []
    for i in range(count):
        family = families[i % len(families)]
        with jax.enable_x64(True):
            system, certificate, property = random_system(rng, family)
            prover = ld.Prover(boxes=boxes, seconds=120)
            found = ld.prove(ld.Condition(system, certificate), property, prover=prover)
            same = found.proof is None or found.proof.matches(system, certificate)
        counts[found.status.name] += 1
        counts[f"{family}: {found.status.name}"] += 1
        wrong = ""
        if found.status.proved and found.proof is not None:
            counts["proved"] += 1
            header, arrays = read(found.proof.written())
            wrong = contradiction(rng, header, arrays, points=2000, runs=12)
            if not same:
                wrong = "its file is of another declaration"
        elif found.counterexample is not None and not found.counterexample.residual > -1e-9:
            wrong = "a counterexample that is none"
        elif "refused" in found.checked:
            counts["proved and then refused"] += 1
        if wrong:
            bad.append({"system": i, "family": family, "why": wrong})
        told(f"{i + 1} systems, {dict(counts)}")
    return {
        "systems": count, "families": list(families), "proved": counts["proved"], "contradicted": len(bad),
        "counts": dict(sorted(counts.items())), "bad": bad,
    }  # fmt: skip


def main(args: Any = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=12_000)
    parser.add_argument("--systems", type=int, default=250)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=FAMILIES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "attack_proofs.json")
    options = parser.parse_args(args)
    told = lambda text: print(text, file=sys.stderr, flush=True)
    began = time.monotonic()
    found: dict[str, Any] = {"seed": options.seed}
    if options.files:
        found["changed files"] = attack_files(options.files, options.kinds, options.seed, told)
    if options.systems:
        found["random systems"] = attack_systems(options.systems, options.families, options.seed, told)
    found["seconds"] = time.monotonic() - began
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    return found


if __name__ == "__main__":
    result = main()
    parts = [result[key] for key in ("changed files", "random systems") if key in result]
    print(json.dumps({k: v for part in parts for k, v in part.items() if k not in ("counts", "bad")}, indent=1))
    sys.exit(any(part["bad"] for part in parts))
