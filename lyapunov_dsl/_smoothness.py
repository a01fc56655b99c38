"""What in the field and the readout is not smooth in time and state, found by abstract evaluation."""

import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ._jaxprs import inner_jaxprs
from ._system import Start, System
from ._types import Struct

# Primitives whose derivative is zero almost everywhere, those that have a kink, and those that choose: their result may
# jump, or bend, where the choice changes.
_STEPS = frozenset({"argmax", "argmin", "round", "sign", "floor", "ceil"})
_KINKS = frozenset({"max", "min", "abs", "reduce_max", "reduce_min", "reduce_window_max", "clamp", "sort"})
_CHOICES = {"select_n": "where", "cond": "cond", "while": "while_loop", "rem": "mod"}
JUMPS = _STEPS | frozenset(_CHOICES.values()) | {"where between constants"}


def _find(jaxpr: Any, varies: list[bool]) -> set[str]:
    """What is not smooth in the inputs that vary, by name."""
    found, moving = set(), {id(v) for v, moves in zip(jaxpr.invars, varies, strict=True) if moves}
    for equation in jaxpr.eqns:
        name, flags = equation.primitive.name, [id(v) in moving for v in equation.invars]
        if any(flags):
            moving |= {id(v) for v in equation.outvars}
        if any(flags) and name in _STEPS | _KINKS:
            found.add(name)
        # Of a choice that does not vary, one side is taken all the way.
        if name in _CHOICES and (any(flags) if name in ("rem", "while") else flags[0]):
            found.add(_CHOICES[name] if name != "select_n" or any(flags[1:]) else "where between constants")
        for inner in inner_jaxprs(equation):
            # The last inputs: a choice among branches has an index before them.
            own = flags[len(flags) - len(inner.invars) :] if len(inner.invars) <= len(flags) else []
            same = len(own) == len(inner.invars) and name not in ("scan", "while")
            found |= _find(inner, own if same else [any(flags)] * len(inner.invars))
    return found


def smoothness(system: Any, start: Start, final: Struct) -> tuple[str, ...]:
    """Warns of piecewise constant functions in the field and the readout; returns the names of what is not smooth."""
    t = jax.ShapeDtypeStruct((), jnp.result_type(*jax.tree.leaves(start.state)))

    def layers(system: Any, state: Any, context: Any) -> Any:
        for i in range(len(system.steps)):
            state = system.step(i, state, context)
        return state

    if isinstance(system, System):
        dynamics = eqx.filter_make_jaxpr(lambda s, *args: s.velocity(*args))(system, t, start.state, start.context)
        inputs = [t, start.state]
    else:
        dynamics, inputs = eqx.filter_make_jaxpr(layers)(system, start.state, start.context), [start.state]
    found = {
        "vector_field" if isinstance(system, System) else "steps": (dynamics[0], inputs),
        "readout": (eqx.filter_make_jaxpr(lambda s, state: s.decode(state))(system, final)[0], [final]),
    }
    weights, kinks = len(jax.tree.leaves(eqx.filter(system, eqx.is_array))), set()
    for name, (closed, inputs) in found.items():
        moving, timed = len(jax.tree.leaves(inputs)), int(inputs[0] is t)
        rest = len(closed.jaxpr.invars) - weights - moving

        def seen(first: int, last: int, closed: Any = closed, rest: int = rest, moving: int = moving) -> set[str]:
            moves = [first <= i < last for i in range(moving)]
            return _find(closed.jaxpr, [False] * weights + moves + [False] * rest)

        names = seen(0, moving)
        flat = sorted((names & _STEPS) | (seen(timed, moving) & {"where between constants"}))
        choices = sorted(seen(0, timed) & {"where", "where between constants", "cond"})
        if choices and not system.jumps:
            warnings.warn(
                f"{name} chooses by the time ({', '.join(choices)}), and the solver does not know when: it steps across; give "
                "the times as System(..., jumps=(...,))",
                stacklevel=4,
            )
        if flat:
            warnings.warn(
                f"{name} uses {', '.join(flat)}, whose derivative is zero almost everywhere: training cannot see through it, "
                "and a rate taken there says nothing at the steps; a smooth function such as jnp.tanh(state / width) does",
                stacklevel=4,
            )
        kinks |= names
    return tuple(sorted(kinks))


def describe_smoothness(kinks: tuple[str, ...]) -> str:
    """What was found, in words."""
    jumps, bends = ([k for k in kinks if (k in JUMPS) == of] for of in (True, False))
    words = [f"piecewise smooth ({', '.join(bends)})"] if bends else []
    words += [f"may jump or bend where a choice changes ({', '.join(jumps)})"] if jumps else []
    return "; ".join(words) or "smooth"
