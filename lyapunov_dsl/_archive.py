"""Named arrays and a header on disk: what `numpy.savez` writes, without pickle, written atomically.

One array for every array of a tree, named by its path, and a header in JSON, so that NumPy alone can read it. Files may
come from strangers: nothing of one is believed before it is looked at, and no more is allocated than the file is large.
"""

import json
import math
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ._types import check_path, describe

_HEADER, _VERSION = "header", 2
# The header of a `.npy` file of version 1.0, as NumPy writes it for numbers: no objects, no structures.
_NPY = re.compile(
    rb"\x93NUMPY\x01\x00(?P<length>[\s\S]{2})"
    rb"\{'descr': '(?P<dtype>[<>|=]?[biufcV][1-9][0-9]?)', 'fortran_order': (?P<fortran>True|False), "
    rb"'shape': \((?P<shape>(?:[0-9]{1,18}(?:, ?)?){0,64})\), \} *\n"
)


def write_archive(path: Any, header: dict[str, Any], trees: dict[str, PyTree]) -> None:
    """Writes the arrays of named trees and a header, atomically. Raises `OSError` where that is not possible."""
    arrays = {f"{name}/{where}": leaf for name, tree in trees.items() for where, leaf in arrays_of(tree).items()}
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
        arrays = _read_arrays(path)
    # Whatever the bytes are: a ZIP file can be wrong in ways that raise a dozen kinds of errors.
    except Exception as error:
        why = error if zipfile.is_zipfile(path) else "it is no NumPy archive"
        raise damaged(path, why) from error
    try:
        header = json.loads(arrays.pop(_HEADER).tobytes())
    except (KeyError, ValueError, RecursionError):
        header = None
    if not isinstance(header, dict) or header.get("format") != "lyapunov_dsl":
        raise ValueError(f"{path}: expected a file written by lyapunov_dsl, got another one (it has no header)")
    if header.get("version") != _VERSION:
        raise ValueError(f"{path}: expected version {_VERSION} of the format, got {header.get('version')!s:.40}")
    try:
        # Types that NumPy does not know, such as bfloat16, come back as bytes.
        known = {n: _typed(a, header["arrays"][n][0]) for n, a in arrays.items() if a.dtype.kind == "V"}
    except Exception as error:
        raise damaged(path, "the header does not say of which type an array is") from error
    return header, {**arrays, **known}


def damaged(path: Any, why: Any) -> ValueError:
    """The error for a file that is not as it was written."""
    return ValueError(
        f"{path}: expected a file written by lyapunov_dsl, got one that is damaged or cut off ({why!s:.200})"
    )


def restore(path: Any, arrays: dict[str, np.ndarray], name: str, like: PyTree) -> PyTree:
    """The tree of that name, with the arrays of an archive in place of those of `like`. Raises `ValueError` where one
    is missing or of another shape or dtype."""
    found = {where: arrays.get(f"{name}/{where}") for where in arrays_of(like)}
    for where, old in arrays_of(like).items():
        if misfit := compared(found[where], old):
            raise ValueError(f"{path}: expected {describe(old)} at {where}, got {misfit}")

    def leaf(where: Any, old: Any) -> Any:
        return as_like(found[jax.tree_util.keystr(where)], old) if eqx.is_array(old) else old

    return jax.tree_util.tree_map_with_path(leaf, like)


def compared(array: np.ndarray | None, old: Any) -> str:
    """What is there in place of an array, empty where it fits."""
    if array is None:
        return "none"
    return "" if (array.shape, array.dtype) == (to_numpy(old).shape, to_numpy(old).dtype) else describe(array)


def as_like(array: Any, old: Any) -> Any:
    """An array of NumPy or JAX, or a PRNG key, whichever there was."""
    if isinstance(old, np.ndarray | np.generic):
        return array if isinstance(old, np.ndarray) else array[()]
    if jnp.issubdtype(old.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(old))
    return jnp.asarray(array)


def arrays_of(tree: PyTree) -> dict[str, Any]:
    """The arrays of a tree by their paths."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(where): leaf for where, leaf in leaves if eqx.is_array(leaf)}


def to_numpy(leaf: Any) -> np.ndarray:
    """An array for NumPy; a PRNG key as its data."""
    # Typed keys have no NumPy counterpart.
    typed = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if typed else leaf)


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        # `savez` compresses nothing, so that no entry is larger than what is there.
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise ValueError("its arrays are larger than the file")
        for entry in entries:
            if entry.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{entry.filename!r:.40} is compressed")
            if not entry.filename.endswith(".npy") or entry.filename in arrays:
                raise ValueError(f"{entry.filename!r:.40} is no array, or there twice")
            arrays[entry.filename] = _array(archive.read(entry))
    return {name.removesuffix(".npy"): array for name, array in arrays.items()}


def _array(content: bytes) -> np.ndarray:
    match = _NPY.match(content)
    if match is None or int.from_bytes(match["length"], "little") != match.end() - 10:
        raise ValueError("an array has a header that NumPy would not have written")
    dtype = np.dtype(match["dtype"].decode())
    shape = tuple(int(size) for size in match["shape"].decode().replace(" ", "").split(",") if size)
    if math.prod(shape) * dtype.itemsize != len(content) - match.end():
        raise ValueError("an array is not as large as its header says")
    order = "F" if match["fortran"] == b"True" else "C"
    return np.ndarray(shape, dtype, content, match.end(), order=order).copy()


def _typed(array: np.ndarray, name: Any) -> np.ndarray:
    dtype = np.dtype(str(name))
    if dtype.hasobject or dtype.itemsize != array.dtype.itemsize or not jnp.issubdtype(dtype, np.number):
        raise ValueError(name)
    return array.view(dtype)
