"""Sources of one's own are imported only if the caller names them."""

import sys

import pytest

from resnet_jax.cli.main import main
from resnet_jax.data.datasets import open_split
from resnet_jax.errors import InputError
from resnet_jax.recipe import Data, Recipe, load_recipe, to_json

CODE = """
from resnet_jax.data.datasets import DATASETS
from resnet_jax.data.source import Source

def birds(split, folder):
    return DATASETS["tiny"](split, folder)

def nothing(split, folder):
    return 3

number = 3
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    (tmp_path / "own_package").mkdir()
    (tmp_path / "own_package" / "__init__.py").write_text("")
    (tmp_path / "own_package" / "data.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("own_package")]:
        del sys.modules[name]


NAME = "own_package.data:birds"


def test_a_recipe_in_a_file_imports_nothing(package):
    (package / "r.json").write_text(to_json(Recipe(data=Data(name=NAME))))
    with pytest.raises(InputError, match=f"its data are {NAME}, which are imported only if you name them"):
        load_recipe(package / "r.json")
    assert load_recipe(package / "r.json", data=NAME).data.name == NAME
    with pytest.raises(InputError, match=f"data.name is {NAME}, which is imported only if you name it"):
        open_split(NAME, "train", package)
    assert "own_package" not in sys.modules


def test_a_run_of_it(package, tiny, capsys):
    (package / "r.json").write_text(to_json(tiny))
    words = ["train", "r.json", "--devices", "1", "--data.name", NAME, "--out", "run"]
    assert main([*words, "--stop-at", "3"]) == 0
    assert main(["evaluate", "run"]) == 2
    assert "which is imported only if you name it" in capsys.readouterr().err
    assert main(["train", "run", "--devices", "1"]) == 2
    assert f"name it with --data.name {NAME}" in capsys.readouterr().err
    assert main(["train", "run", "--devices", "1", "--data.name", NAME, "--stop-at", "4"]) == 0
    assert main(["evaluate", "run", "--data", NAME]) == 0
    assert "test, 10 examples" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_package.gone:birds", "cannot be imported"),
        ("own_package.data:gone", "cannot be imported"),
        ("own_package.data:number", "a int, not a function of"),
        ("own_package.data:nothing", "returns a int, not a Source"),
    ],
)
def test_what_is_no_source_is_one_line(package, name, message):
    with pytest.raises(InputError, match=message):
        open_split(name, "train", package, trusted=True)
