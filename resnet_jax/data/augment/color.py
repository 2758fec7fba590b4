"""Colour operations on uint8 images (h, w, c), in integers: the same result on every device.

Most map each level to another, given a statistic of the image. They accept levels of any shape, so that they can also
fill a table of 256 levels.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array

from resnet_jax.errors import InputError

# Bits of the factor of a blend: 255 * 8 * 2**20 fits in int32
_BITS = 20
# A sixth of the circle of hues
_HUE = 1 << 16
# ITU-R BT.601 in 1/65536, as Pillow's mode "L"
_LUMA = (19595, 38470, 7471)


def blend(degenerate: Array | int, image: Array, factor: Array | float) -> Array:
    """Return `degenerate` + `factor` (image - `degenerate`), floored and clipped to uint8.

    The factor, 0 <= factor < 8, is 0 for the degenerate image and 1 for the image (Haeberli and Voorhies 1994).
    """
    share = jnp.round(jnp.asarray(factor, jnp.float32) * (1 << _BITS)).astype(jnp.int32)
    base = jnp.asarray(degenerate, jnp.int32)
    mixed = image.astype(jnp.int32) * share + base * ((1 << _BITS) - share)
    # Covers the error of the factor, so that a whole level is not rounded to the one below
    rounding = 1 << 7
    return jnp.clip((mixed + rounding) >> _BITS, 0, 255).astype(jnp.uint8)


def luma(image: Array) -> Array:
    """Return the grey levels uint8 (h, w, 1) of uint8 (h, w, c); c is 1 or 3."""
    if image.shape[-1] == 1:
        return image
    if image.shape[-1] != 3:
        raise InputError(f"colours can be changed in images of 1 or 3 channels; these have {image.shape[-1]}")
    red, green, blue = (image[..., c : c + 1].astype(jnp.int32) * weight for c, weight in enumerate(_LUMA))
    return ((red + green + blue + (1 << 15)) >> 16).astype(jnp.uint8)


def grayscale(image: Array) -> Array:
    """Replace all channels of uint8 (h, w, c) by the luma."""
    return jnp.broadcast_to(luma(image), image.shape)


def mean_luma(image: Array) -> Array:
    """Return the mean grey level () int32, 0 to 255, rounded; for up to four million pixels."""
    pixels = image.shape[0] * image.shape[1]
    return (2 * luma(image).sum(dtype=jnp.int32) + pixels) // (2 * pixels)


def brightness(image: Array, factor: Array | float) -> Array:
    """Blend with black: darker for a factor of 0 to 1, brighter for 1 to 8."""
    return blend(0, image, factor)


def contrast(image: Array, factor: Array | float) -> Array:
    """Blend with the mean grey of the image: less contrast for a factor of 0 to 1, more for 1 to 8."""
    return blend(mean_luma(image), image, factor)


def saturation(image: Array, factor: Array | float) -> Array:
    """Blend with the grey image: paler for a factor of 0 to 1, more colourful for 1 to 8."""
    return blend(grayscale(image), image, factor)


def sharpness(image: Array, factor: Array | float) -> Array:
    """Blend with a smoothed image: smoother for a factor of 0 to 1, sharper for 1 to 8."""
    return blend(smoothed(image), image, factor)


def smoothed(image: Array) -> Array:
    """Return means of 3 x 3 pixels with weight 5 for the middle; pixels of the edge stay."""
    height, width, _ = image.shape
    if min(height, width) < 3:
        return image
    wide = image.astype(jnp.int32)
    rows = wide[:-2] + wide[1:-1] + wide[2:]
    total = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * wide[1:-1, 1:-1]
    return image.at[1:-1, 1:-1].set(((total + 6) // 13).astype(jnp.uint8))


def hue(image: Array, turn: Array | float) -> Array:
    """Rotate the hues of (h, w, 3) by -0.5 to 0.5 of the circle; a grey image stays."""
    if luma(image) is image:
        return image
    wide = image.astype(jnp.int32)
    red, green, blue = wide[..., 0], wide[..., 1], wide[..., 2]
    top, spread = wide.max(-1), wide.max(-1) - wide.min(-1)
    sector = jnp.where(top == red, 0, jnp.where(top == green, 2, 4))
    ahead = jnp.where(top == red, green - blue, jnp.where(top == green, blue - red, red - green))
    place = sector * _HUE + (ahead * _HUE) // jnp.maximum(spread, 1)
    place = place + jnp.round(jnp.asarray(turn, jnp.float32) * (6 * _HUE)).astype(jnp.int32)

    def channel(shift: int) -> Array:
        """Return `top` within a sixth of the circle of its own hue, `top - spread` on the far side."""
        around = (place + shift * _HUE) % (6 * _HUE)
        share = jnp.clip(jnp.minimum(around, 4 * _HUE - around), 0, _HUE)
        return top - ((spread * share + _HUE // 2) >> 16)

    return jnp.stack([channel(5), channel(3), channel(1)], -1).astype(jnp.uint8)


def invert(image: Array) -> Array:
    """Invert all levels."""
    return 255 - image


def posterize(image: Array, bits: Array | int) -> Array:
    """Keep the highest `bits`, 0 to 8, of each level."""
    return image & (255 << (8 - jnp.asarray(bits, jnp.int32)) & 255).astype(jnp.uint8)


def solarize(image: Array, threshold: Array | float) -> Array:
    """Invert the levels from `threshold`, 0 to 256, upwards."""
    return jnp.where(image.astype(jnp.float32) >= threshold, 255 - image, image)


def solarize_add(image: Array, amount: Array | float) -> Array:
    """Add a whole number of levels, 0 to 128, to the levels below 128."""
    more = jnp.minimum(image.astype(jnp.int32) + jnp.asarray(amount).astype(jnp.int32), 255).astype(jnp.uint8)
    return jnp.where(image < 128, more, image)


def _stretches() -> np.ndarray:
    """Return uint8 (256, 256): [r, d] is the new level of a pixel d above the lowest, if levels span r.

    That is 255 d / r rounded down, in float32 and in torchvision's order. It is computed once on the host, since the
    division of a device may round differently.
    """
    spans, steps = np.arange(256, dtype=np.float32)[:, None], np.arange(256, dtype=np.float32)[None]
    scale = np.where(spans == 0, np.float32(1), spans * np.float32(1 / 255))
    return np.clip(steps / scale, 0, 255).astype(np.uint8)


_STRETCHES = _stretches()


def autocontrast_table(low: Array, high: Array) -> Array:
    """Return uint8 (256, c): new levels of images with levels in `low` to `high`, both integer (c,)."""
    low, high = low.astype(jnp.int32), high.astype(jnp.int32)
    levels = jnp.arange(256, dtype=jnp.int32)[:, None]
    stretched = jnp.asarray(_STRETCHES)[(high - low)[None], jnp.clip(levels - low[None], 0, 255)]
    return jnp.where((low == high)[None], levels.astype(jnp.uint8), stretched)


def histogram(image: Array) -> Array:
    """Count the pixels of each level: (h, w, c) -> (256, c) int32."""
    channels = image.shape[-1]
    place = image.astype(jnp.int32) * channels + jnp.arange(channels, dtype=jnp.int32)[None, None]
    counts = jnp.zeros(256 * channels, jnp.int32).at[place.reshape(-1)].add(1, mode="promise_in_bounds")
    return counts.reshape(256, channels)


def extremes(counts: Array) -> tuple[Array, Array]:
    """Return the lowest and the highest level, both (c,), of a histogram (256, c)."""
    levels = jnp.arange(256, dtype=jnp.int32)[:, None]
    return jnp.where(counts > 0, levels, 255).min(0), jnp.where(counts > 0, levels, 0).max(0)


def equalize_table(counts: Array) -> Array:
    """Return uint8 (256, c): new, about equally frequent levels for a histogram (256, c)."""
    levels = jnp.arange(256, dtype=jnp.int32)[:, None]
    _, highest = extremes(counts)
    step = (counts.sum(0, keepdims=True) - jnp.take_along_axis(counts, highest[None], 0)) // 255
    below = jnp.cumsum(counts, 0) - counts
    spread = jnp.clip((below + step // 2) // jnp.maximum(step, 1), 0, 255)
    return jnp.where(step == 0, levels, spread).astype(jnp.uint8)


def lookup(image: Array, table: Array) -> Array:
    """Replace each level of uint8 (h, w, c) by that of its channel in the table (256, c)."""
    channels = image.shape[-1]
    place = image.astype(jnp.int32) * channels + jnp.arange(channels, dtype=jnp.int32)[None, None]
    return jnp.take(table.reshape(-1), place, mode="clip")


def autocontrast(image: Array) -> Array:
    """Stretch each channel to 0 to 255."""
    return lookup(image, autocontrast_table(image.min((0, 1)), image.max((0, 1))))


def equalize(image: Array) -> Array:
    """Make the levels of each channel about equally frequent."""
    return lookup(image, equalize_table(histogram(image)))
