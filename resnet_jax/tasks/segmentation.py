"""Semantic segmentation: a class for each pixel, or each position of a sequence or a video."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import Array

from resnet_jax.data.masks import IGNORE, require_mask
from resnet_jax.data.source import Example, Source
from resnet_jax.errors import InputError
from resnet_jax.tasks.losses import main_output, pixel_cross_entropy, with_auxiliary
from resnet_jax.tasks.metrics import METRICS, loss_metric
from resnet_jax.tasks.task import TargetSpec, Task


def segmentation(loss: Callable[[Array, Array], tuple[Array, Array]] = pixel_cross_entropy) -> Task:
    """Return the task of predicting a class for each pixel.

    Pixels with value 255 in a mask are unlabelled and ignored. A network returns logits (b, h, w, k) at the resolution
    of its input, or {"out": logits, "aux": logits} if it has an auxiliary head, whose loss counts half.

    Args:
        loss: (logits (b, h, w, k), masks uint8 (b, h, w)) -> numerators and weights, (b,) each. The reported loss is
            the plain cross-entropy of the main head, so that runs with different losses can be compared.

    Example:
        >>> segmentation().monitor
        'miou'
    """
    names = ("miou", "pixel_accuracy", "class_iou")
    return Task(
        loss=with_auxiliary(loss),
        metrics={"loss": loss_metric(_main_loss), **{name: METRICS[name] for name in names}},
        default_metrics=("miou", "pixel_accuracy"),
        train_metrics=("pixel_accuracy",),
        monitor="miou",
        mode="max",
        predict=lambda outputs: jax.nn.softmax(main_output(outputs)),
        answers="dense",
        targets=TargetSpec(
            _require_masks, lambda classes, shape: shape[:-1], np.uint8, fit_example=_fit_mask, fill=IGNORE
        ),
    )


def _main_loss(outputs: Any, masks: Array) -> tuple[Array, Array]:
    return pixel_cross_entropy(main_output(outputs), masks)


def _require_masks(source: Source) -> None:
    image, target = source.read(0)
    if np.ndim(target) != image.ndim - 1:
        raise InputError(
            f"the task is segmentation; the targets are of shape {np.shape(target)}, not a class for each pixel: give"
            " data with masks, or set loss.name to cross_entropy"
        )


def _fit_mask(example: Example, classes: int, where: str) -> np.ndarray:
    mask = np.asarray(example.target)
    require_mask(mask, example.image.shape[:-1], classes, where)
    return mask
