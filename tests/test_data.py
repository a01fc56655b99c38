"""Data sets: prepared folders, `.npz` files, the first download, and one sentence where there is nothing."""

import importlib
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from lyapunov_dsl import data

SHARED = Path(__file__).parents[2] / "shared" / "tfds"


def arrays(shape=(28, 28), count=6, **changes):
    """An `.npz` in the layout of Keras."""
    rng = np.random.default_rng(0)
    parts = {}
    for split in ("train", "test"):
        parts[f"x_{split}"] = rng.integers(0, 256, (count, *shape)).astype(np.uint8)
        parts[f"y_{split}"] = rng.integers(0, 10, count).astype(np.uint8)
    return {k: v for k, v in {**parts, **changes}.items() if v is not None}


def save(folder, name="mnist.npz", **changes):
    file = folder / name
    np.savez(file, **arrays(**changes))
    return file


@pytest.fixture
def without(monkeypatch):
    """Hides a package, as if it were not installed."""
    return lambda name: monkeypatch.setitem(sys.modules, name, None)


@pytest.fixture
def no_tensorflow(monkeypatch):
    """As if it were not installed. (TensorFlow Datasets itself stumbles where `sys.modules` says so.)"""
    monkeypatch.setattr(data, "_has_tensorflow", lambda: False)


def check(dataset, name, shape, classes=10):
    assert (dataset.name, dataset.classes) == (name, classes)
    for x, y in (dataset.train, dataset.test):
        assert x.dtype == np.uint8
        assert y.dtype == np.int32
        assert x.shape == (len(y), *shape)
        assert x.flags.c_contiguous
        assert 0 <= y.min() <= y.max() < classes


def test_importing_the_library_imports_neither_this_nor_tensorflow_datasets():
    code = (
        "import sys, lyapunov_dsl; print([m for m in ('lyapunov_dsl.data', 'tensorflow_datasets') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("where", ["file", "folder", "string"])
def test_npz(tmp_path, where, without):
    without("tensorflow_datasets")
    file = save(tmp_path)
    dataset = data.load("mnist", {"file": file, "folder": tmp_path, "string": str(file)}[where])
    check(dataset, "mnist", (1, 28, 28))
    np.testing.assert_array_equal(dataset.train[0][:, 0], arrays()["x_train"])
    np.testing.assert_array_equal(dataset.test[1], arrays()["y_test"])


def test_npz_with_channels_and_labels_in_a_column(tmp_path):
    column = np.arange(6, dtype=np.int64)[:, None]
    file = save(tmp_path, shape=(32, 32, 3), y_train=column, y_test=column)
    dataset = data.load("cifar10", file)
    check(dataset, "cifar10", (3, 32, 32))
    np.testing.assert_array_equal(dataset.train[0][:, 2], arrays((32, 32, 3))["x_train"][..., 2])
    np.testing.assert_array_equal(dataset.train[1], column[:, 0])


BAD = {
    "other keys": ({"x_test": None, "images": np.zeros(3)}, r"an \.npz with .*, got .* with x_train, y_train, y_test, images"),
    "other size": ({"x_train": np.zeros((6, 14, 14), np.uint8)}, r"images uint8 \(N, 28, 28, 1\) .* x_train uint8 \(6, 14, 14, 1\)"),
    "flat": ({"x_test": np.zeros((6, 784), np.uint8)}, r"images uint8 \(N, 28, 28, 1\) for mnist, got x_test uint8 \(6, 784\)"),
    "floats": ({"x_train": np.zeros((6, 28, 28))}, r"images uint8 .* got x_train float64 \(6, 28, 28, 1\)"),
    "empty": ({"x_train": np.zeros((0, 28, 28), np.uint8)}, r"images uint8 .* got x_train uint8 \(0, 28, 28, 1\)"),
    "scalar": ({"x_train": np.uint8(3)}, r"images uint8 .* got x_train uint8 \(\)"),
    "too few labels": ({"y_train": np.zeros(5, np.uint8)}, r"a whole number for each of 6 images, got y_train uint8 \(5,\)"),
    "float labels": ({"y_test": np.zeros(6)}, r"a whole number for each of 6 images, got y_test float64 \(6,\)"),
    "one-hot": ({"y_test": np.zeros((6, 10), np.uint8)}, r"a whole number for each of 6 images, got y_test uint8 \(6, 10\)"),
    "class 10": ({"y_test": np.full(6, 10)}, r"classes 0 to 9 for mnist, got 10 to 10 in y_test"),
    "class -1": ({"y_train": np.arange(6) - 1}, r"classes 0 to 9 for mnist, got -1 to 4 in y_train"),
    "objects": ({"y_train": np.array([None] * 6)}, r"an \.npz .* which cannot be read \(Object arrays cannot be loaded"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_an_npz_of_something_else_is_refused_in_one_sentence(tmp_path, case):
    changes, message = BAD[case]
    file = save(tmp_path, **changes)
    with pytest.raises(ValueError, match=f"data_dir: expected {message}") as caught:
        data.load("mnist", file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "text", "npy"])
def test_a_damaged_npz_is_refused_in_one_sentence(tmp_path, damage):
    file = save(tmp_path)
    whole = file.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes(b ^ 255 for b in whole[middle : middle + 8]) + whole[middle + 8 :]
    if damage == "npy":
        np.save(tmp_path / "plain.npy", np.zeros(3))
        (tmp_path / "plain.npy").rename(file)
    else:
        file.write_bytes({"truncated": whole[:middle], "flipped": flipped, "empty": b"", "text": b"hello"}[damage])
    with pytest.raises(
        ValueError, match=r"data_dir: expected an \.npz with x_train.*got .*, which cannot be read \("
    ) as caught:
        data.load("mnist", file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("cut", range(0, 20_000, 1_999))
def test_wherever_a_compressed_npz_is_cut_it_is_refused(tmp_path, cut):
    file = tmp_path / "mnist.npz"
    np.savez_compressed(file, **arrays(count=40))
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(ValueError, match="which cannot be read"):
        data.load("mnist", file)


def test_names_and_paths(tmp_path):
    with pytest.raises(ValueError, match="name: expected one of mnist, fashion_mnist, cifar10, cifar100, got 'svhn'"):
        data.load("svhn")
    (tmp_path / "data.tar").write_text("")
    with pytest.raises(ValueError, match=r"data_dir: expected a folder or an \.npz file, got the file .*data\.tar"):
        data.load("mnist", tmp_path / "data.tar")
    with pytest.raises(FileNotFoundError, match=r"expected an \.npz .* got .*none\.npz, which does not exist"):
        data.load("mnist", tmp_path / "none.npz")


SHAPES = {"mnist": (1, 28, 28), "fashion_mnist": (1, 28, 28), "cifar10": (3, 32, 32), "cifar100": (3, 32, 32)}


@pytest.mark.parametrize("name", SHAPES)
def test_a_prepared_folder_needs_no_tensorflow(tmp_path, tfds, prepared, no_tensorflow, name):
    folder = prepared(name)
    with tfds.testing.mock_data(num_examples=7, data_dir=str(folder)):
        for where in (tmp_path, folder.parent, folder):
            dataset = data.load(name, where)
            check(dataset, name, SHAPES[name], 100 if name == "cifar100" else 10)
            assert len(dataset.train[1]) == 7
    assert "tensorflow" not in sys.modules


def test_the_newest_version_is_taken(tfds, prepared, tmp_path):
    for version in ("3.0.1", "3.0.10", "3.0.2"):
        prepared(version=version)
    assert data._prepared("mnist", tmp_path) == tmp_path / "mnist" / "3.0.10"
    assert data._prepared("cifar10", tmp_path) is None
    assert data._prepared("cifar10", tmp_path / "mnist") is None


def test_the_default_folder_is_that_of_tensorflow_datasets(tfds, prepared, tmp_path, monkeypatch):
    folder = prepared()
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
    with tfds.testing.mock_data(num_examples=3, data_dir=str(folder)):
        assert len(data.load("mnist").test[1]) == 3


def test_nothing_there_and_no_tensorflow(tmp_path, tfds, no_tensorflow, monkeypatch):
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path / "default"))
    for where in (None, tmp_path / "given"):
        looked = tmp_path / ("default" if where is None else "given")
        with pytest.raises(FileNotFoundError) as caught:
            data.load("mnist", where)
        assert str(caught.value) == (
            f"data_dir: {looked} holds neither mnist/VERSION/dataset_info.json nor mnist.npz; give --data-dir (data_dir=) a "
            "folder that TensorFlow Datasets has prepared or an .npz with x_train, y_train, x_test, y_test, or pip install "
            "tensorflow for the first download"
        )
        assert not looked.exists()


def test_no_tensorflow_datasets(tmp_path, without):
    without("tensorflow_datasets")
    with pytest.raises(ImportError) as caught:
        data.load("mnist", tmp_path)
    text = str(caught.value)
    assert (
        f"{tmp_path} holds no mnist.npz, and reading TensorFlow Datasets needs pip install 'lyapunov_dsl[data]'" in text
    )
    assert text.endswith("an .npz with x_train, y_train, x_test, y_test needs nothing")
    with pytest.raises(
        ImportError, match=r"data_dir: reading TensorFlow Datasets needs pip install 'lyapunov_dsl\[data\]'"
    ):
        data.load("mnist")


def test_a_package_that_reading_needs(tmp_path, tfds, prepared, monkeypatch):
    def builder_from_directory(folder):
        raise ModuleNotFoundError("No module named 'PIL'")

    prepared()
    monkeypatch.setattr(tfds, "builder_from_directory", builder_from_directory)
    with pytest.raises(ImportError, match=r"needs pip install 'lyapunov_dsl\[data\]' \(No module named 'PIL'\)"):
        data.load("mnist", tmp_path)


@pytest.fixture
def tensorflow(monkeypatch):
    """Something that can be imported under that name."""
    module = types.ModuleType("tensorflow")
    module.__spec__ = importlib.machinery.ModuleSpec("tensorflow", None)
    monkeypatch.setitem(sys.modules, "tensorflow", module)


class Source:
    """Stands for the records of a split."""

    def __len__(self):
        return 4

    def __getitem__(self, i):
        return {"image": np.full((28, 28, 1), i, np.uint8), "label": i}


def test_the_first_download(tmp_path, tfds, prepared, tensorflow, monkeypatch):
    asked = []

    def download_and_prepare(self, **options):
        asked.append((self.name, options))
        prepared()

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", download_and_prepare)
    monkeypatch.setattr(tfds.core.DatasetBuilder, "as_data_source", lambda self, split: Source())
    for _ in range(2):
        dataset = data.load("mnist", tmp_path)
        check(dataset, "mnist", (1, 28, 28))
        assert dataset.train[0][:, 0, 3, 3].tolist() == dataset.train[1].tolist() == [0, 1, 2, 3]
    assert asked == [("mnist", {"file_format": "array_record"})]


def test_a_download_that_fails(tmp_path, tfds, tensorflow, monkeypatch):
    def download_and_prepare(self, **options):
        raise ConnectionError("no route to host\nand pages more")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", download_and_prepare)
    with pytest.raises(
        OSError, match=r"could not be downloaded and prepared in .*\(ConnectionError: no route to host\)"
    ) as caught:
        data.load("mnist", tmp_path)
    assert "\n" not in str(caught.value)
    assert "an .npz with x_train" in str(caught.value)


def test_records_that_are_missing(tmp_path, prepared):
    prepared()
    with pytest.raises(
        ValueError, match=r"expected mnist as TensorFlow Datasets prepares it, got .*, which cannot be read"
    ) as caught:
        data.load("mnist", tmp_path)
    assert "\n" not in str(caught.value)


def test_records_that_tensorflow_alone_can_read(tmp_path, prepared, no_tensorflow):
    prepared(file_format="tfrecord")
    with pytest.raises(ValueError, match="TFRecord files need TensorFlow"):
        data.load("mnist", tmp_path)


@pytest.mark.skipif(not (SHARED / "mnist").is_dir(), reason="needs MNIST prepared in ../shared/tfds")
@pytest.mark.full
def test_the_real_mnist(capfd):
    dataset = data.load("mnist", SHARED)
    check(dataset, "mnist", (1, 28, 28))
    (x, y), (x_test, y_test) = dataset.train, dataset.test
    assert (len(y), len(y_test)) == (60_000, 10_000)
    assert np.bincount(y).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(y_test).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    for images in (x, x_test):
        assert (images.min(), images.max()) == (0, 255)
    # Dark ground, and the known mean and standard deviation of all pixels: not shuffled, inverted or rescaled.
    assert x.mean() / 255 == pytest.approx(0.1307, abs=1e-4)
    assert x.std() / 255 == pytest.approx(0.3081, abs=1e-4)
    assert capfd.readouterr() == ("", "")


IMAGE = np.random.default_rng(0).integers(1, 256, (3, 6, 8)).astype(np.uint8)


def augmented(count: int = 200, **options: Any) -> np.ndarray:
    keys = jax.random.split(jax.random.key(0), count)
    return np.asarray(jax.jit(jax.vmap(data.Augment(**options), (None, 0)))(IMAGE, keys))


def test_without_options_an_image_is_only_converted() -> None:
    images = augmented(2)
    assert images.dtype == np.float32
    assert np.array_equal(images[0], data.to_float(IMAGE))


def test_half_of_the_images_are_mirrored() -> None:
    plain, mirrored = data.to_float(IMAGE), data.to_float(IMAGE)[:, :, ::-1]
    flipped = [np.array_equal(image, mirrored) for image in augmented(flip=True)]
    assert all(np.array_equal(i, plain) or f for i, f in zip(augmented(flip=True), flipped, strict=True))
    assert 70 <= sum(flipped) <= 130


def test_a_crop_is_a_shift_with_black_behind_it() -> None:
    padded = np.pad(data.to_float(IMAGE), ((0, 0), (2, 2), (2, 2)))
    shifts = {(i, j): padded[:, i : i + 6, j : j + 8] for i in range(5) for j in range(5)}
    seen = {where for image in augmented(crop=2) for where, s in shifts.items() if np.array_equal(image, s)}
    assert seen == set(shifts)


def test_cutout_blackens_a_square_and_nothing_else() -> None:
    plain = data.to_float(IMAGE)
    areas = set()
    for image in augmented(cutout=3):
        black = (image == 0).all(axis=0)
        assert np.array_equal(image[:, ~black], plain[:, ~black])
        rows, columns = black.any(axis=1).sum(), black.any(axis=0).sum()
        assert black.sum() == rows * columns
        areas.add(int(black.sum()))
    # Whole squares, and squares over an edge or a corner.
    assert areas == {9, 6, 4}


@pytest.mark.parametrize("option", ["crop", "cutout"])
@pytest.mark.parametrize("value", [-1, 1.5])
def test_pixels_are_whole_numbers(option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{option}: expected a whole number of pixels >= 0, got {value}"):
        data.Augment(**{option: value})
