"""Planes followed back: a linear function of a node becomes one of its inputs that is never smaller, until only the region is
left (CROWN, Zhang et al. 2018)."""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ._interval import Interval, eps, finite_magnitude, magnitude, middle, tiny, wide
from ._rule import NONE, Node, Relaxation, Scale, added, affine
from ._sums import Terms, reach, times, total, weigh


def follow(
    order: Sequence[Node],
    coefficients: Mapping[Node, Any],
    ranges: Mapping[Node, Interval],
    regions: Mapping[Node, Any],
    found: Mapping[Node, Relaxation],
    spreads: Mapping[Node, Any],
) -> tuple[Any, Any]:
    """Σ c v at least and at most, for rows of coefficients c [rows, *shape] of the values v of some nodes; infinite or
    NaN where nothing is known. Where planes below are not those above, only what it is at most is right.

    **Arguments:**

    - `order`: the nodes and all that they depend on, each after its inputs.
    - `coefficients`: for each of the nodes, c.
    - `ranges`, `regions`: ranges of all nodes, and the regions of those that are inputs of the graph.
    - `found`: planes of the others, the rounding of the node's evaluation counted.
    - `spreads`: how far two evaluations of a node may be apart.
    """
    rows = len(next(iter(coefficients.values())))
    steps = _Steps(order, rows, ranges, spreads)
    for node, own in coefficients.items():
        steps.pending[node] = [(own, None)]
        steps.given.add(node)
    for node in reversed(order):
        if node not in steps.pending:
            continue
        terms = steps.pending.pop(node)
        if node not in steps.given:
            terms = [(total(terms), None)]
        loss = steps.carried.get(node, NONE)
        factored: Terms = [(m, None) for m, a in terms if a is not None]
        if factored:
            # Products of factors may underflow, with one another and with values.
            loss = added(loss, 4 * tiny(wide()))
            steps.off = steps.off + reach(factored, jnp.full(node.shape, 8 * tiny(wide())))
        if node.rule is None:
            steps.arrive(node, terms, loss, regions.get(node))
        else:
            steps.descend(node, terms, loss, found[node])
    off = steps.off * (1.01 + 2 * eps(wide()) * (max(node.size for node in order) + len(order)))
    return steps.low - off, steps.high + off


class _Steps:
    """What is known of the sums so far, between `low - off` and `high + off`, and the coefficients of nodes still to come.

    The coefficients of nodes in `given` are matrices of the function's constants with factors for the entries. What plain
    sums lose in rounding is added up (`carried`) before it meets coefficients.
    """

    def __init__(self, order: Sequence[Node], rows: int, ranges: Mapping[Node, Interval], spreads: Mapping[Node, Any]):
        self.low, self.high, self.off = (jnp.zeros(rows, wide()) for _ in range(3))
        self.length, self.ranges, self.spreads = len(order), ranges, spreads
        self.uses = collections.Counter(child for node in order for child in set(node.inputs))
        self.pending: dict[Node, Terms] = {}
        self.given: set[Node] = set()
        self.carried: dict[Node, Any] = {}

    def rounding(self, node: Node) -> Any:
        """What a sum over the entries of a node rounds, relative to what is added up."""
        return eps(wide()) * (self.length + node.size)

    def arrive(self, node: Node, terms: Terms, loss: Any, region: Any) -> None:
        """Adds what the sums are over a region, or over the range of a constant."""
        span = self.ranges[node]
        loss = added(loss, 2 * self.rounding(node) * magnitude(span))
        if region is not None:
            least, most = region.extremes(total(terms))
        else:
            center, half = middle(span)
            least = most = weigh(terms, center)
            loss = loss + half
        self.low, self.high, self.off = self.low + least, self.high + most, self.off + reach(terms, loss)

    def descend(self, node: Node, terms: Terms, loss: Any, found: Relaxation) -> None:
        """Replaces a node by its planes: coefficients of its inputs."""
        loss = added(loss, found.rounding)
        if found.lower is found.upper:
            planes = [(terms, found.upper)]
        else:
            whole = terms[0][0] if len(terms) == 1 and terms[0][1] is None else None
            if whole is None:
                self.given.discard(node)
                whole = total(terms)
            signs: list[Terms] = [[(jnp.maximum(whole, 0), None)], [(jnp.minimum(whole, 0), None)]]
            planes = list(zip(signs, (found.upper, found.lower), strict=True))
        plain = found.lower is found.upper and node.rule is affine and node.data.plain
        carries = plain and len(node.inputs) == 1 and self.uses[node.inputs[0]] == 1
        for part, plane in planes:
            lost = loss
            if plane.bias is not NONE:
                self.low, self.high, more = _biased(self.low, self.high, part, plane.bias, self.rounding(node))
                self.off = self.off + 4 * node.size * tiny(wide())
                lost = added(lost, more)
            if carries:
                self.carried[node.inputs[0]] = lost
            elif lost is not NONE:
                self.off = _further(self.off, part, lost)
        for index, child in enumerate(node.inputs):
            ways = [(part, plane.transposes[index]) for part, plane in planes]
            ways = [(part, way) for part, way in ways if way is not None]
            if ways:
                self._pass(node, child, ways, plain)

    def _pass(self, node: Node, child: Node, ways: list[tuple[Terms, Any]], plain: bool) -> None:
        """Adds what one or two planes (above, below) make of coefficients of a node to those of one of its inputs."""
        scales = all(isinstance(way, Scale) for _, way in ways)
        bare = all(a is None for part, _ in ways for _, a in part)
        # A product of coefficients that is less than the smallest number becomes 0, and its share with it.
        self.off, least = _flushed(self.off, self.ranges[child], node.size)
        if scales:
            for part, _ in ways:
                factors: Terms = [(m, None) for m, a in part if a is not None]
                if factors:
                    self.off = _further(self.off, factors, least)
        # Whether the child's coefficients are of constants still.
        stays = node in self.given and self.uses[child] == 1 and (scales or (len(ways) == 1 and (bare or plain)))
        if stays and scales:
            more = [(m, times(a, way.a)) for part, way in ways for m, a in part]
        elif stays:
            ((part, way),) = ways
            move = lambda a: way(jnp.broadcast_to(a, node.shape)[None])[0]
            more = [(way(m), None) if a is None else (m, move(a)) for m, a in part]
        elif scales and len(ways) == 2:
            (above, up), (below, down) = ways
            # Of the two parts of a coefficient one is 0.
            more = [(total(above) * up.a + total(below) * down.a, None)]
        else:
            moved = [way(total(part)) for part, way in ways]
            more = [(self._merge(child, NONE, *moved), None)]
        if stays:
            self.given.add(child)
        if child in self.pending:
            more = [(self._merge(child, self.spreads[child], total(self.pending[child]), total(more)), None)]
        self.pending[child] = more

    def _merge(self, node: Node, spread: Any, *parts: Any) -> Any:
        """The sum of coefficients of evaluations of a node that are up to `spread` apart, with what it rounds."""
        if len(parts) == 1:
            return parts[0]
        one, other = parts
        self.off, merged = _merged(self.off, one, other, self.ranges[node], spread)
        return merged


# Compiled each as a whole, as the functions of `_sums` are.


@jax.jit
def _biased(low: Any, high: Any, part: Terms, bias: Any, rounding: Any) -> tuple[Any, Any, Any]:
    """Sums with a bias added, and what that rounds, for each entry."""
    known = jnp.isfinite(bias)
    at = weigh(part, jnp.where(known, bias, 0))
    return low + at, high + at, jnp.where(known, rounding * jnp.abs(bias), jnp.inf)


@jax.jit
def _further(off: Any, part: Terms, loss: Any) -> Any:
    return off + reach(part, loss)


@jax.jit
def _flushed(off: Any, span: Interval, count: Any) -> tuple[Any, Any]:
    least = 4 * tiny(wide()) * finite_magnitude(span)
    return off + count * jnp.sum(least), least


@jax.jit
def _merged(off: Any, one: Any, other: Any, span: Interval, spread: Any) -> tuple[Any, Any]:
    both: Terms = [(jnp.abs(one) + jnp.abs(other), None)]
    return off + reach(both, eps(wide()) * magnitude(span) + spread), one + other
