"""Powers: of a value that varies to a constant exponent, and of a constant base to an exponent that varies.

An exponent that the function computes, such as the y - 1 of the derivative of x**y, is a constant with slack where its
evaluation rounds. The rule of the power then holds for every exponent within the slack.
"""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from ._graph import TRANSLATIONS, Graph, Value, is_traced
from ._interval import Interval, eps, tiny, wide
from ._linear import linear_as, scale
from ._move import fit, linear
from ._rule import Const, Node, added
from ._scalar import RULES, fractional, power, reciprocal

# So many exponents of one array are told apart.
EXPONENTS = 16


def _moved(x: Interval, y: float, off: float) -> Any:
    """How far x**z may be from x**y for all |z - y| <= off and all positive x of a range.

    By the mean value theorem it is off · |log x| · x**z for some such z. Where x**z falls to 0 (at 0 or at infinity),
    x**z |log x| is at most 1/(e |z|); on the other side of 1 it is largest at the end of the range.
    """
    least, most = y - off, y + off
    if off == 0:
        return 0.0
    if least <= 0 <= most:
        return jnp.where((x.lower == 1) & (x.upper == 1), 0.0, jnp.inf)
    end = jnp.maximum(x.upper, 1) if least > 0 else jnp.minimum(x.lower, 1)
    safe = jnp.where((end > 0) & jnp.isfinite(end), end, 1)
    far = jnp.power(safe, most if least > 0 else least) * jnp.abs(jnp.log(safe))
    near = 1 / (math.e * min(abs(least), abs(most)))
    found = off * (1 + 256 * eps(wide())) * jnp.maximum(far, near) + tiny(wide())
    return jnp.where((end > 0) & jnp.isfinite(end) & jnp.isfinite(far), found, jnp.inf)


def uncertain(y: float, off: float) -> Any:
    """The rule of x >= 0 to a power that is not known better than to within `off`."""
    rule = fractional(y)
    if not off:
        return rule

    def slack(node: Node, out: Interval, x: Interval) -> Any:
        return added(rule.slack(node, out, x), _moved(x, y, off))

    return rule._replace(slack=slack)


def _to_one(graph: Graph, x: Node, y: float, off: float, dtype: Any) -> Node:
    """x to one exponent."""
    if off == 0 and y == int(y) and 0 < abs(y) <= 64:
        n = abs(int(y))
        found = x if n == 1 else graph.add(power(n), [x], x.shape, dtype, n)
        return found if y > 0 else graph.add(reciprocal, [found], x.shape, dtype)
    return graph.add(uncertain(y, off), [x], x.shape, dtype)


def _varying_base(graph: Graph, equation: Any, x: Node, exponent: Const) -> Value | None:
    """x to constant exponents; `None` where these are not known, or too many."""
    if is_traced(exponent.value) or is_traced(exponent.slack):
        return None
    out = equation.outvars[0].aval
    known = np.asarray(exponent.value).astype(np.float64)
    off = np.broadcast_to(np.asarray(0.0 if exponent.slack is None else exponent.slack, np.float64), known.shape)
    if not (np.isfinite(known).all() and np.isfinite(off).all()):
        return None
    (x,) = fit(graph, equation, x)  # pyright: ignore[reportAssignmentType]
    both = np.stack([np.broadcast_to(v, out.shape).reshape(-1) for v in (known, off)], axis=1)
    unique, which = np.unique(both, axis=0, return_inverse=True)
    if not both.any():
        return Const(jnp.ones(out.shape, out.dtype))
    if len(unique) == 1:
        return _to_one(graph, x, float(unique[0, 0]), float(unique[0, 1]), out.dtype)
    if not 0 < len(unique) <= EXPONENTS:
        return None
    which = which.reshape(-1)
    parts = []
    for i, pair in enumerate(unique):
        (places,) = np.nonzero(which == i)
        part = linear(graph, lambda v, places=places: v.reshape(-1)[places], x)
        parts.append(_to_one(graph, part, float(pair[0]), float(pair[1]), out.dtype))
    back = np.argsort(np.argsort(which, kind="stable"), kind="stable")
    return linear(graph, lambda *v: jnp.concatenate(v)[back].reshape(out.shape), *parts)


def _varying_exponent(graph: Graph, equation: Any, base: Const, y: Node) -> Node | None:
    """A positive constant to an exponent that varies; `None` where the base is not known."""
    if is_traced(base.value) or is_traced(base.slack):
        return None
    known = np.asarray(base.value).astype(np.float64)
    off = np.asarray(0.0 if base.slack is None else base.slack, np.float64)
    if not ((known - off > 0) & np.isfinite(known)).all():
        return None
    out = equation.outvars[0].aval
    (y,) = fit(graph, equation, y)  # pyright: ignore[reportAssignmentType]
    known, off = (jnp.broadcast_to(jnp.asarray(v, wide()), out.shape) for v in (known, off))
    logs = jnp.log(known)
    # Of the logarithm itself, and of a base that is off.
    slack = jnp.abs(logs) * 64 * eps(wide()) + tiny(wide()) + jnp.where(off > 0, off / (known - off) * 1.01, 0)
    scaled = scale(graph, y, Const(logs, slack), wide(), virtual=True)
    return graph.add(RULES["exp"], [linear_as(graph, scaled, out.dtype, 0)], out.shape, out.dtype)


def _pow(graph: Graph, equation: Any, x: Value, y: Value) -> Value:
    found = None
    if isinstance(x, Node) and isinstance(y, Const):
        found = _varying_base(graph, equation, x, y)
    elif isinstance(x, Const) and isinstance(y, Node):
        found = _varying_exponent(graph, equation, x, y)
    if found is None:
        raise graph.unsupported("a power whose exponent varies, or whose base is constant and not positive")
    return found


TRANSLATIONS["pow"] = _pow
