"""Classification: one class per image, or soft targets over the classes."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from resnet_jax.data.source import Source
from resnet_jax.errors import InputError
from resnet_jax.tasks.losses import cross_entropy
from resnet_jax.tasks.metrics import METRICS, loss_metric
from resnet_jax.tasks.task import Losses, TargetSpec, Task


def classification(
    loss: Callable[[Array, Array], Losses] = cross_entropy, predict: Callable[[Array], Array] = jax.nn.softmax
) -> Task:
    """Return the task of predicting one class per image.

    Args:
        loss: (logits (b, k), classes (b,) or soft targets (b, k)) -> (b,), or numerators and weights. The reported
            loss is always the plain cross-entropy, so that runs with different losses can be compared.
        predict: logits to probabilities.

    Example:
        >>> classification().monitor
        'accuracy'
    """
    names = ("accuracy", "top5", "class_accuracy", "recall", "macro_f1", "calibration_error")
    return Task(
        loss=loss,
        metrics={"loss": loss_metric(cross_entropy), **{name: METRICS[name] for name in names}},
        default_metrics=("accuracy",),
        train_metrics=("accuracy",),
        monitor="accuracy",
        mode="max",
        predict=predict,
        answers="ranked",
        targets=TargetSpec(_require_classes, lambda classes, shape: (), np.int32, _one_hot),
    )


def _require_classes(source: Source) -> None:
    target = source.read(0).target
    if np.ndim(target):
        raise InputError(
            f"the task is classification; the targets are {np.size(target)} numbers each: give classes as integers, or"
            " set loss.name to multilabel or mse"
        )


def _one_hot(targets: Array, classes: int) -> Array:
    """Return classes (b,) as float (b, k): float64 if JAX's 64 bits are enabled."""
    return jax.nn.one_hot(targets, classes, dtype=float) if targets.ndim == 1 else jnp.asarray(targets)
