"""The task of a recipe, by the name of its loss."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax

from resnet_jax.models.zoo import MODELS
from resnet_jax.recipe import Loss
from resnet_jax.tasks.classification import classification
from resnet_jax.tasks.detection import detection
from resnet_jax.tasks.losses import (
    binary_cross_entropy,
    cross_entropy,
    dice,
    pixel_cross_entropy,
    weighted_cross_entropy,
)
from resnet_jax.tasks.multilabel import multilabel
from resnet_jax.tasks.regression import regression
from resnet_jax.tasks.segmentation import segmentation
from resnet_jax.tasks.task import Task


def _balance(loss: Loss) -> dict[str, Any]:
    return {"class_weights": loss.class_weights, "focal_gamma": loss.focal_gamma}


def _softmax(loss: Loss) -> Task:
    if loss.class_weights or loss.focal_gamma:
        return classification(partial(weighted_cross_entropy, smoothing=loss.label_smoothing, **_balance(loss)))
    return classification(partial(cross_entropy, smoothing=loss.label_smoothing))


def _bce(loss: Loss) -> Task:
    smoothing, threshold = loss.label_smoothing, loss.bce_target_thresh
    bce = partial(binary_cross_entropy, smoothing=smoothing, threshold=threshold, sum_classes=loss.sum_classes)
    return classification(partial(bce, **_balance(loss)), jax.nn.sigmoid)


def _labels(loss: Loss) -> Task:
    weights: Any = loss.pos_weight
    return multilabel(partial(binary_cross_entropy, sum_classes=loss.sum_classes, pos_weight=weights, **_balance(loss)))


def _pixels(loss: Loss) -> Task:
    return segmentation(partial(pixel_cross_entropy, smoothing=loss.label_smoothing, **_balance(loss)))


# One line a loss: the task that minimises it
TASKS: dict[str, Callable[[Loss], Task]] = {
    "cross_entropy": _softmax,
    "bce": _bce,
    "multilabel": _labels,
    "mse": lambda loss: regression(),
    "pixel_cross_entropy": _pixels,
    "dice": lambda loss: segmentation(dice),
    "detection": lambda loss: detection(loss.max_objects),
}


def with_auto_weights(loss: Loss, counts: Sequence[int], size: int, classes: int) -> Loss:
    """Return a loss with numbers for the weights that are "auto".

    Args:
        loss: that of a recipe.
        counts: (k,) training images, or pixels, of each class or with each label; () if they are not known, as where a
            run is only sized: all weights are then 1.
        size: number of training images.
        classes: k.

    Example:
        >>> with_auto_weights(Loss(class_weights="auto"), (30, 10), 40, 2).class_weights
        (0.6666666666666666, 2.0)
    """
    found: dict[str, Any] = {"class_weights": [sum(counts) / (classes * max(count, 1)) for count in counts]}
    found["pos_weight"] = [(size - count) / max(count, 1) for count in counts]
    asked: dict[str, Any] = {
        name: tuple(found[name]) or (1.0,) * classes for name in found if getattr(loss, name) == "auto"
    }
    return replace(loss, **asked)


def make_task(loss: Loss) -> Task:
    """Return the task of a recipe.

    Example:
        >>> make_task(Loss(name="mse")).monitor
        'loss'
    """
    return TASKS[loss.name](loss)


def published_loss(network: str) -> Loss:
    """Return the loss with which a published network is trained, by what it predicts.

    Example:
        >>> published_loss("unet_resnet18").name, published_loss("resnet18").name
        ('pixel_cross_entropy', 'cross_entropy')
    """
    names = {"pixels": "pixel_cross_entropy", "boxes": "detection"}
    return Loss(name=names.get(getattr(MODELS[network], "predicts", ""), "cross_entropy"))  # type: ignore[arg-type]
