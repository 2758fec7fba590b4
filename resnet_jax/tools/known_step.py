"""A step whose result is known: whether a device computes it, and the same each time."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from resnet_jax.models.zoo import MODELS
from resnet_jax.runtime.compiler_options import compiler_options

# Loss and gradient norm in float64
EXPECTED = (3.601036588, 5.854111437)
# Relative; the products of float32 may have 10 bits on a GPU (TF32) and 8 on a TPU
TOLERANCE = 0.02


class KnownStep(NamedTuple):
    """What a device made of the known step."""

    loss: float
    gradient_norm: float
    is_same_twice: bool

    def is_expected(self) -> bool:
        """Return whether loss and gradient are those of any sound device."""
        return bool(np.allclose((self.loss, self.gradient_norm), EXPECTED, rtol=TOLERANCE, atol=0))


def compute_known_step(device: jax.Device) -> KnownStep:
    """Compute loss and gradients of a ResNet-8 on a device, twice. Nothing in it is drawn, so it is known everywhere.

    Example:
        >>> step = compute_known_step(jax.local_devices()[0])
        >>> step.is_expected(), step.is_same_twice
        (True, True)
    """
    model = MODELS["resnet8"]
    images = _waves((32, 32, 32, 3), 1.0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images[:1])
    variables = jax.tree.map(lambda leaf: _waves(leaf.shape, leaf.size / leaf.shape[-1]), shapes)
    arguments = jax.device_put((variables, images, np.arange(32) % 10), device)
    step = jax.jit(jax.value_and_grad(_loss, argnums=1), static_argnums=0, compiler_options=compiler_options())
    first, second = (jax.device_get(step(model, *arguments)) for _ in range(2))
    same = jax.tree.map(np.array_equal, first, second)
    loss, gradients = first
    return KnownStep(float(loss), float(optax.tree.norm(gradients["params"])), all(jax.tree.leaves(same)))


def _loss(model: Any, variables: Any, images: Array, labels: Array) -> Array:
    logits, _ = model.apply(variables, images, train=True, mutable=["batch_stats"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def _waves(shape: tuple[int, ...], fan_in: float) -> Array:
    """Return numbers of mean square 1 / `fan_in`, the same everywhere."""
    angles = np.arange(np.prod(shape), dtype=np.float64) ** 2 % 62.8
    return jnp.asarray(np.sin(angles).reshape(shape) * np.sqrt(2 / fan_in))
