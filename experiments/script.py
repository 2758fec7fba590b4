"""Command-line helpers of all scripts: flags, exit codes and one-line errors."""

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from resnet_jax.cli.main import guarded
from resnet_jax.runtime.huge_pages import restart_asking


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser whose help is the docstring of a script, as written."""
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def positive(word: str) -> int:
    """Parse an integer of 1 or more."""
    if not (word.isascii() and word.isdecimal()) or int(word) < 1:
        raise argparse.ArgumentTypeError(f"{word} is not a positive integer")
    return int(word)


def above_zero(word: str) -> float:
    """Parse a finite number above 0."""
    try:
        number = float(word)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{word} is not a number above 0")
    return number


def run(main: Callable[[], None], *, large_pages: bool = True) -> NoReturn:
    """Run a script and exit as `resnet-jax` does, with one line for wrong flags or data.

    Args:
        main: the script.
        large_pages: restart with large memory pages, for scripts that compute on a CPU in this process.
    """
    if large_pages:
        restart_asking()

    def command() -> int:
        main()
        return 0

    sys.exit(guarded(command, Path(sys.argv[0]).name))
