"""Changed proof files, at random: the checker answers by a sentence, soon, and accepts nothing that its own programs contradict."""

import importlib.util
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from proof_files import ONE_BOX, fine, write

from lyapunov_checker import Refused, check
from lyapunov_checker._file import read, seal

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
REDUCED = bool(os.environ.get("LYAPUNOV_DSL_REDUCED"))


@pytest.fixture(scope="module")
def attack():
    """`benchmarks/attack_proofs.py` as a module."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        spec = importlib.util.spec_from_file_location("attack_proofs", BENCHMARKS / "attack_proofs.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["attack_proofs"] = module
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(BENCHMARKS))


INWARD = {"invariant.0.lower": ONE_BOX, "invariant.0.upper": ONE_BOX}
PROOFS = {
    "attraction": {
        "matrix": [[-1.0]], "claims": ["decrease", "definite", "enclosed"], "level": [None, 0.5], "equilibrium": [0.0], "strict": True,
        "trees": {"decrease": [(4,)], "definite": [(4,)], "enclosed.0.lower": ONE_BOX, "enclosed.0.upper": ONE_BOX},
    },
    "robust": {
        "matrix": [[-1.0]], "kappa": 1.5, "constant": 0.5, "claims": ["decrease", "invariant", "robust"], "level": [None, 1.0],
        "trees": {**INWARD, "decrease": fine([-1.0], [1.0], 0.3), "gain": ONE_BOX, "slope": ONE_BOX},
        "start": {"lower": [-0.25], "upper": [0.5]}, "push": {"radius": 0.125},
    },
    "tube": {
        "matrix": [[-0.5]], "claims": ["stays", "decrease"], "constant": 2.0, "start": {"lower": [0.4], "upper": [0.5]},
        "tube": [[0.0, 0.5, 0.2, 0.6], [0.5, 1.0, 0.1, 0.6]], "trees": {"decrease.0": ONE_BOX, "decrease.1": ONE_BOX},
    },
    "ball": {
        "matrix": [[-1.0, 0.5], [0.0, -1.0]], "constant": 3.0, "ball": {"center": [0.0, 0.0], "radius": 0.5}, "changing": -0.1,
        "trees": {"decrease": [(0, 1, 0.25), (1,), (0, 2, 0.75), (1,), (5,)]},
    },
    "rate": {"matrix": [[1.0]], "rate": -2.0, "constant": 2.0, "trees": {"decrease": ONE_BOX}},
}  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    path = tmp_path_factory.mktemp("proofs")
    made = {name: File(write(path / f"{name}.npz", **proof).read_bytes()) for name, proof in PROOFS.items()}
    for data in made.values():
        assert check(data).boxes
    return made


class File(bytes):
    """Bytes that are not printed where a test fails."""

    def __repr__(self):
        return f"<{len(self)} bytes>"


def answered(data):
    """What the checker says, soon: sentences, or one line."""
    began = time.process_time()
    try:
        said, line = check(data, seconds=10).sentences, ""
    except Refused as error:
        said, line = None, str(error)
    assert line.isprintable()
    assert len(line) < 600
    assert time.process_time() - began < 20
    return said


def tried(attack, data, original):
    """Nothing contradicts what is said of a changed file that is accepted."""
    if answered(data) is not None:
        header, arrays = read(data)
        if seal(header, arrays) != seal(*read(original)):
            assert attack.contradiction(np.random.default_rng(0), header, arrays, points=100, runs=1) == ""


EDITS = st.tuples(
    st.floats(0, 1), st.sampled_from(["flip", "set", "insert", "delete", "cut"]), st.binary(min_size=1, max_size=8)
)


def edited(data, edits):
    out = bytearray(data)
    for share, kind, new in edits:
        if not out:
            break
        at = min(int(share * len(out)), len(out) - 1)
        if kind == "flip":
            out[at] ^= new[0] or 1
        elif kind == "set":
            out[at : at + len(new)] = new
        elif kind == "insert":
            out[at:at] = new
        elif kind == "delete":
            del out[at : at + len(new)]
        else:
            del out[at + 1 :]
    return bytes(out)


@settings(max_examples=200)
@given(st.sampled_from(sorted(PROOFS)), st.lists(EDITS, min_size=1, max_size=4))
def test_changed_bytes(attack, files, name, edits):
    tried(attack, edited(files[name], edits), files[name])


@settings(max_examples=100)
@given(st.binary(max_size=400))
def test_bytes_of_any_kind(data):
    assert answered(data) is None
    assert answered(b"PK\x03\x04" + data) is None


@settings(max_examples=200)
@given(st.sampled_from(sorted(PROOFS)), st.integers(0, 2**32 - 1))
def test_changed_content_with_a_right_hash(attack, files, name, seed):
    rng = np.random.default_rng(seed)
    how = attack.restated if seed % 4 else lambda rng, data, others: attack.repacked(rng, data)
    tried(attack, how(rng, files[name], list(files.values())), files[name])


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=100)
@given(st.data())
def test_any_value_anywhere_in_a_header(attack, files, tmp_path_factory, data):
    original = files[data.draw(st.sampled_from(sorted(PROOFS)))]
    header, arrays = read(original)
    *path, last = data.draw(st.sampled_from(attack.places(header)))
    target = header
    for key in path:
        target = target[key]
    target[last] = data.draw(VALUES)
    header["sha256"] = seal(header, arrays)
    file = attack.io.BytesIO()
    np.savez(file, header=np.frombuffer(json.dumps(header).encode(), np.uint8), **arrays)
    tried(attack, file.getvalue(), original)


def test_what_is_false_of_a_file_is_seen(attack, files):
    """The test that the tests above rest on: false claims are contradicted by the simulations."""
    for name, place, value in (
        ("attraction", ("level", 1), 4.0),
        ("attraction", ("domain", "upper", 0), 0.1),
        ("tube", ("tube", 1, 3), 0.11),
        ("ball", ("numbers.0",), 30.0 * np.eye(2)),
    ):
        header, arrays = read(files[name])
        assert attack.contradiction(np.random.default_rng(1), header, arrays) == "", name
        *path, last = place
        target = header if path else arrays
        for key in path:
            target = target[key]
        target[last] = value
        assert attack.contradiction(np.random.default_rng(1), header, arrays), (name, place)


@pytest.mark.slow
def test_attack_at_reduced_size(attack, tmp_path):
    files, systems = ("60", "4") if REDUCED else ("2000", "12")
    found = attack.main(["--files", files, "--systems", systems, "--out", str(tmp_path / "attack.json")])
    changed, random = found["changed files"], found["random systems"]
    assert changed["bad"] == random["bad"] == []
    assert changed["refused"] + changed["accepted"] == int(files)
    assert changed["tracebacks"] == changed["hangs"] == changed["accepted and false"] == 0
    assert random["proved"] >= 1
