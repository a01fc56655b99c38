"""`save` and `load`: what comes back is what was written, bit for bit, or one sentence says why not."""

import functools
import os
import signal
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lyapunov_dsl as ld

pytestmark = pytest.mark.usefixtures("quick")


class Everything(eqx.Module):
    """A field with arrays of all kinds that a program may hold."""

    inner: ld.nn.MLPField
    half: Any
    key: Any
    legacy: Any
    table: Any
    number: float = 0.5

    def __call__(self, t: Any, state: Any, context: Any) -> Any:
        return self.inner(t, state, context) * self.half.astype(state.dtype)


def origin(x: Any) -> ld.Start:
    return ld.Start(jnp.zeros(3, x.dtype), x)


def program(seed: int = 0, *, kappa: float = 2, width: int = 8, number: float = 0.5, half: float = 1.0) -> ld.Program:
    key = jax.random.key(seed)
    field = Everything(
        ld.nn.MLPField(3, 2, width=width, key=key), jnp.asarray(half, jnp.bfloat16), key, jax.random.PRNGKey(seed),
        np.arange(4.0) + seed, number,
    )  # fmt: skip
    system = ld.System(origin, field, domain=ld.Box(-5, 5))
    return ld.compile(system, ld.Certificate.exponential(ld.cross_entropy, kappa), (jnp.zeros(2), 0))


def same(a: Any, b: Any) -> bool:
    """Equal bit for bit, dtypes and kinds of arrays included."""
    plain = lambda leaf: jax.random.key_data(leaf) if eqx.is_array(leaf) and leaf.dtype == a_key.dtype else leaf
    a_key = jax.random.key(0)
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(type(x) is type(y) and np.array_equal(plain(x), plain(y)) for x, y in leaves)


def test_what_was_saved_is_what_is_loaded(tmp_path: Path) -> None:
    one, other = program(0), program(1)
    assert not same(one, other)
    ld.save(tmp_path / "program", one)
    assert os.listdir(tmp_path) == ["program"]
    assert same(ld.load(tmp_path / "program", other), one)
    # The caller's program is as it was.
    assert same(other, program(1))
    ld.save(str(tmp_path / "program"), other)
    assert same(ld.load(str(tmp_path / "program"), one), other)


def test_constants_come_from_the_file(tmp_path: Path) -> None:
    ld.save(tmp_path / "p.npz", program(kappa=3.25))
    assert float(ld.load(tmp_path / "p.npz", program()).certificate.kappa) == 3.25


def test_both_precisions(precision: Any, tmp_path: Path) -> None:
    one = program(0)
    ld.save(tmp_path / "p", one)
    back = ld.load(tmp_path / "p", program(1))
    assert same(back, one)
    assert back.system.vector_field.inner.last.weight.dtype == precision


def test_the_objective_and_the_solver_are_those_of_the_program_given(tmp_path: Path) -> None:
    ld.save(tmp_path / "p", program())
    like = eqx.tree_at(lambda p: p.objective, program(1), ld.EndToEnd())
    assert isinstance(ld.load(tmp_path / "p", like).objective, ld.EndToEnd)


def test_discrete_systems_and_learned_potentials(tmp_path: Path, key: Any) -> None:
    class Learned(ld.Certificate):
        network: eqx.nn.MLP

        def value(self, t: Any, state: Any, point: Any) -> Any:
            return self.network(state)

        def comparison(self, t: Any, v: Any) -> Any:
            return -v

    def make(seed: int) -> ld.Program:
        one, two = jax.random.split(jax.random.key(seed))
        layer = eqx.nn.Linear(3, 3, key=one)
        system = ld.DiscreteSystem(steps=[lambda s, c: s + 0.1 * layer(s)])
        system = eqx.tree_at(lambda s: s.steps, system, (Layer(layer),))
        return ld.compile(system, Learned(eqx.nn.MLP(3, "scalar", 4, 1, key=two)), (jnp.zeros(3), None))

    class Layer(eqx.Module):
        linear: eqx.nn.Linear

        def __call__(self, state: Any, context: Any) -> Any:
            return state + self.linear(state)

    ld.save(tmp_path / "p", make(0))
    assert same(ld.load(tmp_path / "p", make(1)), make(0))


def test_numpy_alone_reads_the_file(tmp_path: Path) -> None:
    ld.save(tmp_path / "p.npz", program())
    with np.load(tmp_path / "p.npz", allow_pickle=False) as archive:
        assert "header" in archive.files
        weight = archive["program/[0].vector_field.inner.last.weight"]
    assert np.array_equal(weight, program().system.vector_field.inner.last.weight)


def test_another_process_reads_the_file(tmp_path: Path) -> None:
    """The text of a structure has no addresses in it: `jnp.tanh` prints one, and it differs between processes."""
    ld.save(tmp_path / "p.npz", classifier())
    code = """
        import sys
        sys.path.insert(0, sys.argv[2])
        import test_save, lyapunov_dsl as ld
        ld.load(sys.argv[1], test_save.classifier())
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "p.npz"), str(Path(__file__).parent)]
    subprocess.run(command, check=True, timeout=300)


def classifier() -> ld.Program:
    field = ld.nn.MLPField(3, 2, width=4, key=jax.random.key(0))
    certificate = ld.Certificate.exponential(ld.cross_entropy, 2)
    return ld.compile(ld.System(origin, field, domain=ld.Box(-5, 5)), certificate, (jnp.zeros(2), 0))


def test_arrays_that_no_pytree_holds_have_to_be_the_same(tmp_path: Path) -> None:
    """They are not stored: another value would silently be that of the program given."""

    def scaled(scale: Any, t: Any, state: Any, context: Any) -> Any:
        return scale * state

    def make(value: float) -> ld.Program:
        field = functools.partial(scaled, jnp.asarray(value))
        system = ld.System(vector_field=field, domain=ld.Box(-5, 5))
        return ld.compile(system, ld.Certificate.exponential(ld.squared_error, 1), (jnp.zeros(2), jnp.zeros(2)))

    ld.save(tmp_path / "p", make(1.0))
    ld.load(tmp_path / "p", make(1.0))
    with pytest.raises(ValueError, match=r"another program, which differs first in float32\[\] with content"):
        ld.load(tmp_path / "p", make(2.0))

    class Static(eqx.Module):
        table: Any = eqx.field(static=True)

        def __call__(self, t: Any, state: Any, context: Any) -> Any:
            return self.table[0] * state

    def static(value: float) -> ld.Program:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            field = Static(HashableArray([value]))
        system = ld.System(vector_field=field, domain=ld.Box(-5, 5))
        return ld.compile(system, ld.Certificate.exponential(ld.squared_error, 1), (jnp.zeros(2), jnp.zeros(2)))

    ld.save(tmp_path / "p", static(1.0))
    ld.load(tmp_path / "p", static(1.0))
    with pytest.raises(ValueError, match=r"another program, which differs first in .*float64\[1\] with content"):
        ld.load(tmp_path / "p", static(2.0))


class HashableArray(np.ndarray):
    """An array in a static field."""

    def __new__(cls, values: Any) -> Any:
        return np.asarray(values).view(cls)

    def __hash__(self) -> int:  # type: ignore
        return hash(self.tobytes())

    def __eq__(self, other: Any) -> Any:
        return isinstance(other, HashableArray) and self.tobytes() == other.tobytes()


def test_python_numbers_made_arrays_do_not_promote_otherwise_after_loading(tmp_path: Path, key: Any) -> None:
    class Gain(eqx.Module):
        gain: Any

        def __call__(self, t: Any, state: Any, context: Any) -> Any:
            return -self.gain * state

    def make(dtype: Any) -> ld.Program:
        system = ld.System(vector_field=Gain(jnp.asarray(1.3)), domain=ld.Box(-5, 5))
        example = (jnp.zeros(2, dtype), jnp.zeros(2, dtype))
        return ld.compile(system, ld.Certificate.exponential(ld.squared_error, 1), example)

    with jax.enable_x64(True):
        # A weakly typed float64 would be accepted beside float32 now and not after it was read from a file.
        with pytest.raises(
            ValueError, match=r"vector_field: expected an output like the state, float32\[2\], got float64\[2\]"
        ):
            make(jnp.float32)
        ld.save(tmp_path / "p", make(jnp.float64))
        assert ld.load(tmp_path / "p", make(jnp.float64)).predict(jnp.ones((1, 2))).dtype == jnp.float64


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"width": 9}, r"p: expected one of this program, got .* differs first in weight=f32\[8,4\] instead of weight=f32\[9,4\]"),
        ({"number": 0.25}, r"differs first in number=0.5 instead of number=0.25"),
    ],
)  # fmt: skip
def test_another_program_is_refused(other: Any, message: str, tmp_path: Path) -> None:
    ld.save(tmp_path / "p", program())
    with pytest.raises(ValueError, match=message):
        ld.load(tmp_path / "p", program(**other))


def test_another_precision_is_refused(tmp_path: Path) -> None:
    ld.save(tmp_path / "p", program())
    with jax.enable_x64(True):
        like = program()
    with pytest.raises(ValueError, match=r"differs first in weight=f32\[8,4\] instead of weight=f64\[8,4\]"):
        ld.load(tmp_path / "p", like)


def test_a_truncated_or_damaged_file_is_refused_at_every_length(tmp_path: Path) -> None:
    path = tmp_path / "p"
    ld.save(path, program())
    whole, like = path.read_bytes(), program()
    rng = np.random.default_rng(0)
    for length in [0, 1, 21, *rng.integers(22, len(whole), 40), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"p: expected a file written by lyapunov_dsl, got"):
            ld.load(path, like)
    # A flipped bit is refused, or it was in what carries no meaning (a time stamp) and the program is the one saved.
    refusals = []
    for place in rng.integers(0, len(whole), 60):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(damaged))
        try:
            back = ld.load(path, like)
        except ValueError as error:
            refusals.append(str(error))
        else:
            assert same(back, like)
    assert len(refusals) > 40
    assert all("p: expected" in refusal for refusal in refusals)


def test_what_is_no_file_of_ours_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing: expected a file written by lyapunov_dsl, got none there"):
        ld.load(tmp_path / "nothing", program())
    np.savez(tmp_path / "foreign.npz", weights=np.zeros(3))
    with pytest.raises(ValueError, match=r"foreign.npz: expected .* got another one \(it has no header\)"):
        ld.load(tmp_path / "foreign.npz", program())
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(ValueError, match=r"damaged or cut off \(it is no NumPy archive\)"):
        ld.load(tmp_path / "one.npy", program())
    np.savez(tmp_path / "odd.npz", header=np.frombuffer(b'{"format": "lyapunov_dsl"}', np.uint8))
    with pytest.raises(ValueError, match="expected version 2 of the format, got None"):
        ld.load(tmp_path / "odd.npz", program())
    np.savez(tmp_path / "pickled.npz", header=np.array({"a": 1}, dtype=object))
    with pytest.raises(ValueError, match="damaged or cut off"):
        ld.load(tmp_path / "pickled.npz", program())


def test_another_version_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("lyapunov_dsl._archive._VERSION", 7)
    ld.save(tmp_path / "p", program())
    monkeypatch.undo()
    with pytest.raises(ValueError, match="expected version 2 of the format, got 7"):
        ld.load(tmp_path / "p", program())


def test_a_place_that_cannot_be_written_is_named_and_the_old_file_stays(tmp_path: Path, monkeypatch: Any) -> None:
    with pytest.raises(ValueError, match=r"save: expected a place that can be written, got .*missing/p"):
        ld.save(tmp_path / "missing" / "p", program())
    ld.save(tmp_path / "p", program())

    def full(source: Any, target: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ValueError, match="No space left on device"):
        ld.save(tmp_path / "p", program(1))
    assert os.listdir(tmp_path) == ["p"]
    assert same(ld.load(tmp_path / "p", program(1)), program(0))


def test_a_save_that_is_killed_leaves_the_old_file(tmp_path: Path) -> None:
    """Killed between writing and moving: the old file is whole."""
    ld.save(tmp_path / "p", classifier())
    code = """
        import os, signal, sys
        sys.path.insert(0, sys.argv[2])
        import test_save, lyapunov_dsl as ld
        os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)
        ld.save(sys.argv[1], test_save.classifier())
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "p"), str(Path(__file__).parent)]
    assert subprocess.run(command, check=False, timeout=300).returncode == -signal.SIGKILL
    assert same(ld.load(tmp_path / "p", classifier()), classifier())
