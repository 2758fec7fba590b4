"""Memory and speed of a training step on a TPU slice, compiled on a CPU by libtpu without the slice.

The compiler reports memory, FLOPs and collectives; published figures of the chips bound the speed.
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

from resnet_jax.data.datasets import DATASETS
from resnet_jax.errors import InputError, MachineError, first_line
from resnet_jax.input_pipeline.sampler import Batch
from resnet_jax.models.summary import model_cost
from resnet_jax.models.zoo import MODELS
from resnet_jax.parallel.grad_accumulation import require_accumulation_steps
from resnet_jax.parallel.sharding import ParamSharding, batch_sharding, mesh_of, replicated
from resnet_jax.recipe import Recipe, check
from resnet_jax.run_dir.files import DatasetInfo
from resnet_jax.tools.hlo import Collective, collectives, memory_traffic
from resnet_jax.training.setup import TrainSetup, abstract_train_state, make_setup, make_train_step, microbatch_unit
from resnet_jax.training.sources import open_sources

# Seconds after which libtpu has failed to describe a slice; it takes one
_PATIENCE = 60.0
# Training images of ImageNet, used if the size of a data set is not known
_IMAGENET = 1_281_167
_PLANE = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBE = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16")


class Chip(NamedTuple):
    """Published figures of a TPU chip, which is one JAX device."""

    flops: float  # FLOP/s of bfloat16
    memory: float  # bytes of HBM
    bandwidth: float  # bytes per second of HBM
    interconnect: float  # bytes per second, one way, of all links together
    links: int
    shapes: tuple[str, ...]  # shapes of slices; libtpu knows more
    wraps_at: int  # an axis is a ring if its length is a multiple of this
    layout: str  # libtpu's chip configuration: both cores of a "megacore" are one device


# https://docs.cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e (November 2026). Their GB of HBM are GiB in libtpu, which
# gives programs 15.75 of v5e's 16. Interconnect is published both ways together (v5e 400, v5p 1200, v6e 800 GB/s), so
# it is halved here. For v4 only the all-reduce bandwidth of 4,096 chips is known, 1.1 PB/s.
CHIPS: dict[str, Chip] = {
    "v4": Chip(275e12, 32 * 2**30, 1200e9, 1.1e15 / 4096, 6, _CUBE, 4, "megacore"),
    "v5e": Chip(197e12, 16 * 2**30, 819e9, 200e9, 4, _PLANE, 16, "default"),
    "v5p": Chip(459e12, 95 * 2**30, 2765e9, 600e9, 6, _CUBE, 4, "megacore"),
    "v6e": Chip(918e12, 32 * 2**30, 1638e9, 400e9, 4, _PLANE, 16, "default"),
}


class Report(NamedTuple):
    """Memory and work of a step, per chip unless stated otherwise."""

    topology: str
    chips: int
    batch: int  # images per step
    refusal: str  # the compiler's message if memory is too small; the figures below `memory` are then 0
    compile_seconds: float
    memory: float  # bytes of the chip
    arguments: int = 0  # bytes of state and batch
    temporaries: int = 0  # bytes
    code: int = 0  # bytes
    flops: float = 0.0  # per image, counted by XLA
    multiply_adds: int = 0  # per image, of the forward pass, as published
    bytes_accessed: float = 0.0  # per image, counted by XLA, including memory on the chip
    memory_traffic: float = 0.0  # per image, the part of these bytes that goes to and from HBM
    collectives: dict[str, Collective] = {}  # per step
    compute_seconds: float = 0.0  # per step, at the chip's peak
    memory_seconds: float = 0.0  # per step, at the bandwidth of HBM
    link_seconds: float = 0.0  # per step, at the bandwidth of the links of a chip in a corner of the slice

    @property
    def bound(self) -> str:
        """The resource that limits a step: "compute" or "memory bandwidth"."""
        return "compute" if self.compute_seconds > self.memory_seconds else "memory bandwidth"

    @property
    def images_per_second(self) -> float:
        """Maximum images per second per chip, by the roofline model (Williams et al. 2009)."""
        seconds = max(self.compute_seconds, self.memory_seconds)
        return self.batch / self.chips / seconds if seconds else 0.0


def preflight(
    recipe: Recipe,
    dataset: DatasetInfo,
    topology: str,
    *,
    grad_accum_steps: int = 1,
    param_sharding: ParamSharding = "replicated",
) -> Report:
    """Compile the training step of a recipe for a TPU slice such as "v5e:2x4", which takes minutes.

    Args:
        recipe: to be trained.
        dataset: classes and image shape.
        topology: chip and shape of the slice.
        grad_accum_steps: microbatches per step.
        param_sharding: sharding of parameters, optimiser state and EMA.

    Raises:
        InputError: Recipe and slice do not fit each other.
        MachineError: libtpu is missing or does not answer.
    """
    recipe, (chip, lengths) = check(recipe), slice_of(topology)
    chips = math.prod(lengths)
    require_divided(recipe.batch_size, chips, topology)
    setup = make_setup(recipe, dataset, grad_accum_steps=grad_accum_steps, param_sharding=param_sharding)
    require_accumulation_steps(recipe.batch_size, microbatch_unit(setup), chips, grad_accum_steps)
    setup = setup._replace(mesh=mesh_of(describe(topology)))
    size = max(recipe.augment.progressive_sizes, default=None)
    start = time.perf_counter()
    key = jax.ShapeDtypeStruct((2,), jnp.uint32, sharding=replicated(setup.mesh))
    lowered = make_train_step(setup, size).lower(abstract_train_state(setup), abstract_batch(setup), key)
    report = Report(topology, chips, recipe.batch_size, "", 0.0, chip.memory)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return report._replace(refusal=first_line(error), compile_seconds=time.perf_counter() - start)
    report = report._replace(compile_seconds=time.perf_counter() - start)
    shape = dataset.image_shape if size is None else (size, size, dataset.image_shape[-1])
    return filled(report, compiled, chip, setup, shape)


def filled(
    report: Report, compiled: jax.stages.Compiled, chip: Chip, setup: TrainSetup, image_shape: tuple[int, ...]
) -> Report:
    """Return a report with the figures of the compiled step."""
    text, memory, cost = compiled.as_text() or "", compiled.memory_analysis(), compiled.cost_analysis() or {}
    assert memory is not None, "which the compiler for TPUs always knows"
    images = report.batch / report.chips
    # XLA counts a loop body once: the first microbatch, outside the loop, and one more
    parts = setup.grad_accum_steps / min(setup.grad_accum_steps, 2)
    flops, accessed = (cost.get(name, 0.0) * parts / images for name in ("flops", "bytes accessed"))
    traffic, meetings = memory_traffic(text), collectives(text)
    return report._replace(
        arguments=memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        flops=flops,
        multiply_adds=model_cost(setup.model, image_shape).multiply_adds,
        bytes_accessed=accessed,
        memory_traffic=traffic / images,
        collectives=meetings,
        compute_seconds=flops * images / chip.flops,
        memory_seconds=traffic / chip.bandwidth,
        link_seconds=link_seconds(meetings, report.topology),
    )


def link_seconds(meetings: dict[str, Collective], topology: str) -> float:
    """Return the seconds that collectives occupy the links of a chip in a corner of the slice.

    An all-reduce of n chips sends 2 (n - 1) / n times its bytes, others half of that, a collective-permute once.
    """
    chip, lengths = slice_of(topology)
    chips = math.prod(lengths)
    links = sum((length > 1) + (length > 2 and length % chip.wraps_at == 0) for length in lengths)
    share = (chips - 1) / chips
    sent = {"all-reduce": 2 * share, "reduce-scatter": chips - 1, "collective-permute": 1.0}
    total = sum(sent.get(kind, share) * meeting.bytes for kind, meeting in meetings.items())
    return total / (links * chip.interconnect / chip.links) if links else 0.0


def abstract_batch(setup: TrainSetup) -> Batch:
    """Return the shapes, dtypes and shardings of a batch that comes from the host."""
    size, where = setup.recipe.batch_size, batch_sharding(setup.mesh)

    def array(shape: tuple[int, ...], dtype: Any) -> Any:
        return jax.ShapeDtypeStruct((size, *shape), dtype, sharding=where)

    targets = setup.task.targets
    target = array(targets.shape(len(setup.dataset.classes)), targets.dtype)
    return Batch(array(setup.dataset.image_shape, jnp.uint8), target, None, array((), jnp.int32))


def require_divided(batch: int, chips: int, topology: str) -> None:
    """Raise InputError, naming the nearest batches that fit, if the chips do not divide the batch."""
    if batch % chips:
        near = [n * chips for n in (batch // chips, batch // chips + 1) if n]
        raise InputError(
            f"batch_size is {batch}, which the {chips} chips of {topology} do not divide;"
            f" nearest: {' and '.join(map(str, near))}"
        )


def data_of(
    recipe: Recipe, data_dir: Path, size: int | None = None, classes: int | None = None
) -> tuple[DatasetInfo, str]:
    """Return classes and image shape of the data, and a note on assumptions if the data are missing.

    Args:
        recipe: names the data set and the network, whose published shape is assumed without data.
        data_dir: folder of the data sets.
        size: height and width in pixels of the images that reach the devices; None asks the data.
        classes: number of classes; None asks the data.

    Raises:
        InputError: The data set is unknown, or it is missing and the network has no published shape.
    """
    augment, network, reason = recipe.augment, MODELS.get(recipe.model.name), ""
    cropped = (
        (augment.train_crop_size or recipe.data.image_size)
        if augment.random_resized_crop and augment.rrc_from == "original"
        else None
    )
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
    side = size or cropped or recipe.data.image_size
    if network is None and not (side and classes):
        raise InputError(f"{recipe.model.name}: has no published shape{reason}; give --image-size and --classes")
    *spatial, published_channels = (0, 0, 3) if network is None else network.input_shape
    if side:
        # The time axis of video stays
        spatial = [*spatial[:-2], *(side for _ in spatial[-2:])]
    channels = max(len(recipe.data.mean), len(recipe.data.std))
    shape = (*spatial, published_channels if channels == 1 else channels)
    count = classes or (network.num_classes if network else 0)
    names = tuple(map(str, range(count)))
    note = f"assuming images of {' x '.join(map(str, shape))} and {len(names):,} classes{reason}"
    return DatasetInfo(names, shape, _IMAGENET, str(data_dir)), note


def slice_of(topology: str) -> tuple[Chip, tuple[int, ...]]:
    """Return the chip of a slice such as "v5e:2x4", and its axis lengths; raise InputError if unknown."""
    kind, _, shape = topology.partition(":")
    if kind not in CHIPS:
        known = ", ".join(f"{chip}:{facts.shapes[2]}" for chip, facts in CHIPS.items())
        raise InputError(f"unknown topology {topology!r}; known: {known} and other shapes of these chips")
    if shape not in CHIPS[kind].shapes:
        raise InputError(f"unknown shape {shape!r} of {kind}; known: {', '.join(CHIPS[kind].shapes)}")
    return CHIPS[kind], tuple(map(int, shape.split("x")))


def describe(topology: str) -> Sequence[jax.Device]:
    """Return the devices of a slice, for compilation only: the slice need not exist.

    Raises:
        MachineError: libtpu is missing, does not answer within a minute, or does not know the slice.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise MachineError("libtpu is not installed; it comes with: pip install 'jax[tpu]'")
    _quiet()
    chip, lengths = slice_of(topology)
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
