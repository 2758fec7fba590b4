"""What a device can do at most, and what a step takes of its memory."""

import resource
import sys
import time
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from resnet_jax.backend import compiler_options
from resnet_jax.preflight import CHIPS
from resnet_jax.train.compiling import bytes_of

_SIDE = 2048  # of the matrices with which an unknown device is measured
_TRIES = 5

# FLOPs a second of bfloat16 and of float32 as TF32, both without sparsity, by the beginning of a device's name: the
# H100 and H200 for SXM sockets, after https://glennklockwood.com/garden/processors/h100. Others are measured.
_NVIDIA = {"NVIDIA H100 80GB HBM3": (989.4e12, 494.7e12), "NVIDIA H200": (989.4e12, 494.7e12)}
_TPU = {"TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5e": "v5e", "TPU v5": "v5p", "TPU v5p": "v5p", "TPU v6": "v6e"}


class Peak(NamedTuple):
    """What the devices can do at most."""

    flops: float  # a second, of all devices together
    source: str  # "published", or how it was measured


class Memory(NamedTuple):
    """What a step needed."""

    bytes: int
    source: str  # who says so


def peak_of(devices: list[jax.Device], dtype: DTypeLike) -> Peak:
    """Of these devices, as published for networks of this dtype or, for a device that is not known, by a product."""
    kind, wide = devices[0].device_kind, jnp.dtype(dtype) == jnp.float32
    for name, flops in _NVIDIA.items():
        if kind.startswith(name) and "NVL" not in kind:
            return Peak(len(devices) * flops[wide], f"published for {'TF32' if wide else 'bfloat16'}")
    for name in sorted(_TPU, key=len, reverse=True):
        if kind.startswith(name):
            return Peak(len(devices) * CHIPS[_TPU[name]].flops, "published for bfloat16")
    count = 1 if devices[0].platform == "cpu" else len(devices)  # the devices of a CPU share its cores
    return Peak(count * matmul_flops(devices[0], dtype), f"of a product of {_SIDE} x {_SIDE} matrices")


def matmul_flops(device: jax.Device, dtype: DTypeLike) -> float:
    """FLOPs a second of a product of square matrices, the best of a few."""
    a = jax.device_put(jnp.ones((_SIDE, _SIDE), dtype), device)
    product = partial(jax.jit(jnp.matmul, compiler_options=compiler_options()), a, a)
    jax.block_until_ready(product())
    seconds = []
    for _ in range(_TRIES):
        start = time.perf_counter()
        jax.block_until_ready(product())
        seconds.append(time.perf_counter() - start)
    return 2 * _SIDE**3 / min(seconds)


def peak_bytes(device: jax.Device) -> int:
    """The most that this process has had on a device so far; 0 where the device does not say."""
    return (device.memory_stats() or {}).get("peak_bytes_in_use", 0)


def memory_of(device: jax.Device, compiled: jax.stages.Compiled, before: int) -> Memory:
    """What a step needs on a device that had had `before` bytes at most, until now."""
    peak = peak_bytes(device)
    return Memory(peak, "device") if peak > before else Memory(bytes_of(compiled), "compiler")


def process_bytes() -> int:
    """The most main memory that this process has had so far."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
