"""A metric: a function to a pytree of sums, and one from the sums to numbers, divided once.

Sums are added over microbatches, devices, hosts and batches, so every example counts exactly once whatever the batch
size. Integer leaves stay integers; totals over batches are int64 and float64 on the host. A metric that is no sum, such
as average precision, keeps something of each example instead, of which the host has all in the end.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

Sums = Any


class Display(NamedTuple):
    """How a metric value is shown to people."""

    percent: bool = False
    """A fraction, shown in percent."""
    complement: str = ""
    """Name of 1 - value, which curves show instead: the error of an accuracy. Empty if there is none."""
    digits: int = 4
    """Digits after the point, of values that are not shown in percent."""
    lower_is_better: bool = False
    """Whether a smaller value is the better one."""
    shown: bool = True
    """Whether tables have a column for it; a count stands beside another value."""


class Metric(NamedTuple):
    """A metric: a function to sums, one from the totals to values, and how to display the values."""

    measure: Callable[[Any, Any, Array], Sums]
    """(outputs, targets, mask (b,)) -> pytree of sums, on the device."""
    compute: Callable[[Sums], Mapping[str, float | np.ndarray | None]]
    """Totals, as NumPy arrays, to values by name; called once. An array (k,) has a value per class, and None is a
    value that does not exist."""
    display: Mapping[str, Display]
    """How each value is displayed."""
    per_example: bool = False
    """Whether `measure` returns arrays (b, ...) per example instead of sums: `compute` then gets the arrays of all
    examples, in order and without padding. Only for the evaluation split."""


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


def displays(metrics: Mapping[str, Metric]) -> dict[str, Display]:
    """Return how the values of metrics are shown, by the names of the values."""
    return {value: how for metric in metrics.values() for value, how in metric.display.items()}


def measure_all(metrics: Mapping[str, Metric], outputs: Any, targets: Any, mask: Array) -> dict[str, Sums]:
    """Return the sums of several metrics, by name, and the number of examples as "count"."""
    sums: dict[str, Sums] = {name: metric.measure(outputs, targets, mask) for name, metric in metrics.items()}
    return {"count": mask.sum(dtype=jnp.int32), **sums}


def compute_all(
    metrics: Mapping[str, Metric], totals: Mapping[str, Sums], classes: Sequence[str] = ()
) -> dict[str, float | None]:
    """Return the values of several metrics; None for those whose totals are not known, or are not a number.

    A value of each of the `classes` is named after it, as "class_iou.car"; classes of one name are told by their
    numbers, as "recall.crane (134)", and so are all if none is named.
    """
    values: dict[str, float | None] = {}
    times = Counter(classes)
    names = [of if times[of] == 1 else f"{of} ({number})" for number, of in enumerate(classes)]
    for metric_name, metric in metrics.items():
        total = totals.get(metric_name)
        for name, value in (dict.fromkeys(metric.display) if total is None else metric.compute(total)).items():
            if isinstance(value, np.ndarray):
                by_class = zip(names or map(str, range(len(value))), value.tolist(), strict=True)
                values |= {f"{name}.{of}": None if np.isnan(number) else number for of, number in by_class}
            else:
                values[name] = value
    return values
