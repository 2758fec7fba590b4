"""The residual network: stem, stages, head (He et al. 2015, table 1 and section 4.2)."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.nn.initializers import normal, ones, zeros
from jax.typing import DTypeLike

from resnet_jax.model.blocks import BasicBlock, Block, DimensionShortcut, Shortcut
from resnet_jax.model.layers import Conv, ImageNetStem, Stem
from resnet_jax.model.norm import BatchNorm


class ResNet(nn.Module):
    """Maps images (b, spatial..., c) to logits (b, num_classes) in float32, or to features where num_classes is 0.

    The unbound module is the description of the network: compare, `clone` and print it.

    Attributes:
        depths: blocks of each stage; every stage after the first halves the resolution and doubles the width.
        block: BasicBlock, Bottleneck or another Block.
        stem: ImageNetStem, CifarStem or another Stem.
        shortcut: one of SHORTCUTS, or another Shortcut.
        width: features of the first stage.
        num_classes: outputs of the head; 0 for the pooled features.
        norm: builds a normalisation, `functools.partial(BatchNorm, group=32)` for instance.
        zero_init: start the last scale of every residual branch at zero (Goyal et al. 2017, section 5.1).
        dtype: of the computation; parameters, statistics and head stay in float32. None is that of the input.
    """

    depths: tuple[int, ...]
    block: type[Block] = BasicBlock
    stem: type[Stem] = ImageNetStem
    shortcut: type[Shortcut] = DimensionShortcut
    width: int = 64
    num_classes: int = 1000
    norm: Callable[..., nn.Module] = BatchNorm
    zero_init: bool = False
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """`train` normalises by the statistics of the batch and updates the running ones in `batch_stats`."""

        def conv(features: int, **fields: Any) -> nn.Module:
            return Conv(features, dtype=self.dtype, **fields)

        def norm(*, last: bool = False, name: str) -> nn.Module:
            scale_init = zeros if last and self.zero_init else ones
            return self.norm(use_running_average=not train, dtype=self.dtype, scale_init=scale_init, name=name)

        x = self.stem(self.width, conv, norm, nn.relu, name="stem")(x)
        for stage, depth in enumerate(self.depths):
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                name = f"stage{stage + 1}_block{index + 1}"
                features = self.width * 2**stage
                x = self.block(features, stride, conv, norm, nn.relu, self.shortcut, name=name)(x)
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        x = x.mean(tuple(range(1, x.ndim - 1)))
        if self.num_classes == 0:
            return x
        # N(0, 0.01): Goyal et al. 2017, section 5.1
        return nn.Dense(self.num_classes, kernel_init=normal(0.01), name="head")(x)
