"""What a step is given: places in a split that lies on the devices, or images that were read ahead of it on the host.

Both give the same batches bit for bit. Which one is a question of memory, not of the recipe.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding

from resnet_jax.data.batches import Batch, batch_indices, evaluation_indices
from resnet_jax.data.source import Example, Source, as_label, to_arrays
from resnet_jax.data.stream import Read, default_threads, reading, replacing, stream
from resnet_jax.train.devices import place, replicate, replicated, split, split_rows
from resnet_jax.train.habits import Feeding

_EVALUATED = 500  # images a batch of an evaluation, at most
_PIXELS = 2**23  # and their pixels, for the memory of the first layers


class Resident(NamedTuple):
    """A split that lies on the devices as a whole."""

    image: Array  # (n, h, w, c) uint8
    label: Array  # (n,) int32


class Pick(NamedTuple):
    """Some examples of a resident split."""

    data: Resident
    indices: Array  # (b,)
    mask: Array | None  # (b,); None where all count


Item = Batch | Pick


def batch_of(item: Item) -> Batch:
    """The batch itself, gathered on the devices if they hold the split, with a mask; to be used under jit."""
    mask = jnp.ones(item[1].shape[:1], bool) if item.mask is None else item.mask
    if isinstance(item, Batch):
        return item._replace(mask=mask)
    return Batch(item.data.image[item.indices], item.data.label[item.indices], mask, item.indices)


class Supply(NamedTuple):
    """A split, on the devices or ready to be read."""

    source: Source
    read: Read
    resident: Resident | None
    mesh: Mesh
    threads: int


def supply(
    source: Source,
    mesh: Mesh,
    feeding: Feeding = Feeding(),
    replaced: dict[int, str] | None = None,
    crop: Read | None = None,
) -> Supply:
    """Puts a split on the devices if it is small enough, unless each reading of an example is another `crop` of it.

    Examples that cannot be read raise InputError or, where `replaced` is given, give way to the next and are noted.
    """
    read = reading(source, crop)
    if replaced is not None:
        read = replacing(read, source.size, replaced)
    threads = default_threads() if feeding.threads is None else feeding.threads
    resident = None
    if crop is None and _is_small(source, read(0, 0), feeding):
        arrays = to_arrays(source._replace(read=lambda index: read(index, 0)))
        resident = Resident(*replicate(arrays, mesh))
    return Supply(source, read, resident, mesh, threads)


def _is_small(source: Source, example: Example, feeding: Feeding) -> bool:
    return source.size * example.image.nbytes <= feeding.resident_gib * 2**30


def abstract_item(
    source: Source, mesh: Mesh, seed: int, batch_size: int, feeding: Feeding = Feeding(), crop: Read | None = None
) -> Item:
    """Shapes, dtypes and places of what `training_items` give, known before the data has been opened."""
    read = replacing(reading(source, crop), source.size, {})
    example, indices = read(0, 0), place(batch_indices(seed, 0, batch_size, source.size), split(mesh))
    label = as_label(example.label)

    def arrays(count: int, where: NamedSharding) -> tuple[Any, Any]:
        kinds = ((example.image.shape, np.dtype(np.uint8)), (label.shape, label.dtype))
        image, labels = (jax.ShapeDtypeStruct((count, *shape), dtype, sharding=where) for shape, dtype in kinds)
        return image, labels

    if crop is None and _is_small(source, example, feeding):
        return Pick(Resident(*arrays(source.size, replicated(mesh))), indices, None)
    image, labels = arrays(batch_size, split(mesh))
    return Batch(image, labels, None, indices)


def on_mesh(data: Supply, mesh: Mesh) -> Supply:
    """The same split on other devices, from where it lies now; it is not read again."""
    resident = data.resident and Resident(*replicate(data.resident, mesh))
    return data._replace(mesh=mesh, resident=resident)


def training_items(data: Supply, seed: int, batch_size: int, steps: range, repeats: int = 1) -> Iterator[Item]:
    """What these steps are given, in order; each example occurs `repeats` times in its batch."""
    indices = partial(_training_indices, seed, batch_size, data.source.size, repeats)
    if data.resident is not None:
        for step in steps:
            yield Pick(data.resident, place(indices(step), split(data.mesh)), None)
        return
    for step, local in zip(steps, _read(data, indices, steps), strict=True):
        image, label = split_rows(local, data.mesh)
        yield Batch(image, label, None, place(indices(step), split(data.mesh)))


def _read(
    data: Supply, indices: Callable[[int], np.ndarray], batches: range
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """This host's rows of the batches."""
    host, hosts = jax.process_index(), jax.process_count()
    return stream(data.read, indices, batches, threads=data.threads, host=host, hosts=hosts)


def _training_indices(seed: int, batch_size: int, size: int, repeats: int, step: int) -> np.ndarray:
    return batch_indices(seed, step, batch_size, size, repeats)


def evaluation_items(data: Supply, batch_size: int = _EVALUATED) -> Iterator[Item]:
    """The whole split once, in order; the last batch is padded and masked."""
    devices = data.mesh.size
    batch_size = min(batch_size, data.source.size, max(1, _PIXELS // _pixels(data)))
    rows = list(evaluation_indices(data.source.size, -(-batch_size // devices) * devices))
    if data.resident is not None:
        for indices, mask in rows:
            yield Pick(data.resident, place(indices, split(data.mesh)), place(mask, split(data.mesh)))
        return
    batches = _read(data, lambda number: rows[number][0], range(len(rows)))
    for local, (indices, mask) in zip(batches, rows, strict=True):
        image, label = split_rows(local, data.mesh)
        yield Batch(image, label, place(mask, split(data.mesh)), place(indices, split(data.mesh)))


def _pixels(data: Supply) -> int:
    """Of one image, channels aside."""
    shape = data.source.read(0).image.shape if data.resident is None else data.resident.image.shape[1:]
    return int(np.prod(shape[:-1]))
