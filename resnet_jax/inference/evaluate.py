"""Evaluate a run, finished or not, or published weights."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import numpy as np
from flax import linen as nn

from resnet_jax.data.datasets import open_split
from resnet_jax.data.image import Preprocessing, preprocessing_of
from resnet_jax.data.own import is_own
from resnet_jax.data.source import Source, source_digest
from resnet_jax.errors import InputError
from resnet_jax.inference.load_model import load_model, weights_digest
from resnet_jax.inference.source import CheckpointChoice, WeightsInfo
from resnet_jax.inference.sums import read_sums, save_sums
from resnet_jax.inference.views import Viewed, Views, clips_of, crops_of
from resnet_jax.input_pipeline.device_input import open_device_split
from resnet_jax.input_pipeline.loading import DataLoading
from resnet_jax.run_dir.files import is_run
from resnet_jax.runtime.checksum import sha256_of
from resnet_jax.tasks.detection import with_classes
from resnet_jax.tasks.task import select_metrics
from resnet_jax.training.consistency import require_input_kind
from resnet_jax.training.evaluate import evaluate_split, make_eval_step
from resnet_jax.training.executables import keep
from resnet_jax.training.setup import Parts, TrainSetup, program_identity
from resnet_jax.training.sources import selection_of


class Evaluation(NamedTuple):
    """Metric values of a state on a split."""

    step: int
    """Steps taken; 0 for published weights."""
    values: dict[str, Any]
    """By name, with the number of examples as "count"."""
    notes: tuple[str, ...] = ()
    """What people should know of the split, such as a choice between folders."""
    preprocessing: Preprocessing = Preprocessing()
    """How the images were resized, cropped and normalised."""
    parameters: int = 0
    """Number of trainable parameters."""


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
    views: Views = 1,
    clips: int = 1,
    progress: Path | None = None,
) -> Evaluation:
    """Return the exact metrics of a run or of published weights: every example counts once.

    If the run keeps an EMA, it is evaluated unless `checkpoint` says otherwise.

    Args:
        where: a run directory, a weights file, "hf:OWNER/NAME" or a published name.
        split: "train", "validation" or "test".
        weights: model name and preprocessing of a bare weights file; `weights.data` is the data set to evaluate on,
            or your own data source if the run names one, which is not imported otherwise.
        checkpoint: which weights of a run to use.
        metrics: names; () is the task's default. The loss is always reported.
        data_dir: folder of the data sets; None is that of the run.
        devices: number of devices; None is all.
        loading: how data reaches the devices.
        data: the split itself, instead of the data set that the run names.
        parts: parts that were passed to the run as values.
        views: views of each image to average probabilities over: 2 adds the mirror image, 5 the crops of the corners to
            that of the centre, 10 both; for networks that predict classes.
        clips: number of clips of each video file to average over, spread evenly; 1 is the middle one.
        progress: file that keeps the sums so far, from which an interrupted evaluation resumes.

    Raises:
        InputError: Run, weights or data are missing or do not fit each other.

    Example:
        >>> evaluate("runs/digits").values["accuracy"]  # doctest: +SKIP
        0.9917
    """
    own = weights.data if is_run(where) and weights.data and is_own(weights.data) else None
    if own:
        weights = replace(weights, data=None)
    setup, state = load_model(
        where, weights, checkpoint, data_dir=Path(data_dir or "data"), devices=devices, parts=parts
    )
    source = open_eval_source(where, setup, split, data_dir, own) if data is None else _fitting(where, setup, data)
    setup, source = _as_reported(setup, source, views, clips)
    selected = select_metrics(setup.task, metrics)
    identity = program_identity(setup, "evaluate", sorted(selected))
    step = keep(make_eval_step(setup.model, setup.recipe.data, setup.mesh, selected), setup.mesh, identity)
    device_split = open_device_split(setup.task.targets.cast(source), setup.mesh, loading)
    keeping: dict[str, Any] = {}
    # Without an identity nobody knows whose sums they are
    if progress is not None and identity and not any(metric.per_example for metric in selected.values()):
        what = (weights_digest(state), source_digest(source), identity, views, clips, setup.mesh.size)
        key = sha256_of(what)
        keeping = {"done": read_sums(progress, key), "save": partial(save_sums, progress, key)}
    values = evaluate_split(step, selected, state, device_split, **keeping)
    if progress is not None:
        progress.unlink(missing_ok=True)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    return Evaluation(int(state.step), values, source.notes, preprocessing_of(setup.recipe.data), parameters)


def _as_reported(setup: TrainSetup, source: Source, views: Views, clips: int) -> tuple[TrainSetup, Source]:
    """Return setup and data with several views, for soft targets, and for sets of which only their classes count."""
    name, task = setup.recipe.data.name, setup.task
    if task.answers == "ranked" and np.shape(source.read(0).target) == (len(source.classes),):
        task = task._replace(targets=task.targets._replace(dtype=np.float32))
        setup = setup._replace(task=task)
    present = name.partition(":")[0] in ("imagenet_a", "imagenet_r") and source.labels is not None
    if views == clips == 1 and not present:
        return setup, source
    if task.answers != "ranked":
        raise InputError("--views and --clips are for networks that predict one class; leave them out")
    classes = tuple(np.unique(np.asarray(source.labels)).tolist()) if present else None
    preprocessing, axes = preprocessing_of(setup.recipe.data), len(setup.dataset.image_shape)
    if clips != 1:
        source = clips_of(source, preprocessing, clips, name)
    if views in (5, 10):
        if axes > 3:
            raise InputError(f"--views {views} crops images; of video take --views 2 and --clips")
        source = crops_of(source, preprocessing, name)
    viewed = cast(nn.Module, Viewed(setup.model, views in (2, 10), classes, axes))
    return setup._replace(model=viewed), source


def open_eval_source(
    run: Path | str, setup: TrainSetup, split: str, data_dir: Path | str | None = None, own: str | None = None
) -> Source:
    """Open the split that a run or weights are evaluated on; raise InputError if it is missing or does not fit.

    `own` is the data source of one's own that the caller names, without which it is not imported.
    """
    data = setup.recipe.data
    if not data.name:
        raise InputError(f"{run}: to evaluate weights, name a data set with --data")
    if split == "validation" and not data.holds_out:
        raise InputError(f"{run}: no validation images are held out; use --split test")
    folder = Path(data_dir or setup.dataset.data_dir)
    chosen = selection_of(data), preprocessing_of(data), data.test_split
    source = open_split(data.name, split, folder, *chosen, trusted=data.name == own)
    return _fitting(run, setup, source)


def _fitting(run: Path | str, setup: TrainSetup, source: Source) -> Source:
    """Return the data, with the classes of weights; raise InputError if it is not what a run or weights are for."""
    if not is_run(run):
        source = with_classes(source, setup.dataset.classes)
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
    return source
