"""The README agrees with the library."""

import os
import re

import pytest
from conftest import ROOT

from resnet_jax.cli.main import main
from resnet_jax.models.zoo import MODELS
from resnet_jax.weights.entries import WEIGHTS

README = (ROOT / "README.md").read_text()


def test_all_networks_are_in_the_table():
    for name in MODELS:
        assert f"| {name} |" in README, name
    assert f"All {len(MODELS)} networks" in README


def test_the_table_of_networks_is_the_generated_one(capsys):
    assert main(["list", "--markdown"]) == 0
    assert capsys.readouterr().out.strip() in README
    assert f"All {len(MODELS)} networks" in README


def test_counts_in_the_changes():
    changes = (ROOT / "CHANGELOG.md").read_text()
    assert f"{len(MODELS)} networks" in changes
    assert f"{len(WEIGHTS)} published weights" in changes


@pytest.mark.slow
def test_the_fine_tuning_example_runs(real_data, tmp_path, monkeypatch, capsys):
    code = next(block for block in re.findall(r"```python\n(.*?)```", README, re.S) if "folder:hymenoptera" in block)
    monkeypatch.chdir(tmp_path)
    os.symlink(real_data / "hymenoptera", "hymenoptera")
    os.symlink(real_data / "weights" / "resnet20-12fca82f.th", "resnet20-12fca82f.th")
    exec(compile(code.replace("epochs=12", "epochs=1"), "README.md", "exec"), {})
    out = capsys.readouterr().out
    assert "its head of 10 classes is left out; one of 2 is initialised" in out
    assert float(out.splitlines()[-1]) > 0.4


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", README, re.S))
def test_examples_compile(block):
    compile(block, "README.md", "exec")
