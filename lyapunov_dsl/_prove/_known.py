"""What a function computes, as a hash, and compiled functions by it."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np


def _inside(jaxpr: Any) -> Iterator[tuple[Any, Any]]:
    """All equations of a jaxpr and of those inside of it, and the constants of these, as pairs (equation, constants)."""
    for equation in jaxpr.eqns:
        yield equation, ()
        for leaf in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")
        ):
            if hasattr(leaf, "jaxpr") and hasattr(leaf, "consts"):
                yield equation, leaf.consts
                yield from _inside(leaf.jaxpr)
            elif hasattr(leaf, "eqns"):
                yield from _inside(leaf)
            elif isinstance(leaf, np.ndarray | jax.Array):
                yield equation, (leaf,)


def numbers_of(closed: Any) -> list[np.ndarray]:
    """All constant arrays of a function, those of functions inside of it too."""
    found = [*closed.consts, *(const for _, consts in _inside(closed.jaxpr) for const in consts)]
    literals = [v.val for equation, _ in _inside(closed.jaxpr) for v in equation.invars if hasattr(v, "val")]
    return [np.asarray(v) for v in (*found, *literals)]


# So many compiled programs are kept.
LATEST = 16


def remembered(known: dict[str, Any], key: str, make: Callable[[], Any]) -> Any:
    """What is known by a key, made where it is not; the latest stay."""
    known[key] = known.pop(key) if key in known else make()
    while len(known) > LATEST:
        del known[next(iter(known))]
    return known[key]


def fingerprint(digest: Any, closed: Any, *more: Any, without: Sequence[int] = ()) -> None:
    """Adds to a hash what a function computes: its operations, and all numbers in them; of some of its constants the shapes alone."""
    digest.update(f"{closed.jaxpr}{list(without)}".encode())
    for i, array in enumerate((*numbers_of(closed), *(np.asarray(v) for v in more))):
        digest.update(f"{array.dtype}{array.shape}".encode())
        if i not in without:
            digest.update(array.tobytes())


def options(backend: str) -> dict[str, Any] | None:
    """Of the compiler, for the search for proofs."""
    # On a CPU, XLA's fusion copies cheap operations into each kernel that uses them: planes of ten lines become programs that take
    # several times as long to compile. Proofs of small systems spend their time there.
    return {"xla_disable_hlo_passes": "fusion"} if backend == "cpu" else None
