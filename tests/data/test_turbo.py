"""The quick way through a JPEG gives Pillow's very pixels."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from resnet_jax.data import image as decoding
from resnet_jax.data.image import decode
from resnet_jax.errors import InputError


def jpeg(mode="RGB", size=(37, 23), **options):
    shape = (size[1], size[0], *((3,) if mode == "RGB" else (4,) if mode == "CMYK" else ()))
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels, mode if mode == "CMYK" else None).save(file, "JPEG", **options)
    return file.getvalue()


def by_pillow(content, channels=3):
    with Image.open(io.BytesIO(content)) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB" if channels == 3 else "L")
        return np.asarray(upright).reshape(upright.height, upright.width, channels)


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("content", "quick"),
    [
        (jpeg(), True),
        (jpeg(subsampling=2, quality=60), True),
        (jpeg(progressive=True), True),
        (jpeg("L"), True),
        (jpeg(exif=turned(1)), True),
        (jpeg(exif=turned(6)), False),
        (jpeg("CMYK"), False),
    ],
    ids=["444", "420", "progressive", "grey", "upright", "turned", "cmyk"],
)
@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated:DeprecationWarning")
def test_the_same_pixels(content, quick, channels, monkeypatch):
    calls = []
    original = decoding.simplejpeg.decode_jpeg
    monkeypatch.setattr(decoding.simplejpeg, "decode_jpeg", lambda *a, **k: calls.append(a) or original(*a, **k))
    np.testing.assert_array_equal(decode(content, channels), by_pillow(content, channels))
    is_colour = content != jpeg("L")
    assert bool(calls) == (quick and not (is_colour and channels == 1))  # Pillow's grey of colours is its own


def test_real_photos(real_data):
    files = sorted((real_data / "hymenoptera" / "val").rglob("*.jpg"))[:40]
    files += sorted((real_data / "imagenet_jpegs").rglob("*.JPEG"))[::4]
    assert len(files) > 40
    for file in files:
        np.testing.assert_array_equal(decode(file), by_pillow(file.read_bytes()))


def test_a_cut_file_is_damaged_and_a_noisy_one_as_pillow_has_it():
    content = jpeg()
    with pytest.raises(InputError, match=r"x\.jpg: the image is damaged"):
        decode(content[: len(content) // 2], name="x.jpg")
    noisy = content[:-2] + b"\x00" * 30 + content[-2:]  # libjpeg warns of extraneous bytes
    np.testing.assert_array_equal(decode(noisy), by_pillow(noisy))
