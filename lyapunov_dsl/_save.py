"""Programs on disk.

Code is not stored. To read a program, the same structure has to be there already; its text (classes, settings, shapes)
is compared with the one in the header of the file.
"""

import hashlib
import re
from itertools import takewhile
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
import wadler_lindig
from jaxtyping import PyTree

from ._archive import arrays_of, as_like, compared, damaged, read_archive, restore, to_numpy, write_archive
from ._compile import Program
from ._trainable import trainable
from ._types import check_file, check_path, describe, kind

# So many arrays that do not fit are named.
_NAMED = 20


def save(path: Any, program: Program) -> None:
    """Writes a program to a file; read it with [`lyapunov_dsl.load`][].

    All arrays of the system and of the certificate are stored, rates, domains and other constants included: the leaves
    of the two PyTrees. What hides in a closure or in an object that is no PyTree is code and is not seen. The file
    appears whole or not at all: it is written beside its place and moved there.

    **Arguments:**

    - `path`: where to; a file that is there is replaced.
    - `program`: a [`lyapunov_dsl.Program`][].

    **Raises:** `ValueError` for what is no program, and where the file cannot be written.
    """
    if not isinstance(program, Program):
        raise ValueError(f"save: expected a Program made by lyapunov_dsl.compile, got {kind(program)}")
    check_path("path", path)
    check_file(Path(path))
    try:
        write_archive(path, program_header(program), {"program": stored(program)})
    except OSError as error:
        raise ValueError(f"save: expected a place that can be written, got {path} ({error})") from error


def load(path: Any, like: Program, *, weights_only: bool = False) -> Program:
    """Reads a program that [`lyapunov_dsl.save`][] wrote, or the latest state from a checkpoint of
    [`lyapunov_dsl.fit`][].

    Code is not stored, so the declaration is made again as for training (from any initial parameters), and its arrays
    are replaced by those of the file. The objective and the solver are those of `like`.

    After the code has changed (a class renamed, a setting added, another loss or domain), `weights_only=True` takes the
    weights alone and compares nothing but their paths, shapes and dtypes. That the program then computes what it did is
    for you to know.

    **Arguments:**

    - `path`: the file.
    - `like`: a program compiled from the same declaration.
    - `weights_only`: whether only the arrays that may be trained ([`lyapunov_dsl.trainable`][]) are taken from the file;
        rates, domains and other constants, NumPy arrays included, are those of `like`.

    **Returns:** a program like `like`.

    **Raises:** `ValueError` for a file that is missing, damaged or cut off, that is none of ours, or that holds another
    program: another class or setting, or an array of another shape or dtype; with `weights_only`, for weights that are
    there and not here, here and not there, or of another shape or dtype, with a list of them.
    """
    if not isinstance(like, Program):
        raise ValueError(f"load: expected a Program made by lyapunov_dsl.compile, got {kind(like)}")
    header, arrays = read_archive(path)
    if weights_only:
        return with_stored(like, _with_weights(path, header, arrays, like))
    then = "; where the code has changed and the weights still fit, load(path, program, weights_only=True) takes them alone"
    compare(path, "program", str(header.get("program", "")), program_text(like), then)
    return with_stored(like, restore(path, arrays, "program", stored(like)))


def program_header(program: Program) -> dict[str, Any]:
    """What the header of a file says of the program in it."""
    return {"program": program_text(program), "weights": list(_weights(program))}


def _weights(program: Program) -> dict[str, Any]:
    return arrays_of(eqx.filter(stored(program), stored(trainable(program))))


def _with_weights(path: Any, header: dict[str, Any], arrays: dict[str, np.ndarray], like: Program) -> PyTree:
    """What is stored of a program, with the weights of a file. Raises `ValueError` where they do not fit."""
    names = header.get("weights")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise damaged(path, "the header does not say which arrays are weights")
    mine, there = _weights(like), {name: arrays.get(f"program/{name}") for name in names}
    wrong = [
        f"{name}: expected {describe(old)}, got {misfit}"
        for name, old in mine.items()
        if (misfit := compared(there.get(name), old))
    ]
    wrong += [f"{name}: expected none, got {describe(there[name])}" for name in there if name not in mine]
    if wrong:
        more = [f"and {len(wrong) - _NAMED} more"] if len(wrong) > _NAMED else []
        raise ValueError(
            "\n  ".join([f"{path}: expected the weights of this program, got others:", *wrong[:_NAMED], *more])
        )

    def leaf(where: Any, old: Any) -> Any:
        name = jax.tree_util.keystr(where)
        return as_like(there[name], old) if name in mine else old

    return jax.tree_util.tree_map_with_path(leaf, stored(like))


def stored(program: Program) -> PyTree:
    """What of a program is stored."""
    return program.system, program.certificate


def with_stored(program: Program, pair: PyTree) -> Program:
    """A program with what is stored of another of the same structure."""
    return eqx.tree_at(lambda p: (p.system, p.certificate), program, pair)


def program_text(program: Program) -> str:
    """The structure of what is stored of a program, and of its declaration."""
    return structure((*stored(program), program.declaration))


def structure(tree: PyTree) -> str:
    """Classes, settings, shapes and dtypes of a tree as text, one a line; the same in every process, whether or not
    functions are wrapped (by jaxtyping's import hook, say)."""
    stored = {id(leaf) for leaf in jax.tree.leaves(tree)}

    def hidden(node: Any) -> Any:
        # An array that no PyTree holds (of a functools.partial, say) is not stored: its content has to be the same.
        if isinstance(node, np.generic):
            return wadler_lindig.TextDoc(f"{describe(node)}(numpy)")
        if isinstance(node, np.ndarray | jax.Array) and id(node) not in stored:
            digest = hashlib.blake2b(to_numpy(node).tobytes(), digest_size=8).hexdigest()
            return wadler_lindig.TextDoc(f"{describe(node)} with content {digest}")
        return None

    text = wadler_lindig.pformat(tree, short_arrays=True, hide_defaults=False, custom=hidden)
    return re.sub(r" at 0x[0-9a-f]+|(?<=<)wrapped |(?<=\])\(jax\)|,$", "", text, flags=re.MULTILINE)


def compare(path: Any, what: str, found: str, expected: str, then: str = "") -> None:
    """Raises `ValueError` where two texts are not the same, naming the first line that differs, and what to do `then`."""
    if found == expected:
        return
    if "\n" not in found + expected:
        shown = f" ({found} instead of {expected})" if len(found) < 32 else ""
        raise ValueError(f"{path}: expected one of this {what}, got one of another {what}{shown}{then}")
    # Without what both begin and end with; in time that grows with the texts alone, since one may be a stranger's.
    ours, theirs = expected.splitlines(), found.splitlines()
    same = lambda one, two: sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, two, strict=False)))
    begin = same(ours, theirs)
    end = same(ours[begin:][::-1], theirs[begin:][::-1])
    here, there = (
        next(iter(lines[begin : len(lines) - end]), "nothing more").strip().removesuffix(",")
        for lines in (ours, theirs)
    )
    raise ValueError(
        f"{path}: expected one of this {what}, got one of another {what}, which differs first in "
        f"{there:.300} instead of {here:.300}{then}"
    )
