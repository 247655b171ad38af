"""The device mesh, and batches placed on it.

Axes are `AxisType.Auto`: we say where inputs, parameters and outputs lie, and the compiler chooses the rest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from walt.config import ConfigError
from walt.parallel.config import MeshConfig

BATCH_AXES = ("slice", "data", "fsdp")
"""The mesh axes over which the rows of a batch are divided."""


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of `config` over `devices` (default: all of them); `ConfigError` if the axes do not multiply to their
    number.
    """
    devices = jax.devices() if devices is None else devices
    sizes = config.resolve(len(devices))
    names, shape = tuple(sizes), tuple(sizes.values())
    types = (AxisType.Auto,) * len(names)
    if sizes["slice"] > 1 and hasattr(devices[0], "slice_index"):
        within, across = (1, *shape[1:]), (sizes["slice"],) + (1,) * (len(shape) - 1)
        return Mesh(mesh_utils.create_hybrid_device_mesh(within, across, devices), names, axis_types=types)
    # An axis may be a part of a side of the slice: 4 x 16 devices fit a square of 8 x 8.
    places = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(places, names, axis_types=types)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows (the first dimension) divided over `BATCH_AXES`, everything else whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def mesh_of(array: jax.Array) -> Mesh:
    """The mesh an array was placed on by this room."""
    assert isinstance(array.sharding, NamedSharding) and isinstance(array.sharding.mesh, Mesh)
    return array.sharding.mesh


def batch_shards(mesh: Mesh) -> int:
    """Into how many parts the rows of a batch are divided."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def shards_of_process(mesh: Mesh) -> list[int]:
    """Which of the parts of a batch the devices of this process hold; on a pod they are neighbours on the chips' network, and seldom in this order."""
    shards = batch_shards(mesh)
    places = batch_sharding(mesh).addressable_devices_indices_map((shards,))
    return sorted({index[0].indices(shards)[0] for index in places.values() if index is not None})


def rows_of_process(batch_size: int, mesh: Mesh) -> tuple[int, ...]:
    """Which rows of a batch this process loads: those that its devices hold. `ConfigError` if rows do not divide over the mesh."""
    shards = batch_shards(mesh)
    if batch_size % shards:
        raise ConfigError(
            f"data.batch_size is {batch_size}, which does not divide over {shards} devices: make it a multiple of {shards}"
        )
    each = batch_size // shards
    return tuple(row for shard in shards_of_process(mesh) for row in range(shard * each, (shard + 1) * each))


def count_rows(batch: Mapping[str, np.ndarray], mesh: Mesh) -> int:
    """Rows of the global batch of which these are a process's."""
    return len(next(iter(batch.values()))) * batch_shards(mesh) // len(shards_of_process(mesh))


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, Any]:
    """Global arrays from the rows of this process (`rows_of_process`); returns at once, the transfer goes on in the background.

    With one process the rows are the whole batch. `ConfigError` if they do not divide evenly over the devices.
    """
    sharding, shards, held = batch_sharding(mesh), batch_shards(mesh), shards_of_process(mesh)
    for name, rows in batch.items():
        if len(rows) % len(held):
            raise ConfigError(
                f"batch entry {name!r} has {len(rows) * shards // len(held)} rows, which do not divide over {shards} devices: "
                f"make the batch size a multiple of {shards}"
            )
    if jax.process_count() == 1:
        return {name: jax.device_put(rows, sharding) for name, rows in batch.items()}

    def placed(rows: np.ndarray) -> jax.Array:
        each, shape = len(rows) // len(held), (len(rows) // len(held) * shards, *rows.shape[1:])

        def part(index: Any) -> np.ndarray:
            first = held.index(index[0].indices(shape[0])[0] // each) * each
            return rows[first : first + each]

        return jax.make_array_from_callback(shape, sharding, part)

    return {name: placed(np.asarray(rows)) for name, rows in batch.items()}


def put(values: Any, shardings: Any) -> Any:
    """A tree of global arrays, placed as a tree of shardings (or one for all) says. Every process holds all of the values, and its
    devices take their share alone; arrays that lie where they should stay there.
    """

    def placed(value: Any, sharding: NamedSharding) -> jax.Array:
        if isinstance(value, jax.Array) and (sharding.is_fully_addressable or not value.is_fully_addressable):
            return jax.device_put(value, sharding)
        array = np.asarray(value)
        array = array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    if isinstance(shardings, NamedSharding):
        return jax.tree.map(lambda value: placed(value, shardings), values)
    return jax.tree.map(placed, values, shardings)


def read(array: jax.Array) -> np.ndarray:
    """The whole array, on every process; all of them must call this."""
    if not array.is_fully_addressable and not array.is_fully_replicated:
        return np.asarray(multihost_utils.process_allgather(array, tiled=True))
    return np.asarray(array)
