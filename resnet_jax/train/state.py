"""The state of training: arrays only."""

from functools import partial

import jax.numpy as jnp
import optax
from flax import struct
from jax import Array

from resnet_jax.errors import unknown
from resnet_jax.model.blocks import SHORTCUTS
from resnet_jax.model.norm import BatchNorm
from resnet_jax.model.resnet import ResNet
from resnet_jax.model.zoo import create
from resnet_jax.recipe import Model


class TrainState(struct.PyTreeNode):
    """Everything that a step changes. `step` counts the steps taken and is the only clock."""

    step: Array  # () int32
    params: dict
    batch_stats: dict
    opt_state: optax.OptState


def build_model(model: Model, num_classes: int) -> ResNet:
    """The network of a recipe; raises InputError for a name that does not exist."""
    norm = partial(BatchNorm, group=model.norm_group, momentum=model.norm_momentum)
    network = create(
        model.name,
        num_classes=num_classes,
        norm=norm,
        zero_init=model.zero_init,
        dtype=jnp.dtype(model.dtype),
    )
    if model.shortcut is None:
        return network
    if model.shortcut not in SHORTCUTS:
        raise unknown("model.shortcut", model.shortcut, SHORTCUTS)
    return network.clone(shortcut=SHORTCUTS[model.shortcut])


def init_state(
    key: Array, model: ResNet, optimizer: optax.GradientTransformation, image_shape: tuple[int, ...]
) -> TrainState:
    """The state before the first step, for images of `image_shape` (h, w, c)."""
    variables = model.init(key, jnp.zeros((1, *image_shape), jnp.float32))
    params = variables["params"]
    return TrainState(jnp.zeros((), jnp.int32), params, variables["batch_stats"], optimizer.init(params))
