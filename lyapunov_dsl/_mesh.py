"""Data parallel training: the devices that train together, of one process or of several."""

import hashlib
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from ._save import to_numpy
from ._types import shown


class Team:
    """The devices of a mesh and the processes they belong to. Without a mesh nothing below does anything.

    **Arguments:**

    - `mesh`: a mesh with one axis of type Auto, or `None`.

    **Raises:** `ValueError` for another mesh, and one without devices of this process.
    """

    def __init__(self, mesh: Any):
        if mesh is not None:
            _check_mesh(mesh)
        self.mesh: Mesh | None = mesh
        self.processes = [] if mesh is None else [device.process_index for device in mesh.devices.flat]
        self.alone = len(set(self.processes)) < 2
        self.leads = self.alone or jax.process_index() == min(self.processes)

    def check_batch(self, batch_size: int, size: int) -> None:
        """Raises `ValueError` where a batch cannot be split evenly."""
        if self.mesh is not None and batch_size % self.mesh.size:
            all_of_it = " (all examples of data)" if batch_size == size else ""
            raise ValueError(
                f"batch_size: expected a multiple of the {self.mesh.size} devices of mesh, got {batch_size}{all_of_it}"
            )

    def check_same(self, call: dict[str, str]) -> None:
        """Raises `ValueError`, in every process, where what describes the call is not the same in all of them."""
        if self.alone:
            return
        digests = [hashlib.blake2b(text.encode(), digest_size=8).digest() for text in call.values()]
        rows = self._rows(np.frombuffer(b"".join(digests), np.uint8).reshape(len(call), -1))
        (differs,) = np.nonzero((rows != rows[self._leader]).any(axis=(0, 2)))
        if differs.size:
            name = list(call)[differs[0]]
            device = int(np.argmax((rows[:, differs[0]] != rows[self._leader, differs[0]]).any(axis=1)))
            raise ValueError(
                f"mesh: expected the same call in every process, got another {name} in process {self.processes[device]} than "
                f"in process {min(self.processes)}"
            )

    def put(self, tree: PyTree) -> PyTree:
        """The arrays of a tree on all devices."""
        if self.mesh is None:
            return tree
        if not self.alone:
            return _map_arrays(partial(_replicate, sharding=self._everywhere), tree)
        arrays, rest = eqx.partition(tree, eqx.is_array)
        return eqx.combine(jax.device_put(arrays, self._everywhere), rest)

    def local(self, tree: PyTree) -> PyTree:
        """What `put` gave, on this process's default device. No other process has to take part."""
        if self.mesh is None:
            return tree
        return _map_arrays(lambda leaf: _as_before(to_numpy(leaf.addressable_data(0)), leaf), tree)

    def agree(self, stop: bool, due: bool) -> tuple[bool, bool]:
        """Whether any process was asked to stop, and whether the leader finds a checkpoint due."""
        if self.alone:
            return stop, due
        rows = self._rows(np.asarray([stop, due], np.int32))
        return bool(rows[:, 0].any()), bool(rows[self._leader, 1])

    def first(self, value: Any) -> Any:
        """What the leader has: anything that JSON can write."""
        if self.alone:
            return value
        text = np.frombuffer(json.dumps(value).encode(), np.uint8) if self.leads else np.zeros(0, np.uint8)
        length = int(self._of_leader(np.asarray(text.size, np.int32)))
        # Powers of two, so that few lengths are compiled.
        room = np.zeros(max(64, 1 << length.bit_length()), np.uint8)
        room[: text.size] = text
        return json.loads(self._of_leader(room)[:length].tobytes())

    def told(self, look: Callable[[], Any]) -> Any:
        """What `look` returns in the leader, where alone it is called. Its `ValueError` is raised in every process: the
        others would wait for ever."""
        if self.alone:
            return look()
        answer: dict[str, Any] = {}
        if self.leads:
            try:
                answer = {"value": look()}
            except ValueError as error:
                answer = {"error": str(error)}
        answer = self.first(answer)
        if "error" in answer:
            raise ValueError(answer["error"])
        return answer["value"]

    def first_arrays(self, tree: PyTree) -> PyTree:
        """The leader's arrays, for trees of the same structure, shapes and dtypes in every process."""
        if self.alone:
            return tree
        return _map_arrays(lambda leaf: _as_before(self._of_leader(to_numpy(leaf)), leaf), tree)

    @property
    def _everywhere(self) -> NamedSharding:
        assert self.mesh is not None
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def _leader(self) -> int:
        """The place of the leader's first device."""
        return self.processes.index(min(self.processes))

    def _of_leader(self, array: np.ndarray) -> np.ndarray:
        return self._rows(array, self._leader)

    def _rows(self, array: np.ndarray, which: Any = ...) -> np.ndarray:
        """The arrays of all processes, a row for every device, or one of these rows."""
        assert self.mesh is not None
        apart = NamedSharding(self.mesh, PartitionSpec(*self.mesh.axis_names))
        rows = jax.make_array_from_callback((self.mesh.size, *array.shape), apart, lambda _: array[None])
        return np.asarray(_taken(rows, which, self._everywhere).addressable_data(0))


def split(mesh: Any, tree: PyTree) -> PyTree:
    """Within `jit`: arrays with a leading batch axis, every device with its share of the examples."""
    return tree if mesh is None else _constrain(NamedSharding(mesh, PartitionSpec(*mesh.axis_names)), tree)


def whole(mesh: Any, tree: PyTree) -> PyTree:
    """Within `jit`: the same arrays on every device."""
    return tree if mesh is None else _constrain(NamedSharding(mesh, PartitionSpec()), tree)


def _check_mesh(mesh: Any) -> None:
    made = 'jax.make_mesh((n,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))'
    if not isinstance(mesh, Mesh):
        raise ValueError(f"mesh: expected a jax.sharding.Mesh, made by {made}, got {shown(mesh)}")
    if len(mesh.axis_names) != 1:
        raise ValueError(f"mesh: expected one axis, over which the batch is split, got {dict(mesh.shape)}")
    if tuple(mesh.axis_types) != (AxisType.Auto,):
        kinds = ", ".join(kind.name for kind in mesh.axis_types)
        raise ValueError(f"mesh: expected an axis of type Auto (diffrax needs it), made by {made}, got {kinds}")
    owners = {device.process_index for device in mesh.devices.flat}
    if jax.process_index() not in owners:
        raise ValueError(
            f"mesh: expected devices of every process that calls fit, got none of process {jax.process_index()}"
        )


def _map_arrays(function: Callable[[Any], Any], tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: function(leaf) if isinstance(leaf, jax.Array) else leaf, tree)


def _constrain(sharding: NamedSharding, tree: PyTree) -> PyTree:
    return _map_arrays(lambda leaf: jax.lax.with_sharding_constraint(leaf, sharding), tree)


def _replicate(leaf: Any, sharding: NamedSharding) -> Any:
    """`jax.device_put` for devices of other processes, which have the same array."""
    content = to_numpy(leaf)
    array = jax.make_array_from_callback(content.shape, sharding, lambda index: content[index])
    return _as_before(array, leaf)


def _as_before(content: Any, like: Any) -> Any:
    """An array, or a PRNG key if that is what there was."""
    if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jnp.asarray(content), impl=jax.random.key_impl(like))
    return jnp.asarray(content)


@partial(jax.jit, static_argnums=(1, 2))
def _taken(rows: Any, which: Any, sharding: NamedSharding) -> Any:
    return jax.lax.with_sharding_constraint(rows[which], sharding)
