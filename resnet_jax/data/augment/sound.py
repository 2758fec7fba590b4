"""Augmentation of sound on the device: a pure function of (key, sound (l, 1))."""

import jax
import jax.numpy as jnp
from jax import Array


def time_shift(key: Array, sound: Array, fraction: float) -> Array:
    """Shift a sound in time by up to `fraction` of its length, either way; silence follows."""
    most = round(fraction * sound.shape[0])
    start = jax.random.randint(key, (), 0, 2 * most + 1)
    return jax.lax.dynamic_slice_in_dim(jnp.pad(sound, ((most, most), (0, 0))), start, sound.shape[0])
