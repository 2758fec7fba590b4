"""Decode and resize image files on the host."""

import io
import os
import threading
import warnings
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, UnidentifiedImageError

from resnet_jax.errors import InputError, first_line

# Formats that Pillow decodes in this process; for others, such as EPS, it starts programs or loads plugins
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
# Environment variable with the largest number of pixels that an image may have
MAX_PIXELS = "RESNET_JAX_MAX_PIXELS"
_OPENING = threading.Lock()
# How an image of an EXIF orientation is turned upright
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Preprocessing of an image: resize it, crop or pad around the centre, normalise.

    None means that a field is not known: the image is then not resized, not cropped, or not normalised.
    """

    image_size: int | tuple[int, int] | None = None
    """Height and width in pixels: one number, or both."""
    crop_pct: float | None = None
    """Fraction of the resized shorter side that the centre crop keeps, 0 to 1."""
    crop_mode: Literal["center", "border"] | None = None
    """center: resize to cover the size and crop the centre. border: fit inside and pad with the mean, as timm does."""
    interpolation: Literal["bilinear", "bicubic"] | None = None
    """Interpolation of the resize, antialiased."""
    mean: tuple[float, ...] | None = None
    """Mean of the pixels, scaled to 0 to 1; one number, or one per channel."""
    std: tuple[float, ...] | None = None
    """Standard deviation of the pixels, scaled to 0 to 1; one number, or one per channel."""
    sample_rate: int | None = None
    """Sound: samples per second to which it is resampled."""
    seconds: float | None = None
    """Sound: length to which it is cut or padded."""
    frames: int | None = None
    """Video: number of frames of a clip."""
    frame_rate: float | None = None
    """Video: frames per second of a clip."""

    def geometry(self) -> dict[str, Any]:
        """Return the fields that change the size or content of an image, without defaults."""
        fields = ("image_size", "crop_pct", "crop_mode", "interpolation", "seconds", "frames")
        known = {name: getattr(self, name) for name in fields}
        return {name: value for name, value in known.items() if value not in (None, 1.0, "center", "bilinear")}

    def known(self) -> dict[str, Any]:
        """Return the fields that are known."""
        return {name: value for name, value in vars(self).items() if value is not None}


def preprocessing_of(data: Any) -> Preprocessing:
    """Return the preprocessing that a recipe's `Data` describes, by fields of the same names."""
    return Preprocessing(**{name: getattr(data, name) for name in Preprocessing.__dataclass_fields__})


def decode(file: Path | bytes, channels: int = 3, name: str = "") -> np.ndarray:
    """Decode an image file to uint8 (h, w, channels), upright by its EXIF orientation.

    `file` is a path or the bytes of a file, and `channels` is 1 (grey) or 3 (RGB). Raises InputError, with the path or
    `name`, if the file is missing, not an image, truncated or too large.
    """
    where = name or (str(file) if isinstance(file, Path) else "image")
    # Unlike `Path.is_file` without an error for names that are too long
    if isinstance(file, Path) and not os.path.isfile(file):
        raise InputError(f"{where}: no such image file")
    if channels not in (1, 3):
        raise InputError(f"{where}: image files have 1 or 3 channels; the network takes {channels}")
    try:
        content = file.read_bytes() if isinstance(file, Path) else file
        with open_image(content) as image:
            return _turbo(content, image, channels) if is_upright_jpeg(image) else _by_pillow(image, channels)
    except InputError:
        raise
    except UnidentifiedImageError as error:
        raise InputError(f"{where}: not an image that can be read ({', '.join(FORMATS)})") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(
            f"{where}: too many pixels (over {max_pixels():,}); set {MAX_PIXELS} to raise the limit"
        ) from error
    except Exception as error:
        # Pillow's plugins raise errors of any type for damaged files
        raise InputError(f"{where}: the image is damaged ({first_line(error)})") from error


def max_pixels() -> int | None:
    """Return the largest number of pixels of an image: $RESNET_JAX_MAX_PIXELS, or Pillow's limit of 89,478,485."""
    asked = os.environ.get(MAX_PIXELS)
    if asked is None:
        return Image.MAX_IMAGE_PIXELS
    if not (asked.isascii() and asked.isdigit() and 0 < len(asked) < 12):
        raise InputError(f"{MAX_PIXELS} is {asked[:20]!r}; give a number of pixels, such as 120000000")
    return int(asked)


def open_image(content: bytes) -> Image.Image:
    """Read the header of an image, but not its pixels; raise what Pillow raises.

    One thread at a time: `catch_warnings` changes state of the whole process.
    """
    with _OPENING, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        Image.init()
        Image.MAX_IMAGE_PIXELS = max_pixels()
        image = Image.open(io.BytesIO(content), formats=[name for name in FORMATS if name in Image.OPEN])
        # Parses the EXIF block, whose damage Pillow warns of
        _orientation(image)
        return image


def is_upright_jpeg(image: Image.Image) -> bool:
    """Return whether an image is a JPEG, grey or RGB, that is not turned."""
    return image.format == "JPEG" and image.mode in ("L", "RGB") and _orientation(image) not in _TURNS


def _orientation(image: Image.Image) -> Any:
    """Return the EXIF orientation of an image; 1, which is upright, if its EXIF block cannot be read."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        return 1


def _turbo(content: bytes, image: Image.Image, channels: int) -> np.ndarray:
    """Return the pixels of an upright JPEG by simplejpeg, or by Pillow for grey of colours and for damage.

    The pixels equal Pillow's, since both use libjpeg-turbo, but simplejpeg avoids four bytes per pixel: it is 1.29x
    faster (887 against 687 ImageNet photos per second on one core, mean 466 x 391).
    """
    if image.mode == "L" or channels == 3:
        try:
            return simplejpeg.decode_jpeg(content, "RGB" if channels == 3 else "GRAY", strict=True)
        except ValueError:
            pass
    return _by_pillow(image, channels)


def _by_pillow(image: Image.Image, channels: int) -> np.ndarray:
    """Return the pixels of an image, upright: uint8 (h, w, channels)."""
    # Pillow turns TIFF while it loads it, and its orientation is then 1
    image.load()
    upright = _eight_bits(image, channels)
    # Not by `exif_transpose`, which rewrites the EXIF block and fails if a tag in it is odd
    turn = _TURNS.get(_orientation(image))
    if turn is not None:
        upright = upright.transpose(turn)
    if upright is not image:
        # Frees its pixels before they are copied once more
        image.close()
    return np.asarray(upright).reshape(upright.height, upright.width, channels)


def _eight_bits(image: Image.Image, channels: int) -> Image.Image:
    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        kind = "floating-point" if image.mode == "F" else "signed or 32-bit"
        raise ValueError(f"{kind} pixels, whose range is not known")
    # Pillow would clip 16 bits at 255
    if image.mode.startswith("I"):
        image = _from_sixteen_bits(image)
    # Transparent pixels are shown on white
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        layer = _as_mode(image, "RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return _as_mode(image, "RGB" if channels == 3 else "L")


def _as_mode(image: Image.Image, mode: str) -> Image.Image:
    """Return an image in a mode, without the copy that Pillow makes of one that has it."""
    return image if image.mode == mode else image.convert(mode)


def _from_sixteen_bits(image: Image.Image) -> Image.Image:
    """Return grey levels of 16 bits, or of 12 bits in TIFF, as levels of 8 bits."""
    tags, values = getattr(image, "tag_v2", {}), np.asarray(image)
    bits, photometric = tags.get(ExifTags.Base.BitsPerSample), tags.get(ExifTags.Base.PhotometricInterpretation)
    table = _levels(4095 if bits == (12,) else 65535, white_is_zero=photometric == 0)
    levels = np.empty(values.shape, np.uint8)
    # By rows: an index takes eight bytes per pixel
    for row, to in zip(values, levels, strict=True):
        to[:] = table[row]
    return Image.fromarray(levels)


@lru_cache(maxsize=4)
def _levels(most: int, white_is_zero: bool) -> np.ndarray:
    """Return the level uint8 of each value from 0 to `most`, the largest."""
    levels = np.round(np.arange(most + 1) * (255 / most)).astype(np.uint8)
    return 255 - levels if white_is_zero else levels
