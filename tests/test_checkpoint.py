"""Training that survives: exact resume, Ctrl-C, NaN, and folders that are not what they should be."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_fit import blobs, classifier, one_weight, train, weight_of

import lyapunov_dsl as ld
import lyapunov_dsl._fit as fit_module
from lyapunov_dsl.data import Augment, to_float

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(autouse=True)
def listen() -> Iterator[None]:
    """A test run in the background ignores Ctrl-C, and `fit` respects that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics without the seconds, which differ from run to run."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def without_seconds(history: Any) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if k != "seconds"} for record in history]


def press_at(monkeypatch: Any, step: int, times: int = 1) -> None:
    """Presses Ctrl-C while a step is under way."""

    class Bar(fit_module.tqdm):
        def update(self, n: Any = 1) -> Any:
            Bar.count += 1
            if Bar.count == step:
                for _ in range(times):
                    signal.raise_signal(signal.SIGINT)
            return super().update(n)

    Bar.count = 0
    monkeypatch.setattr(fit_module, "tqdm", Bar)


def run(folder: Any, **options: Any) -> ld.FitResult:
    """70 epochs of 3 steps with validation, a looks at the device within and at the end of epochs included."""
    held_out = tuple(leaf[:9] for leaf in blobs())
    options = {"epochs": 70, "validation": held_out, "select": "best", "checkpoint_every": 0, **options}
    return train(classifier(jax.random.key(0)), blobs(), jax.random.key(3), folder=folder, **options)


@pytest.mark.parametrize("step", [*(pytest.param(n, marks=pytest.mark.full) for n in (1, 100)), 3, 64])
def test_ctrl_c_leaves_a_state_that_resumes_to_the_same_numbers(step: int, tmp_path: Path, monkeypatch: Any) -> None:
    whole = run(tmp_path / "whole", progress=False)
    press_at(monkeypatch, step)
    with pytest.raises(ld.Interrupted, match=rf"interrupted at step {step} by Ctrl-C; the same call goes on") as caught:
        run(tmp_path / "cut")
    assert isinstance(caught.value, KeyboardInterrupt)
    assert caught.value.result.status == f"interrupted at step {step}"
    monkeypatch.undo()
    resumed = run(tmp_path / "cut")
    assert eqx.tree_equal(resumed.program, whole.program)
    assert without_seconds(resumed.history) == without_seconds(whole.history)
    assert resumed.selected == whole.selected
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")


def test_without_throw_ctrl_c_is_a_status(tmp_path: Path, monkeypatch: Any) -> None:
    press_at(monkeypatch, 5)
    before = signal.getsignal(signal.SIGINT)
    result = run(None, throw=False)
    assert result.status == "interrupted at step 5"
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_twice_interrupts_at_once(monkeypatch: Any) -> None:
    press_at(monkeypatch, 2, times=2)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as caught:
        run(None)
    assert not isinstance(caught.value, ld.Interrupted)
    assert signal.getsignal(signal.SIGINT) is before


def long(folder: Any, **options: Any) -> ld.FitResult:
    """Some seconds of training, with a checkpoint every 64 steps and after every epoch."""
    return train(
        classifier(jax.random.key(0)), blobs(480), jax.random.key(3), epochs=50, batch_size=8, folder=folder,
        checkpoint_every=0, **options,
    )  # fmt: skip


def test_an_ignored_ctrl_c_stays_ignored(monkeypatch: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    press_at(monkeypatch, 2)
    assert run(None, epochs=2).status == "done"
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_in_another_thread_nothing_is_caught() -> None:
    """Only the main thread may set handlers."""
    with ThreadPoolExecutor() as pool:
        assert pool.submit(run, None, epochs=2).result().status == "done"


@pytest.mark.parametrize(
    "number",
    [pytest.param(signal.SIGKILL, id="kill -9"), pytest.param(signal.SIGINT, id="Ctrl-C", marks=pytest.mark.full)],
)
def test_a_run_that_is_killed_goes_on_through_the_same_losses(number: Any, tmp_path: Path) -> None:
    code = """
        import signal, sys
        from pathlib import Path
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.path.insert(0, sys.argv[2])
        import jax
        jax.config.update("jax_disable_most_optimizations", True)
        import test_checkpoint
        test_checkpoint.long(Path(sys.argv[1]))
    """
    folder = tmp_path / "killed"
    command = [sys.executable, "-c", textwrap.dedent(code), str(folder), str(Path(__file__).parent)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    lines, began = 0, time.monotonic()
    while lines < 20 and time.monotonic() - began < 300:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
        lines = len((folder / "metrics.jsonl").read_text().splitlines()) if (folder / "metrics.jsonl").exists() else 0
    process.send_signal(number)
    _, errors = process.communicate(timeout=300)
    assert process.returncode != 0
    if number == signal.SIGINT:
        assert "the same call goes on from" in errors
    cut = len(metrics(folder))
    resumed, whole = long(folder), long(tmp_path / "whole")
    assert 20 <= cut < len(metrics(tmp_path / "whole"))
    assert metrics(folder) == metrics(tmp_path / "whole")
    assert eqx.tree_equal(resumed.program, whole.program)


def test_a_run_that_is_done_returns_at_once_and_more_epochs_go_on(tmp_path: Path, compilations: Any) -> None:
    whole = run(tmp_path / "whole", epochs=8)
    run(tmp_path / "twice", epochs=5)
    assert run(tmp_path / "twice", epochs=5).history[-1]["epoch"] == 4
    more = run(tmp_path / "twice", epochs=8)
    assert eqx.tree_equal(more.program, whole.program)
    assert metrics(tmp_path / "twice") == metrics(tmp_path / "whole")
    with pytest.raises(ValueError, match=r"epochs: expected at least 8, which .*twice has reached, got 7"):
        run(tmp_path / "twice", epochs=7)


def test_a_folder_does_not_change_what_is_learned(tmp_path: Path) -> None:
    assert eqx.tree_equal(run(tmp_path, epochs=4).program, run(None, epochs=4).program)


def test_a_checkpoint_is_a_program_that_can_be_loaded(tmp_path: Path) -> None:
    result = run(tmp_path, epochs=4, select="last")
    like = classifier(jax.random.key(9))
    assert eqx.tree_equal(ld.load(tmp_path / "checkpoint.npz", like), result.program)


def test_metrics_are_json_lines(tmp_path: Path) -> None:
    result = run(tmp_path, epochs=30)
    lines = metrics(tmp_path)
    steps = [line for line in lines if line["record"] == "steps"]
    epochs = [line for line in lines if line["record"] == "epoch"]
    # Every third step an epoch ends; the 64th step lies within one.
    assert [line["step"] for line in steps] == sorted({*range(3, 91, 3), 64})
    assert [{k: v for k, v in line.items() if k != "record"} for line in epochs] == without_seconds(result.history)
    # Of the three steps of epoch 21, one is in the first of its two lines.
    first, second = (line["loss"] for line in steps if line["epoch"] == 21)
    assert (first + 2 * second) / 3 == pytest.approx(result.history[21]["loss"])


def test_the_best_epoch_is_selected_by_its_validation_error(tmp_path: Path, key: Any) -> None:
    """The weight falls by 0.1 a step of one epoch and the error is |weight + 0.35|: least after four epochs."""
    goal = ld.Certificate.exponential(lambda state, target: jnp.sum(state**2), 1)

    class Weight(eqx.Module):
        weight: Any

        def __call__(self, t: Any, state: Any, context: Any) -> Any:
            return self.weight + 0.35 + 0 * state

    class Falls(ld.Objective):
        def check(self, condition: Any, start: Any) -> None:
            pass

        def __call__(self, condition: Any, x: Any, y: Any, *, key: Any) -> Any:
            return condition.system.vector_field.weight

    system = ld.System(vector_field=Weight(jnp.zeros(())), domain=ld.Box(-9, 9))
    program = ld.compile(system, goal, (jnp.zeros(1), jnp.zeros(1)), objective=Falls())
    data = (jnp.zeros((2, 1)), jnp.zeros((2, 1)))
    options = {"optimizer": optax.sgd(0.1), "epochs": 8, "validation": data}
    best = train(program, data, key, select="best", **options)
    errors = [record["validation"] for record in best.history]
    # Epochs 2 and 3 end at -0.3 and -0.4; which of the two is nearer is a matter of rounding.
    assert best.selected == int(np.flatnonzero(np.asarray(errors) == min(errors))[-1])
    assert best.selected in (2, 3)
    assert float(best.program.system.vector_field.weight) == pytest.approx(-0.1 * (best.selected + 1))
    last = train(program, data, key, **options)
    assert last.selected is None
    assert float(last.program.system.vector_field.weight) == pytest.approx(-0.8)


def test_a_nan_names_its_step_and_leaves_the_last_checkpoint(tmp_path: Path, key: Any) -> None:
    """The loss is NaN at step 6, in the second epoch of four steps; the checkpoint is that of the first epoch's end."""
    data = (jnp.ones((8, 1)), None)
    options = {"optimizer": optax.sgd(0.1), "epochs": 3, "batch_size": 2, "folder": tmp_path, "checkpoint_every": 0}
    message = r"NaN or Inf at step 6 \(epoch 1\).*the checkpoint of step 4 stays in"
    for _ in range(2):
        # The second time it goes on from there, to the same end.
        with pytest.raises(ld.NonFiniteError, match=message) as caught:
            train(one_weight(level=-0.55), data, key, **options)
        assert weight_of(caught.value.result.program) == pytest.approx(-0.6)
        kept = ld.load(tmp_path / "checkpoint.npz", one_weight(level=-0.55))
        assert weight_of(kept) == pytest.approx(-0.4)
    assert [line["record"] for line in metrics(tmp_path)] == ["steps", "epoch"]


def test_a_nan_leaves_the_best_epoch_where_it_is_selected(key: Any) -> None:
    """The validation error is the same in both epochs before it: the later one, at -0.4, is the best."""
    data = (jnp.ones((8, 1)), None)
    options = {"optimizer": optax.sgd(0.1), "epochs": 3, "batch_size": 2, "validation": data, "select": "best"}
    with pytest.raises(ld.NonFiniteError, match=r"step 6 .*The program of the best epoch, 0, is in \.result") as caught:
        train(one_weight(level=-0.55), data, key, **options)
    assert caught.value.result.selected == 0
    assert weight_of(caught.value.result.program) == pytest.approx(-0.4)


def test_the_seconds_of_an_interrupted_epoch_count(tmp_path: Path, monkeypatch: Any) -> None:
    press_at(monkeypatch, 5)
    began = time.perf_counter()
    with pytest.raises(ld.Interrupted):
        train(classifier(jax.random.key(0)), blobs(), jax.random.key(3), epochs=1, batch_size=4, folder=tmp_path)
    before = time.perf_counter() - began
    monkeypatch.undo()
    result = train(classifier(jax.random.key(0)), blobs(), jax.random.key(3), epochs=1, batch_size=4, folder=tmp_path)
    # Most of the time before is that of compiling the step.
    assert 0.3 * before < result.history[0]["seconds"] < before + 5


@pytest.mark.parametrize(
    "make",
    [
        lambda: optax.contrib.prodigy(),
        lambda: optax.contrib.dog(),
        lambda: optax.chain(optax.adam(1e-2), optax.contrib.reduce_on_plateau()),
        lambda: optax.polyak_sgd(0.1),
        lambda: optax.MultiSteps(optax.adam(1e-2), 2).gradient_transformation(),
        lambda: optax.chain(optax.add_noise(0.01, 0.55, jax.random.key(0)), optax.sgd(1e-2)),
        lambda: optax.inject_hyperparams(optax.sgd)(optax.cosine_decay_schedule(0.1, 100)),
        lambda: optax.contrib.schedule_free_adamw(1e-2),
    ],
    ids=["prodigy", "dog", "plateau", "polyak", "MultiSteps", "noise", "inject", "schedule free"],
)
def test_optimizers_of_all_kinds_train_and_resume(make: Any, tmp_path: Path, monkeypatch: Any) -> None:
    optimizer = make()
    options = {"optimizer": optimizer, "epochs": 3, "select": "last"}
    whole = run(tmp_path / "whole", **options)
    assert whole.status == "done"
    press_at(monkeypatch, 4)
    with pytest.raises(ld.Interrupted):
        run(tmp_path / "cut", **options)
    monkeypatch.undo()
    assert eqx.tree_equal(run(tmp_path / "cut", **options).program, whole.program)


def test_many_steps_at_once_are_the_same_steps(tmp_path: Path, monkeypatch: Any) -> None:
    """100 steps an epoch: one chunk of 64 (or four of 16), two of 16 and four single steps."""

    def steps(chunk: Any, folder: Any = None) -> ld.FitResult:
        # Plain SGD: Adam makes a large difference of a sign that rounding changes.
        options = {"optimizer": optax.sgd(0.05), "batch_size": 4, "epochs": 3, "steps_per_dispatch": chunk}
        return train(classifier(jax.random.key(0)), blobs(400), jax.random.key(3), folder=folder, **options)

    one, many = steps(1), steps(16, tmp_path / "whole")
    for a, b in zip(jax.tree.leaves(many.program), jax.tree.leaves(one.program), strict=True):
        if eqx.is_inexact_array(a):
            np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-5)
    assert many.history[-1]["loss"] == pytest.approx(one.history[-1]["loss"], rel=1e-3)
    press_at(monkeypatch, 7)
    with pytest.raises(ld.Interrupted):
        steps(16, tmp_path / "cut")
    monkeypatch.undo()
    resumed = steps(16, tmp_path / "cut")
    assert metrics(tmp_path / "cut")[-1]["step"] == 300
    assert eqx.tree_equal(resumed.program, many.program)


@pytest.mark.parametrize("chunk", [1, 16])
def test_nothing_is_compiled_after_the_first_epoch(chunk: int, monkeypatch: Any, compilations: Any) -> None:
    """With validation, a last batch that is dropped, and metrics."""
    seen: list[int] = []
    validate = ld.Program.error

    def count(self: Any, *args: Any, **kwargs: Any) -> Any:
        error = validate(self, *args, **kwargs)
        seen.append(len(compilations))
        return error

    monkeypatch.setattr(ld.Program, "error", count)
    run(None, epochs=4, batch_size=2, steps_per_dispatch=chunk)
    assert len(seen) == 4
    assert seen[0] == seen[-1] > 0


def test_images_stay_on_the_device_as_bytes(key: Any) -> None:
    """The step converts them; they are those of the same run on floats, with nothing else turned on."""
    images = np.random.default_rng(0).integers(0, 256, (48, 1, 4, 4)).astype(np.uint8)
    y = np.arange(48, dtype=np.int32) % 3

    class Flat(eqx.Module):
        linear: eqx.nn.Linear

        def __call__(self, image: Any) -> ld.Start:
            return ld.Start(jnp.zeros(3, image.dtype), self.linear(jnp.ravel(image)))

    field = ld.nn.MLPField(3, 4, width=8, key=key)
    system = ld.System(Flat(eqx.nn.Linear(16, 4, key=key)), field, domain=ld.Box(-5, 5))
    certificate = ld.Certificate.exponential(ld.cross_entropy, 2)
    program = ld.compile(system, certificate, (jnp.zeros((1, 4, 4)), 0), objective=ld.PathIntegral(2))
    options = {"epochs": 20, "optimizer": optax.adam(3e-3)}
    plain = train(program, (images, y), key, augment=Augment(), **options)
    again = train(program, (to_float(images), y), key, augment=lambda x, key: x, **options)
    assert plain.history[-1]["loss"] == again.history[-1]["loss"]
    assert plain.history[-1]["loss"] < plain.history[0]["loss"]
    moved = train(program, (images, y), key, augment=Augment(flip=True, crop=1), **options)
    assert moved.history[-1]["loss"] != plain.history[-1]["loss"]
    with pytest.raises(ValueError, match=r"data: expected examples x like the one given to compile, float32\[1,4,4\]"):
        train(program, (images, y), key, **options)
    with pytest.raises(
        ValueError, match=r"augment: expected what the program takes, float32\[1,4,4\], got float32\[1,5,5\]"
    ):
        train(program, (np.zeros((48, 1, 5, 5), np.uint8), y), key, augment=Augment(), **options)


def test_validation_as_another_kind_of_array_is_the_same(tmp_path: Path) -> None:
    held_out = tuple(leaf[:9] for leaf in blobs())
    run(tmp_path, epochs=2, validation=held_out)
    run(tmp_path, epochs=3, validation=[jnp.asarray(leaf) for leaf in held_out])


def test_a_folder_with_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("somebody's\n")
    with pytest.raises(
        ValueError, match=r"folder: expected an empty one or one with a checkpoint, got .* metrics alone"
    ):
        run(tmp_path, epochs=2)
    assert (tmp_path / "metrics.jsonl").read_text() == "somebody's\n"
    (tmp_path / "metrics.jsonl").unlink()
    ld.save(tmp_path / "checkpoint.npz", classifier(jax.random.key(0)))
    with pytest.raises(ValueError, match=r"expected a checkpoint of fit, got a program that was saved"):
        run(tmp_path, epochs=2)


def test_moments_that_overflow_are_noticed(key: Any) -> None:
    """The gradient 1e20 is finite, its square is not, and Adam's update is then zero for ever."""
    data = (jnp.full((8, 1), 1e20), None)
    result = train(one_weight(), data, key, optimizer=optax.adam(0.1), epochs=1, batch_size=2, throw=False)
    assert result.status == "NaN or Inf at step 0"


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"optimizer": optax.sgd(0.1, momentum=0.9)}, "optimizer"),
        ({"batch_size": 8}, "batch size"),
        ({"select": "last"}, "selection"),
        ({"validation": tuple(leaf[:6] for leaf in blobs())}, "validation set"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(change: Any, what: str, tmp_path: Path) -> None:
    run(tmp_path, epochs=2)
    with pytest.raises(ValueError, match=rf"checkpoint.npz: expected one of this {what}, got one of another {what}"):
        run(tmp_path, epochs=2, **change)


def test_a_checkpoint_of_another_program_is_refused(tmp_path: Path, key: Any) -> None:
    data = blobs()
    train(classifier(key), data, key, epochs=1, folder=tmp_path)
    before = (tmp_path / "checkpoint.npz").read_bytes()
    other = {
        "objective or solver": classifier(key, objective=ld.PathIntegral(2)),
        "set of constants": eqx.tree_at(lambda p: p.certificate.rate, classifier(key), ld.Constant(3.0)),
        "program": ld.compile(
            ld.System(lambda x: ld.Start(jnp.zeros(3), x), ld.nn.MLPField(3, 2, width=7, key=key), domain=ld.Box(-5, 5)),
            ld.Certificate.exponential(ld.cross_entropy, 2), (jnp.zeros(2), 0),
        ),
    }  # fmt: skip
    for what, program in other.items():
        with pytest.raises(ValueError, match=rf"expected one of this {what}, got one of another {what}"):
            train(program, data, key, epochs=1, folder=tmp_path)
    with pytest.raises(ValueError, match="expected one of this key"):
        train(classifier(key), data, jax.random.key(8), epochs=1, folder=tmp_path)
    with pytest.raises(ValueError, match="expected one of this data set"):
        train(classifier(key), (data[0] + 1, data[1]), key, epochs=1, folder=tmp_path)
    assert (tmp_path / "checkpoint.npz").read_bytes() == before


def test_a_truncated_checkpoint_is_refused_and_stays(tmp_path: Path) -> None:
    run(tmp_path, epochs=2)
    path = tmp_path / "checkpoint.npz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(
        ValueError, match=r"checkpoint.npz: expected a file written by lyapunov_dsl, got one that is damaged"
    ):
        run(tmp_path, epochs=2)
    assert path.exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"folder: expected one that can be written, got .*file \(.+\)"):
        run(tmp_path / "file", epochs=2)
    with pytest.raises(
        ValueError, match=r"folder: expected one that can be written, got .*file/below \(Not a directory\)"
    ):
        run(tmp_path / "file" / "below", epochs=2)


def test_a_disk_that_fills_up_does_not_end_training(tmp_path: Path, monkeypatch: Any) -> None:
    calls, replace = [], os.replace

    def full(source: Any, target: Any) -> None:
        calls.append(target)
        if len(calls) > 2:
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.warns(UserWarning, match="checkpoint of step .* could not be written .*training goes on"):
        result = run(tmp_path, epochs=3)
    assert result.status == "done"
    monkeypatch.undo()
    # From the checkpoint that could be written to the same end.
    again = run(tmp_path, epochs=3)
    assert eqx.tree_equal(again.program, result.program)


def test_a_folder_that_is_gone_does_not_end_training(tmp_path: Path, monkeypatch: Any) -> None:
    whole = Path(tmp_path / "gone")
    validate = ld.Program.error

    def remove(self: Any, *args: Any, **kwargs: Any) -> Any:
        shutil.rmtree(whole, ignore_errors=True)
        return validate(self, *args, **kwargs)

    monkeypatch.setattr(ld.Program, "error", remove)
    with pytest.warns(UserWarning, match="could not be written"):
        assert run(whole, epochs=2).status == "done"
