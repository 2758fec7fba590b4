"""Arrays as people have them: float or channels-first images, names or one-hot rows as labels; each guess is named."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from resnet_jax.errors import InputError

# Rounding errors of pixels that were divided by 255
_SLACK = 1e-3


def to_array(what: str, values: ArrayLike) -> np.ndarray:
    """Return an array, data frame, tensor or list as an array; raise InputError for rows of different lengths."""
    try:
        return np.asarray(values)
    except ValueError as error:
        raise InputError(f"{what} differ in length or size; give one array, with the same shape for each") from error
    except (TypeError, RuntimeError) as error:
        # A tensor on an accelerator, or one that needs gradients
        raise InputError(f"{what} cannot be read as an array ({error})") from error


def to_uint8(
    splits: Sequence[tuple[str, ArrayLike]], *, channels_first: bool = False
) -> tuple[list[np.ndarray], tuple[str, ...]]:
    """Return the images of all splits as uint8 with the channels last, and a note on what was assumed of their scale.

    Floats are pixels of 0 to 1 or of 0 to 255, whichever the first split fits; both are rounded to 256 levels.

    Args:
        splits: names and images.
        channels_first: whether images are (n, c, h, w) or (n, c, ...).

    Raises:
        InputError: Pixels are neither, such as normalised ones.

    Example:
        >>> (images,), notes = to_uint8([("train", np.array([[[0.0, 0.5, 1.0]]]))])
        >>> images.tolist(), notes
        ([[[0, 128, 255]]], ('float64 pixels are taken to range from 0 to 1, and rounded to 256 levels',))
    """
    arrays = [to_array(f"{name} images", images) for name, images in splits]
    if channels_first:
        arrays = [np.moveaxis(a, 1, -1) if a.ndim > 3 else a for a in arrays]
    if all(a.dtype == np.uint8 or a.dtype.kind not in "iuf" or not a.size for a in arrays):
        return arrays, ()
    top = 1 if arrays[0].dtype.kind == "f" and arrays[0].max() <= 1 + _SLACK else 255
    converted = [_scaled(name, a, top) for (name, _), a in zip(splits, arrays, strict=True)]
    rounded = ", and rounded to 256 levels" if arrays[0].dtype.kind == "f" else ""
    return converted, (f"{arrays[0].dtype} pixels are taken to range from 0 to {top}{rounded}",)


def _scaled(name: str, images: np.ndarray, top: int) -> np.ndarray:
    if images.dtype == np.uint8 and top == 255:
        return images
    low, high = (float(images.min()), float(images.max())) if images.dtype.kind in "iuf" else (np.nan, np.nan)
    if not (-_SLACK * top <= low and high <= (1 + _SLACK) * top):
        raise InputError(
            f"{name} images are {images.dtype} of {low:.3g} to {high:.3g}; give pixels of 0 to 1 or 0 to 255 in all"
            " splits, and leave scaling to data.mean and data.std"
        )
    return np.clip(np.rint(images * (255 / top)), 0, 255).astype(np.uint8)


def to_classes(
    splits: Sequence[tuple[str, ArrayLike]], classes: Sequence[str] | None
) -> tuple[list[np.ndarray], tuple[str, ...] | None, tuple[str, ...]]:
    """Return labels as integers, the names of the classes if they are known, and a note on what was assumed.

    Names become the numbers of the sorted names of the first split, or their places in `classes`. One-hot rows become
    the places of their ones. Other labels are left as they are.

    Raises:
        InputError: A name is not among the classes.

    Example:
        >>> to_classes([("train", ["dog", "cat", "dog"])], None)
        ([array([1, 0, 1])], ('cat', 'dog'), ('labels are names, of 2 classes: cat, dog',))
    """
    arrays = [to_array(f"{name} labels", labels) for name, labels in splits]
    first = arrays[0]
    if first.dtype.kind in "UO" and first.size:
        arrays = [np.array([str(label) for label in a.ravel()], str) for a in arrays]
        names = tuple(map(str, np.unique(arrays[0]) if classes is None else classes))
        numbers = [_numbered(name, a, names) for (name, _), a in zip(splits, arrays, strict=True)]
        some = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        return numbers, names, (f"labels are names, of {len(names)} classes: {some}",)
    if all(_is_one_hot(a) for a in arrays):
        note = f"labels are one-hot rows, of {first.shape[1]} classes"
        return [a.argmax(1) for a in arrays], None if classes is None else tuple(classes), (note,)
    return arrays, None if classes is None else tuple(classes), ()


def _numbered(split: str, labels: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    places = {name: place for place, name in enumerate(names)}
    for label in labels.tolist():
        if label not in places:
            raise InputError(f"{split} labels: {label!r} is not a class; known: {', '.join(names[:10])}")
    return np.array([places[label] for label in labels.tolist()])


def _is_one_hot(labels: Any) -> bool:
    if labels.ndim != 2 or labels.shape[1] < 2 or labels.dtype.kind not in "iufb":
        return False
    return bool(((labels == 0) | (labels == 1)).all() and (labels.sum(1) == 1).all())
