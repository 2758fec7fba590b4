"""A sheet of small images with captions."""

import io
from collections.abc import Sequence
from xml.etree.ElementTree import Element

import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw

from resnet_jax.models.log_mel import log_mel
from resnet_jax.report.nodes import data_uri, node

# Pixels of an image, of a line of its caption, and between images
_SIDE, _LINE, _GAP = 112, 14, 4
_COLUMNS = 8
# On the page, images up to this longer side in pixels are shown unscaled, as PNG
_SMALL = 64
# Longer side in pixels to which larger images are scaled
_SHOWN = 192


def can_show(image: np.ndarray) -> bool:
    """Return whether an array is a grey or colour image, (h, w, 1) or (h, w, 3)."""
    return image.ndim == 3 and image.shape[-1] in (1, 3)


def as_pixels(example: np.ndarray, sample_rate: int | None = None) -> np.ndarray | None:
    """Return an image itself, four frames of a video, or the spectrogram of a sound (l, 1) int16; None of others.

    Low frequencies are below.
    """
    if example.dtype == np.uint8 and example.ndim == 4:
        example = np.concatenate(example[np.linspace(0, len(example) - 1, 4).astype(int)], 1)
    if example.dtype != np.int16 or not sample_rate:
        return example if can_show(example) else None
    # Frames of 31 ms every 10 ms
    sound = jnp.asarray(example[None], jnp.float32) / 32768
    levels = np.asarray(log_mel(sound, sample_rate, 2 * (sample_rate // 64), sample_rate // 100, 40)[0])
    scaled = (levels - levels.min()) * (255 / max(float(np.ptp(levels)), 1e-6))
    return scaled.astype(np.uint8).transpose(1, 0, 2)[::-1]


def as_picture(image: np.ndarray) -> Image.Image:
    """Return an image (h, w, 1) or (h, w, 3) uint8 for Pillow."""
    return Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)


def draw_sheet(
    images: Sequence[np.ndarray], captions: Sequence[str], *, columns: int = _COLUMNS, side: int = _SIDE
) -> Image.Image:
    """Return a sheet of images (h, w, 1 or 3) uint8 in rows, scaled to one size, with captions.

    Args:
        images: from the left to the right.
        captions: one an image, of one line or more.
        columns: number of images in a row.
        side: length in pixels to which the longer side of an image is scaled.
    """
    columns = min(columns, len(images))
    line = _LINE * max(caption.count("\n") + 1 for caption in captions)
    # Images that are all wide need no rows as high as squares
    tallest = round(side * min(1, max(image.shape[0] / image.shape[1] for image in images)))
    width, height = side + _GAP, tallest + line + _GAP
    sheet = Image.new("RGB", (columns * width, -(-len(images) // columns) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for place, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left, top = place % columns * width + _GAP // 2, place // columns * height + _GAP // 2
        picture = as_picture(image)
        scale = side / max(picture.size)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        how = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BILINEAR
        sheet.paste(picture.resize(size, how), (left, top))
        draw.text((left, top + tallest), "\n".join(row[: side // 6] for row in caption.split("\n")), fill="black")
    return sheet


def sheet_png(shown: Sequence[tuple[np.ndarray, str]], columns: int, side: int) -> bytes:
    """Return a sheet of images and their captions as PNG."""
    file, (images, captions) = io.BytesIO(), zip(*shown, strict=True)
    draw_sheet(images, captions, columns=columns, side=side).save(file, "png")
    return file.getvalue()


def thumbnail(image: np.ndarray, side: int = _SHOWN) -> tuple[bytes, str, bool]:
    """Return an image (h, w, 1 or 3) uint8 as file content, its MIME type, and whether it is unscaled.

    A larger one is scaled so that its longer side has `side` pixels.
    """
    picture, file = as_picture(image), io.BytesIO()
    small = max(picture.size) <= _SMALL
    if small:
        picture.save(file, "png")
    else:
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
        picture.save(file, "jpeg", quality=85)
    return file.getvalue(), f"image/{'png' if small else 'jpeg'}", small


def gallery(shown: Sequence[tuple[np.ndarray, str]], columns: int, side: int) -> Element:
    """Return pictures below each other, `columns` of them side by side for each image, with their captions."""
    figures = []
    for image, caption in shown:
        content, kind, small = thumbnail(image, side)
        picture = node("img", src=data_uri(content, kind), alt=caption or "image", class_="small" if small else None)
        figures.append(node("figure", picture, node("figcaption", caption)))
    rows = [node("div", figures[start : start + columns]) for start in range(0, len(figures), columns)]
    return node("div", rows, class_="gallery")
