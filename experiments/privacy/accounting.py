"""What a training reveals: epsilon and delta of DP-SGD, and the noise that keeps them, by Google's `dp-accounting`.

Two data sets are neighbours if one has one example more. The accountant composes privacy loss distributions of the
Gaussian mechanism on Poisson samples (Abadi et al. 2016; Koskela et al. 2020). A batch that would not fit its rows,
with probability b over the whole run, is outside of that analysis and adds (1 + e^epsilon) b to delta.
"""

import math
from functools import cache, partial
from typing import Any, NamedTuple

from scipy.optimize import brentq

from experiments.privacy.sampler import overflow_probability, rows_for
from resnet_jax import InputError

# Noise multipliers between which one is looked for
_LEAST_NOISE, _MOST_NOISE = 0.5, 200.0
# Relative, of the noise multiplier
_PRECISION = 0.001
# The largest epsilon, beyond which one says little
LARGEST = 10.0
# Of delta, what overflow may take
_OVERFLOW = 0.01


class Privacy(NamedTuple):
    """The guarantee of a run, and all that it follows from."""

    epsilon: float
    """At the end of the run; infinite without noise."""
    delta: float
    """Of the whole guarantee, overflow included."""
    noise_multiplier: float
    """Standard deviation of the noise on the sum of gradients, over the clipping norm."""
    size: int
    """Number of training examples."""
    rate: float
    """Probability that a step draws an example."""
    steps: int
    rows: int
    """Examples that fit into a step."""
    overflow: float
    """Bound on the probability that a step draws more."""
    target_epsilon: float
    """The epsilon that was asked for; it weighs the overflow."""

    @property
    def expected_batch(self) -> float:
        """By which the sum of gradients is divided: the size of a draw itself is private."""
        return self.rate * self.size


def load(name: str) -> Any:
    """Import a package that only private training needs; raise InputError if it is not installed."""
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0].replace("_", "-")
        raise InputError(f"private training needs {package}: pip install jax-privacy dp-accounting") from error


@cache
def epsilon_of(noise_multiplier: float, rate: float, steps: int, delta: float) -> float:
    """Return epsilon after these steps at this delta.

    Example:
        >>> round(epsilon_of(1.0, 0.01, 1000, 1e-5), 2)
        1.81
    """
    if steps == 0:
        return 0.0
    if noise_multiplier == 0 or delta <= 0:
        return math.inf
    accounting, pld = load("dp_accounting"), load("dp_accounting.pld")
    step = accounting.PoissonSampledDpEvent(rate, accounting.GaussianDpEvent(noise_multiplier))
    event = accounting.SelfComposedDpEvent(step, steps)
    return float(pld.PLDAccountant().compose(event).get_epsilon(delta))


def epsilon_after(privacy: Privacy, steps: int) -> float:
    """Return epsilon of the parameters after some of the steps, at the delta of the whole run."""
    left = _without_overflow(privacy.delta, privacy.target_epsilon, privacy.overflow)
    return epsilon_of(privacy.noise_multiplier, privacy.rate, steps, left)


def _without_overflow(delta: float, epsilon: float, overflow: float) -> float:
    """Return what is left of delta; the overflow of either neighbour may reveal everything."""
    return delta - overflow - math.exp(min(epsilon, LARGEST)) * overflow


def make_privacy(epsilon: float, delta: float, *, size: int, batch_size: int, steps: int, multiple: int = 1) -> Privacy:
    """Return the least noise that keeps a guarantee, with the rows of a step.

    Args:
        epsilon: to keep over the whole run; infinite for none, without noise.
        delta: to keep.
        size: number of training examples.
        batch_size: examples per step, expected.
        steps: length of the run.
        multiple: of which the number of rows is one, for devices and microbatches.

    Raises:
        InputError: The guarantee is out of reach, or a number out of bounds.
    """
    if not 0 < batch_size < size:
        raise InputError(f"the batch size is {batch_size}; Poisson sampling of {size} examples needs 1 to {size - 1}")
    if not 0 < delta < 1 / size:
        raise InputError(f"delta is {delta:g}; it must be above 0 and below 1 / {size}, the number of examples")
    if not (0 < epsilon <= LARGEST or epsilon == math.inf):
        raise InputError(f"epsilon is {epsilon:g}; it must be above 0 and at most {LARGEST:g}, or inf for no noise")
    rate = batch_size / size
    # As many for each epsilon, so that one compiled step serves all
    rows = rows_for(size, rate, steps, _OVERFLOW * delta / (1 + math.exp(LARGEST)), multiple)
    overflow = overflow_probability(size, rate, steps, rows)
    made = partial(Privacy, size=size, rate=rate, steps=steps, rows=rows, overflow=overflow, target_epsilon=epsilon)
    if epsilon == math.inf:
        return made(epsilon=math.inf, delta=delta, noise_multiplier=0.0)
    noise = least_noise(epsilon, _without_overflow(delta, epsilon, overflow), rate, steps)
    privacy = made(epsilon=epsilon, delta=delta, noise_multiplier=noise)
    return privacy._replace(epsilon=epsilon_after(privacy, steps))


def least_noise(epsilon: float, delta: float, rate: float, steps: int) -> float:
    """Return the least noise multiplier that keeps epsilon; raise InputError if there is none up to 200."""
    least = epsilon_of(_MOST_NOISE, rate, steps, delta)
    if least > epsilon:
        raise InputError(
            f"epsilon {epsilon:g} is out of reach: {steps} steps with a sampling rate of {rate:.3g} reach"
            f" {least:.3g} with {_MOST_NOISE:g} times the noise of the clipping norm; take fewer steps, a"
            " smaller batch or a larger epsilon"
        )
    if epsilon_of(_LEAST_NOISE, rate, steps, delta) <= epsilon:
        return _LEAST_NOISE
    ends = math.log(_LEAST_NOISE), math.log(_MOST_NOISE)
    noise = math.exp(
        brentq(lambda log: epsilon_of(math.exp(log), rate, steps, delta) - epsilon, *ends, xtol=_PRECISION / 2)
    )
    # The root may lie on the side that does not keep epsilon
    while epsilon_of(noise, rate, steps, delta) > epsilon:
        noise *= 1 + _PRECISION / 2
    return noise
