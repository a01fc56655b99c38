"""Compiled programs of proofs, kept between processes."""

import contextlib
import functools
import hashlib
import os
import platform
import threading
from collections.abc import Iterator
from pathlib import Path

import jax
import platformdirs
from jax.experimental.compilation_cache import compilation_cache

# What was written first goes first, once a process begins with more files or bytes than that.
FILES, BYTES = 5000, 1 << 28
# A first proof compiles dozens of small programs, which take as long as a large one.
SETTINGS = {"jax_persistent_cache_min_compile_time_secs": 0.0}
DIR = "jax_compilation_cache_dir"

_lock = threading.Lock()
_users = 0
# By name: what was set before, and what is set here.
_before: dict[str, tuple[object, object]] = {}


@functools.cache
def folder() -> Path:
    """Where programs are kept, of processors like this one: they consist of its instructions, and home folders may be shared."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        known = next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        known = platform.processor()
    kind = hashlib.blake2b(f"{platform.machine()} {known}".encode(), digest_size=6).hexdigest()
    return platformdirs.user_cache_path("lyapunov_dsl") / f"programs-{kind}"


@contextlib.contextmanager
def cached() -> Iterator[None]:
    """Keeps what is compiled within, in the user's cache folder, and takes it from there; also as a decorator.

    It is JAX's persistent cache, set up for as long as this lasts. Where the user has set up one, that is used as it is, and
    where `jax_enable_compilation_cache` is off, or the folder cannot be written, there is none.
    """
    global _users
    with _lock:
        _users += 1
    try:
        with _lock:
            if not _before:
                _begin()
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                _end()


def _begin() -> None:
    if getattr(jax.config, DIR) or not jax.config.jax_enable_compilation_cache:  # pyright: ignore[reportAttributeAccessIssue]
        return
    try:
        path = folder()
    except RuntimeError:
        # There is no home to have it in.
        return
    if not _is_usable(path):
        return
    ours = {DIR: str(path), **SETTINGS}
    _before.update({name: (getattr(jax.config, name), value) for name, value in ours.items()})
    for name, value in ours.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@functools.cache
def _is_usable(path: Path) -> bool:
    """Whether there is such a folder, made where there was none, that nobody else may read or write, as what is kept there is run.
    Looked at once, when old programs are removed as well."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.stat()
        private = not hasattr(os, "getuid") or (found.st_uid == os.getuid() and not found.st_mode & 0o077)
        if not private or not os.access(path, os.W_OK):
            return False
        _trim(path)
    except OSError:
        return False
    return True


def _trim(path: Path) -> None:
    """Removes the oldest files where there are too many."""
    files = sorted((f.stat().st_mtime, f.stat().st_size, f.path) for f in os.scandir(path))
    count, size = len(files), sum(file[1] for file in files)
    if count <= FILES and size <= BYTES:
        return
    for _, own, name in files:
        # To three quarters, so that this is seldom.
        if count <= 0.75 * FILES and size <= 0.75 * BYTES:
            return
        Path(name).unlink(missing_ok=True)
        count, size = count - 1, size - own


def _end() -> None:
    if not _before:
        return
    for name, (before, ours) in _before.items():
        # What the user has set meanwhile stays.
        if getattr(jax.config, name) == ours:
            jax.config.update(name, before)
    _before.clear()
    compilation_cache.reset_cache()
