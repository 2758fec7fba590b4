"""The classes of all examples of a source, read once if they are not known."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from resnet_jax.data.objects import present
from resnet_jax.data.source import Source, default_threads, require_labels
from resnet_jax.errors import InputError
from resnet_jax.models.detection.objects import Objects


def class_labels(source: Source, what: str) -> np.ndarray:
    """Return the class of each example, (n,) int; raise InputError if it has none, which `what` needs."""
    labels = known_labels(source)
    if labels is None:
        raise InputError(f"{what} is for one class per image, and these targets are not: leave it out")
    require_labels(labels, len(source.classes), what)
    return labels


def known_labels(source: Source) -> np.ndarray | None:
    """Return the class of each example, (n,) int, None if targets are others; images are not decoded for it."""
    labels = source.labels
    if labels is None:
        read = source.raw or source.read
        with ThreadPoolExecutor(default_threads()) as pool:
            targets = list(pool.map(lambda index: read(index).target, range(source.size)))
        if not all(isinstance(target, int | np.integer) for target in targets):
            return None
        labels = np.array(targets)
    return labels.astype(np.int64) if labels.ndim == 1 and labels.dtype.kind in "iu" else None


def count_targets(source: Source) -> np.ndarray:
    """Return how often each class or label is in the targets, (k,) int64: in pixels of masks, in objects of boxes."""
    labels, classes = known_labels(source), len(source.classes)
    if labels is not None:
        require_labels(labels, classes, "the labels")
        return np.bincount(labels, minlength=classes)
    if source.labels is not None:
        return (source.labels > 0).sum(0)

    def count(index: int) -> np.ndarray:
        try:
            target = source.read(index).target
        except InputError:
            # Training replaces an image that cannot be read
            return np.zeros(classes, np.int64)
        if isinstance(target, Objects):
            return np.bincount(present(target).labels, minlength=classes)
        target = np.asarray(target)
        return np.bincount(target.ravel(), minlength=256)[:classes] if target.dtype == np.uint8 else target > 0

    with ThreadPoolExecutor(default_threads()) as pool:
        return sum(pool.map(count, range(source.size)), np.zeros(classes, np.int64))
