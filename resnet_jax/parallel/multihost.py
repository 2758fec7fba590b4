"""Communication between the processes of one run. On a single host nothing is sent."""

import jax
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from resnet_jax.parallel.sharding import from_local_rows, replicated


def is_primary_host() -> bool:
    """Return whether this process writes the files of a run."""
    return jax.process_index() == 0


def broadcast_from_host0(value: int) -> int:
    """Return the first host's value of a number on all hosts, which must all call it."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.int64(value)))


def sync_hosts(where: str) -> None:
    """Wait until all hosts have called this with the same name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)


def host_signals(mesh: Mesh, signal: int) -> Array | None:
    """Return the largest signal number () int32 that any host received; None on a single host.

    The value is computed in the background. All hosts must call it after the same step, and read it at the same step.
    """
    if jax.process_count() == 1:
        return None
    signals = from_local_rows(np.full(len(mesh.local_devices), signal, np.int32), mesh)
    return jax.jit(lambda x: x.max(), out_shardings=replicated(mesh))(signals)
