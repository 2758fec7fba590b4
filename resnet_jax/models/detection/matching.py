"""Which anchors or proposals learn which true box (Ren et al. 2015, section 3.1.2)."""

import jax
import jax.numpy as jnp
from jax import Array

from resnet_jax.models.detection.boxes import pairwise_iou

BACKGROUND, IGNORED = -1, -2


def match(anchors: Array, boxes: Array, real: Array, high: float, low: float, *, low_quality: bool) -> Array:
    """Return the number of the box that each anchor learns, (n,) int32, or BACKGROUND or IGNORED.

    Args:
        anchors: (n, 4).
        boxes: (m, 4) true boxes.
        real: (m,) bool; the others are padding.
        high: intersection over union from which on an anchor learns its best box.
        low: intersection over union below which it is background; between the two it is ignored.
        low_quality: let anchors also learn their best box if some box overlaps none better.
    """
    iou = jnp.where(real[:, None], pairwise_iou(boxes, anchors), -1)
    quality, best = iou.max(0), iou.argmax(0)
    matches = jnp.where(quality < low, BACKGROUND, jnp.where(quality < high, IGNORED, best))
    if low_quality:
        needed = ((iou == iou.max(1, keepdims=True)) & real[:, None]).any(0)
        matches = jnp.where(needed, best, matches)
    return matches.astype(jnp.int32)


def sample(key: Array, candidates: Array, count: Array | int) -> Array:
    """Return `count` of the candidates drawn without replacement, or all if they are fewer: (n,) bool.

    Args:
        key: of the draw.
        candidates: (n,) bool.
        count: number to draw.
    """
    draws = jnp.where(candidates, jax.random.uniform(key, candidates.shape), jnp.inf)
    place = jnp.argsort(jnp.argsort(draws))
    return candidates & (place < count)


def sample_balanced(key: Array, labels: Array, size: int, fraction: float) -> tuple[Array, Array]:
    """Return which examples are drawn as foreground and as background, two (n,) bool.

    Args:
        key: of the draw.
        labels: (n,) int: foreground is positive, background 0, and the rest is never drawn.
        size: number of all examples.
        fraction: largest fraction of foreground among them.
    """
    keys = jax.random.split(key)
    foreground = sample(keys[0], labels > 0, int(size * fraction))
    return foreground, sample(keys[1], labels == 0, size - foreground.sum())
