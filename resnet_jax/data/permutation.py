"""The order of examples in an epoch: a function of (seed, epoch) alone, in every version of NumPy."""

from functools import lru_cache

import numpy as np


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
    order = np.argsort(raw, kind="stable").astype(np.int32)
    order.flags.writeable = False
    return order
