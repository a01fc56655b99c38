"""The folder of a training run: metrics as JSON lines, and one checkpoint that is replaced atomically.

Where several processes train together, only the first of them touches files; it tells the others what it has read, and
whether a checkpoint was written.
"""

import hashlib
import json
import math
import os
import time
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from ._archive import damaged, read_archive, restore, to_numpy, write_archive
from ._lock import FolderLock
from ._mesh import Team
from ._run import Run
from ._save import compare, structure


class Folder:
    """Where a run keeps its state: `checkpoint.npz` and `metrics.jsonl`.

    **Arguments:**

    - `path`: the folder; made where it is missing.
    - `identity`: what has to be the same for a run to go on: texts by name.
    - `header`: what the header of the checkpoint says of the program.
    - `interval`: seconds between checkpoints.
    - `team`: the processes that train together.

    Until `release`, no other run can have the folder.

    **Raises:** `ValueError` where the folder cannot be written, or another run has it.
    """

    def __init__(self, path: Any, identity: dict[str, str], header: dict[str, Any], interval: float, team: Team):
        self.path = Path(path)
        self.checkpoint, self.metrics = self.path / "checkpoint.npz", self.path / "metrics.jsonl"
        self.identity, self.header, self.interval, self.team = identity, header, interval, team
        self.lock: FolderLock | None = None
        self.lines, self.saved, self.written = 0, -1, time.monotonic()
        team.told(self._make)

    def _make(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock = FolderLock(self.path)
            with open(self.metrics, "a"):
                pass
        except OSError as error:
            self.release()
            raise ValueError(
                f"folder: expected one that can be written, got {self.path} ({error.strerror or error})"
            ) from error

    def release(self) -> None:
        """Lets other runs have the folder."""
        if self.lock is not None:
            self.lock.release()

    def resume(self, trees: dict[str, PyTree]) -> tuple[dict[str, Any], dict[str, PyTree]] | None:
        """The record and the trees of the last checkpoint, `None` without one. Metrics that were written after it are
        dropped: training will write them again.

        **Raises:** `ValueError` for a checkpoint that is damaged or of another run.
        """
        found: dict[str, PyTree] = {}
        record = self.team.told(lambda: self._read(trees, found))
        if record is None:
            return None
        self.saved = record["step"]
        return record, self.team.first_arrays(found or trees)

    def _read(self, trees: dict[str, PyTree], found: dict[str, PyTree]) -> dict[str, Any] | None:
        """The record of the last checkpoint; its trees go into `found`."""
        if not self.checkpoint.exists():
            if self.metrics.stat().st_size:
                raise ValueError(
                    f"folder: expected an empty one or one with a checkpoint, got {self.path} with metrics alone"
                )
            return None
        header, arrays = read_archive(self.checkpoint)
        if "identity" not in header:
            raise ValueError(f"{self.checkpoint}: expected a checkpoint of fit, got a program that was saved")
        identity, lines = header["identity"], header.get("lines")
        if not isinstance(identity, dict) or type(lines) is not int or lines < 0 or not Run.fits(header.get("record")):
            raise damaged(self.checkpoint, "its header is not as fit writes it")
        for what, expected in self.identity.items():
            then = (
                f"; to go on with that run, give what it was given, and for another run another folder than {self.path}"
            )
            compare(self.checkpoint, what, str(identity.get(what, "")), expected, then)
        found |= {name: restore(self.checkpoint, arrays, name, tree) for name, tree in trees.items()}
        kept = self.metrics.read_bytes().splitlines(keepends=True)[:lines]
        partial = self.metrics.with_name(".metrics.partial")
        partial.write_bytes(b"".join(kept))
        os.replace(partial, self.metrics)
        self.lines = len(kept)
        return header["record"]

    def write(self, record: dict[str, Any], trees: dict[str, PyTree]) -> None:
        """Replaces the checkpoint. Where that fails, the old one stays, training goes on, and a warning says so."""
        if self.team.told(lambda: self._write(record, trees)):
            self.saved = record["step"]
        self.written = time.monotonic()

    def _write(self, record: dict[str, Any], trees: dict[str, PyTree]) -> bool:
        """Whether the checkpoint was written."""
        header = {"record": record, "lines": self.lines, "identity": self.identity, **self.header}
        try:
            # What the checkpoint counts on has to be there before it.
            with open(self.metrics, "a") as file:
                os.fsync(file.fileno())
            write_archive(self.checkpoint, header, self.team.local(trees))
        except OSError as error:
            if self.saved < 0:
                raise ValueError(
                    f"folder: expected one that can be written, got {self.path} ({error.strerror or error})"
                ) from error
            warnings.warn(
                f"{self.checkpoint}: the checkpoint of step {record['step']} could not be written ({error}); training "
                f"goes on, and the one of step {self.saved} stays",
                stacklevel=6,
            )
            return False
        return True

    def due(self) -> bool:
        """Whether the last checkpoint is old enough for another."""
        return time.monotonic() - self.written >= self.interval

    def log(self, records: list[dict[str, Any]]) -> None:
        """Appends lines of metrics; a figure that is not finite becomes null. Where that fails, a warning says so."""
        self.team.told(lambda: self._log(records))

    def _log(self, records: list[dict[str, Any]]) -> None:
        finite = lambda value: None if isinstance(value, float) and not math.isfinite(value) else value
        lines = [json.dumps({name: finite(value) for name, value in record.items()}) + "\n" for record in records]
        try:
            with open(self.metrics, "a") as file:
                file.write("".join(lines))
            self.lines += len(lines)
        except OSError as error:
            warnings.warn(f"{self.metrics}: could not be written ({error}); training goes on", stacklevel=6)


def fingerprint(tree: PyTree) -> str:
    """A hash of the values of all arrays of a tree, and of its structure."""
    digest = hashlib.blake2b(structure(tree).encode(), digest_size=16)
    for leaf in jax.tree.leaves(tree):
        if hasattr(leaf, "dtype"):
            digest.update(np.ascontiguousarray(to_numpy(leaf)).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
