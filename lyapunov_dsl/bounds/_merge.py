"""Programs are rewritten before they run: constant factors are taken out of products and sums and merged, constants that are
added are added to one another first, and quotients of quotients become quotients of products.

In real numbers that changes nothing. In floating point a product that nobody wrote may overflow or underflow: (x c)(y d) is
evaluated as (x y)(c d). So each value has `Factors`, between which the product of the constants lies that may be taken out of it,
as logarithms, which cannot overflow themselves. What may get lost is in `Node.lost`, which the engine adds to the slack;
`docs/proofs.md` has the table of what compilers do.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from .._types import is_traced
from ._graph import Graph, Value
from ._interval import Interval, eps, magnitude, tiny, wide
from ._rule import (
    NONE,
    Const,
    Node,
    Plane,
    Relaxation,
    Rule,
    added,
    affine,
    exactly,
    once,
    reach as sum_of_sizes,
)


class Factors(NamedTuple):
    """The constants that a compiler may take out of a value, all or some of them.

    **Arguments:**

    - `least`, `most`: binary logarithms of the smallest and largest product of such constants, `least <= 0 <= most`.
    - `bare`: where one of them is 0, a scalar node above the size of the value without constants, of which the value says nothing.
    """

    least: Any = 0.0
    most: Any = 0.0
    bare: Node | None = None

    @property
    def trivial(self) -> bool:
        """Whether there are none, as far as that is known."""
        return self.bare is None and all(not is_traced(v) and v == 0 for v in self[:2])


ONE = Factors()


def logarithms(value: Const) -> tuple[Any, Any, bool]:
    """Binary logarithms of the smallest absolute value that is not 0 and of the largest, and whether 0 may be among them."""
    if not np.prod(value.shape):
        return 0.0, 0.0, False
    traced = is_traced(value.value) or is_traced(value.slack)
    np_ = jnp if traced else np
    size = np_.abs(np_.asarray(value.value, wide() if traced else np.float64))
    slack = 0.0 if value.slack is None else np_.asarray(value.slack, size.dtype)
    with np.errstate(divide="ignore", invalid="ignore"):
        high, low = np_.log2(size + slack), np_.log2(size - slack)
        # Where a constant may be 0 or is NaN there is no logarithm.
        known = size > slack
        high = np_.max(np_.where(np_.isnan(high), np.inf, np_.where(high == -np.inf, 0.0, high)))
        low = np_.min(np_.where(known, low, np.inf))
    low = np_.where(low == np.inf, np_.minimum(high, 0.0), low)
    if traced:
        return low, high, True
    return float(low), float(high), not bool(np.all(known))


def larger(x: Any, y: Any) -> Any:
    return jnp.maximum(x, y) if is_traced(x) or is_traced(y) else max(x, y)


def smaller(x: Any, y: Any) -> Any:
    return -larger(-x, -y)


def two_to(exponent: Any) -> Any:
    """2 to a power, infinite where ranges have no such number."""
    if is_traced(exponent):
        return jnp.exp2(exponent)
    return math.inf if exponent >= jnp.finfo(wide()).maxexp else 2.0**exponent


# What is lost.


def lose(node: Node, more: Callable[..., Any]) -> None:
    """Adds to the slack of a node: (node, its range, ranges of its inputs) -> slack."""
    before = node.lost
    node.lost = more if before is None else lambda *args: added(before(*args), more(*args))


def lose_merged(node: Node, least: Any, most: Any) -> None:
    """Counts that a product of constants between 2^least and 2^most may be infinite, or 0 or short of digits."""
    info = jnp.finfo(node.dtype)
    over, under = most > info.maxexp - 1e-3, least < info.minexp + 1
    if not is_traced(over) and not is_traced(under) and not over and not under:
        return
    lose(node, lambda node, out, *_: jnp.where(over, jnp.inf, jnp.where(under, magnitude(out), 0)))


def lose_without(node: Node, factors: Factors) -> None:
    """Counts that the value without its constant factors may overflow, or become 0 and be multiplied by them afterwards."""
    above, below = two_to(-factors.least), tiny(node.dtype) * two_to(factors.most)
    most = 0.25 * float(jnp.finfo(node.dtype).max)

    def lost(node: Node, out: Interval, *ranges: Interval) -> Any:
        # What is added up is as large as its terms.
        size = sum_of_sizes(node, *ranges) if node.rule is affine else magnitude(out)
        return jnp.where(size * above < most, below, jnp.inf)

    lose(node, lost)


def lose_taken(graph: Graph, node: Node, x: Node, y: Node, one: Factors, other: Factors) -> Node:
    """Counts that (x c) y may be evaluated as x (y c), as where y is broadcast, and (x)(y d) as (x d) y."""
    if one.trivial and other.trivial:
        return node
    most = 0.25 * float(jnp.finfo(node.dtype).max)

    def lost(node: Node, out: Interval, first: Interval, second: Interval) -> Any:
        found: Any = 0.0
        for own, size, factors in ((first, second, one), (second, first, other)):
            largest = jnp.max(magnitude(size), initial=0.0) * two_to(factors.most)
            # In this order, as the product of both sizes may vanish itself.
            below = jnp.max(magnitude(own), initial=0.0) * (4 * tiny(node.dtype) * two_to(-factors.least))
            found = found + jnp.where(largest < most, below, jnp.inf)
        return jnp.broadcast_to(found, node.shape)

    if x in node.inputs and y in node.inputs:
        i, j = node.inputs.index(x), node.inputs.index(y)
        lose(node, lambda node, out, *ranges: lost(node, out, ranges[i], ranges[j]))
        return node
    return rewritten(graph, node, [x, y], lost)


# Partial products, from the smallest to the largest.


def _envelope_range(node: Node, *parts: Interval) -> Interval:
    low, high = jnp.ones((), wide()), jnp.ones((), wide())
    for part, inner in zip(parts, node.inputs, strict=True):
        nearest = jnp.maximum(jnp.maximum(part.lower, -part.upper), 0)
        size = magnitude(part)
        if node.shape == () and inner.shape != ():
            nearest, size = jnp.min(nearest), jnp.max(size)
        low, high = low * jnp.minimum(nearest, 1), high * jnp.maximum(size, 1)
    return Interval(jnp.broadcast_to(low, node.shape), jnp.broadcast_to(high, node.shape))


envelope_rule = Rule("partial products", _envelope_range, exactly, guides=0)


def envelope(graph: Graph, *values: Value, scalar: bool = False) -> Node:
    """All partial products of the sizes of some values: entry by entry where the shapes agree, or as one number."""
    nodes = [graph.point(v) if isinstance(v, Const) else v for v in values]
    shapes = {n.shape for n in nodes} - {()}
    shape = next(iter(shapes)) if len(shapes) == 1 and not scalar else ()
    return graph.add(envelope_rule, nodes, shape, wide(), virtual=True)


def _rewritten_slack(node: Node, out: Interval, *ranges: Interval) -> Any:
    return NONE if node.virtual else node.data(node, out, *ranges[1:])


def _rewritten_relax(node: Node, out: Interval, *inputs: Interval) -> Relaxation:
    plane = Plane((lambda c: c, *[None] * (len(inputs) - 1)), NONE)
    return Relaxation(plane, plane, NONE)


_rule = Rule("rewritten", lambda node, x, *_: x, _rewritten_slack, _rewritten_relax, guides=0, again=once)


def rewritten(graph: Graph, node: Node, others: Sequence[Node], slack: Callable[..., Any]) -> Node:
    """A value that compilers evaluate otherwise: (node, its range, ranges of the others) -> slack."""
    return graph.add(_rule, [node, *others], node.shape, node.dtype, slack)


def _without_zeros(graph: Graph, node: Node, bare: Node | None) -> Node:
    """Counts that the value without constants, of which some are 0, may overflow: 0 times infinity is NaN."""
    if bare is None:
        return node
    most = 0.25 * float(jnp.finfo(node.dtype).max)
    return rewritten(graph, node, [bare], lambda node, out, size: jnp.where(size.upper < most, 0.0, jnp.inf))


# Constants of values.


def sources(graph: Graph, node: Node) -> Sequence[Node]:
    """The inputs of a node that moves numbers only, or changes their signs, or what it may be evaluated as."""
    if node in graph.same:
        return graph.same[node]
    moves = node.rule is affine and node.data.terms == 0 and node.data.uncertain is None and node.data.shift is None
    return [i for i in node.inputs if i.is_float] if moves and node.is_float else ()


def is_copied(graph: Graph, value: Value) -> bool:
    """Whether all entries of a value may be copies of fewer, as far as a compiler sees."""
    if isinstance(value, Node):
        return value in graph.copies
    if is_traced(value.value) or is_traced(value.slack):
        return True
    known = np.asarray(value.value)
    return bool(known.size == 0 or (known == known.flat[0]).all())


def factors_of(graph: Graph, value: Value) -> Factors:
    """The constants that may be taken out of a value; a constant is one of its own."""
    if isinstance(value, Const):
        low, high, zero = logarithms(value)
        return Factors(smaller(low, 0.0), larger(high, 0.0), envelope(graph) if zero else None)
    if value not in graph.factors:
        found = ONE
        for each in [factors_of(graph, source) for source in sources(graph, value)]:
            bare = [b for b in (found.bare, each.bare) if b is not None]
            found = Factors(
                smaller(found.least, each.least),
                larger(found.most, each.most),
                envelope(graph, *bare) if len(bare) == 2 else bare[0] if bare else None,
            )
        graph.factors[value] = found
    return graph.factors[value]


def _stripped(graph: Graph, value: Value, factors: Factors) -> Node:
    """A scalar above the size of a value without constants."""
    if factors.bare is not None:
        return factors.bare
    size, room = envelope(graph, value, scalar=True), two_to(-factors.least)
    rule = Rule("without constants", lambda node, x: Interval(x.lower, x.upper * room), exactly, guides=0)
    return graph.add(rule, [size], (), wide(), virtual=True)


def scaled(graph: Graph, x: Node, factor: Const, out: Node, divide: bool = False) -> Node:
    """x times, or divided by, a constant, which may become one number with those before it."""
    low, high, zero = logarithms(factor)
    if divide:
        low, high = -high, -low
    before = factors_of(graph, x)
    low, high = low + before.least, high + before.most
    if divide or not before.trivial:
        lose_merged(out, low, high)
    bare = _stripped(graph, x, before) if zero else before.bare
    graph.factors[out] = Factors(smaller(low, 0.0), larger(high, 0.0), bare)
    return out


def _multiplied(graph: Graph, x: Node, y: Node, out: Node) -> Node:
    """(x c)(y d), which may be evaluated as (x y)(c d)."""
    one, other = factors_of(graph, x), factors_of(graph, y)
    if one.trivial and other.trivial:
        return out
    factors = Factors(one.least + other.least, one.most + other.most)
    lose_merged(out, factors.least, factors.most)
    lose_without(out, factors)
    out = lose_taken(graph, out, x, y, one, other)
    if one.bare is not None or other.bare is not None:
        bare = envelope(graph, _stripped(graph, x, one), _stripped(graph, y, other))
        out, factors = _without_zeros(graph, out, bare), factors._replace(bare=bare)
    graph.factors[out] = factors
    return out


def raised(graph: Graph, x: Node, out: Node, exponent: int) -> Node:
    """(x c)^n, which may be evaluated as x^n c^n; |x c|^2 is evaluated as (x c)^2 is."""
    sized = exponent % 2 == 0 and x.rule is not None and x.rule.name == "abs"
    factors = factors_of(graph, x.inputs[0] if sized else x)
    if factors.trivial:
        return out
    powers = Factors(exponent * factors.least, exponent * factors.most)
    lose_merged(out, powers.least, powers.most)
    lose_without(out, powers)
    if factors.bare is not None:
        bare = envelope(graph, *[factors.bare] * exponent)
        out, powers = _without_zeros(graph, out, bare), powers._replace(bare=bare)
    graph.factors[out] = powers
    return out


def common_of(one: Factors, other: Factors) -> Factors:
    """The constants that both of two values may have."""
    return Factors(larger(one.least, other.least), smaller(one.most, other.most))


def _summed(graph: Graph, x: Node, y: Node, out: Node) -> Node:
    """x c + y c, which may be evaluated as (x + y) c: what both have in common is taken out."""
    common = common_of(factors_of(graph, x), factors_of(graph, y))
    if not common.trivial:
        lose_without(out, common)
    graph.factors[out] = common
    return out


def shift_of(graph: Graph, node: Node) -> Any:
    """The sum of the sizes of the constants that were added to a value last."""
    if node not in graph.shifts:
        found = 0.0
        for source in sources(graph, node):
            found = larger(found, shift_of(graph, source))
        graph.shifts[node] = found
    return graph.shifts[node]


def _shifted(graph: Graph, x: Node, constant: Const, out: Node) -> Node:
    """(x + c) + d, which may be evaluated as x + (c + d): what rounds there is as large as c, though x + c may be small."""
    if is_traced(constant.value) or is_traced(constant.slack):
        largest = jnp.max(magnitude(constant.range()), initial=0.0)
    else:
        size = np.abs(np.asarray(constant.value, np.float64)) + np.asarray(
            0.0 if constant.slack is None else constant.slack
        )
        largest = float(np.max(size, initial=0.0))
    before = shift_of(graph, x)
    if is_traced(before) or before > 0:
        lost = eps(out.dtype) * (before + largest)
        lose(out, lambda node, out, *_: lost)
    graph.shifts[out] = before + largest
    return out


# By the name of the primitive: (graph, equation, operands, result) -> result.


def _mul(graph: Graph, equation: Any, operands: Sequence[Value], out: Node) -> Node:
    x, y = operands if isinstance(operands[0], Node) else operands[::-1]
    assert isinstance(x, Node)
    return scaled(graph, x, y, out) if isinstance(y, Const) else _multiplied(graph, x, y, out)


def _add(graph: Graph, equation: Any, operands: Sequence[Value], out: Node) -> Node:
    x, y = operands if isinstance(operands[0], Node) else operands[::-1]
    assert isinstance(x, Node)
    return _shifted(graph, x, y, out) if isinstance(y, Const) else _summed(graph, x, y, out)


def contracted(equation: Any, operands: Sequence[Value]) -> int:
    """How many products a contraction or a convolution sums up for each entry."""
    if equation.primitive.name == "dot_general":
        (axes, _), _ = equation.params["dimension_numbers"]
        return math.prod(operands[0].shape[a] for a in axes)
    spec = equation.params["dimension_numbers"].rhs_spec
    return math.prod(s for a, s in enumerate(operands[1].shape) if a != spec[0])


def _contracted(graph: Graph, equation: Any, operands: Sequence[Value], out: Node) -> Node:
    """A sum of products. Constants stay within it, but for a sum of one."""
    x, y = operands if isinstance(operands[0], Node) else operands[::-1]
    assert isinstance(x, Node)
    count = contracted(equation, operands)
    # Sums of copies are so many times one of them.
    copied = all(is_copied(graph, v) for v in operands)
    if isinstance(y, Node):
        found = _multiplied(graph, x, y, out)
    elif count == 1 or copied or not factors_of(graph, x).trivial:
        found = scaled(graph, x, y, out)
    else:
        return out
    if count != 1 and copied:
        return repeated(graph, found, count)
    if count != 1:
        graph.factors[found] = ONE
    return found


def repeated(graph: Graph, out: Node, count: int) -> Node:
    """Counts that a sum of copies, which has their constants, may be evaluated as one of them times their number."""
    found = factors_of(graph, out)
    lose_merged(out, found.least, found.most + math.log2(count))
    graph.factors[out] = found._replace(most=found.most + math.log2(count))
    return out


MERGES: dict[str, Callable[..., Node]] = {
    "mul": _mul,
    "add": _add,
    "add_any": _add,
    "sub": _add,
    "dot_general": _contracted,
    "conv_general_dilated": _contracted,
}
