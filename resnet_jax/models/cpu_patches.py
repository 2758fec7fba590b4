"""3x3 convolutions of maps of a few pixels, as one matrix product with the patches of nine pixels.

Of a patch only the pixels are taken that lie in the map for some pixel of the result: one for a map of one pixel.
"""

import jax.numpy as jnp
from jax import Array, lax


def convolve(x: Array, kernel: Array, stride: int) -> Array:
    """Convolve (n, h, w, c) with a kernel (3, 3, c, d), padded by one pixel on each side."""
    return _patches(x, stride) @ kernel[_taps(x, stride)].reshape(-1, kernel.shape[3])


def image_gradient(y: Array, kernel: Array, size: tuple[int, int], stride: int) -> Array:
    """Return the gradient (n, *size, c) of an image from that of the result and the kernel, for stride 1."""
    assert (y.shape[1:3], stride) == (size, 1)
    return convolve(y, turned(kernel), 1)


def turned(kernel: Array) -> Array:
    """Return the kernel whose convolution is the gradient of the image: (3, 3, c, d) -> (3, 3, d, c)."""
    return kernel[::-1, ::-1].swapaxes(2, 3)


def kernel_gradient(x: Array, y: Array, stride: int) -> Array:
    """Return the gradient (3, 3, c, d) of a kernel from images (n, h, w, c) and the gradient of the result."""
    patches, taps = _patches(x, stride), _taps(x, stride)
    product = patches.reshape(-1, patches.shape[3]).T @ y.reshape(-1, y.shape[3])
    taken = product.reshape(*(tap.stop - tap.start for tap in taps), x.shape[3], y.shape[3])
    return jnp.pad(taken, (*((tap.start, 3 - tap.stop) for tap in taps), (0, 0), (0, 0)))


def _patches(x: Array, stride: int) -> Array:
    """Return the pixels taken around each pixel of the result: (n, ceil(h / stride), ceil(w / stride), taps c)."""
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    n, h, w, c = x.shape
    rows, columns = (range(tap.start, tap.stop) for tap in _taps(x, stride))

    def pixels(i: int, j: int) -> Array:
        return lax.slice(padded, (0, i, j, 0), (n, i + h, j + w, c), (1, stride, stride, 1))

    return jnp.concatenate([pixels(i, j) for i in rows for j in columns], 3)


def _taps(x: Array, stride: int) -> tuple[slice, slice]:
    """Return the rows and columns of the kernel that meet pixels of the map, and not its padding alone."""
    high, wide = (slice(int(extent <= stride), 3 if extent > 1 else 2) for extent in x.shape[1:3])
    return high, wide
