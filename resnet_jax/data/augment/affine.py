"""Rotation, shear and translation: the source of each pixel, in integers.

Coordinates are fixed-point numbers of 1/65536 pixel, as in Pillow's nearest-pixel transform. Maps are about the centre
of the image.
"""

from typing import Literal, NamedTuple

import jax.numpy as jnp
from jax import Array

Interpolation = Literal["nearest", "bilinear"]

_ONE = 1 << 16
# Bits of an interpolation weight
_BITS = 11


class Affine(NamedTuple):
    """Affine map from a pixel of the result to its source: x' = xx x + xy y + x0, y' = yx x + yy y + y0.

    All are () int32 in 1/65536, x0 and y0 in half pixels; the origin is the centre of the image.
    """

    xx: Array
    xy: Array
    x0: Array
    yx: Array
    yy: Array
    y0: Array


def identity() -> Affine:
    """Return the map that leaves an image as it is."""
    zero, one = jnp.int32(0), jnp.int32(_ONE)
    return Affine(one, zero, zero, zero, one, zero)


def rotation(degrees: Array | float) -> Affine:
    """Return a counterclockwise rotation about the centre."""
    angle = jnp.deg2rad(jnp.asarray(degrees, jnp.float32))
    cos, sin = _fixed(jnp.cos(angle)), _fixed(jnp.sin(angle))
    return identity()._replace(xx=cos, xy=-sin, yx=sin, yy=cos)


def shearing_x(factor: Array | float, height: int) -> Affine:
    """Return a shear of each row to the left, by `factor` times its distance from the top."""
    shear = _fixed(factor)
    return identity()._replace(xy=shear, x0=shear * height)


def shearing_y(factor: Array | float, width: int) -> Affine:
    """Return a shear of each column upwards, by `factor` times its distance from the left."""
    shear = _fixed(factor)
    return identity()._replace(yx=shear, y0=shear * width)


def translation(right: Array | float, down: Array | float) -> Affine:
    """Return a translation by pixels, possibly fractions of them."""
    return identity()._replace(x0=-2 * _fixed(right), y0=-2 * _fixed(down))


def _fixed(value: Array | float) -> Array:
    return jnp.round(jnp.asarray(value, jnp.float32) * _ONE).astype(jnp.int32)


def resample(image: Array, to: Affine, interpolation: Interpolation = "nearest", fill: int = 0) -> Array:
    """Transform uint8 (h, w, c) by an affine map; pixels from outside the image are `fill`, 0 to 255."""
    height, width, _ = image.shape
    # From the centre, in half pixels
    u = (2 * jnp.arange(width, dtype=jnp.int32) + 1 - width)[None, :]
    v = (2 * jnp.arange(height, dtype=jnp.int32) + 1 - height)[:, None]
    # In 1/65536 of half a pixel, from the left
    x = to.xx * u + to.xy * v + to.x0 + width * _ONE
    y = to.yx * u + to.yy * v + to.y0 + height * _ONE
    if interpolation == "nearest":
        return _pixel(image, y >> 17, x >> 17, fill)
    # Between the centres of pixels
    x, y = x - _ONE, y - _ONE
    weight_x, weight_y = (((p & (2 * _ONE - 1)) >> (17 - _BITS))[..., None] for p in (x, y))
    x, y = x >> 17, y >> 17
    above, below = (
        _pixel(image, row, x, fill).astype(jnp.int32) * ((1 << _BITS) - weight_x)
        + _pixel(image, row, x + 1, fill).astype(jnp.int32) * weight_x
        for row in (y, y + 1)
    )
    mixed = above * ((1 << _BITS) - weight_y) + below * weight_y
    return ((mixed + (1 << (2 * _BITS - 1))) >> (2 * _BITS)).astype(jnp.uint8)


def _pixel(image: Array, row: Array, column: Array, fill: int) -> Array:
    """Return the pixels (..., c) at rows and columns (...), and `fill` outside."""
    height, width, _ = image.shape
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    taken = image[jnp.clip(row, 0, height - 1), jnp.clip(column, 0, width - 1)]
    return jnp.where(inside[..., None], taken, jnp.uint8(fill))


def rotate(image: Array, degrees: Array | float, interpolation: Interpolation = "nearest", fill: int = 0) -> Array:
    """Rotate uint8 (h, w, c) counterclockwise about its centre."""
    return resample(image, rotation(degrees), interpolation, fill)


def shear_x(image: Array, factor: Array | float, interpolation: Interpolation = "nearest", fill: int = 0) -> Array:
    """Shift each row of uint8 (h, w, c) left by `factor` times its distance from the top."""
    return resample(image, shearing_x(factor, image.shape[0]), interpolation, fill)


def shear_y(image: Array, factor: Array | float, interpolation: Interpolation = "nearest", fill: int = 0) -> Array:
    """Shift each column of uint8 (h, w, c) up by `factor` times its distance from the left."""
    return resample(image, shearing_y(factor, image.shape[1]), interpolation, fill)


def translate(
    image: Array,
    right: Array | float,
    down: Array | float,
    interpolation: Interpolation = "nearest",
    fill: int = 0,
) -> Array:
    """Shift uint8 (h, w, c) by pixels, to the right and down."""
    return resample(image, translation(right, down), interpolation, fill)
