"""What a report reads of runs, without their data and checkpoints.

Runs of one recipe but for its seed, on the same data, are a variant.
"""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from resnet_jax.errors import InputError
from resnet_jax.recipe import Recipe, fields_of, total_steps
from resnet_jax.train.directory import Dataset, read_dataset, read_environments, read_metrics, read_recipe
from resnet_jax.train.job import held_split

_LABELLED = 3  # fields that name a variant, at most


class Run(NamedTuple):
    """A run directory."""

    path: Path
    name: str  # the end of its path, as much of it as no other run shares
    recipe: Recipe
    dataset: Dataset
    lines: tuple[dict[str, Any], ...]  # of metrics.jsonl
    starts: tuple[dict[str, Any], ...]  # of environment.json, oldest first

    @property
    def split(self) -> str:
        """That it is measured on: "validation" or "test"."""
        return held_split(self.recipe)

    @property
    def steps(self) -> int:
        """Of the whole recipe."""
        return total_steps(self.recipe, self.dataset.train_size)

    @property
    def finished(self) -> bool:
        return bool(self.lines) and self.lines[-1]["step"] >= self.steps


class Variant(NamedTuple):
    """Runs that differ in their seeds alone, in their order."""

    label: str  # by what it differs in from the other variants
    runs: tuple[Run, ...]

    @property
    def counted(self) -> tuple[Run, ...]:
        """The runs whose numbers count: the finished ones or, where none is, all that have some."""
        return tuple(run for run in self.runs if run.finished) or tuple(run for run in self.runs if run.lines)

    @property
    def split(self) -> str:
        return self.runs[0].split


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """The runs in these directories, each of them once.

    Raises InputError where there is none, or where what is in one cannot be read.
    """
    if not paths:
        raise InputError("report: of which runs? name at least one run directory")
    unlike = list({path.resolve(): path for path in reversed(paths)}.values())[::-1]
    return [_read_run(path, name) for path, name in zip(unlike, short_names(unlike), strict=True)]


def _read_run(path: Path, name: str) -> Run:
    recipe, dataset = read_recipe(path), read_dataset(path)
    lines, starts = read_metrics(path), read_environments(path)
    split = held_split(recipe)
    needed = ("epoch", "lr", "train_loss", f"{split}_loss", "images_per_second", "data_wait", "seconds")
    for number, line in enumerate(lines, 1):
        for field in ("step", *needed):
            if not isinstance(line.get(field), int | float):
                raise InputError(f"{path / 'metrics.jsonl'}: line {number} has no number {field}; remove that line")
    return Run(path, name, recipe, dataset, tuple(lines), tuple(s for s in starts if isinstance(s, dict)))


def short_names(paths: Sequence[Path]) -> list[str]:
    """The last parts of each path, as many as make all of them different."""
    whole = [path.resolve() for path in paths]
    for count in itertools.count(1):
        names = ["/".join(path.parts[-count:]) for path in whole]
        if len(set(names)) == len(set(whole)):
            return names
    raise AssertionError("unreachable")


def variants_of(runs: Sequence[Run]) -> list[Variant]:
    """The runs by what they differ in but their seeds, in the order in which they are given."""
    found: dict[Any, list[Run]] = {}
    for run in runs:
        data = run.dataset
        key = dataclasses.replace(run.recipe, seed=0), data.classes, data.image_shape, data.train_size
        found.setdefault(key, []).append(run)
    ordered = [tuple(sorted(some, key=lambda run: run.recipe.seed)) for some in found.values()]
    return [Variant(label, some) for label, some in zip(_labels([some[0] for some in ordered]), ordered, strict=True)]


def described(run: Run) -> dict[str, Any]:
    """All fields of the recipe but the seed, by their dotted names, and what is known of the data."""
    fields = dict(fields_of(run.recipe))
    del fields["seed"]
    height, width, channels = run.dataset.image_shape
    return fields | {
        "classes": len(run.dataset.classes),
        "image": f"{height} x {width} x {channels}",
        "training images": run.dataset.train_size,
    }


def differing(variants: Sequence[Variant]) -> list[str]:
    """The fields of `described` in which the variants are not all alike."""
    return _differing([described(variant.runs[0]) for variant in variants])


def _differing(fields: Sequence[dict[str, Any]]) -> list[str]:
    return [name for name in fields[0] if any(other[name] != fields[0][name] for other in fields)]


def written(value: Any) -> str:
    """A value of a field, for people."""
    if isinstance(value, tuple):
        return ", ".join(map(written, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return "default" if value is None else str(value)


def _labels(runs: Sequence[Run]) -> list[str]:
    """A few words for each: the network where they have several, and what most of the others have not."""
    fields = [described(run) for run in runs]
    names = _differing(fields)
    usual = {name: Counter(one[name] for one in fields).most_common(1)[0][0] for name in names}
    labels = []
    for one in fields:
        own = [name for name in names if one[name] != usual[name] or name == "model.name"]
        words = [_short(name, one[name]) for name in (own or names[:1])]
        labels.append(", ".join([*words[:_LABELLED], *(["..."] if len(words) > _LABELLED else [])]))
    return _unlike([label or run.recipe.model.name for label, run in zip(labels, runs, strict=True)])


def _unlike(labels: Sequence[str]) -> list[str]:
    """The labels, with a number where one occurs again."""
    total, seen, unlike = Counter(labels), Counter[str](), []
    for label in labels:
        seen[label] += 1
        unlike.append(f"{label} ({seen[label]})" if total[label] > 1 else label)
    return unlike


def _short(name: str, value: Any) -> str:
    part, _, last = name.rpartition(".")
    if last == "name":
        return str(value)
    own = f"{part} {last}" if part and last in ("size", "crop") else last
    return f"{own.replace('_', ' ')} {written(value)}"


def notes_on(paths: Sequence[Path], variants: Sequence[Variant]) -> list[str]:
    """What a reader of the numbers has to know of the runs, a line each."""
    runs = [run for variant in variants for run in variant.runs]
    notes = []
    if len(paths) > len(runs):
        notes.append("A run that was named more than once counts once.")
    for run in runs:
        if not run.lines:
            notes.append(f"{run.name} has no line of metrics yet.")
        elif not run.finished:
            step = run.lines[-1]["step"]
            notes.append(f"{run.name} is not finished: step {step:,} of {run.steps:,}.")
    for variant in variants:
        left = len([run for run in variant.runs if run.lines]) - len(variant.counted)
        if left:
            done = len(variant.counted)
            notes.append(f"{variant.label}: the numbers are of the {done} finished of {done + left} runs.")
        steps = sorted({run.lines[-1]["step"] for run in variant.counted})
        if len(steps) > 1:
            notes.append(f"{variant.label}: the last lines are of steps {steps[0]:,} to {steps[-1]:,}.")
        for seed, count in Counter(run.recipe.seed for run in variant.runs).items():
            if count > 1:
                notes.append(f"{variant.label}: {count} runs have seed {seed}, so they say less than they seem to.")
    if len({variant.split for variant in variants}) > 1:
        notes.append("Some runs are measured on validation images, others on the test split: they do not compare.")
    return notes
