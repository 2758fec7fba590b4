"""A recipe: every choice that changes the mathematics of a run, each with its unit, and nothing about hardware.

Devices, hosts, folders and how often one looks belong to the command line. The same recipe gives the same curve.
"""

import dataclasses
import difflib
import importlib.util
import json
import math
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from resnet_jax.errors import InputError, first_line, unknown


@dataclass(frozen=True, kw_only=True)
class Model:
    """The network, and what the recipe changes in it."""

    name: str = "resnet20"
    """Published network; `resnet-jax list` shows all."""
    shortcut: Literal["A", "B", "C", "none"] | None = None
    """He et al. 2015, section 3.3: A zero-padded identity, B projection where the shape changes, C projection
    everywhere, none for a plain network. None keeps the published one."""
    norm_group: int | None = None
    """Images that share BatchNorm statistics (Goyal et al. 2017: 32); None is the whole batch."""
    norm_momentum: float = 0.9
    """Share of the running statistics that a step keeps, 0 to 1."""
    zero_init: bool = False
    """Start the last BatchNorm scale of each block at zero."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the computation; parameters, statistics, head and loss stay float32."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """The images."""

    name: str = "digits"
    """Data set; `resnet-jax list` shows all."""
    validation: int = 0
    """Training images held out, always the same ones; progress is then measured on them and not on the test split."""
    mean: tuple[float, ...] = (0.5,)
    """Subtracted from pixels in 0 to 1; one number, or one a channel."""
    std: tuple[float, ...] = (0.5,)
    """Divides what is left; one number, or one a channel."""


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Random changes to the training images."""

    pad: int = 1
    """Pixels of black added to each side before a random crop of the original size."""
    flip: bool = False
    """Mirror every second image, at random."""


@dataclass(frozen=True, kw_only=True)
class Loss:
    """Cross-entropy."""

    label_smoothing: float = 0.0
    """Share of the target spread evenly over the classes, 0 to 1 (Szegedy et al. 2016, section 7)."""


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """Stochastic gradient descent with momentum; decay is added to the gradient."""

    lr: float = 0.1
    """Peak learning rate."""
    momentum: float = 0.9
    """0 to 1."""
    nesterov: bool = True
    """Nesterov's momentum."""
    weight_decay: float = 5e-4
    """Times the parameter, added to its gradient."""
    decay_scope: Literal["all", "no_norm", "kernels"] = "all"
    """What decays: everything, all but BatchNorm's scale and bias, or only the kernels of convolutions and head."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Learning rate over time, as a factor of its peak. Times are in epochs or in steps, as the recipe's length is."""

    name: Literal["cosine", "steps", "constant"] = "cosine"
    """Shape after the warm-up."""
    warmup: float = 3.0
    """Time of the linear rise to the peak."""
    warmup_from: float = 0.0
    """Factor at which the rise begins."""
    milestones: tuple[float, ...] = ()
    """Times at which "steps" multiplies by `factor`."""
    factor: float = 0.1
    """What "steps" multiplies by."""
    final: float = 0.0
    """Factor at which "cosine" ends."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A run as a value: print, compare and vary it with `dataclasses.replace`.

    Without arguments it is the default recipe, experiments/digits.py; other recipes name all that they rely on.
    """

    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    augment: Augment = field(default_factory=Augment)
    loss: Loss = field(default_factory=Loss)
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    batch_size: int = 64
    """Images a step, over all devices."""
    epochs: float | None = 30.0
    """Length in passes over the training images; or give `steps`."""
    steps: int | None = None
    """Length in steps; or give `epochs`."""
    seed: int = 0
    """Of everything random: initial parameters, order and augmentation."""


def fields_of(part: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of a recipe as ("optimizer.lr", 0.1)."""
    for item in dataclasses.fields(part):
        value = getattr(part, item.name)
        if dataclasses.is_dataclass(value):
            yield from fields_of(value, f"{prefix}{item.name}.")
        else:
            yield prefix + item.name, value


def differences(old: Recipe, new: Recipe) -> list[str]:
    """The fields in which two recipes differ, as "optimizer.lr 0.1 -> 0.2"."""
    values = dict(fields_of(new))
    return [f"{k} {v} -> {values[k]}" for k, v in fields_of(old) if values[k] != v]


def nearest_fields(name: str, known: list[str]) -> list[str]:
    """Up to three of the `known` dotted names that resemble `name`, whole or in their last part."""
    by_part = {k.rsplit(".", 1)[-1]: k for k in reversed(known)}
    whole = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    last = difflib.get_close_matches(name.rsplit(".", 1)[-1], by_part, n=3, cutoff=0.5)
    return list(dict.fromkeys([by_part[part] for part in last] + whole))[:3]


def check(recipe: Recipe) -> Recipe:
    """The recipe itself, if its numbers make sense; raises InputError naming the first field that does not."""
    r = typed(recipe)
    for name, value in fields_of(r):
        values = value if isinstance(value, tuple) else (value,)
        finite = all(math.isfinite(v) for v in values if isinstance(v, float))
        _require(finite, name, f"is {value}; it must be finite")
    length = r.steps if r.epochs is None else r.epochs
    _require((r.steps is None) != (r.epochs is None), "steps", "give either steps or epochs")
    assert length is not None
    _require(length > 0, "epochs" if r.steps is None else "steps", f"is {length}; it must be positive")
    _require(r.batch_size > 0, "batch_size", f"is {r.batch_size}; it must be positive")
    group = r.model.norm_group
    if group is not None:
        _require(
            group > 0 and r.batch_size % group == 0,
            "model.norm_group",
            f"is {group}, which does not divide the batch of {r.batch_size}",
        )
    _require(0 <= r.seed < 2**32, "seed", f"is {r.seed}; it must be in 0 to 2**32 - 1")
    _require(r.data.validation >= 0, "data.validation", f"is {r.data.validation}; it must not be negative")
    _require(all(s > 0 for s in r.data.std), "data.std", f"is {r.data.std}; it must be positive")
    _require(r.augment.pad >= 0, "augment.pad", f"is {r.augment.pad}; it must not be negative")
    _require(r.optimizer.lr > 0, "optimizer.lr", f"is {r.optimizer.lr}; it must be positive")
    _require(r.optimizer.weight_decay >= 0, "optimizer.weight_decay", "must not be negative")
    for name, share in (
        ("model.norm_momentum", r.model.norm_momentum),
        ("loss.label_smoothing", r.loss.label_smoothing),
        ("optimizer.momentum", r.optimizer.momentum),
    ):
        _require(0 <= share < 1, name, f"is {share}; it must be at least 0 and less than 1")
    _check_schedule(r.schedule, length, "epochs" if r.steps is None else "steps")
    return r


def typed(recipe: Recipe) -> Recipe:
    """The recipe as it will be read again from recipe.json; raises InputError for a value of another type."""
    try:
        return from_json(to_json(recipe), "recipe")
    except TypeError as error:
        raise InputError(f"recipe: {error}; use Python's own numbers, strings and tuples") from error


def _check_schedule(schedule: Schedule, length: float, unit: str) -> None:
    times = schedule.milestones
    run = f"the run's {length:g} {unit}"
    _require(
        0 <= schedule.warmup <= length,
        "schedule.warmup",
        f"is {schedule.warmup:g}; it must lie within {run}: give a shorter one",
    )
    _require(list(times) == sorted(set(times)), "schedule.milestones", f"is {times}; the times must increase")
    _require(
        all(schedule.warmup <= t < length for t in times),
        "schedule.milestones",
        f"is {times}; the times must lie after the warm-up and within {run}"
        " (to stop a recipe early and leave it as it is, use --stop-at)",
    )
    if schedule.name == "steps":
        _require(bool(times), "schedule.milestones", 'is empty; the schedule "steps" needs times')


def _require(condition: bool, name: str, message: str) -> None:
    if not condition:
        raise InputError(f"{name} {message}")


def total_steps(recipe: Recipe, train_size: int) -> int:
    """Length of the run in steps, at least 1."""
    return max(1, round(in_steps(recipe, recipe.steps or recipe.epochs or 0, train_size)))


def in_steps(recipe: Recipe, time: float, train_size: int) -> float:
    """A time of the recipe, in epochs or steps as its length is, in steps."""
    return time if recipe.epochs is None else time * train_size / recipe.batch_size


def load_recipe(path: Path) -> Recipe:
    """The `recipe` that a Python file defines, or that a run directory or its recipe.json holds.

    Raises InputError where there is none. A Python file is executed: load only what you would run.
    """
    path = path / "recipe.json" if path.is_dir() else path
    if not path.is_file():
        raise InputError(f"{path}: no such recipe; give a Python file or a run directory")
    if path.suffix == ".json":
        try:
            return from_json(path.read_text(), str(path))
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: damaged, it is not text") from error
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path}: not a recipe; give a Python file or a run directory")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{path}: {type(error).__name__}: {first_line(error)}") from error
    recipe = getattr(module, "recipe", None)
    if not isinstance(recipe, Recipe):
        raise InputError(f"{path}: defines no `recipe = Recipe(...)`")
    return recipe


def to_json(recipe: Recipe) -> str:
    return json.dumps(dataclasses.asdict(recipe), indent=2) + "\n"


def from_json(text: str, where: str = "recipe.json") -> Recipe:
    """The recipe that `to_json` wrote; raises InputError that names the file and the field."""
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON ({error})") from error
    return _build(Recipe, values, where, "")


def _build(kind: type, values: Any, where: str, prefix: str) -> Any:
    if not isinstance(values, dict):
        raise InputError(f"{where}: {prefix or 'the recipe'} is {values!r}, not a table of fields")
    kinds = typing.get_type_hints(kind)
    for name in values:
        if name not in kinds:
            raise unknown(f"field in {where}:", prefix + name, [prefix + known for known in kinds])
    return kind(**{k: _value(kinds[k], v, where, prefix + k) for k, v in values.items()})


def _value(kind: Any, value: Any, where: str, name: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _build(typing.cast(type, kind), value, where, f"{name}.")
    value = tuple(value) if isinstance(value, list) else value
    if not _fits(kind, value):
        raise InputError(f"{where}: {name} is {value!r}, which is not of type {kind}")
    return value


def _fits(kind: Any, value: Any) -> bool:
    """Whether a JSON value is of the annotated type: a plain type, a Literal, a union or a tuple[X, ...]."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return value in args
    if origin in (types.UnionType, typing.Union):
        return any(_fits(arg, value) for arg in args)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(args[0], item) for item in value)
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, kind) and not (kind is int and isinstance(value, bool))
