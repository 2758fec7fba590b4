"""The clock of training alone, without evaluation, compilation and checkpoints."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

Item = TypeVar("Item")


class StepTimer:
    """Time of the steps since the last row of metrics; starts when it is made.

    What a checkpoint saved of it goes on, so that the time of an interrupted run is complete.
    """

    def __init__(self, first_step: int, seconds: float = 0.0, waited: float = 0.0) -> None:
        self.first_step, self.waited = first_step, waited
        self._start = time.perf_counter() - seconds

    @property
    def seconds(self) -> float:
        """Seconds of training so far."""
        return time.perf_counter() - self._start

    def wait(self, batches: Iterator[Item]) -> Item:
        """Return the next batch, and count the time spent waiting for it."""
        before = time.perf_counter()
        batch = next(batches)
        self.waited += time.perf_counter() - before
        return batch

    def exclude(self, seconds: float) -> None:
        """Take time off that was not training."""
        self._start += seconds

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count the time inside."""
        before = time.perf_counter()
        try:
            yield
        finally:
            self.exclude(time.perf_counter() - before)

    def saved(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"first_step": self.first_step, "seconds": self.seconds, "waited": self.waited}
