"""The programs of docs/how-do-i.md run, on a small network and few images, and the snippets of all pages compile."""

import re

import numpy as np
import pytest
from conftest import ROOT

from resnet_jax.data.datasets import DATASETS
from resnet_jax.data.source import subset
from resnet_jax.models.zoo import MODELS

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
ANSWERS = re.findall(r"^## \.\.\. (.*?)\?$.*?```python\n(.*?)```", (ROOT / "docs/how-do-i.md").read_text(), re.M | re.S)


@pytest.fixture
def _small(monkeypatch, tmp_path):
    """The digits as two batches and a network of four layers, under the names that the page uses."""
    digits = DATASETS["digits"]

    def few(split, folder):
        return subset(digits(split, folder), np.arange(128 if split == "train" else 32))

    monkeypatch.setitem(DATASETS, "digits", few)
    monkeypatch.setitem(MODELS, "resnet20", MODELS["resnet8"].clone(depths=(1,), width=4))
    monkeypatch.chdir(tmp_path)


def test_there_are_answers():
    assert len(ANSWERS) >= 12


@pytest.mark.slow
@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("program", [code for _, code in ANSWERS], ids=[question for question, _ in ANSWERS])
def test_an_answer_runs(program, capsys):
    program = program.replace("Recipe()", "Recipe(epochs=4)")
    exec(compile(program, "how-do-i.md", "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_snippets_compile(page):
    for code in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S):
        compile(code, page.name, "exec")
