"""Merge, drop and rename the classes of a source."""

import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from resnet_jax.data.labels import class_labels
from resnet_jax.data.source import Source, source_digest, subset
from resnet_jax.errors import InputError, unknown


def map_classes(source: Source, names: Mapping[str, str | None]) -> Source:
    """Return a source whose classes have other names, in the order in which they first appear.

    Args:
        source: of one class per example.
        names: old name -> new name; classes of one new name are merged, and None drops a class with its examples.
            Those that are not named stay.

    Raises:
        InputError: A class is unknown, none are left, or the targets are no classes.

    Example:
        >>> from resnet_jax.data.source import from_arrays
        >>> pets = from_arrays(np.zeros((3, 1, 1, 1), np.uint8), np.arange(3), ["cat", "dog", "car"])
        >>> mapped = map_classes(pets, {"cat": "pet", "dog": "pet", "car": None})
        >>> mapped.classes, mapped.size
        (('pet',), 2)
    """
    for name in names:
        if name not in source.classes:
            raise unknown("class in data.class_map", name, source.classes)
    new = [names.get(name, name) for name in source.classes]
    classes = tuple(dict.fromkeys(name for name in new if name is not None))
    table = np.array([-1 if name is None else classes.index(name) for name in new])
    labels = table[class_labels(source, "data.class_map")]
    kept = subset(source, np.flatnonzero(labels >= 0))
    if not kept.size:
        raise InputError("data.class_map drops the classes of all images; keep some")
    return kept._replace(
        classes=classes,
        labels=labels[labels >= 0],
        read=partial(_mapped, kept.read, table),
        raw=kept.raw and partial(_mapped, kept.raw, table),
        digest=partial(_digest, kept, table),
    )


def _mapped(read: Callable[[int], Any], table: np.ndarray, index: int) -> Any:
    example = read(index)
    return example._replace(target=int(table[example.target]))


def _digest(source: Source, table: np.ndarray) -> str:
    return hashlib.sha256(source_digest(source).encode() + table.astype(np.int64).tobytes()).hexdigest()
