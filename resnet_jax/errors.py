"""Errors that a user can mend: one line each, with what was wrong, where, and what to do next."""

import difflib
import re
import textwrap
from collections.abc import Iterable

_FEW = 24  # names that a line has room for
_LONGEST, _VALUE = 4_000, 100  # characters of a line, and of a value in it


class OneLineError(Exception):
    """An error whose text is one line, of bounded length, even if names in it are not."""

    def __str__(self) -> str:
        text = " ".join(super().__str__().splitlines())
        return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 4]} ..."


class InputError(OneLineError, ValueError):
    """Invalid input; the command line prints it as one line and exits with code 2."""


class MachineError(OneLineError, RuntimeError):
    """What is nobody's wrong input, such as a full disk; one line, exit code 1."""


def first_line(error: BaseException) -> str:
    """The first line of an error of a library, or its type, short enough for a line of ours."""
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return textwrap.shorten(line, 200, placeholder=" ...")


def short_repr(value: object) -> str:
    """The repr of a value that somebody gave, short enough for a line of ours."""
    text = repr(value)
    return text if len(text) <= _VALUE else f"{text[: _VALUE - 4]} ..."


def unknown(kind: str, name: str, known: Iterable[str]) -> InputError:
    """The error for a `kind` ("model", "data set", ...) of this `name`, with the nearest of the `known` names."""
    known = list(known)
    few = ", ".join(known) if len(known) <= _FEW else f"{', '.join(known[:3])} and {len(known) - 3:,} more"
    return InputError(f"unknown {kind} {short_repr(name)}{nearest(name, known) or f'; known: {few}'}")


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint, "; nearest: ..." with up to three of the `known` names, or nothing where none is near."""
    known = list(known)
    begun = [other for other in known if other.startswith(f"{name}.")]  # a network, of which these are weights
    near = begun[:3] or _same_family(name, known) or difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"; nearest: {', '.join(near)}" if near else ""


def _same_family(name: str, known: Iterable[str]) -> list[str]:
    """Return the names with about the same number at the end: resnet20, resnet18 and resnet26 for resnet22."""
    stem, number = re.fullmatch(r"(.*?)(\d{0,9})", name, re.DOTALL).groups()  # type: ignore[union-attr]
    others = [other for other in known if number and re.fullmatch(rf"{re.escape(stem)}\d{{1,9}}", other)]
    apart = {other: abs(int(other.removeprefix(stem)) - int(number)) for other in others}
    return sorted((other for other in others if 4 * apart[other] <= int(number)), key=apart.__getitem__)[:3]
