"""Losses of detectors, element by element."""

import jax
import jax.numpy as jnp
import optax
from jax import Array


def sigmoid_focal(logits: Array, targets: Array, alpha: float = 0.25, gamma: float = 2.0) -> Array:
    """Return the focal loss of logits (...) and targets from 0 to 1 (...).

    Reference:
        Lin et al. 2017, "Focal loss for dense object detection", equation 5.

    Example:
        >>> sigmoid_focal(jnp.array([0.0]), jnp.array([1.0])).round(4).tolist()
        [0.043299999088048935]
    """
    p = jax.nn.sigmoid(logits)
    p_of_target = p * targets + (1 - p) * (1 - targets)
    alpha_of_target = alpha * targets + (1 - alpha) * (1 - targets)
    losses = optax.sigmoid_binary_cross_entropy(logits, targets)
    return alpha_of_target * (1 - p_of_target) ** gamma * losses


def smooth_l1(differences: Array, beta: float = 1 / 9) -> Array:
    """Return d^2 / (2 beta) up to beta, and |d| - beta / 2 beyond (Girshick 2015, section 2.3).

    Example:
        >>> smooth_l1(jnp.array([0.5, 2.0]), beta=1.0).tolist()
        [0.125, 1.5]
    """
    size = jnp.abs(differences)
    return jnp.where(size < beta, 0.5 * differences**2 / beta, size - 0.5 * beta)
