"""Peak FLOP/s of a device, and the memory that a step needs."""

import resource
import sys
import time
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from resnet_jax.runtime.compiler_options import compiler_options
from resnet_jax.tools.chips import CHIPS
from resnet_jax.training.aot import step_bytes

# Rows of the matrices whose product measures an unknown device
_SIDE = 2048
_TRIES = 5

# FLOP/s of bfloat16 and of float32 as TF32, both without sparsity, by prefix of the device name: H100 and H200 for SXM
# sockets, from https://glennklockwood.com/garden/processors/h100. Others are measured.
_NVIDIA = {"NVIDIA H100 80GB HBM3": (989.4e12, 494.7e12), "NVIDIA H200": (989.4e12, 494.7e12)}
_TPU = {"TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5e": "v5e", "TPU v5": "v5p", "TPU v5p": "v5p", "TPU v6": "v6e"}


class Peak(NamedTuple):
    """Peak speed of several devices together."""

    flops: float
    """FLOP/s of all devices together."""
    source: str
    """Origin of the number, in words: "published ...", or how it was measured."""


class Memory(NamedTuple):
    """Memory of a step on one device."""

    bytes: int
    source: str
    """"device" if measured, "compiler" if computed."""


def peak_of(devices: list[jax.Device], dtype: DTypeLike) -> Peak:
    """Return the peak of devices for a dtype: published, or measured by a matrix product if unknown."""
    kind, wide = devices[0].device_kind, jnp.dtype(dtype) == jnp.float32
    for name, flops in _NVIDIA.items():
        if kind.startswith(name) and "NVL" not in kind:
            return Peak(len(devices) * flops[wide], f"published for {'TF32' if wide else 'bfloat16'}")
    for name in sorted(_TPU, key=len, reverse=True):
        if kind.startswith(name):
            return Peak(len(devices) * CHIPS[_TPU[name]].flops, "published for bfloat16")
    # The devices of a CPU share its cores
    count = 1 if devices[0].platform == "cpu" else len(devices)
    return Peak(count * matmul_flops(devices[0], dtype), f"of a product of {_SIDE} x {_SIDE} matrices")


def matmul_flops(device: jax.Device, dtype: DTypeLike) -> float:
    """Return the FLOP/s of a product of square matrices, the best of five."""
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
    """Return the peak bytes of this process on a device so far; 0 if the device does not report them."""
    return (device.memory_stats() or {}).get("peak_bytes_in_use", 0)


def memory_of(device: jax.Device, compiled: jax.stages.Compiled, before: int) -> Memory:
    """Return the memory of a step on a device whose peak was `before` bytes before the step."""
    peak = peak_bytes(device)
    return Memory(peak, "device") if peak > before else Memory(step_bytes(compiled), "compiler")


def process_bytes() -> int:
    """Return the peak main memory of this process so far, in bytes."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
