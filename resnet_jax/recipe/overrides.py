"""Change the length of a recipe from epochs to steps or back, with all times that depend on it."""

import dataclasses
from collections.abc import Sequence

from resnet_jax.recipe.fields import TIMES, Recipe


def unset_other_length(recipe: Recipe, before: Recipe, words: Sequence[str] = ()) -> Recipe:
    """Let --epochs replace a recipe's steps, and --steps its epochs, if only one of the two was given.

    Times have the unit of the length, so they keep their fraction of the run: 3 epochs of warm-up in 30 become 30
    steps in 300. Times that differ from the recipe `before`, or that `words` name, already have the new unit.
    """
    if recipe.epochs is None or recipe.steps is None:
        return recipe
    if recipe.epochs == before.epochs:
        return _rescale(dataclasses.replace(recipe, epochs=None), before, recipe.steps, recipe.epochs or 1, words)
    if recipe.steps == before.steps:
        return _rescale(dataclasses.replace(recipe, steps=None), before, recipe.epochs, recipe.steps or 1, words)
    return recipe


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
