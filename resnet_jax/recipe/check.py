"""Check a recipe: the bounds and users beside each field in one loop, then the rules that involve several fields."""

import math
from collections.abc import Iterator
from typing import Any

from resnet_jax.errors import InputError
from resnet_jax.recipe.bounds import UsedBy, annotations_of, parse_fold, require_bounds
from resnet_jax.recipe.fields import Distill, Recipe
from resnet_jax.recipe.leaves import fields_of
from resnet_jax.recipe.load import from_json, to_json


def check(recipe: Recipe) -> Recipe:
    """Return the recipe as it will be read back from recipe.json.

    Raises:
        InputError: A field has a wrong type, lies outside its bounds, is set but unused, or contradicts another one.

    Example:
        >>> check(Recipe(batch_size=0))
        Traceback (most recent call last):
        ...
        resnet_jax.errors.InputError: batch_size is 0; it must be positive
    """
    recipe = _typed(recipe)
    _check_bounds(recipe)
    for rule in _RULES:
        for name, message in rule(recipe):
            raise InputError(f"{name} {message}")
    _check_users(recipe)
    return recipe


def _typed(recipe: Recipe) -> Recipe:
    try:
        return from_json(to_json(recipe), "recipe", nonfinite=True)
    except TypeError as error:
        raise InputError(f"recipe: {error}; use Python's own numbers, strings and tuples") from error


def _check_bounds(recipe: Recipe) -> None:
    notes = dict(annotations_of(Recipe))
    for name, value in fields_of(recipe):
        numbers = value if isinstance(value, tuple) else (value,)
        if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
            raise InputError(f"{name} is {value}; it must be finite")
        require_bounds(name, value, notes[name])


def _check_users(recipe: Recipe) -> None:
    """Refuse a field that is set but that nothing uses, unless it is off: 0, False or None."""
    values, defaults = dict(fields_of(recipe)), dict(fields_of(Recipe()))
    for name, notes in annotations_of(Recipe):
        users = next((note for note in notes if isinstance(note, UsedBy)), None)
        part, value = name.partition(".")[0], values[name]
        if users is None or values[f"{part}.name"] in users or value in (defaults[name], 0):
            continue
        chosen = values[f"{part}.name"]
        raise InputError(f"{name} is {value}, which {part}.name {chosen} does not use; leave it at {defaults[name]}")


# A rule yields (field, message) for each violation
_Violations = Iterator[tuple[str, str]]


def _length_is_given_once(r: Recipe) -> _Violations:
    if (r.steps is None) == (r.epochs is None):
        yield "steps", "give either steps or epochs"


def _batch_is_divisible(r: Recipe) -> _Violations:
    group, repeats = r.model.norm_group_size, r.augment.aug_repeats
    if group is not None and r.batch_size % group:
        near = min((n for n in range(1, r.batch_size + 1) if r.batch_size % n == 0), key=lambda n: abs(n - group))
        yield "model.norm_group_size", f"is {group}, which does not divide the batch of {r.batch_size}; take {near}"
    if group is not None and r.model.freeze_norm:
        yield "model.norm_group_size", f"is {group}, but model.freeze_norm uses no batch statistics; leave one out"
    if r.batch_size % repeats:
        yield "augment.aug_repeats", f"is {repeats}, which does not divide the batch of {r.batch_size}"


def _random_resized_crop_is_complete(r: Recipe) -> _Violations:
    a = r.augment
    jitters = a.scale_jitter != (1.0, 1.0)
    if a.train_crop_size is not None and not (a.random_resized_crop or jitters):
        yield "augment.train_crop_size", "needs augment.random_resized_crop or augment.scale_jitter"
    if a.random_resized_crop and jitters:
        yield "augment.scale_jitter", "and augment.random_resized_crop are both on; take one"
    if a.rrc_from == "original" and not a.random_resized_crop:
        yield "augment.rrc_from", "is original; that needs augment.random_resized_crop"
    if a.rrc_from == "original" and r.data.image_size is None:
        yield "augment.rrc_from", "is original; that needs data.image_size, to which crops are resized"


def _image_size_is_a_pair(r: Recipe) -> _Violations:
    size: Any = r.data.image_size
    if isinstance(size, tuple) and len(size) != 2:
        yield "data.image_size", f"is {size}; give one number, or height and width"


def _fractions_are_below_one(r: Recipe) -> _Violations:
    for name, value in (("num_validation", r.data.num_validation), ("limit", r.data.limit)):
        if isinstance(value, float) and value >= 1:
            yield f"data.{name}", f"is {value}; give a number of images, or a fraction below 1"


def _held_out_images_are_described_once(r: Recipe) -> _Violations:
    d = r.data
    if d.fold is not None:
        parse_fold(d.fold)
    if d.fold and d.num_validation:
        yield "data.fold", "and data.num_validation both hold images out; take one"
    for name, value in (("stratify", d.stratify), ("group_by", d.group_by)):
        if value and not d.holds_out:
            yield f"data.{name}", f"is {value}; that needs data.num_validation or data.fold"


def _classes_have_names(r: Recipe) -> _Violations:
    for old, new in dict(r.data.class_map).items():
        if not (new is None or (isinstance(new, str) and new)):
            yield "data.class_map", f"gives {old!r} the name {new!r}; give a string, or null to drop the class"


def _mixed_data_have_weights(r: Recipe) -> _Violations:
    for name, weight in dict(r.data.mix).items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
            yield "data.mix", f"gives {name!r} the weight {weight!r}; give a positive number"
    if r.data.mix and r.data.sampling not in ("uniform", "balanced", "sqrt"):
        yield "data.sampling", "is a file of weights, which belong to one data set: leave data.mix out"


def _auto_weights_have_a_meaning(r: Recipe) -> _Violations:
    if r.loss.class_weights == "auto" and r.loss.name == "multilabel":
        yield "loss.class_weights", "is auto, which does not exist for several labels; set loss.pos_weight to auto"


def _sound_has_a_rate(r: Recipe) -> _Violations:
    if r.data.seconds is not None and r.data.sample_rate is None:
        yield "data.seconds", f"is {r.data.seconds:g}; that needs data.sample_rate, such as 16000"
    if r.data.seconds is not None and (r.data.image_size is not None or r.data.crop_pct != 1):
        yield (
            "data.seconds",
            f"is {r.data.seconds:g}, of sounds, which have no image_size and crop_pct: leave those out",
        )


def _clips_are_complete(r: Recipe) -> _Violations:
    d = r.data
    if d.frames is not None and (d.frame_rate is None or d.image_size is None):
        missing = "data.frame_rate, such as 15" if d.frame_rate is None else "data.image_size"
        yield "data.frames", f"is {d.frames}; that needs {missing}"
    if d.frame_rate is not None and d.frames is None:
        yield "data.frame_rate", f"is {d.frame_rate:g}; that needs data.frames, such as 16"
    if d.frames is not None and d.seconds is not None:
        yield "data.seconds", f"is {d.seconds:g}, of sounds, and data.frames is of video: leave one out"


def _augmentation_is_consistent(r: Recipe) -> _Violations:
    a = r.augment
    if a.policy == "randaugment_inc" and a.magnitude > 10:
        yield "augment.magnitude", f"is {a.magnitude}; it must be 0 to 10"
    if a.hflip and a.alternating_hflip:
        yield "augment.alternating_hflip", "and augment.hflip are both on; take one"
    if a.alternating_hflip and (r.data.sampling != "uniform" or r.data.mix):
        yield "augment.alternating_hflip", "needs each image once per epoch; leave data.sampling and data.mix out"
    for name in ("mixup_alpha", "cutmix_alpha"):
        if getattr(a, name) and r.batch_size % 2:
            yield f"augment.{name}", f"mixes pairs; the batch of {r.batch_size} is odd"
        if getattr(a, name) and r.batch_size <= a.aug_repeats:
            yield f"augment.{name}", "would mix an image with itself; lower aug_repeats"


def _progressive_resizing_is_complete(r: Recipe) -> _Violations:
    sizes, starts, name = r.augment.progressive_sizes, r.augment.progressive_starts, "augment.progressive_starts"
    if len(starts) != len(sizes):
        yield name, f"has {len(starts)} times for {len(sizes)} of augment.progressive_sizes; give one for each"
    if starts and starts[0]:
        yield name, f"is {starts}; the first time must be 0"
    if any(time >= _length(r) for time in starts):
        yield name, f"is {starts}; the times must lie within {_run(r)}"


def _distillation_is_complete(r: Recipe) -> _Violations:
    d, defaults = r.distill, Distill()
    for name, value in fields_of(d):
        if d.teacher is None and value != getattr(defaults, name):
            yield f"distill.{name}", f"is {value}; that needs distill.teacher"
    if d.teacher is not None and r.loss.name not in ("cross_entropy", "bce"):
        yield "distill.teacher", f"is for one class per image, and loss.name is {r.loss.name}: leave it out"
    if d.hard and d.temperature != defaults.temperature:
        yield "distill.temperature", f"is {d.temperature:g}, but distill.hard uses no temperature: leave it out"


def _optimizer_is_consistent(r: Recipe) -> _Violations:
    o = r.optimizer
    if o.clip_grad_norm and o.agc_clipping:
        yield "optimizer.agc_clipping", "and optimizer.clip_grad_norm are both on; take one"
    if o.name.startswith("schedule_free") and (o.layer_decay, o.head_lr_mult) != (1.0, 1.0):
        yield (
            "optimizer.name",
            f"is {o.name}, which has a single rate: leave layer_decay and head_lr_mult out",
        )
    if o.name.startswith("schedule_free") and not o.b1:
        yield "optimizer.b1", f"is 0, which {o.name} does not support; give 0.9"
    if not all(o.freeze):
        yield "optimizer.freeze", f"is {o.freeze}; a path must not be empty"


def _pretrained_is_named(r: Recipe) -> _Violations:
    if r.model.pretrained_best and not r.model.pretrained:
        yield "model.pretrained_best", "needs model.pretrained, a run"


def _warmup_fits_the_run(r: Recipe) -> _Violations:
    s = r.schedule
    if s.name == "onecycle" and s.warmup:
        yield "schedule.warmup", f'is {s.warmup:g}; "onecycle" has its own rise, schedule.pct_start: set it to 0'
    if not 0 <= s.warmup <= _length(r):
        advice = "give a shorter one (on the command line, --epochs and --steps rescale it)"
        yield "schedule.warmup", f"is {s.warmup:g}; it must lie within {_run(r)}: {advice}"


def _schedule_fits_the_run(r: Recipe) -> _Violations:
    s = r.schedule
    if not all(s.warmup <= time < _length(r) for time in s.milestones):
        yield (
            "schedule.milestones",
            f"is {s.milestones}; the times must lie after the warm-up and within {_run(r)}"
            " (to stop a run early without changing its recipe, use --stop-at)",
        )
    if s.name == "exponential" and not 0 < s.decay_every <= _length(r):
        message = f'is {s.decay_every:g}; the schedule "exponential" needs a time over 0 and within {_run(r)}'
        yield "schedule.decay_every", message
    if s.name == "cosine_restarts" and not 0 < s.restart_every <= _length(r):
        message = f'is {s.restart_every:g}; the schedule "cosine_restarts" needs a time over 0 and within {_run(r)}'
        yield "schedule.restart_every", message
    if s.name == "plateau" and not r.data.holds_out:
        yield "data.num_validation", 'is 0; the schedule "plateau" follows a validation loss: hold some images out'
    if s.name == "steps" and not s.milestones:
        yield "schedule.milestones", 'is empty; the schedule "steps" needs times'


_RULES = (
    _length_is_given_once,
    _batch_is_divisible,
    _random_resized_crop_is_complete,
    _image_size_is_a_pair,
    _fractions_are_below_one,
    _held_out_images_are_described_once,
    _classes_have_names,
    _mixed_data_have_weights,
    _auto_weights_have_a_meaning,
    _sound_has_a_rate,
    _clips_are_complete,
    _augmentation_is_consistent,
    _progressive_resizing_is_complete,
    _distillation_is_complete,
    _optimizer_is_consistent,
    _pretrained_is_named,
    _warmup_fits_the_run,
    _schedule_fits_the_run,
)


def _length(r: Recipe) -> float:
    return (r.steps if r.epochs is None else r.epochs) or 0


def _run(r: Recipe) -> str:
    """Return the run's length in words."""
    unit = "step" if r.epochs is None else "epoch"
    return f"the run's {_length(r):g} {unit}{'s' * (_length(r) != 1)}"
