"""Shortcuts from the input of a block to the shape of its output (He et al. 2015, section 3.3)."""

import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax

from resnet_jax.errors import InputError
from resnet_jax.models.layers import ConvDef, Extent, NormDef, average_pool, extents


class Shortcut(nn.Module):
    """A map around a block, with the stride and dilations of the block."""

    features: int
    stride: Extent
    conv: ConvDef
    norm: NormDef
    dilations: tuple[int, int] = (1, 1)

    @nn.nowrap
    def projects(self, x: Array) -> bool:
        """Return whether the input passes a convolution; pre-activation blocks normalise it before."""
        return False


class PadShortcut(Shortcut):
    """Option A: identity, subsampled by the stride, new channels zero; no parameters.

    The zeros are split evenly before and after the old channels, as in the published CIFAR-10 weights.
    """

    @nn.compact
    def __call__(self, x: Array) -> Array:
        rank, new = x.ndim - 2, self.features - x.shape[-1]
        # An index with steps would be a gather if the size of the batch is a symbol, as in an export
        x = lax.slice(x, (0,) * x.ndim, x.shape, (1, *extents(self.stride, rank), 1))
        return jnp.pad(x, ((0, 0),) * (rank + 1) + ((new // 2, new - new // 2),))


class ProjectionShortcut(Shortcut):
    """Option C: a 1x1 convolution and a normalisation in every block."""

    @nn.nowrap
    def projects(self, x: Array) -> bool:
        return True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = self.conv(self.features, kernel=1, stride=self.stride, name="conv")(x)
        return self.norm(name="norm")(x)


class DimensionShortcut(ProjectionShortcut):
    """Option B: a projection if the shape changes, otherwise the identity."""

    @nn.nowrap
    def projects(self, x: Array) -> bool:
        return self.stride != 1 or x.shape[-1] != self.features

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return super().__call__(x) if self.projects(x) else x


class BareShortcut(DimensionShortcut):
    """A 1x1 convolution without normalisation if the shape changes, otherwise the identity; as in MLPerf Tiny."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return self.conv(self.features, kernel=1, stride=self.stride, name="conv")(x) if self.projects(x) else x


class IdentityShortcut(Shortcut):
    """The identity if the shape stays, otherwise none (Sandler et al. 2018, section 3.3)."""

    @nn.compact
    def __call__(self, x: Array) -> Array | float:
        return x if self.stride == 1 and x.shape[-1] == self.features else 0.0


class AverageShortcut(DimensionShortcut):
    """Option D: means of 2x2 pixels, then a 1x1 convolution of stride 1, so that no input is dropped.

    If a stride became a dilation, the averaged pixels are that far apart (He et al. 2019, ResNet-D, section 4.2).
    """

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if not self.projects(x):
            return x
        if not isinstance(self.stride, int):
            raise InputError("shortcut: D would average frames, which a FrameBlock keeps; take B")
        if self.stride > 1 or self.dilations[0] != self.dilations[1]:
            x = average_pool(x, self.stride, self.dilations[0])
        return self.norm(name="norm")(self.conv(self.features, kernel=1, name="conv")(x))


class NoShortcut(Shortcut):
    """No shortcut: the block is a plain stack of layers (He et al. 2015, section 4.1)."""

    @nn.compact
    def __call__(self, x: Array) -> float:
        return 0.0


SHORTCUTS: dict[str, type[Shortcut]] = {
    "A": PadShortcut,
    "B": DimensionShortcut,
    "C": ProjectionShortcut,
    "D": AverageShortcut,
    "none": NoShortcut,
}
