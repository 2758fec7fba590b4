"""Masks: a class for each pixel, uint8 (h, w), and 255 where there is none."""

import colorsys
import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from resnet_jax.data.image import open_image
from resnet_jax.errors import InputError, first_line

# Value of a pixel that is not labelled, as in Pascal VOC
IGNORE = 255
# Modes of Pillow whose values are classes; of a palette they are the places in it
_MODES = ("1", "L", "P", "I;16", "I")


class MaskFile(NamedTuple):
    """A stored mask: an image file, such as a PNG, or the bytes of one."""

    content: Path | bytes
    values: tuple[int, ...]
    """Class of each value in the file, from 0; 255 is not labelled."""
    where: str
    """Origin, for messages."""


def decode_target(target: Any, shape: tuple[int, ...]) -> Any:
    """Return the target of an image of shape (h, w): of a stored mask uint8 (h, w), of anything else itself.

    Raises:
        InputError: The mask is missing or damaged, of another size, or has a value that is no class.
    """
    if not isinstance(target, MaskFile):
        return target
    mask = decode_mask(target.content, target.where)
    require_mask(mask, shape, len(target.values), target.where)
    table = np.full(256, IGNORE, np.uint8)
    table[: len(target.values)] = target.values
    return table[mask]


def decode_mask(content: Path | bytes, where: str) -> np.ndarray:
    """Return the values of an image file of one channel: uint8 (h, w)."""
    if isinstance(content, Path) and not content.is_file():
        raise InputError(f"{where}: no such mask; add it, or remove its image")
    try:
        with open_image(content.read_bytes() if isinstance(content, Path) else content) as image:
            if image.mode not in _MODES:
                raise ValueError(f"{image.mode} pixels, but masks have one channel, of classes")
            values = np.asarray(image)
    except InputError:
        raise
    except Exception as error:
        # Pillow's plugins raise errors of any type for damaged files
        raise InputError(f"{where}: not a mask that can be read ({first_line(error)})") from error
    if values.dtype.itemsize > 1 and values.max(initial=0) > IGNORE:
        raise InputError(f"{where}: value {values.max()} in the mask; classes are 0 to 254, and 255 is unlabelled")
    return values.astype(np.uint8)


def require_mask(mask: np.ndarray, shape: tuple[int, ...], classes: int, where: str) -> None:
    """Raise InputError, with `where`, if a mask has another shape than its image or a class out of range."""
    if mask.shape != shape:
        sizes = " x ".join(map(str, mask.shape)), " x ".join(map(str, shape))
        raise InputError(f"{where}: the mask has {sizes[0]} pixels, its image {sizes[1]}; they must have the same size")
    wrong = mask[(mask >= classes) & (mask != IGNORE)]
    if wrong.size:
        raise InputError(
            f"{where}: class {wrong.flat[0]} in the mask, expected 0 to {classes - 1} or {IGNORE} for no label;"
            " correct the mask or the classes"
        )


def palette(classes: int) -> np.ndarray:
    """Return a colour for each class, (256, 3) uint8: hues far apart; black from `classes` on.

    Example:
        >>> palette(2)[:3].tolist()
        [[230, 57, 57], [57, 108, 230], [0, 0, 0]]
    """
    colors = np.zeros((256, 3), np.uint8)
    for place in range(classes):
        # Steps of the golden ratio never come close to each other; every second round is darker
        hue, value = place * 0.618034 % 1, 0.9 if place % 2 == 0 or classes <= 8 else 0.6
        colors[place] = [round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.75, value)]
    return colors


def encode_mask(mask: np.ndarray, colors: np.ndarray | None = None) -> bytes:
    """Return a mask, uint8 (h, w), as PNG without loss; with colours (256, 3) its values are places in a palette."""
    image, file = Image.fromarray(mask), io.BytesIO()
    if colors is not None:
        image.putpalette(colors.tobytes())
    image.save(file, "PNG")
    return file.getvalue()


def overlay(image: np.ndarray, mask: np.ndarray, colors: np.ndarray, strength: float = 0.55) -> np.ndarray:
    """Return an image, uint8 (h, w, 1 or 3), tinted with the colours of a mask (h, w): uint8 (h, w, 3).

    Pixels that are not labelled keep their colour.
    """
    tinted = (1 - strength) * image + strength * colors[mask]
    return np.where((mask == IGNORE)[..., None], image, tinted.round()).astype(np.uint8)
