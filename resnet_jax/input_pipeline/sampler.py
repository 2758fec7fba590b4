"""The examples of each batch: a function of (seed, step) alone, so there is no state to save."""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from resnet_jax.data.permutation import Draws, epoch_draws, epoch_permutation

ArrayLike = Array | np.ndarray


class Batch(NamedTuple):
    """A batch of examples on the devices."""

    image: ArrayLike
    """(b, h, w, c) uint8, or other axes for sequences and video."""
    target: Any
    """(b,) int32, or the task's own targets."""
    mask: ArrayLike | None
    """(b,) bool, False on padding; None if there is none."""
    indices: ArrayLike | None = None
    """(b,) int32, indices in the data set."""
    rows: ArrayLike | None = None
    """(b,) uint32, positions in the batch of the step; None is 0 ... b - 1."""


def batch_indices(
    seed: int, step: int, batch_size: int, size: int, repeats: int = 1, draws: Draws | None = None
) -> np.ndarray:
    """Return the indices (batch_size,) int32 of the examples of one training step.

    Epochs of `size` indices follow each other without a gap, so a batch may end one and begin the next. An epoch is a
    permutation, in which each example is seen once, or the `epoch_draws` of `draws`.

    Args:
        seed: of the permutations.
        step: number of the step, from 0.
        batch_size: number of rows in a batch.
        size: number of examples in the data set.
        repeats: copies of each example in its batch; an epoch lasts that many times longer. Copies are
            batch_size / repeats rows apart, so that BatchNorm groups and mixup pairs do not hold two of them.
        draws: how often each example is drawn; None is once per epoch.

    Reference:
        Hoffer et al. 2020; Berman et al. 2019 (repeated augmentation).
    """
    different = batch_size // repeats
    positions = np.arange(step * different, (step + 1) * different)
    epochs = positions // size
    order = partial(epoch_permutation, size=size) if draws is None else partial(epoch_draws, draws=draws)
    parts = [order(seed, int(e))[positions[epochs == e] % size] for e in np.unique(epochs)]
    return np.tile(np.concatenate(parts), repeats)


def times_seen(step: ArrayLike | int, rows: Array, batch_size: int, size: int, repeats: int = 1) -> Array:
    """Return how often the examples in these rows were seen before, (b,) uint32; for use under jit.

    Exact for the first 2**32 examples of a run.

    Args:
        step: number of the step, from 0.
        rows: (b,) uint32, positions in `batch_indices`.
        batch_size: number of rows in a batch.
        size: number of examples in the data set.
        repeats: copies of each example in its batch.
    """
    different = batch_size // repeats
    position = jnp.asarray(step).astype(jnp.uint32) * different + rows % different
    return position // size * repeats + rows // different


def evaluation_indices(size: int, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield indices and mask (batch_size,) of batches that cover 0 ... size - 1 once; the last is padded."""
    for start in range(0, size, batch_size):
        positions = np.arange(start, start + batch_size)
        mask = positions < size
        yield np.where(mask, positions, 0).astype(np.int32), mask
