"""Recognizes, in the operations of a graph, copies of values, sums of shifted exponentials, and products with these."""

from typing import Any, NamedTuple

import jax
import numpy as np

from ._graph import Graph, concrete
from ._linear import is_zero
from ._move import linear
from ._rule import Node, affine


def operands_of(value: Any, name: str) -> Any:
    """The operands of a value made by a primitive, `None` for other values."""
    tag = getattr(value, "tag", None)
    return tag[2] if tag is not None and tag[0] == name else None


def core_of(value: Any, stopped: bool = False) -> tuple[Any, list[Any]]:
    """What a value is a copy of, and the functions that copied it, last first; with `stopped` also where its gradient is
    stopped."""
    movers = []
    while isinstance(value, Node) and value.rule is not None:
        choice = operands_of(value, "select_n")
        if (
            value.rule is affine
            and value.data.terms == 0
            and len(value.inputs) == 1
            # Not its negative, whatever it was made for.
            and not value.data.plain
            and (stopped or operands_of(value, "stop_gradient") is None)
        ):
            movers.append(value.data.apply)
            value = value.inputs[0]
        elif choice is not None and is_zero(choice[1]) and operands_of(choice[0], "is_finite") == (choice[2],):
            # The largest number, or 0 where it is infinite: then the result is NaN or nothing is known of it.
            value = choice[2]
        else:
            break
    return value, movers


def is_stopped(value: Any) -> bool:
    """Whether the gradient of a copy is stopped on the way."""
    return core_of(value)[0] is not core_of(value, stopped=True)[0]


def places_of(core: Node, movers: list[Any]) -> np.ndarray:
    """Which entry of the core every entry of the copy is."""
    with jax.ensure_compile_time_eval():
        places: Any = np.arange(core.size).reshape(core.shape)
        for move in reversed(movers):
            places = move(places)
        return np.asarray(places)


def is_spread(core: Node, movers: list[Any], shape: tuple[int, ...], axis: int) -> bool:
    """Whether a copy repeats the core along one axis of a shape."""
    if core.size != np.prod(shape) // shape[axis]:
        return False
    places = np.arange(core.size).reshape([n for i, n in enumerate(shape) if i != axis])
    expected = np.broadcast_to(np.expand_dims(places, axis), shape)
    found = places_of(core, movers)
    return found.size == expected.size and bool((found.reshape(shape) == expected).all())


def is_same(core: Node, movers: list[Any]) -> bool:
    """Whether a copy has the entries in their order, in any shape."""
    found = places_of(core, movers)
    return found.size == core.size and bool((found.reshape(-1) == np.arange(core.size)).all())


def axis_of(value: Node, name: str) -> int | None:
    """The one axis of a reduction."""
    axes = value.tag[1]["axes"] if operands_of(value, name) is not None else ()
    return int(axes[0]) if len(axes) == 1 else None


# A constant below this stands for minus infinity, provided that it is far below the largest entry.
NOTHING = -1e4


class Peeled(NamedTuple):
    """A value as another one where `keep` is true, and constants of at most `fill` and at least `least` elsewhere; `keep`
    is `None` where it is the value itself."""

    base: Any
    keep: Any = None
    fill: float = -np.inf
    least: float = -np.inf

    @property
    def vanishes(self) -> bool:
        """Whether what is not kept stands for minus infinity."""
        return self.keep is not None and self.fill <= NOTHING

    @property
    def is_zero(self) -> bool:
        """Whether what is not kept is 0."""
        return self.keep is not None and self.fill == 0 == self.least


def peel(graph: Graph, value: Any) -> Peeled:
    """What a value is under the constant masks that were laid over it."""
    if not isinstance(value, Node):
        return Peeled(value)
    key = ("peeled", value)
    if key not in graph.marks:
        graph.marks[key] = _peeled(graph, value)
    return graph.marks[key]


def _peeled(graph: Graph, value: Node) -> Peeled:
    core, movers = core_of(value)
    choice = operands_of(core, "select_n") or ()
    which = concrete(choice[0]) if len(choice) == 3 else None
    if which is None or not core.is_float:
        return Peeled(value)
    which = np.broadcast_to(which, core.shape).astype(bool)
    for index in (0, 1):
        filled, inner = concrete(choice[1 + index]), choice[2 - index]
        if filled is None or not isinstance(inner, Node) or inner.shape != core.shape:
            continue
        keep = which != bool(index)
        off = np.broadcast_to(filled, core.shape)[~keep].astype(np.float64)
        if not off.size or np.isnan(off).any():
            continue
        for move in reversed(movers):
            with jax.ensure_compile_time_eval():
                keep = np.asarray(move(keep))
            inner = linear(graph, move, inner)
        deeper = peel(graph, inner)
        # What is kept of a value that is masked itself has to be kept by both.
        covered = deeper.keep is not None and bool((deeper.keep | ~keep).all())
        base = deeper.base if covered else inner
        return Peeled(base, keep, float(off.max()), float(off.min()))
    return Peeled(value)


class Shifted(NamedTuple):
    """exp(b - max of a over the axis), where b is a wherever a is not masked.

    `clean` says whether it is 0 elsewhere.
    """

    a: Node
    axis: int
    clean: bool


def shifted_exponential(graph: Graph, value: Any) -> Shifted | None:
    """What a value is the shifted exponential of."""
    key = ("shifted exponential", value)
    if not isinstance(value, Node):
        return None
    if key not in graph.marks:
        graph.marks[key] = _shifted(graph, value)
    return graph.marks[key]


def _shifted(graph: Graph, value: Node) -> Shifted | None:
    (difference,) = operands_of(value, "exp") or (None,)
    b, shift = operands_of(difference, "sub") or (None, None)
    if not isinstance(b, Node) or not isinstance(difference, Node) or b.shape != difference.shape:
        return None
    # The shift drops out of sums of the exponentials and what is divided by them.
    top, movers = core_of(shift, stopped=True)
    axis = axis_of(top, "reduce_max") if isinstance(top, Node) else None
    if axis is None:
        return None
    (a,) = operands_of(top, "reduce_max")
    clean = a is b
    if not clean:
        below, above = peel(graph, b), peel(graph, a)
        if not above.vanishes or a.shape != b.shape or below.base is not above.base:
            return None
        if below.keep is not None and not (below.keep | ~above.keep).all():
            return None
        clean = below.vanishes and bool((below.keep == above.keep).all())
    # The shift may have fewer axes than a, as far as the operation broadcasts it.
    places = places_of(top, movers)
    expected = np.expand_dims(np.arange(top.size).reshape(top.shape), axis)
    try:
        wide = np.broadcast_to(places, a.shape)
    except ValueError:
        return None
    return Shifted(a, axis, clean) if (wide == np.broadcast_to(expected, a.shape)).all() else None


def is_exponential(graph: Graph, value: Any, terms: Node) -> bool:
    """Whether a value is a shifted exponential, or that masked by 0, and 0 wherever its exponent is masked."""
    found = shifted_exponential(graph, terms)
    if found is None:
        return False
    if value is terms:
        return found.clean
    cover, kept = peel(graph, value), peel(graph, found.a).keep
    if cover.base is not terms or not cover.is_zero:
        return False
    kept = np.ones(terms.shape, bool) if kept is None else kept
    return bool((cover.keep == kept).all() or (found.clean and (cover.keep | ~kept).all()))


def exponential_sum(graph: Graph, value: Any) -> Any:
    """(sum, movers, shifted exponentials, a, axis) where a value is a copy of their sum."""
    core, movers = core_of(value)
    axis = axis_of(core, "reduce_sum") if isinstance(core, Node) else None
    if axis is None:
        return None
    (summed,) = operands_of(core, "reduce_sum")
    terms = peel(graph, summed).base
    found = shifted_exponential(graph, terms)
    if found is None or found.axis != axis or not is_exponential(graph, summed, terms):
        return None
    return core, movers, terms, found.a, axis


def factor_of(graph: Graph, value: Any, terms: Node) -> Any:
    """b where a value is b times the exponentials."""
    for one, other in (pair := operands_of(value, "mul") or ()) and ((pair[0], pair[1]), (pair[1], pair[0])):
        if is_exponential(graph, one, terms) and other.shape == terms.shape:
            return other
    return None
