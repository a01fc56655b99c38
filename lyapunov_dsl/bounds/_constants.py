"""What is known of operations on constants alone."""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import jax.numpy as jnp
import numpy as np

from .._jaxprs import inner_jaxprs
from ._interval import tiny

# Of arrays of more entries, arithmetic is taken to round.
FEW = 4096
_ARITHMETIC = {
    "add": lambda x, y: x + y,
    "add_any": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "div": lambda x, y: x / y if y else None,
    "convert_element_type": lambda x: x,
}
# Operations whose result is not determined by their operands, though they declare no effect.
IMPURE = {"rng_uniform", "ffi_call", "infeed", "outfeed"}


def is_exact(name: str, operands: Sequence[Any], out: Any) -> bool:
    """Whether arithmetic of known numbers rounds nothing, nor is flushed to zero: then its result is the same however it is
    evaluated."""
    out = np.asarray(out)
    if name not in _ARITHMETIC or out.size > FEW or not jnp.issubdtype(out.dtype, jnp.floating):
        return False
    if any(np.asarray(v).dtype.kind == "c" for v in operands):
        return False
    values = [np.asarray(v).astype(np.float64).reshape(-1) for v in np.broadcast_arrays(*operands, out)]
    if name == "convert_element_type":
        # An infinite number stays one.
        infinite = np.isinf(values[0]) & (values[0] == values[1])
        values = [v[~infinite] for v in values]
    normal = (values[-1] == 0) | (np.abs(values[-1]) >= tiny(out.dtype))
    if not (normal & np.all(np.isfinite(values), axis=0)).all():
        return False
    real = _ARITHMETIC[name]
    rows = zip(*(v.tolist() for v in values), strict=True)
    return all(real(*map(Fraction, row[:-1])) == Fraction(row[-1]) for row in rows)


def has_effect(equation: Any) -> bool:
    """Whether an operation does more than compute: callbacks and prints, also within functions that it calls."""
    if equation.effects or equation.primitive.name in IMPURE or "callback" in equation.primitive.name:
        return True
    return any(has_effect(e) for inner in inner_jaxprs(equation) for e in inner.eqns)
