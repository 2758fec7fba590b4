"""Evaluation of a run, finished or not, or of published weights."""

from pathlib import Path

from resnet_jax.data.datasets import open_split
from resnet_jax.data.source import Source
from resnet_jax.errors import InputError
from resnet_jax.train.evaluate import Metrics, make_evaluation, to_the_end
from resnet_jax.train.feed import supply
from resnet_jax.train.habits import Feeding
from resnet_jax.train.job import Job, fit_of, require_kind
from resnet_jax.train.which import Which
from resnet_jax.trained import is_run, open_trained
from resnet_jax.weights.like import Like


def evaluate_run(
    run: Path | str,
    split: str = "test",
    *,
    like: Like = Like(),
    which: Which = Which(),
    data_dir: Path | None = None,
    devices: int | None = None,
    feeding: Feeding = Feeding(),
) -> tuple[int, Metrics]:
    """The step of the newest checkpoint of a run, and its exact metrics on "train", "validation" or "test".

    Measured are the averages of its weights, where it keeps some; `which` chooses others.

    In place of a run, weights: a file, "hf:OWNER/NAME" or a published name, with `like.data` to measure them on, at
    step 0. `data_dir` is where the run found its data unless given. Raises InputError where run, weights or data are
    not there or do not fit each other.
    """
    job, state = open_trained(run, like, which, data_dir=data_dir or Path("data"), devices=devices)
    source = open_measured(run, job, split, data_dir)
    evaluation = make_evaluation(job.model, job.recipe.data, job.mesh, loss=job.measure, right=job.right)
    return int(state.step), to_the_end(evaluation(state, supply(source, job.mesh, feeding)))


def open_measured(run: Path | str, job: Job, split: str, data_dir: Path | None = None) -> Source:
    """The split that a run or weights are measured on; raises InputError where it is not there or does not fit."""
    data = job.recipe.data
    if not data.name:
        raise InputError(f"{run}: weights are measured on a data set; name it with --data")
    if split == "validation" and not data.validation:
        raise InputError(f"{run}: no validation images are held out; use --split test")
    source = open_split(data.name, split, data_dir or Path(job.dataset.data_dir), data.validation, fit_of(data))
    _require_same_data(run, job, source)
    return source


def _require_same_data(run: Path | str, job: Job, source: Source) -> None:
    """Raises InputError where the data is not what a run was trained on or weights can be measured on."""
    name, shape = job.recipe.data.name, source.read(0).image.shape
    if is_run(run) and (source.classes, shape) != (job.dataset.classes, job.dataset.image_shape):
        raise InputError(f"{run}: trained on other classes or sizes than {name} has now (see dataset.json there)")
    require_kind(job.recipe, job.model, shape)
    known, channels = len(job.dataset.classes), job.dataset.image_shape[-1]
    if (len(source.classes), shape[-1]) != (known, channels):
        raise InputError(
            f"{run}: is for {known:,} classes and {channels} channels, {name} has {len(source.classes):,} and"
            f" {shape[-1]}; train a new head with model.pretrained"
        )
