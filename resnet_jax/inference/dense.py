"""Predict a class for each pixel of an image of any size, by windows of the size that a network was trained on."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from resnet_jax.data.masks import encode_mask, overlay, palette
from resnet_jax.data.resize import height_and_width, pad_or_crop, padding_level, resize
from resnet_jax.inference.output_files import output_files, write_files
from resnet_jax.recipe import Data

# Windows per call of the network
_WINDOWS = 4

# uint8 (b, h, w, c) -> float32 (b, h, w, k)
DensePredict = Callable[[np.ndarray], np.ndarray]


def predict_mask(
    predict: DensePredict, image: np.ndarray, window: tuple[int, int], data: Data, overlap: float = 0.25
) -> np.ndarray:
    """Return the likeliest class of each pixel of an image, uint8 (h, w).

    The image is brought to the scale of the training images, and no part of it is cropped. Where windows overlap,
    their probabilities are averaged.

    Args:
        predict: probabilities of windows of one size.
        image: uint8 (h, w, c).
        window: height and width of the training images.
        data: how these were resized.
        overlap: fraction of a window that it shares with the next, 0 to less than 1.
    """
    height, width, _ = image.shape
    scaled = _to_training_scale(image, data)
    tall, wide, _ = scaled.shape
    # An image smaller than a window is padded
    fill = padding_level(data.mean, image.shape[-1])
    padded, (top, left) = pad_or_crop(scaled, max(window[0], tall), max(window[1], wide), fill)
    probs = predict_windows(predict, padded, window, overlap)[top : top + tall, left : left + wide]
    if (tall, wide) != (height, width):
        probs = np.stack([_resize_probs(probs[..., k], (width, height)) for k in range(probs.shape[-1])], -1)
    return probs.argmax(-1).astype(np.uint8)


def predict_windows(
    predict: DensePredict, image: np.ndarray, window: tuple[int, int], overlap: float = 0.25
) -> np.ndarray:
    """Return the mean probabilities of all windows over an image at least as large as one: float32 (h, w, k)."""
    rows, columns = (corners(*sides, overlap) for sides in zip(image.shape[:2], window, strict=True))
    places = [(slice(top, top + window[0]), slice(left, left + window[1])) for top in rows for left in columns]
    total, count = None, np.zeros((*image.shape[:2], 1), np.float32)
    for start in range(0, len(places), _WINDOWS):
        some = places[start : start + _WINDOWS]
        # One shape, so that the network is compiled once
        padded = some + some[-1:] * (min(_WINDOWS, len(places)) - len(some))
        for place, probs in zip(some, predict(np.stack([image[place] for place in padded])), strict=False):
            total = np.zeros((*image.shape[:2], probs.shape[-1]), np.float32) if total is None else total
            total[place] += probs
            count[place] += 1
    assert total is not None
    return total / count


def corners(length: int, window: int, overlap: float) -> list[int]:
    """Return where windows begin, evenly spaced from the first to the last pixel, that overlap at least so much.

    Example:
        >>> corners(100, 40, 0.25), corners(40, 40, 0.25)
        ([0, 30, 60], [0])
    """
    stride = max(1, int(window * (1 - overlap)))
    count = -(-(length - window) // stride) + 1
    return [round(place) for place in np.linspace(0, length - window, count)]


def _to_training_scale(image: np.ndarray, data: Data) -> np.ndarray:
    """Return the whole image at the scale of the training images before these were cropped or padded."""
    if data.image_size is None:
        return image
    sides = [side / data.crop_pct for side in height_and_width(data.image_size)]
    factors = [side / length for side, length in zip(sides, image.shape, strict=False)]
    factor = min(factors) if data.crop_mode == "border" else max(factors)
    height, width = (max(1, round(factor * length)) for length in image.shape[:2])
    return resize(image, height, width, data.interpolation)


def _resize_probs(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(values).resize(size, Image.Resampling.BILINEAR))


def mask_files(images: Sequence[Path], out: Path) -> list[tuple[Path, ...]]:
    """Return the files of mask and overlay of each image; raise InputError if two of them would be one."""
    return output_files(images, out, (".png", "_overlay.png"))


def write_mask(files: Sequence[Path], image: np.ndarray, mask: np.ndarray, classes: int) -> None:
    """Write a mask (h, w) as palette PNG, whose values are the classes, and over its image (h, w, 1 or 3)."""
    colors = palette(classes)
    contents = encode_mask(mask, colors), encode_mask(overlay(image, mask, colors))
    write_files(dict(zip(files, contents, strict=True)))
