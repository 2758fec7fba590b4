"""Learning rate range test: the steps of a recipe at rates that rise exponentially."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from resnet_jax.data.source import Source
from resnet_jax.errors import InputError
from resnet_jax.input_pipeline.device_input import open_device_split, training_batches
from resnet_jax.input_pipeline.loading import DataLoading
from resnet_jax.input_pipeline.preprocess import original_crop
from resnet_jax.parallel.sharding import data_mesh
from resnet_jax.recipe import Recipe, check
from resnet_jax.report.curves import INK, MUTED
from resnet_jax.runtime.safe_files import write_atomic
from resnet_jax.training.aot import compile_once
from resnet_jax.training.init import init_train_state
from resnet_jax.training.make_step import step_key
from resnet_jax.training.options import default_data_dir
from resnet_jax.training.pretrained import load_pretrained
from resnet_jax.training.setup import Parts, setup_training
from resnet_jax.training.sources import open_sources

# Decay of the moving average of the losses
_SMOOTHING = 0.9
# The test ends at a smoothed loss of this many times the lowest one
_DIVERGED = 4.0


class RangeTest(NamedTuple):
    """Losses by learning rate."""

    rates: np.ndarray  # (n,), rising exponentially
    losses: np.ndarray  # (n,), of the training batch of each step
    smoothed: np.ndarray  # (n,)
    steepest: float
    """Rate at which the smoothed loss falls fastest with the logarithm of the rate."""
    lowest: float
    """Rate of the lowest smoothed loss, which is too high to train with."""


def find_lr(
    recipe: Recipe,
    *,
    lr_min: float = 1e-5,
    lr_max: float = 10.0,
    steps: int = 100,
    data: tuple[Source, Source] | None = None,
    data_dir: Path | str | None = None,
    devices: int | None = None,
    loading: DataLoading = DataLoading(),
    log: Callable[[str], None] = lambda line: None,
) -> RangeTest:
    """Take the first steps of a recipe at rates from `lr_min` to `lr_max` instead of its schedule; keep nothing.

    The test ends early when the loss is no longer finite or four times the lowest one. Batches, augmentation and
    initial parameters are those of the recipe and its seed.

    Args:
        recipe: to test.
        lr_min: rate of the first step.
        lr_max: rate of the last step.
        steps: number of steps.
        data: training and test split, instead of the data set that the recipe names.
        data_dir: folder of the data sets; None is $RESNET_JAX_DATA, or data/.
        devices: number of devices; None is all.
        loading: how data reaches the devices.
        log: called with a line for people.

    Raises:
        InputError: The rates make no sense, recipe and data do not fit, or the loss never fell.

    Reference:
        Smith 2017, "Cyclical learning rates for training neural networks", section 3.3.

    Example:
        >>> find_lr(Recipe()).steepest  # doctest: +SKIP
        0.0351
    """
    if not 0 < lr_min < lr_max or steps < 10:
        raise InputError(
            f"rates from {lr_min:g} to {lr_max:g} in {steps} steps: give 0 < min < max, and 10 steps or more"
        )
    recipe, rates = check(recipe), lr_min * (lr_max / lr_min) ** (np.arange(steps) / (steps - 1))
    sources = open_sources(recipe, Path(data_dir or default_data_dir()), data)
    rate = jax.numpy.asarray(rates, jax.numpy.float32)
    parts = Parts(schedule=lambda step: rate[step])
    setup, accum_steps = setup_training(recipe, sources.dataset, data_mesh(devices), parts)
    crop = original_crop(recipe, sources.train)
    split = open_device_split(sources.train, setup.mesh, loading, {}, crop)
    pretrained = load_pretrained(setup)
    state, key = init_train_state(setup, pretrained and pretrained.variables), step_key(setup)
    train_step, losses = compile_once(setup, accum_steps, log), []
    for step, inputs in enumerate(training_batches(split, recipe, range(steps))):
        advance, _ = train_step(step, (state, inputs, key))
        state, sums = advance(state, inputs, key)
        losses.append(float(sums["loss"]) / max(float(sums["weight"]), 1e-9))
        smoothed = smooth(np.array(losses))
        if not np.isfinite(losses[-1]) or smoothed[-1] > _DIVERGED * smoothed.min():
            break
    return suggest(rates[: len(losses)], np.array(losses))


def smooth(losses: np.ndarray) -> np.ndarray:
    """Return the moving average of losses (n,), corrected for its start as Adam's.

    Example:
        >>> smooth(np.array([1.0, 1.0, 2.0])).round(3).tolist()
        [1.0, 1.0, 1.369]
    """
    average, averages = 0.0, []
    for count, loss in enumerate(losses, 1):
        average = _SMOOTHING * average + (1 - _SMOOTHING) * loss
        averages.append(average / (1 - _SMOOTHING**count))
    return np.array(averages)


def suggest(rates: np.ndarray, losses: np.ndarray) -> RangeTest:
    """Return the test with the steepest rate before the lowest smoothed loss; raise InputError if it never falls."""
    finite = np.isfinite(losses)
    rates, losses = rates[finite], losses[finite]
    smoothed = smooth(losses)
    lowest = int(smoothed.argmin()) if len(smoothed) else 0
    if lowest < 2:
        raise InputError("the loss does not fall at any of these rates: lower the first one, or take more steps")
    slopes = np.gradient(smoothed[: lowest + 1], np.log(rates[: lowest + 1]))
    return RangeTest(rates, losses, smoothed, float(rates[slopes.argmin()]), float(rates[lowest]))


def draw_range_test(test: RangeTest, path: Path, title: str) -> None:
    """Write a PNG of loss by rate; raise InputError if the path cannot be written."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.plot(test.rates, test.losses, color="#4c78a8", alpha=0.35, lw=1, label="loss of each step")
    axes.plot(test.rates, test.smoothed, color="#4c78a8", lw=1.8, label="moving average")
    axes.axvline(test.steepest, color="#e4572e", lw=1.3, label=f"steepest: {test.steepest:.2g}")
    axes.set_xscale("log")
    axes.set_ylim(0, 1.1 * max(test.smoothed[0], *test.smoothed[: int(test.smoothed.argmin()) + 1]))
    axes.set_title(title, loc="left", color=INK, fontweight="bold", fontsize=11)
    axes.set_xlabel("learning rate", color=MUTED)
    axes.set_ylabel("training loss", color=MUTED)
    axes.grid(alpha=0.25, color=MUTED)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    png = io.BytesIO()
    figure.savefig(png, format="png", metadata={"Software": None})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, png.getvalue())
    except OSError as error:
        raise InputError(f"{path}: cannot write there ({error.strerror}); choose another --out") from error
