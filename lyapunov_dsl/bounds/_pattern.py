"""Recognizes, in the operations of a graph, copies of values, sums of shifted exponentials, and products with these."""

from typing import Any

import jax
import numpy as np

from ._graph import Graph
from ._linear import is_zero
from ._rule import Node, affine


def operands_of(value: Any, name: str) -> Any:
    """The operands of a value made by a primitive, `None` for other values."""
    tag = getattr(value, "tag", None)
    return tag[2] if tag is not None and tag[0] == name else None


def core_of(value: Any) -> tuple[Any, list[Any]]:
    """What a value is a copy of, and the functions that copied it, last first."""
    movers = []
    while isinstance(value, Node) and value.rule is not None:
        choice = operands_of(value, "select_n")
        if (
            value.rule is affine
            and value.data.terms == 0
            and len(value.inputs) == 1
            and operands_of(value, "neg") is None
        ):
            movers.append(value.data.apply)
            value = value.inputs[0]
        elif choice is not None and is_zero(choice[1]) and operands_of(choice[0], "is_finite") == (choice[2],):
            # The largest number, or 0 where it is infinite: then the result is NaN or nothing is known of it.
            value = choice[2]
        else:
            break
    return value, movers


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


def _shifted(graph: Graph, value: Any) -> tuple[Node, int] | None:
    """(a, axis) of exp(a - max of a over the axis)."""
    if value in graph.marks:
        return graph.marks[value]
    found = None
    (difference,) = operands_of(value, "exp") or (None,)
    a, shift = operands_of(difference, "sub") or (None, None)
    if isinstance(a, Node) and isinstance(difference, Node) and a.shape == difference.shape:
        top, movers = core_of(shift)
        axis = axis_of(top, "reduce_max") if isinstance(top, Node) else None
        if axis is not None and operands_of(top, "reduce_max")[0] is a:
            # The shift may have fewer axes than a, as far as the operation broadcasts it.
            places = places_of(top, movers)
            expected = np.expand_dims(np.arange(top.size).reshape(top.shape), axis)
            try:
                wide = np.broadcast_to(places, a.shape)
            except ValueError:
                wide = None
            if wide is not None and (wide == np.broadcast_to(expected, a.shape)).all():
                found = (a, axis)
    if isinstance(value, Node):
        graph.marks[value] = found
    return found


def exponential_sum(graph: Graph, value: Any) -> Any:
    """(sum, movers, shifted exponentials, a, axis) where a value is a copy of their sum."""
    core, movers = core_of(value)
    axis = axis_of(core, "reduce_sum") if isinstance(core, Node) else None
    if axis is None:
        return None
    (terms,) = operands_of(core, "reduce_sum")
    found = _shifted(graph, terms)
    return (core, movers, terms, *found) if found is not None and found[1] == axis else None


def factor_of(graph: Graph, value: Any, terms: Node) -> Any:
    """b where a value is b times the exponentials."""
    for one, other in (pair := operands_of(value, "mul") or ()) and ((pair[0], pair[1]), (pair[1], pair[0])):
        if one is terms and other.shape == terms.shape:
            return other
    return None
