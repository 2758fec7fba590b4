"""RetinaNet (Lin et al. 2017, "Focal loss for dense object detection"), as torchvision has it."""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax import Array

from resnet_jax.models.detection.anchors import RATIOS, RETINANET_SIZES, cell_anchors
from resnet_jax.models.detection.boxes import decode, encode, giou_loss
from resnet_jax.models.detection.dense import RARE, DenseDetector, DenseOutputs, Tower, predictor
from resnet_jax.models.detection.losses import sigmoid_focal
from resnet_jax.models.detection.matching import IGNORED, match
from resnet_jax.models.detection.objects import Objects


class RetinaNetOutputs(DenseOutputs):
    """Logits of each class and coded boxes of every anchor."""

    box_loss: str = struct.field(pytree_node=False, default="l1")
    """"l1" of the codes, or "giou" of the boxes."""

    def decode(self, deltas: Array, anchors: Array) -> Array:
        return decode(deltas, anchors)

    def losses(self, targets: Objects) -> tuple[Array, Array]:
        """Return losses (b,) and weights 1: those of an image are over its number of foreground anchors."""
        parts = self.loss_parts(targets)
        return parts["classification"] + parts["bbox_regression"], jnp.ones(len(self.image_sizes))

    def loss_parts(self, targets: Objects) -> dict[str, Array]:
        """Return the losses of classes and boxes, "classification" and "bbox_regression", each (b,)."""
        logits, deltas, anchors = (jnp.concatenate(levels, 1) for levels in (self.logits, self.deltas, self.anchors))
        one = partial(_image_losses, box_loss=self.box_loss)
        classes, boxes = jax.vmap(one)(logits, deltas, anchors, targets.boxes, targets.learned)
        return {"classification": classes, "bbox_regression": boxes}


def _image_losses(
    logits: Array, deltas: Array, anchors: Array, boxes: Array, labels: Array, box_loss: str
) -> tuple[Array, Array]:
    """Return the losses of classes and boxes of one image over its number of foreground anchors."""
    matches = match(anchors, boxes, labels >= 0, 0.5, 0.4, low_quality=True)
    foreground, matched = matches >= 0, jnp.maximum(matches, 0)
    wanted = jnp.where(foreground[:, None], jax.nn.one_hot(labels[matched], logits.shape[-1]), 0)
    classes = jnp.where((matches != IGNORED)[:, None], sigmoid_focal(logits, wanted), 0).sum()
    # Of the others the loss is left out: their anchor stands for a box, whose logarithms are finite
    true = jnp.where(foreground[:, None], boxes[matched], anchors)
    if box_loss == "giou":
        differences = giou_loss(decode(deltas, anchors), true)
    else:
        differences = jnp.abs(deltas - encode(true, anchors)).sum(-1)
    count = jnp.maximum(foreground.sum(), 1)
    return classes / count, jnp.where(foreground, differences, 0).sum() / count


class RetinaNet(DenseDetector):
    """RetinaNet on a feature pyramid: images (b, h, w, c) to `RetinaNetOutputs`, of which all shapes are fixed.

    Attributes:
        group_norm: normalise in the heads, over 32 groups of channels.
        box_loss: "l1" of the coded boxes, or "giou".
        anchor_sizes: for each level, sides of squares of the areas of its anchors, in pixels.

    Example:
        >>> from resnet_jax.models.zoo import MODELS
        >>> model, images = MODELS["retinanet_resnet18_fpn"], jnp.zeros((2, 64, 96, 3))
        >>> outputs = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), images)[0])
        >>> [logits.shape for logits in outputs.logits]
        [(2, 864, 20), (2, 216, 20), (2, 54, 20)]
        >>> jax.eval_shape(lambda outputs: outputs.detect(count=10), outputs).boxes.shape
        (2, 10, 4)
    """

    group_norm: bool = False
    box_loss: Literal["l1", "giou"] = "l1"
    anchor_sizes: tuple[tuple[int, ...], ...] = RETINANET_SIZES

    @nn.nowrap
    def classes_of(self, outputs: int) -> int:
        return outputs // (len(RATIOS) * len(self.anchor_sizes[0]))

    @nn.compact
    def __call__(
        self, x: Array, *, train: bool = False, rows: Array | None = None, image_sizes: Array | None = None
    ) -> RetinaNetOutputs:
        """Return what all anchors say.

        Args:
            x: images (b, h, w, c), normalised, padded to one canvas.
            train: as for `ResNet`.
            rows: as for `ResNet`.
            image_sizes: (b, 2) height and width of the images within the canvas, at which boxes end; None is its own.
        """
        *_, drop = self.backbone.builders(train, rows)
        levels, dropout = self.pyramid(x, train, rows), drop(self.head_dropout)
        cells = [cell_anchors(sizes, RATIOS) for sizes in self.anchor_sizes]
        tower = partial(Tower, self.head_depth, self.group_norm, not self.group_norm, self.backbone.dtype)
        classify = predictor(len(cells[0]) * self.num_classes, "head", RARE)
        regress = predictor(len(cells[0]) * 4, "box_head")
        logits = [classify(dropout(y)) for y in tower(name="class_tower")(levels)]
        deltas = [regress(dropout(y)) for y in tower(name="box_tower")(levels)]
        return RetinaNetOutputs(
            tuple(y.reshape(x.shape[0], -1, self.num_classes) for y in logits),
            tuple(y.reshape(x.shape[0], -1, 4) for y in deltas),
            *self.anchors(levels, x, cells, image_sizes),
            self.box_loss,
        )
