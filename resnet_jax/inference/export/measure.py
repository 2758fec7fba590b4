"""Accuracy and speed of an export in its own runtime."""

import time
from typing import NamedTuple

import numpy as np

from resnet_jax.data.source import Source
from resnet_jax.errors import InputError
from resnet_jax.inference.export.check import Run, as_taken
from resnet_jax.inference.export.interface import Interface
from resnet_jax.inference.export.network import Network

# Images per call of an accuracy; runs of a timing
_BATCH, _RUNS = 100, 7


class Errors(NamedTuple):
    """Wrong answers on a split; every example counts once."""

    errors: int
    total: int

    def format(self) -> str:
        """Return the accuracy as people read it."""
        return f"{1 - self.errors / self.total:.2%} ({self.errors:,} of {self.total:,} wrong)"


def count_errors(network: Network, interface: Interface, run: Run, source: Source) -> Errors:
    """Count the images of a split whose likeliest class is not their label; raise InputError for other tasks."""
    if network.setup.task.answers != "ranked" or np.ndim(source.read(0).target):
        raise InputError("--split measures the accuracy of one class per image; this network has another task")
    errors = 0
    for start in range(0, source.size, _BATCH):
        examples = [source.read(index) for index in range(start, min(start + _BATCH, source.size))]
        pixels, labels = np.stack([e.image for e in examples]), np.asarray([e.target for e in examples])
        errors += int((run(as_taken(network, interface, pixels))[0].argmax(-1) != labels).sum())
    return Errors(errors, source.size)


def milliseconds(run: Run, images: np.ndarray) -> float:
    """Return the milliseconds per image on one thread: the median of several runs, after one that does not count."""
    run(images)
    seconds = []
    for _ in range(_RUNS):
        start = time.perf_counter()
        run(images)
        seconds.append(time.perf_counter() - start)
    return 1000 * float(np.median(seconds)) / len(images)
