"""Several labels per image, each present or not."""

from collections.abc import Callable

import jax
import numpy as np
from jax import Array

from resnet_jax.data.source import Source
from resnet_jax.errors import InputError
from resnet_jax.tasks.losses import binary_cross_entropy
from resnet_jax.tasks.metrics import METRICS, loss_metric
from resnet_jax.tasks.regression import require_numbers
from resnet_jax.tasks.task import TargetSpec, Task


def multilabel(loss: Callable[[Array, Array], Array] = binary_cross_entropy) -> Task:
    """Return the task of predicting several labels per image.

    "accuracy" is the fraction of images with all labels correct.

    Example:
        >>> multilabel().answers
        'independent'
    """
    return Task(
        loss=loss,
        metrics={"loss": loss_metric(binary_cross_entropy), "accuracy": METRICS["exact_match"]},
        default_metrics=("accuracy",),
        train_metrics=("accuracy",),
        monitor="accuracy",
        mode="max",
        predict=jax.nn.sigmoid,
        answers="independent",
        targets=TargetSpec(_require_labels, lambda classes, shape: (classes,), np.float32, lambda targets, _: targets),
    )


def _require_labels(source: Source) -> None:
    require_numbers("several labels per image", source)
    labels = source.labels
    if labels is None:
        return
    wrong = labels[(labels < 0) | (labels > 1)]
    if wrong.size:
        raise InputError(f"the task is several labels per image; a label is {wrong.flat[0]:g}, expected 0 or 1")
