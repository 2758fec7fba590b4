"""A source gives random access to raw examples."""

import hashlib
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from resnet_jax.data.image import Preprocessing, decode, resize_to
from resnet_jax.errors import InputError

# Unreadable examples that a message names
_NAMED = 10


class MissingSplitError(InputError):
    """Raised if a data set exists, but without this split."""


class Example(NamedTuple):
    """One image and its label."""

    image: np.ndarray
    """uint8 (h, w, c); in memory also a sequence (l, c) or a video (t, h, w, c)."""
    target: Any
    """Class, int; outputs, float32 (k,); or what the task is about, such as a mask, uint8 (h, w)."""


class RawExample(NamedTuple):
    """A stored example, not decoded: a file, the bytes of one, or pixels (h, w, c)."""

    content: Path | bytes | np.ndarray
    target: int
    name: str
    """Name of the image in its data set; may be empty."""
    where: str
    """Origin, for messages."""
    channels: int = 3
    """Number of channels after decoding."""


class Source(NamedTuple):
    """`size` examples of `classes`, read by `read(index)` for 0 <= index < size; no open handles.

    It can be pickled. If an example has several outputs, `classes` are their names.
    """

    size: int
    classes: tuple[str, ...]
    read: Callable[[int], Example]
    labels: np.ndarray | None = None
    """(size,) or (size, k) of all examples, if they are known without reading the images."""
    raw: Callable[[int], RawExample] | None = None
    """Function that returns the input of `read` before decoding, to pack files without loss."""
    digest: Callable[[], str] | None = None
    """Function that returns a digest of all examples; replace it with `read`. None: a sample stands for them."""
    notes: tuple[str, ...] = ()
    """What people should know of the split: files that were passed over, a choice between folders."""


def _row(images: np.ndarray, labels: np.ndarray, index: int) -> Example:
    return Example(images[index], int(labels[index]) if labels.ndim == 1 else labels[index])


def from_arrays(images: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> Source:
    """Return a source of uint8 images (n, spatial..., c) with int labels (n,) or float32 outputs (n, k)."""
    outputs = labels.ndim == 2 and labels.dtype == np.float32
    if images.dtype != np.uint8 or images.ndim < 3 or labels.shape[: 1 + (not outputs)] != images.shape[:1]:
        raise ValueError(
            "needs uint8 images (n, spatial..., c) and integer labels (n,) or float32 (n, k);"
            f" got {images.dtype} {images.shape}, {labels.dtype} {labels.shape}"
        )
    if outputs:
        require_outputs(labels, len(classes), "the labels")
    else:
        require_labels(labels, len(classes), "the labels")
    digest = partial(arrays_digest, images, labels)
    return Source(len(images), tuple(classes), partial(_row, images, labels), labels, digest=digest)


def arrays_digest(images: np.ndarray, labels: np.ndarray) -> str:
    """Return the SHA-256 of pixels and labels; integers of any width have one digest."""
    sha256 = hashlib.sha256(repr((images.shape, labels.shape)).encode())
    for array in (images, labels.astype(np.int64 if labels.dtype.kind in "iub" else np.float32)):
        # In parts, since each is copied
        for start in range(0, len(array), 256):
            sha256.update(array[start : start + 256].tobytes())
    return sha256.hexdigest()


def source_digest(source: Source) -> str:
    """Return a digest of the examples of a source: of all that it says of them, or otherwise of a sample."""
    return source.digest() if source.digest else sample_digest(source)


def sample_digest(source: Source) -> str:
    """Return the SHA-256 of the known labels and of 64 examples from first to last."""
    sha256 = hashlib.sha256(repr(source.size).encode())
    if source.labels is not None:
        sha256.update(source.labels.tobytes())
    for index in probe_indices(source.size):
        try:
            image, target = source.read(int(index))
            sha256.update(arrays_digest(image[None], as_target(target)[None]).encode())
        except InputError:
            # Training replaces an image that cannot be read
            sha256.update(b"unreadable")
    return sha256.hexdigest()


def require_labels(labels: np.ndarray | int, classes: int, where: str) -> None:
    """Raise InputError, with `where`, for a label outside the classes."""
    values = np.asarray(labels)
    wrong = values[(values < 0) | (values >= classes)]
    if wrong.size:
        raise InputError(f"{where}: label {wrong.flat[0]}, expected 0 to {classes - 1}; mend the labels or the classes")


def require_outputs(labels: np.ndarray, outputs: int, where: str) -> None:
    """Raise InputError, with `where`, if labels (n, k) have another k or are not finite."""
    if labels.shape[1] != outputs:
        raise InputError(f"{where} have {labels.shape[1]} outputs each, expected {outputs}; name each of them once")
    wrong = np.argwhere(~np.isfinite(labels))
    if wrong.size:
        row, column = wrong[0]
        raise InputError(f"{where}: that of example {row} is {labels[row, column]}; give finite numbers")


def from_raw(
    size: int,
    classes: Sequence[str],
    raw: Callable[[int], RawExample],
    preprocessing: Preprocessing,
    labels: np.ndarray | None = None,
    digest: Callable[[], str] | None = None,
) -> Source:
    """Return a source that decodes `raw(index)` and resizes it as `preprocessing` says."""
    return Source(size, tuple(classes), partial(_decoded, raw, preprocessing), labels, raw, digest)


def _decoded(raw: Callable[[int], RawExample], preprocessing: Preprocessing, index: int) -> Example:
    item = raw(index)
    return Example(resize_to(pixels(item), preprocessing, item.where), item.target)


def pixels(item: RawExample) -> np.ndarray:
    """Return the decoded image of an example: uint8 (h, w, c)."""
    if isinstance(item.content, np.ndarray):
        return item.content
    return decode(item.content, item.channels, item.where)


def size_text(shape: tuple[int, ...]) -> str:
    """Return sizes as people write them, such as 8 x 8."""
    return " x ".join(map(str, shape))


def require_one_size(source: Source, where: Path, preprocessing: Preprocessing) -> None:
    """Raise InputError if images are not resized but differ in size.

    It reads 64 images from first to last, which is quick and finds most mixtures before a run begins.
    """
    if preprocessing.image_size is not None:
        return
    if preprocessing.geometry():
        raise InputError(
            "data.crop_pct and data.interpolation need data.image_size; give the height and width in pixels"
        )
    try:
        to_arrays(subset(source, probe_indices(source.size)))
    except InputError as error:
        raise InputError(str(error) if str(where) in str(error) else f"{where}: {error}") from error


def probe_indices(size: int) -> np.ndarray:
    """Return up to 64 evenly spaced indices from 0 to size - 1."""
    return np.unique(np.linspace(0, size - 1, 64).astype(int))


def as_target(target: Any) -> np.ndarray:
    """Return a target for the devices: floats as float32, integers as int32, and masks of uint8 unchanged."""
    values = np.asarray(target)
    if values.ndim and values.dtype == np.uint8:
        return values
    return values.astype(np.float32 if values.dtype.kind == "f" else np.int32)


def stack_targets(targets: Sequence[Any]) -> np.ndarray:
    """Return targets as one array; raise InputError if their shapes differ."""
    shapes = sorted({np.shape(target) for target in targets})
    if len(shapes) > 1:
        raise InputError(f"targets of shape {shapes[0]} and {shapes[1]}; give all of them one shape")
    return np.stack([as_target(target) for target in targets])


def _indirect(read: Callable[[int], Any], indices: np.ndarray, index: int) -> Any:
    return read(int(indices[index]))


def subset(source: Source, indices: np.ndarray) -> Source:
    """Return the examples at these indices, in this order."""
    labels = None if source.labels is None else source.labels[indices]
    raw = source.raw and partial(_indirect, source.raw, indices)
    digest = source.digest and partial(_subset_digest, source.digest, indices)
    read = partial(_indirect, source.read, indices)
    return Source(len(indices), source.classes, read, labels, raw, digest, source.notes)


def _subset_digest(digest: Callable[[], str], indices: np.ndarray) -> str:
    return hashlib.sha256(digest().encode() + indices.astype(np.int64).tobytes()).hexdigest()


def to_arrays(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Return all examples: uint8 images (n, h, w, c) and targets, such as int32 (n,) or float32 (n, k).

    Threads read them, one per core, since Pillow decodes outside the interpreter lock. Raises InputError if sizes
    differ.
    """
    first = source.read(0)
    shape, label = first.image.shape, as_target(first.target)
    images, labels = np.empty((source.size, *shape), np.uint8), np.empty((source.size, *label.shape), label.dtype)
    threads = default_threads()
    # Rows per task: little overhead, and an error is raised soon
    rows = max(1, min(256, source.size // (8 * threads)))

    def fill(start: int) -> None:
        part = slice(start, start + rows)
        examples = [source.read(index) for index in range(source.size)[part]]
        for other in {e.image.shape for e in examples} - {shape}:
            sizes = " and ".join(size_text(s[:-1]) for s in (shape, other))
            raise InputError(f"images of {sizes} pixels; set data.image_size to bring all to one size")
        np.stack([e.image for e in examples], out=images[part])
        labels[part] = stack_targets([label, *(e.target for e in examples)])[1:]

    with ThreadPoolExecutor(threads) as pool:
        # Raises the first error, in the order of the examples
        for _ in pool.map(fill, range(0, source.size, rows)):
            pass
    return images, labels


def require_readable(source: Source) -> None:
    """Read all examples, on threads; raise one InputError that names those that cannot be read."""
    threads = default_threads()

    def errors(start: int) -> list[tuple[int, str]]:
        found = []
        for index in range(start, source.size, threads):
            try:
                source.read(index)
            except InputError as error:
                found.append((index, str(error)))
        return found

    with ThreadPoolExecutor(threads) as pool:
        bad = [message for _, message in sorted(itertools.chain(*pool.map(errors, range(threads))))]
    if bad:
        others = f"; and {len(bad) - _NAMED:,} more" if len(bad) > _NAMED else ""
        raise InputError("; ".join(bad[:_NAMED]) + others)


@contextmanager
def all_named(source: Source) -> Iterator[None]:
    """If an example cannot be read inside, name all that cannot, so that they can be mended at once."""
    try:
        yield
    except InputError:
        require_readable(source)
        raise


def default_threads() -> int:
    """Return the number of cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
