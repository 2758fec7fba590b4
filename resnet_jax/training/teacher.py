"""The teacher that a recipe names: another run, a file, of the hub, or a published entry."""

import hashlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from resnet_jax.data.image import Preprocessing, preprocessing_of
from resnet_jax.errors import InputError
from resnet_jax.models.resnet import ResNet
from resnet_jax.parallel.multihost import same_on_hosts
from resnet_jax.recipe import Distill
from resnet_jax.run_dir.files import is_run, read_recipe
from resnet_jax.tasks.make import make_task
from resnet_jax.training.distillation import Teacher
from resnet_jax.training.metadata import read_metadata
from resnet_jax.training.network import build_network, require_resnet
from resnet_jax.training.pretrained import restored_run
from resnet_jax.training.setup import TrainSetup
from resnet_jax.weights.entries import WEIGHTS
from resnet_jax.weights.load import Variables, count_classes, create_model, match_tensors
from resnet_jax.weights.locate import locate
from resnet_jax.weights.rename import rename
from resnet_jax.weights.tensors import read_tensor_file

# Network with the shape of its images, variables, preprocessing and names of the classes, as far as they are known
_Found = tuple[ResNet, Variables, Preprocessing, tuple[str, ...]]


def with_teacher(setup: TrainSetup) -> TrainSetup:
    """Return the setup with the teacher that its recipe names, if any.

    Raises:
        InputError: There is no such teacher, it is for other classes or images, or hosts have different ones.
    """
    if setup.recipe.distill.teacher is None:
        return setup
    with same_on_hosts() as facts:
        teacher = load_teacher(setup)
        facts["the teacher"] = teacher.digest
    return setup._replace(teacher=teacher)


def load_teacher(setup: TrainSetup) -> Teacher:
    """Return the teacher that a recipe names; raise InputError if there is none or it does not fit."""
    distill, data, classes = setup.recipe.distill, setup.recipe.data, setup.dataset.classes
    where = f"distill.teacher {distill.teacher}"
    try:
        model, variables, known, names = _open(distill)
    except InputError as error:
        raise InputError(f"distill.teacher: {error}") from error
    if setup.task.answers != "ranked":
        raise InputError(f"{where}: a teacher is for one class per image, and this task is another; leave it out")
    if model.num_classes != len(classes):
        raise InputError(f"{where}: has {model.num_classes:,} classes, {data.name} {len(classes):,}; take another one")
    ours, theirs = setup.dataset.image_shape, model.input_shape
    if (len(theirs), theirs[-1]) != (len(ours), ours[-1]):
        raise InputError(f"{where}: is for images such as {theirs}, {data.name} has {ours}; take another one")
    mean, std = known.mean or data.mean, known.std or data.std
    notes = [] if known.mean else [f"{where}: its mean and std are unknown; those of the recipe are used"]
    if names != classes and sorted(names) == sorted(classes):
        raise InputError(f"{where}: has the classes of {data.name} in another order; take another one")
    model = model.clone(dtype=jnp.dtype(setup.recipe.model.dtype))
    variables = jax.tree.map(np.asarray, variables)
    return Teacher(model, variables, mean, std, _digest(model, variables, mean, std), tuple(notes))


def _open(distill: Distill) -> _Found:
    where = str(distill.teacher)
    if is_run(where):
        if distill.model is not None:
            raise InputError(f"{where}: a run has its own network; leave distill.model out")
        return _open_run(Path(where))
    file, entry = locate(where)
    found = read_tensor_file(file)
    written = read_metadata(found)
    if written and distill.model is None:
        recipe, dataset = written
        network = require_resnet(build_network(recipe.model, len(dataset.classes)), "a teacher")
        network = network.clone(input_shape=dataset.image_shape)
        variables = match_tensors(network, rename(network, found)).variables
        return network, variables, preprocessing_of(recipe.data), dataset.classes
    entry = WEIGHTS.get(distill.model or "", entry)
    name = entry.model if entry else distill.model or (found.metadata or {}).get("model")
    if entry and entry.refused:
        raise InputError(f"{where}: config.json says {entry.refused}, which is not understood; take another one")
    if not name:
        raise InputError(
            f"{where}: does not say which network it is; name it with distill.model (`resnet-jax list` shows all)"
        )
    model, variables = create_model(name, pretrained=where)
    network = require_resnet(model, "a teacher")
    if count_classes(network, rename(network, found).tensors) is None:
        raise InputError(f"{where}: has no head, and so no classes; take another one")
    return network, variables, entry.preprocessing if entry else Preprocessing(), entry.class_names if entry else ()


def _open_run(run: Path) -> _Found:
    recipe = read_recipe(run)
    if ":" in recipe.model.name:
        raise InputError(f"{run}: its network is {recipe.model.name}, of your own, which is not imported for a teacher")
    setup, state = restored_run(run)
    if make_task(recipe.loss).answers != "ranked":
        raise InputError(f"{run}: was trained with loss.name {recipe.loss.name}, and not on one class per image")
    network = require_resnet(setup.model, "a teacher").clone(input_shape=setup.dataset.image_shape)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    return network, variables, preprocessing_of(recipe.data), setup.dataset.classes


def _digest(model: ResNet, variables: Variables, mean: tuple[float, ...], std: tuple[float, ...]) -> str:
    """Return the SHA-256 of what a teacher computes, under whatever name it is found."""
    digest = hashlib.sha256(repr((model.depths, model.strides, mean, std)).encode())
    for path, leaf in sorted(traverse_util.flatten_dict(variables, sep="/").items()):
        digest.update(f"{path} {leaf.shape} {leaf.dtype}".encode())
        digest.update(np.ascontiguousarray(leaf).data)
    return digest.hexdigest()
