"""Systems of linear equations with a matrix of constants: linear maps of the other side."""

from typing import Any

import jax.numpy as jnp
from jax import lax

from ._graph import CONTROL, TRANSLATIONS, Graph, Value
from ._interval import eps, wide, widest
from ._move import nodes_of
from ._rule import Affine, Const, affine


def _triangle(graph: Graph, equation: Any, a: Value) -> tuple[Any, Any]:
    """The matrix of a triangular solve that the other side is multiplied by the inverse of from the left, and how far its
    entries may be from those of the evaluation."""
    p = equation.params
    if not isinstance(a, Const):
        raise graph.unsupported("a system of equations whose matrix varies")
    keep = (lambda v: jnp.tril(v, -1)) if p["lower"] else (lambda v: jnp.triu(v, 1))
    turn = (lambda v: jnp.swapaxes(v, -1, -2)) if p["transpose_a"] == p["left_side"] else (lambda v: v)
    unit = jnp.eye(a.shape[-1], dtype=wide())
    value = widest(a.value)
    inner = unit if p["unit_diagonal"] else value * unit
    loose = jnp.zeros_like(value) if a.slack is None else jnp.broadcast_to(a.slack, a.shape) + 0 * value
    edge = 0 * unit if p["unit_diagonal"] else loose * unit
    return turn(keep(value) + inner), turn(keep(loose) + edge)


def _triangular_solve(graph: Graph, equation: Any, a: Value, b: Value) -> Value:
    """Substitution solves a system whose matrix is off by a few roundings of each entry (Higham, Accuracy and Stability of
    Numerical Algorithms, 8.5), and the inverse of the comparison matrix bounds that of the matrix (8.12)."""
    p, out = equation.params, equation.outvars[0].aval
    matrix, loose = _triangle(graph, equation, a)
    (node,) = nodes_of(graph, [b])
    # How many numbers, and whether the entries below the diagonal are those that count.
    count, below = matrix.shape[-1], p["lower"] != (p["transpose_a"] == p["left_side"])
    unit = jnp.broadcast_to(jnp.eye(count, dtype=wide()), matrix.shape)
    solve = lambda m, v: lax.linalg.triangular_solve(m, v, left_side=True, lower=below)
    times = lambda m, v: jnp.matmul(m, v, precision="highest")
    step = 4 * (count + 2) * eps(wide())
    size = jnp.abs(matrix)
    grown = solve(2 * size * unit - size, unit) * (1 + 4 * step)
    inverse = solve(matrix, unit)
    inverse = jnp.abs(inverse) + step * times(grown, times(size, jnp.abs(inverse)))
    # A system that is off by this has solutions that are off by K times those of the system, and by K times what that adds.
    off = times(inverse, (4 * (count + 2) * eps(out.dtype) + step) * size + loose)
    norm = jnp.max(jnp.sum(off, axis=-1), axis=-1)[..., None, None]
    good = (norm < 0.25) & jnp.all(jnp.isfinite(inverse))

    def side(function: Any) -> Any:
        turned = lambda v: jnp.swapaxes(function(jnp.swapaxes(v, -1, -2)), -1, -2)
        return function if p["left_side"] else turned

    def uncertain(v: Any) -> Any:
        found = times(inverse, v)
        moved = times(off, found)
        more = jnp.max(moved, axis=-2, keepdims=True) / (1 - jnp.where(good, norm, 0))
        return jnp.where(good, moved + times(off, jnp.broadcast_to(more, moved.shape)), jnp.inf)

    data = Affine(
        side(lambda v: solve(matrix, v)),
        side(lambda v: jnp.where(good, times(inverse, v), jnp.inf)),
        count,
        uncertain=side(uncertain),
    )
    return graph.add(affine, [node], out.shape, out.dtype, data)


def _linear_solve(graph: Graph, equation: Any, operands: list[Value]) -> list[Value]:
    """JAX's record of a linear system and of how it is solved, which is what is evaluated."""
    lengths, jaxprs = equation.params["const_lengths"], equation.params["jaxprs"]
    first = lengths.matvec + lengths.vecmat
    solve = operands[first : first + lengths.solve]
    return graph.call(jaxprs.solve, [*solve, *operands[sum(lengths) :]])


TRANSLATIONS["triangular_solve"] = _triangular_solve
CONTROL["custom_linear_solve"] = _linear_solve
