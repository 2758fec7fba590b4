"""Memory and speed of a training step on TPUs or GPUs, compiled on a CPU without them.

The compilers report memory, FLOPs and collectives; published figures of the chips bound the speed.
"""

import math
import time
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from resnet_jax.data.datasets import DATASETS
from resnet_jax.data.resize import height_and_width
from resnet_jax.errors import InputError, first_line
from resnet_jax.input_pipeline.sampler import Batch
from resnet_jax.models.cpu_ops import cpu_kernels
from resnet_jax.models.summary import model_cost
from resnet_jax.models.zoo import MODELS
from resnet_jax.parallel.grad_accumulation import require_accumulation_steps
from resnet_jax.parallel.sharding import ParamSharding, batch_sharding, mesh_of, replicated
from resnet_jax.recipe import Recipe, check
from resnet_jax.run_dir.files import DatasetInfo
from resnet_jax.runtime.compilation_cache import cache_settings
from resnet_jax.tools.chips import Chip, link_seconds, slice_of
from resnet_jax.tools.hlo import Collective, collectives, kernels, memory_traffic
from resnet_jax.tools.topology import describe
from resnet_jax.training.init import abstract_train_state
from resnet_jax.training.make_step import make_train_step
from resnet_jax.training.setup import TrainSetup, make_setup, microbatch_unit
from resnet_jax.training.sources import open_sources
from resnet_jax.training.teacher import with_teacher

# Training images of ImageNet, used if the size of a data set is not known
_IMAGENET = 1_281_167


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
    code: int = 0  # bytes; not known for GPUs
    flops: float = 0.0  # per image, counted by XLA; for GPUs before optimisation
    multiply_adds: int = 0  # per image, of the forward pass, as published
    bytes_accessed: float = 0.0  # per image, counted by XLA, including memory on the chip; 0 for GPUs
    memory_traffic: float = 0.0  # per image, the part of these bytes that goes to and from HBM
    collectives: dict[str, Collective] = {}  # per step
    kernels: dict[str, int] = {}  # launches per step by kind, see `hlo.kernels`; only of GPUs
    compute_seconds: float = 0.0  # per step, at the chip's peak
    memory_seconds: float = 0.0  # per step, at the bandwidth of HBM
    link_seconds: float = 0.0  # per step, at the bandwidth of the links of a chip, see `chips.link_seconds`

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
    """Compile the training step of a recipe for chips such as "v5e:2x4" or "h200:8", which takes minutes.

    Args:
        recipe: to be trained.
        dataset: classes and image shape.
        topology: chip, and shape of the slice or number of GPUs.
        grad_accum_steps: microbatches per step.
        param_sharding: sharding of parameters, optimiser state and EMA.

    Raises:
        InputError: Recipe and slice do not fit each other.
        MachineError: The compiler for these chips is missing or does not answer.
    """
    recipe, (chip, lengths) = check(recipe), slice_of(topology)
    chips = math.prod(lengths)
    require_divided(recipe.batch_size, chips, topology)
    setup = make_setup(recipe, dataset, grad_accum_steps=grad_accum_steps, param_sharding=param_sharding)
    require_accumulation_steps(recipe.batch_size, microbatch_unit(setup), chips, grad_accum_steps)
    setup = with_teacher(setup)._replace(mesh=mesh_of(describe(topology)))
    size = max(recipe.augment.progressive_sizes, default=None)
    start = time.perf_counter()
    lowered = lower_step(setup, size)
    report = Report(topology, chips, recipe.batch_size, "", 0.0, chip.memory)
    # A program for GPUs that are not there can be kept, but not read again
    cache = cache_settings(jax_enable_compilation_cache=False) if chip.gpu else nullcontext()
    try:
        with cache:
            compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return report._replace(refusal=first_line(error), compile_seconds=time.perf_counter() - start)
    report = report._replace(compile_seconds=time.perf_counter() - start)
    shape = dataset.image_shape if size is None else (size, size, dataset.image_shape[-1])
    report = filled(report, compiled, chip, setup, shape)
    if chip.gpu is None:
        return report
    needed = report.arguments + report.temporaries + report.code
    refusal = f"needs {needed / 2**30:.1f} of {chip.memory / 2**30:.1f} GiB" if needed > chip.memory else ""
    return report._replace(refusal=refusal)


def lower_step(setup: TrainSetup, size: int | None) -> jax.stages.Lowered:
    """Return the training step, lowered for the mesh of the setup and images of `size`."""
    step = make_train_step(setup, size)
    return step.lower(abstract_train_state(setup), abstract_batch(setup), *abstract_constants(setup))


def plain_flops(setup: TrainSetup) -> float:
    """Return XLA's count of the FLOPs of the whole step before optimisation, from a program for one CPU."""
    one = setup._replace(mesh=mesh_of(jax.devices("cpu")[:1]))
    with cpu_kernels(False):
        cost = lower_step(one, max(setup.recipe.augment.progressive_sizes, default=None)).cost_analysis() or {}
    return float(cost.get("flops", 0.0))


def filled(
    report: Report, compiled: jax.stages.Compiled, chip: Chip, setup: TrainSetup, image_shape: tuple[int, ...]
) -> Report:
    """Return a report with the figures of the compiled step."""
    text, memory, cost = compiled.as_text() or "", compiled.memory_analysis(), compiled.cost_analysis() or {}
    assert memory is not None, "which these compilers always know"
    images = report.batch / report.chips
    # XLA counts a loop body once: the first microbatch, outside the loop, and one more
    parts = setup.grad_accum_steps / min(setup.grad_accum_steps, 2)
    if chip.gpu:
        # The compiler for GPUs does not count them
        cost = {"flops": plain_flops(setup) / report.chips}
    flops, accessed = (cost.get(name, 0.0) * parts / images for name in ("flops", "bytes accessed"))
    # NVIDIA's products of float32 are TF32, at half the speed of bfloat16
    peak = chip.flops / 2 if chip.gpu and setup.recipe.model.dtype == "float32" else chip.flops
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
        kernels=kernels(text) if chip.gpu else {},
        compute_seconds=flops * images / peak,
        memory_seconds=traffic / chip.bandwidth,
        link_seconds=link_seconds(meetings, report.topology),
    )


def abstract_batch(setup: TrainSetup) -> Batch:
    """Return the shapes, dtypes and shardings of a batch that comes from the host."""
    size, where = setup.recipe.batch_size, batch_sharding(setup.mesh)

    def array(shape: tuple[int, ...], dtype: Any) -> Any:
        return jax.ShapeDtypeStruct((size, *shape), dtype, sharding=where)

    one = setup.task.targets.abstract(len(setup.dataset.classes), setup.dataset.image_shape)
    target = jax.tree.map(lambda leaf: array(leaf.shape, leaf.dtype), one)
    return Batch(array(setup.dataset.image_shape, jnp.uint8), target, None, array((), jnp.int32))


def abstract_constants(setup: TrainSetup) -> Any:
    """Return the shapes, dtypes and shardings of `step_constants`."""
    constants = (jax.eval_shape(jax.random.key, 0), *((setup.teacher.variables,) if setup.teacher else ()))
    place = partial(jax.ShapeDtypeStruct, sharding=replicated(setup.mesh))
    return jax.tree.map(lambda leaf: place(leaf.shape, leaf.dtype), constants)


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
            shape = found.image_shape if cropped is None else (*height_and_width(cropped), found.image_shape[-1])
            return replace(found, image_shape=shape), ""
    side = size or cropped or recipe.data.image_size
    if network is None and not (side and classes):
        raise InputError(f"{recipe.model.name}: has no published shape{reason}; give --image-size and --classes")
    *spatial, published_channels = (0, 0, 3) if network is None else network.input_shape
    if side:
        # The time axis of video stays
        spatial = [*spatial[:-2], *height_and_width(side)[: len(spatial)]]
    channels = max(len(recipe.data.mean), len(recipe.data.std))
    shape = (*spatial, published_channels if channels == 1 else channels)
    count = classes or (network.num_classes if network else 0)
    names = tuple(map(str, range(count)))
    note = f"assuming images of {' x '.join(map(str, shape))} and {len(names):,} classes{reason}"
    return DatasetInfo(names, shape, _IMAGENET, str(data_dir)), note
