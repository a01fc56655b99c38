"""Data parallel training and attacks: on several devices and in several processes they are what they are on one device, up to
rounding.

What needs several devices runs in processes of its own, which import this module and leave their results in a file.
"""

import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from pages import blocks
from test_fit import blobs, classifier, one_weight, weight_of

import lyapunov_dsl as ld
import lyapunov_dsl._fit as fit_module
from lyapunov_dsl._checkpoint import Folder
from lyapunov_dsl._mesh import Team
from lyapunov_dsl.attacks import _climb

pytestmark = pytest.mark.usefixtures("quick")
# Processes compile for minutes.
full = pytest.mark.full

EPOCHS = 4


def mesh_of(count: int) -> Mesh:
    return jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:count])


def jitter(x: Any, key: Any) -> Any:
    return x + 0.05 * jax.random.normal(key, x.shape, x.dtype)


def data() -> tuple[np.ndarray, np.ndarray]:
    x, y = blobs()
    return x.astype(jnp.result_type(float)), y


@functools.cache
def optimizer() -> Any:
    """One object, since another one compiles again; not at import, which comes before the processes know each other."""
    return optax.chain(optax.add_noise(1e-3, 0.55, jax.random.key(5)), optax.adam(1e-2))


def train(**options: Any) -> ld.FitResult:
    """Sampled states, an augmentation and an optimizer with keys of their own; three steps an epoch."""
    objective = options.pop("objective", ld.MonteCarlo(ld.Trajectory(2)))
    program = options.pop("program", None) or classifier(jax.random.key(0), objective=objective)
    options = {
        "optimizer": optimizer(),
        "epochs": EPOCHS,
        "batch_size": 16,
        "augment": jitter,
        "validation": tuple(leaf[:9] for leaf in data()),
        "select": "best",
        "progress": False,
        "checkpoint_every": 0,
        **options,
    }
    return ld.fit(program, options.pop("data", data()), key=jax.random.key(3), **options)


def losses(result: ld.FitResult) -> list[list[float]]:
    """Of every epoch, and the validation errors."""
    return [[record["loss"], record["validation"]] for record in result.history]


def parameters(result: ld.FitResult) -> list[float]:
    arrays = jax.tree.leaves(eqx.filter(result.program, ld.trainable(result.program)))
    return np.concatenate([np.ravel(leaf) for leaf in arrays]).tolist()


def message_of(call: Callable[[], Any]) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the message is what is returned)
        call()
    return str(caught.value)


def together(arguments: list[list[str]], folders: list[Path], devices: list[int], x64: bool = False) -> list[str]:
    """The outputs of Python processes that run at the same time, each in its folder and with its devices."""
    running: list[subprocess.Popen[bytes]] = []
    # Into files: a pipe that is full would stop a process that another one waits for.
    outputs = [folder / f"output{place}" for place, folder in enumerate(folders)]
    try:
        for some, folder, count, output in zip(arguments, folders, devices, outputs, strict=True):
            environment = {
                **os.environ,
                "JAX_PLATFORMS": "cpu",
                "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
                "JAX_ENABLE_X64": str(int(x64)),
                "XLA_FLAGS": f"--xla_force_host_platform_device_count={count}",
                "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
            }
            with open(output, "wb") as file:
                pipes = {"stdout": file, "stderr": subprocess.STDOUT}
                running.append(subprocess.Popen([sys.executable, *some], env=environment, cwd=folder, **pipes))
        for process in running:
            process.wait(timeout=400)
        texts = [output.read_text() for output in outputs]
        assert all(process.returncode == 0 for process in running), "\n".join(texts)
        return texts
    finally:
        for process in running:
            process.kill()
            process.wait()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def in_processes(function: Any, folder: Path, processes: int, devices: int, x64: bool = False) -> list[dict[str, Any]]:
    """What a function of this module, called with the folder, its rank and a port in every process, returned in each."""
    port = free_port()
    code = """if True:
        import json, sys, test_scale_out
        function, folder, rank, port = sys.argv[1:]
        found = getattr(test_scale_out, function)(folder, rank, port)
        json.dump(found, open(f"{folder}/{function}{rank}", "w"))
    """
    arguments = [["-c", code, function.__name__, str(folder), str(rank), str(port)] for rank in range(processes)]
    together(arguments, [folder] * processes, [devices] * processes, x64)
    return [json.loads((folder / f"{function.__name__}{rank}").read_text()) for rank in range(processes)]


class Victim(eqx.Module):
    """A small network, as a method of a PyTree."""

    net: eqx.nn.MLP

    def predict(self, x: Any) -> Any:
        return jax.vmap(self.net)(x)


@functools.cache
def victim() -> tuple[Any, np.ndarray, np.ndarray]:
    """Two inputs are decided wrongly; 22 are no multiple of 4."""
    function = Victim(eqx.nn.MLP(12, 5, 32, 2, activation=jnp.tanh, key=jax.random.key(0))).predict
    x = np.random.default_rng(0).uniform(0.2, 0.8, (22, 12)).astype(np.float32)
    y = np.array(jnp.argmax(function(jnp.asarray(x)), axis=1))
    y[:2] = (y[:2] + 1) % 5
    return function, x, y


ATTACKS: dict[str, Any] = {
    "pgd": functools.partial(ld.attacks.pgd, norm="2", steps=5, step_size=0.02),
    "apgd_ce": functools.partial(ld.attacks.apgd_ce, norm="inf", steps=10, restarts=2),
    "apgd_t": functools.partial(ld.attacks.apgd_t, norm="2", steps=10, targets=2),
    "fab": functools.partial(ld.attacks.fab, norm="inf", steps=5, targets=2),
    "square": functools.partial(ld.attacks.square, norm="inf", queries=30),
    "noise": functools.partial(ld.attacks.noise, norm="2", queries=3),
}


def attack(name: str, **options: Any) -> list[list[float]]:
    """The points that an attack returns."""
    function, x, y = victim()
    run = ATTACKS[name]
    radius = {"inf": 0.06, "2": 0.15}[run.keywords["norm"]]
    options = {
        "function": function,
        "x": x,
        "y": y,
        "radius": radius,
        "key": jax.random.key(1),
        "batch_size": 8,
        **options,
    }
    points = run(options.pop("function"), options.pop("x"), options.pop("y"), **options)
    assert len(points.devices()) == 1
    return np.asarray(points).tolist()


def check_points(found: Any, whole: Any) -> None:
    """The same points up to rounding, and the same ones mislead."""
    function, _, y = victim()
    wrong = lambda points: np.asarray(jnp.argmax(function(jnp.asarray(points, jnp.float32)), axis=1)) != y
    np.testing.assert_allclose(found, whole, atol=1e-5)
    np.testing.assert_array_equal(wrong(found), wrong(whole))
    assert 2 < wrong(whole).sum() < len(y)


def on_four_devices(folder: str, rank: str, port: str) -> dict[str, Any]:
    """Run in a process with four devices."""
    step: Any = fit_module._advance
    texts: list[str] = []

    def look(*args: Any) -> Any:
        if not texts:
            texts.append(step.lower(*args).compile().compiled.as_text())
        return step(*args)

    plain, x = train(), data()[0]
    found: dict[str, Any] = {
        "plain": [losses(plain), parameters(plain)],
        "predictions": np.asarray(plain.program.predict(x)).tolist(),
    }
    for count in (1, 2, 4):
        mesh = mesh_of(count)
        fit_module._advance = look if count == 4 else step
        result = train(mesh=mesh)
        apart = plain.program.predict(jax.device_put(x, NamedSharding(mesh, PartitionSpec("data"))))
        arrays = [leaf for leaf in jax.tree.leaves(result.program) if eqx.is_array(leaf)]
        found[f"{count} devices"] = {
            "training": [losses(result), parameters(result)],
            "devices of the result": len({device for leaf in arrays for device in leaf.devices()}),
            "predictions": np.asarray(apart).tolist(),
            "shards of the predictions": len({str(shard.index) for shard in apart.addressable_shards}),
        }
    fit_module._advance = step
    return {**found, "compiled": texts[0]}


def more_on_four_devices(folder: str, rank: str, port: str) -> dict[str, Any]:
    """Run in a process with four devices."""
    mesh, place = mesh_of(4), Path(folder) / "devices"
    shared = ld.MonteCarlo(ld.Cube(8))
    train(mesh=mesh, folder=place, epochs=1)
    found = {
        "4 devices, shared samples": losses(train(mesh=mesh, objective=shared)),
        "4 devices, several steps at once": losses(train(mesh=mesh, steps_per_dispatch=2)),
        "resumed with 2 of 4 devices": losses(train(mesh=mesh_of(2), folder=place)),
        "uneven batch": message_of(lambda: train(mesh=mesh, batch_size=6)),
        "uneven data": message_of(lambda: train(mesh=mesh, data=tuple(leaf[:15] for leaf in data()))),
    }
    # The devices take as many steps as the slowest example needs.
    with jax.enable_x64(True):
        options = {
            "objective": ld.EndToEnd(diffrax.Heun()),
            "optimizer": optax.adam(1e-2),
            "augment": None,
            "epochs": 2,
        }
        options |= {"validation": None, "select": "last"}
        both = [train(mesh=some, **options) for some in (None, mesh)]
        found["adaptive steps"] = [[record["loss"] for record in result.history] for result in both]
    return found


def attacks_on_four_devices(folder: str, rank: str, port: str) -> dict[str, Any]:
    """Run in a process with four devices."""
    evaluate: Any = _climb._evaluate
    texts: list[str] = []

    def look(*args: Any) -> Any:
        if not texts:
            texts.append(evaluate.lower(*args).compile().compiled.as_text())
        return evaluate(*args)

    function = victim()[0]
    found: dict[str, Any] = {name: {"1": attack(name), "4": attack(name, mesh=mesh_of(4))} for name in ATTACKS}
    _climb._evaluate = look
    found["apgd_ce"] |= {f"{count} of 4": attack("apgd_ce", mesh=mesh_of(count)) for count in (4, 2)}
    _climb._evaluate = evaluate
    rounded = lambda x: function(jnp.round(x * 1024) / 1024)
    through = [attack("apgd_ce", function=rounded, surrogate=function, mesh=mesh) for mesh in (None, mesh_of(4))]
    plain = lambda x: np.asarray(function(x))
    return {
        "attacks": found,
        "compiled": texts[0],
        "through a surrogate": through,
        "untraceable": [
            message_of(lambda name=name: attack(name, function=plain, mesh=mesh_of(4))) for name in ("square", "noise")
        ],
        "untraceable, with a surrogate": message_of(
            lambda: attack("fab", function=plain, surrogate=function, mesh=mesh_of(4))
        ),
        "uneven": [message_of(lambda name=name: attack(name, batch_size=10, mesh=mesh_of(4))) for name in ATTACKS],
        "one batch": len(attack("pgd", batch_size=None, mesh=mesh_of(4))),
    }


@pytest.mark.full
def test_attacks_on_several_devices_find_what_one_finds(tmp_path: Path) -> None:
    (found,) = in_processes(attacks_on_four_devices, tmp_path, processes=1, devices=4)
    for points in found["attacks"].values():
        for count in points:
            check_points(points[count], points["1"])
    one, four = found["through a surrogate"]
    np.testing.assert_allclose(four, one, atol=1e-5)
    # Of the 8 inputs of a batch every device works on two.
    assert "f32[2,5]" in found["compiled"]
    assert "f32[8,5]" not in found["compiled"]
    expected = "function: expected one that JAX can trace, since mesh is given, got one that it cannot"
    assert {*found["untraceable"], found["untraceable, with a surrogate"]} == {expected}
    assert set(found["uneven"]) == {"batch_size: expected a multiple of the 4 devices of mesh, got 10"}
    assert found["one batch"] == 22


@pytest.mark.parametrize(
    ("x64", "rtol"), [pytest.param(False, 1e-4, id="float32"), pytest.param(True, 1e-9, id="float64", marks=full)]
)
def test_several_devices_give_the_numbers_of_one(x64: bool, rtol: float, tmp_path: Path) -> None:
    (found,) = in_processes(on_four_devices, tmp_path, processes=1, devices=4, x64=x64)
    near = lambda a, b: np.testing.assert_allclose(np.hstack(a), np.hstack(b), rtol=rtol, atol=rtol)
    whole = found["plain"][0]
    assert len(whole) == EPOCHS
    assert whole[-1][0] < 0.5 * whole[0][0]
    for count in (1, 2, 4):
        of = found[f"{count} devices"]
        near(of["training"][0], whole)
        near(of["training"][1], found["plain"][1])
        near(of["predictions"], found["predictions"])
        assert of["devices of the result"] == 1
        assert of["shards of the predictions"] == count
    # Of the 16 examples of a batch every device works on four; what they find out is added up.
    kind = "f64" if x64 else "f32"
    assert "all-reduce" in found["compiled"]
    assert f"{kind}[4,3]" in found["compiled"]
    assert f"{kind}[16,3]" not in found["compiled"]


@pytest.mark.full
def test_options_go_together_with_several_devices(tmp_path: Path) -> None:
    (found,) = in_processes(more_on_four_devices, tmp_path, processes=1, devices=4)
    near = lambda a, b: np.testing.assert_allclose(np.hstack(a), np.hstack(b), rtol=1e-4, atol=1e-4)
    whole = losses(train())
    near(found["4 devices, shared samples"], losses(train(objective=ld.MonteCarlo(ld.Cube(8)))))
    near(found["4 devices, several steps at once"], whole)
    near(found["resumed with 2 of 4 devices"], whole)
    np.testing.assert_allclose(*found["adaptive steps"], rtol=1e-9)
    assert found["uneven batch"] == "batch_size: expected a multiple of the 4 devices of mesh, got 6"
    expected = "batch_size: expected a multiple of the 4 devices of mesh, got 15 (all examples of data)"
    assert found["uneven data"] == expected


def in_two_processes(folder: str, rank: str, port: str) -> dict[str, Any]:
    """Run in two processes with two devices each."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    jax.distributed.initialize(f"localhost:{port}", 2, int(rank))
    mesh, places = mesh_of(4), Path(folder)
    assert mesh.size == 2 * jax.local_device_count()
    whole = train(mesh=mesh)
    train(mesh=mesh, folder=places / "of two", epochs=2)
    resumed = train(mesh=mesh, folder=places / "of one")
    x, y = data()
    found = {
        "whole": [losses(whole), parameters(whole)],
        "resumed": [losses(resumed), parameters(resumed)],
        "predictions": np.asarray(whole.program.predict(x)).tolist(),
        "other data": message_of(lambda: train(mesh=mesh, data=(x + int(rank), y))),
        "other epochs": message_of(lambda: train(mesh=mesh, epochs=EPOCHS if rank == "0" else 0)),
        "other order": message_of(lambda: train(mesh=Mesh(np.roll(mesh.devices, int(rank)), ("data",)))),
        "no mesh": message_of(lambda: train(folder=places / "none")),
        "damaged": message_of(lambda: train(mesh=mesh, folder=places / "damaged")),
        "not all of mesh": message_of(lambda: train(mesh=_mesh_of_the_other(), batch_size=16)),
    }

    def fails(x: Any) -> Any:
        if rank == "1":
            raise FileNotFoundError("no weights here")
        return victim()[0](x)

    found["attacks"] = {name: attack(name, mesh=mesh) for name in ("apgd_ce", "pgd")}
    found["few inputs"] = attack("square", mesh=mesh, x=victim()[1][:1], y=victim()[2][:1])
    found["another key"] = message_of(lambda: attack("square", mesh=mesh, key=jax.random.key(int(rank))))
    with pytest.raises(FileNotFoundError) as caught:
        attack("square", function=fails, mesh=mesh)
    found["fails"] = [str(caught.value), "raised in process 1" in getattr(caught.value, "__notes__", [])]

    # As in `test_checkpoint`: SGD takes the weight down by 0.1 a step, and from -0.6 on the loss is NaN.
    options = {"optimizer": optax.sgd(0.1), "batch_size": 4, "augment": None, "validation": None, "select": "last"}
    options |= {"data": (jnp.ones((8, 1)), None), "folder": places / "NaN", "throw": False}
    failed = train(program=one_weight(level=-0.55), mesh=mesh, **options)
    found["NaN"] = [failed.status, weight_of(failed.program)]

    class Bar(fit_module.tqdm):
        def update(self, n: Any = 1) -> Any:
            # In the second process alone, before the second epoch ends.
            if rank == "1" and not pressed:
                pressed.append(True)
                signal.raise_signal(signal.SIGINT)
            return super().update(n)

    pressed: list[bool] = []
    fit_module.tqdm = Bar
    stopped = train(mesh=mesh, folder=places / "stopped", throw=False)
    found["stopped"] = [stopped.status, (places / "stopped" / "checkpoint.npz").exists()]
    return found


def _mesh_of_the_other() -> Mesh:
    others = [device for device in jax.devices() if device.process_index != jax.process_index()]
    return Mesh(np.asarray(others), ("data",))


def test_two_processes_give_the_numbers_of_one_and_share_checkpoints(tmp_path: Path) -> None:
    whole = train()
    train(folder=tmp_path / "of one", epochs=2)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "checkpoint.npz").write_text("nothing")
    first, second = in_processes(in_two_processes, tmp_path, processes=2, devices=2)
    near = lambda a, b: np.testing.assert_allclose(np.hstack(a), np.hstack(b), rtol=1e-4, atol=1e-4)
    expected = [losses(whole), parameters(whole)]
    for found in (first, second):
        for run in ("whole", "resumed"):
            near(found[run][0], expected[0])
            near(found[run][1], expected[1])
        near(found["predictions"], np.asarray(whole.program.predict(data()[0])))
        assert (
            found["other data"]
            == "mesh: expected the same call in every process, got another data set in process 1 than in process 0"
        )
        assert "damaged or cut off" in found["damaged"]
        assert found["other epochs"] == "epochs: expected a positive whole number, got 0"
        assert found["other order"].endswith("got another mesh in process 1 than in process 0")
        assert found["no mesh"].startswith(
            "mesh: expected one, since 2 processes would write the same folder, got None"
        )
        for name, points in found["attacks"].items():
            check_points(points, attack(name))
        np.testing.assert_array_equal(found["few inputs"], victim()[1][:1])
        assert found["another key"].endswith("got another set of classes or keys in process 1 than in process 0")
        assert found["fails"][0] == "no weights here"
        assert (
            "mesh: expected devices of every process that makes this call, got none of process"
            in found["not all of mesh"]
        )
        assert found["NaN"] == ["NaN or Inf at step 6", pytest.approx(-0.6)]
        assert found["stopped"] == ["interrupted at step 3", True]
    assert first["whole"] == second["whole"]
    assert first["attacks"] == second["attacks"]
    assert [found["fails"][1] for found in (first, second)] == [True, False]
    # What two processes wrote, one goes on with; and there is one line of metrics for every epoch.
    resumed = train(folder=tmp_path / "of two")
    near(losses(resumed), expected[0])
    near(parameters(resumed), expected[1])
    for place in ("of one", "of two"):
        lines = [json.loads(line) for line in (tmp_path / place / "metrics.jsonl").read_text().splitlines()]
        assert [line["epoch"] for line in lines if line["record"] == "epoch"] == list(range(EPOCHS))
    assert train(folder=tmp_path / "stopped").status == "done"


class Pretended(Team):
    """One of two processes that are threads."""

    def __init__(self, rank: int, said: list[Any], wait: threading.Barrier):
        super().__init__(None)
        self.processes, self.owners, self.alone, self.leads = [0, 1], np.asarray([0, 1]), False, rank == 0
        self.place, self.said, self.wait = rank, said, wait
        self.mesh: Any = SimpleNamespace(devices=np.asarray([SimpleNamespace(id=number) for number in (0, 1)]))

    def _meet(self) -> None:
        pass

    def _rows(self, array: Any, which: Any = ...) -> Any:
        self.said[self.place] = np.array(array)
        self.wait.wait(20)
        rows = np.stack(self.said)
        self.wait.wait(20)
        return rows[which]


def in_threads(call: Callable[[Pretended], Any]) -> list[Any]:
    """What a function of a team returned or raised in each of two pretended processes; a hang ends by a broken barrier."""
    wait, said = threading.Barrier(2), [None, None]

    def one(rank: int) -> Any:
        try:
            return call(Pretended(rank, said, wait))
        except Exception as error:
            return error

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(one, range(2)))


class Mine(Exception):
    """An error of somebody's own."""


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (ValueError("damaged"), ValueError, "damaged"),
        (PermissionError(13, "Permission denied"), PermissionError, "[Errno 13] Permission denied"),
        (UserWarning("could not be written"), UserWarning, "could not be written"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "odd"), RuntimeError, "UnicodeDecodeError: 'utf-8' codec can't"),
        (Mine("own"), RuntimeError, "Mine: own"),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_of_one_process_is_raised_in_the_other(error: Any, kind: type, text: str, failing: int) -> None:
    def fail() -> Any:
        raise error

    def call(team: Pretended) -> Any:
        with team.together():
            if team.place == failing:
                fail()

    tell = (lambda team: team.told(fail)) if failing == 0 else call
    for found in (in_threads(call), in_threads(tell)):
        assert found[failing] is error
        other = found[1 - failing]
        assert type(other) is kind
        assert str(other).startswith(text)
        assert other.__notes__ == [f"raised in process {failing}"]


def test_what_the_leader_tells() -> None:
    assert in_threads(lambda team: team.told(lambda: team.place)) == [0, 0]
    assert in_threads(lambda team: team.first(["ü" * 100 * (1 + team.place)])) == [["ü" * 100]] * 2
    # What JSON cannot write is no reason to wait for ever.
    assert [type(found) for found in in_threads(lambda team: team.first(object()))] == [TypeError, TypeError]
    assert in_threads(lambda team: team.agree(team.place == 1, team.place == 1)) == [(True, False)] * 2


def test_arrays_of_the_leader_keep_their_kind() -> None:
    def call(team: Pretended) -> Any:
        place = team.place
        return team.first_arrays(
            {
                "jax": jnp.full(2, place),
                "numpy": np.full(2, float(place)),
                "few": jnp.zeros((), jnp.bfloat16) + place,
                "key": jax.random.key(place),
                "text": "as it is",
            }
        )

    first, second = in_threads(call)
    for found in (first, second):
        assert isinstance(found["jax"], jax.Array)
        assert type(found["numpy"]) is np.ndarray
        np.testing.assert_array_equal([*found["jax"], *found["numpy"], found["few"]], np.zeros(5))
        assert (found["numpy"].dtype, found["few"].dtype, found["few"].shape) == (np.float64, jnp.bfloat16, ())
        assert found["key"] == jax.random.key(0)
        assert found["text"] == "as it is"


def test_another_mesh_or_another_call_is_named() -> None:
    def call(team: Pretended) -> None:
        team.mesh.devices = np.roll(team.mesh.devices, team.place)
        team.check_same({"key": "same"})

    same = "mesh: expected the same call in every process, got another"
    assert [str(error) for error in in_threads(call)] == [f"{same} mesh in process 1 than in process 0"] * 2
    other = in_threads(lambda team: team.check_same({"key": "same", "data set": str(team.place)}))
    assert [str(error) for error in other] == [f"{same} data set in process 1 than in process 0"] * 2


@pytest.mark.parametrize("count", [1, 2, 7])
def test_shares_are_put_together(count: int) -> None:
    whole = np.arange(3 * count).reshape(count, 3)
    found = in_threads(lambda team: team.gather(whole[team._rows_of(team.place, count)], count))
    for rows in found:
        np.testing.assert_array_equal(rows, whole)


def test_a_folder_that_is_gone_is_an_error_in_all_where_warnings_are(tmp_path: Path) -> None:
    """Warnings are errors in these tests; the leader alone would have stopped."""

    def call(team: Pretended) -> None:
        folder = Folder(tmp_path / "gone", {}, {}, 0.0, team)
        if team.leads:
            shutil.rmtree(tmp_path / "gone")
        try:
            folder.log([{"loss": 1.0}])
        finally:
            folder.release()

    for error in in_threads(call):
        assert isinstance(error, UserWarning)
        assert "metrics.jsonl: could not be written" in str(error)


def test_a_folder_without_a_mesh_is_refused_where_processes_are_several(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert "mesh: expected one, since 2 processes" in message_of(lambda: train(folder=tmp_path))
    assert train(folder=tmp_path, mesh=mesh_of(1), epochs=1).status == "done"


def test_a_state_of_numpy_arrays_is_kept(tmp_path: Path) -> None:
    """Momentum of an optimizer that begins with NumPy's zeros."""
    zeros = lambda params: jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), params)

    def update(grads: Any, state: Any, params: Any = None) -> Any:
        state = jax.tree.map(lambda old, new: 0.9 * old + new, state, grads)
        return jax.tree.map(lambda leaf: -0.05 * leaf, state), state

    options = {"optimizer": optax.GradientTransformation(zeros, update), "mesh": mesh_of(1)}
    whole = train(**options)
    train(folder=tmp_path, epochs=2, **options)
    assert losses(train(folder=tmp_path, **options)) == losses(whole)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: 4, r"mesh: expected a jax\.sharding\.Mesh, made by jax\.make_mesh\(\(n,\), .*, got int 4"),
        (lambda: Mesh(np.asarray(jax.devices()[:1]).reshape(1, 1), ("a", "b")), r"mesh: expected one axis, .* got \{'a': 1, 'b': 1\}"),
        (
            lambda: jax.make_mesh((1,), ("data",), axis_types=(AxisType.Explicit,), devices=jax.devices()[:1]),
            r"mesh: expected an axis of type Auto \(diffrax needs it\), made by .*, got Explicit",
        ),
    ],
    ids=["number", "two axes", "explicit"],
)  # fmt: skip
def test_another_mesh_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train(mesh=make())


@pytest.mark.full
def test_the_scripts_of_the_page_run_as_printed(tmp_path: Path) -> None:
    """Training on four devices and, in another folder, in two processes, which attack what they trained; then the same
    attack with 1, 2 and 4 devices, which go on with that folder."""
    script, attack, predict = blocks("docs/scale_out.md")
    keep = "import numpy as np\nnp.save(f'points{jax.process_index()}.npy', attacked)\n"
    (tmp_path / "train.py").write_text(script)
    (tmp_path / "attack.py").write_text(script + attack + keep)
    (tmp_path / "predict.py").write_text(script + attack + keep + predict + "print(len(logits.sharding.device_set))")
    one, two = tmp_path / "one", tmp_path / "two"
    for place in (one, two):
        place.mkdir()
    pair = [["../attack.py", address, "2", rank] for address in [f"localhost:{free_port()}"] for rank in "01"]
    trained, *pair = together([["../train.py"], *pair], [one, two, two], [4, 1, 1])
    assert "validation error 0.0" in trained
    assert trained.splitlines()[-1].startswith("4 devices: loss ")
    *_, loss, error = pair[0].splitlines()
    assert loss == trained.splitlines()[-1].replace("4 devices", "2 devices")
    assert 0 < float(error.removeprefix("error under attack ")) < 1
    assert "loss" not in pair[1]
    assert "error under" not in pair[1]
    whole = np.load(two / "points0.npy")
    np.testing.assert_array_equal(np.load(two / "points1.npy"), whole)

    folders = [tmp_path / f"{count} devices" for count in (1, 2, 4)]
    for folder in folders:
        shutil.copytree(two / "run", folder / "run")
    alone = together([["../attack.py"], ["../attack.py"], ["../predict.py"]], folders, [1, 2, 4])
    assert alone[2].splitlines().pop() == "4"
    for output, folder in zip(alone, folders, strict=True):
        assert output.splitlines()[:2] == [loss.replace("2 devices", folder.name), error]
        # Cross entropy is flat where the class is lost: the points there depend on rounding most.
        np.testing.assert_allclose(np.load(folder / "points0.npy"), whole, atol=2e-3)
