"""Decide how an image is stored in a packed data set."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from resnet_jax.data.image import is_upright_jpeg, open_image
from resnet_jax.data.masks import IGNORE, MaskFile, encode_mask
from resnet_jax.data.objects import move_objects
from resnet_jax.data.resize import shrink, shrunk_size
from resnet_jax.data.source import RawExample, decode_example, is_mask
from resnet_jax.errors import InputError
from resnet_jax.models.detection.objects import Objects

# Pixels; images with no longer side are stored as pixels
TINY = 64
# Pixels of a side that JPEG can hold
LONGEST = 65_500


def packed(item: RawExample, size: int, quality: int) -> RawExample:
    """Return the example with the bytes or pixels to store, a mask as a PNG of the same size, and boxes as `Objects`.

    An upright baseline JPEG of at most `size` pixels on the shorter side stays as it is. All other images are scaled
    down to that size, antialiased, and stored as pixels up to 64 x 64, otherwise as a baseline JPEG, 4:2:0. Raises
    InputError if the image cannot be decoded.
    """
    content = _read(item)
    image, target = decode_example(item._replace(content=content))
    if isinstance(target, Objects):
        target = _shrunk(target, image.shape, size)
    elif is_mask(target):
        target = _stored(target, size)
    if isinstance(content, bytes) and min(image.shape[:2]) <= size and _is_plain(content):
        return item._replace(content=content, target=target)
    channels = image.shape[2]
    if channels in (1, 3):
        image = shrink(image, size)
    if max(image.shape) > LONGEST:
        raise InputError(f"{item.where}: over {LONGEST:,} pixels long, which JPEG cannot hold")
    exact = max(image.shape[:2]) <= TINY or channels not in (1, 3)
    return item._replace(content=image if exact else _jpeg(image, quality), channels=channels, target=target)


def _stored(mask: np.ndarray, size: int) -> MaskFile:
    """Return a mask (h, w) of an image that is shrunk to `size`, as PNG; its classes stay as they are."""
    small = shrink(mask[..., None], size, Image.Resampling.NEAREST)[..., 0]
    return MaskFile(encode_mask(small), tuple(range(IGNORE)), "mask")


def _shrunk(objects: Objects, shape: tuple[int, ...], size: int) -> Objects:
    """Return the objects of an image (h, w, c) that `shrink` brings to `size`."""
    height, width = shrunk_size((shape[0], shape[1]), size)
    return move_objects(objects, np.array([width / shape[1], height / shape[0]]), np.zeros(2), (height, width))


def _read(item: RawExample) -> bytes | np.ndarray:
    if not isinstance(item.content, Path):
        return item.content
    try:
        return item.content.read_bytes()
    except OSError as error:
        raise InputError(f"{item.where}: cannot be read ({error.strerror})") from error


def _is_plain(content: bytes) -> bool:
    """Return whether bytes that can be decoded are an upright baseline JPEG, grey or RGB."""
    with open_image(content) as image:
        return is_upright_jpeg(image) and not image.info.get("progressive")


def _jpeg(image: np.ndarray, quality: int) -> bytes:
    file = io.BytesIO()
    picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    picture.save(file, "JPEG", quality=quality, subsampling="4:2:0")
    return file.getvalue()
