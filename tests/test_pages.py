"""The commands on the pages of experiments/ are valid, and the links lead somewhere."""

import re
import shlex

import pytest
from conftest import ROOT

from resnet_jax.cli.main import COMMANDS, main

HOME = ROOT / "experiments"
PAGES = sorted(HOME.rglob("*.md"))
WRITTEN = sorted(
    {
        command
        for page in PAGES
        for command in re.findall(r"`((?:resnet-jax|python) [^`]*)`", page.read_text())
        if not re.search(r"\.\.\.|\bFILE\b", command)
    }
)


def test_there_are_commands():
    assert len(WRITTEN) > 30


@pytest.mark.parametrize("command", [c for c in WRITTEN if c.startswith("resnet-jax train")])
def test_a_training_lacks_only_its_data(command, tmp_path, monkeypatch, capsys):
    """Recipe and flags are read before the data, which the placeholders of the page do not name."""
    words = [str(ROOT / word) if word.startswith("experiments/") else word for word in shlex.split(command)[1:]]
    if not any(word.startswith(("folder:", "FOLDER")) for word in words):
        words += ["--data.name", "folder:FOLDER"]
    monkeypatch.chdir(tmp_path)
    assert main([*words, "--out", "run"]) == 2
    error = capsys.readouterr().err
    assert re.search("FOLDER|IMAGENET|HYMENOPTERA", error), error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", [c for c in WRITTEN if not c.startswith("resnet-jax train")])
def test_a_command_exists_with_its_flags(command):
    first, *words = shlex.split(command)
    if first == "resnet-jax":
        assert words[0] in COMMANDS
        return
    file = ROOT / (words[1].replace(".", "/") + ".py" if words[0] == "-m" else words[0])
    text = file.read_text()
    # The flags of the questions are in one place
    if file.parent.name == "questions":
        text += (file.parent / "trials.py").read_text()
    for word in words:
        assert not word.startswith("--") or f'"{word}"' in text, f"{file.name} has no {word}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(HOME)))
def test_links_of_a_page_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{target} is missing"
