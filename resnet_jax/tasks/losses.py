"""Losses: (outputs (b, k), targets) -> (b,), in float32 or wider.

Targets are classes, int32 (b,); soft targets, float32 (b, k), as mixup makes them; or several outputs, float32 (b, k).
"""

import chex
import jax
import jax.numpy as jnp
import optax
from jax import Array


def cross_entropy(logits: Array, targets: Array, *, smoothing: float = 0.0) -> Array:
    """Return the softmax cross-entropy of each example, in nats.

    Args:
        logits: (b, k), of any float dtype.
        targets: classes, int (b,), or soft targets, float (b, k).
        smoothing: label smoothing, 0 to 1: fraction of the target spread evenly over all classes.

    Returns:
        (b,), in float32 or wider.

    Reference:
        Szegedy et al. 2016, "Rethinking the Inception architecture", section 7.

    Example:
        >>> print(f"{cross_entropy(jnp.zeros((1, 4)), jnp.array([2]))[0]:.4f}")
        1.3863
    """
    chex.assert_equal_shape_prefix([logits, targets], logits.ndim - 1)
    logits = _wide(logits)
    if targets.ndim == logits.ndim:
        loss = optax.losses.softmax_cross_entropy(logits, targets)
    else:
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    if smoothing == 0.0:
        return loss
    uniform = optax.losses.softmax_cross_entropy(logits, jnp.full_like(logits, 1 / logits.shape[-1]))
    return (1 - smoothing) * loss + smoothing * uniform


def binary_cross_entropy(
    logits: Array,
    targets: Array,
    *,
    smoothing: float = 0.0,
    threshold: float | None = None,
    sum_classes: bool = False,
) -> Array:
    """Return the sigmoid cross-entropy of each example, in nats: one binary question per class.

    Args:
        logits: (b, k), of any float dtype.
        targets: classes, int (b,), or soft targets or labels in 0 to 1, float (b, k).
        smoothing: label smoothing, 0 to 1, applied before the threshold.
        threshold: targets over it become 1, the others 0; None keeps soft targets.
        sum_classes: sum over the classes instead of averaging.

    Returns:
        (b,), in float32 or wider.

    Reference:
        Wightman et al. 2021, "ResNet strikes back", section 2.2.

    Example:
        >>> print(f"{binary_cross_entropy(jnp.zeros((1, 4)), jnp.array([2]), sum_classes=True)[0]:.4f}")
        2.7726
    """
    chex.assert_equal_shape_prefix([logits, targets], logits.ndim - 1)
    logits = _wide(logits)
    classes = logits.shape[-1]
    target = targets if targets.ndim == logits.ndim else jax.nn.one_hot(targets, classes, dtype=logits.dtype)
    target = (1 - smoothing) * target.astype(logits.dtype) + smoothing / classes
    if threshold is not None:
        target = (target > threshold).astype(logits.dtype)
    losses = optax.losses.sigmoid_binary_cross_entropy(logits, target)
    return losses.sum(-1) if sum_classes else losses.mean(-1)


def mse(outputs: Array, targets: Array) -> Array:
    """Return the mean squared error of each example over its outputs, (b, k) and (b, k) -> (b,).

    Example:
        >>> mse(jnp.array([[1.0, 3.0]]), jnp.zeros((1, 2))).tolist()
        [5.0]
    """
    # Subtracting (b,) from (b, 1) would give (b, b) without a word
    chex.assert_equal_shape([outputs, targets])
    return jnp.square(_wide(outputs) - targets).mean(-1)


def _wide(logits: Array) -> Array:
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
