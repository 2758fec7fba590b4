"""Quantisation-aware training: round to int8 in the forward pass, and pass gradients straight through."""

import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax

# int8 without -128, so that weights are symmetric
_LEVELS = 127


def fake_quantize_kernel(kernel: Array) -> Array:
    """Round a kernel (..., c) to 255 levels, symmetric about zero, with one scale for each output channel.

    A normalisation after the convolution scales its channels, and so does not change the levels when it is folded.

    Example:
        >>> fake_quantize_kernel(jnp.array([[1.0, 127.0], [0.3, -63.7]])).tolist()
        [[1.0, 127.0], [0.29921260476112366, -64.0]]
    """
    axes = tuple(range(kernel.ndim - 1))
    largest = jnp.abs(kernel).max(axes, keepdims=True)
    scale = lax.stop_gradient(jnp.where(largest > 0, largest, 1.0) / _LEVELS)
    return _straight_through(kernel, jnp.round(kernel / scale) * scale)


def fake_quantize(x: Array, low: Array, high: Array) -> Array:
    """Round an array to 256 levels of a range that includes zero, which is one of them; clip what lies outside.

    Args:
        x: of any shape and float dtype.
        low: () smallest number of the range; if it is not below `high`, nothing is rounded.
        high: () largest number.

    Example:
        >>> fake_quantize(jnp.array([-1.0, 0.0, 0.7, 300.0]), jnp.float32(0), jnp.float32(255)).tolist()
        [0.0, 0.0, 1.0, 255.0]
    """
    low, high = jnp.minimum(low, 0.0), jnp.maximum(high, 0.0)
    scale = jnp.where(high > low, high - low, 1.0) / (2 * _LEVELS + 1)
    zero = jnp.round(-low / scale)
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    clipped = jnp.clip(wide, -zero * scale, (2 * _LEVELS + 1 - zero) * scale)
    rounded = _straight_through(clipped, jnp.round(clipped / scale) * scale)
    return jnp.where(high > low, rounded, wide).astype(x.dtype)


def _straight_through(x: Array, rounded: Array) -> Array:
    return x + lax.stop_gradient(rounded - x)


class FakeQuant(nn.Module):
    """Round the input and the kernel of a layer to int8: weights per output channel, inputs by a running range.

    The range, `low` and `high` () float32 in `batch_stats`, averages the extremes of each example: unlike those of a
    batch, their mean does not depend on how the batch is split. Inputs are rounded once there is a range.

    Attributes:
        use_running_average: do not update the range (evaluation).
        momentum: fraction of the old range that a step keeps.

    Reference:
        Jacob et al. 2018, "Quantization and training of neural networks", section 3; Bengio et al. 2013 (gradients).
    """

    use_running_average: bool
    momentum: float = 0.99

    @nn.compact
    def __call__(self, x: Array, kernel: Array) -> tuple[Array, Array]:
        low, high = (self.variable("batch_stats", name, jnp.zeros, (), jnp.float32) for name in ("low", "high"))
        rounded = fake_quantize(x, low.value, high.value)
        if not (self.use_running_average or self.is_initializing()):
            axes, known = tuple(range(1, x.ndim)), high.value > low.value
            keep = jnp.where(known, self.momentum, 0.0)
            for running, extremes in ((low, x.min(axes)), (high, x.max(axes))):
                new = lax.stop_gradient(extremes.astype(jnp.float32).mean())
                running.value = keep * running.value + (1 - keep) * new
        return rounded, fake_quantize_kernel(kernel)
