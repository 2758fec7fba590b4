"""Crops, flips, affine maps and rectangles against Pillow and their definitions."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from resnet_jax.data.augment import affine, pad_crop
from resnet_jax.data.augment.erase import cutout, fill_box, random_erase
from resnet_jax.data.augment.geometry import alternating_flip, random_box, random_resized_crop, resized

RANDOM = np.random.default_rng(0)
IMAGE = RANDOM.integers(1, 256, (37, 51, 3), dtype=np.uint8)
KEYS = jax.random.split(jax.random.key(1), 2000)
RESIZED = jax.jit(resized, static_argnums=2)


def transform(matrix):
    picture = Image.fromarray(IMAGE)
    return np.asarray(picture.transform(picture.size, Image.Transform.AFFINE, matrix, fillcolor=(9, 9, 9)))


def differing(ours, theirs):
    return (np.asarray(ours) != theirs).any(-1).mean()


def test_shears_are_those_of_pillow():
    shear_x, shear_y = (jax.jit(partial(f, fill=9)) for f in (affine.shear_x, affine.shear_y))
    for factor in (0.0, 0.1, -0.3, 0.99):
        assert differing(shear_x(IMAGE, factor), transform((1, factor, 0, 0, 1, 0))) <= 0.005
        assert differing(shear_y(IMAGE, factor), transform((1, 0, 0, factor, 1, 0))) <= 0.005


def test_rotations_are_those_of_pillow():
    rotate = jax.jit(partial(affine.rotate, fill=9))
    for degrees in (0.0, 3.0, -30.0, 45.0, 90.0, 135.0, 180.0):
        theirs = np.asarray(Image.fromarray(IMAGE).rotate(degrees, fillcolor=(9, 9, 9)))
        assert differing(rotate(IMAGE, degrees), theirs) <= 0.005


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_translation_by_whole_pixels(interpolation):
    translate = jax.jit(partial(affine.translate, interpolation=interpolation, fill=9))
    for right, down in ((0, 0), (3, -5), (-60, 1)):
        np.testing.assert_array_equal(translate(IMAGE, right, down), transform((1, 0, -right, 0, 1, -down)))


def test_half_a_pixel_is_a_mean():
    moved = np.asarray(jax.jit(partial(affine.translate, interpolation="bilinear"))(IMAGE, 0.5, 0.0), int)
    wide = np.pad(IMAGE.astype(int), ((0, 0), (1, 0), (0, 0)))
    np.testing.assert_array_equal(moved, (wide[:, 1:] + wide[:, :-1] + 1) // 2)


def test_alternating_flip_alternates_and_begins_at_random():
    image, index = jnp.asarray(IMAGE), jnp.arange(400)
    flips = jax.jit(
        jax.vmap(
            jax.vmap(
                lambda i, n: (alternating_flip(jax.random.key(0), image, i, n) == image[:, ::-1]).all(), (None, 0)
            ),
            (0, None),
        )
    )
    turned = np.asarray(flips(index, jnp.arange(4)))
    assert (turned[:, 1:] ^ turned[:, :-1]).all()
    assert 160 < turned[:, 0].sum() < 240


def test_reflecting_crops_are_windows_of_the_mirrored_image():
    image = jnp.asarray(IMAGE[:6, :5])
    padded = np.pad(np.asarray(image), ((2, 2), (2, 2), (0, 0)), mode="reflect")
    windows = {padded[i : i + 6, j : j + 5].tobytes() for i in range(5) for j in range(5)}
    crops = jax.vmap(lambda key: pad_crop(key, image, 2, "reflect"))(KEYS[:500])
    assert {crop.tobytes() for crop in np.asarray(crops)} == windows


def test_boxes_lie_within_the_image_and_are_of_the_area_and_ratio_asked_for():
    boxes = np.asarray(jax.jit(jax.vmap(lambda key: random_box(key, 200, 300, (0.2, 0.6), (0.5, 2.0))))(KEYS))
    top, left, height, width = boxes.T
    assert (boxes >= 0).all()
    assert (top + height <= 200).all()
    assert (left + width <= 300).all()
    area, ratio = height * width / 60_000, width / height
    assert area.min() > 0.198
    assert area.max() < 0.602
    assert ratio.min() > 0.49
    assert ratio.max() < 2.05
    assert {top.min(), left.min(), (200 - top - height).min(), (300 - left - width).min()} == {0}


def test_where_no_box_fits_it_is_the_largest_in_the_centre():
    assert jax.jit(lambda key: random_box(key, 10, 400, (0.9, 1.0)))(KEYS[0]).tolist() == [0, 193, 10, 13]


def test_the_whole_image_at_its_size_is_unchanged():
    np.testing.assert_array_equal(RESIZED(IMAGE, jnp.array([0, 0, 37, 51]), (37, 51)), IMAGE)
    crop = RESIZED(IMAGE, jnp.array([3, 4, 20, 30]), (20, 30))
    np.testing.assert_array_equal(crop, IMAGE[3:23, 4:34])


def test_enlarging_is_that_of_pillow():
    """Which antialiases only where it reduces."""
    theirs = np.asarray(Image.fromarray(IMAGE[5:25, 7:27]).resize((64, 48), Image.Resampling.BILINEAR))
    ours = np.asarray(RESIZED(IMAGE, jnp.array([5, 7, 20, 20]), (48, 64)), int)
    assert np.abs(ours - theirs).max() <= 1
    out = jax.jit(random_resized_crop, static_argnums=2)(KEYS[0], IMAGE, (8, 9))
    assert (out.shape, out.dtype) == ((8, 9, 3), jnp.uint8)


def test_cutout_is_a_square_about_any_pixel():
    holes = jax.jit(jax.vmap(lambda key: cutout(key, jnp.asarray(IMAGE), 8)))(KEYS) == 0
    rows, columns = (np.asarray(holes).all(-1).any(axis).sum(-1) for axis in (2, 1))
    assert (rows.max(), columns.max()) == (8, 8)
    assert (rows.min(), columns.min()) == (4, 4)
    assert (rows == 8).mean() == pytest.approx(30 / 37, abs=0.05)


def test_erasing():
    image = jnp.asarray(IMAGE)
    holes = np.asarray(jax.jit(jax.vmap(lambda key: random_erase(key, image, 0.5)))(KEYS) == 0).all(-1)
    hit = holes.any((1, 2))
    assert 0.45 < hit.mean() < 0.55
    area = holes.sum((1, 2))[hit] / (37 * 51)
    assert 0.015 < area.min() < area.max() < 0.35
    rows, columns = holes.any(2).sum(1)[hit], holes.any(1).sum(1)[hit]
    np.testing.assert_array_equal(rows * columns, holes.sum((1, 2))[hit])  # rectangles
    expected = IMAGE.copy()
    expected[2:5, 3:10] = 7
    np.testing.assert_array_equal(fill_box(image, jnp.array([2, 3]), jnp.array([3, 7]), 7), expected)


@pytest.mark.parametrize("change", [partial(cutout, size=4), partial(random_erase, probability=1.0)])
def test_normalised_images_stay_float(change):
    assert change(KEYS[0], jnp.ones((8, 8, 3), jnp.bfloat16)).dtype == jnp.bfloat16
