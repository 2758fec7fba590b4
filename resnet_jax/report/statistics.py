"""Mean and standard deviation over runs."""

import statistics
from collections.abc import Sequence
from typing import NamedTuple


class MeanStd(NamedTuple):
    """Mean and standard deviation of the values of several runs."""

    mean: float
    std: float | None  # of the sample, with n - 1; None if there is one value
    values: tuple[float, ...]

    def format(self, digits: int, sign: str = "") -> str:
        """Return text such as "99.11 % ± 0.30", for 2 digits and the sign " %"; only the mean of one value."""
        return f"{self.mean:,.{digits}f}{sign}" + ("" if self.std is None else f" ± {self.std:,.{digits}f}")


def mean_and_std(values: Sequence[float], unit: float = 1) -> MeanStd:
    """Return mean and standard deviation of one or more values, each divided by `unit`."""
    numbers = tuple(float(value) / unit for value in values)
    std = statistics.stdev(numbers) if len(numbers) > 1 else None
    return MeanStd(statistics.fmean(numbers), std, numbers)
