"""Whether the programs of a proof are those of a declaration."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._condition import Condition
from ._question import Functions, functions


@dataclasses.dataclass(frozen=True)
class Match:
    """Whether a proof is about a declaration. It is true where nothing differs, and printable.

    **Arguments:**

    - `differences`: what differs, a sentence each.
    - `sha256`: the hash of the programs in the proof, as the checker prints it.
    """

    differences: tuple[str, ...]
    sha256: str

    def __bool__(self) -> bool:
        return not self.differences

    def __str__(self) -> str:
        if self:
            return f"the proof is about this declaration: its programs are the same (SHA-256 {self.sha256})"
        lines = [f"the proof is about another system or certificate (its programs have the SHA-256 {self.sha256}):"]
        return "\n".join([*lines, *(f"- {d}" for d in self.differences)])


def declared(system: Any, certificate: Any, x: Any, y: Any, part: str | None, rest: Any) -> tuple[Functions, Any]:
    """The functions of a declaration, as `prove` takes them, and the start."""
    if hasattr(system, "declaration"):
        certificate = system.certificate if certificate is None else certificate
        system = system.system
    if certificate is None:
        raise ValueError("certificate: expected a Certificate, as the system has none of its own, got none")
    condition = Condition(system, certificate)
    names = list(condition.parts)
    if (part is None and len(names) > 1) or (part is not None and part not in names):
        raise ValueError(f"part: expected one of {names}, got {part!r}")
    if x is None and rest is None:
        raise ValueError("x: expected an example, such as a state of the right shape, got none")
    with jax.enable_x64(True):
        return functions(condition, names[0] if part is None else part, jnp.asarray(rest) if x is None else x, y)


def compare(
    header: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    programs: Mapping[str, Any],
    constants: Mapping[str, np.ndarray],
    context: Any,
) -> Match:
    """What differs between the programs of a proof, and those of a declaration with their arrays."""
    from lyapunov_checker import identity

    found = []
    for name in sorted({*header["programs"], *programs}):
        both = [(p[name], a) for p, a in ((header["programs"], arrays), (programs, constants)) if name in p]
        if len(both) < 2:
            found.append(
                f"{name}: only {'the proof' if name in header['programs'] else 'the declaration'} has such a program"
            )
        elif difference := _differs(*both[0], *both[1]):
            found.append(f"{name}: {difference}")
    around = header["perturbation"]
    if around is not None and around["center"] != (center := np.asarray(context, np.float64).ravel().tolist()):
        found.append(f"context: {around['center'][:5]} in the proof, {center[:5]} in the declaration")
    return Match(tuple(found), identity(header, arrays))


def _differs(one: Any, own: Mapping[str, np.ndarray], other: Any, others: Mapping[str, np.ndarray]) -> str:
    """The first difference of two programs, or nothing."""
    counts = [len(program["operations"]) for program in (one, other)]
    for number, (p, q) in enumerate(zip(one["operations"], other["operations"], strict=False)):
        where = f"operation {number}"
        if (p["name"], p["size"]) != (q["name"], q["size"]):
            return f"{where} is {p['name']} to {p['size']} entries in the proof, {q['name']} to {q['size']} in the declaration"
        if list(p["args"]) != list(q["args"]):
            return f"{where} ({p['name']}) is of other operations: {list(p['args'])} in the proof, {list(q['args'])} in the declaration"
        numbers = [_numbers(p, own), _numbers(q, others)]
        for a, b in zip(*numbers, strict=False):
            if a.shape != b.shape or a.dtype != b.dtype:
                return f"{where} ({p['name']}) has other entries"
            if a.tobytes() != b.tobytes():
                i = int(np.flatnonzero(a.ravel() != b.ravel())[0]) if (a != b).any() else 0
                return f"{where} ({p['name']}): {a.ravel()[i].item()!r} in the proof, {b.ravel()[i].item()!r} in the declaration"
        if len(numbers[0]) != len(numbers[1]):
            return f"{where} ({p['name']}) has other entries"
    if counts[0] != counts[1]:
        return f"{counts[0]} operations in the proof, {counts[1]} in the declaration"
    return "" if one["output"] == other["output"] else "another operation is its value"


def _numbers(operation: Any, arrays: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The arrays of an operation, in their order."""
    records = (operation, *operation.get("matrices", ()))
    keys = ("value", "dense", "places", "values")
    return [np.asarray(arrays[record[key]]) for record in records for key in keys if key in record]
