"""The gradient of DP-SGD: that of each example, clipped by itself and summed; and the noise that is added to the sum.

Both are values that `resnet_jax.train_step` takes: an objective and a gradient rule.

Reference:
    Abadi et al. 2016, "Deep learning with differential privacy", algorithm 1; De et al. 2022, "Unlocking high-accuracy
    differentially private image classification through scale", section 3 (augmentation multiplicity, gradients rescaled
    to norm 1).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import Array

from resnet_jax import InputError
from resnet_jax.input_pipeline.sampler import Batch
from resnet_jax.optim.gradient import GradientOf, GradientRule
from resnet_jax.tasks.losses import cross_entropy

# Target of a row that is no example
PADDING = -1
# Folded into the key of a step like the number of a row; no row has this one
_NOISE = 2**32 - 9


def require_independent_examples(variables: dict[str, Any], name: str) -> None:
    """Raise InputError if a network has running statistics, that is BatchNorm."""
    if "batch_stats" in variables:
        raise InputError(
            f"{name} has BatchNorm, with which the gradient of an example depends on the rest of the batch, so that"
            " clipping bounds nothing; take a network with GroupNorm or without normalisation"
        )


def clipped_sum(
    apply: Callable[[Any, Array], Array], clip_norm: float
) -> Callable[[Any, Array, Array], tuple[Any, Array]]:
    """Return a function (params, images, labels) -> the sum of clipped gradients, divided by the norm, and the losses.

    Args:
        apply: (params, images (k, ...)) -> logits (k, classes), without any exchange between images.
        clip_norm: largest L2 norm of the gradient of an example.

    Returns:
        A function of images (b, k, ...) and labels (b, k): k augmented copies of each of b examples. The gradient of
        an example is that of its mean loss over the copies. An example whose labels are PADDING adds nothing.
    """

    def example_loss(params: Any, images: Array, labels: Array) -> Array:
        return cross_entropy(apply(params, images), jnp.maximum(labels, 0)).mean()

    def scaled(params: Any, images: Array, labels: Array) -> tuple[Any, Array]:
        loss, grads = jax.value_and_grad(example_loss)(params, images, labels)
        # Otherwise one example could make the sum infinite
        grads = jax.tree.map(partial(jnp.nan_to_num, nan=0.0, posinf=0.0, neginf=0.0), grads)
        norm, real = optax.tree.norm(grads), labels[0] != PADDING
        scale = jnp.where(real, 1 / jnp.maximum(norm, clip_norm), 0)
        return jax.tree.map(lambda g: scale.astype(g.dtype) * g, grads), jnp.where(real, loss, 0)

    def sum_of_gradients(params: Any, images: Array, labels: Array) -> tuple[Any, Array]:
        grads, losses = jax.vmap(scaled, (None, 0, 0))(params, images, labels)
        return jax.tree.map(lambda g: g.sum(0), grads), losses

    return sum_of_gradients


def private_objective(
    apply: Callable[[Any, Array], Array], *, clip_norm: float, expected_batch: float, rows: int, copies: int = 1
) -> Any:
    """Return an objective of `train_step` whose gradient is the sum of clipped gradients over the expected batch.

    Args:
        apply: (params, images (k, ...)) -> logits (k, classes).
        clip_norm: largest L2 norm of the gradient of an example.
        expected_batch: what the sum is divided by, whatever was drawn.
        rows: examples that fit into a batch.
        copies: augmented copies of each example, in consecutive rows (De et al. 2022).
    """
    sum_of_gradients = clipped_sum(apply, clip_norm)

    def objective(params: Any, batch_stats: Any, batch: Batch, rngs: Any) -> tuple[Any, Any]:
        images, labels = (jnp.asarray(x).reshape(-1, copies, *x.shape[1:]) for x in (batch.image, batch.target))
        grads, losses = sum_of_gradients(jax.lax.stop_gradient(params), images, labels)
        # Zero, with the clipped sum as its gradient
        moved = jax.tree.map(lambda p: p - jax.lax.stop_gradient(p), params)
        linear = optax.tree.vdot(grads, moved) / len(batch.target)
        weights = jnp.full(len(batch.target), expected_batch / (rows * copies))
        return (jnp.repeat(losses, copies) / copies + linear, weights), (labels, batch_stats)

    return objective


def noisy_sum(noise_multiplier: Array, key: Array) -> GradientRule:
    """Return the gradient rule of `train_step` that adds Gaussian noise to the sum of clipped gradients of norm 1.

    It is drawn once for all devices. Numbers are float32 and the generator is not cryptographic: the guarantee is that
    of the formula, not one against an attack on the random numbers (Mironov 2012).

    Args:
        noise_multiplier: () float32, the standard deviation.
        key: of the step.
    """

    def rule(gradient_of: GradientOf, opt_state: Any, params: Any) -> Any:
        total = gradient_of(params)
        leaves, tree = jax.tree.flatten(total.grads)
        keys = jax.random.split(jax.random.fold_in(key, _NOISE), len(leaves))
        noisy = [
            x + noise_multiplier.astype(x.dtype) * jax.random.normal(k, x.shape, x.dtype)
            for x, k in zip(leaves, keys, strict=True)
        ]
        return total._replace(grads=jax.tree.unflatten(tree, noisy))

    return rule


def logits_of(model: nn.Module) -> Callable[[Any, Array], Array]:
    """Return a network without statistics as a function (params, images) -> logits."""

    def apply(params: Any, images: Array) -> Any:
        return model.apply({"params": params}, images, train=True)

    return apply
