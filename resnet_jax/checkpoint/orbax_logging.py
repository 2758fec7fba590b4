"""Silence the pages of tracebacks that Orbax's threads print, besides raising, after a failed save.

If one array cannot be written, the writes of the others continue in an event loop that is closed by then. Their errors
end in the log of absl, in the log of asyncio when a future is discarded, or in `sys.unraisablehook`.
"""

import functools
import logging
import os
import sys
from typing import Any

_ORBAX = f"{os.sep}orbax{os.sep}checkpoint{os.sep}"


@functools.cache
def quiet_orbax_logging() -> None:
    """Drop these tracebacks for the rest of the process, since some are printed seconds after a save."""
    logging.getLogger("absl").addFilter(_is_not_from_orbax)
    logging.getLogger("asyncio").addFilter(_is_not_of_a_save)
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        error = unraisable.exc_value
        if unraisable.object is not None or not isinstance(error, RuntimeError) or str(error) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = hook


def _is_not_from_orbax(record: logging.LogRecord) -> bool:
    """Return whether to print a record: it has no traceback, or Orbax did not log it."""
    return not record.exc_info or _ORBAX not in record.pathname


def _is_not_of_a_save(record: logging.LogRecord) -> bool:
    """Return whether to print a record: its exception does not name a temporary folder of Orbax."""
    return not isinstance(record.exc_info, tuple) or "orbax-checkpoint-tmp" not in str(record.exc_info[1])
