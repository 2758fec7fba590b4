"""Read runs for a report, without their data and checkpoints, and group them by recipe.

Runs on the same data whose recipes differ only in the seed or the fold are a group.
"""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from resnet_jax.errors import InputError
from resnet_jax.recipe import Recipe, fields_of, total_steps
from resnet_jax.recipe.bounds import parse_fold
from resnet_jax.run_dir.environment import read_environments
from resnet_jax.run_dir.files import DatasetInfo, read_dataset_info, read_metrics, read_recipe
from resnet_jax.run_dir.given import read_given
from resnet_jax.tasks.make import make_task
from resnet_jax.tasks.metric import Display
from resnet_jax.tasks.task import TaskFacts
from resnet_jax.training.sources import eval_split

# Maximum number of fields in the label of a group
_LABELLED = 3
# The value of a recipe field that a part given as a value stands for
_STOOD_FOR = "-"
# Fields that count even if the optimiser or model is given as a value
_KEPT = ("optimizer.lr", "optimizer.freeze", "model.pretrained")


class Run(NamedTuple):
    """A run directory."""

    path: Path
    name: str  # the shortest end of its path that is unique
    recipe: Recipe
    dataset: DatasetInfo
    rows: tuple[dict[str, Any], ...]  # from metrics.jsonl
    starts: tuple[dict[str, Any], ...]  # from environment.json, oldest first
    given: Mapping[str, Any] = MappingProxyType({})  # parts that were given as values, as `read_given` returns them

    @property
    def network(self) -> str:
        """The name of the network: that of its class if it was given as a value."""
        return self.given.get("model", self.recipe.model.name)

    @property
    def split(self) -> str:
        """The evaluation split: "validation" or "test"."""
        return eval_split(self.recipe)

    @property
    def steps(self) -> int:
        """Number of steps of the whole recipe."""
        return total_steps(self.recipe, self.dataset.train_size)

    @property
    def task(self) -> TaskFacts:
        """What is known of the task that was given as a value, or of that of the recipe's loss."""
        return self.given.get("task") or make_task(self.recipe.loss).facts

    @property
    def finished(self) -> bool:
        return bool(self.rows) and self.rows[-1]["step"] >= self.steps


class RecipeGroup(NamedTuple):
    """Runs that differ only in the seed or the fold, sorted by these."""

    label: str  # names the fields in which it differs from other groups
    runs: tuple[Run, ...]

    @property
    def counted(self) -> tuple[Run, ...]:
        """The runs that are aggregated: the finished ones or, if there are none, all with metrics."""
        return tuple(run for run in self.runs if run.finished) or tuple(run for run in self.runs if run.rows)

    @property
    def split(self) -> str:
        return self.runs[0].split


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Return the runs in these directories without duplicates; raise InputError if one cannot be read."""
    if not paths:
        raise InputError("report: name at least one run directory")
    unlike = list({path.resolve(): path for path in reversed(paths)}.values())[::-1]
    return [_read_run(path, name) for path, name in zip(unlike, short_names(unlike), strict=True)]


def _read_run(path: Path, name: str) -> Run:
    recipe, dataset = read_recipe(path), read_dataset_info(path)
    lines, starts = read_metrics(path), read_environments(path)
    split = eval_split(recipe)
    needed = ("epoch", "lr", f"{split}/loss", "images_per_second", "data_wait_fraction", "train_seconds")
    for number, line in enumerate(lines, 1):
        for field in ("step", *needed):
            if not isinstance(line.get(field), int | float):
                raise InputError(f"{path / 'metrics.jsonl'}: line {number} has no number {field}; remove that line")
    starts = [start for start in starts if isinstance(start, dict)]
    return Run(path, name, recipe, dataset, tuple(lines), tuple(starts), read_given(path))


def short_names(paths: Sequence[Path]) -> list[str]:
    """Return the last parts of each path, as few as make all names different."""
    whole = [path.resolve() for path in paths]
    for count in itertools.count(1):
        names = ["/".join(path.parts[-count:]) for path in whole]
        if len(set(names)) == len(set(whole)):
            return names
    raise AssertionError("unreachable")


def group_runs(runs: Sequence[Run]) -> list[RecipeGroup]:
    """Return the runs grouped by recipe, regardless of seed and fold, in the order in which they are given."""
    found: dict[Any, list[Run]] = {}
    for run in runs:
        data, folds = run.dataset, _folds(run.recipe)
        recipe = dataclasses.replace(run.recipe, seed=0, data=dataclasses.replace(run.recipe.data, fold=folds))
        # Folds differ by an image or a group
        key = recipe, repr(dict(run.given)), data.classes, data.image_shape, 0 if folds else data.train_size
        found.setdefault(key, []).append(run)
    ordered = [tuple(sorted(some, key=lambda run: (run.recipe.seed, _fold(run.recipe)))) for some in found.values()]
    return [
        RecipeGroup(label, some) for label, some in zip(_labels([some[0] for some in ordered]), ordered, strict=True)
    ]


def _folds(recipe: Recipe) -> str | None:
    """Return the number of folds in words, None if there are none."""
    return recipe.data.fold and f"{parse_fold(recipe.data.fold)[1]} folds"


def _fold(recipe: Recipe) -> int:
    return parse_fold(recipe.data.fold)[0] if recipe.data.fold else 0


def recipe_fields(run: Run) -> dict[str, Any]:
    """Return all recipe fields except the seed and the fold, by dotted name, and the facts about the data."""
    fields = {name: _replaced(name, value, run.given) for name, value in fields_of(run.recipe) if name != "seed"}
    return fields | {
        "data.fold": _folds(run.recipe),
        "transform": run.given.get("transform"),
        "classes": len(run.dataset.classes),
        "image": " x ".join(map(str, run.dataset.image_shape)),
        "training images": run.dataset.train_size,
    }


def _replaced(field: str, value: Any, given: Mapping[str, Any]) -> Any:
    """Return the value of a recipe field, or what a report says of one that a part given as a value stands for."""
    part, _, name = field.partition(".")
    part = "task" if part == "loss" else part
    if part not in given or field in _KEPT:
        return value
    what = f"monitors {given[part].monitor}" if part == "task" else given[part]
    return f"{what}, passed as a value" if name == "name" else _STOOD_FOR


def display_of_runs(runs: Iterable[Run]) -> dict[str, Display]:
    """Return how the metric values of runs are shown, by name."""
    return {name: how for run in runs for name, how in run.task.display.items()}


def differing_fields(variants: Sequence[RecipeGroup]) -> list[str]:
    """Return the names of the fields in which the groups differ."""
    return _differing([recipe_fields(variant.runs[0]) for variant in variants])


def _differing(fields: Sequence[dict[str, Any]]) -> list[str]:
    return [name for name in fields[0] if len({one[name] for one in fields} - {_STOOD_FOR}) > 1]


def format_value(value: Any) -> str:
    """Return the value of a field as text for people."""
    if isinstance(value, tuple):
        return ", ".join(map(format_value, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else str(value)


def _labels(runs: Sequence[Run]) -> list[str]:
    """Return a short label per run: the network if they differ, and values that most others do not have."""
    fields = [recipe_fields(run) for run in runs]
    names = _differing(fields)
    usual = {name: Counter(one[name] for one in fields).most_common(1)[0][0] for name in names}
    labels = []
    for one in fields:
        own = [name for name in names if one[name] != usual[name] or name == "model.name"]
        words = [_short(name, one[name]) for name in (own or names[:1])]
        labels.append(", ".join([*words[:_LABELLED], *(["..."] if len(words) > _LABELLED else [])]))
    return _unlike([label or run.network for label, run in zip(labels, runs, strict=True)])


def _unlike(labels: Sequence[str]) -> list[str]:
    """Return the labels, numbered if one occurs more than once."""
    total, seen, unlike = Counter(labels), Counter[str](), []
    for label in labels:
        seen[label] += 1
        unlike.append(f"{label} ({seen[label]})" if total[label] > 1 else label)
    return unlike


def _short(name: str, value: Any) -> str:
    last = name.rpartition(".")[-1]
    return str(value) if last == "name" else f"{last.replace('_', ' ')} {format_value(value)}"


def notes_on(paths: Sequence[Path], variants: Sequence[RecipeGroup]) -> list[str]:
    """Return remarks on the runs that qualify the numbers, a line each."""
    runs = [run for variant in variants for run in variant.runs]
    notes = []
    if len(paths) > len(runs):
        notes.append("A run named twice is counted once.")
    for run in runs:
        if not run.rows:
            notes.append(f"{run.name} has no metrics yet.")
        elif not run.finished:
            step = run.rows[-1]["step"]
            notes.append(f"{run.name} is not finished: step {step:,} of {run.steps:,}.")
    for variant in variants:
        left = len([run for run in variant.runs if run.rows]) - len(variant.counted)
        if left:
            done = len(variant.counted)
            notes.append(f"{variant.label}: {done} of {done + left} runs are finished; only these are counted.")
        steps = sorted({run.rows[-1]["step"] for run in variant.counted})
        if len(steps) > 1:
            notes.append(f"{variant.label}: the last rows are of steps {steps[0]:,} to {steps[-1]:,}.")
        for seed, count in Counter(run.recipe.seed for run in variant.runs).items():
            if count > 1:
                notes.append(f"{variant.label}: {count} runs have seed {seed}; they are not independent.")
    if len({variant.split for variant in variants}) > 1:
        notes.append("Runs measured on the validation split and on the test split cannot be compared.")
    return notes
