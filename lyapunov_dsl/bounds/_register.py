"""Rules of a user's own: what a primitive that works entry by entry needs."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from .._jaxprs import CALLS
from ._graph import CONTROL, TRANSLATIONS, Graph, Value
from ._interval import Interval, finite_magnitude, is_anything
from ._lines import Line, ends, planes
from ._move import fit, nodes_of
from ._rule import Node, Relaxation, Rule, roundoff


def register(name: str, rule: Rule) -> None:
    """Makes a primitive known that works entry by entry on floating-point arrays of one shape. It is known from then on, to all calls.

    A range [-inf, inf] of an operand stands for anything, NaN included, and so the result is anything there without `rule.range`
    having to say so; NaN at an end of the range that it returns is anything as well.

    **Arguments:**

    - `name`: of the primitive, as `jax.make_jaxpr` prints it.
    - `rule`: a [`lyapunov_dsl.bounds.Rule`][]. Without `relax`, planes stop at the operation, and its range stands for it.

    **Raises:** `ValueError` for a name that has a rule.
    """
    if name in TRANSLATIONS or name in CALLS or name in CONTROL:
        raise ValueError(f"register: expected a primitive without a rule, got {name!r}")

    def span(node: Node, *ranges: Interval) -> Interval:
        out = rule.range(node, *ranges)
        unknown = jnp.any(jnp.stack([is_anything(x) for x in ranges]), axis=0)
        return Interval(jnp.where(unknown, -jnp.inf, out.lower), jnp.where(unknown, jnp.inf, out.upper))

    full = rule._replace(range=span)

    def translate(graph: Graph, equation: Any, *operands: Value) -> Value:
        out = equation.outvars[0].aval
        if len(equation.outvars) > 1 or not jnp.issubdtype(out.dtype, jnp.floating):
            raise graph.unsupported("a registered rule is one of a floating-point result")
        return graph.add(full, nodes_of(graph, fit(graph, equation, *operands)), out.shape, out.dtype)

    TRANSLATIONS[name] = translate


def ulps(count: int | float, argument: int | float = 0) -> Callable[..., Any]:
    """The `slack` of a function that is evaluated with a relative error.

    **Arguments:**

    - `count`: how many units in the last place of the result an evaluation may be off, on any backend that is meant.
    - `argument`: how many more for each unit of the largest |argument|: exponentials round their argument, of which half a unit
        in the last place is |x|/2 of the result.

    **Returns:** a function (node, range of the result, *ranges of the operands) -> slack, for [`lyapunov_dsl.bounds.Rule`][].
    """

    def slack(node: Node, out: Interval, *ranges: Interval) -> Any:
        steps: Any = count
        if argument:
            for x in ranges:
                steps = steps + argument * finite_magnitude(x)
        return roundoff(node, steps, finite_magnitude(out))

    return slack


def lines(function: Callable[[Any, Any], tuple[Line, Line]], count: int = 8) -> Callable[..., Relaxation]:
    """The `relax` of a function of one number.

    **Arguments:**

    - `function`: (lower, upper) -> ((slope, intercept) of a line below, (slope, intercept) of a line above), for all arguments
        between two finite numbers, of arrays and entry by entry. 0 stands for ends that are infinite, and what comes of these is not
        used.
    - `count`: how many units in the last place the function may be off in computing the intercepts, beyond a few.

    **Returns:** a function (node, range of the result, range of the operand) -> planes, for [`lyapunov_dsl.bounds.Rule`][].
    """

    def relax(node: Node, out: Interval, x: Interval) -> Relaxation:
        lower, upper, finite = ends(x)
        good = finite & jnp.isfinite(out.lower) & jnp.isfinite(out.upper)
        return planes(out, x, good, *function(lower, upper), ulps=count)

    return relax
