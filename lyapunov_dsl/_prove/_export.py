"""A function of vectors as a program that the checker reads: constants, affine maps, products and functions of one number.

All that is linear becomes a matrix, found by applying the operation to unit vectors, which rounds nothing. Constants are not folded
where that would round: the program is the function in real arithmetic, with the weights as they are stored.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._interpret import evaluated
from .._jaxprs import CALLS, body_of
from ..bounds import UnknownPrimitive
from ..bounds._graph import TURNS
from ._export_rules import RULES

# Linear in every operand that varies while the others are constants; all that depend on indices need those constant.
LINEAR = {
    *(
        "add",
        "add_any",
        "broadcast_in_dim",
        "concatenate",
        "convert_element_type",
        "copy",
        "copy_p",
        "cumsum",
        "dynamic_slice",
    ),
    *(
        "dynamic_update_slice",
        "expand_dims",
        "gather",
        "lyapunov_dsl_margins",
        "neg",
        "optimization_barrier",
        "pad",
        "reduce_sum",
    ),
    *(
        "reduce_window_sum",
        "reshape",
        "rev",
        "scatter",
        "scatter-add",
        "select_n",
        "slice",
        "split",
        "squeeze",
        "stack",
        "stop_gradient",
        "sub",
        "transpose",
    ),
}
# Linear in one while the other is constant.
BILINEAR = {"mul", "dot_general", "conv_general_dilated"}
# These move constants and round nothing.
MOVES = LINEAR - {
    "add",
    "add_any",
    "cumsum",
    "convert_element_type",
    "reduce_sum",
    "reduce_window_sum",
    "scatter-add",
    "sub",
    "lyapunov_dsl_margins",
}
# Of two arrays of one shape.
PAIRS = {"atan2", "div", "max", "min"}
UNARY = {
    name: name
    for name in (
        *("exp", "log", "sqrt", "tanh", "logistic", "atan", "erf", "square", "sin", "cos"),
        *("tan", "sinh", "cosh", "asinh", "acosh", "atanh", "asin", "acos"),
    )
}


class Exported:
    """A program in the making.

    **Arguments:**

    - `name`: of the program, and the beginning of the names of its arrays.
    """

    def __init__(self, name: str):
        self.name = name
        self.operations: list[dict[str, Any]] = []
        self.arrays: dict[str, np.ndarray] = {}
        self.seen: dict[int, int] = {}

    def add(self, kind: str, args: Sequence[int], size: int, **more: Any) -> int:
        """A new operation; its number."""
        self.operations.append({"name": kind, "args": list(args), "size": size, **more})
        return len(self.operations) - 1

    def keep(self, array: Any) -> str:
        """The name of an array that is stored."""
        name = f"{self.name}.{len(self.arrays)}"
        self.arrays[name] = np.ascontiguousarray(array)
        return name

    def size(self, value: int) -> int:
        return self.operations[value]["size"]

    def constant(self, value: Any) -> int:
        """A constant array as an operation, the same one for the same array."""
        flat = np.asarray(value, np.float64).reshape(-1)
        if not np.isfinite(flat).all():
            raise ValueError(f"proof: expected finite constants, got one that is not in the {self.name}")
        return self.add("constant", (), flat.size, value=self.keep(flat))

    def matrix(self, table: np.ndarray) -> dict[str, str]:
        """A matrix as the checker reads it."""
        places = np.stack(np.nonzero(table))
        if places.shape[1] > 0.25 * table.size and table.size > 64:
            return {"dense": self.keep(table)}
        return {"places": self.keep(places.astype(np.int64)), "values": self.keep(table[tuple(places)])}

    def affine(self, size: int, *parts: tuple[int, np.ndarray]) -> int:
        """The sum of matrices times values."""
        return self.add("affine", [x for x, _ in parts], size, matrices=[self.matrix(m) for _, m in parts])

    def combine(self, *terms: tuple[int | float, int]) -> int:
        size = self.size(terms[0][1])
        return self.affine(size, *((x, c * np.eye(size)) for c, x in terms))

    def unary(self, kind: str, x: int) -> int:
        return self.add(kind, (x,), self.size(x))

    def relu(self, x: int) -> int:
        return self.unary("relu", x)

    def record(self, output: int) -> dict[str, Any]:
        return {"operations": self.operations, "output": output}


class Varying:
    """A value of a jaxpr that depends on the inputs, or is known up to rounding only: an operation and a shape."""

    def __init__(self, node: int, shape: tuple[int, ...]):
        self.node, self.shape = node, tuple(shape)


def export(name: str, function: Callable, *shapes: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A function of float64 arrays as a program.

    **Arguments:**

    - `name`: of the program.
    - `function`: arrays -> array.
    - `shapes`: of its arguments.

    **Returns:** the record of the program and its arrays.

    **Raises:** `lyapunov_dsl.bounds.UnknownPrimitive` for an operation that no proof can have.
    """
    with jax.enable_x64(True), jax.ensure_compile_time_eval():
        closed = jax.make_jaxpr(function)(*(jax.ShapeDtypeStruct(s, jnp.float64) for s in shapes))
        out = Exported(name)
        inputs = [Varying(out.add("input", (), max(1, math.prod(s))), s) for s in shapes]
        (result,) = _read(out, closed.jaxpr, closed.consts, inputs)
        return out.record(_node(out, result)), out.arrays


def _spread(out: Exported, equation: Any, operands: list[Any]) -> list[Any]:
    """The same with scalars of the shape of the result."""
    shape = equation.outvars[0].aval.shape

    def one(v: Any) -> Any:
        if not isinstance(v, Varying):
            return np.broadcast_to(v, shape)
        if v.shape == shape:
            return v
        return Varying(out.affine(_count(shape), (v.node, np.ones((_count(shape), 1)))), shape)

    return [one(v) for v in operands]


def _node(out: Exported, value: Any) -> int:
    return value.node if isinstance(value, Varying) else out.constant(value)


def _read(out: Exported, jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    values: dict[Any, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
    look = lambda var: var.val if hasattr(var, "val") else values[var]
    for equation in jaxpr.eqns:
        found = _apply(out, equation, [look(v) for v in equation.invars])
        values.update(zip(equation.outvars, found, strict=True))
    return [look(var) for var in jaxpr.outvars]


def _apply(out: Exported, equation: Any, operands: list[Any]) -> list[Any]:
    name = equation.primitive.name
    if name in CALLS:
        inner, consts = body_of(equation)
        if _is_logaddexp(equation) and any(isinstance(v, Varying) for v in operands):
            x, y = (_node(out, v) for v in _spread(out, equation, operands))
            soft = out.unary("softplus", out.combine((1, x), (-1, y)))
            return [Varying(out.combine((1, y), (1, soft)), equation.outvars[0].aval.shape)]
        return _read(out, inner, consts, operands)
    if equation.outvars and all(0 in v.aval.shape for v in equation.outvars):
        # Arrays without entries, of which derivatives of running products are made.
        return [np.zeros(v.aval.shape, v.aval.dtype) for v in equation.outvars]
    if name in CONTROL:
        return CONTROL[name](out, equation, operands)
    floats = any(jnp.issubdtype(v.aval.dtype, jnp.floating) for v in equation.outvars)
    if not any(isinstance(v, Varying) for v in operands) and (
        not floats or name in MOVES or _is_exact(equation, operands)
    ):
        found = equation.primitive.bind(*operands, **equation.params)
        return list(found) if equation.primitive.multiple_results else [found]
    if not floats and any(isinstance(v, Varying) for v in operands):
        raise _unknown(equation, "a result that is no floating-point number")
    if floats and any(v.aval.dtype != jnp.float64 for v in equation.outvars):
        raise _unknown(equation, "a result that is not float64, which rounds")
    shapes = [v.aval.shape for v in equation.outvars]
    if name in LINEAR and not any(isinstance(v, Varying) for v in operands if not hasattr(v, "shape")):
        return _linear(out, equation, operands, shapes)
    if name in BILINEAR:
        varying = [isinstance(v, Varying) for v in operands]
        if not all(varying):
            # Of two constants one is taken for a value.
            if not any(varying):
                operands = [Varying(out.constant(operands[0]), np.shape(operands[0])), *operands[1:]]
            return _linear(out, equation, operands, shapes)
        if name == "mul":
            nodes = [v.node for v in _spread(out, equation, operands)]
            return [Varying(out.add("multiply", nodes, _count(shapes[0])), shapes[0])]
        if name == "dot_general":
            return [Varying(_dot(out, equation, *operands), shapes[0])]
        raise _unknown(equation, "no rule for two operands that vary")
    if name not in RULES and name not in UNARY:
        raise _unknown(equation, "no rule")
    nodes = [_node(out, v) for v in (_spread(out, equation, operands) if name in PAIRS else operands)]
    node = out.unary(UNARY[name], nodes[0]) if name in UNARY else RULES[name](out, equation, *nodes)
    return [Varying(node, shapes[0])]


def _count(shape: Sequence[int]) -> int:
    return max(1, math.prod(shape))


def _unknown(equation: Any, why: str) -> UnknownPrimitive:
    shapes = ", ".join(str(v.aval) for v in equation.invars)
    return UnknownPrimitive(f"proof: {why}: primitive {equation.primitive.name} on {shapes}")


def _is_exact(equation: Any, operands: list[Any]) -> bool:
    """Whether a conversion of constants keeps their values."""
    if equation.primitive.name != "convert_element_type":
        return False
    moved = np.asarray(operands[0]).astype(equation.params["new_dtype"])
    return bool((moved.astype(np.float64) == np.asarray(operands[0]).astype(np.float64)).all())


def _linear(out: Exported, equation: Any, operands: list[Any], shapes: list[Any]) -> list[Any]:
    """The results of an operation that is affine in the operands that vary."""
    places = [i for i, v in enumerate(operands) if isinstance(v, Varying)]
    if not places:
        # Constants that the operation would round: their sum is left to the checker.
        places = [i for i, v in enumerate(operands) if jnp.issubdtype(jnp.result_type(v), jnp.floating)]
        operands = [Varying(out.constant(v), np.shape(v)) if i in places else v for i, v in enumerate(operands)]
    bind = lambda *args: equation.primitive.bind(*args, **equation.params)
    all_of = lambda found: list(found) if equation.primitive.multiple_results else [found]
    zeros = [np.zeros(v.shape) if isinstance(v, Varying) else v for v in operands]
    biases = evaluated(lambda *args: all_of(bind(*args)), *zeros)
    # Without the constants that are added. What is left of each sum is one number times 1, so that nothing is rounded.
    adds = equation.primitive.name in LINEAR
    bare = [np.zeros_like(v) if adds and jnp.issubdtype(jnp.result_type(v), jnp.floating) else v for v in zeros]
    columns = []
    with jax.default_matmul_precision("highest"):
        for i in places:
            units = np.eye(_count(operands[i].shape)).reshape(-1, *operands[i].shape)
            found = lambda unit, i=i: all_of(bind(*bare[:i], unit, *bare[i + 1 :]))
            columns.append(evaluated(jax.vmap(found), units))
    results: list[Any] = []
    for k, shape in enumerate(shapes):
        parts = [(operands[i].node, columns[n][k].reshape(columns[n][k].shape[0], -1).T) for n, i in enumerate(places)]
        if biases[k].any():
            parts.append((out.constant(biases[k]), np.eye(_count(shape))))
        results.append(Varying(out.affine(_count(shape), *parts), shape))
    return results


def _dot(out: Exported, equation: Any, x: Varying, y: Varying) -> int:
    """A product of two arrays that vary: all products, and their sums."""
    (x_sum, y_sum), (x_batch, y_batch) = equation.params["dimension_numbers"]
    place = lambda v: np.arange(_count(v.shape)).reshape(v.shape)

    def arranged(v: Varying, batch: Sequence[int], summed: Sequence[int]) -> np.ndarray:
        free = [i for i in range(len(v.shape)) if i not in (*batch, *summed)]
        moved = place(v).transpose(*batch, *free, *summed)
        count = lambda axes: math.prod(v.shape[i] for i in axes)
        return moved.reshape(count(batch), count(free), count(summed))

    a, b = arranged(x, x_batch, x_sum)[:, :, None], arranged(y, y_batch, y_sum)[:, None]
    a, b = (m.reshape(-1) for m in np.broadcast_arrays(a, b))
    terms = math.prod(x.shape[i] for i in x_sum)
    pick = lambda places, size: np.eye(size)[places]
    left = out.affine(a.size, (x.node, pick(a, _count(x.shape))))
    right = out.affine(b.size, (y.node, pick(b, _count(y.shape))))
    products = out.add("multiply", (left, right), a.size)
    return out.affine(a.size // terms, (products, np.kron(np.eye(a.size // terms), np.ones((1, terms)))))


def _scan(out: Exported, equation: Any, operands: list[Any]) -> list[Any]:
    """A loop turn by turn."""
    params = equation.params
    first, last = params["num_consts"], params["num_consts"] + params["num_carry"]
    consts, carry, arrays = operands[:first], operands[first:last], operands[last:]
    turns = range(params["length"])
    stacked: list[list[Any]] = []
    for turn in reversed(turns) if params["reverse"] else turns:
        rows = [_row(out, v, turn) for v in arrays]
        found = _read(out, params["jaxpr"].jaxpr, params["jaxpr"].consts, [*consts, *carry, *rows])
        carry = found[: params["num_carry"]]
        stacked.append(found[params["num_carry"] :])
    if params["reverse"]:
        stacked.reverse()
    results = [v.aval for v in equation.outvars[params["num_carry"] :]]
    return [*carry, *(_stacked(out, [row[i] for row in stacked], aval) for i, aval in enumerate(results))]


def _row(out: Exported, value: Any, turn: int) -> Any:
    """One entry of the first axis."""
    if not isinstance(value, Varying):
        return jnp.asarray(value)[turn]
    shape = value.shape[1:]
    size = math.prod(shape)
    pick = np.eye(_count(value.shape))[turn * size : (turn + 1) * size]
    return Varying(out.affine(size, (value.node, pick)), shape)


def _stacked(out: Exported, rows: list[Any], aval: Any) -> Any:
    """Values along a new first axis."""
    if not any(isinstance(v, Varying) for v in rows):
        return jnp.stack(rows) if rows else jnp.zeros(aval.shape, aval.dtype)
    size = math.prod(aval.shape[1:])
    place = np.eye(len(rows) * size).reshape(len(rows), size, -1)
    return Varying(
        out.affine(len(rows) * size, *((_node(out, v), m.T) for v, m in zip(rows, place, strict=True))), aval.shape
    )


def _while(out: Exported, equation: Any, operands: list[Any]) -> list[Any]:
    """A loop whose number of turns is known."""
    params = equation.params
    first, last = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
    cond_consts, body_consts, carry = operands[:first], operands[first:last], operands[last:]
    body, condition = params["body_jaxpr"], params["cond_jaxpr"]
    for _ in range(TURNS):
        (going,) = _read(out, condition.jaxpr, condition.consts, [*cond_consts, *carry])
        if isinstance(going, Varying):
            raise _unknown(equation, "a loop whose number of turns depends on the state")
        if not going:
            return carry
        carry = _read(out, body.jaxpr, body.consts, [*body_consts, *carry])
    raise _unknown(equation, f"a loop of more than {TURNS} turns")


def _cond(out: Exported, equation: Any, operands: list[Any]) -> list[Any]:
    """The branch that a constant chooses."""
    which, *args = operands
    branches = equation.params["branches"]
    if isinstance(which, Varying):
        raise _unknown(equation, "a branch that depends on the state")
    branch = branches[int(np.clip(np.asarray(which), 0, len(branches) - 1))]
    return _read(out, branch.jaxpr, branch.consts, args)


def _is_logaddexp(equation: Any) -> bool:
    """Whether a call is log(exp(x) + exp(y)), of which `jax.nn.softplus` is made. Its body chooses by NaN."""
    info = getattr(getattr(equation.params.get("call_jaxpr"), "jaxpr", None), "debug_info", None)
    source = str(getattr(info, "func_src_info", ""))
    return source.startswith("logaddexp at") and "/jax/_src/" in source.replace("\\", "/")


CONTROL = {"scan": _scan, "while": _while, "cond": _cond}
