"""The declaration: what a continuous or a discrete system is made of."""

import inspect
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PyTree

from ._domain import Domain
from ._types import Context, Key, State, exactly, is_finite, kind, shown, speaks, strong


class Start(eqx.Module):
    """What the input module returns: the initial state and what the dynamics may look at all the way.

    **Arguments:**

    - `state`: η(0), a PyTree of floating-point arrays.
    - `context`: any PyTree, handed to the vector field (or the steps) as it is; computed once per x.
    """

    state: PyTree
    context: PyTree = None


def identity(state: PyTree) -> PyTree:
    """The readout that returns the state itself (eq. 3 with ψ the identity, as in the paper's classifiers).

    **Arguments:**

    - `state`: the state of one example, any PyTree.

    **Returns:** the same PyTree.
    """
    return state


def start_at(x: PyTree) -> Start:
    """The input module of a system without one: x is the initial state."""
    return Start(x)


def _takes_key(function: Callable) -> bool:
    try:
        return "key" in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


def call(function: Callable, *args: Any, key: Key) -> Any:
    """`function(*args)`, with `key=key` where the function takes one (dropout and the like)."""
    return function(*args, key=key) if _takes_key(function) else function(*args)


def _started(start: Any) -> Any:
    """What an input module returned, with a state that a step does not make one of another type."""
    return Start(strong(start.state), start.context) if isinstance(start, Start) else start


def _check_callables(**functions: Any) -> None:
    for name, function in functions.items():
        if not callable(function):
            raise ValueError(f"{name}: expected a callable, got {kind(function)}")


def _check_horizon(horizon: Any) -> float:
    if not (is_finite(horizon) and horizon > 0):
        raise ValueError(f"horizon: expected a positive finite number, got {horizon!r}")
    return exactly("horizon", horizon)


def _check_jumps(jumps: Any, horizon: float) -> tuple[float, ...]:
    times = tuple(jumps) if np.iterable(jumps) else (jumps,)
    for t in times:
        if not (is_finite(t) and 0 < t < horizon):
            raise ValueError(f"jumps: expected times in (0, {horizon:g}), got {t!r}")
    return tuple(sorted(exactly("jumps", t) for t in times))


class System(eqx.Module):
    """A continuous-time model (eq. 1-3): an input module, a vector field and a readout.

    All three see one example, without a batch axis. A callable that takes `key` is given one per example in
    training, the same along a trajectory, and `None` in inference.

    **Arguments:**

    - `input`: x -> [`lyapunov_dsl.Start`][] (eq. 1), the expensive part, run once per x. Left out, x is the initial
        state.
    - `vector_field`: (t, state, context) -> d state/dt, shaped like the state (eq. 2).
    - `readout`: state -> prediction (eq. 3).
    - `domain`: the set H on which the certificate is to hold; where it is left out, `compile` derives one for
        cross entropy on the state itself (eq. 49) and asks otherwise.
    - `horizon`: the final time T > 0, in the unit of t.
    - `jumps`: times in (0, horizon) at which the vector field is discontinuous; the solver steps exactly there.

    **Raises:** `ValueError` for something that is not callable, a horizon that is not positive, or a jump outside
    (0, horizon).
    """

    input: Callable
    vector_field: Callable
    readout: Callable
    domain: Domain | None
    horizon: float = eqx.field(static=True)
    jumps: tuple = eqx.field(static=True)

    def __init__(
        self,
        input: Any = start_at,
        vector_field: Any = None,
        readout: Any = identity,
        *,
        domain: Any = None,
        horizon: Any = 1.0,
        jumps: Any = (),
    ):
        _check_callables(input=input, vector_field=vector_field, readout=readout)
        if domain is not None and not isinstance(domain, Domain):
            raise ValueError(f"domain: expected a Box, a Ball or a Product, got {shown(domain)}")
        self.input = input
        self.vector_field = vector_field
        self.readout = readout
        self.domain = domain
        self.horizon = _check_horizon(horizon)
        self.jumps = _check_jumps(jumps, self.horizon)

    @property
    def region(self) -> Domain:
        """The domain H. Raises `ValueError` where none was declared or derived."""
        if self.domain is None:
            raise ValueError("domain: expected a set H of states, such as System(..., domain=Box(-3, 3)), got none")
        return self.domain

    def start(self, x: PyTree, key: Key = None) -> Start:
        """Eq. 1 for one example."""
        return _started(call(self.input, x, key=key))

    def velocity(self, t: Any, state: State, context: Context, key: Key = None) -> State:
        """Eq. 2 for one example."""
        return call(self.vector_field, t, state, context, key=key)

    def decode(self, state: State, key: Key = None) -> PyTree:
        """Eq. 3 for one example."""
        return call(self.readout, state, key=key)


class DiscreteSystem(eqx.Module):
    """A genuinely discrete model (eq. 4), such as a ResNet: a start, a chain of steps and a readout.

    A step that keeps the shape of the state is dynamics: time advances by horizon / (number of such steps). A
    step that changes the shape is a change of coordinates: it takes no time, and the potential of a state is
    evaluated after the changes of coordinates that are still to come (see `docs/decisions.md`).

    **Arguments:**

    - `input`: x -> [`lyapunov_dsl.Start`][], for one example. Left out, x is the initial state.
    - `steps`: callables (state, context) -> state.
    - `readout`: state -> prediction, on states of the final shape.
    - `horizon`: the time that the dynamic steps take together; it gives the rate κ its unit.

    **Raises:** `ValueError` for something that is not callable, for no steps, or a horizon that is not positive.
    """

    input: Callable
    steps: tuple[Callable, ...]
    readout: Callable
    horizon: float = eqx.field(static=True)

    def __init__(self, input: Any = start_at, steps: Any = (), readout: Any = identity, *, horizon: Any = 1.0):
        _check_callables(input=input, readout=readout)
        if not isinstance(steps, tuple | list):
            raise ValueError(f"steps: expected a list of callables (state, context) -> state, got {kind(steps)}")
        steps = tuple(steps)
        if not steps:
            raise ValueError("steps: expected at least one callable (state, context) -> state, got none")
        _check_callables(**{f"steps[{i}]": step for i, step in enumerate(steps)})
        self.input = input
        self.steps = steps
        self.readout = readout
        self.horizon = _check_horizon(horizon)

    def start(self, x: PyTree, key: Key = None) -> Start:
        """Eq. 1 for one example."""
        return _started(call(self.input, x, key=key))

    def step(self, index: int, state: State, context: Context, key: Key = None) -> State:
        """Step `index` of eq. 4 for one example."""
        return call(self.steps[index], state, context, key=key)

    def decode(self, state: State, key: Key = None) -> PyTree:
        """Eq. 3 for one example, for a state of the final shape."""
        return call(self.readout, state, key=key)


def plain(tree: PyTree) -> PyTree:
    """A tree with the modules that stand for others, as 1-Lipschitz layers do for ordinary ones, replaced by these, their weights computed
    once. Faster than what it was made of, and what a proof should speak of.

    A module stands for another if it has a method `plain`.

    **Arguments:**

    - `tree`: any PyTree, such as a network, a system or a whole program.

    **Returns:** the same PyTree with `module.plain()` in place of every such module.

    **Raises:** `ValueError` for a module that inherits `plain` from a class whose `__call__` it replaces.
    """
    stands = lambda node: isinstance(node, eqx.Module) and hasattr(node, "plain")

    def one(node: Any) -> Any:
        if not stands(node):
            return node
        if not speaks(node, "plain"):
            raise ValueError(f"plain: {kind(node)} replaces the __call__ of the class that it inherits plain from")
        return node.plain()

    return jax.tree.map(one, tree, is_leaf=stands)
