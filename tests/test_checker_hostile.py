"""Files that were made to mislead the checker, or to keep it busy: each is refused with one sentence, and soon."""

import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from proof_files import ONE_BOX, Programs, fine, sealed, tree, write

from lyapunov_checker import Refused, check
from lyapunov_checker._file import read, seal
from lyapunov_checker._limits import CELLS, ENTRIES, NUMBERS, UNPACKED_FREE, UNPACKED_TIMES

AT = {"matrix": [[-1.0]], "constant": 2.0, "trees": {"decrease": ONE_BOX}}
INWARD = {"invariant.0.lower": ONE_BOX, "invariant.0.upper": ONE_BOX}


@pytest.fixture
def proof(tmp_path):
    path = write(tmp_path / "proof.npz", **AT)
    check(path)
    return path


def refused(path):
    """Why a file is refused: one line."""
    with pytest.raises(Refused) as error:
        check(path, seconds=20)
    text = str(error.value)
    assert len(text) < 600
    assert text.isprintable()
    return text


def changed(path, place, value):
    """The file with another value somewhere in its header, and a right hash."""
    header, arrays = read(path)
    header = json.loads(json.dumps(header))
    *keys, last = place
    target = header
    for key in keys:
        target = target[key]
    if value is MISSING:
        del target[last]
    else:
        target[last] = value
    return sealed(path, header, arrays)


MISSING = object()
OPERATION = ("programs", "field", "operations")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("strict",), MISSING),
        (("strict",), 0),
        (("strict",), "no"),
        (("strict",), None),
        (("claims",), "decrease"),
        (("claims",), []),
        (("claims",), [["decrease"]]),
        (("claims",), ["decrease", "decrease"]),
        (("claims",), {"decrease": 1}),
        (("time",), [1.0, 0.0]),
        (("time",), [-1.0, 0.0]),
        (("time",), [0.0, "1"]),
        (("time",), [False, True]),
        (("time",), [0.0, 1.0, 2.0]),
        (("time",), 1.0),
        (("level",), [0.5, 0.25]),
        (("level",), [None]),
        (("level",), [None, "1"]),
        (("level",), [None, True]),
        (("level",), [None, 2**53 + 1]),
        (("level",), [None, 10**400]),
        (("domain", "lower"), ["-1"]),
        (("domain", "lower"), [True]),
        (("domain", "lower"), [[-1.0]]),
        (("domain", "lower"), []),
        (("domain", "lower"), None),
        (("domain", "lower"), [1.0]),
        (("domain",), [[-1.0], [1.0]]),
        (("domain", "middle"), [0.0]),
        (("equilibrium",), [0.0, 0.0]),
        (("equilibrium",), 0.0),
        (("equilibrium",), [False]),
        (("ball",), {"center": [0.0], "radius": True}),
        (("ball",), {"center": [0.0, 0.0], "radius": 0.5}),
        (("ball",), {"center": [0.0]}),
        (("ball",), []),
        (("faces",), [0.0]),
        (("faces",), [False]),
        (("faces",), ["0"]),
        (("faces",), [0, 0]),
        (("faces",), [-1]),
        (("faces",), 0),
        (("tube",), {}),
        (("tube",), [0.0, 1.0]),
        (("tube",), [[0.0, 1.0, -0.5, 0.5, 0.5]]),
        (("tube",), [[0.0, True, -0.5, 0.5]]),
        (("perturbation",), {"center": [], "radius": 0.0, "gain": 0.0, "slope": 0.0}),
        (("perturbation",), {"center": [0.0], "radius": 0.0, "gain": 0.0}),
        (("perturbation",), {"center": [0.0], "radius": 0.0, "gain": -1.0, "slope": 0.0}),
        (("perturbation",), {"center": [0.0], "radius": 0.0, "gain": 0.0, "slope": 0.0}),
        (("frozen",), {"declaration": "that of another system"}),
        (("system",), "x' = +x"),
        (("programs",), []),
        (("programs", "other"), {}),
        (("programs", "field"), None),
        (("programs", "field", "more"), 1),
        (("programs", "field", "output"), 2.0),
        (("programs", "field", "output"), True),
        (("programs", "field", "output"), -1),
        (("programs", "field", "output"), 99),
        (OPERATION, []),
        (OPERATION, "input"),
        ((*OPERATION, 1), "input"),
        ((*OPERATION, 1, "size"), 1.0),
        ((*OPERATION, 1, "size"), True),
        ((*OPERATION, 1, "size"), 0),
        ((*OPERATION, 1, "size"), 10**12),
        ((*OPERATION, 1, "size"), 10**30),
        ((*OPERATION, 1, "name"), None),
        ((*OPERATION, 1, "name"), ["input"]),
        ((*OPERATION, 1, "name"), "unheard of\n\x1b[31m"),
        ((*OPERATION, 1, "more"), 0),
        ((*OPERATION, 1, "value"), "numbers.0"),
        ((*OPERATION, 2, "args"), [1.0]),
        ((*OPERATION, 2, "args"), [True]),
        ((*OPERATION, 2, "args"), ["1"]),
        ((*OPERATION, 2, "args"), [2]),
        ((*OPERATION, 2, "args"), [-1]),
        ((*OPERATION, 2, "args"), []),
        ((*OPERATION, 2, "args"), 1),
        ((*OPERATION, 2, "matrices"), []),
        ((*OPERATION, 2, "matrices"), [None]),
        ((*OPERATION, 2, "matrices"), [{}]),
        ((*OPERATION, 2, "matrices"), [{"dense": ["numbers.0"]}]),
        ((*OPERATION, 2, "matrices"), [{"dense": "nothing"}]),
        ((*OPERATION, 2, "matrices"), [{"dense": "numbers.0", "places": "numbers.0"}]),
        ((*OPERATION, 2, "matrices"), [{"places": "numbers.0", "values": "numbers.0"}]),
        ((*OPERATION, 2, "matrices"), [{"places": {}, "values": {}}]),
    ],
)  # fmt: skip
def test_fields_of_another_type_or_without_sense_are_refused(proof, place, value):
    refused(changed(proof, place, value))


def raw(path, text, arrays=None):
    """A file with a header of any bytes, whose hash cannot be right."""
    np.savez(path, header=np.frombuffer(text.encode(), np.uint8), **(arrays or {}))
    return path


@pytest.mark.parametrize(
    "text",
    [
        "", "null", "[]", "1", "{", '{"a": NaN}', '{"a": Infinity}', '{"a": 1e999}', '{"a": 1, "a": 2}', "[" * 200_000,
        '{"a":' * 100_000, "1" * 5000, '{"sha256": {}}', '{"sha256": null, "format": "\\ud800"}',
    ],
)  # fmt: skip
def test_headers_that_are_none_are_refused(tmp_path, text):
    refused(raw(tmp_path / "proof.npz", text))


def archive(path, members, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in members:
            file.writestr(name, content)
    return path


def npy(line, body=b"", version=b"\x01\x00"):
    return b"\x93NUMPY" + version + len(line).to_bytes(2, "little") + line + body


LINE = "{{'descr': '{}', 'fortran_order': {}, 'shape': {}, }}\n"
ARRAYS = {
    "empty": b"",
    "short": b"\x93NUM",
    "no line": b"\x93NUMPY\x01\x00",
    "version": npy(b"{}", version=b"\x09\x00"),
    "objects": npy(LINE.format("|O", False, "(1,)").encode(), b"\x80\x04N."),
    "structured": npy(LINE.format("[('a', '<f8')]", False, "(1,)").encode(), b"0" * 8),
    "complex": npy(LINE.format("<c16", False, "(1,)").encode(), b"0" * 16),
    "text": npy(LINE.format("<U1", False, "(1,)").encode(), b"0" * 4),
    "big end": npy(LINE.format(">f8", False, "(1,)").encode(), b"0" * 8),
    "fortran": npy(LINE.format("<f8", True, "(1,)").encode(), b"0" * 8),
    "too many": npy(LINE.format("<f8", False, "(1000000000000,)").encode(), b"0" * 8),
    "product": npy(LINE.format("<f8", False, "(1000000000, 1000000000, 1000000000)").encode(), b"0" * 8),
    "negative": npy(LINE.format("<f8", False, "(-1,)").encode(), b"0" * 8),
    "zero times much": npy(LINE.format("<f8", False, "(0, 1000000000000000000)").encode()),
    "dimensions": npy(LINE.format("<f8", False, f"({'1, ' * 100})").encode(), b"0" * 8),
    "code": npy(LINE.format("<f8", False, "(__import__('os'),)").encode(), b"0" * 8),
    "nested": npy(b"(" * 60_000),
    "long": npy(b"\xff" * 20, b""),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_that_are_none_are_refused(tmp_path, name):
    refused(archive(tmp_path / "proof.npz", [("header.npy", ARRAYS[name])]))
    refused(archive(tmp_path / "proof.npz", [("field.0.npy", ARRAYS[name])]))


def test_archives_that_are_none_are_refused(tmp_path, proof):
    path, whole = tmp_path / "other.npz", proof.read_bytes()
    for content in (b"", b"PK\x05\x06" + b"\0" * 18, b"PK\x03\x04", whole[:-1], whole[: len(whole) // 2], whole[100:]):
        path.write_bytes(content)
        refused(path)
    header = ("header.npy", ARRAYS["empty"])
    refused(archive(path, [("../header.npy", b"")]))
    refused(archive(path, [("header.txt", b"")]))
    refused(archive(path, [("header\x00.npy", b"")]))
    refused(archive(path, [header], zipfile.ZIP_BZIP2))
    refused(archive(path, [header], zipfile.ZIP_LZMA))
    refused(archive(path, [(f"a{i}.npy", b"") for i in range(20_001)]))
    with pytest.warns(UserWarning, match="Duplicate name"):
        refused(archive(path, [header, header]))
    # Behind a password, and of a method that nobody has.
    encrypted = bytearray(whole)
    for place, value in ((6, 1), (8, 99)):
        other = bytearray(encrypted)
        other[place] = value
        at = other.find(b"PK\x01\x02")
        other[at + place + 2] = value
        path.write_bytes(other)
        refused(path)
    refused(tmp_path)
    refused(tmp_path / "nothing.npz")
    refused("/dev/zero")
    refused("a\0b")


def peak(path, seconds=5.0):
    """What a process that checks a file says, and the memory and the time that it takes beside what it takes to start."""
    code = (
        "import resource, sys, time, lyapunov_checker as c\n"
        "start, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()\n"
        "try: c.check(sys.argv[1], seconds=float(sys.argv[2])); said = 'proved'\n"
        "except c.Refused as error: said = str(error)\n"
        "print(said)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start, time.process_time() - began)\n"
    )
    command = [sys.executable, "-c", code, str(path), str(seconds)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr
    said, figures = found.stdout.splitlines()
    kilobytes, took = (float(v) for v in figures.split())
    return said, kilobytes * 1024, took


def test_an_archive_is_not_unpacked_beyond_a_multiple_of_its_size(tmp_path):
    size = 1 << 28
    path = archive(tmp_path / "bomb.npz", [("header.npy", b"\0" * size)])
    assert path.stat().st_size * UNPACKED_TIMES + UNPACKED_FREE < size
    said, memory, _ = peak(path)
    assert "times the size of the file" in said
    assert memory < 2**24
    # A directory that says less than is there.
    data = bytearray(path.read_bytes())
    at = data.find(b"PK\x01\x02")
    data[at + 24 : at + 28] = (1000).to_bytes(4, "little")
    path.write_bytes(data)
    said, memory, _ = peak(path)
    assert "proved" not in said
    assert memory < 2**25


def built(path, build, which="value", **more):
    """A proof with V, a field or a comparison of any operations."""
    header, arrays = read(write(path / "proof.npz", **{**AT, **more}))
    programs = Programs()
    program = programs.done(build(programs, programs.op("input", [], 1), programs.op("input", [], 1)))
    # Names of arrays of the two may be the same.
    header["programs"][which] = json.loads(json.dumps(program).replace('"numbers.', f'"{which}.'))
    arrays |= {name.replace("numbers.", f"{which}."): value for name, value in programs.arrays.items()}
    return sealed(path / "proof.npz", header, arrays)


def sparse(p, x, size, places, values):
    record = {"places": p.array(np.array(places, np.int64).reshape(2, -1)), "values": p.array(np.array(values, float))}
    return p.op("affine", [x], size, matrices=[record])


def doubled(p, t, x):
    """A vector that is as long again, some times, by a few bytes each."""
    size = 1
    for _ in range(40):
        size *= 2
        x = sparse(p, x, size, [[0], [0]], [1.0])
    return sparse(p, x, 1, [[0], [0]], [1.0])


def iota(p, t, x):
    return sparse(p, sparse(p, x, 10**6 * 4, [[0], [0]], [1.0]), 1, [[0], [0]], [1.0])


def wide(p, t, x):
    """A dense matrix used by many operations: numbers that a file has once."""
    column = p.array(np.ones((300, 1)))
    tall = p.op("affine", [x], 300, matrices=[{"dense": column}])
    square = p.array(np.ones((300, 300)))
    for _ in range(100):
        tall = p.op("affine", [tall], 300, matrices=[{"dense": square}])
    return sparse(p, tall, 1, [[0], [0]], [1.0])


def symbols(p, t, x):
    """Every entry of every operation has a symbol of its own: as many coefficients as the square of their number."""
    tall = p.op("affine", [x], 3000, matrices=[{"dense": p.array(np.ones((3000, 1)))}])
    for _ in range(20):
        tall = p.op("tanh", [tall], 3000)
    return sparse(p, tall, 1, [[0], [0]], [1.0])


def mean(p, t, x):
    tall = p.op("affine", [x], 3000, matrices=[{"dense": p.array(np.ones((3000, 1)))}])
    return p.op("softmean", [tall, tall], 1)


def tower(p, t, x):
    """exp(exp(...)), and squares of squares."""
    for _ in range(40):
        x = p.op("exp", [x], 1)
    for _ in range(200):
        x = p.op("square", [x], 1)
    return x


def long(p, t, x):
    for _ in range(10_000):
        x = p.op("tanh", [x], 1)
    return x


@pytest.mark.parametrize("build", [doubled, iota, wide, symbols, mean, tower, long])
def test_small_files_that_ask_for_much_are_refused_soon(tmp_path, build):
    path = built(tmp_path, build)
    size = path.stat().st_size
    said, memory, took = peak(path)
    assert "proved" not in said
    # About 100 bytes a number, and what the file itself takes.
    assert memory < 100 * (CELLS + NUMBERS) + 8 * ENTRIES + 20 * size
    assert took < 20


def test_it_ends_when_it_should(tmp_path):
    path = built(tmp_path, long)
    with pytest.raises(Refused, match=r"seconds: it is not checked after 0.05 s"):
        check(path, seconds=0.05)


def test_trees_of_any_shape_end(tmp_path, proof):
    header, arrays = read(proof)
    count = 200_000
    for rule in (0, 1, -1, 3, 4, 5, 6, 127):
        for at in (0.0, 1.0, -1.0):
            trees = {
                "decrease.rule": np.full(count, rule, np.int8),
                "decrease.axis": np.ones(count, np.int32),
                "decrease.at": np.full(count, at),
            }
            refused(sealed(proof, header, {**arrays, **trees}))
    # An axis of a time, of a state that is not there, and numbers that no axis has.
    for axis in (-1, 2, 2**31 - 1):
        trees = tree("decrease", [(0, axis, 0.0), (1,), (1,)])
        refused(sealed(proof, header, {**arrays, **trees}))


# --- sentences that would not follow


def shifted_log(p, x):
    """log(-x)."""
    return p.op("log", [p.linear(1, ([[-1.0]], x))], 1)


def test_v_has_to_be_a_number_wherever_its_rate_is_spoken_of(tmp_path):
    # V = log x for x in [-1, -0.5], where it is not defined and its derivative 1 / x is.
    about = {"domain": {"lower": [-1.0], "upper": [-0.5]}, "kappa": 0.0, "constant": 5.0}
    log = lambda p, t, x: p.op("log", [x], 1)
    refused(built(tmp_path, log, **about))
    check(built(tmp_path, lambda p, t, x: shifted_log(p, x), **about))
    # At an equilibrium, by second derivatives: f = -(x + 1)², so that dV/dt = -(x + 1)² / x has a curvature of one sign.
    rest = {**about, "domain": {"lower": [-1.0625], "upper": [-0.9375]}, "equilibrium": [-1.0]}
    rest["trees"] = {"decrease": [(4,)]}

    def slow(p, t, x):
        apart = p.linear(1, ([[1.0]], x), ([[1.0]], p.op("constant", [], 1, value=p.array([1.0]))))
        return p.op("square", [apart], 1)

    for value in (log, lambda p, t, x: shifted_log(p, x)):
        header, arrays = read(built(tmp_path, value, **rest))
        zero = lambda p, t, v: p.op("constant", [], 1, value=p.array([0.0]))
        for which, build in (("field", slow), ("comparison", zero)):
            other, more = read(built(tmp_path, build, which, **rest))
            header["programs"][which] = other["programs"][which]
            arrays |= {k: v for k, v in more.items() if k.startswith(f"{which}.")}
        path = sealed(tmp_path / "proof.npz", header, arrays)
        check(path) if value is not log else refused(path)


def test_the_field_has_to_be_a_number_wherever_dv_dt_is_spoken_of(tmp_path):
    # dx/dt = -x; dy/dt = log(x - 2), which is no number, and V = x².
    def field(p, t, x):
        first = sparse(p, x, 1, [[0], [0]], [1.0])
        apart = p.linear(1, ([[1.0]], first), ([[-2.0]], p.op("constant", [], 1, value=p.array([1.0]))))
        parts = [sparse(p, first, 2, [[0], [0]], [-1.0]), sparse(p, p.op("log", [apart], 1), 2, [[1], [0]], [1.0])]
        both = {"places": p.array(np.array([[0, 1], [0, 1]])), "values": p.array(np.ones(2))}
        return p.op("affine", parts, 2, matrices=[both, both])

    def first_alone(p, t, x):
        return p.op("square", [sparse(p, x, 1, [[0], [0]], [1.0])], 1)

    whole = {**AT, "matrix": -np.eye(2), "constant": 8.0}
    for build in (lambda p, t, x: p.linear(2, (-np.eye(2), x)), field):
        header, arrays = read(write(tmp_path / "proof.npz", **whole))
        for which, program in (("field", build), ("value", first_alone)):
            p = Programs()
            made = p.done(program(p, p.op("input", [], 1), p.op("input", [], 2)))
            header["programs"][which] = json.loads(json.dumps(made).replace('"numbers.', f'"{which}.'))
            arrays |= {name.replace("numbers.", f"{which}."): value for name, value in p.arrays.items()}
        path = sealed(tmp_path / "proof.npz", header, arrays)
        refused(path) if build is field else check(path)


def test_a_bound_of_v_that_is_no_number_is_none(tmp_path):
    trees = {"decrease": fine([-1.0], [1.0]), "gain": ONE_BOX, "slope": ONE_BOX, **INWARD}
    at = {
        "matrix": [[-1.0]], "claims": ["decrease", "invariant", "robust"], "trees": trees, "level": [None, 1.0],
        "start": {"lower": [0.1], "upper": [0.2]}, "push": {"radius": 0.0}, "kappa": 1.5, "constant": 0.5,
    }  # fmt: skip
    assert "at most 0.26" in check(write(tmp_path / "proof.npz", **at)).sentences[1]

    def jumping(place):
        def build(p, t, v):
            one = p.op("constant", [], 1, value=p.array([1.0]))
            step = p.op("step", [p.linear(1, ([[1.0]], v), ([[-place]], one))], 1)
            return p.linear(1, ([[-1.5]], v), ([[0.5]], one), ([[0.02]], step))

        return build

    # The comparison jumps where its solution ends: there its derivative is no number, and the last step has no bound.
    for place in np.linspace(0.26, 0.275, 31).tolist():
        try:
            found = str(check(built(tmp_path, jumping(place), "comparison", **at)))
        except Refused:
            continue
        assert "nan" not in found
        assert "inf" not in found


def test_nothing_follows_from_a_region_without_states(tmp_path):
    # V >= 0 is never below -1: every box is above the level.
    found = check(write(tmp_path / "proof.npz", **{**AT, "trees": {"decrease": [(2,)]}}, level=[None, -1.0]))
    assert "nothing is said" in found.sentences[0]
    assert "nothing is said" not in check(write(tmp_path / "proof.npz", **AT)).sentences[0]


def test_an_equilibrium_is_inside_of_the_ball(tmp_path):
    at = {**AT, "matrix": -np.eye(2), "constant": 8.0, "ball": {"center": [0.0, 0.0], "radius": 0.5}}
    check(write(tmp_path / "proof.npz", **at, equilibrium=[0.3, 0.3]))
    for rest in ([0.5, 0.0], [0.4, 0.4], [0.9, 0.0], [np.nextafter(0.3, 1), 0.4]):
        refused(write(tmp_path / "proof.npz", **at, equilibrium=rest))


def test_robust_needs_a_perturbation_that_is_said(tmp_path):
    trees = {"decrease": ONE_BOX, "gain": ONE_BOX, "slope": ONE_BOX, **INWARD}
    at = {"matrix": [[-1.0]], "constant": 0.0, "trees": trees, "level": [None, 1.0]}
    assert "perturbation" in refused(write(tmp_path / "proof.npz", **at, claims=["decrease", "invariant", "robust"]))


def test_what_the_verdict_prints_is_exact(tmp_path):
    level, horizon, end = 0.99999996, 0.99999999, np.nextafter(1.0, 0)
    at = {**AT, "level": [None, level], "time": [0.0, horizon], "changing": 0.25, "constant": 3.0}
    text = str(check(write(tmp_path / "proof.npz", **at, domain={"lower": [-1.0], "upper": [end]})))
    for number in (level, horizon, end):
        assert repr(float(number)) in text
    assert "[0.0, 1.0]" not in text


def test_the_verdict_names_the_programs_and_what_is_given(tmp_path):
    path = tmp_path / "proof.npz"
    first = check(write(path, **AT))
    assert first.sha256 in str(first)
    assert "field: 3 operations, 1 numbers" in str(first)
    assert any("matches" in line for line in first.given)
    # Another region, another tree or other names are the same programs; other numbers or operations are not.
    header, arrays = read(path)
    assert check(write(path, **AT, strict=True)).sha256 == first.sha256
    assert check(write(path, **{**AT, "matrix": [[-0.5]]})).sha256 != first.sha256
    assert check(write(path, **AT, drift=[0.0])).sha256 != first.sha256
    renamed = json.loads(json.dumps(header).replace("numbers.", "other."))
    arrays = {name.replace("numbers.", "other."): value for name, value in arrays.items()}
    assert check(sealed(path, renamed, arrays)).sha256 == first.sha256
    own = check(write(path, **AT, rate=-2.0))
    assert any("rate" in line for line in own.given)


@pytest.mark.parametrize("case", ["right", "wrong", "missing", "usage"])
def test_the_exit_status_says_which(tmp_path, proof, case):
    if case == "wrong":
        proof.write_bytes(b"\xff" * 100)
    path = {"missing": str(tmp_path / "ab\nc"), "usage": "--seconds=-1"}.get(case, str(proof))
    found = subprocess.run([sys.executable, "-m", "lyapunov_checker", path], capture_output=True, text=True)
    assert found.returncode == {"right": 0, "usage": 2}.get(case, 1)
    assert "Traceback" not in found.stderr
    if case in ("wrong", "missing"):
        assert len(found.stdout.splitlines()) == 1
        assert found.stdout.startswith("refused: ")


def test_bytes_are_checked_as_files_are(proof):
    assert check(proof.read_bytes()) == check(proof)
    header, arrays = read(proof.read_bytes())
    assert "sha256" not in header
    assert seal(header, arrays) == seal(*read(proof))
