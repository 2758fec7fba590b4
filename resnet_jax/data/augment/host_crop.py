"""Random-resized crops of original images, on the host (Szegedy et al. 2015, section 6).

The images of a batch need one size before they go to the device, and originals differ in size. Hence only this crop is
taken on the host. Everything random is a function of (seed, position), the position being the row number in the run.
"""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image

from resnet_jax.data.augment.geometry import largest_box
from resnet_jax.data.source import Example, Source, pixels
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
    size: int,
    draws: np.ndarray,
    area: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    interpolation: str = "bilinear",
) -> np.ndarray:
    """Crop a `random_box_host` of uint8 (h, w, c) and resize it to (size, size, c), antialiased."""
    height, width, channels = image.shape
    left, top, right, bottom = random_box_host(height, width, draws, area, ratio)
    part = image[top:bottom, left:right]
    picture = Image.fromarray(part[..., 0] if channels == 1 else part)
    resized = picture.resize((size, size), Image.Resampling[interpolation.upper()])
    return np.asarray(resized).reshape(size, size, channels)


def crop_reader(
    source: Source,
    seed: int,
    size: int,
    area: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    interpolation: str = "bilinear",
) -> Callable[[int, int], Example]:
    """Return a reader of (index, position): a random-resized crop of the original image.

    The seed and the position decide the crop. Raises InputError if the source has no originals.
    """
    raw = source.raw
    if raw is None:
        raise InputError("augment.rrc_from is original; this data set keeps no originals, so crop the resized images")

    def read(index: int, position: int) -> Example:
        item = raw(index)
        draws = uniforms(seed, position, 4 * _TRIES)
        return Example(random_resized_crop_host(pixels(item), size, draws, area, ratio, interpolation), item.target)

    return read
