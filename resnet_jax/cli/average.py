"""resnet-jax average."""

from dataclasses import dataclass
from pathlib import Path
from typing import cast

from tyro.conf import Positional

from resnet_jax.cli.parse import Unnamed, parse
from resnet_jax.inference.source import CheckpointChoice
from resnet_jax.input_pipeline.loading import DataLoading
from resnet_jax.runtime.terminal import show


@dataclass(frozen=True, kw_only=True)
class AverageOptions(DataLoading):
    """Runs to average, and the file to write."""

    runs: Positional[tuple[str, ...]]
    """Run directories of one network and data set."""
    out: Path
    """File to write, in the safetensors format."""
    greedy: bool = False
    """Start with the best run, and add another only if the average does not get worse on the validation split."""
    data_dir: Path | None = None
    """Folder of the data sets; None is that of the runs."""
    devices: int | None = None
    """Devices to use; None is all."""


def average(words: list[str]) -> int:
    """Average the weights of runs of one network: average RUN RUN... --out FILE.safetensors [--greedy]"""
    kind = cast(
        type[tuple[AverageOptions, CheckpointChoice]], tuple[Unnamed[AverageOptions], Unnamed[CheckpointChoice]]
    )
    options, checkpoint = parse(kind, words, prog="resnet-jax average", description=average.__doc__ or "")
    from resnet_jax.inference.average import average as average_runs
    from resnet_jax.tasks.metrics import format_value

    done = average_runs(
        options.runs,
        options.out,
        greedy=options.greedy,
        checkpoint=checkpoint,
        data_dir=options.data_dir,
        devices=options.devices,
        loading=options,
    )
    for run, score in done.scores.items():
        left = "" if run in done.chosen else ", left out"
        show(f"{run}: {done.split} {done.monitor} {format_value(done.monitor, score)}{left}")
    what = f"{done.split} {done.monitor} {format_value(done.monitor, done.score)}"
    show(f"{options.out}: average of {len(done.chosen)} runs, {what}")
    return 0
