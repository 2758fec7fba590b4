"""What a training step will need on a TPU slice that is not at hand: compiled for it on a CPU, by libtpu.

The compiler says what fits and what the program does; published figures of the chips say how fast it can be at most.
"""

import importlib.util
import math
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from resnet_jax.data.batches import Batch
from resnet_jax.data.datasets import DATASETS
from resnet_jax.errors import InputError, MachineError, first_line
from resnet_jax.model.zoo import published
from resnet_jax.recipe import Recipe, check
from resnet_jax.summary import totals
from resnet_jax.train.compiled import Collective, collectives, memory_traffic
from resnet_jax.train.devices import mesh_of, replicated, split
from resnet_jax.train.directory import Dataset
from resnet_jax.train.job import Job, Shard, abstract, make_advance, open_sources, prepare
from resnet_jax.train.sweep import require_parts, unit_of

_PATIENCE = 60.0  # seconds in which libtpu describes a slice; it takes one
_IMAGENET = 1_281_167  # training images of ImageNet, where the size of a data set is not known
_PLANE = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBE = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16")


class Chip(NamedTuple):
    """A TPU chip as published; what JAX calls a device is one such chip."""

    flops: float  # a second, of bfloat16
    memory: float  # bytes of HBM
    bandwidth: float  # bytes a second, of HBM
    interconnect: float  # bytes a second, one way, of all its links together
    links: int
    shapes: tuple[str, ...]  # of slices; libtpu knows more
    wraps_at: int  # an axis whose length is a multiple of it is a ring
    layout: str  # of a chip, as libtpu calls it: both cores of a "megacore" are one device


# https://docs.cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e (November 2026). Where they say GB of HBM, libtpu counts
# in GiB: of v5e's 16 it gives programs 15.75. Of the interconnect they give both ways together (v5e 400, v5p 1200, v6e
# 800 GB/s), for v4 only the all-reduce bandwidth of 4,096 chips, 1.1 PB/s; that of v5e and v6e is half of both ways.
CHIPS: dict[str, Chip] = {
    "v4": Chip(275e12, 32 * 2**30, 1200e9, 1.1e15 / 4096, 6, _CUBE, 4, "megacore"),
    "v5e": Chip(197e12, 16 * 2**30, 819e9, 200e9, 4, _PLANE, 16, "default"),
    "v5p": Chip(459e12, 95 * 2**30, 2765e9, 600e9, 6, _CUBE, 4, "megacore"),
    "v6e": Chip(918e12, 32 * 2**30, 1638e9, 400e9, 4, _PLANE, 16, "default"),
}


class Report(NamedTuple):
    """What a step needs and does; figures are of one chip, where nothing else is said."""

    topology: str
    chips: int
    batch: int  # images a step
    refusal: str  # of the compiler, for want of memory; empty where the step fits, and what follows is 0 where not
    compile_seconds: float
    memory: float  # bytes that the chip has
    arguments: int = 0  # bytes of state and batch
    temporaries: int = 0  # bytes
    code: int = 0  # bytes
    flops: float = 0.0  # an image, as XLA counts them
    multiply_adds: int = 0  # an image, of the forward pass, as published
    bytes_accessed: float = 0.0  # an image, as XLA counts them: memory on the chip as well
    memory_traffic: float = 0.0  # an image, bytes of these that go to and from HBM
    collectives: dict[str, Collective] = {}  # of a step
    compute_seconds: float = 0.0  # of a step, at the chip's peak
    memory_seconds: float = 0.0  # of a step, at the bandwidth of HBM
    link_seconds: float = 0.0  # of its collectives, at the bandwidth of the links of a chip in a corner of the slice

    @property
    def bound(self) -> str:
        """What a step takes longest for."""
        return "compute" if self.compute_seconds > self.memory_seconds else "memory bandwidth"

    @property
    def images_per_second(self) -> float:
        """At most, were everything else hidden behind what bounds it: the roofline (Williams et al. 2009)."""
        seconds = max(self.compute_seconds, self.memory_seconds)
        return self.batch / self.chips / seconds if seconds else 0.0


def preflight(
    recipe: Recipe, dataset: Dataset, topology: str, *, accumulate: int = 1, shard: Shard = "nothing"
) -> Report:
    """Compiles the training step of a recipe for a TPU slice such as "v5e:2x4", which takes minutes.

    A batch comes from the host. Raises InputError where recipe and slice do not fit each other, MachineError where
    libtpu is not there or does not answer.
    """
    recipe, (chip, lengths) = check(recipe), slice_of(topology)
    chips = math.prod(lengths)
    require_divided(recipe.batch_size, chips, topology)
    job = prepare(recipe, dataset, accumulate=accumulate, shard=shard)
    require_parts(recipe.batch_size, unit_of(recipe, job.model.norm), chips, accumulate)
    job = job._replace(mesh=mesh_of(describe(topology)))
    size = max(recipe.augment.sizes, default=None)
    start = time.perf_counter()
    key = jax.ShapeDtypeStruct((2,), jnp.uint32, sharding=replicated(job.mesh))
    lowered = make_advance(job, size).lower(*abstract(job), abstract_batch(job), key, None)
    report = Report(topology, chips, recipe.batch_size, "", 0.0, chip.memory)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return report._replace(refusal=first_line(error), compile_seconds=time.perf_counter() - start)
    report = report._replace(compile_seconds=time.perf_counter() - start)
    return filled(report, compiled, chip, job, size or dataset.image_shape[0])


def filled(report: Report, compiled: jax.stages.Compiled, chip: Chip, job: Job, size: int) -> Report:
    """A report with what is known of the compiled step."""
    text, memory, cost = compiled.as_text() or "", compiled.memory_analysis(), compiled.cost_analysis() or {}
    assert memory is not None, "which the compiler for TPUs always knows"
    images = report.batch / report.chips
    parts = job.accumulate / min(job.accumulate, 2)  # XLA counts a loop once: of the parts, the first and one more
    flops, accessed = (cost.get(name, 0.0) * parts / images for name in ("flops", "bytes accessed"))
    traffic, meetings = memory_traffic(text), collectives(text)
    shape = (size, size, *job.dataset.image_shape[2:])
    return report._replace(
        arguments=memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        flops=flops,
        multiply_adds=totals(job.model.clone(input_shape=shape)).multiply_adds,
        bytes_accessed=accessed,
        memory_traffic=traffic / images,
        collectives=meetings,
        compute_seconds=flops * images / chip.flops,
        memory_seconds=traffic / chip.bandwidth,
        link_seconds=link_seconds(meetings, report.topology),
    )


def link_seconds(meetings: dict[str, Collective], topology: str) -> float:
    """Seconds for which collectives keep the links of a chip busy that is in a corner of the slice.

    An all-reduce of n chips sends 2 (n - 1) / n times its bytes, the others half of it; a collective-permute once.
    """
    chip, lengths = slice_of(topology)
    chips = math.prod(lengths)
    links = sum((length > 1) + (length > 2 and length % chip.wraps_at == 0) for length in lengths)
    share = (chips - 1) / chips
    sent = {"all-reduce": 2 * share, "reduce-scatter": chips - 1, "collective-permute": 1.0}
    total = sum(sent.get(kind, share) * meeting.bytes for kind, meeting in meetings.items())
    return total / (links * chip.interconnect / chip.links) if links else 0.0


def abstract_batch(job: Job) -> Batch:
    """Shapes, dtypes and places on the devices of a batch that comes from the host."""
    size, where = job.recipe.batch_size, split(job.mesh)

    def array(shape: tuple[int, ...], dtype: Any) -> Any:
        return jax.ShapeDtypeStruct((size, *shape), dtype, sharding=where)

    outputs = job.recipe.loss.name in ("multilabel", "mean_squared_error")
    label = array((len(job.dataset.classes),), jnp.float32) if outputs else array((), jnp.int32)
    return Batch(array(job.dataset.image_shape, jnp.uint8), label, None, array((), jnp.int32))


def require_divided(batch: int, chips: int, topology: str) -> None:
    """Raises InputError where the chips do not divide the batch, with the nearest that they do."""
    if batch % chips:
        near = [n * chips for n in (batch // chips, batch // chips + 1) if n]
        raise InputError(
            f"batch_size is {batch}, which the {chips} chips of {topology} do not divide;"
            f" nearest: {' and '.join(map(str, near))}"
        )


def data_of(recipe: Recipe, data_dir: Path, size: int | None = None, classes: int | None = None) -> tuple[Dataset, str]:
    """What a step has to know of the data: theirs if they are at hand and nothing is given, or else an assumption.

    `size` is the height and width in pixels of the images that reach the devices. The string says what was assumed.
    """
    augment, network, reason = recipe.augment, published(recipe.model.name), ""
    cropped = (augment.crop_size or recipe.data.size) if augment.crop and augment.crop_from == "original" else None
    if size is None and classes is None:
        try:
            found = open_sources(recipe, data_dir).dataset
        except InputError as error:
            if recipe.data.name.partition(":")[0] not in {key.partition(":")[0] for key in DATASETS}:
                raise
            reason = f"; without the data: {error}"
        else:
            shape = found.image_shape if cropped is None else (cropped, cropped, found.image_shape[-1])
            return replace(found, image_shape=shape), ""
    side = size or cropped or recipe.data.size or network.input_shape[0]
    channels = max(len(recipe.data.mean), len(recipe.data.std))
    channels = network.input_shape[-1] if channels == 1 else channels
    names = tuple(map(str, range(classes or network.num_classes)))
    note = f"assuming images of {side} x {side} x {channels} and {len(names):,} classes{reason}"
    return Dataset(names, (side, side, channels), _IMAGENET, str(data_dir)), note


def slice_of(topology: str) -> tuple[Chip, tuple[int, ...]]:
    """The chip of a slice such as "v5e:2x4", and how many there are along each axis; raises InputError if unknown."""
    kind, _, shape = topology.partition(":")
    if kind not in CHIPS:
        known = ", ".join(f"{chip}:{facts.shapes[2]}" for chip, facts in CHIPS.items())
        raise InputError(f"unknown topology {topology!r}; known: {known} and other shapes of these chips")
    if shape not in CHIPS[kind].shapes:
        raise InputError(f"unknown shape {shape!r} of {kind}; known: {', '.join(CHIPS[kind].shapes)}")
    return CHIPS[kind], tuple(map(int, shape.split("x")))


def describe(topology: str) -> Sequence[jax.Device]:
    """The chips of a slice, which can be compiled for and nothing else: it need not exist.

    Raises MachineError where libtpu is not there, does not answer within a minute or does not know the slice.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise MachineError("libtpu is not installed; it comes with: pip install 'resnet-jax[preflight]'")
    _quiet()
    chip, lengths = slice_of(topology)
    bounds = {"chips_per_host_bounds": (1, 1, 1)} if math.prod(lengths) == 1 else {}
    found: list[Any] = []

    def ask() -> None:
        try:
            found.append(topologies.get_topology_desc(topology, "tpu", chip_config_name=chip.layout, **bounds).devices)
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=ask, daemon=True)  # what is stuck in C++ cannot be stopped, but left alone
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
    """Settings with which libtpu looks for no TPU, asks no network, and neither locks nor logs; before it is loaded."""
    for setting, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_HOST_BOUNDS": "1,1,1",
        "TPU_CHIPS_PER_HOST_BOUNDS": "2,2,1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # nothing is run, so several processes do not disturb each other
        "TPU_LOG_DIR": "disabled",
        "TPU_STDERR_LOG_LEVEL": "3",
        "TPU_MIN_LOG_LEVEL": "3",
    }.items():
        os.environ.setdefault(setting, value)
