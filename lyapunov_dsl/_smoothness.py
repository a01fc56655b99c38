"""What in the field and the readout is not smooth in time and state, found by abstract evaluation."""

import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr

from ._jaxprs import inner_jaxprs
from ._system import Start, System
from ._types import Struct

# Primitives whose derivative is zero almost everywhere, those that have a kink, and those that choose: their result may
# jump, or bend, where the choice changes.
_STEPS = frozenset({"argmax", "argmin", "round", "sign", "floor", "ceil"})
_KINKS = frozenset({"max", "min", "abs", "reduce_max", "reduce_min", "reduce_window_max", "clamp", "sort"})
_CHOICES = {"select_n": "where", "cond": "cond", "while": "while_loop", "rem": "mod"}
_FLAT = "where between constants"
JUMPS = _STEPS | frozenset(_CHOICES.values()) | {_FLAT}


def _find(jaxpr: Jaxpr, varies: list[bool], flat: list[bool]) -> tuple[set[str], list[bool]]:
    """What is not smooth in the inputs that vary, by name, and which outputs are flat: choices between constants, and what is
    computed of those alone. A product of one with what varies has a derivative, as in a mask; a sum has that of the rest."""
    found = set()
    moving = {id(v) for v, moves in zip(jaxpr.invars, varies, strict=True) if moves}
    level = {id(v) for v, is_flat in zip(jaxpr.invars, flat, strict=True) if is_flat}
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        flags, flats = ([id(v) in of for v in equation.invars] for of in (moving, level))
        if any(flags):
            moving |= {id(v) for v in equation.outvars}
        if any(flags) and name in _STEPS | _KINKS:
            found.add(name)
        # Of a choice that does not vary, one side is taken all the way.
        if name in _CHOICES and (any(flags) if name in ("rem", "while") else flags[0]):
            among = name == "select_n" and not any(v and not f for v, f in zip(flags[1:], flats[1:], strict=True))
            if among:
                level |= {id(v) for v in equation.outvars}
                continue
            found.add(_CHOICES[name])
        inners = inner_jaxprs(equation)
        for inner in inners:
            # The last inputs: a choice among branches has an index before them.
            count = len(inner.invars)
            same = count <= len(flags) and name not in ("scan", "while")
            own = flags[len(flags) - count :] if same else [any(flags)] * count
            names, ends = _find(inner, own, flats[len(flats) - count :] if same else [any(flats)] * count)
            found |= names
            if len(ends) == len(equation.outvars):
                level |= {id(v) for v, is_flat in zip(equation.outvars, ends, strict=True) if is_flat}
            elif any(ends):
                found.add(_FLAT)
        # Comparisons are seen where something is chosen by them.
        chooses = name in ("eq", "ne", "lt", "le", "gt", "ge") or (name == "select_n" and flags[0])
        if any(flats) and not inners and not chooses:
            if not any(v and not f for v, f in zip(flags, flats, strict=True)):
                level |= {id(v) for v in equation.outvars}
            else:
                found.add("where" if name in ("mul", "div", "dot_general", "and", "or") else _FLAT)
    return found, [id(v) in level for v in jaxpr.outvars]


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
            varies = [False] * weights + [first <= i < last for i in range(moving)] + [False] * rest
            names, ends = _find(closed.jaxpr, varies, [False] * len(varies))
            return names | {_FLAT} if any(ends) else names

        names = seen(0, moving)
        flat = sorted((names & _STEPS) | (seen(timed, moving) & {_FLAT}))
        choices = sorted(seen(0, timed) & {"where", _FLAT, "cond"})
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
