"""Functions whose derivative, as JAX takes it, need not bound how they change: they jump, or someone wrote the derivative.

Both are read off the operations that the result is made of, and off nothing else: not off names, files or the stack of a call.
A log-sum-exp and a softmax choose and stop gradients on the way to a shift that drops out of them. The graph of a function
has them as one operation, without the shift; wherever they are not that, the steps are part of what the result depends on.
"""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from .._jaxprs import equations, is_jaxpr
from ._engine import ordered
from ._graph import Graph, UnknownPrimitive, given
from ._rule import Node

# Operations that are continuous and piecewise smooth where they are finite, and of which JAX takes the derivative from one of
# the pieces. `affine` holds choices by constant masks as well.
CONTINUOUS = {
    *("affine", "x - x", "mul", "quotient of products", "reciprocal", "max", "reduce_max", "abs"),
    *("exp", "exp2", "expm1", "log", "log1p", "sqrt", "rsqrt", "cbrt", "pow", "integer_pow", "reduce_prod"),
    *("tanh", "logistic", "erf", "erfc", "atan", "asin", "acos", "asinh", "acosh", "atanh"),
    *("sin", "cos", "tan", "sinh", "cosh", "softplus", "silu", "gelu", "gelu by tanh"),
    *("softmax", "logsumexp", "softmax_mean", "tie", "told", "of those kept", "masked exponential"),
    # A value as compilers may evaluate it, and what that is counted by.
    *("rewritten", "partial products", "without constants"),
}
# Functions of JAX with a derivative that it defines by hand, and defines rightly.
OWN = (jax.nn.relu, jnp.logaddexp)


def doubtful(closed: Any) -> str:
    """Says what about a traced function may make its derivative another than JAX takes; empty where nothing does.

    What JAX itself defines by hand for softplus and ReLU is taken on trust, where both the function and its derivative are
    those of JAX, operation by operation. Choices that happen to be continuous, such as a leaky ReLU by `jnp.where`, are
    not told from those that jump.
    """
    for equation in equations(closed.jaxpr):
        if equation.primitive.name.startswith("custom_") and not _is_own(equation):
            return "has a derivative that was written by hand and need not be its own"
    graph = Graph()
    graph.stops = True
    graph.inputs = [Node(None, (), v.aval.shape, v.aval.dtype) for v in closed.jaxpr.invars]
    try:
        outputs = graph.read(closed.jaxpr, [given(c) for c in closed.consts], graph.inputs)
    except UnknownPrimitive as error:
        found = re.search(r"primitive (\S+) on", str(error))
        return _uses(found[1] if found else "an operation without a rule")
    for node in ordered([v for v in outputs if isinstance(v, Node)]):
        if node.rule is None:
            continue
        name = node.tag[0] if node.tag is not None else node.rule.name
        # Rules of powers have the exponent behind the name.
        known = node.rule.name in CONTINUOUS or node.rule.name.split(" ")[0] in ("pow", "integer_pow")
        if not known or name == "stop_gradient" or not node.is_float:
            return _uses(name)
    return ""


def _uses(name: str) -> str:
    return f"uses {name}: what JAX takes for its derivative need not be one"


def _is_own(equation: Any) -> bool:
    """Whether a function and its derivative are those of JAX: both do the same operations."""
    like = list(map(_struct, equation.invars))
    if equation.primitive.name != "custom_jvp_call" or len(equation.outvars) != 1:
        return False
    if not all(jnp.issubdtype(v.dtype, jnp.floating) for v in like):
        return False
    this = _called(equation)
    for own in OWN:
        # Mapped over axes in front, or not.
        for _ in range(3):
            try:
                calls = [e for e in equations(jax.make_jaxpr(own)(*like).jaxpr) if e.primitive is equation.primitive]
                if len(calls) == 1 and _same_calls(this, _called(calls[0]), like):
                    return True
                axes = tuple(0 if v.shape else None for v in like)
                own = jax.vmap(own, in_axes=axes)
            except (TypeError, ValueError):
                # Another number of arguments, or of axes.
                break
    return False


def _called(equation: Any) -> Callable[..., Any]:
    """An equation as a function of all its operands."""
    made = jax.make_jaxpr(lambda *v: v[0])(*map(_struct, equation.invars)).jaxpr
    (result,) = jax.make_jaxpr(lambda v: v)(_struct(equation.outvars[0])).jaxpr.invars
    alone = equation.replace(invars=list(made.invars), outvars=[result])
    body = made.replace(eqns=[alone], outvars=[result], effects=equation.effects)
    return core.jaxpr_as_fun(core.ClosedJaxpr(body, []))


def _struct(variable: Any) -> Any:
    aval = variable.aval
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=aval.weak_type)


def _same_calls(one: Callable, other: Callable, like: list[Any]) -> bool:
    """Whether two functions and their derivatives do the same operations."""
    derivative = lambda f: jax.make_jaxpr(lambda x, v: jax.jvp(f, x, v))(tuple(like), tuple(like))
    plain = lambda f: jax.make_jaxpr(f)(*like)
    return _same(plain(one), plain(other)) and _same(derivative(one), derivative(other))


def _same(one: Any, other: Any) -> bool:
    """Whether two jaxprs do the same operations on the same values in the same order."""
    consts = [list(getattr(j, "consts", ())) for j in (one, other)]
    one, other = getattr(one, "jaxpr", one), getattr(other, "jaxpr", other)
    if len(consts[0]) != len(consts[1]) or not all(map(_same_arrays, *consts)):
        return False
    names: dict[Any, Any] = {}

    def match(first: Any, second: Any, new: bool) -> bool:
        if isinstance(first, core.Literal) or isinstance(second, core.Literal):
            both = isinstance(first, core.Literal) and isinstance(second, core.Literal)
            return both and _same_arrays(first.val, second.val)
        if first.aval.shape != second.aval.shape or first.aval.dtype != second.aval.dtype:
            return False
        if new:
            names[first] = second
        return names.get(first) is second

    def matched(first: Any, second: Any, new: bool = False) -> bool:
        return len(first) == len(second) and all(match(a, b, new) for a, b in zip(first, second, strict=True))

    if not (matched(one.constvars, other.constvars, True) and matched(one.invars, other.invars, True)):
        return False
    if len(one.eqns) != len(other.eqns):
        return False
    for a, b in zip(one.eqns, other.eqns, strict=True):
        if a.primitive is not b.primitive or not _same_params(a.params, b.params):
            return False
        if not matched(a.invars, b.invars) or not matched(a.outvars, b.outvars, True):
            return False
    return matched(one.outvars, other.outvars)


def _same_params(one: dict[str, Any], other: dict[str, Any]) -> bool:
    if one.keys() != other.keys():
        return False
    for name in one:
        a, b = one[name], other[name]
        if is_jaxpr(a) and is_jaxpr(b):
            if not _same(a, b):
                return False
        # The derivative itself is compared by what it does.
        elif name not in ("name", "jvp_jaxpr_fun") and not (a is b or repr(a) == repr(b)):
            return False
    return True


def _same_arrays(one: Any, other: Any) -> bool:
    one, other = np.asarray(one), np.asarray(other)
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
