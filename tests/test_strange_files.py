"""Files from strangers: whatever is in one, it is read or refused with a sentence, in memory of about its size; and folders
that another run has."""

import io
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_fit import one_weight

import lyapunov_dsl as ld
from lyapunov_dsl._lock import FolderLock

pytestmark = pytest.mark.usefixtures("quick")

PROGRAM = one_weight()
FIT = {"optimizer": optax.adam(0.1), "epochs": 1, "batch_size": 2, "progress": False}


def fit(folder: Path, **options: Any) -> ld.FitResult:
    return ld.fit(
        PROGRAM, (np.ones((4, 1), np.float32), None), key=jax.random.key(0), folder=folder, **{**FIT, **options}
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory: Any) -> dict[str, bytes]:
    """A saved program and the checkpoint of a run."""
    folder = tmp_path_factory.mktemp("written")
    ld.save(folder / "p", PROGRAM)
    fit(folder / "run")
    return {"program": (folder / "p").read_bytes(), "checkpoint": (folder / "run" / "checkpoint.npz").read_bytes()}


def refused(path: Path, content: bytes) -> str:
    """The sentence that a file is refused with, empty where it is read. Anything but a `ValueError` fails."""
    path.write_bytes(content)
    sentence = ""
    for weights_only in (False, True):
        try:
            ld.load(path, PROGRAM, weights_only=weights_only)
        except ValueError as error:
            sentence = str(error)
            assert str(path) in sentence
            assert len(sentence) < 3000
    return sentence


@hypothesis.settings(max_examples=150)
@hypothesis.given(st.data())
def test_changed_bytes(written: Any, tmp_path: Path, data: Any) -> None:
    content = bytearray(written[data.draw(st.sampled_from(sorted(written)))])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        match data.draw(st.sampled_from(["flip", "cut", "insert", "copy"])):
            case "flip":
                content[at] ^= data.draw(st.integers(1, 255))
            case "cut":
                del content[at : at + data.draw(st.integers(1, 64))]
            case "insert":
                content[at:at] = data.draw(st.binary(min_size=1, max_size=16))
            case "copy":
                size = data.draw(st.integers(1, 64))
                content[at : at + size] = content[: len(content[at : at + size])]
        hypothesis.assume(content)
    refused(tmp_path / "p", bytes(content))


@hypothesis.settings(max_examples=40)
@hypothesis.given(st.binary(max_size=300))
def test_any_bytes(tmp_path: Path, content: bytes) -> None:
    assert refused(tmp_path / "p", content)
    assert refused(tmp_path / "p", b"PK\x03\x04" + content)


def entries(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(some: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in some.items():
            archive.writestr(name, content)
    return file.getvalue()


def npy(header: str, body: bytes = b"") -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + body


def array(content: bytes) -> bytes:
    file = io.BytesIO()
    np.save(file, np.frombuffer(content, np.uint8))
    return file.getvalue()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda some: st.lists(some, max_size=4) | st.dictionaries(st.text(max_size=8), some, max_size=4),
    max_leaves=8,
)


@hypothesis.settings(max_examples=30)
@hypothesis.given(st.data())
def test_changed_headers(written: Any, tmp_path: Path, data: Any) -> None:
    """The structure of a checkpoint's header, where `fit` goes on and where `load` reads it."""
    inside = entries(written["checkpoint"])
    header = json.loads(np.load(io.BytesIO(inside["header.npy"])).tobytes())
    places = [header, header["record"], header["identity"], header["arrays"]]
    part = data.draw(st.sampled_from(places))
    part[data.draw(st.sampled_from(sorted(part)))] = data.draw(JSON)
    inside["header.npy"] = array(json.dumps(header).encode())
    refused(tmp_path / "p", zipped(inside))
    folder = tmp_path / "run"
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_bytes(b"\xff\n" * 3)
    (folder / "checkpoint.npz").write_bytes(zipped(inside))
    try:
        fit(folder)
    except ValueError as error:
        assert "checkpoint.npz" in str(error) or "run" in str(error)  # noqa: PT017


HUGE = "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }"
STRANGE = {
    "a huge array": npy(HUGE),
    "a negative size": npy(HUGE.replace("1000000000000", "-1")),
    "objects": npy(HUGE.replace("<f4", "|O").replace("1000000000000", "1"), pickle.dumps(print)),
    "a structure": npy(HUGE.replace("'<f4'", "[('a', '<f4')]").replace("1000000000000", "0")),
    "nothing a number of times": npy(HUGE.replace("<f4", "|V0")),
    "deep nesting": npy("(" * 9000 + ")" * 9000),
    "code": npy("__import__('os').getpid()"),
    "a pickle": pickle.dumps([1, 2]),
}


@pytest.mark.parametrize("name", STRANGE)
def test_arrays_that_numpy_would_not_have_written(name: str, written: Any, tmp_path: Path) -> None:
    inside = entries(written["program"])
    place = next(entry for entry in inside if entry != "header.npy")
    sentence = refused(tmp_path / "p", zipped({**inside, place: STRANGE[name]}))
    assert "damaged or cut off" in sentence
    assert refused(tmp_path / "p", STRANGE[name])


def test_nothing_larger_than_the_file_is_made(written: Any, tmp_path: Path) -> None:
    inside = entries(written["program"])
    zeros = npy("{'descr': '|u1', 'fortran_order': False, 'shape': (100000000,), }", bytes(100_000_000))
    bomb = zipped({**inside, "more.npy": zeros}, zipfile.ZIP_DEFLATED)
    assert len(bomb) < 300_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "larger than the file" in refused(tmp_path / "p", bomb)
    # All that deep a header: `json` gives up by recursion.
    deep = array(b"[" * 200_000)
    assert "it has no header" in refused(tmp_path / "p", zipped({**inside, "header.npy": deep}))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


def test_a_long_text_of_another_program_takes_no_time(written: Any, tmp_path: Path) -> None:
    inside = entries(written["program"])
    header = json.loads(np.load(io.BytesIO(inside["header.npy"])).tobytes())
    header["program"] = "\n".join(f"line {i % 7}{'x' * (i % 50)}" for i in range(100_000))
    path = tmp_path / "p"
    path.write_bytes(zipped({**inside, "header.npy": array(json.dumps(header).encode())}))
    with pytest.raises(ValueError, match="differs first in line 0 instead of"):
        ld.load(path, PROGRAM)


HOLDS = """
    import sys, time
    from pathlib import Path
    from lyapunov_dsl._lock import FolderLock
    lock = FolderLock(Path(sys.argv[1]))
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_folder_is_had_by_one_run_at_a_time(tmp_path: Path) -> None:
    fit(tmp_path)
    holder = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLDS), str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        before = (tmp_path / "checkpoint.npz").read_bytes()
        with pytest.raises(ValueError, match=rf"no other run uses, got .* in which process {holder.pid} on .* trains"):
            fit(tmp_path, epochs=2)
        assert (tmp_path / "checkpoint.npz").read_bytes() == before
        # A program can be read from it all the same.
        ld.load(tmp_path / "checkpoint.npz", PROGRAM)
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        if holder.stdout is not None:
            holder.stdout.close()
    # The lock ends with the process that has it, though its file stays.
    assert f"process {holder.pid}" in (tmp_path / ".lock").read_text()
    assert len(fit(tmp_path, epochs=2).history) == 2


def test_a_folder_is_free_after_a_run_however_it_ends(tmp_path: Path) -> None:
    example = (jnp.zeros(1), None)
    broken = ld.compile(PROGRAM.system, PROGRAM.certificate, example, objective=one_weight(1.0).objective)
    with pytest.raises(ld.NonFiniteError):
        ld.fit(broken, (np.ones((4, 1), np.float32), None), key=jax.random.key(0), folder=tmp_path, **FIT)
    with pytest.raises(ValueError, match="to go on with that run"):
        fit(tmp_path)
    lock = FolderLock(tmp_path)
    with pytest.raises(ValueError, match=rf"process {os.getpid()} on"):
        FolderLock(tmp_path)
    lock.release()
    lock.release()
    FolderLock(tmp_path).release()
