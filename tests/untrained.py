"""Runs that nobody trained: to compile a step takes seconds, and is not what these tests are about."""

from resnet_jax.checkpoint.checkpoint import open_checkpoints, save
from resnet_jax.recipe import check
from resnet_jax.run_dir.files import DatasetInfo, identity, init_run_dir
from resnet_jax.training.init import init_train_state
from resnet_jax.training.setup import make_setup


def write_run(run, recipe, image_shape, classes, *, change=lambda state: state):
    """Write a run directory with the changed initial state as its only checkpoint, and return its path."""
    recipe, dataset = check(recipe), DatasetInfo(tuple(classes), image_shape, 40, "data")
    state = change(init_train_state(make_setup(recipe, dataset, 1)))
    init_run_dir(run, recipe, dataset)
    with open_checkpoints(run / "checkpoints") as checkpoints:
        save(checkpoints, state, identity(recipe, dataset))
    return run
