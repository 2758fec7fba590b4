"""resnet-jax evaluate."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from tyro.conf import Positional

from resnet_jax.cli.parse import Unnamed, parse
from resnet_jax.inference.source import CheckpointChoice, WeightsInfo
from resnet_jax.input_pipeline.loading import DataLoading
from resnet_jax.runtime.terminal import show
from resnet_jax.training.options import default_data_dir


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(DataLoading):
    """Weights, data and metrics of an evaluation."""

    source: Positional[str]
    """Run directory, weights file, hf:OWNER/NAME or published name."""
    split: Literal["train", "validation", "test"] = "test"
    """Split of the data."""
    metrics: tuple[str, ...] = ()
    """Metrics beside the loss, such as top5 or macro_f1; () is what the task reports by default."""
    data_dir: Path | None = None
    """Folder of the data sets; None is that of the run or, for weights, $RESNET_JAX_DATA or data/."""
    devices: int | None = None
    """Devices to use; None is all."""
    json: bool = False
    """Print JSON."""


def evaluate(words: list[str]) -> int:
    """Measure loss and accuracy on a split: evaluate RUN [--split test], evaluate WEIGHTS --data NAME"""
    kind = cast(
        type[tuple[EvaluateOptions, WeightsInfo, CheckpointChoice]],
        tuple[Unnamed[EvaluateOptions], Unnamed[WeightsInfo], Unnamed[CheckpointChoice]],
    )
    options, weights, checkpoint = parse(kind, words, prog="resnet-jax evaluate", description=evaluate.__doc__ or "")
    from resnet_jax.inference.evaluate import evaluate as evaluate_source
    from resnet_jax.run_dir.files import is_run
    from resnet_jax.tasks.metrics import display_of, format_value

    found = evaluate_source(
        options.source,
        options.split,
        weights=weights,
        checkpoint=checkpoint,
        metrics=options.metrics,
        data_dir=options.data_dir or (None if is_run(options.source) else default_data_dir()),
        devices=options.devices,
        loading=options,
    )
    if options.json:
        show(json.dumps({"run": options.source, "split": options.split, "step": found.step, **found.values}))
        return 0
    for note in found.notes:
        show(note)
    what = f"on {weights.data}" if weights.data else f"at step {found.step}"
    count, errors = found.values["count"], found.values.get("errors")
    parts = [
        f"{name.replace('_', ' ')} {format_value(name, value)}"
        + (f" ({errors:,} of {count:,} wrong)" if display_of(name).complement == "error" and errors is not None else "")
        for name, value in found.values.items()
        if name != "count" and display_of(name).shown
    ]
    show(f"{options.source} {what}, {options.split}, {count:,} examples: {', '.join(parts)}")
    return 0
