"""Final values of runs and their series over time, aggregated over seeds."""

import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from resnet_jax.report.runs import RecipeGroup, Run
from resnet_jax.report.statistics import MeanStd, mean_and_std

# Run -> its value, None if it has none
Quantity = Callable[[Run], float | None]


def aggregate(group: RecipeGroup, quantity: Quantity) -> MeanStd | None:
    """Return mean and standard deviation of a quantity over a recipe's runs; None if no run has it."""
    values = [quantity(run) for run in group.counted]
    present = [value for value in values if value is not None]
    return mean_and_std(present) if present else None


def final_value(field: str) -> Quantity:
    """Return a quantity: a value of the last row (not the best); SPLIT stands for the evaluation split."""
    return lambda run: run.rows[-1].get(_own(field, run)) if run.rows else None


def _own(field: str, run: Run) -> str:
    """Return the key of a field in a run."""
    return field.replace("SPLIT", run.split)


def median_of(field: str) -> Quantity:
    """Return a quantity: the median of a value over all rows."""
    return lambda run: statistics.median(line[field] for line in run.rows) if run.rows else None


def keeps_ema(group: RecipeGroup) -> bool:
    """Return whether the runs keep an EMA, which then is the network that is evaluated."""
    return any(f"ema/{run.split}/loss" in run.rows[-1] for run in group.counted)


def headline(group: RecipeGroup) -> str:
    """Return the key of the main value of a recipe: the monitored metric, of the EMA if there is one."""
    prefix, monitor = "ema/SPLIT" if keeps_ema(group) else "SPLIT", group.runs[0].task.monitor
    key = f"{prefix}/{monitor}"
    return key if aggregate(group, final_value(key)) else f"{prefix}/loss"


class Series(NamedTuple):
    """A quantity over time, at the steps that all runs have."""

    step: np.ndarray  # (n,)
    epoch: np.ndarray  # (n,)
    values: np.ndarray  # (runs, n)


def series_of(runs: Sequence[Run], field: str) -> Series | None:
    """Return the series of a value in the rows of metrics; None if the runs share no step with it."""
    known = [
        {line["step"]: line[own] for line in run.rows if line.get(own := _own(field, run)) is not None} for run in runs
    ]
    steps = sorted(set.intersection(*map(set, known))) if known else []
    if not steps:
        return None
    epochs = {line["step"]: line["epoch"] for line in runs[0].rows}
    values = np.array([[one[step] for step in steps] for one in known], float)
    return Series(np.array(steps), np.array([epochs[step] for step in steps]), values)
