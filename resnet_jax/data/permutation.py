"""The order of examples in an epoch: a function of (seed, epoch) alone, in every version of NumPy."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np


@dataclass(frozen=True, eq=False)
class Draws:
    """How often each example of a split is drawn; equal only to itself, so that it can be the key of a cache."""

    weights: np.ndarray
    """(n,) float64, relative to each other; 0 is never."""
    strata: np.ndarray
    """(n,) int, such as the classes: an epoch has the expected number of each stratum, rounded up or down."""


# Two orders are in use at the end of an epoch, and several seeds may train at the same time
@lru_cache(maxsize=32)
def epoch_permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    """Return 0 ... size - 1 in the order of an epoch, int32.

    It sorts the raw output of the Philox generator (Salmon et al. 2011), which its definition fixes; NumPy's and JAX's
    own shuffles may change between versions.

    Example:
        >>> epoch_permutation(0, 0, 5).tolist()
        [0, 2, 1, 4, 3]
    """
    raw = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(size)
    return _unwriteable(np.argsort(raw, kind="stable"))


@lru_cache(maxsize=32)
def epoch_draws(seed: int, epoch: int, draws: Draws) -> np.ndarray:
    """Return the n examples that an epoch draws by their weights, in its order, int32.

    Systematic sampling: an example whose share of the weights is w is drawn n w times, rounded up or down at random, so
    that the expected number is n w. Equal weights are a permutation.

    Reference:
        Madow and Madow 1944, "On the theory of systematic sampling".

    Example:
        >>> order = epoch_draws(0, 0, Draws(np.array([1.0, 1.0, 4.0, 0.0]), np.zeros(4, int)))
        >>> np.bincount(order, minlength=4).tolist()
        [1, 0, 3, 0]
    """
    size = len(draws.weights)
    raw = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(2 * size + 1)
    order = np.argsort(raw[:size], kind="stable")
    order = order[np.argsort(draws.strata[order], kind="stable")]
    order = order[draws.weights[order] > 0]
    ends = np.cumsum(draws.weights[order])
    offset = (raw[-1] >> np.uint64(11)) * 2.0**-53
    points = (np.arange(size) + offset) / size * ends[-1]
    # The last point may be rounded up to the end
    places = np.minimum(np.searchsorted(ends, points, side="right"), len(order) - 1)
    return _unwriteable(order[places][np.argsort(raw[size : 2 * size], kind="stable")])


def _unwriteable(order: np.ndarray) -> np.ndarray:
    order = order.astype(np.int32)
    order.flags.writeable = False
    return order
