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
from resnet_jax.data.augment.boxes import (
    BoxMap,
    DrawMap,
    alternating_flip_map,
    flip_map,
    pad_crop_map,
    random_resized_crop_map,
    resize_map,
    scale_jitter_map,
)
from resnet_jax.data.augment.erase import cutout, random_erase
from resnet_jax.data.augment.geometry import (
    alternating_flip,
    random_resized_crop,
    random_resized_crop_nearest,
    resized_nearest,
    scale_jitter,
    scale_jitter_nearest,
)
from resnet_jax.data.augment.host_crop import clip_reader, crop_reader
from resnet_jax.data.augment.jitter import jitter
from resnet_jax.data.augment.mix import mix
from resnet_jax.data.augment.sound import time_shift
from resnet_jax.data.augment.tables import CIFAR10, IMAGENET
from resnet_jax.data.image import preprocessing_of
from resnet_jax.data.objects import move_objects
from resnet_jax.data.source import Source, is_mask
from resnet_jax.errors import InputError
from resnet_jax.input_pipeline.host_input import Read
from resnet_jax.input_pipeline.sampler import Batch, times_seen
from resnet_jax.models.detection.objects import Objects
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
    fill: int | None = None,
) -> Preprocess:
    """Return the preprocessing of a recipe.

    Args:
        recipe: names the augmentation.
        train_size: number of training images.
        classes: number of classes or outputs.
        to_soft: makes targets that mixup and CutMix can mix.
        image_size: height and width in pixels to which images are resized after the augmentation; None leaves them.
        transform: of your own, applied to each uint8 image and its target after the recipe's augmentation.
        fill: value of targets (h, w) where the augmentation pads their images; None if they cannot be padded.
    """
    a, data = recipe.augment, recipe.data
    moves, erasers = _moves(a, image_size, fill or 0), _erasers(a)
    own_number = 2 + len(_image_ops(a, image_size, fill or 0))
    mixed = partial(mix, mixup_alpha=a.mixup_alpha, cutmix_alpha=a.cutmix_alpha)
    mixed = partial(mixed, probability=a.mix_prob, mix_switch_prob=a.mix_switch_prob)

    def preprocess(key: Array, step: Array, batch: Batch) -> Batch:
        step_key, rows = jax.random.fold_in(key, step), jnp.asarray(batch.rows)
        images, targets = jnp.asarray(batch.image), batch.target
        keys = jax.vmap(partial(jax.random.fold_in, step_key))(rows)
        if a.alternating_hflip:
            seen = times_seen(step, rows, recipe.batch_size, train_size, a.aug_repeats)
            when = jnp.asarray(batch.indices), seen
            images, targets = jax.vmap(partial(_turn, key))(images, targets, *when)
        for move in moves:
            own, before = jax.vmap(move.key_of)(keys), (images.shape[1], images.shape[2])
            op = partial(_same_for_all_frames, move.image_op) if images.ndim == 5 else move.image_op
            images = jax.vmap(op)(own, images)
            if isinstance(targets, Objects) or jnp.ndim(targets) > 2:
                after = images.shape[1], images.shape[2]
                move_target = partial(_move_target, move, a.min_visibility, before, after)
                targets = jax.vmap(move_target)(own, targets)
        if transform is not None:
            own = jax.vmap(partial(jax.random.fold_in, data=own_number))(keys)
            images, targets = jax.vmap(transform)(own, images, targets)
        images = normalize(images, data.mean, data.std)
        for number, eraser in enumerate(erasers):
            images = map_images(jax.random.fold_in(step_key, _ERASE - number), images, eraser, rows)
        if to_soft is not None and (a.mixup_alpha or a.cutmix_alpha):
            images, targets = mixed(jax.random.fold_in(step_key, _MIX), images, to_soft(targets, classes))
        return batch._replace(image=images, target=targets)

    return preprocess


class _Move(NamedTuple):
    """An augmentation of uint8 images, and what it does to masks (h, w), other targets (h, w, c), and boxes."""

    key_of: Callable[[Array], Array]
    """Key of an example to that of the augmentation."""
    image_op: ImageOp
    target_op: ImageOp | None = None
    """None if no pixel moves."""
    draw_map: DrawMap | None = None
    """Where it takes boxes."""


def _moves(a: Augment, image_size: int | None, fill: int) -> list[_Move]:
    """Return the augmentations of uint8 images in order; `fill` is the value of targets on padding."""
    moves: list[_Move] = []
    if a.crop_padding:
        op, pad = partial(pad_crop, pad=a.crop_padding, mode=a.pad_mode), a.crop_padding
        moves.append(
            _Move(lambda key: jax.random.split(key)[0], op, partial(op, fill=fill), partial(pad_crop_map, pad=pad))
        )
    if a.hflip:
        moves.append(_Move(lambda key: jax.random.split(key)[1], flip, flip, flip_map))
    # Numbers 0 and 1 belong to the two keys of the split
    numbered = enumerate(_image_ops(a, image_size, fill), 2)
    return [*moves, *(_Move(partial(jax.random.fold_in, data=number), *ops) for number, ops in numbered)]


def _same_for_all_frames(op: ImageOp, key: Array, video: Array) -> Array:
    return jax.vmap(partial(op, key))(video)


def _move_target(
    move: _Move, visible: float, before: tuple[int, int], after: tuple[int, int], key: Array, target: Any
) -> Any:
    """Return a mask or objects where an augmentation takes an image of one height and width to another."""
    if isinstance(target, Objects):
        return target if move.draw_map is None else move_objects(target, *move.draw_map(key, before), after, visible)
    return target if move.target_op is None else _on_target(move.target_op, key, target)


def _turn(key: Array, image: Array, target: Any, index: Array, seen: Array) -> tuple[Array, Any]:
    """Return an image and its target, mirrored every second time."""
    op = partial(alternating_flip, index=index, occurrence=seen)
    shape = image.shape[0], image.shape[1]
    if isinstance(target, Objects) or jnp.ndim(target) > 1:
        move = _Move(lambda key: key, op, op, partial(alternating_flip_map, index=index, occurrence=seen))
        target = _move_target(move, 0.0, shape, shape, key, target)
    return op(key, image), target


def _on_target(op: ImageOp, key: Array, target: Array) -> Array:
    """Apply an operation on (h, w, c) to a target (h, w) or (h, w, ...)."""
    moved = op(key, target.reshape(*target.shape[:2], -1))
    return moved.reshape(*moved.shape[:2], *target.shape[2:])


def require_movable_target(a: Augment, image: np.ndarray, target: Any, fill: int | None = None) -> None:
    """Raise InputError if an augmentation would move an image and not its target, an array of two or more axes."""
    if isinstance(target, Objects):
        if a.policy != "none":
            raise InputError(f"augment.policy is {a.policy}, which moves images but not boxes: leave it out")
        if a.rrc_from == "original":
            raise InputError("augment.rrc_from is original, which crops images but not boxes: take resized")
    if not is_mask(target):
        return
    if a.crop_padding and a.pad_mode == "zero" and fill is None:
        raise InputError("augment.crop_padding adds black, which has no target: set augment.pad_mode to reflect")
    if a.scale_jitter != (1.0, 1.0) and fill is None:
        raise InputError("augment.scale_jitter adds black, which has no target: take augment.random_resized_crop")
    moving = {
        "policy": a.policy != "none",
        "cutmix_alpha": a.cutmix_alpha,
    }
    if np.shape(target)[:2] != image.shape[:2]:
        names = ("crop_padding", "hflip", "alternating_hflip", "random_resized_crop", "progressive_sizes")
        moving |= {name: getattr(a, name) for name in names}
    for name in (name for name, value in moving.items() if value):
        raise InputError(
            f"augment.{name} is {getattr(a, name)}, which moves images but not targets of shape {np.shape(target)}:"
            " leave it out, or move both by transform="
        )


def _image_ops(a: Augment, image_size: int | None, fill: int) -> list[tuple[Any, ...]]:
    """Return the operations on uint8 images after padded crop and flip, with those on masks and boxes if any move."""
    ops: list[tuple[Any, ...]] = []
    if a.random_resized_crop and a.rrc_from == "resized":
        crop = partial(_random_resized_crop, a)
        boxes = partial(_crop_map, a, partial(random_resized_crop_map, area=a.rrc_scale, ratio=a.rrc_ratio))
        ops.append((partial(crop, random_resized_crop), partial(crop, random_resized_crop_nearest), boxes))
    if a.scale_jitter != (1.0, 1.0):
        boxes = partial(_crop_map, a, partial(scale_jitter_map, scale=a.scale_jitter))
        masks = partial(_scale_jitter, a, scale_jitter_nearest, fill)
        ops.append((partial(_scale_jitter, a, scale_jitter, 0), masks, boxes))
    if policy := _policy(a):
        ops.append((policy,))
    if a.brightness or a.contrast or a.saturation or a.hue:
        strengths = partial(jitter, brightness=a.brightness, contrast=a.contrast)
        ops.append((partial(strengths, saturation=a.saturation, hue=a.hue),))
    if a.time_shift:
        ops.append((partial(time_shift, fraction=a.time_shift),))
    if image_size is not None:
        size = image_size, image_size
        ops.append(
            (
                partial(_resize, image_size),
                partial(_resize_nearest, image_size),
                lambda _, shape: resize_map(shape, size),
            )
        )
    return ops


def _random_resized_crop(a: Augment, crop: Callable[..., Array], key: Array, image: Array) -> Array:
    return crop(key, image, _crop_size(a, image.shape), a.rrc_scale, a.rrc_ratio)


def _crop_map(a: Augment, draw_map: Callable[..., BoxMap], key: Array, shape: tuple[int, int]) -> BoxMap:
    return draw_map(key, shape, _crop_size(a, shape))


def _scale_jitter(a: Augment, jitter: Callable[..., Array], fill: int, key: Array, image: Array) -> Array:
    return jitter(key, image, _crop_size(a, image.shape), a.scale_jitter, fill)


def _crop_size(a: Augment, shape: tuple[int, ...]) -> tuple[int, int]:
    size = a.train_crop_size
    return (shape[0], shape[1]) if size is None else (size, size)


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


def original_crop(recipe: Recipe, source: Source) -> Read | None:
    """Return a reader of random crops of the original images or random clips, if the recipe takes those."""
    a, data = recipe.augment, recipe.data
    if data.frames:
        return clip_reader(source, recipe.seed, preprocessing_of(data))
    if not (a.random_resized_crop and a.rrc_from == "original"):
        return None
    size = a.train_crop_size or data.image_size
    assert size is not None, "checked with the recipe"
    return crop_reader(source, recipe.seed, size, a.rrc_scale, a.rrc_ratio, data.interpolation)
