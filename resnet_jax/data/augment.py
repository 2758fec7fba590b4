"""What is done to images on the device: pure functions over one image (h, w, c), batched by `vmap`."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax


def normalize(image: Array, mean: tuple[float, ...], std: tuple[float, ...]) -> Array:
    """uint8 (..., c) -> float32 (..., c): pixels in 0 to 1, less `mean`, by `std`; one number, or one a channel."""
    shape = (1,) * (image.ndim - 1) + (-1,)
    center, scale = (jnp.asarray(v, jnp.float32).reshape(shape) for v in (mean, std))
    return (image.astype(jnp.float32) / 255 - center) / scale


def pad_crop(key: Array, image: Array, pad: int) -> Array:
    """Pads (h, w, c) with `pad` black pixels on each side and crops the original size at random.

    He et al. 2015, section 4.2, with pad 4.
    """
    padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    top, left = jax.random.randint(key, (2,), 0, 2 * pad + 1)
    return lax.dynamic_slice(padded, (top, left, 0), image.shape)


def flip(key: Array, image: Array) -> Array:
    """Mirrors (h, w, c) left to right with probability one half."""
    return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


def augment_one(key: Array, image: Array, *, pad: int, mirror: bool) -> Array:
    """Padded crop and flip of one uint8 image (h, w, c)."""
    crop_key, flip_key = jax.random.split(key)
    if pad:
        image = pad_crop(crop_key, image, pad)
    return flip(flip_key, image) if mirror else image


def augment(key: Array, images: Array, *, pad: int, mirror: bool) -> Array:
    """`augment_one` for each of (b, h, w, c); example i uses the key `fold_in(key, i)`, however the batch is split."""
    keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(images.shape[0]))
    return jax.vmap(partial(augment_one, pad=pad, mirror=mirror))(keys, images)
