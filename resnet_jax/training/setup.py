"""A recipe made concrete: data, network, task, optimiser and devices, all checked before anything is written."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import optax
from flax import linen as nn
from jax.sharding import Mesh

from resnet_jax.data.permutation import Draws
from resnet_jax.input_pipeline.preprocess import Transform
from resnet_jax.models.backbone import backbone_of
from resnet_jax.models.norm import BatchNorm
from resnet_jax.optim.optimizers import make_optimizer
from resnet_jax.optim.schedules import learning_rate
from resnet_jax.parallel.grad_accumulation import require_accumulation_steps, valid_accumulation_steps
from resnet_jax.parallel.sharding import ParamSharding, data_mesh, require_divisible_batch
from resnet_jax.recipe import Recipe, to_json, total_steps
from resnet_jax.run_dir.files import DatasetInfo
from resnet_jax.tasks.make import make_task, with_auto_weights
from resnet_jax.tasks.metric import Metric
from resnet_jax.tasks.task import Task, monitoring, select_metrics
from resnet_jax.training.consistency import (
    require_channels,
    require_input_kind,
    require_mixable,
    require_outputs,
    require_weights,
)
from resnet_jax.training.distillation import Teacher
from resnet_jax.training.network import abstract_params, build_network
from resnet_jax.training.options import RunOptions


class Parts(NamedTuple):
    """Parts of a run passed as values instead of being named in the recipe."""

    model: nn.Module | None = None
    task: Task | None = None
    optimizer: Callable[[optax.Schedule], optax.GradientTransformation] | None = None
    schedule: optax.Schedule | None = None
    transform: Transform | None = None

    def given(self) -> dict[str, Any]:
        """Return what the record of a run says of each part that is given: the facts of the task, names of others."""
        parts = {name: value for name, value in self._asdict().items() if value is not None}
        return {name: value.facts if isinstance(value, Task) else _name_of(value) for name, value in parts.items()}


def _name_of(value: Any) -> str:
    """Return the name of a function, or that of the type of a value."""
    return getattr(value, "__name__", "") or type(value).__name__


class TrainSetup(NamedTuple):
    """What a run needs and does not change."""

    recipe: Recipe
    dataset: DatasetInfo
    mesh: Mesh
    model: nn.Module
    task: Task
    metrics: Mapping[str, Metric]
    """Metrics on the evaluation split."""
    schedule: optax.Schedule
    optimizer: optax.GradientTransformation
    transform: Transform | None
    steps: int
    """Length of the recipe in steps."""
    grad_accum_steps: int
    param_sharding: ParamSharding
    given: Mapping[str, Any]
    """Parts that were given as values, as `Parts.given` describes them."""
    teacher: Teacher | None = None
    """That of `recipe.distill`; only training needs it, `with_teacher` loads it."""
    draws: Draws | None = None
    """How often each training example is drawn; only training needs it."""


def make_setup(
    recipe: Recipe,
    dataset: DatasetInfo,
    devices: int | None = None,
    *,
    grad_accum_steps: int = 1,
    param_sharding: ParamSharding = "replicated",
    parts: Parts = Parts(),
    metrics: tuple[str, ...] = (),
    monitor: str | None = None,
) -> TrainSetup:
    """Build everything that a run needs; devices, accumulation and sharding change nothing but rounding.

    Raises:
        InputError: Recipe, data, parts and devices do not fit each other.
    """
    require_channels(recipe, dataset)
    rate = recipe.data.sample_rate
    model = parts.model if parts.model is not None else build_network(recipe.model, len(dataset.classes), rate)
    loss = with_auto_weights(recipe.loss, dataset.class_counts, dataset.train_size, len(dataset.classes))
    task = monitoring(parts.task or make_task(loss), monitor)
    require_input_kind(recipe, model, dataset.image_shape)
    if parts.task is None:
        require_outputs(recipe, model, task)
    require_mixable(recipe, task)
    require_weights(recipe, dataset)
    schedule = parts.schedule or learning_rate(recipe, dataset.train_size)
    if parts.optimizer:
        optimizer = parts.optimizer(schedule)
    else:
        plateau = recipe.schedule.name == "plateau" and not parts.schedule
        optimizer = make_optimizer(recipe.optimizer, schedule, abstract_params(model, dataset), plateau=plateau)
    return TrainSetup(
        recipe=recipe,
        dataset=dataset,
        mesh=data_mesh(devices),
        model=model,
        task=task,
        metrics=select_metrics(task, metrics),
        schedule=schedule,
        optimizer=optimizer,
        transform=parts.transform,
        steps=total_steps(recipe, dataset.train_size),
        grad_accum_steps=grad_accum_steps,
        param_sharding=param_sharding,
        given=parts.given(),
    )


def setup_training(
    recipe: Recipe,
    dataset: DatasetInfo,
    mesh: Mesh,
    parts: Parts = Parts(),
    options: RunOptions = RunOptions(),
) -> tuple[TrainSetup, list[int]]:
    """Return the setup on these devices, and the numbers of microbatches to try until a step fits into memory.

    Raises:
        InputError: Recipe, data and devices do not fit each other.
    """
    sharding, steps = options.param_sharding, options.grad_accum_steps
    setup = make_setup(
        recipe, dataset, param_sharding=sharding, parts=parts, metrics=options.metrics, monitor=options.monitor
    )._replace(mesh=mesh)
    require_divisible_batch(recipe.batch_size, mesh)
    unit = microbatch_unit(setup)
    if steps == "auto":
        return setup, valid_accumulation_steps(recipe.batch_size, unit, mesh.size)
    require_accumulation_steps(recipe.batch_size, unit, mesh.size, steps)
    return setup._replace(grad_accum_steps=steps), [steps]


def network_name(setup: TrainSetup) -> str:
    """Return the name of the network that is trained: that of its class if it was given as a value."""
    return setup.given.get("model", setup.recipe.model.name)


def program_identity(setup: TrainSetup, *program: object) -> str | None:
    """Return what decides a program of a setup, but for arguments, devices and versions.

    `program` tells the programs of a setup apart. None if parts were given as values or are imported from elsewhere:
    their code has no name.
    """
    if setup.given or setup.teacher is not None or ":" in setup.recipe.model.name:
        return None
    # The seed is an argument of every program
    recipe, dataset = to_json(replace(setup.recipe, seed=0)), replace(setup.dataset, digest="", data_dir="")
    model = re.sub(r" at 0x[0-9a-f]+", "", repr(setup.model))
    return repr((program, recipe, dataset, model, setup.param_sharding, setup.grad_accum_steps))


def microbatch_unit(setup: TrainSetup) -> int:
    """Return the number of consecutive examples that a microbatch keeps together: BatchNorm groups, mixup pairs."""
    recipe, backbone = setup.recipe, backbone_of(setup.model)
    norm = getattr(backbone or setup.model, "norm", None)
    # A network of one's own may normalise over the whole batch
    grouped = norm is None or (getattr(norm, "func", norm) is BatchNorm and not recipe.model.freeze_norm)
    group = (
        (recipe.batch_size if backbone is None else recipe.model.norm_group_size or recipe.batch_size) if grouped else 1
    )
    return math.lcm(group, 2) if recipe.augment.mixup_alpha or recipe.augment.cutmix_alpha else group
