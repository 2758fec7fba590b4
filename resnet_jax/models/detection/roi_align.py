"""RoIAlign over the levels of a pyramid (He et al. 2017, "Mask R-CNN", section 3; Lin et al. 2017, equation 1)."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from resnet_jax.models.detection.boxes import area

# As torchvision pools
FIRST_STRIDE = 4
"""Pixels of the image per pixel of the first level."""
SAMPLES = 2
"""Points along each axis over which a pixel of the result is averaged."""
# Boxes that are pooled at once: more take more memory
_AT_ONCE = 64


def box_levels(boxes: Array, lowest: int, highest: int) -> Array:
    """Return the level of the pyramid, from 0, on which each box (n, 4) is pooled, (n,) int32.

    A box of 224 x 224 pixels belongs to the level of stride 16.

    Args:
        boxes: in pixels.
        lowest: logarithm of the first level's stride.
        highest: logarithm of the last level's stride.
    """
    level = jnp.floor(4 + jnp.log2(jnp.sqrt(area(boxes)) / 224) + 1e-6)
    return (jnp.clip(level, lowest, highest) - lowest).astype(jnp.int32)


def roi_align(maps: Sequence[Array], boxes: Array, size: int = 7) -> Array:
    """Return the features of boxes of one image, (n, size, size, c), each from one level of a pyramid.

    Args:
        maps: (h, w, c) of the levels; each stride is twice the one before.
        boxes: (n, 4) in pixels of the image.
        size: height and width of the result.

    Example:
        >>> maps = [jnp.ones((8, 8, 3)), jnp.ones((4, 4, 3))]
        >>> roi_align(maps, jnp.array([[0.0, 0.0, 20.0, 20.0]])).shape
        (1, 7, 7, 3)
    """
    lowest = FIRST_STRIDE.bit_length() - 1
    return pool_boxes(maps, boxes, box_levels(boxes, lowest, lowest + len(maps) - 1), size)


# Jitted, so that an export finds it as one operation
@partial(jax.jit, static_argnames="size")
def pool_boxes(maps: Sequence[Array], boxes: Array, levels: Array, size: int) -> Array:
    """Return the features of boxes of one image, (n, size, size, c), from the level (n,) int32 of each."""
    heights, widths = (jnp.array([y.shape[axis] for y in maps]) for axis in (0, 1))
    pixels = [y.shape[0] * y.shape[1] for y in maps]
    starts = jnp.array([sum(pixels[:i]) for i in range(len(maps))])
    flat = jnp.concatenate([y.reshape(-1, y.shape[-1]) for y in maps])
    steps = (jnp.arange(size * SAMPLES, dtype=boxes.dtype) + 0.5) / SAMPLES

    def axis(low: Array, high: Array, length: Array) -> tuple[Array, Array, Array, Array]:
        """Return the pixels before and after each point along an axis, and their weights, which are 0 outside."""
        points = low + steps * (jnp.maximum(high - low, 1) / size)
        # A box of less than a pixel reaches beyond the edge of the map; torchvision's operators take points there as 0
        inside = (points >= -1) & (points <= length)
        points = jnp.maximum(points, 0)
        before = jnp.minimum(jnp.floor(points).astype(jnp.int32), length - 1)
        second = jnp.where(before >= length - 1, 0, points - before)
        return before, jnp.minimum(before + 1, length - 1), inside * (1 - second), inside * second

    def one(box_and_level: tuple[Array, Array]) -> Array:
        box, level = box_and_level
        x1, y1, x2, y2 = box / (FIRST_STRIDE * 2.0**level)
        top, bottom, upper, lower = axis(y1, y2, heights[level])
        left, right, first, second = axis(x1, x2, widths[level])

        def at(ys: Array, xs: Array) -> Array:
            return flat[starts[level] + ys[:, None] * widths[level] + xs[None]]

        above = at(top, left) * first[None, :, None] + at(top, right) * second[None, :, None]
        below = at(bottom, left) * first[None, :, None] + at(bottom, right) * second[None, :, None]
        values = above * upper[:, None, None] + below * lower[:, None, None]
        return values.reshape(size, SAMPLES, size, SAMPLES, -1).mean((1, 3))

    return jax.lax.map(one, (boxes, levels), batch_size=_AT_ONCE)
