"""The training between two lines of metrics: its clock, and the line at its end."""

import time
from collections.abc import Iterator
from typing import Any

from resnet_jax.train.evaluate import Metrics
from resnet_jax.train.feed import Item
from resnet_jax.train.job import Job, held_split


class Lap:
    """A clock for the training alone, without evaluation and compilation; starts when it is made."""

    def __init__(self, step: int) -> None:
        self.first, self.steps, self.seconds, self.waited = step, 0, 0.0, 0.0
        self._start = time.perf_counter()

    def next(self, items: Iterator[Item]) -> Item:
        """The next item, and how long the loop waited for it."""
        before = time.perf_counter()
        item = next(items)
        self.waited += time.perf_counter() - before
        return item

    def leave_out(self, seconds: float) -> None:
        """So much of the time was not training."""
        self._start += seconds

    def end(self, step: int) -> None:
        self.steps, self.seconds = step - self.first, time.perf_counter() - self._start


def metrics_line(
    job: Job,
    step: int,
    trained: Metrics,
    held: dict[str, Metrics],
    lap: Lap,
    lines: list[dict[str, Any]],
    skipped: int = 0,
) -> dict[str, Any]:
    """The next line of metrics.jsonl: averages since the last, the held split now, speed and time in training.

    `held` is by what comes before the names of its numbers: "" for the network itself, "ema_" for its averages. Where a
    run was interrupted since the last line, the lap has only the steps after that; those before it count at its pace,
    an estimate.
    """
    split = held_split(job.recipe)
    last_step, last_seconds = (lines[-1]["step"], lines[-1]["seconds"]) if lines else (0, 0.0)
    measured = {
        f"{prefix}{split}_{name}": value
        for prefix, metrics in held.items()
        for name, value in metrics._asdict().items()
        if value is not None
    }
    return {
        "step": step,
        "epoch": step * job.recipe.batch_size / job.dataset.train_size,
        "train_loss": trained.loss,
        **({} if trained.accuracy is None else {"train_accuracy": trained.accuracy}),
        **measured,
        "lr": float(job.schedule(step - 1)),
        **({"skipped": skipped} if skipped else {}),
        "images_per_second": lap.steps * job.recipe.batch_size / lap.seconds,
        "data_wait": lap.waited / lap.seconds,
        "seconds": last_seconds + lap.seconds * (step - last_step) / lap.steps,
    }


def score(line: dict[str, Any], split: str) -> float:
    """What makes one checkpoint better than another: the accuracy, or less loss, of the averages if there are any."""
    prefix = "ema_" if f"ema_{split}_loss" in line else ""
    accuracy = line.get(f"{prefix}{split}_accuracy")
    return -line[f"{prefix}{split}_loss"] if accuracy is None else accuracy
