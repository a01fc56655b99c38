"""Proofs in files: a NumPy archive without pickle, with a header in JSON and a hash of all that it says.

The file is read by hand: `numpy.load` unpacks whatever an archive says. Here sizes are taken from the archive's directory and
from the first line of each array, and compared with the size of the file, before anything is unpacked.
"""

import hashlib
import io
import json
import math
import os
import re
import stat
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ._limits import FILE, HEADER, MEMBERS, UNPACKED_FREE, UNPACKED_TIMES, Refused

# The first line of an array as NumPy writes it, of the types that a proof has.
ARRAY = re.compile(
    rb"\{'descr': '(<f8|<f4|<i8|<i4|\|i1|\|u1)', 'fortran_order': False, 'shape': \(((?:\d{1,18}, ?)*(?:\d{1,18})?)\), \} *\n"
)
NAME = re.compile(r"[A-Za-z0-9_.]{1,100}\.npy")


def read(path: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What is in a file, or in the bytes of one; refused where it is not what was written."""
    name = "the file" if isinstance(path, bytes) else f"{path}"
    try:
        data = path if isinstance(path, bytes) else _bytes(Path(path))
        arrays = _unpacked(data)
        header = _header(arrays.pop("header", None))
        sealed = header.pop("sha256", None)
        found = seal(header, arrays)
    except Refused as error:
        raise Refused(f"{name}: {error}") from error
    except Exception as error:
        # zipfile raises errors of a dozen types for archives that are broken, RecursionError and MemoryError among them.
        raise Refused(
            f"{name}: expected a proof, got something that cannot be read ({type(error).__name__})"
        ) from error
    if sealed != found:
        raise Refused(f"{name}: it was changed after it was written (its SHA-256 is another)")
    return header, arrays


def _bytes(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_size > FILE:
                raise Refused(f"expected a file of at most {FILE} bytes, got something else")
            return file.read(status.st_size)
    except OSError as error:
        raise Refused(f"expected a file that can be read ({error.strerror})") from error


def _unpacked(data: bytes) -> dict[str, np.ndarray]:
    """All arrays of an archive. What they say of their sizes is looked at first, and no more than that is unpacked."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        if len(members) > MEMBERS or len({m.filename for m in members}) != len(members):
            raise Refused(f"expected at most {MEMBERS} arrays with names of their own, got others")
        room = UNPACKED_TIMES * len(data) + UNPACKED_FREE
        if sum(m.file_size for m in members) > room:
            raise Refused(f"expected arrays of at most {UNPACKED_TIMES} times the size of the file, got larger ones")
        arrays = {}
        for member in members:
            if not NAME.fullmatch(member.filename) or member.compress_type not in (
                zipfile.ZIP_STORED,
                zipfile.ZIP_DEFLATED,
            ):
                raise Refused(f"expected arrays as NumPy writes them, got {member.filename[:40]!a}")
            with archive.open(member) as file:
                content = file.read(member.file_size + 1)
            arrays[member.filename.removesuffix(".npy")] = _array(member.filename, content)
    return arrays


def _array(name: str, content: bytes) -> np.ndarray:
    """An array as NumPy writes it, without a copy."""
    start = {b"\x01\x00": 10, b"\x02\x00": 12}.get(content[6:8], 0)
    length = int.from_bytes(content[8:start], "little")
    line = ARRAY.fullmatch(content[start : start + length]) if content[:6] == b"\x93NUMPY" and start else None
    if line is None:
        raise Refused(f"{name}: expected an array of float64, float32, int64, int32, int8 or bytes, got something else")
    kind, shape = np.dtype(line[1].decode()), tuple(int(v) for v in line[2].decode().split(",") if v.strip())
    body = len(content) - start - length
    if math.prod(shape) * kind.itemsize != body:
        raise Refused(f"{name}: expected {body} bytes, got an array of shape {shape}")
    return np.frombuffer(content, kind, offset=start + length).reshape(shape)


def _header(array: np.ndarray | None) -> dict[str, Any]:
    if array is None or array.dtype != np.uint8 or array.ndim != 1 or array.size > HEADER:
        raise Refused(f"expected a header of at most {HEADER} bytes, got none")
    header = json.loads(array.tobytes().decode(), parse_constant=_no_number, object_pairs_hook=_once)
    if not isinstance(header, dict):
        raise Refused("expected a header that is a record, got something else")
    return header


def _no_number(text: str) -> Any:
    raise Refused(f"expected finite numbers, got {text}")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A record; where a name stands twice, two readers could read two things."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise Refused("expected names that stand once in a record, got one that stands twice")
    return found


def seal(header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of all that a proof says."""
    found = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(arrays):
        _absorb(found, name, arrays[name])
    return found.hexdigest()


def _absorb(digest: Any, name: str, array: np.ndarray) -> None:
    array = np.ascontiguousarray(array)
    digest.update(json.dumps([name, array.dtype.str, list(array.shape)]).encode())
    digest.update(array.tobytes())


def fingerprint(program: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of what a program computes as it is written: its operations in their order, and their numbers; not how arrays are
    called."""
    digest = hashlib.sha256()
    for operation in program["operations"]:
        digest.update(json.dumps([operation[key] for key in ("name", "args", "size")]).encode())
        for where in (operation, *operation.get("matrices", ())):
            for key in ("value", "dense", "places", "values"):
                if key in where:
                    _absorb(digest, key, arrays[where[key]])
    digest.update(json.dumps(program["output"]).encode())
    return digest.hexdigest()
