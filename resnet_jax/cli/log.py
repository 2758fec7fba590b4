"""resnet-jax log."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from resnet_jax.cli.parse import parse
from resnet_jax.runtime.terminal import show

TrackerName = Literal["tensorboard", "wandb", "mlflow"]


@dataclass(frozen=True, kw_only=True)
class LogOptions:
    """Runs to send, and trackers."""

    runs: Positional[tuple[Path, ...]]
    """Run directories, finished or not."""
    to: tuple[TrackerName, ...]
    """Trackers to send to."""


def log(words: list[str]) -> int:
    """Send rows that trackers do not have, and pictures: log RUN... --to wandb"""
    options = parse(LogOptions, words, prog="resnet-jax log", description=log.__doc__ or "")
    from resnet_jax.training.trackers import require_trackers, send_run

    require_trackers(options.to)
    for run in options.runs:
        for name in options.to:
            rows, pictures = send_run(run, name)
            show(f"{run}: {rows} row{'s' * (rows != 1)} and {pictures} picture{'s' * (pictures != 1)} sent to {name}")
    return 0
