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


def test_nothing_to_draw(tmp_path):
    with pytest.raises(InputError, match="no metrics to draw yet"):
        draw_curves([], "test", "title", tmp_path / "c.png")
