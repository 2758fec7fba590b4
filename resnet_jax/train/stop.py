"""Stopping between two steps when the user or the machine asks for it."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
