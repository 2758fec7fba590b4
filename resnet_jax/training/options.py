"""Options of a run: where and how it computes, and when it evaluates, saves and stops. None changes the curve."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from resnet_jax.errors import InputError
from resnet_jax.input_pipeline.loading import DataLoading


@dataclass(frozen=True, kw_only=True)
class RunFlags(DataLoading):
    """The options of a run that have a flag."""

    devices: int | None = None
    """Devices to use; None is all."""
    grad_accum_steps: int | Literal["auto"] = 1
    """Microbatches per step, for less memory; auto is as few as fit."""
    param_sharding: Literal["replicated", "sharded"] = "replicated"
    """Sharding of parameters, optimiser state and EMA: replicated on all devices, or sharded and gathered for each
    step."""
    data_dir: Path | None = None
    """Folder of the data sets; None is $RESNET_JAX_DATA, or data/."""
    metrics: tuple[str, ...] = ()
    """Metrics on the evaluation split beside the loss; () is what the task reports by default."""
    eval_every: int | None = None
    """Steps between evaluations; None is once per epoch."""
    checkpoint_every: int | None = None
    """Steps between checkpoints; None is once per epoch. The best evaluation so far is always saved."""
    keep_checkpoints: int = 2
    """Number of newest checkpoints to keep, beside the best one."""
    stop_at: int | None = None
    """Step at which to stop with a checkpoint, before the recipe ends."""
    target_metric: float | None = None
    """Value of the monitored metric at which to stop with a checkpoint: an accuracy of 0 to 1, or a loss."""
    watchdog_seconds: float = 3600.0
    """Seconds without a step after which the process writes its stacks and exits with code 1; 0 = never."""
    max_corrupt_fraction: float = 0.01
    """Maximum fraction of training images that may be unreadable and are replaced by the next; 0 stops at the first."""


@dataclass(frozen=True, kw_only=True)
class RunOptions(RunFlags):
    """How to run a recipe."""

    return_on_signal: bool = False
    """Return the result if a signal stopped the run, instead of raising KeyboardInterrupt with its number."""


def default_data_dir() -> Path:
    """Return $RESNET_JAX_DATA, or data/."""
    return Path(os.environ.get("RESNET_JAX_DATA", "data"))


def validate_options(options: RunOptions) -> None:
    """Raise InputError, with the flag, for an option that makes no sense."""
    o = options
    counts = ("devices", "stop_at", "eval_every", "checkpoint_every", "keep_checkpoints")
    positive = {name: getattr(o, name) for name in counts if name != "devices"}
    for name, value, good, wanted in (
        *((name, value, value is None or value >= 1, "be positive") for name, value in positive.items()),
        ("watchdog_seconds", o.watchdog_seconds, o.watchdog_seconds >= 0, "not be negative"),
        ("device_cache_gib", o.device_cache_gib, o.device_cache_gib >= 0, "not be negative"),
        ("num_threads", o.num_threads, o.num_threads is None or o.num_threads >= 0, "not be negative"),
        ("max_corrupt_fraction", o.max_corrupt_fraction, 0 <= o.max_corrupt_fraction <= 1, "be a fraction, 0 to 1"),
    ):
        if not good:
            raise InputError(f"--{name.replace('_', '-')} is {value}; it must {wanted}")
