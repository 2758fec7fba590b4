"""Images that two splits have in common, byte for byte: they make a result look better than it is."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from resnet_jax.data.source import Source, default_threads
from resnet_jax.errors import InputError
from resnet_jax.runtime.checksum import file_sha256

# Bytes of pixels that are compared in about a tenth of a second
_FEW = 1 << 23


class Duplicate(NamedTuple):
    """An example of one split that the other has too, by their indices."""

    train: int
    held: int


def duplicates(train: Source, held: Source) -> list[Duplicate]:
    """Return the examples of `held` whose image is in `train`, each with the first such.

    Files are compared by their bytes, of which only those of one size are read, and other images by their pixels.
    Those that cannot be read are left out.

    Example:
        >>> import numpy as np
        >>> from resnet_jax.data.source import from_arrays
        >>> images = np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1)
        >>> train, held = (from_arrays(images[part], np.zeros(3, int), ["a"]) for part in ([0, 1, 2], [4, 2, 5]))
        >>> duplicates(train, held)
        [Duplicate(train=2, held=1)]
    """
    with ThreadPoolExecutor(default_threads()) as pool:
        sizes = [list(pool.map(partial(_size, source), range(source.size))) for source in (train, held)]
        common = set(sizes[0]).intersection(sizes[1]) - {None}
        asked = [[index if size in common else None for index, size in enumerate(some)] for some in sizes]
        digests = [
            list(pool.map(partial(_digest, source), some)) for source, some in zip((train, held), asked, strict=True)
        ]
    first: dict[str, int] = {}
    for index, digest in enumerate(digests[0]):
        if digest is not None:
            first.setdefault(digest, index)
    return [Duplicate(first[digest], index) for index, digest in enumerate(digests[1]) if digest in first]


def duplicates_note(train: Source, held: Source, split: str) -> str:
    """Return what people should know of the images that are in both splits; nothing if there are none."""
    found = duplicates(train, held)
    if not found:
        return ""
    one = found[0]
    names = f"{split} {_name(held, one.held)} is train {_name(train, one.train)}"
    return f"{len(found):,} of {held.size:,} {split} images are in the training split as well, such as {names}"


def are_quickly_compared(train: Source, held: Source) -> bool:
    """Return whether all images are in arrays, and few enough to be compared in a moment."""
    in_memory = all(source.raw is None and source.digest is not None for source in (train, held))
    return in_memory and (train.size + held.size) * train.read(0).image.nbytes <= _FEW


def _name(source: Source, index: int) -> str:
    return (source.raw(index).name if source.raw else "") or f"example {index}"


def _size(source: Source, index: int) -> int | None:
    """Return the size of a file in bytes, 0 for images that are none, None if it cannot be read."""
    if source.raw is None:
        return 0
    try:
        content = source.raw(index).content
        return content.stat().st_size if isinstance(content, Path) else 0
    except (InputError, OSError):
        return None


def _digest(source: Source, index: int | None) -> str | None:
    """Return the digest of an image, None for no index and for an image that cannot be read."""
    if index is None:
        return None
    try:
        content = source.raw(index).content if source.raw else source.read(index).image
        if isinstance(content, np.ndarray):
            content = repr(content.shape).encode() + content.tobytes()
        return file_sha256(content) if isinstance(content, Path) else hashlib.sha256(content).hexdigest()
    except (InputError, OSError):
        return None
