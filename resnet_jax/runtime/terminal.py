"""The terminal: whatever the library prints goes through this module.

Names of files, classes and runs come from outside. Their control characters could retitle the terminal or hide a line,
so they are printed as escapes, as are characters that the stream cannot encode.
"""

import os
import re
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

# Control characters except tab and line feed, line and direction marks of Unicode, bytes of names that are not UTF-8
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
# Columns where there is no terminal
_WIDE = 240


def printable(text: str, encoding: str = "utf-8") -> str:
    r"""Return text with control characters, and characters that the encoding lacks, as escapes.

    Example:
        >>> print(printable("a\x1b[31mb"))
        a\x1b[31mb
    """
    shown = _UNSAFE.sub(lambda found: ascii(found[0])[1:-1], text)
    return shown.encode(encoding, "backslashreplace").decode(encoding)


class Terminal(Console):
    """Console without markup and emoji codes, which prints control characters as escapes."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, "highlight": False, **options})

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a string as printable text, whose width is then known."""
        return super().render_str(printable(text, self.encoding), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the segments of anything, with printable text."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text, self.encoding))

    def on_broken_pipe(self) -> None:
        """Leave the error to the caller, instead of exiting."""
        raise BrokenPipeError


def show(*parts: RenderableType) -> None:
    """Print lines and tables to standard output, each line whole.

    Raises:
        OSError: It cannot be written, as on a full disk; BrokenPipeError if its reader is gone, as `head` is.
    """
    for table in (part for part in parts if isinstance(part, Table)):
        for column in table.columns:
            # Rich would break words on a narrow terminal
            words = " ".join(map(str, (column.header, *column.cells))).split()
            column.min_width = max(map(cell_len, words), default=0)
    console = Terminal()
    if not console.is_terminal:
        console = Terminal(width=_WIDE)
    console.print(*parts, sep="\n", soft_wrap=True)


def log_to_stderr(line: str) -> None:
    """Print a line to standard error, if that can be written."""
    with suppress(OSError):
        Terminal(stderr=True).print(line, soft_wrap=True)


def flush() -> None:
    """Write out what others, such as the help of a command, have printed; raise OSError if it cannot be written."""
    if sys.stdout is not None:
        sys.stdout.flush()


def silence(stream: Any) -> None:
    """Send what is still written to a stream to nowhere, since its reader is gone or its disk full."""
    with suppress(AttributeError, OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def open_standard_streams() -> None:
    """Open the streams that a caller has closed: otherwise the next file would get their numbers, and their text."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
