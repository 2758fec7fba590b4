"""Options of a run: where and how it computes, and when it evaluates, saves and stops. None changes the curve."""

import os
import re
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal

from resnet_jax.errors import InputError
from resnet_jax.input_pipeline.loading import DataLoading
from resnet_jax.recipe import Recipe
from resnet_jax.recipe.bounds import NON_NEGATIVE, POSITIVE, UNIT, require_flag_bounds


@dataclass(frozen=True, kw_only=True)
class RunFlags(DataLoading):
    """Devices, data, evaluation and checkpoints."""

    devices: int | None = None
    """Devices to use; None is all."""
    grad_accum_steps: int | Literal["auto"] = 1
    """Microbatches per step, to save memory; auto is the smallest number that fits."""
    param_sharding: Literal["replicated", "sharded"] = "replicated"
    """Sharding of parameters, optimiser state and EMA: replicated on all devices, or sharded and gathered for each
    step."""
    data_dir: Path | None = None
    """Folder of the data sets; None is $RESNET_JAX_DATA, or data/."""
    metrics: tuple[str, ...] = ()
    """Metrics to evaluate besides the loss, such as top5 or macro_f1; () is the task's default."""
    monitor: str | None = None
    """Metric that picks the best checkpoint, and that --target-metric and --patience watch, such as macro_f1 or loss;
    None is the task's default, accuracy for classification."""
    eval_every: Annotated[int | None, POSITIVE] = None
    """Steps between evaluations; None is once per epoch."""
    checkpoint_every: Annotated[int | None, POSITIVE] = None
    """Steps between checkpoints; None is once per epoch. The best evaluation so far is always saved."""
    keep_checkpoints: Annotated[int, POSITIVE] = 2
    """Number of newest checkpoints to keep, besides the best one."""
    stop_at: Annotated[int | None, POSITIVE] = None
    """Step at which to save a checkpoint and stop, before the end of the recipe."""
    target_metric: float | None = None
    """Value of the monitored metric at which to save a checkpoint and stop: an accuracy of 0 to 1, or a loss."""
    patience: Annotated[int | None, POSITIVE] = None
    """Number of evaluations in a row without improvement after which to save a checkpoint and stop; None = never."""
    time_limit: timedelta | None = None
    """Time after which to save a checkpoint and exit with code 138, as after SIGUSR1: 3h, 90m or 45s."""
    watchdog_seconds: Annotated[float, NON_NEGATIVE] = 3600.0
    """Seconds without a step after which to print the stack traces and exit with code 1; 0 = never."""
    max_corrupt_fraction: Annotated[float, UNIT] = 0.01
    """Maximum fraction of training images that may be unreadable and replaced by the next one; 0 stops at the first."""


@dataclass(frozen=True, kw_only=True)
class RunOptions(RunFlags):
    """How to run a recipe."""

    return_on_signal: bool = False
    """Return the result if a signal stopped the run, instead of raising KeyboardInterrupt with its number."""


def require_epoch_rows(recipe: Recipe, options: RunOptions) -> None:
    """Raise InputError if the rows that a schedule follows would depend on --eval-every."""
    if recipe.schedule.name == "plateau" and options.eval_every is not None:
        raise InputError("--eval-every: the schedule plateau follows the rows of whole epochs; leave it out")


def read_time(word: str) -> timedelta:
    """Return the time of a word such as 3h, 90m or 45s; raise ValueError for others.

    Example:
        >>> read_time("1.5h")
        datetime.timedelta(seconds=5400)
    """
    found = re.fullmatch(r"(\d{1,6}(?:\.\d{1,6})?)([hms])", word, re.ASCII)
    if not found:
        raise ValueError(f"{word!r} is not a time; write 3h, 90m or 45s")
    return timedelta(seconds=float(found[1]) * {"h": 3600, "m": 60, "s": 1}[found[2]])


def default_data_dir() -> Path:
    """Return $RESNET_JAX_DATA, or data/."""
    return Path(os.environ.get("RESNET_JAX_DATA", "data"))


def validate_options(options: RunOptions) -> None:
    """Raise InputError, with the flag, for an option that makes no sense."""
    require_flag_bounds(options)
    if options.time_limit is not None and options.time_limit <= timedelta(0):
        raise InputError(f"--time-limit is {options.time_limit}; it must be positive")
