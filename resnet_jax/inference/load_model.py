"""Open a trained network: of a run directory, or of published weights."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from resnet_jax.data.datasets import takes_preprocessing
from resnet_jax.data.image import Preprocessing
from resnet_jax.errors import InputError, unknown
from resnet_jax.inference.load_run import load_run
from resnet_jax.inference.metadata import read_metadata
from resnet_jax.inference.source import CheckpointChoice, WeightsInfo
from resnet_jax.models.zoo import MODELS
from resnet_jax.parallel.sharding import replicate
from resnet_jax.recipe import Augment, Data, Model, Recipe, check
from resnet_jax.run_dir.files import DatasetInfo, is_run
from resnet_jax.training.network import require_resnet
from resnet_jax.training.setup import Parts, TrainSetup, make_setup
from resnet_jax.training.sources import preprocessing_of
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

    Raises:
        InputError: There is nothing, the network or its preprocessing is not known, or an argument is for the other
            kind of source.
    """
    if not is_run(where):
        _require_unset(checkpoint, f"{where}: is not a run, and has its weights only once")
        return _load_weights(str(where), weights, data_dir, devices, cast)
    _require_unset(weights, f"{where}: a run has its own network, data and preprocessing")
    setup, state = load_run(Path(where), devices, best=checkpoint.best, network=checkpoint.network, parts=parts)
    return setup, state if checkpoint.no_ema else with_ema_params(state)


def _require_unset(options: CheckpointChoice | WeightsInfo, why: str) -> None:
    set_ = [f"--{f.name.replace('_', '-')}" for f in fields(options) if getattr(options, f.name) not in (None, False)]
    if set_:
        raise InputError(f"{why}; leave {', '.join(set_)} out")


def _load_weights(
    where: str, weights: WeightsInfo, data_dir: Path, devices: int | None, cast: bool
) -> tuple[TrainSetup, Any]:
    """Return the setup and a state at step 0 without an optimiser."""
    file, entry = locate(where)
    found = read_tensor_file(file)
    recipe, dataset = _written(found, weights) or _described(where, found, weights, entry)
    setup = make_setup(check(recipe), replace(dataset, data_dir=str(data_dir)), devices)
    model = require_resnet(setup.model, "loading weights").clone(input_shape=dataset.image_shape)
    found = rename(model, found)
    if (classes := count_classes(found.tensors)) != len(dataset.classes):
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
    size, (*_, channels) = weights.image_size, dataset.image_shape
    shape = (size, size, channels) if size and len(dataset.image_shape) == 3 else dataset.image_shape
    return replace(recipe, data=data), replace(dataset, image_shape=shape)


def _described(where: str, found: TensorFile, weights: WeightsInfo, entry: Entry | None) -> tuple[Recipe, DatasetInfo]:
    """Return what the flags, published weights or a config.json say of a file."""
    name, entry = _network(where, weights, entry, (found.metadata or {}).get("model"))
    found = rename(MODELS[name], found)
    classes = count_classes(found.tensors)
    if classes is None:
        hint = "is it of another network? Without a head, a training can start from it: model.pretrained"
        raise InputError(f"{found.path}: has no head, and so no classes{describe_names(found)}; {hint}")
    preprocessing = _preprocessing(where, weights, entry)
    size = preprocessing.image_size
    shape = (size, size) if size else MODELS[name].input_shape[:-1]
    channels = count_channels(MODELS[name], found.tensors) or 3
    model = Model(name=name, fields=dict(entry.fields) if entry else {})
    recipe = Recipe(model=model, data=_data(preprocessing, weights.data), augment=Augment(crop_padding=0))
    return recipe, DatasetInfo(class_names(classes, entry), (*shape, channels), train_size=1, data_dir="")


def _network(where: str, weights: WeightsInfo, entry: Entry | None, written: str | None) -> tuple[str, Entry | None]:
    """Return the name of the network, also if it is only `written` in the file, and the weights that it resembles."""
    if weights.model in WEIGHTS:
        return WEIGHTS[weights.model].model, WEIGHTS[weights.model]
    if entry and entry.refused:
        hint = "take other weights, or remove it there if it does not matter"
        raise InputError(f"{where}: config.json says {entry.refused}, which is not understood; {hint}")
    if weights.model is None and entry is None and written not in MODELS:
        raise InputError(f"{where}: which network is it? name it with --model (`resnet-jax list` shows all)")
    name = weights.model or (entry.model if entry else str(written))
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
