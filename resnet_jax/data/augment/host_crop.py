"""Random-resized crops of original images (Szegedy et al. 2015, section 6) and random clips of videos, on the host.

The images of a batch need one size before they go to the device, and originals differ in size. Hence only these are
taken on the host. Everything random is a function of (seed, position), the position being the row number in the run.
"""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
from PIL import Image

from resnet_jax.data.augment.geometry import largest_box
from resnet_jax.data.image import Preprocessing
from resnet_jax.data.resize import height_and_width
from resnet_jax.data.source import Example, Source, decode_example, is_mask
from resnet_jax.data.video import decode_clips
from resnet_jax.errors import InputError

# Number of boxes drawn before the centre is taken, as in torchvision
_TRIES = 10


def uniforms(seed: int, position: int, count: int) -> np.ndarray:
    """Return `count` float64 in [0, 1), a function of the arguments alone in every version of NumPy.

    The definition of Philox fixes its raw output (Salmon et al. 2011); NumPy's distributions may change.
    """
    raw = np.random.Philox(key=np.array([seed, position], np.uint64), counter=[0, 0, 0, 1]).random_raw(count)
    return (raw >> np.uint64(11)) * 2.0**-53


def random_box_host(
    height: int,
    width: int,
    draws: np.ndarray,
    area: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> tuple[int, int, int, int]:
    """Return a random box (left, top, right, bottom) of an image in pixels, drawn as `random_box` does.

    `draws` are 40 uniforms in [0, 1).
    """
    for share, shape, down, right in draws.reshape(_TRIES, 4):
        target = height * width * (area[0] + share * (area[1] - area[0]))
        aspect = math.exp(math.log(ratio[0]) + shape * (math.log(ratio[1]) - math.log(ratio[0])))
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(right * (width - w + 1)), int(down * (height - h + 1))
            return left, top, left + w, top + h
    h, w = largest_box(height, width, ratio)
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def random_resized_crop_host(
    image: np.ndarray,
    size: int | tuple[int, int],
    draws: np.ndarray,
    area: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    interpolation: str = "bilinear",
) -> np.ndarray:
    """Crop a `random_box_host` of uint8 (h, w, c) and resize it to (size, size, c) or (*size, c), antialiased."""
    height, width, channels = image.shape
    left, top, right, bottom = random_box_host(height, width, draws, area, ratio)
    part = image[top:bottom, left:right]
    picture = Image.fromarray(part[..., 0] if channels == 1 else part)
    rows, columns = height_and_width(size)
    resized = picture.resize((columns, rows), Image.Resampling[interpolation.upper()])
    return np.asarray(resized).reshape(rows, columns, channels)


def crop_reader(
    source: Source,
    seed: int,
    size: int | tuple[int, int],
    area: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    interpolation: str = "bilinear",
) -> Callable[[int, int], Example]:
    """Return a reader of (index, position): a random-resized crop of the original image, and of its mask.

    The seed and the position decide the crop. Raises InputError if the source has no originals.
    """
    raw = source.raw
    if raw is None:
        raise InputError("augment.rrc_from is original; this data set keeps no originals, so crop the resized images")

    def read(index: int, position: int) -> Example:
        image, target = decode_example(raw(index))
        crop = partial(random_resized_crop_host, size=size, draws=uniforms(seed, position, 4 * _TRIES))
        if is_mask(target):
            target = crop(target[..., None], area=area, ratio=ratio, interpolation="nearest")[..., 0]
        return Example(crop(image, area=area, ratio=ratio, interpolation=interpolation), target)

    return read


def clip_reader(source: Source, seed: int, preprocessing: Preprocessing) -> Callable[[int, int], Example]:
    """Return a reader of (index, position): a clip of a video file that starts at any moment from which it fits.

    The seed and the position decide the moment. Videos that are arrays are read as they are.
    """
    raw = source.raw

    def read(index: int, position: int) -> Example:
        item = raw(index) if raw else None
        if item is None or isinstance(item.content, np.ndarray):
            return source.read(index)
        clip = decode_clips(item.content, preprocessing, uniforms(seed, position, 1).tolist(), item.where)[0]
        return Example(clip, item.target)

    return read
