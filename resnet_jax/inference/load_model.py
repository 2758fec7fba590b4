"""Open a trained network: of a run directory, or of published weights."""

import hashlib
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.data.datasets import takes_preprocessing
from resnet_jax.data.image import Preprocessing, preprocessing_of
from resnet_jax.data.resize import height_and_width
from resnet_jax.errors import InputError, unknown
from resnet_jax.inference.load_run import load_run
from resnet_jax.inference.source import CheckpointChoice, WeightsInfo
from resnet_jax.models.zoo import MODELS, known_as
from resnet_jax.parallel.sharding import replicate
from resnet_jax.recipe import Augment, Data, Model, Recipe, check
from resnet_jax.run_dir.files import DatasetInfo, is_run
from resnet_jax.tasks.make import published_loss
from resnet_jax.training.metadata import read_metadata
from resnet_jax.training.network import require_published
from resnet_jax.training.setup import Parts, TrainSetup, make_setup
from resnet_jax.training.state import TrainState, with_ema_params
from resnet_jax.weights.entries import WEIGHTS, Entry, class_names
from resnet_jax.weights.load import count_channels, count_classes, log_notes, match_tensors
from resnet_jax.weights.locate import locate
from resnet_jax.weights.rename import describe_names, rename
from resnet_jax.weights.state_dict import TensorFile
from resnet_jax.weights.tensors import read_tensor_file


def load_model(
    where: Path | str,
    weights: WeightsInfo = WeightsInfo(),
    checkpoint: CheckpointChoice = CheckpointChoice(),
    *,
    data_dir: Path = Path("data"),
    devices: int | None = None,
    parts: Parts = Parts(),
    cast: bool = False,
    headless: bool = False,
) -> tuple[TrainSetup, TrainState]:
    """Return network and state of a run directory, a weights file, "hf:OWNER/NAME" or a published name.

    Args:
        where: the source.
        weights: what a bare weights file does not say of itself; for weights only.
        checkpoint: which weights of a run; for runs only.
        data_dir: folder of the data sets, for weights.
        devices: number of devices; None is all.
        parts: values that a run was given.
        cast: round float64 weights to float32.
        headless: also take weights without a head, whose network then has no classes.

    Raises:
        InputError: There is nothing, the network or its preprocessing is not known, or an argument is for the other
            kind of source.
    """
    if not is_run(where):
        _require_unset(checkpoint, f"{where}: is not a run, and has only one set of weights")
        return _load_weights(str(where), weights, data_dir, devices, cast, headless)
    _require_unset(weights, f"{where}: a run has its own network, data and preprocessing")
    best, network = checkpoint.best, checkpoint.network
    setup, state = load_run(Path(where), devices, best=best, network=network, parts=parts, optimizer=False)
    return setup, state if checkpoint.no_ema else with_ema_params(state)


def weights_digest(state: TrainState) -> str:
    """Return the SHA-256 of parameters and statistics."""
    sha256 = hashlib.sha256()
    for leaf in jax.tree.leaves((state.params, state.batch_stats)):
        sha256.update(np.asarray(leaf).tobytes())
    return sha256.hexdigest()


def _require_unset(options: CheckpointChoice | WeightsInfo, why: str) -> None:
    set_ = [f"--{f.name.replace('_', '-')}" for f in fields(options) if getattr(options, f.name) not in (None, False)]
    if set_:
        raise InputError(f"{why}; leave {', '.join(set_)} out")


def _load_weights(
    where: str, weights: WeightsInfo, data_dir: Path, devices: int | None, cast: bool, headless: bool
) -> tuple[TrainSetup, Any]:
    """Return the setup and a state at step 0 without an optimiser."""
    file, entry = locate(where)
    found = read_tensor_file(file)
    recipe, dataset = _written(found, weights) or _described(where, found, weights, entry, headless)
    setup = make_setup(check(recipe), replace(dataset, data_dir=str(data_dir)), devices)
    model = require_published(setup.model, "loading weights").clone(input_shape=dataset.image_shape)
    found = rename(model, found)
    if (classes := count_classes(model, found.tensors) or 0) != len(dataset.classes):
        raise InputError(f"{file}: its head has {classes} classes, and its metadata {len(dataset.classes):,}")
    loaded = match_tensors(model, found, cast=cast)
    log_notes(loaded.notes)
    variables = loaded.variables
    state = TrainState(jnp.zeros((), jnp.int32), variables["params"], variables.get("batch_stats", {}), ())
    return setup, replicate(state, setup.mesh)


def _written(found: TensorFile, weights: WeightsInfo) -> tuple[Recipe, DatasetInfo] | None:
    """Return what `convert` wrote beside the tensors, and what the flags say instead; None if it is not of use."""
    written = read_metadata(found)
    if written is None or weights.model not in (None, written[0].model.name):
        return None
    recipe, dataset = written
    data = _data(Preprocessing(**_with_flags(preprocessing_of(recipe.data), weights)), weights.data)
    *spatial, channels = dataset.image_shape
    shape = (*_spatial(weights, tuple(spatial)), channels) if len(spatial) > 1 else dataset.image_shape
    return replace(recipe, data=data), replace(dataset, image_shape=shape)


def _spatial(preprocessing: Preprocessing, known: tuple[int, ...]) -> tuple[int, ...]:
    """Return the axes of an example but for its channels: those that are known, or as the preprocessing says."""
    size, frames = preprocessing.image_size, preprocessing.frames
    return (*((frames,) if frames else known[:-2]), *(height_and_width(size) if size else known[-2:]))


def _described(
    where: str, found: TensorFile, weights: WeightsInfo, entry: Entry | None, headless: bool
) -> tuple[Recipe, DatasetInfo]:
    """Return what the flags, published weights or a config.json say of a file."""
    name, entry = _network(where, weights, entry, (found.metadata or {}).get("model"))
    found = rename(MODELS[name], found)
    classes = count_classes(MODELS[name], found.tensors)
    if classes is None and not headless:
        hint = "is it for another network? A new head can be trained on it: model.pretrained"
        raise InputError(f"{found.path}: has no head, and so no classes{describe_names(found)}; {hint}")
    preprocessing = _preprocessing(where, weights, entry)
    shape = _spatial(preprocessing, MODELS[name].input_shape[:-1])
    channels = count_channels(MODELS[name], found.tensors) or 3
    model = Model(name=name, fields=dict(entry.fields) if entry else {})
    recipe = Recipe(
        model=model, loss=published_loss(name), data=_data(preprocessing, weights.data), augment=Augment(crop_padding=0)
    )
    return recipe, DatasetInfo(class_names(classes or 0, entry), (*shape, channels), train_size=1, data_dir="")


def _network(where: str, weights: WeightsInfo, entry: Entry | None, written: str | None) -> tuple[str, Entry | None]:
    """Return the name of the network, also if it is only `written` in the file, and the weights that it resembles."""
    asked = weights.model and known_as(weights.model)
    if asked in WEIGHTS:
        return WEIGHTS[asked].model, WEIGHTS[asked]
    if entry and entry.refused:
        hint = "take other weights, or remove it there if it does not matter"
        raise InputError(f"{where}: config.json says {entry.refused}, which is not understood; {hint}")
    if asked is None and entry is None and written not in MODELS:
        raise InputError(
            f"{where}: does not say which network it is; name it with --model (`resnet-jax list` shows all)"
        )
    name = asked or (entry.model if entry else str(written))
    if name not in MODELS:
        raise unknown("model", name, [*MODELS, *WEIGHTS])
    return name, entry


def _preprocessing(where: str, weights: WeightsInfo, entry: Entry | None) -> Preprocessing:
    """Return what is published, and what the flags say instead."""
    values = _with_flags(entry.preprocessing if entry else Preprocessing(), weights)
    for name in ("mean", "std"):
        if values.get(name) is None:
            raise InputError(
                f"{where}: its preprocessing is not known; give --{name}, or published weights like it with --model"
            )
    return Preprocessing(**values)


def _with_flags(known: Preprocessing, weights: WeightsInfo) -> dict[str, Any]:
    """Return the fields of a preprocessing, those that the flags give replaced."""
    flags = {field.name: getattr(weights, field.name) for field in fields(Preprocessing)}
    return vars(known) | {name: value for name, value in flags.items() if value is not None}


def _data(preprocessing: Preprocessing, name: str | None) -> Data:
    known = {key: value for key, value in vars(preprocessing).items() if value is not None}
    if name is not None and not takes_preprocessing(name):
        known = {key: known[key] for key in ("mean", "std")}
    return Data(**known, name=name or "")
