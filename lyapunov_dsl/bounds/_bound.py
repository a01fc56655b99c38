"""Bounds of a JAX function over a region."""

import contextlib
from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._interpret import evaluated
from .._types import describe, is_traced, shown
from . import (  # noqa: F401  (they register their rules)
    _factors,
    _gates,
    _order,
    _powers,
    _product,
    _quotients,
    _reduce,
    _rewrite,
    _same,
    _scatter,
    _smooth,
    _solve,
    _trigonometric,
)
from ._engine import Pass, finite_or_all, ordered
from ._graph import Graph, UnknownPrimitive, trace
from ._interval import intersect
from ._region import Ball, Box
from ._rule import Const, Node

Method = Literal["ibp", "crown-ibp", "crown"]
# Operations of a function beyond which its planes are evaluated pass by pass.
LONG = 300


class Bounds(eqx.Module):
    """What a function's results lie between, for every input of a region.

    **Arguments:**

    - `lower`, `upper`: PyTrees shaped like the function's result, in the widest floating-point type that JAX has enabled;
        infinite where nothing is known.
    - `assurance`: `"PROVED_FLOAT"` or `"PROVED_REAL"`.
    """

    lower: PyTree
    upper: PyTree
    assurance: str = eqx.field(static=True)


def bound(
    function: Callable, *args: PyTree, method: Method = "crown", rounding: Literal["float", "real"] = "float"
) -> Bounds:
    """Bounds of a JAX function for every input of a region. Works under `jit`, `vmap` and `grad`.

    **Arguments:**

    - `function`: any function of arrays made of the operations that there are rules for; it may contain `jax.jvp`,
        `jax.grad`, `jit` and loops of fixed length.
    - `args`: its arguments, PyTrees with a [`lyapunov_dsl.bounds.Box`][] or a [`lyapunov_dsl.bounds.Ball`][] in place of each
        array that varies; all other leaves are constants.
    - `method`: `"ibp"`: interval bound propagation (Gowal et al. 2018), the cheapest; `"crown-ibp"`: backward linear bound
        propagation from the results, with intervals for the intermediate values (Zhang et al. 2020); `"crown"`: linear bounds also
        for the inputs of every nonlinear operation (Zhang et al. 2018), the tightest. Every method intersects linear bounds with
        intervals.
    - `rounding`: `"float"` bounds what the function evaluates to in its floating-point types, in any order of summation, with or
        without fused multiply-add, subnormal numbers flushed or not (`PROVED_FLOAT`); `"real"` what it would be without
        any rounding (`PROVED_REAL`).

    **Returns:** [`lyapunov_dsl.bounds.Bounds`][].

    **Raises:** `lyapunov_dsl.bounds.UnknownPrimitive` for an operation without a rule, with its shapes and the line that called
    it; `ValueError` where no argument varies, or another method is asked for.
    """
    if method not in ("ibp", "crown-ibp", "crown"):
        raise ValueError(f'method: expected "ibp", "crown-ibp" or "crown", got {shown(method)}')
    if rounding not in ("float", "real"):
        raise ValueError(f'rounding: expected "float" or "real", got {shown(rounding)}')
    is_region = lambda leaf: isinstance(leaf, Box | Ball)
    leaves, tree = jax.tree.flatten(args, is_leaf=is_region)
    places = [i for i, leaf in enumerate(leaves) if is_region(leaf)]
    if not places:
        raise ValueError("bound: expected a Box or a Ball among the arguments, got none")
    regions: list[Box | Ball] = [leaves[i] for i in places]

    def of_arrays(*arrays: Any) -> PyTree:
        filled = list(leaves)
        for place, array in zip(places, arrays, strict=True):
            filled[place] = array
        return function(*jax.tree.unflatten(tree, filled))

    graph, out = trace(of_arrays, *(region.like for region in regions))
    for value in graph.outputs:
        real = jnp.issubdtype(value.dtype, jnp.number) and not jnp.issubdtype(value.dtype, jnp.complexfloating)
        if 0 in value.shape or not (real or value.dtype == bool):
            like = describe(jax.ShapeDtypeStruct(value.shape, value.dtype))
            raise ValueError(f"bound: expected results that are real numbers, at least one of them, got {like}")
    if rounding == "real" and graph.evaluated:
        raise UnknownPrimitive(
            f"bounds: what {graph.evaluated[0]} makes of constants is known as it is evaluated, not in real numbers: compute it "
            'outside of the function, so that it is a constant, or ask for rounding="float"'
        )
    lower, upper, wrong = _evaluated(lambda regions: _passed(graph, regions, method, rounding), graph, regions, method)
    for error, may in zip(graph.errors.values(), wrong, strict=True):
        if not is_traced(may) and bool(may):
            raise error
    lower, upper = (jax.tree.unflatten(out, v) for v in (lower, upper))
    return Bounds(lower, upper, f"PROVED_{rounding.upper()}")


# The ends of all results, and for each error that the function raises by itself whether it may.
Ends = tuple[list[jax.Array], list[jax.Array], list[jax.Array]]


def _evaluated(
    passed: Callable[[list[Box | Ball]], Ends], graph: Graph, regions: list[Box | Ball], method: Method
) -> Ends:
    """Passes as a program that NumPy evaluates, where regions are known: bounds of one function are too seldom asked for to
    be worth compiling. Elsewhere, and where there are so many passes that tracing them takes longer, operation by operation."""
    known = not any(is_traced(leaf) for leaf in jax.tree.leaves(regions))
    long = method == "crown" and len(ordered([v for v in graph.outputs if isinstance(v, Node)])) > LONG
    if known and not long:
        # Constants of the function may be what a transformation of the caller's traces.
        with contextlib.suppress(jax.errors.TracerArrayConversionError):
            return jax.tree.map(jnp.asarray, evaluated(passed, regions))
    return passed(regions)


@np.errstate(all="ignore")
def _passed(graph: Graph, regions: list[Box | Ball], method: Method, rounding: Literal["float", "real"]) -> Ends:
    """One pass over a graph for some regions."""
    found = Pass(graph, regions, method == "crown", rounding == "real")
    wrong = [~jnp.all(found.ranges[node].upper == 0) for node in graph.errors]
    results = []
    for value in graph.outputs:
        span = value.range() if isinstance(value, Const) else found.ranges[value]
        if method != "ibp" and isinstance(value, Node) and value.is_float:
            span = intersect(span, found.planes(value))
        # Where a premise fails, a decision that rests on it may be any.
        results.append(finite_or_all(span, found.good))
    return [v.lower for v in results], [v.upper for v in results], wrong
