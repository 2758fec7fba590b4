"""Batch normalisation over groups of examples.

Axes: b batch, ... spatial, c channels; a group is g consecutive examples of the batch.
Papers: Ioffe and Szegedy 2015 (batch normalisation); Goyal et al. 2017, section 2.3 (why the number of images
that share statistics belongs to the recipe, and not to the hardware); Wu and He 2018 (group normalisation).
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.nn.initializers import Initializer, ones, zeros
from jax.typing import DTypeLike

from resnet_jax.errors import InputError
from resnet_jax.model import kernels


def split_groups(x: Array, group: int | None) -> Array:
    """(b, ..., c) -> (b / g, g, ..., c); `None` is one group of the whole batch.

    Raises InputError where the groups do not divide the batch.
    """
    batch = x.shape[0]
    group = batch if group is None else group
    if group < 1 or batch % group:
        raise InputError(
            f"model.norm_group is {group}, which does not divide the batch of {batch} images;"
            f" choose a divisor of {batch}"
        )
    return x.reshape(batch // group, group, *x.shape[1:])


def statistics(grouped: Array) -> tuple[Array, Array]:
    """Mean and biased variance of each group and channel, both (b / g, 1, ..., 1, c), in float32 or wider.

    The variance is taken about the mean, in two passes: E[x^2] - E[x]^2 loses every digit where |mean| >> std, and
    sums of what pixels differ from the first of their group, in one pass, made a step for TPUs move more memory.
    """
    grouped = grouped.astype(jnp.promote_types(grouped.dtype, jnp.float32))
    mean = kernels.mean(grouped)
    return mean, _variance(grouped, mean)


@jax.custom_jvp
def _variance(grouped: Array, mean: Array) -> Array:
    return kernels.mean(jnp.square(grouped - kernels.spread(mean, grouped.shape)))


@_variance.defjvp
def _variance_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    """The sum of squares about the mean does not change as the mean moves, so that the derivative takes one pass."""
    grouped, mean = primals
    away = grouped - kernels.spread(mean, grouped.shape)
    return _variance(*primals), 2 * kernels.mean(away * tangents[0])


@jax.custom_jvp
def _normalize(grouped: Array, mean: Array, factor: Array, bias: Array) -> Array:
    """Arrays of groups (g, b, ..., c) and what applies to each of their channels (g, 1, ..., 1, c)."""
    mean, factor, bias = (kernels.spread(each, grouped.shape) for each in (mean, factor, bias))
    return (grouped - mean) * factor + bias


@_normalize.defjvp
def _normalize_jvp(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
    """The product rule with all that is the same for a channel put together, so that the gradient takes two sums."""
    grouped, mean, factor, _ = primals
    moved, mean_moved, factor_moved, bias_moved = tangents
    away = grouped - kernels.spread(mean, grouped.shape)
    slope, offset = (kernels.spread(each, grouped.shape) for each in (factor_moved, bias_moved - mean_moved * factor))
    y_moved = moved * kernels.spread(factor, grouped.shape) + away * slope + offset
    return _normalize(*primals), y_moved


class BatchNorm(nn.Module):
    """Normalises (b, ..., c) by the statistics of groups of `group` examples, or by their running averages.

    Parameters `scale` and `bias` and statistics `mean` and `var` are float32 (c,). The running variance averages the
    unbiased estimate (Ioffe and Szegedy 2015, algorithm 2, step 10), as PyTorch does and flax does not, so that
    published weights go on training as they did.

    Attributes:
        use_running_average: normalise by the running averages and leave them alone (evaluation).
        group: examples that share statistics; None is the whole batch, on however many devices it lies.
        momentum: share of the old running average that a step keeps.
        epsilon: added to the variance.
        dtype: of the result; None is that of the input.
        frozen: normalise by the running averages, and leave them alone, in training as well (fine-tuning).
        scale_init: of the scale; zeros makes a residual block start as the identity (Goyal et al. 2017, 5.1).
    """

    use_running_average: bool
    group: int | None = None
    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: DTypeLike | None = None
    frozen: bool = False
    scale_init: Initializer = ones

    @nn.compact
    def __call__(self, x: Array) -> Array:
        channels = x.shape[-1:]
        scale = self.param("scale", self.scale_init, channels, jnp.float32)
        bias = self.param("bias", zeros, channels, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        if self.use_running_average or self.frozen:
            grouped = x[None]
            shape = (1,) * x.ndim + channels
            mean, var = running_mean.value.reshape(shape), running_var.value.reshape(shape)
        else:
            grouped = split_groups(x, None if self.is_initializing() else self.group)
            mean, var = statistics(grouped)
            if not self.is_initializing():
                count = grouped[0, ..., 0].size
                unbiased = var * (count / max(count - 1, 1))
                running_mean.value = self._average(running_mean.value, mean)
                running_var.value = self._average(running_var.value, unbiased)
        factor = jax.lax.rsqrt(var + self.epsilon) * scale.reshape((1,) * x.ndim + channels)
        bias = jnp.broadcast_to(bias, mean.shape)
        y = _normalize(grouped, mean, factor, bias)
        return y.reshape(x.shape).astype(self.dtype or x.dtype)

    def _average(self, running: Array, groups: Array) -> Array:
        new = groups.reshape(-1, groups.shape[-1]).mean(0)
        return self.momentum * running + (1 - self.momentum) * new


def group_norm(*, use_running_average: bool, num_groups: int = 32, **fields: Any) -> nn.GroupNorm:
    """A normalisation over groups of channels of one image, the same in training and after (Wu and He 2018)."""
    return nn.GroupNorm(num_groups, epsilon=1e-5, use_fast_variance=False, **fields)
