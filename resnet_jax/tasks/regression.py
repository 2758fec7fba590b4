"""Regression: several numbers per image."""

from collections.abc import Callable

import numpy as np
from jax import Array

from resnet_jax.data.source import Source
from resnet_jax.errors import InputError
from resnet_jax.tasks.losses import mse
from resnet_jax.tasks.metrics import METRICS, loss_metric
from resnet_jax.tasks.task import TargetSpec, Task


def regression(loss: Callable[[Array, Array], Array] = mse) -> Task:
    """Return the task of predicting numbers.

    Example:
        >>> regression().monitor, regression().mode
        ('loss', 'min')
    """
    return Task(
        loss=loss,
        metrics={"loss": loss_metric(mse), "mae": METRICS["mae"], "r2": METRICS["r2"]},
        default_metrics=("mae",),
        train_metrics=(),
        monitor="loss",
        mode="min",
        predict=lambda outputs: outputs,
        answers="numbers",
        targets=TargetSpec(
            lambda source: require_numbers("regression", source),
            lambda outputs, shape: (outputs,),
            np.float32,
            lambda targets, _: targets,
        ),
    )


def require_numbers(task: str, source: Source) -> None:
    """Raise InputError if the targets of a source are classes."""
    if not np.ndim(source.read(0).target):
        raise InputError(
            f"the task is {task}; the targets are classes, one per image: set loss.name to cross_entropy or bce, or"
            " give targets (n, k) of floats"
        )
