"""A sheet of images."""

import numpy as np
import pytest

from resnet_jax.report.sheet import can_show, draw_sheet


def test_images_of_any_shape_are_scaled_and_keep_their_ratio():
    images = [np.full((8, 8, 1), 10, np.uint8), np.full((300, 600, 3), 20, np.uint8)] * 5
    sheet = draw_sheet(images, ["one"] + ["two\nlines"] * 9)
    pixels = np.asarray(sheet)
    assert pixels.shape == (2 * (112 + 28 + 4), 8 * 116, 3)
    assert (pixels[2:114, 2:114] == 10).all()
    assert (pixels[2:58, 118:230] == 20).all()
    assert (pixels[60:110, 118:230] == 255).all()


@pytest.mark.parametrize(
    ("shape", "shown"),
    [((8, 8, 1), True), ((8, 8, 3), True), ((8, 8, 2), False), ((8, 3), False), ((4, 8, 8, 3), False)],
)
def test_what_is_a_picture(shape, shown):
    assert can_show(np.zeros(shape, np.uint8)) == shown
