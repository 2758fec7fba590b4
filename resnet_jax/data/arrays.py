"""Check arrays in memory, as Keras returns them, and make sources of them."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from resnet_jax.data.convert_arrays import to_array
from resnet_jax.data.source import Source, from_arrays, require_labels, require_outputs, size_text
from resnet_jax.errors import InputError

# Axes of a sequence, an image and a video without channels, by their number
_AXES = {1: ("l",), 2: ("h", "w"), 3: ("t", "h", "w")}


def sources_from_arrays(
    train: tuple[ArrayLike, ArrayLike],
    test: tuple[ArrayLike, ArrayLike],
    classes: Sequence[str] | None = None,
    *,
    spatial: int = 2,
) -> tuple[Source, Source]:
    """Return sources of the train and test splits of images and labels in memory, as Keras returns them.

    Args:
        train: images, uint8 (n, h, w) or (n, h, w, c), and labels. Classes are integers, (n,) or (n, 1); outputs are
            numbers (n, k), and a single output is floats, (n,) or (n, 1).
        test: likewise, with images of the same size.
        classes: names in the order of the labels or outputs; None is their numbers, up to the largest.
        spatial: number of axes of an image: 1 for sequences (n, l) or (n, l, c), 3 for videos (n, t, h, w) or
            (n, t, h, w, c).
    """
    (x, y), (u, v) = _arrays("train", *train, spatial), _arrays("test", *test, spatial)
    if x.shape[1:] != u.shape[1:]:
        sizes = f"train images are {size_text(x.shape[1:])}, test images {size_text(u.shape[1:])}"
        raise InputError(f"{sizes}; resize them to one size")
    if y.ndim != v.ndim:
        raise _unlike(*(("train", train[1], "test") if y.ndim == 2 else ("test", test[1], "train")))
    count = 1 + int(max(y.max(), v.max())) if y.ndim == 1 else y.shape[1]
    for split, labels in (("train", y), ("test", v)):
        require = require_labels if labels.ndim == 1 else require_outputs
        require(labels, count if classes is None else len(classes), f"{split} labels")
    if classes is None and y.ndim == 1:
        _require_each_class(y, count)
    names = tuple(map(str, range(count) if classes is None else classes))
    return from_arrays(x, y, names), from_arrays(u, v, names)


def _arrays(split: str, images: ArrayLike, labels: ArrayLike, spatial: int) -> tuple[np.ndarray, np.ndarray]:
    """Return images (n, spatial..., c), and labels: integers (n,) or float32 (n, k)."""
    x, y = to_array(f"{split} images", images), to_array(f"{split} labels", labels)
    if x.dtype != np.uint8:
        advice = "give uint8 pixels of 0 to 255 and leave scaling to data.mean and data.std"
        raise InputError(f"{split} images are {x.dtype}; {advice}")
    if x.ndim - spatial not in (1, 2) or 0 in x.shape:
        axes = f"(n, {', '.join(_AXES[spatial])}"
        raise InputError(f"{split} images have shape {x.shape}; give {axes}) or {axes}, c), none of them 0")
    if x.ndim == spatial + 2:
        require_channels_last(f"{split} images have shape {x.shape}", x.shape, batch_axes=1)
    if y.dtype.kind not in "iufb":
        raise InputError(f"{split} labels are {y.dtype}; give integers from 0, one per image, or numbers (n, k)")
    if y.ndim not in (1, 2) or len(y) != len(x) or 0 in y.shape:
        advice = f"give ({len(x)},), one per image, or ({len(x)}, k)"
        raise InputError(f"{split} labels have shape {y.shape} for {len(x):,} images; {advice}")
    one = y.shape[1:] in ((), (1,))
    y = y.reshape(-1) if one and y.dtype.kind in "iu" else y.reshape(len(y), -1).astype(np.float32)
    return x if x.ndim == spatial + 2 else x[..., None], y


def require_channels_last(what: str, shape: tuple[int, ...], *, batch_axes: int = 0) -> None:
    """Raise InputError if only an axis before the last one can be that of channels, of which there are up to 4."""
    small = [axis for axis in range(batch_axes, len(shape)) if shape[axis] <= 4]
    if len(small) == 1 and small[0] < len(shape) - 1:
        axis = small[0]
        raise InputError(
            f"{what}, with {shape[axis]} channels on axis {axis}; move them to the end: np.moveaxis(images, {axis}, -1)"
        )


def _require_each_class(labels: np.ndarray, count: int) -> None:
    """Raise InputError if a class of 0 to `count` - 1 has no image, as with ids, gaps and labels from 1."""
    seen = np.unique(labels)
    if len(seen) < count:
        missing = int(np.flatnonzero(np.append(seen, -1) != np.arange(len(seen) + 1))[0])
        raise InputError(
            f"train labels are {len(seen):,} of 0 to {count - 1:,}, without {missing}; number the classes from 0 as"
            " np.unique(labels, return_inverse=True) does, or name each of them: classes="
        )


def _unlike(split: str, outputs: ArrayLike, other: str) -> InputError:
    """Return the error if one split has outputs as labels and the other has classes."""
    labels = np.asarray(outputs)
    what = f"are {labels.dtype}; give integers from 0"
    if labels.dtype.kind != "f":
        what = f"have shape {labels.shape} for {len(labels):,} images; give one class per image"
    return InputError(f"{split} labels {what}, as the {other} labels are, or numbers (n, k) for both")
