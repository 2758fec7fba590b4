"""Image files to arrays, on the host."""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from resnet_jax.errors import InputError


def decode(path: Path, channels: int = 3) -> np.ndarray:
    """The image in a file as uint8 (h, w, channels), upright by its EXIF orientation, 1 (grey) or 3 (RGB) channels.

    Raises InputError, with the path, where the file is missing, no image, truncated or absurdly large.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such image file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                upright = ImageOps.exif_transpose(image)
                return np.asarray(_eight_bits(upright, channels)).reshape(upright.height, upright.width, channels)
    except Image.UnidentifiedImageError as error:
        raise InputError(f"{path}: not an image that can be read") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"{path}: too many pixels (over {Image.MAX_IMAGE_PIXELS:,})") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{path}: the image is damaged ({error})") from error


def _eight_bits(image: Image.Image, channels: int) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose range is not known")
    if image.mode.startswith("I"):  # 16 bits: Pillow would clip them at 255
        values = np.asarray(image, np.float64)
        image = Image.fromarray(np.clip(values / 257, 0, 255).round().astype(np.uint8))
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:  # what is transparent is shown on white
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image.convert("RGB" if channels == 3 else "L")


def resize_crop(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 (h, w, c) scaled, antialiased bilinear, to cover (height, width), and its centre of that size."""
    h, w, channels = image.shape
    if (h, w) == (height, width):
        return image
    scale = max(height / h, width / w)
    size = max(width, round(w * scale)), max(height, round(h * scale))
    picture = Image.fromarray(image[..., 0] if channels == 1 else image)
    resized = np.asarray(picture.resize(size, Image.Resampling.BILINEAR)).reshape(size[1], size[0], channels)
    top, left = (size[1] - height) // 2, (size[0] - width) // 2
    return resized[top : top + height, left : left + width]
