"""Stems: the layers before the first stage.

A stem has the fields (features, conv, norm, act, antialias) and maps (b, spatial..., c) to
(b, spatial / stride..., features). Stems of pre-activation networks end with a convolution or pool: the first block
normalises and activates.
"""

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from resnet_jax.models.layers import Activation, ConvDef, Extent, NormDef, blur_pool, max_pool


class Stem(nn.Module):
    """The layers before the first stage; `antialias` blurs before subsampling (Zhang 2019, section 3.2)."""

    features: int
    conv: ConvDef
    norm: NormDef
    act: Activation
    antialias: bool = False
    stride = 1
    """Stride of the whole stem."""

    def pool(self, x: Array) -> Array:
        """Apply the 3x3 max pool, stride 2."""
        return blur_pool(max_pool(x, stride=1), 2) if self.antialias else max_pool(x)


class ImageNetStem(Stem):
    """7x7/2 convolution, normalisation, activation, 3x3/2 max pool (He et al. 2015, table 1)."""

    stride = 4

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = self.conv(self.features, kernel=7, stride=2, name="conv")(x)
        return self.pool(self.act(self.norm(name="norm")(x)))


class DeepStem(Stem):
    """Three 3x3 convolutions, the first strided, for the 7x7 (He et al. 2019, ResNet-C, section 4.2)."""

    stride = 4

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return self.pool(self.convolutions(x))

    def convolutions(self, x: Array) -> Array:
        """Apply all layers before the pool."""
        widths = (self.features // 2, self.features // 2, self.features)
        for i, (width, stride) in enumerate(zip(widths, (2, 1, 1), strict=True), 1):
            x = self.conv(width, stride=stride, name=f"conv{i}")(x)
            x = self.act(self.norm(name=f"norm{i}")(x))
        return x


class PoollessStem(DeepStem):
    """Deep stem with a fourth 3x3 convolution, stride 2, for the pool (Bello et al. 2021, section 4.1)."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = self.conv(self.features, stride=2, name="conv4")(self.convolutions(x))
        return self.act(self.norm(name="norm4")(x))


class CifarStem(Stem):
    """3x3 convolution, normalisation, activation, at full resolution (He et al. 2015, section 4.2)."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return self.act(self.norm(name="norm")(self.conv(self.features, name="conv")(x)))


class VideoStem(Stem):
    """3x7x7 convolution, stride 1 in time and 2 in space, without a pool (Tran et al. 2018, R3D)."""

    stride: Extent = (1, 2, 2)  # type: ignore[assignment]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = self.conv(self.features, kernel=(3, 7, 7), stride=(1, 2, 2), name="conv")(x)
        return self.act(self.norm(name="norm")(x))


class PreActStem(Stem):
    """7x7 convolution, stride 2, and 3x3 max pool, stride 2, for pre-activation blocks (He et al. 2016)."""

    stride = 4

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return self.pool(self.conv(self.features, kernel=7, stride=2, name="conv")(x))


class BiTStem(Stem):
    """`PreActStem` with a pool that pads with zeros, as in the weights of Kolesnikov et al. 2020."""

    stride = 4

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = self.conv(self.features, kernel=7, stride=2, name="conv")(x)
        x = jnp.pad(x, ((0, 0), *((1, 1),) * (x.ndim - 2), (0, 0)))
        return max_pool(x, padding=0)


class PreActCifarStem(Stem):
    """3x3 convolution at full resolution, for pre-activation blocks (He et al. 2016)."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return self.conv(self.features, name="conv")(x)


STEMS: dict[str, type[Stem]] = {
    stem.__name__: stem
    for stem in (
        ImageNetStem,
        DeepStem,
        PoollessStem,
        CifarStem,
        VideoStem,
        PreActStem,
        BiTStem,
        PreActCifarStem,
    )
}
