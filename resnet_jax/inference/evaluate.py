"""Evaluate a run, finished or not, or published weights."""

from pathlib import Path
from typing import Any, NamedTuple

from resnet_jax.data.datasets import open_split
from resnet_jax.data.source import Source
from resnet_jax.errors import InputError
from resnet_jax.inference.load_model import load_model
from resnet_jax.inference.source import CheckpointChoice, WeightsInfo
from resnet_jax.input_pipeline.device_input import open_device_split
from resnet_jax.input_pipeline.loading import DataLoading
from resnet_jax.run_dir.files import is_run
from resnet_jax.training.evaluate import evaluate_split, make_eval_step
from resnet_jax.training.setup import Parts, TrainSetup, require_input_kind, select_metrics
from resnet_jax.training.sources import preprocessing_of


class Evaluation(NamedTuple):
    """Metric values of a state on a split."""

    step: int
    """Steps taken; 0 for published weights."""
    values: dict[str, Any]
    """By name, with the number of examples as "count"."""
    notes: tuple[str, ...] = ()
    """What people should know of the split, such as a choice between folders."""


def evaluate(
    where: Path | str,
    split: str = "test",
    *,
    weights: WeightsInfo = WeightsInfo(),
    checkpoint: CheckpointChoice = CheckpointChoice(),
    metrics: tuple[str, ...] = (),
    data_dir: Path | str | None = None,
    devices: int | None = None,
    loading: DataLoading = DataLoading(),
    data: Source | None = None,
    parts: Parts = Parts(),
) -> Evaluation:
    """Return the exact metrics of a run or of published weights: every example counts once.

    If the run keeps an EMA, it is evaluated unless `checkpoint` says otherwise.

    Args:
        where: a run directory, a weights file, "hf:OWNER/NAME" or a published name.
        split: "train", "validation" or "test".
        weights: what a bare weights file does not say; `weights.data` is the data set to evaluate weights on.
        checkpoint: which weights of a run.
        metrics: names; () is the loss and what the task reports by default.
        data_dir: folder of the data sets; None is where the run found its own.
        devices: number of devices; None is all.
        loading: how data reaches the devices.
        data: the split itself, instead of the data set that the run names.
        parts: values that the run was given.

    Raises:
        InputError: Run, weights or data are missing or do not fit each other.

    Example:
        >>> evaluate("runs/digits").values["accuracy"]  # doctest: +SKIP
        0.9917
    """
    setup, state = load_model(
        where, weights, checkpoint, data_dir=Path(data_dir or "data"), devices=devices, parts=parts
    )
    source = data or open_eval_source(where, setup, split, data_dir)
    if data is not None:
        _require_same_data(where, setup, data)
    selected = select_metrics(setup.task, metrics)
    step = make_eval_step(setup.model, setup.recipe.data, setup.mesh, selected)
    values = evaluate_split(
        step, selected, state, open_device_split(setup.task.targets.cast(source), setup.mesh, loading)
    )
    return Evaluation(int(state.step), values, source.notes)


def open_eval_source(run: Path | str, setup: TrainSetup, split: str, data_dir: Path | str | None = None) -> Source:
    """Open the split that a run or weights are evaluated on; raise InputError if it is missing or does not fit."""
    data = setup.recipe.data
    if not data.name:
        raise InputError(f"{run}: weights are evaluated on a data set; name it with --data")
    if split == "validation" and not data.num_validation:
        raise InputError(f"{run}: no validation images are held out; use --split test")
    folder = Path(data_dir or setup.dataset.data_dir)
    source = open_split(data.name, split, folder, data.num_validation, preprocessing_of(data), data.test_split)
    _require_same_data(run, setup, source)
    return source


def _require_same_data(run: Path | str, setup: TrainSetup, source: Source) -> None:
    """Raise InputError if the data is not what a run was trained on or weights can be evaluated on."""
    name, shape = setup.recipe.data.name, source.read(0).image.shape
    if is_run(run) and (source.classes, shape) != (setup.dataset.classes, setup.dataset.image_shape):
        raise InputError(f"{run}: trained on other classes or sizes than {name} has now (see dataset.json there)")
    require_input_kind(setup.recipe, setup.model, shape)
    known, channels = len(setup.dataset.classes), setup.dataset.image_shape[-1]
    if (len(source.classes), shape[-1]) != (known, channels):
        raise InputError(
            f"{run}: is for {known:,} classes and {channels} channels, {name} has {len(source.classes):,} and"
            f" {shape[-1]}; train a new head with model.pretrained"
        )
