"""The same mathematics, written as XLA's CPU compiler runs it fastest. Axes: g group, b batch, ... spatial, c channels.

On CPUs XLA takes long over sums of all pixels of a channel, without the fusions that `resnet_jax.backend` leaves out,
over the gradient of a maximum over windows, over those of 1x1 convolutions, for which it transposes what it recomputes,
and over maps smaller than a kernel; written as products with ones, as comparisons of slices, as products of matrices
and on larger maps they cost what they should. Which of two formulas is compiled is settled when a function is lowered,
by the platform for which it is, so that a TPU or GPU sees XLA's own also where it is compiled for on a machine without
one. All have derivatives of any order, and go through `jax.vmap` and `jax.shard_map`.

Tried with those fusions left out, and not taken: gradients of 3x3 kernels as nine products of matrices, which mostly
took longer than XLA's own.

RESNET_JAX_KERNELS=off in the environment, or `using(False)`, leaves XLA's own everywhere.
"""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero

Extents = tuple[int, ...]  # one for every spatial axis

_used: ContextVar[bool | None] = ContextVar("kernels", default=None)


def dimension_numbers(rank: int) -> lax.ConvDimensionNumbers:
    """Channels last for input, kernel (spatial, in, out) and output, at any spatial rank."""
    last, spatial = rank + 1, tuple(range(1, rank + 1))
    kernel = (last, rank, *range(rank))
    return lax.ConvDimensionNumbers((0, last, *spatial), kernel, (0, last, *spatial))


def used() -> bool:
    """Whether what is traced now takes the formulas of this module on CPUs."""
    chosen = _used.get()
    return os.environ.get("RESNET_JAX_KERNELS", "on") != "off" if chosen is None else chosen


@contextmanager
def using(chosen: bool) -> Iterator[None]:
    """Takes these formulas, or XLA's own, in whatever is traced within; a jitted function keeps its first trace."""
    token = _used.set(chosen)
    try:
        yield
    finally:
        _used.reset(token)


def max_pool(x: Array, window: Extents, strides: Extents, padding: Extents) -> Array:
    """Largest value in each window of (b, spatial..., c), padded by minus infinity on both sides.

    Of equal values the gradient goes to the first, in the order of memory, as in XLA and PyTorch. On CPUs by slices:
    with its gradient .35 of the time (8 images of 112x112x64; jax 0.10.2, two cores of a shared server).
    """
    return _max_pool(x, window, strides, padding, used())


def convolve(x: Array, kernel: Array, strides: Extents, dilation: int = 1, groups: int = 1) -> Array:
    """Convolution of (b, spatial..., c) with a kernel (spatial..., c / groups, d), padded on both sides.

    By dilation * (extent // 2). On CPUs one with a kernel of one tap is a product of matrices, and so are its
    gradients: a step of ResNet-50 takes .7 of the time by that of the kernel, and .96 of this by the others (8 images
    of 224x224). Where the result has fewer pixels than the kernel taps, XLA exchanges the two, and on CPUs that takes
    long: there zeros make the map larger first. A step then takes .16 of the time for ResNet-18 (8 images of 64x64) and
    .63 for ResNet-20 (64 of 8x8; jax 0.10.2, two cores of a shared server).
    """
    window, rank = kernel.shape[:-2], len(strides)
    if groups == 1 and max(window) == 1:
        return _written(x, kernel, strides, matrix_of_pixels, used())
    if dilation * groups == 1 and all(isinstance(size, int) for size in x.shape[1:-1]):  # and not symbols of an export
        each = zip(x.shape[1:-1], window, strides, strict=True)
        after = math.prod((size + 2 * (k // 2) - k) // stride + 1 for size, k, stride in each)
        before, taps = math.prod(x.shape[1:-1]), math.prod(window)
        if 1 < before < taps or (before > 1 and after < taps and rank < 3):
            return _on_small_map(x, kernel, strides, before < taps, used())
    return padded(x, kernel, strides, dilation, groups)


def once(x: Array) -> Array:
    """`x` itself, computed once on CPUs, in place of again in all that uses it.

    There XLA repeats sums and ReLUs wherever a result is transposed or added, back to the first block of a stage. With
    this before each convolution, and `compiler_options`, without which it is nothing, a step takes .75 of the time for
    ResNet-20 (128 images of 32x32; jax 0.10.2, two cores of a shared server), and as long as before for ResNet-50.
    """
    return _once(x, used())


def mean(x: Array) -> Array:
    """(g, b, ..., c) -> (g, 1, ..., 1, c): the means of each group and channel.

    On CPUs as products with ones: a BatchNorm with ReLU and its gradient then take .52 of the time (8 images of
    56x56x256), .04 (8 of 14x14x1024) and .73 (128 of 32x32x16; jax 0.10.2, two cores of a shared server).
    """
    return _mean(x, used())


def spread(x: Array, shape: tuple[int, ...]) -> Array:
    """(g, 1, ..., 1, c) -> `shape` (g, b, ..., c), of which the gradient is a sum like that of `mean`."""
    return _spread(x, shape, used())


def padded(x: Array, kernel: Array, strides: Extents, dilation: int = 1, groups: int = 1) -> Array:
    """XLA's own convolution, padded by dilation * (extent // 2) on both sides."""
    window = kernel.shape[:-2]
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=strides,
        padding=[(dilation * (k // 2),) * 2 for k in window],
        rhs_dilation=(dilation,) * len(window),
        dimension_numbers=dimension_numbers(len(window)),
        feature_group_count=groups,
    )


def on_larger_map(x: Array, kernel: Array, strides: Extents) -> Array:
    """The same of a map that zeros make as large as the kernel, without strides; what was asked for is cut out.

    The barriers keep XLA from taking the zeros for padding, and from exchanging map and kernel after all.
    """
    window = kernel.shape[:-2]
    more = [(0, max(0, k - size)) for size, k in zip(x.shape[1:], window, strict=False)]
    large = lax.optimization_barrier(jnp.pad(x, [(0, 0), *more, (0, 0)]))
    y = lax.optimization_barrier(padded(large, kernel, (1,) * len(window)))
    ends = [size + 2 * (k // 2) - k + 1 for size, k in zip(x.shape[1:], window, strict=False)]
    return lax.slice(y, (0,) * y.ndim, (len(y), *ends, y.shape[-1]), (1, *strides, 1))


def matrix_of_pixels(x: Array, kernel: Array, strides: Extents) -> Array:
    """With a kernel of one tap: the product of the pixels that the strides meet with it."""
    met = lax.slice(x, (0,) * x.ndim, x.shape, (1, *strides, 1))
    pixels = met.reshape(-1, x.shape[-1])  # or else XLA transposes them all for the gradient
    return (pixels @ kernel.reshape(kernel.shape[-2:])).reshape(*met.shape[:-1], -1)


def in_blocks(x: Array, kernel: Array, strides: Extents, padding: Extents) -> Array:
    """A strided convolution as one of stride 1 over blocks of `strides` pixels, whose channels lie behind each other.

    Space to depth: the same sums of products, but for zeros by which the kernel is made a whole number of blocks.
    """
    around, beyond = [], []
    for size, k, s, p in zip(x.shape[1:-1], kernel.shape, strides, padding, strict=False):
        taps = -(-k // s)
        blocks = (size + 2 * p - k) // s + taps
        around.append((p, blocks * s - size - p, 0))
        beyond.append((0, taps * s - k, 0))
    whole = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *around, (0, 0, 0)])
    wide = lax.pad(kernel, jnp.zeros((), kernel.dtype), [*beyond, (0, 0, 0), (0, 0, 0)])
    fold, rank = partial(_folded, strides=strides), len(strides)
    pixels, taps_of = jax.vmap(fold)(whole), jax.vmap(fold, in_axes=-1, out_axes=-1)(wide)
    return lax.conv_general_dilated(pixels, taps_of, (1,) * rank, "VALID", dimension_numbers=dimension_numbers(rank))


def _folded(image: Array, strides: Extents) -> Array:
    """(spatial..., c) -> (spatial / stride..., strides * c)."""
    pairs = [n for size, s in zip(image.shape, strides, strict=False) for n in (size // s, s)]
    blocks = image.reshape(*pairs, image.shape[-1])
    last = 2 * len(strides)
    return blocks.transpose(*range(0, last, 2), *range(1, last, 2), last).reshape(*pairs[::2], -1)


def largest_in_windows(x: Array, window: Extents, strides: Extents, padding: Extents) -> Array:
    """XLA's own maximum over windows."""
    sizes, steps, edges = (1, *window, 1), (1, *strides, 1), [(0, 0), *((p, p) for p in padding), (0, 0)]
    return lax.reduce_window(x, -jnp.inf, lax.max, sizes, steps, edges)


def largest_of_slices(x: Array, window: Extents, strides: Extents, padding: Extents) -> Array:
    """The maximum over windows axis by axis, the last one first, so that the first of equal values is taken."""
    for axis in range(x.ndim - 2, 0, -1):
        size, stride, edge = window[axis - 1], strides[axis - 1], padding[axis - 1]
        x = lax.pad(x, jnp.array(-jnp.inf, x.dtype), [(edge * (a == axis),) * 2 + (0,) for a in range(x.ndim)])
        reach = (x.shape[axis] - size) // stride * stride + 1
        slices = [lax.slice_in_dim(x, at, at + reach, stride, axis) for at in range(size)]
        x = slices[0]
        for other in slices[1:]:
            x = jnp.where((other > x) | (other != other), other, x)  # what is not a number is passed on
    return x


def mean_of_products(x: Array) -> Array:
    """The means of each image as products of matrices, and then those of the images, which loses fewer digits."""
    images = x.reshape(*x.shape[:2], -1, x.shape[-1])
    ones = jnp.ones((*images.shape[:2], 1, images.shape[2]), x.dtype)
    sums = _product(ones, images).sum(1)
    return sums.reshape(x.shape[0], *(1,) * (x.ndim - 2), x.shape[-1]) / math.prod(x.shape[1:-1])


def spread_by_product(x: Array, shape: tuple[int, ...]) -> Array:
    """A product of each channel with ones, so that its gradient is one as well."""
    group, batch, *spatial, channels = shape
    each = jnp.broadcast_to(x.reshape(group, 1, 1, channels), (group, batch, 1, channels))
    return _product(jnp.ones((group, batch, math.prod(spatial), 1), x.dtype), each).reshape(shape)


def _product(a: Array, b: Array) -> Array:
    return lax.dot_general(a, b, (((3,), (2,)), ((0, 1), (0, 1))), precision=lax.Precision.HIGHEST)


@partial(jax.jit, static_argnums=1, inline=True)
def _once(x: Array, fast: bool) -> Array:
    return _by_platform(lax.optimization_barrier if fast else _same, _same, x)


def _same(x: Array) -> Array:
    return x


@partial(jax.jit, static_argnums=(2, 3, 4), inline=True)
def _written(x: Array, kernel: Array, strides: Extents, formula: Callable[..., Array], fast: bool) -> Array:
    """A convolution by this formula on CPUs, and by XLA's own elsewhere."""
    plain = partial(padded, strides=strides)
    return _by_platform(partial(formula, strides=strides) if fast else plain, plain, x, kernel)


@partial(jax.custom_jvp, nondiff_argnums=(2, 3, 4))
def _on_small_map(x: Array, kernel: Array, strides: Extents, throughout: bool, fast: bool) -> Array:
    """`throughout`, or else in the gradient of the map alone, where a strided convolution has few pixels."""
    return _written(x, kernel, strides, on_larger_map, fast and throughout)


@partial(_on_small_map.defjvp, symbolic_zeros=True)
def _on_small_map_jvp(strides: Extents, throughout: bool, fast: bool, primals: Any, tangents: Any) -> tuple:
    """A convolution is linear in both; how each term is written decides what its gradient is made of."""
    (x, kernel), (x_moved, kernel_moved) = primals, tangents
    y = _on_small_map(x, kernel, strides, throughout, fast)
    moved = []
    if not isinstance(x_moved, SymbolicZero):
        moved.append(_written(x_moved, kernel, strides, on_larger_map, fast))
    if not isinstance(kernel_moved, SymbolicZero):
        moved.append(_written(x, kernel_moved, strides, on_larger_map, fast and throughout))
    return y, sum(moved[1:], moved[0]) if moved else jnp.zeros_like(y)


@partial(jax.jit, static_argnums=1, inline=True)
def _mean(x: Array, fast: bool) -> Array:
    plain = partial(jnp.mean, axis=tuple(range(1, x.ndim - 1)), keepdims=True)
    return _by_platform(mean_of_products if fast else plain, plain, x)


@partial(jax.jit, static_argnums=(1, 2), inline=True)
def _spread(x: Array, shape: tuple[int, ...], fast: bool) -> Array:
    plain = partial(jnp.broadcast_to, shape=shape)
    return _by_platform(partial(spread_by_product, shape=shape) if fast else plain, plain, x)


@partial(jax.jit, static_argnums=(1, 2, 3, 4), inline=True)
def _max_pool(x: Array, window: Extents, strides: Extents, padding: Extents, fast: bool) -> Array:
    shape: dict[str, Any] = {"window": window, "strides": strides, "padding": padding}
    plain = partial(largest_in_windows, **shape)
    return _by_platform(partial(largest_of_slices, **shape) if fast else plain, plain, x)


def _by_platform(on_cpu: Callable[..., Array], elsewhere: Callable[..., Array], *arrays: Array) -> Array:
    return elsewhere(*arrays) if on_cpu is elsewhere else lax.platform_dependent(*arrays, cpu=on_cpu, default=elsewhere)
