"""Image files of every kind, and files that are none."""

import numpy as np
import pytest
from PIL import Image

from resnet_jax.data.image import decode, resize_crop
from resnet_jax.errors import InputError

RGB = np.random.default_rng(0).integers(0, 256, (6, 4, 3), np.uint8)


def saved(tmp_path, image, name="image.png", **options):
    path = tmp_path / name
    image.save(path, **options)
    return path


def test_rgb_and_grey(tmp_path):
    path = saved(tmp_path, Image.fromarray(RGB))
    np.testing.assert_array_equal(decode(path), RGB)
    grey = decode(path, channels=1)
    assert grey.shape == (6, 4, 1)
    np.testing.assert_allclose(grey[..., 0], RGB @ [0.299, 0.587, 0.114], atol=1)
    path = saved(tmp_path, Image.fromarray(grey[..., 0]), "grey.png")
    np.testing.assert_array_equal(decode(path), np.repeat(grey, 3, axis=2))


def test_exif_orientation_is_undone(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 270 degrees to see it upright
    path = saved(tmp_path, Image.fromarray(RGB), exif=exif.tobytes())
    np.testing.assert_array_equal(decode(path), np.rot90(RGB, -1))


def test_transparent_is_white(tmp_path):
    rgba = np.dstack([RGB, np.full((6, 4), 255, np.uint8)])
    rgba[0, 0, 3] = 0
    image = decode(saved(tmp_path, Image.fromarray(rgba)))
    assert image[0, 0].tolist() == [255, 255, 255]
    np.testing.assert_array_equal(image[1:], RGB[1:])


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path):
    values = np.linspace(0, 65535, 24).reshape(6, 4).astype(np.uint16)
    image = decode(saved(tmp_path, Image.fromarray(values)), channels=1)[..., 0]
    np.testing.assert_allclose(image, values / 257, atol=1)


@pytest.mark.parametrize(
    ("mode", "suffix"), [("CMYK", "jpg"), ("P", "gif"), ("1", "png"), ("LA", "png"), ("RGB", "webp")]
)
def test_other_modes(tmp_path, mode, suffix):
    path = saved(tmp_path, Image.fromarray(RGB).convert(mode), f"image.{suffix}")
    assert decode(path).shape == (6, 4, 3)
    assert decode(path, 1).shape == (6, 4, 1)


def test_what_is_no_image_is_named(tmp_path):
    with pytest.raises(InputError, match=r"gone\.png: no such image file"):
        decode(tmp_path / "gone.png")
    for name, content in (("text.png", b"hello"), ("empty.png", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=f"{name}: not an image"):
            decode(tmp_path / name)


def test_a_truncated_image_is_named(tmp_path):
    big = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    for name in ("cut.png", "cut.jpg"):
        path = saved(tmp_path, big, name)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(InputError, match=f"{name}: the image is damaged"):
            decode(path)


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    path = saved(tmp_path, Image.new("L", (64, 64)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)
    with pytest.raises(InputError, match=r"image\.png: too many pixels \(over 3,000\)"):
        decode(path)


@pytest.mark.parametrize("shape", [(20, 10, 3), (10, 20, 1), (8, 8, 3), (3, 5, 1), (100, 9, 3)])
def test_resize_crop_gives_the_size_asked_for(shape):
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    assert resize_crop(image, 8, 8).shape == (8, 8, shape[2])


def test_resize_crop_takes_the_centre():
    image = np.zeros((9, 27, 1), np.uint8)
    image[:, 9:18] = 200
    np.testing.assert_array_equal(resize_crop(image, 9, 9), 200)


def test_real_photos(real_data):
    paths = sorted((real_data / "imagenet_jpegs").rglob("*.[jJ]*"))[:20] + sorted(
        (real_data / "photos").glob("*.[jp]*g")
    )
    for path in paths:
        image = decode(path)
        assert image.ndim == 3
        assert 10 < image.mean() < 245
