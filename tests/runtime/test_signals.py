"""Signals that stop a run between two steps."""

import os
import pty
import signal
import subprocess
import sys
import time

import pytest

from resnet_jax.runtime.signals import stop_signal


@pytest.fixture
def fatal():
    """A process that these signals end, which workers of pytest-xdist are not."""
    numbers = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL, signal.SIGUSR1: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in numbers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"])
def test_each_is_noted_and_the_handlers_are_restored(fatal, name):
    number = getattr(signal, name)
    before = signal.getsignal(number)
    with stop_signal() as received:
        assert received() == 0
        signal.raise_signal(number)
        assert received() == number
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_acts_at_once_and_a_second_hang_up_does_not(fatal):
    with stop_signal() as received:
        for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR1, signal.SIGINT):
            signal.raise_signal(number)
            assert received() == number
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_what_is_ignored_stays_ignored(fatal):
    """As SIGHUP is under nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with stop_signal() as received:
        signal.raise_signal(signal.SIGHUP)
        assert received() == 0
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_a_closed_terminal_does_not_keep_a_run_from_being_saved(tmp_path):
    terminal, other_end = pty.openpty()
    name = os.ttyname(other_end)
    code = "\n".join(
        (
            "import os, pathlib, time",
            # It becomes the terminal that controls this process, which leads a session
            f"os.open({name!r}, os.O_RDWR)",
            "from resnet_jax.runtime.signals import stop_signal",
            "with stop_signal() as received:",
            "    print('ready', flush=True)",
            "    while not received(): time.sleep(0.01)",
            "    print('row', flush=True)",
            f"    pathlib.Path({str(tmp_path / 'saved')!r}).write_text(str(received()))",
        )
    )
    ends = {"stdin": other_end, "stdout": other_end, "stderr": other_end}
    child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, **ends)
    os.close(other_end)
    seen, limit = b"", time.monotonic() + 50
    while b"ready" not in seen and time.monotonic() < limit:
        seen += os.read(terminal, 1000)
    os.close(terminal)
    assert child.wait(50) == 0
    assert (tmp_path / "saved").read_text() == str(int(signal.SIGHUP))
