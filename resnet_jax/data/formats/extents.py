"""Image files inside larger files, each a begin and a length: read at random, and none stays open."""

import io
import os
from bisect import bisect_right
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np

from resnet_jax.data.formats.files import MAX_FILE
from resnet_jax.data.image import Preprocessing
from resnet_jax.data.source import (
    ChangedDataError,
    RawExample,
    Source,
    from_raw,
    require_labels,
    require_one_size,
)
from resnet_jax.errors import InputError, first_line
from resnet_jax.runtime.checksum import sha256_of
from resnet_jax.runtime.safe_files import write_atomic


class Extents(NamedTuple):
    """A file and where its images are."""

    path: Path
    stamp: tuple[int, int]
    """As `stamp_of` returned it."""
    offsets: np.ndarray
    """(n, 2) int64, begin and length of each image."""
    labels: np.ndarray
    """(n,) int64."""


def stamp_of(known: os.stat_result) -> tuple[int, int]:
    """Return the size of a file in bytes and its time in nanoseconds since 1970, which differ for another file."""
    return known.st_size, known.st_mtime_ns


def make_extents(path: Path, offsets: np.ndarray, labels: np.ndarray) -> Extents:
    """Return the images of a file; raise InputError if one lies outside it or is too large."""
    known = stamp_of(path.stat())
    if (offsets < 0).any() or (offsets.sum(1) > known[0]).any() or (offsets[:, 1] > MAX_FILE).any():
        raise InputError(f"{path}: an image lies outside the archive or is over {MAX_FILE >> 20} MiB; pack it again")
    return Extents(path, known, offsets, labels)


def read_index(file: Path, known: tuple[int, int]) -> np.ndarray | None:
    """Return rows (n, 3) int64 that `write_index` wrote; None if there are none, or they are of another file."""
    try:
        # Not read at once: a damaged one may claim any size
        table = np.load(file, mmap_mode="r", allow_pickle=False)
        fits = table.dtype == np.int64 and table.shape[1:] == (3,) and table[:1].tolist() == [[*known, 0]]
        return np.array(table[1:]) if fits else None
    # Damage raises errors of many types
    except Exception:
        return None


def write_index(file: Path, known: tuple[int, int], rows: np.ndarray) -> None:
    """Write rows (n, 3) int64 on a file that is `known`; not at all in a folder that is only readable."""
    content = io.BytesIO()
    np.save(content, np.concatenate([np.array([[*known, 0]], np.int64), rows]), allow_pickle=False)
    with suppress(OSError):
        write_atomic(file, content.getvalue())


def source_of_extents(shards: Sequence[Extents], classes: Sequence[str], preprocessing: Preprocessing) -> Source:
    """Return the images of several files, one after the other."""
    home, labels = shards[0].path.parent, np.concatenate([shard.labels for shard in shards])
    require_labels(labels, len(classes), str(home))
    ends = tuple(accumulate(len(shard.labels) for shard in shards))
    digest = partial(sha256_of, [[shard.path.name, shard.stamp[0], shard.labels.tolist()] for shard in shards])
    source = from_raw(len(labels), classes, partial(_read, tuple(shards), ends), preprocessing, labels, digest)
    require_one_size(source, home, preprocessing)
    return source


def _read(shards: tuple[Extents, ...], ends: tuple[int, ...], index: int) -> RawExample:
    number = bisect_right(ends, index)
    shard, place = shards[number], index - (ends[number - 1] if number else 0)
    begin, length = map(int, shard.offsets[place])
    where = f"{shard.path}: image {place}"
    try:
        with shard.path.open("rb", buffering=0) as file:
            if stamp_of(os.fstat(file.fileno())) != shard.stamp:
                raise ChangedDataError(f"{shard.path} has changed since it was opened; start again")
            content = os.pread(file.fileno(), length, begin)
    except OSError as error:
        raise InputError(f"{where} cannot be read ({first_line(error)})") from error
    return RawExample(content, int(shard.labels[place]), "", where)
