"""Which examples make up the batch of a step: a function of (seed, step) alone, so nothing has to be remembered."""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

ArrayLike = Array | np.ndarray


class Batch(NamedTuple):
    """What a step is given."""

    image: ArrayLike  # (b, h, w, c) uint8
    label: ArrayLike  # (b,) int32
    mask: ArrayLike | None  # (b,) bool: False on padding; None where there is none
    indices: ArrayLike | None = None  # (b,) int32: which examples these are; None where nobody asks
    rows: ArrayLike | None = None  # (b,) uint32: their places in the batch of the step; None is 0 ... b - 1


@lru_cache(maxsize=32)  # two at the end of an epoch, and several runs may be trained side by side
def permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    """0 ... size - 1 in the order of that epoch, int32.

    Sorts the raw output of the Philox generator (Salmon et al. 2011), which is fixed by its definition: NumPy's and
    JAX's own shuffles may change between versions.
    """
    raw = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(size)
    order = np.argsort(raw, kind="stable").astype(np.int32)
    order.flags.writeable = False
    return order


def batch_indices(seed: int, step: int, batch_size: int, size: int, repeats: int = 1) -> np.ndarray:
    """Indices (batch_size,) int32 of the examples of one training step.

    The permutations follow each other without a gap, so a batch may end one and begin the next: no example is dropped,
    and each is seen once in each.

    Where `repeats` is more than 1, each example of the batch occurs so often in it (Hoffer et al. 2020; Berman et al.
    2019), and a permutation lasts so many times longer. The copies are batch_size / repeats apart: they are not in one
    group of BatchNorm, nor are they neighbours, which mixup would mix.
    """
    different = batch_size // repeats
    positions = np.arange(step * different, (step + 1) * different)
    epochs = positions // size
    parts = [permutation(seed, int(e), size)[positions[epochs == e] % size] for e in np.unique(epochs)]
    return np.tile(np.concatenate(parts), repeats)


def rows_of(batch: Batch) -> Array:
    """The places of these examples in the batch of the step, (b,) uint32: what is random in a step depends on them."""
    if batch.rows is not None:
        return jnp.asarray(batch.rows)
    return jnp.arange(jnp.asarray(batch.image).shape[0], dtype=jnp.uint32)


def occurrences(step: ArrayLike | int, rows: Array, batch_size: int, size: int, repeats: int = 1) -> Array:
    """How often the examples in these `rows` of `batch_indices` have occurred before, uint32, to be used under jit.

    It is right for the first 2**32 examples of a run.
    """
    different = batch_size // repeats
    position = jnp.asarray(step).astype(jnp.uint32) * different + rows % different
    return position // size * repeats + rows // different


def evaluation_indices(size: int, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Indices and mask, both (batch_size,), of batches that cover 0 ... size - 1 once; the last is padded with 0."""
    for start in range(0, size, batch_size):
        positions = np.arange(start, start + batch_size)
        mask = positions < size
        yield np.where(mask, positions, 0).astype(np.int32), mask
