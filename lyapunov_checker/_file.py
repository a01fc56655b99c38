"""Proofs in files: a NumPy archive without pickle, with a header in JSON and a hash of all that it says."""

import hashlib
import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ._program import Refused


def read(path: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What is in a file; refused where it is not what was written."""
    try:
        with np.load(Path(path), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        header = json.loads(bytes(arrays.pop("header")).decode())
        sealed = header.pop("sha256")
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise Refused(f"{path}: expected a proof, got something that cannot be read ({error})") from error
    if sealed != seal(header, arrays):
        raise Refused(f"{path}: it was changed after it was written (its SHA-256 is another)")
    return header, arrays


def seal(header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of all that a proof says."""
    found = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        found.update(json.dumps([name, array.dtype.str, list(array.shape)]).encode())
        found.update(array.tobytes())
    return found.hexdigest()
