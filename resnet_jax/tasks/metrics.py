"""The metrics: for each a function to sums, one from the sums to values, and a line in `METRICS`.

Axes: b examples, k classes or outputs. A mask (b,) is False on padding.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from resnet_jax.tasks import coco
from resnet_jax.tasks.losses import main_output
from resnet_jax.tasks.metric import Display, Metric, Sums, displays

# Equal bins of confidence, from 0 to 1
CALIBRATION_BINS = 15


def _count(hits: Array, mask: Array) -> Array:
    return (hits & mask).sum(dtype=jnp.int32)


def _hard(targets: Array) -> Array:
    """Return classes (b,) of classes (b,) or of soft targets (b, k), of which the largest counts."""
    return targets if targets.ndim == 1 else jnp.argmax(targets, -1)


# Classification


def top_k(k: int, outputs: Array, targets: Array, mask: Array) -> Sums:
    """Count the examples whose class is among the k largest of outputs (b, classes).

    Of soft targets (b, classes) that share the largest value, each is right.
    """
    several = min(k, outputs.shape[-1])
    largest = jnp.argmax(outputs, -1)[:, None] if k == 1 else jax.lax.top_k(outputs, several)[1]
    if targets.ndim == 1:
        hits = (largest == targets[:, None]).any(-1)
    else:
        hits = (jnp.take_along_axis(targets, largest, -1) == targets.max(-1, keepdims=True)).any(-1)
    return {"correct": _count(hits, mask), "count": mask.sum(dtype=jnp.int32)}


def accuracy_of(name: str, sums: Sums) -> dict[str, float]:
    """Return correct / count under a name."""
    return {name: int(sums["correct"]) / max(int(sums["count"]), 1)}


def accuracy_and_errors(sums: Sums) -> dict[str, float]:
    """Return the accuracy and the number of errors."""
    return {**accuracy_of("accuracy", sums), "errors": int(sums["count"]) - int(sums["correct"])}


def class_counts(outputs: Array, targets: Array, mask: Array) -> Sums:
    """Count hits, predictions and examples of each class, (k,) each."""
    classes = outputs.shape[-1]
    predicted, target = jnp.argmax(outputs, -1), _hard(targets)

    def count(labels: Array, which: Array) -> Array:
        return jnp.zeros(classes, jnp.int32).at[labels].add(which.astype(jnp.int32))

    return {
        "hits": count(target, mask & (predicted == target)),
        "predictions": count(predicted, mask),
        "examples": count(target, mask),
    }


def mean_class_accuracy(sums: Sums) -> dict[str, float]:
    """Return the mean over the classes of their accuracies; classes without examples do not count."""
    hits, examples = (np.asarray(sums[name], np.float64) for name in ("hits", "examples"))
    seen = examples > 0
    return {"class_accuracy": float((hits[seen] / examples[seen]).mean()) if seen.any() else 0.0}


def macro_f1(sums: Sums) -> dict[str, float]:
    """Return the mean over the classes of F1 = 2 hits / (predictions + examples).

    A class that has neither examples nor predictions does not count, as in scikit-learn's f1_score(average="macro").
    """
    hits, both = np.asarray(sums["hits"], np.float64), np.asarray(sums["predictions"] + sums["examples"], np.float64)
    seen = both > 0
    return {"macro_f1": float((2 * hits[seen] / both[seen]).mean()) if seen.any() else 0.0}


def calibration_bins(outputs: Array, targets: Array, mask: Array) -> Sums:
    """Sum confidence, hits and examples in 15 equal bins of the confidence, (15,) each.

    Reference:
        Guo et al. 2017, "On calibration of modern neural networks", section 2; bins (0, 1/15], (1/15, 2/15], ...
    """
    probs = jax.nn.softmax(outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32)))
    return bin_confidence(probs.max(-1), jnp.argmax(outputs, -1) == _hard(targets), mask)


def bin_confidence(confidence: Array, hits: Array, mask: Array) -> Sums:
    """Return the sums of `calibration_bins` from the confidence, float (b,), of predictions and whether they hit."""
    place = jnp.clip(jnp.ceil(confidence * CALIBRATION_BINS).astype(jnp.int32) - 1, 0, CALIBRATION_BINS - 1)
    zeros = jnp.zeros(CALIBRATION_BINS, jnp.int32)
    return {
        "confidence": jnp.zeros(CALIBRATION_BINS, confidence.dtype).at[place].add(jnp.where(mask, confidence, 0)),
        "hits": zeros.at[place].add((hits & mask).astype(jnp.int32)),
        "examples": zeros.at[place].add(mask.astype(jnp.int32)),
    }


def class_recalls(sums: Sums) -> dict[str, np.ndarray]:
    """Return the accuracy of each class (k,), NaN for those without examples."""
    hits, examples = (np.asarray(sums[name], np.float64) for name in ("hits", "examples"))
    return {"recall": np.divide(hits, examples, out=np.full(len(hits), np.nan), where=examples > 0)}


def expected_calibration_error(sums: Sums) -> dict[str, float]:
    """Return the mean gap between confidence and accuracy, weighted by the examples in each bin."""
    gaps = np.abs(np.asarray(sums["confidence"], np.float64) - np.asarray(sums["hits"], np.float64))
    return {"calibration_error": float(gaps.sum() / max(int(sums["examples"].sum()), 1))}


# Segmentation


def confusion(outputs: Any, masks: Array, mask: Array) -> Sums:
    """Count the labelled pixels by true and predicted class: (k, k) int32, rows true.

    Args:
        outputs: logits (b, spatial..., k), or {"out": logits} and an auxiliary head.
        masks: classes (b, spatial...); pixels over k - 1 are not labelled.
        mask: (b,), False on padding.

    Example:
        >>> masks = jnp.array([[[0, 1, 255]]], jnp.uint8)
        >>> confusion(jnp.zeros((1, 1, 3, 2)), masks, jnp.array([True])).tolist()
        [[1, 0], [1, 0]]
    """
    logits = main_output(outputs)
    classes = logits.shape[-1]
    counted = (masks < classes) & _per_pixel(mask, masks)
    # What does not count goes to a place of its own
    place = jnp.where(counted, masks.astype(jnp.int32) * classes + jnp.argmax(logits, -1), classes**2)
    return jnp.zeros(classes**2 + 1, jnp.int32).at[place.ravel()].add(1)[:-1].reshape(classes, classes)


def _per_pixel(mask: Array, masks: Array) -> Array:
    return mask.reshape(-1, *(1,) * (masks.ndim - 1))


def class_iou(matrix: np.ndarray) -> np.ndarray:
    """Return the intersection over union of each class (k,) of a confusion matrix (k, k); NaN if it is in no pixel.

    Example:
        >>> class_iou(np.array([[3, 1], [0, 4]])).tolist()
        [0.75, 0.8]
    """
    hits = np.diag(matrix).astype(np.float64)
    union = matrix.sum(0) + matrix.sum(1) - hits
    return np.divide(hits, union, out=np.full(len(hits), np.nan), where=union > 0)


def mean_iou(matrix: np.ndarray) -> dict[str, float]:
    """Return the mean over the classes of their intersections over unions; classes that are in no pixel do not count.

    Reference:
        Everingham et al. 2015, "The Pascal visual object classes challenge: a retrospective", section 2.1.3
    """
    found = class_iou(matrix)
    return {"miou": float(np.nanmean(found)) if np.isfinite(found).any() else 0.0}


def pixel_hits(outputs: Any, masks: Array, mask: Array) -> Sums:
    """Count the labelled pixels of masks (b, spatial...) whose class is the largest of outputs (b, spatial..., k)."""
    logits = main_output(outputs)
    counted = (masks < logits.shape[-1]) & _per_pixel(mask, masks)
    hits = counted & (jnp.argmax(logits, -1) == masks)
    return {"correct": hits.sum(dtype=jnp.int32), "count": counted.sum(dtype=jnp.int32)}


# Several labels


def exact_match(outputs: Array, targets: Array, mask: Array) -> Sums:
    """Count the examples whose labels are all on the right side of probability 0.5."""
    hits = ((outputs > 0) == (targets > 0.5)).all(-1)
    return {"correct": _count(hits, mask), "count": mask.sum(dtype=jnp.int32)}


# Regression


def squared_errors(outputs: Array, targets: Array, mask: Array) -> Sums:
    """Sum what R2 needs, (k,) each: squared errors, targets and their squares, about each output's own scale."""
    wide = outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))
    inside = mask[:, None]
    return {
        "squared_errors": jnp.where(inside, jnp.square(wide - targets), 0).sum(0),
        "targets": jnp.where(inside, targets, 0).sum(0),
        "squares": jnp.where(inside, jnp.square(targets), 0).sum(0),
        "count": mask.sum(dtype=jnp.int32),
    }


def r2(sums: Sums) -> dict[str, float]:
    """Return the coefficient of determination, averaged over the outputs as scikit-learn's r2_score does."""
    count = max(int(sums["count"]), 1)
    residual, total, squares = (np.asarray(sums[n], np.float64) for n in ("squared_errors", "targets", "squares"))
    spread = squares - np.square(total) / count
    constant = spread <= 0
    scores = np.where(constant, np.where(residual > 0, 0.0, 1.0), 1 - residual / np.where(constant, 1.0, spread))
    return {"r2": float(scores.mean())}


def absolute_errors(outputs: Array, targets: Array, mask: Array) -> Sums:
    """Sum the absolute errors over examples and outputs."""
    wide = outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))
    errors = jnp.abs(wide - targets).mean(-1)
    return {"errors": jnp.where(mask, errors, 0).sum(), "count": mask.sum(dtype=jnp.int32)}


def mean_absolute_error(sums: Sums) -> dict[str, float]:
    """Return the mean absolute error over examples and outputs."""
    return {"mae": float(sums["errors"]) / max(int(sums["count"]), 1)}


# Loss


def summed_losses(loss: Callable[[Any, Any], Any], outputs: Any, targets: Any, mask: Array) -> Sums:
    """Sum the losses of the examples, and their weights, which are 1 unless the loss returns weights."""
    losses = loss(outputs, targets)
    numerators, weights = losses if isinstance(losses, tuple) else (losses, mask.astype(jnp.int32))
    return {"loss": jnp.where(mask, numerators, 0).sum(), "weight": jnp.where(mask, weights, 0).sum()}


def mean_loss(sums: Sums) -> dict[str, float]:
    """Return the mean loss."""
    return {"loss": float(sums["loss"]) / max(float(sums["weight"]), np.finfo(np.float64).tiny)}


def loss_metric(loss: Callable[[Any, Any], Any]) -> Metric:
    """Return the metric "loss" of a loss function."""
    return Metric(partial(summed_losses, loss), mean_loss, {"loss": Display(lower_is_better=True)})


_COUNT = Display(lower_is_better=True, shown=False)
_ERROR = Display(percent=True, complement="error")
_PERCENT = Display(percent=True)

# One line per metric. To add one: a function to sums, a function to values, a line here, and its name in a task.
METRICS: dict[str, Metric] = {
    "accuracy": Metric(partial(top_k, 1), accuracy_and_errors, {"accuracy": _ERROR, "errors": _COUNT}),
    "top5": Metric(
        partial(top_k, 5), partial(accuracy_of, "top5"), {"top5": Display(percent=True, complement="top-5 error")}
    ),
    "class_accuracy": Metric(class_counts, mean_class_accuracy, {"class_accuracy": _PERCENT}),
    "recall": Metric(class_counts, class_recalls, {"recall": Display(percent=True)}),
    "macro_f1": Metric(class_counts, macro_f1, {"macro_f1": Display()}),
    "calibration_error": Metric(
        calibration_bins, expected_calibration_error, {"calibration_error": Display(lower_is_better=True)}
    ),
    "miou": Metric(confusion, mean_iou, {"miou": _PERCENT}),
    "pixel_accuracy": Metric(pixel_hits, partial(accuracy_of, "pixel_accuracy"), {"pixel_accuracy": _PERCENT}),
    "class_iou": Metric(confusion, lambda matrix: {"class_iou": class_iou(matrix)}, {"class_iou": _PERCENT}),
    "ap": Metric(coco.keep_boxes, coco.average_precision, dict.fromkeys(coco.NAMES[:3], _PERCENT), per_example=True),
    "coco": Metric(coco.keep_boxes, coco.coco_numbers, dict.fromkeys(coco.NAMES, _PERCENT), per_example=True),
    "class_ap": Metric(coco.keep_boxes, coco.class_precision, {"class_ap": _PERCENT}, per_example=True),
    "exact_match": Metric(exact_match, accuracy_and_errors, {"accuracy": _ERROR, "errors": _COUNT}),
    "mae": Metric(absolute_errors, mean_absolute_error, {"mae": Display(lower_is_better=True)}),
    "r2": Metric(squared_errors, r2, {"r2": Display()}),
}


_DISPLAY = {"count": Display(shown=False)} | displays(METRICS)


def display_of(value: str, known: Mapping[str, Display] = MappingProxyType({})) -> Display:
    """Return how a metric value is shown, by its name such as "class_iou.car": by the task, `METRICS`, or plainly.

    Args:
        value: name of the value.
        known: how the values of a task are shown.

    Example:
        >>> display_of("accuracy").complement
        'error'
    """
    family = value.partition(".")[0]
    return known.get(value) or known.get(family) or _DISPLAY.get(family, Display())


def format_value(name: str, value: float | None, known: Mapping[str, Display] = MappingProxyType({})) -> str:
    """Return a metric value for people, shown as `display_of` says.

    Example:
        >>> format_value("accuracy", 0.9333), format_value("loss", 0.25)
        ('93.33%', '0.2500')
    """
    if value is None:
        return "-"
    how = display_of(name, known)
    return f"{value:.2%}" if how.percent else f"{value:.{how.digits}f}"
