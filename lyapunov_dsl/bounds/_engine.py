"""Ranges forward, planes backward.

Forward, every node gets a range from those of its inputs. Backward (CROWN, Zhang et al. 2018), a linear function of a node is
replaced by one of its inputs that is never smaller, with the planes above where a coefficient is positive and below where
it is negative, until only the region is left. Both hold, and so does what they have in common.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from ._graph import Graph
from ._interval import Interval, clean, eps, intersect, magnitude, widen, wide, zero_safe
from ._rule import Node, Relaxation, affine


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
        return out, jnp.zeros((), wide())
    slack = node.rule.slack(node, out, *ranges)
    return clean(widen(out, slack), node.dtype), slack


def const_ranges(node: Node) -> Interval:
    """The range of a node all of whose inputs are constants."""
    found: dict[Node, Interval] = {}
    for each in ordered([node]):
        found[each] = each.data if each.rule is None else forward(each, [found[i] for i in each.inputs])[0]
    return found[node]


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
                self.ranges[node] = intersect(self.ranges[node], self.planes(node))
        finite = [jnp.all(jnp.isfinite(v)) for node in graph.premises for v in self.ranges[node]]
        self.good = jnp.all(jnp.stack(finite)) if finite else jnp.asarray(True)

    def planes(self, node: Node) -> Interval:
        """The range of every entry of a node, by planes."""
        identity = jnp.eye(node.size, dtype=wide()).reshape(node.size, *node.shape)
        found = self.backward(node, jnp.concatenate([identity, -identity]))
        return Interval(-found[node.size :].reshape(node.shape), found[: node.size].reshape(node.shape))

    def relaxation(self, node: Node) -> Relaxation:
        """The planes of a node, from the ranges of its inputs."""
        if node not in self.relaxations:
            assert node.rule is not None
            inputs = [self.ranges[i] for i in node.inputs]
            if node.rule.relax is None:
                raise NotImplementedError(node.rule.name)
            self.relaxations[node] = node.rule.relax(node, self.ranges[node], *inputs)
        return self.relaxations[node]

    def backward(self, target: Node, coefficients: Any) -> Any:
        """Σ c v at most, for rows of coefficients c [rows, *shape] of a node's values v; infinite where nothing is known."""
        order = self.order[: self.place[target] + 1]
        pending = {target: coefficients}
        total = jnp.zeros(len(coefficients), wide())
        rounding = jnp.zeros(len(coefficients), wide())
        unit = eps(wide())
        rows = lambda v: jnp.sum(v.reshape(len(v), -1), axis=1)
        for node in reversed(order):
            c = pending.pop(node, None)
            if c is None:
                continue
            size = len(order) + node.size
            if node.rule is None:
                rounding = rounding + 2 * unit * size * rows(zero_safe(jnp.abs(c), magnitude(self.ranges[node])))
                if node in self.regions:
                    total = total + self.regions[node].support(c)
                else:
                    total = total + rows(jnp.where(c > 0, c * node.data.upper, c * node.data.lower))
                continue
            found = self.relaxation(node)
            rounding = rounding + rows(zero_safe(jnp.abs(c), self.slacks[node] + found.rounding))
            halves = [(c, found.upper)]
            if found.lower is not found.upper:
                halves = [(jnp.maximum(c, 0), found.upper), (jnp.minimum(c, 0), found.lower)]
            for part, plane in halves:
                if jnp.ndim(plane.bias) or found.lower is not found.upper:
                    terms = zero_safe(part, plane.bias)
                    total, rounding = total + rows(terms), rounding + unit * size * rows(jnp.abs(terms))
                for child, transpose in zip(node.inputs, plane.transposes, strict=True):
                    if transpose is None:
                        continue
                    more = transpose(part)
                    if child in pending:
                        both = jnp.abs(pending[child]) + jnp.abs(more)
                        rounding = rounding + unit * rows(zero_safe(both, magnitude(self.ranges[child])))
                        more = pending[child] + more
                    pending[child] = more
        largest = max(node.size for node in order)
        upper = total + rounding * (1.01 + 2 * unit * (largest + len(order)))
        return jnp.where(jnp.isfinite(upper), upper, jnp.inf)


def _exact(order: list[Node], boxes: dict[Node, Any]) -> set[Node]:
    """Nodes whose range cannot be improved: a linear map of the corners of a box, whose entries occur once."""
    from ._region import Box

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
    return Interval(jnp.where(good, found.lower, -jnp.inf), jnp.where(good, found.upper, jnp.inf))


