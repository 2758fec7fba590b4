"""Learning rate and optimiser of a recipe, from optax."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from resnet_jax.errors import unknown
from resnet_jax.recipe import Optimizer, Recipe, in_steps, total_steps


def learning_rate(recipe: Recipe, train_size: int) -> optax.Schedule:
    """Learning rate by step: linear warm-up (Goyal et al. 2017, 2.2), then the shape (cosine: Loshchilov 2017, 3)."""
    schedule, peak = recipe.schedule, recipe.optimizer.lr
    warmup = round(in_steps(recipe, schedule.warmup, train_size))
    rest = max(1, total_steps(recipe, train_size) - warmup)
    drops: dict[int, float] = {}  # of a very short run, two milestones may round to the same step
    for time in schedule.milestones:
        step = round(in_steps(recipe, time, train_size)) - warmup
        drops[step] = drops.get(step, 1.0) * schedule.factor
    shapes: dict[str, Callable[[], optax.Schedule]] = {
        "cosine": lambda: optax.cosine_decay_schedule(peak, rest, schedule.final),
        "steps": lambda: optax.piecewise_constant_schedule(peak, drops),
        "constant": lambda: optax.constant_schedule(peak),
    }
    if schedule.name not in shapes:
        raise unknown("schedule.name", schedule.name, shapes)
    after = shapes[schedule.name]()
    if warmup == 0:
        return after
    rise = optax.linear_schedule(schedule.warmup_from * peak, peak, warmup)
    return optax.join_schedules([rise, after], [warmup])


def _last_name(path: tuple[Any, ...]) -> str:
    return path[-1].key


# Whether the parameter at a path decays, by the recipe's optimizer.decay_scope
DECAY_SCOPES: dict[str, Callable[[tuple[Any, ...]], bool]] = {
    "all": lambda path: True,
    "no_norm": lambda path: _last_name(path) == "kernel" or path[0].key == "head",
    "kernels": lambda path: _last_name(path) == "kernel",
}


def decay_mask(params: Any, scope: str) -> Any:
    """A tree like `params` of bools: which parameters decay. Raises InputError for an unknown scope."""
    if scope not in DECAY_SCOPES:
        raise unknown("optimizer.decay_scope", scope, DECAY_SCOPES)
    return jax.tree_util.tree_map_with_path(lambda path, _: DECAY_SCOPES[scope](path), params)


def sgd(optimizer: Optimizer, schedule: optax.Schedule) -> optax.GradientTransformation:
    """SGD as PyTorch and the papers write it: decay joins the gradient, momentum comes before the learning rate."""
    return optax.chain(
        optax.add_decayed_weights(
            optimizer.weight_decay, mask=lambda params: decay_mask(params, optimizer.decay_scope)
        ),
        optax.sgd(schedule, momentum=optimizer.momentum or None, nesterov=optimizer.nesterov),
    )
