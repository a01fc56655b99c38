"""Activation functions made of several operations, as functions of one number with lines of their own."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import _graph as graphs
from ._graph import Graph, Value, concrete
from ._interval import Interval, eps, finite_magnitude, is_anything, magnitude, wide, zero_safe
from ._linear import add, sub
from ._lines import Shape, bent, chord, ends, monotone, planes
from ._move import nodes_of
from ._rule import Node, Relaxation, Rule, roundoff, steep
from ._scalar import RULES

# So many pieces is a range cut into.
PIECES = 16


def smooth(name: str, value: Callable, derivative: Callable, bends: tuple[float, float], ulps: int) -> Rule:
    """The rule of a function whose second derivative lies between two numbers everywhere: between points at a distance h, it
    is within h²/8 times that of its chord. `value` and `derivative` take (data of the node, x)."""

    def points(node: Node, x: Interval) -> tuple[Any, Any, Any]:
        lower, upper, finite = ends(x)
        share = np.arange(PIECES + 1).reshape(-1, *[1] * jnp.ndim(lower)) / PIECES
        return lower + (upper - lower) * share, (upper - lower) ** 2 / (8 * PIECES**2) * (1 + 1e-9), finite

    def span(node: Node, x: Interval) -> Interval:
        at, square, finite = points(node, x)
        found = value(node.data, at)
        low = jnp.min(found, axis=0) - max(bends[1], 0) * square
        high = jnp.max(found, axis=0) + max(-bends[0], 0) * square
        good = finite & ~is_anything(x)
        return Interval(jnp.where(good, low, -jnp.inf), jnp.where(good, high, jnp.inf))

    def relax(node: Node, out: Interval, x: Interval) -> Relaxation:
        at, square, finite = points(node, x)
        slope = chord(lambda v: value(node.data, v), lambda v: derivative(node.data, v), at[0], at[-1])
        rest = value(node.data, at) - slope * at
        low = jnp.min(rest, axis=0) - max(bends[1], 0) * square
        high = jnp.max(rest, axis=0) + max(-bends[0], 0) * square
        good = finite & jnp.isfinite(out.lower) & jnp.isfinite(out.upper)
        return planes(out, x, good, (slope, low), (slope, high), ulps=ulps)

    def slack(node: Node, out: Interval, x: Interval) -> Any:
        # Its factors are rounded by themselves: relative to x, not to the product.
        return roundoff(node, ulps, finite_magnitude(out) + finite_magnitude(x))

    # Only the factor x itself is not evaluated once.
    again = steep(lambda node, x: [jnp.full(node.shape, 2.0, wide())], product=True)
    return Rule(name, span, slack, relax, again=again, within=_twice)


def _twice(node: Node, x: Interval, spread: Any) -> Any:
    """x times a function of x with slopes below 2, of two evaluations of x."""
    return 4 * zero_safe(spread, 1 + magnitude(x))


_softplus = Shape(jax.nn.softplus, jax.nn.sigmoid, 512)
# It ends in a sum with the larger of x and 0.
softplus = monotone("softplus", _softplus, bent(_softplus))._replace(
    again=steep(lambda node, x: [jnp.full(node.shape, 2.0, wide())]), within=_twice
)
silu = smooth(
    "silu",
    lambda data, x: x * jax.nn.sigmoid(x),
    lambda data, x: jax.nn.sigmoid(x) * (1 + x * jax.nn.sigmoid(-x)),
    (-0.1, 0.5),
    128,
)


def _gelu_slope(data: Any, x: Any) -> Any:
    return 0.5 * jax.lax.erfc(-data * x) + x * data / math.sqrt(math.pi) * jnp.exp(-((data * x) ** 2))


# With the root of 1/2 as it is stored, which float32 has to seven digits.
gelu = smooth("gelu", lambda data, x: 0.5 * x * jax.lax.erfc(-data * x), _gelu_slope, (-0.11, 0.8), 512)


def _bend(data: Any, x: Any) -> tuple[Any, Any]:
    """tanh of the inner polynomial and the derivative of the latter."""
    return jnp.tanh(data[0] * (x + data[1] * x**3)), data[0] * (1 + 3 * data[1] * x**2)


def _tanh_gelu_slope(data: Any, x: Any) -> Any:
    bend, inner = _bend(data, x)
    return 0.5 * (1 + bend) + 0.5 * x * (1 - bend * bend) * inner


tanh_gelu = smooth(
    "gelu by tanh",
    lambda data, x: 0.5 * x * (1 + _bend(data, x)[0]),
    _tanh_gelu_slope,
    (-0.13, 0.81),
    512,
)


def _tag(value: Any, *names: str) -> Any:
    tag = getattr(value, "tag", None)
    return tag[2] if tag is not None and tag[0] in names else ()


def _factor(value: Any, name: str = "mul") -> tuple[float, Any] | None:
    """(c, v) of c · v or c + v with one number c."""
    pair = _tag(value, name)
    for one, other in (pair, pair[::-1]) if len(pair) == 2 else ():
        known = concrete(one)
        if known is not None and known.size and (known == known.reshape(-1)[0]).all() and isinstance(other, Node):
            return float(known.reshape(-1)[0]), other
    return None


def _follow(value: Any, path: Sequence[tuple[str, float | None]]) -> tuple[Any, list[float]] | None:
    """What is left of a value after taking off constants, in this order, and those that were not given."""
    found = []
    for name, expected in path:
        step = _factor(value, name)
        if step is None or (expected is not None and abs(step[0] - expected) > 1e-6 * abs(expected)):
            return None
        found.append(step[0])
        value = step[1]
    return value, found


def rewrite_activation(graph: Graph, x: Node, y: Node) -> Node | None:
    """x σ(x) and both forms of GELU."""
    for one, other in ((x, y), (y, x)):
        if other.rule is RULES["logistic"] and other.inputs[0] is one:
            return graph.add(silu, [one], one.shape, one.dtype)
        inner = _follow(other, [("mul", 0.5), ("add", 1.0)])
        if inner is not None and inner[1] == [0.5, 1.0]:
            (bend,) = _tag(inner[0], "tanh") or (None,)
            scaled = _factor(bend)
            parts = _tag(scaled[1], "add") if scaled else ()
            for base, cubed in (parts, parts[::-1]) if len(parts) == 2 else ():
                cube = _factor(cubed)
                power = _tag(cube[1], "integer_pow") if cube else ()
                if cube and scaled and base is one and power and power[0] is one and cube[1].tag[1]["y"] == 3:
                    data = (scaled[0], cube[0])
                    if abs(data[0] - math.sqrt(2 / math.pi)) < 1e-4 and abs(data[1] - 0.044715) < 1e-6:
                        return graph.add(tanh_gelu, [one], one.shape, one.dtype, data)
        (argument,) = _tag(other, "erfc") or (None,)
        half, turned = _factor(one), _factor(argument)
        if half and turned and half[0] == 0.5 and abs(turned[0] - math.sqrt(0.5)) < eps(x.dtype):
            (negative,) = _tag(turned[1], "neg") or (None,)
            if negative is not None and negative is half[1]:
                return graph.add(gelu, [negative], negative.shape, negative.dtype, turned[0])
    return None


@functools.cache
def _logaddexp(shapes: Any) -> str:
    """The body of `jnp.logaddexp` for arguments of these types, as JAX prints it."""
    like = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes]
    with jax.ensure_compile_time_eval():
        jaxpr = jax.make_jaxpr(jnp.logaddexp)(*like).jaxpr
    while len(jaxpr.eqns) == 1 and jaxpr.eqns[0].primitive.name in ("jit", "pjit"):
        jaxpr = jaxpr.eqns[0].params["jaxpr"].jaxpr
    bodies = [e.params["call_jaxpr"] for e in jaxpr.eqns if e.primitive.name == "custom_jvp_call"]
    return str(bodies[0]) if len(bodies) == len(jaxpr.eqns) == 1 else ""


def rewrite_call(graph: Graph, equation: Any, operands: list[Value]) -> list[Value] | None:
    """log(exp(x) + exp(y)), and softplus, which is that with y = 0."""
    if equation.primitive.name != "custom_jvp_call" or len(operands) != 2:
        return None
    shapes = tuple((v.aval.shape, np.dtype(v.aval.dtype).name) for v in equation.invars)
    if str(equation.params["call_jaxpr"]) != _logaddexp(shapes):
        return None
    out = equation.outvars[0].aval
    x, y = graphs.fit(graph, equation, *operands)
    for one, other in ((x, y), (y, x)):
        known = concrete(other)
        if isinstance(one, Node) and known is not None and not known.any():
            node = graph.add(softplus, [one], out.shape, out.dtype)
            graph.marks[node] = ("softplus", one)
            return [node]
    if not isinstance(x, Node) and not isinstance(y, Node):
        return None
    x, y = nodes_of(graph, [x, y])
    difference = sub(graph, x, y, shape=out.shape, dtype=out.dtype)
    return [add(graph, graph.add(softplus, [difference], out.shape, out.dtype), y, shape=out.shape, dtype=out.dtype)]


_logistic = RULES["logistic"]._replace(within=_twice)


def rewrite_exp(graph: Graph, x: Node) -> Node | None:
    """exp(x - softplus(x)), the derivative of softplus, where neither is infinite."""
    pair = _tag(x, "sub")
    if len(pair) != 2:
        return None
    one, other = (_unless_infinite(v) for v in pair)
    if isinstance(one, Node) and isinstance(other, Node) and graph.marks.get(other) == ("softplus", one):
        graph.premises.append(one)
        return graph.add(_logistic, [one], one.shape, one.dtype)
    return None


def _unless_infinite(value: Any) -> Any:
    """v of a choice between v, and 0 where it is infinite."""
    choice = _tag(value, "select_n")
    if len(choice) == 3:
        pair = _tag(choice[0], "eq")
        zero = concrete(choice[2])
        if len(pair) == 2 and pair[0] is choice[1] and zero is not None and not zero.any():
            known = concrete(pair[1])
            if known is not None and (known == np.inf).all():
                return choice[1]
    return value


graphs.rewrite_activation, graphs.rewrite_call, graphs.rewrite_exp = rewrite_activation, rewrite_call, rewrite_exp
