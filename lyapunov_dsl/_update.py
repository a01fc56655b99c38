"""What an optimizer computes in a step, without its numbers: optimizers that differ in these alone share one compiled step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.extend import core
from jaxtyping import Array, PyTree

from ._jaxprs import is_jaxpr

# Where a floating-point number may be an argument of the compiled step and is not written into it, by primitive and
# place. Not everywhere: XLA computes a division by a constant, or a constant power, otherwise than with an argument.
_BOTH = ("mul", "add", "add_any", "sub", "max", "min", "eq", "ne", "lt", "le", "gt", "ge")
_FIRST = ("pow", "div", "neg", "copy", "convert_element_type", "broadcast_in_dim")
_LIFTED = {**dict.fromkeys(_BOTH, (0, 1)), **dict.fromkeys(_FIRST, (0,)), "select_n": (1, 2), "clamp": (0, 1, 2)}
# Programs that are called once, and the parameter that has them. Nothing here is differentiated any more.
_CALLS = {"jit": "jaxpr", "closed_call": "call_jaxpr", "custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr"}


class Update(eqx.Module):
    """An optimizer's `update`, as a rule and the numbers in it.

    **Arguments:**

    - `numbers`: a vector for every floating-point type.
    - `arrays`: the arrays in it.
    - `rule`: all the rest, which can be compared; or an optimizer as it is.
    """

    numbers: dict[str, Array]
    arrays: tuple[Any, ...]
    rule: Any = eqx.field(static=True)

    def __call__(self, grads: PyTree, moments: PyTree, params: PyTree, value: Any, value_fn: Any) -> tuple:
        """As that of the optimizer: the updates and the new state."""
        if not isinstance(self.rule, _Rule):
            given = {"value": value, "grad": grads, "value_fn": value_fn}
            return optax.with_extra_args_support(self.rule).update(grads, moments, params, **given)
        inputs = jax.tree.leaves(eqx.filter((grads, moments, params, value), eqx.is_array))
        outputs = jax.tree.unflatten(self.rule.treedef, _run(self.rule.body, inputs, self))
        return eqx.combine(outputs, jax.tree.unflatten(*self.rule.rest))


def read_update(optimizer: optax.GradientTransformation, params: PyTree, moments: PyTree, loss: Callable) -> Update:
    """Traces an optimizer. One that evaluates the loss by itself, as a line search does, is taken as it is.

    **Arguments:**

    - `optimizer`, `params`, `moments`: the optimizer, the parameters and its state.
    - `loss`: gives the shape and dtype of the loss; it is called only where the optimizer looks at the loss.
    """
    arrays, static = eqx.partition((params, moments, params), eqx.is_array)
    update, kept = optax.with_extra_args_support(optimizer).update, []

    def flat(arrays: PyTree, value: Any) -> PyTree:
        grads, moments, params = eqx.combine(arrays, static)
        new = update(grads, moments, params, value=value, grad=grads, value_fn=_evaluates)
        new, rest = eqx.partition(new, eqx.is_array)
        kept.append(rest)
        return new

    def trace(value: Any) -> tuple[Any, PyTree]:
        return jax.make_jaxpr(flat, return_shape=True)(arrays, value)

    try:
        closed, out = trace(jax.ShapeDtypeStruct((), jnp.result_type(float)))
        value = closed.jaxpr.invars[-1]
        used = [*closed.jaxpr.outvars, *(v for equation in closed.jaxpr.eqns for v in equation.invars)]
        if any(v is value for v in used):
            closed, out = trace(loss())
    except _EvaluatesLoss:
        return Update({}, (), optimizer)
    reader = _Reader()
    body = reader.body(closed.jaxpr, closed.consts)
    numbers = {name: jnp.asarray(np.asarray(some)) for name, some in reader.numbers.items()}
    leaves, treedef = jax.tree.flatten(kept[-1])
    rule = _Rule(body, jax.tree.structure(out), (treedef, tuple(leaves)))
    return Update(numbers, tuple(reader.arrays), rule)


class _EvaluatesLoss(Exception):
    pass


def _evaluates(*args: Any, **options: Any) -> Any:
    raise _EvaluatesLoss


class _Body(NamedTuple):
    """A program. Variables are numbered; what stands for a value is an `int`, a `_Number`, an `_Array` or a `_Held`."""

    inputs: tuple
    calls: tuple
    outputs: tuple


class _Call(NamedTuple):
    """An equation; `inner` are the bodies that it calls, `params` then `None`."""

    primitive: Any
    arguments: tuple
    results: tuple
    context: "_Held"
    params: Any
    inner: tuple


class _Number(NamedTuple):
    dtype: str
    place: int


class _Array(NamedTuple):
    place: int


class _Held:
    """A value, compared by what it looks like."""

    def __init__(self, value: Any, look: Any):
        self.value, self.look = value, look

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, _Held) and self.look == other.look

    def __hash__(self) -> int:
        return hash(self.look)


class _Rule:
    """What is compared: the body, and how its outputs are the updates and the new state."""

    def __init__(self, body: _Body, treedef: Any, rest: tuple):
        self.body, self.treedef, self.rest = body, treedef, rest
        self._hash = hash((body, treedef, rest))

    def __eq__(self, other: Any) -> bool:
        if self is other:
            return True
        mine = lambda rule: (rule.body, rule.treedef, rule.rest)
        return isinstance(other, _Rule) and self._hash == other._hash and mine(self) == mine(other)

    def __hash__(self) -> int:
        return self._hash


class _Reader:
    """Reads a traced program. Numbers and arrays are taken out on the way, in the order in which they are met."""

    def __init__(self, lift: bool = True):
        self.lift = lift
        self.numbers: dict[str, list] = {}
        self.arrays: list = []

    def body(self, jaxpr: Any, consts: Any) -> _Body:
        known: dict[Any, Any] = {}
        for variable, const in zip(jaxpr.constvars, consts, strict=True):
            known[variable] = self._array(const)
        place = lambda variable: known.setdefault(variable, len(known))
        inputs = tuple((place(v), _look_of_type(v.aval)) for v in jaxpr.invars)
        calls = []
        for e in jaxpr.eqns:
            take = lambda i, v, e=e: self._literal(v, e, i) if isinstance(v, core.Literal) else known[v]
            arguments = tuple(take(i, v) for i, v in enumerate(e.invars))
            inner = tuple(self.body(each.jaxpr, each.consts) for each in _called(e)) if self.lift else ()
            params = None if inner else _Held(e.params, _look(e.params))
            results = tuple((place(v), _look_of_type(v.aval)) for v in e.outvars)
            calls.append(_Call(e.primitive, arguments, results, _Held(e.ctx, repr(e.ctx)), params, inner))
        outputs = tuple(self._literal(v, None, 0) if isinstance(v, core.Literal) else known[v] for v in jaxpr.outvars)
        return _Body(inputs, tuple(calls), outputs)

    def _array(self, const: Any) -> Any:
        if not (self.lift and isinstance(const, jax.Array | np.ndarray)):
            return _Held(const, _look(const))
        self.arrays.append(jnp.asarray(const))
        return _Array(len(self.arrays) - 1)

    def _literal(self, literal: Any, equation: Any, place: int) -> Any:
        dtype, value = literal.aval.dtype, literal.val
        lifted = equation is not None and place in _LIFTED.get(equation.primitive.name, ())
        if not (self.lift and lifted and literal.aval.shape == () and jnp.issubdtype(dtype, jnp.floating)):
            # As an output it has to be an array, which a literal is not always.
            value = np.asarray(value, dtype) if equation is None else value
            return _Held(value, (_look_of_type(literal.aval), _look(np.asarray(value, dtype))))
        some = self.numbers.setdefault(str(dtype), [])
        some.append(np.asarray(value, dtype))
        return _Number(str(dtype), len(some) - 1)


def _called(equation: Any) -> tuple:
    """The programs of an equation that is but a call of them, or a choice of one."""
    params, name = equation.params, equation.primitive.name
    if name == "cond":
        return params["branches"] if set(params) == {"branches"} else ()
    placed = (*params.get("in_shardings", ()), *params.get("out_shardings", ()))
    if name not in _CALLS or any(isinstance(s, jax.sharding.Sharding) for s in placed):
        return ()
    return (params[_CALLS[name]],)


def _look_of_type(aval: Any) -> Any:
    return (getattr(aval, "shape", None), str(getattr(aval, "dtype", aval)), getattr(aval, "weak_type", False))


def _look(value: Any) -> Any:
    """Something hashable by which values can be compared: what cannot be looked into is equal to itself alone."""
    if is_jaxpr(value):
        return _Reader(lift=False).body(getattr(value, "jaxpr", value), getattr(value, "consts", ()))
    if isinstance(value, dict):
        return tuple((name, _look(value[name])) for name in sorted(value))
    if isinstance(value, tuple | list):
        return (type(value), *map(_look, value))
    if isinstance(value, bool | int | float | complex):
        return (type(value), repr(value))
    if isinstance(value, np.ndarray | np.generic):
        return (value.shape, str(value.dtype), value.tobytes())
    try:
        hash(value)
    except TypeError:
        return _Itself(value)
    return value


class _Itself:
    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, _Itself) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def _run(body: _Body, inputs: Any, update: Update) -> list:
    """Evaluates a program with the numbers and arrays of an update."""
    known = {place: given for (place, _), given in zip(body.inputs, inputs, strict=True)}

    def of(what: Any) -> Any:
        if isinstance(what, _Number):
            return update.numbers[what.dtype][what.place]
        if isinstance(what, _Array):
            return update.arrays[what.place]
        return what.value if isinstance(what, _Held) else known[what]

    for call in body.calls:
        arguments = [of(what) for what in call.arguments]
        with call.context.value.manager:
            if len(call.inner) == 1:
                results = _run(call.inner[0], arguments, update)
            elif call.inner:
                branches = [lambda *given, b=b: _run(b, given, update) for b in call.inner]
                results = jax.lax.switch(arguments[0], branches, *arguments[1:])
            else:
                found = call.primitive.get_bind_params(call.params.value)
                # Before version 0.10 of JAX, the functions that are called stand beside the parameters.
                inner, params = found if isinstance(found, tuple) else ((), found)
                results = call.primitive.bind(*inner, *arguments, **params)
        results = results if call.primitive.multiple_results or call.inner else [results]
        known.update(zip((place for place, _ in call.results), results, strict=True))
    return [jnp.asarray(of(what)) for what in body.outputs]
