"""A task is a value: loss, metrics, what to monitor, how outputs become answers, what targets look like.

Nothing outside a task knows which task it is. Axes: b examples, k classes or outputs.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
from jax import Array

from resnet_jax.data.source import Example, Source
from resnet_jax.tasks.metrics import Metric

Outputs = Any
Targets = Any
# (b,) to be averaged over the examples; or numerators (b,) and weights (b,), so that the mean is over all weights, as
# for pixels or boxes
Losses = Array | tuple[Array, Array]


class TargetSpec(NamedTuple):
    """What the targets of a task look like."""

    check: Callable[[Source], None]
    """Raises InputError if the targets of a source are of another kind."""
    shape: Callable[[int], tuple[int, ...]]
    """Shape of one target, given the number of classes or outputs."""
    dtype: type[np.generic]
    """Dtype of the targets on the device."""
    to_soft: Callable[[Array, int], Array] | None = None
    """(targets, classes) -> float (b, k) that mixup and CutMix can mix; None if they cannot."""

    def cast(self, source: Source) -> Source:
        """Return the source with targets of `dtype` if they are arrays; classes stay integers."""
        return source._replace(read=partial(_read_cast, source.read, self.dtype))


def _read_cast(read: Callable[[int], Example], dtype: type[np.generic], index: int) -> Example:
    image, target = read(index)
    return Example(image, np.asarray(target, dtype) if np.ndim(target) else target)


class Task(NamedTuple):
    """What a network learns, as a value."""

    loss: Callable[[Outputs, Targets], Losses]
    """Loss of each example; its mean is minimised."""
    metrics: Mapping[str, Metric]
    """All metrics that the task offers on the evaluation split, by name. "loss" is always reported."""
    default_metrics: tuple[str, ...]
    """Metrics that are reported unless a run asks for others."""
    train_metrics: tuple[str, ...]
    """Metrics that are also measured on the augmented training images."""
    monitor: str
    """Metric value that picks the best checkpoint and that --target-metric compares."""
    mode: Literal["max", "min"]
    """Whether a larger or a smaller monitored value is better."""
    predict: Callable[[Outputs], Array]
    """Outputs to what people are shown, (b, k): probabilities or numbers."""
    answers: Literal["ranked", "independent", "numbers"]
    """How to read these: probabilities of exclusive classes, of independent labels, or plain numbers."""
    targets: TargetSpec

    def better(self, value: float, other: float) -> bool:
        """Return whether one monitored value is better than another."""
        return value > other if self.mode == "max" else value < other

    def reaches(self, value: float, target: float) -> bool:
        """Return whether a monitored value is at least as good as a target."""
        return value == target or self.better(value, target)
