"""Residual blocks: (b, spatial..., c) to (b, spatial / stride..., features * expansion).

`conv`, `norm`, `act`, `gate`, `dropout` and `drop_path` are layers, or build them, already in training or evaluation
mode: a block never sees the mode. `shortcut` is one of `resnet_jax.models.shortcuts`.

Reference:
    He et al. 2015, "Deep residual learning"; He et al. 2016, "Identity mappings"; Zagoruyko and Komodakis 2016 (wide);
    Xie et al. 2017 (groups); Hu et al. 2018 (gate); Huang et al. 2016 (stochastic depth); Zhang 2019 (anti-aliasing);
    Sandler et al. 2018 (inverted residual).
"""

from collections.abc import Callable
from functools import partial
from typing import ClassVar

from flax import linen as nn
from jax import Array

from resnet_jax.errors import InputError
from resnet_jax.models.layers import Activation, ConvDef, Extent, NormDef, max_pool


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
        antialias: smooths (b, spatial..., c) and subsamples by a stride, at a dilation; None: a convolution does.
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
    antialias: Callable[..., Array] | None = None
    gate: Callable[..., nn.Module] | None = None
    dropout: Activation = identity
    drop_path: Activation = identity
    expansion = 1
    """Output channels over `features`."""
    preactivation = False
    """Whether the network needs a final normalisation and activation."""

    @staticmethod
    def extent(stride: int) -> Extent:
        """Return the stride along each spatial axis of a block of that stride."""
        return stride

    @property
    def branch_width(self) -> int:
        """Channels of the 3x3 convolutions."""
        return self.features * self.base_width // 64 * self.groups

    @property
    def conv_stride(self) -> Extent:
        """Stride of the convolution that subsamples; 1 if `antialias` subsamples instead."""
        return 1 if self.antialias else self.extent(self.stride)

    def subsample(self, y: Array) -> Array:
        """Smooth and subsample after the activation that follows the strided convolution, if antialiased."""
        if self.antialias and (self.stride > 1 or self.dilations[0] != self.dilations[1]):
            return self.antialias(y, self.stride, self.dilations[0])
        return y

    def finish_branch(self, y: Array) -> Array:
        """Apply the gate and stochastic depth, which end a branch."""
        if self.gate is not None:
            y = self.gate(name="gate")(y)
        return self.drop_path(y)

    def make_shortcut(self, norm: NormDef | None = None) -> nn.Module:
        """Build the shortcut, to be called with the input of the block."""
        features = self.features * self.expansion
        fields = (features, self.extent(self.stride), self.conv, norm or self.norm, self.dilations)
        return self.shortcut(*fields, name="shortcut")


class BasicBlock(Block):
    """Two 3x3 convolutions; the first carries the stride (He et al. 2015, figure 5, left)."""

    kernel: ClassVar[Extent] = 3

    @nn.compact
    def __call__(self, x: Array) -> Array:
        before, after = self.dilations
        conv = partial(self.conv, kernel=self.kernel, groups=self.groups)
        y = conv(self.branch_width, stride=self.conv_stride, dilation=before, name="conv1")(x)
        y = self.dropout(self.subsample(self.act(self.norm(name="norm1")(y))))
        y = conv(self.features, dilation=after, name="conv2")(y)
        y = self.finish_branch(self.norm(name="norm2", last=True)(y))
        return self.act(self.make_shortcut()(x) + y)


class FrameBlock(BasicBlock):
    """`BasicBlock` for video that sees one frame at a time: 1x3x3, no stride in time (Tran et al. 2018, MC3)."""

    kernel = (1, 3, 3)

    @staticmethod
    def extent(stride: int) -> Extent:
        return 1 if stride == 1 else (1, stride, stride)

    def subsample(self, y: Array) -> Array:
        if self.antialias:
            raise InputError("antialias: it would subsample time, which a FrameBlock keeps; leave it out")
        return y


class R2Plus1DBlock(Block):
    """`BasicBlock` for video whose 3x3x3 convolutions are factored: 1x3x3 in space, then 3x1x1 in time.

    Between the two, a normalisation and an activation; the channels there make a factored convolution have as many
    parameters as a whole one (Tran et al. 2018, section 3.5). As in torchvision, both pairs have those of the first.
    """

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y, inputs, width = x, x.shape[-1], self.features
        middle = inputs * width * 27 // (inputs * 9 + 3 * width)
        for pair, (stride, dilation) in enumerate(
            zip((1 if self.antialias else self.stride, 1), self.dilations, strict=True)
        ):
            first, second = 2 * pair + 1, 2 * pair + 2
            space, time = ((1, stride, stride), (stride, 1, 1))
            y = self.conv(middle, kernel=(1, 3, 3), stride=space, dilation=dilation, name=f"conv{first}")(y)
            y = self.act(self.norm(name=f"norm{first}")(y))
            y = self.conv(width, kernel=(3, 1, 1), stride=time, dilation=dilation, name=f"conv{second}")(y)
            y = self.norm(name=f"norm{second}", last=pair == 1)(y)
            y = y if pair else self.dropout(self.subsample(self.act(y)))
        return self.act(self.make_shortcut()(x) + self.finish_branch(y))


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


class InvertedResidual(Block):
    """1x1 convolution to six times the input's channels, depthwise 3x3, and a 1x1 without activation.

    The 3x3 carries the stride (Sandler et al. 2018, figure 3b). Widths and groups of the branch follow from the input.
    """

    @nn.compact
    def __call__(self, x: Array) -> Array:
        wide, dilation = 6 * x.shape[-1], self.dilations[0]
        y = self.act(self.norm(name="norm1")(self.conv(wide, kernel=1, name="conv1")(x)))
        y = self.conv(wide, stride=self.conv_stride, dilation=dilation, groups=wide, name="conv2")(y)
        y = self.dropout(self.subsample(self.act(self.norm(name="norm2")(y))))
        y = self.finish_branch(self.norm(name="norm3", last=True)(self.conv(self.features, kernel=1, name="conv3")(y)))
        return self.make_shortcut()(x) + y


BLOCKS: dict[str, type[Block]] = {
    block.__name__: block
    for block in (
        BasicBlock,
        Bottleneck,
        OriginalBottleneck,
        PreActBasicBlock,
        PreActBottleneck,
        PooledBlock,
        FrameBlock,
        R2Plus1DBlock,
        InvertedResidual,
    )
}
