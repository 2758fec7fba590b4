"""A source gives random access to raw examples."""

import hashlib
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from resnet_jax.data.audio import decode_audio
from resnet_jax.data.image import Preprocessing, decode
from resnet_jax.data.masks import IGNORE, decode_target
from resnet_jax.data.objects import StoredObjects, decode_objects, move_objects, present
from resnet_jax.data.permutation import Draws
from resnet_jax.data.resize import height_and_width, placement, resize_to
from resnet_jax.data.video import decode_clips, uniform_starts
from resnet_jax.errors import InputError
from resnet_jax.models.detection.objects import Objects

# Unreadable examples that a message names
_NAMED = 10


class MissingSplitError(InputError):
    """Raised if a data set exists, but without this split."""


class ChangedDataError(InputError):
    """Raised if the files of a data set are no longer those that were opened; no other example takes their place."""


class Example(NamedTuple):
    """One image and its label."""

    image: np.ndarray
    """uint8 (h, w, c), or a sequence (l, c) or video (t, h, w, c); sound is (l, 1) int16, text (l, 1) int32."""
    target: Any
    """Class, int; outputs, float32 (k,); mask, uint8 (h, w); `Objects`; or a tree of arrays of your own."""


class RawExample(NamedTuple):
    """A stored example, not decoded: a file, the bytes of one, or pixels (h, w, c)."""

    content: Path | bytes | np.ndarray
    target: Any
    """Class, int; a mask: a `MaskFile`, or uint8 (h, w); or `StoredObjects`."""
    name: str
    """Name of the image in its data set; may be empty."""
    where: str
    """Origin, for messages."""
    channels: int = 3
    """Number of channels after decoding."""


class Source(NamedTuple):
    """A data set of `size` examples of `classes`: `read(index)` returns one, for 0 <= index < size.

    It holds no open files and can be pickled. For several outputs per example, `classes` are their names.
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
    draws: Draws | None = None
    """How often training draws each example; None: each once in an epoch."""
    groups: Callable[[str], np.ndarray] | None = None
    """Function that returns the group of each example by a rule, such as the name of a column."""


def _row(images: np.ndarray, labels: np.ndarray, index: int) -> Example:
    return Example(images[index], int(labels[index]) if labels.ndim == 1 else labels[index])


def from_arrays(images: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> Source:
    """Return a source of images (n, spatial..., c) with int labels (n,) or float32 outputs (n, k).

    Images are uint8; sounds (n, l, 1) are int16, and texts int32.
    """
    outputs = labels.ndim == 2 and labels.dtype == np.float32
    kinds = (np.uint8, np.int16, np.int32) if images.ndim == 3 else (np.uint8,)
    if images.dtype not in kinds or images.ndim < 3 or labels.shape[: 1 + (not outputs)] != images.shape[:1]:
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
    digest = source.digest() if source.digest else sample_digest(source)
    if source.draws is None:
        return digest
    return hashlib.sha256(digest.encode() + source.draws.weights.tobytes()).hexdigest()


def sample_digest(source: Source) -> str:
    """Return the SHA-256 of the known labels and of 64 examples from first to last."""
    sha256 = hashlib.sha256(repr(source.size).encode())
    if source.labels is not None:
        sha256.update(source.labels.tobytes())
    for index in probe_indices(source.size):
        try:
            image, target = source.read(int(index))
            for leaf in jax.tree.leaves(as_target(target)):
                sha256.update(arrays_digest(image[None], leaf[None]).encode())
        except InputError:
            # Training replaces an image that cannot be read
            sha256.update(b"unreadable")
    return sha256.hexdigest()


def require_labels(labels: np.ndarray | int, classes: int, where: str) -> None:
    """Raise InputError, with `where`, for a label outside the classes."""
    values = np.asarray(labels)
    wrong = values[(values < 0) | (values >= classes)]
    if wrong.size:
        raise InputError(
            f"{where}: label {wrong.flat[0]}, expected 0 to {classes - 1}; correct the labels or the classes"
        )


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
    if preprocessing.sample_rate and preprocessing.seconds and not isinstance(item.content, np.ndarray):
        length = round(preprocessing.sample_rate * preprocessing.seconds)
        return Example(decode_audio(item.content, preprocessing.sample_rate, length, item.where), item.target)
    if preprocessing.frames and not isinstance(item.content, np.ndarray):
        return Example(decode_clips(item.content, preprocessing, uniform_starts(1), item.where)[0], item.target)
    image, target = decode_example(item)
    if isinstance(target, Objects):
        target = resize_objects(target, image.shape[:2], preprocessing)
    elif is_mask(target):
        target = resize_to(target[..., None], preprocessing, item.where, fill=IGNORE)[..., 0]
    return Example(resize_to(image, preprocessing, item.where), target)


def decode_example(item: RawExample) -> Example:
    """Return image and target of a stored example, decoded and of its own size."""
    image = pixels(item)
    if isinstance(item.target, StoredObjects):
        return Example(image, decode_objects(item.target, image.shape[:-1]))
    return Example(image, decode_target(item.target, image.shape[:-1]))


def resize_objects(objects: Objects, shape: tuple[int, int], preprocessing: Preprocessing) -> Objects:
    """Return the objects of an image (h, w) where `resize_to` takes them; those that are cropped away are left out."""
    if preprocessing.image_size is None:
        return objects
    size = height_and_width(preprocessing.image_size)
    if shape == size and (preprocessing.crop_pct or 1.0) == 1:
        return objects
    crop, mode = preprocessing.crop_pct or 1.0, preprocessing.crop_mode or "center"
    (tall, wide), (top, left) = placement(shape, size, crop, mode)
    scale = np.array([wide / shape[1], tall / shape[0]])
    return present(move_objects(objects, scale, np.array([left, top]), size))


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

    It reads 64 images from first to last, which is quick and finds most mixtures before a run begins. Those that cannot
    be read are left to training and evaluation, which count or name them.
    """
    if preprocessing.image_size is not None or preprocessing.seconds is not None:
        return
    if preprocessing.geometry():
        raise InputError(
            "data.crop_pct, crop_mode and interpolation need data.image_size; give the height and width in pixels"
        )
    shapes = dict[tuple[int, ...], None]()
    for index in probe_indices(source.size):
        with suppress(InputError):
            shapes[source.read(int(index)).image.shape] = None
    if len(shapes) > 1:
        sizes = " and ".join(size_text(shape[:-1]) for shape in list(shapes)[:2])
        raise InputError(f"{where}: images of {sizes} pixels; set data.image_size to resize all to one size")


def probe_indices(size: int) -> np.ndarray:
    """Return up to 64 evenly spaced indices from 0 to size - 1."""
    return np.unique(np.linspace(0, size - 1, 64).astype(int))


def as_target(target: Any) -> Any:
    """Return a target, an array or a tree of arrays, for the devices.

    Floats become float32 and integers int32; masks of uint8 and arrays of bool stay. Lists and tuples are arrays.
    """
    return jax.tree.map(_as_leaf, target, is_leaf=lambda node: type(node) in (list, tuple))


def _as_leaf(leaf: Any) -> np.ndarray:
    values = np.asarray(leaf)
    if values.ndim and values.dtype in (np.uint8, np.bool_):
        return values
    return values.astype(np.float32 if values.dtype.kind == "f" else np.int32)


def stack_targets(targets: Sequence[Any]) -> Any:
    """Return targets along a leading axis, each leaf as one array; raise InputError if their shapes differ."""
    return jax.tree.map(lambda *leaves: _stack(leaves), *map(as_target, targets))


def _stack(leaves: Sequence[np.ndarray]) -> np.ndarray:
    shapes = sorted({leaf.shape for leaf in leaves})
    if len(shapes) > 1:
        raise InputError(f"targets of shape {shapes[0]} and {shapes[1]}; they must have the same shape")
    return np.stack(leaves)


def is_mask(target: Any) -> bool:
    """Return whether a target is an array with the axes of an image, such as a mask (h, w)."""
    return not isinstance(target, Objects) and np.ndim(target) >= 2


def _indirect(read: Callable[[int], Any], indices: np.ndarray, index: int) -> Any:
    return read(int(indices[index]))


def subset(source: Source, indices: np.ndarray) -> Source:
    """Return the examples at these indices, in this order."""
    labels = None if source.labels is None else source.labels[indices]
    raw = source.raw and partial(_indirect, source.raw, indices)
    digest = source.digest and partial(_subset_digest, source.digest, indices)
    read = partial(_indirect, source.read, indices)
    draws = source.draws and Draws(source.draws.weights[indices], source.draws.strata[indices])
    groups = source.groups and partial(_subset_groups, source.groups, indices)
    return Source(len(indices), source.classes, read, labels, raw, digest, source.notes, draws, groups)


def _subset_groups(groups: Callable[[str], np.ndarray], indices: np.ndarray, rule: str) -> np.ndarray:
    return groups(rule)[indices]


def _subset_digest(digest: Callable[[], str], indices: np.ndarray) -> str:
    return hashlib.sha256(digest().encode() + indices.astype(np.int64).tobytes()).hexdigest()


def to_arrays(source: Source) -> tuple[np.ndarray, Any]:
    """Return all examples: uint8 images (n, h, w, c) and targets: int32 (n,), float32 (n, k) or a tree of arrays.

    Threads read them, one per core, since Pillow decodes outside the interpreter lock. Raises InputError if sizes
    differ.
    """
    first = source.read(0)
    shape, target = first.image.shape, as_target(first.target)
    images = np.empty((source.size, *shape), first.image.dtype)
    targets = jax.tree.map(lambda leaf: np.empty((source.size, *leaf.shape), leaf.dtype), target)
    threads = default_threads()
    # Rows per task: little overhead, and an error is raised soon
    count = max(1, min(256, source.size // (8 * threads)))

    def fill(start: int) -> None:
        part = slice(start, start + count)
        examples = [source.read(index) for index in range(source.size)[part]]
        for other in {e.image.shape for e in examples} - {shape}:
            sizes = " and ".join(size_text(s[:-1]) for s in (shape, other))
            raise InputError(f"images of {sizes} pixels; set data.image_size to resize all to one size")
        np.stack([e.image for e in examples], out=images[part])
        rows = stack_targets([target, *(e.target for e in examples)])
        jax.tree.map(lambda whole, some: whole.__setitem__(part, some[1:]), targets, rows)

    with ThreadPoolExecutor(threads) as pool:
        # Raises the first error, in the order of the examples
        for _ in pool.map(fill, range(0, source.size, count)):
            pass
    return images, targets


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
