"""A task is a value: loss, metrics, what to monitor, how outputs become answers, what targets look like.

Nothing outside a task knows which task it is. Axes: b examples, k classes or outputs.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax import Array

from resnet_jax.data.source import Example, Source
from resnet_jax.errors import InputError
from resnet_jax.tasks.metric import Display, Metric, displays

Outputs = Any
Targets = Any
# (b,) to be averaged over the examples; or numerators (b,) and weights (b,), so that the mean is over all weights, as
# for pixels or boxes
Losses = Array | tuple[Array, Array]


class TargetSpec(NamedTuple):
    """The form of a task's targets."""

    check: Callable[[Source], None]
    """Raises InputError if the targets of a source are of another kind."""
    shape: Callable[[int, tuple[int, ...]], Any]
    """Shape of one target, given the number of classes or outputs, and the shape of an image (h, w, c)."""
    dtype: Any
    """Dtype of the targets on the device; of a target that is a tree, a tree of dtypes, as `shape` returns one."""
    to_soft: Callable[[Array, int], Array] | None = None
    """(targets, classes) -> float (b, k) that mixup and CutMix can mix; None if they cannot."""
    fit_example: Callable[..., Any] | None = None
    """(example, classes=, where=) -> its target in the shape of all, such as padded; raises InputError, with `where`,
    if it does not fit. None leaves targets as they are."""
    fill: int | None = None
    """Value of a target (h, w) where padding adds pixels that have none; None refuses such padding."""

    def cast(self, source: Source) -> Source:
        """Return the source with targets that are checked and, if they are arrays, of `dtype`."""
        fit = self.fit_example and partial(self.fit_example, classes=len(source.classes))
        return source._replace(read=partial(_read_cast, source.read, fit, self.dtype))

    def abstract(self, classes: int, image_shape: tuple[int, ...]) -> Any:
        """Return shape and dtype of one target, a tree if it is one."""
        return jax.tree.map(
            lambda dtype, shape: jax.ShapeDtypeStruct(shape, dtype), self.dtype, self.shape(classes, image_shape)
        )


def _read_cast(read: Callable[[int], Example], fit: Callable[..., Any] | None, dtype: Any, index: int) -> Example:
    image, target = read(index)
    if fit is not None:
        target = fit(Example(image, target), where=f"example {index}")
    cast = jax.tree.map(lambda kind, leaf: np.asarray(leaf, kind) if np.ndim(leaf) else leaf, dtype, target)
    return Example(image, cast)


class TaskFacts(NamedTuple):
    """What readers of a run need to know about its task, without the functions."""

    monitor: str
    answers: str
    display: Mapping[str, Display]
    """How each metric value is displayed, by name."""


class Task(NamedTuple):
    """What a network learns: loss, metrics, predictions and the form of the targets."""

    loss: Callable[[Outputs, Targets], Losses]
    """Loss of each example; its mean is minimised."""
    metrics: Mapping[str, Metric]
    """All metrics that the task offers on the evaluation split, by name. "loss" is always reported."""
    default_metrics: tuple[str, ...]
    """Metrics that are reported by default."""
    train_metrics: tuple[str, ...]
    """Metrics that are also measured on the augmented training images."""
    monitor: str
    """Metric value that picks the best checkpoint and that --target-metric compares."""
    mode: Literal["max", "min"]
    """Whether a larger or a smaller monitored value is better."""
    predict: Callable[[Outputs], Any]
    """Outputs to what people are shown: probabilities or numbers, (b, k) or dense (b, h, w, k); or `Detections`."""
    answers: Literal["ranked", "independent", "numbers", "dense", "boxes"]
    """How to read these: probabilities of exclusive classes, of independent labels, plain numbers, probabilities of
    exclusive classes for each pixel, or boxes with classes and scores."""
    targets: TargetSpec

    @property
    def facts(self) -> TaskFacts:
        """What a report needs to know of the task."""
        return TaskFacts(self.monitor, self.answers, displays(self.metrics))

    def better(self, value: float, other: float) -> bool:
        """Return whether one monitored value is better than another."""
        return value > other if self.mode == "max" else value < other

    def reaches(self, value: float, target: float) -> bool:
        """Return whether a monitored value is at least as good as a target."""
        return value == target or self.better(value, target)


def select_metrics(task: Task, names: tuple[str, ...]) -> dict[str, Metric]:
    """Return the metrics that a run reports; raise InputError for a name that the task does not have."""
    for name in names:
        if name not in task.metrics:
            raise InputError(f"unknown metric {name!r}; --metrics takes {', '.join(task.metrics)}")
    # The monitored one is always measured, for it picks the best checkpoint
    monitored = tuple(name for name, metric in task.metrics.items() if task.monitor in metric.display)
    selected = dict.fromkeys(("loss", *monitored, *(names or task.default_metrics)))
    return {name: task.metrics[name] for name in selected}


def monitoring(task: Task, name: str | None) -> Task:
    """Return a task whose best checkpoint is chosen by a value of this name; None leaves it as it is.

    Raises:
        InputError: No metric of the task has such a value.
    """
    known = displays(task.metrics)
    if name is None:
        return task
    if name not in known:
        raise InputError(f"unknown metric {name!r}; --monitor takes {', '.join(known)}")
    return task._replace(monitor=name, mode="min" if known[name].lower_is_better else "max")
