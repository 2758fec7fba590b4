"""Recipes in Python files: what such a file may do."""

import sys

import pytest

from resnet_jax.errors import InputError
from resnet_jax.recipe import load_recipe


def test_dataclasses_and_files_beside_it(tmp_path):
    """Each recipe has the file beside it, and none stays importable."""
    text = (
        "from __future__ import annotations\n"
        "import dataclasses\n"
        "from common import SEED\n"
        "from resnet_jax import Recipe\n"
        "@dataclasses.dataclass\n"
        "class Mine:\n    seed: int = SEED\n"
        "recipe = Recipe(seed=Mine().seed)\n"
    )
    before, path = set(sys.modules), list(sys.path)
    for seed in (3, 4):
        folder = tmp_path / str(seed)
        folder.mkdir()
        (folder / "common.py").write_text(f"SEED = {seed}\n")
        (folder / "json.py").write_text(text)
        assert load_recipe(folder / "json.py").seed == seed
        assert load_recipe(str(folder / "json.py")).seed == seed
    assert sys.path == path
    assert "common" not in sys.modules
    assert before <= set(sys.modules)


@pytest.mark.parametrize("line", ["import sys; sys.exit()", "raise SystemExit('usage')", "exit(3)"])
def test_a_file_that_exits_is_one_line(tmp_path, line):
    (tmp_path / "r.py").write_text(line)
    with pytest.raises(InputError, match=r"r.py: exits instead of defining a recipe; exit only if __name__ == "):
        load_recipe(tmp_path / "r.py")
