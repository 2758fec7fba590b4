"""Residual blocks and their shortcuts (He et al. 2015, "Deep residual learning for image recognition").

Every block has the fields (features, stride, conv, norm, act, shortcut) and maps (b, spatial..., c) to
(b, spatial / stride..., features * expansion). `conv`, `norm` and `act` build or are the layers, already told whether
the network trains; `shortcut` is one of the classes below.
"""

from collections.abc import Callable

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from resnet_jax.model.layers import Activation, ConvDef, NormDef


class Shortcut(nn.Module):
    """What goes around a block: maps its input to the shape of its output."""

    features: int
    stride: int
    conv: ConvDef
    norm: NormDef


class PadShortcut(Shortcut):
    """Option A: identity, subsampled by the stride, new channels zero; no parameters (section 3.3).

    The zeros are split evenly before and after the old channels, as in the published CIFAR-10 weights.
    """

    @nn.compact
    def __call__(self, x: Array) -> Array:
        rank, new = x.ndim - 2, self.features - x.shape[-1]
        x = x[(slice(None), *(slice(None, None, self.stride),) * rank)]
        return jnp.pad(x, ((0, 0),) * (rank + 1) + ((new // 2, new - new // 2),))


class ProjectionShortcut(Shortcut):
    """Option C: a 1x1 convolution and a normalisation in every block."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = self.conv(self.features, kernel=1, stride=self.stride, name="conv")(x)
        return self.norm(name="norm")(x)


class DimensionShortcut(ProjectionShortcut):
    """Option B: a projection where the shape changes, the identity elsewhere."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if self.stride == 1 and x.shape[-1] == self.features:
            return x
        return super().__call__(x)


class NoShortcut(Shortcut):
    """Nothing: the block is a plain stack of layers, the comparison of section 4."""

    @nn.compact
    def __call__(self, x: Array) -> float:
        return 0.0


SHORTCUTS: dict[str, type[Shortcut]] = {
    "A": PadShortcut,
    "B": DimensionShortcut,
    "C": ProjectionShortcut,
    "none": NoShortcut,
}


class Block(nn.Module):
    """A residual branch with a shortcut around it."""

    features: int
    stride: int
    conv: ConvDef
    norm: NormDef
    act: Activation
    shortcut: Callable[..., nn.Module]
    expansion = 1  # output channels over `features`


class BasicBlock(Block):
    """Two 3x3 convolutions; the first carries the stride (figure 5, left)."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = self.conv(self.features, stride=self.stride, name="conv1")(x)
        y = self.act(self.norm(name="norm1")(y))
        y = self.conv(self.features, name="conv2")(y)
        y = self.norm(name="norm2", last=True)(y)
        shortcut = self.shortcut(self.features, self.stride, self.conv, self.norm, name="shortcut")
        return self.act(shortcut(x) + y)


class Bottleneck(Block):
    """1x1, 3x3 and 1x1 convolutions, the last four times as wide (figure 5, right).

    The 3x3 carries the stride ("v1.5"), as in every published weight of PyTorch and in Goyal et al. 2017.
    """

    expansion = 4
    stride_in = 2  # the convolution, counted from 1, that carries the stride

    @nn.compact
    def __call__(self, x: Array) -> Array:
        first, second = (self.stride, 1) if self.stride_in == 1 else (1, self.stride)
        features = self.features * self.expansion
        y = self.conv(self.features, kernel=1, stride=first, name="conv1")(x)
        y = self.act(self.norm(name="norm1")(y))
        y = self.conv(self.features, stride=second, name="conv2")(y)
        y = self.act(self.norm(name="norm2")(y))
        y = self.conv(features, kernel=1, name="conv3")(y)
        y = self.norm(name="norm3", last=True)(y)
        shortcut = self.shortcut(features, self.stride, self.conv, self.norm, name="shortcut")
        return self.act(shortcut(x) + y)


class OriginalBottleneck(Bottleneck):
    """The bottleneck of the 2015 paper: the first 1x1 carries the stride."""

    stride_in = 1
