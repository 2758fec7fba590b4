"""The CamVid experiment: its baselines are what they say, and it trains, compares and draws."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from squares import draw, write_splits

from resnet_jax.data.masks import IGNORE
from resnet_jax.recipe import Loss, Model, check
from resnet_jax.training.options import RunOptions


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_splits(tmp_path_factory.mktemp("data") / "squares", 24, 8).parent


def small(recipe):
    """On 32 images of two classes, with a network of one stage."""
    return replace(
        recipe,
        model=Model(name="unet_resnet18", fields={"depths": (1,), "width": 4, "decoder_width": 4}),
        data=replace(recipe.data, name="masks:squares", image_size=None),
        augment=replace(recipe.augment, train_crop_size=12),
        loss=Loss(name="pixel_cross_entropy"),
        schedule=replace(recipe.schedule, warmup=0),
        epochs=1,
    )


@pytest.mark.slow
def test_baselines_see_a_pixel_alone(script, folder):
    camvid = script("segmentation", "camvid.py")
    found, classes = camvid.baselines(small(camvid.recipe), folder)
    assert classes == ("around", "rectangle")
    pairs = [draw(index) for index in range(32)]
    masks = np.stack([np.where(mask == 2, IGNORE, mask) for _, mask in pairs])
    by_place, by_pixel = found.values()
    assert by_place.sum() == by_pixel.sum() == (masks[24:] != IGNORE).sum()
    likeliest = ((masks[:24] == 1).sum(0) > (masks[:24] == 0).sum(0)).astype(int)
    hits = (masks[24:] == likeliest) & (masks[24:] != IGNORE)
    assert by_place.trace() == hits.sum()
    # The rectangles are brighter than all noise
    assert by_pixel.trace() > 0.99 * by_pixel.sum()


def test_the_recipe_is_for_the_classes_of_camvid(script, real_data):
    recipe = check(script("segmentation", "camvid.py").recipe)
    assert len(recipe.loss.class_weights) == 11
    assert recipe.epochs >= 40


@pytest.mark.slow
def test_it_trains_compares_and_draws(script, folder, tmp_path, capsys):
    camvid = script("segmentation", "camvid.py")
    recipe = small(camvid.recipe)
    scores = camvid.compare(recipe, tmp_path / "run", folder, RunOptions(data_dir=folder, devices=1))
    assert len(scores) == 3
    assert "| unet_resnet18, 1 epochs | " in capsys.readouterr().out
    camvid.draw(tmp_path / "run", recipe, folder, tmp_path / "predictions.png")
    assert np.asarray(Image.open(tmp_path / "predictions.png")).shape[2] == 3
