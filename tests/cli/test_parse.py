"""Words of the command line as recipes."""

import io
from dataclasses import replace
from pathlib import Path

import pytest

from resnet_jax.cli.other_names import OTHER_NAMES
from resnet_jax.cli.parse import parse, rescale_times
from resnet_jax.cli.train import TrainOptions
from resnet_jax.errors import InputError
from resnet_jax.recipe import Augment, Recipe, Schedule, check, fields_of
from resnet_jax.training.options import RunOptions

TIMED = Recipe(
    epochs=30.0,
    schedule=Schedule(name="steps", warmup=3.0, milestones=(10.0, 20.0)),
    augment=Augment(progressive_sizes=(8, 16), progressive_starts=(0.0, 15.0)),
)


def parsed(base, *words):
    recipe = parse(Recipe, list(words), prog="x", description="", default=base)
    return check(rescale_times(recipe, base, words))


def test_times_keep_their_share_of_the_run():
    recipe = parsed(TIMED, "--steps", "300")
    assert (recipe.epochs, recipe.steps) == (None, 300)
    assert (recipe.schedule.warmup, recipe.schedule.milestones) == (30, (100, 200))
    assert recipe.augment.progressive_starts == (0, 150)
    back = parsed(recipe, "--epochs", "30")
    assert (back.epochs, back.steps) == (30, None)
    assert back.schedule.milestones == pytest.approx((10, 20))
    assert back.schedule.warmup == pytest.approx(3)


def test_shares_are_as_exact_as_numbers_are():
    recipe = parsed(TIMED, "--steps", "6")
    assert (recipe.schedule.warmup, recipe.schedule.milestones) == (0.6, (2, 4))


def test_a_few_steps_of_the_default_recipe_have_a_short_warm_up():
    recipe = parsed(Recipe(), "--steps", "5")
    assert recipe.schedule.warmup == 0.5


@pytest.mark.parametrize("words", [("--schedule.warmup", "3"), ("--schedule.warmup=3.0",), ("--schedule.warmup", "7")])
def test_times_that_are_given_are_in_the_new_unit(words):
    recipe = parsed(TIMED, "--steps", "300", *words)
    assert recipe.schedule.warmup == float(words[-1].split("=")[-1])
    assert recipe.schedule.milestones == (100, 200)


def test_times_keep_their_share_in_the_same_unit_too():
    recipe = parsed(TIMED, "--epochs", "60")
    assert (recipe.schedule.warmup, recipe.schedule.milestones) == (6, (20, 40))
    assert recipe.augment.progressive_starts == (0, 30)
    assert parsed(Recipe(), "--epochs", "1").schedule.warmup == 0.1
    assert parsed(TIMED, "--epochs", "60", "--schedule.warmup", "3").schedule.warmup == 3
    assert parsed(replace(TIMED, epochs=None, steps=100), "--steps", "50").schedule.milestones == (5, 10)
    assert parsed(TIMED, "--epochs", "30") == TIMED


def test_a_time_of_exponential_decay():
    base = replace(TIMED, schedule=Schedule(name="exponential", warmup=0, gamma=0.97, decay_every=2.4))
    assert parsed(base, "--steps", "3000").schedule.decay_every == pytest.approx(240)


def test_an_empty_tuple_can_be_given():
    recipe = parsed(TIMED, "--schedule.name", "cosine", "--schedule.milestones")
    assert recipe.schedule.milestones == ()


def test_paths_to_freeze():
    recipe = parsed(Recipe(), "--optimizer.freeze", "stem", "stage1_*")
    assert recipe.optimizer.freeze == ("stem", "stage1_*")


def test_flags_of_other_tools_stand_for_flags_that_exist():
    kinds = (Recipe(), TrainOptions(), RunOptions())
    known = {"--" + name.replace("_", "-") for kind in kinds for name, _ in fields_of(kind)}
    assert {ours.split(" ")[0] for ours in OTHER_NAMES.values()} <= known
    assert not {"--" + name for name in OTHER_NAMES} & known


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_an_error_is_its_message_alone_whatever_the_terminal_can_draw(monkeypatch, encoding):
    printed = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr("sys.stdout", printed)
    with pytest.raises(InputError, match=r"^Error parsing --batch-size: invalid literal [^-]*: 'x'; see x --help$"):
        parsed(Recipe(), "--batch-size", "x")


def test_the_home_directory_has_a_short_name(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    options = parse(TrainOptions, ["--out=~/runs/x"], prog="x", description="")
    assert options.out == Path("/home/ada/runs/x")
    assert parse(TrainOptions, ["--out", "a~b"], prog="x", description="").out == Path("a~b")
