"""The checker by itself: its rules hold what they say, programs are the functions they were made of, and no tampered proof passes."""

import copy
import itertools
import json
import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flint import ctx
from hypothesis import given, settings, strategies as st
from test_prove import attraction

import lyapunov_dsl as ld
from lyapunov_checker import Refused, _rules as rules, check
from lyapunov_checker._file import read, seal
from lyapunov_checker._program import Graph, read_program
from lyapunov_checker._tree import leaves
from lyapunov_dsl._prove._export import export

pytestmark = pytest.mark.usefixtures("quick_module")

FUNCTIONS = {
    "exp": math.exp,
    "log": math.log,
    "sqrt": math.sqrt,
    "tanh": math.tanh,
    "logistic": lambda x: 1 / (1 + math.exp(-x)),
    "softplus": lambda x: math.log1p(math.exp(x)),
    "atan": math.atan,
    "erf": math.erf,
    "reciprocal": lambda x: 1 / x,
    "relu": lambda x: max(x, 0.0),
    "step": lambda x: float(x > 0),
    "square": lambda x: x * x,
    "sin": math.sin,
    "cos": math.cos,
}
# Only of positive numbers.
POSITIVE = ("log", "sqrt")


@pytest.fixture(autouse=True)
def precision():
    before, ctx.prec = ctx.prec, 96
    yield
    ctx.prec = before


def value(row, symbols):
    """An affine form at values of its symbols, with what the others may add."""
    known = row[0] + sum((a * e for a, e in zip(row[1:], symbols, strict=False)), rules.ZERO)
    return known, sum((abs(a) for a in row[1 + len(symbols) :]), rules.ZERO)


def inside(form, i, symbols, number):
    """Whether a form holds a number, which a float function found, at a point of the box."""
    slack = 1e-12 * (1 + abs(number))
    known, rest = value(form.rows[i], symbols)
    low, high = float(form.low[i]) - slack, float(form.high[i]) + slack
    # Balls are compared: it is outside only where all of the one are outside of all of the other.
    return not abs(known - number) > rest + slack and low <= number <= high


@pytest.mark.parametrize("name", FUNCTIONS)
@settings(max_examples=60, deadline=None)
@given(start=st.floats(-6, 6), size=st.floats(-7, 0.9), at=st.lists(st.floats(-1, 1), min_size=1, max_size=8))
def test_functions_of_one_number(name, start, size, at):
    low = abs(start) + 1e-3 if name in POSITIVE else start
    high = low + 10**size
    if name == "reciprocal" and low <= 0 <= high:
        low, high = 0.1, 0.1 + 10**size
    x = rules.box([low], [high], itertools.count(1))
    y = rules.unary(name, x)
    for e in (-1.0, 1.0, 0.0, *at):
        point = min(max(0.5 * (low + high) + 0.5 * (high - low) * e, low), high)
        assert inside(y, 0, [e], FUNCTIONS[name](point))


def test_nothing_is_known_outside_of_the_domain():
    for name, low, high in (
        ("log", -1.0, 1.0),
        ("sqrt", -1e-9, 1.0),
        ("reciprocal", -1.0, 1.0),
        ("reciprocal", -1.0, 2.0),
        ("reciprocal", -0.5, 3.0),
        ("sqrt", 0.0, 0.0),
        ("reciprocal", 0.0, 1.0),
    ):
        y = rules.unary(name, rules.box([low], [high], itertools.count(1)))
        assert not y.high[0] <= 1e300
        assert not y.low[0] >= -1e300


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), width=st.floats(0, 1.5))
def test_products_maps_and_means(seed, width):
    rng = np.random.default_rng(seed)
    center, e = rng.normal(size=4), rng.uniform(-1, 1, 4)
    e[rng.random(4) < 0.4] = 1.0
    x = rules.box((center - width).tolist(), (center + width).tolist(), itertools.count(1))
    point = center + width * e
    symbols = e.tolist() if width else []
    table = rng.normal(size=(4, 4))
    entries = [(i, j, rules.arb(table[i, j])) for i in range(4) for j in range(4)]
    for matrix in (rules.Matrix(4, None, entries), rules.Matrix(4, rules.arb_mat(table.tolist()), [])):
        y = rules.affine([(matrix, x)])
        t = table @ point
        assert all(inside(y, i, symbols, t[i]) for i in range(4))
        z = rules.multiply(x, y)
        assert all(inside(z, i, symbols, (point * t)[i]) for i in range(4))
        p = np.exp(point) / np.exp(point).sum()
        assert inside(rules.logsumexp(x), 0, symbols, np.log(np.exp(point).sum()))
        assert inside(rules.softmean(x, y), 0, symbols, p @ t)


@pytest.mark.parametrize("count", [0, 1, 2, 5])
@pytest.mark.parametrize("width", [1e-3, 0.3, 2.0])
def test_a_form_cut_short_still_holds_every_value(count, width):
    center, rng = np.array([0.4, -0.2]), np.random.default_rng(count)

    def chain(x, cut):
        # Of a value by itself, of itself and of what was cut before.
        for _ in range(3):
            y = cut(rules.unary("tanh", x))
            x = cut(rules.multiply(y, cut(rules.affine([(turn, x), (turn, y)]))))
        return x

    matrix = [[0.5, -1.0], [2.0, 0.25]]
    turn = rules.Matrix(2, rules.arb_mat(matrix), [])
    fresh = itertools.count(1)
    x = rules.box((center - width).tolist(), (center + width).tolist(), fresh)
    short = chain(x, lambda form: rules.short(form, count))
    whole = chain(x, lambda form: form)
    # What the form says at a point of its first symbols, and the whole interval.
    for sign in rng.uniform(-1, 1, (200, 2)):
        x = center + width * sign
        for _ in range(3):
            y = np.tanh(x)
            x = y * (np.asarray(matrix) @ (x + y))
        for i, value in enumerate(x):
            assert short.low[i] <= value + 1e-12
            assert short.high[i] >= value - 1e-12
            row = short.rows[i]
            assert len(row) <= 1 + count
            if count >= 2:
                said = row[0] + sum((a * float(s) for a, s in zip(row[1:3], sign, strict=False)), rules.ZERO)
                others = sum((abs(a) for a in row[3:]), rules.ZERO)
                assert abs(said - float(value)).lower() <= float(others.upper()) + 1e-12
    # It says less, and not much less where the box is small.
    wide = [float(f.high[0] - f.low[0]) for f in (short, whole)]
    assert wide[0] >= wide[1] * (1 - 1e-9)
    if width < 0.01 and count >= 2:
        assert wide[0] < 1.1 * wide[1]


def exported(function, *shapes):
    """A function as the checker computes it at a point."""
    record, arrays = export("f", function, *shapes)
    program, graph = read_program("f", record, arrays), Graph()
    inputs = [graph.input(max(1, math.prod(s))) for s in shapes]
    output = graph.inline(program, inputs)

    def at(*points):
        fresh = itertools.count(1)
        forms = {
            i: rules.box(np.ravel(p).tolist(), np.ravel(p).tolist(), fresh) for i, p in zip(inputs, points, strict=True)
        }
        (found,) = graph.values([output], forms)
        return np.array([float(found.ball(i).mid()) for i in range(len(found.rows))])

    return at, graph, inputs, output


W = np.random.default_rng(1).normal(size=(4, 3))
PROGRAMS = {
    "pendulum": (lambda t, x: jnp.stack([x[1], -jnp.sin(x[0]) - (0.5 + t) * x[1]]), (), (2,)),
    "network": (lambda x: jnp.tanh(W @ x + 1) @ W, (3,)),
    "quadratic": (lambda x: x @ (W.T @ W) @ x, (3,)),
    "cross entropy": (lambda x: ld.cross_entropy(x, jnp.asarray(2)), (5,)),
    "activations": (lambda x: jax.nn.softplus(x) + jax.nn.relu(x) * jnp.abs(x) / (1 + x**2) + jax.nn.silu(x), (5,)),
    "choices": (
        lambda x: jnp.max(x) + jnp.min(x) + jnp.clip(x, -1, 1).sum() - x[2] ** 3 + jnp.maximum(x[0], x[1]),
        (5,),
    ),
    "roots": (
        lambda x: jnp.exp(x)[1] * jnp.sqrt(1 + x[0] ** 2) + jax.lax.rsqrt(2 + x[1] ** 2) - jnp.log1p(x[2] ** 2),
        (5,),
    ),
    "matrices": (lambda x: jnp.einsum("ij,jk->ik", x, x), (3, 3)),
    "loop": (lambda x: jax.lax.fori_loop(0, 3, lambda i, s: jnp.sin(s) + x, x), (2,)),
    "moves": (lambda x: jnp.concatenate([x[::-1], jnp.pad(x[1:], 1), jnp.cumsum(x)]) * 1.5 - 0.25, (4,)),
    "convolution": (lambda x: jnp.convolve(x, jnp.asarray([1.0, -2.0, 0.5]), mode="same"), (6,)),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_is_the_function_it_was_made_of(name):
    function, *shapes = PROGRAMS[name]
    at, graph, inputs, output = exported(function, *shapes)
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        for _ in range(3):
            points = [rng.normal(size=s) for s in shapes]
            expected = np.ravel(function(*map(jnp.asarray, points)))
            assert at(*points) == pytest.approx(expected, rel=1e-12, abs=1e-12)
        # Derivatives are the checker's own.
        direction = rng.normal(size=shapes[-1])
        moved = graph.derivative(output, {inputs[-1]: graph.constant(np.ravel(direction).tolist())})
        of_last = lambda x: jnp.ravel(function(*map(jnp.asarray, points[:-1]), x))
        _, expected = jax.jvp(of_last, (jnp.asarray(points[-1]),), (jnp.asarray(direction),))
        fresh = itertools.count(1)
        forms = {
            i: rules.box(np.ravel(p).tolist(), np.ravel(p).tolist(), fresh) for i, p in zip(inputs, points, strict=True)
        }
        (found,) = graph.values([moved], forms)
        assert [float(found.ball(i).mid()) for i in range(len(expected))] == pytest.approx(
            np.asarray(expected), rel=1e-10, abs=1e-10
        )


def test_unknown_operations_are_named():
    with pytest.raises(ld.bounds.UnknownPrimitive, match="primitive sort"):
        export("f", jnp.sort, (3,))


def test_trees_leave_no_gap():
    arrays = {
        "t.rule": np.array([0, 1, 0, 2, 3], np.int8),
        "t.axis": np.array([0, 0, 1, 0, 0]),
        "t.at": np.array([0.5, 0, 0.25, 0, 0]),
    }
    found = list(leaves("t", arrays, [0.0, 0.0], [1.0, 1.0]))
    assert [(leaf.low, leaf.high) for leaf in found] == [
        ([0.0, 0.0], [0.5, 1.0]),
        ([0.5, 0.0], [1.0, 0.25]),
        ([0.5, 0.25], [1.0, 1.0]),
    ]
    for part, wrong in (
        ("rule", [0, 1, 0, 2, 0]),
        ("rule", [0, 1, 2, 2, 3]),
        ("at", [1.5, 0, 0.25, 0, 0]),
        ("at", [np.nan, 0, 0, 0, 0]),
        ("axis", [2, 0, 1, 0, 0]),
    ):
        with pytest.raises(Refused):
            list(leaves("t", {**arrays, f"t.{part}": np.asarray(wrong)}, [0.0, 0.0], [1.0, 1.0]))


@pytest.fixture(scope="module")
def proof(tmp_path_factory):
    path = tmp_path_factory.mktemp("proof") / "proof.npz"
    attraction("pendulum", 0.98).proof.save(path)
    return path


def rewritten(path, header, arrays):
    """A file that says something else and whose hash is right."""
    header = {**header, "sha256": seal(header, arrays)}
    np.savez(path, header=np.frombuffer(json.dumps(header).encode(), np.uint8), **arrays)
    return path


def accepted(path):
    """Whether the checker accepts a file; it has to say why where it does not."""
    try:
        check(path)
    except Refused:
        return False
    return True


def meaning(header, arrays):
    """The values of the programs at a few points; `None` where they cannot be read."""
    out = []
    try:
        for name, sizes in (("field", (1, 2)), ("value", (1, 2)), ("comparison", (1, 1))):
            program, graph = read_program(name, header["programs"][name], arrays), Graph()
            inputs = [graph.input(n) for n in sizes]
            output, fresh = graph.inline(program, inputs), itertools.count(1)
            for point in ((0.3, 0.7), (-1.1, 0.4), (0.9, -1.3)):
                forms = {
                    i: rules.box(list(point[-n:]), list(point[-n:]), fresh) for i, n in zip(inputs, sizes, strict=True)
                }
                (found,) = graph.values([output], forms)
                out += [float(found.ball(i).mid()) for i in range(len(found.rows))]
    except (Refused, ValueError, KeyError, IndexError):
        return None
    return out


def set_at(tree, keys, new):
    for key in keys[:-1]:
        tree = tree[key]
    tree[keys[-1]] = new


# What each mutation says is false, or makes no sense.
HEADER = {
    "format": "lyapunov proof 2",
    "claims": ["decrease", "definite", "enclosed", "invariant"],
    "domain.lower": [-9.0, -9.0],
    "domain.upper": [9.0, 9.0],
    "domain.upper ": [math.inf, 3.0],
    "domain.lower ": [-3.0],
    "level": [None, 1.02 * 9.287],
    "level ": [None, math.nan],
    "level  ": [None, None],
    "equilibrium": [0.1, 0.0],
    "equilibrium ": None,
    "equilibrium  ": [50.0, 0.0],
    "time": [1.0, 0.0],
    "time ": [0.0],
    "ball": {"center": [0.0, 0.0], "radius": 100.0},
    "faces": [0],
    "faces ": [7],
    "tube": [[0.0, 0.0, -9.0, -9.0, 9.0, 9.0]],
    "start": {"lower": [0.0], "upper": [0.0]},
    "perturbation": {"center": [0.0], "radius": -1.0, "gain": 0.0, "slope": 0.0},
    "programs.field.output": 2,
    "programs.value.output": 10**6,
    "programs.field.operations": [],
}


@pytest.mark.parametrize("field", HEADER)
def test_a_header_that_says_something_else_is_refused(proof, tmp_path, field):
    header, arrays = read(proof)
    header = copy.deepcopy(header)
    set_at(header, field.strip().split("."), HEADER[field])
    with pytest.raises(Refused):
        check(rewritten(tmp_path / "mutated.npz", header, arrays))


def test_a_proof_without_any_of_its_parts_is_refused(proof, tmp_path):
    header, arrays = read(proof)
    for key in header:
        less = {k: v for k, v in header.items() if k != key}
        with pytest.raises(Refused):
            check(rewritten(tmp_path / "mutated.npz", less, arrays))
    for name in arrays:
        less = {k: v for k, v in arrays.items() if k != name}
        with pytest.raises(Refused):
            check(rewritten(tmp_path / "mutated.npz", header, less))


def test_arrays_that_say_something_else_are_refused(proof, tmp_path):
    header, arrays = read(proof)
    for name, array in arrays.items():
        mutations = {"shape": array[:-1] if array.ndim == 1 else array[:, :-1]}
        if array.dtype.kind == "f":
            # A factor of -3 on every other number of the field, of V or of the rate makes a claim false; a cut elsewhere leaves the box.
            mutations |= {
                "nan": array * np.nan,
                "scaled": array * np.resize([-3.0, 1.0], array.shape) + (name.endswith(".at") * 100.0),
                "type": array.astype(np.complex128),
            }
        else:
            mutations |= {"beyond": array + 1, "type": array.astype(np.float64)}
        for what, mutated in mutations.items():
            if np.array_equal(mutated, array) and mutated.dtype == array.dtype:
                continue
            if accepted(rewritten(tmp_path / "mutated.npz", header, {**arrays, name: mutated})):
                # Only where it is no change: an operation that nothing uses.
                assert meaning(header, {**arrays, name: mutated}) == meaning(header, arrays), (name, what)


def test_operations_that_are_others_are_refused(proof, tmp_path):
    header, arrays = read(proof)
    for name, program in header["programs"].items():
        for i, operation in enumerate(program["operations"]):
            changes = [{"size": operation["size"] + 1}, {"name": "unheard of"}]
            if operation["args"]:
                changes += [{"args": [i] * len(operation["args"])}, {"args": operation["args"][:-1]}]
            if operation["name"] == "sin":
                changes += [{"name": "exp"}, {"name": "cos"}]
            for change in changes:
                mutated = copy.deepcopy(header)
                mutated["programs"][name]["operations"][i] |= change
                if accepted(rewritten(tmp_path / "mutated.npz", mutated, arrays)):
                    assert meaning(mutated, arrays) == meaning(header, arrays), (name, i, change)


def test_any_change_is_seen_by_the_hash(proof, tmp_path):
    header, arrays = read(proof)
    header = {**header, "sha256": seal(header, arrays)}
    for change in ({**header, "strict": False}, {**header, "claims": ["decrease"]}):
        np.savez(tmp_path / "changed.npz", header=np.frombuffer(json.dumps(change).encode(), np.uint8), **arrays)
        with pytest.raises(Refused, match="changed after it was written"):
            check(tmp_path / "changed.npz")
    data = bytearray(proof.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "bit.npz").write_bytes(data)
    with pytest.raises(Refused):
        check(tmp_path / "bit.npz")


def test_leaves_that_do_not_hold_are_refused(proof, tmp_path):
    header, arrays = read(proof)
    # The whole region as one leaf, by every rule.
    for claim in ("decrease", "definite", "enclosed.0.lower"):
        for rule in range(1, 7):
            one = {
                f"{claim}.rule": np.array([rule], np.int8),
                f"{claim}.axis": np.array([0]),
                f"{claim}.at": np.array([0.0]),
            }
            # V is above the level on a whole face, and a quadratic has one matrix of second derivatives.
            if (claim, rule) in (("enclosed.0.lower", 1), ("definite", 4)):
                continue
            assert not accepted(rewritten(tmp_path / "mutated.npz", header, {**arrays, **one})), (claim, rule)


def test_the_checker_needs_neither_jax_nor_the_library(proof):
    code = (
        "import sys, runpy\n"
        "sys.argv = ['lyapunov_checker', sys.argv[1]]\n"
        "try: runpy.run_module('lyapunov_checker', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "assert not {'jax', 'lyapunov_dsl', 'equinox', 'scipy'} & set(sys.modules)\n"
    )
    found = subprocess.run([sys.executable, "-c", code, str(proof)], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert "tends to the equilibrium" in found.stdout
