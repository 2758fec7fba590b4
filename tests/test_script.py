"""How the scripts of experiments/ end."""

import argparse
import subprocess
import sys
from types import SimpleNamespace

import pytest
from conftest import ROOT

from experiments import script
from resnet_jax.errors import InputError, MachineError


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("no\nsuch folder"), 2),
        (MachineError("disk full"), 1),
        (OSError("gone"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_what_is_wrong_is_one_line(error, code, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["experiments/tasks/video.py"])

    def main():
        raise error

    with pytest.raises(SystemExit) as ended:
        script.run(main, large_pages=False)
    assert ended.value.code == code
    said = capsys.readouterr().err
    assert said.startswith("video.py: ")
    assert said.count("\n") == 1


def test_a_script_that_is_done():
    with pytest.raises(SystemExit) as ended:
        script.run(lambda: None, large_pages=False)
    assert ended.value.code == 0


def test_an_interrupted_training_has_no_last_line():
    with pytest.raises(SystemExit) as ended:
        script.last_line(SimpleNamespace(signal=15, lines=[]))
    assert ended.value.code == 143
    assert script.last_line(SimpleNamespace(signal=0, lines=[{"step": 1}, {"step": 2}])) == {"step": 2}


@pytest.mark.parametrize("word", ["0", "-1", "1.5", "many", "\u0664"])
def test_numbers_that_are_not_positive(word):
    assert script.positive("12") == 12
    with pytest.raises(argparse.ArgumentTypeError):
        script.positive(word)


@pytest.mark.parametrize("word", ["0", "-1", "nan", "inf", "many"])
def test_numbers_that_are_not_above_zero(word):
    assert script.above_zero("0.5") == 0.5
    with pytest.raises(argparse.ArgumentTypeError):
        script.above_zero(word)


def test_missing_photos_are_one_line(tmp_path):
    """The whole program, from another directory."""
    words = [ROOT / "experiments" / "transfer.py", "nowhere", "--weights", "none.pth"]
    done = subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("transfer.py: data/nowhere")
    assert done.stderr.count("\n") == 1
