"""Fine-tuning: what each method of experiments/transfer.py trains, and weights from the hub's cache."""

import sys
import zipfile
from dataclasses import replace
from io import BytesIO, StringIO
from pathlib import Path
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, TINY
from huggingface_hub import constants
from PIL import Image
from rich.console import Console

from resnet_jax.inference.load_run import load_run
from resnet_jax.models.zoo import MODELS
from resnet_jax.recipe import Model, check, load_recipe
from resnet_jax.run_dir.environment import read_environments
from resnet_jax.run_dir.files import read_dataset_info
from resnet_jax.training.network import build_network
from resnet_jax.training.options import RunOptions
from resnet_jax.training.run import train
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


def test_methods_differ_in_their_fields(script, monkeypatch, tmp_path):
    """What is trained, without training."""
    transfer, recipes = script("transfer.py"), {}

    def train(recipe, out, **options):
        recipes[out.name] = check(recipe)
        rows = [{"test/accuracy": 0.5 + recipe.seed / 10, "train_seconds": 2.0 + recipe.seed}]
        return SimpleNamespace(signal=0, rows=rows)

    monkeypatch.setattr(transfer, "train", train)
    recipe = transfer.make_recipe("bees", Model(name="resnet20", pretrained="hf:me/net"), 16, 2)
    found = [transfer.measure(method, recipe, 2, tmp_path) for method in transfer.METHODS]
    assert [str(result) for result in found] == ["55.00 % ± 7.07 (n = 2)"] * 4
    assert found[0].seconds == 2.5
    assert recipes["all-layers-0"] == recipe
    assert recipes["all-layers-1"] == replace(recipe, seed=1)
    scratch, head, rates = (recipes[f"{name}-0"] for name in ("from-scratch", "head-only", "layer-wise-rates"))
    assert scratch == replace(recipe, model=replace(recipe.model, pretrained=None))
    assert (head.model.freeze_norm, head.optimizer.freeze) == (True, ("stem", "stage*"))
    assert rates == replace(recipe, optimizer=replace(recipe.optimizer, layer_decay=0.8))
    transfer.draw(found, "title", tmp_path / "transfer.png")
    with Image.open(tmp_path / "transfer.png") as picture:
        assert picture.width > 500


@pytest.mark.slow
def test_four_methods(script, photos, cached, monkeypatch, capsys):
    """A network of one block, two steps with one seed, and another seed of one method."""
    transfer = script("transfer.py")
    model = Model(name="resnet8", fields={"depths": (1,), "width": 4}, pretrained="hf:me/tiny")
    weights = cached(build_network(model, 1000), "me/tiny")
    home, recipe = Path("runs"), transfer.make_recipe(photos, model, 12, 2)
    recipe = replace(recipe, batch_size=12)
    transfer.compare(recipe, 1, home, RunOptions(devices=1))
    table = capsys.readouterr().out
    methods = [line.split(" | ")[0] for line in table.splitlines()[2:6]]
    assert methods == [f"| {method}" for method in transfer.METHODS]
    assert table.count("(n = 1)") == 4
    with Image.open(home / "transfer.png") as picture:
        assert picture.width > 500
    assert read_environments(home / "all-layers-0")[0]["pretrained"]["file"].endswith(f"{COMMIT}/model.safetensors")

    states = {name: load_run(home / f"{name.replace(' ', '-')}-0", 1)[1] for name in transfer.METHODS}

    def moved(method, where):
        """Return how far the parameters are from the pretrained ones."""
        now, before = states[method].params[where], weights["params"][where]
        return sum(float(np.abs(a - b).sum()) for a, b in zip(*map(jax.tree.leaves, (now, before)), strict=True))

    assert moved("head only", "stem") == moved("head only", "stage1_block1") == 0
    assert 0 < moved("layer-wise rates", "stem") < moved("all layers", "stem") < moved("from scratch", "stem")
    frozen, free = (states[method].batch_stats for method in ("head only", "all layers"))
    chex.assert_trees_all_equal(frozen, weights["batch_stats"])
    assert not np.allclose(free["stem"]["norm"]["mean"], weights["batch_stats"]["stem"]["norm"]["mean"])
    # Finished runs are not trained again
    transfer.compare(recipe, 1, home, RunOptions(devices=1))
    assert capsys.readouterr().out == table
    both = transfer.measure("head only", recipe, 2, home, RunOptions(devices=1))
    assert str(both).endswith("(n = 2)")
    assert (home / "head-only-1" / "metrics.jsonl").is_file()


def test_flags_make_the_recipe(script, monkeypatch):
    transfer, calls = script("transfer.py"), []
    monkeypatch.setattr(transfer, "compare", lambda *arguments: calls.append(arguments))
    words = ["transfer.py", "bees", "--weights", "hf:me/net", "--model", "resnet56", "--size", "16", "--epochs", "2"]
    monkeypatch.setattr(sys, "argv", [*words, "--seeds", "5", "--out", "there"])
    transfer.main()
    ((recipe, seeds, out),) = calls
    model = Model(name="resnet56", pretrained="hf:me/net")
    assert recipe == check(recipe) == transfer.make_recipe("bees", model, 16, 2)
    assert (recipe.data.name, recipe.data.image_size, recipe.epochs) == ("folder:bees", 16, 2)
    assert (seeds, out) == (5, Path("there/resnet56-16-2"))


@pytest.mark.parametrize("pattern", [None, "files:pets.zip/PetImages/{class}/*.jpg"], ids=["Kaggle's", "Microsoft's"])
def test_archives_of_cats_and_dogs(tmp_path, pattern):
    """The layouts of both archives, with a file of no bytes, one that is cut short, and one that is no image."""
    names = {"cat": ("Cat", 0), "dog": ("Dog", 100)}
    with zipfile.ZipFile(tmp_path / ("pets.zip" if pattern else "train.zip"), "w") as archive:
        for number in range(40):
            kind = ("cat", "dog")[number % 2]
            folder, brightness = names[kind]
            content = BytesIO()
            noise = np.random.default_rng(number).integers(0, 100, (20, 24, 3)) + brightness
            Image.fromarray(noise.astype(np.uint8)).save(content, "jpeg")
            cut = {4: 0, 11: 300}.get(number)
            where = f"PetImages/{folder}/{number}.jpg" if pattern else f"train/{kind}.{number}.jpg"
            archive.writestr(where, content.getvalue()[:cut])
        archive.writestr("PetImages/Cat/Thumbs.db" if pattern else "readme.txt", b"no image")
    recipe = load_recipe(ROOT / "experiments" / "finetune" / "cats_dogs.py")
    data = replace(recipe.data, image_size=16, **({"name": pattern} if pattern else {}))
    augment = replace(recipe.augment, rrc_from="resized")
    recipe = replace(recipe, model=TINY, data=data, augment=augment, batch_size=12)
    options = RunOptions(data_dir=tmp_path, stop_at=3, eval_every=3, devices=1, max_corrupt_fraction=0.1)
    said = StringIO()
    result = train(recipe, tmp_path / "run", options=options, console=Console(file=said, width=200))
    assert result.step == 3
    dataset = read_dataset_info(tmp_path / "run")
    assert (dataset.classes, dataset.train_size) == (("Cat", "Dog") if pattern else ("cat", "dog"), 36)
    assert said.getvalue().count("replaced by the next image") == 2


@pytest.mark.slow
def test_resnet50_from_the_cache_of_the_hub(photos, cached):
    """The recipe as it is, except for the folder and its size: two steps from timm's names and shapes, in 102 MB."""
    weights = cached(MODELS["resnet50"], "timm/resnet50.a1_in1k")
    recipe = load_recipe(ROOT / "experiments" / "finetune" / "resnet50.py")
    recipe = replace(recipe, data=replace(recipe.data, name=f"folder:{photos}", image_size=32), batch_size=4)
    result = train(recipe, Path("run"), options=RunOptions(stop_at=2, devices=1), console=Console(quiet=True))
    assert result.step == 2
    assert result.state.params["head"]["kernel"].shape == (2048, 2)
    kernel, before = (p["stage4_block1"]["conv2"]["kernel"] for p in (result.state.params, weights["params"]))
    assert 0 < float(jnp.abs(kernel - before).max()) < 0.05
