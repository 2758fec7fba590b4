"""ResNet-20 and ResNet-50 as in flax's examples, of nn.Conv and nn.BatchNorm: the baseline of the benchmarks.

Parameters have our names and shapes, so that both start from the same ones. BatchNorm is over the whole batch.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.typing import DTypeLike

from resnet_jax.models.resnet import ResNet

Make = Callable[..., Callable[[jax.Array], jax.Array]]


def sgd_step(model: nn.Module, optimizer: optax.GradientTransformation) -> Callable[..., tuple[Any, Any, Any, Any]]:
    """Return the function (params, batch_stats, opt_state, images, labels) -> (the first three, loss)."""

    def step(params: Any, batch_stats: Any, opt_state: Any, images: jax.Array, labels: jax.Array) -> tuple[Any, ...]:
        def objective(params: Any) -> tuple[jax.Array, Any]:
            variables = {"params": params, "batch_stats": batch_stats}
            logits, updated = model.apply(variables, images, train=True, mutable=["batch_stats"])
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), updated["batch_stats"]

        (loss, after), grads = jax.value_and_grad(objective, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), after, opt_state, loss

    return step


class FlaxNetwork(nn.Module):
    """The network of `like`, ResNet-20 or ResNet-50, computed in `dtype`."""

    like: ResNet
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        conv: Make = partial(padded_conv, dtype=self.dtype)
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=self.dtype)
        bottleneck = self.like.block.expansion == 4
        x = _Stem(self.like.width, bottleneck, conv, norm, name="stem")(x.astype(self.dtype))
        for stage, depth in enumerate(self.like.depths):
            for block in range(depth):
                stride, name = 2 if stage and not block else 1, f"stage{stage + 1}_block{block + 1}"
                x = _Block(self.like.width * 2**stage, stride, bottleneck, conv, norm, name=name)(x)
        logits: jax.Array = nn.Dense(self.like.num_classes, dtype=self.dtype, name="head")(x.mean((1, 2)))
        return logits.astype(jnp.float32)


class _Block(nn.Module):
    features: int
    stride: int
    bottleneck: bool
    conv: Make
    norm: Make

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        wide = self.features * (4 if self.bottleneck else 1)
        layers = [(1, 1, self.features), (3, self.stride, self.features), (1, 1, wide)]
        layers = layers if self.bottleneck else [(3, self.stride, wide), (3, 1, wide)]
        y = x
        for i, (kernel, stride, features) in enumerate(layers, 1):
            y = self.norm(name=f"norm{i}")(self.conv(features, kernel, stride, name=f"conv{i}")(y))
            y = nn.relu(y) if i < len(layers) else y
        return nn.relu(y + self.shortcut(x, wide))

    @nn.nowrap
    def shortcut(self, x: jax.Array, wide: int) -> jax.Array:
        # Option A
        if not self.bottleneck:
            more = wide - x.shape[-1]
            return jnp.pad(x[:, :: self.stride, :: self.stride], ((0, 0),) * 3 + ((more // 2, more - more // 2),))
        if x.shape[-1] == wide:
            return x
        return _Projection(wide, self.stride, self.conv, self.norm, name="shortcut")(x)


class _Projection(nn.Module):
    features: int
    stride: int
    conv: Make
    norm: Make

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(name="norm")(self.conv(self.features, 1, self.stride, name="conv")(x))


class _Stem(nn.Module):
    features: int
    deep: bool
    conv: Make
    norm: Make

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel, stride = (7, 2) if self.deep else (3, 1)
        x = nn.relu(self.norm(name="norm")(self.conv(self.features, kernel, stride, name="conv")(x)))
        return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1))) if self.deep else x


def padded_conv(features: int, kernel: int, stride: int, **fields: Any) -> nn.Conv:
    """Return a convolution without bias, padded on both sides."""
    return nn.Conv(features, (kernel,) * 2, (stride,) * 2, ((kernel // 2,) * 2,) * 2, use_bias=False, **fields)
