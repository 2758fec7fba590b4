"""Convolution, pooling and the two stems. Axes: b batch, spatial axes, c channels; the rank is that of the input."""

from collections.abc import Callable

import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax
from jax.nn.initializers import Initializer, variance_scaling
from jax.typing import DTypeLike

# Conv(features, kernel=3, stride=1, name=...) -> module
ConvDef = Callable[..., nn.Module]
# norm(name=..., last=False) -> module; `last` marks the last normalisation of a residual branch
NormDef = Callable[..., nn.Module]
Activation = Callable[[Array], Array]

# He et al. 2015 ("Delving deep into rectifiers", section 2.2, backward case)
he_normal_fan_out: Initializer = variance_scaling(2.0, "fan_out", "normal")


def dimension_numbers(rank: int) -> lax.ConvDimensionNumbers:
    """Channels last for input, kernel (spatial, in, out) and output, at any spatial rank."""
    last, spatial = rank + 1, tuple(range(1, rank + 1))
    kernel = (last, rank, *range(rank))
    return lax.ConvDimensionNumbers((0, last, *spatial), kernel, (0, last, *spatial))


class Conv(nn.Module):
    """Convolution without bias over (b, spatial..., c), padded by kernel // 2 on both sides.

    Never "SAME": on a strided convolution that pads one side only, and published PyTorch weights do not fit.

    Attributes:
        features: output channels.
        kernel: size along every spatial axis.
        stride: along every spatial axis.
        dtype: of the computation; the kernel is kept in float32. None is that of the input.
    """

    features: int
    kernel: int = 3
    stride: int = 1
    dtype: DTypeLike | None = None
    kernel_init: Initializer = he_normal_fan_out

    @nn.compact
    def __call__(self, x: Array) -> Array:
        rank = x.ndim - 2
        shape = (*(self.kernel,) * rank, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        dtype = self.dtype or x.dtype
        return lax.conv_general_dilated(
            x.astype(dtype),
            kernel.astype(dtype),
            window_strides=(self.stride,) * rank,
            padding=((self.kernel // 2,) * 2,) * rank,
            dimension_numbers=dimension_numbers(rank),
        )


def max_pool(x: Array, kernel: int = 3, stride: int = 2) -> Array:
    """Largest value in each window of (b, spatial..., c), padded by kernel // 2 on both sides."""
    rank = x.ndim - 2
    padding = ((kernel // 2,) * 2,) * rank
    return nn.max_pool(x, (kernel,) * rank, (stride,) * rank, padding)


class Stem(nn.Module):
    """The layers before the first stage."""

    features: int
    conv: ConvDef
    norm: NormDef
    act: Activation


class ImageNetStem(Stem):
    """7x7 convolution, stride 2, normalisation, activation, 3x3 max pool, stride 2 (He et al. 2015, table 1)."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = self.conv(self.features, kernel=7, stride=2, name="conv")(x)
        return max_pool(self.act(self.norm(name="norm")(x)))


class CifarStem(Stem):
    """3x3 convolution, normalisation, activation, at full resolution (He et al. 2015, section 4.2)."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return self.act(self.norm(name="norm")(self.conv(self.features, name="conv")(x)))
