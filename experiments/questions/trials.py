"""What the questions share: networks trained for some steps, compiled once for all seeds, and how they are drawn."""

import argparse
import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from io import BytesIO
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from experiments import script
from resnet_jax import Recipe, TrainState, compiler_options, train_step
from resnet_jax.data.augment import normalize
from resnet_jax.data.batches import Batch, batch_indices
from resnet_jax.data.source import to_arrays
from resnet_jax.recipe import Augment, Data, Model, Optimizer, Schedule
from resnet_jax.spread import spread
from resnet_jax.train.job import Job, Sources, open_sources, prepare, random_keys, start
from resnet_jax.train.preprocess import make_preprocess
from resnet_jax.train.step import Sums, eval_step

HOME = Path(__file__).parent
PICTURES = HOME.parent / "pictures" / "questions"
DATA = {
    "digits": Data(name="digits", mean=(0.5,), std=(0.5,)),
    "cifar10": Data(name="cifar10", mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)),
}
BLUE, RED, TEAL, GRAY = "#4c78a8", "#e4572e", "#4fa39d", "#6b6b6b"


class Split(NamedTuple):
    """All examples of a split."""

    image: Array  # (n, h, w, c) uint8
    label: Array  # (n,) int32

    def batch(self, indices: np.ndarray | Array) -> Batch:
        """The examples at these indices, none of them padding."""
        return Batch(self.image[indices], self.label[indices], jnp.ones(len(indices), bool), jnp.asarray(indices))


class Trial(NamedTuple):
    """A recipe with its data, compiled when it is first used and then for every seed."""

    job: Job
    train: Split
    held: Split
    begin: Callable[[Array], TrainState]  # of a key
    pure_step: Callable[[TrainState, Batch, Array], tuple[TrainState, Sums]]  # with a key
    step: Callable[[TrainState, Batch, Array], tuple[TrainState, Sums]]  # the same, compiled; the state given is gone


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
    """SGD as in He et al. 2015, section 4.2, but without augmentation; `warmup` in steps, from a tenth of the rate."""
    return Recipe(
        model=model,
        data=DATA[data],
        augment=Augment(pad=0),
        optimizer=Optimizer(lr=0.1, momentum=momentum, nesterov=False, weight_decay=1e-4),
        schedule=Schedule(name=schedule, warmup=warmup, warmup_from=0.1),
        batch_size=batch_size,
        epochs=None,
        steps=steps,
    )


def make_trial(recipe: Recipe, data_dir: Path = Path("data"), change: Callable[[Job], Job] = lambda job: job) -> Trial:
    """`change` may replace what a recipe has no word for, in the network or the optimiser."""
    sources = open_sources(recipe, data_dir)
    job = change(prepare(recipe, sources.dataset, devices=1))
    train, held = splits(sources)
    preprocess = make_preprocess(recipe, sources.dataset.train_size, len(sources.dataset.classes))

    def pure_step(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Sums]:
        return train_step(
            state, batch, model=job.model, optimizer=job.optimizer, loss=job.loss, preprocess=preprocess, key=key
        )

    begin = jax.jit(lambda key: start(job, key)[0], compiler_options=compiler_options())
    step = jax.jit(pure_step, donate_argnums=0, compiler_options=compiler_options())
    return Trial(job, train, held, begin, pure_step, step)


def splits(sources: Sources) -> tuple[Split, Split]:
    """Training and held-out examples, on the device."""
    train, held = (Split(*map(jnp.asarray, to_arrays(source))) for source in (sources.train, sources.held))
    return train, held


def keys_of(trial: Trial, seed: int) -> tuple[Array, Array]:
    """The keys of the initial parameters and of all else that is random."""
    return random_keys(dataclasses.replace(trial.job.recipe, seed=seed))


def batches(trial: Trial, seed: int) -> Iterator[Batch]:
    """Those that a run of the recipe with this seed is given."""
    size, recipe = len(trial.train.label), trial.job.recipe
    for step in range(trial.job.steps):
        yield trial.train.batch(batch_indices(seed, step, recipe.batch_size, size))


def training(trial: Trial, seed: int) -> Iterator[tuple[TrainState, float]]:
    """The state after each step, gone when the next is asked for, and the loss of the step's batch before it."""
    init_key, key = keys_of(trial, seed)
    state = trial.begin(init_key)
    for batch in batches(trial, seed):
        state, sums = trial.step(state, batch, key)
        yield state, float(sums.loss) / int(sums.examples)


class Run(NamedTuple):
    """A training to the end of its recipe."""

    state: TrainState
    loss: np.ndarray  # (steps,) of each batch before its step, nats
    seconds: float  # a step, the median


def run(trial: Trial, seed: int) -> Run:
    states, curve, times = zip(*((*step, perf_counter()) for step in training(trial, seed)), strict=True)
    return Run(states[-1], np.array(curve), float(np.median(np.diff(times))) if len(times) > 1 else 0.0)


def late(loss: np.ndarray) -> np.ndarray:
    """The mean over the last tenth of the steps, (...) of (..., steps)."""
    return loss[..., -max(1, loss.shape[-1] // 10) :].mean(-1)


def make_accuracy(trial: Trial) -> Callable[[TrainState], float]:
    """The share of the first 1,000 held-out images that a state answers correctly, by its running statistics."""
    data = trial.job.recipe.data
    scaled = partial(normalize, mean=data.mean, std=data.std)
    step = partial(eval_step, model=trial.job.model, loss=trial.job.measure, normalize=scaled)
    sums = jax.jit(step, compiler_options=compiler_options())
    held = trial.held.batch(np.arange(min(len(trial.held.label), 1000)))
    return lambda state: float(sums(state, held).correct / len(held.label))


def smooth(curves: np.ndarray, width: int = 9) -> np.ndarray:
    """Means of `width` neighbouring steps along the last axis, of fewer at the ends."""
    kernel = np.ones(min(width, curves.shape[-1]))
    count = np.convolve(np.ones(curves.shape[-1]), kernel, "same")
    return np.apply_along_axis(lambda curve: np.convolve(curve, kernel, "same") / count, -1, curves)


def parse(doc: str, *, seeds: int, steps: int, name: str) -> argparse.Namespace:
    """The flags that all questions have; `out` is the path of the picture."""
    parser = script.parser(doc)
    parser.add_argument("--out", type=Path, default=PICTURES, help="folder of the picture")
    parser.add_argument("--seeds", type=script.positive, default=seeds)
    parser.add_argument("--steps", type=script.positive, default=steps)
    parser.add_argument("--data", choices=DATA, default="digits")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="where CIFAR-10 lies")
    arguments = parser.parse_args()
    arguments.out = arguments.out / f"{name}.png"
    return arguments


def canvas(title: str, rows: int = 1, columns: int = 2, **how: Any) -> tuple[Figure, list[Any]]:
    """A figure and its panels, row by row."""
    figure = Figure(figsize=(10, 0.6 + 3.6 * rows), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(np.atleast_1d(figure.subplots(rows, columns, **how)).ravel())
    for axes in panels:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=12, fontweight="bold")
    return figure, panels


def band(axes: Any, x: Any, values: np.ndarray, color: str, label: str, **how: Any) -> None:
    """The mean of (seeds, ...) as a line, and from least to most as a band."""
    axes.plot(x, values.mean(0), color=color, lw=1.8, label=label, **how)
    axes.fill_between(x, values.min(0), values.max(0), color=color, alpha=0.18, lw=0)


def save(figure: Figure, path: Path) -> None:
    """Writes a PNG of 128 colours, a third as large as one of all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = BytesIO()
    figure.savefig(content)
    Image.open(content).convert("RGB").quantize(128).save(path, optimize=True)
    print(f"\n{path}")


def table(head: list[str], rows: list[list[Any]]) -> None:
    """Prints Markdown; the first column is text, the others numbers."""
    print(f"| {' | '.join(head)} |\n|---|{'--:|' * (len(head) - 1)}")
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |", flush=True)


def over_seeds(values: np.ndarray, digits: int = 2) -> str:
    """Mean and standard deviation, as a table has them."""
    return spread(values.tolist()).written(digits)
