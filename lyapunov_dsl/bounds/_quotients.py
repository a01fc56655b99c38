"""Quotients of quotients are evaluated as one of products, and quotients as products with one over the divisor."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from . import _graph as graphs
from ._graph import Graph, Value
from ._interval import Interval, magnitude, tiny, wide
from ._merge import (
    MERGES,
    ONE,
    Factors,
    envelope,
    factors_of,
    larger,
    lose,
    lose_merged,
    lose_taken,
    raised,
    rewritten,
    scaled,
    smaller,
    sources,
    two_to,
)
from ._pairs import multiply
from ._rule import Const, Node, affine, roundoff
from ._scalar import reciprocal


class Ratio(NamedTuple):
    """A quotient of products: their partial products, and the constants that may be taken out of each."""

    above: Node
    below: Node
    constants: tuple[Factors, Factors]


def ratio_of(graph: Graph, value: Value) -> Ratio | None:
    """A value as a quotient of products; `None` where no division made it."""
    if isinstance(value, Const):
        return None
    if value not in graph.ratios:
        parts = sources(graph, value)
        found = [ratio_of(graph, part) for part in parts]
        graph.ratios[value] = None
        if value in graph.same:
            ratios = [_reshaped(graph, r, value.shape) for r in found if r is not None]
            graph.ratios[value] = functools.reduce(functools.partial(_either, graph), ratios) if ratios else None
        elif any(found):
            whole = [r or _single(graph, part) for r, part in zip(found, parts, strict=True)]
            above, below = (
                _moved(graph, value, [r.above for r in whole]),
                _moved(graph, value, [r.below for r in whole]),
            )
            first, second = (_hull([r.constants[side] for r in whole]) for side in (0, 1))
            graph.ratios[value] = Ratio(above, below, (first, second))
    return graph.ratios[value]


def _reshaped(graph: Graph, ratio: Ratio, shape: tuple[int, ...]) -> Ratio:
    """A ratio of a value of another shape."""
    fit = lambda part: part if part.shape in (shape, ()) else envelope(graph, part, scalar=True)
    return Ratio(fit(ratio.above), fit(ratio.below), ratio.constants)


def _either(graph: Graph, one: Ratio, other: Ratio) -> Ratio:
    """One of two ratios."""
    above, below = envelope(graph, one.above, other.above), envelope(graph, one.below, other.below)
    first, second = (_hull(pair) for pair in zip(one.constants, other.constants, strict=True))
    return Ratio(above, below, (first, second))


def _hull(factors: Sequence[Factors]) -> Factors:
    """Constants of one of several values."""
    found = ONE
    for each in factors:
        found = Factors(smaller(found.least, each.least), larger(found.most, each.most))
    return found


def _moved(graph: Graph, node: Node, parts: Sequence[Node]) -> Node:
    """Partial products moved as their values are, or as one number where they are no longer entry by entry."""
    if len(parts) == len(node.inputs) and all(p.shape == i.shape for p, i in zip(parts, node.inputs, strict=True)):
        data = node.data._replace(apply=node.data.absolute, span=lambda *x: _ends(node.data.absolute, *x))
        return graph.add(affine, parts, node.shape, wide(), data, virtual=True)
    return envelope(graph, *parts, scalar=True)


def _ends(function: Callable[..., Any], *x: Interval) -> Interval:
    return Interval(function(*(v.lower for v in x)), function(*(v.upper for v in x)))


def _single(graph: Graph, value: Value) -> Ratio:
    """A value over one."""
    one = Const(np.ones(value.shape))
    return Ratio(envelope(graph, value), envelope(graph, one), (factors_of(graph, value), ONE))


def _divided(graph: Graph, x: Value, y: Value, out: Node) -> Node:
    """x / y: (a/b) / (c/d) may be evaluated as (a d) / (b c), and x / y as x times 1 / y."""
    if isinstance(y, Node):
        graph.factors[out] = factors_of(graph, x)
    pair = [ratio_of(graph, v) for v in (x, y)]
    whole = [r or _single(graph, v) for r, v in zip(pair, (x, y), strict=True)]
    (a, b, first), (c, d, second) = whole
    above, below = envelope(graph, a, d), envelope(graph, b, c)
    constants = tuple(
        Factors(u.least + v.least, u.most + v.most) for u, v in ((first[0], second[1]), (first[1], second[0]))
    )
    if any(pair):
        # Nothing is merged where a value is divided alone.
        for factors in constants:
            lose_merged(out, factors.least, factors.most)
        # What is divided by twice comes to stand above, with its constants.
        up, down = constants
        factors = Factors(
            smaller(up.least - down.most, 0.0), larger(up.most - down.least, 0.0), graph.factors[out].bare
        )
        out = rewritten(graph, out, [above, below], quotient_slack(out.dtype, *constants))
        graph.factors[out] = factors
    elif isinstance(x, Node) and isinstance(y, Node) and not factors_of(graph, x).trivial:
        factors = graph.factors[out]
        # (x c) / y may be evaluated as x (c / y).
        inverse = out.inputs[-1] if out.rule is multiply and out.inputs[-1].rule is reciprocal else None
        if inverse is None:
            inverse = graph.add(reciprocal, [y], y.shape, y.dtype, virtual=True)
        out = lose_taken(graph, out, x, inverse, factors_of(graph, x), ONE)
        graph.factors[out] = factors
    graph.ratios[out] = Ratio(above, below, (constants[0], constants[1]))
    return out


def quotient_slack(dtype: Any, first: Factors, second: Factors) -> Callable[..., Any]:
    """What is lost where the products above or below are too small or too large."""
    least, most = tiny(dtype), 0.25 * float(jnp.finfo(dtype).max)

    def slack(node: Node, out: Interval, above: Interval, below: Interval) -> Any:
        # Constants may be taken by one of the others.
        size = above.upper * two_to(larger(-first.least, first.most))
        bottom = below.upper * two_to(larger(-second.least, second.most))
        nearest = below.lower / two_to(second.most)
        good = (size < most) & (bottom < most) & (nearest > 2 * least)
        # A product above that becomes 0.
        lost = 4 * least * size * two_to(first.most) / jnp.where(good, nearest, 1)
        return jnp.where(good, roundoff(node, 6, jnp.minimum(magnitude(out), most)) + lost, jnp.inf)

    return slack


def _lose_inverse(node: Node, x: Value) -> None:
    """Counts that 1 / y may become 0 where x / y is evaluated as x (1 / y), as for a broadcast divisor or an exponential."""
    least = tiny(node.dtype)
    # A node of the engine has 1 / y as its last input.
    if not node.inputs or node.inputs[-1].rule is not reciprocal or node.rule not in (multiply, affine):
        return

    def lost(node: Node, out: Interval, *ranges: Interval) -> Any:
        inverse = ranges[-1]
        nearest = jnp.maximum(jnp.maximum(inverse.lower, -inverse.upper), 0)
        size = magnitude(ranges[0]) if node.rule is multiply else _size(x)
        return jnp.where(nearest < 8 * least, 8 * least * size, 0)

    lose(node, lost)


def _size(x: Value) -> Any:
    assert isinstance(x, Const)
    return magnitude(x.range())


def _div(graph: Graph, equation: Any, operands: Sequence[Value], out: Node) -> Node:
    x, y = operands
    if isinstance(y, Const):
        assert isinstance(x, Node)
        out = scaled(graph, x, y, out, divide=True)
        # Constants that are not known yet may be divided by.
        return out if graphs.concrete(y) is not None else _divided(graph, x, y, out)
    _lose_inverse(out, x)
    return _divided(graph, x, y, out)


def _integer_pow(graph: Graph, equation: Any, operands: Sequence[Value], out: Node) -> Node:
    (x,), exponent = operands, equation.params.get("y", 2)
    assert isinstance(x, Node)
    if exponent >= 0:
        return raised(graph, x, out, exponent)
    found = x if exponent == -1 else out.inputs[0]
    if exponent < -1:
        raised(graph, x, found, -exponent)
    return _divided(graph, Const(np.ones(())), found, out)


def _pow(graph: Graph, equation: Any, operands: Sequence[Value], out: Node) -> Node:
    """A power that is evaluated as products or as a quotient."""
    x, exponent = operands
    known = graphs.concrete(exponent) if isinstance(x, Node) else None
    if known is not None and known.size and np.all(known == known.flat[0]) and known.flat[0] in (2, 3):
        return raised(graph, x, out, int(known.flat[0]))  # pyright: ignore[reportArgumentType]
    return out if known is None or not np.any(known == -1) else _divided(graph, Const(np.ones(())), x, out)


def _logistic(graph: Graph, equation: Any, operands: Sequence[Value], out: Node) -> Node:
    """1 / (1 + exp(-x))."""
    one = Const(np.ones(()))
    return _divided(graph, one, graph.add(reciprocal, [out], out.shape, out.dtype, virtual=True), out)


MERGES |= {
    "div": _div,
    "integer_pow": _integer_pow,
    "square": _integer_pow,
    "pow": _pow,
    "logistic": _logistic,
}
