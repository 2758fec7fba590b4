"""Knowledge distillation: a trained network, the teacher, takes part in the loss of another one.

The teacher runs in the program of the step, on the images of the step, without gradients. Its variables are an argument
of the step: they are neither part of the state, nor saved, nor changed.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from resnet_jax.input_pipeline.device_input import StepInput
from resnet_jax.input_pipeline.sampler import Batch
from resnet_jax.recipe import Data, Distill, Recipe
from resnet_jax.tasks.losses import distillation
from resnet_jax.training.state import TrainState
from resnet_jax.training.step import Objective
from resnet_jax.weights.load import Variables


class Teacher(NamedTuple):
    """A trained network that another one learns from."""

    model: nn.Module
    variables: Variables
    """"params" and "batch_stats", as NumPy arrays."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Those of its images; one number, or one per channel."""
    digest: str
    """SHA-256 of network, variables, mean and std."""
    notes: tuple[str, ...] = ()


def teacher_logits(teacher: Teacher, data: Data, variables: Variables, images: Array) -> Array:
    """Return the logits (b, k) of a teacher on images that are normalised by the mean and std of a recipe.

    Args:
        teacher: network, mean and std.
        data: of the recipe.
        variables: of the teacher, on the devices.
        images: (b, spatial..., c).
    """
    if (teacher.mean, teacher.std) != (data.mean, data.std):
        mean, std, its_mean, its_std = (_per_channel(v, images) for v in (data.mean, data.std, *teacher[2:4]))
        images = images * (std / its_std) + (mean - its_mean) / its_std
    return cast(Array, teacher.model.apply(variables, images, train=False))


def taught_step(step: Callable[..., Any], objective: Objective, teacher: Teacher, recipe: Recipe) -> Callable[..., Any]:
    """Return a step that is also given a teacher's variables, from one that learns an objective without the teacher."""

    def taught(state: TrainState, inputs: StepInput, key: Array, variables: Variables) -> Any:
        logits = partial(teacher_logits, teacher, recipe.data, variables)
        return step(state, inputs, key, objective=distilled(objective, logits, recipe.distill))

    return taught


def _per_channel(values: tuple[float, ...], images: Array) -> Array:
    return jnp.asarray(np.broadcast_to(values, images.shape[-1:]).reshape((1,) * (images.ndim - 1) + (-1,)), float)


def distilled(objective: Objective, teacher: Callable[[Array], Array], distill: Distill) -> Objective:
    """Return an objective whose losses are in part the distances from a teacher's outputs.

    Args:
        objective: losses (b,), outputs (b, k) and statistics of a batch.
        teacher: images (b, spatial..., c) of the batch -> logits (b, k).
        distill: weight and kind of the distance.
    """
    distance, weight = partial(distillation, temperature=distill.temperature, hard=distill.hard), distill.weight

    def with_teacher(
        params: dict[str, Any], batch_stats: dict[str, Any], batch: Batch, rngs: dict[str, Array]
    ) -> tuple[Any, Any]:
        losses, (outputs, updated) = objective(params, batch_stats, batch, rngs)
        distances = distance(outputs, teacher(jnp.asarray(batch.image)))
        return (1 - weight) * losses + weight * distances, (outputs, updated)

    return with_teacher
