"""Compiled programs of proofs, kept between processes."""

import contextlib
import hashlib
import os
import platform
import threading
from collections.abc import Iterator
from pathlib import Path

import jax
import platformdirs
from jax.experimental.compilation_cache import compilation_cache

# In bytes. What was not used for longest goes first.
MOST = 1 << 29
SETTINGS = {
    "jax_compilation_cache_max_size": MOST,
    # A first proof compiles dozens of small programs, which take as long as a large one.
    "jax_persistent_cache_min_compile_time_secs": 0.0,
}
DIR = "jax_compilation_cache_dir"

_lock = threading.Lock()
_users = 0
_before: dict[str, object] = {}


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
        if _users == 1:
            _begin()
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                _end()


def _begin() -> None:
    if getattr(jax.config, DIR) or not jax.config.jax_enable_compilation_cache:  # pyright: ignore[reportAttributeAccessIssue]
        return
    path = folder()
    try:
        # What is kept is run: nobody else may write it.
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return
    if not os.access(path, os.W_OK):
        return
    for name, value in {DIR: str(path), **SETTINGS}.items():
        _before[name] = getattr(jax.config, name)
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def _end() -> None:
    if _before:
        for name, value in _before.items():
            jax.config.update(name, value)
        _before.clear()
        compilation_cache.reset_cache()
