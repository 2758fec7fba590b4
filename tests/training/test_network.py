"""Networks from recipes: changed fields, and networks of one's own by name."""

import json
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from PIL import Image

from resnet_jax.cli.main import main
from resnet_jax.errors import InputError
from resnet_jax.models.blocks import Bottleneck
from resnet_jax.models.layers import blur_pool
from resnet_jax.models.norm import BatchNorm
from resnet_jax.recipe import Model, Recipe, from_json, load_recipe, to_json
from resnet_jax.training.network import build_network


def build(**fields):
    return build_network(Model(name="resnet20", fields=fields), 10)


def test_fields_are_those_of_the_module():
    network = build(depths=(1, 2), width=8, block="Bottleneck", stem="ImageNetStem", antialias="blur")
    assert (network.depths, network.width, network.block, network.antialias) == ((1, 2), 8, Bottleneck, blur_pool)
    assert network.norm.func is BatchNorm
    images = jnp.zeros((2, 32, 32, 3))
    shape = jax.eval_shape(lambda: network.init_with_output(jax.random.key(0), images, train=False)[0])
    assert shape.shape == (2, 10)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"widht": 8}, "ResNet has no field 'widht'; nearest: width"),
        ({"width": 0}, "width is 0; it must be a positive integer"),
        ({"width": 1.5}, r"width is 1.5; it must be a positive integer"),
        ({"width": True}, "width is True; it must be a positive integer"),
        ({"depths": ()}, r"depths is \(\); it must be positive integers"),
        ({"depths": (1, "a")}, "depths is .*; it must be positive integers"),
        ({"widths": 16}, "widths is 16; it must be positive integers"),
        ({"block": "Bottlenek"}, "block is 'Bottlenek'; take one of BasicBlock"),
        ({"block": "os.system"}, "block is 'os.system'; take one of"),
        ({"antialias": True}, "antialias is True; take one of None, blur, average"),
        ({"dropout": 0.5}, "dropout cannot be set here; set model.dropout instead"),
        ({"num_classes": 5}, "num_classes cannot be set here; the data decide it"),
    ],
)
def test_wrong_fields_are_refused_in_one_line(fields, message):
    with pytest.raises(InputError, match=message):
        build(**fields)


@pytest.mark.parametrize("name", ["strides", "widths"])
def test_a_value_for_each_stage(name):
    with pytest.raises(InputError, match=f"{name} has 2 values; it must have 3, one per stage"):
        build(**{name: (16, 8)}).stages()
    assert [stage.features for stage in build(widths=(16, 8, 40)).stages()] == [16, 8, 40]
    assert build(last_features=7).stages()[-1].channels == 7


def test_fields_survive_json():
    recipe = Recipe(model=Model(name="resnet20", fields={"depths": (1, 2), "width": 8}))
    assert from_json(to_json(recipe)) == recipe


OWN = """
import flax.linen as nn
print("imported")

class Net(nn.Module):
    num_classes: int
    width: int = 4

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.relu(nn.Dense(self.width)(x.reshape(len(x), -1)))
        return nn.Dense(self.num_classes)(x)

fixed = Net(num_classes=3)

def number(num_classes):
    return 5
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_networks.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("own_networks", None)


@pytest.mark.parametrize("name", ["Net", "fixed"])
def test_a_network_of_your_own(own, name):
    network = build_network(Model(name=f"own_networks:{name}", fields={"width": 6}), 3)
    assert (type(network).__name__, network.width, network.num_classes) == ("Net", 6, 3)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("own_networks:Nett", {}, "own_networks:Nett: cannot be imported"),
        ("no_such_module:Net", {}, "cannot be imported"),
        ("own_networks:number", {}, "a int, not a linen module"),
        ("own_networks:Net", {"height": 2}, "height"),
        ("own_networks:fixed", {"height": 2}, "height"),
    ],
)
def test_what_is_not_a_network_is_refused(own, name, fields, message):
    with pytest.raises(InputError, match=message):
        build_network(Model(name=name, fields=fields), 3)


def test_a_run_directory_alone_imports_nothing(own, tiny, tmp_path, capsys):
    recipe = replace(tiny, model=Model(name="own_networks:Net"), steps=2)
    (tmp_path / "recipe.json").write_text(to_json(recipe))
    with pytest.raises(InputError, match="own_networks:Net"):
        load_recipe(tmp_path / "recipe.json")
    assert load_recipe(tmp_path / "recipe.json", network="own_networks:Net") == recipe
    with pytest.raises(InputError, match="own_networks:Net"):
        load_recipe(tmp_path / "recipe.json", network="own_networks:fixed")
    assert "own_networks" not in sys.modules

    named = ["--model.name", "own_networks:Net"]
    assert main(["train", "recipe.json", "--out", "run", "--devices", "1", *named]) == 0
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["model"]["name"] == "own_networks:Net"
    sys.modules.pop("own_networks")
    Image.new("L", (8, 8)).save("image.png")
    capsys.readouterr()
    for command in (["train", "run"], ["evaluate", "run"], ["predict", "run", "image.png"]):
        assert main(command) == 2, command
        assert "own_networks:Net" in capsys.readouterr().err
    assert "own_networks" not in sys.modules
    own = ["run", "--network", "own_networks:Net"]
    assert main(["evaluate", *own, "--devices", "1"]) == 0
    assert main(["predict", *own[:1], "image.png", *own[1:]]) == 0
    capsys.readouterr()
    assert main(["report", *own, "--devices", "1"]) == 0
    printed = capsys.readouterr()
    assert "run/report/index.html: 1 run of 1 recipe\n" in printed.out
    assert "left out" not in printed.out
    assert "<h2>Confusion" in (tmp_path / "run" / "report" / "index.html").read_text()
    assert main(["explain", *own[:1], "image.png", *own[1:], "--out", "map.png"]) == 2
    assert "explain knows the parts of ResNet; this network is a Net of your own" in capsys.readouterr().err


def test_networks_of_a_recipe_are_equal():
    """So that what was traced for one serves the other."""
    models = Model(name="resnet8"), Model(name="resnet8", norm_group_size=8), Model(name="resnet8")
    plain, grouped, again = (build_network(model, 10) for model in models)
    assert plain == again
    assert hash(plain) == hash(again)
    assert plain != grouped
