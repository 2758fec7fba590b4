"""3x3 convolutions of stride 1 by 16 matrix products for four pixels, instead of 36: Winograd's F(2x2, 3x3).

The image is cut into blocks of 4x4 pixels, two apart; the result consists of blocks of 2x2. Axes: n images, h and w,
i and j blocks along them, c channels, d features.

Reference:
    Lavin and Gray 2016, "Fast algorithms for convolutional neural networks", section 4.1.
"""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jax import Array, lax

# Of one axis: four, two or three arrays to four, two or three
Transform = Callable[[Sequence[Array]], list[Array]]
Grid = list[list[Array]]


def convolve(x: Array, kernel: Array, stride: int = 1) -> Array:
    """Convolve (n, h, w, c) with a kernel (3, 3, c, d), padded by one pixel on each side."""
    assert stride == 1
    return _by_taps("pc,cd->pd", x, [list(row) for row in kernel])


def image_gradient(y: Array, kernel: Array, size: tuple[int, int], stride: int = 1) -> Array:
    """Return the gradient (n, *size, c) of an image from that of the result (n, *size, d) and the kernel."""
    assert (y.shape[1:3], stride) == (size, 1)
    # Its matrices are multiplied as they are: to transpose those of 512 channels takes longer than all else
    return _by_taps("pd,cd->pc", y, [list(row)[::-1] for row in kernel][::-1])


def _by_taps(axes: str, x: Array, taps: Grid) -> Array:
    """Convolve a map with 3 x 3 matrices, padded by one pixel on each side."""
    products = _products(axes, _blocks(x), _on_both_axes(_of_kernel, taps))
    y = jnp.stack([jnp.stack(row, 3) for row in _on_both_axes(_to_result, products)], 2)
    n, i, _, j, _, features = y.shape
    return y.reshape(n, 2 * i, 2 * j, features)[:, : x.shape[1], : x.shape[2]]


def kernel_gradient(x: Array, y: Array, stride: int = 1) -> Array:
    """Return the gradient (3, 3, c, d) of a kernel from images (n, h, w, c) and the gradient of the result."""
    assert stride == 1
    height, width = y.shape[1:3]
    even = jnp.pad(y, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
    moved = _on_both_axes(_from_result, [[even[:, i::2, j::2] for j in range(2)] for i in range(2)])
    products = _products("pc,pd->cd", _blocks(x), moved)
    return jnp.stack([jnp.stack(row) for row in _on_both_axes(_to_kernel, products)])


def _blocks(x: Array) -> Grid:
    """Return the transformed blocks of a padded image, each entry of all blocks as one array (n, i, j, c)."""
    high, wide = (-(-size // 2) for size in x.shape[1:3])
    whole = jnp.pad(x, ((0, 0), *((1, 1 + size % 2) for size in x.shape[1:3]), (0, 0)))

    def entry(i: int, j: int) -> Array:
        ends = (len(x), i + 2 * high - 1, j + 2 * wide - 1, x.shape[3])
        return lax.slice(whole, (0, i, j, 0), ends, (1, 2, 2, 1))

    return _on_both_axes(_of_image, [[entry(i, j) for j in range(4)] for i in range(4)])


def _on_both_axes(transform: Transform, grid: Grid) -> Grid:
    """Transform the columns of a grid of arrays, then its rows."""
    columns = [transform(column) for column in zip(*grid, strict=True)]
    return [transform(row) for row in zip(*columns, strict=True)]


def _of_image(d: Sequence[Array]) -> list[Array]:
    return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]


def _of_kernel(k: Sequence[Array]) -> list[Array]:
    return [k[0], (k[0] + k[1] + k[2]) / 2, (k[0] - k[1] + k[2]) / 2, k[2]]


def _to_result(m: Sequence[Array]) -> list[Array]:
    return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]


def _from_result(y: Sequence[Array]) -> list[Array]:
    """Apply the transpose of `_to_result`."""
    return [y[0], y[0] + y[1], y[0] - y[1], -y[1]]


def _to_kernel(u: Sequence[Array]) -> list[Array]:
    """Apply the transpose of `_of_kernel`."""
    return [u[0] + (u[1] + u[2]) / 2, (u[1] - u[2]) / 2, (u[1] + u[2]) / 2 + u[3]]


def _products(axes: str, left: Grid, right: Grid) -> Grid:
    """Multiply the arrays of two grids, each as a matrix of all but its last axis by the last."""
    pairs = [zip(*rows, strict=True) for rows in zip(left, right, strict=True)]
    return [[_product(axes, a, b) for a, b in row] for row in pairs]


def _product(axes: str, a: Array, b: Array) -> Array:
    first, second = (x.reshape(-1, x.shape[-1]) for x in (a, b))
    found = jnp.einsum(axes, first, second, precision=lax.Precision.HIGHEST)
    return found.reshape(*a.shape[:-1], -1) if axes != "pc,pd->cd" else found
