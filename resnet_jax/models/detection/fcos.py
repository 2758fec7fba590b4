"""FCOS (Tian et al. 2019, "Fully convolutional one-stage object detection"), as torchvision has it."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import Array

from resnet_jax.models.detection.anchors import cell_anchors
from resnet_jax.models.detection.boxes import area, decode_distances, encode_distances, giou_loss
from resnet_jax.models.detection.dense import RARE, DenseDetector, DenseOutputs, Tower, predictor
from resnet_jax.models.detection.losses import sigmoid_focal
from resnet_jax.models.detection.objects import Objects

# Distance from the centre of a box within which pixels learn it, in strides: section 3.2 of the later version
_RADIUS = 1.5


class FCOSOutputs(DenseOutputs):
    """Logits of each class, distances to the sides of a box, and centredness, of every pixel of the levels."""

    centredness: tuple[Array, ...] = ()
    """(b, n, 1) float32 logits."""
    detect_defaults: ClassVar[tuple[float, float, int]] = (0.2, 0.6, 100)

    def scores(self, level: int) -> Array:
        return jnp.sqrt(jax.nn.sigmoid(self.logits[level]) * jax.nn.sigmoid(self.centredness[level]))

    def decode(self, deltas: Array, anchors: Array) -> Array:
        return decode_distances(deltas, anchors)

    def losses(self, targets: Objects) -> tuple[Array, Array]:
        """Return losses (b,) and numbers of foreground pixels (b,), over which the mean is taken.

        An image without any counts as one, where torchvision takes 1 for a whole batch without any.
        """
        parts, counts = self.loss_parts(targets)
        return parts["classification"] + parts["bbox_regression"] + parts["bbox_ctrness"], jnp.maximum(counts, 1)

    def loss_parts(self, targets: Objects) -> tuple[dict[str, Array], Array]:
        """Return sums "classification", "bbox_regression", "bbox_ctrness" (b,), and foreground pixels (b,)."""
        leaves = (self.logits, self.deltas, self.centredness, self.anchors)
        sizes = [level.shape[1] for level in self.anchors]
        scales = jnp.repeat(jnp.arange(len(sizes)), jnp.array(sizes), total_repeat_length=sum(sizes))
        ends = scales == 0, scales == len(sizes) - 1

        def one(
            logits: Array, deltas: Array, centred: Array, anchors: Array, boxes: Array, labels: Array
        ) -> tuple[Any, ...]:
            return _image_losses(logits, deltas, centred[:, 0], anchors, boxes, labels, ends)

        logits, deltas, centred, anchors = (jnp.concatenate(levels, 1) for levels in leaves)
        *sums, counts = jax.vmap(one)(logits, deltas, centred, anchors, targets.boxes, targets.learned)
        return dict(zip(("classification", "bbox_regression", "bbox_ctrness"), sums, strict=True)), counts


def _match(anchors: Array, boxes: Array, real: Array, ends: tuple[Array, Array]) -> Array:
    """Return the number of the smallest box that each pixel may learn, (n,) int32, or -1 (section 3.2)."""
    centres, sizes = (anchors[:, :2] + anchors[:, 2:]) / 2, anchors[:, 2] - anchors[:, 0]
    away = jnp.abs(centres[:, None] - ((boxes[:, :2] + boxes[:, 2:]) / 2)[None]).max(-1)
    sides = jnp.concatenate([centres[:, None] - boxes[None, :, :2], boxes[None, :, 2:] - centres[:, None]], -1)
    low = jnp.where(ends[0], 0, 4 * sizes)[:, None]
    high = jnp.where(ends[1], jnp.inf, 8 * sizes)[:, None]
    far = sides.max(-1)
    fits = (away < _RADIUS * sizes[:, None]) & (sides.min(-1) > 0) & (far > low) & (far < high) & real[None]
    preference = jnp.where(fits, 1e8 - area(boxes)[None], 0)
    return jnp.where(preference.max(1) < 1e-5, -1, preference.argmax(1)).astype(jnp.int32)


def _image_losses(
    logits: Array,
    deltas: Array,
    centred: Array,
    anchors: Array,
    boxes: Array,
    labels: Array,
    ends: tuple[Array, Array],
) -> tuple[Array, Array, Array, Array]:
    """Return sums of the losses of classes, boxes and centredness of one image, and its foreground pixels."""
    matches = _match(anchors, boxes, labels >= 0, ends)
    foreground, matched = matches >= 0, jnp.maximum(matches, 0)
    wanted = jnp.where(foreground[:, None], jax.nn.one_hot(labels[matched], logits.shape[-1]), 0)
    # Of the others the losses are left out: their anchor stands for a box
    true = jnp.where(foreground[:, None], boxes[matched], anchors)
    left, top, right, bottom = encode_distances(true, anchors).T
    across = jnp.minimum(left, right) / jnp.maximum(left, right)
    down = jnp.minimum(top, bottom) / jnp.maximum(top, bottom)
    giou = giou_loss(decode_distances(deltas, anchors), true)
    centring = optax.sigmoid_binary_cross_entropy(centred, jnp.sqrt(across * down))
    inside = [jnp.where(foreground, losses, 0).sum() for losses in (giou, centring)]
    return sigmoid_focal(logits, wanted).sum(), inside[0], inside[1], foreground.sum()


class FCOS(DenseDetector):
    """FCOS on a feature pyramid: images (b, h, w, c) to `FCOSOutputs`, of which all shapes are fixed.

    Attributes:
        anchor_sizes: side of the square around each pixel of a level, in pixels of the image.
    """

    anchor_sizes: tuple[int, ...] = (8, 16, 32, 64, 128)

    @nn.compact
    def __call__(
        self, x: Array, *, train: bool = False, rows: Array | None = None, image_sizes: Array | None = None
    ) -> FCOSOutputs:
        """Return what all pixels say.

        Args:
            x: images (b, h, w, c), normalised, padded to one canvas.
            train: as for `ResNet`.
            rows: as for `ResNet`.
            image_sizes: (b, 2) height and width of the images within the canvas, at which boxes end; None is its own.
        """
        *_, drop = self.backbone.builders(train, rows)
        levels, dropout, dtype = self.pyramid(x, train, rows), drop(self.head_dropout), self.backbone.dtype
        classes = Tower(self.head_depth, True, True, dtype, name="class_tower")(levels)
        boxes = Tower(self.head_depth, True, True, dtype, name="box_tower")(levels)
        classify = predictor(self.num_classes, "head", RARE)
        regress, centre = predictor(4, "box_head"), predictor(1, "centre_head")
        cells = [cell_anchors((size,), (1.0,)) for size in self.anchor_sizes]
        return FCOSOutputs(
            tuple(classify(dropout(y)) for y in classes),
            tuple(nn.relu(regress(dropout(y))) for y in boxes),
            *self.anchors(levels, x, cells, image_sizes),
            tuple(centre(y) for y in boxes),
        )
