"""Train networks for a few steps, compiled once for all seeds, and draw and print what the questions found."""

import argparse
import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from io import BytesIO
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax import Array
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from experiments import script
from resnet_jax import Recipe, TrainState, compiler_options
from resnet_jax.data.source import subset
from resnet_jax.input_pipeline.device_input import DeviceSplit, IndexedBatch, open_device_split, training_batches
from resnet_jax.parallel.sharding import batch_sharding, place
from resnet_jax.recipe import Augment, Data, Model, Optimizer, Schedule
from resnet_jax.report.statistics import mean_and_std
from resnet_jax.training.evaluate import evaluate_split, make_eval_step
from resnet_jax.training.init import init_fn, random_keys, shardings
from resnet_jax.training.make_step import make_train_step, step_key
from resnet_jax.training.setup import TrainSetup, make_setup
from resnet_jax.training.sources import open_sources

HOME = Path(__file__).parent
PICTURES = HOME.parent / "pictures" / "questions"
DATA = {
    "digits": Data(name="digits", mean=(0.5,), std=(0.5,)),
    "cifar10": Data(name="cifar10", mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)),
}
BLUE, RED, TEAL, GRAY = "#4c78a8", "#e4572e", "#4fa39d", "#6b6b6b"


class Trial(NamedTuple):
    """A recipe with its data, compiled when it is first used and then for every seed."""

    setup: TrainSetup
    train: DeviceSplit
    evaluation: DeviceSplit
    init: Callable[[Array], TrainState]
    """Key of the initial parameters -> state before the first step."""
    train_step: Callable[[TrainState, IndexedBatch, Array], tuple[TrainState, dict[str, Any]]]
    """(state, batch, step key) -> (state, sums); the state given is donated."""


def short_recipe(
    model: Model,
    data: str,
    steps: int,
    *,
    schedule: Literal["constant", "cosine"] = "constant",
    warmup: int = 0,
    momentum: float = 0.9,
    batch_size: int = 64,
) -> Recipe:
    """Return SGD as in He et al. 2015, section 4.2, without augmentation.

    Args:
        model: the network.
        data: a name of DATA.
        steps: length of the recipe.
        schedule: shape after the warm-up.
        warmup: steps of warm-up, from a tenth of the learning rate.
        momentum: of SGD.
        batch_size: images per step.
    """
    return Recipe(
        model=model,
        data=DATA[data],
        augment=Augment(crop_padding=0),
        optimizer=Optimizer(lr=0.1, momentum=momentum, nesterov=False, weight_decay=1e-4),
        schedule=Schedule(name=schedule, warmup=warmup, warmup_start_factor=0.1),
        batch_size=batch_size,
        epochs=None,
        steps=steps,
    )


def make_trial(
    recipe: Recipe, data_dir: Path = Path("data"), change: Callable[[TrainSetup], TrainSetup] = lambda setup: setup
) -> Trial:
    """Return the trial of a recipe on one device.

    Args:
        recipe: as `short_recipe` returns it.
        data_dir: folder of the data sets.
        change: replaces parts of the setup that a recipe has no field for, such as the optimiser.
    """
    sources = open_sources(recipe, data_dir)
    setup = change(make_setup(recipe, sources.dataset, devices=1))
    train, evaluation = (open_device_split(source, setup.mesh) for source in (sources.train, sources.evaluation))
    init = jax.jit(partial(init_fn, setup), out_shardings=shardings(setup), compiler_options=compiler_options())
    return Trial(setup, train, evaluation, init, make_train_step(setup))


def keys_of(trial: Trial, seed: int) -> tuple[Array, Array]:
    """Return the key of the initial parameters and the key of the training steps, as `train` draws them."""
    recipe = dataclasses.replace(trial.setup.recipe, seed=seed)
    return random_keys(recipe)[0], step_key(trial.setup._replace(recipe=recipe))


def batch_at(trial: Trial, indices: np.ndarray) -> IndexedBatch:
    """Return the training examples at these indices as the input of a step."""
    assert trial.train.arrays is not None, "the data sets of DATA fit on a device"
    return IndexedBatch(trial.train.arrays, place(indices, batch_sharding(trial.train.mesh)), None)


def batches(trial: Trial, seed: int) -> Iterator[Any]:
    """Yield the step inputs of a run of the recipe with this seed."""
    recipe = dataclasses.replace(trial.setup.recipe, seed=seed)
    return training_batches(trial.train, recipe, range(trial.setup.steps))


def training(trial: Trial, seed: int) -> Iterator[tuple[TrainState, float]]:
    """Yield the state after each step, valid until the next one, and the loss of its batch before the step."""
    init_key, key = keys_of(trial, seed)
    state = trial.init(init_key)
    for batch in batches(trial, seed):
        state, sums = trial.train_step(state, batch, key)
        yield state, float(sums["loss"]) / int(sums["weight"])


class TrialResult(NamedTuple):
    """A training to the end of its recipe."""

    state: TrainState
    loss: np.ndarray
    """(steps,) loss of each batch before its step, in nats."""
    seconds: float
    """Median time per step."""


def run(trial: Trial, seed: int) -> TrialResult:
    """Train to the end of the recipe."""
    states, losses, times = zip(*((*step, perf_counter()) for step in training(trial, seed)), strict=True)
    return TrialResult(states[-1], np.array(losses), float(np.median(np.diff(times))) if len(times) > 1 else 0.0)


def final_loss(loss: np.ndarray) -> np.ndarray:
    """Return the mean over the last tenth of the steps, (...) of (..., steps)."""
    return loss[..., -max(1, loss.shape[-1] // 10) :].mean(-1)


def make_accuracy(trial: Trial, split: DeviceSplit | None = None) -> Callable[[TrainState], float]:
    """Return a function that gives the accuracy of a state on up to 1,000 images, by its running statistics.

    Args:
        trial: of the state.
        split: whose first images are evaluated; None is the evaluation split.
    """
    split, setup = split or trial.evaluation, trial.setup
    first = split._replace(source=subset(split.source, np.arange(min(split.source.size, 1000))))
    eval_step = make_eval_step(setup.model, setup.recipe.data, setup.mesh, setup.metrics)
    return lambda state: evaluate_split(eval_step, setup.metrics, state, first)["accuracy"]


def smooth(curves: np.ndarray, width: int = 9) -> np.ndarray:
    """Return means of `width` neighbouring steps along the last axis, of fewer at the ends."""
    kernel = np.ones(min(width, curves.shape[-1]))
    count = np.convolve(np.ones(curves.shape[-1]), kernel, "same")
    return np.apply_along_axis(lambda curve: np.convolve(curve, kernel, "same") / count, -1, curves)


def parse(doc: str, *, seeds: int, steps: int, name: str) -> argparse.Namespace:
    """Return the flags that all questions have; `out` is the path of the picture."""
    parser = script.parser(doc)
    parser.add_argument("--out", type=Path, default=PICTURES, help="folder of the picture")
    parser.add_argument("--seeds", type=script.positive, default=seeds, help="number of seeds, from 0")
    parser.add_argument("--steps", type=script.positive, default=steps)
    parser.add_argument("--data", choices=DATA, default="digits")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="folder of CIFAR-10")
    arguments = parser.parse_args()
    arguments.out = arguments.out / f"{name}.png"
    return arguments


def canvas(title: str, rows: int = 1, columns: int = 2, **options: Any) -> tuple[Figure, list[Any]]:
    """Return a figure and its panels, row by row."""
    figure = Figure(figsize=(10, 0.6 + 3.6 * rows), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(np.atleast_1d(figure.subplots(rows, columns, **options)).ravel())
    for axes in panels:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=12, fontweight="bold")
    return figure, panels


def band(axes: Any, x: Any, values: np.ndarray, color: str, label: str, **style: Any) -> None:
    """Draw the mean of (seeds, ...) as a line and the range from minimum to maximum as a band."""
    axes.plot(x, values.mean(0), color=color, lw=1.8, label=label, **style)
    axes.fill_between(x, values.min(0), values.max(0), color=color, alpha=0.18, lw=0)


def save(figure: Figure, path: Path) -> None:
    """Write a PNG of 128 colours, which is a third of the size of one in full colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = BytesIO()
    figure.savefig(content)
    Image.open(content).convert("RGB").quantize(128).save(path, optimize=True)
    print(f"\n{path}")


def table(head: list[str], rows: list[list[Any]]) -> None:
    """Print a Markdown table; the first column is text, the others are numbers."""
    print(f"| {' | '.join(head)} |\n|---|{'--:|' * (len(head) - 1)}")
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |", flush=True)


def over_seeds(values: np.ndarray, digits: int = 2) -> str:
    """Format mean and standard deviation for a table."""
    return mean_and_std(values.tolist()).format(digits)
