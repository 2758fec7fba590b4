"""A source: random access to raw examples."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np


class Example(NamedTuple):
    """One image, uint8 (h, w, c), and its class."""

    image: np.ndarray
    label: int


class Source(NamedTuple):
    """`size` examples of `classes`; `read(index)` for 0 <= index < size. Picklable, without open handles."""

    size: int
    classes: tuple[str, ...]
    read: Callable[[int], Example]


def _row(images: np.ndarray, labels: np.ndarray, index: int) -> Example:
    return Example(images[index], int(labels[index]))


def from_arrays(images: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> Source:
    """A source over uint8 images (n, h, w, c) and integer labels (n,)."""
    if images.dtype != np.uint8 or images.ndim != 4 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"needs uint8 images (n, h, w, c) and labels (n,); got {images.dtype} {images.shape}, {labels.shape}"
        )
    return Source(len(images), tuple(classes), partial(_row, images, labels))


def _indirect(read: Callable[[int], Example], indices: np.ndarray, index: int) -> Example:
    return read(int(indices[index]))


def subset(source: Source, indices: np.ndarray) -> Source:
    """The examples at these indices, in this order."""
    return Source(len(indices), source.classes, partial(_indirect, source.read, indices))


def to_arrays(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """All examples, of one size and small enough: uint8 images (n, h, w, c) and int32 labels (n,)."""
    examples = [source.read(index) for index in range(source.size)]
    return np.stack([e.image for e in examples]), np.array([e.label for e in examples], np.int32)
