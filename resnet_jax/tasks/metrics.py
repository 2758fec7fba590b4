"""Metrics are sums, divided once: a function to a pytree of sums, and one from the sums to numbers.

Sums are added over microbatches, devices, hosts and batches, so every example counts exactly once whatever the batch
size. Integer leaves stay integers; totals over batches are int64 and float64 on the host.

Axes: b examples, k classes or outputs. A mask (b,) is False on padding.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

Sums = Any
_BINS = 15


class Display(NamedTuple):
    """How a metric value is shown to people."""

    percent: bool = False
    """A fraction, shown in percent."""
    complement: str = ""
    """Name of 1 - value, which curves show instead: the error of an accuracy. Empty if there is none."""
    digits: int = 4
    """Digits after the point, of values that are not shown in percent."""
    shown: bool = True
    """Whether tables have a column for it; a count stands beside another value."""


class Metric(NamedTuple):
    """A pair of pure functions, and how the values are shown."""

    measure: Callable[[Any, Any, Array], Sums]
    """(outputs, targets, mask (b,)) -> pytree of sums, on the device."""
    compute: Callable[[Sums], Mapping[str, float]]
    """Totals, as NumPy arrays, to values by name; called once."""
    display: Mapping[str, Display]
    """How each of the values is shown."""


def add(total: Sums, new: Sums) -> Sums:
    """Add sums of a batch to totals, in int64 and float64; None, for a total that is not known, stays None.

    Example:
        >>> total = add(empty({"n": np.int32(0)}), {"n": np.int32(2**31 - 1)})
        >>> int(add(total, {"n": np.int32(5)})["n"])
        2147483652
    """
    if total is None:
        return None
    return jax.tree.map(lambda a, b: a + np.asarray(b, a.dtype), total, new)


def empty(like: Sums) -> Sums:
    """Return totals of zero for sums, or their shapes and dtypes, `like` these: int64 or float64."""
    kinds = {"i": np.int64, "u": np.int64, "b": np.int64, "f": np.float64}
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, kinds[np.dtype(leaf.dtype).kind]), like)


def _count(hits: Array, mask: Array) -> Array:
    return (hits & mask).sum(dtype=jnp.int32)


def _hard(targets: Array) -> Array:
    """Return classes (b,) of classes (b,) or of soft targets (b, k), of which the largest counts."""
    return targets if targets.ndim == 1 else jnp.argmax(targets, -1)


# Classification


def top_k(k: int, outputs: Array, targets: Array, mask: Array) -> Sums:
    """Count the examples whose class is among the k largest of outputs (b, classes)."""
    if k == 1:
        hits = jnp.argmax(outputs, -1) == _hard(targets)
    else:
        largest = jax.lax.top_k(outputs, min(k, outputs.shape[-1]))[1]
        hits = (largest == _hard(targets)[:, None]).any(-1)
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
    confidence = probs.max(-1)
    place = jnp.clip(jnp.ceil(confidence * _BINS).astype(jnp.int32) - 1, 0, _BINS - 1)
    hits = mask & (jnp.argmax(outputs, -1) == _hard(targets))
    zeros = jnp.zeros(_BINS, jnp.int32)
    return {
        "confidence": jnp.zeros(_BINS, confidence.dtype).at[place].add(jnp.where(mask, confidence, 0)),
        "hits": zeros.at[place].add(hits.astype(jnp.int32)),
        "examples": zeros.at[place].add(mask.astype(jnp.int32)),
    }


def expected_calibration_error(sums: Sums) -> dict[str, float]:
    """Return the mean gap between confidence and accuracy, weighted by the examples in each bin."""
    gaps = np.abs(np.asarray(sums["confidence"], np.float64) - np.asarray(sums["hits"], np.float64))
    return {"calibration_error": float(gaps.sum() / max(int(sums["examples"].sum()), 1))}


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
    return Metric(partial(summed_losses, loss), mean_loss, {"loss": Display()})


_ERROR = Display(percent=True, complement="error")

# One line a metric. To add one: a function to sums, a function to values, a line here, and its name in a task.
METRICS: dict[str, Metric] = {
    "accuracy": Metric(partial(top_k, 1), accuracy_and_errors, {"accuracy": _ERROR, "errors": Display(shown=False)}),
    "top5": Metric(
        partial(top_k, 5), partial(accuracy_of, "top5"), {"top5": Display(percent=True, complement="top-5 error")}
    ),
    "class_accuracy": Metric(class_counts, mean_class_accuracy, {"class_accuracy": Display(percent=True)}),
    "macro_f1": Metric(class_counts, macro_f1, {"macro_f1": Display()}),
    "calibration_error": Metric(calibration_bins, expected_calibration_error, {"calibration_error": Display()}),
    "exact_match": Metric(exact_match, accuracy_and_errors, {"accuracy": _ERROR, "errors": Display(shown=False)}),
    "mae": Metric(absolute_errors, mean_absolute_error, {"mae": Display()}),
    "r2": Metric(squared_errors, r2, {"r2": Display()}),
}

_DISPLAY = {"count": Display(shown=False)} | {k: how for m in METRICS.values() for k, how in m.display.items()}


def display_of(value: str) -> Display:
    """Return how a metric value is shown, by its name; plainly if the name is not known.

    Example:
        >>> display_of("accuracy").complement
        'error'
    """
    return _DISPLAY.get(value, Display())


def format_value(name: str, value: float | None) -> str:
    """Return a metric value for people.

    Example:
        >>> format_value("accuracy", 0.9333), format_value("loss", 0.25)
        ('93.33%', '0.2500')
    """
    if value is None:
        return "-"
    how = display_of(name)
    return f"{value:.2%}" if how.percent else f"{value:.{how.digits}f}"


def measure_all(metrics: Mapping[str, Metric], outputs: Any, targets: Any, mask: Array) -> dict[str, Sums]:
    """Return the sums of several metrics, by name, and the number of examples as "count"."""
    sums: dict[str, Sums] = {name: metric.measure(outputs, targets, mask) for name, metric in metrics.items()}
    return {"count": mask.sum(dtype=jnp.int32), **sums}


def compute_all(metrics: Mapping[str, Metric], totals: Mapping[str, Sums]) -> dict[str, float | None]:
    """Return the values of several metrics; None for those whose totals are not known."""
    values: dict[str, float | None] = {}
    for name, metric in metrics.items():
        total = totals.get(name)
        values |= dict.fromkeys(metric.display) if total is None else metric.compute(total)
    return values


def select(metrics: Mapping[str, Metric], names: Iterable[str]) -> dict[str, Metric]:
    """Return the metrics of these names, with "loss" first."""
    return {name: metrics[name] for name in dict.fromkeys(("loss", *names))}
