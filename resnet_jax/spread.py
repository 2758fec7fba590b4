"""What several runs say together: a mean, and how far its parts lie from it."""

import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Spread(NamedTuple):
    """Numbers of several runs."""

    mean: float
    std: float | None  # of the sample, with n - 1; None where there is one number
    values: tuple[float, ...]

    def written(self, digits: int, sign: str = "") -> str:
        """As 99.11 % ± 0.30, with so many digits and the sign " %"; the mean alone where there is one number."""
        return f"{self.mean:,.{digits}f}{sign}" + ("" if self.std is None else f" ± {self.std:,.{digits}f}")


def spread(values: Sequence[float], unit: float = 1) -> Spread:
    """Mean and standard deviation of one number or more, each divided by `unit`."""
    numbers = tuple(float(value) / unit for value in values)
    std = statistics.stdev(numbers) if len(numbers) > 1 else None
    return Spread(statistics.fmean(numbers), std, numbers)
