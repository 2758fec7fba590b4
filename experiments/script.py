"""What all scripts here share: how they read their words, begin and end."""

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from resnet_jax.cli import guarded
from resnet_jax.huge_pages import restart_asking

if TYPE_CHECKING:
    from resnet_jax.train.run import Result


def parser(doc: str | None) -> argparse.ArgumentParser:
    """One whose help is the docstring of a script, as it is written."""
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def positive(word: str) -> int:
    """A flag's number of 1 or more."""
    if not (word.isascii() and word.isdecimal()) or int(word) < 1:
        raise argparse.ArgumentTypeError(f"{word} is not a positive number")
    return int(word)


def above_zero(word: str) -> float:
    """A flag's finite number above 0."""
    try:
        number = float(word)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{word} is not a number above 0")
    return number


def run(main: Callable[[], None], *, large_pages: bool = True) -> NoReturn:
    """Runs a script and ends the process as `resnet-jax` does: what is wrong with words or data is one line.

    `large_pages` are for those that compute on a CPU in this process.
    """
    if large_pages:
        restart_asking()

    def command() -> int:
        main()
        return 0

    sys.exit(guarded(command, Path(sys.argv[0]).name))


def last_line(result: "Result") -> dict[str, Any]:
    """Of the metrics of a training that came to its end; after a signal it ends the process as `resnet-jax` does."""
    if result.signal:
        sys.exit(128 + result.signal)  # the same command goes on
    return result.lines[-1]
