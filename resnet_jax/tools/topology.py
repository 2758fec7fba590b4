"""Devices that need not exist, for compilation only: TPU slices by libtpu, NVIDIA GPUs by jax's CUDA plugin."""

import importlib.util
import math
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
from jax.experimental import topologies

from resnet_jax.errors import MachineError, first_line
from resnet_jax.tools.chips import Chip, slice_of

# Seconds after which libtpu has failed to describe a slice; it takes one
_PATIENCE = 60.0


def describe(topology: str) -> Sequence[jax.Device]:
    """Return the devices of a topology such as "v5e:2x4" or "h200:8".

    Raises:
        MachineError: The compiler is not installed, does not answer within a minute, or does not know the topology.
    """
    chip, lengths = slice_of(topology)
    return _gpus(chip, lengths[0]) if chip.gpu else _tpus(topology, chip, lengths)


def _gpus(chip: Chip, count: int) -> Sequence[jax.Device]:
    if not any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)):
        raise MachineError(
            f"jax's CUDA plugin is not installed; it comes with: pip install jax-cuda12-plugin=={jax.__version__}"
        )
    try:
        with no_stderr():
            found = topologies.get_topology_desc("", "cuda", target_config=target_config(chip), topology=f"1x1x{count}")
    except Exception as error:
        raise MachineError(
            f"jax's CUDA plugin cannot describe {count} x {chip.gpu and chip.gpu.name} ({first_line(error)});"
            f" see whether its version is that of jax, {jax.__version__}"
        ) from error
    return found.devices


def target_config(chip: Chip) -> str:
    """Return XLA's description of a GPU, a GpuTargetConfigProto in text form."""
    gpu = chip.gpu
    assert gpu is not None
    return f"""
        gpu_device_info {{
          threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
          block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
          registers_per_core_limit: 65536 registers_per_block_limit: 65536
          shared_memory_per_block: 49152 shared_memory_per_block_optin: {gpu.shared_memory - 1024}
          shared_memory_per_core: {gpu.shared_memory}
          core_count: {gpu.multiprocessors} fpus_per_core: {gpu.fpus} clock_rate_ghz: {gpu.clock}
          l2_cache_size: {gpu.l2_cache}
          device_memory_size: {chip.memory:.0f} memory_bandwidth: {chip.bandwidth:.0f}
          cuda_compute_capability {{ major: {gpu.capability} }}
        }}
        platform_name: "CUDA"
        dnn_version_info {{ major: 9 minor: 10 }}
        runtime_version {{ major: 12 minor: 9 }}
        device_description_str: "{gpu.name}"
    """


@contextmanager
def no_stderr() -> Iterator[None]:
    """Drop what the plugin's C++ code writes to stderr while it looks for a driver."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _tpus(topology: str, chip: Chip, lengths: tuple[int, ...]) -> Sequence[jax.Device]:
    if importlib.util.find_spec("libtpu") is None:
        raise MachineError("libtpu is not installed; it comes with: pip install 'jax[tpu]'")
    _quiet()
    bounds = {"chips_per_host_bounds": (1, 1, 1)} if math.prod(lengths) == 1 else {}
    found: list[Any] = []

    def ask() -> None:
        try:
            found.append(topologies.get_topology_desc(topology, "tpu", chip_config_name=chip.layout, **bounds).devices)
        except Exception as error:
            found.append(error)

    # A daemon, because a call that hangs in C++ cannot be stopped
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    if not found:
        raise MachineError(
            f"libtpu has not described {topology} within {_PATIENCE:g} s; see whether another program uses a TPU here"
        )
    if isinstance(found[0], Exception):
        raise MachineError(f"libtpu cannot describe {topology} ({first_line(found[0])}); take another shape")
    return found[0]


def _quiet() -> None:
    """Keep libtpu, before it is loaded, from looking for TPUs, using the network, locking and logging."""
    for setting, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_HOST_BOUNDS": "1,1,1",
        "TPU_CHIPS_PER_HOST_BOUNDS": "2,2,1",
        # Nothing is run, so several processes do not disturb each other
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_LOG_DIR": "disabled",
        "TPU_STDERR_LOG_LEVEL": "3",
        "TPU_MIN_LOG_LEVEL": "3",
    }.items():
        os.environ.setdefault(setting, value)
