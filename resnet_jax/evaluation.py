"""Evaluation of a finished or unfinished run on any split of its data."""

from pathlib import Path

from resnet_jax.data.datasets import open_split
from resnet_jax.data.source import to_arrays
from resnet_jax.errors import InputError
from resnet_jax.train.checkpoint import load_run
from resnet_jax.train.evaluate import Metrics, make_evaluate, place


def evaluate_run(
    run: Path, split: str = "test", *, data_dir: Path | None = None, devices: int | None = None
) -> tuple[int, Metrics]:
    """The step of the newest checkpoint of a run, and its exact metrics on "train", "validation" or "test".

    `data_dir` is where the run found its data unless given. Raises InputError where run or data are not there.
    """
    job, state = load_run(run, devices)
    data = job.recipe.data
    if split == "validation" and not data.validation:
        raise InputError(f"{run}: the recipe holds no validation images out; use --split test")
    source = open_split(data.name, split, data_dir or Path(job.dataset.data_dir), data.validation)
    evaluate = make_evaluate(job.model, data, job.mesh, source.size)
    return int(state.step), evaluate(state, place(to_arrays(source), job.mesh))
