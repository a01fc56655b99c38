"""From a JAX function to a graph of the operations that the engine has rules for."""

import contextlib
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from .._jaxprs import CALLS, body_of, opened
from .._types import is_traced
from ._constants import has_effect, is_exact
from ._interval import Interval, tiny, wide, widest
from ._rule import Const, Node, Rule, exactly

Value = Node | Const

# So many turns of a loop are read one by one at most.
TURNS = 10_000

# Constants of constants whose ranges are computed by tracing; XLA, whose operations are compiled by then, is faster for the others.
FOLDS = 64

# By the name of the primitive: (graph, equation, operands) -> results. Filled by the modules of rules.
TRANSLATIONS: dict[str, Callable[..., Any]] = {}


class UnknownPrimitive(NotImplementedError):
    """A function uses an operation that the engine has no rule for."""


def given(value: Any) -> Const:
    """A constant of the function. Of its entries, evaluations may take those for zero that are subnormal."""
    if not is_traced(value) and jnp.issubdtype(jnp.result_type(value), jnp.floating):
        known = np.asarray(value)
        least = tiny(known.dtype)
        vague = (known != 0) & (np.abs(known) < least)
        if vague.any():
            return Const(value, jnp.where(vague, least, 0).astype(wide()))
    return Const(value)


class Graph:
    """The operations of a function, each after its inputs.

    **Arguments:**

    - `inputs`: a node for each array that varies.
    - `outputs`: nodes or constants, in the order of the flattened result.
    - `premises`: nodes that have to be finite for the graph to be right.
    """

    def __init__(self) -> None:
        self.inputs: list[Node] = []
        self.outputs: list[Value] = []
        self.premises: list[Node] = []
        # Whether gradients that are stopped are operations of their own.
        self.stops = False
        self.marks: dict[Any, Any] = {}
        # What compilers may take out of a value and merge, and what they may see it as: see `_merge`, `_quotients` and `_same`.
        self.factors: dict[Node, Any] = {}
        self.shifts: dict[Node, Any] = {}
        self.ratios: dict[Node, Any] = {}
        self.same: dict[Node, tuple[Node, ...]] = {}
        self.copies: set[Node] = set()
        self.fixed: dict[Node, Const] = {}
        self.monomials: dict[Node, Any] = {}
        self.sums: dict[Node, Any] = {}
        self.exponents: dict[Node, Any] = {}
        self.known: dict[Any, list[Value]] = {}
        # Constants whose identity is part of a key stay alive.
        self.kept: list[Const] = []
        # Functions of constants without a rule, which are what they evaluate to here.
        self.evaluated: list[str] = []
        self.errors: dict[Node, UnknownPrimitive] = {}
        # Counts loops and branches: a compiler may evaluate an operation within one of them otherwise than outside.
        self._part, self._parts = 0, 0
        self.folds = 0
        self._equation: Any = None
        self._callers: list[Any] = []

    def add(
        self, rule: Rule, inputs: Sequence[Node], shape: Any, dtype: Any, data: Any = None, virtual: bool = False
    ) -> Node:
        """A new node."""
        return Node(rule, inputs, shape, dtype, data, virtual)

    def unsupported(self, why: str) -> UnknownPrimitive:
        """The error for an equation that has no rule, or none for these operands."""
        equation = self._equation
        shapes = f" on {', '.join(str(v.aval) for v in equation.invars)}" if equation.invars else ""
        # JAX's own functions have no line of the user's, but their callers do.
        where = next((place for e in (equation, *reversed(self._callers)) if (place := _where(e))), "an unknown line")
        return UnknownPrimitive(
            f"bounds: {why}: primitive {equation.primitive.name}{shapes}, called at {where}; "
            "see 'add a rule' in the documentation, or write the function with other operations"
        )

    @np.errstate(all="ignore")
    def read(self, jaxpr: Any, consts: Sequence[Value], args: Sequence[Value]) -> list[Value]:
        """The results of a jaxpr on values."""
        values: dict[Any, Value] = {}
        for var, value in zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True):
            values[var] = value
        lookup = lambda var: given(var.val) if isinstance(var, core.Literal) else values[var]
        for equation in jaxpr.eqns:
            self._equation = equation
            out = self.apply(equation, [lookup(var) for var in equation.invars])
            for var, value in zip(equation.outvars, out, strict=True):
                values[var] = value
        return [lookup(var) for var in jaxpr.outvars]

    def apply(self, equation: Any, operands: list[Value]) -> Sequence[Value]:
        """The results of one equation."""
        name = equation.primitive.name
        if name in PRINTS and not equation.outvars:
            return []
        if name in CALLS:
            found = rewrite_call(self, equation, operands)
            if found is not None:
                return found
            self._callers.append(equation)
            inner, consts = body_of(equation)
            out = self.read(inner, [given(c) for c in consts], operands)
            self._callers.pop()
            return out
        if any(not hasattr(v.aval, "shape") for v in equation.outvars):
            raise self.unsupported("a token, which is no array")
        empty = [0 in v.aval.shape and not jnp.issubdtype(v.aval.dtype, jax.dtypes.extended) for v in equation.outvars]
        if empty and all(empty) and not has_effect(equation):
            # There is nothing to know of arrays without entries, and nothing varies in them.
            return [Const(jnp.zeros(v.aval.shape, v.aval.dtype)) for v in equation.outvars]
        if name in CONTROL:
            outer, self._parts = self._part, self._parts + 1
            self._part = self._parts
            found = CONTROL[name](self, equation, operands)
            self._part = outer
            return found
        if has_effect(equation):
            raise self.unsupported("a call of the host, or another side effect, whose result may be any")
        constant = all(isinstance(value, Const) for value in operands)
        if constant and any(jnp.issubdtype(v.dtype, jax.dtypes.extended) for v in operands):
            return self.fold(equation, operands)  # pyright: ignore[reportArgumentType]
        if not constant and name not in TRANSLATIONS:
            raise self.unsupported("no rule")
        if not constant and any(jnp.issubdtype(v.aval.dtype, jnp.complexfloating) for v in equation.outvars):
            raise self.unsupported("complex numbers that vary, of which there are no ranges")
        key = (
            self._part,
            name,
            repr(sorted(equation.params.items(), key=lambda item: item[0])),
            *map(self.name_of, operands),
        )
        if key not in self.known and constant:
            self.known[key] = self.fold(equation, operands)  # pyright: ignore[reportArgumentType]
        elif key not in self.known:
            if name in WRAPPING and any(_is_integer(v.dtype) for v in operands):
                raise self.unsupported("arithmetic of integers that vary, which may wrap around")
            out = merge(self, equation, operands, TRANSLATIONS[name](self, equation, *operands))
            if isinstance(out, Node) and out.tag is None and out not in operands:
                out.tag = (name, equation.params, tuple(operands))
            self.known[key] = out if isinstance(out, list) else [out]
        return self.known[key]

    def name_of(self, value: Value) -> Any:
        """What tells values apart: the same operation on the same ones has the same result."""
        if isinstance(value, Node):
            return value
        known = concrete(value)
        if known is None:
            self.kept.append(value)
            return id(value.value)
        return (known.dtype.name, known.shape, hashlib.blake2b(known.tobytes()).digest())

    def call(self, body: Any, operands: Sequence[Value]) -> list[Value]:
        """The results of a jaxpr, closed or not."""
        inner, consts = opened(body)
        return self.read(inner, [given(c) for c in consts], operands)

    def fold(self, equation: Any, operands: Sequence[Const]) -> list[Value]:
        """Constants of constants: evaluated now, with what an evaluation elsewhere may make of it."""
        known = not any(is_traced(v.value) or is_traced(v.slack) for v in operands)
        # What is known now stays so within a `jit` of the user's.
        with jax.ensure_compile_time_eval() if known else contextlib.nullcontext():
            return self._fold(equation, operands, known)

    def _fold(self, equation: Any, operands: Sequence[Const], known: bool) -> list[Value]:
        name = equation.primitive.name
        if has_effect(equation):
            raise self.unsupported("a side effect, or a value from outside of the function")
        out = equation.primitive.bind(*(v.value for v in operands), **equation.params)
        out = list(out) if equation.primitive.multiple_results else [out]
        sure = all(v.slack is None for v in operands)
        floats = any(jnp.issubdtype(jnp.result_type(value), jnp.floating) for value in out)
        points = [self.point(v) if jnp.issubdtype(v.dtype, jnp.floating) else v for v in operands]
        if name in ("conv_general_dilated", "dot_general"):
            # A linear function of the first, as there is no rule for, or a costly one of, a product of two that vary.
            points[1] = operands[1]
        if name == "triangular_solve":
            points[0] = operands[0]
        exact = sure and (
            name in EXACT or not floats or (known and is_exact(name, [v.value for v in operands], out[0]))
        )
        if known and name in ("eq", "ne") and operands[0] is operands[1]:
            # Whether a number is NaN, which no rounding of a finite one changes.
            ends = operands[0].range()
            exact = exact or bool(jnp.all(jnp.isfinite(ends.lower) & jnp.isfinite(ends.upper)))
        if exact or (name in RANDOM and name not in TRANSLATIONS) or all(isinstance(v, Const) for v in points):
            return [Const(value) for value in out]
        if name not in TRANSLATIONS:
            if not sure:
                raise self.unsupported("no rule, and constants that rounding may change")
            # The numbers that it evaluates to here.
            self.evaluated.append(name)
            return [Const(value) for value in out]
        found = TRANSLATIONS[name](self, equation, *points)
        found = found if isinstance(found, list) else [found]
        return [
            v if isinstance(v, Const) else self._folded(value, v, known) for value, v in zip(out, found, strict=True)
        ]

    def _folded(self, value: Any, node: Node, known: bool) -> Const:
        """A constant from its value and the node of known range that it is."""
        spread = self.range_of(node)
        if not node.is_float:
            if not known or not bool(jnp.all(spread.lower == spread.upper)):
                raise self.unsupported("a decision on constants that rounding may change")
            return Const(value)
        center = widest(value)
        slack = jnp.maximum(spread.upper - center, center - spread.lower)
        return Const(value, None if known and not np.asarray(slack).any() else slack)

    def range_of(self, node: Node) -> Interval:
        """The range of a node all of whose inputs are constants."""
        self.folds += 1
        return range_of(node, self.folds > FOLDS)

    def point(self, value: Const) -> Node:
        """A constant as an input of known range."""
        node = Node(None, (), value.shape, value.dtype)
        node.data = value
        return node


def _is_integer(dtype: Any) -> bool:
    """Whether numbers of a type are integers that may wrap around; booleans are none."""
    return bool(jnp.issubdtype(dtype, jnp.integer))


def _where(equation: Any) -> str:
    try:
        from jax._src import source_info_util

        return source_info_util.summarize(equation.source_info)
    except (ImportError, AttributeError):
        return ""


def trace(function: Callable, *args: Any) -> tuple[Graph, Any]:
    """The graph of a function of arrays, and the tree of its results. Constants may be traced."""
    closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
    graph = Graph()
    leaves = jax.tree.leaves(args)
    graph.inputs = [Node(None, (), jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves]
    values = [Const(jnp.zeros(n.shape, n.dtype)) if 0 in n.shape else n for n in graph.inputs]
    graph.outputs = graph.read(closed.jaxpr, [given(c) for c in closed.consts], values)
    return graph, jax.tree.structure(shape)


def concrete(value: Value) -> Any:
    """A constant as NumPy has it, `None` for what is not known yet."""
    if not isinstance(value, Const) or value.slack is not None or is_traced(value.value):
        return None
    return np.asarray(value.value)


def _scan(graph: Graph, equation: Any, operands: list[Value]) -> list[Value]:
    params = equation.params
    first, last = params["num_consts"], params["num_consts"] + params["num_carry"]
    consts, carry, xs = operands[:first], operands[first:last], operands[last:]
    if params["length"] > TURNS:
        raise graph.unsupported(f"a scan of more than {TURNS} steps")
    turns = range(params["length"])
    stacked: list[list[Value]] = []
    for turn in reversed(turns) if params["reverse"] else turns:
        out = graph.call(params["jaxpr"], [*consts, *carry, *(index(graph, x, turn) for x in xs)])
        graph._equation = equation
        carry = out[: params["num_carry"]]
        stacked.append(out[params["num_carry"] :])
    if params["reverse"]:
        stacked.reverse()
    shapes = equation.outvars[params["num_carry"] :]
    if not turns:
        return [*carry, *(Const(jnp.zeros(v.aval.shape, v.aval.dtype)) for v in shapes)]
    return [*carry, *(stack(graph, [row[i] for row in stacked]) for i in range(len(shapes)))]


def _while(graph: Graph, equation: Any, operands: list[Value]) -> list[Value]:
    params = equation.params
    first, last = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
    cond_consts, body_consts, carry = operands[:first], operands[first:last], operands[last:]
    for _ in range(TURNS):
        with jax.ensure_compile_time_eval():
            (going,) = graph.call(params["cond_jaxpr"], [*cond_consts, *carry])
        graph._equation = equation
        known = concrete(going)
        if known is None:
            raise graph.unsupported("a loop whose number of turns depends on the input")
        if not known:
            return carry
        carry = graph.call(params["body_jaxpr"], [*body_consts, *carry])
        graph._equation = equation
    raise graph.unsupported(f"a loop of more than {TURNS} turns")


def _cond(graph: Graph, equation: Any, operands: list[Value]) -> Sequence[Value]:
    which, *args = operands
    branches = equation.params["branches"]
    known = concrete(which)
    if known is not None:
        return graph.call(branches[int(np.clip(known, 0, len(branches) - 1))], args)
    raises = lambda e: has_effect(e) and not (e.primitive.name in PRINTS and not e.outvars)
    raising = [any(map(raises, branch.jaxpr.eqns)) for branch in branches]
    for turn, wrong in enumerate(raising):
        if wrong:
            avoid(graph, which, turn)
    results = [graph.call(branch, args) for branch, wrong in zip(branches, raising, strict=True) if not wrong]
    graph._equation = equation
    if any(raising):
        if len(results) != 1:
            raise graph.unsupported("a branch with a side effect beside several without one")
        return results[0]
    return [choose(graph, which, list(cases)) for cases in zip(*results, strict=True)]


def _avoided(node: Node, which: Interval) -> Interval:
    """0 where a branch is not taken, anything where it may be."""
    taken = (which.lower <= node.data) & (which.upper >= node.data)
    return Interval(jnp.where(taken, -jnp.inf, 0.0), jnp.where(taken, jnp.inf, 0.0))


avoided = Rule("branch not taken", _avoided, exactly)


def avoid(graph: Graph, which: Value, turn: int) -> None:
    """Makes it a premise that a branch, in which the function raises an error, is not taken."""
    node = graph.add(avoided, [which] if isinstance(which, Node) else [graph.point(which)], (), wide(), turn)
    graph.premises.append(node)
    graph.errors[node] = graph.unsupported(
        "a side effect, such as the error of eqx.error_if, that is not proved to be avoided everywhere in the region"
    )


CONTROL = {"scan": _scan, "while": _while, "cond": _cond}
# Set by the modules of rules: parts of arrays, and choices between them.
range_of: Callable[[Node, bool], Interval]
rewrite_add: Callable[..., Any]
rewrite_mul: Callable[..., Any]
rewrite_div: Callable[..., Any]
rewrite_sub: Callable[..., Any]
rewrite_sum: Callable[..., Any]
rewrite_select: Callable[..., Any]
rewrite_abs: Callable[..., Any]
rewrite_activation: Callable[..., Any]
rewrite_combination: Callable[..., Any]
rewrite_call: Callable[..., Any]
rewrite_exp: Callable[..., Any]
merge: Callable[..., Any]
fit: Callable[..., Any]
index: Callable[[Graph, Value, int], Value]
stack: Callable[[Graph, list[Value]], Value]
choose: Callable[[Graph, Value, list[Value]], Value]
# Operations of integers whose rules do not count that they wrap around.
WRAPPING = {
    "abs",
    "argmin",
    "conv_general_dilated",
    "cumsum",
    "dot_general",
    "integer_pow",
    "neg",
    "reduce_window_sum",
    "square",
}
# Operations that print and return nothing.
PRINTS = {"debug_print", "debug_callback"}
# Operations that move numbers and round nothing.
EXACT: set[str] = set()
RANDOM = {
    "random_bits",
    "threefry2x32",
    "random_wrap",
    "random_unwrap",
    "random_fold_in",
    "random_seed",
    "random_split",
}
