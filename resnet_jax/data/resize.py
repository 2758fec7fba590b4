"""Resize, crop and pad decoded images on the host."""

import numpy as np
from PIL import Image

from resnet_jax.data.image import Preprocessing, max_pixels
from resnet_jax.errors import InputError


def height_and_width(size: int | tuple[int, int]) -> tuple[int, int]:
    """Return both sides of an image size.

    Example:
        >>> height_and_width(224), height_and_width((180, 240))
        ((224, 224), (180, 240))
    """
    return (size, size) if isinstance(size, int) else size


def resize_to(
    image: np.ndarray, preprocessing: Preprocessing, where: str = "image", *, fill: int | None = None
) -> np.ndarray:
    """Resize and crop uint8 (h, w, c) as `preprocessing` says, if it has an image size.

    A `fill` is for masks: it is the value of padding, and they are resized by the nearest pixel.
    """
    if preprocessing.image_size is None:
        return image
    return resize_crop_as(image, *height_and_width(preprocessing.image_size), preprocessing, where, fill=fill)


def resize_crop_as(
    image: np.ndarray,
    height: int,
    width: int,
    preprocessing: Preprocessing,
    where: str = "image",
    *,
    fill: int | None = None,
) -> np.ndarray:
    """Resize and crop or pad uint8 (h, w, c) to (height, width) as `preprocessing` says; `fill` as in `resize_to`."""
    crop = preprocessing.crop_pct or 1.0
    interpolation = "nearest" if fill is not None else preprocessing.interpolation or "bilinear"
    if preprocessing.crop_mode != "border":
        return resize_crop(image, height, width, crop, interpolation, where)
    padding = padding_level(preprocessing.mean, image.shape[-1]) if fill is None else fill
    return resize_pad(image, height, width, crop, interpolation, padding)


def resize_crop(
    image: np.ndarray,
    height: int,
    width: int,
    crop: float = 1.0,
    interpolation: str = "bilinear",
    where: str = "image",
) -> np.ndarray:
    """Resize uint8 (h, w, c) to cover (height, width) / crop, and crop its centre to (height, width).

    `interpolation` is "bilinear" or "bicubic", antialiased, or "nearest". Sizes are rounded as in torchvision. Raises
    InputError, with `where`, if the resized image has too many pixels, as a line one pixel wide has.
    """
    resized = _cover(image, height, width, crop, interpolation, where)
    top, left = (round((whole - side) / 2) for whole, side in zip(resized.shape, (height, width), strict=False))
    return np.ascontiguousarray(resized[top : top + height, left : left + width])


def resize_covering(
    image: np.ndarray, height: int, width: int, preprocessing: Preprocessing, where: str = "image"
) -> np.ndarray:
    """Resize uint8 (h, w, c) as before the crop to (height, width) that `preprocessing` says, and leave it whole."""
    crop, interpolation = preprocessing.crop_pct or 1.0, preprocessing.interpolation or "bilinear"
    return _cover(image, height, width, crop, interpolation, where)


def _cover(image: np.ndarray, height: int, width: int, crop: float, interpolation: str, where: str) -> np.ndarray:
    """Resize uint8 (h, w, c) to cover (height, width) / crop."""
    h, w, _ = image.shape
    (tall, wide), _ = placement((h, w), (height, width), crop)
    if (tall, wide) == (h, w):
        return image
    limit = max_pixels()
    if limit is not None and tall * wide > max(limit, h * w):
        raise InputError(f"{where}: {w} x {h} pixels would be resized to {wide:,} x {tall:,}; remove this image")
    return resize(image, tall, wide, interpolation)


def placement(
    shape: tuple[int, int], size: tuple[int, int], crop: float = 1.0, mode: str = "center"
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the height and width to which an image is resized, and where its top left corner is in the result.

    With "center" it covers size / crop, rounded as in torchvision; with "border" it fits into that, as in timm.

    Example:
        >>> placement((480, 640), (300, 300)), placement((480, 640), (300, 300), mode="border")
        (((300, 400), (0, -50)), ((225, 300), (37, 0)))
    """
    (h, w), (height, width) = shape, size
    least_h, least_w = int(height / crop), int(width / crop)
    if mode == "border":
        ratio = max(h / least_h, w / least_w)
        tall, wide = max(1, round(h / ratio)), max(1, round(w / ratio))
        return (tall, wide), (_margin(height, tall), _margin(width, wide))
    # The height is the limiting side
    if h * least_w <= w * least_h:
        tall, wide = least_h, max(least_w, int(least_h * w / h))
    else:
        tall, wide = max(least_h, int(least_w * h / w)), least_w
    return (tall, wide), (-round((tall - height) / 2), -round((wide - width) / 2))


def _margin(side: int, length: int) -> int:
    """Return where a length begins that is in the middle of a side; negative if it is cropped."""
    return (side - length) // 2 if side > length else -round((length - side) / 2)


def resize_pad(
    image: np.ndarray,
    height: int,
    width: int,
    crop: float = 1.0,
    interpolation: str = "bilinear",
    fill: int | tuple[int, ...] = 0,
) -> np.ndarray:
    """Resize uint8 (h, w, c) to fit into (height, width) / crop, and crop or pad it around its centre.

    `interpolation` is as in `resize_crop`, and `fill` the value of padding. Sizes are rounded as in timm.
    """
    (tall, wide), _ = placement((image.shape[0], image.shape[1]), (height, width), crop, "border")
    return pad_or_crop(resize(image, tall, wide, interpolation), height, width, fill)[0]


def resize(image: np.ndarray, height: int, width: int, interpolation: str) -> np.ndarray:
    """Resize uint8 (h, w, c) to (height, width), antialiased unless `interpolation` is "nearest"."""
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    resized = picture.resize((width, height), Image.Resampling[interpolation.upper()])
    return np.asarray(resized).reshape(height, width, -1)


def pad_or_crop(
    image: np.ndarray, height: int, width: int, fill: int | tuple[int, ...]
) -> tuple[np.ndarray, tuple[int, int]]:
    """Return the middle (height, width) of an image (h, w, c), padded where it is smaller, and where its corner is.

    Example:
        >>> padded, corner = pad_or_crop(np.ones((2, 4, 1), np.uint8), 4, 2, 7)
        >>> padded[..., 0].tolist(), corner
        ([[7, 7], [1, 1], [1, 1], [7, 7]], (1, -1))
    """
    top, left = (_margin(side, length) for side, length in zip((height, width), image.shape, strict=False))
    canvas = np.empty((height, width, image.shape[-1]), image.dtype)
    canvas[:] = fill
    inside = image[max(-top, 0) :, max(-left, 0) :][: height - max(top, 0), : width - max(left, 0)]
    rows, columns = (slice(max(at, 0), max(at, 0) + n) for at, n in zip((top, left), inside.shape, strict=False))
    canvas[rows, columns] = inside
    return canvas, (top, left)


def padding_level(mean: tuple[float, ...] | None, channels: int) -> tuple[int, ...]:
    """Return the grey levels of padding, (channels,): of the mean, which is 0 when it is normalised."""
    return tuple(round(255 * level) for level in np.broadcast_to(mean or (0.0,), channels).tolist())


def shrink(image: np.ndarray, size: int, how: Image.Resampling = Image.Resampling.BICUBIC) -> np.ndarray:
    """Resize uint8 (h, w, c), c = 1 or 3, to a shorter side of at most `size` pixels, by default antialiased."""
    h, w, channels = image.shape
    height, width = shrunk_size((h, w), size)
    if (height, width) == (h, w):
        return image
    picture = Image.fromarray(image[..., 0] if channels == 1 else image)
    return np.asarray(picture.resize((width, height), how)).reshape(height, width, channels)


def shrunk_size(shape: tuple[int, int], size: int) -> tuple[int, int]:
    """Return the height and width to which `shrink` brings an image (h, w).

    Example:
        >>> shrunk_size((480, 640), 240), shrunk_size((100, 50), 60)
        ((240, 320), (100, 50))
    """
    shorter = min(shape)
    if shorter <= size:
        return shape
    height, width = (max(size, round(side * size / shorter)) for side in shape)
    return height, width
