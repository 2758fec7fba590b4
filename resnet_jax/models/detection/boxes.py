"""Boxes (..., 4) as x1, y1, x2, y2 in pixels: overlap, and two ways of coding them relative to anchors.

Reference:
    Ren et al. 2015, "Faster R-CNN", section 3.1.2; Tian et al. 2019, "FCOS", section 3.1; Rezatofighi et al. 2019
    (GIoU).
"""

import math

import jax.numpy as jnp
from jax import Array

# Largest logarithm of a factor on a size: a box of 16 pixels grows to 1,000 at most, as in torchvision
_MAX_LOG = math.log(1000 / 16)


def area(boxes: Array) -> Array:
    """Return the areas of boxes, (..., 4) -> (...).

    Example:
        >>> float(area(jnp.array([0.0, 0.0, 2.0, 3.0])))
        6.0
    """
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def _intersection(a: Array, b: Array) -> Array:
    sides = jnp.minimum(a[..., 2:], b[..., 2:]) - jnp.maximum(a[..., :2], b[..., :2])
    return jnp.maximum(sides, 0).prod(-1)


def pairwise_iou(a: Array, b: Array) -> Array:
    """Return intersection over union of each pair, (m, 4) and (n, 4) -> (m, n); 0 for two boxes of no area.

    Example:
        >>> pairwise_iou(jnp.array([[0.0, 0.0, 2.0, 2.0]]), jnp.array([[1.0, 0.0, 3.0, 2.0]])).round(3).tolist()
        [[0.3330000042915344]]
    """
    shared = _intersection(a[:, None], b[None])
    union = area(a)[:, None] + area(b)[None] - shared
    return jnp.where(union > 0, shared / jnp.where(union > 0, union, 1), 0)


def giou_loss(a: Array, b: Array) -> Array:
    """Return 1 - GIoU of boxes and boxes, (..., 4) -> (...)."""
    eps = 1e-7
    shared = _intersection(a, b)
    union = area(a) + area(b) - shared
    hull = jnp.concatenate([jnp.minimum(a[..., :2], b[..., :2]), jnp.maximum(a[..., 2:], b[..., 2:])], -1)
    around = area(hull)
    return 1 - (shared / (union + eps) - (around - union) / (around + eps))


def _centres_and_sizes(boxes: Array) -> tuple[Array, Array]:
    sizes = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + 0.5 * sizes, sizes


def encode(boxes: Array, anchors: Array, weights: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)) -> Array:
    """Return boxes relative to anchors: shifts of the centre over the size, and logarithms of factors of the size.

    Args:
        boxes: (..., 4) of positive size.
        anchors: (..., 4) of positive size.
        weights: factors of the four numbers.

    Example:
        >>> encode(jnp.array([0.0, 0.0, 4.0, 4.0]), jnp.array([1.0, 0.0, 5.0, 4.0])).tolist()
        [-0.25, 0.0, 0.0, 0.0]
    """
    (centres, sizes), (origins, scales) = _centres_and_sizes(boxes), _centres_and_sizes(anchors)
    codes = jnp.concatenate([(centres - origins) / scales, jnp.log(sizes / scales)], -1)
    return codes * jnp.array(weights, codes.dtype).reshape((1,) * (codes.ndim - 1) + (4,))


def decode(codes: Array, anchors: Array, weights: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)) -> Array:
    """Return the boxes (..., 4) that `encode` codes relative to anchors; sizes grow by a bounded factor."""
    origins, scales = _centres_and_sizes(anchors)
    codes = codes / jnp.array(weights, codes.dtype).reshape((1,) * (codes.ndim - 1) + (4,))
    centres = codes[..., :2] * scales + origins
    halves = 0.5 * jnp.exp(jnp.minimum(codes[..., 2:], _MAX_LOG)) * scales
    return jnp.concatenate([centres - halves, centres + halves], -1)


def encode_distances(boxes: Array, anchors: Array) -> Array:
    """Return distances of the four sides of boxes from the centres of anchors, over the anchors' sizes."""
    centres, sizes = 0.5 * (anchors[..., :2] + anchors[..., 2:]), anchors[..., 2:] - anchors[..., :2]
    return jnp.concatenate([(centres - boxes[..., :2]) / sizes, (boxes[..., 2:] - centres) / sizes], -1)


def decode_distances(codes: Array, anchors: Array) -> Array:
    """Return the boxes (..., 4) that `encode_distances` codes relative to anchors."""
    centres, sizes = 0.5 * (anchors[..., :2] + anchors[..., 2:]), anchors[..., 2:] - anchors[..., :2]
    return jnp.concatenate([centres - codes[..., :2] * sizes, centres + codes[..., 2:] * sizes], -1)


def clip(boxes: Array, size: Array) -> Array:
    """Return boxes (..., 4) clipped to an image of `size` (2,): height and width."""
    height, width = size[0], size[1]
    limits = jnp.stack([width, height, width, height]).astype(boxes.dtype)
    return jnp.clip(boxes, 0, limits.reshape((1,) * (boxes.ndim - 1) + (4,)))
