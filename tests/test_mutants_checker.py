"""What the checker must and must not accept, at the very edge: proofs written by hand, and its rules against Arb at single points."""

import itertools
import math

import numpy as np
import pytest
from flint import arb, arb_mat, ctx
from proof_files import ONE_BOX, cut, fine, write

from lyapunov_checker import Refused, _proof, _rules as rules, check
from lyapunov_checker._file import read, seal
from lyapunov_checker._program import UNARY, Graph, read_program
from lyapunov_checker._tree import leaves


@pytest.fixture(autouse=True)
def precision():
    before, ctx.prec = ctx.prec, 96
    yield
    ctx.prec = before


# --- rules: every point of a box, without slack

EXACT = {
    **{name: getattr(arb, name) for name in ("exp", "log", "sqrt", "tanh", "atan", "erf", "sin", "cos")},
    "logistic": lambda x: 1 / (1 + (-x).exp()),
    "softplus": lambda x: (1 + x.exp()).log(),
    "reciprocal": lambda x: 1 / x,
    "relu": lambda x: x.max(arb(0)),
    "square": lambda x: x * x,
}
# The largest second derivative.
BENT = {"tanh": 0.77, "atan": 0.65, "erf": 0.97, "sin": 1, "cos": 1, "logistic": 0.1, "softplus": 0.25, "square": 2}
SIDED = ("log", "sqrt", "reciprocal")
ENDS = [
    (-3.0, -1.0),
    (-2.0, 0.5),
    (-0.25, 1.5),
    (0.5, 3.0),
    (1.0, 1.125),
    (-0.5, 0.5),
    (-1.0, 0.0),
    (0.0, 2.0),
    (0.75, 0.75),
    (2.0, 9.0),
]


def holds(form, symbols, values, i=0):
    """Whether a form may have a value at a point, which is known as a ball."""
    row = form.rows[i]
    said = row[0] + sum((a * e for a, e in zip(row[1:], symbols, strict=False)), arb(0))
    rest = sum((abs(a) for a in row[1 + len(symbols) :]), arb(0))
    return not (abs(said - values) > rest or values < form.low[i] or values > form.high[i])


@pytest.mark.parametrize("name", EXACT)
def test_functions_of_one_number_hold_every_value_and_little_more(name):
    for low, high in ENDS:
        if name in SIDED and low <= 0:
            continue
        x = rules.box([low], [high], itertools.count(1))
        y = rules.unary(name, x)
        found = []
        for e in np.linspace(-1, 1, 65).tolist():
            # With more digits than the rules have.
            ctx.prec = 300
            at = arb(low) + (arb(high) - arb(low)) * (1 + arb(e)) / 2
            found.append(EXACT[name](at))
            ctx.prec = 96
            assert holds(y, [e] if low < high else [], found[-1]), (low, high, e)
        # The range is that of a monotone function, and the line as near as the curvature allows.
        width, slack = high - low, 1e-12
        if name not in ("sin", "cos"):
            assert float(y.high[0]) <= max(map(float, found)) + slack
            # The samples may miss where a square is least.
            assert float(y.low[0]) >= min(map(float, found)) - (0.001 * width**2 if name == "square" else slack)
        if name in BENT:
            assert float(sum((abs(a) for a in y.rows[0][2:]), arb(0))) <= BENT[name] * width**2 / 8 * (1 + 1e-6) + slack
        elif low == high:
            assert float(sum((abs(a) for a in y.rows[0][1:]), arb(0))) <= slack


@pytest.mark.parametrize("name", ["exp", "log", "sqrt", "reciprocal"])
def test_lines_of_convex_and_concave_functions_are_near(name):
    # Between a tangent and the chord there is at most the curvature times the width squared / 8.
    bend = {"exp": math.exp(1.25), "log": 1.0, "sqrt": 0.25, "reciprocal": 2.0}[name]
    y = rules.unary(name, rules.box([1.0], [1.25], itertools.count(1)))
    assert float(sum((abs(a) for a in y.rows[0][2:]), arb(0))) <= bend * 0.25**2 / 8 / 2 * 1.05


def test_steps_and_jumps():
    at = lambda name, low, high: rules.unary(name, rules.box([low], [high], itertools.count(1)))
    for low, high, least, most in (
        (-2.0, -1.0, 0, 0),
        (1.0, 2.0, 1, 1),
        (-1.0, 1.0, 0, 1),
        (0.0, 1.0, 0, 1),
        (-1.0, 0.0, 0, 1),
    ):
        y = at("step", low, high)
        assert (float(y.low[0]), float(y.high[0])) == (least, most)
    assert at("jump", 0.5, 1.0).high[0] == at("jump", -1.0, -0.5).low[0] == 0
    for ends in ((0.0, 1.0), (-1.0, 0.0), (-1.0, 1.0)):
        assert not at("jump", *ends).high[0] <= 1e300
    # What may be undefined is, whatever the other end is.
    for ends in ((arb.nan(), arb(-1)), (arb(1), arb.nan()), (arb.nan(), arb.nan())):
        assert all(v.is_nan() for v in rules.SHAPES["step"][1](*ends))
        assert any(v.is_nan() for v in rules.SHAPES["step"][0](*ends))
    nothing = rules.unary("log", rules.box([-1.0], [1.0], itertools.count(1)))
    for name in ("step", "square", "relu", "sin", "tanh"):
        y = rules.unary(name, nothing)
        assert not y.high[0] <= 1e300
        assert not y.low[0] >= -1e300


@pytest.mark.parametrize("low", [0.0, -1e-30, -1.0])
@pytest.mark.parametrize("name", SIDED)
def test_at_the_edge_of_a_domain_nothing_is_known(name, low):
    y = rules.unary(name, rules.box([low], [1.0], itertools.count(1)))
    assert not y.high[0] <= 1e300
    assert not y.low[0] >= -1e300
    assert all(not abs(v) <= 1e300 for v in y.rows[0][:1])


def corners_of(forms, symbols):
    return itertools.product(*([[-1.0, -0.5, 0.0, 0.25, 1.0]] * symbols))


def test_products_maps_and_means_hold_every_value():
    low, high = [-0.5, 0.25, -2.0], [1.0, 0.75, -1.0]
    fresh = itertools.count(1)
    x = rules.box(low, high, fresh)
    table = [[1.0, -2.0, 0.5], [0.0, 3.0, -1.0], [-0.25, 0.0, 1.5]]
    entries = [(i, j, arb(v)) for i, row in enumerate(table) for j, v in enumerate(row) if v]
    sparse, dense = rules.Matrix(3, None, entries), rules.Matrix(3, arb_mat(table), [])
    maps = [rules.affine([(m, x)]) for m in (sparse, dense)]
    both = rules.affine([(dense, x), (sparse, maps[0])])
    products = rules.multiply(x, maps[0])
    same = rules.multiply(x, x)
    means = [rules.softmean(x, maps[0]), rules.logsumexp(x), rules.logsumexp(maps[1]), rules.softmean(maps[1], x)]
    matrix = arb_mat(table)
    for e in itertools.product([-1.0, -0.4, 0.0, 1.0], repeat=3):
        ctx.prec = 300
        point = [(arb(a) + arb(b)) / 2 + (arb(b) - arb(a)) / 2 * arb(s) for a, b, s in zip(low, high, e, strict=True)]
        t = [v[0] for v in (matrix * arb_mat([[p] for p in point])).tolist()]
        t2 = [v[0] for v in (matrix * arb_mat([[p] for p in t])).tolist()]
        mean = lambda z, v: (
            sum((a.exp() * b for a, b in zip(z, v, strict=True)), arb(0)) / sum((a.exp() for a in z), arb(0))
        )
        top = lambda z: sum((a.exp() for a in z), arb(0)).log()
        wanted = (mean(point, t), top(point), top(t), mean(t, point))
        ctx.prec = 96
        for i in range(3):
            assert all(holds(m, e, t[i], i) for m in maps)
            assert holds(both, e, t[i] + t2[i], i)
            assert holds(products, e, point[i] * t[i], i)
            assert holds(same, e, point[i] ** 2, i)
        for form, value in zip(means, wanted, strict=True):
            assert holds(form, e, value)
    # The ranges of maps are exact, those of products of two intervals too.
    for m in maps:
        for i, row in enumerate(table):
            ends = [sorted((c * a, c * b)) for c, a, b in zip(row, low, high, strict=True)]
            assert float(m.low[i]) == pytest.approx(sum(a for a, _ in ends), abs=1e-12)
            assert float(m.high[i]) == pytest.approx(sum(b for _, b in ends), abs=1e-12)
    for a, b, c, d in itertools.product((-2.0, -0.5, 0.0, 1.5), repeat=4):
        if a <= b and c <= d:
            found = [p * q for p in (a, b) for q in (c, d)]
            least, most = rules.corners(arb(a), arb(b), arb(c), arb(d))
            assert (float(least), float(most)) == (min(found), max(found))
    # x² is not x times another number of the same box: at the center it is half as far off.
    assert [float(sum((abs(a) for a in row[4:]), arb(0))) for row in same.rows] == pytest.approx(
        [(b - a) ** 2 / 8 for a, b in zip(low, high, strict=True)]
    )


def test_means_and_sums_of_exponentials_are_near_where_the_box_is_small():
    fresh = itertools.count(1)
    x = rules.box([0.0, 1.0, 2.0], [1e-3, 1.001, 2.001], fresh)
    t = rules.box([5.0, 6.0, 7.0], [5.001, 6.001, 7.001], fresh)
    total, mean = rules.logsumexp(x), rules.softmean(x, t)
    # The value moves by at most that of the arguments, and of a mean by half the spread of what is averaged besides.
    assert float(total.high[0] - total.low[0]) <= 1e-3 * (1 + 1e-9)
    assert float(mean.high[0] - mean.low[0]) <= 1e-3 * (1 + 2) * 1.01
    assert float(sum((abs(a) for a in total.rows[0][4:]), arb(0))) < 1e-6
    assert float(sum((abs(a) for a in mean.rows[0][7:]), arb(0))) < 1e-5
    wide = rules.softmean(rules.box([-9.0] * 3, [9.0] * 3, fresh), rules.box([1.0, 2.0, 3.0], [1.5, 2.5, 4.0], fresh))
    assert 1 - 1e-12 <= float(wide.low[0]) <= float(wide.high[0]) <= 4 + 1e-12
    # Of two there is no better bound: one of the weights says all.
    for a, b in ((-1.0, 0.5), (0.0, 3.0), (-4.0, 4.0)):
        two = rules.softmean(rules.box([a, 0.0], [b, 0.0], fresh), rules.box([1.0, -2.0], [1.0, -2.0], fresh))
        weight = lambda z: 1 / (1 + math.exp(-z))
        assert float(two.low[0]) == pytest.approx(3 * weight(a) - 2)
        assert float(two.high[0]) == pytest.approx(3 * weight(b) - 2)
    # Far from 0 nothing overflows.
    far = rules.logsumexp(rules.box([4e5, 4e5], [4e5, 4e5], fresh))
    assert float(far.high[0]) == pytest.approx(4e5 + math.log(2), rel=1e-14)


def test_what_a_row_and_an_interval_say_is_both_kept():
    fresh = itertools.count(1)
    row = [arb(1), arb(0.5), arb(-0.25)]
    found = rules.known([row, row, row], [arb(-9), arb(0.5), arb.nan()], [arb(9), arb(1.5), arb.nan()], fresh)
    assert [float(v) for v in found.low] == [0.25, 0.5, 0.25]
    assert [float(v) for v in found.high] == [1.75, 1.5, 1.75]
    lost = rules.known([[arb.nan()]], [arb(-2)], [arb(3)], fresh)
    assert (float(lost.low[0]), float(lost.high[0])) == (-2, 3)
    ball = found.ball(1)
    assert ball.contains(arb(0.5))
    assert ball.contains(arb(1.5))


def test_a_box_is_what_it_says():
    x = rules.box([0.0, 2.0, -1.0], [1.0, 2.0, 3.0], itertools.count(1))
    assert [[float(v) for v in row] for row in x.rows] == [[0.5, 0.5], [2.0], [1.0, 0.0, 2.0]]
    assert ([float(v) for v in x.low], [float(v) for v in x.high]) == ([0.0, 2.0, -1.0], [1.0, 2.0, 3.0])
    short = rules.short(x, 1)
    assert all(len(row) <= 2 for row in short.rows)
    assert short.rows[2][0].contains(arb(-1))
    assert short.rows[2][0].contains(arb(3))
    assert not short.rows[0][0].contains(arb(1))


# --- programs

DERIVED = {name: exact for name, exact in EXACT.items() if name != "relu"}


@pytest.mark.parametrize("name", DERIVED)
def test_derivatives_of_functions_of_one_number(name):
    g = Graph()
    x = g.input(1)
    y = g.unary(name, x)
    first = g.derivative(y, {x: g.constant([1.0])})
    second = g.derivative(first, {x: g.constant([1.0])})
    step = arb(2) ** -20
    for at in (0.3, 0.9, 1.7):
        f = lambda v: DERIVED[name](v)
        ctx.prec = 300
        slope = (f(arb(at) + step) - f(arb(at) - step)) / (2 * step)
        bend = (f(arb(at) + step) - 2 * f(arb(at)) + f(arb(at) - step)) / step**2
        ctx.prec = 96
        found = g.values([first, second], {x: rules.box([at], [at], itertools.count(1))})
        assert float(found[0].low[0]) == pytest.approx(float(slope), rel=1e-9, abs=1e-9)
        assert float(found[1].low[0]) == pytest.approx(float(bend), rel=1e-8, abs=1e-8)


def test_derivatives_of_kinks():
    g = Graph()
    x = g.input(1)
    first = g.derivative(g.unary("relu", x), {x: g.constant([1.0])})
    second = g.derivative(first, {x: g.constant([1.0])})
    at = lambda low, high: g.values([first, second], {x: rules.box([low], [high], itertools.count(1))})
    assert [float(f.low[0]) for f in at(1.0, 2.0)] == [1, 0]
    assert [float(f.high[0]) for f in at(-2.0, -1.0)] == [0, 0]
    assert not at(-1.0, 1.0)[1].high[0] <= 1e300
    with pytest.raises(Refused, match="derivative of jump"):
        g.derivative(g.unary("jump", x), {x: g.constant([1.0])})


def test_derivatives_of_operations_on_vectors():
    g = Graph()
    x, u = g.input(3), g.input(3)
    twisted = g.add(
        "affine",
        [x, u],
        3,
        [rules.Matrix(3, arb_mat([[1, 2, 0], [0, -1, 1], [3, 0, 1]]), []), rules.Matrix(3, None, [(0, 2, arb(2))])],
    )
    values = {
        "logsumexp": g.add("logsumexp", [twisted], 1),
        "softmean": g.add("softmean", [twisted, g.multiply(x, u)], 1),
        "constants": g.add("softmean", [twisted, g.constant([1.0, 2.0, 3.0])], 1),
        "of constants": g.add("softmean", [g.constant([1.0, 2.0, 3.0]), x], 1),
        "multiply": g.dot([1.0, -2.0, 3.0], g.multiply(twisted, g.unary("sin", x))),
        "pick": g.pick(1, g.multiply(x, x)),
        "combine": g.pick(2, g.combine((2, x), (-3, u))),
    }
    point, other, way = [0.3, -0.2, 0.5], [1.0, 0.4, -0.6], [0.7, -1.0, 0.25]
    step = 2.0**-24
    at = lambda of, p: g.values(
        [of], {x: rules.box(p, p, itertools.count(1)), u: rules.box(other, other, itertools.count(100))}
    )[0].low[0]
    for name, of in values.items():
        moved = g.derivative(of, {x: g.constant(way)})
        assert g.size(moved) == 1
        ctx.prec = 200
        ends = [at(of, [p + s * step * w for p, w in zip(point, way, strict=True)]) for s in (1, -1)]
        expected = float((ends[0] - ends[1]) / (2 * step))
        assert float(at(moved, point)) == pytest.approx(expected, rel=1e-8, abs=1e-8), name
    assert g.derivative(g.unary("sin", u), {x: g.constant(way)}) is None
    # The same operation is there once.
    assert g.multiply(x, u) == g.multiply(x, u) != g.multiply(u, x)


def test_programs_may_be_long():
    g = Graph()
    x = g.input(1)
    y = x
    for _ in range(3000):
        y = g.combine((1, y), (0, x))
    assert g.derivative(y, {x: g.constant([1.0])}) is not None


def test_programs_that_do_not_fit_are_refused():
    good = [
        {"name": "input", "args": [], "size": 2},
        {"name": "constant", "args": [], "size": 2, "value": "c"},
        {"name": "affine", "args": [0], "size": 3, "matrices": [{"dense": "m"}]},
        {"name": "affine", "args": [0], "size": 2, "matrices": [{"places": "p", "values": "v"}]},
        {"name": "multiply", "args": [0, 1], "size": 2},
        {"name": "sin", "args": [0], "size": 2},
        {"name": "logsumexp", "args": [0], "size": 1},
        {"name": "softmean", "args": [0, 1], "size": 1},
    ]
    arrays = {
        "c": np.ones(2),
        "m": np.arange(6.0).reshape(3, 2),
        "p": np.array([[0, 1], [1, 0]]),
        "v": np.ones(2),
    }
    whole = read_program("f", {"operations": good, "output": 7}, arrays)
    assert [op.size for op in whole.operations] == [2, 2, 3, 2, 2, 2, 1, 1]
    assert whole.output == 7
    # Rows come first.
    wide = {**arrays, "p": np.array([[0, 0, 1], [0, 1, 1]]), "v": np.array([2.0, 3.0, 5.0])}
    g, made = Graph(), read_program("f", {"operations": good[:4], "output": 3}, wide)
    x = g.input(2)
    (found,) = g.values([g.inline(made, [x])], {x: rules.box([1.0, 10.0], [1.0, 10.0], itertools.count(1))})
    assert [float(v) for v in found.low] == [32.0, 50.0]
    empty = [{"name": "constant", "args": [], "size": 0, "value": "e"}]
    with pytest.raises(Refused):
        read_program("f", {"operations": empty, "output": 0}, {"e": np.zeros(0)})
    bad = [
        (0, {"size": 0}),
        (0, {"args": [0]}),
        (1, {"args": [0]}),
        (1, {"size": 3}),
        (2, {"size": 2}),
        (2, {"args": [2]}),
        (2, {"args": [-1]}),
        (2, {"args": [], "matrices": []}),
        (4, {"args": [0, 2]}),
        (4, {"args": [0]}),
        (4, {"size": 3}),
        (5, {"size": 1}),
        (5, {"args": [0, 0]}),
        (5, {"name": "cbrt"}),
        (6, {"size": 2}),
        (6, {"args": [0, 1]}),
        (6, {"args": []}),
        (7, {"args": [0]}),
        (7, {"args": [0, 2]}),
        (7, {"size": 2}),
    ]
    for i, change in bad:
        operations = [{**op, **change} if j == i else op for j, op in enumerate(good)]
        with pytest.raises((Refused, ValueError)):
            read_program("f", {"operations": operations, "output": 7}, arrays)
    for output in (-1, 8):
        with pytest.raises(Refused):
            read_program("f", {"operations": good, "output": output}, arrays)
    for name, wrong in (
        ("c", np.array([1.0, np.inf])),
        ("c", np.array([1, 1])),
        ("m", np.ones((2, 3))),
        ("p", np.array([[0, 2], [1, 0]])),
        ("p", np.array([[0, 1], [2, 0]])),
        ("p", np.array([[0, -1], [1, 0]])),
        ("p", np.array([[0, 1], [1, -1]])),
        ("p", np.array([[0, 1, 1], [1, 0, 0]])),
        ("p", np.array([[0.0, 1.0], [1.0, 0.0]])),
        ("p", np.array([[0, 1], [1, 0], [0, 0]])),
        ("p", np.array([0, 1])),
        ("v", np.array([np.nan, 1.0])),
    ):
        with pytest.raises((Refused, IndexError)):
            read_program("f", {"operations": good, "output": 7}, {**arrays, name: wrong})
        with pytest.raises(Refused):
            read_program("f", {"operations": good, "output": 7}, {k: v for k, v in arrays.items() if k != name})
    assert {"sin", "exp", "jump"} <= UNARY


# --- trees and files


@pytest.mark.parametrize(
    ("rule", "axis", "at"),
    [
        ([1, 1], [0, 0], [0.0, 0.0]),
        ([0, 1], [0, 0], [0.5, 0.0]),
        ([0, 1, 1], [1, 0, 0], [0.5, 0.0, 0.0]),
        ([0, 1, 1], [-1, 0, 0], [0.5, 0.0, 0.0]),
        ([0, 1, 1], [0, 0, 0], [1.5, 0.0, 0.0]),
        ([0, 1, 1], [0, 0, 0], [-0.5, 0.0, 0.0]),
        ([0, 1, 1], [0, 0, 0], [np.nan, 0.0, 0.0]),
        ([0, 0, 1, 1, 1], [0, 0, 0, 0, 0], [0.5, 0.75, 0.0, 0.0, 0.0]),
        ([], [], []),
        ([1], [0, 0], [0.0]),
        ([1], [0], [0.0, 0.0]),
        ([1.0], [0], [0.0]),
        ([1], [0.0], [0.0]),
        ([1], [0], [0]),
        ([[1]], [[0]], [[0.0]]),
    ],
)
def test_what_is_no_tree_is_refused(rule, axis, at):
    arrays = {"t.rule": np.asarray(rule), "t.axis": np.asarray(axis, None if axis else int), "t.at": np.asarray(at)}
    with pytest.raises(Refused):
        list(leaves("t", arrays, [0.0], [1.0]))


def test_cuts_at_the_ends_of_a_box_are_cuts():
    for at, expected in ((0.0, [(0, 0), (0, 1)]), (1.0, [(0, 1), (1, 1)]), (0.25, [(0, 0.25), (0.25, 1)])):
        arrays = {"t.rule": np.array([0, 1, 1]), "t.axis": np.zeros(3, int), "t.at": np.array([at, 0.0, 0.0])}
        found = [(leaf.low[0], leaf.high[0]) for leaf in leaves("t", arrays, [0.0], [1.0])]
        assert found == expected
    one = {"t.rule": np.array([3]), "t.axis": np.array([0]), "t.at": np.array([0.0])}
    assert [tuple(leaf) for leaf in leaves("t", one, [2.0], [2.0])] == [([2.0], [2.0], 3)]
    for low, high in ((1.0, 0.0), (np.nan, 1.0)):
        for ends in (([low], [high]), ([0.0, low], [1.0, high]), ([low, 0.0], [high, 1.0])):
            with pytest.raises(Refused):
                list(leaves("t", one, *ends))
    for part in ("rule", "axis", "at"):
        with pytest.raises(Refused):
            list(leaves("t", {k: v for k, v in one.items() if k != f"t.{part}"}, [0.0], [1.0]))


# --- whole proofs: dx/dt = A x + u on a box, V = xᵀ P x, dV/dt <= -κ V + c


def about_rest(low, high):
    """Rules for V = |x|² and the level 0.9: about 0 the second derivatives."""
    if all(-0.25 <= a <= 0 <= b <= 0.25 for a, b in zip(low, high, strict=True)):
        return 4
    if sum(max(a, -b, 0.0) ** 2 for a, b in zip(low, high, strict=True)) > 0.9:
        return 2
    return 1 if max(b - a for a, b in zip(low, high, strict=True)) <= 0.125 else None


@pytest.fixture
def verdict(tmp_path):
    """What the checker says of a proof by hand: its sentences, or `None` where it refuses."""

    def say(**proof):
        try:
            return check(write(tmp_path / "proof.npz", **proof)).sentences
        except Refused as error:
            say.reason = str(error)
            print(error)
            return None

    return say


REST = {"equilibrium": [0.0], "strict": True}


@pytest.mark.parametrize(("kappa", "right"), [(1.99, True), (2.0, False), (2.01, False), (-1.0, True)])
def test_decrease_about_an_equilibrium_is_proved_up_to_the_true_rate(verdict, kappa, right):
    # d/dt x² = -2 x².
    found = verdict(matrix=[[-1.0]], kappa=kappa, trees={"decrease": [(4,)]}, **REST)
    assert (found is not None) == right
    if right:
        assert "dV/dt < comparison" in found[0]
        assert "except at the equilibrium" in found[0]


def test_decrease_where_nothing_is_left_over(verdict):
    at = {"matrix": [[0.0]], "kappa": 0.0, "trees": {"decrease": ONE_BOX}}
    assert "dV/dt <= comparison" in verdict(**at)[0]
    assert verdict(**at, strict=True) is None
    assert verdict(**at, constant=1e-9) is not None
    assert verdict(**at, constant=-1e-9) is None
    assert verdict(**{**at, "trees": {"decrease": [(4,)]}}, equilibrium=[0.0]) is None
    # Without an equilibrium, or with one that is elsewhere, there is nothing to be at rest.
    rest = {"matrix": [[-1.0]], "trees": {"decrease": [(4,)]}, "strict": True}
    assert verdict(**rest) is None
    assert verdict(**rest, equilibrium=[0.0]) is not None
    assert verdict(**rest, equilibrium=[0.5]) is None
    assert verdict(**{**rest, "trees": {"decrease": [(0, 1, 0.25), (1,), (4,)]}}, equilibrium=[0.0]) is None


@pytest.mark.parametrize("push", [0.0, 0.01, -0.01])
def test_what_is_at_rest_is_so_at_all_times(verdict, push):
    # At t = 0 nothing moves.
    for n in (1, 2):
        rest = {"matrix": -np.eye(n), "trees": {"decrease": [(4,)]}, "strict": True, "equilibrium": [0.0] * n}
        assert (verdict(**rest, forced=push) is not None) == (push == 0)
        assert (verdict(**{**rest, "time": [0.5, 0.5]}, forced=push) is not None) == (push == 0)


@pytest.mark.parametrize(
    ("rule", "level", "right"),
    [
        (2, [None, 0.2499], True),
        (2, [None, 0.25], False),
        (2, [None, None], False),
        (2, [0.2, None], False),
        (3, [1.01, None], True),
        (3, [1.0, None], False),
        (3, [None, 2.0], False),
        (5, [None, None], False),
        (6, [None, 0.1], False),
        (4, [None, 0.1], False),
    ],
)
def test_leaves_outside_of_the_levels(verdict, rule, level, right):
    # The field is outward, so that nothing decreases; V is in [0.25, 1].
    for domain in ({"lower": [0.5], "upper": [1.0]}, {"lower": [-1.0], "upper": [-0.5]}):
        found = verdict(matrix=[[1.0]], trees={"decrease": [(rule,)]}, level=level, domain=domain)
        assert (found is not None) == right


def test_all_times_count(verdict):
    # d/dt x² = 2 (3 t - 1) x².
    at = {"matrix": [[-1.0]], "kappa": 0.0, "domain": {"lower": [0.5], "upper": [1.0]}, "trees": {"decrease": [(1,)]}}
    assert verdict(**at, changing=0.5) is not None
    assert verdict(**at, changing=3.0) is None
    late = {"lower": [-1.0], "upper": [1.0]}
    faces = {"matrix": [[-1.0]], "claims": ["invariant"], "trees": INWARD, "domain": late}
    assert verdict(**faces, changing=0.5) is not None
    assert verdict(**faces, changing=3.0) is None
    assert verdict(**faces, forced=1.5) is None
    assert verdict(**faces, forced=-1.5) is None


def test_the_levels_are_said(verdict):
    trees = {"decrease": ONE_BOX}
    at = {"matrix": [[-1.0]], "trees": trees, "domain": {"lower": [0.5], "upper": [1.0]}}
    assert "V >= 0.25 and V <= 3.0" in verdict(**at, level=[0.25, 3.0])[0]
    assert "where" not in verdict(**at)[0]
    assert "all times and all states" in verdict(**at)[0]
    assert "all times in [0.0, 1.0] and" in verdict(**at, changing=-0.5, kappa=0.1)[0]


@pytest.mark.parametrize(("corner", "right"), [(0.376, True), (0.375, False), (0.3, False)])
def test_leaves_outside_of_a_ball(verdict, corner, right):
    # (corner, 0.5) is on the circle for 0.375.
    nodes = [(0, 1, corner), (1,), (0, 2, 0.5), (1,), (5,)]
    at = {
        "matrix": [[-1.0, 0.0], [0.0, -1.0]], "constant": 4.0, "trees": {"decrease": nodes},
        "ball": {"center": [0.0, 0.0], "radius": 0.625},
    }  # fmt: skip
    found = verdict(**at)
    assert (found is not None) == right
    if right:
        assert "ball H of radius 0.625" in found[0]
        assert verdict(**{**at, "ball": None}) is None


@pytest.mark.parametrize("center", [-0.5, 0.0, 0.5])
def test_a_ball_is_told_from_a_box_on_either_side(verdict, center):
    ball = {"center": [center], "radius": 0.4}
    for low, high in ((-1.0, center - 0.41), (center + 0.41, 1.0)):
        cut = [(0, 1, high), (5,), (1,)] if low == -1.0 else [(0, 1, low), (1,), (5,)]
        assert verdict(matrix=[[0.0]], kappa=0.0, trees={"decrease": cut}, ball=ball) is not None
    assert verdict(matrix=[[0.0]], kappa=0.0, trees={"decrease": [(5,)]}, ball=ball) is None


@pytest.mark.parametrize(
    ("weight", "nodes", "right"),
    [
        ([[1.0]], [(0, 1, -0.5), (1,), (0, 1, 0.5), (4,), (1,)], True),
        ([[1.0]], [(4,)], True),
        ([[1.0]], [(1,)], False),
        ([[-1.0]], [(4,)], False),
        ([[0.0]], [(4,)], False),
        ([[1.0]], [(0, 1, 0.25), (4,), (4,)], False),
        ([[1.0]], [(2,)], False),
        ([[1.0]], [(5,)], False),
    ],
)
def test_definite(verdict, weight, nodes, right):
    at = {"matrix": [[-1.0]], "weight": weight, "claims": ["definite"], "trees": {"definite": nodes}}
    found = verdict(**at, equilibrium=[0.0])
    assert (found is not None) == right
    if right:
        assert "above 0 elsewhere" in found[0]
        assert verdict(**at) is None
        # V is not 0 there.
        assert verdict(**at, equilibrium=[0.25]) is None


@pytest.mark.parametrize(("mixed", "right"), [(0.9, True), (-0.9, True), (1.0, False), (1.1, False)])
def test_second_derivatives_of_two_states(verdict, mixed, right):
    weight = [[1.0, mixed], [mixed, 1.0]]
    at = {"matrix": [[-1.0, 0.0], [0.0, -1.0]], "weight": weight, "equilibrium": [0.0, 0.0]}
    assert (verdict(**at, claims=["definite"], trees={"definite": [(4,)]}) is not None) == right
    assert (verdict(**at, trees={"decrease": [(4,)]}, strict=True) is not None) == right


@pytest.mark.parametrize("n", [1, 2, 3])
def test_definite_matrices(n):
    rng = np.random.default_rng(n)
    for _ in range(20):
        a = rng.normal(size=(n, n))
        table = a @ a.T + 0.05 * np.eye(n)
        for shift in (0.0, -1.001, -0.999):
            moved = table + shift * np.linalg.eigvalsh(table)[0] * np.eye(n)
            balls = [[arb(float(v)) for v in row] for row in moved]
            assert _proof.definite(balls) == (np.linalg.eigvalsh(moved)[0] > 0)
        # A ball about the matrix that holds one that is not definite.
        least = np.linalg.eigvalsh(table)[0]
        wide = [
            [arb(float(v), float(least) * 1.01 if i == j else 0.0) for j, v in enumerate(row)]
            for i, row in enumerate(table)
        ]
        assert not _proof.definite(wide)
    near = [[arb(1.0, 0.2) if i == j else arb(0.0, 0.7 / max(n - 1, 1)) for j in range(n)] for i in range(n)]
    assert _proof.definite(near)
    assert not _proof.definite([[arb(0.0)] * n for _ in range(n)])


FACES = {f"enclosed.{axis}.{side}": ONE_BOX for axis in range(2) for side in ("lower", "upper")}
STABLE = [[-1.0, 0.0], [0.0, -1.0]]


@pytest.mark.parametrize(
    ("low", "high"),
    [([-1.0, -2.0], [2.0, 2.0]), ([-2.0, -1.0], [2.0, 2.0]), ([-2.0, -2.0], [1.0, 2.0]), ([-2.0, -2.0], [2.0, 1.0])],
)
def test_enclosed_looks_at_every_face(verdict, low, high):
    at = {"matrix": STABLE, "claims": ["enclosed"], "trees": FACES, "domain": {"lower": low, "upper": high}}
    # The nearest face has V = 1 at least.
    assert verdict(**at, level=[None, 0.99]) is not None
    assert verdict(**at, level=[None, 1.0]) is None
    assert verdict(**at, level=[None, None]) is None
    assert verdict(**at, level=[None, 0.99], ball={"center": [0.0, 0.0], "radius": 0.9}) is None
    for face in FACES:
        assert verdict(**{**at, "trees": {**FACES, face: [(2,)]}}, level=[None, 0.99]) is None
        assert verdict(**{**at, "trees": {k: v for k, v in FACES.items() if k != face}}, level=[None, 0.99]) is None


@pytest.mark.parametrize(
    ("constant", "strict", "right"), [(0.49, False, True), (0.5, False, False), (0.5, True, True), (0.51, True, False)]
)
def test_v_has_to_fall_at_the_level(verdict, constant, strict, right):
    at = {"matrix": STABLE, "claims": ["enclosed"], "trees": FACES, "level": [None, 0.5], "strict": strict}
    assert (verdict(**at, constant=constant) is not None) == right
    # Less than "<" is promised at an equilibrium: if V is at the level there, that is not enough.
    if constant == 0.5 and strict:
        assert verdict(**at, constant=constant, equilibrium=[0.0, 0.0]) is not None
        assert verdict(**{**at, "level": [None, 0.25]}, constant=0.25, equilibrium=[0.0, 0.5]) is None


def test_together_they_say_that_all_tends_to_the_equilibrium(verdict):
    trees = {**FACES, "decrease": cut([-1.0] * 2, [1.0] * 2, about_rest)}
    trees["definite"] = [(1,) if node == (2,) else node for node in trees["decrease"]]
    at = {
        "matrix": STABLE, "kappa": 1.0, "claims": ["decrease", "definite", "enclosed"], "trees": trees, "level": [None, 0.9],
        "equilibrium": [0.0, 0.0], "strict": True,
    }  # fmt: skip
    tends = lambda **change: verdict(**{**at, **change})
    stays, ends = "leaves that set", "tends to the equilibrium"
    found = tends()
    assert stays in found[-2]
    assert ends in found[-1]
    said = lambda found: [[what in " ".join(found or ()) for what in (stays, ends)], found is not None]
    # Something less is claimed.
    assert said(tends(claims=["decrease", "enclosed"])) == [[True, False], True]
    assert said(tends(claims=["definite", "enclosed"])) == [[False, False], True]
    assert said(tends(claims=["decrease", "definite"])) == [[False, False], True]
    assert said(tends(level=[0.01, 0.9])) == [[False, False], True]
    # Another field at another time, and a comparison that is above 0 somewhere below the level.
    assert said(tends(changing=-0.25)) == [[True, False], True]
    assert f"at times in [{0.0!r}, {1.0!r}]" in tends(changing=-0.25)[-1]
    assert said(tends(kappa=-0.5, bent=-0.6)) == [[True, False], True]
    assert said(tends(strict=False, trees={**trees, "decrease": [(1,)]}, kappa=1.0)) == [[False, False], False]


INWARD = {"invariant.0.lower": ONE_BOX, "invariant.0.upper": ONE_BOX}


@pytest.mark.parametrize(
    ("slope", "drift", "right"),
    [
        (-1.0, 0.0, True),
        (0.0, 0.0, True),
        (1.0, 0.0, False),
        (-1.0, 1.0, True),
        (-1.0, -1.0, True),
        (-1.0, 1.01, False),
        (-1.0, -1.01, False),
    ],
)
def test_invariant(verdict, slope, drift, right):
    at = {"matrix": [[slope]], "drift": [drift], "claims": ["invariant"], "trees": INWARD}
    found = verdict(**at)
    assert (found is not None) == right
    if right:
        assert found == ("no trajectory that starts in the box H = [-1.0, 1.0] leaves H",)
        assert verdict(**at, ball={"center": [0.0], "radius": 0.5}) is None
        assert verdict(**{**at, "trees": {**INWARD, "invariant.0.upper": [(4,)]}}) is None


@pytest.mark.parametrize(("radius", "right"), [(0.0, True), (0.5, True), (0.99, True), (1.01, False)])
def test_invariant_for_every_context(verdict, radius, right):
    # dx/dt = -x + u.
    at = {"matrix": [[-1.0]], "claims": ["invariant"], "trees": INWARD, "push": {"radius": radius}}
    found = verdict(**at)
    assert (found is not None) == right
    if right:
        assert f"every context within {radius!r}" in found[0]
    # Of a center that is not 0.
    assert (verdict(**{**at, "push": {"radius": radius, "center": [0.25]}}) is not None) == (radius <= 0.75)


def robust(verdict, **change):
    """γ' = -κ γ + 2 ε from 0.25 on, for dx/dt = -x + u and |u| <= ε: |dV/dx| <= 2 on the domain."""
    trees = {**INWARD, "decrease": fine([-1.0], [1.0]), "gain": ONE_BOX, "slope": ONE_BOX}
    at = {
        "matrix": [[-1.0]], "kappa": 1.5, "constant": 0.5, "claims": ["decrease", "invariant", "robust"], "trees": trees,
        "level": [None, 1.0], "start": {"lower": [-0.25], "upper": [0.5]}, "push": {"radius": 0.125},
    }  # fmt: skip
    return verdict(**{**at, **change})


def test_robust_is_a_bound_and_a_close_one(verdict):
    found = robust(verdict)
    assert found is not None
    final = float(found[1].split("is at most ")[1].split(" at t")[0])
    # γ' = 0.5 + 0.25 - 1.5 γ.
    exact = 0.5 + (0.25 - 0.5) * math.exp(-1.5)
    assert exact <= final <= exact * (1 + 1e-3)
    further = robust(verdict, time=[0.5, 2.5])
    final = float(further[1].split("is at most ")[1].split(" at t")[0])
    exact = 0.5 + (0.25 - 0.5) * math.exp(-3)
    assert exact <= final <= exact * (1 + 1e-3)
    mirrored = robust(verdict, start={"lower": [-0.5], "upper": [0.25]})
    assert float(mirrored[1].split("is at most ")[1].split(" at t")[0]) >= 0.5 - 0.25 * math.exp(-1.5)
    # V is what it is at the first time.
    aging = robust(verdict, aging=-0.5, time=[0.5, 1.5])
    assert float(aging[1].split("is at most ")[1].split(" at t")[0]) >= 0.5 + (0.75 * 0.25 - 0.5) * math.exp(-1.5)
    falling = robust(verdict, start={"lower": [-0.25], "upper": [1.0]})
    final = float(falling[1].split("is at most ")[1].split(" at t")[0])
    exact = 0.5 + (1 - 0.5) * math.exp(-1.5)
    assert exact <= final <= exact * (1 + 1e-3)


@pytest.mark.parametrize(
    "change",
    [
        {"push": {"radius": 0.125, "gain": 0.99}},
        {"push": {"radius": 0.125, "slope": 1.99}},
        {"push": {"radius": 0.5}},
        {"start": {"lower": [-0.25], "upper": [1.5]}},
        {"start": {"lower": [-1.5], "upper": [0.5]}},
        {"level": [None, 0.24]},
        {"level": [0.01, 1.0]},
        {"level": [None, None]},
        {"claims": ["decrease", "robust"]},
        {"claims": ["invariant", "robust"]},
    ],
)
def test_robust_needs_its_premises(verdict, change):
    assert robust(verdict, **change) is None


def test_robust_above_the_level_nothing_has_to_be_flat(verdict):
    # V is above 0.25 outside of [-0.5, 0.5], where |dV/dx| = 1.
    outside = [(0, 1, -0.51), (2,), (0, 1, 0.51), (1,), (2,)]
    trees = {**INWARD, "decrease": fine([-1.0], [1.0], 0.02), "gain": ONE_BOX, "slope": outside}
    at = {
        "trees": trees,
        "start": {"lower": [-0.25], "upper": [0.25]},
        "level": [None, 0.25],
        "constant": 0.02,
        "push": {"radius": 0.125, "slope": 1.03},
    }
    assert robust(verdict, **at) is not None
    assert robust(verdict, **{**at, "push": {"radius": 0.125, "slope": 1.0}}) is None
    assert robust(verdict, **{**at, "level": [None, 0.27]}) is None


def pipe(n, low, high, times, rate=1.0):
    """Boxes about what exp(-rate t) makes of a start, a little wider."""
    rows = []
    for a, b in itertools.pairwise(times):
        ends = [[v * math.exp(-rate * t) for t in (a, b)] for v in (low, high)]
        slack = 2 * (b - a) ** 2
        rows.append([a, b, *[min(ends[0]) - slack] * n, *[max(ends[1]) + slack] * n])
    return rows


TIMES = np.linspace(0.0, 1.0, 17).tolist()


def tube_proof(verdict, tube=None, start=(0.4, 0.5), **change):
    tube = pipe(1, *start, TIMES) if tube is None else tube
    at = {"matrix": [[-1.0]], "claims": ["stays"], "start": {"lower": [start[0]], "upper": [start[1]]}, "tube": tube}
    return verdict(**{**at, **change})


def test_a_tube_about_what_decays_holds_it(verdict):
    assert "stays in that tube" in tube_proof(verdict)[0]
    assert tube_proof(verdict, start=(-0.5, -0.4)) is not None
    assert tube_proof(verdict, start=(-0.01, 0.03)) is not None
    assert tube_proof(verdict, tube=pipe(1, 0.4, 0.5, TIMES), matrix=[[-0.9]]) is None
    assert tube_proof(verdict, tube=pipe(1, 0.4, 0.5, TIMES), matrix=[[-1.1]]) is None
    assert tube_proof(verdict, tube=pipe(1, 0.2, 0.3, TIMES, -1.0), start=(0.2, 0.3), matrix=[[1.0]]) is not None


@pytest.mark.parametrize("which", ["lower", "upper"])
def test_a_tube_that_lets_something_out_is_refused(verdict, which):
    tube = pipe(1, 0.4, 0.5, TIMES)
    for i in (0, 7, 15):
        t = tube[i][1] if which == "lower" else tube[i][0]
        true = (0.4 if which == "lower" else 0.5) * math.exp(-t)
        inside = [
            *tube[:i],
            [*tube[i][:2], *((true + 1e-3, tube[i][3]) if which == "lower" else (tube[i][2], true - 1e-3))],
            *tube[i + 1 :],
        ]
        assert tube_proof(verdict, tube=inside) is None


def test_what_is_in_a_tube_at_one_time_is_followed_from_there(verdict):
    # A start that is larger than the tube takes it for, and a field that changes with time.
    assert tube_proof(verdict, tube=pipe(1, 0.4, 0.5, TIMES), start=(0.3, 0.5)) is None
    assert tube_proof(verdict, tube=pipe(1, 0.4, 0.5, TIMES), start=(0.4, 0.6)) is None
    # x' = (-1 + 2 t) x comes back at t = 1 to where it was: exp(-t + t²).
    rows = []
    for a, b in itertools.pairwise(np.linspace(0.0, 1.0, 33).tolist()):
        values = [v * math.exp(t * t - t) for v in (0.4, 0.5) for t in (a, b)]
        rows.append([a, b, min(values) - 0.01, max(values) + 0.01])
    assert tube_proof(verdict, tube=rows, changing=2.0) is not None
    assert tube_proof(verdict, tube=rows, changing=2.5) is None
    assert tube_proof(verdict, tube=rows, changing=1.5) is None


@pytest.mark.parametrize(
    "tube",
    [
        [],
        pipe(1, 0.4, 0.5, TIMES)[1:],
        pipe(1, 0.4, 0.5, TIMES)[:-1],
        [*pipe(1, 0.4, 0.5, TIMES)[:5], *pipe(1, 0.4, 0.5, TIMES)[6:]],
        [[0.0, 1.0, -0.5, 1.5]],
        [[0.0, 1.0, -1.5, 0.5]],
        [[0.0, 1.0, 0.5, -0.5]],
        [[0.0, 2.0, -0.5, 0.5]],
        [[0.0, 1.5, -0.9, 0.9], [1.5, 1.0, -0.9, 0.9]],
    ],
)
def test_what_is_no_tube_is_refused(verdict, tube):
    assert tube_proof(verdict, tube=tube, start=(0.0, 0.0), matrix=[[0.0]]) is None


def test_decrease_in_a_tube_is_about_all_its_pieces(verdict):
    tube = [[0.0, 0.5, 0.2, 0.9], [0.5, 1.0, -0.3, -0.1]]
    # dV/dt = -2 x² <= -v - c where x² >= c.
    at = {"matrix": [[-1.0]], "tube": tube, "kappa": 1.0}
    at["trees"] = {"decrease.0": fine([0.2], [0.9], 0.01), "decrease.1": fine([-0.3], [-0.1], 0.001)}
    found = verdict(**at, constant=-0.009)
    assert "inside of a tube of 2 boxes" in found[0]
    assert verdict(**at, constant=-0.02) is None
    assert verdict(**{**at, "trees": {"decrease.0": at["trees"]["decrease.0"]}}, constant=-0.009) is None
    assert verdict(**at, claims=["enclosed"], level=[None, 0.5]) is None
    assert verdict(matrix=[[-1.0]], claims=["stays"]) is None


def test_faces_and_rates_of_their_own_say_little(verdict):
    nodes = {f"decrease.{i}": ONE_BOX for i in range(2)}
    # At the ends x² = 1.
    at = {"matrix": [[-1.0]], "kappa": 1.0, "faces": [0], "trees": nodes}
    assert "one of the entries [0] at an end" in verdict(**at, constant=-0.9)[0]
    assert verdict(**at, constant=-1.1) is None
    assert verdict(**{**at, "domain": {"lower": [-0.5], "upper": [1.0]}}, constant=-0.9) is None
    assert verdict(**{**at, "domain": {"lower": [-1.0], "upper": [0.5]}}, constant=-0.9) is None
    for change in (
        {"faces": [1]},
        {"faces": [-1]},
        {"claims": ["decrease", "definite"], "equilibrium": [0.0]},
        {"ball": {"center": [0.0], "radius": 1.0}},
        {"tube": [[0.0, 1.0, -1.0, 1.0]]},
    ):
        assert verdict(**{**at, "constant": -0.9, **change}) is None
    # Its own rate is what is compared, and nothing follows about trajectories.
    own = {"matrix": [[1.0]], "rate": -3.0, "kappa": 0.0, "constant": 1e-9, "trees": {"decrease": ONE_BOX}}
    assert "the rate that the certificate is about" in verdict(**own)[0]
    assert verdict(**{**own, "constant": -1e-9}) is None
    assert verdict(**own, claims=["decrease", "enclosed"], level=[None, 0.5]) is None


@pytest.mark.parametrize(
    "change",
    [
        {"domain": {"lower": [1.0], "upper": [1.0]}},
        {"domain": {"lower": [1.0], "upper": [-1.0]}},
        {"domain": {"lower": [-math.inf], "upper": [1.0]}},
        {"domain": {"lower": [-1.0], "upper": [math.inf]}},
        {"domain": {"lower": [-1.0], "upper": [1.0, 2.0]}},
        {"domain": {"lower": [], "upper": []}},
        {"time": [1.0, 0.5]},
        {"time": [-0.5, 1.0]},
        {"time": [0.0, math.inf]},
        {"time": [0.0, math.nan]},
        {"time": [0.0]},
        {"level": [None, math.inf]},
        {"level": [-math.inf, None]},
        {"equilibrium": [1.0]},
        {"equilibrium": [-1.0]},
        {"equilibrium": [0.0, 0.0]},
        {"ball": {"center": [0.0], "radius": 0.0}},
        {"ball": {"center": [0.0], "radius": -0.5}},
        {"ball": {"center": [0.5], "radius": 0.51}},
        {"ball": {"center": [-0.5], "radius": 0.51}},
        {"start": {"lower": [0.5], "upper": [0.4]}},
        {"start": {"lower": [0.0], "upper": [math.inf]}},
        {"start": {"lower": [0.0, 0.0], "upper": [0.0, 0.0]}},
        {"start": {"lower": [0.0], "upper": [0.0, 0.0]}},
        {"start": {"lower": [0.0, 0.0], "upper": [0.0]}},
        {"start": {"lower": [-math.inf], "upper": [0.0]}},
        {"push": {"radius": -0.1}},
        {"push": {"radius": math.inf}},
        {"push": {"radius": 0.1, "gain": math.nan}},
        {"claims": []},
        {"claims": ["decrease", "everything"]},
        {"claims": ["cover"]},
        {"claims": ["whole"]},
        {"claims": ["decrease", "sentences"]},
        {"format": "lyapunov proof 0"},
    ],
)
def test_headers_that_make_no_sense_are_refused(verdict, change):
    at = {"matrix": [[-1.0]], "constant": 2.0, "trees": {"decrease": ONE_BOX}}
    assert verdict(**at) is not None
    assert verdict(**{**at, **change}) is None


def test_every_state_counts_in_a_header(verdict):
    at = {"matrix": STABLE, "constant": 8.0, "trees": {"decrease": ONE_BOX}}
    assert verdict(**at, ball={"center": [0.5, -0.5], "radius": 0.5}) is not None
    for change in (
        {"ball": {"center": [0.5, 0.0], "radius": 0.51}},
        {"ball": {"center": [0.0, -0.5], "radius": 0.51}},
        {"domain": {"lower": [-1.0, 1.0], "upper": [1.0, 1.0]}},
        {"domain": {"lower": [-1.0, -1.0], "upper": [-1.0, 1.0]}},
        {"equilibrium": [0.0, 1.0]},
        {"equilibrium": [-1.0, 0.0]},
        {"start": {"lower": [0.0, 0.1], "upper": [0.0, 0.0]}},
        {"start": {"lower": [0.1, 0.0], "upper": [0.0, 0.0]}},
    ):
        assert verdict(**at, **change) is None
    # A tube leaves the domain along either.
    for row in ([0.0, 1.0, -0.5, -0.5, 0.5, 1.5], [0.0, 1.0, -1.5, -0.5, 0.5, 0.5], [0.0, 1.0, -0.5, 0.6, 0.5, 0.5]):
        assert verdict(**{**at, "trees": {"decrease.0": ONE_BOX}}, tube=[row]) is None
    assert verdict(**{**at, "trees": {"decrease.0": ONE_BOX}}, tube=[[0.0, 1.0, -0.5, -0.5, 0.5, 0.5]]) is not None


def test_a_file_is_read_as_it_was_written(tmp_path):
    path = write(tmp_path / "proof.npz", matrix=[[-1.0]], constant=1.0, trees={"decrease": ONE_BOX})
    header, arrays = read(path)
    assert check(path).boxes == 1
    assert str(check(path)).startswith("proved, in real arithmetic:")
    sealed = seal(header, arrays)
    name = next(iter(arrays))
    array = arrays[name]
    for other in (
        ({**header, "strict": True}, arrays),
        (header, {**arrays, name: array + 1}),
        (header, {**arrays, name: array.reshape(-1, 1, 1)}),
        (header, {**arrays, name: array.astype(">f8")}),
        (header, {("other" if k == name else k): v for k, v in arrays.items()}),
        (header, {**arrays, "more": array}),
    ):
        assert seal(*other) != sealed
    assert seal(header, dict(reversed(arrays.items()))) == seal(dict(reversed(header.items())), arrays) == sealed
    before = ctx.prec = 53
    check(path)
    assert ctx.prec == before
    for wrong in (b"", b"no archive"):
        (tmp_path / "wrong.npz").write_bytes(wrong)
        with pytest.raises(Refused):
            check(tmp_path / "wrong.npz")
    with pytest.raises(Refused):
        check(tmp_path / "missing.npz")
