"""Average the weights of runs that share a network: uniform and greedy soups."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from resnet_jax.errors import InputError
from resnet_jax.inference.evaluate import open_eval_source
from resnet_jax.inference.load_model import load_model
from resnet_jax.inference.source import CheckpointChoice
from resnet_jax.input_pipeline.device_input import (
    DeviceSplit,
    StepInput,
    gather_batch,
    open_device_split,
    training_batches,
)
from resnet_jax.input_pipeline.loading import DataLoading
from resnet_jax.input_pipeline.preprocess import make_preprocess, original_crop
from resnet_jax.parallel.sharding import replicate, replicated
from resnet_jax.recipe import differences
from resnet_jax.run_dir.files import is_run
from resnet_jax.runtime.compiler_options import compiler_options
from resnet_jax.tasks.task import Task
from resnet_jax.training.evaluate import evaluate_split, make_eval_step
from resnet_jax.training.init import random_keys
from resnet_jax.training.make_step import train_size_at
from resnet_jax.training.metadata import write_metadata
from resnet_jax.training.network import require_resnet
from resnet_jax.training.setup import TrainSetup
from resnet_jax.training.sources import eval_split
from resnet_jax.training.state import TrainState
from resnet_jax.weights.load import Variables
from resnet_jax.weights.tensors import write_tensors

# What recipes may differ in and still describe one network on the same images
_FREE = ("model.pretrained", "model.dropout", "model.head_dropout", "model.drop_path", "model.norm_momentum")
_SAME = ("model.", "data.", "loss.name")


class Averaged(NamedTuple):
    """What was averaged, and how good it is on the split that the runs were evaluated on."""

    scores: dict[str, float]
    """Monitored value of each run."""
    chosen: tuple[str, ...]
    """Runs in the average."""
    score: float
    """Monitored value of the average."""
    monitor: str
    split: str


def average(
    runs: Sequence[Path | str],
    out: Path | str,
    *,
    greedy: bool = False,
    checkpoint: CheckpointChoice = CheckpointChoice(),
    data_dir: Path | None = None,
    devices: int | None = None,
    loading: DataLoading = DataLoading(),
) -> Averaged:
    """Write the mean of the parameters of several runs as a safetensors file that describes itself.

    BatchNorm statistics are re-estimated: their mean over one epoch of the training split, augmented as in
    training.

    Args:
        runs: run directories of one network and data set, usually of one recipe or from one pretrained network.
        out: the file, `*.safetensors`.
        greedy: start with the best run, and add others in order of score if the average does not get worse.
        checkpoint: which weights of each run to use; by default its EMA, if it has one.
        data_dir: folder of the data sets; None is that of the runs.
        devices: number of devices; None is all.
        loading: how data reaches the devices.

    Raises:
        InputError: The runs have different networks, or a greedy choice has no validation split; nothing is written.

    Reference:
        Wortsman et al. 2022, "Model soups", section 2 and recipe 1.

    Example:
        >>> average(["runs/seeds/seed0", "runs/seeds/seed1"], "soup.safetensors").score  # doctest: +SKIP
    """
    names, out = [str(run) for run in runs], Path(out)
    _require_runs(names, out)
    setups, states = zip(*(load_model(run, checkpoint=checkpoint, devices=devices) for run in names), strict=True)
    _require_alike(names, setups, greedy)
    setup, split = setups[0], eval_split(setups[0].recipe)
    variables = dict(zip(names, map(_on_host, states), strict=True))
    train, held = (open_eval_source(names[0], setup, name, data_dir) for name in ("train", split))
    crop = original_crop(setup.recipe, train)
    cast = setup.task.targets.cast
    estimate = make_estimate(setup, open_device_split(cast(train), setup.mesh, loading, {}, crop))
    score = _make_score(setup, open_device_split(cast(held), setup.mesh, loading))
    scores = {run: score(variables[run]) for run in names}

    def blend(chosen: Sequence[str]) -> tuple[Variables, float]:
        mixed = estimate(mean_of([variables[run] for run in chosen]))
        return mixed, score(mixed)

    if greedy:
        chosen, (mixed, found) = _greedy(setup.task, variables, scores, blend)
    else:
        chosen, (mixed, found) = tuple(names), blend(names)
    tensors = {path: np.asarray(leaf) for path, leaf in traverse_util.flatten_dict(mixed, sep="/").items()}
    metadata = write_metadata(setup.recipe, setup.dataset)
    write_tensors(out, tensors, {"format": "pt", "model": setup.recipe.model.name, **metadata})
    return Averaged(scores, chosen, found, setup.task.monitor, split)


def _greedy(
    task: Task,
    variables: Mapping[str, Variables],
    scores: Mapping[str, float],
    blend: Callable[[Sequence[str]], tuple[Variables, float]],
) -> tuple[tuple[str, ...], tuple[Variables, float]]:
    """Return the chosen runs and their average with its score."""
    best, *others = sorted(scores, key=lambda run: scores[run], reverse=task.mode == "max")
    chosen: tuple[str, ...] = (best,)
    found = variables[best], scores[best]
    for run in others:
        candidate = blend((*chosen, run))
        if task.reaches(candidate[1], found[1]):
            chosen, found = (*chosen, run), candidate
    return chosen, found


def mean_of(variables: Sequence[Variables]) -> Variables:
    """Return the mean of trees of arrays, summed in float64.

    Example:
        >>> mean_of([{"x": np.float32(1)}, {"x": np.float32(2)}])["x"]
        np.float32(1.5)
    """
    return jax.tree.map(lambda *leaves: np.mean(leaves, 0, np.float64).astype(leaves[0].dtype), *variables)


def make_estimate(setup: TrainSetup, train: DeviceSplit) -> Callable[[Variables], Variables]:
    """Return a function that replaces running statistics by their mean over the batches of an augmented epoch.

    Variables without such statistics, or of a recipe that freezes them, are returned unchanged.
    """
    recipe, size = setup.recipe, setup.dataset.train_size
    model = require_resnet(setup.model, "averaging").clone(dropout=0.0, head_dropout=0.0, drop_path=0.0)
    last = train_size_at(recipe, size, setup.steps)
    preprocess = make_preprocess(recipe, size, len(setup.dataset.classes), setup.task.targets.to_soft, image_size=last)

    @partial(jax.jit, out_shardings=replicated(setup.mesh), compiler_options=compiler_options())
    def batch_stats(variables: Variables, step: Any, inputs: StepInput) -> Any:
        batch = preprocess(random_keys(recipe)[1], step, gather_batch(inputs))
        # Without a memory, the running statistics are those of the batch
        forgetful = model.clone(norm=partial(model.norm, momentum=0.0))
        return forgetful.apply(variables, batch.image, train=True, mutable=["batch_stats"])[1]["batch_stats"]

    def estimate(variables: Variables) -> Variables:
        if not variables.get("batch_stats") or recipe.model.freeze_norm:
            return variables
        steps = range(max(1, size // recipe.batch_size))
        placed, total = replicate(variables, setup.mesh), None
        for step, inputs in zip(steps, training_batches(train, recipe, steps), strict=True):
            stats = jax.device_get(batch_stats(placed, jnp.int32(step), inputs))
            stats = jax.tree.map(lambda leaf: leaf.astype(np.float64) / len(steps), stats)
            total = stats if total is None else jax.tree.map(np.add, total, stats)
        return {**variables, "batch_stats": jax.tree.map(lambda leaf: leaf.astype(np.float32), total)}

    return estimate


def _make_score(setup: TrainSetup, held: DeviceSplit) -> Callable[[Variables], float]:
    batch_sums = make_eval_step(setup.model, setup.recipe.data, setup.mesh, setup.metrics)

    def score(variables: Variables) -> float:
        state = TrainState(jnp.int32(0), variables["params"], variables.get("batch_stats", {}), ())
        values = evaluate_split(batch_sums, setup.metrics, replicate(state, setup.mesh), held)
        return float(values[setup.task.monitor])

    return score


def _on_host(state: TrainState) -> Variables:
    return jax.tree.map(np.asarray, {"params": state.params, "batch_stats": state.batch_stats})


def _require_runs(names: Sequence[str], out: Path) -> None:
    if out.suffix != ".safetensors":
        raise InputError(f"{out}: the average is a file in the safetensors format; its name must end in .safetensors")
    if len(set(names)) < 2:
        raise InputError("average takes two or more different runs")
    for name in names:
        if not is_run(name):
            raise InputError(f"{name}: not a run directory; average needs runs, not weights files")


def _require_alike(names: Sequence[str], setups: Sequence[TrainSetup], greedy: bool) -> None:
    """Raise InputError if the runs differ in network or images, or a greedy choice would be made on the test split."""
    first = setups[0]
    for name, setup in zip(names, setups, strict=True):
        lines = differences(first.recipe, setup.recipe)
        changed = [line for line in lines if line.startswith(_SAME) and line.split()[0] not in _FREE]
        if setup.dataset.classes != first.dataset.classes or setup.dataset.image_shape != first.dataset.image_shape:
            changed.append("its classes or images")
        if changed:
            raise InputError(f"{name}: cannot be averaged with {names[0]}, they differ in {'; '.join(changed)}")
    if greedy and not first.recipe.data.holds_out:
        raise InputError(
            f"{names[0]}: holds no validation images out, and --greedy must not choose on the test split;"
            " train with --data.num_validation, or leave --greedy out"
        )
