"""Residual network: stem, stages and head (He et al. 2015, table 1 and section 4.2)."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax
from jax.nn.initializers import normal, ones, zeros
from jax.typing import DTypeLike

from resnet_jax.errors import InputError
from resnet_jax.models.blocks import BasicBlock, Block, identity
from resnet_jax.models.layers import (
    Activation,
    Conv,
    ConvDef,
    Dropout,
    Extent,
    NormDef,
    extents,
    global_avg_pool,
    he_normal_fan_out,
    relu,
)
from resnet_jax.models.norm import BatchNorm
from resnet_jax.models.quantize import FakeQuant
from resnet_jax.models.shortcuts import DimensionShortcut, Shortcut
from resnet_jax.models.stems import ImageNetStem, Stem


class Stage(NamedTuple):
    """One stage: its blocks and the shape of the map after them."""

    depth: int
    """Number of blocks."""
    features: int
    """Width of its blocks, before their expansion."""
    stride: int
    """Stride of its first block."""
    dilations: tuple[int, int]
    """Dilation of its convolutions before the one that carries the stride, and after it."""
    channels: int
    """Channels of its map."""
    total_stride: Extent
    """Image pixels per pixel of its map, along the spatial axes."""


class ResNet(nn.Module):
    """Residual network: images (b, spatial..., c) to logits (b, num_classes) float32, or to features.

    The unbound module describes the network: compare, `clone` and print it. If `dropout`, `head_dropout` or `drop_path`
    is not zero, training needs the random stream "dropout".

    Attributes:
        depths: number of blocks of each stage.
        block: BasicBlock, Bottleneck or another Block.
        later_block: block of the stages after the first; None is `block`.
        stem: ImageNetStem, CifarStem or another Stem.
        shortcut: one of SHORTCUTS, or another Shortcut.
        width: features of the first stage; each stage is twice as wide as the one before.
        widths: features of each stage, instead of `width`.
        num_classes: number of outputs of the head; with 0 the network returns the pooled features.
        norm: builds a normalisation, such as `functools.partial(BatchNorm, group=32)`.
        conv: builds a convolution.
        act: activation.
        gate: builds the module that scales the channels at the end of a branch, such as `SqueezeExcite`.
        groups: number of groups of the 3x3 convolutions of bottlenecks.
        base_width: channels of each group for every 64 features.
        stem_features: channels of the stem; None is the features of the first stage.
        last_features: channels of a normalised, activated 1x1 convolution after the last stage; None omits it.
        strides: stride of each stage; None is 1 for the first and 2 for the others.
        output_stride: largest number of image pixels per pixel of the last map; strides beyond it become dilations.
        antialias: function that smooths before subsampling, such as `blur_pool` (Zhang 2019).
        pool: (b, spatial..., c) -> (b, c), before the head.
        dropout: fraction of activations dropped inside the blocks.
        head_dropout: fraction of features dropped before the head.
        drop_path: fraction of images whose last branch is dropped; it grows from 0 at the first (Huang et al. 2016).
        zero_init_residual: start every residual branch at zero (Goyal et al. 2017, section 5.1).
        quantize: round the weights and inputs of convolutions and head to int8, as `FakeQuant` does.
        dtype: dtype of the computation; parameters, statistics and head stay in float32. None is that of the input.
        input_shape: (spatial..., c) of the images for which the network is published; other shapes work too.

    Example:
        >>> import jax
        >>> model, images = ResNet((1, 1), num_classes=10), jnp.zeros((8, 32, 32, 3))
        >>> jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), images)[0]).shape
        (8, 10)
    """

    depths: tuple[int, ...]
    block: type[Block] = BasicBlock
    stem: type[Stem] = ImageNetStem
    shortcut: type[Shortcut] = DimensionShortcut
    width: int = 64
    widths: tuple[int, ...] | None = None
    num_classes: int = 1000
    norm: Callable[..., nn.Module] = BatchNorm
    conv: Callable[..., nn.Module] = Conv
    act: Activation = relu
    gate: Callable[..., nn.Module] | None = None
    groups: int = 1
    base_width: int = 64
    stem_features: int | None = None
    last_features: int | None = None
    strides: tuple[int, ...] | None = None
    output_stride: int | None = None
    antialias: Callable[..., Array] | None = None
    pool: Callable[[Array], Array] = global_avg_pool
    dropout: float = 0.0
    head_dropout: float = 0.0
    drop_path: float = 0.0
    zero_init_residual: bool = False
    quantize: bool = False
    later_block: type[Block] | None = None
    dtype: DTypeLike | None = None
    input_shape: tuple[int, ...] = (224, 224, 3)

    def __call__(self, x: Array, *, train: bool = False, rows: Array | None = None) -> Array:
        """Return logits (b, num_classes) float32, or the pooled features (b, c) if `num_classes` is 0.

        Args:
            x: images (b, spatial..., c).
            train: normalise by the statistics of the batch and update the running ones in `batch_stats`.
            rows: (b,) positions of the images in their batch; None is 0 ... b - 1. What is dropped depends on them and
                on the random stream "dropout".
        """
        return self._evaluate(x, train, head=True, rows=rows)[-1]

    def features(self, x: Array, *, train: bool = False, rows: Array | None = None) -> tuple[Array, ...]:
        """Return the map after each stage, (b, spatial / stride..., channels); `stages` has the sizes.

        The last map is the input of the head: pre-activation networks have normalised and activated it, and
        `last_features` are there.
        """
        return self._evaluate(x, train, head=False, rows=rows)

    def forward_from_stage(self, x: Array, stage: int) -> Array:
        """Return logits, or pooled features, from the map that `features` returns for `stage`, 1 or more."""
        return self._evaluate(x, train=False, head=True, start_stage=stage)[-1]

    @nn.nowrap
    def stages(self) -> tuple[Stage, ...]:
        """Return the stages; raise InputError if their number is not that of a field, or for an output stride."""
        strides = self.strides or (1, *(2,) * (len(self.depths) - 1))
        widths = self.widths or tuple(self.width * 2**index for index in range(len(self.depths)))
        for name, each in (("strides", strides), ("widths", widths)):
            if len(each) != len(self.depths):
                raise InputError(f"{name} has {len(each)} values; it must have {len(self.depths)}, one per stage")
        total: Extent = self.stem.stride
        dilation, stages = 1, []
        for index, (depth, stride, features) in enumerate(zip(self.depths, strides, widths, strict=True)):
            before = dilation
            if self.output_stride is not None and _largest(total) * stride > self.output_stride:
                stride, dilation = 1, dilation * stride
            block = self.block_of(index)
            total = _times(total, block.extent(stride))
            stages.append(Stage(depth, features, stride, (before, dilation), features * block.expansion, total))
        if self.output_stride is not None and _largest(total) != self.output_stride:
            raise InputError(
                f"output_stride is {self.output_stride}; it must be one of the strides that the network reaches,"
                f" such as {_largest(total)}"
            )
        if self.last_features:
            stages[-1] = stages[-1]._replace(channels=self.last_features)
        return tuple(stages)

    @nn.nowrap
    def block_of(self, index: int) -> type[Block]:
        """Return the block of a stage, from 0."""
        return self.later_block or self.block if index else self.block

    @nn.compact
    def _evaluate(
        self, x: Array, train: bool, head: bool, rows: Array | None = None, start_stage: int = 0
    ) -> tuple[Array, ...]:
        """Return the map of each stage or, with `head`, a tuple of the logits or pooled features alone.

        If `start_stage` is not 0, `x` is the map after that stage.
        """
        conv, norm, drop = self.builders(train, rows)
        if not start_stage:
            features = self.stem_features or self.stages()[0].features
            x = self.stem(features, conv, norm, self.act, self.antialias, name="stem")(x)
        # drop_path draws one number per image, which these axes share
        images = tuple(range(1, x.ndim))
        maps, blocks, steps = [x], sum(self.depths[:start_stage]), max(sum(self.depths) - 1, 1)
        for number, stage in list(enumerate(self.stages(), 1))[start_stage:]:
            for index in range(stage.depth):
                x = self.block_of(number - 1)(
                    stage.features,
                    stage.stride if index == 0 else 1,
                    conv,
                    norm,
                    self.act,
                    self.shortcut,
                    dilations=stage.dilations if index == 0 else stage.dilations[1:] * 2,
                    groups=self.groups,
                    base_width=self.base_width,
                    antialias=self.antialias,
                    gate=self.gate and partial(self.gate, dtype=self.dtype),
                    dropout=drop(self.dropout),
                    drop_path=drop(self.drop_path * blocks / steps, images),
                    name=f"stage{number}_block{index + 1}",
                )(x)
                blocks += 1
            maps.append(x)
        if self.block.preactivation and start_stage < len(self.depths):
            maps[-1] = self.act(norm(name="norm")(x))
        if self.last_features and start_stage < len(self.depths):
            y = conv(self.last_features, kernel=1, name="last_conv")(maps[-1])
            maps[-1] = self.act(norm(name="last_norm")(y))
        if not head:
            return tuple(maps[1:])
        x = maps[-1].astype(jnp.promote_types(x.dtype, jnp.float32))
        x = drop(self.head_dropout)(self.pool(x))
        # N(0, 0.01) as in Goyal et al. 2017, section 5.1
        if self.num_classes:
            x = nn.Dense(
                self.num_classes, kernel_init=normal(0.01), dot_general=self._head_product(train), name="head"
            )(x)
        return (x,)

    @nn.nowrap
    def _head_product(self, train: bool) -> Callable[..., Array] | None:
        """Return the product of features and kernel in the head; None is that of `nn.Dense`."""
        if not self.quantize:
            return None
        quantizer = FakeQuant(use_running_average=not train, name="head_quant")
        return lambda x, kernel, *args, **options: lax.dot_general(*quantizer(x, kernel), *args, **options)

    @nn.nowrap
    def builders(self, train: bool, rows: Array | None) -> tuple[ConvDef, NormDef, Callable[..., Activation]]:
        """Return the builders of conv, norm and dropout layers; only they know the mode."""

        def conv(features: int, *, last: bool = False, **fields: Any) -> nn.Module:
            init = zeros if last and self.zero_init_residual else he_normal_fan_out
            if self.quantize:
                fields["quantizer"] = partial(FakeQuant, use_running_average=not train)
            return self.conv(features, dtype=self.dtype, kernel_init=init, **fields)

        def norm(*, last: bool = False, name: str) -> nn.Module:
            scale_init = zeros if last and self.zero_init_residual else ones
            return self.norm(use_running_average=not train, dtype=self.dtype, scale_init=scale_init, name=name)

        def drop(rate: float, shared: tuple[int, ...] = ()) -> Activation:
            return partial(Dropout(rate, shared), rows=rows) if train and rate else identity

        return conv, norm, drop


def _times(total: Extent, stride: Extent) -> Extent:
    """Return the stride of two layers, of which each has one stride or one for each of three axes."""
    if isinstance(total, int) and isinstance(stride, int):
        return total * stride
    return tuple(a * b for a, b in zip(extents(total, 3), extents(stride, 3), strict=True))


def _largest(extent: Extent) -> int:
    return extent if isinstance(extent, int) else max(extent)
