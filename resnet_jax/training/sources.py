"""The data of a run: both splits, what they have in common with its recipe, and with the other hosts."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from resnet_jax.data.arrays import require_channels_last
from resnet_jax.data.datasets import found_in, open_split
from resnet_jax.data.duplicates import are_quickly_compared, duplicates_note
from resnet_jax.data.image import preprocessing_of
from resnet_jax.data.labels import count_targets
from resnet_jax.data.resize import height_and_width
from resnet_jax.data.selection import Selection, select
from resnet_jax.data.source import Source, all_named, sample_digest, source_digest
from resnet_jax.errors import InputError
from resnet_jax.input_pipeline.host_input import reader, skip_corrupt
from resnet_jax.input_pipeline.preprocess import require_movable_target
from resnet_jax.recipe import Data, Loss, Recipe, fields_of
from resnet_jax.recipe.bounds import parse_fold
from resnet_jax.run_dir.environment import package_versions
from resnet_jax.run_dir.files import DatasetInfo
from resnet_jax.runtime.checksum import sha256_of
from resnet_jax.tasks.make import make_task, with_auto_weights
from resnet_jax.tasks.task import Task
from resnet_jax.training.options import RunOptions


class Sources(NamedTuple):
    """The data of a run."""

    train: Source
    evaluation: Source
    """The validation split, or the test split if there is none."""
    dataset: DatasetInfo

    def notes(self) -> tuple[str, ...]:
        """Return what people should know of the splits, each line once."""
        return tuple(dict.fromkeys((*self.train.notes, *self.evaluation.notes)))


def selection_of(data: Data) -> Selection:
    """Return which examples a recipe learns and holds out, as a record."""
    fields = {name: getattr(data, name) for name in Selection._fields}
    return Selection(**fields | {"fold": parse_fold(data.fold) if data.fold else None})


def eval_split(recipe: Recipe) -> str:
    """Return the name of the split that a run is evaluated on while it trains."""
    return "validation" if recipe.data.holds_out else "test"


def open_sources(
    recipe: Recipe, data_dir: Path, data: tuple[Source, Source] | None = None, task: Task | None = None
) -> Sources:
    """Open the data set of a recipe, or `data`, its training and test split.

    Raises:
        InputError: The data set is unknown, missing or incomplete, or its targets are not what the task is about.
    """
    d, names = recipe.data, ("train", eval_split(recipe))
    if data is None:
        train, held = (
            open_split(d.name, n, data_dir, selection_of(d), preprocessing_of(d), d.test_split, trusted=True)
            for n in names
        )
    else:
        train, held = (select(data[name == "test"], name, selection_of(d), d.name) for name in names)
    shape = _skipping_corrupt(train).read(0).image.shape
    with all_named(held):
        held_shape = held.read(0).image.shape
    if held_shape != shape:
        raise InputError(f"{d.name}: the splits have images of different sizes; set data.image_size to resize them")
    if data is not None and len(shape) > 2:
        require_channels_last(f"the images of data= have shape {shape}", shape)
    if data is not None and d.image_size and shape[-3:-1] != height_and_width(d.image_size):
        raise InputError(
            f"data.image_size is {d.image_size}; the images of data= are {shape}, resize them or leave it out"
        )
    targets = (task or make_task(recipe.loss)).targets
    for source in (train, held):
        targets.check(_skipping_corrupt(source))
    train, held = targets.cast(train), targets.cast(held)
    require_movable_target(recipe.augment, *_skipping_corrupt(train).read(0), targets.fill)
    # An absolute path, so that the run can be evaluated from any directory
    home = found_in(d.name, data_dir).absolute()
    counts = class_counts(recipe.loss, train, d.name)
    return Sources(train, held, DatasetInfo(train.classes, shape, train.size, str(home), class_counts=counts))


def class_counts(loss: Loss, train: Source, name: str) -> tuple[int, ...]:
    """Return how often each class is in the training images, if the loss is weighted by it, otherwise ().

    Raises:
        InputError: A class is not in them.
    """
    if "auto" not in (loss.class_weights, loss.pos_weight):
        return ()
    counts = count_targets(train)
    if not counts.all():
        missing = train.classes[int(np.argmin(counts))]
        raise InputError(f"{name}: no training image has the class {missing!r}, so that its weight is not known")
    return tuple(counts.tolist())


def with_digest(sources: Sources) -> Sources:
    """Return the sources with the digest of their examples, which tells a run's data from others like it."""
    digest = sha256_of([source_digest(source) for source in (sources.train, sources.evaluation)])
    return sources._replace(dataset=replace(sources.dataset, digest=digest))


def notes_on_data(recipe: Recipe, sources: Sources) -> list[str]:
    """Return the numbers behind weights that are "auto", and a warning if arrays in memory are in both splits."""
    notes, dataset = [], sources.dataset
    loss = with_auto_weights(recipe.loss, dataset.class_counts, dataset.train_size, len(dataset.classes))
    for name in ("class_weights", "pos_weight"):
        if getattr(recipe.loss, name) == "auto":
            weights = zip(dataset.classes, getattr(loss, name), strict=True)
            some = ", ".join(f"{of_class} {weight:.4g}" for of_class, weight in itertools.islice(weights, 20))
            notes.append(f"loss.{name}: {some}{', ...' if len(dataset.classes) > 20 else ''}")
    if are_quickly_compared(sources.train, sources.evaluation):
        notes.append(duplicates_note(sources.train, sources.evaluation, eval_split(recipe)))
    return list(filter(None, notes))


def facts_of(recipe: Recipe, sources: Sources, out: Path, options: RunOptions) -> dict[str, Any]:
    """Return what all hosts must have in common, as JSON values: what decides the curve, and when they meet."""
    if jax.process_count() == 1:
        return {}
    own = ("data_dir", "num_threads", "watchdog_seconds", "time_limit")
    flags = {f"--{name.replace('_', '-')}": value for name, value in vars(options).items() if name not in own}
    data = {name: value for name, value in vars(sources.dataset).items() if name != "data_dir"}
    return {
        "--out": str(out),
        **{f"--{name}": value for name, value in fields_of(recipe)},
        **flags,
        **{f"the {name} of the data": value for name, value in data.items()},
        "the pixels of the data": [sample_digest(source) for source in (sources.train, sources.evaluation)],
        **package_versions(),
    }


def _skipping_corrupt(source: Source) -> Source:
    read = skip_corrupt(reader(source, None), source.size, {})
    return source._replace(read=lambda index: read(index, 0))
