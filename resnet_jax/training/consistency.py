"""Whether recipe, data, network and task fit each other: each function raises InputError if they do not."""

from dataclasses import replace

from flax import linen as nn

from resnet_jax.errors import InputError
from resnet_jax.models.backbone import BackboneModel, Network
from resnet_jax.models.resnet import ResNet
from resnet_jax.recipe import Augment, Recipe, fields_of
from resnet_jax.run_dir.files import DatasetInfo
from resnet_jax.tasks.task import Task

# Kinds of data by the axes of an example
_KINDS = {2: "sequences", 3: "images", 4: "video"}
# Augmentations that change all frames of a video alike
_OF_VIDEO = (
    *("crop_padding", "pad_mode", "hflip", "random_resized_crop", "rrc_scale", "rrc_ratio", "train_crop_size"),
    *("policy", "num_ops", "magnitude", "magnitude_std", "policy_interpolation", "policy_fill"),
    *("brightness", "contrast", "saturation", "hue"),
)


def require_outputs(recipe: Recipe, model: nn.Module, task: Task) -> None:
    """Raise InputError if the outputs of a published network are not what the recipe's loss is for."""
    predicts = model.predicts if isinstance(model, BackboneModel) else "images" if isinstance(model, ResNet) else None
    wanted = {"dense": "pixels", "boxes": "boxes"}.get(task.answers, "images")
    if predicts in (None, wanted):
        return
    hint = {
        "images": f"take a network such as {'unet_resnet18' if wanted == 'pixels' else 'retinanet_resnet18_fpn'}",
        "pixels": "set loss.name to pixel_cross_entropy or dice",
        "boxes": "set loss.name to detection",
    }[predicts]
    name, loss = recipe.model.name, recipe.loss.name
    raise InputError(
        f"model.name is {name}, which predicts {predicts}, and loss.name {loss} is no loss of them: {hint}"
    )


def require_channels(recipe: Recipe, dataset: DatasetInfo) -> None:
    """Raise InputError if mean or std have another number of channels than the data."""
    channels = dataset.image_shape[-1]
    for name, values in (("data.mean", recipe.data.mean), ("data.std", recipe.data.std)):
        if len(values) not in (1, channels):
            raise InputError(f"{name} has {len(values)} numbers; {recipe.data.name} has {channels} channels")


def require_mixable(recipe: Recipe, task: Task) -> None:
    """Raise InputError if the recipe mixes targets that cannot be mixed."""
    for name in ("mixup_alpha", "cutmix_alpha"):
        if getattr(recipe.augment, name) and task.targets.to_soft is None:
            raise InputError(f"augment.{name} mixes targets, which this task's cannot be: leave it out")


def require_weights(recipe: Recipe, dataset: DatasetInfo) -> None:
    """Raise InputError if the loss has weights for another number of classes."""
    classes = len(dataset.classes)
    for name in ("class_weights", "pos_weight"):
        weights = getattr(recipe.loss, name)
        if weights != "auto" and len(weights) not in (0, classes):
            raise InputError(f"loss.{name} has {len(weights)} numbers; {recipe.data.name} has {classes:,} classes")


def require_input_kind(recipe: Recipe, model: nn.Module, shape: tuple[int, ...]) -> None:
    """Raise InputError if the network, or an augmentation, is for another kind of data."""
    given = _KINDS[len(shape)]
    wanted = _KINDS[len(model.input_shape)] if isinstance(model, Network) else given
    if wanted != given:
        raise InputError(f"model.name is {recipe.model.name}, for {wanted}; the data are {given}: take another network")
    a = recipe.augment
    plain = a if given == "images" else Augment(crop_padding=0, aug_repeats=a.aug_repeats)
    if given == "video":
        plain = replace(plain, **{name: getattr(a, name) for name in _OF_VIDEO})
    known = dict(fields_of(replace(plain, time_shift=a.time_shift if given == "sequences" else 0.0)))
    for name, value in fields_of(a):
        if value != known[name]:
            kind = "sound" if name == "time_shift" else "images"
            raise InputError(f"augment.{name} is {value}, for {kind}; the data are {given}: set it to {known[name]}")
