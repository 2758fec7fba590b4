"""Boxes drawn on images."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from resnet_jax.data.masks import palette

# Of red, green and blue
_LUMINANCE = (0.299, 0.587, 0.114)


def draw_boxes(
    image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, captions: Sequence[str], classes: int
) -> np.ndarray:
    """Return an image, uint8 (h, w, 1 or 3), with boxes in the colours of their classes: uint8 (h, w, 3).

    Args:
        image: to draw on.
        boxes: (n, 4) of x1, y1, x2, y2 in pixels; those that come first are drawn on top.
        labels: (n,) int.
        captions: one a box; "" writes nothing.
        classes: number of classes.

    Example:
        >>> drawn = draw_boxes(np.zeros((8, 8, 1), np.uint8), np.array([[1, 1, 6, 6]]), np.array([0]), [""], 2)
        >>> drawn[1, 1].tolist(), drawn[3, 3].tolist()
        ([230, 57, 57], [0, 0, 0])
    """
    picture = Image.fromarray(np.repeat(image, 3, -1) if image.shape[-1] == 1 else image)
    draw, colors = ImageDraw.Draw(picture), palette(classes)
    longer = max(picture.size)
    line, font = max(1, round(longer / 300)), ImageFont.load_default(max(9, round(longer / 50)))
    for box, label, caption in reversed([*zip(boxes, labels, captions, strict=True)]):
        color = tuple(colors[label].tolist())
        left, top, right, bottom = box.tolist()
        draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=color, width=line)
        if caption:
            _write(draw, (left, top), caption, color, font)
    return np.asarray(picture)


def _write(
    draw: ImageDraw.ImageDraw,
    corner: tuple[float, float],
    caption: str,
    color: tuple[int, ...],
    font: Any,
) -> None:
    """Write a caption above a corner, or below it at the upper edge, on a ground of a colour."""
    width, height = draw.textbbox((0, 0), caption, font=font)[2:]
    left, top = corner[0], corner[1] - height if corner[1] >= height else corner[1]
    draw.rectangle((left, top, left + width + 2, top + height), fill=color)
    draw.text((left + 1, top), caption, fill="black" if np.dot(color, _LUMINANCE) > 140 else "white", font=font)
