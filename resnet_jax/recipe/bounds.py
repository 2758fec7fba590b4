"""Bounds and users of a recipe field, written beside the field with `typing.Annotated`."""

import math
from typing import Any, NamedTuple


class Bounds(NamedTuple):
    """The interval that a number, or each number of a tuple, must lie in."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def contains(self, value: float) -> bool:
        """Return whether `value` lies in the interval.

        Example:
            >>> FRACTION.contains(1.0), POSITIVE.contains(1.0)
            (False, True)
        """
        above = value > self.low if self.open_low else value >= self.low
        return above and (value < self.high if self.open_high else value <= self.high)

    def __str__(self) -> str:
        if self == POSITIVE:
            return "it must be positive"
        if self == NON_NEGATIVE:
            return "it must not be negative"
        if not (self.open_low or self.open_high) and math.isfinite(self.high):
            return f"it must be {self.low:g} to {self.high:g}"
        low = f"{'over' if self.open_low else 'at least'} {self.low:g}"
        if not math.isfinite(self.high):
            return f"it must be {low}"
        return f"it must be {low} and {'less than' if self.open_high else 'at most'} {self.high:g}"


POSITIVE = Bounds(low=0, open_low=True)
NON_NEGATIVE = Bounds(low=0)
# A probability, a momentum: 1 itself would drop or keep everything
FRACTION = Bounds(0, 1, open_high=True)
UNIT = Bounds(0, 1)


class Pair(NamedTuple):
    """A smallest and a largest number, both over 0 and at most `high`."""

    high: float = math.inf

    def __str__(self) -> str:
        most = "" if math.isinf(self.high) else f" and at most {self.high:g}"
        return f"it must be a smallest and a largest number, over 0{most}"

    def contains(self, value: Any) -> bool:
        """Return whether `value` is such a pair."""
        return len(value) == 2 and 0 < value[0] <= value[1] <= self.high


class Increasing:
    """A tuple whose numbers increase."""

    def __str__(self) -> str:
        return "the times must increase"

    def contains(self, value: Any) -> bool:
        """Return whether each number is larger than the one before it."""
        return list(value) == sorted(set(value))


class UsedBy(tuple[str, ...]):
    """The values of the `name` field in the same group that use a field; all others ignore it."""

    __slots__ = ()

    def __new__(cls, *names: str) -> "UsedBy":
        return super().__new__(cls, names)
