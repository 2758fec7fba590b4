"""Feature pyramid on top of `ResNet.features` (Lin et al. 2017, section 3)."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax
from jax.nn.initializers import variance_scaling
from jax.typing import DTypeLike

from resnet_jax.models.layers import Conv, NormDef

_init = variance_scaling(1.0, "fan_in", "uniform")


class FPN(nn.Module):
    """Feature pyramid: maps (b, spatial..., c) of decreasing resolution to maps of `width` channels.

    Each output has the resolution of its map: a 3x3 convolution of the sum of a 1x1 convolution of the map and the
    next coarser sum, upsampled.

    Attributes:
        width: output channels.
        dtype: dtype of the computation; parameters stay in float32. None is that of the input.
        norm: builds a normalisation after each convolution, in place of biases.
        extra: coarser levels after the last: "pool" subsamples it once; "p5" and "c5" add two strided convolutions, the
            first of the last output or of the last map (Lin et al. 2017, "Focal loss", section 4).
    """

    width: int = 256
    dtype: DTypeLike | None = None
    norm: NormDef | None = None
    extra: Literal["none", "pool", "p5", "c5"] = "none"

    @nn.compact
    def __call__(self, maps: Sequence[Array]) -> tuple[Array, ...]:
        def conv(kernel: int, name: str) -> Callable[[Array], Array]:
            norm = self.norm(name=f"{name}_norm") if self.norm else None
            layer = self._conv(kernel, bias=norm is None, name=name)
            return layer if norm is None else lambda x: norm(layer(x))

        laterals = [conv(1, f"lateral{i + 1}")(x) for i, x in enumerate(maps)]
        for fine in reversed(range(len(laterals) - 1)):
            laterals[fine] += enlarge(laterals[fine + 1], laterals[fine].shape[1:-1])
        outputs = [conv(3, f"output{i + 1}")(x) for i, x in enumerate(laterals)]
        return (*outputs, *self._coarser(outputs[-1], maps[-1]))

    @nn.nowrap
    def _conv(self, kernel: int, **fields: Any) -> Conv:
        return Conv(self.width, kernel, dtype=self.dtype, kernel_init=_init, **fields)

    @nn.nowrap
    def _coarser(self, output: Array, last: Array) -> list[Array]:
        """Return the levels after the last."""
        if self.extra == "none":
            return []
        if self.extra == "pool":
            # Not by indexing, which an export would see as a gather
            strides = (1, *(2,) * (output.ndim - 2), 1)
            return [lax.slice(output, (0,) * output.ndim, output.shape, strides)]
        p6 = self._conv(3, stride=2, bias=True, name="p6")(output if self.extra == "p5" else last)
        return [p6, self._conv(3, stride=2, bias=True, name="p7")(nn.relu(p6))]


def enlarge(x: Array, shape: Sequence[int]) -> Array:
    """Resize (b, spatial..., c) to another spatial shape by nearest neighbour, index i * old // new."""
    for axis, size in enumerate(shape, 1):
        x = jnp.take(x, jnp.arange(size) * x.shape[axis] // size, axis=axis)
    return x
