"""Random-resized crops on the host."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from resnet_jax.data.augment.host_crop import random_box_host, random_resized_crop_host, uniforms


def test_uniforms_are_pinned():
    """These very numbers: a run must not depend on the version of NumPy."""
    np.testing.assert_array_equal(uniforms(0, 0, 3), uniforms(0, 0, 5)[:3])
    np.testing.assert_allclose(uniforms(1, 2, 3), GOLDEN, rtol=0, atol=0)
    many = np.concatenate([uniforms(3, position, 40) for position in range(500)])
    assert (many.min() >= 0) & (many.max() < 1)
    np.testing.assert_allclose([many.mean(), many.var()], [1 / 2, 1 / 12], rtol=0.02)
    assert len(np.unique(many)) == many.size


GOLDEN = [0.575300433347867, 0.4214513002125032, 0.6987130805958253]


@given(st.integers(1, 600), st.integers(1, 600), st.integers(0, 2**32))
def test_boxes_lie_within_the_image(height, width, position):
    left, top, right, bottom = random_box_host(height, width, uniforms(0, position, 40))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


def test_areas_and_ratios_are_as_asked():
    boxes = np.array([random_box_host(500, 400, uniforms(0, position, 40)) for position in range(2000)])
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    areas, ratios = w * h / (500 * 400), w / h
    assert areas.min() >= 0.078
    assert (ratios.min() >= 0.73) & (ratios.max() <= 1.36)
    assert areas.max() > 0.9
    np.testing.assert_allclose(np.log(ratios).mean(), 0, atol=0.06)  # the tall image takes a little from the wide boxes
    centres = (boxes[:, 0] + boxes[:, 2]) / 2
    np.testing.assert_allclose(centres.mean(), 200, rtol=0.02)


@pytest.mark.parametrize(("height", "width", "box"), [(10, 1000, (493, 0, 506, 10)), (1000, 10, (0, 493, 10, 506))])
def test_where_no_draw_fits_the_centre_is_taken(height, width, box):
    assert random_box_host(height, width, np.full(40, 0.999)) == box


@pytest.mark.parametrize("channels", [1, 3])
def test_the_crop_is_the_box_scaled(channels):
    image = np.random.default_rng(0).integers(0, 256, (60, 80, channels), np.uint8)
    draws = uniforms(0, 7, 40)
    out = random_resized_crop_host(image, 24, draws, interpolation="bicubic")
    left, top, right, bottom = random_box_host(60, 80, draws)
    picture = (
        Image.fromarray(image.squeeze()).crop((left, top, right, bottom)).resize((24, 24), Image.Resampling.BICUBIC)
    )
    np.testing.assert_array_equal(out.squeeze(), np.asarray(picture))
    assert out.shape == (24, 24, channels)
