"""Ranges forward, planes backward.

Forward, every node gets a range from those of its inputs. Backward (CROWN, Zhang et al. 2018), a linear function of a node is
replaced by one of its inputs that is never smaller, with the planes above where a coefficient is positive and below where
it is negative, until only the region is left. Both hold, and so does what they have in common.
"""

import collections
import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from . import _graph as graphs
from ._graph import Graph
from ._interval import Interval, clean, eps, intersect, magnitude, middle, tiny, wide, widen, zero_safe
from ._region import Box
from ._rule import NONE, Band, Node, Plane, Relaxation, Scale, affine, band_of, flat


def ordered(roots: Sequence[Node]) -> list[Node]:
    """The roots and all they depend on, each after its inputs."""
    out: list[Node] = []
    seen: set[Node] = set()
    stack: list[tuple[Node, bool]] = [(node, False) for node in reversed(roots)]
    while stack:
        node, ready = stack.pop()
        if ready:
            out.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack += [(child, False) for child in reversed(node.inputs) if child not in seen]
    return _sorted(out)


def _sorted(nodes: list[Node]) -> list[Node]:
    """The same, where a node may have been put on the stack twice before it was seen."""
    placed: dict[Node, None] = {}
    waiting = list(reversed(nodes))
    while waiting:
        node = waiting.pop()
        if node in placed:
            continue
        missing = [child for child in node.inputs if child not in placed]
        if missing:
            waiting.append(node)
            waiting += missing
        else:
            placed[node] = None
    return list(placed)


def forward(node: Node, ranges: Sequence[Interval]) -> tuple[Interval, Any]:
    """The range of a node and its slack, from the ranges of its inputs."""
    assert node.rule is not None
    out = node.rule.range(node, *ranges)
    if not node.is_float:
        return out, NONE
    slack = node.rule.slack(node, out, *ranges)
    return clean(widen(out, slack), node.dtype), slack


def const_ranges(node: Node) -> Interval:
    """The range of a node all of whose inputs are constants."""
    found: dict[Node, Interval] = {}
    for each in ordered([node]):
        found[each] = each.data if each.rule is None else forward(each, [found[i] for i in each.inputs])[0]
    return found[node]


graphs.range_of = const_ranges


class Pass:
    """One pass over a graph for one region.

    **Arguments:**

    - `graph`: the operations.
    - `regions`: for each input of the graph, a `Box` or a `Ball`.
    - `tight`: whether the inputs of nonlinear operations get ranges from planes as well.
    - `real`: whether the function is thought of as evaluated without rounding.
    """

    def __init__(self, graph: Graph, regions: Sequence[Any], tight: bool, real: bool = False):
        self.regions = dict(zip(graph.inputs, regions, strict=True))
        self.roots = [value for value in graph.outputs if isinstance(value, Node)]
        self.order = ordered([*self.roots, *graph.premises])
        self.place = {node: index for index, node in enumerate(self.order)}
        self.ranges: dict[Node, Interval] = {}
        self.slacks: dict[Node, Any] = {}
        self.relaxations: dict[Node, Relaxation] = {}
        self.parallels: dict[Node, Band | None] = {}
        bent = {i for n in self.order if n.rule not in (None, affine) for i in n.inputs[: n.rule.guides] if i.is_float}
        exact = _exact(self.order, self.regions)
        for node in self.order:
            node.virtual = node.virtual or real
            if node.rule is None:
                self.ranges[node] = self.regions[node].ranges() if node in self.regions else node.data
                continue
            inputs = [self.ranges[i] for i in node.inputs]
            self.ranges[node], self.slacks[node] = forward(node, inputs)
            if tight and node in bent and node not in exact:
                self.ranges[node] = intersect(self.ranges[node], self.bands(node) or self.planes(node))
        finite = [jnp.all(jnp.isfinite(v)) for node in graph.premises for v in self.ranges[node]]
        self.good = jnp.all(jnp.stack(finite)) if finite else jnp.asarray(True)

    def bands(self, target: Node) -> Interval | None:
        """The range of every entry of a node by parallel planes, of which one pass finds both sides; `None` where an
        operation on the way has none."""
        found = {}
        for node in self.leads(target):
            if node.rule is not None:
                band = self.band(node)
                if band is None:
                    return None
                plane = Plane(band.transposes, band.bias)
                found[node] = Relaxation(plane, plane, band.half)
        return _shaped(*self.follow(target, _identity(target), found), target)

    def band(self, node: Node) -> Band | None:
        """Parallel planes of a node, with the rounding of its evaluation in their distance."""
        if node not in self.parallels:
            assert node.rule is not None
            inputs = [self.ranges[i] for i in node.inputs]
            made = node.rule.band is not None
            found = node.rule.band(node, self.ranges[node], *inputs) if made else band_of(self.relaxation(node))  # pyright: ignore[reportOptionalCall]
            if found is not None:
                found = found._replace(half=added(found.half, self.slacks[node]))
            self.parallels[node] = found
        return self.parallels[node]

    def leads(self, target: Node) -> set[Node]:
        """The nodes that planes lead to from a target."""
        seen, waiting = {target}, [target]
        while waiting:
            node = waiting.pop()
            if node.rule is None:
                continue
            for child in node.inputs:
                if child.is_float and child not in seen:
                    seen.add(child)
                    waiting.append(child)
        return seen

    def planes(self, target: Node) -> Interval:
        """The range of every entry of a node, by planes. Each side by itself, so that the compiler leaves out what is not
        asked for."""
        found = {}
        for node in self.leads(target):
            if node.rule is not None:
                relaxation = self.relaxation(node)
                found[node] = relaxation._replace(rounding=added(relaxation.rounding, self.slacks[node]))
        unit = _identity(target)
        return _shaped(-self.follow(target, -unit, found)[1], self.follow(target, unit, found)[1], target)

    def relaxation(self, node: Node) -> Relaxation:
        """The planes of a node, from the ranges of its inputs; its own range where there are no others."""
        if node not in self.relaxations:
            assert node.rule is not None
            inputs = [self.ranges[i] for i in node.inputs]
            out, relax = self.ranges[node], node.rule.relax
            self.relaxations[node] = flat(out, len(inputs)) if relax is None else relax(node, out, *inputs)
        return self.relaxations[node]

    def follow(self, target: Node, coefficients: Any, found: dict[Node, Relaxation]) -> tuple[Any, Any]:
        """Σ c v at least and at most, for rows of coefficients c [rows, *shape] of a node's values v, by the planes that were
        found of what it depends on; infinite or NaN where nothing is known. Where planes below are not those above, only what
        it is at most is right."""
        leads = self.leads(target)
        order = [node for node in self.order[: self.place[target] + 1] if node in leads]
        uses = collections.Counter(child for node in order for child in set(node.inputs))
        unit = eps(wide())
        # Coefficients are a sum of matrices, each times a number for each entry of the node or as it is (`None`); those of
        # positive coefficients and of negative ones have factors of their own. As long as these matrices are of the function's
        # constants (`given`) they are the same for all regions, and products with them are matrix products. What plain sums
        # round is added up (`carried`) before it meets coefficients.
        pending: dict[Node, list[tuple[Any, Any]]] = {target: [(coefficients, None)]}
        given, carried = {target}, {}
        low, high, off = (jnp.zeros(len(coefficients), wide()) for _ in range(3))
        for node in reversed(order):
            if node not in pending:
                continue
            terms = pending.pop(node)
            whole = _total(terms)
            shared = node in given
            terms, sums = (terms, _matrix_sums) if shared else ([(whole, None)], _row_sums)
            bare = all(a is None for _, a in terms)
            size = len(order) + node.size
            loss = carried.get(node, NONE) if bare else added(carried.get(node, NONE), 4 * tiny(wide()))
            if node.rule is None:
                span = self.ranges[node]
                loss = added(loss, 2 * unit * size * magnitude(span))
                if node in self.regions:
                    least, most = self.regions[node].extremes(whole)
                else:
                    center, half = middle(span)
                    least = most = _weigh(sums, terms, center)
                    loss = loss + half
                low, high, off = low + least, high + most, off + _reach(sums, terms, loss)
                continue
            relaxation = found[node]
            same, plain = relaxation.lower is relaxation.upper, node.rule is affine and node.data.plain
            loss = added(loss, relaxation.rounding)
            if plain and len(node.inputs) == 1 and uses[node.inputs[0]] == 1:
                carried[node.inputs[0]] = loss
            elif loss is not NONE:
                off = off + _reach(sums, terms, loss)
            if same:
                planes = [(terms, relaxation.upper)]
            else:
                if not bare:
                    terms, sums, shared = [(whole, None)], _row_sums, False
                planes = [
                    ([(jnp.maximum(whole, 0), None)], relaxation.upper),
                    ([(jnp.minimum(whole, 0), None)], relaxation.lower),
                ]
            for part, plane in planes:
                if plane.bias is not NONE:
                    at = _weigh(sums, part, plane.bias)
                    low, high = low + at, high + at
                    off = off + _reach(sums, part, unit * size * jnp.abs(plane.bias))
            for index, child in enumerate(node.inputs):
                ways: list[tuple[Any, Any]] = [(part, plane.transposes[index]) for part, plane in planes]
                ways = [(part, way) for part, way in ways if way is not None]
                if not ways:
                    continue
                scales = all(isinstance(way, Scale) for _, way in ways)
                # Whether the child's coefficients are of constants still.
                stays = shared and uses[child] == 1 and (scales or (same and (bare or plain)))
                if stays:
                    given.add(child)
                if stays and scales:
                    more = [(m, times(a, way.a)) for part, way in ways for m, a in part]
                elif stays:
                    (part, way), *_ = ways
                    move = lambda a, way=way, node=node: way(jnp.broadcast_to(a, node.shape)[None])[0]
                    more = [(way(m), None) if a is None else (m, move(a)) for m, a in part]
                elif scales and len(ways) == 2:
                    (_, above), (_, below) = ways
                    more = [(jnp.where(whole > 0, whole * above.a, whole * below.a), None)]
                else:
                    moved = [way(whole if same else part[0][0]) for part, way in ways]
                    if len(moved) == 2:
                        off = off + unit * _row_sums(
                            jnp.abs(moved[0]) + jnp.abs(moved[1]), magnitude(self.ranges[child])
                        )
                    more = [(functools.reduce(jnp.add, moved), None)]
                if child in pending:
                    one, other = _total(pending[child]), _total(more)
                    off = off + unit * _row_sums(jnp.abs(one) + jnp.abs(other), magnitude(self.ranges[child]))
                    more = [(one + other, None)]
                pending[child] = more
        off = off * (1.01 + 2 * unit * (max(node.size for node in order) + len(order)))
        return low - off, high + off


def _identity(node: Node) -> Any:
    return jnp.eye(node.size, dtype=wide()).reshape(node.size, *node.shape)


def _shaped(low: Any, high: Any, node: Node) -> Interval:
    """Sums as the range of a node."""
    low, high = low.reshape(node.shape), high.reshape(node.shape)
    low, high = jnp.where(jnp.isfinite(low), low, -jnp.inf), jnp.where(jnp.isfinite(high), high, jnp.inf)
    return clean(Interval(low, high), node.dtype)


def _total(terms: Any) -> Any:
    """Coefficients as one array, from matrices times factors."""
    return functools.reduce(jnp.add, [times(a, m) for m, a in terms])


def _weigh(sums: Any, terms: Any, value: Any) -> Any:
    """Σ c v for each row of coefficients that are a sum of matrices times factors."""
    return functools.reduce(jnp.add, [sums(m, times(a, value)) for m, a in terms])


def _reach(sums: Any, terms: Any, value: Any) -> Any:
    """Σ |c| v at most."""
    sizes = [(jnp.abs(m), None if a is None else jnp.abs(a)) for m, a in terms]
    return _weigh(sums, sizes, value)


def _exact(order: list[Node], boxes: dict[Node, Any]) -> set[Node]:
    """Nodes whose range cannot be improved: a linear map of the corners of a box, whose entries occur once."""
    moved, exact = set(), set()
    for node in order:
        varying = [i for i in node.inputs if i.rule is not None or i in boxes]
        if node.rule is None:
            if isinstance(boxes.get(node), Box):
                moved.add(node)
        elif node.rule is affine and node.data.uncertain is None and len(varying) == 1:
            (one,) = varying
            if node.data.terms == 0 and node.size <= one.size + sum(i.size for i in node.inputs if i is not one):
                if one in moved:
                    moved.add(node)
                elif one in exact:
                    exact.add(node)
            elif one in moved or (one in exact and node.shape == one.shape and node.data.terms <= 1):
                exact.add(node)
    return moved | exact


def _row_sums(c: Any, values: Any) -> Any:
    """Σ c v for each row of coefficients; 0 times infinity is 0."""
    return jnp.sum(zero_safe(c, values).reshape(len(c), -1), axis=1)


def _matrix_sums(c: Any, values: Any) -> Any:
    """The same as a matrix product, infinite where a value that counts is."""
    rows, values = c.reshape(len(c), -1), jnp.broadcast_to(values, c.shape[1:]).reshape(-1)
    known = jnp.isfinite(values)
    dot = functools.partial(jnp.dot, precision="highest")
    unknown = dot(jnp.abs(jnp.sign(rows)), jnp.where(known, 0.0, 1.0)) > 0
    return jnp.where(unknown, jnp.inf, dot(rows, jnp.where(known, values, 0)))


def times(factor: Any, value: Any) -> Any:
    """The product, without a factor the value."""
    return value if factor is None else factor * value


def added(one: Any, other: Any) -> Any:
    """The sum, where neither may be computed."""
    return other if one is NONE else one if other is NONE else one + other


def finite_or_all(found: Interval, good: Any) -> Interval:
    """The range where the premises hold, anything elsewhere."""
    lower, upper = jnp.asarray(found.lower), jnp.asarray(found.upper)
    if jnp.issubdtype(lower.dtype, jnp.floating):
        least, most = -jnp.inf, jnp.inf
    else:
        limits = (False, True) if lower.dtype == bool else (jnp.iinfo(lower.dtype).min, jnp.iinfo(lower.dtype).max)
        least, most = (jnp.asarray(v, lower.dtype) for v in limits)
    return Interval(jnp.where(good, lower, least), jnp.where(good, upper, most))
