"""Preprocessing of a training batch on the devices: augmentation, normalisation, erasing and mixing.

Randomness is a function of (seed, step, example): the key of a step is folded with the row of the example.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from resnet_jax.data.augment import ImageOp, flip, map_images, normalize, pad_crop
from resnet_jax.data.augment import policies as p
from resnet_jax.data.augment.erase import cutout, random_erase
from resnet_jax.data.augment.geometry import (
    alternating_flip,
    random_resized_crop,
    random_resized_crop_nearest,
    resized_nearest,
)
from resnet_jax.data.augment.host_crop import crop_reader
from resnet_jax.data.augment.jitter import jitter
from resnet_jax.data.augment.mix import mix
from resnet_jax.data.augment.tables import CIFAR10, IMAGENET
from resnet_jax.data.source import Source
from resnet_jax.errors import InputError
from resnet_jax.input_pipeline.host_input import Read
from resnet_jax.input_pipeline.sampler import Batch, times_seen
from resnet_jax.recipe import Augment, Recipe

# (key of the run, step, batch of uint8 images with rows) -> the batch with float images and its targets
Preprocess = Callable[[Array, Array, Batch], Batch]
# (key of an example, image uint8, target) -> image uint8, target
Transform = Callable[[Array, Array, Any], tuple[Array, Any]]
# (targets, classes) -> soft targets float (b, k)
ToSoft = Callable[[Array, int], Array]

# Folded into the key of a step like a row number; no row has one of these
_MIX = 2**32 - 2
_ERASE = 2**32 - 3


def make_preprocess(
    recipe: Recipe,
    train_size: int,
    classes: int,
    to_soft: ToSoft | None = None,
    *,
    image_size: int | None = None,
    transform: Transform | None = None,
) -> Preprocess:
    """Return the preprocessing of a recipe.

    Args:
        recipe: names the augmentation.
        train_size: number of training images.
        classes: number of classes or outputs.
        to_soft: makes targets that mixup and CutMix can mix.
        image_size: height and width in pixels to which images are resized after the augmentation; None leaves them.
        transform: of your own, applied to each uint8 image and its target after the recipe's augmentation.
    """
    a, data = recipe.augment, recipe.data
    moves, erasers = _moves(a, image_size), _erasers(a)
    own_number = 2 + len(_image_ops(a, image_size))

    def preprocess(key: Array, step: Array, batch: Batch) -> Batch:
        step_key, rows = jax.random.fold_in(key, step), jnp.asarray(batch.rows)
        images, targets = jnp.asarray(batch.image), batch.target
        if a.alternating_hflip:
            seen = times_seen(step, rows, recipe.batch_size, train_size, a.aug_repeats)
            turn, when = jax.vmap(partial(alternating_flip, key)), (jnp.asarray(batch.indices), seen)
            images, targets = turn(images, *when), turn(targets, *when) if jnp.ndim(targets) > 2 else targets
        keys = jax.vmap(partial(jax.random.fold_in, step_key))(rows)
        for key_of, image_op, target_op in moves:
            own = jax.vmap(key_of)(keys)
            images = jax.vmap(image_op)(own, images)
            if target_op is not None and jnp.ndim(targets) > 2:
                targets = jax.vmap(partial(_on_target, target_op))(own, targets)
        if transform is not None:
            own = jax.vmap(partial(jax.random.fold_in, data=own_number))(keys)
            images, targets = jax.vmap(transform)(own, images, targets)
        images = normalize(images, data.mean, data.std)
        for number, eraser in enumerate(erasers):
            images = map_images(jax.random.fold_in(step_key, _ERASE - number), images, eraser, rows)
        if to_soft is not None and (a.mixup_alpha or a.cutmix_alpha):
            images, targets = _mix(a, jax.random.fold_in(step_key, _MIX), images, to_soft(targets, classes))
        return batch._replace(image=images, target=targets)

    return preprocess


class _Move(NamedTuple):
    """An augmentation of uint8 images, and what it does to targets (h, w) or (h, w, c); others stay."""

    key_of: Callable[[Array], Array]
    """Key of an example to that of the augmentation."""
    image_op: ImageOp
    target_op: ImageOp | None


def _moves(a: Augment, image_size: int | None) -> list[_Move]:
    """Return the augmentations of uint8 images in order."""
    moves: list[_Move] = []
    if a.crop_padding:
        op = partial(pad_crop, pad=a.crop_padding, mode=a.pad_mode)
        moves.append(_Move(lambda key: jax.random.split(key)[0], op, op))
    if a.hflip:
        moves.append(_Move(lambda key: jax.random.split(key)[1], flip, flip))
    # Numbers 0 and 1 belong to the two keys of the split
    numbered = enumerate(_image_ops(a, image_size), 2)
    return [*moves, *(_Move(partial(jax.random.fold_in, data=number), *ops) for number, ops in numbered)]


def _on_target(op: ImageOp, key: Array, target: Array) -> Array:
    """Apply an operation on (h, w, c) to a target (h, w) or (h, w, ...)."""
    moved = op(key, target.reshape(*target.shape[:2], -1))
    return moved.reshape(*moved.shape[:2], *target.shape[2:])


def require_movable_target(a: Augment, image: np.ndarray, target: Any) -> None:
    """Raise InputError if an augmentation would move an image and not its target, an array of two or more axes."""
    if np.ndim(target) < 2:
        return
    if a.crop_padding and a.pad_mode == "zero":
        raise InputError("augment.crop_padding adds black, which has no target: set augment.pad_mode to reflect")
    moving = {
        "policy": a.policy != "none",
        "cutmix_alpha": a.cutmix_alpha,
        "rrc_from": a.random_resized_crop and a.rrc_from == "original",
    }
    if np.shape(target)[:2] != image.shape[:2]:
        names = ("crop_padding", "hflip", "alternating_hflip", "random_resized_crop", "progressive_sizes")
        moving |= {name: getattr(a, name) for name in names}
    for name in (name for name, value in moving.items() if value):
        raise InputError(
            f"augment.{name} is {getattr(a, name)}, which moves images but not targets of shape {np.shape(target)}:"
            " leave it out, or move both by transform="
        )


def _image_ops(a: Augment, image_size: int | None) -> list[tuple[ImageOp, ImageOp | None]]:
    """Return the operations on uint8 images after padded crop and flip; if they move pixels, also those on targets."""
    ops: list[tuple[ImageOp, ImageOp | None]] = []
    if a.random_resized_crop and a.rrc_from == "resized":
        crop = partial(_random_resized_crop, a)
        ops.append((partial(crop, random_resized_crop), partial(crop, random_resized_crop_nearest)))
    if policy := _policy(a):
        ops.append((policy, None))
    if a.brightness or a.contrast or a.saturation or a.hue:
        strengths = partial(jitter, brightness=a.brightness, contrast=a.contrast)
        ops.append((partial(strengths, saturation=a.saturation, hue=a.hue), None))
    if image_size is not None:
        ops.append((partial(_resize, image_size), partial(_resize_nearest, image_size)))
    return ops


def _random_resized_crop(a: Augment, crop: Callable[..., Array], key: Array, image: Array) -> Array:
    size = image.shape[:2] if a.train_crop_size is None else (a.train_crop_size, a.train_crop_size)
    return crop(key, image, (size[0], size[1]), a.rrc_scale, a.rrc_ratio)


def _resize(size: int, key: Array, image: Array) -> Array:
    """Resize the whole image; `key` is not used."""
    pixels = jax.image.resize(image.astype(jnp.float32), (size, size, image.shape[-1]), "bilinear")
    return jnp.round(pixels).astype(jnp.uint8)


def _resize_nearest(size: int, key: Array, target: Array) -> Array:
    """Resize a target (h, w, c) as `_resize` does an image, without interpolation; `key` is not used."""
    return resized_nearest(target, jnp.array([0, 0, *target.shape[:2]]), (size, size))


def _policy(a: Augment) -> ImageOp | None:
    shared: dict[str, Any] = {"interpolation": a.policy_interpolation, "fill": a.policy_fill}
    strength: dict[str, Any] = {"count": a.num_ops, "magnitude": a.magnitude, "std": a.magnitude_std}
    policies: dict[str, ImageOp | None] = {
        "none": None,
        "randaugment": partial(p.randaugment, **strength, **shared),
        "randaugment_inc": partial(p.randaugment_inc, **strength, **shared),
        "trivialaugment_wide": partial(p.trivialaugment_wide, **shared),
        "autoaugment_imagenet": partial(p.autoaugment, policy=IMAGENET, **shared),
        "autoaugment_cifar10": partial(p.autoaugment, policy=CIFAR10, **shared),
    }
    return policies[a.policy]


def _erasers(a: Augment) -> list[ImageOp]:
    """Return the operations on normalised images, whose mean is 0."""
    erasers: list[ImageOp] = []
    if a.cutout:
        erasers.append(partial(cutout, size=a.cutout))
    if a.erase_prob:
        erasers.append(partial(random_erase, probability=a.erase_prob, area=a.erase_scale, ratio=a.erase_ratio))
    return erasers


def _mix(a: Augment, key: Array, images: Array, targets: Array) -> tuple[Array, Array]:
    return mix(
        key,
        images,
        targets,
        mixup_alpha=a.mixup_alpha,
        cutmix_alpha=a.cutmix_alpha,
        probability=a.mix_prob,
        mix_switch_prob=a.mix_switch_prob,
    )


def original_crop(recipe: Recipe, source: Source) -> Read | None:
    """Return a reader of random crops of the original images, if the recipe crops originals."""
    a, data = recipe.augment, recipe.data
    if not (a.random_resized_crop and a.rrc_from == "original"):
        return None
    size = a.train_crop_size or data.image_size
    assert size is not None, "checked with the recipe"
    return crop_reader(source, recipe.seed, size, a.rrc_scale, a.rrc_ratio, data.interpolation)
