"""Change the length of a recipe, in epochs or steps, with all times that depend on it."""

import dataclasses
from collections.abc import Sequence

from resnet_jax.recipe.fields import Recipe
from resnet_jax.recipe.times import TIMES


def rescale_times(recipe: Recipe, before: Recipe, words: Sequence[str] = ()) -> Recipe:
    """Let --epochs or --steps replace the length of the recipe `before`, and rescale its times.

    Times keep their fraction of the run: 3 epochs of warm-up in 30 become 30 steps in 300, or .1 epochs in 1. Times
    that differ from the recipe `before`, or that `words` name, are left as they are.
    """
    if recipe.epochs is not None and recipe.steps is not None:
        if recipe.epochs == before.epochs:
            recipe = dataclasses.replace(recipe, epochs=None)
        elif recipe.steps == before.steps:
            recipe = dataclasses.replace(recipe, steps=None)
    length, old_length = recipe.epochs or recipe.steps, before.epochs or before.steps
    if not length or not old_length or (recipe.epochs, recipe.steps) == (before.epochs, before.steps):
        return recipe
    return _rescale(recipe, before, length, old_length, words)


def _rescale(recipe: Recipe, before: Recipe, length: float, old_length: float, words: Sequence[str]) -> Recipe:
    given = {word.split("=")[0].lstrip("-").replace("_", "-") for word in words if word.startswith("--")}
    for name in TIMES:
        part, field = name.split(".")
        old = getattr(recipe, part)
        value = getattr(old, field)
        if name.replace("_", "-") in given or value != getattr(getattr(before, part), field):
            continue
        times = value if isinstance(value, tuple) else (value,)
        times = tuple(time * length / old_length for time in times)
        scaled = times if isinstance(value, tuple) else times[0]
        recipe = dataclasses.replace(recipe, **{part: dataclasses.replace(old, **{field: scaled})})
    return recipe
