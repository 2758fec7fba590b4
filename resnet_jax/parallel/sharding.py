"""Placement of arrays: one mesh axis, "data", over all devices of all hosts.

The batch is sharded over it; parameters, optimiser state and EMA are replicated, or sharded too.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import jax
import numpy as np
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from resnet_jax.errors import InputError

ParamSharding = Literal["replicated", "sharded"]

# Elements; a smaller array is not worth sharding
_SMALL = 2**12


def data_mesh(count: int | None = None) -> Mesh:
    """Return a mesh of the first `count` devices, or of all; raise InputError if there are fewer."""
    devices: Sequence[jax.Device] = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    if count is not None and not 1 <= count <= len(devices):
        raise InputError(f"--devices is {count}; this machine has {len(devices)} ({devices[0].device_kind})")
    if count is not None and jax.process_count() > 1 and count < len(devices):
        raise InputError(f"--devices is {count}; several hosts use all of their {len(devices)} devices: leave it out")
    return mesh_of(devices[:count])


def mesh_of(devices: Sequence[jax.Device]) -> Mesh:
    """Return a mesh of these devices in their order: each host has consecutive rows of a batch."""
    return Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))


def require_divisible_batch(batch_size: int, mesh: Mesh) -> None:
    """Raise InputError, naming the largest number of devices that fits, if they do not divide the batch."""
    if batch_size % mesh.size:
        fitting = max(n for n in range(1, mesh.size + 1) if batch_size % n == 0)
        raise InputError(
            f"batch_size is {batch_size}, which {mesh.size} devices do not divide; use --devices {fitting}"
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of an array that every device holds whole."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Return the sharding of an array along one axis, by default the leading one."""
    return NamedSharding(mesh, P(*(None,) * axis, "data"))


def shard_leaf(leaf: Any, mesh: Mesh) -> NamedSharding:
    """Return the sharding of a parameter: over its longest divisible axis, or replicated if it is small."""
    axes = [axis for axis, length in enumerate(leaf.shape) if length % mesh.size == 0]
    if mesh.size == 1 or not axes or math.prod(leaf.shape) < _SMALL:
        return replicated(mesh)
    return batch_sharding(mesh, max(axes, key=lambda axis: leaf.shape[axis]))


def place(value: Any, sharding: NamedSharding) -> Array:
    """Put an array that every host holds whole on the devices of all hosts."""
    if sharding.is_fully_addressable:
        return jax.device_put(value, sharding)
    array = np.asarray(value)
    return jax.make_array_from_callback(array.shape, sharding, lambda part: array[part])


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Put a tree of arrays whole on every device."""
    return jax.tree.map(lambda leaf: place(leaf, replicated(mesh)), tree)


def from_local_rows(tree: Any, mesh: Mesh) -> Any:
    """Return arrays over the devices of all hosts, made from this host's rows."""
    return jax.tree.map(partial(jax.make_array_from_process_local_data, batch_sharding(mesh)), tree)
