"""The task of a recipe, by the name of its loss."""

from collections.abc import Callable
from functools import partial

import jax

from resnet_jax.recipe import Loss
from resnet_jax.tasks.classification import classification
from resnet_jax.tasks.losses import binary_cross_entropy, cross_entropy
from resnet_jax.tasks.multilabel import multilabel
from resnet_jax.tasks.regression import regression
from resnet_jax.tasks.task import Task


def _softmax(loss: Loss) -> Task:
    return classification(partial(cross_entropy, smoothing=loss.label_smoothing))


def _bce(loss: Loss) -> Task:
    smoothing, threshold = loss.label_smoothing, loss.bce_target_thresh
    bce = partial(binary_cross_entropy, smoothing=smoothing, threshold=threshold, sum_classes=loss.sum_classes)
    return classification(bce, jax.nn.sigmoid)


def _labels(loss: Loss) -> Task:
    return multilabel(partial(binary_cross_entropy, sum_classes=loss.sum_classes))


# One line a loss: the task that minimises it
TASKS: dict[str, Callable[[Loss], Task]] = {
    "cross_entropy": _softmax,
    "bce": _bce,
    "multilabel": _labels,
    "mse": lambda loss: regression(),
}


def make_task(loss: Loss) -> Task:
    """Return the task of a recipe.

    Example:
        >>> make_task(Loss(name="mse")).monitor
        'loss'
    """
    return TASKS[loss.name](loss)
