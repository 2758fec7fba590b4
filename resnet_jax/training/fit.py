"""Train on arrays in memory."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from flax import linen as nn
from numpy.typing import ArrayLike

from resnet_jax.data.arrays import sources_from_arrays
from resnet_jax.data.datasets import refuse_resizing
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.zoo import MODELS
from resnet_jax.recipe import Recipe
from resnet_jax.training.loop import TrainResult
from resnet_jax.training.run import train
from resnet_jax.training.sources import preprocessing_of

Arrays = tuple[ArrayLike, ArrayLike]


def fit(
    recipe: Recipe,
    train_data: Arrays,
    test_data: Arrays,
    out: Path | str,
    *,
    classes: tuple[str, ...] | None = None,
    model: nn.Module | None = None,
    **options: Any,
) -> TrainResult:
    """Train a recipe on (images, targets) in memory, as `train` does on a data set.

    Args:
        recipe: its `data.name` becomes "arrays"; mean and std are for pixels in 0 to 1. Arrays are not resized.
        train_data: images uint8 (n, h, w) or (n, h, w, c), and targets: classes, integers (n,) from 0; or numbers
            (n, k), of which floats may be (n,). For a network of sequences images are (n, l) or (n, l, c), for one of
            video (n, t, h, w) or (n, t, h, w, c).
        test_data: likewise, of the same size.
        out: the run directory.
        classes: names of classes or outputs; None is their numbers.
        model: as for `train`.
        **options: the other arguments of `train`.

    Raises:
        InputError: The arrays do not fit each other or the recipe.

    Example:
        >>> fit(Recipe(), (x_train, y_train), (x_test, y_test), "runs/arrays")  # doctest: +SKIP
    """
    refuse_resizing("a pair of arrays", preprocessing_of(recipe.data))
    network = MODELS.get(recipe.model.name) if model is None else model
    spatial = len(network.input_shape) - 1 if isinstance(network, ResNet) else 2
    data = sources_from_arrays(train_data, test_data, classes, spatial=spatial)
    recipe = replace(recipe, data=replace(recipe.data, name="arrays"))
    return train(recipe, out, data=data, model=model, **options)
