"""Bounds and users of a recipe field, written beside the field with `typing.Annotated`."""

import dataclasses
import math
import typing
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from resnet_jax.errors import InputError


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
        return f"give a minimum and a maximum, over 0{most}"

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


def require_bounds(name: str, value: Any, notes: Iterable[Any]) -> None:
    """Raise InputError, with the name of a field, unless its value lies within the bounds among the notes beside it."""
    numbers = value if isinstance(value, tuple) else (value,)
    for note in notes:
        # Neither None nor a word such as "auto" has bounds
        if isinstance(note, Bounds) and not all(note.contains(n) for n in numbers if isinstance(n, int | float)):
            raise InputError(f"{name} is {value}; {note}")
        if isinstance(note, Pair | Increasing) and not note.contains(value):
            raise InputError(f"{name} is {value}; {note}")


def annotations_of(kind: type, prefix: str = "") -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Yield the dotted name of every leaf of a dataclass with the metadata beside it."""
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        if dataclasses.is_dataclass(hint):
            yield from annotations_of(typing.cast(type, hint), f"{name}.")
        else:
            yield prefix + name, getattr(hint, "__metadata__", ())


def require_flag_bounds(options: Any) -> None:
    """Raise InputError, with the flag, unless each of the options lies within the bounds beside it."""
    for name, notes in annotations_of(type(options)):
        require_bounds(f"--{name.replace('_', '-')}", getattr(options, name), notes)


class UsedBy(tuple[str, ...]):
    """The values of the `name` field in the same group that use a field; all others ignore it."""

    __slots__ = ()

    def __new__(cls, *names: str) -> "UsedBy":
        return super().__new__(cls, names)


def parse_fold(fold: str) -> tuple[int, int]:
    """Return the place of a fold, from 0, and the number of folds; raise InputError for anything but "2/5".

    Example:
        >>> parse_fold("2/5")
        (1, 5)
    """
    part, slash, parts = fold.partition("/")
    good = slash and all(number.isascii() and number.isdigit() and len(number) < 7 for number in (part, parts))
    if not good or not 1 <= int(part) <= int(parts) or int(parts) < 2:
        raise InputError(f"data.fold is {fold}; give I/K, such as 2/5 for the second of five folds")
    return int(part) - 1, int(parts)
