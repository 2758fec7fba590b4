"""Non-maximum suppression with fixed shapes, without a loop over single boxes and without callbacks to the host."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from resnet_jax.models.detection.boxes import pairwise_iou

# Boxes that are compared with each other at once
_BLOCK = 256


class Detections(NamedTuple):
    """Boxes of images, by falling score; the rest is padding of label -1, score 0 and boxes 0."""

    boxes: Array
    """(b, n, 4) float32: x1, y1, x2, y2 in pixels."""
    scores: Array
    """(b, n) float32, from 0 to 1."""
    labels: Array
    """(b, n) int32."""


# Jitted, so that an export finds it as one operation
@partial(jax.jit, static_argnames="count")
def suppress(boxes: Array, labels: Array, valid: Array, threshold: float, count: int | None = None) -> Array:
    """Return which boxes remain, (n,) bool: those that overlap no better one that remains and has the same label.

    It is the usual greedy choice, in blocks of boxes. Those of a block are compared with all that remain before it, and
    then with each other at once and again, until nothing changes: after k rounds all are right whose chain of better
    overlapping boxes is at most k long.

    Args:
        boxes: (n, 4), the best first.
        labels: (n,) int.
        valid: (n,) bool; others do not remain and suppress nothing.
        threshold: intersection over union from which on boxes overlap, exclusively.
        count: number of boxes that are needed; of blocks after these none remains. None is all.

    Example:
        >>> boxes = jnp.array([[0.0, 0, 4, 4], [0, 0, 4, 5], [0, 1, 4, 6]])
        >>> suppress(boxes, jnp.zeros(3, int), jnp.ones(3, bool), 0.5).tolist()
        [True, False, True]
    """
    total, most = len(boxes), len(boxes) if count is None else min(count, len(boxes))
    block = min(_BLOCK, total)
    blocks = -(-total // block)
    rest = blocks * block - total
    boxes, labels = jnp.pad(boxes, ((0, rest), (0, 0))), jnp.pad(labels, (0, rest))
    valid = jnp.pad(valid, (0, rest)).reshape(blocks, block)
    # Blocks up to the last with a valid box
    needed = jnp.max(jnp.where(valid.any(1), jnp.arange(blocks) + 1, 0))
    earlier = jnp.arange(block)[:, None] < jnp.arange(block)[None]

    def overlap(some: tuple[Array, Array], others: tuple[Array, Array]) -> Array:
        return (pairwise_iou(some[0], others[0]) > threshold) & (some[1][:, None] == others[1][None])

    def judge_block(state: Any) -> Any:
        number, best, found, keep = state
        own_boxes, own_labels = (lax.dynamic_slice_in_dim(x, number * block, block) for x in (boxes, labels))
        mine = own_boxes, own_labels
        before = overlap(best, mine) & (jnp.arange(most) < found)[:, None]
        alive = valid[number] & ~before.any(0)
        # Row i suppresses column j
        inside = overlap(mine, mine) & earlier
        remain = _settle(inside, alive)
        places = jnp.where(remain, found + jnp.cumsum(remain) - 1, most)
        best = tuple(kept.at[places].set(new, mode="drop") for kept, new in zip(best, mine, strict=True))
        return number + 1, best, found + remain.sum(), keep.at[number].set(remain)

    nothing = jnp.zeros((most, 4), boxes.dtype), jnp.zeros(most, labels.dtype)
    first = 0, nothing, 0, jnp.zeros((blocks, block), bool)
    *_, keep = lax.while_loop(lambda state: (state[0] < needed) & (state[2] < most), judge_block, first)
    return keep.reshape(-1)[:total]


def _settle(overlaps: Array, alive: Array) -> Array:
    """Return which boxes of a block remain, (n,) bool, if row i of `overlaps` (n, n) suppresses column j."""

    def judge(state: tuple[Array, Array]) -> tuple[Array, Array]:
        keep, _ = state
        after = alive & ~(overlaps & keep[:, None]).any(0)
        return after, (after != keep).any()

    return lax.while_loop(lambda state: state[1], judge, (alive, alive.any()))[0]


def select(
    boxes: Array, scores: Array, labels: Array, threshold: float, count: int, *, class_agnostic: bool = False
) -> Detections:
    """Return the `count` best boxes of one image after suppression within each label.

    Args:
        boxes: (n, 4).
        scores: (n,); those of boxes that do not exist are -inf.
        labels: (n,) int.
        threshold: as in `suppress`.
        count: number of boxes, padding included.
        class_agnostic: suppress boxes of all labels by each other.
    """
    order = jnp.argsort(-scores, stable=True)
    boxes, scores, labels = boxes[order], scores[order], labels[order]
    groups = jnp.zeros_like(labels) if class_agnostic else labels
    keep = suppress(boxes, groups, scores > -jnp.inf, threshold, count)
    scores, best = lax.top_k(jnp.where(keep, scores, -jnp.inf), min(count, len(scores)))
    there = scores > -jnp.inf
    found = Detections(
        jnp.where(there[:, None], boxes[best], 0),
        jnp.where(there, scores, 0),
        jnp.where(there, labels[best], -1).astype(jnp.int32),
    )
    rest = max(count - len(scores), 0)
    pad = [((0, rest), (0, 0)), ((0, rest),), ((0, rest),)]
    values = (0, 0, -1)
    return Detections(*(jnp.pad(x, p, constant_values=v) for x, p, v in zip(found, pad, values, strict=True)))


def best_scores(scores: Array, threshold: float, count: int) -> tuple[Array, Array, Array]:
    """Return the best of all scores over a threshold: scores, boxes and labels, each (min(count, n * k),).

    Args:
        scores: (n, k) of n boxes and k labels.
        threshold: scores must exceed it; -inf stands for those that do not.
        count: number of scores.
    """
    flat = jnp.where(scores > threshold, scores, -jnp.inf).ravel()
    best, index = lax.top_k(flat, min(count, flat.size))
    return best, index // scores.shape[-1], index % scores.shape[-1]
