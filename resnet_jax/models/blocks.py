"""Residual blocks: (b, spatial..., c) to (b, spatial / stride..., features * expansion).

`conv`, `norm`, `act`, `gate`, `dropout` and `drop_path` are layers, or build them, already in training or evaluation
mode: a block never sees the mode. `shortcut` is one of `resnet_jax.models.shortcuts`.

Reference:
    He et al. 2015, "Deep residual learning"; He et al. 2016, "Identity mappings"; Zagoruyko and Komodakis 2016 (wide);
    Xie et al. 2017 (groups); Hu et al. 2018 (gate); Huang et al. 2016 (stochastic depth); Zhang 2019 (anti-aliasing).
"""

from collections.abc import Callable

from flax import linen as nn
from jax import Array

from resnet_jax.errors import InputError
from resnet_jax.models.layers import Activation, ConvDef, NormDef, blur_pool, max_pool


def identity(x: Array) -> Array:
    """Return the input."""
    return x


def no_norm(*, name: str, last: bool = False) -> Activation:
    """Return a normalisation that does nothing."""
    return identity


class Block(nn.Module):
    """A residual branch with a shortcut around it.

    Attributes:
        features: width of the stage; the output has `expansion` times as many channels.
        stride: stride of the branch and the shortcut.
        dilations: of the convolutions up to the one that carries the stride, and of those after it; they differ if a
            stride became a dilation.
        groups: number of groups of the 3x3 convolutions.
        base_width: channels of each group of a branch for every 64 `features`.
        antialias: blur before subsampling.
        gate: builds the module that scales the channels at the end of a branch, such as `SqueezeExcite`.
        dropout: drops activations before the last convolution (Zagoruyko and Komodakis 2016, section 2.4).
        drop_path: drops whole branches, image by image.
    """

    features: int
    stride: int
    conv: ConvDef
    norm: NormDef
    act: Activation
    shortcut: Callable[..., nn.Module]
    dilations: tuple[int, int] = (1, 1)
    groups: int = 1
    base_width: int = 64
    antialias: bool = False
    gate: Callable[..., nn.Module] | None = None
    dropout: Activation = identity
    drop_path: Activation = identity
    expansion = 1
    """Output channels over `features`."""
    preactivation = False
    """Whether the network needs a final normalisation and activation."""

    @property
    def branch_width(self) -> int:
        """Channels of the 3x3 convolutions."""
        return self.features * self.base_width // 64 * self.groups

    @property
    def conv_stride(self) -> int:
        """Stride of the convolution that subsamples; 1 if the blur subsamples instead."""
        return 1 if self.antialias else self.stride

    def subsample(self, y: Array) -> Array:
        """Blur and subsample after the activation that follows the strided convolution, if antialiased."""
        if self.antialias and (self.stride > 1 or self.dilations[0] != self.dilations[1]):
            return blur_pool(y, self.stride, self.dilations[0])
        return y

    def finish_branch(self, y: Array) -> Array:
        """Apply the gate and stochastic depth, which end a branch."""
        if self.gate is not None:
            y = self.gate(name="gate")(y)
        return self.drop_path(y)

    def make_shortcut(self, norm: NormDef | None = None) -> nn.Module:
        """Build the shortcut, to be called with the input of the block."""
        features = self.features * self.expansion
        fields = (features, self.stride, self.conv, norm or self.norm, self.dilations)
        return self.shortcut(*fields, name="shortcut")


class BasicBlock(Block):
    """Two 3x3 convolutions; the first carries the stride (He et al. 2015, figure 5, left)."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        before, after = self.dilations
        y = self.conv(self.branch_width, stride=self.conv_stride, dilation=before, groups=self.groups, name="conv1")(x)
        y = self.dropout(self.subsample(self.act(self.norm(name="norm1")(y))))
        y = self.conv(self.features, dilation=after, groups=self.groups, name="conv2")(y)
        y = self.finish_branch(self.norm(name="norm2", last=True)(y))
        return self.act(self.make_shortcut()(x) + y)


class Bottleneck(Block):
    """1x1, 3x3 and 1x1 convolutions, the last four times as wide (He et al. 2015, figure 5, right).

    The 3x3 carries the stride ("v1.5"), as in all of PyTorch's published weights and in Goyal et al. 2017.
    """

    expansion = 4
    stride_in = 2
    """Number of the convolution, from 1, that carries the stride."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        first, second = (self.conv_stride, 1) if self.stride_in == 1 else (1, self.conv_stride)
        dilation = self.dilations[self.stride_in == 1]
        y = self.conv(self.branch_width, kernel=1, stride=first, name="conv1")(x)
        y = self.act(self.norm(name="norm1")(y))
        y = self.subsample(y) if self.stride_in == 1 else y
        y = self.conv(self.branch_width, stride=second, dilation=dilation, groups=self.groups, name="conv2")(y)
        y = self.act(self.norm(name="norm2")(y))
        y = self.dropout(self.subsample(y) if self.stride_in == 2 else y)
        y = self.conv(self.features * self.expansion, kernel=1, name="conv3")(y)
        y = self.finish_branch(self.norm(name="norm3", last=True)(y))
        return self.act(self.make_shortcut()(x) + y)


class OriginalBottleneck(Bottleneck):
    """The bottleneck of the 2015 paper: the first 1x1 carries the stride."""

    stride_in = 1


class PreActBasicBlock(Block):
    """Normalisation and activation before convolutions, not after the sum (He et al. 2016, figure 4e)."""

    preactivation = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        before, after = self.dilations
        pre = self.act(self.norm(name="norm1")(x))
        y = self.conv(self.branch_width, stride=self.conv_stride, dilation=before, groups=self.groups, name="conv1")(
            pre
        )
        y = self.dropout(self.subsample(self.act(self.norm(name="norm2")(y))))
        y = self.finish_branch(self.conv(self.features, dilation=after, groups=self.groups, last=True, name="conv2")(y))
        shortcut = self.make_shortcut(no_norm)
        return shortcut(pre if shortcut.projects(x) else x) + y


class PreActBottleneck(Block):
    """Bottleneck with normalisation and activation before each convolution; the 3x3 is strided."""

    expansion = 4
    preactivation = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        pre = self.act(self.norm(name="norm1")(x))
        y = self.conv(self.branch_width, kernel=1, name="conv1")(pre)
        y = self.act(self.norm(name="norm2")(y))
        dilation = self.dilations[0]
        y = self.conv(self.branch_width, stride=self.conv_stride, dilation=dilation, groups=self.groups, name="conv2")(
            y
        )
        y = self.dropout(self.subsample(self.act(self.norm(name="norm3")(y))))
        y = self.finish_branch(self.conv(self.features * self.expansion, kernel=1, last=True, name="conv3")(y))
        shortcut = self.make_shortcut(no_norm)
        return shortcut(pre if shortcut.projects(x) else x) + y


class PooledBlock(Block):
    """Convolution and 2x2 max pool if the shape changes; otherwise two convolutions in a residual branch.

    The activation comes before the sum, as in ResNet-9 (Page 2018, "How to train your ResNet").
    """

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if self.dilations != (1, 1):
            raise InputError("output_stride: the pools of a PooledBlock cannot be dilated; leave it out")
        y = self.act(self.norm(name="norm1")(self.conv(self.features, name="conv1")(x)))
        if self.stride > 1 or x.shape[-1] != self.features:
            return max_pool(y, self.stride, self.stride, padding=0)
        y = self.dropout(y)
        y = self.act(self.norm(name="norm2", last=True)(self.conv(self.features, name="conv2")(y)))
        return x + self.finish_branch(y)


BLOCKS: dict[str, type[Block]] = {
    block.__name__: block
    for block in (BasicBlock, Bottleneck, OriginalBottleneck, PreActBasicBlock, PreActBottleneck, PooledBlock)
}
