"""The input of a step: indices into a split on the devices, or images read ahead on the host.

Both give the same batches bit for bit. Memory decides which one is used.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding

from resnet_jax.data.source import Example, Source, all_named, as_target, default_threads, is_mask, to_arrays
from resnet_jax.input_pipeline.host_input import Read, reader, skip_corrupt, stream
from resnet_jax.input_pipeline.loading import DataLoading
from resnet_jax.input_pipeline.sampler import Batch, batch_indices, evaluation_indices
from resnet_jax.parallel.sharding import batch_sharding, from_local_rows, place, replicate, replicated
from resnet_jax.recipe import Recipe

# Images per evaluation batch, and their pixels, for the memory of the first layers
_EVAL_BATCH = 500
_EVAL_PIXELS = 2**23
# Outputs per evaluation batch if each pixel has one for each class
_EVAL_DENSE = 2**26


class DeviceArrays(NamedTuple):
    """A whole split on the devices."""

    image: Array
    """(n, h, w, c) uint8."""
    target: Any
    """(n,) int32, (n, k) float32, masks (n, h, w) uint8, or a tree of arrays."""


class IndexedBatch(NamedTuple):
    """Some examples of a split on the devices."""

    data: DeviceArrays
    indices: Array
    """(b,) int32."""
    mask: Array | None
    """(b,) bool, False on padding; None if there is none."""


StepInput = Batch | IndexedBatch


def gather_batch(inputs: StepInput) -> Batch:
    """Return a batch with mask and rows, gathered on the devices if they hold the split; for use in jit."""
    size = inputs[1].shape[0] if isinstance(inputs, IndexedBatch) else inputs.image.shape[0]
    mask = jnp.ones(size, bool) if inputs.mask is None else jnp.asarray(inputs.mask)
    rows = jnp.arange(size, dtype=jnp.uint32)
    if isinstance(inputs, Batch):
        return inputs._replace(mask=mask, rows=rows if inputs.rows is None else inputs.rows)
    image, target = jax.tree.map(lambda x: x[inputs.indices], inputs.data)
    return Batch(image, target, mask, inputs.indices, rows)


class DeviceSplit(NamedTuple):
    """A split, on the devices or ready to be read."""

    source: Source
    read: Read
    arrays: DeviceArrays | None
    mesh: Mesh
    num_threads: int


def open_device_split(
    source: Source,
    mesh: Mesh,
    loading: DataLoading = DataLoading(),
    corrupt: dict[int, str] | None = None,
    crop: Read | None = None,
) -> DeviceSplit:
    """Return a split, on the devices if it is small enough and its images are not cropped at random.

    Args:
        source: the split.
        mesh: the devices.
        loading: limits.
        corrupt: if given, an example that cannot be read is noted here by index and replaced by the next.
        crop: reads a random crop of the original image.

    Raises:
        InputError: Examples cannot be read, and `corrupt` is None; all are named.
    """
    read = reader(source, crop)
    if corrupt is not None:
        read = skip_corrupt(read, source.size, corrupt)
    arrays = None
    if crop is None and _fits(source, read(0, 0), loading):
        # Training images of which too many are corrupt are not read to the end
        with all_named(source) if corrupt is None else nullcontext():
            pixels = to_arrays(source._replace(read=lambda index: read(index, 0)))
        arrays = DeviceArrays(*replicate(pixels, mesh))
    threads = default_threads() if loading.num_threads is None else loading.num_threads
    return DeviceSplit(source, read, arrays, mesh, threads)


def _fits(source: Source, example: Example, loading: DataLoading) -> bool:
    leaves = (example.image, *jax.tree.leaves(as_target(example.target)))
    return source.size * sum(leaf.nbytes for leaf in leaves) <= loading.device_cache_gib * 2**30


def abstract_step_input(
    source: Source, mesh: Mesh, recipe: Recipe, loading: DataLoading = DataLoading(), crop: Read | None = None
) -> StepInput:
    """Return the shapes, dtypes and shardings of `training_batches`, known before the data is open."""
    read = skip_corrupt(reader(source, crop), source.size, {})
    example, sharding = read(0, 0), batch_sharding(mesh)
    indices = place(batch_indices(recipe.seed, 0, recipe.batch_size, source.size), sharding)
    leaves = example.image, as_target(example.target)

    def arrays(count: int, where: NamedSharding) -> Any:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape), x.dtype, sharding=where), leaves)

    if crop is None and _fits(source, example, loading):
        return IndexedBatch(DeviceArrays(*arrays(source.size, replicated(mesh))), indices, None)
    image, targets = arrays(recipe.batch_size, sharding)
    return Batch(image, targets, None, indices)


def move_to_mesh(split: DeviceSplit, mesh: Mesh) -> DeviceSplit:
    """Return the same split on other devices, copied there without reading it again."""
    arrays = split.arrays and DeviceArrays(*replicate(split.arrays, mesh))
    return split._replace(mesh=mesh, arrays=arrays)


def training_batches(split: DeviceSplit, recipe: Recipe, steps: range) -> Iterator[StepInput]:
    """Yield the inputs of these steps, in order."""
    sharding = batch_sharding(split.mesh)

    def indices(step: int) -> np.ndarray:
        size, repeats = split.source.size, recipe.augment.aug_repeats
        return batch_indices(recipe.seed, step, recipe.batch_size, size, repeats, split.source.draws)

    if split.arrays is not None:
        for step in steps:
            yield IndexedBatch(split.arrays, place(indices(step), sharding), None)
        return
    for step, rows in zip(steps, _read(split, indices, steps), strict=True):
        images, targets = from_local_rows(rows, split.mesh)
        yield Batch(images, targets, None, place(indices(step), sharding))


def evaluation_batches(split: DeviceSplit, batch_size: int = _EVAL_BATCH, first: int = 0) -> Iterator[StepInput]:
    """Yield the whole split once, in order, from batch number `first`; the last batch is padded and masked."""
    devices, sharding = split.mesh.size, batch_sharding(split.mesh)
    batch_size = min(batch_size, split.source.size, max(1, _most_pixels(split) // _pixels(split)))
    batches = list(evaluation_indices(split.source.size, -(-batch_size // devices) * devices))[first:]
    if split.arrays is not None:
        for indices, mask in batches:
            yield IndexedBatch(split.arrays, place(indices, sharding), place(mask, sharding))
        return
    read = _read(split, lambda number: batches[number][0], range(len(batches)))
    with all_named(split.source):
        for rows, (indices, mask) in zip(read, batches, strict=True):
            images, targets = from_local_rows(rows, split.mesh)
            yield Batch(images, targets, place(mask, sharding), place(indices, sharding))


def _read(split: DeviceSplit, indices: Callable[[int], np.ndarray], batches: range) -> Iterator[tuple[np.ndarray, Any]]:
    """Yield this host's rows of the batches."""
    host, hosts = jax.process_index(), jax.process_count()
    return stream(split.read, indices, batches, threads=split.num_threads, host=host, hosts=hosts)


def _most_pixels(split: DeviceSplit) -> int:
    """Return the number of pixels of an evaluation batch."""
    arrays = split.arrays
    target = split.source.read(0).target if arrays is None else jax.tree.map(lambda x: x[0], arrays.target)
    return _EVAL_PIXELS if not is_mask(target) else min(_EVAL_PIXELS, _EVAL_DENSE // len(split.source.classes))


def _pixels(split: DeviceSplit) -> int:
    """Return the number of pixels of one image."""
    shape = split.source.read(0).image.shape if split.arrays is None else split.arrays.image.shape[1:]
    return int(np.prod(shape[:-1]))
