"""The picture of a run."""

import numpy as np
import pytest
from PIL import Image

from resnet_jax.curves import draw_curves
from resnet_jax.errors import InputError


def lines(count):
    return [
        {
            "step": i,
            "epoch": float(i),
            "lr": 0.1,
            **{f"{s}_{k}": 1 / (i + 1) for s in ("train", "test") for k in ("loss", "accuracy")},
        }
        for i in range(count)
    ]


@pytest.mark.parametrize("count", [1, 2, 300])
def test_a_picture_of_any_number_of_lines(tmp_path, count):
    draw_curves(lines(count), "test", "resnet20 on digits", tmp_path / "c.png")
    with Image.open(tmp_path / "c.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert pixels.shape == (660, 1500, 3)
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50


def test_runs_without_right_answers_have_a_picture_of_their_loss(tmp_path):
    losses = [{k: v for k, v in line.items() if not k.endswith("_accuracy")} for line in lines(5)]
    draw_curves(losses, "test", "two $ in $ a name", tmp_path / "c.png")
    with Image.open(tmp_path / "c.png") as picture:
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 50


def test_a_quantity_may_be_zero_everywhere(tmp_path):
    zeros = [{**line, "train_loss": 0.0, "test_loss": 0.0, "test_accuracy": 1.0} for line in lines(3)]
    draw_curves(zeros, "test", "title", tmp_path / "c.png")
    assert (tmp_path / "c.png").stat().st_size > 1000


def test_nothing_to_draw(tmp_path):
    with pytest.raises(InputError, match="no metrics to draw yet"):
        draw_curves([], "test", "title", tmp_path / "c.png")
