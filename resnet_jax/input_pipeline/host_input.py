"""Batches read on the host, ahead of the step that needs them, by the threads of Grain.

A batch is a function of its number, so there is no position to save, and the number of threads changes nothing. Pillow
decodes outside the GIL: threads scale with cores, need no copies between processes, and leave no worker process or
shared memory behind.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from resnet_jax.data.source import ChangedDataError, Example, Source, as_target, stack_targets
from resnet_jax.errors import InputError

# (index of an example, position of the row in the run, for what is random in it) -> example
Read = Callable[[int, int], Example]
# Reading gives up after this number of corrupt examples in a row
_TRIES = 100


def reader(source: Source, crop: Read | None) -> Read:
    """Return how a split is read: by `crop` if given, otherwise as it is."""
    return crop or (lambda index, _: source.read(index))


def stream(
    read: Read,
    indices: Callable[[int], np.ndarray],
    batches: range,
    *,
    threads: int,
    host: int = 0,
    hosts: int = 1,
) -> Iterator[tuple[np.ndarray, Any]]:
    """Yield this host's rows of each batch in order: images (b / hosts, h, w, c) uint8 and targets.

    Targets are (b / hosts,) int32, (b / hosts, k) float32, or a tree of such arrays.

    Args:
        read: (index, position) -> example; the position counts the rows of all batches.
        indices: number of a batch -> indices (b,) of its examples.
        batches: numbers of the batches.
        threads: number of threads that read ahead, up to two batches; 0 reads each batch when it is needed.
        host: number of this host, from 0.
        hosts: number of hosts, a divisor of b; each reads consecutive rows.
    """
    if not batches:
        return
    whole = len(indices(batches[0]))
    rows = whole // hosts
    known = lru_cache(maxsize=8)(indices)

    def row(place: int) -> tuple[np.ndarray, Any]:
        batch, offset = batches[place // rows], host * rows + place % rows
        example = read(int(known(batch)[offset]), batch * whole + offset)
        return example.image, as_target(example.target)

    # Here, because the import takes a second and data on the devices does not need it
    import grain

    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * rows if threads else 0)
    examples = grain.MapDataset.range(len(batches) * rows).map(row).to_iter_dataset(options)
    yield from examples.batch(rows, batch_fn=_stack)


def _stack(rows: Sequence[tuple[np.ndarray, Any]]) -> tuple[np.ndarray, Any]:
    shapes = {image.shape for image, _ in rows}
    if len(shapes) > 1:
        raise InputError(
            f"images of {' and '.join(map(str, sorted(shapes)[:2]))}; set data.image_size to resize all to one size"
        )
    return np.stack([image for image, _ in rows]), stack_targets([target for _, target in rows])


def skip_corrupt(read: Read, size: int, replaced: dict[int, str]) -> Read:
    """Return a reader that replaces an example that cannot be read by the next one that can.

    Args:
        read: reads one example.
        size: number of examples.
        replaced: receives index -> error.

    Raises:
        InputError: A hundred examples in a row cannot be read.
        ChangedDataError: The data are no longer those that the run began with.
    """

    def read_or_next(index: int, position: int) -> Example:
        for offset in range(min(_TRIES, size)):
            candidate = (index + offset) % size
            try:
                return read(candidate, position)
            except ChangedDataError:
                raise
            except InputError as error:
                replaced.setdefault(candidate, str(error))
        raise InputError(f"{replaced[index]}; the next {min(_TRIES, size) - 1} images cannot be read either")

    return read_or_next
