"""Object detection: boxes and their classes.

The loss is the network's own: its outputs have `losses(targets)` -> numerators and weights (b,), and `detect()` ->
`Detections`. Targets are `Objects`, padded on the host to a fixed number.

Average precision is no sum: it is computed on the host from the detections and targets of all examples of a split,
sorted by the index of their image, so that it depends on neither batches nor devices (`resnet_jax.tasks.coco`). What is
summed on the devices is the loss alone.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from jax import Array

from resnet_jax.data.source import Example, Source
from resnet_jax.errors import InputError
from resnet_jax.models.detection.nms import Detections
from resnet_jax.models.detection.objects import Objects, pad_objects
from resnet_jax.tasks.coco import require_coco
from resnet_jax.tasks.metrics import METRICS, loss_metric
from resnet_jax.tasks.task import TargetSpec, Task


def detection(max_objects: int = 100) -> Task:
    """Return the task of finding objects, for networks such as `retinanet_resnet18_fpn`.

    Args:
        max_objects: number to which the objects of each image are padded; an image with more is refused.

    Example:
        >>> detection(max_objects=20).targets.abstract(3, (240, 320, 3)).boxes.shape
        (20, 4)
    """
    shapes = Objects((max_objects, 4), (max_objects,), (max_objects,), (max_objects,), ())
    return Task(
        loss=_losses,
        metrics={"loss": loss_metric(_losses), **{name: METRICS[name] for name in ("ap", "coco", "class_ap")}},
        default_metrics=("ap",),
        train_metrics=(),
        monitor="ap",
        mode="max",
        predict=_detect,
        answers="boxes",
        targets=TargetSpec(
            _require_objects,
            lambda classes, image_shape: shapes,
            Objects(np.float32, np.int32, np.bool_, np.float32, np.float32),
            fit_example=partial(_padded, max_objects),
        ),
    )


def with_classes(source: Source, classes: tuple[str, ...]) -> Source:
    """Return a source of objects with these classes, if they include its own; any other source as it is.

    So a network for all 91 numbers of COCO is evaluated on data with the 80 classes that have objects.

    Example:
        >>> from resnet_jax.models.detection.objects import make_objects
        >>> cats = Source(1, ("cat",), lambda _: Example(np.zeros((8, 8, 3)), make_objects([[0, 0, 4, 4]], [0])))
        >>> with_classes(cats, ("ant", "bee", "cat")).read(0).target.labels.tolist()
        [2]
    """
    if not set(source.classes) < set(classes) or not isinstance(source.read(0).target, Objects):
        return source
    numbers = np.array([classes.index(name) for name in source.classes], np.int32)
    return source._replace(classes=classes, read=partial(_renumbered, source.read, numbers))


def _renumbered(read: Callable[[int], Example], numbers: np.ndarray, index: int) -> Example:
    image, objects = read(index)
    return Example(image, objects._replace(labels=numbers[objects.labels]))


def _losses(outputs: Any, targets: Objects) -> tuple[Array, Array]:
    losses: tuple[Array, Array] = outputs.losses(targets)
    return losses


def _detect(outputs: Any) -> Detections:
    found: Detections = outputs.detect()
    return found


def _require_objects(source: Source) -> None:
    # Before anything is trained, whose evaluation would fail
    require_coco()
    if not isinstance(source.read(0).target, Objects):
        raise InputError(
            "the task is detection; the targets are no boxes: give data with boxes, such as coco:PATH, or set loss.name"
            " to another task"
        )


def _padded(max_objects: int, example: Example, classes: int, where: str) -> Objects:
    objects: Objects = example.target
    if len(objects.labels) > max_objects:
        raise InputError(
            f"{where}: {len(objects.labels)} objects, and loss.max_objects is {max_objects}: raise it, or leave the"
            " image out"
        )
    wrong = np.flatnonzero((objects.labels < 0) | (objects.labels >= classes))
    if wrong.size:
        raise InputError(f"{where}: label {objects.labels[wrong[0]]} of object {wrong[0]}, expected 0 to {classes - 1}")
    return pad_objects(objects, max_objects)
