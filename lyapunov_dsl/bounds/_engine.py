"""Ranges forward, planes backward.

Forward, every node gets a range from those of its inputs. Backward (CROWN, Zhang et al. 2018), a linear function of a node is
replaced by one of its inputs that is never smaller, with the planes above where a coefficient is positive and below where
it is negative, until only the region is left. Both hold, and so does what they have in common.
"""

import contextlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .._interpret import evaluated
from .._types import is_traced
from . import _graph as graphs
from ._follow import follow
from ._graph import Graph
from ._interval import Interval, clean, eps, intersect, tiny, wide, widen
from ._region import Box
from ._rule import NONE, Band, Const, Node, Plane, Relaxation, added, affine, band_of, flat

# Passes are joined where they have so many nodes in common, up to so many rows of coefficients.
COMMON, ROWS = 40, 128


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
    width = (out.upper - out.lower) * (1 + 2 * eps(wide())) + jnp.where(out.upper == out.lower, 0, tiny(wide()))
    return jnp.where(jnp.isfinite(width), jnp.minimum(width, found), jnp.inf)


def const_ranges(node: Node, compiled: bool) -> Interval:
    """The range of a node all of whose inputs are constants, by NumPy, or by XLA, operation by operation."""
    order = ordered([node])
    consts = [each.data for each in order if each.rule is None]

    def ranges(consts: Sequence[Const]) -> Interval:
        found: dict[Node, Interval] = {}
        spreads: dict[Node, Any] = {}
        left = iter(consts)
        for each in order:
            if each.rule is None:
                const = next(left)
                found[each], spreads[each] = const.range(), const.spread()
                continue
            inputs, apart = [found[i] for i in each.inputs], [spreads[i] for i in each.inputs]
            found[each], slack = forward(each, inputs, apart)
            spreads[each] = spread(each, found[each], slack, inputs, apart)
        return found[node]

    if not compiled and not any(map(is_traced, jax.tree.leaves(consts))):
        # Functions of a node, too, may hold what a transformation of the caller's traces.
        with contextlib.suppress(jax.errors.TracerArrayConversionError):
            return evaluated(ranges, consts)
    return ranges(consts)


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
        self.reached: dict[Node, set[Node]] = {}
        if real:
            for node in self.order:
                if node.rule is not None:
                    node.virtual, node.lost = True, None
        targets = _targets(self.order, self.regions) if tight else set()
        for stage in _stages(self.order, targets):
            for node in stage:
                self._range(node, real)
            group = [node for node in stage if node in targets]
            for node, planes in zip(group, self.tightened(group), strict=True):
                self.ranges[node] = intersect(self.ranges[node], planes)
                self._spread(node)
        finite = [jnp.all(jnp.isfinite(v)) for node in graph.premises for v in self.ranges[node]]
        self.good = jnp.all(jnp.stack(finite)) if finite else jnp.asarray(True)

    def _range(self, node: Node, real: bool) -> None:
        """The range of a node from those of its inputs."""
        if node.rule is None:
            self.ranges[node] = self.regions[node].ranges() if node in self.regions else node.data.range()
            self.spreads[node] = NONE if node in self.regions or real else node.data.spread()
            return
        inputs, spreads = [self.ranges[i] for i in node.inputs], [self.spreads[i] for i in node.inputs]
        self.ranges[node], self.slacks[node] = forward(node, inputs, spreads)
        self._spread(node)

    def _spread(self, node: Node) -> None:
        inputs, spreads = [self.ranges[i] for i in node.inputs], [self.spreads[i] for i in node.inputs]
        self.spreads[node] = spread(node, self.ranges[node], self.slacks[node], inputs, spreads)

    def tightened(self, targets: Sequence[Node]) -> list[Interval]:
        """Ranges of nodes by planes, of which none depends on another. What they have in common is passed once where that
        is long: of few nodes, coefficients that are constants of the function are cheaper than fewer passes."""
        groups: list[list[Node]] = []
        for node in targets:
            last = groups[-1] if groups else []
            rows = sum(v.size for v in last) + node.size
            if last and rows <= ROWS and len(self.leads(last[0]) & self.leads(node)) >= COMMON:
                last.append(node)
            else:
                groups.append([node])
        found = []
        for group in groups:
            bands = self.bands(group)
            found += bands if bands is not None else [self.planes(node) for node in group]
        return found

    def bands(self, targets: Sequence[Node]) -> list[Interval] | None:
        """The range of every entry of some nodes by parallel planes, of which one pass finds both sides; `None` where an
        operation on the way has none."""
        found = {}
        for node in self.order_of(targets):
            if node.rule is not None:
                band = self.band(node)
                if band is None:
                    return None
                plane = Plane(band.transposes, band.bias)
                found[node] = Relaxation(plane, plane, band.half)
        low, high = self.follow(targets, _identities(targets), found)
        out, at = [], 0
        for node in targets:
            out.append(_shaped(low[at : at + node.size], high[at : at + node.size], node))
            at += node.size
        return out

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
        if target in self.reached:
            return self.reached[target]
        seen, waiting = {target}, [target]
        while waiting:
            node = waiting.pop()
            if node.rule is None:
                continue
            for child in node.inputs:
                if child.is_float and child not in seen:
                    seen.add(child)
                    waiting.append(child)
        self.reached[target] = seen
        return seen

    def planes(self, target: Node) -> Interval:
        """The range of every entry of a node, by planes. Each side by itself, so that the compiler leaves out what is not
        asked for."""
        found = {}
        for node in self.order_of([target]):
            if node.rule is not None:
                relaxation = self.relaxation(node)
                found[node] = relaxation._replace(rounding=added(relaxation.rounding, self.slacks[node]))
        (unit,) = _identities([target]).values()
        low = -self.follow([target], {target: -unit}, found)[1]
        return _shaped(low, self.follow([target], {target: unit}, found)[1], target)

    def order_of(self, targets: Sequence[Node]) -> list[Node]:
        """Nodes and all that planes lead to from them, each after its inputs."""
        reached = set().union(*map(self.leads, targets))
        return sorted(reached, key=self.place.__getitem__)

    def follow(self, targets: Sequence[Node], coefficients: Any, found: dict[Node, Relaxation]) -> tuple[Any, Any]:
        """Σ c v at least and at most for the values v of nodes; see `follow`."""
        return follow(self.order_of(targets), coefficients, self.ranges, self.regions, found, self.spreads)

    def relaxation(self, node: Node) -> Relaxation:
        """The planes of a node, from the ranges of its inputs; its own range where there are no others."""
        if node not in self.relaxations:
            assert node.rule is not None
            inputs = [self.ranges[i] for i in node.inputs]
            out, relax = self.ranges[node], node.rule.relax
            self.relaxations[node] = flat(out, len(inputs)) if relax is None else relax(node, out, *inputs)
        return self.relaxations[node]


def _identities(nodes: Sequence[Node]) -> dict[Node, Any]:
    """For each node, coefficients of which every row is one of its entries; the rows of all nodes follow one another."""
    total, out, at = sum(node.size for node in nodes), {}, 0
    for node in nodes:
        out[node] = jnp.eye(total, node.size, -at, dtype=wide()).reshape(total, *node.shape)
        at += node.size
    return out


def _shaped(low: Any, high: Any, node: Node) -> Interval:
    """Sums as the range of a node."""
    low, high = low.reshape(node.shape), high.reshape(node.shape)
    low, high = jnp.where(jnp.isfinite(low), low, -jnp.inf), jnp.where(jnp.isfinite(high), high, jnp.inf)
    return clean(Interval(low, high), node.dtype)


def _targets(order: list[Node], regions: dict[Node, Any]) -> set[Node]:
    """The inputs of nonlinear operations whose ranges planes may improve."""
    bent = {i for n in order if n.rule not in (None, affine) for i in n.inputs[: n.rule.guides] if i.is_float}
    # What planes have improved, and what is one function of one entry of it, they do not improve again.
    settled, targets = _exact(order, regions), set()
    for node in order:
        varying = [i for i in node.inputs if i.rule is not None or i in regions]
        if node in settled or not node.is_float:
            continue
        if node.rule is None:
            settled.add(node)
            continue
        if varying and all(i in settled for i in varying):
            single = len(varying) == 1 and node.shape == varying[0].shape
            moved = (
                node.rule is affine
                and node.data.uncertain is None
                and (node.data.terms == 0 or (single and node.data.terms <= 1))
            )
            if moved or (node.rule.image and single):
                settled.add(node)
                continue
        if node in bent:
            targets.add(node)
            settled.add(node)
    return targets


def _stages(order: list[Node], targets: set[Node]) -> list[list[Node]]:
    """The nodes in parts, each of which depends only on targets of those before it."""
    depths: dict[Node, int] = {}
    for node in order:
        depths[node] = max((depths[i] + (i in targets) for i in node.inputs), default=0)
    stages: list[list[Node]] = [[] for _ in range(max(depths.values(), default=0) + 1)]
    for node in order:
        stages[depths[node]].append(node)
    return stages


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
