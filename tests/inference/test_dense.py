"""Sliding windows: every pixel is predicted, at the scale of the training images."""

from pathlib import Path

import numpy as np
import pytest

from resnet_jax.data.image import preprocessing_of
from resnet_jax.data.masks import IGNORE, decode_mask, palette
from resnet_jax.data.resize import resize_to
from resnet_jax.errors import InputError
from resnet_jax.inference.dense import corners, mask_files, predict_mask, predict_windows, write_mask
from resnet_jax.recipe import Data

IMAGE = np.random.default_rng(0).integers(0, 256, (37, 50, 3)).astype(np.uint8)


def by_pixel(images):
    """Probabilities of the three channels, of each pixel alone."""
    return images.astype(np.float32) / np.maximum(images.sum(-1, keepdims=True), 1)


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.9])
@pytest.mark.parametrize("window", [(37, 50), (16, 16), (10, 50), (1, 3)])
def test_windows_cover_each_pixel(window, overlap):
    whole = predict_windows(by_pixel, IMAGE, window, overlap)
    np.testing.assert_allclose(whole, by_pixel(IMAGE), rtol=1e-5)


def test_windows_overlap_and_are_averaged():
    assert corners(100, 40, 0.5) == [0, 20, 40, 60]
    assert corners(101, 40, 0.0) == [0, 30, 61]
    assert corners(41, 40, 0.0) == [0, 1]
    seen = []

    def numbered(images):
        seen.extend(range(len(images)))
        return np.arange(len(images), dtype=np.float32)[:, None, None, None] * np.ones((1, 4, 4, 1), np.float32)

    image = np.zeros((4, 6, 1), np.uint8)
    probs = predict_windows(numbered, image, (4, 4), 0.5)[..., 0]
    np.testing.assert_array_equal(probs[0], [0, 0, 0.5, 0.5, 1, 1])


@pytest.mark.parametrize("size", [None, 16, (20, 30)])
def test_a_mask_has_the_size_of_its_image(size):
    window = (16, 16) if size is None else (16, 16) if size == 16 else size
    shapes = set()

    def recorded(images):
        shapes.add(images.shape[1:3])
        return by_pixel(images)

    blocks = np.repeat(np.repeat(np.eye(3, dtype=np.uint8) * 200, 40, 0), 50, 1)[..., None] * np.uint8([1, 0, 0])
    image = blocks + np.uint8([0, 90, 0])
    mask = predict_mask(recorded, image, window, Data(image_size=size))
    assert mask.shape == image.shape[:2]
    assert shapes == {window}
    assert (mask == np.argmax(image, -1)).mean() > 0.95


def test_an_image_smaller_than_a_window_is_padded():
    mask = predict_mask(by_pixel, IMAGE[:5, :7], (16, 16), Data())
    np.testing.assert_array_equal(mask, by_pixel(IMAGE[:5, :7]).argmax(-1))


@pytest.mark.parametrize("shape", [(40, 20, 3), (13, 50, 1), (16, 16, 3), (7, 9, 3)])
def test_an_image_of_another_aspect_is_predicted_whole_as_it_is_evaluated(shape):
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    data = Data(image_size=(16, 24), crop_mode="border", mean=(0.3,))
    seen = []

    def recorded(images):
        seen.extend(images)
        return np.ones((len(images), 16, 24, 2), np.float32)

    assert predict_mask(recorded, image, (16, 24), data).shape == shape[:2]
    (window,) = seen
    np.testing.assert_array_equal(window, resize_to(image, preprocessing_of(data)))


def test_files_of_masks(tmp_path):
    files = mask_files([Path("a/street.jpg")], tmp_path / "new" / "out")[0]
    mask = np.full((4, 5), IGNORE, np.uint8)
    mask[:2] = 1
    write_mask(files, np.full((4, 5, 1), 100, np.uint8), mask, 2)
    assert [file.name for file in files] == ["street.png", "street_overlay.png"]
    np.testing.assert_array_equal(decode_mask(files[0], "mask"), mask)
    assert palette(2)[1].tolist() != palette(2)[0].tolist()
    with pytest.raises(InputError, match=r"street\.png: two of the images would be written there"):
        mask_files([Path("a/street.jpg"), Path("b/street.png")], tmp_path)
    with pytest.raises(InputError, match=r"street\.png: would overwrite an image; choose another --out"):
        mask_files([files[0]], files[0].parent)
