"""The residual network: stem, stages, head (He et al. 2015, table 1 and section 4.2)."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.nn.initializers import normal, ones, zeros
from jax.typing import DTypeLike

from resnet_jax.errors import InputError
from resnet_jax.model.blocks import BasicBlock, Block, identity
from resnet_jax.model.layers import Activation, Conv, ConvDef, Dropout, Extent, NormDef, he_normal_fan_out, mean_pool
from resnet_jax.model.norm import BatchNorm
from resnet_jax.model.shortcuts import DimensionShortcut, Shortcut
from resnet_jax.model.stems import ImageNetStem, Stem


class Stage(NamedTuple):
    """What a stage does: `depth` blocks, and the map after them."""

    depth: int
    features: int  # by which its blocks are known
    stride: int  # of its first block
    dilations: tuple[int, int]  # of its convolutions before and after the one that carries the stride
    channels: int  # of its map
    total_stride: Extent  # pixels of the image for one of its map, along the spatial axes


class ResNet(nn.Module):
    """Maps images (b, spatial..., c) to logits (b, num_classes) in float32, or to features where num_classes is 0.

    The unbound module is the description of the network: compare, `clone` and print it. Where `dropout`,
    `head_dropout` or `drop_path` are not zero, training needs the random stream "dropout".

    Attributes:
        depths: blocks of each stage; every stage doubles the width of the one before.
        block: BasicBlock, Bottleneck or another Block.
        stem: ImageNetStem, CifarStem or another Stem.
        shortcut: one of SHORTCUTS, or another Shortcut.
        width: features of the first stage.
        num_classes: outputs of the head; 0 for the pooled features.
        norm: builds a normalisation, `functools.partial(BatchNorm, group=32)` for instance.
        conv: builds a convolution.
        act: activation.
        gate: builds what scales the channels at the end of a branch, `SqueezeExcite` for instance.
        groups: into which the 3x3 convolutions of bottlenecks are split.
        base_width: channels of each group for every 64 features.
        stem_features: channels of the stem; None is `width`.
        strides: of each stage; None is 1 for the first and 2 for the others.
        output_stride: pixels of the image for one of the last map, at most; strides beyond it become dilations.
        antialias: blur before subsampling (Zhang 2019).
        pool: (b, spatial..., c) -> (b, c), before the head.
        dropout: share of activations dropped within the blocks.
        head_dropout: share of features dropped before the head.
        drop_path: share of images for which the last branch is dropped; grows from 0 at the first (Huang et al. 2016).
        zero_init: start every residual branch at zero (Goyal et al. 2017, section 5.1).
        dtype: of the computation; parameters, statistics and head stay in float32. None is that of the input.
        input_shape: (spatial..., c) of the images for which the network is published; others fit as well.
    """

    depths: tuple[int, ...]
    block: type[Block] = BasicBlock
    stem: type[Stem] = ImageNetStem
    shortcut: type[Shortcut] = DimensionShortcut
    width: int = 64
    num_classes: int = 1000
    norm: Callable[..., nn.Module] = BatchNorm
    conv: Callable[..., nn.Module] = Conv
    act: Activation = nn.relu
    gate: Callable[..., nn.Module] | None = None
    groups: int = 1
    base_width: int = 64
    stem_features: int | None = None
    strides: tuple[int, ...] | None = None
    output_stride: int | None = None
    antialias: bool = False
    pool: Callable[[Array], Array] = mean_pool
    dropout: float = 0.0
    head_dropout: float = 0.0
    drop_path: float = 0.0
    zero_init: bool = False
    dtype: DTypeLike | None = None
    input_shape: tuple[int, ...] = (224, 224, 3)

    def __call__(self, x: Array, *, train: bool = False, rows: Array | None = None) -> Array:
        """Logits, or pooled features.

        `train` normalises by the statistics of the batch and updates the running ones in `batch_stats`. What is dropped
        depends on the random stream "dropout" and `rows`, the places (b,) of the images in their batch; None is
        0 ... b - 1.
        """
        return self._evaluate(x, train, head=True, rows=rows)[-1]

    def features(self, x: Array, *, train: bool = False) -> tuple[Array, ...]:
        """The map after each stage, (b, spatial / stride..., channels); `stages` says both.

        The last one is as the head sees it: of pre-activation networks normalised and activated.
        """
        return self._evaluate(x, train, head=False)

    def resume(self, x: Array, stage: int) -> Array:
        """Logits, or pooled features, of the map after a stage, of which 1 is the first, as `features` has it."""
        return self._evaluate(x, train=False, head=True, done=stage)[-1]

    @nn.nowrap
    def stages(self) -> tuple[Stage, ...]:
        """What each stage does; raises InputError for an output stride that cannot be had."""
        strides = self.strides or (1, *(2,) * (len(self.depths) - 1))
        total, dilation, stages = self.stem.stride, 1, []
        for index, (depth, stride) in enumerate(zip(self.depths, strides, strict=True)):
            before = dilation
            if self.output_stride is not None and _largest(total) * stride > self.output_stride:
                stride, dilation = 1, dilation * stride
            total = total * stride if isinstance(total, int) else tuple(t * stride for t in total)
            features = self.width * 2**index
            stages.append(Stage(depth, features, stride, (before, dilation), features * self.block.expansion, total))
        if self.output_stride is not None and _largest(total) != self.output_stride:
            raise InputError(
                f"output_stride is {self.output_stride}; it must be one of the strides that the network reaches,"
                f" such as {_largest(total)}"
            )
        return tuple(stages)

    @nn.compact
    def _evaluate(
        self, x: Array, train: bool, head: bool, rows: Array | None = None, done: int = 0
    ) -> tuple[Array, ...]:
        """The map of each stage or, with `head`, logits or pooled features alone; x is past `done` stages already."""
        conv, norm, drop = self._builders(train, rows)
        if not done:
            x = self.stem(self.stem_features or self.width, conv, norm, self.act, self.antialias, name="stem")(x)
        images = tuple(range(1, x.ndim))  # drop_path draws once for all axes but the batch
        maps, blocks, steps = [x], sum(self.depths[:done]), max(sum(self.depths) - 1, 1)
        for number, stage in list(enumerate(self.stages(), 1))[done:]:
            for index in range(stage.depth):
                x = self.block(
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
        if self.block.preactivation and done < len(self.depths):
            maps[-1] = self.act(norm(name="norm")(x))
        if not head:
            return tuple(maps[1:])
        x = maps[-1].astype(jnp.promote_types(x.dtype, jnp.float32))
        x = drop(self.head_dropout)(self.pool(x))
        if self.num_classes:  # N(0, 0.01): Goyal et al. 2017, section 5.1
            x = nn.Dense(self.num_classes, kernel_init=normal(0.01), name="head")(x)
        return (x,)

    @nn.nowrap
    def _builders(self, train: bool, rows: Array | None) -> tuple[ConvDef, NormDef, Callable[..., Activation]]:
        """What blocks build their layers with; the mode is closed over here, once."""

        def conv(features: int, *, last: bool = False, **fields: Any) -> nn.Module:
            init = zeros if last and self.zero_init else he_normal_fan_out
            return self.conv(features, dtype=self.dtype, kernel_init=init, **fields)

        def norm(*, last: bool = False, name: str) -> nn.Module:
            scale_init = zeros if last and self.zero_init else ones
            return self.norm(use_running_average=not train, dtype=self.dtype, scale_init=scale_init, name=name)

        def drop(rate: float, shared: tuple[int, ...] = ()) -> Activation:
            return partial(Dropout(rate, shared), rows=rows) if train and rate else identity

        return conv, norm, drop


def _largest(extent: Extent) -> int:
    return extent if isinstance(extent, int) else max(extent)
