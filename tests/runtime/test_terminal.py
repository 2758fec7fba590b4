"""What is printed: control characters as escapes, on any stream, open or not."""

import errno
import io
import os
import re
import signal
import subprocess
import sys

import pytest
from rich.table import Table

from resnet_jax.cli.tables import plain_table
from resnet_jax.runtime.terminal import Terminal, log_to_stderr, printable, show
from resnet_jax.tasks.metric import Display
from resnet_jax.training.progress import RunConsole, console_log, progress

TITLE = "a\x1b]0;owned\x07b"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (TITLE, r"a\x1b]0;owned\x07b"),
        ("cr\rlf\ntab\t", "cr\\rlf\ntab\t"),
        ("\x9b2J\u202ecod.exe\u2028", r"\x9b2J\u202ecod.exe\u2028"),
        (os.fsdecode(b"\xff.png"), r"\udcff.png"),
        ("Müller, 犬, ± 1", "Müller, 犬, ± 1"),
    ],
)
def test_control_characters_are_escapes(text, shown):
    assert printable(text) == shown
    assert printable(shown) == shown


def test_what_the_encoding_lacks_is_an_escape():
    assert printable("± 犬", "ascii") == r"\xb1 \u72ac"
    assert printable("± 犬", "latin-1") == r"± \u72ac"


def test_lines_and_tables_keep_the_names_of_their_authors(capsys):
    """Neither control characters nor markup nor the emoji codes of rich act."""
    table = Table(TITLE)
    table.add_row("[red]:cat:[/red] \x1b[31m")
    show(table, TITLE)
    log_to_stderr(f":cat: {TITLE}")
    printed = capsys.readouterr()
    assert "\x1b" not in printed.out + printed.err
    assert r"[red]:cat:[/red] \x1b[31m " in printed.out
    assert printed.out.count(r"a\x1b]0;owned\x07b") == 2
    assert printed.err == ":cat: a\\x1b]0;owned\\x07b\n"


def test_a_bar_keeps_names_too():
    printed = io.StringIO()
    console = Terminal(file=printed, force_terminal=True, width=100, color_system=None)
    with progress(console) as add_bar:
        add_bar(f":cat: [b] {TITLE}", 8, 0, 10)
        console_log(console)(f"{TITLE} [b]")
    assert r":cat: [b] a\x1b]0;owned" in printed.getvalue()
    assert "\x1b]0;" not in printed.getvalue()
    assert "\\x1b]0;owned\\x07b [b]\n" in printed.getvalue()


class Full(io.StringIO):
    def write(self, text):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_log_that_cannot_be_written_stops_a_run_in_an_orderly_way(capsys):
    """As SIGTERM does, after which the checkpoint is saved; what is printed later goes nowhere."""
    received = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        console = RunConsole(file=Full())
        console.print("12/63 ...")
        console.print("20/63 ...")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received == [signal.SIGTERM]
    assert capsys.readouterr().err == "standard output: No space left on device; stopping with a checkpoint\n"


def shell(line, **environment):
    """Run `resnet-jax` in a shell; return exit code, standard output and standard error."""
    program = f"{sys.executable} -m resnet_jax"
    done = subprocess.run(
        ["bash", "-c", line.replace("resnet-jax", program)],
        capture_output=True,
        text=True,
        env=os.environ | {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"} | environment,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("line", "code", "out", "err"),
    [
        ("resnet-jax --version >&-", 0, "", ""),
        ("resnet-jax nothing >&- 2>&-", 2, "", ""),
        ("resnet-jax --version > /dev/full", 1, "", "resnet-jax: [Errno 28] No space left on device\n"),
        ("resnet-jax prepare --help > /dev/full", 1, "", "resnet-jax: [Errno 28] No space left on device\n"),
        ("resnet-jax nothing 2> /dev/full", 2, "", ""),
        (r"resnet-jax $'a\x1b\xe9\n'", 2, "", "resnet-jax: unknown command 'a\\x1b\\udce9\\n'; known: "),
    ],
)
def test_closed_full_and_narrow_streams(line, code, out, err):
    found = shell(line, PYTHONIOENCODING="ascii")
    assert found[:2] == (code, out)
    assert found[2].startswith(err) if err else not found[2]
    assert found[2].count("\n") == bool(err)


class Tty(io.StringIO):
    def isatty(self):
        return True


def test_a_table_on_a_narrow_terminal_breaks_no_word(monkeypatch):
    printed = Tty()
    monkeypatch.setattr("sys.stdout", printed)
    for name, value in {"COLUMNS": "60", "LINES": "20", "NO_COLOR": "1", "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)
    table = plain_table("network", "block", "blocks per stage", "parameters")
    table.add_row("resnext101_32x8d_and_its_long_name", "PreActBottleneck", "3 4 23 3", "88,791,336")
    show(table)
    for word in ("resnext101_32x8d_and_its_long_name", "PreActBottleneck", "88,791,336", "parameters"):
        assert word in printed.getvalue()


@pytest.mark.parametrize(("width", "values"), [(60, False), (120, True)])
def test_a_bar_on_a_narrow_terminal_keeps_step_speed_and_time(width, values):
    printed = io.StringIO()
    console = Terminal(file=printed, force_terminal=True, width=width, color_system=None)
    with progress(console, {"score": Display(percent=True)}) as add_bar:
        tick = add_bar("digits-2 step", 128, 1200, 12345)
        tick(1201, lambda: {"loss": 0.125, "score": 0.5})
    shown = printed.getvalue()
    assert "digits-2 step" in shown
    assert re.search(r"1201/12345 .* images/s .*[\d-]+:[\d-]+ .*left", shown)
    assert ("loss 0.1250  score 50.00%" in shown) == values
