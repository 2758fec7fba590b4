"""Convolution, pooling and channel attention. Axes: b batch, spatial axes, c channels; the rank is that of the input.

Papers: He et al. 2015 ("Delving deep into rectifiers", initialisation); Qiao et al. 2019 (weight standardisation);
Zhang 2019 (anti-aliasing); Hu et al. 2018 (squeeze and excitation).
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax
from jax.nn.initializers import Initializer, variance_scaling, zeros
from jax.typing import DTypeLike

from resnet_jax.model import kernels

# An extent of every spatial axis, or one for each
Extent = int | tuple[int, ...]
# conv(features, kernel=3, stride=1, dilation=1, groups=1, last=False, name=...) -> layer
ConvDef = Callable[..., Callable[[Array], Array]]
# norm(name=..., last=False) -> layer; `last` marks the last layer of a residual branch
NormDef = Callable[..., Callable[[Array], Array]]
Activation = Callable[[Array], Array]

# He et al. 2015 ("Delving deep into rectifiers", section 2.2, backward case)
he_normal_fan_out: Initializer = variance_scaling(2.0, "fan_out", "normal")


def extents(extent: Extent, rank: int) -> tuple[int, ...]:
    """One extent for each of `rank` spatial axes; raises ValueError where there are more or fewer."""
    each = (extent,) * rank if isinstance(extent, int) else extent
    if len(each) != rank:
        raise ValueError(f"{extent} has {len(each)} extents, the input {rank} spatial axes")
    return each


class Conv(nn.Module):
    """Convolution over (b, spatial..., c), padded by dilation * (kernel // 2) on both sides.

    Never "SAME": on a strided convolution that pads one side only, and published PyTorch weights do not fit.

    Attributes:
        features: output channels.
        kernel: size along the spatial axes.
        stride: along the spatial axes.
        dilation: distance of neighbouring taps (Yu and Koltun 2016).
        groups: into which channels are split; each sees its own share of the input (Xie et al. 2017).
        bias: whether one is added.
        dtype: of the computation; the parameters are kept in float32. None is that of the input.
    """

    features: int
    kernel: Extent = 3
    stride: Extent = 1
    dilation: int = 1
    groups: int = 1
    bias: bool = False
    dtype: DTypeLike | None = None
    kernel_init: Initializer = he_normal_fan_out

    @nn.compact
    def __call__(self, x: Array) -> Array:
        rank = x.ndim - 2
        window = extents(self.kernel, rank)
        shape = (*window, x.shape[-1] // self.groups, self.features)
        kernel = self.standardize(self.param("kernel", self.kernel_init, shape, jnp.float32))
        dtype = self.dtype or x.dtype
        y = self.convolve(x.astype(dtype), kernel.astype(dtype))
        if not self.bias:
            return y
        bias = self.param("bias", zeros, (self.features,), jnp.float32)
        return y + bias.astype(dtype).reshape((1,) * (rank + 1) + (-1,))

    def convolve(self, x: Array, kernel: Array) -> Array:
        """The convolution with a kernel (spatial..., c / groups, features)."""
        strides = extents(self.stride, x.ndim - 2)
        return kernels.convolve(kernels.once(x), kernel, strides, self.dilation, self.groups)

    def standardize(self, kernel: Array) -> Array:
        """The kernel itself; a subclass may reparameterise it."""
        return kernel


class SpaceToDepthConv(Conv):
    """A convolution of which strided ones of few channels, as in a stem, read 2x2 blocks of pixels at a time.

    The mathematics and the parameters are those of Conv: `published("resnet50", conv=SpaceToDepthConv)` takes the same
    weights. For accelerators, whose units want more than three channels; on CPUs it takes longer.
    """

    def convolve(self, x: Array, kernel: Array) -> Array:
        window, few = kernel.shape[:-2], x.shape[-1] <= 4
        strides = extents(self.stride, len(window))
        if not few or max(strides) == 1 or self.dilation * self.groups > 1:
            return super().convolve(x, kernel)
        return kernels.in_blocks(x, kernel, strides, tuple(k // 2 for k in window))


class StandardizedConv(Conv):
    """Convolution whose kernel has mean zero and variance one for every output channel (Qiao et al. 2019, section 3).

    Attributes:
        epsilon: added to the variance; BiT's is 1e-8.
    """

    epsilon: float = 1e-8

    def standardize(self, kernel: Array) -> Array:
        axes = tuple(range(kernel.ndim - 1))
        mean, var = kernel.mean(axes, keepdims=True), kernel.var(axes, keepdims=True)
        return (kernel - mean) * lax.rsqrt(var + self.epsilon)


class SqueezeExcite(nn.Module):
    """Scales every channel by a gate in 0 to 1, computed from the means of all channels (Hu et al. 2018, section 3).

    Attributes:
        ratio: hidden channels over channels, rounded to a multiple of 8 and at least 8.
        dtype: of the computation; None is that of the input.
    """

    ratio: float = 1 / 16
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        channels = x.shape[-1]
        hidden = max(8, int(channels * self.ratio + 4) // 8 * 8)
        y = x.mean(tuple(range(1, x.ndim - 1)))
        y = nn.relu(nn.Dense(hidden, dtype=self.dtype, kernel_init=he_normal_fan_out, name="fc1")(y))
        y = nn.sigmoid(nn.Dense(channels, dtype=self.dtype, kernel_init=he_normal_fan_out, name="fc2")(y))
        return x * y.reshape(x.shape[0], *(1,) * (x.ndim - 2), channels)


def max_pool(x: Array, kernel: int = 3, stride: int = 2, padding: int = 1) -> Array:
    """Largest value in each window of (b, spatial..., c), padded by `padding` of minus infinity on both sides."""
    rank = x.ndim - 2
    return kernels.max_pool(x, (kernel,) * rank, (stride,) * rank, (padding,) * rank)


def average_pool(x: Array, stride: int, dilation: int = 1) -> Array:
    """Means of 2-wide windows of (b, spatial..., c), `dilation` apart; past the end only what is inside counts.

    The window is a product of pairs, so it is taken axis by axis; a pair past the end is a value with itself.
    """
    for axis in range(1, x.ndim - 1):
        size = x.shape[axis]
        far = lax.slice_in_dim(x, min(dilation, size), size, axis=axis)
        last = lax.slice_in_dim(x, max(size - dilation, 0), size, axis=axis)
        mean = (x + jnp.concatenate([far, last], axis)) / 2
        x = lax.slice_in_dim(mean, 0, size, stride, axis)
    return x


def blur_pool(x: Array, stride: int, dilation: int = 1) -> Array:
    """Smooths (b, spatial..., c) by (1, 2, 1) / 4 along every axis, mirrored at the edges, and subsamples.

    Zhang 2019, section 3.3, with the 3-tap filter, its taps `dilation` apart.
    """
    for axis in range(1, x.ndim - 1):
        size = x.shape[axis]
        far = min(dilation, size // 2)
        cut = partial(lax.slice_in_dim, x, axis=axis)
        before = jnp.concatenate([cut(far, 2 * far), cut(0, size - far)], axis)
        after = jnp.concatenate([cut(far, size), cut(size - 2 * far, size - far)], axis)
        x = lax.slice_in_dim((before + 2 * x + after) / 4, 0, size, stride, axis)
    return x


def mean_pool(x: Array) -> Array:
    """(b, spatial..., c) -> (b, c): the means."""
    return x.mean(tuple(range(1, x.ndim - 1)))


def largest_pool(x: Array) -> Array:
    """(b, spatial..., c) -> (b, c): the largest values."""
    return x.max(tuple(range(1, x.ndim - 1)))


class Dropout(nn.Module):
    """Drops a share `rate` of the activations of (b, ..., c), and scales the others so that the mean stays.

    Each image draws with the key of its row, so that a batch may be cut or spread over devices (Srivastava et al. 2014;
    Huang et al. 2016 where a whole branch is dropped).

    Attributes:
        rate: 0 to 1.
        shared: axes, but the first, for which one number is drawn.
    """

    rate: float
    shared: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, x: Array, rows: Array | None = None) -> Array:
        """`rows` (b,) are the places of the images in their batch; None is 0 ... b - 1."""
        rows = jnp.arange(x.shape[0]) if rows is None else rows
        shape = tuple(1 if axis in self.shared else size for axis, size in enumerate(x.shape))[1:]
        keys = jax.vmap(partial(jax.random.fold_in, self.make_rng("dropout")))(rows)
        kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - self.rate, shape))(keys)
        return jnp.where(kept, x / (1 - self.rate), 0).astype(x.dtype)
