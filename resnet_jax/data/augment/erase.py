"""Erase rectangles of images."""

import math

import jax
import jax.numpy as jnp
from jax import Array

# Number of rectangles drawn before none is erased
_TRIES = 10


def cutout(key: Array, image: Array, size: int, fill: float = 0.0) -> Array:
    """Fill a square of `size` pixels, centred anywhere in (h, w, c) and cut at the border.

    After normalisation the fill 0 is the mean (DeVries and Taylor 2017, section 3).
    """
    height, width, _ = image.shape
    row, column = jax.random.randint(key, (2,), 0, jnp.array([height, width]))
    corner = jnp.stack([row - size // 2, column - size // 2])
    return fill_box(image, corner, jnp.array([size, size]), fill)


def random_erase(
    key: Array,
    image: Array,
    probability: float,
    area: tuple[float, float] = (0.02, 1 / 3),
    ratio: tuple[float, float] = (0.3, 10 / 3),
    fill: float = 0.0,
) -> Array:
    """Fill a random rectangle of (h, w, c) with `probability`.

    Its area is uniform in `area`, a range of fractions of the image, and its height over width log-uniform in `ratio`.
    It is the first of ten draws that lies within the image. After normalisation the fill 0 is the mean.

    Reference:
        Zhong et al. 2020, algorithm 1, with one value for all pixels.
    """
    height, width, _ = image.shape
    coin_key, size_key, place_key = jax.random.split(key, 3)
    share, shape = jax.random.uniform(size_key, (2, _TRIES))
    target = height * width * (area[0] + share * (area[1] - area[0]))
    aspect = jnp.exp(math.log(ratio[0]) + shape * (math.log(ratio[1]) - math.log(ratio[0])))
    sides = jnp.round(jnp.stack([jnp.sqrt(target * aspect), jnp.sqrt(target / aspect)])).astype(jnp.int32)
    limits = jnp.array([height, width], jnp.int32)
    fits = (sides < limits[:, None]).all(0)
    size = sides[:, jnp.argmax(fits)]
    corner = jax.random.randint(place_key, (2,), 0, jnp.maximum(limits - size, 0) + 1)
    wanted = jax.random.bernoulli(coin_key, probability) & fits.any()
    return jnp.where(wanted, fill_box(image, corner, size, fill), image)


def fill_box(image: Array, corner: Array, size: Array, fill: float = 0.0) -> Array:
    """Fill a rectangle of (h, w, c): `corner` (2,) is top and left, `size` (2,) height and width."""
    inside = box_mask(image.shape[0], image.shape[1], corner, corner + size)
    return jnp.where(inside[..., None], jnp.asarray(fill, image.dtype), image)


def box_mask(height: int, width: int, start: Array, stop: Array) -> Array:
    """Return bool (height, width): True from `start` up to, but without, `stop`, both (2,)."""
    rows, columns = jnp.arange(height), jnp.arange(width)
    rows_in, columns_in = (rows >= start[0]) & (rows < stop[0]), (columns >= start[1]) & (columns < stop[1])
    return rows_in[:, None] & columns_in[None, :]
