"""Operations that change nothing, or nothing but a constant factor.

A compiler drops what changes nothing: the maximum of one number, a constant that folds to 0 and is added, log(exp(x)), 1/(1/x), a
choice between two equal values. Then it merges what stands on both sides. What a value may be evaluated as is entered in
`graph.same`, through which constant factors, summands and quotients pass as through operations that move numbers. To enter too
much is sound, and costs tightness only where a product of constants leaves the range of its type.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from .._types import is_traced
from . import _graph as graphs
from ._graph import Graph, Value
from ._interval import Interval, magnitude, tiny
from ._linear import pick
from ._merge import (
    MERGES,
    ONE,
    Factors,
    common_of,
    factors_of,
    is_copied,
    larger,
    lose_without,
    raised,
    repeated,
    rewritten,
    shift_of,
    smaller,
    two_to,
)
from ._monomials import MONOMIALS, Monomial, monomial_of, shifted, sum_of
from ._pattern import operands_of
from ._quotients import ratio_of
from ._rule import Const, Node, affine

# Which operations leave as it is what they are applied to.


def _neutral(value: Value, number: float) -> bool:
    """Whether a constant may be this number everywhere."""
    if not isinstance(value, Const) or is_traced(value.value) or is_traced(value.slack):
        return isinstance(value, Const)
    off = 0.0 if value.slack is None else np.asarray(value.slack)
    known = np.asarray(value.value, np.float64)
    return bool(np.all((known == number) | (np.abs(known - number) <= off)))


def _is_moved(value: Node) -> bool:
    """Whether a value only moves the entries of others."""
    return value.rule is affine and value.data.terms == 0


def _copies(graph: Graph, operands: Sequence[Value], out: Node) -> bool:
    """Whether the entries of a result may be copies: of what is broadcast or stacked, or of functions of copies."""
    nodes = [v for v in operands if isinstance(v, Node)]
    if out.size < 2 or not nodes:
        return False
    if any(v.is_float and v.size < out.size for v in nodes):
        return all(is_copied(graph, v) for v in operands if isinstance(v, Const) or v.size >= out.size)
    return all(is_copied(graph, v) for v in operands)


def _count(equation: Any, x: Node) -> int:
    return math.prod(x.shape[a] for a in equation.params["axes"])


def _over_copies(graph: Graph, equation: Any, x: Node) -> Node | None:
    """The largest, or the sum, of one number or of numbers that may be copies."""
    return x if _count(equation, x) == 1 or _is_moved(x) or x in graph.copies else None


def _along(graph: Graph, equation: Any, x: Node) -> Node | None:
    return x if x.shape[equation.params["axis"]] == 1 else None


def _sorted(graph: Graph, equation: Any, *operands: Value) -> Any:
    return operands if operands[0].shape[equation.params["dimension"]] == 1 else None


def _window(graph: Graph, equation: Any, x: Value, *_: Value) -> Node | None:
    return x if math.prod(equation.params["window_dimensions"]) == 1 and isinstance(x, Node) else None


def _alike(graph: Graph, equation: Any, *operands: Value) -> Node | None:
    """One of several values that may be one."""
    if not all(isinstance(v, Node) and v.is_float for v in operands):
        return None
    nodes = [v for v in operands if isinstance(v, Node)]
    first = monomial_of(graph, nodes[0])
    return nodes[0] if all(first.is_like(monomial_of(graph, v)) for v in nodes[1:]) else None


# What is never below zero, as compilers may know it.
NONNEGATIVE = ("abs", "square", "exp", "exp2", "sqrt", "logistic")


def _is_nonnegative(value: Value) -> bool:
    """Whether a value is never below zero, whatever it is of."""
    if any(operands_of(value, name) is not None for name in NONNEGATIVE):
        return True
    tag = getattr(value, "tag", None)
    if tag is None:
        return False
    name, params, operands = tag
    if name == "max":
        return any(_is_nonnegative(v) if isinstance(v, Node) else _least(v) >= 0 for v in operands)
    return (name == "mul" and operands[0] is operands[1]) or (name == "integer_pow" and params["y"] % 2 == 0)


def _least(constant: Const) -> float:
    """The least that a constant may be, any number for one that is not known yet."""
    if is_traced(constant.value) or is_traced(constant.slack):
        return -math.inf
    return float(np.min(np.asarray(constant.range().lower), initial=math.inf))


def _decided(which: Value) -> bool | None:
    """What a comparison with 0 of what is never below it is for all numbers, `None` where it depends on them."""
    while isinstance(which, Node) and _is_moved(which) and len(which.inputs) == 1:
        which = which.inputs[0]
    if (inner := operands_of(which, "not")) is not None:
        found = _decided(inner[0])
        return None if found is None else not found
    # v >= 0 and 0 <= v hold, v < 0 and 0 > v do not; v > 0 depends on v.
    for name, turned, answer in (("ge", 0, True), ("le", 1, True), ("lt", 0, False), ("gt", 1, False)):
        pair = operands_of(which, name)
        if pair is not None and isinstance(pair[1 - turned], Const):
            zero, value = pair[1 - turned], pair[turned]
            known = not (is_traced(zero.value) or is_traced(zero.slack)) and _neutral(zero, 0.0)
            return answer if known and zero.slack is None and _is_nonnegative(value) else None
    return None


def _chosen(graph: Graph, equation: Any, which: Value, *cases: Value) -> Value | None:
    """A choice between values that may be one, or by a comparison that is known."""
    known = _decided(which) if len(cases) == 2 else None
    return _alike(graph, equation, *cases) if known is None else cases[int(known)]


def _scattered(neutral: float) -> Callable[..., Value | None]:
    def unchanged(graph: Graph, equation: Any, operand: Value, indices: Value, updates: Value) -> Value | None:
        if _neutral(operand, neutral):
            return updates
        return operand if _neutral(updates, neutral) else None

    return unchanged


UNCHANGED: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("reduce_max", "reduce_min", "reduce_sum", "reduce_prod"), _over_copies),
    **dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin"), _along),
    **dict.fromkeys(("reduce_window_sum", "reduce_window_max", "reduce_window_min"), _window),
    **dict.fromkeys(("max", "min", "clamp"), _alike),
    "top_k": lambda graph, equation, x: [x, None] if x.shape[-1] == 1 else None,
    "sort": _sorted,
    "select_n": _chosen,
    # A compiler may know that it is not below zero.
    "abs": lambda *operands: operands[-1],
    **{f"scatter{sign}add": _scattered(0.0) for sign in "-_"},
    **{f"scatter{sign}sub": _scattered(0.0) for sign in "-_"},
    **{f"scatter{sign}mul": _scattered(1.0) for sign in "-_"},
    **{f"scatter{sign}max": _scattered(-math.inf) for sign in "-_"},
    **{f"scatter{sign}min": _scattered(math.inf) for sign in "-_"},
}


def _unchanged(graph: Graph, equation: Any, operands: Sequence[Value], out: Node) -> Any:
    """What the result of an equation may be evaluated as."""
    name = equation.primitive.name
    if name in ("add", "add_any", "sub"):
        return shifted(graph, name, operands, out)
    if name in MONOMIALS:
        found = MONOMIALS[name](graph, equation, *operands)
        if found is None:
            return None
        # The operand itself too, which may have come about otherwise than the first value of this form.
        alike = [v for v in operands if isinstance(v, Node) and v.is_float and monomial_of(graph, v).is_like(found)]
        return tuple(dict.fromkeys([*_earlier(graph, out, found), *alike]))
    found = UNCHANGED[name](graph, equation, *operands) if name in UNCHANGED else None
    return found[0] if isinstance(found, list | tuple) else found


def _earlier(graph: Graph, out: Node, found: Monomial) -> list[Node]:
    """The first value that has the form of a new one, if there is one."""
    graph.monomials[out] = found
    known = graph.marks.setdefault(("powers of", found.base), [found.base])
    for node in known:
        if monomial_of(graph, node).is_like(found):
            return [node]
    known.append(out)
    return []


# What merges once more where something is dropped.


def _repeated(graph: Graph, equation: Any, operands: Sequence[Value], out: Node) -> Node:
    """Sums and products of numbers that may be copies of one: n x and x^n, or the sum and product of what was stacked."""
    (x,) = operands
    assert isinstance(x, Node)
    name = equation.primitive.name
    count = x.shape[equation.params["axis"]] if name == "cumprod" else _count(equation, x)
    if count == 1 or not (_is_moved(x) or x in graph.copies):
        return out
    if name != "reduce_sum":
        return raised(graph, x, out, count)
    graph.monomials[out] = monomial_of(graph, x).times(0.0, math.log2(count))
    found = graph.factors[out] = factors_of(graph, x)
    if not found.trivial:
        lose_without(out, found)
    return repeated(graph, out, count)


def _log_of_power(graph: Graph, equation: Any, operands: Sequence[Value], out: Node) -> Node:
    """log(x^c), which may be evaluated as c log(x), and log(exp(x)) as x."""
    (x,) = operands
    assert isinstance(x, Node)
    inside, found = monomial_of(graph, x), ONE
    scale = abs(inside.power) or 1.0
    for name, unit in (("exp", 1.0), ("exp2", math.log(2))):
        inner = operands_of(inside.base, name)
        if inner is not None:
            found, scale = factors_of(graph, inner[0]), scale * unit
    if inside.base in graph.exponents:
        found = graph.exponents[inside.base]
    size = math.log2(scale)
    graph.factors[out] = found._replace(least=smaller(found.least + size, 0.0), most=larger(found.most + size, 0.0))
    return out


def _root(graph: Graph, equation: Any, operands: Sequence[Value], out: Node) -> Node:
    """The root of a square of a product."""
    (x,) = operands
    assert isinstance(x, Node)
    least, most, bare = factors_of(graph, x)
    root = equation.primitive.name == "sqrt"
    graph.factors[out] = Factors(least / 2, most / 2, bare) if root else Factors(-most / 2, -least / 2, bare)
    return out


MERGES |= {
    "cumprod": _repeated,
    "reduce_sum": _repeated,
    "reduce_prod": _repeated,
    "log": _log_of_power,
    "sqrt": _root,
    "rsqrt": _root,
}


def _exponent_of(value: Node) -> Node | None:
    """x of exp(x), and of 2^x."""
    found = operands_of(value, "exp") or operands_of(value, "exp2")
    return None if found is None else found[0]


def _exponent_factors(graph: Graph, value: Node) -> Factors | None:
    """The constants that may be taken out of the exponent of a value."""
    inner = _exponent_of(value)
    return graph.exponents.get(value) if inner is None else factors_of(graph, inner)


def _exponents(graph: Graph, equation: Any, operands: Sequence[Value], out: Node) -> Node:
    """exp(x) exp(y) is evaluated as exp(x + y), where x + y may have a common factor."""
    if equation.primitive.name not in ("mul", "div", "square", "integer_pow"):
        return out
    bases = [monomial_of(graph, v).base for v in operands if isinstance(v, Node)]
    parts = [factors for base in bases if (factors := _exponent_factors(graph, base)) is not None]
    if not parts or len(parts) < len(operands):
        return out
    common = functools.reduce(common_of, parts)
    base = monomial_of(graph, out).base
    if _exponent_of(base) is None:
        # Of the product, whose logarithm is a sum.
        graph.exponents[base] = common
    inner = [found for base in bases if (found := _exponent_of(base)) is not None]
    if common.trivial or len(inner) < len(operands):
        return out
    x, y = inner[0], inner[-1]
    most, above = 0.25 * float(jnp.finfo(out.dtype).max), two_to(-common.least)
    below = tiny(out.dtype) * two_to(common.most)

    def slack(node: Node, written: Interval, *parts: Interval) -> Any:
        size = sum(jnp.max(magnitude(p), initial=0.0) for p in parts)
        good = (size * above < most) & (below < 0.5)
        return jnp.where(good, 2 * below * magnitude(written), jnp.inf)

    return rewritten(graph, out, [x, y], slack)


def _fix(graph: Graph, equation: Any, operands: Sequence[Value], out: Node) -> bool:
    """Enters what a compiler may know to be a constant, and says whether it may."""
    name = equation.primitive.name
    found: Any = None
    if name == "convert_element_type" and isinstance(operands[0], Node) and not operands[0].is_float:
        found = _decided(operands[0])
    elif name == "select_n" and len(operands) == 3 and (which := _decided(operands[0])) is not None:
        case = operands[1 + which]
        case = graph.fixed.get(case, case) if isinstance(case, Node) else case
        found = case.value if isinstance(case, Const) else None
    elif operands and all(isinstance(v, Const) or v in graph.fixed for v in operands):
        with contextlib.suppress(graphs.UnknownPrimitive):
            (one,) = graph.fold(equation, [v if isinstance(v, Const) else graph.fixed[v] for v in operands])
            found = one.value if isinstance(one, Const) else None
    if found is None:
        return False
    graph.fixed[out] = Const(jnp.broadcast_to(jnp.asarray(found, out.dtype), out.shape))
    return True


def merge(graph: Graph, equation: Any, operands: Sequence[Value], out: Any) -> Any:
    """The result of an equation, with what compilers may lose where they rewrite it."""
    name = equation.primitive.name
    if isinstance(out, list):
        # Sorted arrays, and the largest entries with their places.
        found = UNCHANGED[name](graph, equation, *operands) if name in UNCHANGED else None
        for node, other in zip(out, found or [None] * len(out), strict=False):
            _enter(graph, node, other)
        return out
    if not isinstance(out, Node) or not out.is_float or any(out is v for v in operands):
        return out
    if _fix(graph, equation, operands, out):
        return out
    # What is known to be a constant is merged as one.
    operands = [graph.fixed[v] if isinstance(v, Node) and v in graph.fixed else v for v in operands]
    other = _unchanged(graph, equation, operands, out)
    merged = MERGES[name](graph, equation, operands, out) if name in MERGES else out
    merged = _exponents(graph, equation, operands, merged)
    if merged is not out:
        for known in (graph.monomials, graph.sums):
            if out in known:
                known[merged] = known[out]
    if _copies(graph, operands, merged):
        graph.copies.add(merged)
    _enter(graph, merged, other)
    return merged


def _enter(graph: Graph, node: Value, other: Any) -> None:
    """Enters what a result may be evaluated as, if anything, and what passes through it."""
    if not isinstance(node, Node) or not node.is_float:
        return
    several = [v for v in (other if isinstance(other, tuple) else (other,)) if isinstance(v, Node) and v is not node]
    if several:
        graph.same[node] = tuple(several)
    # Now, and not once they are asked for: a long chain of operations would then be as deep a recursion.
    for found in (factors_of, shift_of, ratio_of, monomial_of, sum_of):
        found(graph, node)


def choose(graph: Graph, which: Value, cases: list[Value]) -> Value:
    """The result of a branch."""
    out = pick(graph, which, cases)
    _enter(graph, out, _alike(graph, None, *cases))
    return out


graphs.merge, graphs.choose = merge, choose
