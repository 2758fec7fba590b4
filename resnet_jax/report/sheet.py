"""A sheet of small images with captions."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

# Pixels of an image, of a line of its caption, and between images
_SIDE, _LINE, _GAP = 112, 14, 4
_COLUMNS = 8


def can_show(image: np.ndarray) -> bool:
    """Return whether an array is a grey or colour image, (h, w, 1) or (h, w, 3)."""
    return image.ndim == 3 and image.shape[-1] in (1, 3)


def as_picture(image: np.ndarray) -> Image.Image:
    """Return an image (h, w, 1) or (h, w, 3) uint8 for Pillow."""
    return Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)


def draw_sheet(images: Sequence[np.ndarray], captions: Sequence[str]) -> Image.Image:
    """Return a sheet of images (h, w, 1 or 3) uint8 in rows of eight, scaled to one size, with captions."""
    columns = min(_COLUMNS, len(images))
    line = _LINE * max(caption.count("\n") + 1 for caption in captions)
    width, height = _SIDE + _GAP, _SIDE + line + _GAP
    sheet = Image.new("RGB", (columns * width, -(-len(images) // columns) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for place, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left, top = place % columns * width + _GAP // 2, place // columns * height + _GAP // 2
        picture = as_picture(image)
        scale = _SIDE / max(picture.size)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        how = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BILINEAR
        sheet.paste(picture.resize(size, how), (left, top))
        draw.text((left, top + _SIDE), "\n".join(row[:18] for row in caption.split("\n")), fill="black")
    return sheet
