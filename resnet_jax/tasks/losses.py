"""Losses: (outputs (b, k), targets) -> (b,), in float32 or wider; or numerators and weights, if the mean is weighted.

Targets are classes, int32 (b,); soft targets, float32 (b, k), as mixup makes them; several outputs, float32 (b, k); or
masks of classes, uint8 (b, spatial...), for outputs (b, spatial..., k).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

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


def weighted_cross_entropy(
    logits: Array,
    targets: Array,
    *,
    class_weights: Sequence[float] = (),
    focal_gamma: float = 0.0,
    smoothing: float = 0.0,
) -> tuple[Array, Array]:
    """Return the softmax cross-entropy of each example or pixel times the weight of its class, and that weight.

    Args:
        logits: (..., k), of any float dtype.
        targets: classes, int (...), of which those over k - 1 weigh nothing; or soft targets, float (..., k).
        class_weights: a weight for each class, as PyTorch's `weight`; () is 1 for all.
        focal_gamma: exponent of (1 - probability), which the loss of each class is multiplied with; 0 = off.
        smoothing: label smoothing, 0 to 1.

    Returns:
        Losses (...) in float32 or wider, and weights (...): int32 if no class has a weight of its own.

    Reference:
        Lin et al. 2017, "Focal loss for dense object detection", equation 4, with a softmax instead of a sigmoid.

    Example:
        >>> loss, weight = weighted_cross_entropy(jnp.zeros((1, 4)), jnp.array([2]), class_weights=(1, 1, 3, 1))
        >>> print(f"{loss[0]:.4f} {weight[0]:.1f}")
        4.1589 3.0
    """
    chex.assert_equal_shape_prefix([logits, targets], logits.ndim - 1)
    logits = _wide(logits)
    soft, classes = targets.ndim == logits.ndim, logits.shape[-1]
    target = targets.astype(logits.dtype) if soft else jax.nn.one_hot(targets, classes, dtype=logits.dtype)
    of_class = jnp.asarray(class_weights or (1.0,) * classes, logits.dtype)
    if class_weights:
        weights = (target * _along(of_class, target)).sum(-1)
    else:
        weights = jnp.ones(target.shape[:-1], jnp.int32) if soft else (targets < classes).astype(jnp.int32)
    if smoothing:
        target = (1 - smoothing) * target + smoothing / classes * target.sum(-1, keepdims=True)
    log_probs = jax.nn.log_softmax(logits)
    losses = -target * log_probs * _along(of_class, target)
    if focal_gamma:
        losses *= _focal(-jnp.expm1(log_probs), focal_gamma)
    return losses.sum(-1), weights


def _along(of_class: Array, target: Array) -> Array:
    """Return a value per class (k,) for targets (..., k)."""
    return of_class.reshape((1,) * (target.ndim - 1) + (-1,))


def _focal(distance: Array, gamma: float) -> Array:
    # Below 1, the power has no finite gradient at 0
    return jnp.power(jnp.maximum(distance, jnp.finfo(distance.dtype).tiny), gamma)


def pixel_cross_entropy(
    logits: Array,
    masks: Array,
    *,
    class_weights: Sequence[float] = (),
    focal_gamma: float = 0.0,
    smoothing: float = 0.0,
) -> tuple[Array, Array]:
    """Return the sum of `weighted_cross_entropy` over the pixels of each example, and the sum of their weights.

    The mean of a batch is then over all labelled pixels, weighted as in PyTorch, and not a mean of means.

    Args:
        logits: (b, spatial..., k).
        masks: classes, uint8 (b, spatial...); pixels over k - 1, such as 255, are not labelled and weigh nothing.
        class_weights: as in `weighted_cross_entropy`, like `focal_gamma` and `smoothing`.
        focal_gamma: 0 = off.
        smoothing: 0 to 1.

    Returns:
        Numerators and weights, (b,) each.

    Example:
        >>> loss, pixels = pixel_cross_entropy(jnp.zeros((1, 1, 3, 2)), jnp.array([[[0, 1, 255]]], jnp.uint8))
        >>> print(f"{loss[0]:.4f} {pixels[0]}")
        1.3863 2
    """
    losses, weights = weighted_cross_entropy(
        logits, masks, class_weights=class_weights, focal_gamma=focal_gamma, smoothing=smoothing
    )
    pixels = tuple(range(1, masks.ndim))
    return losses.sum(pixels), weights.sum(pixels)


def dice(logits: Array, masks: Array) -> tuple[Array, Array]:
    """Return 1 - Dice coefficient of each example, a mean over the classes in its mask, and 1 if it has a label.

    Dice is 2 sum(p t) / (sum(p) + sum(t)) over the labelled pixels, with probabilities p and one-hot targets t.

    Args:
        logits: (b, spatial..., k).
        masks: classes, uint8 (b, spatial...); pixels over k - 1 are not labelled.

    Returns:
        Losses (b,) float32 and weights (b,) int32.

    Reference:
        Milletari et al. 2016, "V-Net", section 3, without the squares in its denominator.

    Example:
        >>> logits = jnp.array([[[9.0, -9.0], [-9.0, 9.0]]])
        >>> print(f"{dice(logits, jnp.array([[0, 1]], jnp.uint8))[0][0]:.4f}")
        0.0000
    """
    chex.assert_equal_shape_prefix([logits, masks], masks.ndim)
    classes, pixels = logits.shape[-1], tuple(range(1, masks.ndim))
    logits = _wide(logits)
    target = jax.nn.one_hot(masks, classes, dtype=logits.dtype)
    probs = jnp.where((masks < classes)[..., None], jax.nn.softmax(logits), 0)
    overlap, size = (probs * target).sum(pixels), target.sum(pixels)
    present = size > 0
    coefficient = 2 * overlap / jnp.where(present, probs.sum(pixels) + size, 1)
    count = present.sum(-1)
    losses = jnp.where(present, 1 - coefficient, 0).sum(-1) / jnp.maximum(count, 1)
    return losses, (count > 0).astype(jnp.int32)


def with_auxiliary(
    loss: Callable[[Array, Array], tuple[Array, Array]], weight: float = 0.5
) -> Callable[[Any, Any], Any]:
    """Return the loss of outputs {"out", "aux"}: that of "out", and `weight` times that of the auxiliary head "aux".

    Outputs of a network without auxiliary head are an array, whose loss is unchanged.

    Reference:
        Zhao et al. 2017, "Pyramid scene parsing network", section 3.3; the weight 0.5 is torchvision's.
    """

    def total(outputs: Any, targets: Any) -> Any:
        if not isinstance(outputs, Mapping):
            return loss(outputs, targets)
        (losses, weights), (auxiliary, _) = loss(outputs["out"], targets), loss(outputs["aux"], targets)
        return losses + weight * auxiliary, weights

    return total


def main_output(outputs: Any) -> Any:
    """Return "out" of outputs with an auxiliary head, otherwise the outputs."""
    return outputs["out"] if isinstance(outputs, Mapping) else outputs


def binary_cross_entropy(
    logits: Array,
    targets: Array,
    *,
    smoothing: float = 0.0,
    threshold: float | None = None,
    sum_classes: bool = False,
    class_weights: Sequence[float] = (),
    pos_weight: Sequence[float] = (),
    focal_gamma: float = 0.0,
) -> Array:
    """Return the sigmoid cross-entropy of each example, in nats: one binary question per class.

    Args:
        logits: (b, k), of any float dtype.
        targets: classes, int (b,), or soft targets or labels in 0 to 1, float (b, k).
        smoothing: label smoothing, 0 to 1, applied before the threshold.
        threshold: targets over it become 1, the others 0; None keeps soft targets.
        sum_classes: sum over the classes instead of averaging.
        class_weights: a factor for the loss of each class, as `weight` of PyTorch's BCEWithLogitsLoss; () is 1.
        pos_weight: a factor for the part of the target that is 1, as in BCEWithLogitsLoss; () is 1.
        focal_gamma: exponent of (1 - probability of the target); 0 = off.

    Returns:
        (b,), in float32 or wider.

    Reference:
        Wightman et al. 2021, "ResNet strikes back", section 2.2; Lin et al. 2017, "Focal loss", equation 4.

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
    if pos_weight:
        present = -target * jax.nn.log_sigmoid(logits) * _along(jnp.asarray(pos_weight, logits.dtype), target)
        losses = present - (1 - target) * jax.nn.log_sigmoid(-logits)
    else:
        losses = optax.losses.sigmoid_binary_cross_entropy(logits, target)
    if focal_gamma:
        probs = jax.nn.sigmoid(logits)
        losses *= _focal(probs + target - 2 * probs * target, focal_gamma)
    if class_weights:
        losses *= _along(jnp.asarray(class_weights, losses.dtype), losses)
    return losses.sum(-1) if sum_classes else losses.mean(-1)


def distillation(logits: Array, teacher_logits: Array, *, temperature: float = 1.0, hard: bool = False) -> Array:
    """Return how far the outputs of each example are from a teacher's, in nats.

    Args:
        logits: (b, k), of any float dtype.
        teacher_logits: (b, k).
        temperature: T in T^2 KL(softmax(teacher_logits / T) || softmax(logits / T)).
        hard: take the cross-entropy with the teacher's class instead.

    Returns:
        (b,), in float32 or wider.

    Reference:
        Hinton et al. 2015, "Distilling the knowledge in a neural network", section 2; Touvron et al. 2021, section 4.

    Example:
        >>> print(f"{distillation(jnp.array([[2.0, 0.0]]), jnp.zeros((1, 2)), temperature=2.0)[0]:.4f}")
        0.4805
    """
    chex.assert_equal_shape([logits, teacher_logits])
    if hard:
        return cross_entropy(logits, teacher_logits.argmax(-1))
    ours, theirs = (jax.nn.log_softmax(_wide(x) / temperature) for x in (logits, teacher_logits))
    return temperature**2 * optax.losses.kl_divergence_with_log_targets(ours, theirs)


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
