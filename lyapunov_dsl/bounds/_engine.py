"""Ranges forward, planes backward.

Forward, every node gets a range from those of its inputs. Backward (CROWN, Zhang et al. 2018), a linear function of a node is
replaced by one of its inputs that is never smaller, with the planes above where a coefficient is positive and below where
it is negative, until only the region is left. Both hold, and so does what they have in common.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from . import _graph as graphs
from ._follow import follow
from ._graph import Graph
from ._interval import Interval, clean, eps, intersect, wide, widen
from ._region import Box
from ._rule import NONE, Band, Node, Plane, Relaxation, added, affine, band_of, flat


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


def forward(node: Node, ranges: Sequence[Interval], spreads: Sequence[Any]) -> tuple[Interval, Any]:
    """The range of a node and its slack, from the ranges and spreads of its inputs."""
    assert node.rule is not None
    out = node.rule.range(node, *ranges)
    if not node.is_float:
        if node.rule.within is not None and any(s is not NONE for s in spreads):
            out = node.rule.within(node, *ranges, *spreads)
        return out, NONE
    slack = node.rule.slack(node, out, *ranges)
    if node.lost is not None:
        slack = added(slack, node.lost(node, out, *ranges))
    if node.rule.within is not None and any(s is not NONE for s in spreads):
        slack = added(slack, node.rule.within(node, *ranges, *spreads))
    return clean(widen(out, slack), node.dtype), slack


def spread(node: Node, out: Interval, slack: Any, ranges: Sequence[Interval], spreads: Sequence[Any]) -> Any:
    """How far apart two evaluations of a node may be."""
    assert node.rule is not None
    loose = any(s is not NONE for s in spreads)
    if not node.is_float:
        return jnp.inf if loose else NONE
    if node.rule.again is not None:
        found = node.rule.again(node, slack, ranges, spreads)
    else:
        found = jnp.inf if loose else NONE if node.virtual or slack is NONE else 2 * slack
    if found is NONE:
        return NONE
    width = (out.upper - out.lower) * (1 + 2 * eps(wide()))
    return jnp.where(jnp.isfinite(width), jnp.minimum(width, found), jnp.inf)


def const_ranges(node: Node) -> Interval:
    """The range of a node all of whose inputs are constants."""
    found: dict[Node, Interval] = {}
    spreads: dict[Node, Any] = {}
    for each in ordered([node]):
        if each.rule is None:
            found[each], spreads[each] = each.data.range(), each.data.spread()
            continue
        inputs, apart = [found[i] for i in each.inputs], [spreads[i] for i in each.inputs]
        found[each], slack = forward(each, inputs, apart)
        spreads[each] = spread(each, found[each], slack, inputs, apart)
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
        # How far apart two evaluations of a node may be.
        self.spreads: dict[Node, Any] = {}
        self.relaxations: dict[Node, Relaxation] = {}
        self.parallels: dict[Node, Band | None] = {}
        bent = {i for n in self.order if n.rule not in (None, affine) for i in n.inputs[: n.rule.guides] if i.is_float}
        exact = _exact(self.order, self.regions)
        for node in self.order:
            if real:
                node.virtual, node.lost = True, None
            if node.rule is None:
                self.ranges[node] = self.regions[node].ranges() if node in self.regions else node.data.range()
                self.spreads[node] = NONE if node in self.regions or real else node.data.spread()
                continue
            inputs = [self.ranges[i] for i in node.inputs]
            spreads = [self.spreads[i] for i in node.inputs]
            self.ranges[node], self.slacks[node] = forward(node, inputs, spreads)
            if tight and node in bent and node not in exact:
                self.ranges[node] = intersect(self.ranges[node], self.bands(node) or self.planes(node))
            self.spreads[node] = spread(node, self.ranges[node], self.slacks[node], inputs, spreads)
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

    def follow(self, target: Node, coefficients: Any, found: dict[Node, Relaxation]) -> tuple[Any, Any]:
        """Σ c v at least and at most for the values v of a node; see `follow`."""
        leads = self.leads(target)
        order = [node for node in self.order[: self.place[target] + 1] if node in leads]
        return follow(order, coefficients, self.ranges, self.regions, found, self.spreads)

    def relaxation(self, node: Node) -> Relaxation:
        """The planes of a node, from the ranges of its inputs; its own range where there are no others."""
        if node not in self.relaxations:
            assert node.rule is not None
            inputs = [self.ranges[i] for i in node.inputs]
            out, relax = self.ranges[node], node.rule.relax
            self.relaxations[node] = flat(out, len(inputs)) if relax is None else relax(node, out, *inputs)
        return self.relaxations[node]


def _identity(node: Node) -> Any:
    return jnp.eye(node.size, dtype=wide()).reshape(node.size, *node.shape)


def _shaped(low: Any, high: Any, node: Node) -> Interval:
    """Sums as the range of a node."""
    low, high = low.reshape(node.shape), high.reshape(node.shape)
    low, high = jnp.where(jnp.isfinite(low), low, -jnp.inf), jnp.where(jnp.isfinite(high), high, jnp.inf)
    return clean(Interval(low, high), node.dtype)


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


def finite_or_all(found: Interval, good: Any) -> Interval:
    """The range where the premises hold, anything elsewhere."""
    lower, upper = jnp.asarray(found.lower), jnp.asarray(found.upper)
    if jnp.issubdtype(lower.dtype, jnp.floating):
        least, most = -jnp.inf, jnp.inf
    else:
        limits = (False, True) if lower.dtype == bool else (jnp.iinfo(lower.dtype).min, jnp.iinfo(lower.dtype).max)
        least, most = (jnp.asarray(v, lower.dtype) for v in limits)
    return Interval(jnp.where(good, lower, least), jnp.where(good, upper, most))
