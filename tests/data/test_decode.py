"""Image files of every kind, and files that are none."""

import io
import struct
import subprocess
import sys
from contextlib import suppress

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from resnet_jax.data.image import Preprocessing, decode
from resnet_jax.data.resize import resize_crop
from resnet_jax.data.source import RawExample, from_raw
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


UPRIGHT = {
    1: lambda x: x,
    2: np.fliplr,
    3: lambda x: np.rot90(x, 2),
    4: np.flipud,
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: np.rot90(x, 2).swapaxes(0, 1),
    8: np.rot90,
}
SHORT, LONG, ASCII, DOUBLE = 3, 4, 2, 12
# Of types that cameras and editors write, although the standard has others
ODD_TAGS = {
    "XResolution as text": (0x011A, ASCII, b"72 dpi\0\0"),
    "Make as a double": (0x010F, DOUBLE, struct.pack("<d", 1.5)),
    "ResolutionUnit as text": (0x0128, ASCII, b"inch\0\0\0\0"),
    "ResolutionUnit over 65,535": (0x0128, LONG, struct.pack("<I", 70_000)),
}


def exif_block(orientation, tag, kind, value):
    """EXIF of two tags, as bytes: Pillow writes no odd ones."""
    count = 1 if kind in (LONG, DOUBLE) else len(value)
    inline = value if len(value) <= 4 else struct.pack("<I", 8 + 2 + 2 * 12 + 4)
    odd = tag, struct.pack("<HHI", tag, kind, count) + inline
    turned = 0x0112, struct.pack("<HHIHH", 0x0112, SHORT, 1, orientation, 0)
    entries = b"".join(entry for _, entry in sorted([odd, turned]))
    after = b"" if len(value) <= 4 else value
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + struct.pack("<I", 0) + after


def encoded(kind, image=None, **options):
    file = io.BytesIO()
    image = Image.fromarray(RGB) if image is None else image
    frames = {"save_all": True, "append_images": [image]} if kind == "MPO" else {}
    image.save(file, kind, **frames, **options)
    return file.getvalue()


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "MPO", "TIFF", "AVIF"])
def test_exif_orientation_is_undone(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(decode(encoded(kind, exif=exif)), UPRIGHT[orientation](decode(encoded(kind))))


@pytest.mark.parametrize("tag", ODD_TAGS)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "MPO"])
def test_a_turned_photo_with_an_odd_exif_tag_is_sound(kind, tag):
    for orientation, turn in UPRIGHT.items():
        content = encoded(kind, exif=exif_block(orientation, *ODD_TAGS[tag]))
        np.testing.assert_array_equal(decode(content), turn(decode(encoded(kind))))


def test_an_exif_block_that_cannot_be_read_does_not_spoil_the_photo():
    np.testing.assert_array_equal(decode(encoded("PNG", exif=b"Exif\0\0nonsense")), RGB)


def test_transparent_is_white(tmp_path):
    rgba = np.dstack([RGB, np.full((6, 4), 255, np.uint8)])
    rgba[0, 0, 3] = 0
    image = decode(saved(tmp_path, Image.fromarray(rgba)))
    assert image[0, 0].tolist() == [255, 255, 255]
    np.testing.assert_array_equal(image[1:], RGB[1:])


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path):
    values = np.linspace(0, 65535, 24).reshape(6, 4).astype(np.uint16)
    image = decode(saved(tmp_path, Image.fromarray(values)), channels=1)[..., 0]
    np.testing.assert_array_equal(image, (values / 257).round())


def tiff(values, bits, **tags):
    """A little-endian TIFF of one strip, for what Pillow does not write: 12 bits, signed, 0 as white."""
    values = np.asarray(values)
    if bits == 12:
        pairs = values.reshape(-1, 2).astype(int)
        content = np.stack([pairs[:, 0] >> 4, pairs[:, 0] % 16 * 16 + (pairs[:, 1] >> 8), pairs[:, 1] % 256], -1)
        content = content.astype(np.uint8).tobytes()
    else:
        content = values.tobytes()
    height, width = values.shape
    known = {256: width, 257: height, 258: bits, 259: 1, 262: tags.get("photometric", 1), 273: 8, 277: 1}
    known |= {278: height, 279: len(content), 339: tags.get("sample_format", 1)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(known.items()))
    directory = struct.pack("<H", len(known)) + entries + struct.pack("<I", 0)
    return b"II*\0" + struct.pack("<I", 8 + len(content)) + content + directory


def test_tiff_of_more_than_eight_bits():
    twelve = np.array([[0, 200, 1000, 1001], [2048, 3000, 4000, 4095]])
    np.testing.assert_array_equal(decode(tiff(twelve, 12), 1)[..., 0], (twelve * 255 / 4095).round())
    sixteen = (twelve * 16).astype("<u2")
    np.testing.assert_array_equal(decode(tiff(sixteen, 16), 1)[..., 0], (sixteen / 257).round())
    negative = decode(tiff(sixteen, 16, photometric=0), 1)
    np.testing.assert_array_equal(negative[..., 0], 255 - (sixteen / 257).round())


@pytest.mark.parametrize(("kind", "bits", "sample_format"), [("<i4", 32, 2), ("<u4", 32, 1), ("<i2", 16, 2)])
def test_levels_of_an_unknown_range_are_refused(kind, bits, sample_format):
    content = tiff(np.full((2, 3), 200, kind), bits, sample_format=sample_format)
    with pytest.raises(InputError, match=r"x\.tif: .*signed or 32-bit pixels, whose range is not known"):
        decode(content, name="x.tif")
    with pytest.raises(InputError, match="floating-point pixels, whose range is not known"):
        decode(encoded("TIFF", Image.new("F", (3, 2), 0.5)))


@pytest.mark.parametrize(
    ("mode", "suffix"), [("CMYK", "jpg"), ("P", "gif"), ("1", "png"), ("LA", "png"), ("RGB", "webp")]
)
def test_other_modes(tmp_path, mode, suffix):
    path = saved(tmp_path, Image.fromarray(RGB).convert(mode), f"image.{suffix}")
    assert decode(path).shape == (6, 4, 3)
    assert decode(path, 1).shape == (6, 4, 1)


def test_a_number_of_channels_that_files_are_not_read_with(tmp_path):
    with pytest.raises(InputError, match=r"image\.png: image files have 1 or 3 channels; the network takes 4"):
        decode(saved(tmp_path, Image.fromarray(RGB)), 4)


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


def test_no_image_starts_a_program(tmp_path, monkeypatch):
    ghostscript = tmp_path / "gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    path = tmp_path / "photo.jpg"
    path.write_bytes(encoded("EPS"))
    with pytest.raises(InputError, match=r"photo\.jpg: not an image that can be read \(JPEG, PNG, "):
        decode(path)
    assert not (tmp_path / "started").exists()


def test_whatever_pillow_raises_is_one_line():
    avif = encoded("AVIF")
    start = avif.index(b"mdat") + 8
    with pytest.raises(InputError, match=r"x\.jpg: the image is damaged \(Failed to decode"):
        decode(avif[:start] + b"\xff" * (len(avif) - start), name="x.jpg")
    dds = bytearray(encoded("DDS"))
    dds[84:88] = b"none"
    with pytest.raises(InputError, match=r"x\.jpg: not an image"):
        decode(bytes(dds), name="x.jpg")


SEEDS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "MPO", "DDS", "EPS", "ICO", "TGA")


def fuzz(cases):
    """Decode damaged files of all kinds."""
    rng = np.random.default_rng(0)
    for number in range(cases):
        content = bytearray(encoded(SEEDS[number % len(SEEDS)]))
        for place in rng.integers(0, min(len(content), 300), rng.integers(1, 6)):
            content[place] = rng.integers(256)
        if number % 3 == 0:
            del content[rng.integers(len(content)) :]
        with suppress(InputError):
            decode(bytes(content))


def test_damaged_files_are_refused_and_nothing_else():
    fuzz(300)


@pytest.mark.slow
def test_many_damaged_files_are_refused_and_nothing_else():
    fuzz(6000)


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    path = saved(tmp_path, Image.new("L", (64, 64)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)
    with pytest.raises(InputError, match=r"image\.png: too many pixels \(over 3,000\)"):
        decode(path)
    monkeypatch.setenv("RESNET_JAX_MAX_PIXELS", "4096")
    assert decode(path).shape == (64, 64, 3)
    monkeypatch.setenv("RESNET_JAX_MAX_PIXELS", "many")
    with pytest.raises(InputError, match="RESNET_JAX_MAX_PIXELS is 'many'; give a number of pixels"):
        decode(path)


def test_a_line_that_would_be_a_bomb_once_resized_is_refused():
    line = RawExample(np.zeros((65_500, 1, 3), np.uint8), 0, "", "line.png")
    source = from_raw(1, ("a",), lambda _: line, Preprocessing(image_size=224))
    with pytest.raises(InputError, match=r"line\.png: 1 x 65500 pixels would be resized to 224 x 14,672,000"):
        source.read(0)


@pytest.mark.slow
def test_sixteen_bits_take_no_more_memory_than_eight(tmp_path):
    path = saved(tmp_path, Image.new("I;16", (9400, 9400)))
    code = "import resource, sys; from pathlib import Path; from resnet_jax.data.image import decode\n"
    code += "used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
    code += "before = used(); decode(Path(sys.argv[1])); print(used() - before)"
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, check=True, text=True)
    assert int(done.stdout) < 1_000_000


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
