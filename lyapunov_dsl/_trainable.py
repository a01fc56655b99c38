"""Which arrays training changes, and which of them are one array at several places."""

from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PyTree


def trainable(program: PyTree, *, freeze: Any = None) -> PyTree:
    """Gives the filter of what training may change.

    True at the floating-point JAX arrays of the system and of the certificate (learned potentials), False everywhere
    else. Constants (rates, levels, domains) are [`lyapunov_dsl.Constant`][]s and never trainable, and neither are NumPy
    arrays: a mean or a matrix that stays as it is can be kept as one.

    To keep a part of a program as it is, freeze it and give the filter to [`lyapunov_dsl.fit`][]:

        mask = ld.trainable(program, freeze=lambda p: p.system.input)
        ld.fit(program, data, trainable=mask, ...)

    What is False in the filter is not among the parameters that the optimizer sees, so that nothing moves it: no weight
    decay, no momentum. In a loop of your own, `eqx.partition(program, mask)` does the same. `optax.masked` does not: it
    hands on the gradients that it does not transform, and `optax.apply_updates` adds them.

    **Arguments:**

    - `program`: a [`lyapunov_dsl.Program`][].
    - `freeze`: a function program -> the part, or a tuple of the parts, to be left as they are.

    **Returns:** a PyTree of `bool` with the structure of `program`, for [`lyapunov_dsl.fit`][] and `eqx.partition`.

    **Raises:** `ValueError` where `freeze` returns nothing of the program that could be trained.
    """
    changes = lambda leaf: isinstance(leaf, jax.Array) and eqx.is_inexact_array(leaf)
    nothing = jax.tree.map(lambda _: False, program)
    parts = (program.system, program.certificate)
    mask = eqx.tree_at(
        lambda p: (p.system, p.certificate),
        nothing,
        jax.tree.map(changes, parts),
        is_leaf=lambda leaf: leaf is None,
    )
    if freeze is None:
        return mask
    expected = "freeze: expected a function that returns parts of the program, such as lambda p: p.system.input"
    if not callable(freeze):
        raise ValueError(f"{expected}, got {freeze!r:.200}")
    try:
        kept = eqx.tree_at(freeze, mask, replace_fn=lambda part: jax.tree.map(lambda _: False, part))
    except Exception as error:
        raise ValueError(f"{expected}, got one that raises {type(error).__name__} or returns something else") from error
    if sum(jax.tree.leaves(kept)) == sum(jax.tree.leaves(mask)):
        raise ValueError(f"{expected}, got one that returns no array that would be trained")
    return kept


def find_ties(program: PyTree) -> tuple[tuple[str, ...], ...]:
    """The trainable arrays that stand at several places of a program: for each the paths, in the order of the tree."""
    places: dict[int, list[str]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(eqx.filter(program, trainable(program))):
        places.setdefault(id(leaf), []).append(jax.tree_util.keystr(path))
    return tuple(tuple(paths) for paths in places.values() if len(paths) > 1)


def split_trainable(program: PyTree, mask: PyTree) -> tuple[PyTree, PyTree]:
    """Parameters and the rest, as `eqx.partition` gives them, with one copy of an array that stands at several places.

    **Raises:** `ValueError` where such an array is to be trained at one place and not at another, or is no longer the
    same at all of them.
    """
    ties = program.declaration.ties
    if not ties:
        return eqx.partition(program, mask)
    at = lambda tree: {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    leaves, changes = at(program), at(mask)
    copies = set()
    for first, *others in ties:
        for other in others:
            if changes[first] != changes[other]:
                raise ValueError(
                    f"trainable: expected one array that stands at {first} and {other} to be trained at both or at none, got "
                    "it frozen at one of them; freeze both, or compile with a copy at one of them"
                )
            one, two = leaves[first], leaves[other]
            if one is not two and not np.array_equal(np.asarray(one), np.asarray(two)):
                raise ValueError(
                    f"program: expected the same numbers at {first} and {other}, which were one array when it was "
                    "compiled, got others; compile it again to train the two apart"
                )
            if changes[first]:
                copies.add(other)
    drop = lambda path, leaf: None if jax.tree_util.keystr(path) in copies else leaf
    return tuple(jax.tree_util.tree_map_with_path(drop, part) for part in eqx.partition(program, mask))  # pyright: ignore


def join_trainable(params: PyTree, rest: PyTree) -> PyTree:
    """The program of which `split_trainable` made two."""
    program = eqx.combine(params, rest)
    first = {other: paths[0] for paths in program.declaration.ties for other in paths[1:]}
    if not first:
        return program
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(program)}

    def fill(path: Any, leaf: Any) -> Any:
        where = jax.tree_util.keystr(path)
        return leaves[first[where]] if where in first else leaf

    return jax.tree_util.tree_map_with_path(fill, program, is_leaf=lambda leaf: leaf is None)
