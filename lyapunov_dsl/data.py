"""Image data sets: from TensorFlow Datasets without TensorFlow, or from an `.npz` file; augmentation on the device."""

import contextlib
import dataclasses
import importlib.util
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int32, UInt8

# Classes, and (height, width, channels) of an image.
_SETS = {
    "mnist": (10, (28, 28, 1)),
    "fashion_mnist": (10, (28, 28, 1)),
    "cifar10": (10, (32, 32, 3)),
    "cifar100": (100, (32, 32, 3)),
}
# Multiplied by, because a compiler makes a multiplication of a division by 255, and rounds otherwise than NumPy.
_PIXEL = np.float32(1 / 255)
_KEYS = ("x_train", "y_train", "x_test", "y_test")
_NPZ = f"an .npz with {', '.join(_KEYS)}"


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Images and their classes.

    **Arguments:**

    - `name`: as given to [`lyapunov_dsl.data.load`][].
    - `classes`: how many there are.
    - `train`, `test`: pairs (x, y) of the images, uint8 in 0 to 255 of shape (N, channels, height, width), and their
        classes, int32 of shape (N,).
    """

    name: str
    classes: int
    train: tuple[UInt8[np.ndarray, "n channels height width"], Int32[np.ndarray, " n"]]
    test: tuple[UInt8[np.ndarray, "m channels height width"], Int32[np.ndarray, " m"]]


def load(name: str, data_dir: str | os.PathLike | None = None) -> Dataset:
    """Reads a data set: `mnist`, `fashion_mnist`, `cifar10` or `cifar100`.

    An `.npz` needs NumPy alone. Folders prepared by TensorFlow Datasets need the extra `[data]`, and no TensorFlow.
    Where nothing is prepared, and TensorFlow is installed, the set is downloaded and prepared first.

    **Arguments:**

    - `name`: of the set.
    - `data_dir`: an `.npz` file in the layout of Keras (`x_train`, `y_train`, `x_test`, `y_test`; images last in
        channels), a folder that holds NAME.npz or NAME/VERSION as TensorFlow Datasets prepares it, or the folder
        NAME/VERSION itself. By default the folder of TensorFlow Datasets.

    **Returns:** a [`lyapunov_dsl.data.Dataset`][], in the order of the files.

    **Raises:** `ValueError` for an unknown name and for files that are damaged or hold something else,
    `FileNotFoundError` where there is no data and no way to download it, `OSError` where the download fails,
    `ImportError` where a prepared folder cannot be read for want of a package.
    """
    if name not in _SETS:
        raise ValueError(f"name: expected one of {', '.join(_SETS)}, got {name!r}")
    where = None if data_dir is None else Path(data_dir).expanduser()
    if where is not None:
        if where.suffix == ".npz" and not where.is_dir():
            return _read_npz(name, where)
        if where.exists() and not where.is_dir():
            raise ValueError(f"data_dir: expected a folder or an .npz file, got the file {where}")
        if (where / f"{name}.npz").is_file():
            return _read_npz(name, where / f"{name}.npz")
    with _quiet():
        tfds = _import_tfds(name, where)
        root = Path(tfds.core.constants.DATA_DIR).expanduser() if where is None else where
        folder = _prepared(name, root) or _prepare(tfds, name, root)
        return _read_prepared(tfds, name, folder)


def _read_npz(name: str, file: Path) -> Dataset:
    if not file.is_file():
        raise FileNotFoundError(f"data_dir: expected {_NPZ}, got {file}, which does not exist")
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            missing = [key for key in _KEYS if key not in archive]
            arrays = {} if missing else {key: archive[key] for key in _KEYS}
            found = ", ".join(archive)
    except Exception as error:  # NumPy, zipfile, zlib and tokenize each have their own for a damaged file
        raise ValueError(f"data_dir: expected {_NPZ}, got {file}, which cannot be read ({_line(error)})") from error
    if missing:
        raise ValueError(f"data_dir: expected {_NPZ}, got {file} with {found or 'nothing'}")
    return _dataset(name, file, arrays)


def _dataset(name: str, origin: Path, arrays: dict[str, Any]) -> Dataset:
    """Checks arrays with the channels last, and puts the channels first."""
    classes, shape = _SETS[name]
    pairs = []
    for split in ("train", "test"):
        x, y = arrays[f"x_{split}"], arrays[f"y_{split}"]
        # Keras leaves out a single channel, and its CIFAR labels are columns.
        x = x[..., None] if x.ndim == 3 else x
        y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
        if x.dtype != np.uint8 or x.shape[1:] != shape or not len(x):
            raise ValueError(
                f"data_dir: expected images uint8 (N, {', '.join(map(str, shape))}) for {name}, got x_{split} {x.dtype} "
                f"{x.shape} in {origin}"
            )
        if not np.issubdtype(y.dtype, np.integer) or y.shape != x.shape[:1]:
            raise ValueError(
                f"data_dir: expected a whole number for each of {len(x)} images, got y_{split} {y.dtype} {y.shape} in {origin}"
            )
        if y.min() < 0 or y.max() >= classes:
            raise ValueError(
                f"data_dir: expected classes 0 to {classes - 1} for {name}, got {y.min()} to {y.max()} in y_{split} of {origin}"
            )
        pairs.append((np.ascontiguousarray(np.moveaxis(x, -1, 1)), y.astype(np.int32)))
    return Dataset(name, classes, *pairs)


def _import_tfds(name: str, where: Path | None) -> Any:
    try:
        import tensorflow_datasets
    except ImportError as error:
        looked = f"{where} holds no {name}.npz, and reading" if where else "reading"
        raise ImportError(
            f"data_dir: {looked} TensorFlow Datasets needs pip install 'lyapunov_dsl[data]' ({_line(error)}); "
            f"{_NPZ} needs nothing"
        ) from error
    return tensorflow_datasets


def _prepared(name: str, root: Path) -> Path | None:
    """The newest prepared folder of a set: root/NAME/VERSION, or root is NAME or NAME/VERSION itself."""
    patterns = (f"{name}/*/dataset_info.json", "*/dataset_info.json", "dataset_info.json")
    files = [file for pattern in patterns for file in root.glob(pattern) if _name_in(file) == name]
    version = lambda file: [int(number) if number.isdigit() else -1 for number in file.parent.name.split(".")]
    return max(files, key=version).parent if files else None


def _name_in(file: Path) -> str | None:
    try:
        return json.loads(file.read_text())["name"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _has_tensorflow() -> bool:
    return importlib.util.find_spec("tensorflow") is not None


def _prepare(tfds: Any, name: str, root: Path) -> Path:
    """Downloads and prepares; TensorFlow Datasets shows its own progress."""
    if not _has_tensorflow():
        raise FileNotFoundError(
            f"data_dir: {root} holds neither {name}/VERSION/dataset_info.json nor {name}.npz; give --data-dir (data_dir=) a folder "
            f"that TensorFlow Datasets has prepared or {_NPZ}, or pip install tensorflow for the first download"
        )
    try:
        builder = tfds.builder(name, data_dir=root)
        builder.download_and_prepare(file_format="array_record")
    except Exception as error:
        raise OSError(
            f"data_dir: {name} could not be downloaded and prepared in {root} ({type(error).__name__}: {_line(error)}); give "
            f"--data-dir (data_dir=) a folder that TensorFlow Datasets has prepared or {_NPZ}"
        ) from error
    return Path(builder.data_dir)


def _read_prepared(tfds: Any, name: str, folder: Path) -> Dataset:
    arrays = {}
    try:
        builder = tfds.builder_from_directory(folder)
        for split in ("train", "test"):
            examples = _examples(tfds, builder, split)
            arrays[f"x_{split}"] = np.stack([example["image"] for example in examples])
            arrays[f"y_{split}"] = np.asarray([example["label"] for example in examples])
    except ImportError as error:
        raise ImportError(
            f"data_dir: reading {folder} needs pip install 'lyapunov_dsl[data]' ({_line(error)}); {_NPZ} needs nothing"
        ) from error
    except Exception as error:
        raise ValueError(
            f"data_dir: expected {name} as TensorFlow Datasets prepares it, got {folder}, which cannot be read "
            f"({_line(error)})"
        ) from error
    return _dataset(name, folder, arrays)


def _examples(tfds: Any, builder: Any, split: str) -> list[Any]:
    try:
        source = builder.as_data_source(split=split)
    except NotImplementedError:
        # TFRecord files, which TensorFlow alone can read.
        if not _has_tensorflow():
            raise ValueError("TFRecord files need TensorFlow; array_record ones do not") from None
        return list(tfds.as_numpy(builder.as_dataset(split=split)))
    return [source[i] for i in range(len(source))]


def _line(error: BaseException) -> str:
    """The first line of a message, cut short: the messages of others can be pages long."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the remarks of TensorFlow Datasets, on OpenCV being faster for example."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


class Augment(eqx.Module):
    """One image, uint8 in 0 to 255, as float32 in [0, 1], changed at random: for [`lyapunov_dsl.fit`][]`(augment=...)`.

    **Arguments:**

    - `flip`: whether to mirror left and right, with probability one half.
    - `crop`: by how many pixels, at most, to move the image in either direction; what comes in is black.
    - `cutout`: the side of a square that is made black at a random place (DeVries and Taylor 2017), 0 for none.

    **Raises:** `ValueError` for numbers of pixels that are negative or not whole.
    """

    flip: bool = eqx.field(static=True)
    crop: int = eqx.field(static=True)
    cutout: int = eqx.field(static=True)

    def __init__(self, *, flip: Any = False, crop: Any = 0, cutout: Any = 0):
        for name, pixels in {"crop": crop, "cutout": cutout}.items():
            if not (isinstance(pixels, int) and pixels >= 0):
                raise ValueError(f"{name}: expected a whole number of pixels >= 0, got {pixels!r}")
        self.flip, self.crop, self.cutout = bool(flip), crop, cutout

    def __call__(
        self, image: UInt8[Array, "channels height width"], key: Any
    ) -> Float32[Array, "channels height width"]:
        """The image changed; with all options off, only converted."""
        flip_key, crop_key, cutout_key = jax.random.split(key, 3)
        _, height, width = image.shape
        if self.flip:
            image = jnp.where(jax.random.bernoulli(flip_key), image[:, :, ::-1], image)
        if self.crop:
            padded = jnp.pad(image, ((0, 0), (self.crop, self.crop), (self.crop, self.crop)))
            down, right = jax.random.randint(crop_key, (2,), 0, 2 * self.crop + 1)
            image = jax.lax.dynamic_slice(padded, (0, down, right), image.shape)
        if self.cutout:
            # The center anywhere in the image, so that the square may reach over its edge.
            row, column = jax.random.randint(cutout_key, (2,), 0, jnp.asarray([height, width]))
            near = lambda size, center: (
                (jnp.arange(size) >= center - self.cutout // 2)
                & (jnp.arange(size) < center - self.cutout // 2 + self.cutout)
            )
            image = jnp.where(near(height, row)[:, None] & near(width, column)[None, :], 0, image)
        return image.astype(jnp.float32) * _PIXEL


def to_float(images: np.ndarray) -> np.ndarray:
    """Images as floating-point numbers, as [`lyapunov_dsl.data.Augment`][] converts them.

    **Arguments:**

    - `images`: uint8 in 0 to 255, of any shape.

    **Returns:** float32 in [0, 1], of the same shape.
    """
    return images.astype(np.float32) * _PIXEL
