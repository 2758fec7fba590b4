"""The recipes in experiments: valid, faithful to their sources, and buildable for the data that they expect."""

import ast
import dataclasses

import jax
import numpy as np
import pytest
from conftest import ROOT

from resnet_jax.cli.main import main
from resnet_jax.data.source import from_arrays
from resnet_jax.recipe import Optimizer, Recipe, Schedule, check, fields_of, from_json, load_recipe, to_json
from resnet_jax.run_dir.files import DatasetInfo
from resnet_jax.training.init import abstract_train_state
from resnet_jax.training.options import RunOptions
from resnet_jax.training.run import train
from resnet_jax.training.setup import make_setup

HOME = ROOT / "experiments"
RECIPES = ("cifar10", "finetune", "imagenet")  # the other folders hold scripts
EXPERIMENTS = sorted([HOME / "digits.py", *(path for folder in RECIPES for path in (HOME / folder).glob("*.py"))])
DATASETS = {
    "digits": DatasetInfo(tuple("0123456789"), (8, 8, 1), 1437, ""),
    "cifar10": DatasetInfo(tuple("0123456789"), (32, 32, 3), 50_000, ""),
    "folder:hymenoptera": DatasetInfo(("ants", "bees"), (224, 224, 3), 244, ""),
    "files:train.zip/train/{class}.*.jpg": DatasetInfo(("cat", "dog"), (224, 224, 3), 22_500, ""),
    "folder:imagenet": DatasetInfo(tuple(map(str, range(1000))), (224, 224, 3), 1_281_167, ""),
}


def named(path):
    return load_recipe(HOME / f"{path}.py")


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_every_experiment_is_a_sound_recipe(path):
    recipe = check(load_recipe(path))
    assert from_json(to_json(recipe)) == recipe
    assert f"resnet-jax train {path.relative_to(ROOT)}" in ast.get_docstring(ast.parse(path.read_text()))


# Tracing over a hundred layers takes seconds
DEEP = ("resnet110", "resnet110v2", "resnet164v2")


@pytest.mark.parametrize(
    "path", [pytest.param(p, id=p.stem, marks=[pytest.mark.slow] * (p.stem in DEEP)) for p in EXPERIMENTS]
)
def test_every_experiment_can_be_built(path):
    """Network, learning rates and optimiser, of shapes alone."""
    recipe = check(load_recipe(path))
    dataset = DATASETS[recipe.data.name]
    size = recipe.data.image_size or dataset.image_shape[0]
    setup = make_setup(recipe, dataclasses.replace(dataset, image_shape=(size, size, dataset.image_shape[2])), 1)
    state = abstract_train_state(setup)
    assert state.params["head"]["bias"].shape == (len(dataset.classes),)
    assert all(leaf.size for leaf in jax.tree.leaves(state))
    rates = [float(setup.schedule(step)) for step in range(0, setup.steps, -(-setup.steps // 50))]
    assert max(rates) == pytest.approx(recipe.optimizer.lr, rel=0.05)
    assert float(setup.schedule(setup.steps - 1)) < 0.01 * recipe.optimizer.lr + 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_every_experiment_trains(path, tmp_path):
    """Two steps of the recipe as it is, except for a tiny network on a few small images."""
    recipe = load_recipe(path)
    group, channels = recipe.model.norm_group_size and 4, DATASETS[recipe.data.name].image_shape[-1]
    tiny = dataclasses.replace(
        recipe.model,
        name="resnet8",
        fields={"depths": (1, 1), "width": 4},
        shortcut=None,
        pretrained=None,
        norm_group_size=group,
    )
    recipe = dataclasses.replace(
        recipe,
        model=tiny,
        data=dataclasses.replace(recipe.data, image_size=None),
        augment=dataclasses.replace(recipe.augment, rrc_from="resized", train_crop_size=None),
        batch_size=24,
    )
    images = np.random.default_rng(0).integers(0, 256, (48, 16, 16, channels), np.uint8)
    source = from_arrays(images, np.arange(48) % 10, list("0123456789"))
    result = train(recipe, tmp_path, data=(source, source), options=RunOptions(devices=1, stop_at=2, eval_every=2))
    assert result.step == 2
    assert np.isfinite(result.rows[-1]["train/loss"])
    assert ("ema/test/loss" in result.rows[-1]) == (recipe.ema_decay > 0)


def test_digits_is_the_default():
    assert named("digits") == Recipe()


def test_the_papers_recipes_say_what_they_rely_on():
    """Each is written out: no change of a default changes it."""
    for path in EXPERIMENTS:
        recipe, defaults = load_recipe(path), dict(fields_of(Recipe()))
        if path.parent == HOME:
            continue
        text = path.read_text()
        base = "load_recipe(" in text
        for name in ("name=", "lr=", "weight_decay=", "weight_decay_mask=", "momentum=", "nesterov=", "warmup="):
            lamb = recipe.optimizer.name == "lamb" and name in ("momentum=", "nesterov=")
            assert base or lamb or name in text, f"{path.name} does not say {name}"
        assert recipe.augment.crop_padding in (0, 4)
        assert recipe.data.name != defaults["data.name"]


def test_resnet20_on_cifar10_is_that_of_the_paper():
    recipe = named("cifar10/resnet20")
    assert (recipe.batch_size, recipe.steps, recipe.schedule.milestones) == (128, 64_000, (32_000, 48_000))
    o = recipe.optimizer
    assert (o.lr, o.momentum, o.nesterov, o.weight_decay, o.weight_decay_mask) == (0.1, 0.9, False, 1e-4, "all")


def test_deeper_networks_of_he_are_trained_the_same_way():
    deep = named("cifar10/resnet110")
    assert deep.schedule == dataclasses.replace(named("cifar10/resnet20").schedule, warmup=400, warmup_start_factor=0.1)
    assert deep.optimizer == named("cifar10/resnet20").optimizer
    for name in ("resnet110v2", "resnet164v2"):
        other = named(f"cifar10/{name}")
        assert other == dataclasses.replace(deep, model=dataclasses.replace(deep.model, name=name, shortcut=None))


def test_wide_networks():
    wide, narrow = named("cifar10/wrn_28_10"), named("cifar10/wrn_16_8")
    assert dataclasses.replace(narrow, model=wide.model) == wide
    assert (wide.schedule.milestones, wide.schedule.gamma, wide.epochs) == ((60, 120, 160), 0.2, 200)


def test_large_batches_of_goyal():
    """The linear scaling rule: 0.1 per 256 images, from 0.1, in groups of 32."""
    recipe = named("imagenet/goyal2017")
    peak = recipe.optimizer.lr
    assert peak == pytest.approx(0.1 * recipe.batch_size / 256)
    assert recipe.schedule.warmup_start_factor * peak == pytest.approx(0.1)
    assert recipe.model.norm_group_size == 32


def test_the_ema_of_torchvision():
    """train.py: alpha = (1 - decay) * processes * batch * steps / epochs."""
    assert 1 - named("imagenet/torchvision_v2").ema_decay == pytest.approx(2e-5 * 8 * 128 * 32 / 600)


def test_three_procedures_of_strikes_back():
    a1, a2, a3 = (named(f"imagenet/strikes_back_a{n}") for n in (1, 2, 3))
    assert [r.epochs for r in (a1, a2, a3)] == [600, 300, 100]
    assert [r.optimizer.weight_decay for r in (a1, a2, a3)] == [0.01, 0.02, 0.02]
    assert [r.optimizer.lr for r in (a1, a2, a3)] == [5e-3, 5e-3, 8e-3]
    assert [(r.augment.mixup_alpha, r.augment.magnitude) for r in (a1, a2, a3)] == [(0.2, 7), (0.1, 7), (0.1, 6)]
    assert [(r.augment.train_crop_size, r.augment.aug_repeats) for r in (a1, a2, a3)] == [(224, 3), (224, 3), (160, 1)]
    for recipe in (a1, a2, a3):
        assert recipe.schedule.end_factor * recipe.optimizer.lr == pytest.approx(1e-6)
        assert recipe.schedule.warmup_start_factor * recipe.optimizer.lr == pytest.approx(1e-4)
        assert recipe.batch_size / recipe.model.norm_group_size == 4


def test_a_variant_is_trained_from_the_command_line(tmp_path, monkeypatch, capsys):
    """A recipe that extends another is found from any directory; only its data are missing here."""
    monkeypatch.chdir(tmp_path)
    words = ["train", str(HOME / "imagenet" / "strikes_back_a3.py"), "--data.name", "folder:nowhere"]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "nowhere" in error
    assert error.count("\n") == 1


def test_the_schedule_of_another_optimizer_is_one_flag_away():
    """Fields of SGD do not stop a recipe from using another optimiser, unless they would be silently ignored."""
    recipe = named("cifar10/resnet20")
    check(dataclasses.replace(recipe, optimizer=dataclasses.replace(recipe.optimizer, name="adamw", lr=1e-3)))
    assert Optimizer().momentum == recipe.optimizer.momentum
    assert Schedule().gamma == recipe.schedule.gamma
