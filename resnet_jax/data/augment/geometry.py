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
    return jnp.where(flips_first(key, index, occurrence), image[:, ::-1], image)


def flips_first(key: Array, index: Array, occurrence: Array) -> Array:
    """Return whether `alternating_flip` mirrors an image this time, () bool."""
    first = jax.random.bits(jax.random.fold_in(key, index), dtype=jnp.uint32)
    return (first + occurrence.astype(jnp.uint32)) & 1 == 1


def pad_crop(key: Array, image: Array, pad: int, mode: Literal["zero", "reflect"] = "zero", fill: int = 0) -> Array:
    """Pad (h, w, c) by `pad` pixels on each side, with `fill` or mirrored, and crop the old size at random.

    He et al. 2015, section 4.2, pad 4 black pixels; Jordan 2024 mirrors, without repeating the pixel at the edge.
    """
    widths = ((pad, pad), (pad, pad), (0, 0))
    zero = mode == "zero"
    padded = jnp.pad(image, widths, constant_values=fill) if zero else jnp.pad(image, widths, mode="reflect")
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
    return _blend(image, _between(size[0], top, height), _between(size[1], left, width))


def _blend(image: Array, rows: tuple[Array, Array, Array], columns: tuple[Array, Array, Array]) -> Array:
    """Mix uint8 (h, w, c) of the pixels before and after, with the weight of those after: uint8 (rows, columns, c)."""
    low, high, weight = rows
    weight = weight[:, None, None]
    mixed = image[low].astype(jnp.int32) * ((1 << _BITS) - weight) + image[high].astype(jnp.int32) * weight
    low, high, weight = columns
    weight = weight[None, :, None]
    mixed = mixed[:, low] * ((1 << _BITS) - weight) + mixed[:, high] * weight
    return ((mixed + (1 << (2 * _BITS - 1))) >> (2 * _BITS)).astype(jnp.uint8)


def resized_nearest(values: Array, box: Array, size: tuple[int, int]) -> Array:
    """Resize a box of (h, w, c) to (*size, c), each value that of the nearest pixel; `box` is that of `resized`."""
    top, left, height, width = box
    rows, columns = ((2 * jnp.arange(n) + 1) * m // (2 * n) for n, m in zip(size, (height, width), strict=True))
    return values[top + rows][:, left + columns]


def _between(count: int, start: Array, length: Array) -> tuple[Array, Array, Array]:
    """Return the pixels before and after `count` evenly spaced places, and the weight of the one after."""
    low, high, weight = _source(jnp.arange(count), jnp.int32(count), length)
    return start + low, start + high, weight


def _source(index: Array, scaled: Array, length: Array) -> tuple[Array, Array, Array]:
    """Return the pixels before and after those at `index` of `length` pixels resized to `scaled`, and the weight."""
    # In units of 1 / (2 * scaled) of a pixel
    place = jnp.clip((2 * index + 1) * length - scaled, 0, 2 * scaled * (length - 1))
    low = place // (2 * scaled)
    return low, jnp.minimum(low + 1, length - 1), ((place % (2 * scaled)) << _BITS) // (2 * scaled)


def scale_jitter(
    key: Array, image: Array, size: tuple[int, int], scale: tuple[float, float] = (0.5, 2.0), fill: int = 0
) -> Array:
    """Resize uint8 (h, w, c) by a random factor and crop (*size, c) at random, without antialiasing.

    The factor is uniform in `scale`. An image smaller than the crop lies anywhere in it, and the rest is `fill`.

    Reference:
        Chen et al. 2017, "Rethinking atrous convolution for semantic image segmentation", section 4.1
    """
    (height, width), places = image.shape[:2], _scaled_places(key, image, size, scale)
    (rows, tall), (columns, wide) = places
    found = _blend(image, _source(rows, tall, jnp.int32(height)), _source(columns, wide, jnp.int32(width)))
    return _filled(found, places, fill)


def scale_jitter_nearest(
    key: Array, target: Array, size: tuple[int, int], scale: tuple[float, float] = (0.5, 2.0), fill: int = 0
) -> Array:
    """Resize and crop (h, w, c) as `scale_jitter` does an image with this key, without interpolation."""
    places = _scaled_places(key, target, size, scale)
    rows, columns = (
        jnp.clip((2 * index + 1) * length // (2 * scaled), 0, length - 1)
        for (index, scaled), length in zip(places, target.shape, strict=False)
    )
    return _filled(target[rows][:, columns], places, fill)


def scale_and_corner(
    key: Array, shape: tuple[int, ...], size: tuple[int, int], scale: tuple[float, float]
) -> tuple[Array, Array]:
    """Return height and width of an image (h, w) after a random resize, and the corner of a crop of it, (2,) int32.

    The corner of a crop that is larger than the image is negative.
    """
    scale_key, place_key = jax.random.split(key)
    factor = jax.random.uniform(scale_key, minval=scale[0], maxval=scale[1])
    scaled = jnp.maximum(jnp.round(factor * jnp.array(shape)).astype(jnp.int32), 1)
    room = scaled - jnp.array(size)
    return scaled, jax.random.randint(place_key, (2,), jnp.minimum(room, 0), jnp.maximum(room, 0) + 1)


def _scaled_places(
    key: Array, image: Array, size: tuple[int, int], scale: tuple[float, float]
) -> list[tuple[Array, Array]]:
    """Return, for rows and columns, the places of a random crop in the resized image, and the length of that."""
    scaled, corner = scale_and_corner(key, image.shape[:2], size, scale)
    return [(corner[axis] + jnp.arange(size[axis]), scaled[axis]) for axis in (0, 1)]


def _filled(image: Array, places: list[tuple[Array, Array]], fill: int) -> Array:
    """Return an image (h, w, c) with `fill` at the places outside the resized image."""
    rows, columns = ((index >= 0) & (index < scaled) for index, scaled in places)
    return jnp.where((rows[:, None] & columns[None])[..., None], image, jnp.asarray(fill, image.dtype))
