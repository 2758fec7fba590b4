"""Operations written as XLA's CPU compiler runs them fastest. Axes: g group, b batch, c channels.

On CPUs, without the fusions that `resnet_jax.runtime.compiler_options` leaves out, XLA is slow in five cases:

- sums over all pixels of a channel; here they are products with ones;
- the gradient of a maximum over windows; here it is made of comparisons of slices;
- the gradient of 1x1 convolutions, which transposes recomputed values; here it is a matrix product;
- maps smaller than a kernel; here zeros make the map larger;
- 3x3 convolutions; here they are Winograd's or, with llvmlite installed, machine code (`cpu_conv3x3`).

The platform for which a function is lowered decides which formula is compiled. A TPU or GPU gets XLA's own formula,
even if the function is compiled on a machine without one; but an NVIDIA GPU also takes the maximum over slices, with
which a step of ResNet-50 moves 2.5 % less memory. All formulas have derivatives of any order and work under `jax.vmap`
and `jax.shard_map`.

Tried without those fusions, and rejected: gradients of 3x3 kernels as nine matrix products, mostly slower than XLA's.

RESNET_JAX_KERNELS=off in the environment, or `cpu_kernels(False)`, selects XLA's own formulas everywhere.

Speeds were measured with jax 0.10.2 on two cores of a shared server.
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

from resnet_jax.models.cpu_conv3x3 import conv3x3, is_supported

# One for every spatial axis
Extents = tuple[int, ...]

_used: ContextVar[bool | None] = ContextVar("kernels", default=None)


def dimension_numbers(rank: int) -> lax.ConvDimensionNumbers:
    """Return dimension numbers with channels last; the kernel is (spatial..., in, out), at any rank."""
    last, spatial = rank + 1, tuple(range(1, rank + 1))
    kernel = (last, rank, *range(rank))
    return lax.ConvDimensionNumbers((0, last, *spatial), kernel, (0, last, *spatial))


def used() -> bool:
    """Return whether functions traced now use the formulas of this module on CPUs."""
    chosen = _used.get()
    return os.environ.get("RESNET_JAX_KERNELS", "on") != "off" if chosen is None else chosen


@contextmanager
def cpu_kernels(chosen: bool) -> Iterator[None]:
    """Use these formulas, or XLA's own, in all that is traced inside; a jitted function keeps its trace."""
    token = _used.set(chosen)
    try:
        yield
    finally:
        _used.reset(token)


def max_pool(x: Array, window: Extents, strides: Extents, padding: Extents) -> Array:
    """Return the maximum of each window of (b, spatial..., c), padded by minus infinity on both sides.

    The gradient goes to the first of equal values in the order of memory, as in XLA and PyTorch. On CPUs the maximum is
    taken over slices: with its gradient that is 2.9x faster (8 images of 112x112x64).
    """
    return _max_pool(x, window, strides, padding, used())


def convolve(x: Array, kernel: Array, strides: Extents, dilation: int = 1, groups: int = 1) -> Array:
    """Convolve (b, spatial..., c) with a kernel (spatial..., c / groups, d), padded on both sides.

    The padding is dilation * (extent // 2). On CPUs, a convolution with a kernel of one tap and its gradients are
    matrix products: a step of ResNet-50 is 1.5x faster (8 images of 224x224). If the result has fewer pixels than the
    kernel has taps, XLA exchanges the two, which is slow on CPUs; zeros then make the map larger first. That makes a
    step 6.2x faster for ResNet-18 (8 images of 64x64) and 1.6x for ResNet-20 (64 images of 8x8).
    """
    window, rank = kernel.shape[:-2], len(strides)
    if groups == 1 and max(window) == 1:
        return _written(x, kernel, strides, matrix_of_pixels, used())
    # Sizes are symbols in an export
    if dilation * groups == 1 and all(isinstance(size, int) for size in x.shape[1:-1]):
        each = zip(x.shape[1:-1], window, strides, strict=True)
        after = math.prod((size + 2 * (k // 2) - k) // stride + 1 for size, k, stride in each)
        before, taps = math.prod(x.shape[1:-1]), math.prod(window)
        if 1 < before < taps or (before > 1 and after < taps and rank < 3):
            return _on_small_map(x, kernel, strides, before < taps, used())
        if used() and is_supported(x, kernel, strides):
            return conv3x3(x, kernel, strides[0])
    return padded(x, kernel, strides, dilation, groups)


def cpu_barrier(x: Array) -> Array:
    """Return `x`, computed once on CPUs instead of again in every operation that uses it.

    Without this, XLA repeats sums and ReLUs for every transpose and sum of a result, back to the first block of a
    stage. Before each convolution, and with `compiler_options`, it makes a step of ResNet-20 1.3x faster (128 images of
    32x32); ResNet-50 stays the same. Without `compiler_options` it has no effect.
    """
    return _cpu_barrier(x, used())


def mean(x: Array) -> Array:
    """Return the means of each group and channel: (g, b, ..., c) -> (g, 1, ..., 1, c).

    Products with ones on CPUs make a BatchNorm with ReLU and its gradient 1.9x faster (8 images of 56x56x256), 25x (8
    of 14x14x1024) and 1.4x (128 of 32x32x16).
    """
    return _mean(x, used())


def broadcast_stats(x: Array, shape: tuple[int, ...]) -> Array:
    """Broadcast (g, 1, ..., 1, c) to (g, b, ..., c); the gradient is a sum written like `mean`."""
    return _broadcast_stats(x, shape, used())


def padded(x: Array, kernel: Array, strides: Extents, dilation: int = 1, groups: int = 1) -> Array:
    """Convolve by XLA's own formula, padded by dilation * (extent // 2) on both sides."""
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
    """Convolve a map that zeros make as large as the kernel, without strides, and cut out the result.

    The barriers keep XLA from treating the zeros as padding, and from exchanging map and kernel after all.
    """
    window = kernel.shape[:-2]
    more = [(0, max(0, k - size)) for size, k in zip(x.shape[1:], window, strict=False)]
    large = lax.optimization_barrier(jnp.pad(x, [(0, 0), *more, (0, 0)]))
    y = lax.optimization_barrier(padded(large, kernel, (1,) * len(window)))
    ends = [size + 2 * (k // 2) - k + 1 for size, k in zip(x.shape[1:], window, strict=False)]
    return lax.slice(y, (0,) * y.ndim, (len(y), *ends, y.shape[-1]), (1, *strides, 1))


def matrix_of_pixels(x: Array, kernel: Array, strides: Extents) -> Array:
    """Convolve with a kernel of one tap: multiply the pixels that the strides select by the kernel."""
    met = lax.slice(x, (0,) * x.ndim, x.shape, (1, *strides, 1))
    # Otherwise XLA transposes all pixels for the gradient
    pixels = met.reshape(-1, x.shape[-1])
    return (pixels @ kernel.reshape(kernel.shape[-2:])).reshape(*met.shape[:-1], -1)


def space_to_depth_conv(x: Array, kernel: Array, strides: Extents, padding: Extents) -> Array:
    """Convolve with strides as a convolution of stride 1 over blocks of `strides` pixels.

    The pixels of a block become channels (space to depth). The sums of products are the same, except for the zeros that
    extend the kernel to a whole number of blocks.
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
    """Move blocks of pixels to channels: (spatial..., c) -> (spatial / stride..., strides * c)."""
    pairs = [n for size, s in zip(image.shape, strides, strict=False) for n in (size // s, s)]
    blocks = image.reshape(*pairs, image.shape[-1])
    last = 2 * len(strides)
    return blocks.transpose(*range(0, last, 2), *range(1, last, 2), last).reshape(*pairs[::2], -1)


def largest_in_windows(x: Array, window: Extents, strides: Extents, padding: Extents) -> Array:
    """Return the maximum over windows by XLA's own formula."""
    sizes, steps, edges = (1, *window, 1), (1, *strides, 1), [(0, 0), *((p, p) for p in padding), (0, 0)]
    return lax.reduce_window(x, -jnp.inf, lax.max, sizes, steps, edges)


def largest_of_slices(x: Array, window: Extents, strides: Extents, padding: Extents) -> Array:
    """Return the maximum over windows, last axis first, so that the first of equal values is taken."""
    for axis in range(x.ndim - 2, 0, -1):
        size, stride, edge = window[axis - 1], strides[axis - 1], padding[axis - 1]
        x = lax.pad(x, jnp.array(-jnp.inf, x.dtype), [(edge * (a == axis),) * 2 + (0,) for a in range(x.ndim)])
        reach = (x.shape[axis] - size) // stride * stride + 1
        slices = [lax.slice_in_dim(x, at, at + reach, stride, axis) for at in range(size)]
        x = slices[0]
        for other in slices[1:]:
            # NaN is passed on
            x = jnp.where((other > x) | (other != other), other, x)
    return x


def mean_of_products(x: Array) -> Array:
    """Return means by matrix products: of each image first, then over images, to lose fewer digits."""
    images = x.reshape(*x.shape[:2], -1, x.shape[-1])
    ones = jnp.ones((*images.shape[:2], 1, images.shape[2]), x.dtype)
    sums = _product(ones, images).sum(1)
    return sums.reshape(x.shape[0], *(1,) * (x.ndim - 2), x.shape[-1]) / math.prod(x.shape[1:-1])


def broadcast_by_product(x: Array, shape: tuple[int, ...]) -> Array:
    """Broadcast by a product of each channel with ones, so that the gradient is a product as well."""
    group, batch, *spatial, channels = shape
    each = jnp.broadcast_to(x.reshape(group, 1, 1, channels), (group, batch, 1, channels))
    return _product(jnp.ones((group, batch, math.prod(spatial), 1), x.dtype), each).reshape(shape)


def _product(a: Array, b: Array) -> Array:
    return lax.dot_general(a, b, (((3,), (2,)), ((0, 1), (0, 1))), precision=lax.Precision.HIGHEST)


@partial(jax.jit, static_argnums=1, inline=True)
def _cpu_barrier(x: Array, fast: bool) -> Array:
    return _by_platform(lax.optimization_barrier if fast else _same, _same, x)


def _same(x: Array) -> Array:
    return x


@partial(jax.jit, static_argnums=(2, 3, 4), inline=True)
def _written(x: Array, kernel: Array, strides: Extents, formula: Callable[..., Array], fast: bool) -> Array:
    """Convolve by `formula` on CPUs, and by XLA's own elsewhere."""
    plain = partial(padded, strides=strides)
    return _by_platform(partial(formula, strides=strides) if fast else plain, plain, x, kernel)


@partial(jax.custom_jvp, nondiff_argnums=(2, 3, 4))
def _on_small_map(x: Array, kernel: Array, strides: Extents, throughout: bool, fast: bool) -> Array:
    """Convolve on an enlarged map: everywhere if `throughout`, otherwise only in the gradient of the map.

    In that gradient a strided convolution has few pixels.
    """
    return _written(x, kernel, strides, on_larger_map, fast and throughout)


@partial(_on_small_map.defjvp, symbolic_zeros=True)
def _on_small_map_jvp(strides: Extents, throughout: bool, fast: bool, primals: Any, tangents: Any) -> tuple[Any, ...]:
    """Differentiate both linear terms; the formula of each term decides that of its gradient."""
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
def _broadcast_stats(x: Array, shape: tuple[int, ...], fast: bool) -> Array:
    plain = partial(jnp.broadcast_to, shape=shape)
    return _by_platform(partial(broadcast_by_product, shape=shape) if fast else plain, plain, x)


@partial(jax.jit, static_argnums=(1, 2, 3, 4), inline=True)
def _max_pool(x: Array, window: Extents, strides: Extents, padding: Extents, fast: bool) -> Array:
    if not fast:
        return largest_in_windows(x, window, strides, padding)
    shape: dict[str, Any] = {"window": window, "strides": strides, "padding": padding}
    plain, slices = partial(largest_in_windows, **shape), partial(largest_of_slices, **shape)
    # XLA's gradient for GPUs writes three positions per window, as int32
    return lax.platform_dependent(x, cpu=slices, cuda=slices, default=plain)


def _by_platform(on_cpu: Callable[..., Array], elsewhere: Callable[..., Array], *arrays: Array) -> Array:
    return elsewhere(*arrays) if on_cpu is elsewhere else lax.platform_dependent(*arrays, cpu=on_cpu, default=elsewhere)
