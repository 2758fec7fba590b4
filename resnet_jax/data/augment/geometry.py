"""Crops and flips."""

import math
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array, lax

# Number of boxes drawn before the centre is taken, as in torchvision
_TRIES = 10
# Bits of an interpolation weight
_BITS = 11


def flip(key: Array, image: Array) -> Array:
    """Mirror (h, w, c) left to right with probability 0.5."""
    return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


def alternating_flip(key: Array, image: Array, index: Array, occurrence: Array) -> Array:
    """Mirror (h, w, c) every second time that it occurs; the hash of its index decides the first time.

    A random flip shows an image the same way round twice in a row half of the time (Jordan 2024, section 3.6).

    Args:
        key: the same throughout the run.
        image: of any dtype.
        index: () integer, index of the image in the data set.
        occurrence: () integer, number of earlier uses: the epoch, if every epoch uses each image once.
    """
    first = jax.random.bits(jax.random.fold_in(key, index), dtype=jnp.uint32)
    return jnp.where((first + occurrence.astype(jnp.uint32)) & 1 == 1, image[:, ::-1], image)


def pad_crop(key: Array, image: Array, pad: int, mode: Literal["zero", "reflect"] = "zero") -> Array:
    """Pad (h, w, c) by `pad` pixels on each side, black or mirrored, and crop the old size at random.

    He et al. 2015, section 4.2, pad 4 black pixels; Jordan 2024 mirrors, without repeating the pixel at the edge.
    """
    widths = ((pad, pad), (pad, pad), (0, 0))
    padded = jnp.pad(image, widths) if mode == "zero" else jnp.pad(image, widths, mode="reflect")
    top, left = jax.random.randint(key, (2,), 0, 2 * pad + 1)
    return lax.dynamic_slice(padded, (top, left, 0), image.shape)


def random_box(
    key: Array,
    height: int,
    width: int,
    area: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Array:
    """Return a random box within an image: (4,) int32 of top, left, height and width in pixels.

    The area is uniform in `area`, a range of fractions of the image; width over height is log-uniform in `ratio`. The
    box is the first of ten draws that fits. If none does, it is the largest centred one of an allowed ratio.

    Reference:
        Szegedy et al. 2015, section 6; the distribution is torchvision's.
    """
    size_key, place_key = jax.random.split(key)
    share, shape = jax.random.uniform(size_key, (2, _TRIES))
    target = height * width * (area[0] + share * (area[1] - area[0]))
    aspect = jnp.exp(math.log(ratio[0]) + shape * (math.log(ratio[1]) - math.log(ratio[0])))
    sides = jnp.stack([jnp.sqrt(target / aspect), jnp.sqrt(target * aspect)])
    # Height and width, (2, tries)
    sides = jnp.round(sides).astype(jnp.int32)
    limits = jnp.array([height, width], jnp.int32)
    fits = ((sides > 0) & (sides <= limits[:, None])).all(0)
    size = jnp.where(fits.any(), sides[:, jnp.argmax(fits)], jnp.array(largest_box(height, width, ratio), jnp.int32))
    random_corner = jax.random.randint(place_key, (2,), 0, limits - size + 1)
    return jnp.concatenate([jnp.where(fits.any(), random_corner, (limits - size) // 2), size])


def largest_box(height: int, width: int, ratio: tuple[float, float]) -> tuple[int, int]:
    """Return height and width of the largest box of an allowed ratio."""
    aspect = min(max(width / height, ratio[0]), ratio[1])
    return min(height, round(width / aspect)), min(width, round(height * aspect))


def random_resized_crop(
    key: Array,
    image: Array,
    size: tuple[int, int],
    area: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Array:
    """Crop a `random_box` of uint8 (h, w, c) and resize it to (*size, c) without antialiasing."""
    return resized(image, random_box(key, image.shape[0], image.shape[1], area, ratio), size)


def random_resized_crop_nearest(
    key: Array,
    target: Array,
    size: tuple[int, int],
    area: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Array:
    """Crop (h, w, c) as `random_resized_crop` crops an image with this key, without interpolation."""
    return resized_nearest(target, random_box(key, target.shape[0], target.shape[1], area, ratio), size)


def resized(image: Array, box: Array, size: tuple[int, int]) -> Array:
    """Resize a box of uint8 (h, w, c) bilinearly to (*size, c); `box` (4,) is top, left, height, width.

    Each pixel is a mean of four pixels of the box, however small the scale: there is no antialiasing.
    """
    top, left, height, width = box
    low, high, weight = _between(size[0], top, height)
    weight = weight[:, None, None]
    rows = image[low].astype(jnp.int32) * ((1 << _BITS) - weight) + image[high].astype(jnp.int32) * weight
    low, high, weight = _between(size[1], left, width)
    weight = weight[None, :, None]
    mixed = rows[:, low] * ((1 << _BITS) - weight) + rows[:, high] * weight
    return ((mixed + (1 << (2 * _BITS - 1))) >> (2 * _BITS)).astype(jnp.uint8)


def resized_nearest(values: Array, box: Array, size: tuple[int, int]) -> Array:
    """Resize a box of (h, w, c) to (*size, c), each value that of the nearest pixel; `box` is that of `resized`."""
    top, left, height, width = box
    rows, columns = ((2 * jnp.arange(n) + 1) * m // (2 * n) for n, m in zip(size, (height, width), strict=True))
    return values[top + rows][:, left + columns]


def _between(count: int, start: Array, length: Array) -> tuple[Array, Array, Array]:
    """Return the pixels before and after `count` evenly spaced places, and the weight of the one after."""
    # In units of 1 / (2 * count) of a pixel
    place = (2 * jnp.arange(count) + 1) * length - count
    place = jnp.clip(place, 0, 2 * count * (length - 1))
    low = place // (2 * count)
    weight = ((place % (2 * count)) << _BITS) // (2 * count)
    return start + low, start + jnp.minimum(low + 1, length - 1), weight
