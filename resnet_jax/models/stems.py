"""Stems: the layers before the first stage.

A stem has the fields (features, conv, norm, act, antialias) and maps (b, spatial..., c) to
(b, spatial / stride..., features). Stems of pre-activation networks end with a convolution or pool: the first block
normalises and activates.
"""

from collections.abc import Callable

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from resnet_jax.models.layers import Activation, ConvDef, Extent, NormDef, average_pool, max_pool


class Stem(nn.Module):
    """The layers before the first stage; `antialias` smooths and subsamples (Zhang 2019, section 3.2)."""

    features: int
    conv: ConvDef
    norm: NormDef
    act: Activation
    antialias: Callable[..., Array] | None = None
    stride = 1
    """Stride of the whole stem."""

    def pool(self, x: Array) -> Array:
        """Apply the 3x3 max pool, stride 2; averages replace it altogether, as in timm."""
        if self.antialias is None:
            return max_pool(x)
        return self.antialias(x if self.antialias is average_pool else max_pool(x, stride=1), 2)


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
    first_width = 1.0
    """Channels of the first convolution over those of the second."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return self.pool(self.convolutions(x))

    def convolutions(self, x: Array) -> Array:
        """Apply all layers before the pool."""
        half = self.features // 2
        widths = (int(half * self.first_width), half, self.features)
        for i, (width, stride) in enumerate(zip(widths, (2, 1, 1), strict=True), 1):
            x = self.conv(width, stride=stride, name=f"conv{i}")(x)
            x = self.act(self.norm(name=f"norm{i}")(x))
        return x


class TieredStem(DeepStem):
    """Deep stem whose widths grow: 24, 32 and 64 channels, as in timm's networks of the letter t."""

    first_width = 0.75


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


class R2Plus1DStem(VideoStem):
    """Factored `VideoStem`: 1x7x7, stride 2, to 45 of 64 channels, then 3x1x1 (Tran et al. 2018, R(2+1)D)."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        middle = max(1, 45 * self.features // 64)
        x = self.conv(middle, kernel=(1, 7, 7), stride=(1, 2, 2), name="conv1")(x)
        x = self.act(self.norm(name="norm1")(x))
        x = self.conv(self.features, kernel=(3, 1, 1), name="conv2")(x)
        return self.act(self.norm(name="norm2")(x))


class MobileStem(Stem):
    """3x3 convolution, stride 2, to twice the features, depthwise 3x3, and a 1x1 without activation.

    It is the first two rows of Sandler et al. 2018, table 2.
    """

    stride = 2

    @nn.compact
    def __call__(self, x: Array) -> Array:
        wide = 2 * self.features
        x = self.act(self.norm(name="norm1")(self.conv(wide, stride=2, name="conv1")(x)))
        x = self.act(self.norm(name="norm2")(self.conv(wide, groups=wide, name="conv2")(x)))
        return self.norm(name="norm3")(self.conv(self.features, kernel=1, name="conv3")(x))


class TextStem(Stem):
    """Embedding of bytes in 16 dimensions and a convolution of width 3 (Conneau et al. 2017, section 3.1).

    It maps bytes (b, l, 1), from 0 to 255 and not normalised, to (b, l, features); 0 is the padding of a text.
    """

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = nn.Embed(256, 16, name="embed")(x[..., 0].astype(jnp.int32))
        return self.conv(self.features, name="conv")(x)


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
        TieredStem,
        PoollessStem,
        CifarStem,
        VideoStem,
        R2Plus1DStem,
        MobileStem,
        TextStem,
        PreActStem,
        BiTStem,
        PreActCifarStem,
    )
}
