"""Feature pyramid on top of `ResNet.features` (Lin et al. 2017, section 3)."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.nn.initializers import variance_scaling
from jax.typing import DTypeLike

from resnet_jax.models.layers import Conv

_init = variance_scaling(1.0, "fan_in", "uniform")


class FPN(nn.Module):
    """Feature pyramid: maps (b, spatial..., c) of falling resolution to maps of `width` channels.

    Each output has the resolution of its map. It is a 3x3 convolution of a sum: a 1x1 convolution of the map, and the
    next coarser sum, enlarged.

    Attributes:
        width: output channels.
        dtype: dtype of the computation; parameters stay in float32. None is that of the input.
    """

    width: int = 256
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, maps: Sequence[Array]) -> tuple[Array, ...]:
        def conv(kernel: int, name: str) -> Conv:
            return Conv(self.width, kernel, bias=True, dtype=self.dtype, kernel_init=_init, name=name)

        laterals = [conv(1, f"lateral{i + 1}")(x) for i, x in enumerate(maps)]
        for fine in reversed(range(len(laterals) - 1)):
            laterals[fine] += enlarge(laterals[fine + 1], laterals[fine].shape[1:-1])
        return tuple(conv(3, f"output{i + 1}")(x) for i, x in enumerate(laterals))


def enlarge(x: Array, shape: Sequence[int]) -> Array:
    """Resize (b, spatial..., c) to another spatial shape by nearest neighbour, index i * old // new."""
    for axis, size in enumerate(shape, 1):
        x = jnp.take(x, jnp.arange(size) * x.shape[axis] // size, axis=axis)
    return x
