"""What dense detectors share: heads over all levels of a pyramid, their outputs, and the choice of boxes from them.

A dense detector judges every anchor of every level at once: RetinaNet and FCOS.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct
from jax import Array
from jax.nn.initializers import constant, normal, zeros
from jax.typing import DTypeLike

from resnet_jax.models.backbone import BackboneModel
from resnet_jax.models.detection.anchors import grid_anchors
from resnet_jax.models.detection.boxes import clip
from resnet_jax.models.detection.nms import Detections, best_scores, select
from resnet_jax.models.detection.objects import Objects
from resnet_jax.models.fpn import FPN
from resnet_jax.models.layers import Conv

# The bias with which a sigmoid is 0.01: Lin et al. 2017, "Focal loss", section 4.1
RARE = constant(-4.59511985013459)
SMALL = normal(0.01)


class DenseOutputs(struct.PyTreeNode):
    """What a dense detector returns for a batch: a tuple over levels of each, of n anchors at a level.

    These are all that losses and detections need.
    """

    logits: tuple[Array, ...]
    """(b, n, k) float32."""
    deltas: tuple[Array, ...]
    """(b, n, 4) float32: boxes, coded relative to the anchors."""
    anchors: tuple[Array, ...]
    """(b, n, 4) float32, the same for all images."""
    image_sizes: Array
    """(b, 2) float32: height and width of the images, at which boxes end; those of the canvas may be larger."""
    detect_defaults: ClassVar[tuple[float, float, int]] = (0.05, 0.5, 300)
    """Score and overlap thresholds and number of detections."""

    @property
    def num_classes(self) -> int:
        """Number k of classes."""
        return self.logits[0].shape[-1]

    def scores(self, level: int) -> Array:
        """Return the scores (b, n, k) of a level, from 0 to 1."""
        return jax.nn.sigmoid(self.logits[level])

    def decode(self, deltas: Array, anchors: Array) -> Array:
        """Return boxes (..., 4) in pixels."""
        raise NotImplementedError

    def losses(self, targets: Objects) -> tuple[Array, Array]:
        """Return numerators (b,) and weights (b,): the loss of the batch is the sum of ones over that of the others.

        Args:
            targets: of the batch; crowds are not learned.
        """
        raise NotImplementedError

    def detect(
        self,
        *,
        score_threshold: float | None = None,
        iou_threshold: float | None = None,
        candidates: int = 1000,
        count: int | None = None,
        class_agnostic: bool = False,
    ) -> Detections:
        """Return the detected boxes of each image; all shapes are fixed.

        What is None is as torchvision has it: 0.05, 0.5 and 300 for RetinaNet, 0.2, 0.6 and 100 for FCOS.

        Args:
            score_threshold: scores must exceed it.
            iou_threshold: boxes of one class that overlap more are one detection.
            candidates: number of boxes and classes of each level that are looked at.
            count: number of detections of an image, padding included.
            class_agnostic: boxes of all classes that overlap more are one detection.
        """
        usual = self.detect_defaults
        least = usual[0] if score_threshold is None else score_threshold
        overlap = usual[1] if iou_threshold is None else iou_threshold
        number = usual[2] if count is None else count
        all_scores = [self.scores(level) for level in range(len(self.logits))]

        def one(scores: list[Array], deltas: tuple[Any, ...], anchors: tuple[Any, ...], size: Array) -> Detections:
            found = []
            for judged, codes, around in zip(scores, deltas, anchors, strict=True):
                best, place, labels = best_scores(judged, least, candidates)
                found.append((clip(self.decode(codes[place], around[place]), size), best, labels))
            boxes, scores_, labels_ = (jnp.concatenate(parts) for parts in zip(*found, strict=True))
            return select(boxes, scores_, labels_, overlap, number, class_agnostic=class_agnostic)

        return jax.vmap(one)(all_scores, self.deltas, self.anchors, self.image_sizes)


class DenseDetector(BackboneModel):
    """Base of the detectors that judge every anchor of a feature pyramid at once.

    Attributes:
        pyramid_width: channels of the pyramid and of both heads.
        head_depth: number of convolutions of a head before its last layer.
        first_stage: stage of the backbone from which on its maps are used; 2 is a stride of 8 pixels.
        extra: coarser levels after these, as in `FPN`.
    """

    pyramid_width: int = 256
    head_depth: int = 4
    first_stage: int = 2
    extra: Literal["none", "pool", "p5", "c5"] = "p5"
    predicts: ClassVar[str] = "boxes"

    def pyramid(self, x: Array, train: bool, rows: Array | None) -> tuple[Array, ...]:
        """Return the levels of the pyramid, (b, h, w, pyramid_width) each."""
        maps = self.backbone.features(x, train=train, rows=rows)[self.first_stage - 1 :]
        return FPN(self.pyramid_width, self.backbone.dtype, extra=self.extra, name="fpn")(maps)

    @nn.nowrap
    def anchors(
        self, levels: Sequence[Array], x: Array, cells: Sequence[np.ndarray], image_sizes: Array | None
    ) -> tuple[tuple[Array, ...], Array]:
        """Return the anchors of the levels, and the sizes of the images, which by default fill the canvas."""
        canvas, batch = x.shape[1:3], x.shape[0]
        grids = [grid_anchors(y.shape[1:3], canvas, cell) for y, cell in zip(levels, cells, strict=True)]
        repeated = tuple(jnp.broadcast_to(jnp.asarray(grid), (batch, *grid.shape)) for grid in grids)
        sizes = jnp.array(canvas, jnp.float32) if image_sizes is None else jnp.asarray(image_sizes, jnp.float32)
        return repeated, jnp.broadcast_to(sizes, (batch, 2))


class Tower(nn.Module):
    """3x3 convolutions of one width, each activated, and normalised or with a bias.

    Attributes:
        depth: number of convolutions.
        group_norm: normalise over 32 groups of channels.
        bias: whether convolutions have a bias.
        dtype: dtype of the computation; None is that of the input.
    """

    depth: int
    group_norm: bool
    bias: bool
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, levels: Sequence[Array]) -> list[Array]:
        """Return maps (b, h, w, c) for maps: the same layers for all levels."""
        maps = list(levels)
        for i in range(1, self.depth + 1):
            conv = Conv(maps[0].shape[-1], bias=self.bias, dtype=self.dtype, kernel_init=SMALL, name=f"conv{i}")
            norm = nn.GroupNorm(32, epsilon=1e-5, use_fast_variance=False, dtype=self.dtype, name=f"norm{i}")
            maps = [nn.relu(norm(conv(x)) if self.group_norm else conv(x)) for x in maps]
        return maps


def predictor(features: int, name: str, bias_init: Any = zeros) -> Any:
    """Return a function from maps to float32 predictions (b, pixels, features), made by one 3x3 convolution."""
    layer = Conv(features, bias=True, kernel_init=SMALL, bias_init=bias_init, name=name)

    def predict(x: Array) -> Array:
        y = layer(x.astype(jnp.promote_types(x.dtype, jnp.float32)))
        return y.reshape(y.shape[0], -1, features)

    return predict
