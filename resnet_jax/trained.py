"""A trained network to be used: of a run directory, or of published weights."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp

from resnet_jax.data.datasets import takes_fit
from resnet_jax.errors import InputError, unknown
from resnet_jax.model.zoo import MODELS
from resnet_jax.recipe import Augment, Data, Model, Recipe, check
from resnet_jax.train.checkpoint import load_run
from resnet_jax.train.devices import replicate
from resnet_jax.train.directory import Dataset
from resnet_jax.train.job import Job, prepare
from resnet_jax.train.state import TrainState, averaged
from resnet_jax.train.which import Which
from resnet_jax.weights.entries import WEIGHTS, Entry, class_names
from resnet_jax.weights.like import Like
from resnet_jax.weights.load import count_channels, count_classes, fit
from resnet_jax.weights.locate import locate
from resnet_jax.weights.tensors import read_tensors


def is_run(where: Path | str) -> bool:
    """Whether a path is a run directory."""
    return (Path(where) / "recipe.json").is_file()


def open_trained(
    where: Path | str,
    like: Like = Like(),
    which: Which = Which(),
    *,
    data_dir: Path = Path("data"),
    devices: int | None = None,
) -> tuple[Job, TrainState]:
    """Network and state of a run directory, a file of weights, "hf:OWNER/NAME" or a published name.

    What the source does not say of itself, `like` says; `which` weights of a run are taken.

    Raises InputError where there is nothing, where it is not known which network it is or what it expects of an image,
    and where `like` is given for a run, which knows, or `which` for weights.
    """
    if not is_run(where):
        wanted = [f"--{name}" for name, value in vars(which).items() if value]
        if wanted:
            raise InputError(f"{where}: is no run, and has its weights only once; leave {', '.join(wanted)} out")
        return _open_weights(str(where), like, data_dir, devices)
    given = [f"--{name}" for name, value in vars(like).items() if value is not None]
    if given:
        raise InputError(f"{where}: a run has its own network, data and preprocessing; leave {', '.join(given)} out")
    job, state = load_run(Path(where), devices, best=which.best)
    return job, state if which.raw else averaged(state)


def _open_weights(where: str, like: Like, data_dir: Path, devices: int | None) -> tuple[Job, TrainState]:
    """As `open_trained`; the state is at step 0 and has no optimiser."""
    file, entry = locate(where)
    name, entry = _network(where, like, entry)
    tensors = read_tensors(file)
    classes = count_classes(tensors)
    if classes is None:
        raise InputError(f"{file}: has no head, and so no classes; start a training from it with model.pretrained")
    data, size = _data(where, like, entry), like.size or (entry and entry.preprocessing.size)
    shape = (size, size) if size else MODELS[name].input_shape[:-1]
    names = class_names(classes, entry.tag if entry else "")
    channels = count_channels(MODELS[name], tensors) or 3
    dataset = Dataset(names, (*shape, channels), train_size=1, data_dir=str(data_dir))
    job = prepare(check(Recipe(model=Model(name=name), data=data, augment=Augment(pad=0))), dataset, devices)
    variables = fit(job.model.clone(input_shape=dataset.image_shape), tensors, file).variables
    state = TrainState(jnp.zeros((), jnp.int32), variables["params"], variables.get("batch_stats", {}), ())
    return job, replicate(state, job.mesh)


def _network(where: str, like: Like, entry: Entry | None) -> tuple[str, Entry | None]:
    """Name of the network, and the published weights that it is like."""
    if like.model is None:
        if entry is None:
            raise InputError(f"{where}: which network is it? name it with --model (`resnet-jax list` shows all)")
        return entry.model, entry
    if like.model in WEIGHTS:
        return WEIGHTS[like.model].model, WEIGHTS[like.model]
    if like.model not in MODELS:
        raise unknown("model", like.model, [*MODELS, *WEIGHTS])
    return like.model, entry


def _data(where: str, like: Like, entry: Entry | None) -> Data:
    """Data set and preprocessing: what is published, and what the flags say instead."""
    values: dict[str, Any] = entry.preprocessing._asdict() if entry else {}
    values |= {name: value for name, value in vars(like).items() if name in Data.__annotations__ and value is not None}
    for name in ("mean", "std"):
        if name not in values:
            raise InputError(
                f"{where}: its preprocessing is not known; give --{name}, or published weights like it with --model"
            )
    if like.data is not None and not takes_fit(like.data):
        values = {name: values[name] for name in ("mean", "std")}
    return Data(**values, name=like.data or "")
