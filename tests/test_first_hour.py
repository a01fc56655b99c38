"""What a new user breaks in the first hour, beside the mistakes of `test_messages.py`: what the message has to say."""

import importlib
import math
import runpy
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_messages as known
from helpers import verify
from test_messages import INF, NAN, ONE_HOT, Mistake, X, Y, ce, compiled, fitted, sq, starting_at, system

ld = known.ld


class Tensor:
    """An array of another library, as torch has them."""

    def __init__(self, array: Any):
        self.array = np.asarray(array)
        self.shape, self.ndim, self.dtype = self.array.shape, self.array.ndim, "torch.float32"

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return np.asarray(self.array, dtype)


class Frame:
    """A table of another library, as pandas has them: an array, but no type of its own."""

    def __init__(self, array: Any):
        self.array = np.asarray(array)
        self.shape, self.ndim = self.array.shape, self.array.ndim

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return np.asarray(self.array, dtype)


def linear(ld: Any) -> Any:
    """A program with something to train."""
    return compiled(ld, system(ld, vector_field=known.Linear(eqx.nn.Linear(10, 10, key=jax.random.key(0)))))


def euler(ld: Any, **changes: Any) -> Any:
    return compiled(ld, system(ld, **changes), solver=ld.Solver(diffrax.Euler(), dt=0.5))


def broken(program: Any) -> Any:
    """The same program with a NaN in its weights."""
    return eqx.tree_at(lambda p: p.system.vector_field.layer.bias, program, jnp.full(10, jnp.nan))


def huge(x: np.ndarray) -> np.ndarray:
    """What float64 can hold in example 2, and float32 cannot."""
    x = x.astype(np.float64)
    x[2, 1] = 1e300
    return x


def mlp_field(ld: Any, **changes: Any) -> Any:
    sizes = {"state": 10, "context": 4, "width": 8, "key": jax.random.key(0), **changes}
    return ld.nn.MLPField(sizes.pop("state"), sizes.pop("context"), **sizes)


def encoder(ld: Any, shape: Any = (1, 8, 8), **changes: Any) -> Any:
    return ld.nn.ConvEncoder(shape, 4, **{"key": jax.random.key(0), **changes})


def seen(ld: Any, image: Any) -> Any:
    """An image by an encoder of one channel."""
    return ld.compile(system(ld, input=lambda x: ld.Start(jnp.zeros(10), encoder(ld)(x))), ce(ld), (image, 3))


def rest(ld: Any, **changes: Any) -> Any:
    """A plane that flows to 0."""
    return ld.System(**{"vector_field": known.still, "domain": ld.Box(-1, 1), **changes})


def square(ld: Any) -> Any:
    return ld.Certificate.exponential(lambda s: jnp.sum(s**2), 1)


def verified(ld: Any, declared: Any = None, certificate: Any = None, x: Any = (0.0, 0.0), **options: Any) -> Any:
    declared = rest(ld) if declared is None else declared
    certificate = square(ld) if certificate is None else certificate
    x = np.asarray(x, np.float64) if isinstance(x, tuple) else x
    return verify(declared, certificate, x, library=ld, **{"budget": {"boxes": 100}, **options})


def robust(ld: Any, x: Any = X, y: Any = Y, program: Any = None, **options: Any) -> Any:
    return ld.prove(euler(ld) if program is None else program, ld.InputRobustness(**options), at=(x, y))


VALUES: dict[str, Mistake] = {
    "images of integers for floats in predict": (
        lambda ld: compiled(ld).predict((255 * X).astype(np.uint8)),
        r"x: expected examples like .* float32\[4\], with one leading batch axis, got uint8\[6,4\]",
    ),
    "booleans for classes": (
        lambda ld: fitted(ld, (X, Y > 2)),
        r"data: expected examples y like the one given to compile, int32\[\], got bool\[\]",
    ),
    "one-hot for classes": (
        lambda ld: fitted(ld, (X, ONE_HOT)),
        r"data: expected examples y like the one given to compile, int32\[\], got float32\[10\]",
    ),
    "a column of classes": (
        lambda ld: fitted(ld, (X, Y[:, None])),
        r"data: expected examples y like the one given to compile, int32\[\], got int32\[1\]",
    ),
    "x and y swapped": (
        lambda ld: fitted(ld, (Y, X)),
        r"data: expected examples x like .* float32\[4\], got int32\[\]",
    ),
    "beyond float32": (
        lambda ld: fitted(ld, (huge(X), Y)),
        "data: expected finite inputs, got NaN or Inf at example 2, as float32",
    ),
    "tensors in fit": (
        lambda ld: fitted(ld, (Tensor(X), Tensor(Y))),
        r"data: expected NumPy or JAX arrays of numbers, got Tensor; convert it, such as by numpy\.asarray",
    ),
    "tensors in predict": (
        lambda ld: compiled(ld).predict(Tensor(X)),
        "x: expected NumPy or JAX arrays of numbers, got Tensor; convert it",
    ),
    "tensors in error": (
        lambda ld: compiled(ld).error(X, Tensor(Y)),
        "data: expected NumPy or JAX arrays of numbers, got Tensor; convert it",
    ),
    "tensors as the example": (
        lambda ld: ld.compile(system(ld), ce(ld), (Tensor(X[0]), 3)),
        r"example: expected arrays or jax\.ShapeDtypeStruct, got",
    ),
    "a table in fit": (
        lambda ld: fitted(ld, (Frame(X), Y)),
        "data: expected NumPy or JAX arrays of numbers, got Frame",
    ),
    "a table in verify": (
        lambda ld: verified(ld, x=Frame([0.0, 0.0])),
        "x: expected NumPy or JAX arrays of numbers, got Frame; convert it",
    ),
    "objects": (
        lambda ld: fitted(ld, (X.astype(object), Y)),
        "data: expected NumPy or JAX arrays of numbers, got ndarray of object; convert it",
    ),
    "words": (
        lambda ld: compiled(ld).predict(np.full((6, 4), "a")),
        "x: expected NumPy or JAX arrays of numbers, got ndarray of <U1",
    ),
    "lists": (
        lambda ld: fitted(ld, (list(X), list(Y))),
        r"data: expected x and y with one leading batch axis .*; numpy\.asarray makes one array of a list",
    ),
    "a generator": (
        lambda ld: fitted(ld, (pair for pair in zip(X, Y, strict=True))),
        r"data: expected a pair \(x, y\) with a leading batch axis, got generator",
    ),
    "weights of NaN": (
        lambda ld: fitted(ld, program=broken(linear(ld))),
        r"program: expected finite arrays to begin with, got NaN or Inf at \.system\.vector_field\.layer\.bias",
    ),
    "several keys": (
        lambda ld: fitted(ld, key=jax.random.split(jax.random.key(0), 3)),
        r"key: expected one PRNG key such as jax\.random\.key\(0\), got an array key<fry>\[3\]",
    ),
    "numbers that are no key": (
        lambda ld: fitted(ld, key=np.zeros(5, np.uint32)),
        r"key: expected one PRNG key .* got an array uint32\[5\]",
    ),
    "an integer as the key of certify": (
        lambda ld: ld.assess(compiled(ld), (X, Y), key=0),
        r"key: expected a PRNG key such as jax\.random\.key\(0\), got int 0",
    ),
    "an integer as the key of feasibility": (
        lambda ld: ld.assess(compiled(ld), (X, Y), only="feasibility", key=0),
        r"key: expected a PRNG key such as jax\.random\.key\(0\), got int 0",
    ),
    **{
        f"norm {norm!r}": (
            lambda ld, norm=norm: ld.assess(compiled(ld), (X, Y), radius=0.1, norm=norm),
            rf"norm: expected 'inf' or '2', got {norm!r}; write norm='{meant}'",
        )
        for norm, meant in ((2, "2"), ("l2", "2"), ("L2", "2"), (INF, "inf"), ("Linf", "inf"))
    },
    "a rate beyond float32": (
        lambda ld: ce(ld, 1e39),
        r"kappa: expected a positive finite number, got 1e\+39, which float32 cannot hold",
    ),
    "a field without a field inside": (
        lambda ld: ld.nn.InvariantField(None, 3, rate=8),
        r"inner: expected a field \(t, state, context\) -> array, got None",
    ),
    "an integer as the key of a layer": (
        lambda ld: mlp_field(ld, key=0),
        r"key: expected a PRNG key such as jax\.random\.key\(0\), got int 0",
    ),
    "a width below zero": (lambda ld: mlp_field(ld, width=-8), "width: expected a positive whole number, got -8"),
    "no hidden layer": (lambda ld: mlp_field(ld, depth=0), "depth: expected a positive whole number, got 0"),
    "a field for another context": (
        lambda ld: compiled(ld, system(ld, vector_field=mlp_field(ld, context=7))),
        r"MLPField: expected a context float\[7\], as it was made for, got float32\[4\]",
    ),
    "a field for another state": (
        lambda ld: compiled(ld, system(ld, vector_field=mlp_field(ld, state=9))),
        r"MLPField: expected a state float\[9\], as it was made for, got float32\[10\]",
    ),
    "an image without channels": (
        lambda ld: encoder(ld, (8, 8)),
        r"shape: expected \(channels, height, width\) of an image, got \(8, 8\)",
    ),
    "channels last": (
        lambda ld: seen(ld, np.zeros((8, 8, 1), np.float32)),
        r"ConvEncoder: expected an image float\[1,height,width\], channels first, got float32\[8,8,1\]",
    ),
    "an image of integers": (
        lambda ld: seen(ld, np.zeros((1, 8, 8), np.uint8)),
        r"ConvEncoder: expected an image float\[1,height,width\], channels first, got uint8\[1,8,8\]",
    ),
    "a program attacked": (
        lambda ld: ld.attacks.pgd(compiled(ld), X, Y),
        "function: expected a function from inputs to logits, got Program; give its predict",
    ),
}

PROOFS: dict[str, Mistake] = {
    "a class that is not there": (
        lambda ld: verify(euler(ld), None, X[0], 13, library=ld),
        r"cross_entropy: expected integer targets in \[0, 10\), got 13 at example 0",
    ),
    "a batch": (
        lambda ld: verify(euler(ld), None, X, Y, library=ld),
        r"x: expected one example like .* float32\[4\], without a batch axis, got float32\[6,4\]",
    ),
    "an input of another shape": (
        lambda ld: verify(euler(ld), None, X[0, :3], 3, library=ld),
        r"x: expected one example like .* float32\[4\], without a batch axis, got float32\[3\]",
    ),
    "no target": (
        lambda ld: verify(euler(ld), None, X[0], library=ld),
        "exponential: expected an example with a target for its loss, got y=None",
    ),
    "a domain that is a pair": (
        lambda ld: verified(ld, domain=(-1, 1)),
        r"domain: expected a Box, a Ball, a Product or a Tube, got tuple \(-1, 1\)",
    ),
    "a prover that is a number": (
        lambda ld: ld.prove(ld.Condition(rest(ld), square(ld)), ld.Decrease(), prover=1000),
        r"prover: expected a Prover such as Prover\(boxes=1000\), got int 1000",
    ),
    "a claim in words": (
        lambda ld: ld.prove(ld.Condition(rest(ld), square(ld)), "decrease"),
        r"property: expected one such as Decrease\(\) or RegionOfAttraction\(\.\.\.\), got str 'decrease'",
    ),
    "an example that is no pair": (
        lambda ld: ld.prove(ld.Condition(rest(ld), square(ld)), ld.Decrease(), at=np.zeros(2)),
        r"at: expected a pair \(x, y\), with y None where there are no targets, got",
    ),
    "a system alone": (
        lambda ld: ld.prove(rest(ld), ld.Decrease()),
        r"subject: expected a Program, or a Condition\(system, certificate\), got System",
    ),
    "two levels": (
        lambda ld: ld.Decrease(level=1.0) & ld.SublevelContained(level=2.0),
        r"level: expected the same in all properties that are put together, got 1\.0 and 2\.0",
    ),
    "two domains": (
        lambda ld: ld.Decrease(domain=ld.Box(-1, 1)) & ld.ForwardInvariant(domain=ld.Box(-2, 2)),
        r"domain: expected the same in all properties that are put together, got Box",
    ),
    "one time": (lambda ld: verified(ld, time=1), r"time: expected \(first, last\) with 0 <= first <= last, got 1"),
    "a perturbation in words": (
        lambda ld: verified(ld, claims=["robust"], perturbation="a"),
        "perturbation: expected a radius >= 0, got 'a'",
    ),
    "integers as the state": (
        lambda ld: verified(ld, x=np.zeros(2, int)),
        r"input: expected a state of floating-point arrays, got int64\[2\]",
    ),
    "NaN as the state": (lambda ld: verified(ld, x=(NAN, 0.0)), "x: expected finite numbers, got NaN or Inf"),
    "weights of NaN": (
        lambda ld: verify(broken(linear(ld)), None, X[0], 3, library=ld),
        r"system: expected finite numbers, got NaN at \.vector_field\.layer\.bias",
    ),
    "a field of another shape": (
        lambda ld: verified(ld, rest(ld, vector_field=lambda t, s, c: s[:1])),
        r"vector_field: expected an output like the state, float64\[2\], got float64\[1\]",
    ),
    "an input that returns an array": (
        lambda ld: verified(ld, rest(ld, input=lambda x: x)),
        r"input: expected a lyapunov_dsl\.Start\(state, context\), got float64\[2\]",
    ),
    "a potential that is a vector": (
        lambda ld: verified(ld, certificate=ld.Certificate.exponential(lambda s: s**2, 1)),
        r"exponential: expected its value for one example to be a float\[\] scalar, got float64\[2\]",
    ),
    "robustness of a system": (
        lambda ld: robust(ld, program=system(ld)),
        r"program: expected a Program made by lyapunov_dsl\.compile, got System",
    ),
    "robustness for a class that is not there": (
        lambda ld: robust(ld, y=Y + 5),
        r"y: expected classes in \[0, 10\), got 5 to 10",
    ),
    "robustness of inputs of another shape": (
        lambda ld: robust(ld, X[:, :3]),
        r"x: expected examples like the one given to compile, .*float32\[4\].*got float32\[6,3\]",
    ),
    "robustness of NaN": (
        lambda ld: robust(ld, known.hurt(X)),
        "x: expected finite inputs, got NaN or Inf at example 3",
    ),
    "robustness with steps that adapt": (
        lambda ld: robust(ld, program=compiled(ld)),
        r"InputRobustness: expected inference by Euler steps of a fixed size, compile\(\.\.\., solver=.*got Tsit5, dt=None",
    ),
    "robustness by another rule": (
        lambda ld: robust(ld, rules="reaching"),
        r"rules: expected some of \('margin', .*\), got \['reaching'\]",
    ),
    "robustness in another norm": (
        lambda ld: robust(ld, norm="l2"),
        "norm: expected 'inf' or '2', got 'l2'; write norm='2'",
    ),
}

BROKEN = {f"values: {name}": case for name, case in VALUES.items()} | {
    f"proofs: {n}": case for n, case in PROOFS.items()
}


@pytest.mark.parametrize("mistake", BROKEN.values(), ids=BROKEN.keys())
def test_what_is_broken_says_what_was_expected(mistake: Mistake, ld: Any) -> None:
    make, words = mistake
    with pytest.raises(ValueError, match=words):
        make(ld)


def branching(t: Any, s: Any, c: Any) -> Any:
    return -s if s[0] > 0 else s


def looping(t: Any, s: Any, c: Any) -> Any:
    while t < 1:
        t = t + 0.1
    return t * s


LOOKED = (
    "Python's if, while, and, or cannot look at what is only traced: use jnp.where, jax.lax.cond or jax.lax.while_loop"
)
NUMBERS = "float(), int(), range() and the functions of math cannot take what is only traced: use jax.numpy and jax.lax"
NUMPY = "NumPy cannot compute what is only traced: use jax.numpy, jnp.tanh in place of np.tanh for example"
WRAP = "expected a function of (t, state, context), got one of"

# What a user's function does, and what is added to the error of JAX or Python.
OWN: dict[str, tuple[Callable[[Any], Any], str]] = {
    "if": (lambda ld: compiled(ld, system(ld, vector_field=branching)), LOOKED),
    "while": (lambda ld: compiled(ld, system(ld, vector_field=looping)), LOOKED),
    "float": (lambda ld: compiled(ld, system(ld, vector_field=lambda t, s, c: float(t) * s)), NUMBERS),
    "math": (lambda ld: compiled(ld, system(ld, vector_field=lambda t, s, c: math.sin(t) * s)), NUMBERS),
    "an index into a list": (
        lambda ld: compiled(ld, system(ld, readout=lambda s: [s, 2 * s][jnp.argmax(s)], domain=ld.Box(-3, 3))),
        NUMBERS,
    ),
    "NumPy": (lambda ld: compiled(ld, system(ld, vector_field=lambda t, s, c: np.tanh(s))), NUMPY),
    "NumPy with a key": (lambda ld: compiled(ld, system(ld, vector_field=lambda t, s, c, *, key: np.tanh(s))), NUMPY),
    "NumPy in a readout": (
        lambda ld: compiled(ld, system(ld, readout=lambda s: np.array(s), domain=ld.Box(-3, 3))),
        NUMPY,
    ),
    "if in verify": (lambda ld: verified(ld, rest(ld, vector_field=branching)), LOOKED),
    "NumPy in verify": (
        lambda ld: verified(ld, certificate=ld.Certificate.exponential(lambda s: np.sum(np.square(s)), 1)),
        NUMPY,
    ),
    "two arguments": (
        lambda ld: compiled(ld, system(ld, vector_field=lambda t, state: -state)),
        f"{WRAP} (t, state): wrap it in one that is",
    ),
    "four arguments": (
        lambda ld: compiled(ld, system(ld, vector_field=lambda t, s, c, d: -s)),
        f"{WRAP} (t, s, c, d): wrap it in one that is",
    ),
    "two arguments in verify": (
        lambda ld: verified(ld, rest(ld, vector_field=lambda t, state: -state)),
        f"{WRAP} (t, state): wrap it in one that is",
    ),
    "a class in place of a field": (
        lambda ld: compiled(ld, system(ld, vector_field=known.Linear)),
        "expected a function of (t, state, context), got the class Linear: give an instance of it",
    ),
    "a class in place of a readout": (
        lambda ld: compiled(ld, system(ld, readout=eqx.nn.Linear, domain=ld.Box(-3, 3))),
        "expected a function of (state), got the class Linear: give an instance of it",
    ),
    "a batch as the example": (
        lambda ld: ld.compile(system(ld), ce(ld), (X, Y)),
        "the example is one pair without a batch axis; all of x and y begin with an axis of 6 here: "
        "if that is the batch, give example=(x[0], y[0])",
    ),
}


@pytest.mark.parametrize(("make", "note"), OWN.values(), ids=OWN.keys())
def test_errors_of_a_users_own_functions_come_with_what_to_do(make: Any, note: str, ld: Any) -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011 whatever JAX or Python raise
        make(ld)
    assert note in caught.value.__notes__


def test_a_multilayer_perceptron_is_no_field(ld: Any) -> None:
    mlp = eqx.nn.MLP(10, 10, 8, 1, key=jax.random.key(0))
    with pytest.raises(TypeError) as caught:
        compiled(ld, system(ld, vector_field=mlp))
    assert any(note.startswith(WRAP) and note.endswith("wrap it in one that is") for note in caught.value.__notes__)


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("", r"path: expected a path, got str ''"),
        (".", "which is a folder; name a file in it"),
        ("/dev/null", "got /dev/null, which is a device or a pipe"),
        ("none/p.npz", "got none/p.npz: there is no folder none"),
    ],
    ids=["empty", "folder", "device", "missing"],
)
def test_places_where_nothing_can_be_saved(place: str, words: str, ld: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=words):
        ld.save(place, compiled(ld))
    proof = a_proof(ld)
    with pytest.raises(ValueError, match=words):
        proof.save(place)
    assert not list(tmp_path.iterdir())


def a_proof(ld: Any) -> Any:
    """A proof of which nothing but the place to save it matters."""
    module = importlib.import_module("lyapunov_dsl._prove._verify")
    return module.Proof("no record", {})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, r"got a folder \(fit writes checkpoint.npz in its own\)"),
        (b"", r"damaged or cut off \(it is no NumPy archive\)"),
        (b"hello", r"damaged or cut off \(it is no NumPy archive\)"),
    ],
    ids=["folder", "empty", "text"],
)
def test_what_cannot_be_loaded(content: bytes | None, words: str, ld: Any, tmp_path: Path) -> None:
    path = tmp_path / "p.npz"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(ValueError, match=words):
        ld.load(path, compiled(ld))


def test_the_current_folder_is_no_folder_by_accident(ld: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="folder: expected a path, got str ''"):
        fitted(ld, program=linear(ld), folder="")
    with pytest.raises(ValueError, match="folder: expected a path, got str ''"):
        verified(ld, folder="")
    assert not list(tmp_path.iterdir())


def test_a_folder_of_another_run_says_what_to_do(ld: Any, tmp_path: Path, monkeypatch: Any) -> None:
    class Written(Exception):
        """The checkpoint before the first step is there."""

    def stop(*args: Any) -> None:
        raise Written

    module = sys.modules[ld.fit.__module__]
    monkeypatch.setattr(module, "advance", stop)
    with pytest.raises(Written):
        fitted(ld, program=linear(ld), folder=tmp_path)
    words = rf"one of another key; to go on with that run, give what it was given, and for another run another folder than {tmp_path}"
    with pytest.raises(ValueError, match=words):
        fitted(ld, program=linear(ld), folder=tmp_path, key=jax.random.key(1))


@pytest.mark.parametrize("name", ["digits", "planar", "wrap_pretrained", "van_der_pol"])
def test_an_output_folder_that_is_a_file_ends_the_example_at_once(
    name: str, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    (tmp_path / "out").touch()
    script = Path(__file__).parent.parent / "examples" / f"{name}.py"
    monkeypatch.syspath_prepend(str(script.parent))
    monkeypatch.setattr(sys, "argv", [str(script), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit):
        runpy.run_path(str(script), run_name="__main__")
    assert "--out: expected a folder that can be written, got" in capsys.readouterr().err


# What is not right on the first look and works.


@pytest.mark.parametrize(
    "make", [lambda: jnp.full(10, 0.5), lambda: 0.5 + 0 * jnp.arange(10)], ids=["full", "promoted"]
)
def test_states_of_weak_type_are_states(make: Any, ld: Any) -> None:
    program = compiled(ld, system(ld, input=lambda x: ld.Start(make(), x)))
    assert not program.system.start(X[0]).state.weak_type
    starts = eqx.filter_eval_shape(program.system.start, X[0])
    velocity = eqx.filter_eval_shape(program.system.velocity, 0.0, starts.state, starts.context)
    assert velocity.dtype == starts.state.dtype


def test_whole_numbers_of_numpy_are_counts(ld: Any) -> None:
    one = np.int64(1)
    for options in ({"epochs": one}, {"batch_size": one}, {"steps_per_dispatch": one}):
        # Past the counts: nothing to train is what is wrong.
        with pytest.raises(ValueError, match="expected a system with trainable arrays"):
            fitted(ld, **options)
    assert type(ld.Solver(max_steps=np.int64(7)).max_steps) is int
    assert ld.Prover(boxes=np.int64(7)).boxes == 7


@pytest.mark.parametrize("norm", ["2", "inf"])
def test_norms_by_their_names_are_norms(norm: str, ld: Any) -> None:
    module = sys.modules[ld.Box.__module__.replace("_domain", "_types")]
    assert module.check_norm(norm) is None


def test_one_thousand_classes_and_a_steep_rate_compile_without_a_word(ld: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wide = compiled(ld, starting_at(ld, jnp.zeros(1000)))
        assert wide.declaration.prediction.shape == (1000,)
        assert float(compiled(ld, None, ce(ld, 1e6)).certificate.kappa) == 1e6


def test_a_proof_that_is_not_found_says_where_and_what_next(ld: Any) -> None:
    module = importlib.import_module("lyapunov_dsl._prove._verify")
    low, high = np.array([[0, -0.1, -0.2], [0, 0, 0]]), np.array([[1, 0, 0], [1, 0.3, 0.4]])
    left, advice = {"decrease": (low, high)}, "a larger budget"
    found = module.Verification(ld.Assurance.UNDECIDED, {}, None, 100, 1.0, left, None, advice)
    text = str(found)
    assert "left of decrease: 2 boxes, in [-0.1, 0.3] x [-0.2, 0.4]" in text
    assert "next: a larger budget" in text
    refuted = module.Verification(ld.Assurance.REFUTED, {}, "here", 100, 1.0, left, None, advice)
    assert "next:" not in str(refuted)


@pytest.mark.usefixtures("quick")
def test_levels_between_which_there_is_no_state_are_said_to_prove_nothing(ld: Any) -> None:
    found = verified(ld, x=(0.0,), level=(10.0, 20.0))
    assert found.claims["decrease"].given == "nothing: no state of H has V between the levels"
    module = importlib.import_module("lyapunov_dsl._prove._verify")
    tree = module.Tree(np.zeros(2), np.ones(2))
    for rule, void in ((module.ABOVE, True), (module.REST, False)):
        tree.settle(np.zeros(1, int), np.array([rule]))
        assert module._is_void([tree]) is void


def test_that_what_is_broken_is_whole_otherwise(ld: Any) -> None:
    """Without the mistake, nothing is raised."""
    assert isinstance(compiled(ld, system(ld, vector_field=mlp_field(ld))), ld.Program)
    assert isinstance(seen(ld, np.zeros((1, 8, 8), np.float32)), ld.Program)
    assert isinstance(compiled(ld, system(ld, domain=ld.Box(-3, 3)), sq(ld), y=jnp.zeros(10)), ld.Program)
