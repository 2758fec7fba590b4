"""Poisson sampling: every step draws each example by itself, with the same probability, as a function of (seed, step).

The accountant of DP-SGD assumes this sampling, and not the permutations of an epoch. A step draws a random number of
examples; the arrays of a step have a fixed number of rows. `rows_for` chooses that number so that a larger draw is as
rare as the caller says, and `poisson_batch` then ends the run instead of leaving an example out.
"""

import numpy as np
from scipy.stats import binom

from resnet_jax import InputError


def poisson_draw(seed: int, step: int, size: int, rate: float) -> np.ndarray:
    """Return the indices of the examples that a step draws, each with probability `rate`, int32, in order.

    Example i is drawn if the i-th raw number of the generator is small: it does not depend on the other examples.

    Args:
        seed: of the run. Who knows it knows the draws, and the guarantee no longer holds: keep it secret.
        step: number of the step, from 0.
        size: number of examples.
        rate: probability of each.

    Example:
        >>> poisson_draw(0, 0, 10, 0.3).tolist() == poisson_draw(0, 0, 20, 0.3)[:4].tolist()
        True
    """
    raw = np.random.Philox(key=np.array([seed, step], np.uint64)).random_raw(size)
    return np.flatnonzero(raw < np.uint64(rate * 2.0**64)) if rate < 1 else np.arange(size)


def overflow_probability(size: int, rate: float, steps: int, rows: int) -> float:
    """Return a bound on the probability that any of the steps draws more examples than it has rows (union bound)."""
    return min(1.0, steps * float(binom.sf(rows, size, rate)))


def rows_for(size: int, rate: float, steps: int, probability: float, multiple: int = 1) -> int:
    """Return the least number of rows, a multiple of `multiple`, whose overflow is at most as probable.

    Example:
        >>> rows = rows_for(1000, 0.1, 100, 1e-6, multiple=8)
        >>> rows, overflow_probability(1000, 0.1, 100, rows) <= 1e-6 < overflow_probability(1000, 0.1, 100, rows - 8)
        (160, True)
    """
    least = int(binom.isf(probability / steps, size, rate))
    candidates = range(-(-max(least - 1, 1) // multiple) * multiple, size + 2 * multiple, multiple)
    return next(rows for rows in candidates if overflow_probability(size, rate, steps, rows) <= probability)


def poisson_batch(seed: int, step: int, size: int, rate: float, rows: int) -> np.ndarray:
    """Return the examples of a step (rows,) int32, filled up with `size`, which is no example.

    Raises:
        InputError: The step draws more examples than there are rows, as rarely as delta says.
    """
    drawn = poisson_draw(seed, step, size, rate)
    if len(drawn) > rows:
        raise InputError(
            f"step {step} draws {len(drawn)} examples and has {rows} rows; none is left out in silence: take another"
            " seed (delta includes the probability of this)"
        )
    return np.pad(drawn, (0, rows - len(drawn)), constant_values=size).astype(np.int32)
