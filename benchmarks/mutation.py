"""Mutation testing of what soundness rests on: small faults are put into a module, one at a time, and its tests have to fail.

    python benchmarks/mutation.py --per-module 12 --seed 0 --out docs/results/mutation.json

A mutant is one changed expression: a comparison moved by its boundary or negated, `+` and `-`, `*` and `/`, `min` and `max`, `and` and
`or`, `any` and `all`, lower and upper ends, the branches of `where`, or a condition exchanged, a number nudged, a sign or an absolute value
dropped, or a term dropped that stands for rounding. Messages, types and docstrings stay as they are.
With `--thresholds`, the mutants are the thresholds of the rules of bounds that switch formula by magnitude (comparisons
with a constant or a unit of a type, and caps), each moved by a factor of 1.2 in both directions, all of them:

    python benchmarks/mutation.py --thresholds --out docs/results/mutation_thresholds.json

Each runs in a temporary copy of the repository, in a process forked from one that has imported JAX, so that it takes the time of the tests
alone; what XLA compiles is kept between them. Other mutants of a sample are drawn with another seed.
"""

import argparse
import ast
import collections
import compileall
import contextlib
import copy
import fnmatch
import gc
import importlib
import json
import os
import random
import shlex
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Group -> module -> (tests written for its mutants, those of the others that take seconds), arguments of pytest. The first failure ends a
# run, so that what fails soonest comes first.
BOUNDS, LINEAR = "tests/test_mutants_bounds.py -k", "tests/test_mutants_linear.py -k"
CHECKED = (
    "tests/test_mutants_checker.py tests/test_checker_hostile.py -k 'not small and not unpacked and not ends'",
    "tests/test_checker.py -k 'functions or domain or products or short or gap or roots'",
)
DERIVED = ("tests/test_mutants_residual.py", "tests/test_certificates.py -k 'not contract'")
TARGETS: dict[str, dict[str, tuple[str, str]]] = {
    "residual": {
        "lyapunov_dsl/_condition.py": (DERIVED[0], "tests/test_condition.py -k 'not descent and not promotion'"),
        "lyapunov_dsl/_certificate/_base.py": DERIVED,
        "lyapunov_dsl/_certificate/_exponential.py": DERIVED,
        "lyapunov_dsl/_objective/_monte_carlo.py": (DERIVED[0], "tests/test_objectives.py -k 'monte or level or relative'"),
    },
    "comparison": {"lyapunov_dsl/_certify/_rules.py": ("tests/test_mutants_rules.py", "tests/test_rules.py -k 'not pearson'")},
    "bounds": {
        "lyapunov_dsl/bounds/_interval.py": (f"{BOUNDS} 'ends_that or add_and_meet or half_width'", "tests/test_bounds_edges.py"),
        "lyapunov_dsl/bounds/_scalar.py": (
            f"{BOUNDS} 'lines_hold or domains or peaks or steps or rounded or activation'", "tests/test_bounds_rules.py -k real_values",
        ),
        "lyapunov_dsl/bounds/_lines.py": (
            f"{BOUNDS} 'lines_hold or domains or peaks or steps or rounded or activation'", "tests/test_bounds_rules.py -k real_values",
        ),
        "lyapunov_dsl/bounds/_smooth.py": (
            f"{BOUNDS} 'elu or softplus or silu or rounded or activation' {LINEAR} 'elu or softplus or silu or rounded or activation'",
            "tests/test_bounds_rules.py -k 'real_values or second'",
        ),
        "lyapunov_dsl/bounds/_pairs.py": (
            f"{BOUNDS} 'products or evaluations or comparisons or logic or choices or integers'", "tests/test_bounds.py -k clarke",
        ),
        "lyapunov_dsl/bounds/_reduce.py": (
            f"{BOUNDS} 'largest or choices_hold or indices' {LINEAR} 'largest or choices_hold or indices'",
            "tests/test_bounds.py -k clarke",
        ),
        "lyapunov_dsl/bounds/_softmax.py": ("tests/test_mutants_softmax.py", "tests/test_bounds.py -k 'hair and softmax'"),
        "lyapunov_dsl/bounds/_softmax_mean.py": ("tests/test_mutants_softmax.py", "tests/test_bounds.py -k 'hair and softmax'"),
        "lyapunov_dsl/bounds/_norms.py": ("tests/test_mutants_norms.py", "tests/test_lipschitz.py -k norm"),
        **{
            f"lyapunov_dsl/bounds/_{name}.py": (f"{LINEAR} 'not activations'", "tests/test_bounds_edges.py")
            for name in ("linear", "move", "product")
        },
    },
    "checker": {
        f"lyapunov_checker/_{name}.py": CHECKED
        for name in ("rules", "program", "tree", "proof", "flow", "check", "file", "header")
    },
}  # fmt: skip

# Module -> tests of its thresholds.
SWITCHES = {
    "lyapunov_dsl/bounds/_softmax.py": (
        "tests/test_bounds_switches.py -k mean_nothing",
        "tests/test_mutants_softmax.py",
    ),
    "lyapunov_dsl/bounds/_softmax_mean.py": (
        "tests/test_bounds_switches.py -k mean_nothing",
        "tests/test_mutants_softmax.py",
    ),
    "lyapunov_dsl/bounds/_rule.py": (
        "tests/test_bounds_switches.py -k 'mean_nothing or on_its_way'",
        "tests/test_bounds_edges.py",
    ),
    "lyapunov_dsl/bounds/_pairs.py": (
        "tests/test_bounds_integers.py",
        "tests/test_mutants_bounds.py -k 'products or quotient'",
    ),
    **{
        f"lyapunov_dsl/bounds/_{name}.py": (
            "tests/test_mutants_bounds.py -k 'lines_hold or peaks or chords'",
            "tests/test_bounds_edges.py",
        )
        for name in ("lines", "scalar")
    },
}

# (end of the module's name, part of the line, expression, what it became, why this is the same or only costs something).
ANY, SAME, MORE = (
    "any number is right: it only decides how close a bound is",
    "both give the same",
    "more slack for rounding",
)
EQUIVALENT: list[tuple[str, str, str, str, str]] = [
    ("checker/_rules", "if not p <= touch <= q", "p <= touch <= q", "(p < touch <= q)", ANY),
    (
        "checker/_rules",
        "slope_float(m)",
        "(curve.slope_float(m) - slope) * sign < 0",
        "((curve.slope_float(m) - slope) * sign <= 0)",
        ANY,
    ),
    ("checker/_rules", "if a >= 0:", "a >= 0", "(a > 0)", SAME),
    ("checker/_rules", '"square": (', "abs(b)", "b", SAME),
    (
        "checker/_rules",
        "center = arb(",
        "sum(w * m for w, m in zip(weights, middles, strict=True)) / sum(weights)",
        "(sum((w * m for w, m in zip(weights, middles, strict=True))) * sum(weights))",
        ANY,
    ),
    (
        "checker/_program",
        "i not in needed",
        "i not in needed and i not in directions",
        "(i not in needed or i not in directions)",
        SAME,
    ),
    ("checker/_proof", "count(1)", "1", "2", "numbers of symbols may leave some out"),
    ("_certify/_rules", "_SLACK =", "1e-13", "2e-13", MORE),
    (
        "_certify/_rules",
        "drift) * (1 + _SLACK)",
        "1 + _SLACK",
        "1",
        "the terms are rounded up by themselves, by more than their sum is rounded",
    ),
    ("_certify/_rules", "lowest = _lowest", "4", "5", ANY),
    ("_certify/_rules", "high / 2 if holds", "2", "3", ANY),
    ("_certify/_rules", "push * profile(v)[0] > growth * v", "growth * v", "(growth / v)", ANY),
    ("bounds/_interval", "x.lower > largest", "x.lower > largest", "(x.lower >= largest)", SAME),
    ("bounds/_lines", "narrow = width", "upper", "lower", ANY),
    *(
        (f"bounds/_{module}", line, was, f"(({was}) {by} 1.2)", why)
        for by in "*/"
        for module, line, was, why in (
            ("lines", "narrow = width", "1e3 * eps(wide()) * (jnp.abs(lower) + jnp.abs(upper)) + tiny(wide())", ANY),
            ("lines", "slope < flattest", "flattest", ANY),
            ("scalar", "midpoint(lower, upper)", "tiny(wide())", ANY),
            ("scalar", "jnp.power(jnp.maximum", "tiny(wide())", ANY),
            ("pairs", "room = jnp.where", "1", "sums of integers are exact up to 2, and near their limits all are above"),
        )
    ),
    ("bounds/_interval", "x.lower > largest", "largest", "((largest) * 1.2)", "what rounding brings back is within the slack"),
    ("bounds/_interval", "x.lower > largest", "-largest", "((-largest) * 1.2)", "what rounding brings back is within the slack"),
    ("bounds/_smooth", "(-0.13, 0.81)", "0.81", "1.62", ANY),
    (
        "bounds/_smooth",
        "step is None or",
        "abs(step[0] - expected)",
        "(step[0] - expected)",
        "what was found is compared again",
    ),
    (
        "bounds/_smooth",
        "graph.marks.get(other)",
        'graph.marks.get(other) == ("softplus", one) and isinstance(one, Node)',
        "(graph.marks.get(other) == ('softplus', one))",
        SAME,
    ),
    ("bounds/_pairs", "a = jnp.where(x.upper", "y.upper", "y.lower", ANY),
    ("bounds/_pairs", "known & (x.lower ^ y.lower)", "y.lower", "y.upper", SAME),
    ("bounds/_softmax_mean", "gaps = jnp.sum", "jnp.maximum", "jnp.minimum", ANY),
    ("bounds/_softmax_mean", "2 * size * jnp.sum(found.rounding", "2", "3", MORE),
    ("bounds/_softmax", "(4 * size + 8 *", "1", "2", "the other terms of the slack are larger"),
    ("bounds/_linear", "found or graph.add(multiply", "found or graph.add(multiply, [x, y], x.shape, dtype, None, virtual)",
     "graph.add(multiply, [x, y], x.shape, dtype, None, virtual)", "what is rewritten has closer bounds, not other ones"),
    ("bounds/_product", "joined is None or",
     'joined is None or joined[0] != "concatenate" or joined[1]["dimension"] != at or not any(map(fixed, joined[2]))',
     "(joined is None or joined[0] != 'concatenate' or joined[1]['dimension'] != at)", SAME),
    (
        "checker/_tree", "rules is None",
        'rules is None\n        or axes is None\n        or places is None\n        or rules.ndim != 1\n        or not len(rules)\n'
        '        or rules.dtype.kind not in "iu"',
        "(rules is None or axes is None or places is None or (rules.ndim != 1) or (rules.dtype.kind not in 'iu'))",
        "an empty tree is refused as one whose boxes are missing",
    ),
    (
        "checker/_proof", "n < 1",
        "n < 1\n            or len(self.upper) != n\n            or not all(-np.inf < a < b < np.inf for a, b in zip(self.lower, "
        "self.upper, strict=True))",
        "(len(self.upper) != n or not all((-np.inf < a < b < np.inf for a, b in zip(self.lower, self.upper, strict=True))))",
        "no program has a state of size 0",
    ),
]  # fmt: skip


def reason(module: str, line: str, was: str, became: str) -> str | None:
    """Why a mutant changes nothing that matters, where that is known."""
    for name, part, old, new, why in EQUIVALENT:
        if module.endswith(f"{name}.py") and part in line and (old, new) == (was, became):
            return why
    return None


class Mutant(NamedTuple):
    """A replaced piece of a module, in bytes from the beginning."""

    start: int
    end: int
    new: str
    kind: str


# --- mutants

COMPARE = {
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,), ast.In: (ast.NotIn,), ast.NotIn: (ast.In,),
}  # fmt: skip
BINARY = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}  # fmt: skip
PAIRS = [
    ("maximum", "minimum"), ("max", "min"), ("any", "all"), ("lower", "upper"), ("low", "high"), ("least", "most"), ("first", "last"),
    ("floor", "ceil"), ("fmax", "fmin"), ("zeros", "ones"), ("zeros_like", "ones_like"), ("sum", "max"),
]  # fmt: skip
OTHER = {a: b for pair in PAIRS for a, b in (pair, pair[::-1])} | {"max": "min"}
DROPPED = {"abs", "nextafter", "widen", "outward", "clean", "relu"}
ROUNDING = {"eps", "tiny", "slack", "roundoff", "rounding", "ulps", "_SLACK", "_TINY", "nextafter", "ulp", "shift"}


def _begins(source: str) -> list[int]:
    """Where each line begins, in bytes."""
    begin = [0]
    for line in source.encode().splitlines(keepends=True):
        begin.append(begin[-1] + len(line))
    return begin


def mutants(source: str) -> list[Mutant]:
    """All mutants of a module."""
    begin = _begins(source)
    found = []
    for node in _live(ast.parse(source)):
        for new, kind in _changed(node):
            start, end = begin[node.lineno - 1] + node.col_offset, begin[node.end_lineno - 1] + node.end_col_offset
            text = ast.unparse(new)
            if text == ast.unparse(node):
                continue
            atom = isinstance(new, ast.Name | ast.Constant | ast.Call | ast.Attribute)
            found.append(Mutant(start, end, text if atom else f"({text})", kind))
    return found


def thresholds(source: str) -> list[Mutant]:
    """All thresholds of a module, moved."""
    begin = _begins(source)
    found = []
    for node in _live(ast.parse(source)):
        for place in _thresholds(node):
            start, end = begin[place.lineno - 1] + place.col_offset, begin[place.end_lineno - 1] + place.end_col_offset
            text = ast.unparse(place)
            found += [Mutant(start, end, f"(({text}) {by} 1.2)", "threshold") for by in "*/"]
    return found


def _thresholds(node: ast.expr) -> Iterator[Any]:
    """The sides of a comparison of magnitudes, and what caps one."""
    constant = lambda v: isinstance(v, ast.Constant) and isinstance(v.value, int | float)
    moves = lambda v: constant(v) and v.value != 0 and not isinstance(v.value, bool)
    names = {"eps", "tiny", "largest", "flattest", "room"}
    units = lambda v: bool({n.id for n in ast.walk(v) if isinstance(n, ast.Name)} & names)
    # What is counted by whole numbers is no magnitude.
    count = lambda v: isinstance(v, ast.Name | ast.Attribute)
    match node:
        case ast.Compare(left=left, ops=[ast.Lt() | ast.LtE() | ast.Gt() | ast.GtE()], comparators=[right]):
            if count(left) and isinstance(getattr(right, "value", None), int):
                return
            if moves(right) or (units(right) and not constant(left)):
                yield right
        case ast.Call(func=ast.Attribute(attr="minimum" | "maximum" | "clip"), args=[_, *rest]):
            yield from (v for v in rest if moves(v) or (isinstance(v, ast.Call) and units(v)))


def _live(node: ast.AST) -> Iterator[Any]:
    """The expressions of a module that say what it computes: not its messages, types, decorators and imports."""
    if isinstance(node, ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom | ast.Assert):
        return
    if isinstance(node, ast.expr):
        yield node
    if isinstance(node, ast.keyword) and node.arg == "strict":
        return
    for name, value in ast.iter_fields(node):
        if name not in ("annotation", "returns", "decorator_list", "bases"):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from _live(child)


def _mentions_rounding(node: ast.AST) -> bool:
    names = {
        n.id if isinstance(n, ast.Name) else n.attr for n in ast.walk(node) if isinstance(n, ast.Name | ast.Attribute)
    }
    return bool(names & ROUNDING)


def _changed(node: ast.expr) -> Iterator[tuple[ast.expr, str]]:
    """What an expression may be changed into, and what kind of change this is."""

    def edited(**fields: Any) -> Any:
        new = copy.copy(node)
        for name, value in fields.items():
            setattr(new, name, value)
        return new

    match node:
        case ast.Compare(ops=[op]) if type(op) in COMPARE:
            for other in COMPARE[type(op)]:
                yield edited(ops=[other()]), "comparison"
        case ast.Compare(ops=[first, *rest]):
            for i, op in enumerate([first, *rest]):
                other = COMPARE[type(op)][0]()
                yield edited(ops=[other if j == i else o for j, o in enumerate(node.ops)]), "comparison"
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub() | ast.Mult(), right=right) if _mentions_rounding(
            right
        ) and not _mentions_rounding(left):
            yield left, "rounding dropped"
        case ast.BinOp(op=op) if type(op) in BINARY:
            yield edited(op=BINARY[type(op)]()), "arithmetic"
        case ast.BoolOp(op=op, values=values):
            yield edited(op=ast.Or() if isinstance(op, ast.And) else ast.And()), "and, or"
            for i in range(len(values)):
                rest = [v for j, v in enumerate(values) if j != i]
                yield rest[0] if len(rest) == 1 else edited(values=rest), "condition dropped"
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            yield operand, "negation dropped"
        case ast.UnaryOp(op=ast.Invert(), operand=operand):
            yield operand, "negation dropped"
        case ast.IfExp(body=body, orelse=orelse):
            yield edited(body=orelse, orelse=body), "branches exchanged"
        case ast.Constant(value=bool() as value):
            yield ast.Constant(not value), "constant"
        case ast.Constant(value=int() as value):
            yield ast.Constant(value + 1), "constant"
        case ast.Constant(value=float() as value) if value:
            yield ast.Constant(2 * value), "constant"
            yield ast.Constant(0.5 * value), "constant"
        case ast.Attribute(attr=name, ctx=ast.Load()) if name in OTHER:
            yield (
                edited(attr=OTHER[name]),
                "ends exchanged" if name in ("lower", "upper", "low", "high") else "min, max",
            )
        case ast.Name(id=name, ctx=ast.Load()) if name in OTHER:
            yield edited(id=OTHER[name]), "ends exchanged" if name not in ("max", "min", "any", "all") else "min, max"
        case ast.Call(func=func, args=[first, *rest]):
            name = func.attr if isinstance(func, ast.Attribute) else func.id if isinstance(func, ast.Name) else ""
            if name in ("where", "_where") and len(rest) == 2:
                yield edited(args=[first, rest[1], rest[0]]), "branches exchanged"
            elif name in DROPPED:
                yield first, "rounding dropped" if name in ("nextafter", "widen", "outward") else "call dropped"
            elif name in ("Interval", "intersect") and len(rest) == 1:
                yield first if name == "intersect" else edited(args=[rest[0], first]), "ends exchanged"
        case ast.Tuple(elts=[one, other], ctx=ast.Load()) if not isinstance(one, ast.Constant | ast.Slice):
            yield edited(elts=[other, one]), "ends exchanged"


# --- running

WARM = (
    "jax.numpy",
    "scipy.stats",
    "equinox",
    "diffrax",
    "optax",
    "hypothesis",
    "hypothesis.extra.numpy",
    "pytest",
    "mpmath",
    "jaxtyping",
    "beartype",
)
WARM += (
    "flint",
    "einops",
    "tqdm",
    "lineax",
    "optimistix",
    "numpy.testing",
    "jax.flatten_util",
    "jax.experimental.mesh_utils",
)


def run(folder: Path, tests: str, seconds: float, log: Path) -> tuple[str, float]:
    """One run of tests in a process of its own: `"survived"`, `"killed"` or `"timeout"`, and how long it took."""
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        _child(folder, tests, log)
    while time.monotonic() - began < seconds:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            if code in (4, 5):
                raise SystemExit(f"pytest {tests}: no tests were run\n{log.read_text()[-2000:]}")
            return ("survived" if code == 0 else "killed"), time.monotonic() - began
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "timeout", time.monotonic() - began


def _child(folder: Path, tests: str, log: Path) -> None:
    code = 1
    try:
        os.setsid()
        sink = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        os.chdir(folder)
        sys.path[:] = [str(folder), *(p for p in sys.path if Path(p).resolve() not in (ROOT, ROOT / "benchmarks"))]
        # Without the check of types, which takes longer than most of these tests.
        options = [
            "-x",
            "-q",
            "--tb=line",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:benchmark",
            "-o",
            "addopts=",
            "-o",
            "filterwarnings=",
        ]
        code = int(pytest.main([*options, *(() if "mutants" in tests else ("-m", "not slow")), *shlex.split(tests)]))
    except BaseException as error:
        print(type(error).__name__, error, file=sys.stderr)
    finally:
        sys.stdout.flush()
        os._exit(code)


def judged(
    module: str, selections: Sequence[str], chosen: list[Mutant], folder: Path, seconds: float, known: Any
) -> dict[str, Any]:
    """What becomes of mutants of a module; of those that were looked at before, only of what is left of them."""
    place, log = folder / module, folder / "log.txt"
    source = place.read_bytes()
    outcome, took = "survived", 0.0
    for tests in selections:
        outcome, took = run(folder, tests, 10 * seconds, log)
        if outcome != "survived":
            raise SystemExit(f"{module}: {tests}: {outcome} without a mutation\n{log.read_text()[-3000:]}")
    print(f"{module}: {len(chosen)} mutants, tests of {took:.1f} s", flush=True)
    counts: collections.Counter[str] = collections.Counter()
    left = []
    waiting = None if known is None else {(m["was"], m["became"]) for m in known["left"]}
    for number, mutant in enumerate(chosen):
        line = source[: mutant.start].count(b"\n")
        was = source[mutant.start : mutant.end].decode()
        if waiting is not None and (was, mutant.new) not in waiting:
            counts["killed"] += 1
            continue
        place.write_bytes(source[: mutant.start] + mutant.new.encode() + source[mutant.end :])
        # Python knows compiled files by size and time.
        os.utime(place, (number, number))
        for tests in selections:
            outcome, took = run(folder, tests, seconds, log)
            if outcome != "survived":
                break
        text = source.splitlines()[line].decode().strip()
        why = reason(module, text, was, mutant.new)
        if outcome == "survived" and why is not None:
            outcome = "equivalent"
        counts[outcome] += 1
        print(f"  {outcome:10} {took:5.1f} s  {line + 1}: {was!r} -> {mutant.new!r}", flush=True)
        if outcome != "killed":
            record = {"outcome": outcome, "kind": mutant.kind, "line": text, "was": was, "became": mutant.new}
            left.append({**record, "why": why} if outcome == "equivalent" else record)
    place.write_bytes(source)
    return {"mutants": len(chosen), **counts, "left": left}


def total(records: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The counts of a group, and the share of its mutants that tests see of those that are none in disguise."""
    add = lambda what: sum(r.get(what, 0) for r in records.values())
    out = {what: add(what) for what in ("mutants", "killed", "timeout", "survived", "equivalent")}
    return {**out, "score": round((out["killed"] + out["timeout"]) / max(1, out["mutants"] - out["equivalent"]), 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Mutation testing.")
    parser.add_argument("--per-module", type=int, default=12, help="mutants drawn for each module")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--groups", nargs="*", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--modules", default="*", help="a pattern of module names")
    parser.add_argument(
        "--tests",
        default="all",
        choices=("all", "old", "new"),
        help="of the table: those written for mutants, the others, or both",
    )
    parser.add_argument("--thresholds", action="store_true", help="move every threshold of the rules with switches")
    parser.add_argument("--again", action="store_true", help="only what the record has left, with the same sample")
    parser.add_argument("--seconds", type=float, default=120.0, help="for the tests of one mutant")
    parser.add_argument("--out", type=Path, help="the record; what it has of other groups and tests is kept")
    options = parser.parse_args()
    os.environ |= {"CI": "true", "PYTHONDONTWRITEBYTECODE": "1", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    os.environ |= {
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    record = json.loads(options.out.read_text()) if options.out and options.out.exists() else {}
    before = copy.deepcopy(record)
    with tempfile.TemporaryDirectory() as name:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{name}/compiled"
        folder = Path(name, "copy")
        ignored = shutil.ignore_patterns(".git", ".venv", "__pycache__", "out", "runs", "*.png", ".hypothesis")
        shutil.copytree(ROOT, folder, ignore=ignored)
        compileall.compile_dir(folder, quiet=1)
        os.environ["PYTHONPATH"] = str(folder)
        for module in WARM:
            importlib.import_module(module)
        gc.freeze()
        for group in ("switches",) if options.thresholds else options.groups:
            found = dict(before.get(group, {}).get(options.tests, {}).get("modules", {}))
            for module, (new, old) in (SWITCHES if options.thresholds else TARGETS[group]).items():
                if fnmatch.fnmatch(module, options.modules):
                    selections = {"all": (new, old), "new": (new,), "old": (old,)}[options.tests]
                    source = (ROOT / module).read_text()
                    every = sorted(set(thresholds(source) if options.thresholds else mutants(source)))
                    # More of them are the same and others besides.
                    random.Random(f"{options.seed} {module}").shuffle(every)
                    chosen = sorted(every if options.thresholds else every[: options.per_module])
                    known = before[group][options.tests]["modules"][module] if options.again else None
                    outcome = judged(module, selections, chosen, folder, options.seconds, known)
                    found[module] = {"possible": len(every), **outcome}
                    summary = {**total(found), "per_module": options.per_module, "seed": options.seed, "modules": found}
                    record.setdefault(group, {})[options.tests] = summary
                    if options.out:
                        options.out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
            print(f"{group}: {total(found)}", flush=True)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message=r"(?s).*os\.fork")
    main()
