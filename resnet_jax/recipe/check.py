"""Check a recipe: the bounds and users beside each field in one loop, then the rules that involve several fields."""

import dataclasses
import math
import typing
from collections.abc import Iterator
from typing import Any

from resnet_jax.errors import InputError
from resnet_jax.recipe.bounds import Bounds, Increasing, Pair, UsedBy
from resnet_jax.recipe.fields import Recipe, fields_of
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


def annotations_of(kind: type, prefix: str = "") -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Yield the dotted name of every leaf of a recipe class with the metadata beside it."""
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        if dataclasses.is_dataclass(hint):
            yield from annotations_of(typing.cast(type, hint), f"{name}.")
        else:
            yield prefix + name, getattr(hint, "__metadata__", ())


def _check_bounds(recipe: Recipe) -> None:
    notes = dict(annotations_of(Recipe))
    for name, value in fields_of(recipe):
        numbers = value if isinstance(value, tuple) else (value,)
        if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
            raise InputError(f"{name} is {value}; it must be finite")
        for note in notes[name]:
            if isinstance(note, Bounds) and not all(note.contains(n) for n in numbers if n is not None):
                raise InputError(f"{name} is {value}; {note}")
            if isinstance(note, Pair | Increasing) and not note.contains(value):
                raise InputError(f"{name} is {value}; {note}")


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
        yield "model.norm_group_size", f"is {group}, but model.freeze_norm takes no statistics; leave one out"
    if r.batch_size % repeats:
        yield "augment.aug_repeats", f"is {repeats}, which does not divide the batch of {r.batch_size}"


def _random_resized_crop_is_complete(r: Recipe) -> _Violations:
    a = r.augment
    if a.train_crop_size is not None and not a.random_resized_crop:
        yield "augment.train_crop_size", "needs augment.random_resized_crop"
    if a.rrc_from == "original" and not a.random_resized_crop:
        yield "augment.rrc_from", "is original; that needs augment.random_resized_crop"
    if a.rrc_from == "original" and r.data.image_size is None:
        yield "augment.rrc_from", "is original; that needs data.image_size, to which crops are resized"


def _augmentation_is_consistent(r: Recipe) -> _Violations:
    a = r.augment
    if a.policy == "randaugment_inc" and a.magnitude > 10:
        yield "augment.magnitude", f"is {a.magnitude}; it must be 0 to 10"
    if a.hflip and a.alternating_hflip:
        yield "augment.alternating_hflip", "and augment.hflip are both on; take one"
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


def _optimizer_is_consistent(r: Recipe) -> _Violations:
    o = r.optimizer
    if o.clip_grad_norm and o.agc_clipping:
        yield "optimizer.agc_clipping", "and optimizer.clip_grad_norm are both on; take one"
    if not all(o.freeze):
        yield "optimizer.freeze", f"is {o.freeze}; a path must not be empty"


def _warmup_fits_the_run(r: Recipe) -> _Violations:
    s = r.schedule
    if s.name == "onecycle" and s.warmup:
        yield "schedule.warmup", f'is {s.warmup:g}; "onecycle" has its own rise, schedule.pct_start: set it to 0'
    if not 0 <= s.warmup <= _length(r):
        advice = " (the flags --epochs and --steps rescale all times of a recipe)"
        yield "schedule.warmup", f"is {s.warmup:g}; it must lie within {_run(r)}: give a shorter one{advice}"


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
    if s.name == "steps" and not s.milestones:
        yield "schedule.milestones", 'is empty; the schedule "steps" needs times'


_RULES = (
    _length_is_given_once,
    _batch_is_divisible,
    _random_resized_crop_is_complete,
    _augmentation_is_consistent,
    _progressive_resizing_is_complete,
    _optimizer_is_consistent,
    _warmup_fits_the_run,
    _schedule_fits_the_run,
)


def _length(r: Recipe) -> float:
    return (r.steps if r.epochs is None else r.epochs) or 0


def _run(r: Recipe) -> str:
    """Return the run's length in words."""
    unit = "step" if r.epochs is None else "epoch"
    return f"the run's {_length(r):g} {unit}{'s' * (_length(r) != 1)}"
