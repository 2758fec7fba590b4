"""Features that no training image has shaped: a scattering transform, so that a linear head on them may be private.

Reference:
    Bruna and Mallat 2013, "Invariant scattering convolution networks", order 0 and 1; Tramer and Boneh 2021,
    "Differentially private learning needs better features (or much more data)", section 3, which goes to order 2.
"""

import math
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

SCALES, ANGLES = 2, 8
# Half the extent of a filter, in pixels: 4.4 standard deviations of the finer wavelet, 2.2 of the coarser
_REACH = 4
# Pixels between positions
_STRIDE = 4


def wavelets() -> np.ndarray:
    """Return Morlet wavelets of zero mean, (9, 9, 2 * 16) float32: real parts, then imaginary parts."""
    y, x = np.mgrid[-_REACH : _REACH + 1, -_REACH : _REACH + 1]
    waves = []
    for scale in range(SCALES):
        for angle in range(ANGLES):
            theta, sigma, slant = math.pi * angle / ANGLES, 0.8 * 2**scale, 4 / ANGLES
            along, across = x * math.cos(theta) + y * math.sin(theta), y * math.cos(theta) - x * math.sin(theta)
            envelope = np.exp(-(along**2 + (slant * across) ** 2) / (2 * sigma**2))
            wave = envelope * np.exp(0.75j * math.pi / 2**scale * along)
            wave -= wave.sum() / envelope.sum() * envelope
            waves.append(wave * slant / (2 * math.pi * sigma**2))
    stacked = np.stack(waves, -1)
    return np.concatenate([stacked.real, stacked.imag], -1).astype(np.float32)


def smoothing(size: int) -> np.ndarray:
    """Return the matrix (size / 4, size) of Gaussian means around every fourth pixel, rows of sum 1."""
    centres = np.arange(size // _STRIDE) * _STRIDE + (_STRIDE - 1) / 2
    weights = np.exp(-((np.arange(size) - centres[:, None]) ** 2) / (2 * (0.8 * 2 ** (SCALES - 1)) ** 2))
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


@jax.jit
def scatter(images: Array) -> Array:
    """Return the scattering coefficients, normalised over the positions and colours of each wavelet.

    Args:
        images: (n, h, w, c) uint8, h and w multiples of 4.

    Returns:
        (n, d) float16 of mean square 1, d = 17 c h w / 16.
    """
    n, h, w, c = images.shape
    x = jnp.moveaxis(images, -1, 1).reshape(n * c, h, w, 1).astype(jnp.float32) / 255
    around = jnp.pad(x, ((0, 0), (_REACH, _REACH), (_REACH, _REACH), (0, 0)), mode="reflect")
    waves = jnp.asarray(wavelets())[:, :, None]
    real, imag = jnp.split(
        lax.conv_general_dilated(around, waves, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")), 2, -1
    )
    maps = jnp.concatenate([x, jnp.sqrt(jnp.square(real) + jnp.square(imag))], -1)
    smooth = jnp.einsum("ih,nhwk,jw->nkij", smoothing(h), maps, smoothing(w))
    of_wavelet = jnp.moveaxis(smooth.reshape(n, c, maps.shape[-1], -1), 1, 2).reshape(n, maps.shape[-1], -1)
    away = of_wavelet - of_wavelet.mean(-1, keepdims=True)
    scaled = away * lax.rsqrt(jnp.square(away).mean(-1, keepdims=True) + 1e-6)
    return scaled.reshape(n, -1).astype(jnp.float16)


def scatter_all(batches: Iterable[np.ndarray]) -> np.ndarray:
    """Return the features of all images, batch by batch."""
    return np.concatenate([np.asarray(scatter(batch)) for batch in batches])
