"""Training on arrays in memory."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import ArrayLike

from resnet_jax.data.source import sources_from_arrays
from resnet_jax.model.zoo import published
from resnet_jax.recipe import Recipe
from resnet_jax.train.run import Result, train_recipe

Arrays = tuple[ArrayLike, ArrayLike]


def fit(
    recipe: Recipe, train: Arrays, test: Arrays, out: Path, *, classes: tuple[str, ...] | None = None, **options: Any
) -> Result:
    """Trains a recipe on (images, labels) in memory, as `train_recipe` does on a data set, and with its options.

    Images are uint8 (n, h, w) or (n, h, w, c); for a network of sequences (n, l) or (n, l, c), for one of video
    (n, t, h, w) or (n, t, h, w, c). Labels are integers (n,) from 0 or, for the losses "multilabel" and
    "mean_squared_error", numbers (n, k), of which floats may be (n,); `classes` are the names of classes or outputs, or
    else their numbers. The recipe's `data.name` becomes "arrays", and its mean and std are for pixels in 0 to 1.
    Raises InputError where the arrays do not fit each other or the recipe.
    """
    spatial = len(published(recipe.model.name).input_shape) - 1
    splits = sources_from_arrays(train, test, classes, spatial=spatial)
    return train_recipe(replace(recipe, data=replace(recipe.data, name="arrays")), out, splits=splits, **options)
