"""Programs and checkpoints on disk: NumPy archives without pickle, written atomically.

An archive is what `numpy.savez` writes, so that NumPy alone can read it: one array for every array of a tree, named by
its path, and a header in JSON. Code is not stored. To read one, the same structure has to be there already; its text
(classes, settings, shapes) is compared with the one in the header.
"""

import difflib
import hashlib
import json
import os
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import wadler_lindig
from jaxtyping import PyTree

from ._compile import Program
from ._types import check_file, check_path, describe, kind

_HEADER, _VERSION = "header", 1


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
        write_archive(path, {"program": program_text(program)}, {"program": stored(program)})
    except OSError as error:
        raise ValueError(f"save: expected a place that can be written, got {path} ({error})") from error


def load(path: Any, like: Program) -> Program:
    """Reads a program that [`lyapunov_dsl.save`][] wrote, or the latest state from a checkpoint of
    [`lyapunov_dsl.fit`][].

    Code is not stored, so the declaration is made again as for training (from any initial parameters), and its arrays
    are replaced by those of the file. The objective and the solver are those of `like`.

    **Arguments:**

    - `path`: the file.
    - `like`: a program compiled from the same declaration.

    **Returns:** a program like `like`.

    **Raises:** `ValueError` for a file that is missing, damaged or cut off, that is none of ours, or that holds another
    program: another class or setting, or an array of another shape or dtype.
    """
    if not isinstance(like, Program):
        raise ValueError(f"load: expected a Program made by lyapunov_dsl.compile, got {kind(like)}")
    header, arrays = read_archive(path)
    compare(path, "program", str(header.get("program", "")), program_text(like))
    return with_stored(like, restore(path, arrays, "program", stored(like)))


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
    lines = [line for line in difflib.ndiff(expected.splitlines(), found.splitlines()) if line[:2] in ("- ", "+ ")]
    sides = {sign: next((line[2:].strip() for line in lines if line[0] == sign), "nothing more") for sign in "-+"}
    raise ValueError(
        f"{path}: expected one of this {what}, got one of another {what}, which differs first in "
        f"{sides['+']} instead of {sides['-']}{then}"
    )


def write_archive(path: Any, header: dict[str, Any], trees: dict[str, PyTree]) -> None:
    """Writes the arrays of named trees and a header, atomically. Raises `OSError` where that is not possible."""
    arrays = {f"{name}/{where}": leaf for name, tree in trees.items() for where, leaf in _arrays(tree).items()}
    kinds = {name: [str(leaf.dtype), list(leaf.shape)] for name, leaf in arrays.items()}
    text = json.dumps({"format": "lyapunov_dsl", "version": _VERSION, "arrays": kinds, **header})
    content = {_HEADER: np.frombuffer(text.encode(), np.uint8), **{n: to_numpy(leaf) for n, leaf in arrays.items()}}
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open(partial, "wb") as file:
            np.savez(file, allow_pickle=False, **content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def read_archive(path: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The header and the arrays of an archive. Raises `ValueError` for one that is missing, damaged or none of ours."""
    check_path("path", path)
    path = Path(path)
    if path.is_dir():
        raise ValueError(
            f"{path}: expected a file written by lyapunov_dsl, got a folder (fit writes checkpoint.npz in its own)"
        )
    if not path.is_file():
        raise ValueError(f"{path}: expected a file written by lyapunov_dsl, got none there")
    try:
        with open(path, "rb") as file:
            archive = np.load(file, allow_pickle=False)
            arrays = dict(archive) if isinstance(archive, Mapping) else {}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, KeyError, NotImplementedError) as error:
        # NumPy takes anything else for a pickle, and says how to open one.
        why = error if zipfile.is_zipfile(path) else "it is no NumPy archive"
        raise ValueError(
            f"{path}: expected a file written by lyapunov_dsl, got one that is damaged or cut off ({why})"
        ) from error
    try:
        header = json.loads(arrays.pop(_HEADER).tobytes())
    except (KeyError, ValueError):
        header = None
    if not isinstance(header, dict) or header.get("format") != "lyapunov_dsl":
        raise ValueError(f"{path}: expected a file written by lyapunov_dsl, got another one (it has no header)")
    if header.get("version") != _VERSION:
        raise ValueError(f"{path}: expected version {_VERSION} of the format, got {header.get('version')}")
    # Types that NumPy does not know, such as bfloat16, come back as bytes.
    known = {n: array.view(np.dtype(header["arrays"][n][0])) for n, array in arrays.items() if array.dtype.kind == "V"}
    return header, {**arrays, **known}


def restore(path: Any, arrays: dict[str, np.ndarray], name: str, like: PyTree) -> PyTree:
    """The tree of that name, with the arrays of an archive in place of those of `like`. Raises `ValueError` where one
    is missing or of another shape or dtype."""
    found = {where: arrays.get(f"{name}/{where}") for where in _arrays(like)}
    for where, old in _arrays(like).items():
        array = found[where]
        if array is None or array.shape != to_numpy(old).shape or array.dtype != to_numpy(old).dtype:
            got = "none" if array is None else describe(array)
            raise ValueError(f"{path}: expected {describe(old)} at {where}, got {got}")

    def leaf(where: Any, old: Any) -> Any:
        if not eqx.is_array(old):
            return old
        array = found[jax.tree_util.keystr(where)]
        if isinstance(old, np.ndarray | np.generic):
            return array if isinstance(old, np.ndarray) else array[()]
        if jnp.issubdtype(old.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(old))
        return jnp.asarray(array)

    return jax.tree_util.tree_map_with_path(leaf, like)


def _arrays(tree: PyTree) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(where): leaf for where, leaf in leaves if eqx.is_array(leaf)}


def to_numpy(leaf: Any) -> np.ndarray:
    """An array for NumPy; a PRNG key as its data."""
    # Typed keys have no NumPy counterpart.
    typed = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if typed else leaf)
