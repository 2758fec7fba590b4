"""Batch normalisation over groups of examples.

Axes: b batch, ... spatial, c channels; a group is g consecutive examples of the batch.

Reference:
    Ioffe and Szegedy 2015 (batch normalisation); Wu and He 2018 (group normalisation); Goyal et al. 2017, section 2.3
    (why the number of images that share statistics belongs to the recipe, not to the hardware).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax
from jax.nn.initializers import Initializer, ones, zeros
from jax.typing import DTypeLike

from resnet_jax.errors import InputError
from resnet_jax.models import cpu_ops


def split_groups(x: Array, group: int | None) -> Array:
    """Split (b, ..., c) into groups (b / g, g, ..., c); None is one group of the whole batch.

    Raises InputError if the groups do not divide the batch.
    """
    batch = x.shape[0]
    group = batch if group is None else group
    if group < 1 or batch % group:
        raise InputError(
            f"model.norm_group_size is {group}, which does not divide the batch of {batch} images;"
            f" choose a divisor of {batch}"
        )
    return x.reshape(batch // group, group, *x.shape[1:])


def statistics(grouped: Array) -> tuple[Array, Array]:
    """Return mean and biased variance of each group and channel, (b / g, 1, ..., 1, c), at least float32.

    The variance takes a second pass, about the mean: E[x^2] - E[x]^2 loses every digit if |mean| >> std. On NVIDIA GPUs
    both come from one pass, about the mean of every 32nd pixel: since those are among the pixels, the square of its
    distance to the mean is at most 32 variances, and the difference loses at most 5 of 24 bits.
    """
    return _moments(grouped.astype(jnp.promote_types(grouped.dtype, jnp.float32)))


@jax.custom_jvp
def _moments(grouped: Array) -> tuple[Array, Array]:
    return _moments_by_platform(grouped)


@partial(jax.jit, inline=True)
def _moments_by_platform(grouped: Array) -> tuple[Array, Array]:
    return lax.platform_dependent(grouped, cuda=moments_in_one_pass, default=moments_in_two_passes)


@_moments.defjvp
def _moments_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Differentiate in one pass: the sum of squares about the mean does not change as the mean moves."""
    mean, var = _moments(*primals)
    away = primals[0] - cpu_ops.broadcast_stats(mean, primals[0].shape)
    return (mean, var), (cpu_ops.mean(tangents[0]), 2 * cpu_ops.mean(away * tangents[0]))


def moments_in_two_passes(grouped: Array) -> tuple[Array, Array]:
    """Return mean and variance, the squares taken about the mean."""
    mean = cpu_ops.mean(grouped)
    return mean, cpu_ops.mean(jnp.square(grouped - cpu_ops.broadcast_stats(mean, grouped.shape)))


def moments_in_one_pass(grouped: Array) -> tuple[Array, Array]:
    """Return mean and variance, the squares taken about the mean of every 32nd pixel."""
    means = partial(jnp.mean, axis=tuple(range(1, grouped.ndim - 1)), keepdims=True)
    # Pixels, because examples may be on several devices
    strides = {1: (32,), 2: (8, 4), 3: (4, 4, 2)}.get(grouped.ndim - 3, ())
    shift = means(grouped[:, :, *(slice(None, None, stride) for stride in strides)])
    away = grouped - shift
    mean = means(away)
    return shift + mean, jnp.maximum(means(jnp.square(away)) - jnp.square(mean), 0)


@jax.custom_jvp
def _normalize(grouped: Array, mean: Array, factor: Array, bias: Array) -> Array:
    """Normalise groups (g, b, ..., c) by the values of each of their channels, (g, 1, ..., 1, c)."""
    mean, factor, bias = (cpu_ops.broadcast_stats(each, grouped.shape) for each in (mean, factor, bias))
    return (grouped - mean) * factor + bias


@_normalize.defjvp
def _normalize_jvp(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
    """Apply the product rule with all terms of a channel merged, so that the gradient takes two sums."""
    grouped, mean, factor, _ = primals
    moved, mean_moved, factor_moved, bias_moved = tangents
    away = grouped - cpu_ops.broadcast_stats(mean, grouped.shape)
    slope, offset = (
        cpu_ops.broadcast_stats(each, grouped.shape) for each in (factor_moved, bias_moved - mean_moved * factor)
    )
    y_moved = moved * cpu_ops.broadcast_stats(factor, grouped.shape) + away * slope + offset
    return _normalize(*primals), y_moved


class BatchNorm(nn.Module):
    """Normalise (b, ..., c) by the statistics of groups of `group` examples, or by running averages.

    Parameters `scale` and `bias` and statistics `mean` and `var` are float32 (c,). The running variance averages the
    unbiased estimate, as in PyTorch but not in flax, so that published weights can be trained further as in PyTorch.

    Attributes:
        use_running_average: normalise by the running averages and do not update them (evaluation).
        group: number of examples that share statistics; None is the whole batch, on any number of devices.
        momentum: fraction of the old running average that a step keeps.
        epsilon: added to the variance.
        dtype: dtype of the result; None is that of the input.
        frozen: use the running averages, without updates, in training as well (fine-tuning).
        scale_init: initialiser of the scale; zeros makes a residual block start as the identity.

    Reference:
        Ioffe and Szegedy 2015, algorithm 2, step 10; Goyal et al. 2017, section 5.1.
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
                self._require_several(count)
                unbiased = var * (count / (count - 1))
                running_mean.value = self._average(running_mean.value, mean)
                running_var.value = self._average(running_var.value, unbiased)
        factor = jax.lax.rsqrt(var + self.epsilon) * scale.reshape((1,) * x.ndim + channels)
        bias = jnp.broadcast_to(bias, mean.shape)
        y = _normalize(grouped, mean, factor, bias)
        return y.reshape(x.shape).astype(self.dtype or x.dtype)

    def _require_several(self, count: int) -> None:
        """Raise InputError for one value per channel: its variance is 0, and so the output is the bias alone."""
        if count == 1:
            raise InputError(
                f"{'/'.join(self.path) or 'BatchNorm'}: one value per channel, an image of one pixel, has no variance;"
                " raise batch_size, model.norm_group_size or the size of the images, or set model.freeze_norm"
            )

    def _average(self, running: Array, groups: Array) -> Array:
        new = groups.reshape(-1, groups.shape[-1]).mean(0)
        return self.momentum * running + (1 - self.momentum) * new


class FrozenBatchNorm(nn.Module):
    """Normalise (b, ..., c) by constants: scale, bias, mean and variance are statistics that are never trained.

    Attributes:
        use_running_average: has no effect; training and evaluation are the same.
        epsilon: added to the variance.
        dtype: dtype of the result; None is that of the input.
        scale_init: initialiser of the scale.
    """

    use_running_average: bool
    epsilon: float = 1e-5
    dtype: DTypeLike | None = None
    scale_init: Initializer = ones

    @nn.compact
    def __call__(self, x: Array) -> Array:
        channels = x.shape[-1:]

        def constant(name: str, init: Initializer) -> Array:
            def first() -> Array:
                return jnp.asarray(init(jax.random.key(0), channels, jnp.float32))

            value = self.variable("batch_stats", name, first).value
            return value.reshape((1,) * (x.ndim - 1) + channels)

        scale, bias = constant("scale", self.scale_init), constant("bias", zeros)
        mean, var = constant("mean", zeros), constant("var", ones)
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        y = x.astype(jnp.promote_types(x.dtype, jnp.float32)) * factor + (bias - mean * factor)
        return y.astype(self.dtype or x.dtype)


def group_norm(*, use_running_average: bool, num_groups: int = 32, **fields: Any) -> nn.GroupNorm:
    """Build a normalisation over groups of channels of one image (Wu and He 2018)."""
    return nn.GroupNorm(num_groups, epsilon=1e-5, use_fast_variance=False, **fields)


NORMS: dict[str, Callable[..., nn.Module]] = {
    "BatchNorm": BatchNorm,
    "FrozenBatchNorm": FrozenBatchNorm,
    # torchvision loads the weights of its first detectors so
    "FrozenBatchNorm_0": partial(FrozenBatchNorm, epsilon=0.0),
    "GroupNorm": group_norm,
}
