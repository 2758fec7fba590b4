"""Whether the numbers of a recipe make sense."""

import math
from typing import Any

from resnet_jax.errors import InputError
from resnet_jax.recipe.fields import Augment, Loss, Model, Optimizer, Recipe, Schedule, fields_of
from resnet_jax.recipe.load import from_json, to_json

# The names of optimisers, schedules and losses that use a field; all others leave it alone
_USERS: dict[str, tuple[str, ...]] = {
    "optimizer.momentum": ("sgd", "rmsprop", "lars", "muon"),
    "optimizer.nesterov": ("sgd", "lars", "muon"),
    "optimizer.b1": ("adamw", "lamb", "muon"),
    "optimizer.b2": ("rmsprop", "adamw", "lamb", "muon"),
    "optimizer.eps": ("rmsprop", "adamw", "lamb", "lars", "muon"),
    "optimizer.trust": ("lars",),
    "schedule.milestones": ("steps",),
    "schedule.factor": ("steps", "exponential"),
    "schedule.every": ("exponential",),
    "schedule.staircase": ("exponential",),
    "schedule.final": ("cosine", "linear", "polynomial"),
    "schedule.power": ("polynomial",),
    "schedule.rise": ("onecycle",),
    "schedule.start_divisor": ("onecycle",),
    "schedule.end_divisor": ("onecycle",),
    "schedule.anneal": ("onecycle",),
    "loss.label_smoothing": ("cross_entropy", "bce"),
    "loss.threshold": ("bce",),
    "loss.sum_classes": ("bce", "multilabel"),
}


def check(recipe: Recipe) -> Recipe:
    """The recipe itself, if its numbers make sense; raises InputError naming the first field that does not."""
    r = typed(recipe)
    for name, value in fields_of(r):
        values = value if isinstance(value, tuple) else (value,)
        finite = all(math.isfinite(v) for v in values if isinstance(v, float))
        _require(finite, name, f"is {value}; it must be finite")
    length = r.steps if r.epochs is None else r.epochs
    unit = "epochs" if r.steps is None else "steps"
    _require((r.steps is None) != (r.epochs is None), "steps", "give either steps or epochs")
    assert length is not None
    _require(length > 0, unit, f"is {length}; it must be positive")
    _require(r.batch_size > 0, "batch_size", f"is {r.batch_size}; it must be positive")
    _require(0 <= r.seed < 2**32, "seed", f"is {r.seed}; it must be in 0 to 2**32 - 1")
    _require(0 <= r.ema < 1, "ema", f"is {r.ema}; it must be at least 0 and less than 1")
    _require(r.ema_every > 0, "ema_every", f"is {r.ema_every}; it must be positive, and is 1 for every step")
    _check_model(r.model, r.batch_size)
    _check_data(r)
    _check_augment(r.augment, r.batch_size)
    _check_sizes(r.augment, length, unit)
    _check_loss(r.loss)
    _check_optimizer(r.optimizer)
    _check_schedule(r.schedule, length, unit)
    _check_users(r)
    return r


def typed(recipe: Recipe) -> Recipe:
    """The recipe as it will be read again from recipe.json; raises InputError for a value of another type."""
    try:
        return from_json(to_json(recipe), "recipe")
    except TypeError as error:
        raise InputError(f"recipe: {error}; use Python's own numbers, strings and tuples") from error


def _check_users(recipe: Recipe) -> None:
    """Refuses what has been set but is used by nobody, unless it is off: 0 or False."""
    values, defaults = dict(fields_of(recipe)), dict(fields_of(Recipe()))
    for name, users in _USERS.items():
        part, value = name.partition(".")[0], values[name]
        chosen = values[f"{part}.name"]
        unused = chosen not in users and value not in (defaults[name], 0)
        _require(not unused, name, f"is {value}, which {part}.name {chosen} does not use; leave it at {defaults[name]}")


def _check_model(model: Model, batch_size: int) -> None:
    group = model.norm_group
    if group is not None:
        near = min((n for n in range(1, batch_size + 1) if batch_size % n == 0), key=lambda n: abs(n - group))
        divides = group > 0 and batch_size % group == 0
        message = f"is {group}, which does not divide the batch of {batch_size}; take {near}"
        _require(divides, "model.norm_group", message)
        wanted = not model.norm_frozen
        _require(wanted, "model.norm_group", f"is {group}, but model.norm_frozen takes no statistics; leave one out")
    for name in ("norm_momentum", "dropout", "head_dropout", "drop_path"):
        _require_share(f"model.{name}", getattr(model, name))


def _check_data(recipe: Recipe) -> None:
    data = recipe.data
    _require(data.size is None or data.size > 0, "data.size", f"is {data.size}; it must be positive")
    _require(0 < data.crop <= 1, "data.crop", f"is {data.crop}; it must be over 0 and at most 1")
    _require(data.validation >= 0, "data.validation", f"is {data.validation}; it must not be negative")
    _require(all(s > 0 for s in data.std), "data.std", f"is {data.std}; it must be positive")
    _require(
        recipe.augment.crop_from == "resized" or data.size is not None,
        "augment.crop_from",
        "is original; that needs data.size, to which crops are scaled",
    )


def _check_augment(augment: Augment, batch_size: int) -> None:
    a = augment
    for name in ("pad", "cutout", "policy_std", "mixup", "cutmix"):
        _require(getattr(a, name) >= 0, f"augment.{name}", f"is {getattr(a, name)}; it must not be negative")
    for name in ("policy_ops", "repeats"):
        _require(getattr(a, name) > 0, f"augment.{name}", f"is {getattr(a, name)}; it must be positive")
    most_policy = 10 if a.policy == "randaugment_increasing" else 30
    for name, most in (
        *(dict.fromkeys(("brightness", "contrast", "saturation", "erase"), 1.0).items()),
        *(dict.fromkeys(("mix_probability", "cutmix_probability"), 1.0).items()),
        ("hue", 0.5),
        ("policy_magnitude", most_policy),
        ("policy_fill", 255),
    ):
        _require(0 <= getattr(a, name) <= most, f"augment.{name}", f"is {getattr(a, name)}; it must be 0 to {most:g}")
    for name, most in (("crop_area", 1.0), ("erase_area", 1.0), ("crop_ratio", math.inf), ("erase_ratio", math.inf)):
        _check_range(f"augment.{name}", getattr(a, name), most)
    _require(a.crop_size is None or a.crop_size > 0, "augment.crop_size", f"is {a.crop_size}; it must be positive")
    _require(a.crop_size is None or a.crop, "augment.crop_size", "needs augment.crop")
    original = a.crop_from == "original"
    _require(not original or a.crop, "augment.crop_from", "is original; that needs augment.crop")
    _require(not (a.flip and a.alternate_flip), "augment.alternate_flip", "and augment.flip are both on; take one")
    _require(
        batch_size % a.repeats == 0,
        "augment.repeats",
        f"is {a.repeats}, which does not divide the batch of {batch_size}",
    )
    for name in ("mixup", "cutmix"):
        wanted = getattr(a, name) > 0
        _require(not wanted or batch_size % 2 == 0, f"augment.{name}", f"mixes pairs; the batch of {batch_size} is odd")
        _require(
            not wanted or batch_size > a.repeats, f"augment.{name}", "would mix an image with itself; lower repeats"
        )


def _check_sizes(augment: Augment, length: float, unit: str) -> None:
    sizes, times, name = augment.sizes, augment.size_times, "augment.size_times"
    _require(all(size > 0 for size in sizes), "augment.sizes", f"is {sizes}; sizes must be positive")
    counts = f"has {len(times)} times for {len(sizes)} of augment.sizes; give one for each"
    _require(len(times) == len(sizes), name, counts)
    _require(not times or times[0] == 0, name, f"is {times}; the first time must be 0")
    _require_increasing(name, times)
    _require(all(t < length for t in times), name, f"is {times}; the times must lie within the run's {length:g} {unit}")


def _check_range(name: str, values: tuple[float, ...], most: float) -> None:
    below = "" if most == math.inf else f" and at most {most:g}"
    _require(
        len(values) == 2 and 0 < values[0] <= values[1] <= most,
        name,
        f"is {values}; it must be a smallest and a largest, over 0{below}",
    )


def _check_loss(loss: Loss) -> None:
    _require_share("loss.label_smoothing", loss.label_smoothing)
    if loss.threshold is not None:
        _require_share("loss.threshold", loss.threshold)


def _check_optimizer(optimizer: Optimizer) -> None:
    o = optimizer
    for name in ("lr", "head_rate", "trust"):
        _require(getattr(o, name) > 0, f"optimizer.{name}", f"is {getattr(o, name)}; it must be positive")
    for name in ("weight_decay", "eps", "clip", "clip_adaptive"):
        _require(getattr(o, name) >= 0, f"optimizer.{name}", "must not be negative")
    for name in ("momentum", "b1", "b2"):
        _require_share(f"optimizer.{name}", getattr(o, name))
    _require(not (o.clip and o.clip_adaptive), "optimizer.clip_adaptive", "and optimizer.clip are both on; take one")
    decay = o.layer_decay
    _require(0 < decay <= 1, "optimizer.layer_decay", f"is {decay}; it must be over 0 and at most 1, which is none")
    _require(all(o.freeze), "optimizer.freeze", f"is {o.freeze}; a path must not be empty")


def _check_schedule(schedule: Schedule, length: float, unit: str) -> None:
    s, run = schedule, f"the run's {length:g} {unit.removesuffix('s') if length == 1 else unit}"
    for name in ("factor", "power"):
        _require(getattr(s, name) > 0, f"schedule.{name}", f"is {getattr(s, name)}; it must be positive")
    for name in ("warmup_from", "final"):
        share = getattr(s, name)
        _require(0 <= share <= 1, f"schedule.{name}", f"is {share}; it is a share of the peak, 0 to 1")
    for name in ("start_divisor", "end_divisor"):
        divisor = getattr(s, name)
        _require(divisor >= 1, f"schedule.{name}", f"is {divisor}; it must be at least 1, the peak being the largest")
    _require(0 < s.rise < 1, "schedule.rise", f"is {s.rise}; it is a share of the run, over 0 and less than 1")
    _require(
        s.name != "onecycle" or s.warmup == 0,
        "schedule.warmup",
        f'is {s.warmup:g}; "onecycle" rises by itself, for schedule.rise of the run: set it to 0',
    )
    _require(
        0 <= s.warmup <= length,
        "schedule.warmup",
        f"is {s.warmup:g}; it must lie within {run}: give a shorter one"
        f"{' (--steps makes all of a recipe in epochs shorter in proportion)' if unit == 'epochs' else ''}",
    )
    _require_increasing("schedule.milestones", s.milestones)
    _require(
        all(s.warmup <= t < length for t in s.milestones),
        "schedule.milestones",
        f"is {s.milestones}; the times must lie after the warm-up and within {run}"
        " (to stop a recipe early and leave it as it is, use --stop-at)",
    )
    _require(
        s.name != "exponential" or 0 < s.every <= length,
        "schedule.every",
        f'is {s.every:g}; the schedule "exponential" needs a time over 0 and within {run}',
    )
    _require(
        s.name != "steps" or bool(s.milestones), "schedule.milestones", 'is empty; the schedule "steps" needs times'
    )


def _require_share(name: str, share: float) -> None:
    _require(0 <= share < 1, name, f"is {share}; it must be at least 0 and less than 1")


def _require_increasing(name: str, times: tuple[float, ...]) -> None:
    _require(list(times) == sorted(set(times)), name, f"is {times}; the times must increase")


def _require(condition: Any, name: str, message: str) -> None:
    if not condition:
        raise InputError(f"{name} {message}")
