"""Faster R-CNN (Ren et al. 2015) on a feature pyramid (Lin et al. 2017), as torchvision has it."""

from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from jax import Array
from jax.nn.initializers import normal

from resnet_jax.models.backbone import BackboneModel
from resnet_jax.models.detection.anchors import RATIOS, cell_anchors, grid_anchors
from resnet_jax.models.detection.boxes import clip, decode, encode
from resnet_jax.models.detection.dense import SMALL
from resnet_jax.models.detection.losses import smooth_l1
from resnet_jax.models.detection.matching import BACKGROUND, IGNORED, match, sample_balanced
from resnet_jax.models.detection.nms import Detections, best_scores, select, suppress
from resnet_jax.models.detection.objects import Objects
from resnet_jax.models.detection.roi_align import roi_align
from resnet_jax.models.fpn import FPN
from resnet_jax.models.layers import Conv, ConvDef, NormDef

# Factors of the codes of the second stage: their standard deviations are then about 1
_WEIGHTS = (10.0, 10.0, 5.0, 5.0)


class FasterRCNNOutputs(struct.PyTreeNode):
    """What Faster R-CNN returns for a batch: of n anchors, and of r proposals with k classes and background.

    Class 0 of the second stage is the background; labels of targets and detections do not count it.
    """

    objectness: Array
    """(b, n) float32 logits."""
    deltas: Array
    """(b, n, 4) float32: boxes, coded relative to the anchors."""
    anchors: Array
    """(b, n, 4) float32."""
    proposals: Array
    """(b, r, 4) float32 in pixels."""
    real: Array
    """(b, r) bool; the other proposals are padding."""
    logits: Array
    """(b, r, 1 + k) float32."""
    box_deltas: Array
    """(b, r, 1 + k, 4) float32: boxes of each class, coded relative to the proposals."""
    image_sizes: Array
    """(b, 2) float32 height and width."""
    sampled: Array | None = None
    """(b, n) bool: anchors that were drawn for the loss, in training."""

    @property
    def num_classes(self) -> int:
        """Number k of classes, without the background."""
        return self.logits.shape[-1] - 1

    def detect(
        self,
        *,
        score_threshold: float = 0.05,
        iou_threshold: float = 0.5,
        candidates: int = 4000,
        count: int = 100,
        class_agnostic: bool = False,
    ) -> Detections:
        """Return the detected boxes of each image; all shapes are fixed.

        Args:
            score_threshold: scores must exceed it.
            iou_threshold: boxes of one class that overlap more are one detection.
            candidates: number of boxes and classes of an image that are looked at.
            count: number of detections of an image, padding included.
            class_agnostic: boxes of all classes that overlap more are one detection.
        """

        def one(proposals: Array, real: Array, logits: Array, deltas: Array, size: Array) -> Detections:
            boxes = clip(decode(deltas[:, 1:], proposals[:, None], _WEIGHTS), size)
            usable = real[:, None] & _is_large(boxes, 1e-2)
            scores = jnp.where(usable, jax.nn.softmax(logits)[:, 1:], -jnp.inf)
            best, place, labels = best_scores(scores, score_threshold, candidates)
            return select(boxes[place, labels], best, labels, iou_threshold, count, class_agnostic=class_agnostic)

        return jax.vmap(one)(self.proposals, self.real, self.logits, self.box_deltas, self.image_sizes)

    def losses(self, targets: Objects) -> tuple[Array, Array]:
        """Return losses (b,) and weights 1: those of an image are over its numbers of drawn anchors and proposals.

        In evaluation, where nothing is drawn, all anchors and proposals count.
        """
        sums, (anchors, proposals) = self.loss_parts(targets)
        first = (sums["loss_objectness"] + sums["loss_rpn_box_reg"]) / jnp.maximum(anchors, 1)
        second = (sums["loss_classifier"] + sums["loss_box_reg"]) / jnp.maximum(proposals, 1)
        return first + second, jnp.ones(len(first))

    def loss_parts(self, targets: Objects) -> tuple[dict[str, Array], tuple[Array, Array]]:
        """Return the sums of the four losses, (b,), and the numbers of drawn anchors and proposals, (b,)."""
        judged = jnp.ones_like(self.objectness, bool) if self.sampled is None else self.sampled
        leaves = (self.objectness, self.deltas, self.anchors, judged)
        objectness, rpn_boxes = jax.vmap(_rpn_losses)(*leaves, targets.boxes, targets.learned)
        leaves = (self.logits, self.box_deltas, self.proposals, self.real)
        classes, boxes = jax.vmap(_box_losses)(*leaves, targets.boxes, targets.learned)
        names = ("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg")
        sums = dict(zip(names, (objectness, rpn_boxes, classes, boxes), strict=True))
        return sums, (judged.sum(1), self.real.sum(1))


def _is_large(boxes: Array, side: float) -> Array:
    return (boxes[..., 2:] - boxes[..., :2]).min(-1) >= side


def _anchor_labels(anchors: Array, boxes: Array, labels: Array) -> tuple[Array, Array]:
    """Return 1 for anchors of an object, 0 for background and -1 for those to ignore, and their boxes (n, 4)."""
    matches = match(anchors, boxes, labels >= 0, 0.7, 0.3, low_quality=True)
    kinds = jnp.where(matches >= 0, 1, jnp.where(matches == IGNORED, -1, 0))
    return kinds, jnp.where((matches >= 0)[:, None], boxes[jnp.maximum(matches, 0)], anchors)


def _proposal_labels(proposals: Array, boxes: Array, labels: Array) -> tuple[Array, Array]:
    """Return the class of each proposal, 0 for background, and its box (n, 4)."""
    matches = match(proposals, boxes, labels >= 0, 0.5, 0.5, low_quality=False)
    found = jnp.where(matches == BACKGROUND, 0, labels[jnp.maximum(matches, 0)] + 1)
    return found, jnp.where((matches >= 0)[:, None], boxes[jnp.maximum(matches, 0)], proposals)


def _rpn_losses(
    objectness: Array, deltas: Array, anchors: Array, sampled: Array, boxes: Array, labels: Array
) -> tuple[Array, Array]:
    kinds, true = _anchor_labels(anchors, boxes, labels)
    judged = optax.sigmoid_binary_cross_entropy(objectness, (kinds > 0).astype(objectness.dtype))
    away = smooth_l1(deltas - encode(true, anchors)).sum(-1)
    # Anchors to ignore are never drawn
    return jnp.where(sampled & (kinds >= 0), judged, 0).sum(), jnp.where(sampled & (kinds > 0), away, 0).sum()


def _box_losses(
    logits: Array, deltas: Array, proposals: Array, real: Array, boxes: Array, labels: Array
) -> tuple[Array, Array]:
    # Padding stands for any box
    proposals = jnp.where(real[:, None], proposals, jnp.array([[0.0, 0.0, 1.0, 1.0]]))
    classes, true = _proposal_labels(proposals, boxes, labels)
    judged = optax.softmax_cross_entropy_with_integer_labels(logits, classes)
    codes = jnp.take_along_axis(deltas, classes[:, None, None], 1)[:, 0]
    away = smooth_l1(codes - encode(true, proposals, _WEIGHTS)).sum(-1)
    return jnp.where(real, judged, 0).sum(), jnp.where(real & (classes > 0), away, 0).sum()


class FasterRCNN(BackboneModel):
    """Faster R-CNN on a feature pyramid: images (b, h, w, c) to `FasterRCNNOutputs`, of which all shapes are fixed.

    Training needs `targets` and the random stream "dropout", with which anchors and proposals are drawn; what an image
    draws depends on that and on its row alone.

    Attributes:
        pyramid_width: channels of the pyramid and of the heads.
        rpn_depth: number of convolutions of the region proposal network.
        conv_head: four convolutions and one dense layer as the second stage; otherwise two dense layers. The pyramid is
            then normalised too.
        hidden: features of the dense layers.
        anchor_sizes: for each level, the side of a square of the area of its anchors, in pixels.
        proposals: numbers of proposals of a level before suppression and of an image after it, in evaluation.
        train_proposals: the same in training.
    """

    pyramid_width: int = 256
    rpn_depth: int = 1
    conv_head: bool = False
    hidden: int = 1024
    anchor_sizes: tuple[int, ...] = (32, 64, 128, 256, 512)
    proposals: tuple[int, int] = (1000, 1000)
    train_proposals: tuple[int, int] = (2000, 2000)

    predicts: ClassVar[str] = "boxes"
    head_path: ClassVar[tuple[str, ...]] = ("box", "head", "score")

    @nn.nowrap
    def classes_of(self, outputs: int) -> int:
        return outputs - 1

    @nn.compact
    def __call__(
        self,
        x: Array,
        *,
        train: bool = False,
        rows: Array | None = None,
        image_sizes: Array | None = None,
        targets: Objects | None = None,
    ) -> FasterRCNNOutputs:
        """Return what anchors and proposals say.

        Args:
            x: images (b, h, w, c), normalised, padded to one canvas.
            train: as for `ResNet`.
            rows: as for `ResNet`.
            image_sizes: (b, 2) height and width of the images within the canvas, at which boxes end; None is its own.
            targets: of the batch, for training.
        """
        conv, norm, _ = self.backbone.builders(train, rows)
        batch, canvas, dtype = x.shape[0], x.shape[1:3], self.backbone.dtype
        maps = self.backbone.features(x, train=train, rows=rows)
        levels = FPN(self.pyramid_width, dtype, norm if self.conv_head else None, "pool", name="fpn")(maps)
        scores, codes = RPNHead(self.rpn_depth, name="rpn")(levels)
        cells = [cell_anchors((side,), RATIOS) for side in self.anchor_sizes]
        anchors = [grid_anchors(y.shape[1:3], canvas, cell) for y, cell in zip(levels, cells, strict=True)]
        whole = jnp.array(canvas, jnp.float32)
        sizes = jnp.broadcast_to(whole, (batch, 2)) if image_sizes is None else jnp.asarray(image_sizes, jnp.float32)
        limits = self.train_proposals if train else self.proposals
        found = jax.vmap(partial(propose, anchors=[jnp.asarray(a) for a in anchors], limits=limits))
        proposals, real = jax.lax.stop_gradient(found(scores, codes, sizes))
        flat = jnp.concatenate([jnp.asarray(a) for a in anchors])
        sampled = None
        if targets is not None:
            keys = self._keys(batch, rows)
            draw = partial(_draw, anchors=flat)
            sampled, proposals, real = jax.vmap(draw)(keys, proposals, real, targets.boxes, targets.learned)
        pooled = jax.vmap(roi_align)(levels[:-1], proposals)
        logits, deltas = BoxHead(self.num_classes + 1, self.hidden, self.conv_head, conv, norm, name="box")(pooled)
        return FasterRCNNOutputs(
            jnp.concatenate(scores, 1),
            jnp.concatenate(codes, 1),
            jnp.broadcast_to(flat, (batch, *flat.shape)),
            proposals,
            real,
            logits,
            deltas,
            sizes,
            sampled,
        )

    def _keys(self, batch: int, rows: Array | None) -> Array:
        rows = jnp.arange(batch) if rows is None else rows
        return jax.vmap(partial(jax.random.fold_in, self.make_rng("dropout")))(rows)


def propose(
    scores: Sequence[Array], codes: Sequence[Array], size: Array, anchors: Sequence[Array], limits: tuple[int, int]
) -> tuple[Array, Array]:
    """Return the proposals of one image, (r, 4), the best first, and which of them are no padding, (r,) bool.

    Args:
        scores: logits (n,) of the anchors of each level.
        codes: (n, 4) of each level.
        size: (2,) height and width of the image.
        anchors: (n, 4) of each level.
        limits: numbers of proposals of a level before suppression, and of the image after it.
    """
    before, after = limits
    boxes, logits, numbers = [], [], []
    for number, (judged, coded, around) in enumerate(zip(scores, codes, anchors, strict=True)):
        best, place = jax.lax.top_k(judged, min(before, len(judged)))
        boxes.append(clip(decode(coded[place], around[place]), size))
        logits.append(best)
        numbers.append(jnp.full(len(best), number))
    all_boxes, all_logits, all_numbers = map(jnp.concatenate, (boxes, logits, numbers))
    ranked = jnp.where(_is_large(all_boxes, 1e-3), all_logits, -jnp.inf)
    order = jnp.argsort(-ranked, stable=True)
    all_boxes, ranked, all_numbers = all_boxes[order], ranked[order], all_numbers[order]
    keep = suppress(all_boxes, all_numbers, ranked > -jnp.inf, 0.7, after)
    ranked, best = jax.lax.top_k(jnp.where(keep, ranked, -jnp.inf), min(after, len(ranked)))
    real = ranked > -jnp.inf
    return jnp.where(real[:, None], all_boxes[best], 0), real


def _draw(
    key: Array, proposals: Array, real: Array, boxes: Array, labels: Array, anchors: Array
) -> tuple[Array, Array, Array]:
    """Return which 256 anchors of an image are drawn, (n,) bool, and 512 proposals (512, 4) with what is no padding.

    True boxes are proposals as well.
    """
    keys = jax.random.split(key)
    kinds, _ = _anchor_labels(anchors, boxes, labels)
    drawn = jnp.logical_or(*sample_balanced(keys[0], kinds, 256, 0.5))
    proposals = jnp.concatenate([proposals, boxes])
    real = jnp.concatenate([real, labels >= 0])
    classes, _ = _proposal_labels(proposals, boxes, labels)
    chosen = jnp.logical_or(*sample_balanced(keys[1], jnp.where(real, classes, -1), 512, 0.25))
    there, place = jax.lax.top_k(chosen.astype(jnp.int32), min(512, len(chosen)))
    return drawn, jnp.where((there > 0)[:, None], proposals[place], 0), there > 0


class RPNHead(nn.Module):
    """Region proposal network: logits (b, n) and codes (b, n, 4) of the anchors of each level."""

    depth: int

    @nn.compact
    def __call__(self, levels: Sequence[Array]) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        maps = list(levels)
        for i in range(1, self.depth + 1):
            layer = Conv(maps[0].shape[-1], bias=True, dtype=maps[0].dtype, kernel_init=SMALL, name=f"conv{i}")
            maps = [nn.relu(layer(x)) for x in maps]
        score = Conv(len(RATIOS), 1, bias=True, kernel_init=SMALL, name="score")
        regress = Conv(len(RATIOS) * 4, 1, bias=True, kernel_init=SMALL, name="box")
        maps = [x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in maps]
        batch = maps[0].shape[0]
        scores = tuple(score(x).reshape(batch, -1) for x in maps)
        return scores, tuple(regress(x).reshape(batch, -1, 4) for x in maps)


class BoxHead(nn.Module):
    """Second stage: pooled features (b, r, h, w, c) to logits (b, r, outputs) and codes (b, r, outputs, 4)."""

    outputs: int
    hidden: int
    convolve: bool
    conv: ConvDef
    norm: NormDef

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        if self.convolve:
            for i in range(1, 5):
                y = self.conv(x.shape[-1], name=f"conv{i}")(x.reshape(-1, *x.shape[2:]))
                # A group of images is a group of all their proposals
                x = nn.relu(self.norm(name=f"norm{i}")(y.reshape(x.shape)))
        x = nn.relu(nn.DenseGeneral(self.hidden, axis=(-3, -2, -1), dtype=x.dtype, name="fc6")(x))
        if not self.convolve:
            x = nn.relu(nn.Dense(self.hidden, dtype=x.dtype, name="fc7")(x))
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        return Predictor(self.outputs, name="head")(x)


class Predictor(nn.Module):
    """Logits (..., outputs) and codes (..., outputs, 4) for features (..., c)."""

    outputs: int

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        logits = nn.Dense(self.outputs, kernel_init=normal(0.01), name="score")(x)
        codes = nn.Dense(self.outputs * 4, kernel_init=normal(0.001), name="box")(x)
        return logits, codes.reshape(*x.shape[:-1], self.outputs, 4)
