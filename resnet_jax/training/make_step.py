"""The step of a setup: `train_step` with all its parts."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax import Array

from resnet_jax.input_pipeline.preprocess import make_preprocess
from resnet_jax.optim.gradient import make_gradient_rule
from resnet_jax.optim.masks import frozen_mask
from resnet_jax.parallel.grad_accumulation import accumulate_gradients
from resnet_jax.parallel.sharding import replicate, replicated
from resnet_jax.recipe import Recipe, in_steps
from resnet_jax.runtime.compiler_options import compiler_options
from resnet_jax.training.distillation import taught_step
from resnet_jax.training.init import random_keys, shardings
from resnet_jax.training.network import abstract_params
from resnet_jax.training.setup import TrainSetup, microbatch_unit
from resnet_jax.training.state import update_ema
from resnet_jax.training.step import make_objective, train_step


def step_key(setup: TrainSetup) -> Array:
    """Return the second of the `random_keys`, on the devices.

    The key is an argument of the step and not compiled into it: one program serves all seeds.
    """
    return jax.random.wrap_key_data(replicate(jax.random.key_data(random_keys(setup.recipe)[1]), setup.mesh))


def step_constants(setup: TrainSetup) -> tuple[Any, ...]:
    """Return what each step reads and none changes, on the devices: `step_key` and the teacher's variables, if any."""
    teacher = () if setup.teacher is None else (replicate(setup.teacher.variables, setup.mesh),)
    return step_key(setup), *teacher


def train_size_at(recipe: Recipe, train_size: int, step: int) -> int | None:
    """Return the height and width in pixels of the images of a step; None if the recipe leaves them."""
    a = recipe.augment
    starts = [round(in_steps(recipe, time, train_size)) for time in a.progressive_starts]
    stages = zip(starts, a.progressive_sizes, strict=True)
    return next((size for start, size in reversed([*stages]) if step >= start), None)


def make_train_step(setup: TrainSetup, image_size: int | None = None, *, jit: bool = True) -> Any:
    """Return the step of a setup: (state, step input, *`step_constants`) -> (state, sums).

    It is the same function for all seeds. Jitted, the state is donated.

    Args:
        setup: of the run.
        image_size: height and width in pixels to which training images are resized.
        jit: return the jitted function, or the plain one for other transformations.
    """
    recipe, task, classes = setup.recipe, setup.task, len(setup.dataset.classes)
    freeze = recipe.optimizer.freeze
    frozen = frozen_mask(abstract_params(setup.model, setup.dataset), freeze) if freeze else None
    ema = partial(update_ema, decay=recipe.ema_decay, every=recipe.ema_update_every, warmup=recipe.ema_warmup)
    objective = make_objective(setup.model, task.loss, frozen)
    step: Callable[..., Any] = partial(
        train_step,
        objective=objective,
        optimizer=setup.optimizer,
        preprocess=make_preprocess(
            recipe,
            setup.dataset.train_size,
            classes,
            task.targets.to_soft,
            image_size=image_size,
            transform=setup.transform,
            fill=task.targets.fill,
        ),
        metrics={name: task.metrics[name] for name in task.train_metrics},
        accumulate=accumulate_gradients(setup.mesh, setup.grad_accum_steps, microbatch_unit(setup)),
        gradient_rule=make_gradient_rule(recipe.optimizer, given="optimizer" in setup.given),
        update_ema=ema if recipe.ema_decay else None,
        skip_nonfinite=recipe.on_nonfinite == "skip",
    )
    assert (setup.teacher is None) == (recipe.distill.teacher is None), "`with_teacher` loads it"
    if setup.teacher is not None:
        step = taught_step(step, objective, setup.teacher, recipe)
    if not jit:
        return step
    out = shardings(setup), replicated(setup.mesh)
    return jax.jit(step, donate_argnums=0, out_shardings=out, compiler_options=compiler_options())
