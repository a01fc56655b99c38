"""Fixtures for all tests.

Nothing of `lyapunov_dsl` is imported here at the top: a conftest is loaded before jaxtyping's import hook is installed,
and what is imported before that goes unchecked.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import pytest

# What other runs have kept is no part of a test.
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
jax.config.update("jax_enable_compilation_cache", False)

# A first example compiles for seconds, and the fixtures below hold no state that an example could change.
_HEALTH = [hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.function_scoped_fixture]
hypothesis.settings.register_profile("same", derandomize=True, deadline=None, suppress_health_check=_HEALTH)
hypothesis.settings.register_profile("free", deadline=None, suppress_health_check=_HEALTH)
hypothesis.settings.load_profile("same")


def pytest_configure(config: pytest.Config) -> None:
    """Draws the same examples in every run, unless a seed is asked for or seeds are free."""
    # A derandomized run would ignore the seed.
    if os.environ.get("LYAPUNOV_DSL_FREE_SEEDS") == "1" or config.getoption("--hypothesis-seed", None) is not None:
        hypothesis.settings.load_profile("free")


# Their slow tests compile for ten minutes in all, and are variants of the fast ones.
VARIANTS = ("test_bounds", "test_bounds_rules", "test_prove")
# Of these, the fast tests in one precision do.
ONCE = ("test_certify", "test_compile", "test_image_models")

# Each compiles for about half a minute, and its like is tested beside it.
LONG = {
    "test_bounds.py::test_gradients_of_bounds_by_weights_and_by_the_box[tanh]",
    "test_bounds.py::test_jit_vmap_and_eager_agree_and_hold[float64]",
    "test_bounds.py::test_tighter_methods_are_tighter_and_all_hold[tanh-float64]",
    "test_checkpoint.py::test_ctrl_c_leaves_a_state_that_resumes_to_the_same_numbers[3]",
    "test_family.py::test_proved_where_it_holds_and_refuted_where_it_does_not[asymptotic]",
    "test_family.py::test_proved_where_it_holds_and_refuted_where_it_does_not[input to state]",
    "test_family.py::test_proved_where_it_holds_and_refuted_where_it_does_not[barrier of degree 2]",
    "test_image_models.py::test_discrete_systems_learn_a_separable_problem[continuous_net-EndToEnd]",
    "test_image_models.py::test_a_discrete_system_on_images[resnet18]",
    "test_lipschitz.py::test_local_constants_hold_between_any_two_points[2]",
    "test_report.py::test_the_curve_is_what_predict_does[fixed]",
    "test_robust.py::test_a_linear_system_gets_its_exact_radius[tube-2]",
    "test_robust.py::test_a_readout_with_a_large_constant_counts",
    "test_robust.py::test_a_system_without_a_context",
    "test_scale_out.py::test_several_devices_give_the_numbers_of_one[float32]",
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Makes `full` tests slow ones, and skips them at reduced size."""
    for item in items:
        slow = item.get_closest_marker("slow") is not None
        whole = item.get_closest_marker("full") is not None or (slow and item.path.stem in VARIANTS)
        whole |= item.nodeid.split("/")[-1] in LONG
        callspec = getattr(item, "callspec", None)
        if callspec is not None and item.path.stem in ONCE and callspec.params.get("precision") == "float64":
            whole = True
        if whole and not slow:
            item.add_marker("slow")
        if whole and "LYAPUNOV_DSL_REDUCED" in os.environ:
            item.add_marker(pytest.mark.skip(reason="at full size only"))


@pytest.fixture(params=["float32", "float64"])
def precision(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The default float dtype, float32 and then float64 (x64 is on within the test only)."""
    with jax.enable_x64(request.param == "float64"):
        yield jnp.dtype(request.param)


@pytest.fixture(scope="module", autouse=True)
def forget() -> Iterator[None]:
    """Frees what a module compiled: every executable maps memory, and a process may have so many maps (65,530 on Linux)
    before the compiler crashes."""
    yield
    jax.clear_caches()


@pytest.fixture
def key() -> Any:
    """A fixed PRNG key; split it for more."""
    return jax.random.key(0)


def _quick() -> Iterator[None]:
    """Compiles without most optimizations, two to four times as fast; for tests that do not look at rounding."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


quickly = contextlib.contextmanager(_quick)
quick = pytest.fixture(_quick, name="quick")
quick_module = pytest.fixture(_quick, name="quick_module", scope="module")


@pytest.fixture
def compilations() -> Iterator[list[str]]:
    """Grows by one entry with every XLA compilation. Counting traces in a user's function misses those where JAX has
    the inner jaxpr cached."""
    seen: list[str] = []
    events = {"/jax/core/compile/backend_compile_duration"}
    listener = lambda event, duration, **_: seen.append(event) if event in events else None
    jax.monitoring.register_event_duration_secs_listener(listener)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listener)


@pytest.fixture
def strict() -> Iterator[None]:
    """No implicit promotion of dtypes (a weakly typed Python scalar is fine) and none of ranks."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture
def tfds() -> Any:
    """TensorFlow Datasets, which works without TensorFlow."""
    return pytest.importorskip("tensorflow_datasets")


@pytest.fixture
def prepared(tmp_path: Path, tfds: Any) -> Any:
    """What TensorFlow Datasets would leave in a folder but for the images, which `mock_data` draws."""

    def prepare(name: str = "mnist", version: str | None = None, file_format: str = "array_record") -> Path:
        builder = tfds.builder(name, data_dir=tmp_path)
        folder = tmp_path / name / (version or str(builder.version))
        folder.mkdir(parents=True)
        splits = [
            {"name": split, "numBytes": "1", "shardLengths": ["7"], "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"}
            for split in ("train", "test")
        ]  # fmt: skip
        info = {"name": name, "version": folder.name, "fileFormat": file_format, "splits": splits}
        (folder / "dataset_info.json").write_text(json.dumps(info))
        builder.info.features.save_config(folder)
        return folder

    return prepare
