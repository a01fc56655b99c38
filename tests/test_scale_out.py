"""Data parallel training: on several devices and in several processes it is what it is on one device, up to rounding.

What needs several devices runs in processes of its own, which import this module and leave their results in a file.
"""

import functools
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from test_fit import blobs, classifier, one_weight, weight_of

import lyapunov_dsl as ld
import lyapunov_dsl._fit as fit_module

pytestmark = pytest.mark.usefixtures("quick")
# Processes compile for minutes: these run at full size only.
full = [pytest.mark.slow, pytest.mark.skipif("LYAPUNOV_DSL_REDUCED" in os.environ, reason="at full size only")]

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


def together(arguments: list[list[str]], folder: Path, devices: int, x64: bool = False) -> list[str]:
    """The outputs of Python processes that run at the same time."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_ENABLE_X64": str(int(x64)),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
    }
    running: list[subprocess.Popen[str]] = []
    try:
        for some in arguments:
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
            running.append(subprocess.Popen([sys.executable, *some], env=environment, cwd=folder, **pipes))
        outputs = [process.communicate(timeout=400)[0] for process in running]
        assert all(process.returncode == 0 for process in running), "\n".join(outputs)
        return outputs
    finally:
        for process in running:
            process.kill()


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
    together(arguments, folder, devices, x64)
    return [json.loads((folder / f"{function.__name__}{rank}").read_text()) for rank in range(processes)]


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
    return {
        "4 devices, shared samples": losses(train(mesh=mesh, objective=shared)),
        "4 devices, several steps at once": losses(train(mesh=mesh, steps_per_dispatch=2)),
        "resumed with 2 of 4 devices": losses(train(mesh=mesh_of(2), folder=place)),
        "uneven batch": message_of(lambda: train(mesh=mesh, batch_size=6)),
        "uneven data": message_of(lambda: train(mesh=mesh, data=tuple(leaf[:15] for leaf in data()))),
    }


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


def test_options_go_together_with_several_devices(tmp_path: Path) -> None:
    (found,) = in_processes(more_on_four_devices, tmp_path, processes=1, devices=4)
    near = lambda a, b: np.testing.assert_allclose(np.hstack(a), np.hstack(b), rtol=1e-4, atol=1e-4)
    whole = losses(train())
    near(found["4 devices, shared samples"], losses(train(objective=ld.MonteCarlo(ld.Cube(8)))))
    near(found["4 devices, several steps at once"], whole)
    near(found["resumed with 2 of 4 devices"], whole)
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
        "damaged": message_of(lambda: train(mesh=mesh, folder=places / "damaged")),
        "not all of mesh": message_of(lambda: train(mesh=_mesh_of_the_other(), batch_size=16)),
    }

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
        assert "mesh: expected devices of every process that calls fit, got none of process" in found["not all of mesh"]
        assert found["NaN"] == ["NaN or Inf at step 6", pytest.approx(-0.6)]
        assert found["stopped"] == ["interrupted at step 3", True]
    assert first["whole"] == second["whole"]
    # What two processes wrote, one goes on with; and there is one line of metrics for every epoch.
    resumed = train(folder=tmp_path / "of two")
    near(losses(resumed), expected[0])
    near(parameters(resumed), expected[1])
    for place in ("of one", "of two"):
        lines = [json.loads(line) for line in (tmp_path / place / "metrics.jsonl").read_text().splitlines()]
        assert [line["epoch"] for line in lines if line["record"] == "epoch"] == list(range(EPOCHS))
    assert train(folder=tmp_path / "stopped").status == "done"


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


def test_the_script_of_the_page_runs_as_printed(tmp_path: Path) -> None:
    """On four devices, in two processes in another folder, and once more in the first one."""
    page = (Path(__file__).parent.parent / "docs" / "scale_out.md").read_text()
    script, predict = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    (tmp_path / "train.py").write_text(script)
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
    address = f"localhost:{free_port()}"
    (one,) = together([["../train.py"]], tmp_path / "one", devices=4)
    two = together([["../train.py", address, "2", rank] for rank in "01"], tmp_path / "two", devices=1)
    assert "validation error 0.0" in one
    assert one.splitlines()[-1].startswith("4 devices: loss ")
    assert two[0].splitlines()[-1] == one.splitlines()[-1].replace("4 devices", "2 devices")
    assert "loss" not in two[1]
    (tmp_path / "train.py").write_text(script + predict + "print(len(logits.sharding.device_set))")
    (again,) = together([["../train.py"]], tmp_path / "two", devices=4)
    assert again.splitlines()[-2:] == [one.splitlines()[-1], "4"]
