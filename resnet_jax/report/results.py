"""The numbers that runs end with, and their curves, over seeds."""

import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from resnet_jax.report.runs import Run, Variant
from resnet_jax.spread import Spread, spread

# Of a run: a number, or None where it has none
Quantity = Callable[[Run], float | None]


def over(variant: Variant, quantity: Quantity) -> Spread | None:
    """A quantity of the runs of a variant that count and have it."""
    values = [quantity(run) for run in variant.counted]
    present = [value for value in values if value is not None]
    return spread(present) if present else None


def final(field: str) -> Quantity:
    """A number of the last line of metrics, never of the best; SPLIT in its name stands for the held split."""
    return lambda run: run.lines[-1].get(_own(field, run)) if run.lines else None


def _own(field: str, run: Run) -> str:
    """What a run calls a field."""
    return field.replace("SPLIT", run.split)


def typical(field: str) -> Quantity:
    """The median over all lines."""
    return lambda run: statistics.median(line[field] for line in run.lines) if run.lines else None


def keeps_averages(variant: Variant) -> bool:
    """Whether the network that the runs are about is the average of its weights, as for `resnet-jax evaluate`."""
    return any(f"ema_{run.split}_loss" in run.lines[-1] for run in variant.counted)


def headline(variant: Variant) -> str:
    """The field that says how good a variant is: the accuracy, or else the loss, of the averages if it keeps some."""
    prefix = "ema_SPLIT" if keeps_averages(variant) else "SPLIT"
    return f"{prefix}_accuracy" if over(variant, final(f"{prefix}_accuracy")) else f"{prefix}_loss"


class Course(NamedTuple):
    """A quantity over the course of some runs, at the steps that all of them have."""

    step: np.ndarray  # (n,)
    epoch: np.ndarray  # (n,)
    values: np.ndarray  # (runs, n)


def course_of(runs: Sequence[Run], field: str) -> Course | None:
    """A number of the lines of metrics; None where there is no step at which all runs have it."""
    known = [{line["step"]: line[own] for line in run.lines if (own := _own(field, run)) in line} for run in runs]
    steps = sorted(set.intersection(*map(set, known))) if known else []
    if not steps:
        return None
    epochs = {line["step"]: line["epoch"] for line in runs[0].lines}
    values = np.array([[one[step] for step in steps] for one in known], float)
    return Course(np.array(steps), np.array([epochs[step] for step in steps]), values)
