"""The times of a recipe, in epochs or in steps like its length."""

from resnet_jax.recipe.fields import Recipe

# The fields that are in epochs or steps, like the length
TIMES = (
    "schedule.warmup",
    "schedule.milestones",
    "schedule.decay_every",
    "schedule.restart_every",
    "augment.progressive_starts",
)


def total_steps(recipe: Recipe, train_size: int) -> int:
    """Return the length of a run in steps, at least 1."""
    return max(1, round(in_steps(recipe, recipe.steps or recipe.epochs or 0, train_size)))


def in_steps(recipe: Recipe, time: float, train_size: int) -> float:
    """Convert a time of the recipe, in epochs or steps like its length, to steps."""
    return time if recipe.epochs is None else time * train_size / recipe.batch_size
