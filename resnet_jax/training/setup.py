"""A recipe made concrete: data, network, task, optimiser and devices, all checked before anything is written."""

import math
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import Array
from jax.sharding import Mesh

from resnet_jax.errors import InputError, first_line
from resnet_jax.input_pipeline.device_input import gather_batch
from resnet_jax.input_pipeline.preprocess import Transform, make_preprocess
from resnet_jax.models.norm import BatchNorm
from resnet_jax.models.resnet import ResNet
from resnet_jax.optim.masks import frozen_mask
from resnet_jax.optim.optimizers import make_optimizer
from resnet_jax.optim.schedules import learning_rate
from resnet_jax.parallel.grad_accumulation import (
    accumulate_gradients,
    require_accumulation_steps,
    valid_accumulation_steps,
)
from resnet_jax.parallel.sharding import (
    ParamSharding,
    batch_sharding,
    data_mesh,
    replicate,
    replicated,
    require_divisible_batch,
    shard_leaf,
)
from resnet_jax.recipe import Augment, Recipe, fields_of, in_steps, total_steps
from resnet_jax.run_dir.files import DatasetInfo
from resnet_jax.runtime.compiler_options import compiler_options
from resnet_jax.tasks.make import make_task
from resnet_jax.tasks.metrics import Metric, select
from resnet_jax.tasks.task import Task
from resnet_jax.training.network import build_network
from resnet_jax.training.state import TrainState, first_state, init_state
from resnet_jax.training.step import make_objective, train_step
from resnet_jax.weights.load import Variables

# Kinds of data by the axes of an example
_KINDS = {2: "sequences", 3: "images", 4: "video"}
# Compiler options for what runs once, so that compiling it is what takes time
_QUICKLY = {"xla_backend_optimization_level": 1}


class Parts(NamedTuple):
    """Parts of a run that the caller gives as values instead of naming them in the recipe."""

    model: nn.Module | None = None
    task: Task | None = None
    optimizer: Callable[[optax.Schedule], optax.GradientTransformation] | None = None
    schedule: optax.Schedule | None = None
    transform: Transform | None = None

    def given(self) -> tuple[str, ...]:
        """Return the names of the parts that are given."""
        return tuple(name for name, value in self._asdict().items() if value is not None)


class BatchLayout(NamedTuple):
    """How a batch lies on the devices."""

    mesh: Mesh
    grad_accum_steps: int | Literal["auto"] = 1
    param_sharding: ParamSharding = "replicated"


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
    given: tuple[str, ...]
    """Names of the parts that were given as values."""


def make_setup(
    recipe: Recipe,
    dataset: DatasetInfo,
    devices: int | None = None,
    *,
    grad_accum_steps: int = 1,
    param_sharding: ParamSharding = "replicated",
    parts: Parts = Parts(),
    metrics: tuple[str, ...] = (),
) -> TrainSetup:
    """Build everything that a run needs; devices, accumulation and sharding change nothing but rounding.

    Raises:
        InputError: Recipe, data, parts and devices do not fit each other.
    """
    _require_channels(recipe, dataset)
    model = parts.model if parts.model is not None else build_network(recipe.model, len(dataset.classes))
    task = parts.task or make_task(recipe.loss)
    require_input_kind(recipe, model, dataset.image_shape)
    _require_mixable(recipe, task)
    schedule = parts.schedule or learning_rate(recipe, dataset.train_size)
    if parts.optimizer:
        optimizer = parts.optimizer(schedule)
    else:
        optimizer = make_optimizer(recipe.optimizer, schedule, abstract_params(model, dataset))
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


def select_metrics(task: Task, names: tuple[str, ...]) -> dict[str, Metric]:
    """Return the metrics that a run reports; raise InputError for a name that the task does not have."""
    for name in names:
        if name not in task.metrics:
            raise InputError(f"unknown metric {name!r}; --metrics takes {', '.join(task.metrics)}")
    # The monitored one is always measured, for it picks the best checkpoint
    monitored = tuple(name for name, metric in task.metrics.items() if task.monitor in metric.display)
    return select(task.metrics, (*monitored, *(names or task.default_metrics)))


def setup_training(
    recipe: Recipe, dataset: DatasetInfo, layout: BatchLayout, parts: Parts = Parts(), metrics: tuple[str, ...] = ()
) -> tuple[TrainSetup, list[int]]:
    """Return the setup on these devices, and the numbers of microbatches to try until a step fits into memory.

    Raises:
        InputError: Recipe, data and devices do not fit each other.
    """
    setup = make_setup(recipe, dataset, param_sharding=layout.param_sharding, parts=parts, metrics=metrics)
    setup = setup._replace(mesh=layout.mesh)
    require_divisible_batch(recipe.batch_size, layout.mesh)
    unit, size = microbatch_unit(setup), layout.mesh.size
    if layout.grad_accum_steps == "auto":
        return setup, valid_accumulation_steps(recipe.batch_size, unit, size)
    require_accumulation_steps(recipe.batch_size, unit, size, layout.grad_accum_steps)
    return setup._replace(grad_accum_steps=layout.grad_accum_steps), [layout.grad_accum_steps]


def microbatch_unit(setup: TrainSetup) -> int:
    """Return the number of consecutive examples that a microbatch keeps together: BatchNorm groups, mixup pairs."""
    recipe, norm = setup.recipe, getattr(setup.model, "norm", None)
    # A network of one's own may normalise over the whole batch
    grouped = norm is None or (getattr(norm, "func", norm) is BatchNorm and not recipe.model.freeze_norm)
    own = not isinstance(setup.model, ResNet)
    group = (recipe.batch_size if own else recipe.model.norm_group_size or recipe.batch_size) if grouped else 1
    return math.lcm(group, 2) if recipe.augment.mixup_alpha or recipe.augment.cutmix_alpha else group


def _require_channels(recipe: Recipe, dataset: DatasetInfo) -> None:
    channels = dataset.image_shape[-1]
    for name, values in (("data.mean", recipe.data.mean), ("data.std", recipe.data.std)):
        if len(values) not in (1, channels):
            raise InputError(f"{name} has {len(values)} numbers; {recipe.data.name} has {channels} channels")


def _require_mixable(recipe: Recipe, task: Task) -> None:
    for name in ("mixup_alpha", "cutmix_alpha"):
        if getattr(recipe.augment, name) and task.targets.to_soft is None:
            raise InputError(f"augment.{name} mixes targets, which this task's cannot be: leave it out")


def require_input_kind(recipe: Recipe, model: nn.Module, shape: tuple[int, ...]) -> None:
    """Raise InputError if the network, or an augmentation, is for another kind of data."""
    given = _KINDS[len(shape)]
    wanted = _KINDS[len(model.input_shape)] if isinstance(model, ResNet) else given
    if wanted != given:
        raise InputError(f"model.name is {recipe.model.name}, for {wanted}; the data are {given}: take another network")
    if given == "images":
        return
    plain = dict(fields_of(Augment(crop_padding=0, aug_repeats=recipe.augment.aug_repeats)))
    for name, value in fields_of(recipe.augment):
        if value != plain[name]:
            raise InputError(f"augment.{name} is {value}, for images; the data are {given}: set it to {plain[name]}")


def abstract_params(model: nn.Module, dataset: DatasetInfo) -> dict:
    """Return the shapes and dtypes of the parameters without computing them."""
    return _abstract_variables(model, dataset.image_shape)["params"]


# Tracing a deep network takes a second, and a run asks several times
@lru_cache(maxsize=8)
def _abstract_variables(model: nn.Module, image_shape: tuple[int, ...]) -> dict:
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    try:
        return jax.eval_shape(partial(model.init, train=False), jax.random.key(0), image)
    except (ValueError, TypeError, ZeroDivisionError) as error:
        # In a network of your own it is your code that fails, and the traceback says where
        if not isinstance(model, ResNet):
            raise
        raise InputError(f"model: it cannot be built for images of {image_shape} ({first_line(error)})") from error


def random_keys(recipe: Recipe) -> tuple[Array, Array]:
    """Return the keys of the initial parameters and of the training steps."""
    init_key, step_key = jax.random.split(jax.random.key(recipe.seed))
    return init_key, step_key


def step_key(setup: TrainSetup) -> Array:
    """Return the data of the second of the `random_keys`, (2,) uint32, on the devices.

    The key is an argument of the step and not compiled into it: one program serves all seeds.
    """
    return replicate(jax.random.key_data(random_keys(setup.recipe)[1]), setup.mesh)


def init_fn(setup: TrainSetup, key: Array, pretrained: Variables | None = None) -> TrainState:
    """Return the state before the first step, drawn with the first of the `random_keys`; pure, to be jitted."""
    ema, shape = setup.recipe.ema_decay > 0, setup.dataset.image_shape
    return init_state(key, setup.model, setup.optimizer, shape, pretrained, ema=ema)


def init_train_state(setup: TrainSetup, pretrained: Variables | None = None) -> TrainState:
    """Return the state before the first step, on the devices."""
    on_cpu = setup.mesh.devices.flat[0].platform == "cpu"
    options = compiler_options() | (_QUICKLY if on_cpu else {})
    init = jax.jit(partial(init_fn, setup), out_shardings=shardings(setup), compiler_options=options)
    return init(random_keys(setup.recipe)[0], pretrained)


def abstract_train_state(setup: TrainSetup) -> TrainState:
    """Return the shapes, dtypes and shardings of `init_train_state` without computing it."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        _shapes(setup),
        shardings(setup),
    )


def _shapes(setup: TrainSetup) -> TrainState:
    first = partial(first_state, optimizer=setup.optimizer, ema=setup.recipe.ema_decay > 0)
    return jax.eval_shape(first, _abstract_variables(setup.model, setup.dataset.image_shape))


def shardings(setup: TrainSetup) -> TrainState:
    """Return where each array of the state lies."""
    state, everywhere = _shapes(setup), replicated(setup.mesh)
    sharding = partial(shard_leaf, mesh=setup.mesh) if setup.param_sharding == "sharded" else lambda leaf: everywhere
    placed = jax.tree.map(sharding, state)
    return placed.replace(batch_stats=jax.tree.map(lambda _: everywhere, state.batch_stats))


def train_size_at(recipe: Recipe, train_size: int, step: int) -> int | None:
    """Return the height and width in pixels of the images of a step; None if the recipe leaves them."""
    a = recipe.augment
    starts = [round(in_steps(recipe, time, train_size)) for time in a.progressive_starts]
    stages = zip(starts, a.progressive_sizes, strict=True)
    return next((size for start, size in reversed([*stages]) if step >= start), None)


def make_train_step(setup: TrainSetup, image_size: int | None = None, *, jit: bool = True) -> Any:
    """Return the step of a setup: (state, step input, `step_key`) -> (state, `StepStatus`).

    It is the same function for all seeds. Jitted, the state is donated.

    Args:
        setup: of the run.
        image_size: height and width in pixels to which training images are resized.
        jit: return the jitted function, or the plain one for other transformations.
    """
    recipe, task, classes = setup.recipe, setup.task, len(setup.dataset.classes)
    freeze = recipe.optimizer.freeze
    take = partial(
        train_step,
        objective=make_objective(setup.model, task.loss),
        optimizer=setup.optimizer,
        preprocess=make_preprocess(
            recipe,
            setup.dataset.train_size,
            classes,
            task.targets.to_soft,
            image_size=image_size,
            transform=setup.transform,
        ),
        metrics={name: task.metrics[name] for name in task.train_metrics},
        accumulate=accumulate_gradients(setup.mesh, setup.grad_accum_steps, microbatch_unit(setup)),
        frozen=frozen_mask(abstract_params(setup.model, setup.dataset), freeze) if freeze else None,
        skip_nonfinite=recipe.on_nonfinite == "skip",
        ema_decay=recipe.ema_decay,
        ema_update_every=recipe.ema_update_every,
        ema_warmup=recipe.ema_warmup,
    )
    sharding = batch_sharding(setup.mesh)
    step = lambda state, inputs, key: take(  # noqa: E731
        state,
        jax.lax.with_sharding_constraint(gather_batch(inputs), sharding),
        key=jax.random.wrap_key_data(key),
    )
    if not jit:
        return step
    out = shardings(setup), replicated(setup.mesh)
    return jax.jit(step, donate_argnums=0, out_shardings=out, compiler_options=compiler_options())
