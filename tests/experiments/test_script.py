"""Flags and exit codes of the scripts of experiments/."""

import argparse
import subprocess
import sys

import pytest
from conftest import ROOT

from experiments.script import above_zero, positive, run
from resnet_jax.errors import InputError, MachineError


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("no\nsuch folder"), 2),
        (MachineError("disk full"), 1),
        (OSError("gone"), 1),
        (KeyboardInterrupt(), 130),
        (KeyboardInterrupt(15), 143),
    ],
)
def test_what_is_wrong_is_one_line(error, code, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["experiments/tasks/video.py"])

    def main():
        raise error

    with pytest.raises(SystemExit) as ended:
        run(main, large_pages=False)
    assert ended.value.code == code
    said = capsys.readouterr().err
    assert said.startswith("video.py: ")
    assert said.count("\n") == 1


def test_a_finished_script_exits_with_zero():
    with pytest.raises(SystemExit) as ended:
        run(lambda: None, large_pages=False)
    assert ended.value.code == 0


@pytest.mark.parametrize("word", ["0", "-1", "1.5", "many", "\u0664"])
def test_numbers_that_are_not_positive(word):
    assert positive("12") == 12
    with pytest.raises(argparse.ArgumentTypeError):
        positive(word)


@pytest.mark.parametrize("word", ["0", "-1", "nan", "inf", "many"])
def test_numbers_that_are_not_above_zero(word):
    assert above_zero("0.5") == 0.5
    with pytest.raises(argparse.ArgumentTypeError):
        above_zero(word)


def test_missing_photos_are_one_line(script, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["transfer.py", "nowhere", "--weights", "none.pth"])
    with pytest.raises(SystemExit) as ended:
        run(script("transfer.py").main, large_pages=False)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("transfer.py: data/nowhere")
    assert said.count("\n") == 1


@pytest.mark.slow
def test_missing_photos_are_one_line_of_the_program(tmp_path):
    """The whole program, from another directory."""
    words = [ROOT / "experiments" / "transfer.py", "nowhere", "--weights", "none.pth"]
    done = subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("transfer.py: data/nowhere")
    assert done.stderr.count("\n") == 1
