"""Where arrays lie: one mesh axis, "data", over all devices of all hosts.

The batch is split over it; everything else is replicated, or parameters and what the optimiser keeps are sharded too.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from resnet_jax.errors import InputError

_SMALL = 2**12  # numbers; a smaller array is not worth a share on each device


def data_mesh(count: int | None = None) -> Mesh:
    """A mesh of the first `count` devices, or of all; raises InputError where there are not so many."""
    devices: Sequence[jax.Device] = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    if count is not None and not 1 <= count <= len(devices):
        raise InputError(f"--devices is {count}; this machine has {len(devices)} ({devices[0].device_kind})")
    if count is not None and jax.process_count() > 1 and count < len(devices):
        raise InputError(f"--devices is {count}; several hosts use all of their {len(devices)} devices: leave it out")
    return mesh_of(devices[:count])


def mesh_of(devices: Sequence[jax.Device]) -> Mesh:
    """A mesh of these devices in their order: each host has a run of them, and so of the rows of a batch."""
    return Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))


def require_even_split(batch_size: int, mesh: Mesh) -> None:
    """Raises InputError where the devices do not divide the batch, with the largest number that does."""
    if batch_size % mesh.size:
        fitting = max(n for n in range(1, mesh.size + 1) if batch_size % n == 0)
        raise InputError(
            f"batch_size is {batch_size}, which {mesh.size} devices do not divide; use --devices {fitting}"
        )


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def split(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """One axis, the leading one, over the devices."""
    return NamedSharding(mesh, P(*(None,) * axis, "data"))


def place(value: Any, sharding: NamedSharding) -> Array:
    """An array that every host has whole, as one over the devices of all hosts."""
    if sharding.is_fully_addressable:
        return jax.device_put(value, sharding)
    array = np.asarray(value)
    return jax.make_array_from_callback(array.shape, sharding, lambda part: array[part])


def spread(leaf: Any, mesh: Mesh) -> NamedSharding:
    """An array as equal shares on all devices, along its longest axis that they divide; replicated if it is small."""
    axes = [axis for axis, length in enumerate(leaf.shape) if length % mesh.size == 0]
    if mesh.size == 1 or not axes or math.prod(leaf.shape) < _SMALL:
        return replicated(mesh)
    return split(mesh, max(axes, key=lambda axis: leaf.shape[axis]))


def split_rows(tree: Any, mesh: Mesh) -> Any:
    """This host's rows of arrays, as arrays over the devices of all hosts."""
    return jax.tree.map(partial(jax.make_array_from_process_local_data, split(mesh)), tree)


def on_first_host() -> bool:
    """Whether this process writes what is written once."""
    return jax.process_index() == 0


def said_by_first_host(value: int) -> int:
    """A number as the first host has it, on all of them; all must ask."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.int64(value)))


def replicate(tree: Any, mesh: Mesh) -> Any:
    return jax.tree.map(lambda leaf: place(leaf, replicated(mesh)), tree)


def signals(mesh: Mesh, signal: int) -> Array | None:
    """What each host was asked, an entry a device, for all to stop at the same step; None on a single host."""
    if jax.process_count() == 1:
        return None
    return split_rows(np.full(len(mesh.local_devices), signal, np.int32), mesh)
