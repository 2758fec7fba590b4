"""What `convert` writes beside the tensors, so that the file is predicted and evaluated without flags."""

import json
import math
from dataclasses import replace

from resnet_jax.data.image import preprocessing_of
from resnet_jax.errors import InputError, first_line
from resnet_jax.recipe import Augment, Data, Recipe, from_json, to_json
from resnet_jax.run_dir.files import DatasetInfo
from resnet_jax.runtime.strict_json import parse_json
from resnet_jax.weights.state_dict import TensorFile

# Values of an image: beyond it is no image but an attack on memory
_MAX_VALUES = 1 << 28


def evaluation_recipe(recipe: Recipe) -> Recipe:
    """Return what of a recipe an evaluation needs: network, loss and preprocessing."""
    known = preprocessing_of(recipe.data).known()
    model = replace(recipe.model, pretrained=None)
    return Recipe(model=model, loss=recipe.loss, data=Data(**known, name=""), augment=Augment(crop_padding=0))


def write_metadata(recipe: Recipe, dataset: DatasetInfo) -> dict[str, str]:
    """Return the metadata of a file with the weights of a recipe."""
    return {
        "recipe": to_json(evaluation_recipe(recipe)),
        "image_shape": json.dumps(dataset.image_shape),
        "classes": json.dumps(dataset.classes),
    }


def read_metadata(found: TensorFile) -> tuple[Recipe, DatasetInfo] | None:
    """Return recipe and data set of a file that `write_metadata` described, or None; no network is ever imported.

    Raises:
        InputError: The metadata are damaged, or describe a network of another size.
    """
    metadata = found.metadata or {}
    if "recipe" not in metadata:
        return None
    try:
        recipe = from_json(metadata["recipe"], "its recipe")
        shape, classes = (tuple(parse_json(metadata[name])) for name in ("image_shape", "classes"))
        if not classes or any(not isinstance(name, str) for name in classes):
            raise ValueError("its classes are no names")
        if len(shape) not in (2, 3, 4) or any(type(n) is not int or n < 1 for n in shape):
            raise ValueError("its image shape is no list of numbers from 1")
        depths = dict(recipe.model.fields).get("depths", ())
        # Building a network takes time for each block
        if math.prod(shape) > _MAX_VALUES or not isinstance(depths, tuple) or sum(depths) > len(found.tensors):
            raise ValueError("its network or images are too large for its tensors")
    except (ValueError, KeyError, TypeError) as error:
        hint = "name the network with --model, and its preprocessing"
        raise InputError(f"{found.path}: the metadata are damaged ({first_line(error)}); {hint}") from error
    if ":" in recipe.model.name:
        return None
    return evaluation_recipe(recipe), DatasetInfo(classes, shape, train_size=1, data_dir="")
