"""From one image to a batch: row i uses the key `fold_in(key, i)`, however the batch is split."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array

from resnet_jax.data.augment.geometry import flip, pad_crop

# (key, image (h, w, c)) -> image
ImageOp = Callable[[Array, Array], Array]

# Folded into the key of an example for its first change; `split` uses 0 and 1, for crop and flip
_FIRST = 2


def normalize(image: Array, mean: tuple[float, ...], std: tuple[float, ...]) -> Array:
    """Normalise uint8 (..., c) to float32: pixels in 0 to 1, less `mean`, divided by `std`.

    `mean` and `std` are one number, or one per channel. With JAX's 64 bits enabled the result is float64, as in mixing.
    Sound, int16, is likewise in -1 to 1; text, int32, stays as it is.
    """
    if image.dtype == jnp.int32:
        return image
    shape = (1,) * (image.ndim - 1) + (-1,)
    center, scale = (jnp.asarray(v, float).reshape(shape) for v in (mean, std))
    return (image.astype(float) / (32768 if image.dtype == jnp.int16 else 255) - center) / scale


def augment_one(
    key: Array,
    image: Array,
    *,
    pad: int,
    mirror: bool,
    pad_mode: Literal["zero", "reflect"] = "zero",
    changes: Sequence[ImageOp] = (),
) -> Array:
    """Crop with padding and flip one uint8 image (h, w, c), then apply `changes` in order.

    Each change has its own key. `pad` is in pixels per side; 0 is no crop.
    """
    crop_key, flip_key = jax.random.split(key)
    if pad:
        image = pad_crop(crop_key, image, pad, pad_mode)
    image = flip(flip_key, image) if mirror else image
    for number, change in enumerate(changes, _FIRST):
        image = change(jax.random.fold_in(key, number), image)
    return image


def augment(
    key: Array,
    images: Array,
    *,
    pad: int,
    mirror: bool,
    pad_mode: Literal["zero", "reflect"] = "zero",
    changes: Sequence[ImageOp] = (),
    rows: Array | None = None,
) -> Array:
    """Apply `augment_one` to each image of (b, h, w, c), which are these `rows` of a batch."""
    one = partial(augment_one, pad=pad, mirror=mirror, pad_mode=pad_mode, changes=tuple(changes))
    return map_images(key, images, one, rows)


def map_images(key: Array, images: Array, change: ImageOp, rows: Array | None = None) -> Array:
    """Apply `change` to each image of (b, h, w, c); row i uses the key `fold_in(key, i)`.

    `rows` (b,) are the positions of the images in the batch; None is 0 ... b - 1.
    """
    rows = jnp.arange(images.shape[0]) if rows is None else rows
    keys = jax.vmap(partial(jax.random.fold_in, key))(rows)
    return jax.vmap(change)(keys, images)
