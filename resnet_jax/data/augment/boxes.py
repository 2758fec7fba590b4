"""Where flips and crops take boxes: the maps of the operations in `geometry`, drawn with the same keys.

A map is scale and shift, (2,) each, along x and y: a point goes to scale * (x, y) + shift, in pixels.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from resnet_jax.data.augment.geometry import flips_first, random_box, scale_and_corner

BoxMap = tuple[Array, Array]
# (key, (height, width) of the image before) -> map
DrawMap = Callable[[Array, tuple[int, int]], BoxMap]


def _mirror(mirrored: Array, width: int) -> BoxMap:
    return jnp.where(mirrored, jnp.array([-1.0, 1.0]), 1.0), jnp.where(mirrored, jnp.array([float(width), 0.0]), 0.0)


def flip_map(key: Array, shape: tuple[int, int]) -> BoxMap:
    """Return the map of `flip`."""
    return _mirror(jax.random.bernoulli(key), shape[1])


def alternating_flip_map(key: Array, shape: tuple[int, int], index: Array, occurrence: Array) -> BoxMap:
    """Return the map of `alternating_flip`."""
    return _mirror(flips_first(key, index, occurrence), shape[1])


def pad_crop_map(key: Array, shape: tuple[int, int], pad: int) -> BoxMap:
    """Return the map of `pad_crop`; what it mirrors at the edge has no boxes."""
    corner = jax.random.randint(key, (2,), 0, 2 * pad + 1)
    return jnp.ones(2), (pad - corner[::-1]).astype(float)


def random_resized_crop_map(
    key: Array, shape: tuple[int, int], size: tuple[int, int], area: tuple[float, float], ratio: tuple[float, float]
) -> BoxMap:
    """Return the map of `random_resized_crop`."""
    top, left, height, width = random_box(key, *shape, area, ratio)
    scale = jnp.stack([size[1] / width, size[0] / height])
    return scale, -scale * jnp.stack([left, top])


def scale_jitter_map(key: Array, shape: tuple[int, int], size: tuple[int, int], scale: tuple[float, float]) -> BoxMap:
    """Return the map of `scale_jitter`."""
    scaled, corner = scale_and_corner(key, shape, size, scale)
    return scaled[::-1] / jnp.array(shape[::-1]), -corner[::-1].astype(float)


def resize_map(shape: tuple[int, int], size: tuple[int, int]) -> BoxMap:
    """Return the map of a resize of the whole image."""
    return jnp.array([size[1] / shape[1], size[0] / shape[0]]), jnp.zeros(2)
