"""Published figures of TPU chips and NVIDIA GPUs, and the shapes in which they are connected."""

import math
from typing import NamedTuple

from resnet_jax.errors import InputError
from resnet_jax.tools.hlo import Collective

_PLANE = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBE = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16")
_SERVER = ("1", "2", "4", "8")


class Gpu(NamedTuple):
    """What XLA's compiler asks of an NVIDIA GPU."""

    name: str
    capability: int  # major version of the compute capability
    multiprocessors: int
    fpus: int  # per multiprocessor
    shared_memory: int  # bytes per multiprocessor
    l2_cache: int  # bytes
    clock: float  # GHz


class Chip(NamedTuple):
    """Published figures of an accelerator, which is one JAX device."""

    flops: float  # FLOP/s of bfloat16, without sparsity
    memory: float  # bytes of HBM
    bandwidth: float  # bytes per second of HBM
    interconnect: float  # bytes per second, one way, of all links together
    links: int
    shapes: tuple[str, ...]  # shapes of slices; libtpu knows more
    wraps_at: int = 0  # TPU: an axis is a ring if its length is a multiple of this
    layout: str = ""  # TPU: libtpu's chip configuration: both cores of a "megacore" are one device
    gpu: Gpu | None = None


# https://docs.cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e (November 2026). Their GB of HBM are GiB in libtpu, which
# gives programs 15.75 of v5e's 16. Interconnect is published both ways together (v5e 400, v5p 1200, v6e 800 GB/s), so
# it is halved here. For v4 only the all-reduce bandwidth of 4,096 chips is known, 1.1 PB/s.
#
# GPUs are those of SXM sockets, all joined by NVSwitch, whose bandwidth NVIDIA's data sheets also give both ways
# together (600, 900 and 1800 GB/s). Memory, its bandwidth and the rest are those of XLA's own targets:
# https://github.com/openxla/xla/tree/main/xla/backends/gpu/target_config/specs
CHIPS: dict[str, Chip] = {
    "v4": Chip(275e12, 32 * 2**30, 1200e9, 1.1e15 / 4096, 6, _CUBE, 4, "megacore"),
    "v5e": Chip(197e12, 16 * 2**30, 819e9, 200e9, 4, _PLANE, 16, "default"),
    "v5p": Chip(459e12, 95 * 2**30, 2765e9, 600e9, 6, _CUBE, 4, "megacore"),
    "v6e": Chip(918e12, 32 * 2**30, 1638e9, 400e9, 4, _PLANE, 16, "default"),
    "a100": Chip(312e12, 85_100_068_864, 2039e9, 300e9, 12, _SERVER,
                 gpu=Gpu("NVIDIA A100-SXM4-80GB", 8, 108, 64, 167_936, 41_943_040, 1.41)),
    "h100": Chip(989.4e12, 84_942_979_072, 3352e9, 450e9, 18, _SERVER,
                 gpu=Gpu("NVIDIA H100 80GB HBM3", 9, 132, 128, 233_472, 52_428_800, 1.98)),
    "h200": Chip(989.4e12, 151_397_597_184, 4800e9, 450e9, 18, _SERVER,
                 gpu=Gpu("NVIDIA H200", 9, 132, 128, 233_472, 52_428_800, 1.98)),
    "b200": Chip(2250e12, 191_514_411_008, 7672e9, 900e9, 18, _SERVER,
                 gpu=Gpu("NVIDIA B200", 10, 148, 128, 233_472, 132_644_864, 1.965)),
}  # fmt: skip


def slice_of(topology: str) -> tuple[Chip, tuple[int, ...]]:
    """Return the chip of a topology such as "v5e:2x4" or "h200:8", and its axis lengths.

    Raises InputError for an unknown one.
    """
    kind, _, shape = topology.partition(":")
    if kind not in CHIPS:
        known = ", ".join(f"{chip}:{facts.shapes[2 if facts.gpu is None else -1]}" for chip, facts in CHIPS.items())
        raise InputError(f"unknown topology {topology!r}; known: {known} and other shapes of these chips")
    if shape not in CHIPS[kind].shapes:
        raise InputError(f"unknown shape {shape!r} of {kind}; known: {', '.join(CHIPS[kind].shapes)}")
    return CHIPS[kind], tuple(map(int, shape.split("x")))


def link_seconds(collectives: dict[str, Collective], topology: str) -> float:
    """Return the seconds that collectives occupy the links of a chip: on a TPU, of one in a corner of the slice.

    An all-reduce of n chips sends 2 (n - 1) / n times its bytes, others half of that, a collective-permute once.
    """
    chip, lengths = slice_of(topology)
    chips = math.prod(lengths)
    if chip.gpu:
        links = chip.links if chips > 1 else 0
    else:
        links = sum((length > 1) + (length > 2 and length % chip.wraps_at == 0) for length in lengths)
    fraction = (chips - 1) / chips
    sent = {"all-reduce": 2 * fraction, "reduce-scatter": chips - 1, "collective-permute": 1.0}
    total = sum(sent.get(kind, fraction) * collective.bytes for kind, collective in collectives.items())
    return total / (links * chip.interconnect / chip.links) if links else 0.0
