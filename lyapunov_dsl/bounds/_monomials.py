"""Values as compilers may see them: as a constant times a power of another value, and as another value and a constant."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._types import is_traced
from ._graph import Graph, Value
from ._interval import eps
from ._merge import contracted, logarithms, sources
from ._pattern import operands_of
from ._rule import Const, Node, affine

# Binary logarithms, and exponents, of what may be 1.
NEAR = 1e-3


class Monomial(NamedTuple):
    """A value as a constant times a power of another value; binary logarithms of the constant's least and largest size."""

    base: Node
    power: int | float = 1.0
    low: int | float = 0.0
    high: int | float = 0.0

    def times(self, low: int | float, high: int | float) -> "Monomial":
        return self._replace(low=self.low + low, high=self.high + high)

    def to(self, power: int | float) -> "Monomial":
        low, high = sorted((self.low * power, self.high * power))
        return Monomial(self.base, self.power * power, low, high)

    def is_like(self, other: "Monomial") -> bool:
        """Whether both may be one value, as far as a compiler sees."""
        close = abs(self.power - other.power) < NEAR
        return self.base is other.base and close and self.low - other.high < NEAR and other.low - self.high < NEAR


def parts_of(graph: Graph, value: Node) -> Sequence[Node]:
    """The sources of a value; of a part of a stack those alone whose entries it has."""
    found = sources(graph, value)
    if len(found) != 1 or value in graph.same or len(found[0].inputs) < 2 or found[0].rule is not affine:
        return found
    stack = found[0]
    if stack.data.terms or stack.data.uncertain is not None or stack.data.shift is not None:
        return found
    with jax.ensure_compile_time_eval():
        numbers = [jnp.full(part.shape, i + 1.0) for i, part in enumerate(stack.inputs)]
        places = value.data.absolute(stack.data.absolute(*numbers))
    if is_traced(places):
        return found
    return [stack.inputs[int(i) - 1] for i in np.unique(np.asarray(places)) if i]


def monomial_of(graph: Graph, value: Node) -> Monomial:
    """A value as a constant times a power of another."""
    if value not in graph.monomials:
        parts = [monomial_of(graph, part) for part in parts_of(graph, value)]
        found = Monomial(value)
        if parts and all(p.base is parts[0].base and p.power == parts[0].power for p in parts):
            found = parts[0]._replace(low=min(p.low for p in parts), high=max(p.high for p in parts))
        graph.monomials[value] = found
    return graph.monomials[value]


def _size(constant: Const) -> tuple[float, float]:
    """Binary logarithms of the smallest and largest size of a constant, any for one that is not known yet."""
    if is_traced(constant.value) or is_traced(constant.slack):
        return -math.inf, math.inf
    low, high, _ = logarithms(constant)
    return low, high


def _exponent(constant: Value) -> float | None:
    """The one number that a constant is within rounding."""
    if not isinstance(constant, Const) or is_traced(constant.value) or is_traced(constant.slack):
        return None
    known = np.unique(np.asarray(constant.value, np.float64))
    off = 0.0 if constant.slack is None else float(np.max(np.asarray(constant.slack, np.float64), initial=0.0))
    return float(known[0]) if len(known) == 1 and np.isfinite(known[0]) and off < NEAR else None


def _product(graph: Graph, equation: Any, x: Value, y: Value, sign: int) -> Monomial | None:
    """x y, or x / y."""
    if isinstance(x, Const):
        assert isinstance(y, Node)
        return monomial_of(graph, y).to(sign).times(*_size(x))
    if isinstance(y, Const):
        low, high = _size(y)
        return monomial_of(graph, x).times(*((low, high) if sign > 0 else (-high, -low)))
    one, other = monomial_of(graph, x), monomial_of(graph, y).to(sign)
    if one.base is not other.base:
        return None
    return one.times(other.low, other.high)._replace(power=one.power + other.power)


def _contracted(graph: Graph, equation: Any, x: Value, y: Value) -> Monomial | None:
    return _product(graph, equation, x, y, 1) if contracted(equation, [x, y]) == 1 else None


def _to(power: float) -> Callable[..., Monomial]:
    return lambda graph, equation, x: monomial_of(graph, x).to(power)


def _pow(graph: Graph, equation: Any, x: Value, y: Value) -> Monomial | None:
    power = _exponent(y)
    return None if not power or not isinstance(x, Node) else monomial_of(graph, x).to(power)


def _log(graph: Graph, equation: Any, x: Node) -> Monomial | None:
    """log(exp(x)^c) is c x."""
    inside = monomial_of(graph, x)
    inner, size = operands_of(inside.base, "exp"), 0.0
    if inner is None:
        inner, size = operands_of(inside.base, "exp2"), math.log2(math.log(2))
    if inner is None or not Monomial(inside.base, inside.power).is_like(inside):
        return None
    size += math.log2(abs(inside.power)) if inside.power else 0.0
    return monomial_of(graph, inner[0]).times(size, size)


MONOMIALS: dict[str, Callable[..., Monomial | None]] = {
    # To a wider type and back is nothing.
    "convert_element_type": lambda graph, equation, x: monomial_of(graph, x) if x.is_float else None,
    "mul": lambda graph, equation, x, y: _product(graph, equation, x, y, 1),
    "div": lambda graph, equation, x, y: _product(graph, equation, x, y, -1),
    "dot_general": _contracted,
    "conv_general_dilated": _contracted,
    "pow": _pow,
    "integer_pow": lambda graph, equation, x: monomial_of(graph, x).to(equation.params["y"]),
    "square": _to(2.0),
    "log": _log,
    "sqrt": _to(0.5),
    "rsqrt": _to(-0.5),
}


class Sum(NamedTuple):
    """A value as plus or minus another, and a constant: its value and what that is off, `None` for one that is not known."""

    base: Node
    sign: int = 1
    shift: Any = 0.0
    off: Any = 0.0


def sum_of(graph: Graph, value: Node) -> Sum:
    """A value as another one and the constants that were added to it."""
    if value not in graph.sums:
        parts = [sum_of(graph, part) for part in parts_of(graph, value)]
        graph.sums[value] = Sum(value)
        if len(parts) == 1:
            # Where entries are moved, a constant that differs between them is not followed, nor are signs.
            moved = value.rule is affine and value.data.plain and value not in graph.same
            known = not moved and parts[0].shift is not None and np.ptp(parts[0].shift) == 0
            one = lambda v: float(np.max(np.asarray(v), initial=-math.inf)) if np.size(v) else 0.0
            shift, off = (one(parts[0].shift), one(parts[0].off)) if known else (None, None)
            graph.sums[value] = parts[0]._replace(shift=shift, off=off)
    return graph.sums[value]


def shifted(graph: Graph, name: str, operands: Sequence[Value], out: Node) -> Node | None:
    """What constants that are added may leave unchanged."""
    first = isinstance(operands[0], Const)
    constant, x = operands if first else operands[::-1]
    if not isinstance(constant, Const) or not isinstance(x, Node):
        return None
    found = sum_of(graph, x)
    sign = -1 if name == "sub" and first else 1
    minus = -1 if name == "sub" and not first else 1
    known = not (is_traced(constant.value) or is_traced(constant.slack) or found.shift is None)
    shift = off = None
    if known:
        shift = sign * np.asarray(found.shift) + minus * np.asarray(constant.value, np.float64)
        off = found.off + np.asarray(0.0 if constant.slack is None else constant.slack, np.float64)
        off = off + 8 * eps(out.dtype) * np.abs(np.asarray(constant.value, np.float64))
    graph.sums[out] = Sum(found.base, sign * found.sign, shift, off)
    return found.base if shift is None or bool(np.all(np.abs(shift) <= off)) else None
