"""The README agrees with the library, and its commands and programs run."""

import os
import re
import shlex
import shutil

import pytest
from conftest import ROOT

from resnet_jax.cli.completion import flags_of
from resnet_jax.cli.main import COMMANDS, main
from resnet_jax.models.zoo import MODELS
from resnet_jax.weights.entries import WEIGHTS

README = (ROOT / "README.md").read_text()
COMMAND_LINES = re.findall(r"^(resnet-jax .*?)(?:  +#.*)?$", README, re.M)
PROGRAMS = re.findall(r"```python\n(.*?)```", README, re.S)


def test_it_is_short():
    assert len(README.splitlines()) <= 140


def test_counts():
    networks, weights = re.search(r"over (\d+) networks and (\d+) published weights", README).groups()
    assert int(networks) <= len(MODELS) < int(networks) + 30
    assert int(weights) <= len(WEIGHTS) < int(weights) + 60
    answers = re.findall(r"^## \.\.\. ", (ROOT / "docs" / "how-do-i.md").read_text(), re.M)
    assert f"{len(answers)} complete programs" in README


def test_counts_in_the_changes():
    changes = (ROOT / "CHANGELOG.md").read_text()
    assert f"{len(MODELS)} networks" in changes
    assert f"{len(WEIGHTS)} published weights" in changes


@pytest.mark.parametrize("command", COMMAND_LINES)
def test_a_command_exists_with_its_flags(command):
    _, name, *words = shlex.split(command)
    known = flags_of(COMMANDS[name][0])
    assert {word for word in words if word.startswith("--")} <= {*known}


@pytest.mark.slow
def test_its_commands_run(monkeypatch, tmp_path, capsys):
    shutil.copytree(ROOT / "experiments" / "pictures", tmp_path / "experiments" / "pictures")
    monkeypatch.chdir(tmp_path)
    assert len(COMMAND_LINES) >= 7
    for command in COMMAND_LINES:
        words = shlex.split(command.replace("resnet32", "resnet14"))[1:]
        # A small network and one epoch, as most of the time goes into compiling
        short = ["--epochs", "1", "--devices", "1"] if words[0] == "train" else []
        short += ["--model.name", "resnet8"] if short and "--model.name" not in words else []
        assert main([*words, *short]) == 0, f"{command}: {capsys.readouterr().err}"
    assert (tmp_path / "runs" / "deeper" / "seed2" / "metrics.jsonl").is_file()


@pytest.mark.slow
def test_its_first_program_runs(real_data, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    small = PROGRAMS[0].replace('"resnet50"', '"resnet20"').replace("1, 224, 224, 3", "1, 32, 32, 3")
    small = small.replace("resnet50.a1_in1k", str(real_data / "weights" / "resnet20-12fca82f.th"))
    names = {}
    exec(compile(small, "README.md", "exec"), names)
    assert names["logits"].shape == (1, 10)
    assert [stage.shape[-1] for stage in names["maps"]] == [16, 32, 64]


@pytest.mark.slow
def test_the_fine_tuning_example_runs(real_data, tmp_path, monkeypatch, capsys):
    code = next(block for block in PROGRAMS if "folder:pets" in block)
    monkeypatch.chdir(tmp_path)
    os.symlink(real_data / "hymenoptera", "pets")
    for old, new in {
        'name="resnet50"': 'name="resnet20"',
        "resnet50.a1_in1k": str(real_data / "weights" / "resnet20-12fca82f.th"),
        "image_size=224": "image_size=48",
        "epochs=12": "epochs=4",
    }.items():
        assert old in code
        code = code.replace(old, new)
    exec(compile(code, "README.md", "exec"), {})
    out = capsys.readouterr().out
    assert "its head for 10 classes is dropped; a new one for 2 is initialised" in out
    assert float(out.splitlines()[-1]) > 0.4
