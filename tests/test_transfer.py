"""Fine-tuning: what each way of experiments/transfer.py moves, and weights as the hub's cache holds them."""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT
from huggingface_hub import constants
from PIL import Image
from rich.console import Console

from resnet_jax.model.zoo import MODELS
from resnet_jax.recipe import load_recipe
from resnet_jax.train.checkpoint import load_run
from resnet_jax.train.directory import read_environments
from resnet_jax.train.habits import Habits
from resnet_jax.train.run import train_recipe
from resnet_jax.weights.names import to_state_dict
from resnet_jax.weights.tensors import write_tensors

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A folder of two classes, 12 photos to train on and 6 to test, one class lighter than the other."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 3)):
        for light, name in enumerate(("ants", "bees")):
            home = tmp_path / "photos" / split / name
            home.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(100 * light, 100 * light + 150, (20, 24, 3), np.uint8)
                Image.fromarray(pixels).save(home / f"{number}.png")
    return "photos"


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """A function that puts random weights of a network where the hub's cache has those of a repository."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def put(model, repository):
        home = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
        for folder in ("refs", f"snapshots/{COMMIT}"):
            (home / folder).mkdir(parents=True)
        (home / "refs" / "main").write_text(COMMIT)
        (home / "snapshots" / COMMIT / "config.json").write_text("{}")
        shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
        random = np.random.default_rng(0)
        variables = jax.tree.map(lambda leaf: random.uniform(0.1, 0.3, leaf.shape).astype(np.float32), shapes)
        write_tensors(home / "snapshots" / COMMIT / "model.safetensors", to_state_dict(model, variables))
        return variables

    return put


def test_four_ways_of_the_script(tiny, script, photos, cached, monkeypatch, capsys):
    transfer = script("transfer.py")
    monkeypatch.setattr(transfer, "train_recipe", partial(train_recipe, devices=1))
    weights = cached(MODELS["tiny"].clone(num_classes=1000), "me/tiny")
    words = ["transfer.py", photos, "--weights", "hf:me/tiny", "--model", "tiny", "--size", "16"]
    monkeypatch.setattr(sys, "argv", [*words, "--epochs", "2", "--seeds", "2", "--out", "runs"])
    transfer.main()
    table = capsys.readouterr().out
    assert [line.split(" | ")[0] for line in table.splitlines()[2:6]] == [f"| {way}" for way in transfer.WAYS]
    assert table.count("(n = 2)") == 4
    home = Path("runs/tiny-16-2")
    with Image.open(home / "transfer.png") as picture:
        assert picture.width > 500
    assert read_environments(home / "all-layers-0")[0]["pretrained"]["file"].endswith(f"{COMMIT}/model.safetensors")

    def moved(way, where):
        """How far a parameter went from where it was in the weights."""
        now = load_run(home / f"{way}-0", 1)[1].params
        apart = jax.tree.map(lambda a, b: float(jnp.abs(a - b).sum()), now[where], weights["params"][where])
        return sum(jax.tree.leaves(apart))

    assert moved("head-only", "stem") == moved("head-only", "stage1_block1") == 0
    assert 0 < moved("layer-wise-rates", "stem") < moved("all-layers", "stem") < moved("from-scratch", "stem")
    frozen, free = (load_run(home / f"{way}-0", 1)[1].batch_stats for way in ("head-only", "all-layers"))
    chex.assert_trees_all_equal(frozen, weights["batch_stats"])
    assert not np.allclose(free["stem"]["norm"]["mean"], weights["batch_stats"]["stem"]["norm"]["mean"])
    transfer.main()  # what is finished is not trained again
    assert capsys.readouterr().out == table


@pytest.mark.slow
def test_resnet50_from_the_cache_of_the_hub(photos, cached):
    """The recipe as it is, but for the folder and its size: two steps from timm's names and shapes, in 102 MB."""
    weights = cached(MODELS["resnet50"], "timm/resnet50.a1_in1k")
    recipe = load_recipe(ROOT / "experiments" / "finetune" / "resnet50.py")
    recipe = replace(recipe, data=replace(recipe.data, name=f"folder:{photos}", size=32), batch_size=4)
    result = train_recipe(recipe, Path("run"), habits=Habits(stop_at=2), devices=1, console=Console(quiet=True))
    assert result.step == 2
    assert result.state.params["head"]["kernel"].shape == (2048, 2)
    kernel, before = (p["stage4_block1"]["conv2"]["kernel"] for p in (result.state.params, weights["params"]))
    assert 0 < float(jnp.abs(kernel - before).max()) < 0.05
