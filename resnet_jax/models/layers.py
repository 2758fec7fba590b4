"""Convolution, pooling and channel attention.

Axes: b batch, spatial axes, c channels; the rank is that of the input.

Reference:
    He et al. 2015, "Delving deep into rectifiers" (initialisation); Qiao et al. 2019 (weight standardisation);
    Zhang 2019 (anti-aliasing); Hu et al. 2018 (squeeze and excitation); Wang et al. 2020 (efficient channel attention).
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax
from jax.nn.initializers import Initializer, variance_scaling, zeros
from jax.typing import DTypeLike

from resnet_jax.models import cpu_ops

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
    """Return one extent for each of `rank` spatial axes; raise ValueError if their number differs."""
    each = (extent,) * rank if isinstance(extent, int) else extent
    if len(each) != rank:
        raise ValueError(f"{extent} has {len(each)} values, but the input has {rank} spatial axes")
    return each


class Conv(nn.Module):
    """Convolution over (b, spatial..., c), padded by dilation * (kernel // 2) on both sides.

    Never "SAME": it pads a strided convolution on one side only, and published PyTorch weights then give other results.

    Attributes:
        features: output channels.
        kernel: size along the spatial axes.
        stride: stride along the spatial axes.
        dilation: distance between neighbouring taps (Yu and Koltun 2016).
        groups: number of groups of channels, each convolved alone (Xie et al. 2017).
        bias: whether to add a bias.
        dtype: dtype of the computation; the parameters stay in float32. None is that of the input.
        quantizer: builds a layer (x, kernel) -> (x, kernel) that rounds both, such as `FakeQuant`.
    """

    features: int
    kernel: Extent = 3
    stride: Extent = 1
    dilation: int = 1
    groups: int = 1
    bias: bool = False
    dtype: DTypeLike | None = None
    kernel_init: Initializer = he_normal_fan_out
    quantizer: Callable[..., nn.Module] | None = None
    bias_init: Initializer = zeros

    @nn.compact
    def __call__(self, x: Array) -> Array:
        rank = x.ndim - 2
        window = extents(self.kernel, rank)
        shape = (*window, x.shape[-1] // self.groups, self.features)
        kernel = self.standardize(self.param("kernel", self.kernel_init, shape, jnp.float32))
        if self.quantizer is not None:
            x, kernel = self.quantizer(name="quant")(x, kernel)
        dtype = self.dtype or x.dtype
        y = self.convolve(x.astype(dtype), kernel.astype(dtype))
        if not self.bias:
            return y
        bias = self.param("bias", self.bias_init, (self.features,), jnp.float32)
        return y + bias.astype(dtype).reshape((1,) * (rank + 1) + (-1,))

    def convolve(self, x: Array, kernel: Array) -> Array:
        """Convolve with a kernel (spatial..., c / groups, features)."""
        strides = extents(self.stride, x.ndim - 2)
        return cpu_ops.convolve(cpu_ops.cpu_barrier(x), kernel, strides, self.dilation, self.groups)

    def standardize(self, kernel: Array) -> Array:
        """Return the kernel itself; a subclass may reparameterise it."""
        return kernel


class SpaceToDepthConv(Conv):
    """Convolution that reads 2x2 blocks of pixels if it is strided and has few channels, as in a stem.

    It has the parameters and computes the function of Conv: `create_model("resnet50", conv=SpaceToDepthConv)` takes the
    same weights. It suits accelerators, whose units want more than three channels; on CPUs it is slower.
    """

    def convolve(self, x: Array, kernel: Array) -> Array:
        window, few = kernel.shape[:-2], x.shape[-1] <= 4
        strides = extents(self.stride, len(window))
        if not few or max(strides) == 1 or self.dilation * self.groups > 1:
            return super().convolve(x, kernel)
        return cpu_ops.space_to_depth_conv(x, kernel, strides, tuple(k // 2 for k in window))


class StandardizedConv(Conv):
    """Convolution whose kernel has mean zero and variance one for every output channel.

    Attributes:
        epsilon: added to the variance (Qiao et al. 2019, section 3); BiT's is 1e-8.
    """

    epsilon: float = 1e-8

    def standardize(self, kernel: Array) -> Array:
        axes = tuple(range(kernel.ndim - 1))
        mean, var = kernel.mean(axes, keepdims=True), kernel.var(axes, keepdims=True)
        return (kernel - mean) * lax.rsqrt(var + self.epsilon)


class SqueezeExcite(nn.Module):
    """Scale every channel by a gate in 0 to 1, computed from the means of all channels.

    Attributes:
        ratio: hidden channels over channels; their number is rounded to a multiple of 8 and is at least 8.
        dtype: dtype of the computation; None is that of the input.

    Reference:
        Hu et al. 2018, section 3.
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


class EfficientChannelAttention(nn.Module):
    """Scale every channel by a gate in 0 to 1, computed from the means of the channels next to it.

    Their number grows with that of all channels, and is odd.

    Attributes:
        dtype: dtype of the computation; None is that of the input.

    Reference:
        Wang et al. 2020, "ECA-Net", section 3.2.
    """

    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        channels = x.shape[-1]
        nearby = max(3, int((math.log2(channels) + 1) / 2) // 2 * 2 + 1)
        y = x.mean(tuple(range(1, x.ndim - 1)))[..., None]
        y = nn.sigmoid(Conv(1, nearby, dtype=self.dtype, name="conv")(y))
        return x * y.reshape(x.shape[0], *(1,) * (x.ndim - 2), channels)


@jax.custom_jvp
def relu(x: Array) -> Array:
    """Return max(x, 0); its gradient is 0 where the result is.

    The gradient is masked by the result, which the next layer keeps anyway. By the input, as in `jax.nn.relu`, XLA's
    compiler for GPUs computes a normalisation and a sum once more: for ResNet-50 3.5 % of a step's memory traffic.

    Example:
        >>> relu(jnp.array([-1.0, 2.0])).tolist()
        [0.0, 2.0]
    """
    return jnp.maximum(x, 0)


@relu.defjvp
def _relu_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    y = relu(primals[0])
    # Of y > 0 XLA would make x > 0
    return y, jnp.where(y != 0, tangents[0], jnp.zeros_like(tangents[0]))


def max_pool(x: Array, kernel: int = 3, stride: int = 2, padding: int = 1) -> Array:
    """Return the maximum of each window of (b, spatial..., c), padded by `padding` of minus infinity."""
    rank = x.ndim - 2
    return cpu_ops.max_pool(x, (kernel,) * rank, (stride,) * rank, (padding,) * rank)


# Jitted, as is the blur, so that an export sees one operation
@partial(jax.jit, static_argnums=(1, 2))
def average_pool(x: Array, stride: int, dilation: int = 1) -> Array:
    """Average pixels `dilation` apart, two along each axis of (b, spatial..., c), and subsample.

    At the end of an axis, a pixel without a partner is averaged with itself, so padding does not count.
    """
    for axis in range(1, x.ndim - 1):
        size = x.shape[axis]
        far = lax.slice_in_dim(x, min(dilation, size), size, axis=axis)
        last = lax.slice_in_dim(x, max(size - dilation, 0), size, axis=axis)
        mean = (x + jnp.concatenate([far, last], axis)) / 2
        x = lax.slice_in_dim(mean, 0, size, stride, axis)
    return x


@partial(jax.jit, static_argnums=(1, 2))
def blur_pool(x: Array, stride: int, dilation: int = 1) -> Array:
    """Smooth (b, spatial..., c) by (1, 2, 1) / 4 along every axis, mirrored at the edges, and subsample.

    The taps are `dilation` apart.

    Reference:
        Zhang 2019, section 3.3, with the 3-tap filter.
    """
    for axis in range(1, x.ndim - 1):
        size = x.shape[axis]
        far = min(dilation, size // 2)
        cut = partial(lax.slice_in_dim, x, axis=axis)
        before = jnp.concatenate([cut(far, 2 * far), cut(0, size - far)], axis)
        after = jnp.concatenate([cut(far, size), cut(size - 2 * far, size - far)], axis)
        x = lax.slice_in_dim((before + 2 * x + after) / 4, 0, size, stride, axis)
    return x


def global_avg_pool(x: Array) -> Array:
    """Return the means of the channels: (b, spatial..., c) -> (b, c)."""
    return x.mean(tuple(range(1, x.ndim - 1)))


def global_max_pool(x: Array) -> Array:
    """Return the maxima of the channels: (b, spatial..., c) -> (b, c)."""
    return x.max(tuple(range(1, x.ndim - 1)))


def k_max_pool(x: Array, k: int = 8) -> Array:
    """Return the `k` largest values of each channel in their order: (b, l, c) -> (b, k * c) (Kalchbrenner et al. 2014).

    A sequence shorter than `k` is kept whole.
    """
    channels = jnp.moveaxis(x, 1, -1)
    _, places = lax.top_k(channels, min(k, x.shape[1]))
    return jnp.take_along_axis(channels, jnp.sort(places), -1).reshape(x.shape[0], -1)


class Dropout(nn.Module):
    """Drop a fraction `rate` of the activations of (b, ..., c), and scale the others to keep the mean.

    Each image draws with the key of its row, so the result does not depend on how the batch is split over devices.

    Attributes:
        rate: 0 to 1.
        shared: axes, except the first, along which all entries share one draw.

    Reference:
        Srivastava et al. 2014; Huang et al. 2016, if a whole branch is dropped.
    """

    rate: float
    shared: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, x: Array, rows: Array | None = None) -> Array:
        """Drop activations; `rows` (b,) are the positions of images in their batch, None is 0 ... b - 1."""
        rows = jnp.arange(x.shape[0]) if rows is None else rows
        shape = tuple(1 if axis in self.shared else size for axis, size in enumerate(x.shape))[1:]
        keys = jax.vmap(partial(jax.random.fold_in, self.make_rng("dropout")))(rows)
        kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - self.rate, shape))(keys)
        return jnp.where(kept, x / (1 - self.rate), 0).astype(x.dtype)


CONVS: dict[str, Callable[..., nn.Module]] = {
    conv.__name__: conv for conv in (Conv, SpaceToDepthConv, StandardizedConv)
}
GATES: dict[str | None, Callable[..., nn.Module] | None] = {
    None: None,
    "SqueezeExcite": SqueezeExcite,
    "SqueezeExcite_0.25": partial(SqueezeExcite, ratio=0.25),
    "EfficientChannelAttention": EfficientChannelAttention,
}
ANTIALIASES: dict[str | None, Callable[..., Array] | None] = {
    None: None,
    "blur": blur_pool,
    "average": average_pool,
}
POOLS: dict[str, Callable[[Array], Array]] = {"avg": global_avg_pool, "max": global_max_pool, "k_max": k_max_pool}
ACTS: dict[str, Activation] = {
    "relu": relu,
    "relu6": nn.relu6,
    "gelu": nn.gelu,
    "silu": nn.silu,
    "elu": nn.elu,
    "leaky_relu": nn.leaky_relu,
    "hard_swish": nn.hard_swish,
}
