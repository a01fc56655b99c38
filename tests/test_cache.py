"""Compiled programs of proofs are kept between processes, and nothing else is."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from lyapunov_dsl import _cache

# A proof that is long enough for its bounds to be compiled, and how many programs XLA was asked for.
PROOF = """
import json
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np

import lyapunov_dsl as ld
from lyapunov_dsl._interpret import _staged

missed = []
jax.monitoring.register_event_listener(lambda name, **_: missed.append(name) if name.endswith("cache_misses") else None)
_staged.SHARE = float(sys.argv[1])
form = np.asarray([[1.5, 0.5], [0.5, 1.5]], np.float32)
field = lambda t, s, c: jnp.stack([s[1], -jnp.sin(s[0]) - 0.5 * s[1]])
system = ld.System(vector_field=field, domain=ld.Box(-1, 1))
certificate = ld.Certificate.exponential(lambda s: s @ form @ s, kappa=0.05)
region = ld.RegionOfAttraction(level=0.3, equilibrium=np.zeros(2))
found = ld.prove(ld.Condition(system, certificate), region, prover=ld.Prover(check=False))
for thread in threading.enumerate():
    if thread.name == "compile bounds":
        thread.join()
during = len(missed)
jax.jit(lambda v: jnp.sin(v) * 2)(1.0)
print(json.dumps([found.status.name, found.boxes, during, len(missed) - during]))
"""


def proved(folder: Path, share: float = 0.5, **more: str):
    environment = os.environ | {"XDG_CACHE_HOME": str(folder), "JAX_ENABLE_COMPILATION_CACHE": "true"} | more
    run = subprocess.run(
        [sys.executable, "-c", PROOF, str(share)],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return json.loads(run.stdout)


def files(folder: Path) -> set[str]:
    return {p.name for p in folder.rglob("*-cache")}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems keep caches elsewhere")
def test_a_second_process_compiles_nothing(tmp_path):
    status, boxes, compiled, after = proved(tmp_path, share=0)
    assert compiled > 10
    assert after == 0  # The user's own programs are none of ours.
    kept = files(tmp_path)
    assert len(kept) == compiled
    # Another order of sets, other addresses.
    assert proved(tmp_path, share=0, PYTHONHASHSEED="1") == [status, boxes, 0, 0]
    assert files(tmp_path) == kept
    (inner,) = (tmp_path / "lyapunov_dsl").iterdir()
    assert inner.stat().st_mode & 0o077 == 0


@pytest.mark.skipif(sys.platform != "linux", reason="other systems keep caches elsewhere")
@pytest.mark.parametrize("why", ["off", "read-only"])
def test_none_where_it_is_off_or_cannot_be_written(tmp_path, why):
    if why == "off":
        _, _, compiled, _ = proved(tmp_path, JAX_ENABLE_COMPILATION_CACHE="false")
    else:
        (tmp_path / "lyapunov_dsl").write_text("no folder")
        _, _, compiled, _ = proved(tmp_path)
    assert compiled == 0
    assert not files(tmp_path)


def test_old_programs_go_first(tmp_path, monkeypatch):
    monkeypatch.setattr(_cache, "FILES", 8)
    for i in range(10):
        (tmp_path / f"{i}-cache").write_text("program")
        os.utime(tmp_path / f"{i}-cache", (i, i))
    _cache._trim(tmp_path)
    assert files(tmp_path) == {f"{i}-cache" for i in range(4, 10)}
    monkeypatch.setattr(_cache, "BYTES", 20)
    _cache._trim(tmp_path)
    assert files(tmp_path) == {"8-cache", "9-cache"}


@pytest.mark.usefixtures("enabled")
@pytest.mark.parametrize("why", ["no home", "others write"])
def test_a_folder_that_will_not_do_is_not_used(tmp_path, monkeypatch, why):
    def homeless():
        raise RuntimeError("could not determine the home directory")

    if why == "no home":
        monkeypatch.setattr(_cache, "folder", homeless)
    else:
        (tmp_path / "own").mkdir()
        (tmp_path / "own").chmod(0o777)
    before = settings()
    with _cache.cached():
        assert settings() == before
    monkeypatch.setattr(_cache, "folder", lambda: tmp_path / "later")
    with _cache.cached():
        assert settings() != before
    assert settings() == before


@pytest.mark.usefixtures("enabled")
def test_what_the_user_sets_meanwhile_stays(tmp_path):
    try:
        with _cache.cached():
            jax.config.update(_cache.DIR, str(tmp_path / "theirs"))
        assert settings()[_cache.DIR] == str(tmp_path / "theirs")
    finally:
        jax.config.update(_cache.DIR, None)


@pytest.fixture
def enabled(monkeypatch, tmp_path):
    """Tests run without, lest they depend on what others have kept."""
    monkeypatch.setattr(_cache, "folder", lambda: tmp_path / "own")
    jax.config.update("jax_enable_compilation_cache", True)
    yield
    jax.config.update("jax_enable_compilation_cache", False)


def settings():
    return {name: getattr(jax.config, name) for name in (_cache.DIR, *_cache.SETTINGS)}


@pytest.mark.usefixtures("enabled")
def test_settings_are_those_of_the_user_afterwards(tmp_path):
    before, within, go = settings(), [], threading.Event()

    def other():
        with _cache.cached():
            within.append(settings())
            go.wait(10)
            within.append(settings())

    def failing():
        thread.start()
        while not within:
            pass
        raise KeyError

    thread = threading.Thread(target=other)
    with pytest.raises(KeyError):
        _cache.cached()(failing)()
    # One who is still within keeps it.
    assert settings() != before
    go.set()
    thread.join()
    assert within[0] == within[1] == {_cache.DIR: str(tmp_path / "own"), **_cache.SETTINGS}
    assert settings() == before


@pytest.mark.usefixtures("enabled")
def test_a_cache_of_the_user_is_used_as_it_is(tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "theirs"))
    try:
        before = settings()
        with _cache.cached():
            assert settings() == before
            jax.jit(lambda v: jnp.cos(v) * 3)(1.0)
    finally:
        jax.config.update("jax_compilation_cache_dir", None)
    assert not (tmp_path / "own").exists()
