"""Batches read on the host, ahead of the step that needs them, by the threads of Grain.

A batch is a function of its number, so there is no position to remember, and any number of threads gives the same.
Pillow decodes outside the interpreter's lock: threads scale with cores, need no copies between processes, and leave
neither worker processes nor shared memory behind, however the trainer ends.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import numpy as np

from resnet_jax.data.source import Example, Source, as_label
from resnet_jax.errors import InputError

# (index of an example, position of the row in the run, for what is random in it) -> example
Read = Callable[[int, int], Example]
_TRIES = 100  # examples in a row that may be bad before reading gives up


def reading(source: Source, crop: Read | None) -> Read:
    """How a split is read: by another `crop` for each row, if there is one, or as it is."""
    return crop or (lambda index, _: source.read(index))


def default_threads() -> int:
    """A thread a core, of those that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def stream(
    read: Read,
    indices: Callable[[int], np.ndarray],
    batches: range,
    *,
    threads: int,
    host: int = 0,
    hosts: int = 1,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """uint8 images (b / hosts, h, w, c) and labels, int32 (b / hosts,) or float32 (b / hosts, k): of these batches, in
    order, a host's share.

    Args:
        read: (index, position) -> example; the position counts the rows of all batches.
        indices: number of a batch -> indices (b,) of its examples.
        batches: the numbers.
        threads: that read ahead, up to two batches; 0 reads each batch when it is asked for.
        host: number of this one, of so many `hosts` that divide the batch; each reads a run of its rows.
    """
    if not batches:
        return
    whole = len(indices(batches[0]))
    rows = whole // hosts
    known = lru_cache(maxsize=8)(indices)

    def row(place: int) -> tuple[np.ndarray, np.ndarray]:
        batch, offset = batches[place // rows], host * rows + place % rows
        example = read(int(known(batch)[offset]), batch * whole + offset)
        return example.image, as_label(example.label)

    import grain  # takes a second, which data that lies on the devices need not wait for

    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * rows if threads else 0)
    examples = grain.MapDataset.range(len(batches) * rows).map(row).to_iter_dataset(options)
    yield from examples.batch(rows, batch_fn=_stack)


def _stack(rows: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    shapes = {image.shape for image, _ in rows}
    if len(shapes) > 1:
        raise InputError(
            f"images of {' and '.join(map(str, sorted(shapes)[:2]))}; set data.size to bring all to one size"
        )
    return np.stack([image for image, _ in rows]), np.stack([label for _, label in rows])


def replacing(read: Read, size: int, replaced: dict[int, str]) -> Read:
    """Reads as `read`, but for an example, of `size`, that cannot be read the next one that can.

    What was wrong is noted in `replaced`, by index. Raises InputError where a hundred in a row are bad.
    """

    def read_or_next(index: int, position: int) -> Example:
        for offset in range(min(_TRIES, size)):
            candidate = (index + offset) % size
            try:
                return read(candidate, position)
            except InputError as error:
                replaced.setdefault(candidate, str(error))
        raise InputError(f"{replaced[index]}; so are the {min(_TRIES, size) - 1} after it")

    return read_or_next
