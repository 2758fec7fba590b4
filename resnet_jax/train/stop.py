"""Stopping: between two steps when the user or the machine asks for it, or where nothing moves any more."""

import faulthandler
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import jax

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_requested() -> Iterator[Callable[[], int]]:
    """Yields a function that returns the number of the signal that asked to stop, 0 while none has.

    The second Ctrl-C acts at once, as usual. Outside the main thread, where Python takes no signals, it is always 0.
    """
    received = 0

    def note(number: int, frame: object) -> None:
        nonlocal received
        received = number
        signal.signal(number, before[signal.Signals(number)])

    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    before = {number: signal.signal(number, note) for number in _SIGNALS}
    try:
        yield lambda: received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def obey(number: int) -> None:
    """Does at once what a signal asks for, where nothing has been done yet that would be lost; 0 asks for nothing.

    Several hosts stop together, after a step.
    """
    if number and jax.process_count() == 1:
        signal.raise_signal(number)


@contextmanager
def watched(seconds: float) -> Iterator[Callable[[], None]]:
    """Yields a function to be called whenever something has moved.

    Where it is not called for so long, the stacks of all threads are written to standard error, and the process ends
    with exit code 1: a host that hangs would hold all others. 0 seconds is no watch, and so is a process without
    standard error.
    """
    armed, stderr = -math.inf, -1
    with suppress(AttributeError, OSError, ValueError):  # there may be none, or one without a file
        stderr = sys.__stderr__.fileno()  # type: ignore[union-attr]
    seconds = seconds if stderr >= 0 else 0

    def alive() -> None:
        nonlocal armed
        if seconds and time.monotonic() - armed >= min(1.0, seconds / 4):
            faulthandler.dump_traceback_later(seconds, exit=True, file=stderr)
            armed = time.monotonic()

    alive()
    try:
        yield alive
    finally:
        if seconds:
            faulthandler.cancel_dump_traceback_later()
