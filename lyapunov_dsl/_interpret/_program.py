"""A traced program as a list of NumPy's operations.

Functions that are called are put in their place, what is constant is computed once, what occurs twice is computed once, and
what no result needs is left out. About half of the operations of bounds go.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, no_type_check

import jax
import numpy as np
from jax.core import ShapedArray
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, jaxpr_as_fun
from jaxtyping import ArrayLike, PyTree

from .._jaxprs import CALLS, avals_of, body_of
from ._control import CONTROL
from ._operations import Array, operation

# Constants of up to so many bytes are told apart by their content.
SMALL = 1 << 14
# What moves an array, and leaves it as it is where neither shape nor type change.
MOVES = frozenset(
    ("broadcast_in_dim", "reshape", "squeeze", "expand_dims", "convert_element_type", "stop_gradient", "copy", "copy_p")
)


class NoArrays(TypeError):
    """A program is about arrays that NumPy does not have, such as keys."""


class Step(NamedTuple):
    """One operation.

    **Arguments:**

    - `apply`, `params`: what it computes of arrays, and its parameters.
    - `inputs`, `outputs`: the places of its arrays.
    - `several`: whether it returns a list.
    - `dead`: places that no later step reads.
    - `avals`: shapes and types of the results.
    """

    apply: Callable
    params: dict[str, Any]
    inputs: list[int]
    outputs: list[int]
    several: bool
    dead: list[int]
    avals: list[ShapedArray]


class Interpreted:
    """A program that NumPy evaluates, and XLA where it has an operation that is not known here.

    Call it with arrays of the shapes and types that it was traced with; it returns a list of arrays.

    **Arguments:**

    - `closed`: a traced program, its constants with it.

    **Raises:** `NoArrays` where it is about arrays that NumPy does not have.
    """

    def __init__(self, closed: ClosedJaxpr):
        builder = _Builder()
        inputs = [builder.new(aval) for aval in avals_of(closed.jaxpr.invars)]
        with np.errstate(all="ignore"):
            outputs = builder.inlined(closed.jaxpr, [builder.constant(c) for c in closed.consts], inputs)
        self.inputs = list(zip(inputs, (aval.dtype for aval in avals_of(closed.jaxpr.invars)), strict=True))
        self.outputs = outputs
        self.steps, self.values = builder.pruned(outputs)
        # Of the first call, all shapes and types are looked at.
        self.checked = False

    def __call__(self, *args: ArrayLike) -> list[np.ndarray]:
        values = self.values[:]
        for (place, dtype), arg in zip(self.inputs, args, strict=True):
            values[place] = np.asarray(arg, dtype)
        with np.errstate(all="ignore"):
            for apply, params, inputs, outputs, several, dead, avals in self.steps:
                found = apply(*[values[i] for i in inputs], **params)
                if not self.checked:
                    _check(found if several else [found], avals, str(apply))
                if several:
                    for place, value in zip(outputs, found, strict=True):
                        values[place] = value
                else:
                    values[outputs[0]] = found
                for place in dead:
                    values[place] = None
        self.checked = True
        return [np.asarray(values[place]) for place in self.outputs]


def evaluated(function: Callable, *args: PyTree) -> PyTree:
    """What a function of arrays computes, its operations evaluated one by one by NumPy, as a tree of NumPy's arrays; compiled,
    where it is about arrays that NumPy does not have."""
    closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
    try:
        found = Interpreted(closed)(*jax.tree.leaves(args))
    except NoArrays:
        found = map(np.asarray, jax.jit(jaxpr_as_fun(closed))(*jax.tree.leaves(args)))
    return jax.tree.unflatten(jax.tree.structure(shape), found)


@no_type_check
class _Builder:
    """The values of a program by their places, `None` for those that are computed, and the steps that compute them."""

    def __init__(self) -> None:
        self.values: list[np.ndarray | None] = []
        self.steps: list[Step] = []
        self._constants: dict[Hashable, int] = {}
        self._known: dict[Hashable, list[int]] = {}
        # So that no other array takes the address of one that is known by it.
        self._held: list[ArrayLike] = []

    def new(self, aval: ShapedArray | np.ndarray, value: np.ndarray | None = None) -> int:
        """The place of a new value."""
        _refuse_other(aval)
        self.values.append(value)
        return len(self.values) - 1

    def constant(self, value: ArrayLike) -> int:
        """The place of a constant."""
        _refuse_other(jax.typeof(value))
        array = np.asarray(value)
        small = array.nbytes <= SMALL
        key = (array.dtype, array.shape, array.tobytes()) if small else id(value)
        if key not in self._constants:
            self._constants[key] = self.new(array, array)
            self._held.append(value)
        return self._constants[key]

    def inlined(self, jaxpr: Jaxpr, consts: Sequence[int], args: Sequence[int]) -> list[int]:
        """Adds the steps of a program; the places of its results."""
        places = dict(zip(map(id, (*jaxpr.constvars, *jaxpr.invars)), (*consts, *args), strict=True))
        read = lambda v: self.constant(np.asarray(v.val, v.aval.dtype)) if hasattr(v, "val") else places[id(v)]
        for equation in jaxpr.eqns:
            inputs = [read(v) for v in equation.invars]
            if equation.primitive.name in CALLS:
                body, own = body_of(equation)
                found = self.inlined(body, [self.constant(c) for c in own], inputs)
            else:
                found = self._added(equation, inputs)
            places |= dict(zip(map(id, equation.outvars), found, strict=True))
        return [read(v) for v in jaxpr.outvars]

    def _added(self, equation: JaxprEqn, inputs: list[int]) -> list[int]:
        same = self._unchanged(equation, inputs)
        if same is not None:
            return [same]
        key = _key(equation, inputs)
        if key is not None and key in self._known:
            return self._known[key]
        name, several = equation.primitive.name, equation.primitive.multiple_results
        if name in CONTROL and not equation.effects:
            apply, params = CONTROL[name](equation, Interpreted), {}
        else:
            apply, params = operation(equation)
        given, avals = [self.values[i] for i in inputs], avals_of(equation.outvars)
        for aval in avals:
            _refuse_other(aval)
        if all(v is not None for v in given) and not equation.effects:
            found = apply(*given, **params)
            results = [np.asarray(v) for v in (found if several else [found])]
            _check(results, avals, name)
            out = [self.constant(v) for v in results]
        else:
            out = [self.new(aval) for aval in avals]
            self.steps.append(Step(apply, params, inputs, out, several, [], avals))
        if key is not None:
            self._known[key] = out
        return out

    def _unchanged(self, equation: JaxprEqn, inputs: list[int]) -> int | None:
        """The place of the input that an operation returns as it is. An input may be a scalar where the result is none."""
        name = equation.primitive.name
        taken: int | None = None
        if name in MOVES and len(inputs) == 1:
            taken = 0
        elif name == "select_n" and (side := self._uniform(inputs[0], bool)) is not None:
            taken = 1 + side
        elif name in ("and", "or"):
            taken = self._decided(inputs, name == "and")
        if taken is None:
            return None
        before, after = avals_of((equation.invars[taken], equation.outvars[0]))
        return inputs[taken] if (before.shape, before.dtype) == (after.shape, after.dtype) else None

    def _decided(self, inputs: list[int], conjunction: bool) -> int | None:
        """Which of two the conjunction of Booleans, or their disjunction, is."""
        if inputs[0] == inputs[1]:
            return 0
        for i, place in enumerate(inputs):
            side = self._uniform(place, bool)
            if side is not None:
                return 1 - i if side == conjunction else i
        return None

    def _uniform(self, place: int, dtype: type) -> int | None:
        """The entry that all entries of a constant of a type are, if they are one."""
        known = self.values[place]
        if known is None or known.dtype != dtype or not known.size:
            return None
        return int(known.flat[0]) if (known == known.flat[0]).all() else None

    def pruned(self, outputs: Sequence[int]) -> tuple[list[Step], list[np.ndarray | None]]:
        """The steps that results need, with the places that are read for the last time, and the constants among the values."""
        needed, kept = set(outputs), []
        for step in reversed(self.steps):
            if needed.intersection(step.outputs):
                needed.update(step.inputs)
                kept.append(step)
        kept.reverse()
        last = {place: i for i, step in enumerate(kept) for place in (*step.inputs, *step.outputs)}
        for place, i in last.items():
            if self.values[place] is None and place not in outputs:
                kept[i].dead.append(place)
        return kept, [v if i in needed else None for i, v in enumerate(self.values)]


@no_type_check
def _refuse_other(aval: ShapedArray | np.ndarray) -> None:
    """Raises `NoArrays` for what NumPy does not have."""
    if not hasattr(aval, "dtype") or jax.dtypes.issubdtype(aval.dtype, jax.dtypes.extended):
        raise NoArrays(f"expected a program of NumPy's arrays, got {aval}")


@no_type_check
def _check(results: Sequence[Array], avals: Sequence[ShapedArray], name: str) -> None:
    """Raises `RuntimeError` where an operation is not what it is to be."""
    for found, aval in zip(results, avals, strict=True):
        if np.shape(found) != aval.shape or found.dtype != aval.dtype:
            raise RuntimeError(
                f"{name}: expected {aval.dtype}{list(aval.shape)}, got {found.dtype}{list(np.shape(found))}"
            )


@no_type_check
def _key(equation: JaxprEqn, inputs: Sequence[int]) -> Hashable | None:
    """What tells an operation from others, by value; `None` for one that is not told from others."""
    if equation.effects:
        return None
    key = (equation.primitive, *inputs, *sorted(equation.params.items()))
    try:
        hash(key)
    except TypeError:
        return None
    return key
