"""The data of a run: both splits, what they have in common with its recipe, and with the other hosts."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax

from resnet_jax.data.datasets import found_in, holdout_split, open_split
from resnet_jax.data.image import Preprocessing
from resnet_jax.data.source import Source, all_named, sample_digest, source_digest
from resnet_jax.errors import InputError
from resnet_jax.input_pipeline.host_input import reader, skip_corrupt
from resnet_jax.input_pipeline.preprocess import require_movable_target
from resnet_jax.recipe import Data, Recipe, fields_of
from resnet_jax.run_dir.environment import package_versions
from resnet_jax.run_dir.files import DatasetInfo
from resnet_jax.runtime.checksum import sha256_of
from resnet_jax.tasks.make import make_task
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


def preprocessing_of(data: Data) -> Preprocessing:
    """Return the preprocessing of a recipe as a record."""
    return Preprocessing(
        image_size=data.image_size,
        crop_pct=data.crop_pct,
        interpolation=data.interpolation,
        mean=data.mean,
        std=data.std,
    )


def eval_split(recipe: Recipe) -> str:
    """Return the name of the split that a run is evaluated on while it trains."""
    return "validation" if recipe.data.num_validation else "test"


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
            open_split(d.name, n, data_dir, d.num_validation, preprocessing_of(d), d.test_split) for n in names
        )
    else:
        train, held = (holdout_split(data[name == "test"], name, d.num_validation, d.name) for name in names)
    shape = _skipping_corrupt(train).read(0).image.shape
    with all_named(held):
        held_shape = held.read(0).image.shape
    if held_shape != shape:
        raise InputError(f"{d.name}: the splits have images of different sizes; set data.image_size to resize them")
    if data is not None and d.image_size and shape[:2] != (d.image_size, d.image_size):
        raise InputError(
            f"data.image_size is {d.image_size}; the images of data= are {shape}, resize them or leave it out"
        )
    targets = (task or make_task(recipe.loss)).targets
    for source in (train, held):
        targets.check(_skipping_corrupt(source))
    train, held = targets.cast(train), targets.cast(held)
    require_movable_target(recipe.augment, *_skipping_corrupt(train).read(0))
    # An absolute path, so that the run can be evaluated from any directory
    home = found_in(d.name, data_dir).absolute()
    return Sources(train, held, DatasetInfo(train.classes, shape, train.size, str(home)))


def with_digest(sources: Sources) -> Sources:
    """Return the sources with the digest of their examples, which tells a run's data from others like it."""
    digest = sha256_of([source_digest(source) for source in (sources.train, sources.evaluation)])
    return sources._replace(dataset=replace(sources.dataset, digest=digest))


def facts_of(recipe: Recipe, sources: Sources, out: Path, options: RunOptions) -> dict[str, Any]:
    """Return what all hosts must have in common, as JSON values: what decides the curve, and when they meet."""
    if jax.process_count() == 1:
        return {}
    own = ("data_dir", "num_threads", "watchdog_seconds")
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
