"""What the engine knows of one operation: its range, its planes, its rounding; and the nodes of a graph of operations."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ._interval import Interval, eps, magnitude, middle, tiny, wide, widest, zero_safe


class Plane(NamedTuple):
    """An affine function of the inputs of an operation that bounds its output from one side.

    **Arguments:**

    - `transposes`: for each input, from coefficients of the output (of its shape) to those of the input; `None` where it
        does not occur.
    - `bias`: what is added, of the output's shape.
    """

    transposes: tuple[Callable[[Any], Any] | None, ...]
    bias: Any


class Scale(NamedTuple):
    """The transpose of a product with `a`, entry by entry."""

    a: Any

    def __call__(self, coefficients: Any) -> Any:
        return coefficients * self.a


class Relaxation(NamedTuple):
    """The planes below and above an operation's exact result, and what rounding in computing with them amounts to.

    `upper` is `lower` for an operation that is affine itself. `lines` are the coefficients and biases of planes of inputs
    that have the shape of the output.
    """

    lower: Plane
    upper: Plane
    rounding: Any
    lines: Any = None


class Band(NamedTuple):
    """Parallel planes: an affine function of the inputs that is within `half` of the output.

    **Arguments:**

    - `transposes`, `bias`: as of a `Plane`.
    - `half`: of the output's shape, with what rounding amounts to.
    """

    transposes: tuple[Callable[[Any], Any] | None, ...]
    bias: Any
    half: Any


class Rule(NamedTuple):
    """What the engine knows of one operation on real numbers, and of its evaluation in floating point.

    **Arguments:**

    - `name`: of the operation.
    - `range`: (node, *ranges of the inputs) -> range of the exact result, up to the slack.
    - `slack`: (node, range of the result, *ranges of the inputs) -> how far both the floating-point evaluation of the
        operation and the computed range may be from the exact one, of the output's shape.
    - `relax`: (node, range of the result, *ranges of the inputs) -> `Relaxation`; `None` where only the range is known.
    - `band`: the same as parallel planes, where those made of the planes of `relax` would be too far apart.
    - `guides`: how many inputs, from the first on, tighter ranges make the planes better of; all where it is `None`.
    - `again`: (node, slack, ranges of the inputs, spreads of the inputs) -> spread of the result: how far two evaluations of
        it may be apart, where those of the inputs are (`NONE`: not at all). Compilers evaluate a cheap operation anew for
        each use of its result, with a product and a sum contracted in one and not in the other. Without it: anything in the
        range, where the inputs have a spread.
    - `within`: (node, ranges and spreads of the inputs) -> what is added to the slack because the operation is made of several
        that may use different evaluations of an input; of a decision, its range then.
    - `image`: whether it is entry by entry a function of its only input, whose `range` is the image of the input's, so that
        planes followed back from it cannot improve on those of the input.
    """

    name: str
    range: Callable[..., Interval]
    slack: Callable[..., Any]
    relax: Callable[..., Relaxation] | None = None
    guides: int | None = None
    band: Callable[..., Band | None] | None = None
    again: Callable[..., Any] | None = None
    within: Callable[..., Any] | None = None
    image: bool = False


class Node:
    """One value of a graph: an operation on other values. Arrays that do not depend on the input are in `data`.

    **Arguments:**

    - `rule`: the operation, `None` for an input of the graph.
    - `inputs`: nodes.
    - `shape`, `dtype`: of the value in the function that is bounded.
    - `data`: what else the rule needs.
    - `virtual`: whether the operation is only thought of, so that nothing rounds it.
    """

    def __init__(
        self,
        rule: Rule | None,
        inputs: Sequence["Node"],
        shape: Any,
        dtype: Any,
        data: Any = None,
        virtual: bool = False,
    ):
        self.rule, self.inputs, self.data, self.virtual = rule, tuple(inputs), data, virtual
        self.shape, self.dtype = tuple(shape), np.dtype(dtype)
        # (primitive, parameters, operands) of the equation it was made of, by which composites are recognized.
        self.tag: Any = None
        # What more a compiler may lose where it rewrites the program: (node, its range, ranges of the inputs) -> slack.
        self.lost: Callable[..., Any] | None = None

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))

    @property
    def is_float(self) -> bool:
        return bool(jnp.issubdtype(self.dtype, jnp.floating))


class Const(NamedTuple):
    """A value that does not depend on the input, in its own type, and how far the evaluated one may be from it."""

    value: Any
    slack: Any = None

    def range(self) -> Interval:
        """What the evaluated one lies between: anything where that may be NaN."""
        center = widest(self.value)
        if not jnp.issubdtype(self.dtype, jnp.floating):
            return Interval(center, center)
        slack = NONE if self.slack is None else self.slack
        low, high = center - slack, center + slack
        bad = jnp.isnan(low) | jnp.isnan(high)
        return Interval(jnp.where(bad, -jnp.inf, low), jnp.where(bad, jnp.inf, high))

    def spread(self) -> Any:
        """How far apart two evaluations of it may be."""
        return NONE if self.slack is None else 2 * self.slack

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(np.shape(self.value))

    @property
    def dtype(self) -> Any:
        return jnp.result_type(self.value)


# No rounding at all.
NONE = 0.0


def added(one: Any, other: Any) -> Any:
    """The sum, where neither may be computed."""
    return other if one is NONE else one if other is NONE else one + other


def roundoff(node: Node, steps: Any, size: Any) -> Any:
    """What `steps` operations in a row, of the function or of the engine, add to a result of up to `size`."""
    own = 0.0 if node.virtual or not node.is_float else steps * eps(node.dtype)
    return (own + 4 * (steps + 1) * eps(wide())) * size + (steps + 1) * tiny(node.dtype if node.is_float else wide())


def exactly(node: Node, out: Interval, *ranges: Interval) -> Any:
    """The slack of what moves numbers only: none, which takes no computing."""
    return NONE


def once(node: Node, slack: Any, ranges: Sequence[Interval], spreads: Sequence[Any]) -> Any:
    """The spread of what takes long to evaluate, and is evaluated once."""
    return jnp.inf if node.virtual and any(s is not NONE for s in spreads) else NONE


def steep(slopes: Callable[..., Sequence[Any]], product: bool = False) -> Callable[..., Any]:
    """The spread of an operation from the largest slopes (node, *ranges) -> [of each input]. Where it is no `product`, the
    same inputs give the same result."""

    def again(node: Node, slack: Any, ranges: Sequence[Interval], spreads: Sequence[Any]) -> Any:
        loose = any(s is not NONE for s in spreads)
        if not loose and (node.virtual or not product):
            return NONE
        found: Any = NONE if slack is NONE else 2 * slack
        for slope, spread in zip(slopes(node, *ranges), spreads, strict=True) if loose else ():
            if spread is not NONE:
                found = added(found, zero_safe(jnp.broadcast_to(spread, jnp.shape(slope)), slope))
        return found

    return again


def elementwise(
    ranges: Sequence[Interval], lower: Sequence[Any], low: Any, upper: Sequence[Any], high: Any
) -> Relaxation:
    """Planes Σ aᵢ xᵢ + b of inputs that have the shape of the output, from coefficients and biases."""
    sizes = [magnitude(x) for x in ranges]
    size = sum(zero_safe(jnp.maximum(jnp.abs(a), jnp.abs(b)), s) for a, b, s in zip(lower, upper, sizes, strict=True))
    finite = jnp.where(jnp.isfinite(low), jnp.abs(low), 0) + jnp.where(jnp.isfinite(high), jnp.abs(high), 0)
    return Relaxation(
        Plane(tuple(Scale(a) for a in lower), low),
        Plane(tuple(Scale(a) for a in upper), high),
        4 * eps(wide()) * (size + finite) + tiny(wide()),
        (ranges, lower, low, upper, high),
    )


def band_of(found: Relaxation) -> Band | None:
    """Parallel planes from others: their mean, as far off as the ends of the ranges say. `None` for what has no lines."""
    if found.lower is found.upper:
        return Band(found.upper.transposes, found.upper.bias, found.rounding)
    if found.lines is None:
        return None
    ranges, lower, low, upper, high = found.lines
    mean = [0.5 * a + 0.5 * b for a, b in zip(lower, upper, strict=True)]
    size = jnp.zeros((), wide())
    for x, a, b, m in zip(ranges, lower, upper, mean, strict=True):
        ends = [zero_safe(b - m, x.lower), zero_safe(b - m, x.upper)]
        high = high + jnp.maximum(*ends)
        ends = [zero_safe(a - m, x.lower), zero_safe(a - m, x.upper)]
        low = low + jnp.minimum(*ends)
        size = size + zero_safe(jnp.abs(b - m) + jnp.abs(a - m), magnitude(x))
    return between(tuple(Scale(m) for m in mean), low, high, found.rounding + 8 * eps(wide()) * size)


def between(transposes: tuple[Callable[[Any], Any] | None, ...], low: Any, high: Any, rounding: Any) -> Band:
    """The band of parallel planes with these biases."""
    finite = jnp.isfinite(low) & jnp.isfinite(high)
    low, high = jnp.where(finite, low, 0), jnp.where(finite, high, 0)
    bias = 0.5 * low + 0.5 * high
    half = jnp.maximum(high - bias, bias - low) + 4 * eps(wide()) * (jnp.abs(low) + jnp.abs(high))
    return Band(transposes, bias, jnp.where(finite, half + rounding, jnp.inf))


def flat(out: Interval, count: int) -> Relaxation:
    """The range itself as planes, without the inputs."""
    none = (None,) * count
    return Relaxation(Plane(none, out.lower), Plane(none, out.upper), NONE)


class Affine(NamedTuple):
    """The data of a linear operation.

    **Arguments:**

    - `apply`: a linear function of the inputs.
    - `absolute`: the same with the absolute values of its coefficients.
    - `terms`: how many numbers are added for one output or one gradient; 0 for what moves numbers only.
    - `span`: a better range than `apply` of the centers and `absolute` of the half-widths give.
    - `uncertain`: as `absolute`, of how far the coefficients may be from those of the evaluation.
    - `shift`: a constant that is added, and how far the evaluated one may be from it.
    - `plain`: whether every output is one number of each input, or its negative, in the same place.
    """

    apply: Callable[..., Any]
    absolute: Callable[..., Any]
    terms: int
    span: Callable[..., Interval] | None = None
    uncertain: Callable[..., Any] | None = None
    shift: tuple[Any, Any] | None = None
    plain: bool = False


def _affine_range(node: Node, *ranges: Interval) -> Interval:
    data: Affine = node.data
    if data.span is not None:
        return _moved(data.span(*ranges), data)
    centers, halves = zip(*(middle(x) for x in ranges), strict=True)
    center, half = data.apply(*centers), data.absolute(*halves)
    # Infinity times zero is NaN: nothing is known then.
    half = jnp.where(jnp.isnan(half), jnp.inf, half)
    return _moved(Interval(center - half, center + half), data)


def _moved(x: Interval, data: Affine) -> Interval:
    return x if data.shift is None else Interval(x.lower + data.shift[0], x.upper + data.shift[0])


def reach(node: Node, *ranges: Interval) -> Any:
    """Σ |aᵢ| |xᵢ|, the size of what a linear operation adds up."""
    total = node.data.absolute(*(magnitude(x) for x in ranges))
    if node.data.shift is not None:
        total = total + jnp.abs(node.data.shift[0])
    return jnp.where(jnp.isnan(total), jnp.inf, total)


def _affine_slack(node: Node, out: Interval, *ranges: Interval) -> Any:
    data: Affine = node.data
    if data.terms == 0 and data.uncertain is None:
        return NONE
    total = reach(node, *ranges)
    slack = roundoff(node, data.terms, total)
    if data.uncertain is not None:
        slack = slack + 2 * data.uncertain(*(magnitude(x) for x in ranges))
    if data.shift is not None:
        slack = slack + data.shift[1]
    # A sum that may overflow on its way may be NaN.
    share = total / float(jnp.finfo(node.dtype).max) * (1 + 2 * data.terms * eps(node.dtype))
    return jnp.where(share < 1.0, slack, jnp.inf)


def _traced(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A function that is traced once for each shape, not with every call."""
    known: dict[Any, Any] = {}

    def call(value: Any) -> Any:
        if value.shape not in known:
            known[value.shape] = jax.make_jaxpr(function)(value)
        closed = known[value.shape]
        return jax.core.eval_jaxpr(closed.jaxpr, closed.consts, value)  # pyright: ignore[reportAttributeAccessIssue]

    return call


def _affine_relax(node: Node, out: Interval, *ranges: Interval) -> Relaxation:
    data: Affine = node.data
    like = [jax.ShapeDtypeStruct(x.shape, wide()) for x in node.inputs]
    transpose = _traced(jax.vmap(jax.linear_transpose(data.apply, *like)))
    transposes = tuple((lambda c, i=i: transpose(c)[i]) for i in range(len(like)))
    plane = Plane(transposes, NONE if data.shift is None else data.shift[0])
    # The slack of the node has the rounding of the coefficients in it.
    return Relaxation(plane, plane, NONE)


def _affine_again(node: Node, slack: Any, ranges: Sequence[Interval], spreads: Sequence[Any]) -> Any:
    data: Affine = node.data
    loose = any(s is not NONE for s in spreads)
    # Sums of many are evaluated once.
    if data.terms > 1 and not node.virtual:
        return NONE
    constant = data.shift is None or data.shift[1] is NONE
    steady = node.virtual or data.terms == 0 or (data.plain and constant)
    if not loose and steady:
        return NONE
    found: Any = NONE if slack is NONE else 2 * slack
    if loose:
        filled = [jnp.broadcast_to(jnp.asarray(s, wide()), i.shape) for s, i in zip(spreads, node.inputs, strict=True)]
        # Infinity times zero is NaN.
        moved = data.absolute(*filled)
        found = added(found, jnp.where(jnp.isnan(moved), jnp.inf, moved))
    return found


affine = Rule("affine", _affine_range, _affine_slack, _affine_relax, again=_affine_again)


def ends(function: Callable[..., Any]) -> Callable[..., Interval]:
    """The span of an operation that moves numbers only."""
    return lambda *x: Interval(function(*(i.lower for i in x)), function(*(i.upper for i in x)))
