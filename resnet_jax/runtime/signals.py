"""Stop a run: between two steps on a signal, or by a watchdog if it hangs."""

import faulthandler
import math
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import jax

from resnet_jax.runtime.terminal import silence

# Ctrl-C, the end of a job, a closed terminal, and what Slurm sends before it ends a job (`--signal=USR1@60`)
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
# The second of these acts at once; a closed terminal may send two, and Slurm one for each process
_IMPATIENT = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_signal(limit: timedelta | None = None) -> Iterator[Callable[[], int]]:
    """Yield a function that returns the number of the SIGINT, SIGTERM, SIGHUP or SIGUSR1 received, 0 if there is none.

    Once the `limit` has passed, it returns that of SIGUSR1 without a signal.

    A second Ctrl-C acts at once, as usual. A signal that is ignored, as SIGHUP under nohup, stays ignored. Outside the
    main thread Python handles no signals, and only the limit counts.
    """
    received, end = 0, time.monotonic() + limit.total_seconds() if limit else math.inf

    def stopped() -> int:
        return received or (signal.SIGUSR1 if time.monotonic() >= end else 0)

    def note(number: int, frame: object) -> None:
        nonlocal received
        received = number
        if number in _IMPATIENT:
            signal.signal(number, before[signal.Signals(number)])
        if number == signal.SIGHUP:
            _silence_closed_terminal()

    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    before = {n: signal.signal(n, note) for n in _SIGNALS if signal.getsignal(n) is not signal.SIG_IGN}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _silence_closed_terminal() -> None:
    """Let what is still printed to a terminal that is gone go nowhere, instead of failing before the run is saved."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):
            if stat.S_ISCHR(os.fstat(stream.fileno()).st_mode) and not os.isatty(stream.fileno()):
                silence(stream)


def reraise_signal(number: int) -> None:
    """Raise a received signal again, before there is any progress to save; 0 is none.

    Several hosts ignore it here: they stop together after a step.
    """
    if number and jax.process_count() == 1:
        signal.raise_signal(number)


@contextmanager
def watchdog(seconds: float) -> Iterator[Callable[[], None]]:
    """Yield a function to call at each sign of progress; without a call for `seconds` the process ends.

    It then writes the stacks of all threads to standard error and exits with code 1, since one host that hangs would
    block all others. With 0 seconds or without standard error there is no watchdog.
    """
    armed, stderr = -math.inf, -1
    # Standard error may be missing, or have no file
    with suppress(AttributeError, OSError, ValueError):
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
