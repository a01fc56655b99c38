"""Data parallel work: the devices that train or attack together, of one process or of several."""

import builtins
import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from ._archive import to_numpy
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
        self.owners = np.asarray([] if mesh is None else [device.process_index for device in mesh.devices.flat])
        self.processes = sorted({int(owner) for owner in self.owners})
        self.alone = len(self.processes) < 2
        self.leads = self.alone or jax.process_index() == self.processes[0]

    def check_batch(self, batch_size: int, size: int | None = None) -> None:
        """Raises `ValueError` where a batch cannot be split evenly."""
        if self.mesh is not None and batch_size % self.mesh.size:
            all_of_it = " (all examples of data)" if batch_size == size else ""
            raise ValueError(
                f"batch_size: expected a multiple of the {self.mesh.size} devices of mesh, got {batch_size}{all_of_it}"
            )

    def check_same(self, call: dict[str, str]) -> None:
        """Raises `ValueError`, in every process, where the mesh or what describes the call is not the same in all of them."""
        if self.alone:
            return
        assert self.mesh is not None
        call = {"mesh": str([device.id for device in self.mesh.devices.flat]), **call}
        digests = [hashlib.blake2b(text.encode(), digest_size=8).digest() for text in call.values()]
        rows = self._rows(np.frombuffer(b"".join(digests), np.uint8).reshape(len(call), -1))
        differs = (rows != rows[0]).any(axis=2)
        if differs.any():
            what = int(np.argmax(differs.any(axis=0)))
            other = self.processes[int(np.argmax(differs[:, what]))]
            raise ValueError(
                f"mesh: expected the same call in every process, got another {list(call)[what]} in process {other} than "
                f"in process {self.processes[0]}"
            )
        self._meet()

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """An `Exception` that one process meets within is raised in all of them: the others would wait for it for ever.

        Nothing within may wait for another process.
        """
        if self.alone:
            yield
            return
        mine = None
        try:
            yield
        except Exception as error:
            mine = error
        failed = self._rows(np.asarray(mine is not None, np.int32))
        if failed.any():
            first = int(np.argmax(failed))
            name, text = self._json([type(mine).__name__, str(mine)], first)
            raise _error(name, text, self.processes[first]) if mine is None else mine

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
        return bool(rows[:, 0].any()), bool(rows[0, 1])

    def first(self, value: Any) -> Any:
        """What the leader has: anything that JSON can write."""
        return self.told(lambda: value)

    def told(self, look: Callable[[], Any]) -> Any:
        """What `look` returns in the leader, where alone it is called: anything that JSON can write. What it raises there
        is raised in every process."""
        if self.alone:
            return look()
        value = None
        with self.together():
            if self.leads:
                value = look()
                json.dumps(value)
        return self._json(value, 0)

    def first_arrays(self, tree: PyTree) -> PyTree:
        """The leader's arrays, for trees of the same structure, shapes and dtypes in every process."""
        if self.alone:
            return tree

        def take(leaf: Any) -> Any:
            # As bytes: JAX narrows what NumPy has in double precision.
            own = to_numpy(leaf)
            found = self._rows(np.ravel(own).view(np.uint8), 0).view(own.dtype).reshape(own.shape)
            return _as_before(found, leaf)

        return jax.tree.map(lambda leaf: take(leaf) if isinstance(leaf, jax.Array | np.ndarray) else leaf, tree)

    def rows(self, count: int) -> np.ndarray:
        """Which of `count` examples this process works on: every so many, in proportion to its devices."""
        return np.arange(count) if self.alone else self._rows_of(jax.process_index(), count)

    def gather(self, part: np.ndarray, count: int) -> np.ndarray:
        """An array of `count` rows, of which every process has those that `rows` gives."""
        if self.alone:
            return part
        shares = [self._rows_of(process, count) for process in self.processes]
        room = np.zeros((max(map(len, shares)), *part.shape[1:]), part.dtype)
        room[: len(part)] = part
        whole = np.empty((count, *part.shape[1:]), part.dtype)
        for share, found in zip(shares, self._rows(room), strict=True):
            whole[share] = found[: len(share)]
        return whole

    def spread(self, tree: PyTree) -> PyTree:
        """Arrays with a leading batch axis, split over this process's devices of the mesh."""
        if self.mesh is None:
            return jax.tree.map(jnp.asarray, tree)
        return jax.device_put(tree, NamedSharding(self._own, PartitionSpec(*self._own.axis_names)))

    def spare(self, tree: PyTree) -> PyTree:
        """The arrays of a tree on each of this process's devices of the mesh."""
        if self.mesh is None:
            return tree
        arrays, rest = eqx.partition(tree, eqx.is_array)
        return eqx.combine(jax.device_put(arrays, NamedSharding(self._own, PartitionSpec())), rest)

    def own_part(self, size: int) -> int:
        """How many of the examples of a batch this process's devices take."""
        return size if self.mesh is None else size * self._own.size // self.mesh.size

    @property
    def _everywhere(self) -> NamedSharding:
        assert self.mesh is not None
        return NamedSharding(self.mesh, PartitionSpec())

    @cached_property
    def _own(self) -> Mesh:
        assert self.mesh is not None
        return Mesh(self.mesh.devices.reshape(-1)[self.owners == jax.process_index()], self.mesh.axis_names)

    @cached_property
    def _speakers(self) -> Mesh:
        """One device of each process. It does not depend on the mesh, of which the processes may have different ones."""
        assert self.mesh is not None
        devices = jax.devices(self.mesh.devices.flat[0].platform)
        first = [next(d for d in devices if d.process_index == process) for process in self.processes]
        return Mesh(np.asarray(first), ("process",))

    def _meet(self) -> None:
        """Connects all devices. CPUs wait for each other for half a minute only when they first meet, and later one may
        still compile."""
        assert self.mesh is not None
        apart = NamedSharding(self.mesh, PartitionSpec(*self.mesh.axis_names))
        places = jax.make_array_from_callback((self.mesh.size,), apart, lambda _: np.zeros(1, np.int32))
        jax.block_until_ready(_taken(places, ..., self._everywhere))

    def _rows_of(self, process: int, count: int) -> np.ndarray:
        return np.flatnonzero(self.owners[np.arange(count) % len(self.owners)] == process)

    def _json(self, value: Any, sender: int) -> Any:
        """The value that one of the processes has."""
        text = np.frombuffer(json.dumps(value).encode(), np.uint8)
        length = int(self._rows(np.asarray(text.size, np.int32), sender))
        # Powers of two, so that few lengths are compiled.
        room = np.zeros(max(64, 1 << length.bit_length()), np.uint8)
        room[: text.size] = text[: room.size]
        return json.loads(self._rows(room, sender)[:length].tobytes())

    def _rows(self, array: np.ndarray, which: Any = ...) -> np.ndarray:
        """The arrays of all processes, a row for each, or one of these rows."""
        apart = NamedSharding(self._speakers, PartitionSpec("process"))
        rows = jax.make_array_from_callback((len(self.processes), *array.shape), apart, lambda _: array[None])
        everywhere = NamedSharding(self._speakers, PartitionSpec())
        return np.asarray(_taken(rows, which, everywhere).addressable_data(0))


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
            f"mesh: expected devices of every process that makes this call, got none of process {jax.process_index()}"
        )


def _error(name: str, text: str, process: int) -> Exception:
    """The error of another process, of the same kind where it is one of Python's own."""
    kind = getattr(builtins, name, None)
    error: Exception = RuntimeError(f"{name}: {text}")
    if isinstance(kind, type) and issubclass(kind, Exception):
        # Some take more than a text.
        with contextlib.suppress(TypeError):
            error = kind(text)
    error.add_note(f"raised in process {process}")
    return error


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
    """An array of JAX or NumPy, or a PRNG key, whichever there was."""
    if isinstance(like, np.ndarray):
        return np.asarray(content)
    if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jnp.asarray(content), impl=jax.random.key_impl(like))
    return jnp.asarray(content)


@partial(jax.jit, static_argnums=(1, 2))
def _taken(rows: Any, which: Any, sharding: NamedSharding) -> Any:
    return jax.lax.with_sharding_constraint(rows[which], sharding)
